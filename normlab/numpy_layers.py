# Written by `make lib` from the chapters. Do not edit.

__all__ = ["BLOCK", "WIDTH", "CHAIN", "check_array", "check_batch", "in_rows",
           "to_view", "from_view", "cuts", "blocks", "spread", "channel_sums",
           "recentre", "Cache", "normalise", "batch_norm_forward", "combine",
           "pull_back", "check_grad", "batch_norm_backward",
           "batch_norm_double_backward", "Layer", "load_arrays", "Module",
           "affine", "batch_norm_inference", "batch_norm_inference_backward",
           "check_options", "BatchNormState", "update_running",
           "BatchNormForward", "BatchNorm", "Linear", "linear_forward", "ReLU",
           "Tanh", "Sigmoid", "Flatten", "SoftmaxCrossEntropy", "Chain",
           "Sequential", "SGD", "columns", "scatter", "Conv2d", "conv_forward",
           "conv_backward", "GlobalAvgPool2d", "merge_moments",
           "moments_by_layer", "precise_statistics"]

# %% 02-forward
"""Batch normalization and the layers around it, in NumPy."""
import math
from typing import NamedTuple

import numpy as np

BLOCK = 1 << 18  # values handled at a time: 1 MB of float32 stays in cache
WIDTH = 1024  # values in a folded row
CHAIN = 1024  # longest sum taken in the input's own precision

# %% 02-forward
def check_array(name, value, ndim=None):
    """Raise TypeError unless `value` is an array of floats, ValueError
    unless it has `ndim` axes (None: at least two) and some values."""
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
        got = getattr(value, "dtype", type(value).__name__)
        raise TypeError(f"{name} must be a NumPy array of float16, float32 "
                        f"or float64, got {got}")
    if (value.ndim < 2) if ndim is None else (value.ndim != ndim):
        allowed = "2 axes or more (N, C, ...)" if ndim is None else (
            f"{ndim} axes")
        raise ValueError(
            f"{name} must have {allowed}, got shape {value.shape}")
    if value.size == 0:
        raise ValueError(f"{name} must not be empty, got shape {value.shape}")

# %% 02-forward
def check_batch(x, gamma, beta, eps):
    """Raise TypeError or ValueError unless x (N, C, *spatial) can be
    normalised with gamma (C,), beta (C,) and eps > 0."""
    check_array("x", x)
    for name, value in (("gamma", gamma), ("beta", beta)):
        check_array(name, value, ndim=1)
        if len(value) != x.shape[1]:
            raise ValueError(f"{name} must have one value a channel, shape "
                             f"({x.shape[1]},), got {value.shape}")
    if not eps > 0:
        raise ValueError(f"eps must be positive, got {eps}")
    if x.size == x.shape[1]:
        raise ValueError("x must have more than 1 value a channel in "
                         f"training, got shape {x.shape}")

# %% 02-forward
def in_rows(x):
    """Whether the channels of x (N, C, *spatial) lie side by side in
    memory, as in (N, C) or in channels-last images."""
    return x.ndim == 2 or (
        not x.flags.c_contiguous
        and np.moveaxis(x, 1, -1).flags.c_contiguous)


def to_view(x, rows):
    """x (N, C, *spatial) as planes (N, C, L) or, with k samples side by
    side, as rows (R, k*C); no copy if the memory has that order."""
    n, c = x.shape[:2]
    if x.dtype == np.float16:
        x = x.astype(np.float32)
    if not rows:
        return x.reshape(n, c, -1)
    widest = 1 << max(1, WIDTH // c).bit_length() - 1
    k = math.gcd(x.size // c, widest)
    return (x if x.ndim == 2 else np.moveaxis(x, 1, -1)).reshape(-1, k * c)

# %% 02-forward
def from_view(v, x, rows):
    """Undo `to_view`: v with the shape and dtype of x, never a copy
    unless x is float16."""
    n, c, *space = x.shape
    if not rows:
        v = v.reshape(x.shape)
    else:
        v = v.reshape(n, *space, c)
        v = np.moveaxis(v, -1, 1) if space else v
    return v.astype(x.dtype, copy=False)


def cuts(v, axis, step):
    """Indices that cut v along `axis` into pieces of `step`."""
    before = (slice(None),) * axis
    return [(*before, slice(i, i + step))
            for i in range(0, v.shape[axis], step)]


def blocks(v, axis):
    """Indices that cut v along `axis` into pieces of about BLOCK values."""
    return cuts(v, axis, max(1, BLOCK * v.shape[axis] // v.size))

# %% 02-forward
def spread(values, v):
    """(C,) values, one a channel, as they broadcast over the view v."""
    values = values.astype(v.dtype)
    if v.ndim == 3:
        return values[:, None]
    return np.concatenate([values] * (v.shape[1] // len(values)))


def channel_sums(c, a, b=None):
    """Sum of a, or of a * b, over each of the c channels: (C,) float64."""
    axis = 2 if a.ndim == 3 else 0
    if a.shape[axis] > CHAIN:
        return sum(channel_sums(c, a[i], b if b is None else b[i])
                   for i in cuts(a, axis, CHAIN))
    if a.ndim == 3:
        s = a.sum(axis=2) if b is None else np.vecdot(a, b)
        return s.sum(axis=0, dtype=np.float64)
    s = a.sum(axis=0) if b is None else np.einsum("rk,rk->k", a, b)
    return s.reshape(-1, c).sum(axis=0, dtype=np.float64)

# %% 02-forward
def recentre(v, out, c):
    """Write v - shift to `out`; return shift, rest and var, each (C,).

    shift + rest is the mean of each channel, in two parts because one
    number of v's precision can't hold it; var is the biased variance.
    """
    m, parts = v.size // c, blocks(v, 0) if v.ndim == 2 else [...]
    shift = sum(channel_sums(c, v[i]) for i in parts) / m
    shift = shift.astype(v.dtype)
    at = spread(shift, v)
    rest = square = 0.0
    for i in parts:
        d = np.subtract(v[i], at, out=out[i])
        rest = rest + channel_sums(c, d) / m
        square = square + channel_sums(c, d, d) / m
    return shift, rest, np.maximum(square - rest * rest, 0)

# %% 02-forward
class Cache(NamedTuple):
    """What the backward pass needs; x and gamma are kept, not copied."""
    x: np.ndarray  # (N, C, *spatial)
    gamma: np.ndarray  # (C,)
    shift: np.ndarray  # (C,), mean = shift + rest
    rest: np.ndarray  # (C,)
    var: np.ndarray  # (C,), biased
    inv_std: np.ndarray  # (C,), 1 / sqrt(var + eps)


def normalise(v, y, gamma, beta, eps):
    """Write the normalised view v to y; return the last four of Cache."""
    shift, rest, var = recentre(v, y, len(gamma))
    inv_std = 1 / np.sqrt(var + eps)
    scale = gamma * inv_std
    offset = spread(beta - rest * scale, v)
    scale = spread(scale, v)
    for i in blocks(v, 0) if v.ndim == 2 else [...]:
        y[i] *= scale
        y[i] += offset
    return shift, rest, var, inv_std

# %% 02-forward
def batch_norm_forward(x, gamma, beta, eps=1e-5):
    """Normalise each channel of a batch over all its other axes.

    x (N, C) or (N, C, *spatial), gamma and beta (C,), all floats. Returns
    y, with the shape, dtype and channel order of x, and the cache for
    `batch_norm_backward`, which holds x itself: leave x unchanged until
    then. Raises TypeError or ValueError for what can't be normalised.
    Source: Ioffe and Szegedy (2015), Algorithm 1.
    """
    check_batch(x, gamma, beta, eps)
    rows = in_rows(x)
    v = to_view(x, rows)  # planes (N, C, L) or rows (R, k*C)
    y = np.empty_like(v)
    if rows:
        stats = normalise(v, y, gamma, beta, eps)
    else:
        parts = [normalise(v[j], y[j], gamma[j[1]], beta[j[1]], eps)
                 for j in blocks(v, 1)]
        stats = map(np.concatenate, zip(*parts))
    return from_view(y, x, rows), Cache(x, gamma, *stats)

# %% 03-backward
def combine(dx, dy, slope, offset, scale):
    """dx <- scale * (dy + slope * dx + offset), a block at a time."""
    slope, offset, scale = (spread(t, dx) for t in (slope, offset, scale))
    for i in blocks(dx, 0) if dx.ndim == 2 else [...]:
        dx[i] *= slope
        dx[i] += offset
        dx[i] += dy[i]
        dx[i] *= scale


def pull_back(dy, v, dx, gamma, shift, rest, inv_std):
    """Write the gradient at the view v to dx; return dgamma, dbeta."""
    c, m, at = len(gamma), v.size // len(gamma), spread(shift, v)
    dbeta = dot = 0.0
    for i in blocks(v, 0) if v.ndim == 2 else [...]:
        d = np.subtract(v[i], at, out=dx[i])
        dbeta = dbeta + channel_sums(c, dy[i])
        dot = dot + channel_sums(c, dy[i], d)
    dgamma = (dot - rest * dbeta) * inv_std
    slope = -inv_std * dgamma / m
    combine(dx, dy, slope, -dbeta / m - slope * rest, gamma * inv_std)
    return dgamma, dbeta

# %% 03-backward
def check_grad(dy, x, name="dy"):
    """Raise TypeError or ValueError, under this name, unless dy can be a
    gradient for a layer whose input is x."""
    check_array(name, dy, ndim=x.ndim)
    if dy.shape != x.shape:
        raise ValueError(
            f"{name} must have the shape of x, {x.shape}, got {dy.shape}")

# %% 03-backward
def batch_norm_backward(dy, cache):
    """Gradients of a loss through `batch_norm_forward`.

    dy (N, C, *spatial) is the loss's gradient at y. Returns dx with the
    shape, dtype and channel order of x, and dgamma, dbeta (C,) with the
    dtype of gamma. Raises TypeError or ValueError if dy doesn't fit.
    """
    x, gamma, shift, rest, _, inv_std = cache
    check_grad(dy, x)
    rows = in_rows(x)
    v, dv = to_view(x, rows), to_view(dy, rows)
    dx = np.empty_like(v)
    known = gamma, shift, rest, inv_std
    if rows:
        dgamma, dbeta = pull_back(dv, v, dx, *known)
    else:
        parts = [pull_back(dv[j], v[j], dx[j], *(t[j[1]] for t in known))
                 for j in blocks(v, 1)]
        dgamma, dbeta = map(np.concatenate, zip(*parts))
    return (from_view(dx, x, rows), dgamma.astype(gamma.dtype),
            dbeta.astype(gamma.dtype))

# %% 03-backward
def batch_norm_double_backward(v, dy, cache):
    """Gradients of a scalar through dx = `batch_norm_backward`(dy, cache).

    v (N, C, *spatial) is the scalar's gradient at dx. Returns its
    gradients at x and at dy, shaped like x, and at gamma, (C,). Raises
    TypeError or ValueError if v or dy doesn't fit.
    """
    x, gamma, shift, rest, _, s = cache
    check_grad(dy, x)
    check_grad(v, x, "v")
    to = (1, -1) + (1,) * (x.ndim - 2)
    axes = (0, *range(2, x.ndim))
    m = x.size // x.shape[1]
    xhat = ((x - shift.reshape(to)) - rest.reshape(to)) * s.reshape(to)
    a, b = ((t * xhat).sum(axes, keepdims=True) for t in (v, dy))
    vc, dc = (t - t.mean(axes, keepdims=True) for t in (v, dy))
    k = (vc * dc).sum(axes, keepdims=True) - a * b / m
    vp, dp = vc - xhat * a / m, dc - xhat * b / m
    gs = (gamma * s).reshape(to)
    dx = -gs * s.reshape(to) / m * (k * xhat + b * vp + a * dp)
    dgamma = (v * dp).sum(axes) * s
    return (dx.astype(x.dtype), (gs * vp).astype(x.dtype),
            dgamma.astype(gamma.dtype))

# %% 04-numpy-layer
class Layer:
    """One step of a network: arrays by name, and a mode."""
    names = ()  # of the arrays in a state dict: parameters, then buffers
    training = True

    def train(self, mode=True):
        """Set the training mode, or with False evaluation; return self."""
        self.training = bool(mode)
        return self

    def eval(self):
        """Set the evaluation mode; return self."""
        return self.train(False)

    def arrays(self):
        """The arrays of the state dict, by name, not copied."""
        named = {name: getattr(self, name) for name in self.names}
        return {name: a for name, a in named.items() if a is not None}

    def state_dict(self):
        """Copies of the layer's arrays, under PyTorch's names."""
        return {name: a.copy() for name, a in self.arrays().items()}

# %% 04-numpy-layer
def load_arrays(arrays, state):
    """Copy state[name] to arrays[name] for every name, or raise
    ValueError or TypeError and change nothing."""
    missing, extra = set(arrays) - set(state), set(state) - set(arrays)
    if missing or extra:
        raise ValueError(f"state_dict must have the keys {list(arrays)}; "
                         f"missing: {sorted(missing)}, unexpected: "
                         f"{sorted(extra)}")
    new = {name: np.asarray(state[name]) for name in arrays}
    for name, a in arrays.items():
        if new[name].dtype.kind not in "fiu":
            raise TypeError(f"state_dict[{name!r}] must hold numbers, got "
                            f"dtype {new[name].dtype}")
        if new[name].shape != a.shape:
            raise ValueError(f"state_dict[{name!r}] must have shape "
                             f"{a.shape}, got {new[name].shape}")
    for name, a in arrays.items():
        a[...] = new[name]

# %% 04-numpy-layer
class Module(Layer):
    """A layer that can be loaded, and run backward after a forward."""
    def __init__(self):
        self.grads, self.cache = {}, None

    def load_state_dict(self, state):
        """Take over a state dict, PyTorch's too, whole or not at all;
        raises ValueError or TypeError that names the key."""
        load_arrays(self.arrays(), state)

    def leaves(self):
        """The layers that hold arrays, in order: here, this one."""
        return [self]

    def saved(self):
        """What the last forward pass left; RuntimeError if none did."""
        if self.cache is None:
            raise RuntimeError(f"{type(self).__name__}.backward needs a "
                               "forward pass before it")
        return self.cache

# %% 04-numpy-layer
def affine(v, out, shift, scale, offset):
    """out = (v - shift) * scale + offset per channel, in one pass."""
    shift, scale, offset = (spread(t, v) for t in (shift, scale, offset))
    for i in blocks(v, 0 if v.ndim == 2 else 1):
        j = ... if v.ndim == 2 else i[1]
        np.subtract(v[i], shift[j], out=out[i])
        out[i] *= scale[j]
        out[i] += offset[j]


def batch_norm_inference(x, mean, var, gamma, beta, eps=1e-5):
    """Normalise x (N, C, *spatial) with given mean and var (C,).

    Returns y, shaped like x, and a cache for the backward pass. Raises
    TypeError if x is no array of floats. Source: Ioffe and Szegedy
    (2015), Algorithm 2, line 11.
    """
    v = to_view(x, rows := in_rows(x))
    y = np.empty_like(v)
    inv_std = 1 / np.sqrt(var + eps)
    affine(v, y, mean, gamma * inv_std, beta)
    return from_view(y, x, rows), (x, gamma, mean, inv_std)

# %% 04-numpy-layer
def batch_norm_inference_backward(dy, cache):
    """Gradients through `batch_norm_inference`: dx, dgamma, dbeta.

    The statistics are constants here, so dx = dy * gamma * inv_std.
    """
    x, gamma, mean, inv_std = cache
    check_grad(dy, x)
    rows, c = in_rows(x), len(gamma)
    v, dv = to_view(x, rows), to_view(dy, rows)
    dx = np.empty_like(v)
    affine(v, dx, mean, inv_std, np.zeros_like(mean))  # dx holds x-hat
    dgamma, dbeta = channel_sums(c, dv, dx), channel_sums(c, dv)
    np.multiply(dv, spread(gamma * inv_std, v), out=dx)
    return (from_view(dx, x, rows), dgamma.astype(gamma.dtype),
            dbeta.astype(gamma.dtype))

# %% 04-numpy-layer
def check_options(num_features, eps, momentum, dtype):
    """Raise TypeError or ValueError for options no layer can have."""
    def is_number(v):
        return isinstance(v, (int, float, np.number)) and v is not True

    if not isinstance(num_features, (int, np.integer)) or (
            num_features is True or num_features < 1):
        raise ValueError("num_features must be an integer of at least 1, "
                         f"got {num_features!r}")
    if not is_number(eps) or not eps > 0:
        raise ValueError(f"eps must be a positive number, got {eps!r}")
    if momentum is not None and not (
            is_number(momentum) and 0 <= momentum <= 1):
        raise ValueError("momentum must be None or a number from 0 to 1, "
                         f"got {momentum!r}")
    if np.dtype(dtype).kind != "f":
        raise TypeError(f"dtype must be a float type, got {dtype!r}")

# %% 04-numpy-layer
class BatchNormState(Module):
    """The parameters and running statistics of a `BatchNorm` layer."""
    names = ("weight", "bias", "running_mean", "running_var",
             "num_batches_tracked")

    def __init__(self, num_features, eps=1e-5, momentum=0.1, affine=True,
                 track_running_stats=True, dtype=np.float32):
        check_options(num_features, eps, momentum, dtype)
        super().__init__()
        self.num_features, self.eps = int(num_features), float(eps)
        self.momentum, self.affine = momentum, bool(affine)
        self.track_running_stats = bool(track_running_stats)
        ones, zeros = np.ones(num_features, dtype), np.zeros(
            num_features, dtype)
        self.identity = ones, zeros  # stand in for weight and bias
        self.weight, self.bias = (
            (ones.copy(), zeros.copy()) if affine else (None, None))
        self.running_mean = zeros.copy() if track_running_stats else None
        self.running_var = ones.copy() if track_running_stats else None
        self.num_batches_tracked = (
            np.array(0) if track_running_stats else None)

# %% 04-numpy-layer
def update_running(layer, cache):
    """Move a BatchNorm layer's running estimates towards the batch that
    the cache is of. What they hold is the unbiased variance."""
    layer.num_batches_tracked += 1
    share = layer.momentum
    if share is None:  # the plain average of all batches so far
        share = 1 / int(layer.num_batches_tracked)
    m = cache.x.size // cache.x.shape[1]
    mean, var = cache.shift + cache.rest, cache.var * m / (m - 1)
    layer.running_mean += share * (mean - layer.running_mean)
    layer.running_var += share * (var - layer.running_var)

# %% 04-numpy-layer
class BatchNormForward(BatchNormState):
    """The forward half of `BatchNorm`."""
    def __call__(self, x):
        check_array("x", x)
        if x.shape[1] != self.num_features:
            raise ValueError(f"x must have {self.num_features} channels on "
                             f"axis 1, got shape {x.shape}")
        pair = (self.weight, self.bias) if self.affine else self.identity
        if self.track_running_stats and not self.training:
            y, self.cache = batch_norm_inference(
                x, self.running_mean, self.running_var, *pair, self.eps)
        else:
            y, self.cache = batch_norm_forward(x, *pair, self.eps)
            if self.track_running_stats:
                update_running(self, self.cache)
        return y

# %% 04-numpy-layer
class BatchNorm(BatchNormForward):
    """Batch normalization of (N, C) or (N, C, *spatial): the options,
    meanings and state dict of torch.nn.BatchNorm1d, 2d and 3d.

    Options and arguments that don't fit raise TypeError or ValueError,
    and the layer's arrays stay as they were. Source: Ioffe and Szegedy
    (2015), Algorithms 1 and 2.
    """
    def backward(self, dy):
        """The gradient at x; if affine, fills `grads` as well."""
        cache = self.saved()
        in_training = isinstance(cache, Cache)
        back = (batch_norm_backward if in_training
                else batch_norm_inference_backward)
        dx, dgamma, dbeta = back(dy, cache)
        if self.affine:
            self.grads = {"weight": dgamma, "bias": dbeta}
        return dx

    def __repr__(self):
        return (f"BatchNorm({self.num_features}, eps={self.eps}, momentum="
                f"{self.momentum}, affine={self.affine}, "
                f"track_running_stats={self.track_running_stats})")

# %% 04-numpy-layer
class Linear(Module):
    """y = x W^T + b for x (N, in_features); weight is (out, in), bias
    (out,). `rng`, a NumPy generator, draws weights from N(0, std^2); by
    default std^2 = 2 / in_features, as in He et al. (2015)."""
    names = ("weight", "bias")

    def __init__(self, in_features, out_features, rng, bias=True, std=None,
                 dtype=np.float32):
        super().__init__()
        std = (2 / in_features) ** 0.5 if std is None else std
        w = std * rng.standard_normal((out_features, in_features))
        self.weight = w.astype(dtype)
        self.bias = np.zeros(out_features, dtype) if bias else None

    def __call__(self, x):
        return linear_forward(self, x)

    def backward(self, dy):
        """The gradient at x; fills `grads`."""
        x = self.saved()
        check_array("dy", dy, ndim=2)
        self.grads = {"weight": dy.T @ x, "bias": dy.sum(axis=0)}
        return dy @ self.weight

# %% 04-numpy-layer
def linear_forward(layer, x):
    """The forward pass of `Linear`; raises TypeError or ValueError."""
    check_array("x", x, ndim=2)
    features = layer.weight.shape[1]
    if x.shape[1] != features:
        raise ValueError(
            f"x must have shape (N, {features}), got {x.shape}")
    layer.cache = x
    y = x @ layer.weight.T
    return y if layer.bias is None else y + layer.bias

# %% 04-numpy-layer
class ReLU(Module):
    """y = max(x, 0), x of any shape."""
    def __call__(self, x):
        self.cache = x > 0
        return np.where(self.cache, x, 0)

    def backward(self, dy):
        """The gradient at x."""
        return np.where(self.saved(), dy, 0)


class Tanh(Module):
    """y = tanh(x), x of any shape."""
    def __call__(self, x):
        self.cache = np.tanh(x)
        return self.cache

    def backward(self, dy):
        """The gradient at x."""
        return dy * (1 - self.saved() ** 2)

# %% 04-numpy-layer
class Sigmoid(Module):
    """y = 1 / (1 + exp(-x)), x of any shape, with no overflow."""
    def __call__(self, x):
        self.cache = 0.5 * np.tanh(0.5 * x) + 0.5
        return self.cache

    def backward(self, dy):
        """The gradient at x."""
        y = self.saved()
        return dy * (y * (1 - y))


class Flatten(Module):
    """x (N, ...) as (N, features)."""
    def __call__(self, x):
        self.cache = x.shape
        return x.reshape(len(x), -1)

    def backward(self, dy):
        """The gradient at x."""
        return dy.reshape(self.saved())

# %% 04-numpy-layer
class SoftmaxCrossEntropy(Module):
    """Mean of -log softmax(logits)[target] over a batch."""
    def __call__(self, logits, targets):
        """The loss for logits (N, classes) and integer targets (N,)."""
        check_array("logits", logits, ndim=2)
        n, classes = logits.shape
        if np.shape(targets) != (n,) or not np.issubdtype(
                np.asarray(targets).dtype, np.integer):
            raise ValueError(f"targets must be {n} integers, got shape "
                             f"{np.shape(targets)}")
        z = logits - logits.max(axis=1, keepdims=True)
        log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
        self.cache = log_p, targets
        return -float(log_p[np.arange(n), targets].mean())

    def backward(self):
        """The gradient at the logits: (softmax - one_hot) / N."""
        log_p, targets = self.saved()
        d = np.exp(log_p)
        d[np.arange(len(d)), targets] -= 1
        return d / len(d)

# %% 04-numpy-layer
class Chain(Module):
    """Layers one after the other: forward and backward."""
    def __init__(self, *layers):
        super().__init__()
        self.layers = list(layers)

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x

    def backward(self, dy):
        """The gradient at the input; fills every layer's `grads`."""
        for layer in reversed(self.layers):
            dy = layer.backward(dy)
        return dy

    def __getitem__(self, i):
        return self.layers[i]

    def __len__(self):
        return len(self.layers)

# %% 04-numpy-layer
class Sequential(Chain):
    """Layers one after the other, with modes and state dicts that reach
    each, named as in torch.nn.Sequential."""
    def train(self, mode=True):
        """Set every layer's mode; return self."""
        for layer in self.layers:
            layer.train(mode)
        return super().train(mode)

    def arrays(self):
        """Every array as "index.name", as in torch.nn.Sequential."""
        return {f"{i}.{name}": a for i, layer in enumerate(self.layers)
                for name, a in layer.arrays().items()}

    def leaves(self):
        """Every layer that holds arrays of its own."""
        return [leaf for layer in self.layers for leaf in layer.leaves()]

# %% 04-numpy-layer
class SGD:
    """Stochastic gradient descent, as torch.optim.SGD computes it."""
    def __init__(self, net, lr, momentum=0.0, weight_decay=0.0):
        if not lr >= 0:
            raise ValueError(f"lr must be at least 0, got {lr}")
        self.net, self.lr, self.velocity = net, lr, {}
        self.momentum, self.weight_decay = momentum, weight_decay

    def step(self):
        """Move every parameter that has a gradient."""
        for i, leaf in enumerate(self.net.leaves()):
            for name, grad in leaf.grads.items():
                w = getattr(leaf, name)
                if w is not None:
                    w -= self.lr * self.direction((i, name), w, grad)

    def direction(self, key, w, grad):
        """The gradient with weight decay and momentum."""
        grad = grad + self.weight_decay * w if self.weight_decay else grad
        if self.momentum:
            grad = self.momentum * self.velocity.get(key, 0) + grad
            self.velocity[key] = grad
        return grad

# %% 05-convolutions
def columns(x, kernel, stride, padding, groups):
    """Patches of x (N, C, H, W) as (N, groups, C/groups * kh * kw, H'*W'),
    and the output size (H', W')."""
    n, c, kh, kw = *x.shape[:2], *kernel
    p = padding
    x = np.pad(x, ((0, 0), (0, 0), (p, p), (p, p)))
    w = np.lib.stride_tricks.sliding_window_view(x, kernel, axis=(2, 3))
    w = w[:, :, ::stride, ::stride]  # (N, C, H', W', kh, kw)
    size = w.shape[2:4]
    w = w.transpose(0, 1, 4, 5, 2, 3)
    return w.reshape(n, groups, c // groups * kh * kw, -1), size


def scatter(cols, shape, kernel, stride, padding):
    """Add patches back where `columns` took them: the transpose of it."""
    n, c, h, w = shape
    (kh, kw), p = kernel, padding
    x = np.zeros((n, c, h + 2 * p, w + 2 * p), cols.dtype)
    hh, ww = ((s + 2 * p - k) // stride + 1 for s, k in ((h, kh), (w, kw)))
    cols = cols.reshape(n, c, kh, kw, hh, ww)
    for i, j in np.ndindex(kh, kw):
        x[:, :, i:i + stride * hh:stride, j:j + stride * ww:stride] += (
            cols[:, :, i, j])
    return x[:, :, p:p + h, p:p + w]

# %% 05-convolutions
class Conv2d(Module):
    """torch.nn.Conv2d for x (N, in_channels, H, W); `rng` draws weight
    (out, in/groups, k, k) from N(0, std^2), std^2 = 2 / fan_in if None."""
    names = ("weight", "bias")

    def __init__(self, in_channels, out_channels, kernel_size, rng,
                 stride=1, padding=0, groups=1, bias=True, std=None,
                 dtype=np.float32):
        super().__init__()
        if in_channels % groups or out_channels % groups:
            raise ValueError(f"groups must divide in_channels {in_channels} "
                             f"and out_channels {out_channels}, got {groups}")
        self.stride, self.padding, self.groups = stride, padding, groups
        shape = (out_channels, in_channels // groups) + (kernel_size,) * 2
        std = (2 / math.prod(shape[1:])) ** 0.5 if std is None else std
        self.weight = (std * rng.standard_normal(shape)).astype(dtype)
        self.bias = np.zeros(out_channels, dtype) if bias else None

    def __call__(self, x):
        return conv_forward(self, x)

    def backward(self, dy):
        """The gradient at x; fills `grads`."""
        return conv_backward(self, dy)

# %% 05-convolutions
def conv_forward(layer, x):
    """The forward pass of `Conv2d`; raises TypeError or ValueError."""
    check_array("x", x, ndim=4)
    w, g = layer.weight, layer.groups
    if x.shape[1] != w.shape[1] * g:
        raise ValueError(f"x must have {w.shape[1] * g} channels on axis 1, "
                         f"got shape {x.shape}")
    if min(x.shape[2:]) + 2 * layer.padding < w.shape[2]:
        raise ValueError(f"x must be at least as large as the kernel, "
                         f"{w.shape[2:]}, got shape {x.shape}")
    cols, size = columns(x, w.shape[2:], layer.stride, layer.padding, g)
    layer.cache = x.shape, cols
    y = w.reshape(g, len(w) // g, -1) @ cols  # (N, g, out/g, H'*W')
    y = y.reshape(len(x), len(w), *size)
    return y if layer.bias is None else y + layer.bias[:, None, None]

# %% 05-convolutions
def conv_backward(layer, dy):
    """The backward pass of `Conv2d`."""
    shape, cols = layer.saved()
    w, g, n = layer.weight, layer.groups, shape[0]
    layer.grads = {"bias": dy.sum(axis=(0, 2, 3))}
    dy = dy.reshape(n, g, len(w) // g, -1)
    dw = (dy @ cols.swapaxes(2, 3)).sum(axis=0)
    layer.grads["weight"] = dw.reshape(w.shape)
    dcols = w.reshape(g, len(w) // g, -1).swapaxes(1, 2) @ dy
    return scatter(dcols, shape, w.shape[2:], layer.stride, layer.padding)


class GlobalAvgPool2d(Module):
    """The mean over height and width: (N, C, H, W) to (N, C)."""
    def __call__(self, x):
        self.cache = x.shape
        return x.mean(axis=(2, 3))

    def backward(self, dy):
        """The gradient at x."""
        n, c, h, w = self.saved()
        return np.broadcast_to(dy[:, :, None, None] / (h * w), (n, c, h, w))

# %% 06-train-and-inference
def merge_moments(counts, means, variances):
    """Mean and biased variance (C,) of groups put together.

    counts (G,), means and biased variances (G, C). Averaging the
    variances alone would lose how far the means lie apart.
    Source: Chan, Golub and LeVeque (1983).
    """
    share = np.asarray(counts, float)[:, None] / np.sum(counts)
    means, variances = np.asarray(means), np.asarray(variances)
    mean = (share * means).sum(axis=0)
    return mean, (share * (variances + (means - mean) ** 2)).sum(axis=0)

# %% 06-train-and-inference
def moments_by_layer(net, norms, batches):
    """Run the batches in training mode; for each of norms, the counts,
    means and biased variances it saw. The net's arrays and modes are left
    as they were."""
    leaves, before = net.leaves(), net.state_dict()
    modes = net.training, [leaf.training for leaf in leaves]
    seen = [[] for _ in norms]
    try:
        net.train()
        for x in batches:
            net(x)
            for norm, rows in zip(norms, seen):
                c = norm.cache
                rows.append((c.x.size // c.x.shape[1], c.shift + c.rest,
                             c.var))
    finally:
        net.load_state_dict(before)
        net.train(modes[0])
        for leaf, mode in zip(leaves, modes[1]):
            leaf.train(mode)
    return seen

# %% 06-train-and-inference
def precise_statistics(net, batches):
    """Set the running statistics of net's BatchNorm layers to those of all
    the batches put together, with the weights as they are: PreciseBN.

    Raises ValueError if there is no batch; whatever is raised, the net
    stays as it was. Source: Wu and Johnson (2021), section 3.
    """
    norms = [leaf for leaf in net.leaves()
             if isinstance(leaf, BatchNorm) and leaf.track_running_stats]
    for norm, rows in zip(norms, moments_by_layer(net, norms, batches)):
        if not rows:
            raise ValueError("batches must hold at least one batch, got 0")
        mean, var = merge_moments(*zip(*rows))
        m = sum(count for count, *_ in rows)
        norm.running_mean[...] = mean
        norm.running_var[...] = var * m / (m - 1)
