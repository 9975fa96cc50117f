# %% [markdown]
# As short as it goes. The cache of question 2 is a function.

# %%
import numpy as np

A, T = (0, 2, 3), (slice(None), None, None)


# %% answer="q1-moments"
def chunk_moments(x):
    z = np.moveaxis(x, 1, 0).reshape(x.shape[1], -1).astype(float)
    n = z.shape[1]
    return (n, z.mean(1), z.var(1) * n) if n else (0, *np.zeros((2, len(z))))


def merge(a, b):
    if not a[0] or not b[0]:
        return b if b[0] else a
    n, d = a[0] + b[0], b[1] - a[1]
    return n, (a[0] * a[1] + b[0] * b[1]) / n, (
        a[2] + b[2] + d * d * a[0] * b[0] / n)


# %% answer="q2-images"
def image_norm_forward(x, others, gamma, beta, eps=1e-5):
    n, mu, m2 = merge(chunk_moments(x), others)
    s = (m2 / n + eps) ** -0.5
    h = (x - mu[T]) * s[T]

    def backward(dy):
        g, b = (dy * h).sum(A), dy.sum(A)
        dx = (gamma * s)[T] * (dy - (b[T] + h * g[T]) / n)
        return dx.astype(dy.dtype), g, b

    return (gamma[T] * h + beta[T]).astype(x.dtype), backward


def image_norm_backward(dy, cache):
    return cache(dy)


# %% answer="q3-track"
def track(buffers, x, momentum=0.1):
    n, mean, m2 = chunk_moments(x)
    if n < 2:
        raise ValueError("x has one value a channel")
    if not np.isfinite(m2).all():
        return dict(buffers)
    k = buffers["num_batches_tracked"] + 1
    p = 1 / k if momentum is None else momentum
    old = buffers["running_mean"], buffers["running_var"]
    return dict(running_mean=old[0] + p * (mean - old[0]),
                running_var=old[1] + p * (m2 / (n - 1) - old[1]),
                num_batches_tracked=k)


# %% answer="q4-fuse"
def affine(norm):
    a = norm["gamma"] * (norm["var"] + norm["eps"]) ** -0.5
    return a, norm["beta"] - a * norm["mean"]


def fuse_after(weight, bias, norm):
    a, c = affine(norm)
    b = c if bias is None else a * bias + c
    return ((weight.T * a).T.astype(weight.dtype), b.astype(weight.dtype))


def fuse_before(norm, weight, bias):
    a, c = affine(norm)
    w = weight.reshape(len(weight), -1)
    b = w @ c if bias is None else w @ c + bias
    return ((w * a).reshape(weight.shape).astype(weight.dtype),
            b.astype(weight.dtype))
