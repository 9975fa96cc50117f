// Run with: node --test tests/js
import assert from "node:assert/strict";
import { test } from "node:test";

import { load } from "./figure.mjs";

const figure = await load("running_average");

const START = {
  first: 0.1, second: 0.01, batch_size: 4, steps: 300, world: "jumps",
  unbiased: true, seed: 1,
};
// Printed by normlab.explore.running_average.draw_batches().
const PYTHON = {
  means: [2.9289490946624204, 1.964616546020774, 2.5984009981697316],
  variances: [2.911177306852255, 2.699865186455523, 0.9292611849462384],
};
const near = (got, want, tolerance = 1e-9) =>
  assert.ok(Math.abs(got - want) <= tolerance, `${got} is not ${want}`);
const average = (values) => values.reduce((a, b) => a + b, 0) / values.length;

test("draws repeat and are those of the Python module", () => {
  const { means, variances } = figure.drawBatches(START);
  assert.deepEqual(means, figure.drawBatches(START).means);
  PYTHON.means.forEach((v, t) => near(means[t], v));
  PYTHON.variances.forEach((v, t) => near(variances[t], v));
});

test("another seed gives other draws", () => {
  const { means } = figure.drawBatches({ ...START, seed: 2 });
  assert.notEqual(means[0], figure.drawBatches(START).means[0]);
});

test("draws are standard normal", () => {
  const random = figure.generator(7);
  const z = Array.from({ length: 40000 }, () => figure.normal(random));
  near(average(z), 0, 0.02);
  near(average(z.map((v) => v * v)), 1, 0.03);
});

test("a running average keeps (1 - p)^t of its start", () => {
  const r = figure.running([0, 0, 0], 0.1, 1);
  near(r[0], 0.9);
  near(r[2], 0.9 ** 3);
  assert.deepEqual(figure.running([3, 5], 1, 0), [3, 5]);
});

test("steps to a share", () => {
  assert.equal(figure.stepsTo(0.01, 0.1), 44);
  assert.equal(figure.stepsTo(0.01, 0.01), 459);
  assert.equal(figure.stepsTo(0.1, 0.1), 22);
  assert.equal(figure.stepsTo(0.25, 0.5), 2);
  assert.equal(figure.stepsTo(0.1, 1), 1);
});

test("the true mean stays, drifts or jumps half way", () => {
  const at = (world, t) => figure.trueMean(world, t, 100);
  assert.deepEqual([at("stays", 0), at("stays", 99)], [2, 2]);
  assert.deepEqual([at("drifts", 0), at("drifts", 99)], [2, 6]);
  assert.deepEqual([at("jumps", 49), at("jumps", 50)], [2, 6]);
});

test("Bessel's correction removes the bias of the running variance", () => {
  const state = { ...START, batch_size: 2, steps: 20000, world: "stays" };
  const biased = figure.compute({ ...state, unbiased: false });
  const unbiased = figure.compute(state);
  near(average(biased.runningVar[0].slice(1000)), 2, 0.15);
  near(average(unbiased.runningVar[0].slice(1000)), 4, 0.3);
});

test("the noise of the running mean follows its formula", () => {
  const state = { ...START, steps: 20000, world: "stays" };
  const r = figure.compute(state).runningMean[0].slice(1000);
  const square = average(r.map((v) => (v - figure.FIRST) ** 2));
  near(Math.sqrt(square) / figure.noise(0.1, 4), 1, 0.05);
});

test("the sentence names what happens", () => {
  assert.match(figure.sentence(START), /true mean is 6 .* 0\.1 trembles more/);
  assert.match(figure.sentence({ ...START, second: 0.1 }), /are equal/);
  assert.match(figure.sentence({ ...START, second: 0.001 }), /74 %/);
});
