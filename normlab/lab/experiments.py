"""The experiments that run at two scales: found and run by name."""

import time

import numpy as np

from normlab.lab import cnn, figure_1, keras_dense

SCALES = ("live", "full")
# Add a module here; it defines EXPERIMENT and imports no framework until
# its experiment runs.
EXPERIMENTS = {
    "figure-1": figure_1.EXPERIMENT,
    "cnn": cnn.EXPERIMENT,
    "keras-dense": keras_dense.EXPERIMENT,
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
    return [run_point(experiment, config, point)
            for point in experiment.points(config)]


def run_point(experiment, config, point, tick=None):
    """One point's own dict with its results and seconds; tick(step) is
    called now and then."""
    from threadpoolctl import threadpool_limits  # scikit-learn brings it

    start = time.perf_counter()
    # On matrices this small, and the more on a busy machine, a second
    # thread makes NumPy slower, up to ten times.
    with threadpool_limits(1):
        result = experiment.run(config, point, tick or (lambda step: None))
    seconds = round(time.perf_counter() - start, 2)
    return point | result | {"seconds": seconds}


def pick(runs, key, **where):
    """result `key` of the runs whose values are those in `where`, in
    order, as an array; ValueError if there are none."""
    found = [r[key] for r in runs
             if all(r[k] == v for k, v in where.items())]
    if not found:
        raise ValueError(f"no run has {where}")
    return np.array(found)
