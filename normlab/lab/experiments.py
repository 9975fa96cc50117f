"""The experiments that run at two scales: found and run by name."""

from functools import partial

import numpy as np

from normlab.lab import (
    cnn,
    covariate_shift,
    depth,
    figure_1,
    figure_1_start,
    gamma_beta,
    initialisation,
    keras_dense,
    landscape,
    leakage,
    learning_rates,
    regularisation,
    scale_invariance,
    sequences,
    shift,
    small_batches,
    train_test_gap,
)
from normlab.lab.sweep import Together, compute

SCALES = ("live", "full")
# Add a module here; it defines EXPERIMENT and imports no framework until
# its experiment runs.
EXPERIMENTS = {
    "figure-1": figure_1.EXPERIMENT,
    "figure-1-start": figure_1_start.EXPERIMENT,
    "cnn": cnn.EXPERIMENT,
    "initialisation": initialisation.EXPERIMENT,
    "covariate-shift": covariate_shift.EXPERIMENT,
    "depth": depth.EXPERIMENT,
    "depth-gradients": depth.GRADIENTS,
    "keras-dense": keras_dense.EXPERIMENT,
    "leakage": leakage.EXPERIMENT,
    "learning-rates": learning_rates.EXPERIMENT,
    "learning-rates-equal": learning_rates.EQUAL,
    "scale-invariance": scale_invariance.EXPERIMENT,
    "regularisation": regularisation.EXPERIMENT,
    "rows": sequences.READ_ROWS,
    "sequential-mnist": sequences.READ_PIXELS,
    "small-batches-cnn": small_batches.CNN_EXPERIMENT,
    "small-batches-dense": small_batches.DENSE_EXPERIMENT,
    "train-test-gap": train_test_gap.EXPERIMENT,
    "shift": shift.EXPERIMENT,
    "gamma-beta": gamma_beta.EXPERIMENT,
    "landscape": landscape.EXPERIMENT,
}


def get(name):
    """The experiment of that name; ValueError lists those there are."""
    if name not in EXPERIMENTS:
        raise ValueError(f"there is no experiment {name!r}; there are: "
                         f"{', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]


def configuration(name, scale):
    """An experiment's configuration at scale "live" or "full"."""
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(SCALES)}; got "
                         f"{scale!r}")
    return getattr(get(name), scale)


def run(name, scale="live", **changes):
    """Run all points of an experiment here and now, storing nothing.

    `changes` replaces values of the configuration. Returns one dict a
    point: what it is (method, learning rate, seed, ...), its results and
    its seconds.
    """
    config, experiment = configuration(name, scale), get(name)
    if unknown := set(changes) - set(config):
        raise ValueError(f"{name} has no {', '.join(sorted(unknown))} in its "
                         f"configuration; it has {', '.join(config)}")
    config = config | changes
    return [row for point in experiment.points(config)
            for row in compute(partial(experiment.run, config), None,
                               [point])]


def together(experiment, config):
    """How points of an experiment are computed side by side; None if they
    aren't."""
    if experiment.several is None:
        return None
    return Together(partial(experiment.several, config), experiment.alike)


def pick(runs, key, **where):
    """result `key` of the runs whose values are those in `where`, in
    order, as an array; ValueError if there are none."""
    found = [r[key] for r in runs
             if all(r[k] == v for k, v in where.items())]
    if not found:
        raise ValueError(f"no run has {where}")
    return np.array(found)
