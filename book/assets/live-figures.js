// Brings the book's interactive figures to life on a page with no kernel:
// a model of the saved state for each figure, and the figure's own module.
const stateScript = document.querySelector(
  'script[type="application/vnd.jupyter.widget-state+json"]');
const states = stateScript ? JSON.parse(stateScript.textContent).state : {};
const models = new Map();
const modules = new Map();

function decode(buffer) {
  const bytes = Uint8Array.from(atob(buffer.data), (c) => c.charCodeAt(0));
  return new DataView(bytes.buffer);
}

function modelOf(id) {
  if (models.has(id)) return models.get(id);
  const { state, buffers = [] } = states[id];
  for (const buffer of buffers) {
    const path = [...buffer.path];
    const last = path.pop();
    path.reduce((at, key) => at[key], state)[last] = decode(buffer);
  }
  const listeners = {};
  const tell = (event, ...args) =>
    [...(listeners[event] ?? [])].forEach((f) => f(...args));
  const model = {
    get: (key) => state[key],
    set(key, value) {
      if (state[key] === value) return;
      state[key] = value;
      tell(`change:${key}`, model, value);
      tell("change", model);
    },
    save_changes() {},
    send() {},
    on(events, f) {
      for (const event of events.split(" ")) {
        (listeners[event] ??= []).push(f);
      }
    },
    off(event, f) {
      if (!event) Object.keys(listeners).forEach((e) => delete listeners[e]);
      else listeners[event] = f
        ? (listeners[event] ?? []).filter((g) => g !== f) : [];
    },
  };
  models.set(id, model);
  return model;
}

function moduleOf(source) {
  if (!modules.has(source)) {
    const blob = new Blob([source], { type: "text/javascript" });
    modules.set(source, import(URL.createObjectURL(blob)));
  }
  return modules.get(source);
}

async function show(script) {
  const id = JSON.parse(script.textContent).model_id;
  const saved = states[id];
  if (saved?.model_module !== "anywidget") return;
  const { _esm, _css } = saved.state;
  if (_css && !document.querySelector(`style[data-figure="${_css.length}"]`)) {
    const style = document.createElement("style");
    style.dataset.figure = _css.length;
    style.textContent = _css;
    document.head.append(style);
  }
  const el = document.createElement("div");
  el.className = "live-figure";
  script.after(el);
  const imported = (await moduleOf(_esm)).default;
  const widget = typeof imported === "function" ? await imported() : imported;
  const model = modelOf(id);
  await widget.initialize?.({ model });
  await widget.render({ model, el });
  document.documentElement.classList.add("live");
}

for (const script of document.querySelectorAll(
  'script[type="application/vnd.jupyter.widget-view+json"]')) {
  show(script);
}
