// Run with: node --test tests/js
import assert from "node:assert/strict";
import { test } from "node:test";

import { load } from "./figure.mjs";

const figure = await load("learning_rates");
const steps = [0, ...figure.STEPS];

// Accuracies in tenths of a percent: `peak` at the rate number `at`, 10 %
// from the rate number `lost` on, and a little less on the way there.
function runs(peak, at, lost) {
  return figure.RATES.map((_, i) => {
    const mean = steps.map((s) => (i >= lost || !s ? 100
      : peak - 40 * Math.abs(i - at) - (600 - s)));
    return {
      right: [mean, mean.map((v) => v - 5), mean.map((v) => v + 5)],
      loss: steps.map((s) => (!s || i >= lost ? null : 0.25)),
    };
  });
}

const RUNS = {};
for (const init of ["He", "default"]) {
  for (const depth of figure.DEPTHS) {
    RUNS[`${init} ${depth} BN`] = runs(920, 5, 8);
    RUNS[`${init} ${depth} none`] = init === "He" ? runs(900, 4, 6)
      : runs(100, 0, 0);
  }
}
const START = {
  lr: 1, depth: 8, step: 600, init: "He",
  sweep: { rates: figure.RATES, steps, runs: RUNS },
};

test("the best rate is that of the chosen step", () => {
  assert.deepEqual(figure.best(START, "BN"), { lr: 0.3, right: 92 });
  assert.deepEqual(figure.best(START, "none"), { lr: 0.1, right: 90 });
  const early = { ...START, step: 450 };
  assert.deepEqual(figure.best(early, "BN"), { lr: 0.3, right: 77 });
});

test("usable rates reach the bar", () => {
  assert.deepEqual(figure.usable(START, "BN"),
    [0.01, 0.03, 0.1, 0.3, 1, 3]);
  assert.deepEqual(figure.usable(START, "none"), [0.01, 0.03, 0.1, 0.3]);
  assert.deepEqual(figure.usable({ ...START, step: 450 }, "BN"), []);
});

test("what is looked at is the mean, the least and the greatest", () => {
  const { i, k } = figure.positions(START);
  assert.deepEqual([i, k], [6, 7]);
  assert.deepEqual(figure.look(START, "BN", i, k),
    { right: [88, 87.5, 88.5], loss: 0.25 });
  assert.equal(figure.look(START, "none", i, k).loss, null);
});

test("the table names what is there and what is not", () => {
  const html = figure.table(START);
  assert.match(html, /88\.0 % \(87\.5 to 88\.5\)/);
  assert.match(html, /0\.3, 92\.0 %/);
  assert.match(html, /not finite/);
  assert.match(html, /0\.01 to 3</);
  const dead = figure.table({ ...START, init: "default" });
  assert.match(dead, /<td>none</);
  assert.match(dead, /<td>at chance</);
});

test("the sentence compares at this rate and at the best", () => {
  assert.equal(figure.sentence(START),
    "8 layers, He initialisation, learning rate 1, 600 steps: BN is 78.0 " +
    "points ahead. Each at its own best rate (0.3 and 0.1), BN is 2.0 " +
    "points ahead.");
  assert.match(figure.sentence({ ...START, lr: 10 }), /neither/);
  assert.match(figure.sentence({ ...START, init: "default" }),
    /Without BN no rate has got anywhere by this step\.$/);
  const lost = { ...RUNS, "He 8 BN": RUNS["default 8 none"],
    "He 8 none": RUNS["default 8 none"] };
  assert.match(figure.sentence({ ...START,
    sweep: { ...START.sweep, runs: lost } }), /Without BN or with it, no rate/);
  const level = { ...START.sweep, runs: { ...RUNS, "He 8 none": RUNS["He 8 BN"] } };
  assert.match(figure.sentence({ ...START, sweep: level }), /is level with/);
  const swapped = { ...RUNS, "He 8 none": RUNS["He 8 BN"],
    "He 8 BN": RUNS["He 8 none"] };
  assert.match(figure.sentence({ ...START,
    sweep: { ...START.sweep, runs: swapped } }), /78\.0 points behind/);
});

test("every state draws and says something, and never NaN", () => {
  for (const lr of figure.RATES) {
    for (const depth of figure.DEPTHS) {
      for (const step of figure.STEPS) {
        for (const init of ["He", "default"]) {
          const state = { ...START, lr, depth, step, init };
          const all = figure.drawing(state) + figure.table(state) +
            figure.sentence(state);
          assert.doesNotMatch(all, /NaN|undefined|null/);
        }
      }
    }
  }
});

test("the names of the lines stand apart", () => {
  for (const init of ["He", "default"]) {
    for (const lr of figure.RATES) {
      const at = [...figure.drawing({ ...START, init, lr }).matchAll(
        /<text class="nl-inked [^"]*" x="[\d.]+" y="([\d.]+)"/g)];
      const ys = at.map((found) => +found[1]);
      assert.equal(ys.length, 4);
      assert.ok(Math.abs(ys[0] - ys[1]) > 13.8);
      assert.ok(Math.abs(ys[2] - ys[3]) > 13.8);
    }
  }
});
