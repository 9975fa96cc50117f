"""Ioffe and Szegedy's Figure 1: sigmoid layers with and without BN."""

import numpy as np

from normlab.lab.experiment import Experiment, grid, load
from normlab.lab.many import (
    ManyLinear,
    cross_entropy,
    descend,
    stacked,
    train_many,
)
from normlab.lab.train import accuracy, batches, outputs
from normlab.numpy_layers import BatchNorm, Linear, Sequential, Sigmoid


def sigmoid_network(features, hidden, classes, batch_norm, rng, std):
    """A network of sigmoid layers, with batch normalization before each
    sigmoid or without; the same `rng` gives both the same weights.

    Weights are drawn from N(0, std^2), biases are 0. `std` None scales them
    to the layer: 4 / sqrt(n_in) before a sigmoid, whose slope at 0 is 1/4,
    and 1 / sqrt(n_in) for the last. A layer before batch normalization has
    no bias: beta takes its place. Source: Ioffe and Szegedy (2015), section
    4.1.
    """
    layers, sizes = [], [features, *hidden]
    for n_in, n_out in zip(sizes, sizes[1:], strict=False):
        layers.append(Linear(n_in, n_out, rng, not batch_norm,
                             4 / np.sqrt(n_in) if std is None else std))
        if batch_norm:
            layers.append(BatchNorm(n_out))
        layers.append(Sigmoid())
    return Sequential(*layers, Linear(
        sizes[-1], classes, rng,
        std=1 / np.sqrt(sizes[-1]) if std is None else std))


def evaluation(config, data, tick):
    """evaluate(net) for `train`: the network's test accuracy, and the
    percentiles of the input of one sigmoid of the last hidden layer, over
    the first test images, in evaluation mode."""
    x_test, y_test = data
    marks = iter(config["checkpoints"])

    def evaluate(net):
        before = Sequential(*net.layers[:-2])  # up to the last sigmoid
        inputs = outputs(before, x_test[:config["images"]])
        tick(next(marks))
        return accuracy(net, x_test, y_test), np.percentile(
            inputs[:, config["unit"]], config["percentiles"])

    return evaluate


def several(config, points, tick):
    """Train networks of Figure 1 of one method side by side ("scaled": no
    normalisation, weights scaled to the layer): what `evaluation` finds of
    each at the checkpoints."""
    x, y, *test = load(config["data"])
    nets = [sigmoid_network(
        x.shape[1], config["hidden"], 10, point["method"] == "BN",
        np.random.default_rng(point["seed"]),
        None if point["method"] == "scaled" else config["weight_std"])
        for point in points]
    checks = {net: evaluation(config, test, tick) for net in nets}
    histories = train_many(
        nets, x, y, config["steps"], config["batch_size"],
        [point["lr"] for point in points],
        [point["seed"] for point in points], every=config["checkpoints"],
        evaluate=lambda net: checks[net](net))
    return [{"accuracy": [round(a, 4) for a, _ in history.values],
             "percentiles": [[round(float(v), 4) for v in p]
                             for _, p in history.values]}
            for history in histories]


def figure_1(config, point, tick):
    """`several` for one point."""
    return several(config, [point], tick)[0]


FIGURE_1 = {
    "methods": ["none", "BN"],
    "learning_rates": [0.1, 1.0],
    "seeds": [0, 1, 2],
    "hidden": [100, 100, 100],
    "weight_std": 0.1,
    "batch_size": 60,
    "percentiles": [15, 50, 85],
    "unit": 0,
    "images": 1000,
}

EXPERIMENT = Experiment(
    title="Ioffe and Szegedy's Figure 1: three sigmoid layers of 100, "
          "with and without batch normalization",
    live=FIGURE_1 | {
        "data": "digits",
        "images": 360,
        "steps": 1500,
        "checkpoints": [20, 50, *range(100, 1501, 100)],
    },
    full=FIGURE_1 | {
        "data": "mnist",
        "methods": ["none", "scaled", "BN"],
        "seeds": [0, 1, 2, 3, 4],
        "steps": 50_000,
        "checkpoints": [20, 50, 100, 200, 500,
                        *range(1000, 50_001, 1000)],
    },
    points=grid,
    steps=lambda config, point: config["steps"],
    run=figure_1,
    code=(sigmoid_network, grid, evaluation, several, figure_1, train_many,
          stacked, ManyLinear, cross_entropy, descend, batches, outputs,
          accuracy),
    several=several,
    alike=lambda point: point["method"],
)
