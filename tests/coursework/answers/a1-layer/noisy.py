# %% [markdown]
# Works in place on copies, prints, warns and writes to stderr.
#
# ruff: noqa: B028, B904, UP004, UP031

# %%
import sys
import warnings

import numpy as np

print("starting", file=sys.stderr)
np.seterr(all="warn")

# %% answer="q1-forward"
def rows_norm_forward(x, rows, gamma, beta, eps=1e-5):
    print("forward", x.shape, x.dtype)
    warnings.warn("this may be slow", UserWarning)
    m = rows.sum()
    if m <= 1:
        sys.stderr.write("too few rows\n")
        raise ValueError("rows must choose at least two rows, got %d" % m)
    xhat = x.copy()
    xhat -= xhat[rows].mean(axis=0)
    # A second subtraction takes out the rounding of the first.
    xhat -= xhat[rows].mean(axis=0)
    inv_std = np.einsum("nc,nc->c", xhat[rows], xhat[rows]) / m
    inv_std += eps
    np.sqrt(inv_std, out=inv_std)
    np.reciprocal(inv_std, out=inv_std)
    xhat *= inv_std
    y = xhat.copy()
    y *= gamma
    y += beta
    return y, (xhat, inv_std, gamma, rows)

# %% answer="q2-backward"
def rows_norm_backward(dy, cache):
    xhat, inv_std, gamma, rows = cache
    warnings.warn("this may be slow", RuntimeWarning)
    np.log(np.zeros(1))  # divide by zero encountered: a warning, no error
    dx = dy.copy()
    dbeta, dgamma = np.einsum("nc->c", dy), np.einsum("nc,nc->c", dy, xhat)
    dx[rows] -= dbeta / rows.sum()
    dx[rows] -= xhat[rows] * (dgamma / rows.sum())
    dx *= gamma * inv_std
    print("dx", dx, file=sys.stderr)
    return dx, dgamma, dbeta

# %% answer="q3-layer"
class NormRows(object):
    _names = ["weight", "bias", "running_mean", "running_var",
              "num_batches_tracked"]

    def __init__(self, num_features, eps=1e-5, momentum=0.1):
        print("a layer of", num_features)
        self.eps = eps
        self.momentum = momentum
        self.weight = np.ones((num_features,))
        self.bias = np.zeros((num_features,))
        self.running_mean = np.zeros((num_features,))
        self.running_var = np.ones((num_features,))
        self.num_batches_tracked = np.array(0, dtype=np.int64)
        self.training = True
        self.grads = {}

    def train(self, mode=True):
        self.training = mode
        return self

    def eval(self):
        print("evaluation mode")
        return self.train(mode=False)

    def __call__(self, x, rows=None):
        return self.forward(x, rows)

    def forward(self, x, rows=None):
        self.was_training = self.training
        if not self.training:
            self.s = np.power(self.running_var + self.eps, -0.5)
            self.xhat = (x - self.running_mean) * self.s
            self.gamma = self.weight.copy()
            return self.gamma * self.xhat + self.bias
        rows = np.ones(len(x)) > 0 if rows is None else rows
        y, self.cache = rows_norm_forward(x, rows, self.weight, self.bias,
                                          self.eps)
        # The batch's statistics out of the cache.
        xhat, inv_std, _, _ = self.cache
        m = rows.sum()
        batch_var = (1 / inv_std ** 2 - self.eps) * m / (m - 1)
        batch_mean = (x - xhat / inv_std)[rows].mean(axis=0)
        self.running_mean += self.momentum * (batch_mean - self.running_mean)
        self.running_var += self.momentum * (batch_var - self.running_var)
        self.num_batches_tracked += 1
        return y

    def backward(self, dy):
        if self.was_training:
            dx, dw, db = rows_norm_backward(dy, self.cache)
        else:
            dx = dy * self.gamma * self.s
            dw, db = np.sum(dy * self.xhat, 0), np.sum(dy, 0)
        self.grads["weight"], self.grads["bias"] = dw, db
        return dx

    def state_dict(self):
        return {n: np.copy(self.__dict__[n]) for n in self._names}

    def load_state_dict(self, state):
        old = self.state_dict()
        try:
            assert sorted(state) == sorted(self._names), "names"
            for n in self._names:
                assert np.shape(state[n]) == old[n].shape, n
                self.__dict__[n][...] = state[n]
        except AssertionError as error:
            for n in self._names:
                self.__dict__[n][...] = old[n]
            raise ValueError("state does not fit: %s" % error)

# %%
rng = np.random.default_rng(0)
x = rng.normal(size=(5, 2))
y, cache = rows_norm_forward(x, np.ones(5, bool), np.ones(2), np.zeros(2))
print("my own test:", y.mean(axis=0), y.std(axis=0))

# %% answer="q4-diagnose"
def diagnose(backward):
    rng = np.random.default_rng(1)
    x, dy, gamma, eps = rng.normal(size=(6, 2)), rng.normal(size=(6, 2)), \
        np.array([2.0, 0.5]), 0.25
    every = np.full(6, True)
    _, cache = rows_norm_forward(x, every, gamma, np.zeros(2), eps)
    right, dgamma, dbeta = rows_norm_backward(dy, cache)
    xhat, s, _, _ = cache
    a, b = gamma * s * dbeta / 6, gamma * s * xhat * dgamma / 6
    got = backward(dy, x, gamma, eps)
    for name, want in {"right": right, "mean": right + a,
                       "variance": right + b, "both": right + a + b,
                       "gamma": right / gamma}.items():
        print("off by", np.abs(got - want).max(), "if", name)
        if np.abs(got - want).max() < 1e-6:
            return name
    return "other"
