# %% [markdown]
# # Assignment 1: a layer whose statistics come from some of the rows
#
# You build batch normalization for a table $x$ of shape (N, C), with one
# change. A mask says which rows the mean and the variance are taken from;
# **all** rows are then normalised with them. It is what you need when a batch
# holds padding, or when new samples are to be judged against a fixed reference
# batch. With every row chosen it is the layer of the book.
#
# **When you have finished you can**
#
# - compute the layer's output and say which numbers each statistic rests on;
# - derive a backward pass through batch statistics in a case that no text
#   writes out for you;
# - wrap a function in a layer with two modes, buffers and a state dict;
# - test somebody else's gradient, and know what such a test can't see.
#
# **Read first:** chapter 2, [Forward](../../notebooks/02-forward.ipynb);
# chapter 3, [Backward](../../notebooks/03-backward.ipynb); chapter 4,
# [A layer you can build, train and
# share](../../notebooks/04-numpy-layer.ipynb).
#
# | Question | What | Automatic | By hand | Time |
# |---|---|---:|---:|---:|
# | 1 | forward | 5 | | 25 min |
# | 2 | backward | 5 | | 40 min |
# | 3 | the layer | 6 | | 40 min |
# | 4 | what is wrong with this gradient? | 4 | | 30 min |
# | 5 | in your own words | | 5 | 15 min |
# | | in total | 20 | 5 | 2 h 30 min |
#
# **Rules.** NumPy only; nothing to install; this notebook runs in Colab and in
# Jupyter. Write your code where it says `YOUR CODE HERE`, and add cells as you
# like. Keep the names and arguments of the functions. Below each question
# stand its tests. Some you can run; of the others you see only the comment
# that says what they check, and they run when you have handed in. Question 3
# is compared with your own functions of questions 1 and 2; apart from that
# each question is tested by itself. Hand in this one file.

# %%
import numpy as np


def assert_close(name, got, want, tol=1e-6):
    """Fail unless got has the shape of want and its values to within tol
    (relative to the largest of them, or to 1 where they are smaller)."""
    want = np.asarray(want, float)
    assert np.shape(got) == want.shape, (
        f"{name} must have shape {want.shape}, got {np.shape(got)}")
    off = np.abs(np.asarray(got, float) - want).max()
    allowed = tol * max(1.0, np.abs(want).max())
    assert off <= allowed, (
        f"{name} is off by up to {off:.2g}; {allowed:.2g} is allowed")


def numeric_gradient(f, theta, h=1e-5):
    """Central differences of the scalar f at the float64 array theta."""
    gradient = np.empty_like(theta)
    for k in np.ndindex(theta.shape):
        up, down = theta.copy(), theta.copy()
        up[k] += h
        down[k] -= h
        gradient[k] = (f(up) - f(down)) / (2 * h)
    return gradient


# %% [markdown]
# ## Question 1: forward (5 points)
#
# Let $M$ be the set of chosen rows and $m$ their number. For each column,
#
# $$
# \mu = \frac1m \sum_{i \in M} x_i, \qquad
# \sigma^2 = \frac1m \sum_{i \in M} (x_i - \mu)^2, \qquad
# \hat x_i = \frac{x_i - \mu}{\sqrt{\sigma^2 + \varepsilon}}, \qquad
# y_i = \gamma \hat x_i + \beta,
# $$
#
# the last two for **every** row $i$, chosen or not. Write
# `rows_norm_forward`. It returns $y$ and a cache with exactly what the
# docstring names: question 2 gets such a cache, yours or another. Leave the
# arguments as they came.

# %% answer="q1-forward"
def rows_norm_forward(x, rows, gamma, beta, eps=1e-5):
    """Normalise all rows of x with the statistics of some of them.

    x (N, C), float32 or float64; rows (N,), bool, True where a row counts for
    the statistics; gamma and beta (C,), of x's dtype. Returns y, with the
    shape and dtype of x, and the cache, a tuple (xhat, inv_std, gamma, rows):
    xhat (N, C), inv_std (C,) is 1 / sqrt(variance + eps). Raises ValueError
    if fewer than two rows are chosen.
    """
    ### BEGIN SOLUTION
    if rows.sum() < 2:
        raise ValueError("rows must choose at least 2 rows, got "
                         f"{int(rows.sum())}")
    mean = x[rows].mean(axis=0)  # (C,)
    centred = x - mean  # (N, C)
    var = (centred[rows] ** 2).mean(axis=0)  # (C,)
    inv_std = 1 / np.sqrt(var + eps)
    xhat = centred * inv_std
    y = gamma * xhat + beta
    return y.astype(x.dtype), (xhat, inv_std, gamma, rows)
    ### END SOLUTION


# %% test="q1-worked" points=1
# Worked by hand: the chosen values 1, 1, 5, 5 have mean 3 and deviation 2, so
# the row with 11, which isn't chosen, lies four deviations above the mean.
x = np.array([[1.0, 10.0], [11.0, -10.0], [1.0, 10.0], [5.0, 2.0],
              [5.0, 2.0]])
rows = np.array([True, False, True, True, True])
y, _ = rows_norm_forward(x, rows, np.array([3.0, 1.0]),
                         np.array([-1.0, 2.0]), 1e-12)
assert_close("y", y, [[-4, 3], [11, -2], [-4, 3], [2, 1], [2, 1]])

# %% test="q1-contract" points=1
# Shapes, types, the parts of the cache, and arguments left as they were.
for dtype in (np.float64, np.float32):
    rng = np.random.default_rng(0)
    x = rng.normal(1, 2, (6, 3)).astype(dtype)
    gamma, beta = np.full(3, 2, dtype), np.full(3, -1, dtype)
    rows = np.array([True, True, False, True, False, True])
    before = [a.copy() for a in (x, rows, gamma, beta)]
    y, cache = rows_norm_forward(x, rows, gamma, beta)
    assert y.shape == (6, 3), f"y must have the shape of x, got {y.shape}"
    assert y.dtype == dtype, f"y must have x's dtype {x.dtype}, got {y.dtype}"
    assert len(cache) == 4, "the cache must be (xhat, inv_std, gamma, rows)"
    for name, part, shape in zip(("xhat", "inv_std", "gamma", "rows"),
                                 cache, ((6, 3), (3,), (3,), (6,)),
                                 strict=True):
        assert np.shape(part) == shape, (
            f"{name} in the cache must have shape {shape}, got "
            f"{np.shape(part)}")
    for name, old, new in zip(("x", "rows", "gamma", "beta"), before,
                              (x, rows, gamma, beta)):
        assert np.array_equal(old, new), f"{name} was changed"

# %% test="q1-values" points=1
# Hidden test: random data, a large eps, the values in the cache, and the
# refusal of a mask that chooses fewer than two rows.
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(1)
for n, c, eps in ((9, 4, 1e-5), (7, 1, 0.5), (12, 3, 2.0)):
    x = rng.normal(2, 0.7, (n, c))
    gamma, beta = rng.normal(size=(2, c))
    rows = rng.permutation(n) < n - 3
    some = x[rows]
    inv_std = 1 / np.sqrt(((some - some.mean(0)) ** 2).mean(0) + eps)
    xhat = (x - some.mean(0)) * inv_std
    want = gamma * xhat + beta
    y, cache = rows_norm_forward(x, rows, gamma, beta, eps)
    assert_close(f"y, eps {eps}", y, want)
    assert_close("xhat in the cache", cache[0], xhat)
    assert_close("inv_std in the cache", cache[1], inv_std)
for chosen in (0, 1):
    try:
        rows_norm_forward(x, np.arange(12) < chosen, gamma, beta)
    except ValueError:
        continue
    raise AssertionError(f"{chosen} chosen rows must raise ValueError")
### END HIDDEN TESTS

# %% test="q1-large-mean" points=2
# Hidden test: float32 values around 30000 with deviation 1 still come out
# with mean 0 and variance 1.
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(2)
x = (3e4 + rng.normal(size=(24, 8))).astype(np.float32)
rows = np.arange(24) % 6 != 1
exact = x.astype(np.float64)
some = exact[rows]
want = (exact - some.mean(0)) / np.sqrt(some.var(0) + 1e-5)
y, _ = rows_norm_forward(x, rows, np.ones(8, np.float32),
                         np.zeros(8, np.float32))
assert y.dtype == np.float32, f"y must be float32, got {y.dtype}"
assert_close("y for a large mean", y, want, tol=0.05)
### END HIDDEN TESTS

# %% [markdown]
# ## Question 2: backward (5 points)
#
# Given $dy = \partial L/\partial y$, (N, C), find $dx$, $d\gamma$ and
# $d\beta$. Draw the graph of question 1 before you write code and ask at each
# arrow: *which rows does it come from, and which rows does it go to?* Equation
# (3.8) of [chapter 3](../../notebooks/03-backward.ipynb) is the answer where
# every row is chosen, and only there. A closed formula of one or two lines
# exists; the steps one after the other are as good.
#
# The cache holds $\hat x$ (N, C), $1/\sqrt{\sigma^2+\varepsilon}$ (C,),
# $\gamma$ (C,) and the mask (N,). To check yourself, use `numeric_gradient`
# from the top of this notebook, with a random projection $L = \sum p\,y$ as
# the loss.

# %% answer="q2-backward"
def rows_norm_backward(dy, cache):
    """Gradients of a loss through `rows_norm_forward`.

    dy (N, C) is the loss's gradient at y; cache is the tuple (xhat, inv_std,
    gamma, rows) of the forward pass. Returns dx (N, C), of dy's dtype, and
    dgamma and dbeta (C,). Leaves dy and the cache as they were.
    """
    ### BEGIN SOLUTION
    xhat, inv_std, gamma, rows = cache
    m = rows.sum()
    dbeta = dy.sum(axis=0)  # over all rows: each has y
    dgamma = (dy * xhat).sum(axis=0)
    shared = (dbeta + xhat * dgamma) / m  # what the statistics hand back
    dx = gamma * inv_std * (dy - rows[:, None] * shared)
    return dx.astype(dy.dtype), dgamma, dbeta
    ### END SOLUTION


# %% test="q2-worked" points=1
# Worked by hand, with eps = 0: the values 1, 1, 5, 5 are chosen, 11 is not.
cache = (np.array([[-1.0], [-1.0], [1.0], [1.0], [4.0]]), np.array([0.5]),
         np.array([2.0]), np.array([True, True, True, True, False]))
dy = np.array([[1.0], [0.0], [0.0], [0.0], [1.0]])
dx, dgamma, dbeta = rows_norm_backward(dy, cache)
assert_close("dx", dx, [[1.25], [0.25], [-1.25], [-1.25], [1.0]])

# %% test="q2-parameters" points=1
# dgamma and dbeta, by hand; the arguments are left as they were.
xhat = np.array([[-1.0, 2.0], [1.0, 0.0], [-1.0, 0.0], [1.0, 1.0]])
cache = (xhat.copy(), np.array([0.5, 4.0]), np.array([2.0, 3.0]),
         np.array([True, True, True, False]))
dy = np.array([[1.0, 0.5], [2.0, 0.0], [0.0, 1.0], [-1.0, 4.0]])
given = dy.copy()
dx, dgamma, dbeta = rows_norm_backward(dy, cache)
assert_close("dgamma", dgamma, [0.0, 5.0])
assert_close("dbeta", dbeta, [2.0, 5.5])
assert np.array_equal(dy, given), "dy was changed"
assert np.array_equal(cache[0], xhat), "xhat in the cache was changed"

# %% test="q2-differences" points=2
# Hidden test: dx against central differences, for several masks (one chooses
# all rows) and for a large eps.
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(3)
for n, left_out, eps in ((8, 0, 1e-5), (8, 3, 1e-5), (6, 4, 0.3),
                         (7, 2, 2.0)):
    x, p = rng.normal(1, 0.8, (n, 3)), rng.normal(size=(n, 3))
    gamma = np.array([1.5, -0.7, 2.0])
    rows = rng.permutation(n) >= left_out

    def xhat_of(x, rows=rows, eps=eps):
        """The normalised rows and 1 / sqrt(variance + eps)."""
        some = x[rows]
        inv_std = 1 / np.sqrt(some.var(axis=0) + eps)
        return (x - some.mean(axis=0)) * inv_std, inv_std

    want = numeric_gradient(
        lambda t, f=xhat_of, p=p * gamma: (p * f(t)[0]).sum(), x)
    dx, _, _ = rows_norm_backward(p, (*xhat_of(x), gamma, rows))
    assert_close(f"dx, {left_out} of {n} rows left out", dx, want, 1e-5)
### END HIDDEN TESTS

# %% test="q2-rows" points=1
# Hidden test: rows that were not chosen, seen by themselves and from the
# others; float32 in, float32 out.
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(4)
rows = np.array([True, False, True, True, False, True])
x = rng.normal(size=(6, 2))
inv_std = 1 / np.sqrt(x[rows].var(axis=0) + 1e-5)
xhat = (x - x[rows].mean(axis=0)) * inv_std
gamma = np.array([3.0, -2.0])
parts = [a.astype(np.float32) for a in (xhat, inv_std, gamma)]
dy = np.zeros((6, 2), np.float32)
dy[4] = 1, 2  # the loss sees one row only, and it isn't chosen
dx, _, _ = rows_norm_backward(dy, (*parts, rows))
assert dx.dtype == np.float32, f"dx must have dy's dtype, got {dx.dtype}"
slope = gamma * inv_std
assert_close("dx of a row that was not chosen", dx[4], slope * [1, 2], 1e-4)
assert_close("dx of the other such row", dx[1], [0, 0], 1e-4)
want = -slope * [1, 2] * (1 + xhat[rows] * xhat[4]) / 4
assert_close("dx of the chosen rows", dx[rows], want, 1e-4)
### END HIDDEN TESTS

# %% [markdown]
# ## Question 3: the layer (6 points)
#
# Write the class `NormRows`, with state. Its arrays are float64 and have
# PyTorch's names, as in [chapter 4](../../notebooks/04-numpy-layer.ipynb).
#
# - `NormRows(num_features, eps=1e-5, momentum=0.1)` has `weight` ($\gamma$,
#   ones), `bias` ($\beta$, zeros), `running_mean` (zeros), `running_var`
#   (ones), each (C,), and `num_batches_tracked`, 0. It starts in training
#   mode. `train()` and `eval()` set the mode and return the layer.
# - `layer(x, rows=None)` returns $y$. In **training** mode it is
#   `rows_norm_forward` with `weight` and `bias`; without `rows` all rows are
#   chosen. The buffers then move a share `momentum` of the way towards the
#   statistics of the chosen rows; for the variance that is the *unbiased* one,
#   as in (4.2), and $m$ is the number of chosen rows. A batch that
#   is refused moves nothing. In **evaluation** mode the running
#   statistics normalise, `rows` has no say, one row is enough, and no buffer
#   moves.
# - `layer.backward(dy)` returns $dx$ for the forward pass before it, and keeps
#   $d\gamma$ and $d\beta$ in the dict `layer.grads` as `"weight"` and
#   `"bias"`. Which gradient is right depends on the mode in which that forward
#   pass *ran*.
# - `layer.state_dict()` returns a dict of the five names, and
#   `layer.load_state_dict(state)` takes one over, whole or not at all: if a
#   name is missing, unknown, or its array has another shape, it raises
#   ValueError and changes nothing.

# %% answer="q3-layer"
class NormRows:
    """Batch normalization of x (N, C) with the statistics of chosen rows."""

    def __init__(self, num_features, eps=1e-5, momentum=0.1):
        ### BEGIN SOLUTION
        self.eps, self.momentum, self.training = eps, momentum, True
        self.weight, self.bias = np.ones(num_features), np.zeros(num_features)
        self.running_mean = np.zeros(num_features)
        self.running_var = np.ones(num_features)
        self.num_batches_tracked = np.array(0)
        self.grads, self.cache = {}, None
        ### END SOLUTION

    def train(self, mode=True):
        """Set training mode (False: evaluation); return the layer."""
        ### BEGIN SOLUTION
        self.training = bool(mode)
        return self
        ### END SOLUTION

    def eval(self):
        """Set evaluation mode; return the layer."""
        ### BEGIN SOLUTION
        return self.train(False)
        ### END SOLUTION

    def __call__(self, x, rows=None):
        """The output y (N, C); in training mode the buffers move."""
        ### BEGIN SOLUTION
        if not self.training:
            inv_std = 1 / np.sqrt(self.running_var + self.eps)
            xhat = (x - self.running_mean) * inv_std
            self.cache = False, (xhat, inv_std, self.weight)
            return self.weight * xhat + self.bias
        rows = np.ones(len(x), bool) if rows is None else rows
        some, share = x[rows], self.momentum
        y, cache = rows_norm_forward(x, rows, self.weight, self.bias,
                                     self.eps)
        self.cache = True, cache
        new_mean, new_var = some.mean(axis=0), some.var(axis=0, ddof=1)
        self.running_mean += share * (new_mean - self.running_mean)
        self.running_var += share * (new_var - self.running_var)
        self.num_batches_tracked += 1
        return y
        ### END SOLUTION

    def backward(self, dy):
        """dx (N, C) of the forward pass before it; fills `grads`."""
        ### BEGIN SOLUTION
        in_training, cache = self.cache
        if in_training:
            dx, dweight, dbias = rows_norm_backward(dy, cache)
        else:
            xhat, inv_std, gamma = cache
            dx = dy * gamma * inv_std
            dweight, dbias = np.sum(dy * xhat, axis=0), np.sum(dy, axis=0)
        self.grads = {"weight": dweight, "bias": dbias}
        return dx
        ### END SOLUTION

    def state_dict(self):
        """The five arrays, by name."""
        ### BEGIN SOLUTION
        names = ("weight", "bias", "running_mean", "running_var",
                 "num_batches_tracked")
        return {name: np.array(getattr(self, name)) for name in names}
        ### END SOLUTION

    def load_state_dict(self, state):
        """Take over a state dict, or raise ValueError and change nothing."""
        ### BEGIN SOLUTION
        old = self.state_dict()
        if set(state) != set(old):
            raise ValueError(f"state must have the keys {list(old)}, got "
                             f"{list(state)}")
        new = {name: np.array(state[name]) for name in old}
        for name in old:
            if new[name].shape != old[name].shape:
                raise ValueError(f"state[{name!r}] must have shape "
                                 f"{old[name].shape}, got {new[name].shape}")
        for name in old:
            setattr(self, name, new[name])
        ### END SOLUTION


# %% test="q3-modes" points=2
# Training mode is your forward function, evaluation mode uses the buffers.
state = {"weight": np.array([2.0, -1.0]), "bias": np.array([0.5, 3.0]),
         "running_mean": np.array([1.0, -2.0]),
         "running_var": np.array([4.0, 0.25]), "num_batches_tracked": 7}
x = np.array([[1.0, 2.0], [3.0, -1.0], [4.0, 0.0], [9.0, 5.0]])
rows = np.array([True, True, True, False])
want, _ = rows_norm_forward(x, rows, state["weight"], state["bias"], 1e-5)
layer = NormRows(2)
layer.load_state_dict(state)
assert_close("y in training mode", layer(x, rows), want)

layer = NormRows(2, eps=1e-12)
layer.load_state_dict(state)
layer.eval()
one = layer(np.array([[5.0, -1.0]]))
assert_close("y in evaluation mode, one row", one, [[4.5, 1.0]])
again = layer(np.array([[5.0, -1.0], [100.0, 7.0]]), np.array([True, False]))
assert_close("the same row in other company", again[:1], [[4.5, 1.0]])
assert_close("running_mean after evaluation", layer.running_mean, [1.0, -2.0])


# %% test="q3-buffers" points=2
# Hidden test: the buffers after several batches with masks, a momentum other
# than 0.1, evaluation in between, and after a batch that was refused.
### BEGIN HIDDEN TESTS
def is_refused(call):
    """Whether a call raises ValueError."""
    try:
        call()
    except ValueError:
        return True
    return False


rng = np.random.default_rng(5)
layer = NormRows(3, momentum=0.3)
mean, var = np.zeros(3), np.ones(3)
for n, chosen in ((5, 2), (8, 8), (6, 3)):
    x = rng.normal(4, 3, (n, 3))
    rows = rng.permutation(n) < chosen
    some = x[rows]
    mean = 0.7 * mean + 0.3 * some.mean(axis=0)
    var = 0.7 * var + 0.3 * some.var(axis=0, ddof=1)
    layer.train()
    if chosen == n:
        layer(x)
    else:
        layer(x, rows=rows)
    layer.eval()
    layer(x + 100)
layer.train()
few, one, zero = np.arange(6) < 1, np.ones(3), np.zeros(3)
if is_refused(lambda: rows_norm_forward(x, few, one, zero)):
    assert is_refused(lambda: layer(x, few)), (
        "one chosen row must raise ValueError in training mode")
assert_close("running_mean", layer.running_mean, mean)
assert_close("running_var", layer.running_var, var)
assert int(layer.num_batches_tracked) == 3, (
    "num_batches_tracked must be 3 after three batches in training mode, got "
    f"{layer.num_batches_tracked}")
### END HIDDEN TESTS

# %% test="q3-state" points=1
# Hidden test: a state dict moves a layer's state to another one; one that
# doesn't fit is refused, and the layer stays as it was.
### BEGIN HIDDEN TESTS
names = {"weight", "bias", "running_mean", "running_var",
         "num_batches_tracked"}
rng = np.random.default_rng(6)
first, second = NormRows(3), NormRows(3)
for _ in range(2):
    first(rng.normal(2, 3, (6, 3)))
state = first.state_dict()
assert set(state) == names, f"state_dict has the keys {sorted(state)}"
assert np.abs(state["running_mean"]).min() > 0.01, "the buffers never moved"
second.load_state_dict(state)
x = rng.normal(size=(4, 3))
for name in sorted(names):
    assert_close(name, second.state_dict()[name], state[name])
first.eval()
second.eval()
assert_close("the output after loading", second(x), first(x))

good = {n: np.asarray(a) + 1 for n, a in state.items()}
wrong = {"a missing name": {n: a for n, a in good.items() if n != "bias"},
         "an unknown name": good | {"gamma": np.ones(3)}}
for name in ("weight", "bias", "running_mean", "running_var"):
    wrong[f"{name} of shape (4,)"] = good | {name: np.ones(4)}
    wrong[f"{name} of shape (1,)"] = good | {name: np.ones(1)}
for what, bad in wrong.items():
    try:
        second.load_state_dict(bad)
    except ValueError:
        kept = second.state_dict()
        for name in sorted(names):
            assert_close(f"{name} after {what}", kept[name], state[name])
    else:
        raise AssertionError(f"load_state_dict took {what}")
### END HIDDEN TESTS

# %% test="q3-gradient" points=1
# Hidden test: backward after a forward pass in either mode, also when the
# mode was changed between the two.
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(7)
state = dict(zip(("weight", "bias", "running_mean", "running_var"),
                 np.array([[1.5, -2.0], [0.5, 1.0], [2.0, -1.0], [3.0, 0.5]])),
             num_batches_tracked=5)
x, dy = rng.normal(1, 2, (2, 5, 2))
slope = state["weight"] / np.sqrt(state["running_var"] + 0.1)
xhat = ((x - state["running_mean"])
        / np.sqrt(state["running_var"] + 0.1))
layer = NormRows(2, eps=0.1)
layer.eval().load_state_dict(state)
layer(x)
layer.train()
dx = layer.backward(dy.copy())
assert_close("dx after evaluation mode", dx, dy * slope)
assert_close("grads['weight']", layer.grads["weight"], (dy * xhat).sum(0))
assert_close("grads['bias']", layer.grads["bias"], dy.sum(0))
rows = np.array([True, True, False, True, True])
_, cache = rows_norm_forward(x, rows, state["weight"], state["bias"], 0.1)
want, dgamma, dbeta = rows_norm_backward(dy.copy(), cache)
layer(x, rows=rows)
layer.eval()
dx = layer.backward(dy.copy())
assert_close("dx after training mode", dx, want)
assert_close("grads['weight'], training", layer.grads["weight"], dgamma)
assert_close("grads['bias'], training", layer.grads["bias"], dbeta)
### END HIDDEN TESTS

# %% [markdown]
# ## Question 4: what is wrong with this gradient? (4 points)
#
# Here all rows are chosen: ordinary batch normalization of (N, C) in float64,
# with
# $dx = \gamma s\,[dy - \langle dy\rangle - \hat x\langle dy\,\hat x\rangle]$
# (3.8), where $s = 1/\sqrt{\sigma^2+\varepsilon}$. Somebody hands you a
# function `backward(dy, x, gamma, eps)` that claims to return this $dx$. You
# can't read its code, but you can call it. Write `diagnose(backward)`, which
# returns one of these strings:
#
# | answer | what `backward` returns |
# |---|---|
# | `"right"` | what it should |
# | `"mean"` | only the term $\langle dy\rangle$ is missing |
# | `"variance"` | only the term $\hat x\langle dy\,\hat x\rangle$ is missing |
# | `"both"` | both are missing: the statistics are taken for constants |
# | `"gamma"` | only the factor $\gamma$ is missing |
# | `"other"` | anything else: wrong sign or size, forgotten $\varepsilon$ |
#
# The inputs are yours to choose, and everything hangs on them: with
# $\gamma = 1$ you can't see whether $\gamma$ is missing, with $dy = \mathbf 1$
# the right answer is 0, and with a tiny $\varepsilon$ nobody notices
# that it was forgotten.

# %% answer="q4-diagnose"
def diagnose(backward):
    """What is missing in backward(dy, x, gamma, eps): "right", "mean",
    "variance", "both", "gamma" or "other".

    backward takes dy and x (N, C), gamma (C,) and eps > 0 in float64 and
    returns a dx (N, C).
    """
    ### BEGIN SOLUTION
    rng = np.random.default_rng(12)
    x, dy = rng.normal(0, 1, (2, 8, 3))
    gamma, eps = np.array([1.7, -0.6, 2.5]), 0.3
    s = 1 / np.sqrt(x.var(axis=0) + eps)
    xhat = (x - x.mean(axis=0)) * s
    mean, variance = dy.mean(axis=0), xhat * (dy * xhat).mean(axis=0)
    suspects = {"right": gamma * s * (dy - mean - variance),
                "mean": gamma * s * (dy - variance),
                "variance": gamma * s * (dy - mean),
                "both": gamma * s * dy,
                "gamma": s * (dy - mean - variance)}
    got = backward(dy.copy(), x.copy(), gamma.copy(), eps)
    for name, dx in suspects.items():
        if np.shape(got) == dx.shape and np.allclose(got, dx, 0, 1e-7):
            return name
    return "other"
    ### END SOLUTION


# %% test="q4-blind" points=1
# A detached backward pass, and one that returns zeros.
found = diagnose(lambda dy, x, gamma, eps:
                 gamma / np.sqrt(x.var(axis=0) + eps) * dy)
assert found == "both", f"constant statistics: got {found!r}"
found = diagnose(lambda dy, x, gamma, eps: np.zeros_like(dy))
assert found == "other", f"all zeros: got {found!r}"


# %% test="q4-terms" points=2
# Hidden test: the right function, written in two ways, and one with each of
# the terms missing.
### BEGIN HIDDEN TESTS
def in_terms(mean, variance, scale):
    """A backward pass with the terms that are wanted."""
    def backward(dy, x, gamma, eps):
        s = (x.var(axis=0) + eps) ** -0.5
        xhat = s * (x - x.mean(axis=0))
        dx = dy - mean * dy.mean(axis=0)
        dx = dx - variance * xhat * (dy * xhat).mean(axis=0)
        return dx * s * (gamma if scale else 1)
    return backward


def by_steps(dy, x, gamma, eps):
    """The right one, a node at a time."""
    d = x - x.mean(axis=0)
    s = (np.mean(d * d, axis=0) + eps) ** -0.5
    dxhat = dy * gamma
    dvar = -0.5 * s ** 3 * np.sum(dxhat * d, axis=0)
    dd = dxhat * s + 2 * d * dvar / len(x)
    return dd - dd.mean(axis=0)


for want, candidate in (("right", in_terms(1, 1, 1)), ("right", by_steps),
                        ("mean", in_terms(0, 1, 1)),
                        ("variance", in_terms(1, 0, 1)),
                        ("both", in_terms(0, 0, 1)),
                        ("gamma", in_terms(1, 1, 0))):
    found = diagnose(candidate)
    assert found == want, f"a function that is {want!r} was called {found!r}"
### END HIDDEN TESTS

# %% test="q4-other" points=1
# Hidden test: mistakes that the table doesn't name are "other": a wrong sign,
# size or eps, two mistakes at once, sums in place of means.
### BEGIN HIDDEN TESTS
def bent(sign=1, power=1, keep_eps=True, gamma_too=True, total=False):
    """A backward pass with a mistake of another kind."""
    def backward(dy, x, gamma, eps):
        s = (x.var(axis=0) + eps * keep_eps) ** -0.5
        xhat = s * (x - x.mean(axis=0))
        size = 1 if total else len(dy)
        dx = (dy - dy.sum(axis=0) / size
              - sign * xhat * (dy * xhat).sum(axis=0) / size)
        return dx * s ** power * (gamma if gamma_too else 1)
    return backward


for what, candidate in {
        "a wrong sign": bent(sign=-1), "s squared": bent(power=2),
        "a forgotten eps": bent(keep_eps=False),
        "sums in place of means": bent(total=True),
        "no gamma, and a wrong sign": bent(sign=-1, gamma_too=False)}.items():
    found = diagnose(candidate)
    assert found == "other", f"{what} was called {found!r}"
### END HIDDEN TESTS

# %% [markdown]
# ## Question 5: in your own words (5 points, marked by a person)
#
# A colleague has written `rows_norm_backward` with the mean and
# `inv_std` taken for constants; the rest is right. "The loss goes
# down," she says, "so the gradient is right."
#
# (a) Which of $d\gamma$, $d\beta$ and $dx$ are right, and which are wrong?
# Answer for $dx$ row by row: chosen rows, and rows that are not chosen.
#
# (b) In front of her layer stands a linear layer with a bias. What happens to
# this bias in training, what does that do to the loss, and why?
#
# (c) She tests $dx$ against central differences with the loss $L = \sum_i y_i$
# and all rows chosen. Does this test find her mistake? Would it find a
# backward pass that returns zeros? Which loss do you recommend, and why?
#
# About 150 words are enough.

# %% [markdown] text="q5" points=5
# ### BEGIN SOLUTION
# (a) $d\gamma$ and $d\beta$ are right: they are sums over $dy$ and
# $dy\,\hat x$ and no derivative of a statistic occurs in them. $dx$ is right
# in the rows that were not chosen, since no statistic depends on them. In the
# chosen rows it is wrong: the two shares that come back through the mean and
# through the variance are missing.
#
# (b) With the right gradient $\sum_i dx_i = 0$ over all rows, so a bias in
# front gets no gradient. With hers the sum isn't zero, and the bias moves at
# every step, mostly in the same direction. The forward pass subtracts
# the mean and with it the bias, so the loss doesn't change by it: a parameter
# grows and nothing is gained.
#
# (c) It finds her mistake. The right $dx$ is 0 there, since
# $\sum_i y_i = N\beta$ whatever $x$ is, and hers is
# $\gamma/\sqrt{\sigma^2+\varepsilon}$. A function that returns zeros passes.
# Take a random projection $\sum_i p_i y_i$ with fixed random $p$: it has a
# part in all directions, also in those that the layer lets through.
#
# **Rubric.**
#
# - (a) 1 point: $d\gamma$ and $d\beta$ are both called right. 1 point: $dx$
#   is wrong in the chosen rows *and* right in the others (both needed). The
#   reason is not required.
# - (b) 1 point: the bias grows or drifts, *and* the output or the loss doesn't
#   depend on it (both needed). "Training is slower" alone: 0.
# - (c) 1 point: both verdicts right (her mistake is found, zeros pass). 1
#   point: a random projection, or another loss that is neither $\sum y$ nor
#   $\sum y^2$, with a reason that mentions that the right $dx$ vanishes for
#   $\sum y$, or that the loss must have a part outside of the deleted
#   directions.
# ### END SOLUTION
