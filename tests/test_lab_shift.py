"""The experiment on damaged images."""

import numpy as np
import pytest
import torch
from torch import nn

from normlab.adapt import prediction_time
from normlab.lab import experiments, shift
from normlab.lab.corruptions import LEVELS

torch.set_num_threads(1)
SMALL = {"steps": 20, "seeds": [0], "learning_rates": [0.3, 1.0],
         "test": 60, "choose": 20, "sizes": [2, 20], "priors": [0, 4],
         "tent_rates": [0.001], "size": 20, "passes": 2}
METHODS = ("source", "adabn", "batch", "mix", "tent")


@pytest.fixture(scope="module")
def runs():
    return {r["method"]: r for r in experiments.run("shift", **SMALL)}


def test_a_point_has_all_its_tables(runs):
    assert list(runs) == ["BN", "GN", "none"]
    r = runs["BN"]
    shape = len(LEVELS), 5
    for method in METHODS:
        assert np.shape(r[method]) == np.shape(r[f"ece_{method}"]) == shape
    assert np.shape(r["shift"]) == shape
    for row in ("clean", "ece_clean", "sorted", "sorted_clean"):
        assert len(r[row]) == len(METHODS)
    assert len(r["size_plain"]) == len(r["size_mix"]) == len(r["priors"]) == 2
    assert np.shape(r["prior_scores"]) == (2, 2)
    assert np.shape(r["long_sorted_10"]) == (2, 2)
    for method in ("GN", "none"):
        assert np.shape(runs[method]["source"]) == shape
        assert runs[method]["lr"] in SMALL["learning_rates"]


def test_it_repeats_itself(runs):
    again = experiments.run("shift", **SMALL | {"methods": ["BN"]})[0]
    assert {k: v for k, v in again.items() if k != "seconds"} == {
        k: v for k, v in runs["BN"].items() if k != "seconds"}


def test_dimming_is_undone_by_the_targets_statistics(runs):
    r = runs["BN"]
    assert set(r["adabn"][0]) == {r["clean"][1]}  # five dims: clean's AdaBN


def test_settings_are_chosen_on_held_out_images(monkeypatch):
    config = dict(shift.EXPERIMENT.live) | SMALL
    seen, held_out = [], shift.images("digits", "cpu")[0][-360:-340]

    def damaged(x, name, severity, seed):
        assert torch.equal(x, held_out)
        seen.append((len(x), name))
        return x
    monkeypatch.setattr(shift, "damaged", damaged)
    net, _ = shift.trained(config, "BN", 1.0, 0)
    priors, rate, scores = shift.choose(config, net, 0)
    assert {n for n, _ in seen} == {20}
    assert {name for _, name in seen} == {"gamma", "speckle", "veil"}
    assert set(priors) == {2, 20} and set(priors.values()) <= {0, 4}
    assert rate == 0.001 and np.shape(scores) == (2, 2)


def test_the_best_learning_rate_is_kept(monkeypatch):
    monkeypatch.setattr(shift, "trained", lambda config, method, lr, seed: (
        f"net {lr}", {0.3: 90, 1.0: 95, 3.0: 20}[lr]))
    config = {"learning_rates": [0.3, 1.0, 3.0], "steps": 5}
    ticks = []
    assert shift.best_trained(config, "BN", 0, ticks.append) == (
        "net 1.0", 1.0)
    assert ticks == [5, 10, 15]


def test_batches_cover_all_images_and_a_small_rest_joins_the_last():
    x, sizes = torch.arange(10.0)[:, None], []

    def answer(part):
        sizes.append(len(part))
        return part
    assert torch.equal(shift.logits_of(answer, x, 4), x)
    assert sizes == [4, 6]
    shift.logits_of(answer, x, 20)
    assert sizes[2:] == [10]


def test_test_images_are_shuffled_with_their_labels():
    config = dict(shift.EXPERIMENT.live) | {"test": 360}
    (xa, ya), (xb, yb) = (shift.test_images(config, s) for s in (0, 1))
    assert not torch.equal(ya, yb)
    a, b = (sorted(zip(x.flatten(1).tolist(), y.tolist(), strict=True))
            for x, y in ((xa, ya), (xb, yb)))
    assert a == b


def test_answers_are_those_of_the_methods():
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(),
                        nn.Linear(108, 4)).eval()
    x = torch.rand(40, 1, 8, 8)
    got = shift.answers(net, x, 10, 5, 0.01)
    assert tuple(got) == METHODS
    parts = [prediction_time(net, 5)(part) for part in x.split(10)]
    torch.testing.assert_close(got["mix"], torch.cat(parts))
    torch.testing.assert_close(got["source"], net(x))
