"""The Python half of the interactive figure RunningAverage."""

import numpy as np
import pytest

from normlab.explore.running_average import (
    RunningAverage,
    draw_batches,
    normals,
    true_mean,
)


def test_draws_are_those_of_the_page():
    # The same numbers as in tests/js/running_average.test.mjs.
    means, variances = draw_batches()
    np.testing.assert_allclose(means[:3], [
        2.9289490946624204, 1.964616546020774, 2.5984009981697316])
    np.testing.assert_allclose(variances[:3], [
        2.911177306852255, 2.699865186455523, 0.9292611849462384])


def test_draws_are_standard_normal():
    z = normals(3, 100_000)
    assert abs(z.mean()) < 0.02
    assert abs(z.std() - 1) < 0.02


def test_true_mean():
    assert list(true_mean("jumps", 4)) == [2, 2, 6, 6]
    np.testing.assert_allclose(true_mean("drifts", 3), [2, 4, 6])
    with pytest.raises(ValueError, match="stays, drifts, jumps"):
        true_mean("waves", 4)


def test_shows_itself_by_its_name_alone():
    assert repr(RunningAverage()) == "RunningAverage()"
