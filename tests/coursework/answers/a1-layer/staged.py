# %% [markdown]
# The computation graph, a node at a time, its small functions apart.

# %%
from collections import OrderedDict

import numpy as np


# %%
def mean_of_rows(z, rows):
    """Mean over the chosen rows."""
    return np.einsum("n,nc->c", rows.astype(z.dtype), z) / np.sum(rows)


def spread_mean(dmean, rows):
    """Backward of mean_of_rows: each chosen row gets its share."""
    return np.where(rows[:, None], dmean, 0) / np.sum(rows)


# %% answer="q1-forward"
def rows_norm_forward(x, rows, gamma, beta, eps=1e-5):
    """Nodes by name, then the tuple that was asked for."""
    if not np.sum(rows) >= 2:
        raise ValueError("rows: choose at least two")
    node = {"x": x}
    node["mu"] = mean_of_rows(x, rows)
    node["d"] = node["x"] - node["mu"]
    node["q"] = np.square(node["d"])
    node["var"] = mean_of_rows(node["q"], rows)
    node["std"] = np.sqrt(node["var"] + eps)
    node["s"] = np.divide(1, node["std"])
    node["xhat"] = node["d"] * node["s"]
    node["y"] = np.add(np.multiply(gamma, node["xhat"]), beta)
    return (node["y"].astype(x.dtype),
            (node["xhat"], node["s"], gamma, rows))


# %% answer="q2-backward"
def rows_norm_backward(dy, cache):
    xhat, s, gamma, rows = cache
    d = xhat / s
    grad = {"beta": dy.sum(axis=0), "gamma": np.sum(dy * xhat, axis=0)}
    grad["xhat"] = dy * gamma
    grad["s"] = np.sum(grad["xhat"] * d, axis=0)
    grad["var"] = -0.5 * s ** 3 * grad["s"]
    grad["q"] = spread_mean(grad["var"], rows)
    grad["d"] = grad["xhat"] * s + 2 * d * grad["q"]
    grad["mu"] = -np.sum(grad["d"], axis=0)
    grad["x"] = grad["d"] + spread_mean(grad["mu"], rows)
    return grad["x"].astype(dy.dtype), grad["gamma"], grad["beta"]


# %% answer="q3-layer"
class NormRows:
    BUFFERS = "running_mean", "running_var", "num_batches_tracked"

    def __init__(self, num_features, eps=1e-5, momentum=0.1):
        self.state = OrderedDict(
            weight=np.ones(num_features), bias=np.zeros(num_features),
            running_mean=np.zeros(num_features),
            running_var=np.ones(num_features),
            num_batches_tracked=np.zeros((), int))
        self.eps, self.momentum, self.training = eps, momentum, True
        self.grads, self.tape = {}, []

    def __getattr__(self, name):
        if name != "state" and name in self.state:
            return self.state[name]
        raise AttributeError(name)

    def train(self, mode=True):
        self.training = mode
        return self

    def eval(self):
        self.training = False
        return self

    def __call__(self, x, rows=None):
        if rows is None:
            rows = np.ones(x.shape[0], dtype=bool)
        if self.training:
            return self.in_training(x, rows)
        s = 1 / np.sqrt(self.running_var + self.eps)
        xhat = (x - self.running_mean) * s
        # No row is chosen as far as the gradient goes: constants.
        self.tape = [(xhat, s, self.weight, None)]
        return self.weight * xhat + self.bias

    def in_training(self, x, rows):
        y, cache = rows_norm_forward(x, rows, self.weight, self.bias,
                                     self.eps)
        self.tape = [cache]
        m, p = rows.sum(), self.momentum
        mean = mean_of_rows(x, rows)
        var = mean_of_rows((x - mean) ** 2, rows) * m / (m - 1)
        for name, value in (("running_mean", mean), ("running_var", var)):
            self.state[name] = (1 - p) * self.state[name] + p * value
        self.state["num_batches_tracked"] = self.num_batches_tracked + 1
        return y

    def backward(self, dy):
        xhat, s, gamma, rows = self.tape[-1]
        if rows is None:
            dx, dgamma, dbeta = dy * (gamma * s), (dy * xhat).sum(0), dy.sum(0)
        else:
            dx, dgamma, dbeta = rows_norm_backward(dy, self.tape[-1])
        self.grads = {"weight": dgamma, "bias": dbeta}
        return dx

    def state_dict(self):
        return OrderedDict((k, v.copy()) for k, v in self.state.items())

    def load_state_dict(self, state):
        wrong = set(self.state) ^ set(state)
        if wrong:
            raise ValueError(f"keys that don't fit: {wrong}")
        fresh = OrderedDict((k, np.array(state[k])) for k in self.state)
        for k, v in fresh.items():
            if v.shape != self.state[k].shape:
                raise ValueError(f"{k}: {v.shape} is not "
                                 f"{self.state[k].shape}")
        self.state = fresh


# %%
def project(dx, basis):
    """Coefficients of dx in a basis (k, n), by least squares; residual."""
    found, *_ = np.linalg.lstsq(basis.T, dx, rcond=None)
    return found, np.abs(basis.T @ found - dx).max()


# %% answer="q4-diagnose"
def diagnose(backward):
    """Writes dx as a combination of dy, 1 and xhat, and reads it off."""
    rng = np.random.default_rng(5)
    x, dy = rng.normal(size=(9, 1)), rng.normal(size=(9, 1)) + 0.5
    gamma, eps = np.array([-2.5]), 0.7
    s = 1 / np.sqrt(x.var() + eps)
    xhat = (x - x.mean()) * s
    got = np.asarray(backward(dy, x, gamma, eps), dtype=float)
    basis = np.stack([dy[:, 0], np.ones(9), xhat[:, 0]])
    (k, a, b), rest = project(got[:, 0], basis)
    if rest > 1e-9:
        return "other"
    a = -a / (s * dy.mean())
    b = -b / (s * (dy * xhat).mean())
    k = k / s
    known = {(-2.5, -2.5, -2.5): "right", (-2.5, 0, -2.5): "mean",
             (-2.5, -2.5, 0): "variance", (-2.5, 0, 0): "both",
             (1, 1, 1): "gamma"}
    for parts, name in known.items():
        if np.allclose((k, a, b), parts, atol=1e-7):
            return name
    return "other"
