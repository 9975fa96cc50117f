"""The training loop: its batches, its steps, its evaluation."""

import itertools

import numpy as np
import pytest

from normlab import numpy_layers as nl
from normlab.lab import train as lab


def network(batch_norm=True, seed=0):
    rng = np.random.default_rng(seed)
    layers = [nl.Linear(4, 6, rng), nl.ReLU(), nl.Linear(6, 3, rng)]
    if batch_norm:
        layers.insert(1, nl.BatchNorm(6))
    return nl.Sequential(*layers)


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 4)).astype(np.float32)
    return x, x[:, :3].argmax(axis=1)


def same(a, b):
    return all(np.array_equal(v, b[k]) for k, v in a.items())


def test_it_learns_and_reports(data):
    net = network()
    history = lab.train(net, *data, 200, 10, 0.1, seed=0)
    assert history.losses.shape == (200,)
    assert history.losses[-20:].mean() < 0.5 * history.losses[:5].mean()
    assert lab.accuracy(net, *data) > 0.9
    assert (history.steps, history.values) == ([], [])


def test_the_same_seed_is_the_same_run(data):
    runs = []
    for seed in (0, 0, 1):
        net = network()
        lab.train(net, *data, 20, 10, 0.1, seed)
        runs.append(net.state_dict())
    assert same(runs[0], runs[1]) and not same(runs[0], runs[2])


def test_it_is_the_loop_written_out(data):
    ours, x, y = network(), *data
    lab.train(ours, x, y, 7, 10, 0.1, seed=3, momentum=0.9)
    net, loss = network(), nl.SoftmaxCrossEntropy()
    rule = nl.SGD(net, 0.1, 0.9)
    for rows in itertools.islice(lab.batches(50, 10, 3), 7):
        loss(net(x[rows]), y[rows])
        net.backward(loss.backward())
        rule.step()
    assert same(ours.state_dict(), net.state_dict())


def test_evaluation_every_few_steps_and_at_named_ones(data):
    x, y = data
    for every, want in ((4, [4, 8]), ([0, 3, 10], [0, 3, 10]), ([], [])):
        net, modes = network(), []
        history = lab.train(
            net, x, y, 10, 10, 0.1, 0, every=every,
            evaluate=lambda net, m=modes: m.append(net.training))
        assert history.steps == want and modes == [True] * len(want)
        assert history.values == [None] * len(want)


def test_evaluating_does_not_change_the_run(data):
    plain, watched = network(), network()
    lab.train(plain, *data, 10, 10, 0.1, 0)
    lab.train(watched, *data, 10, 10, 0.1, 0, every=1,
              evaluate=lambda net: lab.accuracy(net, *data))
    assert same(plain.state_dict(), watched.state_dict())


def test_batches_go_through_all_samples_anew_each_epoch():
    draw = lab.batches(10, 5, seed=0)
    epochs = [np.concatenate([next(draw), next(draw)]) for _ in range(3)]
    assert all(sorted(e) == list(range(10)) for e in epochs)
    assert not np.array_equal(epochs[0], epochs[1])
    sizes = {len(next(draw)) for draw in [lab.batches(10, 4, 0)]
             for _ in range(7)}
    assert sizes == {4}, "no short batch at an epoch's end"


def test_accuracy_gives_each_layer_its_mode_back(data):
    net = nl.Sequential(network(), nl.Linear(3, 3, np.random.default_rng(0)))
    net.train()
    net[0][1].eval()  # frozen on purpose
    before = [layer.training for layer in lab.everything(net)]
    state = net.state_dict()
    lab.accuracy(net, *data)
    assert [layer.training for layer in lab.everything(net)] == before
    assert same(state, net.state_dict())
    with pytest.raises(ValueError):
        lab.accuracy(net, data[0][:, :2], data[1])
    assert [layer.training for layer in lab.everything(net)] == before


def test_outputs_do_not_depend_on_the_pieces(data):
    net = network()
    lab.train(net, *data, 5, 10, 0.1, 0)
    assert np.allclose(lab.outputs(net, data[0]),
                       lab.outputs(net, data[0], size=7), atol=1e-6)


def test_divergence_raises_nothing(data):
    net = network(batch_norm=False)
    with np.errstate(over="raise", invalid="raise"):
        history = lab.train(net, *data, 50, 10, 1e20, 0)
    assert not np.isfinite(history.losses[-1])


@pytest.mark.parametrize("change, error, text", [
    ({"steps": -1}, ValueError, "steps must be at least 0, got -1"),
    ({"steps": 2.0}, TypeError, "steps must be an integer, got 2.0"),
    ({"steps": True}, TypeError, "steps must be an integer"),
    ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
    ({"batch_size": 51}, ValueError, "at most the 50 samples, got 51"),
    ({"lr": -1}, ValueError, "lr must be at least 0"),
    ({"every": 5}, ValueError, "every and evaluate must be given together"),
    ({"every": 0, "evaluate": id}, ValueError, "every must be at least 1"),
    ({"every": [99], "evaluate": id}, ValueError, "steps from 0 to 10"),
    ({"y": np.zeros(50)}, TypeError, "y must hold integers, got float64"),
    ({"y": np.zeros(49, int)}, ValueError, r"\(50, 4\) and \(49,\)"),
])
def test_bad_arguments_are_named(data, change, error, text):
    net = network()
    before = net.state_dict()
    arguments = {"x": data[0], "y": data[1], "steps": 10, "batch_size": 10,
                 "lr": 0.1, "seed": 0} | change
    with pytest.raises(error, match=text):
        lab.train(net, **arguments)
    assert same(before, net.state_dict())


def test_no_samples_no_outputs():
    with pytest.raises(ValueError, match="at least one sample"):
        lab.outputs(network(), np.zeros((0, 4), np.float32))
