# %% [markdown]
# Plain loops over columns and rows; the questions in another order.

# %%
import numpy as np


# %% answer="q4-diagnose"
def diagnose(backward):
    names = {(1, 1): "right", (0, 1): "mean", (1, 0): "variance",
             (0, 0): "both"}
    x = np.array([[0.3], [1.9], [-0.8], [0.6], [-1.1]])
    dy = np.array([[1.0], [-0.4], [0.7], [2.2], [0.1]])
    gamma, eps = np.array([1.3]), 0.2
    n = len(x)
    mean = sum(x[i, 0] for i in range(n)) / n
    var = sum((x[i, 0] - mean) ** 2 for i in range(n)) / n
    s = (var + eps) ** -0.5
    xhat = [(x[i, 0] - mean) * s for i in range(n)]
    a = sum(dy[i, 0] for i in range(n)) / n
    b = sum(dy[i, 0] * xhat[i] for i in range(n)) / n
    found = backward(dy, x, gamma, eps)
    for (with_a, with_b), name in names.items():
        for g in (1.3, 1.0):
            off = 0
            for i in range(n):
                want = g * s * (dy[i, 0] - with_a * a - with_b * xhat[i] * b)
                off = max(off, abs(want - found[i, 0]))
            if off < 1e-8 and g != 1.0:
                return name
            if off < 1e-8 and name == "right":
                return "gamma"
    return "other"


# %% answer="q3-layer"
class NormRows:
    """Everything written out; eval mode keeps its own cache."""

    def __init__(self, num_features, eps=1e-5, momentum=0.1):
        self.c = num_features
        self.weight = np.ones(self.c)
        self.bias = np.zeros(self.c)
        self.running_mean = np.zeros(self.c)
        self.running_var = np.ones(self.c)
        self.num_batches_tracked = 0
        self.eps = eps
        self.momentum = momentum
        self.mode = "train"
        self.grads = {}

    def train(self, mode=True):
        self.mode = "train" if mode else "eval"
        return self

    def eval(self):
        self.mode = "eval"
        return self

    def __call__(self, x, rows=None):
        self.ran_in = self.mode
        if self.mode == "train":
            if rows is None:
                rows = np.array([True] * len(x))
            y, self.cache = rows_norm_forward(
                x, rows, self.weight, self.bias, self.eps)
            chosen = [x[i] for i in range(len(x)) if rows[i]]
            p = self.momentum
            for j in range(self.c):
                column = [row[j] for row in chosen]
                mean = sum(column) / len(column)
                var = sum((v - mean) ** 2 for v in column)
                var = var / (len(column) - 1)
                self.running_mean[j] *= 1 - p
                self.running_mean[j] += p * mean
                self.running_var[j] *= 1 - p
                self.running_var[j] += p * var
            self.num_batches_tracked = self.num_batches_tracked + 1
            return y
        s = 1 / (self.running_var + self.eps) ** 0.5
        xhat = (x - self.running_mean) * s
        self.cache = (xhat, s)
        return xhat * self.weight + self.bias

    def backward(self, dy):
        if self.ran_in == "train":
            dx, dw, db = rows_norm_backward(dy, self.cache)
        else:
            xhat, s = self.cache
            dx, dw, db = dy * s * self.weight, sum(dy * xhat), sum(dy)
        self.grads["weight"] = dw
        self.grads["bias"] = db
        return dx

    def state_dict(self):
        return {"weight": self.weight.copy(), "bias": self.bias.copy(),
                "running_mean": self.running_mean.copy(),
                "running_var": self.running_var.copy(),
                "num_batches_tracked": self.num_batches_tracked}

    def load_state_dict(self, state):
        mine = self.state_dict()
        for name in mine:
            if name not in state:
                raise ValueError(name + " is missing")
        for name in state:
            if name not in mine:
                raise ValueError(name + " is not known")
            if np.shape(state[name]) != np.shape(mine[name]):
                raise ValueError(name + " has the wrong shape")
        self.weight = np.array(state["weight"])
        self.bias = np.array(state["bias"])
        self.running_mean = np.array(state["running_mean"])
        self.running_var = np.array(state["running_var"])
        self.num_batches_tracked = int(state["num_batches_tracked"])


# %% answer="q2-backward"
def rows_norm_backward(dy, cache):
    xhat, s, gamma, rows = cache
    n, c = dy.shape
    m = sum(1 for r in rows if r)
    dx = np.zeros((n, c), dy.dtype)
    dgamma, dbeta = np.zeros(c), np.zeros(c)
    for j in range(c):
        for i in range(n):
            dgamma[j] += dy[i, j] * xhat[i, j]
            dbeta[j] += dy[i, j]
        for i in range(n):
            back = dy[i, j]
            if rows[i]:
                back = back - (dbeta[j] + dgamma[j] * xhat[i, j]) / m
            dx[i, j] = gamma[j] * s[j] * back
    return dx, dgamma, dbeta


# %% answer="q1-forward"
def rows_norm_forward(x, rows, gamma, beta, eps=1e-5):
    n, c = x.shape
    m = int(sum(rows))
    if m < 2:
        raise ValueError(f"rows must choose at least 2 rows, got {m}")
    xhat, y, s = np.zeros((n, c)), np.zeros((n, c), x.dtype), np.zeros(c)
    for j in range(c):
        mean = sum(float(x[i, j]) for i in range(n) if rows[i]) / m
        var = sum((float(x[i, j]) - mean) ** 2 for i in range(n) if rows[i])
        s[j] = 1 / np.sqrt(var / m + eps)
        for i in range(n):
            xhat[i, j] = (x[i, j] - mean) * s[j]
            y[i, j] = gamma[j] * xhat[i, j] + beta[j]
    return y, (xhat, s, gamma, rows)
