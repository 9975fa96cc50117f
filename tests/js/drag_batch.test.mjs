// The calculations of the figure DragBatch. Run: node --test tests/js/
import assert from "node:assert/strict";
import test from "node:test";

import { load } from "./figure.mjs";

const { ACTIONS, MOST, REACH, allowed, batchNorm, bound, clamp, epsText,
  levels, normalise, number, stats, verdict } = await load("drag_batch");

const BATCH = [1, 3, 3, 9]; // the chapter's worked example
const EPS = 1e-12;

function close(got, want, error = 1e-9) {
  assert.equal(got.length, want.length);
  got.forEach((value, i) => assert.ok(Math.abs(value - want[i]) < error,
    `${got} is not ${want}`));
}

test("mean and biased variance of the worked example", () => {
  assert.deepEqual(stats(BATCH), { mu: 4, variance: 9 });
});

test("x-hat and y of the worked example", () => {
  close(normalise(BATCH, EPS), [-1, -1 / 3, -1 / 3, 5 / 3]);
  close(batchNorm(BATCH, 1.5, 1, EPS), [-0.5, 0.5, 0.5, 3.5]);
});

test("shift and scale leave x-hat alone, a flip turns its sign", () => {
  const hats = normalise(BATCH, EPS);
  for (const name of ["shift", "double", "halve"]) {
    close(normalise(ACTIONS[name](BATCH), EPS), hats);
  }
  close(normalise(ACTIONS.flip(BATCH), EPS), hats.map((h) => -h));
});

test("a constant batch gives beta, whatever gamma", () => {
  close(batchNorm([5, 5, 5], 1.7, 0.3, 1e-5), [0.3, 0.3, 0.3]);
});

test("a lone outlier reaches the bound, nothing passes it", () => {
  const lone = [0, 0, 0, 0, 19];
  assert.ok(Math.abs(normalise(lone, EPS)[4] - bound(5)) < 1e-9);
  for (const batch of [BATCH, ACTIONS.outlier(BATCH), [-20, 20]]) {
    const top = Math.max(...normalise(batch, 1e-8).map(Math.abs));
    assert.ok(top <= bound(batch.length));
  }
});

test("epsilon shrinks the spread by sigma / sqrt(sigma^2 + eps)", () => {
  const { variance } = stats(normalise(BATCH, 9));
  assert.ok(Math.abs(variance - 0.5) < 1e-12);
});

test("shift, scale and flip fit on the line, one after the other", () => {
  const { shift, double, flip } = ACTIONS;
  for (const batch of [shift(BATCH), double(shift(BATCH)),
    flip(double(shift(BATCH)))]) assert.ok(allowed(batch));
});

test("a button is refused where points leave the line or are too many", () => {
  assert.ok(allowed(ACTIONS.double(BATCH)));
  assert.ok(!allowed(ACTIONS.double([1, 13])));
  assert.ok(!allowed(ACTIONS.outlier(new Array(MOST).fill(0))));
  assert.ok(Math.abs(ACTIONS.outlier([22, 22])[2]) <= REACH);
});

test("no two near points lie on one level", () => {
  assert.deepEqual(levels([10, 12, 60], 15), [0, 1, 0]);
  assert.equal(new Set(levels([5, 5, 5], 15)).size, 3);
});

test("the verdict says whether x-hat moved", () => {
  const shifted = verdict("shift", BATCH, ACTIONS.shift(BATCH), 1e-5);
  assert.match(shifted, /Mean 4\.00 → 6\.00.*No x̂ and no y moved/);
  const scaled = verdict("double", BATCH, ACTIONS.double(BATCH), 10);
  assert.match(scaled, /variance 9\.00 → 36\.00.*small ε only/);
});

test("numbers as they are printed", () => {
  assert.equal(number(-0.001), "0.00");
  assert.equal(number(-1.5), "−1.50");
  assert.equal(clamp(REACH + 1, -REACH, REACH), REACH);
  assert.equal(epsText(-5), "1e−5");
  assert.equal(epsText(0.5), "3.2");
  assert.equal(epsText(2), "100");
});
