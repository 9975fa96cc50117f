"""Drag the points of a mini-batch; watch mean, variance, x-hat and y."""

from pathlib import Path

import traitlets

from normlab.explore.base import Figure


class DragBatch(Figure):
    """A mini-batch of one channel on a number line, and what comes out.

    points: the values x; gamma, beta: the layer's parameters; log_eps:
    the decimal logarithm of epsilon. All of them change as the reader
    drags, and a kernel sees the changes.
    """

    _esm = Path(__file__).with_suffix(".js")

    points = traitlets.List(traitlets.Float(), [1.0, 3.0, 3.0, 9.0]).tag(
        sync=True)
    gamma = traitlets.Float(1.5).tag(sync=True)
    beta = traitlets.Float(1.0).tag(sync=True)
    log_eps = traitlets.Float(-5.0).tag(sync=True)
