"""Interactive figure: the shift and scale of two inputs, and how gradient
descent on a linear model walks because of them."""

from pathlib import Path

import traitlets

from normlab.explore.base import Figure

# The pattern of the inputs, before shift and scale: twelve pairs, which the
# page standardises, so that their mean is 0 and their variance 1.
POINTS = ((-6, -1), (-4, -5), (-3, 3), (-2, -3), (-1, 1), (0, -2),
          (1, 5), (1, -1), (2, 2), (3, -4), (4, 4), (5, 1))

START = (-1.5, 3.0)  # the weights before the first step
TARGET = (1.0, 1.0)  # the weights that made the targets

# The first state: a narrow valley, and a learning rate just below its limit.
FIRST = {"shift_1": 2.5, "shift_2": 1.5, "scale_1": 1.0, "scale_2": 0.5,
         "learning_rate": 0.2, "standardise": False}


class Zigzag(Figure):
    """Gradient descent on the squared error of a model of two inputs.

    The model w1 x1 + w2 x2 has no bias; its targets come from the weights
    TARGET. Input j is shift_j + scale_j z_j, with z_j standardised, or z_j
    itself if `standardise` is set. Shifts, scales and the learning rate are
    plain numbers without units.
    """

    _esm = Path(__file__).with_suffix(".js")

    points = traitlets.List([list(p) for p in POINTS]).tag(sync=True)
    start = traitlets.List(list(START)).tag(sync=True)
    target = traitlets.List(list(TARGET)).tag(sync=True)
    first = traitlets.Dict(FIRST).tag(sync=True)
    shift_1 = traitlets.Float(FIRST["shift_1"]).tag(sync=True)
    shift_2 = traitlets.Float(FIRST["shift_2"]).tag(sync=True)
    scale_1 = traitlets.Float(FIRST["scale_1"]).tag(sync=True)
    scale_2 = traitlets.Float(FIRST["scale_2"]).tag(sync=True)
    learning_rate = traitlets.Float(FIRST["learning_rate"]).tag(sync=True)
    standardise = traitlets.Bool(FIRST["standardise"]).tag(sync=True)
