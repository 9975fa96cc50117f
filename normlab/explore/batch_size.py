"""An interactive figure: batch size against error, and against the spread
of the statistics."""

from pathlib import Path

import numpy as np
import traitlets

from normlab.explore.base import Figure

SIZES = (2, 4, 8, 16, 32, 64, 128)
LEVELS = range(1, 18)  # m = 2 ** level, up to 128 images of 32 x 32
NETS = {"dense": "small-batches-dense",
        "convolutional": "small-batches-cnn"}


def scale_quantiles(shares=(0.05, 0.5, 0.95)):
    """Quantiles of sigma / sigma_B, (levels, shares), over batches of m =
    2 ** level independent Gaussian values: m times sigma_B^2 / sigma^2
    has the chi-squared distribution with m - 1 degrees of freedom."""
    from scipy import stats

    m = 2.0 ** np.array(LEVELS)[:, None]
    return (m / stats.chi2.isf(np.array(shares), m - 1)) ** 0.5


def mean_scale(m):
    """E[sigma / sigma_B] over batches of m independent Gaussian values;
    infinite at m = 2."""
    if m <= 2:
        return float("inf")
    from scipy.special import gammaln

    return float((m / 2) ** 0.5 * np.exp(gammaln((m - 2) / 2)
                                         - gammaln((m - 1) / 2)))


def measured(methods=("BN", "GN")):
    """Test errors in percent at each of SIZES, from the book's records:
    {net: {method: means}}, each at the best learning rate."""
    from normlab.lab.records import read_record
    from normlab.lab.small_batches import best

    points = {net: read_record(name)["points"]
              for net, name in NETS.items()}
    return {net: {method: [
        round(100 * float(best(found, method, size)[1].mean()), 2)
        for size in SIZES] for method in methods}
        for net, found in points.items()}


class BatchSize(Figure):
    """A batch of batch_size images is split over `devices`, which each
    normalise their share of feature maps of side x side; what that means
    for the statistics, beside the errors of two networks.

    errors: as `measured` returns them, which is the default; axis: what
    runs to the right, "examples" normalised together, or "values".
    """

    _esm = Path(__file__).with_suffix(".js")
    batch_size = traitlets.Int(8).tag(sync=True)
    devices = traitlets.Int(4).tag(sync=True)
    side = traitlets.Int(4).tag(sync=True)
    axis = traitlets.Enum(["examples", "values"], "examples").tag(sync=True)
    errors = traitlets.Dict().tag(sync=True)
    quantiles = traitlets.List().tag(sync=True)

    def __init__(self, errors=None, **state):
        super().__init__(
            errors=measured() if errors is None else errors,
            quantiles=np.round(scale_quantiles(), 5).tolist(), **state)
