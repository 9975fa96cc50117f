"""Training some of a network's numbers: those change, the others don't."""

import numpy as np
import pytest

from normlab.lab import experiments, gamma_beta
from normlab.lab.data import digits
from normlab.lab.gamma_beta import ARMS, random_network, train_some

SIZES = (64, 8, 3, 10)  # features, width, depth, classes
TRAINED = {  # of three hidden layers of 8 units and 10 classes
    "gamma and beta": 48, "gamma": 24, "beta": 24, "random weights": 48,
    "biases": 24, "head": 90, "BN and head": 138, "weights": 730,
    "all": 778, "all, no BN": 754,
}


def trained(arm, steps=3, seeds=(0, 1)):
    """Networks before and after some steps, and how many numbers move."""
    x, y, *_ = digits()
    before, after = ([random_network(arm, *SIZES, s) for s in seeds]
                     for _ in range(2))
    number = train_some(after, arm, x, y, steps, 16, [0.1] * len(seeds),
                        list(seeds))
    return before, after, number


@pytest.mark.parametrize("arm", ARMS)
def test_only_what_is_named_changes(arm):
    before, after, number = trained(arm)
    assert number == TRAINED[arm]
    for old, new in zip(before, after, strict=True):
        moved = {name for name, a in old.arrays().items()
                 if not np.array_equal(a, new.arrays()[name])}
        kinds = {(type(old.layers[int(name.split(".")[0])]).__name__,
                  name.split(".")[1]) for name in moved
                 if not name.endswith(("mean", "var", "tracked"))}
        norm = {("BatchNorm", "weight"), ("BatchNorm", "bias")}
        line = {("Linear", "weight"), ("Linear", "bias")}
        assert kinds == {
            "gamma and beta": norm, "gamma": {("BatchNorm", "weight")},
            "beta": {("BatchNorm", "bias")},
            "random weights": {("Linear", "weight")},
            "biases": {("Linear", "bias")}, "head": line, "weights": line,
            "BN and head": norm | line, "all": norm | line,
            "all, no BN": line}[arm]


def test_two_random_weights_of_every_unit_change():
    before, after, _ = trained("random weights", steps=10)
    for old, new in zip(before, after, strict=True):
        for a, b in zip(old.layers[:-1], new.layers[:-1], strict=True):
            if type(a).__name__ == "Linear":
                assert ((a.weight != b.weight).sum(axis=1) <= 2).all()
        assert np.array_equal(old[-1].weight, new[-1].weight)
    first, second = (n.layers[0].weight for n in after)
    assert not np.array_equal(first, second)


def test_the_arms_start_from_the_same_weights():
    nets = [random_network(arm, *SIZES, 4) for arm in ("all", "biases")]
    weights = [[a.weight for a in net.layers
                if type(a).__name__ == "Linear"] for net in nets]
    assert all(map(np.array_equal, *weights))


def test_side_by_side_is_one_by_one():
    config = experiments.configuration("gamma-beta", "live") | {"steps": 5}
    alike = [{"arm": "gamma and beta", "width": 8, "lr": lr, "seed": s}
             for lr, s in ((0.1, 0), (1.0, 1))]
    together = gamma_beta.several(config, alike, lambda *a: None)
    alone = [gamma_beta.some(config, p, lambda *a: None) for p in alike]
    assert together == alone
    assert together[0]["off"] == 0 and together[0]["trained"] == 64


def test_units_that_are_off_and_silent_are_counted():
    net = random_network("all", *SIZES, 0)
    x, *_ = digits()
    net.layers[1].weight[:4] = 0.001
    net.layers[1].bias[:2] = -1  # 0.001 xhat - 1 is below 0
    shares = gamma_beta.unit_shares(net.train(), x)
    assert shares["off"] == round(4 / 24, 4)
    assert shares["silent"] >= round(2 / 24, 4)
