"""The Python half of the interactive figure DepthGradient."""

import json
import re

import numpy as np
import pytest
import torch

from normlab.explore import depth
from normlab.explore.depth import DepthGradient, law, pairs
from normlab.lab import depth as lab
from tools.notebooks import ROOT

torch.set_num_threads(1)


def rate(*args):
    """The law's factor for one layer, far from both ends."""
    values = law(*args, False, 40)
    return 10 ** ((values[10] - values[30]) / 20)


def test_laws_are_those_of_the_page():
    # The same numbers as in tests/js/depth.test.mjs.
    text = (ROOT / "tests/js/depth.test.mjs").read_text()
    rows = json.loads("[" + re.search(
        r"LAWS = \[(.*?),\s*\];", text, re.S).group(1) + "]")
    assert len(rows) == 7
    for norm, act, n, gain, skip, deep, first, middle in rows:
        values = law(norm, act, n, gain, skip, deep)
        assert values[0] == pytest.approx(first, abs=2e-6)
        assert values[deep // 2] == pytest.approx(middle, abs=2e-6)
    for name in ("DEPTHS", "BATCHES", "GAINS"):
        listed = re.search(rf"{name} = \[(.*?)\]", (
            ROOT / "normlab/explore/depth.js").read_text()).group(1)
        values = [2 ** 0.5 if v.strip() == "Math.SQRT2" else float(v)
                  for v in listed.split(",")]
        assert values == list(getattr(depth, name))


def test_factors_are_the_formulas():
    assert rate("BN", "identity", 8, 1.0) == pytest.approx((6 / 5) ** 0.5)
    assert rate("BN", "relu", 4096, 1.0) == pytest.approx(
        (np.pi / (np.pi - 1)) ** 0.5, abs=1e-3)
    assert rate("BN", "tanh", 4096, 1.0) == pytest.approx(
        1.0854, abs=1e-3)
    assert rate("BN", "relu", 8, 0.3) == pytest.approx(
        rate("BN", "relu", 8, 3.0))
    for act, gain, want in (("relu", 1.0, 0.5 ** 0.5), ("relu", 2.0, 2 ** 0.5),
                            ("identity", 0.5, 0.5)):
        assert rate("none", act, 8, gain) == pytest.approx(want)
    assert rate("LN", "relu", 8, 0.3) == pytest.approx(1)
    with pytest.raises(ValueError, match="at least 4, got 3"):
        law("BN", "relu", 3, 1.0, False, 10)


@pytest.mark.parametrize("act", ["relu", "tanh", "identity"])
@pytest.mark.parametrize("n", [4, 8, 64])
def test_pairs_are_those_of_normalised_batches(act, n):
    x = np.random.default_rng(n).normal(size=(300_000, n))
    x = ((x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True))[:, :2]
    value = {"relu": np.maximum(x, 0), "tanh": np.tanh(x), "identity": x}[act]
    slope = {"relu": x > 0, "tanh": 1 - np.tanh(x) ** 2,
             "identity": np.ones_like(x)}[act] * 1.0
    both = slope * x
    want = [(f * g).mean() for part in (value, slope, both)
            for f, g in ((part[:, 0], part[:, 0]), (part[:, 0], part[:, 1]))]
    np.testing.assert_allclose(pairs(act, n), want, atol=0.006)


@pytest.mark.parametrize("norm, act, n, gain, skip", [
    ("BN", "relu", 8, 1.0, False), ("BN", "tanh", 16, 1.0, False),
    ("BN", "relu", 8, 1.4, True), ("LN", "tanh", 8, 1.0, False),
    ("LN", "relu", 8, 1.4, True), ("none", "tanh", 8, 1.4, False),
    ("none", "relu", 8, 1.0, True)])
def test_laws_hold_in_networks(norm, act, n, gain, skip):
    arm = lab.Arm(norm, skip)
    p = lab.start(arm, (300, 300, 1), 6, range(8), gain, "float64")
    x = torch.randn(8, n, 300, dtype=torch.float64,
                    generator=torch.Generator().manual_seed(0))
    norms, = lab.gradient_norms(p, x, arm, lab.activation(act), [6], 0)
    got = np.log10(norms).mean(axis=1)
    np.testing.assert_allclose(got, law(norm, act, n, gain, skip, 6),
                               atol=0.05)


def test_measured_reads_the_record(monkeypatch):
    config = {"depths": [10, 20]}
    points = [{"norm": "BN", "act": "relu", "batch_size": 8, "gain": 1.0,
               "skip": False, "mean": [[0.123] * 10, [0.456] * 10]},
              {"norm": "none", "act": "tanh", "batch_size": 32,
               "gain": 2 ** 0.5, "skip": True, "mean": [[1] * 10] * 2}]
    monkeypatch.setattr("normlab.lab.records.read_record", lambda name: {
        "depth-gradients": {"configuration": config, "points": points}}[name])
    assert depth.measured() == {
        "BN relu 8 - plain": {"10": [0.12] * 10, "20": [0.46] * 10},
        "none tanh - 1.414 skip": {"10": [1] * 10, "20": [1] * 10}}


def test_shows_itself_by_its_name_alone():
    figure = DepthGradient(runs={})
    assert repr(figure) == "DepthGradient()"
    assert (figure.depth, figure.batch_size, figure.norm) == (100, 32, "BN")
    assert figure.gain in depth.GAINS
