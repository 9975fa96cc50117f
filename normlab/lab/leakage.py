"""Batches that are not a random sample: their samplers, what a network
makes of them, and the experiment of the chapter on leakage."""

import copy
import functools

import numpy as np

from normlab.lab.experiment import Experiment, load
from normlab.lab.train import batches, whole


def shuffled_batches(y, size, seed):
    """Endless mini-batches of the samples with labels y (N,): index arrays
    (size,), in a new order each epoch, whatever the classes."""
    return batches(len(y), size, seed)


def class_batches(y, size, classes, seed):
    """Endless mini-batches, each of a few classes drawn at random, with
    equally many samples of each: index arrays (size,).

    y (N,) labels; `seed` draws classes and samples, neither of them twice
    for one batch. The samples of a class stand together. Raises ValueError
    if `size` is no multiple of `classes`, or if there are too few classes
    or samples.
    """
    y = np.asarray(y)
    size, classes = whole("size", size, 1), whole("classes", classes, 1)
    rows = [np.flatnonzero(y == label) for label in np.unique(y)]
    if classes > len(rows):
        raise ValueError(f"classes must be at most the {len(rows)} classes "
                         f"in y, got {classes}")
    if size % classes:
        raise ValueError("size must be a multiple of classes, got size "
                         f"{size} and classes {classes}")
    each, fewest = size // classes, min(map(len, rows))
    if each > fewest:
        raise ValueError(f"a batch needs {each} samples of a class, but one "
                         f"class has only {fewest}")
    rng = np.random.default_rng(seed)

    def endless():
        while True:
            drawn = rng.choice(len(rows), classes, replace=False)
            yield np.concatenate([rng.choice(rows[k], each, replace=False)
                                  for k in drawn])

    return endless()


def balanced_batches(y, size, seed):
    """Endless mini-batches with equally many samples of every class: index
    arrays (size,). Raises ValueError as class_batches does."""
    return class_batches(y, size, len(np.unique(y)), seed)


def dense_net(sizes, seed, hidden=None, logits=None):
    """Linear layers of `sizes` features, with a ReLU after all but the
    last.

    hidden(features) makes a normalisation before each ReLU, logits(
    features) one behind the last layer; None: there is none. The same seed
    draws the same weights whatever the normalisation: N(0, 2 / fan_in), as
    in He et al. (2015), and biases of 0.
    """
    import torch
    from torch import nn

    draw, layers = torch.Generator().manual_seed(seed), []
    for i, (c_in, c_out) in enumerate(zip(sizes, sizes[1:], strict=False)):
        last = i == len(sizes) - 2
        layers.append(nn.Linear(c_in, c_out))
        nn.init.kaiming_normal_(layers[-1].weight, nonlinearity="relu",
                                generator=draw)
        nn.init.zeros_(layers[-1].bias)
        norm = logits if last else hidden
        layers += [norm(c_out)] if norm else []
        layers += [] if last else [nn.ReLU()]
    return nn.Sequential(*layers)


def fit(net, x, y, draw, steps, lr):
    """Train `net` in place with cross-entropy and plain SGD on the batches
    of rows that `draw` yields; returns the losses (steps,). A run that
    diverges ends with losses that are not finite."""
    import torch

    optimiser = torch.optim.SGD(net.parameters(), lr=lr)
    losses = torch.empty(steps)
    net.train()
    for step in range(steps):
        rows = torch.from_numpy(next(draw))
        loss = torch.nn.functional.cross_entropy(net(x[rows]), y[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses[step] = loss.detach()
    return losses.numpy()


def batch_accuracy(net, x, y, draw, count):
    """The share of samples, 0 to 1, in `count` batches of rows from `draw`
    that a copy of the network in training mode assigns to their class."""
    import torch

    net, right, seen = copy.deepcopy(net).train(), 0, 0
    with torch.no_grad():
        for _ in range(count):
            rows = torch.from_numpy(next(draw))
            right += int((net(x[rows]).argmax(dim=1) == y[rows]).sum())
            seen += len(rows)
    return right / seen


def blank_accuracy(net, x, y, draw, count, blank):
    """How often, 0 to 1, a copy of the network in training mode assigns an
    image that isn't there to its class: in each of `count` batches of rows
    from `draw`, image number 0, 1, 2, ... (then from 0 again) is replaced
    by `blank`."""
    import torch

    net, right = copy.deepcopy(net).train(), 0
    with torch.no_grad():
        for i in range(count):
            rows = torch.from_numpy(next(draw))
            images, k = x[rows], i % len(rows)
            images[k] = blank
            right += int(net(images)[k].argmax() == y[rows[k]])
    return right / count


def recomputed(net, x):
    """A copy of the network in evaluation mode whose running statistics
    are those of all of x at once, layer by layer."""
    import torch

    def fill(layer, inputs):
        layer.running_mean.copy_(inputs[0].mean(dim=0))
        var = inputs[0].var(dim=0, correction=0)
        if hasattr(layer, "running_std"):
            layer.running_std.copy_((var + layer.eps).sqrt())
        else:
            layer.running_var.copy_(var)

    net = copy.deepcopy(net).eval()
    hooks = [layer.register_forward_pre_hook(fill) for layer in net.modules()
             if hasattr(layer, "running_mean")]
    with torch.no_grad():
        net(x)
    for hook in hooks:
        hook.remove()
    return net


def norms(steps):
    """The methods compared: what makes their normalisation layers. Batch
    renormalisation has the paper's schedule for 100,000 steps, shortened to
    `steps`."""
    from torch import nn

    from normlab import zoo

    limits = functools.partial(
        zoo.renorm_limits, start=0.05 * steps, r_end=0.4 * steps,
        d_end=0.25 * steps)
    return {
        "none": None,
        "BN": nn.BatchNorm1d,
        "BRN": lambda c: zoo.BatchRenorm1d(c, limits=limits),
        "LN": nn.LayerNorm,
        "GN": lambda c: nn.GroupNorm(8, c),
        "FN": zoo.FullNorm1d,
        # The gradient through the statistics from this batch alone.
        "FN, own": lambda c: zoo.FullNorm1d(c, backward_momentum=1.0),
        # None: the statistics taken for constants.
        "FN, constant": lambda c: zoo.FullNorm1d(c, backward_momentum=0.0),
    }


def samples(config):
    """A data set's tensors x, y for training, cut to config["samples"], and
    x, y for testing."""
    import torch

    x, y, *test = load(config["data"])
    parts = [x[:config["samples"]], y[:config["samples"]], *test]
    return [torch.from_numpy(np.asarray(a, np.int64 if a.ndim == 1 else None))
            for a in parts]


def draws(y, size, classes, seed):
    """The batches of a point: `classes` classes in each, or shuffled if
    that is 0."""
    return (class_batches(y, size, classes, seed) if classes
            else shuffled_batches(y, size, seed))


def leak(config, point, tick):
    """Train one network on one kind of batch. Its test accuracies: with
    the running statistics, with those of all training data, and in training
    mode on balanced and on shuffled batches of 10; how often it names the
    class of an image that isn't there; and its last training loss."""
    x, y, x_test, y_test = samples(config)
    size, steps = point["batch_size"], config["steps"]
    norm = norms(steps)[point["method"]]
    net = dense_net([x.shape[1], *config["widths"], 10], point["seed"],
                    **{point["place"]: norm})
    losses = fit(net, x, y, draws(y, size, point["classes"], point["seed"]),
                 steps, point["lr"])
    tick(steps)
    count = config["test_batches"]
    found = {name: batch_accuracy(net, x_test, y_test,
                                  draws(y_test, 10, classes, 1), count)
             for name, classes in (("balanced", 10), ("shuffled", 0))}
    found["blank"] = blank_accuracy(net, x_test, y_test, draws(
        y_test, 10, 10, 2), count, x.mean(dim=0))
    for name, model in (("running", net.eval()),
                        ("recomputed", recomputed(net, x))):
        right = model(x_test).argmax(dim=1) == y_test
        found[name] = float(right.float().mean())
    found["loss"] = float(losses[-len(losses) // 5:].mean())
    return {name: round(value, 4) for name, value in found.items()}


def points(config):
    """Every arm of both parts: batches of 10 that are balanced or shuffled,
    and batches of 32 with few classes or shuffled."""
    arms = [(10, classes, method, place)
            for method, place in config["cheats"] for classes in (10, 0)]
    arms += [(32, classes, method, "hidden") for method in config["methods"]
             for classes in config["classes"]]
    return [{"batch_size": size, "classes": classes, "method": method,
             "place": place, "lr": lr, "seed": seed}
            for size, classes, method, place in arms
            for lr in config["learning_rates"] for seed in config["seeds"]]


LEAKAGE = {
    "cheats": [["none", "hidden"], ["LN", "logits"], ["BN", "hidden"],
               ["BN", "logits"]],
    "seeds": [0, 1, 2],
    "widths": [64, 64],
}

EXPERIMENT = Experiment(
    title="Batch normalization and its relatives on balanced batches, on "
          "shuffled ones and on batches of a few classes",
    live=LEAKAGE | {
        "data": "digits",
        "samples": 1437,
        "methods": ["LN", "BN", "FN"],
        "classes": [1, 8],
        "learning_rates": [0.1],
        "steps": 150,
        "test_batches": 100,
    },
    full=LEAKAGE | {
        "data": "mnist",
        "samples": 10_000,
        "methods": ["none", "LN", "GN", "BN", "BRN", "FN", "FN, own",
                    "FN, constant"],
        "classes": [1, 2, 4, 8, 0],
        "learning_rates": [0.03, 0.1, 0.3],
        "steps": 800,
        "test_batches": 200,
    },
    points=points,
    steps=lambda config, point: config["steps"],
    run=leak,
    code=(batches, shuffled_batches, class_batches, dense_net, fit,
          batch_accuracy, blank_accuracy, recomputed, norms, samples, draws,
          leak, points),
    layers=("zoo",),
)
