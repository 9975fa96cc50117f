"""How much of Figure 1 is the start: its network from five initial spreads
and at several learning rates, with and without BN."""

import numpy as np

from normlab.lab.experiment import Experiment, load
from normlab.lab.figure_1 import sigmoid_network
from normlab.lab.many import (
    ManyLinear,
    cross_entropy,
    descend,
    stacked,
    train_many,
)
from normlab.lab.train import batches, outputs
from normlab.numpy_layers import Sequential


def starts(config):
    """Every method, initial spread, learning rate and seed."""
    return [{"method": method, "std": std, "lr": lr, "seed": seed}
            for method in config["methods"] for std in config["stds"]
            for lr in config["learning_rates"] for seed in config["seeds"]]


def drift(percentiles):
    """How far the inputs of units move in training, three numbers.

    percentiles: (checkpoints, units, 3), a low, the middle and a high
    percentile of each unit's input. With half the distance from low to
    high as a unit's width: "wander", the middle's highest less its lowest
    value; "wander_widths", that over the mean width; "growth", the largest
    width over the smallest. The first is the mean over units, the others
    are medians, since a width can be next to nothing.
    """
    low, middle, high = np.moveaxis(np.asarray(percentiles, float), 2, 0)
    width = np.maximum((high - low) / 2, 1e-9)  # (checkpoints, units)
    wander = np.ptp(middle, axis=0)  # (units,)
    return {"wander": float(wander.mean()),
            "wander_widths": float(np.median(wander / width.mean(axis=0))),
            "growth": float(np.median(width.max(axis=0)
                                      / width.min(axis=0)))}


def watch(config, data, tick):
    """evaluate(net) for `train`: the shares of the first and of the second
    half of the test images (every other one) that are classified right,
    and percentiles (units, 3) of the inputs of the last sigmoid layer over
    the first images, all in evaluation mode."""
    x, y = data
    marks = iter(config["checkpoints"])

    def evaluate(net):
        tick(next(marks))
        right = outputs(net, x).argmax(axis=1) == y
        before = Sequential(*net.layers[:-2])  # up to the last sigmoid
        return (*(float(right[i::2].mean()) for i in (0, 1)), np.percentile(
            outputs(before, x[:config["images"]]), config["percentiles"],
            axis=0).T)

    return evaluate


def from_starts(config, points, tick):
    """Train networks of Figure 1 of one method side by side: for each its
    accuracy at the checkpoints on the images that choose the learning rate
    and on the others, and its drift from checkpoint `drift_from` on."""
    x, y, *test = load(config["data"])
    nets = [sigmoid_network(
        x.shape[1], config["hidden"], 10, point["method"] == "BN",
        np.random.default_rng(point["seed"]),
        None if point["std"] == "scaled" else point["std"])
        for point in points]
    checks = {net: watch(config, test, tick) for net in nets}
    first = config["checkpoints"].index(config["drift_from"])
    found = []
    for history in train_many(
            nets, x, y, config["steps"], config["batch_size"],
            [point["lr"] for point in points],
            [point["seed"] for point in points],
            every=config["checkpoints"],
            evaluate=lambda net: checks[net](net)):
        choose, rest, percentiles = zip(*history.values, strict=True)
        found.append(
            {"choose": [round(a, 4) for a in choose],
             "accuracy": [round(a, 4) for a in rest]}
            | {key: round(value, 4)
               for key, value in drift(percentiles[first:]).items()})
    return found


def figure_1_start(config, point, tick):
    """`from_starts` for one point."""
    return from_starts(config, [point], tick)[0]


def best_rate(points, config, step, method, std):
    """The learning rate with the highest mean accuracy at `step` on the
    images that choose, the accuracies (seeds,) on the others at that rate
    and step, and the points that they are of."""
    at, found = config["checkpoints"].index(step), {}
    for p in points:
        if (p["method"], p["std"]) == (method, std):
            found.setdefault(p["lr"], []).append(p)
    if not found:
        raise ValueError(f"no point has method {method!r} and std {std!r}")
    lr = max(found, key=lambda lr: np.mean(
        [p["choose"][at] for p in found[lr]]))
    return lr, np.array([p["accuracy"][at] for p in found[lr]]), found[lr]


START = {
    "methods": ["none", "BN"],
    "stds": [0.01, 0.03, 0.1, 0.4, "scaled"],
    "learning_rates": [0.1, 0.3, 1.0, 3.0, 10.0],
    "seeds": [0, 1, 2],
    "hidden": [100, 100, 100],
    "batch_size": 60,
    "percentiles": [15, 50, 85],
    "drift_from": 100,
}

EXPERIMENT = Experiment(
    title="Figure 1 from five initial spreads: how large the effect is "
          "depends on the other arm's weights",
    live=START | {
        "data": "digits",
        "learning_rates": [0.1, 1.0],
        "images": 360,
        "steps": 300,
        "checkpoints": [100, 200, 300],
    },
    full=START | {
        "data": "mnist",
        "images": 1000,
        "steps": 2000,
        "checkpoints": [50, 100, 200, 300, 500, 700, 1000, 1500, 2000],
    },
    points=starts,
    steps=lambda config, point: config["steps"],
    run=figure_1_start,
    code=(sigmoid_network, starts, drift, watch, from_starts,
          figure_1_start, train_many, stacked, ManyLinear, cross_entropy,
          descend, batches, outputs),
    several=from_starts,
    alike=lambda point: point["method"],
)
