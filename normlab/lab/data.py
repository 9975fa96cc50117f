"""Data sets: digits, which needs no network, and MNIST."""

import numpy as np


def digits(seed=0, test_size=360, dtype=np.float32):
    """scikit-learn's digits: 8x8 images of 1,797 handwritten digits.

    Returns (x_train, y_train, x_test, y_test); x (N, 64) of `dtype`, from
    0 to 1; y (N,) integers from 0 to 9. `seed` draws which `test_size`
    images are held out. Source: Pedregosa et al. (2011).
    """
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    if not 1 <= test_size < len(x):
        raise ValueError(f"test_size must be from 1 to {len(x) - 1}, got "
                         f"{test_size}")
    order = np.random.default_rng(seed).permutation(len(x))
    x, y = (x[order] / 16).astype(dtype), y[order]
    cut = len(x) - test_size
    return x[:cut], y[:cut], x[cut:], y[cut:]
