# %% [markdown]
# # Assignment 2: images, running averages, and a layer that disappears
#
# You compute the statistics of images that arrive in pieces, normalise images
# together with others that you have never seen, keep running averages, and at
# the end make the layer vanish into its neighbour.
#
# **When you have finished you can**
#
# - say over which numbers a channel's mean and variance are taken, and merge
#   such statistics exactly;
# - carry a gradient back through statistics of which only a part depends on
#   your input;
# - say what the buffers of a layer hold after any sequence of batches;
# - fuse batch normalization into the linear map in front of it or behind it.
#
# **Read first:** chapter 5,
# [Convolutions](../../notebooks/05-convolutions.ipynb); chapter 6, [Training
# mode and evaluation mode](../../notebooks/06-train-and-inference.ipynb). For
# question 2 have chapter 3,
# [Backward](../../notebooks/03-backward.ipynb), beside you.
#
# | Question | What | Automatic | By hand | Time |
# |---|---|---:|---:|---:|
# | 1 | statistics, piece by piece | 5 | | 30 min |
# | 2 | forward and backward for images | 6 | | 50 min |
# | 3 | running averages | 4 | | 25 min |
# | 4 | fusing | 5 | | 30 min |
# | 5 | in your own words | | 5 | 15 min |
# | | in total | 20 | 5 | 2 h 30 min |
#
# **Rules.** NumPy only; nothing to install; this notebook runs in Colab and in
# Jupyter. Write your code where it says `YOUR CODE HERE`, and add cells as you
# like. Keep the names and arguments of the functions. Below each question
# stand its tests. Some you can run; of the others you see only the comment
# that says what they check, and they run when you have handed in. Each
# question is tested by itself. Hand in this one file.

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


def conv1x1(x, weight, bias=None):
    """A 1x1 convolution: x (N, I, H, W), weight (O, I), bias (O,)."""
    z = np.einsum("nihw,oi->nohw", x, weight)
    return z if bias is None else z + bias[:, None, None]


# %% [markdown]
# ## Question 1: statistics, piece by piece (5 points)
#
# A data set doesn't fit into memory. It comes in chunks, arrays
# $(n, C, H, W)$, and each chunk may have another number of images **and
# another image size**. You want each channel's mean and variance over all
# pixels of all images, in one pass. A chunk, or several together, is described
# by three things: the number $n$ of values a channel, their mean $\mu$, and
# $M = \sum (x - \mu)^2$, the sum of the squared deviations (so the biased
# variance is $M/n$).
#
# Write two functions: `chunk_moments` describes one chunk, and `merge` puts
# two descriptions together, without the values. Equations (6.8) and (6.9) say
# how; write them for $n$, $\mu$ and $M$ of two parts. Work in float64
# whatever the chunk's type is. Pixel values may lie far from 0: a
# difference of two huge sums is no way to get $M$.

# %% answer="q1-moments"
def chunk_moments(x):
    """The moments (n, mean, m2) of a chunk x (N, C, H, W), per channel.

    n is an int, the number of values a channel; mean (C,) and m2 (C,), the
    sum of squared deviations from the mean, are float64. A chunk without
    images, (0, C, H, W), has n = 0 and zeros.
    """
    ### BEGIN SOLUTION
    z = x.astype(np.float64)
    n, axes = z.size // z.shape[1], (0, 2, 3)
    mean = z.sum(axis=axes) / max(n, 1)
    m2 = ((z - mean[:, None, None]) ** 2).sum(axis=axes)
    return n, mean, m2
    ### END SOLUTION


def merge(a, b):
    """The moments (n, mean, m2) of the values of a and b together.

    a and b are such moments too; either may be empty (n = 0), or both.
    """
    ### BEGIN SOLUTION
    (n_a, mean_a, m2_a), (n_b, mean_b, m2_b) = a, b
    n = n_a + n_b
    apart, share = mean_b - mean_a, n_b / max(n, 1)
    mean = mean_a + apart * share
    return n, mean, m2_a + m2_b + apart ** 2 * n_a * share
    ### END SOLUTION


# %% test="q1-chunk" points=1
# By hand: two images of two channels, two positions each.
x = np.array([[[[1.0, 3.0]], [[10.0, 10.0]]],
              [[[5.0, 7.0]], [[10.0, 14.0]]]])
n, mean, m2 = chunk_moments(x)
assert n == 4, f"4 values lie behind each mean, got {n}"
assert_close("mean", mean, [4.0, 11.0])
assert_close("m2", m2, [20.0, 12.0])

# %% test="q1-merge" points=1
# By hand: the values 1 and 3, and the values 4, 6, 6, 8, 6.
a = (2, np.array([2.0]), np.array([2.0]))
b = (5, np.array([6.0]), np.array([8.0]))
n, mean, m2 = merge(a, b)
assert n == 7, f"there are 7 values, got {n}"
assert_close("mean", mean, [34 / 7])
assert_close("m2", m2, [10 + 160 / 7])

# %% test="q1-many" points=2
# Hidden test: many float32 chunks of several image sizes, around 30000 with
# deviation 1, described and merged one after the other.
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(0)
level = np.array([3e4, -2e4, 0.5])[:, None, None]
chunks = [(level + rng.normal(k % 3, 1, (n, 3, h, w))).astype(np.float32)
          for k, (n, h, w) in enumerate(
              [(2, 5, 3), (7, 1, 1), (1, 4, 6), (3, 2, 2), (5, 3, 7)])]
values = np.concatenate([c.astype(float).transpose(1, 0, 2, 3).reshape(3, -1)
                         for c in chunks], axis=1)  # (C, all)
want = values.mean(axis=1)
m2 = ((values - want[:, None]) ** 2).sum(axis=1)
total = chunk_moments(chunks[0])
assert_close("m2 of the first chunk", total[2],
             30 * values[:, :30].var(axis=1), 1e-4)
for chunk in chunks[1:]:
    total = merge(total, chunk_moments(chunk))
assert total[0] == values.shape[1], f"the count is {total[0]}"
assert_close("mean - level", total[1] - level.ravel(),
             want - level.ravel(), 1e-4)
assert_close("m2", total[2], m2, 1e-4)
### END HIDDEN TESTS

# %% test="q1-empty" points=1
# Hidden test: empty parts, parts of one value, the two in the other order,
# and arguments left as they were.
### BEGIN HIDDEN TESTS
none = chunk_moments(np.zeros((0, 2, 3, 3), np.float32))
one = chunk_moments(np.array([2.0, -5.0]).reshape(1, 2, 1, 1))
assert none[0] == 0, f"an empty chunk has {none[0]} values"
assert one[0] == 1, f"one pixel makes 1 value a channel, got {one[0]}"
assert_close("mean of an empty chunk", none[1], [0, 0])
assert_close("m2 of one pixel", one[2], [0, 0])
some = (3, np.array([1.0, 4.0]), np.array([6.0, 0.5]))
copies = [np.copy(v) for v in some]
for name, (a, b) in {"empty first": (none, some),
                     "empty last": (some, none)}.items():
    count, mean, m2 = merge(a, b)
    assert count == 3, f"{name}: the count is {count}"
    assert_close(f"mean, {name}", mean, [1, 4])
    assert_close(f"m2, {name}", m2, [6, 0.5])
n, mean, m2 = merge(none, none)
assert n == 0, f"nothing merged with nothing has {n} values"
assert_close("mean of nothing", mean, [0, 0])
assert_close("m2 of nothing", m2, [0, 0])
for a, b in ((one, some), (some, one)):
    count, mean, m2 = merge(a, b)
    assert_close("mean", mean, [1.25, 1.75])
    assert_close("m2", m2, [6.75, 0.5 + 60.75])
assert all(np.array_equal(v, c) for v, c in zip(some, copies)), (
    "merge changed its argument")
### END HIDDEN TESTS

# %% [markdown]
# ## Question 2: forward and backward for images (6 points)
#
# Your images $x$, (N, C, H, W), are one part of a larger batch; the other part
# lies elsewhere, and all you know of it are its moments $(n_o, \mu_o, M_o)$,
# as in question 1. Normalise your images with the mean and the biased variance
# of **the whole batch**, your values and the others' together:
#
# $$
# \hat x = \frac{x - \mu}{\sqrt{\sigma^2 + \varepsilon}}, \qquad
# y = \gamma \hat x + \beta, \qquad
# \mu, \sigma^2 \text{ over } n = N H W + n_o \text{ values a channel.}
# $$
#
# For the backward pass the others are constants: $dx$ is the gradient at
# *your* $x$ of a loss that sees *your* $y$. Of $\mu$ and $\sigma^2$ only a
# part depends on you, so (3.8) needs a second thought: which sums run over
# your values, and by what are they divided? With $n_o = 0$ it is batch
# normalization of images as in chapter 5.
#
# What you keep in the cache is up to you; an array, a dict, an object of your
# own.

# %% answer="q2-images"
def image_norm_forward(x, others, gamma, beta, eps=1e-5):
    """Normalise images with the statistics of a batch they are a part of.

    x (N, C, H, W), float32 or float64; others: the moments (n, mean, m2) of
    the rest of the batch, n may be 0; gamma and beta (C,), of x's dtype.
    Returns y, with the shape and dtype of x, and a cache for
    `image_norm_backward`. Leaves its arguments as they were.
    """
    ### BEGIN SOLUTION
    n_o, mean_o, m2_o = others
    axes, to = (0, 2, 3), (slice(None), None, None)
    z = x.astype(np.float64)
    n = z.size // z.shape[1] + n_o
    mean = (z.sum(axis=axes) + n_o * mean_o) / n  # (C,)
    centred = z - mean[to]
    var = ((centred ** 2).sum(axis=axes) + m2_o
           + n_o * (mean_o - mean) ** 2) / n
    inv_std = 1 / np.sqrt(var + eps)
    xhat = centred * inv_std[to]
    y = gamma[to] * xhat + beta[to]
    return y.astype(x.dtype), (xhat, inv_std, gamma, n)
    ### END SOLUTION


def image_norm_backward(dy, cache):
    """Gradients through `image_norm_forward`, whose cache this is.

    dy (N, C, H, W) is the loss's gradient at y. Returns dx, with the shape
    and dtype of dy, and dgamma and dbeta (C,). The others are constants.
    """
    ### BEGIN SOLUTION
    xhat, inv_std, gamma, n = cache
    dbeta = np.sum(dy, axis=(0, 2, 3), dtype=np.float64)
    dgamma = np.sum(dy * xhat, axis=(0, 2, 3))
    back = dbeta[:, None, None] + xhat * dgamma[:, None, None]
    dx = (gamma * inv_std)[:, None, None] * (dy - back / n)
    return dx.astype(dy.dtype), dgamma, dbeta
    ### END SOLUTION


# %% test="q2-worked" points=2
# By hand: 8 values a channel, 2 of them yours. Channel 0 has mean 4 and
# deviation 2, channel 1 mean 3 and deviation 3.
x = np.array([[6.0, -1.0], [8.0, 1.0]]).reshape(2, 2, 1, 1)
others = (6, np.array([3.0, 4.0]), np.array([6.0, 46.0]))
y, cache = image_norm_forward(x, others, np.array([3.0, 3.0]),
                              np.array([-1.0, 0.0]), 1e-12)
assert_close("y", y, np.reshape([[2.0, -4.0], [5.0, -2.0]], (2, 2, 1, 1)))
dy = np.array([[1.0, 0.0], [0.0, 0.0]]).reshape(2, 2, 1, 1)
dx, dgamma, dbeta = image_norm_backward(dy, cache)
assert_close("dx", dx, np.reshape([[1.125, 0.0], [-0.5625, 0.0]],
                                  (2, 2, 1, 1)))

# %% test="q2-values" points=1
# Hidden test: images of several sizes with and without others, a large eps,
# float32 far from 0, types, and arguments left as they were.
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(1)
for shape, count, eps, dtype, level in (
        ((4, 3, 5, 2), 0, 1e-5, float, 0), ((2, 3, 1, 4), 30, 0.5, float, 1),
        ((3, 3, 4, 4), 11, 1e-5, np.float32, 3e4)):
    x = (level + rng.normal(0, 0.8, shape)).astype(dtype)
    rest = level + rng.normal(1, 2, (3, count))
    mean_o = rest.mean(axis=1) if count else np.zeros(3)
    m2_o = ((rest - mean_o[:, None]) ** 2).sum(axis=1)
    gamma, beta = rng.normal(size=(2, 3)).astype(dtype)
    z = x.astype(float)
    every = np.concatenate(
        [z.transpose(1, 0, 2, 3).reshape(3, -1), rest], axis=1)
    s = 1 / np.sqrt(every.var(axis=1) + eps)
    want = z - every.mean(axis=1)[:, None, None]
    want = want * (gamma * s)[:, None, None] + beta[:, None, None]
    given = [x, mean_o, m2_o, gamma, beta]
    copies = [v.copy() for v in given]
    y, _ = image_norm_forward(x, (count, mean_o, m2_o), gamma, beta, eps)
    assert y.dtype == dtype, f"y must have x's dtype {x.dtype}, got {y.dtype}"
    assert_close(f"y for {shape}, {count} others", y, want,
                 0.05 if level > 1 else 1e-6)
    assert all(np.array_equal(v, c) for v, c in zip(given, copies)), (
        "image_norm_forward changed an argument")
### END HIDDEN TESTS

# %% test="q2-gradient" points=2
# Hidden test: dx against central differences, with few others, many and none.
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(2)
gamma, beta = np.array([1.5, -0.7]), np.array([0.2, 0.3])
for shape, count, eps in (((3, 2, 2, 2), 0, 1e-5), ((2, 2, 1, 3), 5, 1e-5),
                          ((3, 2, 2, 1), 40, 1.0)):
    x, p = rng.normal(1, 0.8, shape), rng.normal(size=shape)
    rest = rng.normal(0, 1.5, (2, count))
    mean_o = rest.mean(axis=1) if count else np.zeros(2)
    others = (count, mean_o, ((rest - mean_o[:, None]) ** 2).sum(axis=1))

    def loss(t, p=p, rest=rest, eps=eps):
        """The random projection of y."""
        every = np.concatenate(
            [t.transpose(1, 0, 2, 3).reshape(2, -1), rest], axis=1)
        s = gamma / np.sqrt(every.var(axis=1) + eps)
        d = t - every.mean(axis=1)[:, None, None]
        return (p * d * s[:, None, None]).sum()

    want = numeric_gradient(loss, x)
    _, cache = image_norm_forward(x.copy(), others, gamma, beta, eps)
    dx, _, _ = image_norm_backward(p.copy(), cache)
    assert_close(f"dx with {count} others", dx, want, 1e-5)
### END HIDDEN TESTS

# %% test="q2-parameters" points=1
# Hidden test: dgamma and dbeta, and the type of dx.
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(3)
x = rng.normal(size=(4, 3, 2, 5)).astype(np.float32)
dy = rng.normal(size=x.shape).astype(np.float32)
others = (9, np.array([0.5, -1.0, 2.0]), np.array([4.0, 9.0, 1.0]))
z, n = x.astype(float), 49
mean = (z.sum(axis=(0, 2, 3)) + 9 * others[1]) / n
d = z - mean[:, None, None]
var = ((d ** 2).sum(axis=(0, 2, 3)) + others[2]
       + 9 * (others[1] - mean) ** 2) / n
xhat = d / np.sqrt(var + 1e-5)[:, None, None]
_, cache = image_norm_forward(x, others, np.full(3, 2, np.float32),
                              np.ones(3, np.float32))
dx, dg, db = image_norm_backward(dy, cache)
assert dx.shape == x.shape, f"dx must have the shape of dy, got {dx.shape}"
assert dx.dtype == np.float32, f"dx must have dy's dtype, got {dx.dtype}"
assert_close("dgamma", dg, (dy * xhat).sum(axis=(0, 2, 3)), 1e-4)
assert_close("dbeta", db, dy.sum(axis=(0, 2, 3), dtype=float), 1e-4)
### END HIDDEN TESTS

# %% [markdown]
# ## Question 3: running averages (4 points)
#
# Write the update of the buffers as a function without side effects: it takes
# the buffers as a dict and returns the new ones. $p$ is `momentum` in
# PyTorch's meaning, the weight of the **new** value, and the variance that is
# stored is the **unbiased** one, $\frac{m}{m-1}\sigma_B^2$ with $m = NHW$.
# With `momentum=None` the buffers are the plain average of all batches so far
# (6.5). One addition, against the accident that chapter 6 calls a poisoned
# buffer: a batch that holds a NaN or an infinite value is left out, and the
# buffers come back unchanged, the counter too.

# %% answer="q3-track"
def track(buffers, x, momentum=0.1):
    """The buffers after one more batch x (N, C, H, W).

    buffers: a dict with "running_mean" and "running_var", (C,) float64, and
    the int "num_batches_tracked". Returns a new dict of the same names and
    leaves the old one and its arrays as they were. A batch with a value
    that isn't finite changes nothing. Raises ValueError for fewer than two
    values a channel.
    """
    ### BEGIN SOLUTION
    m = x.size // x.shape[1]
    if m < 2:
        raise ValueError("x must have at least 2 values a channel, got "
                         f"shape {x.shape}")
    new = {name: np.copy(value) for name, value in buffers.items()}
    new["num_batches_tracked"] = int(buffers["num_batches_tracked"])
    if not np.isfinite(x).all():
        return new
    new["num_batches_tracked"] += 1
    share = momentum
    if momentum is None:
        share = 1 / new["num_batches_tracked"]
    z = x.astype(np.float64)
    batch = {"running_mean": z.mean(axis=(0, 2, 3)),
             "running_var": z.var(axis=(0, 2, 3), ddof=1)}
    for name, value in batch.items():
        new[name] = (1 - share) * new[name] + share * value
    return new
    ### END SOLUTION


# %% test="q3-once" points=1
# By hand: the values 1, 3, 5, 7 have mean 4 and unbiased variance 20/3.
start = {"running_mean": np.array([0.0]), "running_var": np.array([1.0]),
         "num_batches_tracked": 0}
x = np.array([1.0, 3.0, 5.0, 7.0]).reshape(2, 1, 2, 1)
after = track(start, x)
assert_close("running_mean", after["running_mean"], [0.4])
assert_close("running_var", after["running_var"], [0.9 + 2 / 3])
assert after["num_batches_tracked"] == 1, "one batch was seen"
assert start["running_mean"][0] == 0, "the old buffers were changed"
assert start["num_batches_tracked"] == 0, "the old buffers were changed"

# %% test="q3-many" points=2
# Hidden test: several batches of several sizes, with a momentum other than
# 0.1, with momentum=0 and with momentum=None, also from buffers that have
# seen batches before.
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(4)
batches = [rng.normal(3, 2, (n, 2, h, w))
           for n, h, w in ((2, 3, 1), (5, 1, 1), (1, 2, 4), (4, 2, 2))]
means = np.array([b.mean(axis=(0, 2, 3)) for b in batches])
variances = np.array([b.var(axis=(0, 2, 3), ddof=1) for b in batches])
for p in (0.3, 0.0, 1.0, None):
    buffers = {"running_mean": np.array([1.0, -1.0]),
               "running_var": np.array([2.0, 3.0]),
               "num_batches_tracked": 3}
    for batch in batches:
        buffers = track(buffers, batch.copy(), momentum=p)
    if p is None:
        mean = (3 * np.array([1.0, -1.0]) + means.sum(axis=0)) / 7
        var = (3 * np.array([2.0, 3.0]) + variances.sum(axis=0)) / 7
    else:
        k = p * (1 - p) ** np.arange(4)[::-1]
        mean = (1 - p) ** 4 * np.array([1.0, -1.0]) + k @ means
        var = (1 - p) ** 4 * np.array([2.0, 3.0]) + k @ variances
    assert_close(f"running_mean, momentum={p}", buffers["running_mean"], mean)
    assert_close(f"running_var, momentum={p}", buffers["running_var"], var)
    assert buffers["num_batches_tracked"] == 7, (
        f"momentum={p}: 7 batches were seen, got "
        f"{buffers['num_batches_tracked']}")
### END HIDDEN TESTS

# %% test="q3-bad-batch" points=1
# Hidden test: batches with a NaN or an infinite value, one value a channel,
# and the old buffers, which stay as they were.
### BEGIN HIDDEN TESTS
start = {"running_mean": np.array([1.0, -1.0]),
         "running_var": np.array([2.0, 3.0]), "num_batches_tracked": 5}
kept = {name: np.copy(value) for name, value in start.items()}
good = np.random.default_rng(5).normal(size=(2, 2, 2, 2))
for value in (np.nan, np.inf, -np.inf):
    for momentum in (0.1, None):
        bad = good.copy()
        bad[1, 0, 1, 1] = value
        after = track(start, bad, momentum)
        for name in ("running_mean", "running_var"):
            assert_close(f"{name} after a batch with {value}", after[name],
                         kept[name])
        assert after["num_batches_tracked"] == 5, (
            f"a batch with {value} must not be counted")
assert track(start, good)["num_batches_tracked"] == 6, "6 batches were seen"
for name, value in kept.items():
    assert np.array_equal(start[name], value), f"{name} was changed"
try:
    track(start, good[:1, :, :1, :1])
except ValueError:
    pass
else:
    raise AssertionError("one value a channel must raise ValueError")
### END HIDDEN TESTS

# %% [markdown]
# ## Question 4: fusing (5 points)
#
# In evaluation mode the layer is an affine map of each channel (6.1), and so
# it can be taken up by a linear map next to it. `norm` is a dict with
# `"gamma"`, `"beta"`, `"mean"`, `"var"`, each with one value a channel, and
# `"eps"`. Write
#
# - `fuse_after(weight, bias, norm)`: the weight and bias of one linear map
#   that computes $\mathrm{BN}(W x + b)$;
# - `fuse_before(norm, weight, bias)`: those of one that computes
#   $W\, \mathrm{BN}(x) + b$.
#
# The weight is that of a linear layer, (O, I), or of a $1 \times 1$
# convolution, (O, I, 1, 1), and comes back in the same shape. There may be no
# bias, `None`; a bias comes back in every case.

# %% answer="q4-fuse"
def fuse_after(weight, bias, norm):
    """One linear map for BN after a linear map.

    weight (O, I) or (O, I, 1, 1); bias (O,) or None; norm: of O channels.
    Returns a weight with the shape and dtype of weight and a bias (O,), of
    the same dtype. Leaves its arguments as they were.
    """
    ### BEGIN SOLUTION
    scale = norm["gamma"] / np.sqrt(norm["var"] + norm["eps"])  # (O,)
    old = 0 if bias is None else bias
    fused_bias = norm["beta"] + scale * (old - norm["mean"])
    fused = scale.reshape((-1,) + (1,) * (weight.ndim - 1)) * weight
    return fused.astype(weight.dtype), fused_bias.astype(weight.dtype)
    ### END SOLUTION


def fuse_before(norm, weight, bias):
    """One linear map for BN in front of a linear map; norm: of I channels.

    The other arguments and what is returned are as in `fuse_after`.
    """
    ### BEGIN SOLUTION
    inv_std = 1 / np.sqrt(norm["var"] + norm["eps"])  # (I,)
    scale = inv_std * norm["gamma"]
    shift = norm["beta"] - norm["mean"] * scale
    flat = weight.reshape(weight.shape[:2])
    bias = flat @ shift + (0 if bias is None else bias)
    fused = (flat * scale).reshape(weight.shape)
    return fused.astype(weight.dtype), bias.astype(weight.dtype)
    ### END SOLUTION


# %% test="q4-after" points=1
# By hand: a linear map with two outputs, then the layer.
norm = {"gamma": np.array([4.0, 3.0]), "beta": np.array([1.0, 0.0]),
        "mean": np.array([5.0, -1.0]), "var": np.array([4.0, 9.0]),
        "eps": 1e-12}
weight, bias = fuse_after(np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]),
                          np.array([7.0, 1.0]), norm)
assert_close("weight", weight, [[2, 4, 6], [4, 5, 6]])
assert_close("bias", bias, [5.0, 2.0])

# %% test="q4-before" points=1
# By hand: the layer, then a linear map with one output.
norm = {"gamma": np.array([2.0, 3.0]), "beta": np.array([1.0, 0.0]),
        "mean": np.array([5.0, -1.0]), "var": np.array([16.0, 9.0]),
        "eps": 1e-12}
weight, bias = fuse_before(norm, np.array([[4.0, 10.0]]), np.array([0.5]))
assert_close("weight", weight, [[2, 10]])
assert_close("bias", bias, [4.5])


# %% test="q4-images" points=2
# Hidden test: on images the fused map gives what the two steps give, for
# both orders, with a large eps, small variances, negative gamma and a gamma
# of 0, and for both shapes of the weight.
### BEGIN HIDDEN TESTS
def evaluate(x, norm):
    """Batch normalization of images in evaluation mode."""
    mean, var, gamma, beta = (norm[k][:, None, None]
                              for k in ("mean", "var", "gamma", "beta"))
    return gamma * (x - mean) / np.sqrt(var + norm["eps"]) + beta


rng = np.random.default_rng(6)
x = rng.normal(2, 3, (2, 4, 3, 3))
for eps, with_bias, as_conv in ((1e-5, True, False), (0.5, False, True),
                                (1e-3, True, True)):
    weight = rng.normal(size=(3, 4))
    bias = rng.normal(size=3) if with_bias else None
    shape = (3, 4, 1, 1) if as_conv else (3, 4)
    norms = {c: {"gamma": rng.normal(size=c), "beta": rng.normal(size=c),
                 "mean": rng.normal(size=c), "eps": eps,
                 "var": rng.uniform(1e-3, 2, c)} for c in (3, 4)}
    norms[3]["gamma"][1] = norms[4]["gamma"][2] = 0
    want = evaluate(conv1x1(x, weight, bias), norms[3])
    new, offset = fuse_after(weight.reshape(shape), bias, norms[3])
    assert np.shape(new) == shape, f"the weight has shape {np.shape(new)}"
    assert_close("BN after the map", conv1x1(
        x, np.reshape(new, (3, 4)), np.asarray(offset)), want)
    want = conv1x1(evaluate(x, norms[4]), weight, bias)
    new, offset = fuse_before(norms[4], weight.reshape(shape), bias)
    assert np.shape(new) == shape, f"the weight has shape {np.shape(new)}"
    assert_close("BN before the map", conv1x1(
        x, np.reshape(new, (3, 4)), np.asarray(offset)), want)
### END HIDDEN TESTS

# %% test="q4-contract" points=1
# Hidden test: types, a missing bias, and arguments left as they were.
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(7)
norm = {k: rng.uniform(0.5, 2, 3) for k in ("gamma", "beta", "mean", "var")}
norm["eps"] = 0.1
kept = {k: np.copy(v) for k, v in norm.items()}
scale = norm["gamma"] / np.sqrt(norm["var"] + 0.1)
shift = norm["beta"] - norm["mean"] * scale
for dtype in (np.float32, np.float64):
    weight = rng.normal(size=(3, 3)).astype(dtype)
    bias = rng.normal(size=3).astype(dtype)
    copies = weight.copy(), bias.copy()
    for given in (bias, None):
        old = 0 if given is None else copies[1]
        for name, (w, b), want in (
                ("after", fuse_after(weight, given, norm),
                 shift + scale * old),
                ("before", fuse_before(norm, weight, given),
                 copies[0] @ shift + old)):
            assert w.dtype == dtype, f"fuse_{name}: weight is {w.dtype}"
            assert b.dtype == dtype, f"fuse_{name}: bias is {b.dtype}"
            assert_close(f"bias of fuse_{name}", b, want, 1e-5)
    assert np.array_equal(weight, copies[0]), "the weight was changed"
    assert np.array_equal(bias, copies[1]), "the bias was changed"
for name, value in kept.items():
    assert np.array_equal(norm[name], value), f"norm[{name!r}] was changed"
### END HIDDEN TESTS

# %% [markdown]
# ## Question 5: in your own words (5 points, marked by a person)
#
# A network of convolutions, each with batch normalization, is trained for 300
# steps with `momentum=0.001` (PyTorch's meaning; the running mean starts at 0,
# the running variance at 1). After each epoch it is validated on images that
# are sorted by class, in batches of 8, and somebody has forgotten to switch to
# evaluation mode there. At the end the model is saved, and in
# evaluation mode its accuracy is poor.
#
# (a) Name two different things that the forgotten switch does wrong.
#
# (b) Suppose the switch had not been forgotten. How much of the starting
# values is left in the buffers after 300 steps? What would you do about the
# poor accuracy without training any further?
#
# (c) Your buffers are now exactly the mean and variance of the training data
# at each layer. Name a situation in which evaluation mode is still
# wrong, and say why no running average of training batches can know of it.
#
# About 150 words are enough.

# %% [markdown] text="q5" points=5
# ### BEGIN SOLUTION
# (a) First, the validation results are those of another function: each image
# is normalised with the seven others in its batch, here all of the same class,
# so its prediction depends on its company. Second, every forward pass in
# training mode moves the buffers: validation data, in batches that aren't a
# random sample, flow into the running statistics and are saved with the model.
#
# (b) $0.999^{300} = 0.74$: three quarters of the buffers are still the
# starting values 0 and 1. The weights are fine. I measure the statistics anew
# with fixed weights: run some thousand training images through the network in
# training mode and merge the moments (PreciseBN), or reset the buffers and
# make one pass with `momentum=None` over shuffled batches of equal size.
#
# (c) Test images that come from elsewhere: another camera, say, that makes all
# pictures darker. The channels' means and variances are then others, and the
# layer goes on to subtract those of the training data. A running average
# only ever sees training batches, so it holds nothing about other data.
#
# **Rubric.**
#
# - (a) 1 point: predictions depend on the other images of the batch (or: on
#   batch statistics of a batch of one class). 1 point: validation data move
#   the running statistics (which the saved model keeps).
# - (b) 1 point: $0.999^{300}$ or about 0.74 (0.7 to 0.75 is accepted). 1
#   point: statistics measured again with fixed weights (PreciseBN,
#   `update_bn`, a pass in training mode with a larger momentum or None).
#   "Train longer" or "a larger momentum from the start": 0.
# - (c) 1 point: a difference between what is normalised in training and in use
#   (data from elsewhere, another mixture of classes, very small training
#   batches that the weights have adapted to), *with* the reason that
#   training batches carry no information about it. Without the reason: 0.
# ### END SOLUTION
