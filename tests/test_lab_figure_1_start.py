"""The experiment on the start of Figure 1's network."""

import numpy as np
import pytest

from normlab.lab import experiments, figure_1, figure_1_start
from normlab.lab.figure_1_start import best_rate, drift
from normlab.lab.train import accuracy, train

SMALL = {"steps": 4, "seeds": [0, 1], "learning_rates": [0.1, 1.0],
         "stds": [0.1, "scaled"], "checkpoints": [2, 3, 4],
         "drift_from": 3, "images": 50}


@pytest.fixture(scope="module")
def runs():
    return experiments.run("figure-1-start", **SMALL)


def test_a_point_has_its_curves_and_its_drift(runs):
    assert len(runs) == 16  # methods, spreads, rates, seeds
    for r in runs:
        assert len(r["choose"]) == len(r["accuracy"]) == 3
        assert r["growth"] >= 1
        assert r["wander"] >= 0 <= r["wander_widths"]


def test_points_side_by_side_give_what_they_give_alone(runs):
    config = dict(figure_1_start.EXPERIMENT.live) | SMALL
    points = [p for p in figure_1_start.starts(config)
              if p["method"] == "BN"]
    together = figure_1_start.from_starts(config, points, lambda step: None)
    alone = [r for r in runs if r["method"] == "BN"]
    for a, b in zip(together, alone, strict=True):
        assert a["accuracy"] == pytest.approx(b["accuracy"], abs=0.02)
        assert a["wander"] == pytest.approx(b["wander"], rel=1e-2)


def test_it_is_the_network_of_figure_1_trained_as_there(runs):
    config = dict(figure_1_start.EXPERIMENT.live) | SMALL
    x, y, x_test, y_test = figure_1_start.load("digits")
    net = figure_1.sigmoid_network(
        64, config["hidden"], 10, False, np.random.default_rng(1), 0.1)
    train(net, x, y, 4, 60, 1.0, 1)
    found, = (r for r in runs if (r["method"], r["std"], r["lr"],
                                  r["seed"]) == ("none", 0.1, 1.0, 1))
    halves = found["choose"][-1], found["accuracy"][-1]
    assert halves[0] != halves[1]
    for i in (0, 1):
        assert halves[i] == pytest.approx(
            accuracy(net, x_test[i::2], y_test[i::2]), abs=0.003)


def test_drift_of_units_that_shift_and_widen():
    # Two units at three checkpoints: low, middle, high. The first moves
    # from 0 to 6 at widths of 1, 1 and 4; the second stays and widens from
    # 1 to 4.
    percentiles = np.array([[[-1, 0, 1], [-1, 0, 1]],
                            [[3, 4, 5], [-2, 0, 2]],
                            [[2, 6, 10], [-4, 0, 4]]])
    found = drift(percentiles)
    assert found["wander"] == pytest.approx(3)  # mean of 6 and 0
    assert found["wander_widths"] == pytest.approx(1.5)  # of 6 / 2 and 0
    assert found["growth"] == pytest.approx(4)


def test_drift_knows_no_unit_of_measure_but_in_the_wander():
    percentiles = np.sort(np.random.default_rng(0).normal(
        size=(6, 5, 3)), axis=2)
    one, ten = drift(percentiles), drift(10 * percentiles)
    assert ten["wander"] == pytest.approx(10 * one["wander"])
    for key in ("wander_widths", "growth"):
        assert ten[key] == pytest.approx(one[key])


def test_the_rate_is_chosen_on_other_images_than_it_is_told_on():
    config = {"checkpoints": [10, 20]}
    points = [
        {"method": "none", "std": 0.1, "lr": lr, "seed": seed,
         "choose": choose, "accuracy": accuracy}
        for lr, choose, accuracy in ((0.1, [0.2, 0.9], [0.1, 0.3]),
                                     (1.0, [0.5, 0.6], [0.4, 0.8]))
        for seed in (0, 1)]
    lr, found, runs = best_rate(points, config, 20, "none", 0.1)
    assert lr == 0.1 and found.tolist() == [0.3, 0.3]
    assert [r["seed"] for r in runs] == [0, 1]
    assert best_rate(points, config, 10, "none", 0.1)[0] == 1.0
    with pytest.raises(ValueError, match="no point has method 'BN' and std"):
        best_rate(points, config, 10, "BN", 0.1)
