"""What the layers are measured against: the same layer written the way it
is often taught, and with the variance formula it should not use."""

from contextlib import contextmanager

import numpy as np


def staged_forward(x, gamma, beta, eps=1e-5, variance=None):
    """Batch normalization of x (N, C), one named array for each step of the
    algorithm. `variance`, a function of x, replaces steps 3 and 4."""
    mean = x.mean(axis=0)
    centred = x - mean
    squared = centred**2
    var = squared.mean(axis=0) if variance is None else variance(x)
    std = np.sqrt(var + np.asarray(eps, x.dtype))
    inv_std = 1 / std
    x_hat = centred * inv_std
    scaled = gamma * x_hat
    return scaled + beta, (centred, std, inv_std, x_hat, gamma)


def staged_backward(dy, saved, dtype=None):
    """The chain rule through `staged_forward`, one step at a time.

    Where a sum is spread over the rows again, `dtype` is that of the array
    of ones: by default float64, as NumPy makes it and courses leave it, so
    that what follows is float64 as well.
    """
    centred, std, inv_std, x_hat, gamma = saved
    n, ones = len(dy), np.ones(dy.shape, dtype)
    dbeta = dy.sum(axis=0)
    dgamma = (dy * x_hat).sum(axis=0)
    dx_hat = dy * gamma
    dinv_std = (dx_hat * centred).sum(axis=0)
    dcentred_1 = dx_hat * inv_std
    dstd = -dinv_std / std**2
    dvar = dstd / (2 * std)
    dsquared = ones * dvar / n
    dcentred_2 = 2 * centred * dsquared
    dcentred = dcentred_1 + dcentred_2
    dmean = -dcentred.sum(axis=0)
    dx_1, dx_2 = dcentred, ones * dmean / n
    return dx_1 + dx_2, dgamma, dbeta


def to_rows(x):
    """x (N, C, H, W) transposed and copied to (N * H * W, C)."""
    return x.transpose(0, 2, 3, 1).reshape(-1, x.shape[1])


def to_images(rows, shape):
    """Undo `to_rows`; shape is (N, C, H, W). A view, not a copy."""
    n, c, h, w = shape
    return rows.reshape(n, h, w, c).transpose(0, 3, 1, 2)


def spatial_forward(x, gamma, beta, eps=1e-5):
    """`staged_forward` of images x (N, C, H, W)."""
    y, saved = staged_forward(to_rows(x), gamma, beta, eps)
    return to_images(y, x.shape), saved


def spatial_backward(dy, saved, dtype=None):
    """`staged_backward` for `spatial_forward`."""
    dx, dgamma, dbeta = staged_backward(to_rows(dy), saved, dtype)
    return to_images(dx, dy.shape), dgamma, dbeta


def one_pass_variance(x):
    """E[x^2] - E[x]^2 of each column of x (N, C): not to be used."""
    return (x * x).mean(axis=0) - x.mean(axis=0) ** 2


@contextmanager
def torch_threads(torch, n):
    """PyTorch on n threads, as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
