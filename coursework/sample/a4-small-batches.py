# %% [markdown]
# # Assignment 4: small batches
#
# When you have done it you can say how far a batch's statistics are off,
# split a large batch into small ones or pull a small one towards the
# population, and defend the normalisation and the batch size of a network
# with numbers.
#
# **You learn to**
#
# - predict bias and spread of a batch's variance, and check the prediction
#   on data;
# - normalise in groups, forward and backward, when the batch does not
#   divide evenly;
# - write batch renormalisation: its limits, and the right order of using and
#   updating the running statistics;
# - differentiate with some terms held constant;
# - choose a norm and a batch size for a network that is described to you.
#
# **Read first**: [chapter 22](../../notebooks/22-small-batches.ipynb);
# [chapter 3](../../notebooks/03-backward.ipynb), (3.8);
# [chapter 6](../../notebooks/06-train-and-inference.ipynb) for the running
# statistics.
#
# | Question | What | Automatic | By hand | Minutes |
# |---|---|---:|---:|---:|
# | q1 | how wrong a batch's variance is | 4 | | 40 |
# | q2 | ghost batch normalization | 7 | | 60 |
# | q3 | batch renormalisation, forward | 5 | | 40 |
# | q4 | batch renormalisation, backward | 4 | | 40 |
# | q5 | in your own words: a norm and a size | | 5 | 40 |
# | | **together** | **20** | **5** | **220** |
#
# **Rules**
#
# - You need NumPy and nothing else; nothing has to be installed on Colab.
# - Write your code where it says YOUR CODE HERE. Keep the names and the
#   arguments. You may add cells and functions of your own.
# - No function may change the arrays that it is given; `state` in question
#   3 is the exception.
# - Run the public tests: a cell that prints nothing has passed. Hidden tests
#   check more; their comments say what.
# - Restart, run all cells, save, and hand in this one file.

# %%
import numpy as np


def numerical_gradient(f, x, dy, h=1e-5):
    """Given: the gradient of sum(f(x) * dy) at x, by central differences.

    x: float64. It costs two calls of f for each value of x.
    """
    grad = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[i] += h
        down[i] -= h
        grad[i] = ((f(up) - f(down)) * dy).sum() / (2 * h)
    return grad

# %% [markdown]
# ## Question 1: how wrong a batch's variance is (4 points)
#
# Take $m$ independent values from a population with variance $\sigma^2$ and
# kurtosis $\kappa = \mathrm E[(x-\mu)^4]/\sigma^4$ (3 for Gaussian values).
# A textbook fact about the unbiased estimate $s^2$, which divides by $m-1$:
#
# $$\mathrm E[s^2] = \sigma^2, \qquad
# \operatorname{Var}(s^2) = \sigma^4\left(\frac{\kappa-3}{m}
# + \frac{2}{m-1}\right).$$
#
# Batch normalization divides by the *biased* variance $\sigma_B^2$ of the
# batch. Its bias is $\mathrm E[\sigma_B^2]-\sigma^2$.
#
# 1. `variance_law` predicts bias and variance of $\sigma_B^2$.
# 2. `measured_law` measures both. It cuts a stream of values into batches of
#    $m$, in order, and leaves out what remains at the end.
# 3. `smallest_m` inverts the law: the smallest $m \ge 2$ whose root mean
#    square error $\sqrt{\text{bias}^2+\text{variance}}$ is at most
#    `tolerance` times $\sigma^2$.


# %% answer="q1-law"
def variance_law(m, var=1.0, kurtosis=3.0):
    """Bias and variance of the biased variance of m >= 2 values: floats.

    var and kurtosis are the population's.
    """
    ### BEGIN SOLUTION
    bias = -var / m
    spread = var**2 * ((kurtosis - 3) / m + 2 / (m - 1))
    return bias, spread * ((m - 1) / m) ** 2
    ### END SOLUTION


def measured_law(x, m, var):
    """The same two, measured on a stream x (n,), n >= m, of values.

    Each batch has its biased variance. Returns the mean of these minus var,
    and their variance over the batches (divided by the number of batches).
    x may be float32 with a large mean.
    """
    ### BEGIN SOLUTION
    whole = len(x) // m * m
    batches = np.asarray(x[:whole], dtype=np.float64).reshape(-1, m)
    found = batches.var(axis=1)  # (batches,)
    return found.mean() - var, found.var()
    ### END SOLUTION


def smallest_m(tolerance, kurtosis=3.0):
    """The smallest m >= 2 whose relative error is at most tolerance: int."""
    ### BEGIN SOLUTION
    m = 2
    while True:
        bias, variance = variance_law(m, 1.0, kurtosis)
        if np.sqrt(bias**2 + variance) <= tolerance:
            return m
        m += 1
    ### END SOLUTION


# %% test="q1-known" points=1
# Public test: two values, by hand. Their biased variance is a quarter of
# their squared difference, which has mean 2 var and, if they are Gaussian,
# variance 8 var**2.
bias, variance = variance_law(2, var=3.0)
assert abs(bias - (2 * 3.0 / 4 - 3.0)) < 1e-12, "the bias of two values"
assert abs(variance - 8 * 9.0 / 16) < 1e-12, "the variance of two values"
bias, variance = measured_law(np.array([1.0, 3.0, 5.0, 5.0, 7.0]), 2, 2.0)
assert abs(bias - -1.5) < 1e-12, "two batches, variances 1 and 0; 7 is left"
assert abs(variance - 0.25) < 1e-12, "two batches, variances 1 and 0"

# %% test="q1-formula-meets-data" points=1
# Public test: the formula and 200,000 Gaussian values agree.
rng = np.random.default_rng(0)
stream = rng.normal(5.0, 2.0, size=200_003)
for m in (4, 16):
    law, seen = variance_law(m, var=4.0), measured_law(stream, m, 4.0)
    assert abs(seen[0] / law[0] - 1) < 0.05, f"the bias at m = {m}"
    assert abs(seen[1] / law[1] - 1) < 0.05, f"the variance at m = {m}"

# %% test="q1-tails" points=1
# Hidden test: populations that are not Gaussian; float32 with mean 3e4.
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(1)
signs = rng.integers(0, 2, size=120_000) * 2.0 - 1  # variance 1, kurtosis 1
laplace = rng.laplace(size=400_000)  # variance 2, kurtosis 6
for stream, var, kurtosis in ((signs, 1.0, 1.0), (laplace, 2.0, 6.0)):
    for m in (3, 8):
        batches = stream[:len(stream) // m * m].reshape(-1, m)
        found = ((batches - batches.mean(1, keepdims=True)) ** 2).mean(1)
        law = variance_law(m, var=var, kurtosis=kurtosis)
        seen = measured_law(stream.copy(), m, var)
        assert abs(law[0] / (found.mean() - var) - 1) < 0.1, (
            f"the law's bias at m = {m}, kurtosis {kurtosis}")
        assert abs(law[1] / found.var() - 1) < 0.1, (
            f"the law's variance at m = {m}, kurtosis {kurtosis}")
        assert abs(seen[0] - (found.mean() - var)) < 1e-9, "measured bias"
        assert abs(seen[1] - found.var()) < 1e-9, "measured variance"
large = (30_000 + rng.normal(size=5_000)).astype(np.float32)
exact = large.astype(np.float64).reshape(-1, 8)
exact = ((exact - exact.mean(1, keepdims=True)) ** 2).mean(1)
seen = measured_law(large, 8, 1.0)
assert abs(seen[0] - (exact.mean() - 1)) < 0.01, "float32, mean 3e4"
assert abs(seen[1] - exact.var()) < 0.01, "float32, mean 3e4"
### END HIDDEN TESTS

# %% test="q1-smallest" points=1
# Hidden test: smallest_m for several tolerances and populations.
### BEGIN HIDDEN TESTS
for tolerance, kurtosis in ((0.3, 3.0), (0.77, 3.0), (0.9, 3.0),
                            (0.1, 3.0), (0.037, 3.0), (0.3, 6.0),
                            (0.13, 1.8), (0.3, 1.0)):
    want = 2
    while (((want - 1) / want) ** 2
           * ((kurtosis - 3) / want + 2 / (want - 1))
           + 1 / want ** 2 > tolerance ** 2):
        want += 1
    got = smallest_m(tolerance, kurtosis=kurtosis)
    assert got == want, (
        f"smallest_m({tolerance}, {kurtosis}) is {want}, not {got}")
### END HIDDEN TESTS

# %% [markdown]
# ## Question 2: ghost batch normalization (7 points)
#
# Cut the batch `x`, $(N, C)$ or $(N, C, H, W)$, into groups of examples and
# normalise each group by its own mean and biased variance. Our rule for the
# remainder is not chapter 22's:
#
# - there are $G = \max(1, \lfloor N/g\rfloor)$ groups for `ghost_size` $g$;
# - the groups' sizes differ by at most one, the larger groups come first;
# - examples stay in order.
#
# So 11 examples with $g = 4$ are a group of 6 and a group of 5, and 14 with
# $g = 4$ are groups of 5, 5 and 4.
#
# `ghost_forward` returns `y` and a `cache` of your own design, of which
# `ghost_backward` makes the gradients. Let $j(i)$ be the group of value $i$:
#
# $$y_i = \gamma\,\frac{x_i-\mu_{j(i)}}{\sqrt{\sigma^2_{j(i)}+\varepsilon}}
# + \beta .$$


# %% answer="q2-ghost"
def ghost_forward(x, gamma, beta, ghost_size, eps=1e-5):
    """Normalise x in groups of about ghost_size examples.

    x: (N, C) or (N, C, H, W), float32 or float64. gamma, beta: (C,).
    Returns y, of x's shape and type, and cache, for ghost_backward.
    """
    ### BEGIN SOLUTION
    count = max(1, len(x) // ghost_size)
    shape = [1, -1] + [1] * (x.ndim - 2)
    axes = (0, *range(2, x.ndim))
    xhats, scales = [], []
    for part in np.array_split(x, count):
        centred = part - part.mean(axis=axes, keepdims=True)
        var = np.mean(centred**2, axis=axes, keepdims=True)
        inv_std = 1 / np.sqrt(var + eps)
        xhats.append(centred * inv_std)
        scales.append(inv_std)
    y = gamma.reshape(shape) * np.concatenate(xhats) + beta.reshape(shape)
    return y.astype(x.dtype), (xhats, scales, gamma.reshape(shape), axes)
    ### END SOLUTION


def ghost_backward(dy, cache):
    """Gradients from dy, of y's shape, and ghost_forward's cache.

    Returns dx, of x's shape and type, dgamma (C,) and dbeta (C,).
    """
    ### BEGIN SOLUTION
    xhats, scales, weight, axes = cache
    start, dx, dgamma, dbeta = 0, [], 0, 0
    for xhat, inv_std in zip(xhats, scales):
        g = dy[start:start + len(xhat)]
        start += len(xhat)
        m = g.size // g.shape[1]
        db = g.sum(axis=axes, keepdims=True)
        dg = (g * xhat).sum(axis=axes, keepdims=True)
        dx.append(weight * inv_std * (g - db / m - xhat * dg / m))
        dgamma, dbeta = dgamma + dg, dbeta + db
    dx = np.concatenate(dx).astype(xhats[0].dtype)
    return dx, dgamma.ravel(), dbeta.ravel()
    ### END SOLUTION


# %% test="q2-forward" points=1
# Public test: two groups of two, by hand.
x = np.array([[1.0, 0.0], [3.0, 8.0], [-5.0, 2.0], [5.0, 2.0]])
gamma, beta = np.array([1.0, 2.0]), np.array([0.0, 10.0])
y, cache = ghost_forward(x, gamma, beta, ghost_size=2, eps=9.0)
assert y.shape == x.shape, "y must have the shape of x"
a, b = 1 / np.sqrt(10), 5 / np.sqrt(34)
want = np.array([[-a, 8.4], [a, 11.6], [-b, 10.0], [b, 10.0]])
assert np.allclose(y, want), "y of two groups of two"

# %% test="q2-remainder" points=2
# Hidden test: batches that do not divide evenly, or are smaller than one
# group; x left as it was.
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(2)
gamma, beta = rng.normal(size=(2, 3)) + 1
for n, size, sizes in ((11, 4, (6, 5)), (14, 4, (5, 5, 4)), (3, 8, (3,)),
                       (8, 4, (4, 4)), (9, 5, (9,)), (9, 4, (5, 4))):
    x = rng.normal(size=(n, 3)) * 2 + np.arange(n)[:, None]
    want, at = np.empty_like(x), 0
    for k in sizes:
        part = x[at:at + k]
        var = ((part - part.mean(0)) ** 2).mean(0)
        want[at:at + k] = (part - part.mean(0)) / np.sqrt(var + 1e-3)
        at += k
    want = gamma * want + beta
    before = x.copy()
    y = ghost_forward(x, gamma, beta, size, eps=1e-3)[0]
    assert np.array_equal(x, before), "x must not be changed"
    assert y.shape == x.shape, "y must have the shape of x"
    assert np.allclose(y, want, rtol=1e-9, atol=1e-9), (
        f"y of {n} examples with ghost_size {size}")
### END HIDDEN TESTS

# %% test="q2-images" points=1
# Hidden test: images, in float32 with mean 3e4.
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(3)
x = (3e4 + rng.normal(size=(7, 2, 4, 3))).astype(np.float32)
gamma, beta = np.array([[1.5, -0.5], [0.0, 2.0]], dtype=np.float32)
want = []
for part in (x[:4].astype(np.float64), x[4:].astype(np.float64)):
    centred = part - part.mean((0, 2, 3), keepdims=True)
    var = (centred ** 2).mean((0, 2, 3), keepdims=True)
    want.append(centred / np.sqrt(var + 1e-5))
want = np.concatenate(want) * gamma[:, None, None] + beta[:, None, None]
y = ghost_forward(x, gamma, beta, 3)[0]
assert y.shape == x.shape, "y must have the shape of x"
assert y.dtype == np.float32, "y must have x's type"
assert np.abs(y - want).max() < 0.05, "float32 images with mean 3e4"
### END HIDDEN TESTS

# %% test="q2-slopes" points=1
# Public test: the gradients against central differences, with a remainder.
rng = np.random.default_rng(4)
x, dy = rng.normal(size=(2, 5, 2))
gamma, beta = np.array([2.0, -1.0]), np.array([0.5, 0.0])


def of_x(x):
    """y as a function of x alone."""
    return ghost_forward(x, gamma, beta, 2, eps=0.1)[0]


slopes = numerical_gradient(of_x, x, dy)
dx, dgamma, dbeta = ghost_backward(dy, ghost_forward(x, gamma, beta, 2,
                                                     eps=0.1)[1])
assert dx.shape == x.shape and dgamma.shape == dbeta.shape == (2,)
assert np.allclose(dx, slopes, atol=1e-6), "dx is not the slope"

# %% test="q2-backward" points=2
# Hidden test: all gradients, for images and a remainder, gamma not 1, dy
# left as it was; one cache serves two calls.
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(5)
for shape, size, sizes in (((11, 3), 4, (6, 5)), ((4, 3), 9, (4,)),
                           ((5, 3, 2, 2), 2, (3, 2))):
    x, dy = rng.normal(size=(2, *shape)) * 2 + 0.5
    gamma, beta = rng.normal(size=(2, 3)) + 1
    axes = (0, *range(2, x.ndim))
    column = (-1,) + (1,) * (x.ndim - 2)
    dx, dgamma, dbeta, at = np.empty_like(x), 0, dy.sum(axes), 0
    for k in sizes:
        p, g = x[at:at + k], dy[at:at + k]
        s = 1 / np.sqrt(p.var(axes, keepdims=True) + 1e-3)
        h = (p - p.mean(axes, keepdims=True)) * s
        dx[at:at + k] = gamma.reshape(column) * s * (
            g - g.mean(axes, keepdims=True)
            - h * (g * h).mean(axes, keepdims=True))
        dgamma = dgamma + (g * h).sum(axes)
        at += k
    cache = ghost_forward(x.copy(), gamma.copy(), beta.copy(), size,
                          eps=1e-3)[1]
    for _ in range(2):
        sent = dy.copy()
        got = ghost_backward(sent, cache)
        assert np.array_equal(sent, dy), "dy must not be changed"
        for name, g, w in zip(("dx", "dgamma", "dbeta"), got,
                              (dx, dgamma, dbeta), strict=True):
            assert g.shape == w.shape, f"{name} must be {w.shape}"
            assert np.allclose(g, w, rtol=1e-7, atol=1e-9), (
                f"{name} for x {shape} and ghost_size {size}")
### END HIDDEN TESTS

# %% [markdown]
# ## Question 3: batch renormalisation, forward (5 points)
#
# Write one training step of batch renormalisation, (22.6), for $(N, C)$ and
# $(N, C, H, W)$. It differs from chapter 22's layer in what is stored.
# `state` is a dict with the running `"mean"` and the running **variance**
# `"var"`, $(C,)$ each, which are those of a batch normalization layer, so
# that a pretrained one can be taken over. So
#
# $$\sigma_B = \sqrt{\operatorname{Var}_B+\varepsilon}, \qquad
# \sigma = \sqrt{v+\varepsilon}$$
#
# with $v$ the stored variance and $\operatorname{Var}_B$ the biased variance
# of the batch, and $r$ and $d$ as in (22.6), clipped to $[1/r_{\max},
# r_{\max}]$ and $[-d_{\max}, d_{\max}]$. They compare the batch with what was
# known *before* this batch.
#
# Then the step updates `state`: towards the batch's mean and **unbiased**
# variance, with `momentum` the share of the new value. After the call the
# dict holds the new values; it does not matter whether you change its arrays
# or put new ones in.


# %% answer="q3-renorm-forward"
def renorm_forward(x, gamma, beta, state, r_max, d_max, momentum=0.1,
                   eps=1e-5):
    """One training step of batch renormalisation.

    x: (N, C) or (N, C, H, W). gamma, beta: (C,). state: a dict with "mean"
    and "var", (C,) each, which is updated. r_max >= 1, d_max >= 0.
    Returns y, of x's shape and type, and r and d, (C,) each. Raises
    ValueError for fewer than two values a channel; state stays as it was.
    """
    ### BEGIN SOLUTION
    axes = (0, *range(2, x.ndim))
    column = (-1,) + (1,) * (x.ndim - 2)
    m = x.size // x.shape[1]
    if m < 2:
        raise ValueError("x must have at least two values a channel, got "
                         f"an array of shape {x.shape}")
    mean, var = x.mean(axis=axes), x.var(axis=axes)
    own, known = np.sqrt(var + eps), np.sqrt(state["var"] + eps)
    r = np.clip(own / known, 1 / r_max, r_max)
    d = np.clip((mean - state["mean"]) / known, -d_max, d_max)
    xhat = (x - mean.reshape(column)) / own.reshape(column)
    xhat = xhat * r.reshape(column) + d.reshape(column)
    y = gamma.reshape(column) * xhat + beta.reshape(column)
    for name, new in (("mean", mean), ("var", var * m / (m - 1))):
        state[name] = (1 - momentum) * state[name] + momentum * new
    return y.astype(x.dtype), r, d
    ### END SOLUTION


# %% test="q3-dial" points=1
# Public test: the two ends of the dial, a batch's own statistics (limits 1
# and 0) and the running ones (no limits); one value a channel is refused.
rng = np.random.default_rng(6)
x = rng.normal(size=(6, 2)) * [2.0, 0.5] + [1.0, -1.0]
gamma, beta = np.array([1.0, 3.0]), np.array([0.0, 1.0])
own = gamma * (x - x.mean(0)) / np.sqrt(x.var(0) + 0.01) + beta
state = {"mean": np.array([0.5, 0.0]), "var": np.array([4.0, 1.0])}
y, r, d = renorm_forward(x, gamma, beta, state, 1.0, 0.0, eps=0.01)
assert y.shape == x.shape and r.shape == d.shape == (2,)
assert np.allclose(y, own), "with limits 1 and 0 it is batch normalization"
state = {"mean": np.array([0.5, 0.0]), "var": np.array([4.0, 1.0])}
known = gamma * (x - [0.5, 0.0]) / np.sqrt(np.array([4.01, 1.01])) + beta
y, r, d = renorm_forward(x, gamma, beta, state, 1e6, 1e6, eps=0.01)
assert np.allclose(y, known), "without limits it is evaluation mode"
try:
    renorm_forward(x[:1], gamma, beta, state, 1.0, 0.0)
    refused = False
except ValueError:
    refused = True
assert refused, "one value a channel must raise ValueError"

# %% test="q3-clip" points=2
# Hidden test: r and d at each of their limits and between them, and y;
# vectors and images.
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(7)
for shape in ((8, 5), (3, 5, 2, 2)):
    column = (-1,) + (1,) * (len(shape) - 2)
    axes = (0, *range(2, len(shape)))
    spread = np.array([9.0, 0.1, 1.0, 1.0, 1.0]).reshape(column)
    offset = np.array([0.0, 0.0, 9.0, -9.0, 0.3]).reshape(column)
    x = rng.normal(size=shape) * spread + offset
    gamma, beta = rng.normal(size=(2, 5)) + 1
    mean, var = np.linspace(-0.1, 0.1, 5), np.linspace(0.8, 1.2, 5)
    mu, own = x.mean(axes), np.sqrt(x.var(axes) + 0.05)
    known = np.sqrt(var + 0.05)
    want_r = np.minimum(np.maximum(own / known, 1 / 2.5), 2.5)
    want_d = np.minimum(np.maximum((mu - mean) / known, -1.5), 1.5)
    xhat = (x - mu.reshape(column)) / own.reshape(column)
    want = gamma.reshape(column) * (
        xhat * want_r.reshape(column) + want_d.reshape(column)
    ) + beta.reshape(column)
    before = x.copy()
    y, r, d = renorm_forward(x, gamma.copy(), beta.copy(),
                             {"mean": mean.copy(), "var": var.copy()},
                             2.5, 1.5, eps=0.05)
    assert np.array_equal(x, before), "x must not be changed"
    assert y.shape == x.shape, "y must have the shape of x"
    for name, g, w in (("r", r, want_r), ("d", d, want_d)):
        assert g.shape == (5,), f"{name} must be (C,)"
        assert np.allclose(g, w, rtol=1e-9), f"{name} for x {shape}"
    assert np.allclose(y, want, rtol=1e-9, atol=1e-9), f"y for x {shape}"
half = renorm_forward(x.astype(np.float32), gamma, beta,
                      {"mean": mean.copy(), "var": var.copy()}, 2.5, 1.5)
assert half[0].dtype == np.float32, "y must have x's type"
### END HIDDEN TESTS

# %% test="q3-state" points=2
# Hidden test: the running statistics of three steps, vectors and images;
# a refused batch changes nothing.
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(8)
for shape in ((4, 3), (2, 3, 2, 1)):
    axes = (0, *range(2, len(shape)))
    state = {"mean": np.zeros(3), "var": np.ones(3)}
    mean, var = np.zeros(3), np.ones(3)
    for _ in range(3):
        x = rng.normal(size=shape) * 3 + 2
        mean = mean + 0.2 * (x.mean(axes) - mean)
        var = var + 0.2 * (x.var(axes, ddof=1) - var)
        renorm_forward(x, np.ones(3), np.zeros(3), state, 3.0, 5.0,
                       momentum=0.2)
    for name, w in (("mean", mean), ("var", var)):
        assert state[name].shape == (3,), f"state['{name}'] must be (C,)"
        assert np.allclose(state[name], w, rtol=1e-9), (
            f"the running {name} after three steps of x {shape}")
    try:
        renorm_forward(np.ones((1, 3)), np.ones(3), np.zeros(3), state, 3.0,
                       5.0)
    except ValueError:
        pass
    assert np.allclose(state["mean"], mean, rtol=1e-9), (
        "a refused batch must not move the running statistics")
### END HIDDEN TESTS

# %% [markdown]
# ## Question 4: batch renormalisation, backward (4 points)
#
# In the backward pass $r$ and $d$ are constants; $\mu_B$ and $\sigma_B$ are
# not. With $\hat x_B = (x-\mu_B)/\sigma_B$ the step of question 3 is
#
# $$y = \gamma\,(r\,\hat x_B + d) + \beta .$$
#
# Write its gradients. This function gets the batch and its `r` and `d`, not
# a cache: what else it needs it computes from `x`. Be careful with
# $d\gamma$.


# %% answer="q4-renorm-backward"
def renorm_backward(dy, x, gamma, r, d, eps=1e-5):
    """Gradients of batch renormalisation, r and d held constant.

    dy, x: (N, C) or (N, C, H, W). gamma, r, d: (C,). Returns dx, of x's
    shape and type, dgamma (C,) and dbeta (C,).
    """
    ### BEGIN SOLUTION
    axes = (0, *range(2, x.ndim))
    column = (-1,) + (1,) * (x.ndim - 2)
    m = x.size // x.shape[1]
    inv_std = 1 / np.sqrt(x.var(axis=axes) + eps)
    centred = x - x.mean(axis=axes).reshape(column)
    xhat = centred * inv_std.reshape(column)
    dbeta = dy.sum(axis=axes)
    along = (dy * xhat).sum(axis=axes)
    dgamma = r * along + d * dbeta
    inside = dy - (dbeta.reshape(column) + xhat * along.reshape(column)) / m
    dx = (gamma * r * inv_std).reshape(column) * inside
    return dx.astype(x.dtype), dgamma, dbeta
    ### END SOLUTION


# %% test="q4-slopes" points=1
# Public test: dx against central differences, with r and d held.
rng = np.random.default_rng(9)
x, dy = rng.normal(size=(2, 4, 2))
gamma, r, d = np.array([2.0, -1.0]), np.array([0.5, 3.0]), np.array([1.0, 0])


def held(x):
    """Batch renormalisation as a function of x alone, r and d held."""
    xhat = (x - x.mean(0)) / np.sqrt(x.var(0) + 0.1)
    return gamma * (r * xhat + d)


slopes = numerical_gradient(held, x, dy)
dx, dgamma, dbeta = renorm_backward(dy, x, gamma, r, d, eps=0.1)
assert dx.shape == x.shape and dgamma.shape == dbeta.shape == (2,)
assert np.allclose(dx, slopes, atol=1e-6), "dx is not the slope"

# %% test="q4-images" points=2
# Hidden test: dx for images and for small batches with the usual eps; the
# arguments left as they were.
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(10)
for shape in ((3, 2), (16, 2), (3, 2, 4, 3)):
    axes = (0, *range(2, len(shape)))
    column = (-1,) + (1,) * (len(shape) - 2)
    x, dy = rng.normal(size=(2, *shape)) * 1.5 + 0.4
    gamma, r, d = rng.random(size=(3, 2)) + 0.5
    s = 1 / np.sqrt(x.var(axes, keepdims=True) + 1e-5)
    h = (x - x.mean(axes, keepdims=True)) * s
    want = (gamma * r).reshape(column) * s * (
        dy - dy.mean(axes, keepdims=True)
        - h * (dy * h).mean(axes, keepdims=True))
    args = [dy, x, gamma, r, d]
    copies = [a.copy() for a in args]
    dx = renorm_backward(*args)[0]
    for a, copy in zip(args, copies):
        assert np.array_equal(a, copy), "an argument was changed"
    assert dx.shape == x.shape, "dx must have the shape of x"
    assert np.allclose(dx, want, rtol=1e-7, atol=1e-9), f"dx for x {shape}"
### END HIDDEN TESTS

# %% test="q4-parameters" points=1
# Hidden test: dgamma and dbeta.
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(11)
for shape in ((6, 3), (2, 3, 3, 2)):
    axes = (0, *range(2, len(shape)))
    column = (-1,) + (1,) * (len(shape) - 2)
    x, dy = rng.normal(size=(2, *shape)) + 0.5
    gamma, r, d = rng.random(size=(3, 3)) + 0.5
    h = (x - x.mean(axes, keepdims=True)) / np.sqrt(
        x.var(axes, keepdims=True) + 0.01)
    inner = h * r.reshape(column) + d.reshape(column)
    want = (dy * inner).sum(axes), dy.sum(axes)
    got = renorm_backward(dy.copy(), x.copy(), gamma, r, d, eps=0.01)[1:]
    for name, g, w in zip(("dgamma", "dbeta"), got, want, strict=True):
        assert g.shape == (3,), f"{name} must be (C,)"
        assert np.allclose(g, w, rtol=1e-9), f"{name} for x {shape}"
### END HIDDEN TESTS

# %% [markdown]
# ## Question 5: a norm and a batch size (5 points, by hand)
#
# A network for segmentation is trained from scratch on two GPUs. On each it
# computes its own statistics.
#
# - The **backbone** has maps of $128\times128$, $64\times64$, $32\times32$ and
#   $16\times16$, with a normalisation after each convolution.
# - A **context branch** averages the last map to $1\times1$, then
#   convolution, normalisation, ReLU, and its result is spread over the map
#   again.
# - The model is shipped on a phone, where a batch normalization that follows
#   a convolution costs nothing, since it is folded into it.
#
# Measured on one GPU (8 images do not fit into its memory):
#
# | images on a GPU | 1 | 2 | 4 | 6 |
# |---|---:|---:|---:|---:|
# | images a second | 9 | 17 | 29 | 31 |
# | memory used, of 24 GB | 7 | 10 | 16 | 23 |
#
# Choose the batch size on each GPU, a normalisation for the backbone and one
# for the context branch. Defend each choice with a number, at least two of
# them from your functions of question 1, and name the alternative that you
# turned down and why. Name one measurement that could change your mind. 200
# to 350 words.

# %% [markdown] text="q5" points=5
# ### BEGIN SOLUTION
# **Size.** Four images on each GPU, 8 in all. From 2 to 4 images the speed
# grows by 70 %, from 4 to 6 by 7 %: the knee is at 4. Six would use 23 of 24
# GB, which leaves no margin, and buys 2 images a second.
#
# **Backbone: batch normalization.** Its smallest maps give
# $m = 4\cdot16\cdot16 = 1024$ values a channel, its largest 65,536. By
# `variance_law(1024)` the batch variance is off by −0.1 % on average and
# $\sqrt{2\cdot1023}/1024 = 4.4$ % from batch to batch, if values were
# independent. Neighbouring pixels are not; `smallest_m(0.1)` = 200, so even
# if only every fifth value counts as independent the error stays near 10 %.
# It is folded away on the phone. Group normalization would not need the
# batch at all, but cannot be folded: it would cost time in every layer of
# the shipped model, to repair an error of a few per cent.
#
# **Context branch: not batch normalization.** After the average $m = 4$. By
# `variance_law(4)` the variance is a quarter too small on average and its
# spread is $\sqrt{6}/4 = 61$ % of $\sigma^2$: a root mean square error of
# 66 %. Synchronised over both GPUs $m = 8$, and the error is still
# $\sqrt{15}/8 = 48$ %. It would take about 200 images for 10 %. I take group
# normalization over the branch's channels here: one layer on a $1\times1$
# map costs next to nothing on the phone, though it can't be folded.
# (Leaving the norm out, or batch renormalisation, are defensible: at
# $m = 4$ its forward pass is honest, and something of the gradient passes.)
#
# **What could change my mind**: validation error of both choices for the
# backbone with three seeds and a swept learning rate. If group
# normalization in the last stage gained more than the seeds' spread, the
# pixels there are worth far fewer independent values than I assumed.
#
# **Rubric.** One point each, no halves:
#
# 1. A batch size from the table, with its reason in numbers: the knee (29
#    against 31 images a second) or the memory margin (23 of 24 GB). 4
#    expected; 2 earns the point only with an argument that outweighs 17
#    against 29; 6 only if the missing margin is named.
# 2. $m$ counted right for both places at the chosen size:
#    $B\cdot16\cdot16$ in the smallest map of the backbone and $B$ in the
#    context branch, on **one** GPU (not both).
# 3. Two numbers from question 1 that are right for the chosen size and are
#    used as the reason (for example −25 % and 61 %, or 66 %, at $m = 4$;
#    4.4 % at 1024; `smallest_m(0.1)` = 200). Allow 2 % of slack; a number
#    without a consequence does not count.
# 4. Choices that follow: in the backbone one that can be folded, or a reason
#    in numbers why not; in the context branch no plain batch normalization
#    over the images of one GPU. For each place one alternative turned down
#    with a reason.
# 5. Honest about a limit: that the values are not independent, **or** that
#    the formula's 3 is for Gaussian values, **and** one measurement that
#    could change the choice (what is measured, and which outcome would
#    change it).
# ### END SOLUTION
