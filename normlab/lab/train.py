"""Training a NumPy network: mini-batches, the loop, accuracy."""

from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from normlab.numpy_layers import SGD, SoftmaxCrossEntropy


class History(NamedTuple):
    """What `train` saw."""
    losses: np.ndarray  # (steps,), the loss of each mini-batch
    steps: list  # after how many steps `evaluate` was called
    values: list  # what it returned


def train(net, x, y, steps, batch_size, lr, seed, momentum=0.0, every=None,
          evaluate=None):
    """Train `net` in place with softmax cross-entropy and SGD.

    x (N, features) floats, y (N,) integers; `seed` (an integer or a NumPy
    generator) orders the mini-batches. evaluate(net) is called after each
    multiple of `every`, or after each step that the list `every` names
    (0 is before the first), with the net in training mode. Returns a
    History. A run that diverges ends with losses that are not finite; it
    raises nothing. Raises TypeError or ValueError for arguments that don't
    fit.
    """
    check_data(x, y)
    steps = whole("steps", steps, 0)
    marks = check_marks(every, evaluate, steps)
    draw = batches(len(x), batch_size, seed)
    loss, rule = SoftmaxCrossEntropy(), SGD(net, lr, momentum)
    losses, seen, values = np.empty(steps), [], []
    net.train()
    with np.errstate(over="ignore", invalid="ignore"):
        for step in range(steps + 1):
            if step in marks:
                seen.append(step)
                values.append(evaluate(net))
            if step < steps:
                rows = next(draw)
                losses[step] = loss(net(x[rows]), y[rows])
                net.backward(loss.backward())
                rule.step()
    return History(losses, seen, values)


def batches(n, size, seed):
    """Endless mini-batches: index arrays (size,) that go through n samples
    in a new order each epoch.

    What remains at an epoch's end, fewer than `size`, is left out, so that
    no batch has statistics of fewer samples.
    """
    n, size = whole("n", n, 1), whole("batch_size", size, 1)
    if size > n:
        raise ValueError(
            f"batch_size must be at most the {n} samples, got {size}")
    rng = np.random.default_rng(seed)

    def endless():
        while True:
            order = rng.permutation(n)
            for start in range(0, n - size + 1, size):
                yield order[start:start + size]

    return endless()


def outputs(net, x, size=2000):
    """The network's outputs for x in evaluation mode, `size` samples at a
    time. Each layer keeps the mode it had."""
    size = whole("size", size, 1)
    if len(x) == 0:
        raise ValueError("x must hold at least one sample, got none")
    with evaluating(net):
        return np.concatenate(
            [net(x[i:i + size]) for i in range(0, len(x), size)])


def accuracy(net, x, y):
    """The share of samples, 0 to 1, that the network in evaluation mode
    assigns to their class. Each layer keeps the mode it had."""
    check_data(x, y)
    return float((outputs(net, x).argmax(axis=1) == y).mean())


@contextmanager
def evaluating(net):
    """Put a network in evaluation mode, then each layer back in its own."""
    modes = [(layer, layer.training) for layer in everything(net)]
    net.eval()
    try:
        yield net
    finally:
        for layer, mode in modes:
            layer.training = mode


def everything(net):
    """A network and all layers in it."""
    yield net
    for layer in getattr(net, "layers", ()):
        yield from everything(layer)


def check_data(x, y):
    """Raise ValueError unless y has one integer for each sample of x."""
    x, y = np.asarray(x), np.asarray(y)
    if y.dtype.kind not in "iu":
        raise TypeError(f"y must hold integers, got {y.dtype}")
    if x.ndim < 2 or y.shape != x.shape[:1]:
        raise ValueError("x must be (N, ...) and y (N,), got shapes "
                         f"{x.shape} and {y.shape}")


def check_marks(every, evaluate, steps):
    """The steps after which to evaluate, as a set or range."""
    if (every is None) != (evaluate is None):
        raise ValueError("every and evaluate must be given together or "
                         "neither")
    if every is None:
        return ()
    if np.ndim(every) == 0:
        gap = whole("every", every, 1)
        return range(gap, steps + 1, gap)
    marks = {whole("every", mark, 0) for mark in every}
    if marks and max(marks) > steps:
        raise ValueError(f"every must name steps from 0 to {steps}, got "
                         f"{max(marks)}")
    return marks


def whole(name, value, least):
    """`value` as an int; TypeError or ValueError unless it is a whole
    number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return int(value)
