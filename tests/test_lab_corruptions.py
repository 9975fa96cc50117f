"""Corrupted images."""

import numpy as np
import pytest

from normlab.lab.corruptions import DAMAGE, HELD_OUT, LEVELS, corrupt
from normlab.lab.data import digits

NAMES = list(LEVELS | HELD_OUT)
RANDOM = {"noise", "impulse", "occlude", "rotate", "speckle"}
X = digits()[2][:50].reshape(-1, 8, 8)


def test_every_corruption_has_five_levels_and_a_function():
    assert set(NAMES) == set(DAMAGE) and not set(LEVELS) & set(HELD_OUT)
    assert all(len(v) == 5 for v in (LEVELS | HELD_OUT).values())


@pytest.mark.parametrize("name", NAMES)
def test_images_stay_images(name):
    before = X.copy()
    for severity in range(1, 6):
        y = corrupt(X, name, severity)
        assert y.shape == X.shape and y.dtype == X.dtype
        assert y.min() >= 0 and y.max() <= 1 and not np.array_equal(y, X)
    np.testing.assert_array_equal(X, before)
    one = corrupt(X[:, None], name, 5)
    np.testing.assert_array_equal(one, y[:, None])


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides_what_is_random(name):
    a, b, c = (corrupt(X, name, 3, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert np.array_equal(a, c) == (name not in RANDOM)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "pixelate"])
def test_a_higher_severity_does_more(name):
    wide = np.zeros((20, 28, 28), np.float32)
    wide[:, 6:22, 10:18] = X.repeat(2, axis=1)[:20]
    moved = [np.abs(corrupt(wide, name, s) - wide).mean()
             for s in range(1, 6)]
    assert moved == sorted(moved) and moved[0] < moved[-1]


def test_each_does_what_its_name_says():
    x = np.linspace(0, 1, 64).reshape(1, 8, 8)
    np.testing.assert_allclose(corrupt(x, "dim", 2), x / 2)
    np.testing.assert_allclose(corrupt(x, "contrast", 2), 0.25 + x / 2)
    np.testing.assert_allclose(corrupt(x, "brightness", 5),
                               np.minimum(x + 0.5, 1))
    np.testing.assert_allclose(corrupt(x, "invert", 5), 1 - x)
    np.testing.assert_allclose(corrupt(x, "gamma", 2), x ** 2)
    np.testing.assert_allclose(corrupt(x, "shade", 5)[:, :, -1], 0)
    np.testing.assert_allclose(corrupt(x, "shade", 5)[:, :, 0], x[:, :, 0])
    blocks = x.reshape(1, 2, 4, 2, 4).mean(axis=(2, 4))
    np.testing.assert_allclose(corrupt(x, "pixelate", 5),
                               blocks.repeat(4, 1).repeat(4, 2))
    np.testing.assert_allclose(corrupt(np.full((1, 8, 8), 0.3), "blur", 5),
                               0.3)
    hidden = corrupt(np.zeros((200, 8, 8)), "occlude", 4)
    assert set(np.unique(hidden)) == {0, 0.5}
    assert (hidden == 0.5).sum(axis=(1, 2)).tolist() == [16] * 200
    grey = np.full((500, 8, 8), 0.5)
    assert corrupt(grey, "noise", 1).std() == pytest.approx(0.1, rel=0.05)
    hit = corrupt(grey, "impulse", 4) != 0.5
    assert hit.mean() == pytest.approx(0.2, rel=0.1)


def test_images_turn_to_both_sides():
    bar = np.zeros((100, 9, 9))
    bar[:, :, 4] = 1
    top_left = corrupt(bar, "rotate", 4)[:, 1, :4].sum(axis=1) > 0.1
    assert 20 < top_left.sum() < 80


def test_bad_arguments_are_named():
    for x, error, match in (
            (X.tolist(), TypeError, "x must be a NumPy array"),
            (X.astype(int), TypeError, "x must hold floats"),
            (X[0], ValueError, "shape"),
            (X[:, None].repeat(3, 1), ValueError, "shape"),
            (X * 16, ValueError, "from 0 to 1"),
            (X * np.nan, ValueError, "from 0 to 1")):
        with pytest.raises(error, match=match):
            corrupt(x, "dim", 1)
    with pytest.raises(ValueError, match="name must be one of dim"):
        corrupt(X, "frost", 1)
    for severity in (0, 6, 1.5, "3"):
        with pytest.raises(ValueError, match="severity must be from 1 to 5"):
            corrupt(X, "dim", severity)
