"""Training some of a random network's numbers and leaving the others."""

import numpy as np

from normlab.lab.experiment import Experiment, load
from normlab.lab.many import (
    ManyLinear,
    cross_entropy,
    descend,
    stacked,
)
from normlab.lab.train import accuracy, batches, outputs
from normlab.numpy_layers import BatchNorm, Linear, ReLU, Sequential


def random_network(arm, features, width, depth, classes, seed):
    """`depth` hidden layers of `width` ReLU units and a last linear layer;
    batch normalization before each ReLU, but none in the arms "biases" and
    "all, no BN", whose layers have biases.

    The same seed draws the same weights, N(0, 2 / fan_in), for every arm.
    Source: He et al. (2015).
    """
    rng, layers = np.random.default_rng(seed), []
    norm = arm not in ("biases", "all, no BN")
    for n_in in [features, *[width] * (depth - 1)]:
        layers.append(Linear(n_in, width, rng, bias=not norm))
        layers += [BatchNorm(width), ReLU()] if norm else [ReLU()]
    return Sequential(*layers, Linear(width, classes, rng))


def chosen(stack, arm, seeds):
    """What an arm trains: {(layer, name): True, or a mask of the array}.

    `stack` is K networks side by side, `seeds` draws each network's random
    weights: two of every unit's, as many as gamma and beta are.
    """
    *body, head = [a for a in stack.layers if not isinstance(a, ReLU)]
    every = {(a, n): True for a in [*body, head] for n in ("weight", "bias")
             if getattr(a, n) is not None}
    norms = {k: v for k, v in every.items() if isinstance(k[0], BatchNorm)}
    last = {k: v for k, v in every.items() if k[0] is head}
    if arm == "random weights":
        draws = [np.random.default_rng([seed, 1]) for seed in seeds]
        return {(a, "weight"): np.stack([two_a_unit(draw, *a.weight.shape[1:])
                                         for draw in draws])
                for a in body if isinstance(a, ManyLinear)}
    return {
        "all": every, "all, no BN": every, "head": last,
        "gamma and beta": norms, "BN and head": norms | last,
        "gamma": {k: v for k, v in norms.items() if k[1] == "weight"},
        "beta": {k: v for k, v in norms.items() if k[1] == "bias"},
        "biases": {k: v for k, v in every.items()
                   if k[1] == "bias" and k[0] is not head},
        "weights": {k: v for k, v in every.items() if k not in norms},
    }[arm]


def two_a_unit(rng, n_in, n_out):
    """A mask (n_in, n_out) with two inputs of each unit, drawn by rng."""
    mask = np.zeros((n_in, n_out), bool)
    for unit in range(n_out):
        mask[rng.choice(n_in, 2, replace=False), unit] = True
    return mask


def count(parts, networks):
    """How many numbers each of the networks side by side trains."""
    return sum(int(np.sum(mask)) if mask is not True
               else getattr(layer, name).size
               for (layer, name), mask in parts.items()) // networks


def keep(stack, parts):
    """Take the gradients away of all that is not trained."""
    for leaf in stack.leaves():
        for name in list(leaf.grads):
            mask = parts.get((leaf, name), False)
            if mask is False:
                del leaf.grads[name]
            elif mask is not True:
                leaf.grads[name] = leaf.grads[name] * mask


def train_some(nets, arm, x, y, steps, batch_size, lrs, seeds):
    """Train what `arm` names in K networks side by side, in place, each at
    its own learning rate and with its own order of mini-batches; returns
    how many numbers that is in each."""
    draws = [batches(len(x), batch_size, seed) for seed in seeds]
    stack = stacked([net.train() for net in nets])
    parts = chosen(stack, arm, seeds)
    rates = np.repeat(np.asarray(lrs, x.dtype), len(nets[0][-1].weight))
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(steps):
            rows = np.stack([next(draw) for draw in draws], axis=1)
            logits = stack(x[rows].reshape(batch_size, -1))
            _, grad = cross_entropy(logits, y[rows])
            stack.backward(grad * rates)
            keep(stack, parts)
            descend(stack)
    return count(parts, len(nets))


def several(config, points, tick):
    """Train networks of one arm and width side by side: test and training
    accuracy, how many numbers were trained, and the share of BN's units
    with |gamma| < 0.01 and of those silent on every test image."""
    x, y, x_test, y_test = load(config["data"])
    x, y = x[:config["images"]], y[:config["images"]]
    arm, width = points[0]["arm"], points[0]["width"]
    nets = [random_network(arm, x.shape[1], width, config["depth"], 10,
                           point["seed"]) for point in points]
    trained = train_some(
        nets, arm, x, y, config["steps"], config["batch_size"],
        [p["lr"] for p in points], [p["seed"] for p in points])
    tick(config["steps"])
    return [{"trained": trained,
             "accuracy": round(accuracy(net, x_test, y_test), 4),
             "training_accuracy": round(accuracy(net, x, y), 4),
             **unit_shares(net, x_test)} for net in nets]


def unit_shares(net, x):
    """The shares of hidden units with |gamma| < 0.01 (None without BN) and
    with output 0 for every row of x in evaluation mode."""
    norms = [a for a in net.layers if isinstance(a, BatchNorm)]
    off = [abs(a.weight) < 0.01 for a in norms]
    silent = [(outputs(Sequential(*net.layers[:i + 1]), x) == 0).all(axis=0)
              for i, a in enumerate(net.layers) if isinstance(a, ReLU)]
    return {"off": round(float(np.mean(off)), 4) if norms else None,
            "silent": round(float(np.mean(silent)), 4)}


def some(config, point, tick):
    """`several` for one point."""
    return several(config, [point], tick)[0]


def points(config):
    """Every arm, width, learning rate and seed of a configuration."""
    return [{"arm": arm, "width": width, "lr": lr, "seed": seed}
            for width in config["widths"] for arm in config["arms"]
            for lr in config["learning_rates"] for seed in config["seeds"]]


ARMS = ["gamma and beta", "gamma", "beta", "random weights", "biases",
        "head", "BN and head", "weights", "all", "all, no BN"]

GAMMA_BETA = {
    "arms": ARMS,
    "seeds": [0, 1, 2],
    "depth": 4,
    "batch_size": 64,
}

EXPERIMENT = Experiment(
    title="Training gamma and beta alone, and other parts, of a random "
          "network of four hidden layers",
    live=GAMMA_BETA | {
        "data": "digits",
        "images": 1437,
        "widths": [64],
        "learning_rates": [0.1, 0.3, 1.0, 3.0],
        "steps": 200,
    },
    full=GAMMA_BETA | {
        "data": "mnist",
        "images": 6000,
        "widths": [32, 128],
        "learning_rates": [0.03, 0.1, 0.3, 1.0, 3.0, 10.0],
        "steps": 800,
    },
    points=points,
    steps=lambda config, point: config["steps"],
    run=some,
    code=(random_network, chosen, two_a_unit, count, keep, train_some,
          several, unit_shares, some, points, stacked, ManyLinear,
          cross_entropy, descend, batches, outputs, accuracy),
    several=several,
    alike=lambda point: (point["arm"], point["width"]),
)
