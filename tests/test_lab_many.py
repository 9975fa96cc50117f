"""Several networks trained in one array against each trained alone."""

import numpy as np
import pytest

from normlab.lab.many import train_many
from normlab.lab.train import accuracy, train
from normlab.numpy_layers import (
    BatchNorm,
    Conv2d,
    Linear,
    ReLU,
    Sequential,
    Sigmoid,
    Tanh,
)

rng = np.random.default_rng(0)
X = rng.standard_normal((90, 6)).astype(np.float64)
Y = (X @ rng.standard_normal((6, 3))).argmax(axis=1)
LRS, SEEDS = [0.3, 0.01, 1.0], [4, 5, 6]


def build(seed, norm=True, act=ReLU, width=7, **options):
    draw, f64 = np.random.default_rng(seed), np.float64
    layers = []
    for n_in in (6, width):
        layers.append(Linear(n_in, width, draw, not norm, dtype=f64))
        if norm:
            layers.append(BatchNorm(width, dtype=f64, **options))
        layers.append(act())
    return Sequential(*layers, Linear(width, 3, draw, dtype=f64))


@pytest.mark.parametrize("norm, act, options", [
    (False, ReLU, {}), (True, ReLU, {}), (True, Sigmoid, {"momentum": None}),
    (True, Tanh, {"affine": False, "eps": 0.1}),
    (True, Sigmoid, {"track_running_stats": False})])
def test_together_as_alone(norm, act, options):
    def nets():
        return [build(s, norm, act, **options) for s in SEEDS]

    def look(net):
        return accuracy(net, X, Y)

    alone, group = nets(), nets()
    want = [train(net, X, Y, 25, 10, lr, seed, every=[0, 20, 25],
                  evaluate=look)
            for net, lr, seed in zip(alone, LRS, SEEDS)]
    got = train_many(group, X, Y, 25, 10, LRS, SEEDS, every=[0, 20, 25],
                     evaluate=look)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a.losses, b.losses, rtol=1e-9)
        assert a.steps == b.steps and a.values == b.values
    for a, b in zip(group, alone, strict=True):
        state = b.state_dict()
        for name, value in a.state_dict().items():
            np.testing.assert_allclose(value, state[name], rtol=1e-8,
                                       atol=1e-11)


def test_afterwards_each_network_is_its_own():
    nets = [build(s) for s in SEEDS]
    train_many(nets, X, Y, 3, 10, LRS, SEEDS)
    others = [net.state_dict() for net in nets[1:]]
    train(nets[0], X, Y, 3, 10, 0.5, 0)
    assert nets[0].state_dict()["1.num_batches_tracked"] == 6
    for net, before in zip(nets[1:], others):
        for name, value in net.state_dict().items():
            assert np.array_equal(value, before[name])
    nets[0].load_state_dict(nets[1].state_dict())


def test_a_network_that_diverges_spoils_no_other():
    nets = [build(s, norm=False) for s in SEEDS]
    alone = build(SEEDS[0], norm=False)
    got = train_many(nets, X, Y, 40, 10, [0.1, 1e99, 0.1], SEEDS)
    want = train(alone, X, Y, 40, 10, 0.1, SEEDS[0])
    np.testing.assert_allclose(got[0].losses, want.losses, rtol=1e-9)
    assert not got[1].losses[-1] < 1e6
    assert np.isfinite(got[2].losses).all()


@pytest.mark.parametrize("change, why", [
    (lambda: {"nets": []}, "nets, lrs and seeds must be of one length"),
    (lambda: {"lrs": [0.1]}, "one length, at least 1; got 3, 1 and 3"),
    (lambda: {"nets": [build(0), build(1), build(2, width=8)]}, "alike"),
    (lambda: {"nets": [build(0), build(1), build(2, eps=1e-3)]}, "alike"),
    (lambda: {"nets": [build(0), build(1), build(2, norm=False)]},
     "same layers in the same order"),
    (lambda: {"nets": [Sequential(Conv2d(1, 1, 1, rng))] * 3}, "Conv2d"),
])
def test_bad_arguments_are_named(change, why):
    arguments = {"nets": [build(s) for s in SEEDS], "lrs": LRS} | change()
    with pytest.raises((TypeError, ValueError), match=why):
        train_many(x=X, y=Y, steps=1, batch_size=10, seeds=SEEDS,
                   **arguments)
