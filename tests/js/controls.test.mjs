// What all figures share. Run with: node --test tests/js
import assert from "node:assert/strict";
import { test } from "node:test";

import { load } from "./figure.mjs";

const { control, nearest } = await load("controls");

// As much of an element, and of a model, as control() uses.
function element(dataset = {}) {
  const heard = {};
  return {
    dataset, attributes: {}, nextElementSibling: {},
    addEventListener: (name, f) => { heard[name] = f; },
    setAttribute(name, value) { this.attributes[name] = `${value}`; },
    fire: (name) => heard[name](),
  };
}

function page() {
  const slider = element({ key: "m" }), menu = element({ key: "open" });
  const reset = element({ act: "reset" }), noise = element({ act: "noise" });
  const parts = { svg: element(), table: element(), ".nl-status": element() };
  const lists = {
    "input[data-key]": [slider], "select[data-key]": [menu],
    "[data-act]": [reset, noise],
  };
  const el = {
    querySelectorAll: (what) => lists[what],
    querySelector: (what) => parts[what],
  };
  const traits = { m: 4, open: true, noise: false }, on = new Map();
  const model = {
    get: (key) => traits[key],
    set: (key, value) => { traits[key] = value; },
    on: (name, f) => on.set(name, f),
    off: (name) => on.delete(name),
    save_changes: () => on.get("change:m")?.(),
  };
  const end = control({
    model, el, template: "<p>", values: { m: [2, 4, 8] }, keys: ["noise"],
    acts: { noise: (state) => ({ noise: !state.noise }) },
    text: (key, v) => `${key} is ${v}`,
    show: {
      svg: ({ m }) => `<g>${m}</g>`, table: ({ open }) => `${open}`,
      status: (state) => JSON.stringify(state),
    },
  });
  return { slider, menu, reset, noise, parts, traits, el, end, on };
}

test("the nearest position of a slider", () => {
  assert.equal(nearest([1, 2, 4, 8], 4), 2);
  assert.equal(nearest([1, 2, 4, 8], 5), 2);
  assert.equal(nearest([0.1, 0.2], 9), 1);
});

test("the page shows the traits", () => {
  const { slider, menu, noise, parts, el } = page();
  assert.equal(el.innerHTML, "<p>");
  assert.deepEqual([slider.min, slider.max, slider.value], [0, 2, 1]);
  assert.equal(slider.attributes["aria-valuetext"], "m is 4");
  assert.equal(slider.nextElementSibling.textContent, "m is 4");
  assert.equal(menu.value, "true");
  assert.equal(noise.attributes["aria-pressed"], "false");
  assert.equal(parts.svg.innerHTML, "<g>4</g>");
  assert.equal(parts.table.innerHTML, "true");
  assert.equal(parts[".nl-status"].textContent,
    '{"m":4,"open":true,"noise":false}');
});

test("controls change the traits, and reset takes it back", () => {
  const { slider, menu, reset, noise, parts, traits } = page();
  slider.value = "2";
  slider.fire("input");
  assert.equal(parts.svg.innerHTML, "<g>8</g>");
  menu.value = "false";
  menu.fire("change");
  noise.fire("click");
  assert.deepEqual(traits, { m: 8, open: false, noise: true });
  assert.equal(noise.attributes["aria-pressed"], "true");
  reset.fire("click");
  assert.deepEqual(traits, { m: 4, open: true, noise: false });
});

test("at the end nothing listens", () => {
  const { end, on } = page();
  assert.equal(on.size, 3);
  end();
  assert.equal(on.size, 0);
});
