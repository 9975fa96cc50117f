"""An interactive figure: a scale-invariant weight under weight decay."""

from pathlib import Path

import numpy as np
import traitlets

from normlab.explore.base import Figure
from normlab.explore.running_average import normals

STEPS = 4000


def walk(lr=0.1, decay=0.01, start=3.0, pull=1.0, momentum=0.0, seed=1,
         steps=STEPS):
    """A weight in the plane under SGD with decay, (steps + 1, 2).

    Its gradient is drawn at random, as that of a scale-invariant weight
    can be: at right angles to the weight, and pull * N(0, 1) / norm long.
    start: the first norm; the page repeats the draws of a seed.
    """
    z = pull * normals(seed, steps)
    w, v, found = np.array([start, 0.0]), np.zeros(2), []
    found.append(w)
    for draw in z:
        across = np.array([-w[1], w[0]]) / (w @ w)
        v = momentum * v + draw * across + decay * w
        w = w - lr * v
        found.append(w)
    return np.array(found)


def equilibrium(lr, decay, pull=1.0, momentum=0.0):
    """Norm and angle per step (radians) at which growth and decay balance:
    chapter 19, (19.11) and (19.10). Infinite and 0 without decay."""
    if decay == 0:
        return float("inf"), 0.0
    return ((lr * pull**2 / (2 * decay * (1 - momentum))) ** 0.25,
            (2 * lr * decay / (1 + momentum)) ** 0.5)


def turns(weights):
    """The angle of each step (steps,), in radians, for weights
    (steps + 1, 2)."""
    (a, b), (c, d) = weights[:-1].T, weights[1:].T
    return np.abs(np.arctan2(a * d - b * c, a * c + b * d))


class WeightSphere(Figure):
    """A scale-invariant weight, drawn as a point in the plane, under SGD
    with the learning rate `lr` and weight decay `decay`.

    start: its first norm; pull: the gradient's size at norm 1; momentum:
    the optimiser's, "0", "0.5" or "0.9"; seed: of the gradients.
    """

    _esm = Path(__file__).with_suffix(".js")
    lr = traitlets.Float(0.1).tag(sync=True)
    decay = traitlets.Float(0.01).tag(sync=True)
    start = traitlets.Float(3.0).tag(sync=True)
    pull = traitlets.Float(1.0).tag(sync=True)
    momentum = traitlets.Enum(["0", "0.5", "0.9"], "0").tag(sync=True)
    seed = traitlets.Int(1).tag(sync=True)
