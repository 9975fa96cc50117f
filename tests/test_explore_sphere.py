"""The Python half of the interactive figure WeightSphere."""

import re

import numpy as np
import pytest

from normlab.explore.sphere import WeightSphere, equilibrium, turns, walk
from tools.notebooks import ROOT


def test_the_walk_is_that_of_the_page():
    # The same numbers as in tests/js/sphere.test.mjs.
    text = (ROOT / "tests/js/sphere.test.mjs").read_text(encoding="utf-8")
    end = re.search(r"end: \[(.*?)\]", text).group(1)
    turn = re.search(r"turn: ([\d.]+)", text).group(1)
    balance = re.search(r"balance: \[(.*?)\]", text).group(1)
    weights = walk(0.5, 0.02, 2, 2, 0.9, 2, steps=500)
    assert weights.shape == (501, 2)
    assert weights[-1] == pytest.approx([float(v) for v in end.split(",")])
    assert turns(weights)[-1] == pytest.approx(float(turn))
    assert equilibrium(0.5, 0.02, 2, 0.9) == pytest.approx(
        [float(v) for v in balance.split(",")])


@pytest.mark.parametrize("lr, decay, momentum", [
    (0.1, 0.01, 0.0), (0.5, 0.01, 0.0), (0.1, 0.05, 0.5), (0.02, 0.02, 0.9)])
def test_balance(lr, decay, momentum):
    norm, angle = equilibrium(lr, decay, 1.0, momentum)
    weights = walk(lr, decay, momentum=momentum, steps=12_000)[6000:]
    assert np.sqrt(np.mean(turns(weights)**2)) == pytest.approx(angle, rel=.05)
    assert np.linalg.norm(weights, axis=1).mean() == pytest.approx(
        norm, rel=0.05)


def test_without_decay_the_norm_never_shrinks():
    norms = np.linalg.norm(walk(decay=0.0, steps=200), axis=1)
    assert np.diff(norms).min() >= 0
    assert equilibrium(0.1, 0.0) == (float("inf"), 0.0)


def test_equal_products_are_one_walk_at_another_size():
    # lr times 4, decay over 4, first norm times 2: the same directions.
    one, two = walk(0.1, 0.02, 1.5), walk(0.4, 0.005, 3.0)
    np.testing.assert_allclose(two, 2 * one, rtol=1e-9, atol=1e-9)


def test_shows_itself_by_its_name_alone():
    figure = WeightSphere()
    assert repr(figure) == "WeightSphere()"
    assert (figure.lr, figure.decay, figure.momentum) == (0.1, 0.01, "0")
    with pytest.raises(Exception, match="momentum"):
        WeightSphere(momentum="0.7")
