// Run with: node --test tests/js
import assert from "node:assert/strict";
import { test } from "node:test";

import { load } from "./figure.mjs";

const figure = await load("batch_size");

// Printed by normlab.explore.batch_size: mean_scale(m), scale_quantiles().
const MEANS = { 4: 1.59576912, 8: 1.20360444, 32: 1.04143654, 256: 1.00491789 };
const QUANTILES = Array.from({ length: 17 }, (_, i) => {
  const w = 2 / Math.sqrt(2 ** (i + 1));
  return [1 / (1 + w), 1, 1 + w];
});
const ERRORS = {
  dense: { BN: [17, 4, 2, 2, 2, 2, 3], GN: [2.5, 2.5, 3, 3, 3, 3, 4] },
  convolutional: { BN: [5, 5, 5, 5, 5, 6, 7], GN: [5, 5, 5, 5, 5, 6, 7] },
};
const START = {
  batch_size: 8, devices: 4, side: 4, axis: "examples", errors: ERRORS,
  quantiles: QUANTILES,
};
const near = (got, want, tolerance) =>
  assert.ok(Math.abs(got - want) <= tolerance, `${got} is not ${want}`);

test("what is normalised together", () => {
  assert.deepEqual(figure.together(START), { examples: 2, values: 32 });
  assert.deepEqual(figure.together({ batch_size: 2, devices: 8, side: 4 }),
    { examples: 0, values: 0 });
});

test("ln Gamma", () => {
  near(figure.logGamma(5), Math.log(24), 1e-9);
  near(figure.logGamma(0.5), Math.log(Math.PI) / 2, 1e-9);
  near(figure.logGamma(1), 0, 1e-9);
});

test("the mean scale is that of the Python module", () => {
  for (const [m, want] of Object.entries(MEANS)) {
    near(figure.meanScale(+m), want, 1e-5);
  }
  assert.equal(figure.meanScale(2), Infinity);
});

test("the spread is looked up by m", () => {
  assert.equal(figure.spread(2, QUANTILES), QUANTILES[0]);
  assert.equal(figure.spread(32, QUANTILES), QUANTILES[4]);
  assert.equal(figure.spread(1, QUANTILES), null);
  assert.equal(figure.spread(2 ** 18, QUANTILES), null);
});

test("a net's runs move to the right where values are counted", () => {
  assert.deepEqual(figure.places("convolutional", "examples"), figure.SIZES);
  assert.equal(figure.places("convolutional", "values")[0], 32);
  assert.equal(figure.places("dense", "values")[0], 2);
});

test("every state draws and says something, and never NaN", () => {
  for (const batch_size of figure.SIZES) {
    for (const devices of figure.DEVICES) {
      for (const side of figure.SIDES) {
        for (const axis of ["examples", "values"]) {
          const state = { ...START, batch_size, devices, side, axis };
          const all = figure.drawing(state) + figure.table(state) +
            figure.sentence(state);
          assert.doesNotMatch(all, /NaN|undefined|null/);
        }
      }
    }
  }
});

test("the sentence names what happens", () => {
  assert.match(figure.sentence(START), /4 devices normalises 2 of 8.*m = 32/);
  assert.match(figure.sentence({ ...START, side: 1 }), /m = 2.*−1 and \+1/);
  assert.match(figure.sentence({ ...START, devices: 8, side: 1 }), /output is β/);
  assert.match(figure.sentence({ ...START, batch_size: 2 }), /more devices/);
  assert.match(figure.sentence({ ...START, devices: 1 }), /All 8 .*m = 128/);
});

test("the table holds the errors of both nets", () => {
  assert.match(figure.table(START), /17\.0 %, 2\.5 %/);
  assert.match(figure.table({ ...START, devices: 8 }), /not run/);
});
