# %%
# Loops over channels and groups, sums in float64; prints as it goes.
import math

import numpy as np

print("NumPy", np.__version__)


# %% answer="q1-law"
def variance_law(m, var=1.0, kurtosis=3.0):
    print("law", m)
    unbiased = var * var * ((kurtosis - 3) / m + 2 / (m - 1))
    shrink = (m - 1) / m
    return shrink * var - var, shrink * shrink * unbiased


def measured_law(x, m, var):
    found = []
    for start in range(0, len(x) - m + 1, m):
        values = [float(v) for v in x[start:start + m]]
        mean = math.fsum(values) / m
        found.append(math.fsum((v - mean) ** 2 for v in values) / m)
    mean = math.fsum(found) / len(found)
    spread = math.fsum((f - mean) ** 2 for f in found) / len(found)
    return mean - var, spread


def smallest_m(tolerance, kurtosis=3.0):
    def fits(m):
        bias, variance = variance_law(m, 1.0, kurtosis)
        return math.sqrt(bias * bias + variance) <= tolerance

    high = 2
    while not fits(high):
        high *= 2
    low = 2
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    return low


# %%
print([smallest_m(t) for t in (0.5, 0.3, 0.1)])


# %% answer="q2-ghost"
def groups_of(n, ghost_size):
    """First and last example of each group."""
    count = max(1, n // ghost_size)
    short, extra = divmod(n, count)
    bounds, at = [], 0
    for j in range(count):
        size = short + (1 if j < extra else 0)
        bounds.append((at, at + size))
        at += size
    return bounds


def ghost_forward(x, gamma, beta, ghost_size, eps=1e-5):
    y = np.zeros(x.shape)
    xhat = np.zeros(x.shape)
    inv_std = {}
    bounds = groups_of(x.shape[0], ghost_size)
    for first, last in bounds:
        for c in range(x.shape[1]):
            v = x[first:last, c].astype(np.float64)
            v = v - v.sum() / v.size
            inv_std[first, c] = 1 / math.sqrt((v * v).sum() / v.size + eps)
            xhat[first:last, c] = v * inv_std[first, c]
            y[first:last, c] = xhat[first:last, c] * gamma[c] + beta[c]
    print("groups:", bounds)
    cache = {"xhat": xhat, "inv_std": inv_std, "bounds": bounds,
             "gamma": gamma.copy(), "dtype": x.dtype}
    return y.astype(x.dtype), cache


def ghost_backward(dy, cache):
    dx = np.zeros(dy.shape)
    dgamma, dbeta = np.zeros(dy.shape[1]), np.zeros(dy.shape[1])
    for first, last in cache["bounds"]:
        for c in range(dy.shape[1]):
            g, h = dy[first:last, c], cache["xhat"][first:last, c]
            b, a = g.sum(), (g * h).sum()
            dgamma[c] += a
            dbeta[c] += b
            dx[first:last, c] = cache["gamma"][c] * cache["inv_std"][
                first, c] / g.size * (g.size * g - b - h * a)
    return dx.astype(cache["dtype"]), dgamma, dbeta


# %% answer="q3-renorm-forward"
def renorm_forward(x, gamma, beta, state, r_max, d_max, momentum=0.1,
                   eps=1e-5):
    y, r, d = np.zeros(x.shape), [], []
    if x[:, 0].size == 1:
        raise ValueError("need two values")
    for c in range(x.shape[1]):
        v = x[:, c].astype(np.float64)
        mu = v.sum() / v.size
        var = ((v - mu) ** 2).sum() / v.size
        own, known = math.sqrt(var + eps), math.sqrt(state["var"][c] + eps)
        r.append(min(max(own / known, 1 / r_max), r_max))
        d.append(min(max((mu - state["mean"][c]) / known, -d_max), d_max))
        y[:, c] = gamma[c] * ((v - mu) / own * r[c] + d[c]) + beta[c]
        # In place, after r and d of this channel are known.
        state["mean"][c] += momentum * (mu - state["mean"][c])
        bessel = v.size / (v.size - 1)
        state["var"][c] += momentum * (var * bessel - state["var"][c])
    return y.astype(x.dtype), np.array(r), np.array(d)


# %% answer="q4-renorm-backward"
def renorm_backward(dy, x, gamma, r, d, eps=1e-5):
    dx = np.zeros_like(x)
    dgamma, dbeta = [], []
    for c in range(x.shape[1]):
        v, g = x[:, c], dy[:, c]
        m = v.size
        mu = v.mean()
        s = 1 / math.sqrt(((v - mu) ** 2).mean() + eps)
        dbeta.append(g.sum())
        dgamma.append((g * (r[c] * (v - mu) * s + d[c])).sum())
        # Through x, the variance and the mean, one after the other.
        dh = g * gamma[c] * r[c]
        dvar = -0.5 * s**3 * (dh * (v - mu)).sum()
        dmu = -s * dh.sum()
        dx[:, c] = dh * s + 2 * dvar * (v - mu) / m + dmu / m
    return dx, np.array(dgamma), np.array(dbeta)
