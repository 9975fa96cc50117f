// Run with: node --test tests/js
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { test } from "node:test";

// As a data URL, since the file's name says nothing of its module type.
const file = new URL("../../normlab/explore/depth.js", import.meta.url);
const text = await readFile(file, "utf8");
const figure = await import(
  `data:text/javascript;base64,${Buffer.from(text).toString("base64")}`);

// Printed by normlab.explore.depth: law(...)[0] and in the middle.
const LAWS = [
  ["BN", "relu", 32, 1, false, 100, 8.885706, 4.554371],
  ["BN", "tanh", 4, 1, false, 20, 3.125122, 1.594041],
  ["BN", "identity", 8, 2, false, 10, 0.696936, 0.168957],
  ["BN", "relu", 16, 1.4142135623730951, true, 50, 1.176179, 0.220758],
  ["LN", "tanh", 32, 1, false, 20, 0.508653, 0.355371],
  ["none", "tanh", 32, 1.4142135623730951, false, 50, 1.011794, 0.544626],
  ["LN", "relu", 64, 2, true, 20, 0.806392, 0.145282],
];
const RUNS = { "BN relu 32 - plain": { 10: [9, 8, 7, 6, 5, 4, 3, 2, 1, 0.5] },
  "none relu - 2.000 plain": { 20: [3, 3, 3, 2, 2, 2, 1, 1, 1, 0] } };
const START = { norm: "BN", act: "relu", batch_size: 32, gain: Math.SQRT2,
  skip: false, depth: 100, runs: RUNS };
const near = (got, want, tolerance) =>
  assert.ok(Math.abs(got - want) <= tolerance, `${got} is not ${want}`);

test("the laws are those of the Python module", () => {
  for (const [norm, act, batch_size, gain, skip, depth, first, middle] of
    LAWS) {
    const values = figure.law({ norm, act, batch_size, gain, skip, depth });
    assert.equal(values.length, depth + 1);
    assert.equal(values[depth], 0);
    near(values[0], first, 2e-6);
    near(values[depth / 2], middle, 2e-6);
  }
});

test("the factor of a layer is the one of the formulas", () => {
  const rate = (change) => figure.perLayer(figure.law({ ...START, ...change }));
  near(rate({ act: "identity", batch_size: 8 }), Math.sqrt(6 / 5), 1e-9);
  near(rate({ norm: "none", gain: 1 }), Math.SQRT1_2, 1e-9);
  near(rate({ norm: "none" }), 1, 1e-9);
  near(rate({ norm: "LN" }), 1, 1e-9);
  near(rate({ batch_size: 4096 }), Math.sqrt(Math.PI / (Math.PI - 1)), 1e-3);
  near(rate({ gain: 0.5 }), rate({ gain: 2 }), 1e-9);
});

test("dots are those of what was run, and none where nothing was", () => {
  const at = { ...START, depth: 10 };
  assert.deepEqual(figure.dots({ ...at, gain: 1 }), RUNS[
    "BN relu 32 - plain"][10]);
  // Another gain changes the first layer's, as the law says.
  const other = { ...at, gain: 0.5 };
  assert.equal(figure.dots(other)[0], 9 - Math.log10(2));
  assert.equal(figure.dots(other)[1], 8);
  near(figure.law(other)[0] - figure.law({ ...at, gain: 1 })[0],
    -Math.log10(2), 1e-9);
  near(figure.law(other)[1], figure.law({ ...at, gain: 1 })[1], 1e-9);
  assert.equal(figure.dots({ ...at, depth: 20 }), null);
  assert.equal(figure.dots({ ...at, skip: true }), null);
  assert.equal(figure.dots({ ...at, batch_size: 8 }), null);
  const bare = { ...START, norm: "none", gain: 2, depth: 20 };
  assert.equal(figure.dots({ ...bare, batch_size: 8 })[0], 3);
  assert.equal(figure.dots({ ...bare, gain: 1 }), null);
  assert.equal(figure.drawing(at).match(/<circle/g).length, 10);
});

test("powers of ten are readable", () => {
  const plain = (log) => figure.power(log).replaceAll("\u00a0", " ");
  assert.equal(plain(8.8857), "7.7 · 10⁸");
  assert.equal(plain(-45.35), "4.5 · 10⁻⁴⁶");
  assert.equal(plain(2.99), "9.8 · 10²");
  assert.equal(plain(2.999), "1.0 · 10³");
  assert.equal(figure.power(0.3), "2.0");
});

test("every state draws and says something, and never NaN", () => {
  for (const depth of figure.DEPTHS) {
    for (const batch_size of figure.BATCHES) {
      for (const gain of figure.GAINS) {
        for (const norm of ["BN", "LN", "none"]) {
          for (const act of ["relu", "identity"]) {
            for (const skip of [true, false]) {
              const state = { depth, batch_size, gain, norm, act, skip,
                runs: RUNS };
              const all = figure.drawing(state) + figure.table(state) +
                figure.sentence(state);
              assert.doesNotMatch(all, /NaN|undefined|null|Infinity/);
            }
          }
        }
      }
    }
  }
  const tanh = { ...START, act: "tanh", batch_size: 4 };
  assert.doesNotMatch(figure.drawing(tanh), /NaN|undefined/);
});

test("the sentence names what happens", () => {
  assert.match(figure.sentence(START), /100 layers.*1\.1\s·\s10⁹.*1\.234 a layer/);
  assert.match(figure.sentence({ ...START, ...figure.ACTS.he() }),
    /no normalisation.*keeps its size.*batch size does not enter/);
  const residual = { ...START, ...figure.ACTS.residual() };
  assert.match(figure.sentence(residual), /residual blocks.*grows/);
  assert.ok(figure.law(residual)[0] < 2);
  assert.match(figure.sentence({ ...START, norm: "none", gain: 0.5 }),
    /shrinks.*⁻/);
});
