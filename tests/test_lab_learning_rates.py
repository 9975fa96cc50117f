"""The sweep over learning rates."""

import numpy as np
import pytest
import torch

from normlab.lab import experiments
from normlab.lab import learning_rates as rates
from normlab.lab.train import History, train
from normlab.numpy_layers import BatchNorm, Linear

SMALL = {"images": [60, 40], "steps": 4, "checkpoints": [0, 2, 4],
         "stretch": 2, "batch_size": 20, "width": 5, "depths": [2],
         "learning_rates": [0.1, 1e30], "levels": [2.0, 1e-9]}


def linears(net):
    return [a for a in net.layers if isinstance(a, Linear)]


def test_both_methods_start_from_the_same_weights():
    for init in ("default", "He"):
        plain, normed = (rates.relu_network(7, 3, 5, 4, m, init, 1)
                         for m in ("none", "BN"))
        for a, b in zip(linears(plain), linears(normed), strict=True):
            np.testing.assert_array_equal(a.weight, b.weight)
        assert [a.weight.shape for a in linears(plain)] == [
            (5, 7), (5, 5), (5, 5), (4, 5)]
        assert sum(isinstance(a, BatchNorm) for a in normed.layers) == 3
        assert [a.bias is None for a in linears(normed)] == [
            True, True, True, False]
        assert all(a.bias is not None for a in linears(plain))


def test_the_default_is_that_of_pytorch():
    torch.manual_seed(0)
    want = torch.nn.Linear(50, 4000)
    got = rates.linear(50, 4000, "default", np.random.default_rng(0))
    for a, b in ((got.weight, want.weight), (got.bias, want.bias)):
        b = b.detach().numpy()
        assert a.std() == pytest.approx(b.std(), rel=0.03)
        assert abs(a).max() == pytest.approx(abs(b).max(), rel=0.01)
    assert got.weight.var() == pytest.approx(1 / 150, rel=0.02)


def test_he_is_the_hidden_layers_alone():
    net = rates.relu_network(400, 1, 500, 400, "none", "He", 0)
    hidden, last = linears(net)
    assert hidden.weight.var() == pytest.approx(2 / 400, rel=0.02)
    assert not hidden.bias.any()
    assert last.weight.var() == pytest.approx(1 / 1500, rel=0.02)


@pytest.mark.parametrize("method, init", [("LN", "He"), ("BN", "Glorot")])
def test_other_methods_and_inits_are_refused(method, init):
    with pytest.raises(ValueError, match=method if method == "LN" else init):
        rates.relu_network(7, 2, 5, 4, method, init, 0)


def test_turned_and_growth():
    a = [np.array([[1.0, 0.0], [0.0, 2.0]])]
    b = [np.array([[0.0, 3.0], [0.0, 1.0]])]  # one by 90 degrees, one by 0
    assert rates.turned(a, b) == pytest.approx(np.pi / 4)
    assert rates.turned(a, [-a[0]]) == pytest.approx(np.pi)
    assert rates.growth(a, b) == pytest.approx(2)  # 10 / 5
    assert rates.growth(a * 2, [*b, a[0]]) == pytest.approx(2 ** 0.5)
    assert np.isnan(rates.turned(a, [np.array([[np.nan, 1], [0, 1]])]))
    tiny = [a[0] + [[0, 1e-9], [0, 0]]]
    assert rates.turned(a, tiny) == pytest.approx(5e-10)


def test_steps_to():
    losses = np.array([4.0, 2, 2, 0, 0, 9, 0])
    assert rates.steps_to(losses, 2.5, window=2) == 3  # (2 + 2) / 2
    assert rates.steps_to(losses, 1.5, window=2) == 4
    assert rates.steps_to(losses, 1e-9, window=2) == 5
    assert rates.steps_to(losses, 0, window=2) is None
    assert rates.steps_to(np.array([3, np.nan, 0, 0]), 1, 2) is None


def test_short():
    assert rates.short(0.123456) == 0.123
    assert rates.short(np.inf) is None and rates.short(np.nan) is None


@pytest.mark.parametrize("name", ["learning-rates", "learning-rates-equal"])
def test_points_together_as_alone(name):
    config = experiments.configuration(name, "live") | SMALL
    points = [p for p in rates.grid(config) if p["method"] == "BN"
              and p["lr"] < 1]
    seen = []
    group = rates.several(config, points, seen.append)
    assert seen == [0, 1, 2, 3, 4]
    for point, got in zip(points, group, strict=True):
        want = rates.learn(config, point, lambda step: None)
        assert set(got) == set(want)
        np.testing.assert_allclose(got["loss"], want["loss"], rtol=0.01)
        np.testing.assert_allclose(got["growth"], want["growth"], rtol=0.01)


def test_what_is_kept_is_what_training_gave():
    config = experiments.configuration("learning-rates", "live") | SMALL
    point = {"depth": 2, "init": "He", "method": "none", "lr": 0.1,
             "seed": 2}
    got = rates.learn(config, point, lambda step: None)
    x, y, x_test, y_test = rates.subset(config)
    assert len(x) == 60 and len(x_test) == 40
    net = rates.relu_network(64, 2, 5, 10, "none", "He", 2)
    start = rates.hidden_weights(net)
    history = train(net, x, y, 4, 20, 0.1, 2)
    np.testing.assert_allclose(got["loss"],
                               history.losses.reshape(2, 2).mean(axis=1),
                               rtol=0.01)
    assert got["growth"] == pytest.approx(
        rates.growth(start, rates.hidden_weights(net)), rel=0.01)
    right = rates.accuracy(net, x_test, y_test)
    assert len(got["accuracy"]) == 3
    assert got["accuracy"][-1] == pytest.approx(right, abs=0.03)
    assert 0 < got["last_angle"] < np.pi and got["finite"]


def test_summary_takes_the_right_weights():
    config = {"stretch": 2, "levels": [1.0]}
    weights = [np.array([[a, b]]) for a, b in (
        (1.0, 0.0), (0.0, 1.0), (2.0, 0.0), (3.0, 3.0))]
    values = [(0.1, None, [weights[0]]), (None, None, [weights[1]]),
              (0.2, None, None), (None, None, [weights[2]]),
              (0.3, 0.4, [weights[3]])]
    got = rates.summary(config, History(np.array([2.0, 4, 1, 1]),
                                        [0, 1, 2, 3, 4], values))
    assert got["accuracy"] == [0.1, 0.2, 0.3]
    assert got["train_accuracy"] == 0.4 and got["loss"] == [3, 1]
    assert got["growth"] == 18 and got["first_angle"] == 1.57
    assert got["last_angle"] == 0.785


def test_a_run_that_diverges_says_so():
    runs = experiments.run("learning-rates", **SMALL, methods=["none"])
    assert len(runs) == 6
    for run in runs:
        assert run["finite"] is (run["lr"] < 1)
        assert (run["growth"] is None) is (run["lr"] > 1)
        assert all(v is None or np.isfinite(v) for v in run["loss"])


def test_here_is_the_experiment():
    small = SMALL | {"learning_rates": [0.1], "seeds": [1]}
    got = rates.here(**small)
    want = experiments.run("learning-rates", **small)
    assert [(r["method"], r["seed"]) for r in got] == [("none", 1), ("BN", 1)]
    for a, b in zip(got, want, strict=True):
        assert a["method"] == b["method"]
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=0.01)
