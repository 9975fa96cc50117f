// A mini-batch on a number line: x above, x-hat in the middle, y below.

export const REACH = 24; // x lies between -REACH and REACH
export const SPAN = 8; // x-hat and y are drawn between -SPAN and SPAN
export const MOST = 8; // points at most

const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;

// The mean and the biased variance of a mini-batch.
export function stats(points) {
  const mu = mean(points);
  return { mu, variance: mean(points.map((x) => (x - mu) ** 2)) };
}

export function normalise(points, eps) {
  const { mu, variance } = stats(points);
  return points.map((x) => (x - mu) / Math.sqrt(variance + eps));
}

export function batchNorm(points, gamma, beta, eps) {
  return normalise(points, eps).map((h) => gamma * h + beta);
}

// No x-hat of a batch of m values lies further from 0 than this.
export const bound = (m) => Math.sqrt(m - 1);

export const clamp = (value, low, high) =>
  Math.min(high, Math.max(low, value));

export const fits = (points) => points.every((x) => Math.abs(x) <= REACH);

// What each button does to the batch.
export const ACTIONS = {
  outlier: (points) => [...points, mean(points) > 8 ? -22 : 22],
  shift: (points) => points.map((x) => x + 2),
  double: (points) => points.map((x) => 2 * x),
  halve: (points) => points.map((x) => x / 2),
  flip: (points) => points.map((x) => 0 - x),
};

export const allowed = (points) =>
  fits(points) && points.length <= MOST;

// Levels that keep points less than `gap` apart from covering each other.
export function levels(places, gap) {
  const level = new Array(places.length).fill(0);
  const order = places.map((_, i) => i).sort((a, b) => places[a] - places[b]);
  order.forEach((i, k) => {
    const taken = order.slice(0, k)
      .filter((j) => places[i] - places[j] < gap).map((j) => level[j]);
    const free = [0, 1, 2].find((l) => !taken.includes(l));
    level[i] = free ?? k % 3;
  });
  return level;
}

// What a change of the batch did to x-hat, in a sentence.
export function verdict(action, before, after, eps) {
  const old = normalise(before, eps), now = normalise(after, eps);
  if (action === "outlier") {
    return `One value more, and the others huddle together. ` +
      `No x̂ can pass √(m − 1) = ${number(bound(after.length))}.`;
  }
  const sign = action === "flip" ? -1 : 1;
  const moved = Math.max(...now.map((h, i) => Math.abs(h - sign * old[i])));
  const [from, to] = [stats(before), stats(after)];
  const did = `Mean ${number(from.mu)} → ${number(to.mu)}, variance ` +
    `${number(from.variance)} → ${number(to.variance)}. `;
  if (moved >= 0.005) {
    return did + (action === "shift" ? "x̂ moved." : "The variance is not " +
      "large beside ε, so x̂ moved: the invariance holds for small ε only.");
  }
  return did + (action === "flip"
    ? "Every x̂ changed its sign, and nothing else."
    : "No x̂ and no y moved.");
}

// Two decimals, with a true minus sign and no negative zero.
export function number(value, digits = 2) {
  const text = Math.abs(value).toFixed(digits);
  return value < 0 && Number(text) !== 0 ? `−${text}` : text;
}

export function epsText(log) {
  return 10 ** log >= 0.01
    ? String(Number((10 ** log).toPrecision(2)))
    : (10 ** log).toExponential(0).replace("-", "−");
}

const START = "Drag a value of x, or move it with the arrow keys: " +
  "every output moves, not only its own.";
const ROWS = { x: 76, hat: 176, y: 262, height: 300 };
const DODGE = 15;

function make(name, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  update(node, attributes);
  node.append(...children);
  return node;
}

function update(node, attributes) {
  for (const [key, value] of Object.entries(attributes)) {
    node.setAttribute(key, value);
  }
}

function write(node, text, attributes) {
  node.textContent = text;
  update(node, attributes);
}

const PAGE = `
  <div class="nl-figure">
    <svg role="group"
      aria-label="A mini-batch x, its normalised values and the output y"></svg>
    <div class="nl-controls">
      <label>γ <input name="gamma" type="range" min="-2" max="2" step="0.1"
        aria-label="gamma"><output></output></label>
      <label>β <input name="beta" type="range" min="-2" max="2" step="0.1"
        aria-label="beta"><output></output></label>
      <label>ε <input name="log_eps" type="range" min="-8" max="2" step="0.5"
        aria-label="epsilon, as a power of ten"><output></output></label>
    </div>
    <div class="nl-buttons">
      <button type="button" name="outlier">Add an outlier</button>
      <button type="button" name="shift">Shift all by 2</button>
      <button type="button" name="double">Scale all by 2</button>
      <button type="button" name="halve">Scale all by ½</button>
      <button type="button" name="flip">Scale all by −1</button>
      <button type="button" name="reset">Reset</button>
    </div>
    <p class="nl-status" role="status"></p>
    <div class="nl-table"><table>
      <thead><tr><th scope="col">x</th><th scope="col">x̂</th>
        <th scope="col">y</th></tr></thead>
      <tbody></tbody>
    </table></div>
  </div>`;

function render({ model, el }) {
  const names = ["points", "gamma", "beta", "log_eps"];
  const first = Object.fromEntries(names.map((n) => [n, model.get(n)]));
  el.innerHTML = PAGE;
  const svg = el.querySelector("svg");
  const status = el.querySelector(".nl-status");
  const body = el.querySelector("tbody");
  const back = make("g"), links = make("g"), handles = make("g");
  svg.append(back, links, handles);
  let width = 640;
  let views = []; // one for each point: its lines, dots, handle, table row
  status.textContent = START;

  const across = (value, reach) =>
    20 + (width - 40) * (value + reach) / (2 * reach);

  function drawBack() {
    const rows = [
      ["x", ROWS.x, REACH, 12, "x, one channel of a batch"],
      ["hat", ROWS.hat, SPAN, 4, "x̂, normalised"],
      ["y", ROWS.y, SPAN, 4, "y = γx̂ + β"],
    ];
    back.replaceChildren();
    for (const [name, top, reach, step, title] of rows) {
      back.append(make("rect", { class: `nl-area nl-${INK[name]}`,
        "data-band": name, y: top - 9, height: 18 }));
      back.append(make("line", { class: "nl-axis", x1: 20, x2: width - 20,
        y1: top, y2: top }));
      for (let t = -reach; t <= reach; t += step) {
        const x = across(t, reach);
        back.append(make("line", { class: "nl-axis", x1: x, x2: x, y1: top,
          y2: top + 6 }), make("text", { class: "nl-soft", x, y: top + 20,
          "text-anchor": "middle" }, number(t, 0)));
      }
      const lift = name === "x" ? 64 : 24;
      back.append(make("text", { x: 0, y: top - lift }, title));
      back.append(make("text", { class: `nl-inked nl-${INK[name]}`,
        "data-note": name, x: width, y: top - lift, "text-anchor": "end" }));
    }
    for (const side of [-1, 1]) {
      back.append(make("line", { class: "nl-line nl-third",
        "data-bound": side, y1: ROWS.hat - 11, y2: ROWS.hat + 11 }));
    }
  }

  function band(name, centre, spread, reach, note) {
    const left = across(Math.max(-reach, centre - spread), reach);
    const right = across(Math.min(reach, centre + spread), reach);
    update(back.querySelector(`[data-band=${name}]`),
      { x: left, width: Math.max(1, right - left) });
    back.querySelector(`[data-note=${name}]`).textContent = note;
  }

  function addView(i) {
    const view = {
      down: make("line", { class: "nl-line nl-thin" }),
      on: make("line", { class: "nl-line nl-thin" }),
      hat: make("circle", { class: "nl-dot nl-third", r: 5, cy: ROWS.hat }),
      y: make("circle", { class: "nl-dot nl-after", r: 6, cy: ROWS.y }),
      row: document.createElement("tr"),
    };
    view.handle = make("g", { class: "nl-handle nl-before", role: "slider",
      tabindex: 0, "aria-label": `value ${i + 1} of x`,
      "aria-valuemin": -REACH, "aria-valuemax": REACH,
      "aria-orientation": "horizontal" },
    make("circle", { class: "nl-reach", r: 15 }),
    make("circle", { class: "nl-ring", r: 11 }),
    make("circle", { class: "nl-dot", r: 7 }));
    view.row.innerHTML = "<td></td><td></td><td></td>";
    listen(view.handle, i);
    links.append(view.down, view.on, view.hat, view.y);
    handles.append(view.handle);
    body.append(view.row);
    views.push(view);
  }

  function draw() {
    const points = model.get("points");
    const eps = 10 ** model.get("log_eps");
    const [gamma, beta] = [model.get("gamma"), model.get("beta")];
    const { mu, variance } = stats(points);
    const hats = normalise(points, eps);
    const ys = batchNorm(points, gamma, beta, eps);
    if (views.length !== points.length) {
      [links, handles, body].forEach((group) => group.replaceChildren());
      views = [];
      points.forEach((_, i) => addView(i));
    }
    const sigma = Math.sqrt(variance);
    const spread = Math.sqrt(variance / (variance + eps));
    band("x", mu, sigma, REACH, `μ ${number(mu)}, σ ${number(sigma)}`);
    band("hat", 0, spread, SPAN, `std ${number(spread)}, |x̂| ≤ ${number(bound(points.length))}`);
    band("y", beta, Math.abs(gamma) * spread, SPAN,
      `mean ${number(beta)}, std ${number(Math.abs(gamma) * spread)}`);
    for (const mark of back.querySelectorAll("[data-bound]")) {
      const x = across(mark.dataset.bound * bound(points.length), SPAN);
      update(mark, { x1: x, x2: x });
    }
    const places = points.map((x) => across(x, REACH));
    const lift = levels(places, DODGE);
    views.forEach((view, i) => {
      const hat = across(hats[i], SPAN), y = across(ys[i], SPAN);
      const top = ROWS.x - DODGE * lift[i];
      update(view.down, { x1: places[i], y1: top, x2: hat, y2: ROWS.hat });
      update(view.on, { x1: hat, y1: ROWS.hat, x2: y, y2: ROWS.y });
      update(view.hat, { cx: hat });
      update(view.y, { cx: y });
      update(view.handle, {
        transform: `translate(${places[i]} ${top})`,
        "aria-valuenow": points[i],
        "aria-valuetext": `x ${number(points[i])}, y ${number(ys[i])}`,
      });
      [points[i], hats[i], ys[i]].forEach((value, k) =>
        write(view.row.cells[k], number(value), {}));
    });
    for (const input of el.querySelectorAll("input")) {
      const value = model.get(input.name);
      const text = input.name === "log_eps" ? epsText(value)
        : number(value, 1);
      input.value = value;
      input.setAttribute("aria-valuetext", text);
      input.nextElementSibling.textContent = text;
    }
    for (const button of el.querySelectorAll("button")) {
      const action = ACTIONS[button.name];
      button.disabled = Boolean(action) && !allowed(action(points));
      button.title = button.disabled ? "no room on the line" : "";
    }
  }

  function move(i, value) {
    const points = [...model.get("points")];
    points[i] = clamp(Math.round(value * 10) / 10, -REACH, REACH);
    model.set("points", points);
    const { mu, variance } = stats(points);
    status.textContent = variance === 0
      ? "All values are equal: σ = 0, every x̂ is 0 and every y is β."
      : `Mean ${number(mu)}, variance ${number(variance)}: ` +
        "you moved one x, and every y follows.";
  }

  function listen(handle, i) {
    const at = (event) => {
      const box = svg.getBoundingClientRect();
      const x = (event.clientX - box.left) * width / box.width;
      return ((x - 20) / (width - 40) * 2 - 1) * REACH;
    };
    handle.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      handle.setPointerCapture(event.pointerId);
      handle.focus();
    });
    handle.addEventListener("pointermove", (event) => {
      if (handle.hasPointerCapture(event.pointerId)) move(i, at(event));
    });
    handle.addEventListener("pointerup", () => model.save_changes());
    handle.addEventListener("keydown", (event) => {
      const now = model.get("points")[i];
      const next = { ArrowLeft: now - 0.5, ArrowDown: now - 0.5,
        ArrowRight: now + 0.5, ArrowUp: now + 0.5, PageDown: now - 5,
        PageUp: now + 5, Home: -REACH, End: REACH }[event.key];
      if (next === undefined) return;
      event.preventDefault();
      event.stopPropagation(); // a notebook has its own use for the keys
      move(i, next);
      model.save_changes();
    });
  }

  for (const input of el.querySelectorAll("input")) {
    input.addEventListener("input", () => {
      model.set(input.name, Number(input.value));
      status.textContent = SAYS[input.name];
    });
    input.addEventListener("change", () => model.save_changes());
  }
  for (const button of el.querySelectorAll("button")) {
    button.addEventListener("click", () => {
      const before = model.get("points");
      const action = ACTIONS[button.name];
      if (action) {
        const after = action(before);
        model.set("points", after);
        status.textContent = verdict(button.name, before, after,
          10 ** model.get("log_eps"));
      } else {
        names.forEach((name) => model.set(name, first[name]));
        status.textContent = START;
      }
      model.save_changes();
    });
  }

  const events = names.map((name) => `change:${name}`).join(" ");
  model.on(events, draw);
  const fit = () => {
    const before = width;
    width = clamp(el.firstElementChild.clientWidth || 640, 280, 700);
    if (width === before && views.length) return;
    svg.setAttribute("viewBox", `0 0 ${width} ${ROWS.height}`);
    drawBack();
    draw();
  };
  const observer = new ResizeObserver(fit);
  observer.observe(el);
  fit();
  return () => {
    observer.disconnect();
    model.off(events, draw);
  };
}

const INK = { x: "before", hat: "third", y: "after" };
const SAYS = {
  gamma: "γ stretches y about β; μ, σ and x̂ know nothing of it.",
  beta: "β moves every y by the same amount.",
  log_eps: "ε pulls every x̂ towards 0 once it is not small beside σ².",
};

export default { render };
