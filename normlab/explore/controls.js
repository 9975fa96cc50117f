// What figures with sliders, menus and buttons share; the text of this file
// stands before each figure's module.

export function nearest(values, v) {
  const off = values.map((w) => Math.abs(w - v));
  return off.indexOf(Math.min(...off));
}

// Fill `el` with `template` and keep its controls and the model in step.
//   values   {trait: [...]}: what the positions of a slider stand for
//            (<input type="range" data-key="trait"><output></output>)
//   keys     traits without a control that the figure reads
//   acts     {name: (state) => ({trait: value})}: what a button does
//            (data-act="name"); "reset" is there for all
//   text     (trait, value) => what stands beside a slider
//   show     {svg, table, status}: (state) => HTML of the drawing and of the
//            table, and the sentence below
// A menu's options (<select data-key="trait">) are texts; "true" and "false"
// are Booleans. Returns the function that anywidget calls at the end.
export function control({ model, el, template, values, show, keys = [],
  acts = {}, text = (key, v) => `${v}` }) {
  el.innerHTML = template;
  const inputs = [...el.querySelectorAll("input[data-key]")];
  const menus = [...el.querySelectorAll("select[data-key]")];
  const own = [...inputs, ...menus].map((e) => e.dataset.key);
  const all = [...new Set([...own, ...keys])];
  const state = () => Object.fromEntries(all.map((k) => [k, model.get(k)]));
  const start = state();
  const set = (changes) => {
    for (const [key, value] of Object.entries(changes)) model.set(key, value);
    model.save_changes();
  };
  for (const input of inputs) {
    const key = input.dataset.key;
    Object.assign(input, { min: 0, max: values[key].length - 1, step: 1 });
    input.addEventListener("input", () =>
      set({ [key]: values[key][+input.value] }));
  }
  const meant = { true: true, false: false };
  for (const menu of menus) {
    menu.addEventListener("change", () => set(
      { [menu.dataset.key]: meant[menu.value] ?? menu.value }));
  }
  const press = { reset: () => start, ...acts };
  for (const button of el.querySelectorAll("[data-act]")) {
    button.addEventListener("click", () =>
      set(press[button.dataset.act](state())));
  }
  const update = () => {
    const now = state();
    for (const input of inputs) {
      const key = input.dataset.key, words = text(key, now[key]);
      input.value = nearest(values[key], now[key]);
      input.setAttribute("aria-valuetext", words);
      input.nextElementSibling.textContent = words;
    }
    for (const menu of menus) menu.value = `${now[menu.dataset.key]}`;
    // A button [data-act] named like a Boolean trait shows its state.
    for (const button of el.querySelectorAll("[data-act]")) {
      const on = now[button.dataset.act];
      if (typeof on === "boolean") button.setAttribute("aria-pressed", on);
    }
    el.querySelector("svg").innerHTML = show.svg(now);
    el.querySelector("table").innerHTML = show.table(now);
    el.querySelector(".nl-status").textContent = show.status(now);
  };
  const events = all.map((key) => `change:${key}`);
  for (const event of events) model.on(event, update);
  update();
  return () => events.forEach((event) => model.off(event, update));
}

