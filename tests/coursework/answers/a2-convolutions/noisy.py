# %% [markdown]
# Prints, warns, writes to stderr; works in place on its own copies.
#
# ruff: noqa: B028, UP031

# %%
import sys
import warnings

import numpy as np

print("hello from the notebook", file=sys.stderr)
warnings.simplefilter("always")


# %% answer="q1-moments"
def chunk_moments(x):
    warnings.warn("computing moments of %s" % (x.shape,), UserWarning)
    z = x.astype("float64")
    n = z.shape[0] * z.shape[2] * z.shape[3]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mean = np.nan_to_num(z.mean((0, 2, 3)))
    z -= mean[None, :, None, None]
    z *= z
    print("n =", n, "mean =", mean)
    return n, mean, z.sum((0, 2, 3))


def merge(a, b):
    n = a[0] + b[0]
    if n == 0:
        sys.stderr.write("nothing to merge\n")
        return 0, a[1] * 0, a[2] * 0
    mean = np.average([a[1], b[1]], axis=0, weights=[a[0], b[0]])
    m2 = a[2] + b[2]
    for part in (a, b):
        m2 = m2 + part[0] * (part[1] - mean) ** 2
    return n, mean, m2


# %% answer="q2-images"
def image_norm_forward(x, others, gamma, beta, eps=1e-5):
    n_own = x.size // x.shape[1]
    n = n_own + others[0]
    y = x.astype(np.float64)
    mean = np.einsum("nchw->c", y) / n + others[0] / n * others[1]
    y -= mean.reshape(-1, 1, 1)
    var = np.einsum("nchw,nchw->c", y, y) + others[2]
    var += others[0] * np.square(others[1] - mean)
    var /= n
    inv_std = 1 / np.sqrt(var + eps)
    y *= inv_std.reshape(-1, 1, 1)
    cache = [y.copy(), inv_std.copy(), gamma.copy(), n]
    y *= gamma.reshape(-1, 1, 1)
    y += beta.reshape(-1, 1, 1)
    print("mean of my part of the batch", y.mean(axis=(0, 2, 3)),
          file=sys.stderr)
    return y.astype(x.dtype), cache


def image_norm_backward(dy, cache):
    xhat, inv_std, gamma, n = cache
    np.sqrt(np.array([-1.0]))  # invalid value: a warning, no error
    dbeta = np.einsum("nchw->c", dy.astype(float))
    dgamma = np.einsum("nchw,nchw->c", dy.astype(float), xhat)
    dx = dy.astype(float)
    dx -= np.einsum("nchw,c->nchw", xhat, dgamma / n)
    dx -= (dbeta / n).reshape(-1, 1, 1)
    dx *= (gamma * inv_std).reshape(-1, 1, 1)
    return dx.astype(dy.dtype), dgamma, dbeta


# %%
images = np.random.default_rng(0).normal(size=(2, 3, 4, 4))
none = (0, np.zeros(3), np.zeros(3))
out, kept = image_norm_forward(images, none, np.ones(3), np.zeros(3))
print("variance", out.var(axis=(0, 2, 3)))
try:
    import matplotlib.pyplot as plt

    plt.hist(out.ravel(), 30)
    plt.show()
except ImportError:
    print("no plots here")


# %% answer="q3-track"
def track(buffers, x, momentum=0.1):
    n, _, h, w = x.shape
    m = n * h * w
    if m <= 1:
        raise ValueError("x needs more than one value a channel, got %d" % m)
    if not np.isfinite(x.sum()):
        warnings.warn("a batch was left out", RuntimeWarning)
        return {**buffers}
    mean = x.mean(axis=(0, 2, 3))
    var = x.var(axis=(0, 2, 3)) * m / (m - 1)
    t = buffers["num_batches_tracked"] + 1
    p = momentum
    if p is None:
        p = 1.0 / t
    print("share", p)
    return {"running_mean": np.array([(1 - p), p]) @ np.array(
                [buffers["running_mean"], mean]),
            "running_var": np.array([(1 - p), p]) @ np.array(
                [buffers["running_var"], var]),
            "num_batches_tracked": t}


# %% answer="q4-fuse"
def fuse_after(weight, bias, norm):
    fused = weight.astype(float)
    std = np.sqrt(norm["var"] + norm["eps"])
    for o, (g, s) in enumerate(zip(norm["gamma"], std)):
        fused[o] *= g / s
    offset = np.zeros(len(weight)) if bias is None else bias.astype(float)
    offset -= norm["mean"]
    offset *= norm["gamma"]
    offset /= std
    offset += norm["beta"]
    print("fused bias", offset, file=sys.stderr)
    return fused.astype(weight.dtype), offset.astype(weight.dtype)


def fuse_before(norm, weight, bias):
    fused = weight.astype(float)
    std = np.sqrt(norm["var"] + norm["eps"])
    offset = np.zeros(len(weight)) if bias is None else bias.astype(float)
    for i in range(weight.shape[1]):
        column = fused[:, i].copy().reshape(len(weight))
        offset += column * norm["beta"][i]
        offset -= column * norm["mean"][i] * norm["gamma"][i] / std[i]
        fused[:, i] *= norm["gamma"][i] / std[i]
    return fused.astype(weight.dtype), offset.astype(weight.dtype)
