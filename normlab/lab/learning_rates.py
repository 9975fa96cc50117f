"""Learning rates from 0.001 to 10, with and without batch normalization."""

import numpy as np

from normlab.lab.experiment import Experiment, load
from normlab.lab.many import (
    ManyLinear,
    cross_entropy,
    descend,
    stacked,
    train_many,
)
from normlab.lab.train import accuracy, batches, outputs
from normlab.numpy_layers import BatchNorm, Linear, ReLU, Sequential


def relu_network(features, depth, width, classes, method, init, seed):
    """`depth` hidden layers of `width` ReLUs, with batch normalization
    before each ReLU (method "BN") or without ("none"), and a last linear
    layer. The same seed and init give both methods the same weights.

    init "default" is that of torch.nn.Linear: weights and biases from
    U(-a, a) with a = 1 / sqrt(n_in), so of variance 1 / (3 n_in). "He" draws
    the hidden weights from N(0, 2 / n_in), with biases 0; the last layer
    is the default's. A layer before batch normalization has no bias.
    Raises ValueError for another method or init. Source: He et al. (2015),
    section 2.2.
    """
    if method not in ("none", "BN") or init not in ("default", "He"):
        raise ValueError("method must be none or BN, and init default or "
                         f"He; got {method!r} and {init!r}")
    rng, layers = np.random.default_rng(seed), []
    sizes = [features] + [width] * depth
    for n_in in sizes[:-1]:
        layers.append(linear(n_in, width, init, rng))
        if method == "BN":
            layers[-1].bias = None
            layers.append(BatchNorm(width))
        layers.append(ReLU())
    return Sequential(*layers, linear(width, classes, "default", rng))


def linear(n_in, n_out, init, rng):
    """A linear layer, initialised as `relu_network` says."""
    layer = Linear(n_in, n_out, rng)  # N(0, 2 / n_in) and biases 0
    if init == "default":
        a = n_in ** -0.5
        layer.weight[:] = rng.uniform(-a, a, layer.weight.shape)
        layer.bias[:] = rng.uniform(-a, a, n_out)
    return layer


def hidden_weights(net):
    """The weights of all linear layers but the last, as float64 copies."""
    return [layer.weight.astype(np.float64) for layer in net.layers[:-1]
            if isinstance(layer, Linear)]


def turned(before, after):
    """By what angle, in radians, each unit's weights turned between two
    lists of weights (out, in); the mean over all units. nan where a
    weight is not finite or a unit has none."""
    angles = []
    with np.errstate(all="ignore"):
        for a, b in zip(before, after, strict=True):
            a = a / np.linalg.norm(a, axis=1, keepdims=True)
            b = b / np.linalg.norm(b, axis=1, keepdims=True)
            half = np.linalg.norm(a - b, axis=1) / 2
            angles.append(2 * np.arcsin(np.minimum(half, 1)))
    return float(np.mean(np.concatenate(angles)))


def growth(before, after):
    """By what factor the squared norm of the weights grew: the geometric
    mean over layers; nan where one is not finite."""
    with np.errstate(all="ignore"):
        each = [np.log((b * b).sum() / (a * a).sum())
                for a, b in zip(before, after, strict=True)]
        return float(np.exp(np.mean(each)))


def short(value, digits=3):
    """A number in that many significant digits; None if not finite."""
    return float(f"{value:.{digits}g}") if np.isfinite(value) else None


def subset(config):
    """The configuration's training and test images, the first of each."""
    x, y, x_test, y_test = load(config["data"])
    n, n_test = config["images"]
    return x[:n], y[:n], x_test[:n_test], y_test[:n_test]


def several(config, points, tick):
    """Train networks of one method and depth side by side. For each:
    test accuracy at the checkpoints, the mean loss of each stretch of
    `stretch` mini-batches, the steps to each of the loss `levels`, the
    training accuracy at the end, how much the squared norm of the hidden
    weights grew, and the angle of the first and of the last step. What
    isn't finite is None."""
    x, y, x_test, y_test = subset(config)
    steps = config["steps"]
    nets = [relu_network(x.shape[1], p["depth"], config["width"], 10,
                         p["method"], p["init"], p["seed"]) for p in points]
    marks = sorted({*config["checkpoints"], 0, 1, steps - 1, steps})
    ends = {0, 1, steps - 1, steps}
    calls = {net: iter(marks) for net in nets}

    def look(net):
        step = next(calls[net])
        if net is nets[-1]:
            tick(step)
        with np.errstate(all="ignore"):
            right = (accuracy(net, x_test, y_test)
                     if step in config["checkpoints"] else None)
            trained = accuracy(net, x, y) if step == steps else None
        return right, trained, hidden_weights(net) if step in ends else None

    histories = train_many(nets, x, y, steps, config["batch_size"],
                           [p["lr"] for p in points],
                           [p["seed"] for p in points], every=marks,
                           evaluate=look)
    return [summary(config, history) for history in histories]


def summary(config, history):
    """What is kept of a network's training."""
    right = [r for r, _, _ in history.values if r is not None]
    first, second, third, last = [w for _, _, w in history.values
                                  if w is not None]
    with np.errstate(all="ignore"):
        means = history.losses.reshape(-1, config["stretch"]).mean(axis=1)
    return {"accuracy": [round(a, 4) for a in right],
            "train_accuracy": round(history.values[-1][1], 4),
            "loss": [short(v) for v in means],
            "steps_to": [steps_to(history.losses, level)
                         for level in config["levels"]],
            "finite": bool(np.isfinite(history.losses).all()),
            "growth": short(growth(first, last)),
            "first_angle": short(turned(first, second)),
            "last_angle": short(turned(third, last))}


def steps_to(losses, level, window=20):
    """After how many steps the mean of the last `window` losses is below
    `level` for the first time; None if never."""
    with np.errstate(all="ignore"):
        total = np.cumsum(losses, dtype=np.float64)
        total[window:] = total[window:] - total[:-window]
        below = total[window - 1:] / window < level
    return int(below.argmax()) + window if below.any() else None


def learn(config, point, tick):
    """`several` for one point."""
    return several(config, [point], tick)[0]


def grid(config):
    """Every depth, initialisation, method, learning rate and seed."""
    return [{"depth": depth, "init": init, "method": method, "lr": lr,
             "seed": seed}
            for depth in config["depths"] for init in config["inits"]
            for method in config["methods"]
            for lr in config["learning_rates"] for seed in config["seeds"]]


RATES = {
    "methods": ["none", "BN"],
    "inits": ["default", "He"],
    "depths": [3, 8, 20],
    "learning_rates": [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0],
    "seeds": [0, 1, 2],
    "width": 100,
    "batch_size": 60,
    "levels": [1.5, 1.0, 0.5, 0.25],
}
ON_DIGITS = {"data": "digits", "images": [1437, 360], "width": 64,
             "batch_size": 32}
CODE = (relu_network, linear, hidden_weights, turned, growth, short, subset,
        several, summary, steps_to, learn, grid, train_many, stacked,
        ManyLinear, cross_entropy, descend, batches, outputs, accuracy)


def cost(config, point):
    """How long a point takes, in units of a step of a layer."""
    return config["steps"] * (2 + point["depth"])


EXPERIMENT = Experiment(
    title="Learning rates from 0.001 to 10, with and without batch "
          "normalization, at two initialisations and three depths",
    live=RATES | ON_DIGITS | {
        "inits": ["He"],
        "depths": [8],
        "learning_rates": [0.003, 0.03, 0.3, 3.0],
        "steps": 200,
        "checkpoints": [0, 50, 100, 150, 200],
        "stretch": 20,
    },
    full=RATES | {
        "data": "mnist",
        "images": [6000, 2000],
        "steps": 600,
        "checkpoints": [0, 30, 60, 120, 210, 300, 450, 600],
        "stretch": 30,
    },
    points=grid, steps=cost, run=learn, code=CODE, several=several,
    alike=lambda point: f"{point['method']}, {point['depth']}",
)

EQUAL = EXPERIMENT._replace(
    title="To the end of training on 1,000 images: test accuracy at equal "
          "learning rates, with and without batch normalization",
    live=EXPERIMENT.live | {"images": [300, 360], "depths": [3],
                            "learning_rates": [0.03, 0.3], "steps": 300},
    full=EXPERIMENT.full | {
        "images": [1000, 10_000],
        "inits": ["He"],
        "depths": [3],
        "learning_rates": [0.01, 0.03, 0.1, 0.3, 1.0, 3.0],
        "seeds": [0, 1, 2, 3, 4],
        "batch_size": 50,
        "steps": 3000,
        "checkpoints": [300, 1000, 2000, 3000],
        "stretch": 250,
    },
)


def here(**changes):
    """Run the live experiment with changes to its configuration, networks
    of one kind side by side: one dict a point, as in a record."""
    config, rows = EXPERIMENT.live | changes, []
    for depth in config["depths"]:
        for method in config["methods"]:
            points = [p for p in grid(config)
                      if p["depth"] == depth and p["method"] == method]
            found = several(config, points, lambda step: None)
            rows += [p | r for p, r in zip(points, found, strict=True)]
    return rows
