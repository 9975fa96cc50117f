"""Corrupted images, made on the spot: the kinds of damage that
ImageNet-C has, in a few lines each, with strengths of our own."""

import numpy as np

# Five strengths of each, chosen for this book so that level 1 is mild and
# level 5 severe on small grey digits. They are not those of ImageNet-C.
# Lengths are shares of the image's side.
LEVELS = {
    "dim": (0.7, 0.5, 0.3, 0.2, 0.1),  # the factor on every pixel
    "contrast": (0.7, 0.5, 0.3, 0.2, 0.1),  # on the deviation from the mean
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),  # added, then clipped
    "noise": (0.1, 0.2, 0.3, 0.4, 0.5),  # standard deviation
    "impulse": (0.03, 0.06, 0.12, 0.2, 0.3),  # share of pixels
    "blur": (0.03, 0.04, 0.05, 0.06, 0.075),  # standard deviation
    "pixelate": (0.75, 0.6, 0.5, 0.35, 0.25),  # pixels a side that are left
    "occlude": (0.15, 0.25, 0.35, 0.5, 0.6),  # side of the grey square
    "shade": (0.5, 0.7, 0.85, 0.95, 1.0),  # light lost at the right edge
    "rotate": (10, 20, 30, 40, 50),  # degrees, either way
    "invert": (0.2, 0.4, 0.6, 0.8, 1.0),  # share of the negative
}
# For choosing settings, so that none is chosen on the corruptions above.
HELD_OUT = {
    "gamma": (1.5, 2.0, 3.0, 4.0, 6.0),  # exponent of every pixel
    "speckle": (0.2, 0.4, 0.6, 0.8, 1.0),  # noise in proportion to a pixel
    "veil": (0.15, 0.3, 0.45, 0.6, 0.75),  # share of an even grey
}


def corrupt(x, name, severity, seed=0):
    """Images x (N, H, W) or (N, 1, H, W) of floats from 0 to 1, damaged.

    name: a key of LEVELS or HELD_OUT; severity: 1 to 5; `seed` draws what
    is random. Returns a new array like x, again from 0 to 1. Raises
    TypeError or ValueError if an argument is none of these. The idea of
    such a set, not its strengths: Hendrycks and Dietterich (2019).
    """
    check_images(x)
    known = LEVELS | HELD_OUT
    if name not in known:
        raise ValueError(f"name must be one of {', '.join(known)}; got "
                         f"{name!r}")
    if severity not in (1, 2, 3, 4, 5):
        raise ValueError(f"severity must be from 1 to 5, got {severity!r}")
    rng = np.random.default_rng([seed, list(known).index(name)])
    images = x.reshape(-1, *x.shape[-2:]).astype(np.float64)
    y = DAMAGE[name](images, known[name][severity - 1], rng)
    return y.clip(0, 1).astype(x.dtype).reshape(x.shape)


def check_images(x):
    """Raise TypeError or ValueError unless x is a batch of grey images."""
    if not isinstance(x, np.ndarray):
        raise TypeError(f"x must be a NumPy array, got {type(x).__name__}")
    if x.dtype.kind != "f":
        raise TypeError(f"x must hold floats, got {x.dtype}")
    if x.ndim not in (3, 4) or x.ndim == 4 and x.shape[1] != 1:
        raise ValueError("x must have the shape (N, H, W) or (N, 1, H, W), "
                         f"got {x.shape}")
    if x.size and not (x.min() >= 0 and x.max() <= 1):
        raise ValueError("x must be from 0 to 1, got values from "
                         f"{x.min():.3g} to {x.max():.3g}")


def dim(x, factor, rng):
    """A lamp that gives less light."""
    return factor * x


def contrast(x, factor, rng):
    """Pulled towards each image's own mean, as in ImageNet-C."""
    mean = x.mean(axis=(1, 2), keepdims=True)
    return mean + factor * (x - mean)


def brightness(x, shift, rng):
    """More light everywhere; what is white stays white."""
    return x + shift


def noise(x, std, rng):
    """Gaussian noise on every pixel."""
    return x + std * rng.standard_normal(x.shape)


def impulse(x, share, rng):
    """Some pixels turn black or white."""
    hit = rng.random(x.shape) < share
    return np.where(hit, rng.integers(0, 2, x.shape), x)


def blur(x, width, rng):
    """A Gaussian blur."""
    from scipy.ndimage import gaussian_filter1d  # scikit-learn brings it

    for axis in (1, 2):
        x = gaussian_filter1d(x, width * x.shape[axis], axis)
    return x


def pixelate(x, share, rng):
    """Fewer pixels, each the mean of those that it covers."""
    for axis in (1, 2):
        side = x.shape[axis]
        coarse = max(1, round(share * side))
        # Row i of `cover`: how much of each fine pixel coarse pixel i has.
        edges = np.linspace(0, side, coarse + 1)
        fine = np.arange(side)
        cover = (np.minimum(edges[1:, None], fine + 1)
                 - np.maximum(edges[:-1, None], fine)).clip(0)
        cover /= cover.sum(axis=1, keepdims=True)
        nearest = ((fine + 0.5) * coarse / side).astype(int)
        x = np.moveaxis(np.moveaxis(x, axis, -1) @ cover.T[:, nearest], -1,
                        axis)
    return x


def occlude(x, share, rng):
    """A grey square somewhere on the image."""
    n, h, w = x.shape
    tall, wide = max(1, round(share * h)), max(1, round(share * w))
    top = rng.integers(0, h - tall + 1, (n, 1, 1))
    left = rng.integers(0, w - wide + 1, (n, 1, 1))
    row, column = np.arange(h)[:, None], np.arange(w)
    hidden = ((row >= top) & (row < top + tall)
              & (column >= left) & (column < left + wide))
    return np.where(hidden, 0.5, x)


def shade(x, loss, rng):
    """Light that falls off from the left edge to the right."""
    return x * np.linspace(1, 1 - loss, x.shape[2])


def rotate(x, angle, rng):
    """Turned by the angle, each image to a side drawn for it."""
    from scipy.ndimage import rotate as turned

    left = rng.random(len(x)) < 0.5
    y = np.empty_like(x)
    for rows, sign in ((left, 1), (~left, -1)):
        y[rows] = turned(x[rows], sign * angle, axes=(2, 1), reshape=False,
                         order=1)
    return y


def invert(x, share, rng):
    """A mixture of the image and its negative."""
    return (1 - share) * x + share * (1 - x)


def gamma(x, exponent, rng):
    """Darker in the middle tones."""
    return x ** exponent


def speckle(x, std, rng):
    """Noise in proportion to each pixel."""
    return x * (1 + std * rng.standard_normal(x.shape))


def veil(x, share, rng):
    """An even grey in front of the image."""
    return (1 - share) * x + share * 0.5


DAMAGE = {f.__name__: f for f in (
    dim, contrast, brightness, noise, impulse, blur, pixelate, occlude,
    shade, rotate, invert, gamma, speckle, veil)}
