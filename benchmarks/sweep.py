"""Sweeps: goal P10. Model-steps a second against a PyTorch loop in one
process, and the paper's Figure 1 in seconds."""

import os
import statistics
import time
from functools import partial
from operator import itemgetter

import numpy as np
import torch

from benchmarks import report
from normlab.lab import experiments, torch_train
from normlab.lab.data import DataError
from normlab.lab.experiment import load
from normlab.lab.figure_1 import figure_1, sigmoid_network
from normlab.lab.many import train_many
from normlab.lab.sweep import Together, product, sweep
from normlab.lab.train import train

GOAL = 3.5
STEPS, MODELS = 400, 8  # steps of each model; models in one array
NETS = {"digits": 64, "MNIST": 784}  # inputs; then 3 x 100 sigmoid units


def samples(features, n=3000):
    """Random x (n, features) and y (n,): only the time is of interest."""
    rng = np.random.default_rng(0)
    return (rng.random((n, features), dtype=np.float32),
            rng.integers(0, 10, n))


def torch_loop(features, bn):
    """Seconds a step of the plain loop with torch.nn's modules."""
    layers = []
    for n_in in (features, 100, 100):
        layers.append(torch.nn.Linear(n_in, 100, bias=not bn))
        layers += [torch.nn.BatchNorm1d(100)] if bn else []
        layers.append(torch.nn.Sigmoid())
    net = torch.nn.Sequential(*layers, torch.nn.Linear(100, 10))
    x, y = map(torch.from_numpy, samples(features))
    start = time.perf_counter()
    torch_train.train(net, x, y, STEPS, 60, 0.1, 0)
    return (time.perf_counter() - start) / STEPS


def numpy_loop(features, bn):
    """Seconds a step of one NumPy network."""
    net = sigmoid_network(features, [100] * 3, 10, bn,
                          np.random.default_rng(0), 0.1)
    start = time.perf_counter()
    train(net, *samples(features), STEPS, 60, 0.1, 0)
    return (time.perf_counter() - start) / STEPS


def train_group(points, tick):
    """Train networks side by side, as a sweep does."""
    nets = [sigmoid_network(p["features"], [100] * 3, 10, p["bn"],
                            np.random.default_rng(p["seed"]), 0.1)
            for p in points]
    train_many(nets, *samples(points[0]["features"]), STEPS, 60,
               [0.1] * len(nets), [p["seed"] for p in points])
    return [{} for _ in points]


def train_one(point, tick):
    """One network by itself."""
    return train_group([point], tick)[0]


def by_sweep(features, bn, workers):
    """Seconds a model-step of a sweep: as many groups as processes."""
    points = product(features=[features], bn=[bn],
                     seed=list(range(MODELS * workers)))
    start = time.perf_counter()
    sweep(train_one, points, workers=workers, progress=False,
          together=Together(train_group, itemgetter("bn"), MODELS))
    return (time.perf_counter() - start) / STEPS / len(points)


def figure(steps):
    """Seconds of the paper's Figure 1 on MNIST for one seed, with and
    without BN, at one learning rate, in two processes; None if MNIST
    can't be had."""
    config = experiments.configuration("figure-1", "full")
    marks = [m for m in config["checkpoints"] if m <= steps]
    config = config | {"steps": steps, "checkpoints": marks}
    try:
        load(config["data"])
    except DataError as error:
        print(f"Figure 1 was not timed: {error}")
        return None
    points = product(method=["none", "BN"], lr=[0.1], seed=[0])
    start = time.perf_counter()
    rows = sweep(partial(figure_1, config), points, progress=False,
                 workers=min(2, os.cpu_count()))
    if failed := [row["failed"] for row in rows if "failed" in row]:
        raise RuntimeError(failed[0])
    return round(time.perf_counter() - start, 1)


def main(rounds):
    """Time all side by side, print the table and write the record."""
    torch.set_num_threads(1)
    workers = min(2, os.cpu_count())
    ways = {"torch loop": torch_loop, "NumPy loop": numpy_loop,
            f"NumPy x{MODELS}": lambda f, b: by_sweep(f, b, 1),
            f"NumPy x{MODELS}, {workers} processes":
                lambda f, b: by_sweep(f, b, workers)}
    results = []
    for name, features in NETS.items():
        for bn in (False, True):
            seconds = {way: [] for way in ways}
            for lap in range(rounds + 1):  # the first warms everything up
                for way, run in ways.items():
                    took = run(features, bn)
                    if lap:
                        seconds[way].append(took)
            results.append(row(name, bn, seconds))
    print(report.table([
        ["net", "BN", *(f"{way}, steps/s (x)" for way in ways)],
        *([r["net"], "yes" if r["bn"] else "no",
           *(f"{1 / r['seconds'][way]:.0f} ({r['gain'][way]:.2f})"
             for way in ways)] for r in results)]))
    reached = [r["gain"][list(ways)[-1]] for r in results]
    print(f"P10: at least {GOAL} with {workers} processes: "
          f"{sum(g >= GOAL for g in reached)} of {len(reached)}")
    took = {steps: figure(steps) for steps in (5_000, 50_000)}
    print("Figure 1, with and without BN, one seed, seconds by steps: "
          f"{took}")
    print(report.write("sweep", results, rounds=rounds, steps=STEPS,
                       models=MODELS, processes=workers,
                       figure_seconds=took))


def row(name, bn, seconds):
    """Medians, and the median of each round's ratio to the torch loop."""
    loop = seconds["torch loop"]
    return {"net": name, "bn": bn,
            "seconds": {way: statistics.median(s)
                        for way, s in seconds.items()},
            "gain": {way: round(statistics.median(
                a / b for a, b in zip(loop, s, strict=True)), 3)
                for way, s in seconds.items()}}
