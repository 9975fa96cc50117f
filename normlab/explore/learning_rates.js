// Learning rate, depth and step against the test accuracy of networks with
// and without batch normalization.

export const RATES = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10];
export const DEPTHS = [3, 8, 20];
export const STEPS = [30, 60, 120, 210, 300, 450, 600];
export const METHODS = ["BN", "none"];
const BAR = 80; // percent: a rate that gets there is called usable
const CHANCE = 20; // percent: below it nothing to speak of was learnt
const INK = { BN: "nl-after", none: "" };
const INITS = { He: "He initialisation", default: "PyTorch's initialisation" };

// One method's [mean, least, greatest] test accuracy in percent, and its
// loss, at the position `i` of the rate and `k` of the checkpoint.
export function look({ sweep, init, depth }, method, i, k) {
  const { right, loss } = sweep.runs[`${init} ${depth} ${method}`][i];
  return { right: right.map((row) => row[k] / 10), loss: loss[k] };
}

export function positions({ sweep, lr, step }) {
  return { i: nearest(sweep.rates, lr), k: nearest(sweep.steps, step) };
}

// The mean accuracies of a method at one checkpoint, over the rates.
export function overRates(state, method) {
  const { k } = positions(state);
  return state.sweep.rates.map((_, i) => look(state, method, i, k).right);
}

// A method's best rate at the chosen step, and its mean accuracy there.
export function best(state, method) {
  const means = overRates(state, method).map(([mean]) => mean);
  const right = Math.max(...means);
  return { lr: state.sweep.rates[means.indexOf(right)], right };
}

// The rates at which the mean accuracy reaches the bar.
export function usable(state, method) {
  return overRates(state, method).flatMap(([mean], i) =>
    (mean >= BAR ? [state.sweep.rates[i]] : []));
}

const W = 440, LEFT = 38, RIGHT = 52, HEIGHT = 150;
const UPPER = 26, LOWER = 250, BOTTOM = LOWER + HEIGHT;
const toY = (top) => (v) => top + HEIGHT * (1 - v / 100);
const toStep = (v, last) => LEFT + (v / last) * (W - LEFT - RIGHT);
const toRate = (i, n) => LEFT + (i / (n - 1)) * (W - LEFT - RIGHT);

const path = (xs, ys) => xs.map((x, i) =>
  `${i ? "L" : "M"}${x.toFixed(1)} ${ys[i].toFixed(1)}`).join("");

// A method's mean as a line, and a band from its worst to its best seed.
function line(method, xs, rows, top) {
  const [mean, low, high] = [0, 1, 2].map((j) =>
    rows.map((row) => toY(top)(row[j])));
  const back = path([...xs].reverse(), [...high].reverse());
  return `<path class="nl-area ${INK[method]}" d="${path(xs, low)}` +
    `${back.replace("M", "L")}Z"/>` +
    `<path class="nl-line ${INK[method]}" d="${path(xs, mean)}"/>`;
}

// Names at the lines' right ends, at least 14 apart.
function names(ends, top) {
  const y = Object.fromEntries(METHODS.map((m) => [m, toY(top)(ends[m]) + 4]));
  const gap = y.none - y.BN;
  if (Math.abs(gap) < 14) {
    const push = (14 - Math.abs(gap)) / 2;
    const sign = gap < 0 ? -1 : 1;
    y.none += sign * push;
    y.BN -= sign * push;
  }
  return METHODS.map((m) => `<text class="nl-inked ${INK[m]}" ` +
    `x="${W - RIGHT + 6}" y="${y[m].toFixed(1)}">${m}</text>`).join("");
}

function frame(top, title, below, ticks) {
  const rows = [0, 20, 40, 60, 80, 100].map((v) =>
    `<path class="nl-grid" d="M${LEFT} ${toY(top)(v)}H${W - RIGHT}"/>` +
    `<text x="${LEFT - 6}" y="${toY(top)(v) + 4}" text-anchor="end">${v}` +
    `</text>`).join("");
  const columns = ticks.map(([x, word]) => `<text x="${x.toFixed(1)}" ` +
    `y="${top + HEIGHT + 16}" text-anchor="middle">${word}</text>`).join("");
  return `${rows}${columns}<path class="nl-axis" ` +
    `d="M${LEFT} ${top + HEIGHT}H${W - RIGHT}"/>` +
    `<text x="4" y="${top - 12}">${title}</text>` +
    `<text x="${(W + LEFT - RIGHT) / 2}" y="${top + HEIGHT + 34}" ` +
    `text-anchor="middle">${below}</text>`;
}

const marker = (x, top) => `<path class="nl-axis nl-dashed" ` +
  `d="M${x.toFixed(1)} ${top}V${top + HEIGHT}"/>`;

export function drawing(state) {
  const { rates, steps } = state.sweep, { i, k } = positions(state);
  const last = steps.at(-1);
  const along = steps.map((s) => toStep(s, last));
  const across = rates.map((_, j) => toRate(j, rates.length));
  const time = Object.fromEntries(METHODS.map((m) =>
    [m, steps.map((_, j) => look(state, m, i, j).right)]));
  const rate = Object.fromEntries(METHODS.map((m) => [m, overRates(state, m)]));
  const ends = (all) =>
    Object.fromEntries(METHODS.map((m) => [m, all[m].at(-1)[0]]));
  return frame(UPPER, `test accuracy, %, at learning rate ${rates[i]}`,
    "step", [0, 200, 400, 600].map((s) => [toStep(s, last), s])) +
    METHODS.map((m) => line(m, along, time[m], UPPER)).join("") +
    names(ends(time), UPPER) + marker(along[k], UPPER) +
    frame(LOWER, `test accuracy, %, after ${steps[k]} steps`,
      "learning rate", rates.map((r, j) => [across[j], r])) +
    METHODS.map((m) => line(m, across, rate[m], LOWER)).join("") +
    names(ends(rate), LOWER) + marker(across[i], LOWER);
}

const percent = (v) => `${v.toFixed(1)} %`;

export function table(state) {
  const { i, k } = positions(state);
  const cell = {
    "test accuracy": (m) => {
      const [mean, low, high] = look(state, m, i, k).right;
      return `${percent(mean)} (${low.toFixed(1)} to ${high.toFixed(1)})`;
    },
    "training loss": (m) => {
      const { loss } = look(state, m, i, k);
      return loss === null ? "not finite" : loss.toPrecision(3);
    },
    "best rate, accuracy": (m) => {
      const { lr, right } = best(state, m);
      return right < CHANCE ? "at chance" : `${lr}, ${percent(right)}`;
    },
    [`rates at ${BAR} % or more`]: (m) => {
      const all = usable(state, m);
      return all.length > 1 ? `${all[0]} to ${all.at(-1)}`
        : `${all[0] ?? "none"}`;
    },
  };
  const head = METHODS.map((m) =>
    `<th scope="col">${m === "none" ? "no BN" : m}</th>`).join("");
  const rows = Object.entries(cell).map(([name, of]) =>
    `<tr><th scope="row">${name}</th>${METHODS.map((m) =>
      `<td>${of(m)}</td>`).join("")}</tr>`).join("");
  return `<thead><tr><td></td>${head}</tr></thead><tbody>${rows}</tbody>`;
}

// One sentence that says what the state means.
export function sentence(state) {
  const { i, k } = positions(state), { rates, steps } = state.sweep;
  const where = `${state.depth} layers, ${INITS[state.init]}, learning rate ` +
    `${rates[i]}, ${steps[k]} steps: `;
  const [bn, none] = METHODS.map((m) => look(state, m, i, k).right[0]);
  const far = METHODS.map((m) => best(state, m));
  const lead = (a, b) => (Math.abs(a - b) < 0.05 ? "level with no BN"
    : `${Math.abs(a - b).toFixed(1)} points ${a > b ? "ahead" : "behind"}`);
  const chance = (...all) => all.every((v) => v < CHANCE);
  const here = chance(bn, none) ? "neither network has learnt anything yet"
    : `BN is ${lead(bn, none)}`;
  if (chance(far[1].right)) {
    return `${where}${here}. Without BN ${chance(far[0].right)
      ? "or with it, " : ""}no rate has got anywhere by this step.`;
  }
  return `${where}${here}. Each at its own best rate (${far[0].lr} and ` +
    `${far[1].lr}), BN is ${lead(far[0].right, far[1].right)}.`;
}

const TEMPLATE = `<div class="nl-figure">
<svg viewBox="0 0 ${W} ${BOTTOM + 42}" role="img" style="max-width:36rem"
 aria-label="Above, test accuracy over the training steps at the chosen
 learning rate, with and without batch normalization. Below, test accuracy
 after the chosen step over nine learning rates. Dashed lines mark the chosen
 step and rate."></svg>
<div class="nl-controls">
<label>learning rate <input type="range" data-key="lr"><output></output>
</label>
<label>depth <input type="range" data-key="depth"><output></output></label>
<label>step <input type="range" data-key="step"><output></output></label>
<label>weights <select data-key="init">
 <option value="He">He</option>
 <option value="default">PyTorch's default</option></select></label></div>
<div class="nl-buttons"><button type="button" data-act="reset">Start again
</button></div>
<div class="nl-table"><table></table></div>
<div class="nl-status" role="status"></div></div>`;

function render({ model, el }) {
  return control({
    model, el, template: TEMPLATE,
    values: { lr: RATES, depth: DEPTHS, step: STEPS }, keys: ["sweep"],
    text: (key, v) => (key === "depth" ? `${v} layers` : `${v}`),
    show: { svg: drawing, table, status: sentence },
  });
}

export default { render };
