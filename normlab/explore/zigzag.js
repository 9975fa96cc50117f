// How gradient descent walks over the squared error of a linear model with
// two inputs and no bias, for inputs that are shifted and scaled.

// The points (pairs) with mean 0 and variance 1 (biased) in each coordinate.
export function standardise(points) {
  const n = points.length;
  const mean = [0, 1].map((j) => points.reduce((s, p) => s + p[j], 0) / n);
  const std = [0, 1].map((j) =>
    Math.sqrt(points.reduce((s, p) => s + (p[j] - mean[j]) ** 2, 0) / n));
  return points.map((p) => [0, 1].map((j) => (p[j] - mean[j]) / std[j]));
}

// The inputs that the model gets: shift + scale * z, or z itself.
export function inputs(points, state) {
  const z = standardise(points);
  if (state.standardise) return z;
  return z.map(([a, b]) => [state.shift_1 + state.scale_1 * a,
                            state.shift_2 + state.scale_2 * b]);
}

// The Hessian of half the mean squared error: the second moments of inputs.
export function hessian(xs) {
  const mean = (f) => xs.reduce((s, x) => s + f(x), 0) / xs.length;
  const both = mean((x) => x[0] * x[1]);
  return [[mean((x) => x[0] ** 2), both], [both, mean((x) => x[1] ** 2)]];
}

// Eigenvalues of a symmetric 2x2 matrix, the larger first, and the angle in
// radians of the larger one's eigenvector.
export function eigen([[a, b], [, d]]) {
  const middle = (a + d) / 2;
  const radius = Math.hypot((a - d) / 2, b);
  const large = middle + radius;
  // The determinant over the large eigenvalue: no cancellation.
  return { large, small: (a * d - b * b) / large,
           angle: Math.atan2(2 * b, a - d) / 2 };
}

// The loss at an error e = w - target: e'He / 2.
export function loss([[a, b], [, d]], [u, v]) {
  return (a * u * u + 2 * b * u * v + d * v * v) / 2;
}

// The weights at the start and after each of `steps` steps.
export function descend(H, start, target, rate, steps) {
  const path = [start];
  let [u, v] = [start[0] - target[0], start[1] - target[1]];
  for (let t = 0; t < steps; t += 1) {
    [u, v] = [u - rate * (H[0][0] * u + H[0][1] * v),
              v - rate * (H[1][0] * u + H[1][1] * v)];
    path.push([target[0] + u, target[1] + v]);
  }
  return path;
}

// Steps until the loss is at most `fraction` of its first value: Infinity if
// the learning rate is at or above its limit, NaN if `most` steps are too few.
export function stepsTo(H, start, target, rate, fraction, most = 100000) {
  const { large, small, angle } = eigen(H);
  if (rate * large >= 2) return Infinity;
  const [u, v] = [start[0] - target[0], start[1] - target[1]];
  const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
  let along = large * (u * cos + v * sin) ** 2 / 2;
  let across = small * (v * cos - u * sin) ** 2 / 2;
  const goal = fraction * (along + across);
  for (let t = 0; t <= most; t += 1) {
    if (along + across <= goal) return t;
    along *= (1 - rate * large) ** 2;
    across *= (1 - rate * small) ** 2;
  }
  return NaN;
}

// All that the figure shows, from its state.
export function summary(state) {
  const H = hessian(inputs(state.points, state));
  const axes = eigen(H);
  const rate = state.learning_rate;
  const steps = stepsTo(H, state.start, state.target, rate, 0.01);
  return { H, ...axes, steps, condition: axes.large / axes.small,
           limit: 2 / axes.large, turn: rate * axes.large };
}

// In words, what the path does; `turn` is learning rate times the larger
// eigenvalue.
export function verdict(turn) {
  if (turn >= 2) {
    return "The learning rate is too large: each step lands further up the "
      + "other side of the valley, and the loss grows.";
  }
  if (turn > 1) {
    return "Each step crosses the valley's floor: the path zigzags.";
  }
  return "No step crosses the valley's floor: the path bends into it.";
}

export const countSteps = (n) => n === Infinity ? "never"
  : Number.isNaN(n) ? "over 100,000" : String(n);

const three = (v) => v >= 1000 ? v.toFixed(0) : v.toPrecision(3);

const SLIDERS = [
  ["shift_1", "Shift of input 1", -4, 4, 0.1],
  ["shift_2", "Shift of input 2", -4, 4, 0.1],
  ["scale_1", "Scale of input 1", 0.2, 3, 0.1],
  ["scale_2", "Scale of input 2", 0.2, 3, 0.1],
  ["learning_rate", "Learning rate", 0.01, 2, 0.01],
];
const KEYS = ["points", "start", "target", "standardise",
              ...SLIDERS.map(([key]) => key)];
const RANGE = { left: -2.5, right: 4.5, low: -0.5, high: 4.5 }; // weights
const BOX = { left: 42, right: 392, top: 10, bottom: 260 }; // 50 px a unit
const SHOWN = 60; // steps drawn
let made = 0;

const toX = (w) => BOX.left + (BOX.right - BOX.left)
  * (w - RANGE.left) / (RANGE.right - RANGE.left);
const toY = (w) => BOX.bottom - (BOX.bottom - BOX.top)
  * (w - RANGE.low) / (RANGE.high - RANGE.low);

function drawAxes() {
  const parts = [];
  for (let w = -2; w <= 4; w += 1) {
    parts.push(`<line class="nl-grid" x1="${toX(w)}" x2="${toX(w)}"
      y1="${BOX.top}" y2="${BOX.bottom}"/>
      <text class="nl-soft" x="${toX(w)}" y="${BOX.bottom + 17}"
      text-anchor="middle">${w}</text>`);
  }
  for (let w = 0; w <= 4; w += 1) {
    parts.push(`<line class="nl-grid" x1="${BOX.left}" x2="${BOX.right}"
      y1="${toY(w)}" y2="${toY(w)}"/>
      <text class="nl-soft" x="${BOX.left - 7}" y="${toY(w) + 4}"
      text-anchor="end">${w}</text>`);
  }
  const middle = (BOX.top + BOX.bottom) / 2;
  return `${parts.join("")}
    <text x="${(BOX.left + BOX.right) / 2}" y="${BOX.bottom + 36}"
      text-anchor="middle">weight w1</text>
    <text x="12" y="${middle}" text-anchor="middle"
      transform="rotate(-90 12 ${middle})">weight w2</text>`;
}

// Ellipses of equal loss, at 4, 1, 1/4, 1/16 of the first loss, and at 1 %.
function drawContours(now, state) {
  const unit = (BOX.right - BOX.left) / (RANGE.right - RANGE.left);
  const [x, y] = [toX(state.target[0]), toY(state.target[1])];
  const error = state.start.map((w, j) => w - state.target[j]);
  const first = loss(now.H, error);
  return [4, 1, 0.25, 0.0625, 0.01].map((share) => {
    const radius = (value) => unit * Math.sqrt(2 * share * first / value);
    const mark = share === 0.01 ? "nl-line nl-dashed" : "nl-line nl-thin";
    return `<ellipse class="${mark}" cx="${x}" cy="${y}"
      rx="${radius(now.large)}" ry="${radius(now.small)}"
      transform="rotate(${-now.angle * 180 / Math.PI} ${x} ${y})"/>`;
  }).join("");
}

function drawPath(now, state) {
  const steps = Math.min(SHOWN, now.steps || SHOWN);
  const path = descend(now.H, state.start, state.target,
                       state.learning_rate, steps);
  // A diverging path is cut where it has long left the picture.
  const shown = path.filter((w) => Math.hypot(...w) < 1e3);
  const places = shown.map(([u, v]) => [toX(u).toFixed(1),
                                        toY(v).toFixed(1)]);
  return `<polyline class="nl-line" points="${places.join(" ")}"/>
    ${places.map(([x, y], t) => `<circle class="nl-dot" cx="${x}" cy="${y}"
      r="${t ? 2.5 : 5}"/>`).join("")}`;
}

function render({ model, el }) {
  made += 1;
  const clip = `nl-zigzag-${made}`;
  const root = document.createElement("div");
  root.className = "nl-figure";
  root.innerHTML = `
    <svg viewBox="0 0 400 302" role="img" style="max-width: 34rem">
      ${drawAxes()}
      <clipPath id="${clip}"><rect x="${BOX.left}" y="${BOX.top}"
        width="${BOX.right - BOX.left}"
        height="${BOX.bottom - BOX.top}"/></clipPath>
      <g clip-path="url(#${clip})"><g class="contours nl-soft"></g>
        <g class="path"></g></g>
    </svg>
    <div class="nl-table"><table>
      <thead><tr><th scope="col">condition number</th>
        <th scope="col">largest stable rate</th>
        <th scope="col">steps to 1 % of the loss</th></tr></thead>
      <tbody><tr><td class="condition"></td><td class="limit"></td>
        <td class="steps"></td></tr></tbody></table></div>
    <p class="nl-status" role="status"></p>
    <div class="nl-controls" style="grid-template-columns:
      repeat(auto-fit, minmax(min(17rem, 100%), 1fr))">
      ${SLIDERS.map(([key, name, min, max, step]) => `<label>
        <span>${name}</span>
        <input type="range" data-key="${key}" min="${min}" max="${max}"
          step="${step}"><output></output></label>`).join("")}
    </div>
    <div class="nl-buttons">
      <label><input type="checkbox"> Standardise the inputs</label>
      <button type="button">Start again</button>
    </div>`;
  const find = (what) => root.querySelector(what);
  const box = find("input[type=checkbox]");
  const sliders = [...root.querySelectorAll("input[type=range]")];

  function draw() {
    const state = Object.fromEntries(KEYS.map((k) => [k, model.get(k)]));
    const now = summary(state);
    for (const slider of sliders) {
      const value = state[slider.dataset.key];
      slider.value = value;
      slider.parentElement.querySelector("output").textContent =
        value.toFixed(slider.step < 0.1 ? 2 : 1);
    }
    box.checked = state.standardise;
    find(".contours").innerHTML = drawContours(now, state);
    find(".path").innerHTML = drawPath(now, state);
    find(".path").setAttribute(
      "class", `path ${state.standardise ? "nl-after" : "nl-before"}`);
    find(".condition").textContent = three(now.condition);
    find(".limit").textContent = three(now.limit);
    find(".steps").textContent = countSteps(now.steps);
    find(".nl-status").textContent = verdict(now.turn);
    find("svg").setAttribute("aria-label",
      "Ellipses of equal loss over two weights, and the path of gradient "
      + `descent. Condition number ${three(now.condition)}. `
      + verdict(now.turn));
  }

  function set(values) {
    for (const [key, value] of Object.entries(values)) model.set(key, value);
    model.save_changes();
  }
  for (const slider of sliders) {
    slider.addEventListener("input", () =>
      set({ [slider.dataset.key]: Number(slider.value) }));
  }
  box.addEventListener("change", () => set({ standardise: box.checked }));
  find("button").addEventListener("click", () => set(model.get("first")));
  const events = KEYS.map((key) => `change:${key}`);
  for (const event of events) model.on(event, draw);
  draw();
  el.append(root);
  return () => {
    for (const event of events) model.off(event, draw);
    root.remove();
  };
}

export default { render };
