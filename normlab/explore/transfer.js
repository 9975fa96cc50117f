// What training mode makes of a value, on average, against evaluation mode.

export const SIZES = [2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64];
export const VALUES = Array.from({ length: 33 }, (_, i) => (i - 16) / 4);
export const EPSILONS = [0, 1e-5, 1e-3, 0.01, 0.03, 0.1, 0.3, 1];
export const ALPHAS = [
  0, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.25, 0.3, 0.39, 0.5,
  0.6, 0.75, 1,
];
const POINTS = 160;

// The midpoint rule in t, with q = sin t, for q from 0 to 1.
export const NODES = Array.from({ length: POINTS }, (_, i) => {
  const t = ((i + 0.5) * Math.PI) / 2 / POINTS;
  return [Math.sin(t), (Math.cos(t) * Math.PI) / 2 / POINTS];
});

// Chapter 23, (23.9): the mean of the normalised value of x.
export function transfer(x, m, eps = 0) {
  let sum = 0;
  for (const [q, w] of NODES) {
    const q2 = q * q, share = (1 - q2) / (1 + (m - 1) * q2);
    const away = (m - 1) * q2 * x * x + (m * m * eps * q2) / (1 - q2);
    sum += w * share ** ((m - 2) / 2) * Math.exp(-away / 2);
  }
  return Math.sqrt(2 / Math.PI) * (m - 1) * x * sum;
}

// Chapter 23, (23.13): the mean of its square.
export function square(x, m, eps = 0) {
  let sum = 0;
  for (const [p, w] of NODES) {
    const p2 = p * p, q2 = 1 - p2, share = p2 / (1 + (m - 1) * q2);
    const away = (m - 1) * q2 * x * x + (m * m * eps * q2) / p2;
    sum += w * (1 + (m - 1) * p2 * x * x) * share ** ((m - 2) / 2) *
      Math.exp(-away / 2);
  }
  return (m - 1) * sum;
}

export function spread(x, m, eps = 0) {
  return Math.sqrt(Math.max(0, square(x, m, eps) - transfer(x, m, eps) ** 2));
}

// Chapter 23, (23.19): one value mixed into the population's statistics.
export function mixture(x, alpha, eps = 0) {
  const variance = (1 - alpha) * (1 + alpha * x * x) + eps;
  return variance > 0 ? ((1 - alpha) * x) / Math.sqrt(variance) : 0;
}

export function line(x, eps = 0) {
  return x / Math.sqrt(1 + eps);
}

const GRID = Array.from({ length: 81 }, (_, i) => (i - 40) / 10);

// Root of the mean squared difference to the transfer function, for values
// from N(0, 1) (cut off at 4 standard deviations).
export function distance(f, m, eps) {
  let sum = 0, total = 0;
  for (const x of GRID) {
    const weight = Math.exp((-x * x) / 2);
    sum += weight * (f(x) - transfer(x, m, eps)) ** 2;
    total += weight;
  }
  return Math.sqrt(sum / total);
}

// What the state shows, at the marked value and for all values together.
export function compute({ m, value: x, eps, alpha }) {
  const slope = transfer(1e-4, m, eps) / 1e-4;
  return {
    training: transfer(x, m, eps), noise: spread(x, m, eps),
    evaluation: line(x, eps), evalnorm: mixture(x, alpha, eps),
    bound: Math.sqrt(m - 1), slope,
    lineOff: distance((v) => line(v, eps), m, eps),
    mixtureOff: distance((v) => mixture(v, alpha, eps), m, eps),
  };
}

const W = 440, H = 300, LEFT = 30, TOP = 30, REACH = 4;
const toX = (v) => LEFT + ((v + REACH) / (2 * REACH)) * (W - LEFT - 8);
const toY = (v) => TOP + H / 2 - (v / REACH) * (H / 2);
const cut = (v) => Math.max(-REACH, Math.min(REACH, v));

export function path(f) {
  return GRID.map((x, i) =>
    `${i ? "L" : "M"}${toX(x).toFixed(1)} ${toY(cut(f(x))).toFixed(1)}`)
    .join("");
}

function band(m, eps) {
  const rows = GRID.map((x) => [x, transfer(x, m, eps), spread(x, m, eps)]);
  const edge = (points, sign) => points.map(([x, mean, sd]) =>
    `${toX(x).toFixed(1)} ${toY(cut(mean + sign * sd)).toFixed(1)}`);
  return `M${edge(rows, 1).join("L")}L${edge(rows.reverse(), -1).join("L")}Z`;
}

function axes() {
  const ticks = [-4, -2, 0, 2, 4];
  return ticks.map((v) =>
    `<path class="nl-grid" d="M${LEFT} ${toY(v)}H${W - 8}"/>` +
    `<path class="nl-grid" d="M${toX(v)} ${TOP}V${TOP + H}"/>` +
    `<text x="${LEFT - 6}" y="${toY(v) + 4}" text-anchor="end">${v}</text>` +
    `<text x="${toX(v)}" y="${TOP + H + 16}" text-anchor="middle">${v}` +
    `</text>`).join("") +
    `<text x="4" y="14">normalised value</text>` +
    `<text x="${W / 2}" y="${TOP + H + 34}" text-anchor="middle">value, in ` +
    `standard deviations</text>`;
}

function drawing(state) {
  const { m, value, eps, alpha, noise } = state, c = compute(state);
  const dot = (v, ink) => `<circle class="nl-dot ${ink}" r="5" ` +
    `cx="${toX(value).toFixed(1)}" cy="${toY(cut(v)).toFixed(1)}"/>`;
  const area = noise
    ? `<path class="nl-area nl-after" d="${band(m, eps)}"/>` : "";
  return axes() + area +
    `<path class="nl-line nl-dashed" d="${path((x) => line(x, eps))}"/>` +
    `<path class="nl-line nl-before" stroke-dasharray="2 4" ` +
    `d="${path((x) => mixture(x, alpha, eps))}"/>` +
    `<path class="nl-line nl-after" ` +
    `d="${path((x) => transfer(x, m, eps))}"/>` +
    dot(c.evaluation, "") + dot(c.evalnorm, "nl-before") +
    dot(c.training, "nl-after");
}

const two = (v) => v.toFixed(2);

function table(state) {
  const c = compute(state);
  const rows = [
    [`<span class="nl-inked nl-after">training, on average</span>`,
      `${two(c.training)} ± ${two(c.noise)}`, two(0)],
    ["evaluation: the line", two(c.evaluation), two(c.lineOff)],
    [`<span class="nl-inked nl-before">EvalNorm, α = ${state.alpha}</span>`,
      two(c.evalnorm), two(c.mixtureOff)],
  ].map(([name, ...cells]) => `<tr><th scope="row">${name}</th>` +
    `<td>${cells.join("</td><td>")}</td></tr>`);
  return `<thead><tr><th scope="row">m = ${state.m}</th><th scope="col">at ` +
    `${two(state.value)}</th><th scope="col">off, all values</th></tr>` +
    `</thead><tbody>${rows.join("")}</tbody>`;
}

// One sentence that says what the drawing shows.
export function sentence(state) {
  const c = compute(state);
  return `With ${state.m} values a channel and ε = ${state.eps}, training ` +
    `can't exceed ${two(c.bound)}; its slope at 0 is ${two(c.slope)}, the ` +
    `line's is ${two(line(1, state.eps))}.`;
}

const TEMPLATE = `<div class="nl-figure">
<svg viewBox="0 0 ${W} ${TOP + H + 42}" role="img" style="max-width:36rem"
 aria-label="The average normalised value in training mode against the
 value, with evaluation mode's line and EvalNorm's curve"></svg>
<div class="nl-soft">Solid: training mode on average, its noise shaded.
Dashed: evaluation mode. Dotted: EvalNorm. Curves end at ±${REACH}.</div>
<div class="nl-controls">
<label>values a channel, m
 <input type="range" data-key="m"><output></output></label>
<label>value x
 <input type="range" data-key="value"><output></output></label>
<label>ε <input type="range" data-key="eps"><output></output></label>
<label><span class="nl-inked nl-before">share α</span>
 <input type="range" data-key="alpha"><output></output></label></div>
<div class="nl-buttons">
<button type="button" data-act="noise">Noise</button>
<button type="button" data-act="fair">α = 1/m</button>
<button type="button" data-act="reset">Start again</button></div>
<div class="nl-table"><table></table></div>
<div class="nl-status" role="status"></div></div>`;

// A slider's positions stand for these values of its trait.
const CHOICES = { m: SIZES, value: VALUES, eps: EPSILONS, alpha: ALPHAS };

function render({ model, el }) {
  return control({
    model, el, template: TEMPLATE, values: CHOICES, keys: ["noise"],
    acts: {
      noise: ({ noise }) => ({ noise: !noise }),
      fair: ({ m }) => ({ alpha: ALPHAS[nearest(ALPHAS, 1 / m)] }),
    },
    text: (key, v) => (key === "value" ? two(v)
      : `${Math.round(v * 1e5) / 1e5}`),
    show: { svg: drawing, table, status: sentence },
  });
}

export default { render };
