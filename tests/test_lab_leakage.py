"""The samplers, measures and experiment of the chapter on leakage."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from normlab.lab import experiments, leakage
from normlab.zoo import BatchRenorm1d, FullNorm1d

torch.set_num_threads(1)
Y = np.repeat(np.arange(5), [8, 9, 10, 11, 12])


def some(draw, count):
    return [next(draw) for _ in range(count)]


@pytest.mark.parametrize("classes", [1, 2, 4])
def test_a_batch_has_the_classes_asked_for_together_and_once(classes):
    seen = set()
    for rows in some(leakage.class_batches(Y, 8, classes, 0), 40):
        assert len(set(rows)) == 8
        groups = Y[rows].reshape(classes, -1)
        assert (groups == groups[:, :1]).all()
        assert len(set(groups[:, 0])) == classes
        seen |= set(groups[:, 0])
    assert seen == set(range(5))


def test_a_balanced_batch_has_all_classes_equally():
    for rows in some(leakage.balanced_batches(Y, 10, 3), 20):
        assert (np.bincount(Y[rows], minlength=5) == 2).all()
        assert len(set(rows)) == 10


def test_shuffled_batches_see_each_sample_once_an_epoch():
    rows = np.concatenate(some(leakage.shuffled_batches(Y, 10, 1), 5))
    assert sorted(rows) == list(range(50))
    counts = [np.bincount(Y[r], minlength=5) for r in
              some(leakage.shuffled_batches(Y, 10, 1), 5)]
    assert np.std(counts) > 0.5


@pytest.mark.parametrize("sampler", [
    lambda seed: leakage.class_batches(Y, 8, 2, seed),
    lambda seed: leakage.shuffled_batches(Y, 8, seed)])
def test_the_seed_decides(sampler):
    a, b, c = (np.concatenate(some(sampler(s), 5)) for s in (0, 0, 1))
    assert (a == b).all() and (a != c).any()


@pytest.mark.parametrize("arguments, match", [
    ((Y, 8, 6, 0), "classes must be at most the 5 classes in y, got 6"),
    ((Y, 8, 3, 0), "multiple of classes, got size 8 and classes 3"),
    ((Y, 9, 1, 0), "needs 9 samples of a class, but one class has only 8"),
    ((Y, 0, 1, 0), "size must be at least 1, got 0"),
    ((Y, 8, 0, 0), "classes must be at least 1, got 0"),
])
def test_bad_batches_are_named(arguments, match):
    with pytest.raises(ValueError, match=match):
        leakage.class_batches(*arguments)


def test_networks_share_their_weights_and_differ_in_their_norm():
    nets = [leakage.dense_net([6, 8, 8, 5], 0, **norm) for norm in (
        {}, {"hidden": nn.BatchNorm1d}, {"logits": nn.LayerNorm})]
    kinds = [[type(m).__name__ for m in net] for net in nets]
    assert kinds == [
        ["Linear", "ReLU", "Linear", "ReLU", "Linear"],
        ["Linear", "BatchNorm1d", "ReLU"] * 2 + ["Linear"],
        ["Linear", "ReLU", "Linear", "ReLU", "Linear", "LayerNorm"]]
    weights = [[m.weight for m in net if isinstance(m, nn.Linear)]
               for net in nets]
    for others in weights[1:]:
        for a, b in zip(weights[0], others, strict=True):
            assert torch.equal(a, b)
    other = leakage.dense_net([6, 8, 8, 5], 1)
    assert not torch.equal(other[0].weight, weights[0][0])


class Missing(nn.Module):
    """Says for every image which of five classes its batch lacks; an
    image is its class, one-hot."""

    def forward(self, x):
        return (1 - x.sum(dim=0)).expand(len(x), 5)


def test_measures_on_a_network_that_reads_the_batch():
    x, y = torch.eye(5)[torch.from_numpy(Y)], torch.from_numpy(Y)
    draw = leakage.balanced_batches(Y, 5, 0)
    assert leakage.blank_accuracy(Missing(), x, y, draw, 20,
                                  torch.zeros(5)) == 1
    for k, right in ((3, 1), (2, 0)):  # the blank is what the net is shown
        assert leakage.blank_accuracy(nn.Identity(), x, y, itertools.repeat(
            np.flatnonzero(Y == 3)[:4]), 8, torch.eye(5)[k]) == right
    assert leakage.batch_accuracy(nn.Identity(), x, y, draw, 20) == 1
    assert leakage.batch_accuracy(Missing(), x, y, draw, 20) == 0.2


def test_measures_leave_the_network_as_it_was():
    net = leakage.dense_net([5, 4, 5], 0, hidden=nn.BatchNorm1d).eval()
    x, y = torch.randn(50, 5), torch.from_numpy(Y)
    draw = leakage.balanced_batches(Y, 5, 0)
    leakage.batch_accuracy(net, x, y, draw, 2)
    leakage.blank_accuracy(net, x, y, draw, 2, x[0])
    leakage.recomputed(net, x)
    assert net[1].num_batches_tracked == 0 and not net[1].training
    assert net[1].running_mean.abs().max() == 0


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, FullNorm1d, BatchRenorm1d])
def test_recomputed_statistics_are_those_of_all_data(norm):
    net = leakage.dense_net([5, 4, 4, 3], 0, hidden=norm)
    x = torch.randn(50, 5) * 2 + 1
    with torch.no_grad():
        want = leakage.dense_net([5, 4, 4, 3], 0, hidden=nn.BatchNorm1d)(x)
        got = leakage.recomputed(net, x)(x)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


SMALL = {"steps": 5, "test_batches": 3, "seeds": [0]}


def test_every_point_runs_and_repeats_itself():
    small = SMALL | {"methods": ["FN", "FN, own", "FN, constant", "BRN"],
                     "classes": [1, 0], "cheats": [["BN", "logits"]]}
    one, two = (experiments.run("leakage", **small) for _ in range(2))
    assert len(one) == 2 + 8
    for a, b in zip(one, two, strict=True):
        a.pop("seconds"), b.pop("seconds")
        assert a == b
        for name in ("balanced", "shuffled", "blank", "running",
                     "recomputed"):
            assert 0 <= a[name] <= 1
        assert a["loss"] > 0
    losses = {r["method"]: r["loss"] for r in one if r["classes"] == 1}
    assert len(set(losses.values())) == 4  # four different methods


def test_the_points_are_all_different():
    for scale in experiments.SCALES:
        points = leakage.points(experiments.configuration("leakage", scale))
        assert len({tuple(p.items()) for p in points}) == len(points)


def test_training_learns():
    x, y, x_test, y_test = leakage.samples(
        experiments.configuration("leakage", "live"))
    net = leakage.dense_net([64, 16, 10], 0)
    losses = leakage.fit(net, x, y, leakage.shuffled_batches(y, 32, 0), 60,
                         0.3)
    assert losses[-10:].mean() < losses[:10].mean() / 2
    draw = leakage.shuffled_batches(y_test, 10, 0)
    assert leakage.batch_accuracy(net, x_test, y_test, draw, 30) > 0.6
