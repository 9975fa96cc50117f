"""The networks, measures and experiment of the chapter on initialisation."""

import copy

import numpy as np
import pytest

from normlab.lab import experiments, initialisation
from normlab.lab.initialisation import (
    after,
    dead_units,
    is_finite,
    logit_spread,
    relu_network,
    saturated,
    sigmoid_network,
    train_apart,
)
from normlab.lab.many import train_many
from normlab.numpy_layers import BatchNorm, Linear, ReLU, Sigmoid

RNG = np.random.default_rng(0)
X = RNG.standard_normal((96, 6)).astype(np.float32)
Y = RNG.integers(0, 3, 96)


def net(batch_norm=True, seed=0, **options):
    return relu_network(6, [8, 8], 3, batch_norm,
                        np.random.default_rng(seed), **options)


def test_the_same_generator_gives_both_networks_the_same_weights():
    one, two = net(True, std=0.5), net(False, std=0.5)
    weights = [[a.weight for a in n.layers if isinstance(a, Linear)]
               for n in (one, two)]
    assert all((a == b).all() for a, b in zip(*weights, strict=True))
    assert [type(a) for a in one.layers[:3]] == [Linear, BatchNorm, ReLU]
    assert one.layers[0].bias is None and two.layers[0].bias is not None


def test_std_and_head_scale_the_weights():
    wide = relu_network(400, [300], 200, True, np.random.default_rng(1),
                        std=0.01, head=2.0)
    assert np.isclose(wide.layers[0].weight.std(), 0.01, rtol=0.02)
    assert np.isclose(wide.layers[-1].weight.std(), 2, rtol=0.02)
    he = relu_network(400, [300], 200, True, np.random.default_rng(1))
    assert np.isclose(he.layers[0].weight.std(), 200 ** -0.5, rtol=0.02)
    assert np.isclose(he.layers[-1].weight.std(), 150 ** -0.5, rtol=0.02)


@pytest.mark.parametrize("scheme, stds", [
    ("default", (300 ** -0.5, 75 ** -0.5)), ("scaled", (0.4, 0.2)),
    ("centred", (0.4, 0.2)), ("BN", (0.4, 0.2))])
def test_the_schemes_scale_as_they_say(scheme, stds):
    n = sigmoid_network(100, [25, 25], 500, scheme,
                        np.random.default_rng(2))
    ends = n.layers[0].weight.std(), n.layers[-1].weight.std()
    assert np.allclose(ends, stds, rtol=0.1)
    norms = sum(isinstance(a, BatchNorm) for a in n.layers)
    assert norms == (2 if scheme == "BN" else 0)


def test_centred_biases_cancel_the_sigmoids_mean():
    n = sigmoid_network(6, [8, 8], 3, "centred", np.random.default_rng(3))
    linears = [a for a in n.layers if isinstance(a, Linear)]
    assert (linears[0].bias == 0).all()
    for layer in linears[1:]:
        assert np.allclose(layer(np.full((1, 8), 0.5, np.float32)), 0,
                           atol=1e-6)


def test_an_unknown_scheme_is_refused():
    with pytest.raises(ValueError, match="scheme must be one of default, "
                       "scaled, centred, BN; got 'he'"):
        sigmoid_network(6, [8], 3, "he", np.random.default_rng(0))


@pytest.mark.parametrize("batch_norm", [True, False])
def test_with_equal_rates_it_is_train_many(batch_norm):
    rates, seeds = [0.1, 0.3], [4, 5]
    one = [net(batch_norm, s) for s in seeds]
    two = [net(batch_norm, s) for s in seeds]
    losses = train_apart(one, X, Y, 20, 16, rates, rates, seeds)
    histories = train_many(two, X, Y, 20, 16, rates, seeds)
    assert np.allclose(losses, [h.losses for h in histories])
    for a, b in zip(one, two, strict=True):
        for key, value in a.arrays().items():
            assert np.allclose(value, b.arrays()[key]), key


def test_the_hidden_rate_moves_the_hidden_weights_only():
    n = net()
    old = copy.deepcopy(n.arrays())
    train_apart([n], X, Y, 1, 16, [0.1], [0.0], [0])
    for key, value in n.arrays().items():
        hidden = key in ("0.weight", "3.weight")
        moved = bool((value != old[key]).any())
        assert moved != hidden or "num_batches" in key, key


def test_weights_times_a_at_a_rate_times_a_squared_are_the_same_function():
    nets = [net(std=std, head=0.3, eps=1e-14, dtype=np.float64)
            for std in (0.3, 0.03, 3.0)]
    x = X.astype(np.float64)
    train_apart(nets, x, Y, 30, 16, [0.2] * 3, [0.2, 0.002, 20.0], [1] * 3)
    want = nets[0].train()(x)
    for n in nets[1:]:
        assert np.abs(n.train()(x) - want).max() < 1e-8


def test_dead_units_by_hand():
    n = net(False)
    n.layers[0].bias[:3] = -100
    assert dead_units(n, X)[0] == pytest.approx(3 / 8)
    assert dead_units(n, X, 16)[0] == pytest.approx(3 / 8)
    n = net(True)
    n.layers[1].bias[:2] = -100
    assert dead_units(n, X, 16)[0] == pytest.approx(2 / 8)


def test_a_unit_alive_on_one_batch_of_the_epoch_is_alive():
    n, rare = net(False), np.zeros_like(X)
    rare[5, 0] = 1  # the one example that the units see
    n.layers[0].weight[:] = np.eye(1, 6)
    assert dead_units(n, rare, 16)[0] == 0
    assert dead_units(n, -rare, 16)[0] == 1


def test_running_statistics_can_kill_in_evaluation_alone():
    n = net(True)
    n.layers[1].running_mean[:4] = 1000
    assert dead_units(n, X)[0] >= 0.5
    assert dead_units(n, X, 16)[0] == 0


def test_measures_leave_the_network_as_it_is():
    n = net(True)
    n.eval()
    s = sigmoid_network(6, [8], 3, "BN", np.random.default_rng(0)).eval()
    old = copy.deepcopy([n.arrays(), s.arrays()])
    dead_units(n, X, 16), saturated(s, X), logit_spread(s, X)
    assert not n.training and not n.layers[1].training
    for now, then in zip([n.arrays(), s.arrays()], old, strict=True):
        assert all((now[key] == then[key]).all() for key in now)


def test_saturated_by_hand():
    n = sigmoid_network(1, [2], 3, "default", np.random.default_rng(0))
    n.layers[0].weight[:] = [[1.0], [0.0]]
    edge = np.log(39)  # s (1 - s) = 0.024375
    x = np.array([[-edge], [-3.0], [0.0], [edge]], np.float32)
    assert saturated(n, x) == [2 / 8]
    assert len(after(n, x, Sigmoid)) == 1


def test_logit_spread_is_the_standard_deviation():
    n = sigmoid_network(6, [8], 3, "scaled", np.random.default_rng(0))
    assert logit_spread(n, X) == pytest.approx(
        float(n(X).std(axis=0).mean()), rel=1e-4)


def test_a_network_that_diverged_is_not_finite():
    n = net(False)
    assert is_finite(n)
    train_apart([n], X, Y, 60, 16, [1e6], [1e6], [0])
    assert not is_finite(n)
    one = net(True)
    one.layers[1].running_var[0] = np.inf
    assert not is_finite(one)


def test_the_experiment_side_by_side_is_that_one_by_one():
    config = experiments.configuration("initialisation", "live") | {
        "steps": 8, "width": 8, "train": 200}
    points = [p for p in initialisation.grid(config)
              if initialisation.alike(p) == "scale False"]
    together = initialisation.several(config, points, lambda steps: None)
    alone = [initialisation.initialisation(config, p, lambda steps: None)
             for p in points]
    for a, b in zip(together, alone, strict=True):
        assert a.keys() == b.keys()
        assert abs(a["accuracy"] - b["accuracy"]) < 0.01


def test_the_grid_has_each_point_once():
    points = initialisation.grid(
        experiments.configuration("initialisation", "full"))
    keys = {tuple(p.values()) for p in points}
    assert len(keys) == len(points) == 3 * (8 * 9 + 8 * 5 + 2 * 7 * 5
                                            + 4 * 6 + 2 * 7)


def test_each_part_gives_what_it_measures():
    config = experiments.configuration("initialisation", "live") | {
        "steps": 3, "width": 8, "train": 200}
    for part, keys in (("scale", set()),
                       ("sigmoid", {"saturated_before", "spread_before",
                                    "saturated_after"}),
                       ("dead", {"dead", "dead_in_training"})):
        point = next(p for p in initialisation.grid(config)
                     if p["part"] == part)
        row = initialisation.initialisation(config, point, lambda n: None)
        assert set(row) == {"accuracy", "finite"} | keys
