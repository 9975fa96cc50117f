"""Training several small networks at once, in one array."""

import copy

import numpy as np

from normlab.lab.train import History, batches, check_data, check_marks, whole
from normlab.numpy_layers import (
    BatchNorm,
    Linear,
    Module,
    ReLU,
    Sequential,
    Sigmoid,
    Tanh,
)


def train_many(nets, x, y, steps, batch_size, lrs, seeds, every=None,
               evaluate=None):
    """Train K networks of the same layers and sizes in place, each with a
    learning rate and an order of mini-batches of its own.

    What `train(net, x, y, steps, batch_size, lr, seed, ...)` does for one,
    up to rounding, but each layer computes all K in one call: on small
    networks that is what takes the time. Layers: Linear, BatchNorm, ReLU,
    Sigmoid, Tanh. Returns K Histories; a network that diverges leaves the
    others as they are. Raises TypeError or ValueError for arguments that
    don't fit.
    """
    check_data(x, y)
    steps, k = whole("steps", steps, 0), len(nets)
    if not k or len(lrs) != k or len(seeds) != k:
        raise ValueError("nets, lrs and seeds must be of one length, at "
                         f"least 1; got {k}, {len(lrs)} and {len(seeds)}")
    marks = check_marks(every, evaluate, steps)
    draws = [batches(len(x), batch_size, seed) for seed in seeds]
    stack = stacked([net.train() for net in nets])
    losses, seen = np.empty((k, steps)), []
    classes = len(nets[0][-1].weight)
    rates = np.repeat(np.asarray(lrs, x.dtype), classes)
    values = [[] for _ in nets]
    with np.errstate(over="ignore", invalid="ignore"):
        for step in range(steps + 1):
            if step in marks:
                seen.append(step)
                for net, found in zip(nets, values, strict=True):
                    found.append(evaluate(net))
            if step < steps:
                rows = np.stack([next(draw) for draw in draws], axis=1)
                logits = stack(x[rows].reshape(len(rows), -1))
                losses[:, step], grad = cross_entropy(logits, y[rows])
                # Backward is linear: scaled here, every gradient comes out
                # times its network's learning rate.
                stack.backward(grad * rates)
                descend(stack)
    part(stack, nets)
    return [History(a, list(seen), b)
            for a, b in zip(losses, values, strict=True)]


def cross_entropy(logits, targets):
    """Each network's loss (K,), and the gradient at the logits (N, K *
    classes), for integer targets (N, K)."""
    n, k = targets.shape
    z = logits.reshape(n, k, -1)
    z = z - z.max(axis=2, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(axis=2, keepdims=True))
    at = targets[:, :, None]
    loss = -np.take_along_axis(log_p, at, 2).mean(axis=(0, 2))
    grad = np.exp(log_p)
    np.put_along_axis(grad, at, np.take_along_axis(grad, at, 2) - 1, 2)
    return loss, grad.reshape(n, -1) / n


def descend(stack):
    """Subtract from every parameter its gradient."""
    for leaf in stack.leaves():
        for name, grad in leaf.grads.items():
            w = getattr(leaf, name)
            if w is not None:
                w -= grad


class ManyLinear(Module):
    """K linear layers side by side: x (N, K * in) to (N, K * out), each
    block of columns by its own weight, stored as (in, out), and bias.

    With `first` the gradient at x, which nothing needs, is not computed.
    """

    names = ("weight", "bias")

    def __init__(self, layers, first=False):
        super().__init__()
        self.first, self.bias = first, None
        self.weight = np.stack([a.weight.T for a in layers])  # (K, in, out)
        if layers[0].bias is not None:
            self.bias = np.concatenate([a.bias for a in layers])

    def apart(self, x):
        """x (N, K * features) as a view (K, N, features)."""
        return x.reshape(len(x), len(self.weight), -1).transpose(1, 0, 2)

    def __call__(self, x):
        """y (N, K * out) for x (N, K * in)."""
        self.cache = self.apart(x)
        y = np.empty((len(x), self.weight[:, 0].size), x.dtype)
        np.matmul(self.cache, self.weight, out=self.apart(y))
        if self.bias is not None:
            y += self.bias
        return y

    def backward(self, dy):
        """The gradient at x, or None; fills `grads`."""
        d, x = self.apart(dy), self.saved()
        self.grads = {"weight": x.transpose(0, 2, 1) @ d}
        if self.bias is not None:
            self.grads["bias"] = dy.sum(axis=0)
        if self.first:
            return None
        dx = np.empty((len(dy), self.weight[:, :, 0].size), dy.dtype)
        np.matmul(d, self.weight.transpose(0, 2, 1), out=self.apart(dx))
        return dx


def stacked(nets):
    """One network that computes them all; from here on the arrays of each
    network are views into its arrays."""
    kinds = [[type(a) for a in net.layers] for net in nets]
    if any(kind != kinds[0] for kind in kinds):
        raise ValueError("nets must have the same layers in the same order")
    columns = zip(*(net.layers for net in nets), strict=True)
    return Sequential(*(stack_layers(layers, at == 0)
                        for at, layers in enumerate(columns)))


def stack_layers(layers, at_input=False):
    """K layers of one kind as one layer."""
    first = layers[0]
    if isinstance(first, Linear):
        check_alike(layers, lambda a: (a.weight.shape, a.bias is None))
        many = ManyLinear(layers, at_input)
    elif type(first) is BatchNorm:
        check_alike(layers, lambda a: (
            a.num_features, a.eps, a.momentum, a.affine,
            a.track_running_stats, a.identity[0].dtype))
        many = BatchNorm(
            first.num_features * len(layers), first.eps, first.momentum,
            first.affine, first.track_running_stats,
            first.identity[0].dtype)
        for name, a in many.arrays().items():
            a[...] = (getattr(first, name) if a.ndim == 0 else
                      np.concatenate([getattr(b, name) for b in layers]))
    elif isinstance(first, (ReLU, Sigmoid, Tanh)):
        return type(first)()
    else:
        raise TypeError("nets must be of Linear, BatchNorm, ReLU, Sigmoid "
                        f"and Tanh layers, got {type(first).__name__}")
    for name, a in many.arrays().items():
        for i, layer in enumerate(layers):
            setattr(layer, name, share(a, len(layers), i))
    return many


def share(a, k, i):
    """Network i's part of an array of all k, in its own shape; a counter
    is everybody's."""
    if a.ndim == 0:
        return a
    return a[i].T if a.ndim == 3 else a.reshape(k, -1)[i]


def check_alike(layers, key):
    """Raise ValueError unless key(layer) is the same for all."""
    kinds = {key(layer) for layer in layers}
    if len(kinds) > 1:
        raise ValueError("nets must be alike, apart from their values; in "
                         f"one place they have {sorted(map(str, kinds))}")


def part(stack, nets):
    """Give each network arrays of its own again."""
    for net in nets:
        for leaf in net.leaves():
            for name, a in leaf.arrays().items():
                setattr(leaf, name, copy.copy(a))
