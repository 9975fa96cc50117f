"""The experiments that run at two scales, and their configurations."""

import functools
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from normlab.lab import data
from normlab.lab.train import accuracy, batches, outputs, train
from normlab.numpy_layers import BatchNorm, Linear, Sequential, Sigmoid

SCALES = ("live", "full")


class Experiment(NamedTuple):
    """What an experiment is made of."""
    title: str
    live: dict  # its configuration on digits, in seconds
    full: dict  # its configuration as published
    points: Callable  # points(config) lists what can be run by itself
    steps: Callable  # steps(config, point): how long that is
    run: Callable  # run(config, point, tick) returns a dict of results
    code: tuple  # the functions whose text decides what comes out


def get(name):
    """The experiment of that name; ValueError lists those there are."""
    if name not in EXPERIMENTS:
        raise ValueError(f"there is no experiment {name!r}; there are: "
                         f"{', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]


def configuration(name, scale):
    """An experiment's configuration at scale "live" or "full"."""
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(SCALES)}; got "
                         f"{scale!r}")
    return getattr(get(name), scale)


def run(name, scale="live", **changes):
    """Run all points of an experiment here and now, storing nothing.

    `changes` replaces values of the configuration. Returns one dict a
    point: what it is (method, learning rate, seed, ...), its results and
    its seconds.
    """
    config, experiment = configuration(name, scale), get(name)
    if unknown := set(changes) - set(config):
        raise ValueError(f"{name} has no {', '.join(sorted(unknown))} in its "
                         f"configuration; it has {', '.join(config)}")
    config = config | changes
    return [run_point(experiment, config, point)
            for point in experiment.points(config)]


def run_point(experiment, config, point, tick=None):
    """One point's own dict with its results and seconds; tick(step) is
    called now and then."""
    from threadpoolctl import threadpool_limits  # scikit-learn brings it

    start = time.perf_counter()
    # On matrices this small, and the more on a busy machine, a second
    # thread makes NumPy slower, up to ten times.
    with threadpool_limits(1):
        result = experiment.run(config, point, tick or (lambda step: None))
    seconds = round(time.perf_counter() - start, 2)
    return point | result | {"seconds": seconds}


def pick(runs, key, **where):
    """result `key` of the runs whose values are those in `where`, in
    order, as an array; ValueError if there are none."""
    found = [r[key] for r in runs
             if all(r[k] == v for k, v in where.items())]
    if not found:
        raise ValueError(f"no run has {where}")
    return np.array(found)


def sigmoid_network(features, hidden, classes, batch_norm, rng, std):
    """A network of sigmoid layers, with batch normalization before each
    sigmoid or without; the same `rng` gives both the same weights.

    Weights are drawn from N(0, std^2), biases are 0. A layer before batch
    normalization has no bias: beta takes its place. Source: Ioffe and
    Szegedy (2015), section 4.1.
    """
    layers, sizes = [], [features, *hidden]
    for n_in, n_out in zip(sizes, sizes[1:], strict=False):
        layers.append(Linear(n_in, n_out, rng, not batch_norm, std))
        if batch_norm:
            layers.append(BatchNorm(n_out))
        layers.append(Sigmoid())
    return Sequential(*layers, Linear(sizes[-1], classes, rng, std=std))


def grid(config):
    """Every method, learning rate and seed of a configuration."""
    return [{"method": method, "lr": lr, "seed": seed}
            for lr in config["learning_rates"]
            for method in config["methods"] for seed in config["seeds"]]


def figure_1(config, point, tick):
    """Train one network of Figure 1: at the checkpoints its test accuracy
    and the percentiles of the input of one sigmoid of the last hidden
    layer, over the first test images, in evaluation mode."""
    x, y, x_test, y_test = load(config["data"])
    net = sigmoid_network(
        x.shape[1], config["hidden"], 10, point["method"] == "BN",
        np.random.default_rng(point["seed"]), config["weight_std"])
    marks = iter(config["checkpoints"])

    def evaluate(net):
        before = Sequential(*net.layers[:-2])  # up to the last sigmoid
        inputs = outputs(before, x_test[:config["images"]])
        tick(next(marks))
        return accuracy(net, x_test, y_test), np.percentile(
            inputs[:, config["unit"]], config["percentiles"])

    history = train(net, x, y, config["steps"], config["batch_size"],
                    point["lr"], point["seed"], every=config["checkpoints"],
                    evaluate=evaluate)
    return {"accuracy": [round(a, 4) for a, _ in history.values],
            "percentiles": [[round(float(v), 4) for v in p]
                            for _, p in history.values]}


@functools.lru_cache(maxsize=1)
def load(name):
    """A data set by name."""
    return {"digits": data.digits, "mnist": data.mnist}[name]()


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

EXPERIMENTS = {
    "figure-1": Experiment(
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
            "steps": 50_000,
            "checkpoints": [20, 50, 100, 200, 500,
                            *range(1000, 50_001, 1000)],
        },
        points=grid,
        steps=lambda config, point: config["steps"],
        run=figure_1,
        code=(sigmoid_network, grid, figure_1, train, batches, outputs,
              accuracy),
    ),
}
