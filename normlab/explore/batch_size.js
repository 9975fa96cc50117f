// Batch size against test error, and against the spread of the statistics.

export const SIZES = [2, 4, 8, 16, 32, 64, 128];
export const DEVICES = [1, 2, 4, 8];
export const SIDES = [1, 2, 4, 8, 16, 32];
// Values a channel that an image brings to the smallest layer of our nets.
export const PIXELS = { dense: 1, convolutional: 16 };
const NAMES = { dense: "dense", convolutional: "CNN" };

// Images that one device normalises together, and values a channel.
export function together({ batch_size: batch, devices, side }) {
  const examples = Math.floor(batch / devices);
  return { examples, values: examples * side * side };
}

// ln Gamma(x) for x > 0: Stirling's series, after x has been raised to 8.
export function logGamma(x) {
  let shift = 0;
  for (; x < 8; x++) shift -= Math.log(x);
  const z = 1 / (x * x);
  return shift + (x - 0.5) * Math.log(x) - x + 0.5 * Math.log(2 * Math.PI) +
    (1 / 12 - z * (1 / 360 - z * (1 / 1260 - z / 1680))) / x;
}

// E[sigma / sigma_B] for m independent Gaussian values.
export function meanScale(m) {
  if (m <= 2) return Infinity;
  return Math.sqrt(m / 2) *
    Math.exp(logGamma((m - 2) / 2) - logGamma((m - 1) / 2));
}

// Quantiles (5, 50 and 95 %) of sigma / sigma_B, from the table over m = 2,
// 4, 8, ...; null where there is no spread to speak of: m < 2.
export function spread(m, quantiles) {
  const level = Math.round(Math.log2(m)) - 1;
  return m >= 2 && level < quantiles.length ? quantiles[level] : null;
}

// What runs to the right, for a net's runs at SIZES.
export function places(net, axis) {
  return SIZES.map((b) => (axis === "values" ? b * PIXELS[net] : b));
}

const W = 440, LEFT = 38, RIGHT = 78, HEIGHT = 150;
const UPPER = { top: 26, low: 1, high: 32, ticks: [1, 2, 4, 8, 16, 32],
  title: "test error, %" };
const LOWER = { top: 236, low: 0.25, high: 16, ticks: [0.25, 1, 4, 16],
  title: "σ/σ_B: 9 of 10 batches lie in the band" };
const BOTTOM = LOWER.top + HEIGHT;

function scales(panel, axis) {
  const last = axis === "values" ? 17 : 7;
  const part = Math.log2(panel.high / panel.low);
  const inside = (v) => Math.min(panel.high, Math.max(panel.low, v));
  return {
    last,
    toX: (v) => LEFT +
      ((Math.log2(v) - 1) / (last - 1)) * (W - LEFT - RIGHT),
    toY: (v) => panel.top +
      HEIGHT * (1 - Math.log2(inside(v) / panel.low) / part),
  };
}

function points(xs, ys, { toX, toY }) {
  return xs.map((x, i) =>
    `${i ? "L" : "M"}${toX(x).toFixed(1)} ${toY(ys[i]).toFixed(1)}`).join("");
}

function axes(panel, axis) {
  const s = scales(panel, axis), bottom = panel.top + HEIGHT;
  const rows = panel.ticks.map((v) =>
    `<path class="nl-grid" d="M${LEFT} ${s.toY(v)}H${W - RIGHT}"/>` +
    `<text x="${LEFT - 6}" y="${s.toY(v) + 4}" text-anchor="end">${v}</text>`);
  const columns = [];
  for (let k = 1; k <= s.last; k += axis === "values" ? 4 : 1) {
    columns.push(`<text x="${s.toX(2 ** k)}" y="${bottom + 16}" ` +
      `text-anchor="middle">${2 ** k}</text>`);
  }
  return rows.join("") + columns.join("") +
    `<path class="nl-axis" d="M${LEFT} ${bottom}H${W - RIGHT}"/>` +
    `<text x="4" y="${panel.top - 14}">${panel.title}</text>`;
}

function curves({ errors, axis }) {
  const s = scales(UPPER, axis);
  const at = Object.keys(PIXELS).flatMap((net) =>
    Object.entries(errors[net]).map(([method, ys]) => ({ net, method, ys })));
  // Labels at the right ends, moved apart from the lowest line upwards.
  const labels = at.map((line) => ({ ...line, y: s.toY(line.ys.at(-1)) + 4 }));
  labels.sort((a, b) => b.y - a.y);
  for (let i = 1; i < labels.length; i++) {
    if (axis === "values" && labels[i].net !== labels[i - 1].net) continue;
    labels[i].y = Math.min(labels[i].y, labels[i - 1].y - 14);
  }
  const ink = (net) => (net === "dense" ? "nl-after" : "nl-before");
  return at.map(({ net, method, ys }) => `<path class="nl-line ${ink(net)}` +
    `${method === "BN" ? "" : " nl-dashed"}" ` +
    `d="${points(places(net, axis), ys, s)}"/>`).join("") +
    labels.map(({ net, method, y }) =>
      `<text class="nl-inked ${ink(net)}" ` +
      `x="${s.toX(places(net, axis).at(-1)) + 5}" ` +
      `y="${y.toFixed(1)}">${NAMES[net]} ${method}</text>`).join("");
}

function band(state) {
  const s = scales(LOWER, state.axis), all = state.quantiles;
  const each = state.side * state.side;
  const xs = state.axis === "values" ? all.map((_, i) => 2 ** (i + 1))
    : SIZES.filter((n) => spread(n * each, all));
  const rows = xs.map((x) =>
    spread(state.axis === "values" ? x : x * each, all));
  const [low, mid, high] = [0, 1, 2].map((k) => rows.map((q) => q[k]));
  const back = [...xs].reverse(), top = [...high].reverse();
  return `<path class="nl-area nl-third" d="${points(xs, low, s)}` +
    `${points(back, top, s).replace("M", "L")}Z"/>` +
    `<path class="nl-line nl-third" d="${points(xs, mid, s)}"/>`;
}

function marker({ axis, ...state }) {
  const { examples, values } = together(state);
  const x = axis === "values" ? values : examples;
  if (x < 2) return "";
  const here = scales(UPPER, axis).toX(x).toFixed(1);
  return `<path class="nl-axis nl-dashed" d="M${here} ${UPPER.top}V${BOTTOM}"/>`;
}

function drawing(state) {
  const words = state.axis === "values" ? "values a channel, m"
    : "examples normalised together";
  return axes(UPPER, state.axis) + curves(state) + axes(LOWER, state.axis) +
    band(state) + marker(state) +
    `<text x="${(W + LEFT - RIGHT) / 2}" y="${BOTTOM + 36}" ` +
    `text-anchor="middle">${words}</text>`;
}

const short = (v) => (Number.isFinite(v) ? v.toPrecision(3) : "infinite");

function table(state) {
  const { examples, values } = together(state);
  const q = spread(values, state.quantiles);
  const i = SIZES.indexOf(examples);
  const rows = [
    ["examples normalised together", examples],
    ["values a channel, m", values],
    ["spread of the mean, sd(μ_B)/σ",
      values ? short(1 / Math.sqrt(values)) : "none"],
    ["σ/σ_B in 9 of 10 batches",
      q ? `${short(q[0])} to ${short(q[2])}` : "none"],
    ["mean of σ/σ_B", q ? short(meanScale(values)) : "none"],
    ...Object.keys(PIXELS).map((net) => [
      `our ${net} network at ${examples}: BN, GN`,
      i < 0 ? "not run" : Object.values(state.errors[net]).map(
        (ys) => `${ys[i].toFixed(1)} %`).join(", ")]),
  ];
  return `<tbody>${rows.map(([name, cell]) =>
    `<tr><th scope="row">${name}</th><td>${cell}</td></tr>`).join("")}</tbody>`;
}

// One sentence that says what the state means.
export function sentence(state) {
  const { examples, values: m } = together(state);
  const share = `Each of ${state.devices} devices normalises ` +
    `${examples} of ${state.batch_size} examples`;
  const who = state.devices === 1
    ? `All ${state.batch_size} examples are normalised together` : share;
  if (!examples) return "There are more devices than examples.";
  if (m < 2) return `${who}: one value a channel, so its output is β.`;
  if (m === 2) {
    return `${who}: m = 2, and every pair becomes −1 and +1, whatever it was.`;
  }
  const [low, , high] = spread(m, state.quantiles);
  return `${who}: m = ${m}, and nine batches in ten are scaled by a factor ` +
    `from ${short(low)} to ${short(high)} of what the population would need.`;
}

const TEMPLATE = `<div class="nl-figure">
<svg viewBox="0 0 ${W} ${BOTTOM + 44}" role="img" style="max-width:36rem"
 aria-label="Above, test errors of a dense and a convolutional network, with
 batch normalization as full lines and group normalization dashed. Below, the
 band in which a batch's scale lies. A dashed line marks the sliders' state."
></svg>
<div class="nl-controls">
<label>batch size <input type="range" data-key="batch_size"><output></output>
</label>
<label>devices <input type="range" data-key="devices"><output></output></label>
<label>map side <input type="range" data-key="side"><output></output></label>
<label>to the right <select data-key="axis">
 <option value="examples">examples</option>
 <option value="values">values a channel</option></select></label></div>
<div class="nl-buttons"><button type="button" data-act="reset">Start again
</button></div>
<div class="nl-table"><table></table></div>
<div class="nl-status" role="status"></div></div>`;

// A slider's positions stand for these values of its trait.
const VALUES = { batch_size: SIZES, devices: DEVICES, side: SIDES };

function render({ model, el }) {
  return control({
    model, el, template: TEMPLATE, values: VALUES,
    keys: ["errors", "quantiles"],
    text: (key, v) => (key === "side" ? `${v} × ${v}` : `${v}`),
    show: { svg: drawing, table, status: sentence },
  });
}

export { drawing, table };
export default { render };
