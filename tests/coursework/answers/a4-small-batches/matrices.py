# %%
# Backward by the Jacobian, as a matrix; groups by a matrix of averages.
import numpy as np


# %% answer="q1-law"
def variance_law(m, var=1.0, kurtosis=3.0):
    c = 1 - 1 / m
    return (c - 1) * var, (c * var) ** 2 * (
        (kurtosis - 3) / m + 2 / (m - 1))


def measured_law(x, m, var):
    x = x.astype(np.float64)
    centre = np.eye(m) - 1 / m
    batches = x[:len(x) - len(x) % m].reshape(-1, m)
    found = ((batches @ centre) ** 2).sum(axis=1) / m
    return found.mean() - var, np.var(found)


def smallest_m(tolerance, kurtosis=3.0):
    m = 1
    error = np.inf
    while error > tolerance:
        m += 1
        error = np.linalg.norm([1 / m, variance_law(m, 1.0, kurtosis)[1]
                                ** 0.5])
    return m


# %% answer="q2-ghost"
def averages(n, ghost_size):
    """(n, n): row i averages over the group of example i."""
    count = max(1, n // ghost_size)
    group = np.sort(np.arange(n) % count)
    same = group[:, None] == group[None, :]
    return same / same.sum(axis=1, keepdims=True)


def flat(x):
    """x as (N, C, S)."""
    return x.reshape(x.shape[0], x.shape[1], -1)


def group_mean(a, v):
    """The mean of v (N, C, S) for each example's group, (N, C, 1)."""
    return (a @ v.mean(axis=2))[:, :, None]


def ghost_forward(x, gamma, beta, ghost_size, eps=1e-5):
    a, v = averages(len(x), ghost_size), flat(x).astype(np.float64)
    centred = v - group_mean(a, v)
    s = (group_mean(a, centred**2) + eps) ** -0.5
    xhat = centred * s
    y = xhat * gamma[:, None] + beta[:, None]
    return y.reshape(x.shape).astype(x.dtype), [a, xhat, s, gamma, x.dtype]


def ghost_backward(dy, cache):
    a, xhat, s, gamma, dtype = cache
    g = flat(dy)
    dx = g - group_mean(a, g) - xhat * group_mean(a, g * xhat)
    dx = gamma[:, None] * s * dx
    return (dx.reshape(dy.shape).astype(dtype),
            np.einsum("ncs,ncs->c", g, xhat), np.einsum("ncs->c", g))


# %% answer="q3-renorm-forward"
def renorm_forward(x, gamma, beta, state, r_max, d_max, momentum=0.1,
                   eps=1e-5):
    v = flat(x).astype(np.float64)
    m = v.shape[0] * v.shape[2]
    if m < 2:
        raise ValueError(f"{m} value a channel")
    mu = np.einsum("ncs->c", v) / m
    var = np.einsum("ncs->c", (v - mu[:, None]) ** 2) / m
    ratio = np.sqrt((var + eps) / (state["var"] + eps))
    r = np.where(ratio > r_max, r_max,
                 np.where(ratio < 1 / r_max, 1 / r_max, ratio))
    far = (mu - state["mean"]) / np.sqrt(state["var"] + eps)
    d = np.sign(far) * np.minimum(np.abs(far), d_max)
    y = (v - mu[:, None]) * (gamma * r * (var + eps) ** -0.5)[:, None]
    y += (gamma * d + beta)[:, None]
    state["mean"] += momentum * (mu - state["mean"])
    state["var"] += momentum * (m / (m - 1) * var - state["var"])
    return y.reshape(x.shape).astype(x.dtype), r, d


# %% answer="q4-renorm-backward"
def renorm_backward(dy, x, gamma, r, d, eps=1e-5):
    dx, dgamma = np.empty(x.shape), np.empty(x.shape[1])
    for c in range(x.shape[1]):
        v, g = x[:, c].ravel(), dy[:, c].ravel()
        m = len(v)
        s = (v.var() + eps) ** -0.5
        h = (v - v.mean()) * s
        jacobian = s * (np.eye(m) - 1 / m - np.outer(h, h) / m)
        dx[:, c] = (gamma[c] * r[c] * jacobian @ g).reshape(x[:, c].shape)
        dgamma[c] = g @ (r[c] * h + d[c])
    axes = tuple(k for k in range(x.ndim) if k != 1)
    return dx.astype(x.dtype), dgamma, dy.sum(axis=axes)
