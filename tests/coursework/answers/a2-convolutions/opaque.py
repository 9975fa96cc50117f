# %% [markdown]
# Objects of my own: moments add up with `+`, the cache knows its backward.

# %%
from dataclasses import dataclass, field

import numpy as np


# %%
@dataclass
class Moments:
    """Count, mean and sum of squared deviations."""

    n: int
    mean: np.ndarray
    m2: np.ndarray

    @classmethod
    def of(cls, x):
        """Of images, one image after the other."""
        c = x.shape[1]
        total = cls(0, np.zeros(c), np.zeros(c))
        for image in np.asarray(x, np.float64):
            flat = image.reshape(c, -1)
            mean = flat.mean(axis=1)
            m2 = np.einsum("cl,cl->c", flat - mean[:, None],
                           flat - mean[:, None])
            total = total + cls(flat.shape[1], mean, m2)
        return total

    def __add__(self, other):
        n = self.n + other.n
        if n == 0:
            return self
        delta = other.mean - self.mean
        return Moments(n, self.mean + delta * (other.n / n),
                       self.m2 + other.m2
                       + delta ** 2 * (self.n * other.n / n))

    @property
    def plain(self):
        """As the tuple that is asked for."""
        return self.n, self.mean, self.m2


# %% answer="q1-moments"
def chunk_moments(x):
    return Moments.of(x).plain


def merge(a, b):
    return (Moments(*a) + Moments(*b)).plain


# %%
class ImageCache:
    """What the backward pass needs; nobody else looks inside."""

    __slots__ = ("xhat", "scale", "n")

    def __init__(self, xhat, scale, n):
        self.xhat, self.scale, self.n = xhat, scale, n

    def __bool__(self):
        raise TypeError("a cache is neither true nor false")

    def __eq__(self, other):
        raise TypeError("caches can't be compared")

    __hash__ = None


def per_channel(values):
    """(C,) as it broadcasts over (N, C, H, W)."""
    return np.reshape(values, (1, -1, 1, 1))


# %% answer="q2-images"
def image_norm_forward(x, others, gamma, beta, eps=1e-5):
    whole = Moments.of(x) + Moments(*others)
    s = 1 / np.sqrt(whole.m2 / whole.n + eps)
    xhat = (x.astype(np.float64) - per_channel(whole.mean)) * per_channel(s)
    y = per_channel(gamma) * xhat + per_channel(beta)
    return (y.astype(x.dtype),
            ImageCache(xhat, per_channel(gamma * s), whole.n))


def image_norm_backward(dy, cache):
    if not isinstance(cache, ImageCache):
        raise TypeError(f"cache must be an ImageCache, got {type(cache)}")
    axes = (0, 2, 3)
    dbeta = dy.sum(axis=axes, keepdims=True)
    dgamma = (dy * cache.xhat).sum(axis=axes, keepdims=True)
    dx = dy - dbeta / cache.n - cache.xhat * dgamma / cache.n
    dx = (dx * cache.scale).astype(dy.dtype)
    return dx, dgamma.ravel(), dbeta.ravel()


# %%
@dataclass
class Average:
    """A running average whose share may be 1/t."""

    value: np.ndarray
    share: float = field(default=0.1)

    def towards(self, new):
        """The average after one more."""
        return self.value * (1 - self.share) + new * self.share


# %% answer="q3-track"
def track(buffers, x, momentum=0.1):
    if x[:, 0].size < 2:
        raise ValueError(f"x: two values a channel are needed, got {x.shape}")
    if np.isnan(x).any() or np.isinf(x).any():
        return {k: np.array(v) if np.ndim(v) else int(v)
                for k, v in buffers.items()}
    batch, t = Moments.of(x), int(buffers["num_batches_tracked"]) + 1
    share = {None: 1 / t}.get(momentum, momentum)
    return {
        "running_mean": Average(buffers["running_mean"], share).towards(
            batch.mean),
        "running_var": Average(buffers["running_var"], share).towards(
            batch.m2 / (batch.n - 1)),
        "num_batches_tracked": t}


# %% answer="q4-fuse"
def fuse_after(weight, bias, norm):
    """With homogeneous coordinates: the product of two matrices."""
    flat = weight.reshape(weight.shape[:2]).astype(np.float64)
    bias = np.zeros(len(flat)) if bias is None else bias
    product = layer_matrix(norm) @ augmented(flat, bias)
    return (product[:-1, :-1].reshape(weight.shape).astype(weight.dtype),
            product[:-1, -1].astype(weight.dtype))


def fuse_before(norm, weight, bias):
    flat = weight.reshape(weight.shape[:2]).astype(np.float64)
    bias = np.zeros(len(flat)) if bias is None else bias
    product = augmented(flat, bias) @ layer_matrix(norm)
    return (product[:-1, :-1].reshape(weight.shape).astype(weight.dtype),
            product[:-1, -1].astype(weight.dtype))


# %%
def augmented(w, b):
    """The matrix of x -> w x + b on (x, 1)."""
    out, inp = w.shape
    m = np.zeros((out + 1, inp + 1))
    m[:-1, :-1], m[:-1, -1], m[-1, -1] = w, b, 1
    return m


def layer_matrix(norm):
    """The matrix of the layer in evaluation mode."""
    scale = norm["gamma"] / np.sqrt(norm["var"] + norm["eps"])
    return augmented(np.diag(scale), norm["beta"] - scale * norm["mean"])
