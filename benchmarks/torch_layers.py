"""Speed of the PyTorch layers beside torch.nn's, eager and compiled."""

from typing import NamedTuple

import torch

from benchmarks import peers, report, speed
from normlab import torch_layers

OURS = {2: torch_layers.BatchNorm1d, 4: torch_layers.BatchNorm2d}


class Case(NamedTuple):
    """What is timed: "train" is forward and backward."""
    work: str  # "train" or "eval"
    how: str  # "eager" or "compiled", both sides alike
    shape: tuple
    layout: str  # "NCHW", "NHWC" (channels-last memory) or "2-D"


SHAPES = [((32, 64, 28, 28), "NCHW"), ((32, 64, 28, 28), "NHWC"),
          ((4096, 100), "2-D"), ((60, 100), "2-D")]
CASES = [Case(work, how, shape, layout) for work in ("train", "eval")
         for how in ("eager", "compiled") for shape, layout in SHAPES]


def step(case, kinds):
    """A function that does the work once, with the layer of `kinds`."""
    x, dy = (torch.from_numpy(a) for a in speed.data(case.shape,
                                                     case.layout))
    layer = kinds[x.dim()](x.shape[1]).train(case.work == "train")
    run = layer if case.how == "eager" else torch.compile(
        layer, fullgraph=True)
    return speed.torch_step(layer, run, x, dy, case.work == "train")


def run(case, rounds):
    """Measure one case; a dict for the record."""
    torch.compiler.reset()
    with peers.torch_threads(torch, 1):
        found = speed.measure(step(case, OURS), step(case, speed.MODULES),
                              rounds)
    return {**case._asdict(), "shape": list(case.shape), **found}


def line(r):
    """One result as cells of the table."""
    return [f"{r['work']} {r['how']} {tuple(r['shape'])} {r['layout']}",
            f"{r['cpu']['ours_ms']:.3g}", f"{r['cpu']['peer_ms']:.3g}",
            f"{r['cpu']['ratio']:.3g}"]


def main(rounds=11):
    """Measure every case, print the table, write the record."""
    results = [run(case, rounds) for case in CASES]
    head = ["work, shape, layout", "ours ms", "torch.nn ms", "ratio"]
    print("PyTorch layers on the CPU: our time / torch.nn's, process CPU "
          f"time, one thread, float32, median of {rounds} rounds")
    print(report.table([head, *map(line, results)]))
    print(report.write("torch_layers", results, rounds=rounds,
                       dtype="float32", device="cpu",
                       ratio="our CPU time / torch.nn's"))
