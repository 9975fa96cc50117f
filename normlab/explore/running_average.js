// A layer's running mean and variance under two momenta, against the truth.

export const STD = 2; // of every value: the true variance is 4
export const FIRST = 2; // the true mean at the first step ...
export const LAST = 6; // ... and at the last, unless it stays
export const MOMENTA = [
  0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1,
];
export const SIZES = [2, 4, 8, 16, 32, 64, 128];

// Uniform numbers from 0 to 1 (Mulberry32): the same draws in every browser.
export function generator(seed) {
  let a = seed | 0;
  return () => {
    a = (a + 0x6d2b79f5) | 0;
    let t = Math.imul(a ^ (a >>> 15), a | 1);
    t = (t + Math.imul(t ^ (t >>> 7), t | 61)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

// A draw from N(0, 1), by the Box-Muller transform.
export function normal(random) {
  const r = Math.sqrt(-2 * Math.log1p(-random()));
  return r * Math.cos(2 * Math.PI * random());
}

export function trueMean(world, t, steps) {
  const drift = t / (steps - 1), jump = t >= half(steps) ? 1 : 0;
  const share = { stays: 0, drifts: drift, jumps: jump }[world];
  return FIRST + (LAST - FIRST) * share;
}

function half(steps) {
  return Math.floor(steps / 2);
}

// The mean and the biased variance of each batch.
export function drawBatches({ world, batch_size: m, steps, seed }) {
  const random = generator(seed);
  const means = [], variances = [];
  for (let t = 0; t < steps; t++) {
    let sum = 0, square = 0;
    for (let i = 0; i < m; i++) {
      const z = STD * normal(random);
      sum += z;
      square += z * z;
    }
    const mean = sum / m;
    means.push(trueMean(world, t, steps) + mean);
    variances.push(Math.max(0, square / m - mean * mean));
  }
  return { means, variances };
}

// The running average after each value, started at `start`.
export function running(values, momentum, start) {
  let r = start;
  return values.map((v) => (r += momentum * (v - r)));
}

// Bessel's correction of the biased variance of m values.
export function bessel(variance, m) {
  return (variance * m) / (m - 1);
}

// Steps until the weight of what went before has fallen to `share`.
export function stepsTo(share, momentum) {
  if (momentum >= 1) return 1;
  return Math.ceil(Math.log(share) / Math.log1p(-momentum) - 1e-9);
}

// Standard deviation of the running mean when the true mean stays.
export function noise(momentum, m) {
  return STD * Math.sqrt(momentum / (2 - momentum) / m);
}

// The points of an SVG path, in the unit of the drawing.
export function path(values, toX, toY) {
  return values
    .map((v, t) => `${t ? "L" : "M"}${toX(t).toFixed(1)} ${toY(v).toFixed(1)}`)
    .join("");
}

const W = 440, LEFT = 34, RIGHT = 8, HEIGHT = 150;
const PANELS = [
  { title: "mean", top: 26, low: -2, high: 10, ticks: [0, 2, 4, 6, 8] },
  { title: "variance", top: 228, low: 0, high: 12, ticks: [0, 4, 8, 12] },
];
const COLOURS = ["nl-after", "nl-before"];

function scales(panel, steps) {
  const { top, low, high } = panel;
  const inside = (v) => Math.min(high, Math.max(low, v));
  return {
    toX: (t) => LEFT + (t / (steps - 1)) * (W - LEFT - RIGHT),
    toY: (v) => top + HEIGHT * (1 - (inside(v) - low) / (high - low)),
  };
}

function axes(panel, steps) {
  const { toX, toY } = scales(panel, steps);
  const right = W - RIGHT, bottom = panel.top + HEIGHT;
  const rows = panel.ticks.map((v) =>
    `<path class="nl-grid" d="M${LEFT} ${toY(v)}H${right}"/>` +
    `<text x="${LEFT - 6}" y="${toY(v) + 4}" text-anchor="end">${v}</text>`);
  const columns = [0, half(steps), steps].map((t) => {
    const x = toX(Math.min(t, steps - 1));
    const anchor = t === steps ? "end" : "middle";
    return `<text x="${x}" y="${bottom + 16}" text-anchor="${anchor}">` +
      `${t}</text>`;
  });
  return rows.join("") + columns.join("") +
    `<path class="nl-axis" d="M${LEFT} ${bottom}H${right}"/>` +
    `<text x="4" y="${panel.top - 10}">${panel.title}</text>`;
}

function curves(panel, steps, dots, truth, lines) {
  const { toX, toY } = scales(panel, steps);
  const points = dots.map((v, t) =>
    `<circle cx="${toX(t).toFixed(1)}" cy="${toY(v).toFixed(1)}" r="1.5"/>`);
  const drawn = lines.map((values, k) =>
    `<path class="nl-line ${COLOURS[k]}" d="${path(values, toX, toY)}"/>`);
  return `<g class="nl-dot" opacity="0.3">${points.join("")}</g>` +
    `<path class="nl-line nl-dashed" d="${path(truth, toX, toY)}"/>` +
    drawn.reverse().join("");
}

// What the state shows: batches, the truth, and both running averages.
export function compute(state) {
  const { batch_size: m, steps, world, unbiased } = state;
  const { means, variances } = drawBatches(state);
  const stored = unbiased ? variances.map((v) => bessel(v, m)) : variances;
  const momenta = [state.first, state.second];
  return {
    momenta, means, stored,
    truth: means.map((_, t) => trueMean(world, t, steps)),
    runningMean: momenta.map((p) => running(means, p, 0)),
    runningVar: momenta.map((p) => running(stored, p, 1)),
  };
}

function drawing(state) {
  const c = compute(state), [upper, lower] = PANELS, n = state.steps;
  const flat = c.truth.map(() => STD * STD);
  return axes(upper, n) + curves(upper, n, c.means, c.truth, c.runningMean) +
    axes(lower, n) + curves(lower, n, c.stored, flat, c.runningVar) +
    `<text x="${W / 2}" y="416" text-anchor="middle">step</text>`;
}

function table(state) {
  const c = compute(state), two = (v) => v.toFixed(2);
  const head = c.momenta.map((p, k) =>
    `<th scope="col"><span class="nl-inked ${COLOURS[k]}">${p}</span></th>`);
  const rows = [
    ["steps to 90 % of a jump", c.momenta.map((p) => stepsTo(0.1, p))],
    ["trembling of the mean",
      c.momenta.map((p) => `±${two(noise(p, state.batch_size))}`)],
    ["running mean at the end", c.runningMean.map((r) => two(r.at(-1)))],
    ["running variance at the end", c.runningVar.map((r) => two(r.at(-1)))],
  ].map(([name, cells]) => `<tr><th scope="row">${name}</th>` +
    `<td>${cells.join("</td><td>")}</td></tr>`);
  return `<thead><tr><th scope="row">momentum</th>${head.join("")}</tr>` +
    `</thead><tbody>${rows.join("")}</tbody>`;
}

// One sentence that says what the drawing shows.
export function sentence(state) {
  const goal = trueMean(state.world, state.steps - 1, state.steps);
  const [slow, fast] = [state.first, state.second].sort((a, b) => a - b);
  const reach = unreached(state, slow);
  return `At the end the true mean is ${goal} and the true variance is ` +
    `${STD * STD}. ` + (slow === fast ? "Both momenta are equal."
      : `${fast} trembles more; ${slow} ${reach}.`);
}

function unreached({ steps }, momentum) {
  const weight = (1 - momentum) ** steps;
  return weight < 0.01 ? "follows more slowly"
    : `follows more slowly and still gives its starting value ` +
      `${(100 * weight).toFixed(0)} % of the weight`;
}

const TEMPLATE = `<div class="nl-figure">
<svg viewBox="0 0 ${W} 422" role="img" style="max-width:36rem"
 aria-label="Batch means and variances as dots, the truth dashed, and two
 running averages"></svg>
<div class="nl-soft">Dots: batches (at the edge if beyond it). Dashed: the
truth. Lines: running averages, from 0 and 1.</div>
<div class="nl-controls">
<label><span class="nl-inked nl-after">momentum</span>
 <input type="range" data-key="first"><output></output></label>
<label><span class="nl-inked nl-before">second momentum</span>
 <input type="range" data-key="second"><output></output></label>
<label>batch size
 <input type="range" data-key="batch_size"><output></output></label>
<label>steps
 <input type="range" data-key="steps"><output></output></label>
<label>the true mean <select data-key="world">
 <option>stays</option><option>drifts</option><option>jumps</option>
 </select></label>
<label>variance stored <select data-key="unbiased">
 <option value="true">unbiased</option><option value="false">biased</option>
 </select></label></div>
<div class="nl-buttons"><button type="button" data-act="seed">New draw</button>
<button type="button" data-act="reset">Start again</button></div>
<div class="nl-table"><table></table></div>
<div class="nl-status" role="status"></div></div>`;

// A slider's positions stand for these values of its trait.
const VALUES = {
  first: MOMENTA, second: MOMENTA, batch_size: SIZES,
  steps: Array.from({ length: 10 }, (_, i) => 50 * (i + 1)),
};

function render({ model, el }) {
  return control({
    model, el, template: TEMPLATE, values: VALUES, keys: ["seed"],
    acts: { seed: ({ seed }) => ({ seed: seed + 1 }) },
    show: { svg: drawing, table, status: sentence },
  });
}

export default { render };
