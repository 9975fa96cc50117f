// Depth, batch size and gain against the size of the gradient at each layer.

export const DEPTHS = [10, 20, 50, 100];
export const BATCHES = [4, 8, 16, 32, 64];
export const GAINS = [0.5, 1, Math.SQRT2, 2];

const mean = (xs) => xs.reduce((a, b) => a + b, 0) / xs.length;

// E[act(z)^2] and E[act'(z)^2] for z ~ N(0, q).
export function gaussian(act, q) {
  if (act === "relu") return [q / 2, 0.5];
  if (act === "identity") return [q, 1];
  let all = 0, value = 0, slope = 0;
  for (let i = 0; i <= 160; i++) {
    const z = i / 10 - 8, w = Math.exp(-z * z / 2);
    const f = Math.tanh(Math.sqrt(q) * z);
    all += w;
    value += w * f * f;
    slope += w * (1 - f * f) ** 2;
  }
  return [value / all, slope / all];
}

// E[f^2], E[f f'], E[g^2], E[g g'], E[g^2 x^2], E[g x g' x'] for two values
// x, x' of a normalised channel of n, f = act(x) and g its slope.
export function pairs(act, n) {
  const rho = -1 / (n - 1), turn = Math.acos(rho);
  if (act === "identity") return [1, rho, 1, 1, 1, rho];
  if (act === "relu") {
    const kappa = (Math.sqrt(1 - rho * rho) + rho * (Math.PI - turn)) / Math.PI;
    const both = 0.25 + Math.asin(rho) / (2 * Math.PI);
    return [0.5, kappa / 2, 0.5, both, 0.5, kappa / 2];
  }
  const rows = [];
  for (let i = 0; i < 400; i++) {
    // The two values are a point in a disc; this share of it is further out.
    const share = (i + 0.5) / 400;
    const r = Math.sqrt((n - 1) * (1 - share ** (2 / (n - 3))));
    for (let k = 0; k < 48; k++) {
      const angle = (k * Math.PI) / 24;
      const x = r * Math.cos(angle), y = r * Math.cos(angle - turn);
      const f = Math.tanh(x), h = Math.tanh(y);
      const g = 1 - f * f, j = 1 - h * h;
      rows.push([f * f, f * h, g * g, g * j, (g * x) ** 2, g * x * j * y]);
    }
  }
  return rows[0].map((_, c) => mean(rows.map((row) => row[c])));
}

// The state's variance on the way up: each block's factor for the gradient.
function factors({ norm, act, batch_size: n, gain, skip, depth }, spread) {
  const w = gain * gain, found = [];
  let v = 1;
  for (let i = 0; i < depth; i++) {
    let grown = spread[0] - spread[1];
    if (norm === "BN") {
      found.push((w * n) / ((n - 3) * v));
    } else {
      const [value, slope] = gaussian(act, norm === "LN" ? 1 : v);
      found.push((w * slope) / (norm === "LN" ? v : 1));
      grown = value;
    }
    v = w * grown + (skip ? v : 0);
  }
  return found;
}

// Base-10 logarithms of the gradient's norm at states 0 to depth, relative to
// the last state's, by the laws for infinite width.
export function law(state) {
  const { norm, act, batch_size: n } = state, keep = state.skip ? 1 : 0;
  const all = norm === "BN" ? pairs(act, n) : [0, 0];
  const [, , p, q, s, t] = all;
  let apart = 1, alike = 1; // between examples, and common to them
  const sizes = [1];
  for (const factor of factors(state, all).reverse()) {
    if (norm === "BN") {
      const through = factor * (apart * (p - (p - q) / n - (s - t) / n) +
        alike * (p - (p + (n - 1) * q) / n - (s + (n - 1) * t) / n) / (n - 1));
      apart = through + keep * apart;
      alike *= keep;
    } else {
      apart *= factor + keep;
      alike *= factor + keep;
    }
    sizes.push((apart * (n - 1) + alike) / n);
  }
  return sizes.reverse().map((v) => Math.log10(v) / 2);
}

// The measured logarithms at ten states from the first on; null if not run.
// Plain normalised networks were run at gain 1: another gain multiplies the
// first layer's gradient by itself and leaves the rest, exactly.
export function dots({ norm, act, batch_size, gain, skip, depth, runs }) {
  const name = [norm, act, norm === "BN" ? batch_size : "-",
    norm === "none" || skip ? gain.toFixed(3) : "-",
    skip ? "skip" : "plain"].join(" ");
  const found = runs[name]?.[depth] ?? null;
  if (!found || norm === "none" || skip) return found;
  return [found[0] + Math.log10(gain), ...found.slice(1)];
}

// The law's factor for one layer, over the middle half of the network.
export function perLayer(values) {
  const n = values.length - 1, a = Math.round(n / 4), b = Math.round(n * 0.75);
  return 10 ** ((values[a] - values[b]) / (b - a));
}

const W = 440, LEFT = 42, RIGHT = 16, TOP = 28, HEIGHT = 210;
const BOTTOM = TOP + HEIGHT;
const INK = { BN: "nl-after", LN: "nl-before", none: "" };
const NAMES = { BN: "batch normalization", LN: "layer normalization",
  none: "no normalisation" };

function scales(state, values, measured) {
  const all = [...values, ...(measured ?? []), 0];
  let low = Math.floor(Math.min(...all)), high = Math.ceil(Math.max(...all));
  if (high - low < 2) [low, high] = [low - 1, high + 1];
  const step = [1, 2, 5, 10, 20].find((s) => (high - low) / s <= 7);
  low = step * Math.floor(low / step);
  high = step * Math.ceil(high / step);
  return {
    low, high, step,
    toX: (i) => LEFT + (i / state.depth) * (W - LEFT - RIGHT),
    toY: (v) => TOP + (HEIGHT * (high - v)) / (high - low),
  };
}

function drawing(state) {
  const values = law(state), measured = dots(state), ink = INK[state.norm];
  const { low, high, step, toX, toY } = scales(state, values, measured);
  const parts = [`<text x="4" y="${TOP - 12}">gradient relative to the last ` +
    "layer, power of ten</text>"];
  for (let v = low; v <= high; v += step) {
    parts.push(`<path class="nl-grid" d="M${LEFT} ${toY(v)}H${W - RIGHT}"/>` +
      `<text x="${LEFT - 6}" y="${toY(v) + 4}" text-anchor="end">` +
      `${`${v}`.replace("-", "−")}</text>`);
  }
  for (let k = 0; k <= 5; k++) {
    const at = (k * state.depth) / 5;
    parts.push(`<text x="${toX(at)}" y="${BOTTOM + 16}" ` +
      `text-anchor="middle">${at}</text>`);
  }
  parts.push(`<path class="nl-axis" d="M${LEFT} ${toY(0)}H${W - RIGHT}"/>`,
    `<text x="${(W + LEFT - RIGHT) / 2}" y="${BOTTOM + 36}" ` +
    'text-anchor="middle">layer</text>',
    `<path class="nl-line ${ink}" d="${values.map((v, i) =>
      `${i ? "L" : "M"}${toX(i).toFixed(1)} ${toY(v).toFixed(1)}`).join("")}"/>`);
  for (const [i, v] of (measured ?? []).entries()) {
    parts.push(`<circle class="nl-dot ${ink}" r="4.5" ` +
      `cx="${toX((i * state.depth) / 10).toFixed(1)}" ` +
      `cy="${toY(v).toFixed(1)}"/>`);
  }
  return parts.join("");
}

const RAISED = [..."⁰¹²³⁴⁵⁶⁷⁸⁹"];

// 10 to this power, in words for people.
export function power(log) {
  if (Math.abs(log) < 2) return (10 ** log).toPrecision(2);
  let e = Math.floor(log), m = (10 ** (log - e)).toFixed(1);
  if (m === "10.0") [e, m] = [e + 1, "1.0"];
  const high = [...`${Math.abs(e)}`].map((d) => RAISED[d]).join("");
  return `${m}\u00a0·\u00a010${e < 0 ? "⁻" : ""}${high}`;
}

function table(state) {
  const values = law(state), measured = dots(state);
  const rows = [
    ["by the law: factor a layer, in the middle",
      perLayer(values).toFixed(3)],
    [`by the law: layer 0 over layer ${state.depth}`, power(values[0])],
    ["measured, width 512, three seeds",
      measured ? power(measured[0]) : "not run"],
  ];
  return `<tbody>${rows.map(([name, cell]) =>
    `<tr><th scope="row">${name}</th><td>${cell}</td></tr>`).join("")}</tbody>`;
}

// One sentence that says what the state means.
export function sentence(state) {
  const values = law(state), factor = perLayer(values), total = values[0];
  const net = `${state.depth} ${state.skip ? "residual blocks" : "layers"} ` +
    `with ${NAMES[state.norm]}`;
  const rest = [];
  if (state.norm !== "BN") rest.push("The batch size does not enter.");
  if (state.norm !== "none" && !state.skip) {
    rest.push("The gain enters in the first layer only.");
  }
  let what = "keeps its size to within a factor of three";
  if (Math.abs(total) >= Math.log10(3)) {
    what = `${total > 0 ? "grows" : "shrinks"} on its way to the first ` +
      `layer, to ${power(total)} times its size`;
    if (Math.abs(total) >= 4) {
      what += state.skip && state.norm !== "none" ? ""
        : `, by a factor of ${factor.toFixed(3)} a layer`;
    }
  }
  return [`In ${net} the gradient ${what}.`, ...rest].join(" ");
}

const TEMPLATE = `<div class="nl-figure">
<svg viewBox="0 0 ${W} ${BOTTOM + 44}" role="img" style="max-width:36rem"
 aria-label="The size of the gradient at each layer of a network of random
 weights, relative to the last layer, as a power of ten: the law as a line,
 measured values as dots."></svg>
<div class="nl-controls">
<label>depth <input type="range" data-key="depth"><output></output></label>
<label>batch size <input type="range" data-key="batch_size"><output></output>
</label>
<label>gain <input type="range" data-key="gain"><output></output></label>
<label>normalisation <select data-key="norm">
 <option value="BN">batch</option><option value="LN">layer</option>
 <option value="none">none</option></select></label>
<label>activation <select data-key="act"><option value="relu">ReLU</option>
 <option value="tanh">tanh</option><option value="identity">none</option>
 </select></label>
<label>skip connection <select data-key="skip">
 <option value="false">no</option><option value="true">yes</option></select>
</label></div>
<div class="nl-buttons"><button type="button" data-act="he">He, no norm
</button><button type="button" data-act="residual">residual and BN</button>
<button type="button" data-act="reset">Start again</button></div>
<div class="nl-table"><table></table></div>
<div class="nl-status" role="status"></div></div>`;

// What the two buttons show.
export const ACTS = {
  he: () => ({ norm: "none", act: "relu", gain: Math.SQRT2, skip: false }),
  residual: () => ({ norm: "BN", act: "relu", gain: Math.SQRT2, skip: true }),
};

function render({ model, el }) {
  return control({
    model, el, template: TEMPLATE, keys: ["runs"], acts: ACTS,
    values: { depth: DEPTHS, batch_size: BATCHES, gain: GAINS },
    text: (key, v) => (key === "gain" ? v.toFixed(2) : `${v}`),
    show: { svg: drawing, table, status: sentence },
  });
}

export { drawing, table };
export default { render };
