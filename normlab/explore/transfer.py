"""An interactive figure: what training mode makes of a value, on average."""

from pathlib import Path

import numpy as np
import traitlets

from normlab.explore.base import Figure

POINTS = 160  # of the quadrature, here and in the page


def nodes(points=POINTS):
    """Sines and weights, (points,) each: the midpoint rule in t, with
    q = sin t, for an integral over q from 0 to 1."""
    t = (np.arange(points) + 0.5) * np.pi / 2 / points
    return np.sin(t), np.cos(t) * np.pi / 2 / points


def curve(x, m, eps=0.0):
    """The mean of the normalised value of x (N,) beside m - 1 companions
    from N(0, 1), as the page computes it: chapter 23, (23.9)."""
    x = np.asarray(x, float)[..., None]
    q, w = nodes()
    share = (1 - q**2) / (1 + (m - 1) * q**2)
    away = (m - 1) * (q * x) ** 2 + m**2 * eps * q**2 / (1 - q**2)
    rows = share ** ((m - 2) / 2) * np.exp(-away / 2) @ w
    return np.sqrt(2 / np.pi) * (m - 1) * x[..., 0] * rows


class TransferCurve(Figure):
    """The transfer function of training mode for m values a channel.

    value: the point that is marked, in standard deviations; eps: the
    layer's epsilon over the population's variance; alpha: the share of
    the example's own statistics in the dotted curve of EvalNorm.
    """

    _esm = Path(__file__).with_suffix(".js")
    m = traitlets.Int(4).tag(sync=True)
    value = traitlets.Float(3.0).tag(sync=True)
    eps = traitlets.Float(1e-5).tag(sync=True)
    alpha = traitlets.Float(0.15).tag(sync=True)
    noise = traitlets.Bool(True).tag(sync=True)
