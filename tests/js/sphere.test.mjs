// Run with: node --test tests/js
import assert from "node:assert/strict";
import { test } from "node:test";

import { load } from "./figure.mjs";

const figure = await load("sphere");

const START = {
  lr: 0.1, decay: 0.01, start: 3, pull: 1, momentum: "0", seed: 1,
};
const OTHER = {
  lr: 0.5, decay: 0.02, start: 2, pull: 2, momentum: "0.9", seed: 2,
};
// Printed by normlab.explore.sphere: walk(...)[-1], the last of turns(...),
// equilibrium(...), for OTHER after 500 steps.
const PYTHON = {
  end: [-3.1691155308650005, -1.27703375194866],
  turn: 0.3147231723827907,
  balance: [4.728708045015879, 0.10259783520851541],
};
const near = (got, want, tolerance = 1e-9) =>
  assert.ok(Math.abs(got - want) <= tolerance, `${got} is not ${want}`);
const gone = (state) => figure.compute({ ...START, ...state });

test("the walk is that of the Python module", () => {
  const weights = figure.walk(OTHER, 500);
  assert.equal(weights.length, 501);
  PYTHON.end.forEach((v, i) => near(weights.at(-1)[i], v));
  near(figure.turns(weights).at(-1), PYTHON.turn);
  const { norm, angle } = figure.equilibrium(OTHER);
  near(norm, PYTHON.balance[0]);
  near(angle, PYTHON.balance[1]);
});

test("without decay the squared norm grows by lr^2 |g|^2", () => {
  const weights = figure.walk({ ...START, decay: 0, pull: 2 }, 50);
  const random = figure.generator(1);
  for (let t = 0; t < 50; t++) {
    const before = Math.hypot(...weights[t]) ** 2;
    const g = (2 * figure.normal(random)) / Math.sqrt(before);
    near(Math.hypot(...weights[t + 1]) ** 2, before + (0.1 * g) ** 2);
  }
});

test("in balance norm and angle are those of the formulas", () => {
  for (const state of [{}, { lr: 0.5 }, { momentum: "0.5" }, { pull: 4 },
    { decay: 0.05 }]) {
    const c = gone(state);
    near(c.angle / c.balance.angle, 1, 0.05);
    near(c.norm / c.balance.norm, 1, 0.05);
  }
});

test("equal products turn the weight by equal angles", () => {
  const one = gone({}), other = gone({ lr: 0.5, decay: 0.002 });
  near(one.angle / other.angle, 1, 0.05);
  assert.ok(other.norm > 2 * one.norm);
});

test("root mean squares of parts", () => {
  assert.deepEqual(figure.rms([3, 3, 0, 0], 2), [3, 0]);
  near(figure.rms([1, 7], 1)[0], 5);
});

test("a turn has no sign and goes through the shorter way", () => {
  near(figure.turns([[1, 0], [0, -2]])[0], Math.PI / 2);
});

test("every state draws and says something, and never NaN", () => {
  for (const lr of figure.RATES) {
    for (const decay of figure.DECAYS) {
      for (const momentum of ["0", "0.5", "0.9"]) {
        for (const start of [0.3, 5]) {
          for (const pull of [0.25, 4]) {
            const state = { ...START, lr, decay, momentum, start, pull };
            const all = figure.drawing(state) + figure.table(state) +
              figure.sentence(state);
            assert.doesNotMatch(all, /NaN|undefined|null|Infinity/);
          }
        }
      }
    }
  }
});

test("the sentence names what happens", () => {
  const said = (state) => figure.sentence({ ...START, ...state });
  assert.match(said({}), /from 3 to .*0\.0447.* are in balance/);
  assert.match(said({ decay: 0 }), /norm never shrinks: .* 0\.0111 to 0\.00/);
  assert.match(said({ lr: 0.01, decay: 0.001 }), /too few.*100,000/);
  assert.match(said({ lr: 1, decay: 0.1, momentum: "0.9" }), /a steady norm/);
});

test("each slider's neighbours change the table or the sentence", () => {
  for (const [key, values] of Object.entries(figure.VALUES)) {
    const i = values.indexOf(START[key]);
    assert.ok(i > 0 && i < values.length - 1, key);
    const before = figure.table(START) + figure.sentence(START);
    const state = { ...START, [key]: values[i - 1] };
    assert.notEqual(figure.table(state) + figure.sentence(state), before);
  }
});
