# %%
# The last question first; a class of my own as the cache; warnings and
# text on stderr.
import sys
import warnings

import numpy as np

print("hello, stderr", file=sys.stderr)
warnings.warn("a warning at load time", stacklevel=1)


# %% answer="q4-renorm-backward"
def renorm_backward(dy, x, gamma, r, d, eps=1e-5):
    warnings.warn("a warning in a call", RuntimeWarning, stacklevel=2)
    norm = Normalised(x, eps)
    inner = norm.xhat * norm.wide(r) + norm.wide(d)
    dgamma = np.sum(dy * inner, axis=norm.axes)
    dx = norm.backward(dy * norm.wide(gamma * r))
    return dx.astype(x.dtype), dgamma, np.sum(dy, axis=norm.axes)


# %% answer="q3-renorm-forward"
def renorm_forward(x, gamma, beta, state, r_max, d_max, momentum=0.1,
                   eps=1e-5):
    norm = Normalised(x, eps)
    if norm.m == 1:
        raise ValueError(f"x of shape {x.shape} has one value a channel")
    old_mean, old_var = state["mean"].copy(), state["var"].copy()
    std = np.sqrt(old_var + eps)
    r = np.maximum(np.minimum(norm.std / std, r_max), 1 / r_max)
    d = np.maximum(np.minimum((norm.mean - old_mean) / std, d_max), -d_max)
    unbiased = norm.var * norm.m / (norm.m - 1)
    state["mean"][...] = old_mean * (1 - momentum) + norm.mean * momentum
    state["var"][...] = old_var * (1 - momentum) + unbiased * momentum
    y = norm.wide(gamma) * (norm.xhat * norm.wide(r) + norm.wide(d))
    return (y + norm.wide(beta)).astype(x.dtype), r, d


# %% answer="q2-ghost"
class Cache:
    """What ghost_backward needs."""

    def __init__(self, norms, gamma):
        self.norms, self.gamma = norms, gamma

    def __eq__(self, other):
        raise TypeError("caches are not compared")

    __hash__ = None


def ghost_forward(x, gamma, beta, ghost_size, eps=1e-5):
    count = max(1, x.shape[0] // ghost_size)
    small = x.shape[0] // count
    larger = x.shape[0] % count
    sizes = [small + 1] * larger + [small] * (count - larger)
    ends = np.cumsum(sizes)
    norms = [Normalised(x[e - s:e], eps) for s, e in zip(sizes, ends)]
    xhat = np.concatenate([n.xhat for n in norms])
    y = norms[0].wide(gamma) * xhat + norms[0].wide(beta)
    return y.astype(x.dtype), Cache(norms, gamma)


def ghost_backward(dy, cache):
    xhat = np.concatenate([n.xhat for n in cache.norms])
    axes = cache.norms[0].axes
    dgamma, dbeta = np.sum(dy * xhat, axis=axes), np.sum(dy, axis=axes)
    dxhat = dy * cache.norms[0].wide(cache.gamma)
    parts, at = [], 0
    for norm in cache.norms:
        parts.append(norm.backward(dxhat[at:at + len(norm.xhat)]))
        at += len(norm.xhat)
    return np.concatenate(parts).astype(norm.dtype), dgamma, dbeta


# %% answer="q1-law"
def variance_law(m, var=1.0, kurtosis=3.0):
    fourth = kurtosis * var**2
    # Var(s^2) = (mu_4 - sigma^4 (m - 3) / (m - 1)) / m
    of_unbiased = (fourth - var**2 * (m - 3) / (m - 1)) / m
    return -var / m, of_unbiased * (1 - 1 / m) ** 2


def measured_law(x, m, var):
    batches = np.array([x[i * m:(i + 1) * m] for i in range(len(x) // m)],
                       dtype=np.longdouble)
    centred = batches - np.mean(batches, axis=1, keepdims=True)
    found = np.mean(centred**2, axis=1)
    bias = np.mean(found) - var
    return float(bias), float(np.mean((found - np.mean(found)) ** 2))


def smallest_m(tolerance, kurtosis=3.0):
    m = np.arange(2, 200_000, dtype=float)
    square = variance_law(m, 1.0, kurtosis)[1] + 1 / m**2
    return int(m[np.argmax(square <= tolerance**2)])


# %%
class Normalised:
    """A group of examples, normalised."""

    def __init__(self, x, eps):
        self.axes = tuple(i for i in range(x.ndim) if i != 1)
        self.column = [-1] + [1] * (x.ndim - 2)
        self.m = x[:, 0].size
        self.mean = np.mean(x, axis=self.axes, dtype=np.float64)
        centred = x - self.wide(self.mean)
        self.var = np.mean(centred * centred, axis=self.axes)
        self.std = np.sqrt(self.var + eps)
        self.xhat = centred / self.wide(self.std)
        self.dtype = x.dtype

    def wide(self, v):
        """v (C,) over x."""
        return np.reshape(v, self.column)

    def backward(self, g):
        """From the gradient at xhat to the one at x."""
        a = np.mean(g, axis=self.axes, keepdims=True)
        b = np.mean(g * self.xhat, axis=self.axes, keepdims=True)
        return (g - a - self.xhat * b) / self.wide(self.std)
