// Run with: node --test tests/js
import assert from "node:assert/strict";
import { test } from "node:test";

import { load } from "./figure.mjs";

const figure = await load("transfer");

const START = { m: 4, value: 3, eps: 1e-5, alpha: 0.15, noise: true };
// Printed by normlab.explore.transfer.curve.
const PYTHON = [
  [3, 4, 1e-5, 1.5329092452483422],
  [1, 2, 0, 0.6826914356119398],
  [-2, 8, 0.1, -1.5832439478862932],
  [4, 64, 0, 3.5990503575728754],
];
const near = (got, want, tolerance = 1e-9) =>
  assert.ok(Math.abs(got - want) <= tolerance, `${got} is not ${want}`);

test("the curve is that of the Python module", () => {
  for (const [x, m, eps, want] of PYTHON) {
    near(figure.transfer(x, m, eps), want, 1e-12);
  }
});

test("two values: the error function, and a mean square of 1", () => {
  const erf = [[0.5, 0.3829249], [1, 0.6826895], [2, 0.9544997]];
  for (const [x, want] of erf) near(figure.transfer(x, 2), want, 1e-4);
  for (const x of [-3, 0, 0.7, 4]) near(figure.square(x, 2), 1, 1e-3);
});

test("odd, rising, and bounded", () => {
  for (const m of figure.SIZES) {
    const curve = figure.VALUES.map((x) => figure.transfer(x, m));
    curve.forEach((t, i) => near(t, -curve[curve.length - 1 - i], 1e-12));
    curve.slice(1).forEach((t, i) => assert.ok(t >= curve[i]));
    assert.ok(curve.every((t) => Math.abs(t) <= Math.sqrt(m - 1) + 1e-9));
  }
});

test("many values: nearly the line", () => {
  near(figure.transfer(2, 64), 2, 0.05);
  assert.ok(figure.spread(2, 64) < figure.spread(2, 8));
});

test("noise is that of two signs at two values", () => {
  near(figure.spread(0, 2), 1, 1e-3);
  near(figure.spread(4, 2), 0.011, 4e-3);
});

test("a large epsilon shrinks the curve and the line", () => {
  assert.ok(figure.transfer(2, 4, 1) < figure.transfer(2, 4, 0));
  near(figure.line(2, 3), 1);
});

test("EvalNorm's curve", () => {
  near(figure.mixture(2, 0), 2);
  near(figure.mixture(2, 0.25), (Math.sqrt(0.75) * 2) / Math.sqrt(2));
  near(figure.mixture(1e9, 0.25), Math.sqrt(3), 1e-6);
  assert.equal(figure.mixture(2, 1), 0);
  assert.equal(figure.mixture(2, 1, 0.1), 0);
});

test("the best share is nearer to the curve than the line is", () => {
  const { lineOff, mixtureOff } = figure.compute(START);
  near(lineOff, 0.257, 0.01);
  near(mixtureOff, 0.078, 0.005);
  assert.equal(figure.compute({ ...START, alpha: 0 }).mixtureOff, lineOff);
});

test("nothing is NaN anywhere that the sliders reach", () => {
  for (const m of figure.SIZES) {
    for (const eps of figure.EPSILONS) {
      for (const alpha of [0, 0.15, 1]) {
        for (const value of [-4, 0, 4]) {
          const all = figure.compute({ m, eps, alpha, value });
          assert.ok(Object.values(all).every(Number.isFinite));
        }
      }
    }
  }
  assert.ok(!figure.path((x) => figure.transfer(x, 2)).includes("NaN"));
});

test("the sentence names bound, slopes and epsilon", () => {
  assert.match(figure.sentence(START), /4 values .* 1e-5|0\.00001/);
  assert.match(figure.sentence(START), /exceed 1\.73; .* 1\.13, .* 1\.00/);
  assert.match(figure.sentence({ ...START, m: 2, eps: 0 }), /0 is 0\.80/);
});
