"""The networks, measures and experiment of the chapter on initialisation."""

import copy

import numpy as np

from normlab.lab.experiment import Experiment, load
from normlab.lab.many import (
    ManyLinear,
    cross_entropy,
    descend,
    part,
    stacked,
)
from normlab.lab.train import accuracy, batches
from normlab.numpy_layers import (
    BatchNorm,
    Linear,
    ReLU,
    Sequential,
    Sigmoid,
)

SCHEMES = ("default", "scaled", "centred", "BN")


def relu_network(features, hidden, classes, batch_norm, rng, std=None,
                 head=None, eps=1e-5, dtype=np.float32):
    """A network of ReLU layers, with batch normalization before each ReLU
    or without; the same `rng` gives both the same weights.

    Weights are drawn from N(0, std^2), the last layer's from N(0, head^2)
    if `head` is given; None is He et al. (2015): std^2 = 2 / fan-in. Biases
    are 0; a layer before batch normalization has none.
    """
    layers, sizes = [], [features, *hidden]
    for n_in, n_out in zip(sizes, sizes[1:], strict=False):
        layers.append(Linear(n_in, n_out, rng, not batch_norm, std, dtype))
        if batch_norm:
            layers.append(BatchNorm(n_out, eps, dtype=dtype))
        layers.append(ReLU())
    return Sequential(*layers, Linear(
        sizes[-1], classes, rng, std=std if head is None else head,
        dtype=dtype))


def sigmoid_network(features, hidden, classes, scheme, rng):
    """A network of sigmoid layers, initialised by one of four schemes; the
    same `rng` gives all of them the same weights, up to scale.

    "default": variance 1 / (3 fan-in), as in torch.nn.Linear, biases 0;
    "scaled": standard deviation 4 / sqrt(fan-in) before a sigmoid, whose
    slope at 0 is 1/4, and 1 / sqrt(fan-in) in the last layer, biases 0;
    "centred": "scaled", and after a sigmoid the bias -1/2 * (sum of the
    unit's weights), which cancels the sigmoid's mean of 1/2; "BN": "scaled"
    with batch normalization before each sigmoid. Raises ValueError for
    another scheme.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"scheme must be one of {', '.join(SCHEMES)}; got "
                         f"{scheme!r}")
    layers, sizes = [], [features, *hidden, classes]
    for i, (n_in, n_out) in enumerate(zip(sizes, sizes[1:], strict=False)):
        last = i == len(hidden)
        gain = 3 ** -0.5 if scheme == "default" else 1 if last else 4
        linear = Linear(n_in, n_out, rng, scheme != "BN" or last,
                        gain / n_in ** 0.5)
        if i and scheme == "centred":
            linear.bias = -linear.weight.sum(axis=1) / 2
        layers.append(linear)
        if not last:
            if scheme == "BN":
                layers.append(BatchNorm(n_out))
            layers.append(Sigmoid())
    return Sequential(*layers)


def train_apart(nets, x, y, steps, batch_size, lrs, hidden_lrs, seeds):
    """`train_many` with a learning rate of its own for the weights of each
    network's hidden linear layers; returns the losses (K, steps).

    lrs (K,) for all other parameters, hidden_lrs (K,). A network that
    diverges leaves the others as they are.
    """
    stack = stacked([net.train() for net in nets])
    draws = [batches(len(x), batch_size, seed) for seed in seeds]
    hidden = [a for a in stack.layers if isinstance(a, ManyLinear)][:-1]
    factor = np.asarray(hidden_lrs, x.dtype) / np.asarray(lrs, x.dtype)
    rates = np.repeat(np.asarray(lrs, x.dtype), len(nets[0][-1].weight))
    losses = np.empty((len(nets), steps))
    with np.errstate(over="ignore", invalid="ignore"):
        for step in range(steps):
            rows = np.stack([next(draw) for draw in draws], axis=1)
            logits = stack(x[rows].reshape(batch_size, -1))
            losses[:, step], grad = cross_entropy(logits, y[rows])
            stack.backward(grad * rates)
            for layer in hidden:
                layer.grads["weight"] *= factor[:, None, None]
            descend(stack)
    part(stack, nets)
    return losses


def is_finite(net):
    """Whether all of a network's parameters and statistics are finite."""
    return all(np.isfinite(a).all() for a in net.arrays().values())


def after(net, x, kind):
    """The outputs of the network's layers of one kind for x, a list of
    arrays (N, units), in the mode the network is in."""
    found = []
    with np.errstate(over="ignore", invalid="ignore"):
        for layer in net.layers:
            x = layer(x)
            if isinstance(layer, kind):
                found.append(x)
    return found


def dead_units(net, x, batch_size=None, seed=0):
    """The share of units of each ReLU layer whose output is 0 for every
    row of x: a list of numbers.

    In evaluation mode; with `batch_size` in training mode, on one epoch of
    mini-batches, on a copy whose running statistics nobody needs.
    """
    net = copy.deepcopy(net).train(batch_size is not None)
    size = batch_size or len(x)
    draw, alive = batches(len(x), size, seed), None
    for _ in range(len(x) // size):
        here = [(a > 0).any(axis=0) for a in after(net, x[next(draw)], ReLU)]
        alive = here if alive is None else [
            a | b for a, b in zip(alive, here, strict=True)]
    return [float(1 - a.mean()) for a in alive]


def saturated(net, x):
    """The share of the outputs of each sigmoid layer, for x as one batch in
    training mode, where the slope s (1 - s) is below a tenth of its
    largest value, 1/4: a list of numbers."""
    return [float((s * (1 - s) < 0.025).mean())
            for s in after(copy.deepcopy(net).train(), x, Sigmoid)]


def logit_spread(net, x):
    """The standard deviation of the logits over x as one batch in training
    mode, averaged over the classes: how much the input still matters."""
    net = copy.deepcopy(net).train()
    return float(net(x).astype(np.float64).std(axis=0).mean())


def grid(config):
    """Every point of the three parts; std 0 is scaled to the layer."""
    points = []
    for method, rates in config["scale_rates"].items():
        stds = config["stds"] if "," in method else [0.0, *config["stds"]]
        points += [("scale", method, std, lr) for std in stds
                   for lr in rates]
    points += [("sigmoid", scheme, 0.0, lr) for scheme in SCHEMES
               for lr in config["sigmoid_rates"]]
    points += [("dead", method, 0.0, lr) for method in ("none", "BN")
               for lr in config["dead_rates"]]
    return [dict(zip(("part", "method", "std", "lr", "seed"), (*p, seed),
                     strict=True)) for p in points
            for seed in config["seeds"]]


def untrained(config, point, features):
    """The network of a point, before training."""
    kind, method = point["part"], point["method"]
    rng = np.random.default_rng(point["seed"])
    if kind == "sigmoid":
        return sigmoid_network(
            features, [config["width"]] * config["sigmoid_depth"], 10,
            method, rng)
    depth = config["dead_depth" if kind == "dead" else "scale_depth"]
    return relu_network(
        features, [config["width"]] * depth, 10, method != "none", rng,
        point["std"] or None, config["std_0"] if "," in method else None)


def several(config, points, tick):
    """Train networks of one kind side by side; what is measured of each.

    Methods of the part "scale": "none" and "BN" draw all weights with the
    point's std; "BN, head" those of the last layer with std_0; "BN, lr"
    also multiplies the learning rate of the hidden weights by
    (std / std_0)^2.
    """
    x, y, x_test, y_test = load(config["data"])
    x, y = x[:config["train"]], y[:config["train"]]
    x_test, y_test = x_test[:config["test"]], y_test[:config["test"]]
    nets = [untrained(config, point, x.shape[1]) for point in points]
    look = x[:config["look"]]
    before = [(saturated(net, look), logit_spread(net, look))
              if point["part"] == "sigmoid" else None
              for net, point in zip(nets, points, strict=True)]
    lrs = [point["lr"] for point in points]
    train_apart(
        nets, x, y, config["steps"], config["batch_size"], lrs,
        [p["lr"] * (p["std"] / config["std_0"]) ** 2
         if p["method"] == "BN, lr" else p["lr"] for p in points],
        [point["seed"] for point in points])
    rows = []
    for net, point, first in zip(nets, points, before, strict=True):
        finite = is_finite(net)
        with np.errstate(over="ignore", invalid="ignore"):
            row = {"accuracy": round(accuracy(net, x_test, y_test), 4),
                   "finite": int(finite)}
        if point["part"] == "sigmoid":
            row |= {"saturated_before": first[0], "spread_before": first[1],
                    "saturated_after": saturated(net, look)}
        if point["part"] == "dead":
            row |= {"dead": dead_units(net, x),
                    "dead_in_training": dead_units(net, x,
                                                   config["batch_size"])}
        rows.append({k: [round(a, 4) for a in v] if isinstance(v, list)
                     else v for k, v in row.items()})
    tick(config["steps"])
    return rows


def initialisation(config, point, tick):
    """`several` for one point."""
    return several(config, [point], tick)[0]


def alike(point):
    """Points that have networks of the same layers."""
    if point["part"] == "sigmoid":
        return f"sigmoid {point['method'] == 'BN'}"
    return f"{point['part']} {point['method'] == 'none'}"


SMALL = [1e-7, 1e-6, 1e-5, 1e-4, 1e-3]
FULL = {
    "data": "mnist",
    "train": 6000,
    "test": 2000,
    "look": 500,
    "stds": [0.001, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0],
    "std_0": 0.1,
    "scale_rates": {"none": [*SMALL, 0.01, 0.1, 0.3, 1.0],
                    "BN": [0.03, 0.1, 0.3, 1.0, 3.0],
                    "BN, head": [0.03, 0.1, 0.3, 1.0, 3.0],
                    "BN, lr": [0.03, 0.1, 0.3, 1.0, 3.0]},
    "sigmoid_rates": [0.03, 0.1, 0.3, 1.0, 3.0, 10.0],
    "dead_rates": [0.01, 0.1, 0.3, 0.5, 1.0, 3.0, 10.0],
    "scale_depth": 5,
    "sigmoid_depth": 8,
    "dead_depth": 4,
    "width": 100,
    "batch_size": 32,
    "steps": 600,
    "seeds": [0, 1, 2],
}

EXPERIMENT = Experiment(
    title="Initial weights of many scales, sigmoid layers and dead units, "
          "with and without batch normalization",
    live=FULL | {
        "data": "digits",
        "train": 1437,
        "test": 360,
        "stds": [0.01, 0.1, 1.0],
        "scale_rates": {"none": [0.1], "BN": [0.1], "BN, head": [0.1],
                        "BN, lr": [0.1]},
        "sigmoid_rates": [1.0],
        "dead_rates": [0.1, 3.0],
        "width": 32,
        "steps": 200,
        "seeds": [0],
    },
    full=FULL,
    points=grid,
    steps=lambda config, point: config["steps"],
    run=initialisation,
    code=(relu_network, sigmoid_network, train_apart, is_finite, after,
          dead_units, saturated, logit_spread, grid, untrained, several,
          initialisation, stacked, part, ManyLinear,
          cross_entropy, descend, batches, accuracy),
    several=several,
    alike=alike,
)
