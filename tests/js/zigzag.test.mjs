// Run by `node --test tests/js`: the calculations behind the zigzag figure.
import assert from "node:assert/strict";
import { test } from "node:test";

import { load } from "./figure.mjs";

const { countSteps, descend, eigen, hessian, inputs, loss, standardise,
        stepsTo, summary, verdict } =
  await load("zigzag");

const state = {
  points: [[-6, -1], [-4, -5], [-3, 3], [-2, -3], [-1, 1], [0, -2],
           [1, 5], [1, -1], [2, 2], [3, -4], [4, 4], [5, 1]],
  start: [-1.5, 3], target: [1, 1], shift_1: 2.5, shift_2: 1.5, scale_1: 1,
  scale_2: 0.5, learning_rate: 0.2, standardise: false,
};
const near = (got, want, error = 1e-12) =>
  assert.ok(Math.abs(got - want) <= error, `${got} is not near ${want}`);

test("standardised points have mean 0 and variance 1", () => {
  const z = standardise(state.points);
  for (const j of [0, 1]) {
    near(z.reduce((s, p) => s + p[j], 0), 0);
    near(z.reduce((s, p) => s + p[j] ** 2, 0) / z.length, 1);
  }
});

test("inputs have the shift and the scale that were asked for", () => {
  const xs = inputs(state.points, state);
  near(xs.reduce((s, x) => s + x[0], 0) / xs.length, 2.5);
  near(xs.reduce((s, x) => s + (x[1] - 1.5) ** 2, 0) / xs.length, 0.25);
});

test("with standardising, shift and scale change nothing", () => {
  const on = { ...state, standardise: true };
  const moved = { ...on, shift_1: -3, scale_2: 3 };
  assert.deepEqual(summary(on), summary(moved));
});

test("the Hessian is the matrix of second moments", () => {
  assert.deepEqual(hessian([[1, 2], [3, 4]]), [[5, 7], [7, 10]]);
});

test("eigenvalues and direction of a known matrix", () => {
  const { large, small, angle } = eigen([[2, 1], [1, 2]]);
  near(large, 3);
  near(small, 1);
  near(angle, Math.PI / 4);
  const axis = eigen([[1, 0], [0, 4]]);
  near(axis.large, 4);
  near(Math.abs(axis.angle), Math.PI / 2);
});

test("one step of gradient descent by hand", () => {
  const [, after] = descend([[2, 0], [0, 1]], [2, 2], [1, 1], 0.25, 1);
  assert.deepEqual(after, [1.5, 1.75]);
});

test("the count of steps agrees with walking the path", () => {
  for (const rate of [0.05, 0.1, 0.2]) {
    const { H } = summary(state);
    const n = stepsTo(H, state.start, state.target, rate, 0.01);
    const path = descend(H, state.start, state.target, rate, n);
    const at = (t) => loss(H, path[t].map((w, j) => w - state.target[j]));
    assert.ok(at(n) <= 0.01 * at(0) && at(n - 1) > 0.01 * at(0));
  }
});

test("the loss falls just below the limit and grows just above it", () => {
  const { H, limit } = summary(state);
  for (const [factor, grows] of [[0.99, false], [1.01, true]]) {
    const path = descend(H, state.start, state.target, factor * limit, 2000);
    const last = path.at(-1).map((w, j) => w - state.target[j]);
    const first = path[0].map((w, j) => w - state.target[j]);
    assert.equal(loss(H, last) > loss(H, first), grows);
  }
  assert.equal(
    stepsTo(H, state.start, state.target, 1.01 * limit, 0.01), Infinity);
  assert.ok(Number.isNaN(
    stepsTo(H, state.start, state.target, 1e-6, 0.01, 100)));
});

test("the first state zigzags; standardised inputs need fewer steps", () => {
  const before = summary(state);
  const after = summary({ ...state, standardise: true });
  const faster = summary({ ...state, standardise: true, learning_rate: 1 });
  assert.ok(before.turn > 1.5 && before.turn < 2);
  assert.ok(before.condition > 20 && after.condition < 2.5);
  assert.ok(after.steps < before.steps && 5 * faster.steps < before.steps);
  assert.match(verdict(before.turn), /zigzags/);
  assert.match(verdict(2), /grows/);
});

test("counts of steps are shown in words where they are not numbers", () => {
  assert.deepEqual([0, 12, Infinity, NaN].map(countSteps),
                   ["0", "12", "never", "over 100,000"]);
});
