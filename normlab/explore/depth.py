"""An interactive figure: depth, batch size and gain against the size of the
gradient at each layer of a network of random weights."""

from pathlib import Path

import numpy as np
import traitlets

from normlab.explore.base import Figure

DEPTHS = (10, 20, 50, 100)
BATCHES = (4, 8, 16, 32, 64)
GAINS = (0.5, 1.0, 2 ** 0.5, 2.0)


def gaussian(act, q):
    """E[act(z)^2] and E[act'(z)^2] for z ~ N(0, q)."""
    if act == "relu":
        return q / 2, 0.5
    if act == "identity":
        return q, 1.0
    z = np.linspace(-8, 8, 161)
    w = np.exp(-z * z / 2)
    f = np.tanh(q ** 0.5 * z)
    return (float(w @ f ** 2 / w.sum()),
            float(w @ (1 - f * f) ** 2 / w.sum()))


def pairs(act, n):
    """E[f^2], E[f f'], E[g^2], E[g g'], E[g^2 x^2], E[g x g' x'] for two
    values x, x' of a channel that batch normalization has made of n
    Gaussian ones, f = act(x) and g its slope: (x, x') are two coordinates
    of a point that is uniform on a sphere in n - 1 dimensions."""
    rho = -1 / (n - 1)
    if act == "identity":
        return 1.0, rho, 1.0, 1.0, 1.0, rho
    if act == "relu":
        kappa = ((1 - rho * rho) ** 0.5
                 + rho * (np.pi - np.arccos(rho))) / np.pi
        both = 0.25 + np.arcsin(rho) / (2 * np.pi)
        return 0.5, kappa / 2, 0.5, both, 0.5, kappa / 2
    s = (np.arange(400) + 0.5) / 400  # the share of the disc further out
    r = ((n - 1) * (1 - s ** (2 / (n - 3)))) ** 0.5
    angle = np.arange(48) * np.pi / 24
    x = np.outer(r, np.cos(angle))
    y = np.outer(r, np.cos(angle - np.arccos(rho)))
    f, h = np.tanh(x), np.tanh(y)
    g, k = 1 - f * f, 1 - h * h
    return tuple(float(np.mean(v)) for v in (
        f * f, f * h, g * g, g * k, (g * x) ** 2, g * x * k * y))


def law(norm, act, batch_size, gain, skip, depth):
    """Base-10 logarithms (depth + 1,) of the gradient's norm at states 0
    to `depth` of an infinitely wide network of blocks W act(norm(h)), or
    h + W act(norm(h)) with `skip`, relative to the last state's.

    norm is "none", "BN" or "LN", act "relu", "tanh" or "identity"; W has
    variance gain^2 / width and the input variance 1. For BN the batch must
    have at least 4 values, since E[1 / sigma_B^2] is infinite below.
    """
    n, w = batch_size, gain * gain
    if norm == "BN" and n < 4:
        raise ValueError(f"batch_size must be at least 4, got {n}")
    a, c, p, q, s, t = pairs(act, n) if norm == "BN" else (0,) * 6
    v, factors = 1.0, []
    for _ in range(depth):  # forward: each state's variance v
        if norm == "none":
            grown, slope = gaussian(act, v)
            factors.append(w * slope)
        elif norm == "LN":
            grown, slope = gaussian(act, 1.0)
            factors.append(w * slope / v)
        else:
            grown = a - c
            factors.append(w * n / ((n - 3) * v))
        v = w * grown + (v if skip else 0)
    # The parts of the gradient that differ between examples, and that
    # don't: only batch normalization tells them apart.
    apart, alike = 1.0, 1.0
    sizes = [1.0]
    for factor in reversed(factors):
        if norm == "BN":
            through = factor * (
                apart * (p - (p - q) / n - (s - t) / n)
                + alike * (p - (p + (n - 1) * q) / n
                           - (s + (n - 1) * t) / n) / (n - 1))
            apart, alike = through + skip * apart, skip * alike
        else:
            apart, alike = (part * (factor + skip)
                            for part in (apart, alike))
        sizes.append((apart * (n - 1) + alike) / n)
    return 0.5 * np.log10(sizes[::-1])


def measured():
    """Means over the seeds of the record "depth-gradients", by what was
    run: {"BN relu 32 1.414 false": {"10": [ten logarithms], ...}}."""
    from normlab.lab.records import read_record

    record = read_record("depth-gradients")
    depths = record["configuration"]["depths"]
    return {key(p["norm"], p["act"], p["batch_size"], p["gain"], p["skip"]):
            {str(d): [round(v, 2) for v in row]
             for d, row in zip(depths, p["mean"], strict=True)}
            for p in record["points"]}


def key(norm, act, batch_size, gain, skip):
    """The name of a point among those measured. What does not enter is
    left out: the batch size without BN; the gain in a plain normalised
    network, where it multiplies the first state's gradient and no other."""
    return " ".join([
        norm, act, str(batch_size) if norm == "BN" else "-",
        f"{gain:.3f}" if norm == "none" or skip else "-",
        "skip" if skip else "plain"])


class DepthGradient(Figure):
    """The gradient's norm at each state of a network of `depth` random
    layers, by the laws of the chapter, with measured dots.

    runs: as `measured` returns them, which is the default.
    """

    _esm = Path(__file__).with_suffix(".js")
    depth = traitlets.Int(100).tag(sync=True)
    batch_size = traitlets.Int(32).tag(sync=True)
    gain = traitlets.Float(2 ** 0.5).tag(sync=True)
    act = traitlets.Enum(["relu", "tanh", "identity"], "relu").tag(sync=True)
    norm = traitlets.Enum(["none", "BN", "LN"], "BN").tag(sync=True)
    skip = traitlets.Bool(False).tag(sync=True)
    runs = traitlets.Dict().tag(sync=True)

    def __init__(self, runs=None, **state):
        super().__init__(runs=measured() if runs is None else runs, **state)
