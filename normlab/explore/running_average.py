"""An interactive figure: a layer's running estimates, step by step."""

from pathlib import Path

import numpy as np
import traitlets

from normlab.explore.base import Figure

STD = 2.0  # of every value, so that the true variance is 4
FIRST, LAST = 2.0, 6.0  # the true mean at the first and at the last step


def true_mean(world, steps):
    """The true mean at each step, (steps,): it "stays", "drifts" or, half
    way, "jumps"."""
    t = np.arange(steps)
    shape = {"stays": 0 * t, "drifts": t / (steps - 1),
             "jumps": t >= steps // 2}
    if world not in shape:
        raise ValueError(f"world must be one of {', '.join(shape)}; got "
                         f"{world!r}")
    return FIRST + (LAST - FIRST) * shape[world]


def normals(seed, n):
    """n draws from N(0, 1) that the page's code repeats: Mulberry32, a
    generator of 32-bit words, and the Box-Muller transform."""
    with np.errstate(over="ignore"):
        a = np.arange(1, 2 * n + 1, dtype=np.uint32)
        a = a * np.uint32(0x6D2B79F5) + np.uint32(seed)
        t = (a ^ a >> 15) * (a | 1)
        t = (t + (t ^ t >> 7) * (t | 61)) ^ t
    u = (t ^ t >> 14) / 2 ** 32
    return np.sqrt(-2 * np.log1p(-u[::2])) * np.cos(2 * np.pi * u[1::2])


def draw_batches(world="jumps", batch_size=4, steps=300, seed=1):
    """Mean and biased variance of each batch, (steps,) each."""
    z = STD * normals(seed, steps * batch_size).reshape(steps, batch_size)
    return true_mean(world, steps) + z.mean(axis=1), z.var(axis=1)


class RunningAverage(Figure):
    """Batches of `batch_size` values come in; two running averages, with
    the momenta `first` and `second`, follow their mean and variance.

    world: how the true mean moves, "stays", "drifts" or "jumps";
    unbiased: which variance is averaged; seed: of the draws.
    """

    _esm = Path(__file__).with_suffix(".js")
    first = traitlets.Float(0.1).tag(sync=True)
    second = traitlets.Float(0.01).tag(sync=True)
    batch_size = traitlets.Int(4).tag(sync=True)
    steps = traitlets.Int(300).tag(sync=True)
    world = traitlets.Enum(["stays", "drifts", "jumps"], "jumps").tag(
        sync=True)
    unbiased = traitlets.Bool(True).tag(sync=True)
    seed = traitlets.Int(1).tag(sync=True)
