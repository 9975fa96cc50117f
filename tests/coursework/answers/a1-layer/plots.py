# %% [markdown]
# A notebook as it comes out of an afternoon's work: prints, a plot, one cell
# that fails, code that was tried first and written again below.
#
# ruff: noqa: I001

# %%
import numpy as np

# %%
import matplotlib.pyplot as plt

plt.figure()
plt.hist(np.random.default_rng(0).normal(size=100))
plt.show()

# %% answer="q1-forward"
def rows_norm_forward(x, rows, gamma, beta, eps=1e-5):
    """First try: no refusal yet, and all rows count."""
    mean, var = x.mean(0), x.var(0)
    s = 1 / np.sqrt(var + eps)
    return gamma * (x - mean) * s + beta, (x, s, gamma, rows)

# %%
print(undefined_name)

# %% answer="q1-forward"
def rows_norm_forward(x, rows, gamma, beta, eps=1e-5):
    """Second try; shifts by one of the chosen rows before it sums."""
    if len(x[rows]) < 2:
        raise ValueError("rows must choose at least 2 rows, got "
                         + str(len(x[rows])))
    shift = x[rows][0]
    z = x - shift
    weights = rows / rows.sum()
    mean = weights @ z
    var = weights @ (z - mean) ** 2
    s = 1 / np.sqrt(var + eps)
    scale = gamma * s
    y = (z * scale + (beta - mean * scale)).astype(x.dtype)
    return y, ((z - mean) * s, s, gamma, rows)

# %%
x = np.array([[1.0], [11.0], [1.0], [5.0], [5.0]])
y, cache = rows_norm_forward(x, np.array([True, False, True, True, True]),
                             np.array([3.0]), np.array([-1.0]))
print(y.ravel().round(2))
plt.plot(x, y, "o")
plt.show()

# %% answer="q2-backward"
def rows_norm_backward(dy, cache):
    """By the Jacobian: dx = gamma * J^T dy, a column at a time."""
    xhat, s, gamma, rows = cache
    n, c = dy.shape
    m, w = rows.sum(), rows.astype(float)
    dx = np.empty_like(dy)
    for j in range(c):
        h = xhat[:, j].astype(float)
        jacobian = s[j] * (np.eye(n) - np.outer(np.ones(n), w) / m
                           - np.outer(h, w * h) / m)  # [i, k]: dh_i / dx_k
        dx[:, j] = gamma[j] * jacobian.T @ dy[:, j]
    return dx, np.vecdot(dy, xhat, axis=0), dy.sum(axis=0)

# %% answer="q3-layer"
class Stateful:
    """Names and modes."""
    def __init__(self):
        self.training, self.grads = True, {}

    def train(self, mode=True):
        self.training = mode
        return self

    def eval(self):
        return self.train(False)

    def state_dict(self):
        return {n: getattr(self, n) + 0 for n in self.names}

    def load_state_dict(self, state):
        if sorted(state) != sorted(self.names):
            raise ValueError("the names must be " + ", ".join(self.names))
        arrays = {n: np.asarray(state[n]) for n in self.names}
        if any(arrays[n].shape != np.shape(getattr(self, n)) for n in arrays):
            raise ValueError("a shape does not fit")
        vars(self).update({n: a.copy() for n, a in arrays.items()})


class NormRows(Stateful):
    names = ("weight", "bias", "running_mean", "running_var",
             "num_batches_tracked")

    def __init__(self, num_features, eps=1e-5, momentum=0.1):
        super().__init__()
        self.eps, self.momentum, self.n = eps, momentum, num_features
        self.weight, self.running_var = np.ones((2, num_features))
        self.bias, self.running_mean = np.zeros((2, num_features))
        self.num_batches_tracked = 0

    def __call__(self, x, rows=None):
        if self.training:
            rows = np.ones(len(x), bool) if rows is None else rows
            y, cache = rows_norm_forward(x, rows, self.weight, self.bias,
                                         self.eps)
            some = x[rows]
            sums, m = ((some - some.mean(0)) ** 2).sum(0), len(some)
            p = self.momentum
            self.running_mean = (self.running_mean * (1 - p)
                                 + some.mean(0) * p)
            self.running_var = self.running_var * (1 - p) + sums * p / (m - 1)
            self.num_batches_tracked = self.num_batches_tracked + 1
            self.last = ("training", cache)
            return y
        s = 1 / np.sqrt(self.running_var + self.eps)
        self.last = ("evaluation", (x - self.running_mean, s, self.weight))
        return (x - self.running_mean) * (s * self.weight) + self.bias

    def backward(self, dy):
        mode, cache = self.last
        if mode == "training":
            dx, dw, db = rows_norm_backward(dy, cache)
        else:
            d, s, weight = cache
            dx, dw, db = dy * weight * s, (dy * d).sum(0) * s, dy.sum(0)
        self.grads = {"weight": dw, "bias": db}
        return dx

# %% answer="q4-diagnose"
def diagnose(backward):
    """Asks three questions: dy = 1, dy = xhat, and dy at right angles."""
    x = np.array([[0.0], [1.0], [3.0], [-2.0], [0.5]])
    gamma, eps = np.array([-3.0]), 0.5
    s = 1 / np.sqrt(x.var() + eps)
    h = (x - x.mean()) * s
    v = np.array([[1.0], [-2.0], [0.7], [0.1], [0.4]])
    v = v - v.mean()
    v = v - h * (v * h).sum() / (h * h).sum()
    one, rho = np.ones((5, 1)), (h * h).mean()
    got = [backward(dy, x, gamma, eps) for dy in (v, one, h)]

    def is_(dx, want):
        return np.shape(dx) == np.shape(want) and np.allclose(dx, want)

    if is_(got[0], s * v):
        good = is_(got[1], 0 * one) and is_(got[2], s * (1 - rho) * h)
        return "gamma" if good else "other"
    k = -3.0 * s
    if not is_(got[0], k * v):
        return "other"
    mean = [is_(got[1], 0 * one), is_(got[1], k * one)]
    var = [is_(got[2], k * (1 - rho) * h), is_(got[2], k * h)]
    if not any(mean) or not any(var):
        return "other"
    return {(0, 0): "right", (1, 0): "mean", (0, 1): "variance",
            (1, 1): "both"}[mean.index(True), var.index(True)]
