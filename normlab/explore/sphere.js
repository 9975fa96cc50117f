// A scale-invariant weight under weight decay: its norm and its direction.

export const STEPS = 4000;
export const RATES = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1];
export const DECAYS = [0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1];
export const STARTS = [0.3, 0.5, 1, 2, 3, 5];
export const PULLS = [0.25, 0.5, 1, 2, 4];

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

// The weights [x, y] after 0, 1, ..., steps steps. The gradient stands at
// right angles to the weight and is pull * N(0, 1) / norm long.
export function walk({ lr, decay, start, pull, momentum, seed }, steps = STEPS) {
  const random = generator(seed), keep = +momentum;
  let x = start, y = 0, vx = 0, vy = 0;
  const found = [[x, y]];
  for (let t = 0; t < steps; t++) {
    const g = (pull * normal(random)) / (x * x + y * y);
    vx = keep * vx - g * y + decay * x;
    vy = keep * vy + g * x + decay * y;
    x -= lr * vx;
    y -= lr * vy;
    found.push([x, y]);
  }
  return found;
}

// Norm and angle per step at which growth and decay balance.
export function equilibrium({ lr, decay, pull, momentum }) {
  if (decay === 0) return { norm: Infinity, angle: 0 };
  return {
    norm: ((lr * pull ** 2) / (2 * decay * (1 - momentum))) ** 0.25,
    angle: Math.sqrt((2 * lr * decay) / (1 + +momentum)),
  };
}

// The angle of each step, in radians.
export function turns(weights) {
  return weights.slice(1).map(([c, d], t) => {
    const [a, b] = weights[t];
    return Math.abs(Math.atan2(a * d - b * c, a * c + b * d));
  });
}

// Root mean square of `values` in each of `parts` parts of equal length.
export function rms(values, parts) {
  const n = values.length / parts;
  return Array.from({ length: parts }, (_, k) => {
    const part = values.slice(k * n, (k + 1) * n);
    return Math.sqrt(part.reduce((s, v) => s + v * v, 0) / part.length);
  });
}

// What the state shows, with the means over the last quarter of the steps.
export function compute(state) {
  const weights = walk(state), angles = turns(weights);
  const norms = weights.map(([x, y]) => Math.hypot(x, y));
  return {
    weights, norms, angles, balance: equilibrium(state),
    norm: rms(norms.slice(1), 4)[3], angle: rms(angles, 4)[3],
    time: state.decay ?
      (1 - state.momentum) / (state.lr * state.decay) : Infinity,
  };
}

const W = 440, LEFT = 44, RIGHT = 10, HEIGHT = 104, PARTS = 100, SIDE = 172;
const NORM = { top: SIDE + 52, low: 0.2, high: 20,
  ticks: [0.2, 0.5, 1, 2, 5, 10, 20], title: "norm" };
const ANGLE = { top: SIDE + 212, low: 0.001, high: 1,
  ticks: [0.001, 0.01, 0.1, 1], title: "angle per step, radians" };
const BOTTOM = ANGLE.top + HEIGHT;

function scales({ top, low, high }) {
  const inside = (v) => Math.min(high, Math.max(low, v));
  return {
    toX: (t) => LEFT + (t / STEPS) * (W - LEFT - RIGHT),
    toY: (v) => top +
      HEIGHT * (1 - Math.log(inside(v) / low) / Math.log(high / low)),
  };
}

function line(pairs) {
  return pairs.map(([x, y], i) =>
    `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
}

function axes(panel) {
  const { toX, toY } = scales(panel), bottom = panel.top + HEIGHT;
  const rows = panel.ticks.map((v) =>
    `<path class="nl-grid" d="M${LEFT} ${toY(v)}H${W - RIGHT}"/>` +
    `<text x="${LEFT - 6}" y="${toY(v) + 4}" text-anchor="end">${v}</text>`);
  const columns = [0, STEPS / 2, STEPS].map((t) =>
    `<text x="${toX(t)}" y="${bottom + 16}" ` +
    `text-anchor="${t === STEPS ? "end" : "middle"}">${t}</text>`);
  return rows.join("") + columns.join("") +
    `<path class="nl-axis" d="M${LEFT} ${bottom}H${W - RIGHT}"/>` +
    `<text x="4" y="${panel.top - 10}">${panel.title}</text>`;
}

function level(panel, v) {
  if (!(v > panel.low && v < panel.high)) return "";
  const y = scales(panel).toY(v);
  return `<path class="nl-axis nl-dashed" d="M${LEFT} ${y}H${W - RIGHT}"/>`;
}

// The weight's way in the plane, seen so that all of it fits.
function plane({ weights, norms, balance }) {
  const most = 1.05 * norms.reduce((a, b) => Math.max(a, b));
  const half = SIDE / 2, cx = W / 2, cy = half + 6;
  const at = ([x, y]) => [cx + (half * x) / most, cy - (half * y) / most];
  const every = weights.filter((_, t) => t % 4 === 0);
  const [x0, y0] = at(weights[0]), [x1, y1] = at(weights.at(-1));
  const ring = balance.norm < most ? `<circle class="nl-axis nl-dashed" ` +
    `cx="${cx}" cy="${cy}" r="${(half * balance.norm) / most}"/>` : "";
  return `<path class="nl-grid" d="M${cx - half} ${cy}h${SIDE}` +
    `M${cx} ${cy - half}v${SIDE}"/>` + ring +
    `<path class="nl-line nl-thin nl-after" d="${line(every.map(at))}"/>` +
    `<circle class="nl-dot nl-before" cx="${x0}" cy="${y0}" r="4"/>` +
    `<circle class="nl-dot nl-after" cx="${x1}" cy="${y1}" r="5"/>` +
    `<text class="nl-inked nl-before" x="4" y="20">● start</text>` +
    `<text class="nl-inked nl-after" x="4" y="40">● end</text>` +
    (ring ? `<text x="4" y="60">┄ balance</text>` : "");
}

export function drawing(state) {
  const c = compute(state), up = scales(NORM), low = scales(ANGLE);
  const norms = c.norms.filter((_, t) => t % 20 === 0)
    .map((v, k) => [up.toX(20 * k), up.toY(v)]);
  const angles = rms(c.angles, PARTS).map((v, k) =>
    [low.toX(((k + 0.5) * STEPS) / PARTS), low.toY(v)]);
  return plane(c) + axes(NORM) + level(NORM, c.balance.norm) +
    `<path class="nl-line nl-after" d="${line(norms)}"/>` +
    axes(ANGLE) + level(ANGLE, c.balance.angle) +
    `<path class="nl-line nl-before" d="${line(angles)}"/>` +
    `<text x="${W / 2}" y="${BOTTOM + 34}" text-anchor="middle">step</text>`;
}

const short = (v) => (Number.isFinite(v) ? `${+v.toPrecision(3)}` : "none");
const whole = (v) => (Number.isFinite(v) ?
  Math.round(v).toLocaleString("en") : "never");

export function table(state) {
  const c = compute(state);
  const rows = [
    ["norm", short(c.norm), short(c.balance.norm)],
    ["angle per step", short(c.angle),
      state.decay ? short(c.balance.angle) : "none"],
    ["lr / norm²", short(state.lr / c.norm ** 2),
      state.decay ? short(state.lr / c.balance.norm ** 2) : "none"],
    ["steps to forget the start", "", whole(c.time)],
  ].map((cells) => `<tr><th scope="row">${cells[0]}</th>` +
    `<td>${cells[1]}</td><td>${cells[2]}</td></tr>`);
  return `<thead><tr><th scope="col">last ${whole(STEPS / 4)} steps</th>` +
    `<th scope="col">measured</th><th scope="col">balance</th></tr></thead>` +
    `<tbody>${rows.join("")}</tbody>`;
}

// One sentence that says what the drawing shows.
export function sentence(state) {
  const c = compute(state), end = c.norms.at(-1);
  const way = `from ${short(state.start)} to ${short(end)}`;
  if (!state.decay) {
    return `Without decay the norm never shrinks: it went ${way}, and ` +
      `lr / norm² from ${short(state.lr / state.start ** 2)} to ` +
      `${short(state.lr / end ** 2)}. At the end a step turns the weight by ` +
      `${short(c.angle)} rad.`;
  }
  const off = c.angle / c.balance.angle - 1;
  const turn = `a step turns the weight by ${short(c.angle)} rad, balance ` +
    `says ${short(c.balance.angle)}`;
  if (Math.abs(off) < 0.1) {
    return `The norm went ${way}; ${turn}: growth and decay are in balance.`;
  }
  return `The norm went ${way}; ${turn}: ` + (c.time > STEPS / 4
    ? `${STEPS} steps are too few, the start is forgotten in some ` +
      `${whole(c.time)}.`
    : "the formula is for small steps and a steady norm.");
}

const TEMPLATE = `<div class="nl-figure">
<svg viewBox="0 0 ${W} ${BOTTOM + 42}" role="img" style="max-width:36rem"
 aria-label="Above, the way of a weight in the plane, with a dashed circle
 where growth and decay balance. Below, its norm and the angle of a step, with
 the values at balance dashed."></svg>
<div class="nl-controls">
<label>learning rate <input type="range" data-key="lr"><output></output>
</label>
<label>weight decay <input type="range" data-key="decay"><output></output>
</label>
<label>first norm <input type="range" data-key="start"><output></output>
</label>
<label>gradient at norm 1 <input type="range" data-key="pull"><output></output>
</label>
<label>momentum <select data-key="momentum"><option>0</option>
 <option>0.5</option><option>0.9</option></select></label></div>
<div class="nl-buttons"><button type="button" data-act="seed">New draw</button>
<button type="button" data-act="reset">Start again</button></div>
<div class="nl-table"><table></table></div>
<div class="nl-status" role="status"></div></div>`;

// A slider's positions stand for these values of its trait.
export const VALUES = { lr: RATES, decay: DECAYS, start: STARTS, pull: PULLS };

function render({ model, el }) {
  return control({
    model, el, template: TEMPLATE, values: VALUES, keys: ["seed"],
    acts: { seed: ({ seed }) => ({ seed: seed + 1 }) },
    show: { svg: drawing, table, status: sentence },
  });
}

export default { render };
