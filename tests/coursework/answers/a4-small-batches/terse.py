# %%
# The shortest formulas that are right.
import numpy as np


# %% answer="q1-law"
def variance_law(m, var=1.0, kurtosis=3.0):
    return -var / m, var**2 * (m - 1) / m**3 * (
        (m - 1) * kurtosis - (m - 3))


def measured_law(x, m, var):
    s = x[:x.size - x.size % m].astype(float).reshape(-1, m).var(1)
    return s.mean() - var, s.var()


def smallest_m(tolerance, kurtosis=3.0):
    return next(m for m in range(2, 10**7)
                if np.hypot(1 / m, variance_law(m, 1, kurtosis)[1] ** 0.5)
                <= tolerance)


# %% answer="q2-ghost"
def ghost_forward(x, gamma, beta, ghost_size, eps=1e-5):
    a, col = (0, *range(2, x.ndim)), (-1, *[1] * (x.ndim - 2))
    parts = np.array_split(x, max(1, len(x) // ghost_size))
    s = [(p.var(a, keepdims=True) + eps) ** -0.5 for p in parts]
    h = [(p - p.mean(a, keepdims=True)) * t for p, t in zip(parts, s)]
    y = gamma.reshape(col) * np.concatenate(h) + beta.reshape(col)
    return y.astype(x.dtype), (h, s, gamma.reshape(col), a)


def ghost_backward(dy, cache):
    h, s, gamma, a = cache
    cuts = np.cumsum([len(p) for p in h])[:-1]
    dx = [gamma * t * (g - g.mean(a, keepdims=True)
                       - p * (g * p).mean(a, keepdims=True))
          for g, p, t in zip(np.split(dy, cuts), h, s)]
    return (np.concatenate(dx), (dy * np.concatenate(h)).sum(a), dy.sum(a))


# %% answer="q3-renorm-forward"
def renorm_forward(x, gamma, beta, state, r_max, d_max, momentum=0.1,
                   eps=1e-5):
    a, col = (0, *range(2, x.ndim)), (-1, *[1] * (x.ndim - 2))
    if x[:, 0].size < 2:
        raise ValueError("x has one value a channel")
    mu, s, sigma = x.mean(a), np.sqrt(x.var(a) + eps), np.sqrt(
        state["var"] + eps)
    r = (s / sigma).clip(1 / r_max, r_max)
    d = ((mu - state["mean"]) / sigma).clip(-d_max, d_max)
    state["mean"] = state["mean"] + momentum * (mu - state["mean"])
    state["var"] = state["var"] + momentum * (
        x.var(a, ddof=1) - state["var"])
    scale, shift = gamma * r / s, gamma * d + beta
    y = (x - mu.reshape(col)) * scale.reshape(col) + shift.reshape(col)
    return y.astype(x.dtype), r, d


# %% answer="q4-renorm-backward"
def renorm_backward(dy, x, gamma, r, d, eps=1e-5):
    a, col = (0, *range(2, x.ndim)), (-1, *[1] * (x.ndim - 2))
    s = (x.var(a) + eps) ** -0.5
    h = (x - x.mean(a, keepdims=True)) * s.reshape(col)
    dx = (gamma * r * s).reshape(col) * (
        dy - dy.mean(a, keepdims=True)
        - h * (dy * h).mean(a, keepdims=True))
    return (dx, (dy * (h * r.reshape(col) + d.reshape(col))).sum(a),
            dy.sum(a))
