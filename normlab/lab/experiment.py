"""What every experiment is made of, and what several share."""

import functools
from collections.abc import Callable
from typing import NamedTuple

from normlab.lab import data


class Experiment(NamedTuple):
    """What an experiment is made of."""
    title: str
    live: dict  # its configuration on digits, in seconds
    full: dict  # its configuration as published
    points: Callable  # points(config) lists what can be run by itself
    steps: Callable  # steps(config, point): how long that is
    run: Callable  # run(config, point, tick) returns a dict of results
    code: tuple  # the functions whose text decides what comes out
    layers: tuple = ("numpy_layers",)  # modules of normlab that it trains
    # several(config, points, tick), a list of results, and alike(point):
    # points with the same value can be trained in one array
    several: Callable | None = None
    alike: Callable | None = None


def grid(config):
    """Every method, learning rate and seed of a configuration."""
    return [{"method": method, "lr": lr, "seed": seed}
            for lr in config["learning_rates"]
            for method in config["methods"] for seed in config["seeds"]]


@functools.lru_cache(maxsize=1)
def load(name):
    """A data set by name."""
    return {"digits": data.digits, "mnist": data.mnist}[name]()
