"""The house style of figures: one colour for each method, everywhere."""

import matplotlib.pyplot as plt
import numpy as np

# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = {
    "none": "#555555",
    "BN": "#0072B2",
    "LN": "#D55E00",
    "GN": "#009E73",
    "IN": "#CC79A7",
    "BRN": "#56B4E9",
    "ghost BN": "#7B4FA3",
    "FN": "#8C3B2E",
    "WN": "#B8A000",
    "dropout": "#B07C00",
    "data": "#555555",
    "truth": "#000000",
    "before": "#D55E00",
    "after": "#0072B2",
}

STYLE = {
    # An opaque, light background: legible on light and on dark pages.
    "figure.facecolor": "#fcfcfa",
    "axes.facecolor": "#fcfcfa",
    "savefig.facecolor": "#fcfcfa",
    "figure.dpi": 110,
    "figure.figsize": (6.4, 3.2),
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.edgecolor": "#444444",
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "image.cmap": "cividis",
}


def use_style():
    """Set the house style for all figures that follow."""
    plt.rcParams.update(STYLE)


def colour(method):
    """The fixed colour of a method; ValueError names those there are."""
    if method not in COLOURS:
        raise ValueError(f"method must be one of {', '.join(COLOURS)}; got "
                         f"{method!r}")
    return COLOURS[method]


def label_line(ax, line, text, dx=4, dy=0):
    """Write `text` at the right end of a line, in the line's colour."""
    x, y = line.get_xdata()[-1], line.get_ydata()[-1]
    ax.annotate(text, (x, y), (dx, dy), textcoords="offset points",
                color=line.get_color(), va="center", fontsize=9)


def spread_band(ax, x, runs, method, label=None):
    """Plot the mean of runs (seeds, points) over x (points,), with a band
    from their smallest to their largest; returns the mean's line."""
    runs = np.asarray(runs)
    shade = colour(method)
    ax.fill_between(x, runs.min(axis=0), runs.max(axis=0), color=shade,
                    alpha=0.2, linewidth=0)
    line, = ax.plot(x, runs.mean(axis=0), color=shade)
    if label:
        label_line(ax, line, label)
    return line
