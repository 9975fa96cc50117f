"""Speed: goals P1 to P3. Ratios of times taken side by side, one thread."""

import statistics
import time
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from benchmarks import peers, report
from normlab.numpy_layers import BatchNorm

LEAST = 0.02  # seconds that one timing lasts, by repeating what is quick
MODULES = {2: torch.nn.BatchNorm1d, 4: torch.nn.BatchNorm2d}


class Case(NamedTuple):
    """What is timed, against whom, and how much of their time we may
    take."""
    goal: str
    work: str  # "train": forward and backward; "forward"; "eval"
    shape: tuple
    layout: str  # "NCHW", "NHWC" (channels-last memory) or "2-D"
    at_most: float | None  # our time / theirs; None: shown, no goal
    peer: str = "torch"


LARGE, DENSE = (64, 64, 56, 56), [(4096, 100), (256, 512), (60, 100)]
CASES = [
    *(Case("P1", "train", LARGE, at, 1.0) for at in ("NCHW", "NHWC")),
    *(Case("P2", "train", shape, "2-D", 2.0) for shape in DENSE),
    *(Case("P2", "eval", LARGE, at, 0.9) for at in ("NCHW", "NHWC")),
    *(Case("P2", "eval", shape, "2-D", 2.0) for shape in DENSE),
    Case("P3", "train", LARGE, "NCHW", 1 / 8, "staged"),
    Case("-", "train", LARGE, "NCHW", None, "staged-32"),
    *(Case("-", "forward", LARGE, at, None, peer)
      for at in ("NCHW", "NHWC") for peer in ("torch", "torch-out")),
    *(Case("-", "eval", LARGE, at, None, "torch-out")
      for at in ("NCHW", "NHWC")),
]


def data(shape, layout, seed=0):
    """x and dy, float32, laid out as asked."""
    rng = np.random.default_rng(seed)
    x, dy = rng.standard_normal((2, *shape), dtype=np.float32)
    if layout == "NHWC":
        x, dy = (np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 1, -1)),
                             -1, 1) for a in (x, dy))
    return x, dy


def ours(work, x, dy):
    """A function that does the work once, with this book's layer."""
    layer = BatchNorm(x.shape[1]).train(work != "eval")
    if work == "train":
        return lambda: (layer(x), layer.backward(dy))
    return lambda: (layer(x),)


def torch_step(layer, run, x, dy, training):
    """A function that calls `run`, a PyTorch layer or what was compiled of
    it, on the tensor x once; in training also backward from dy."""
    x.requires_grad_(training)

    def train():
        x.grad = layer.weight.grad = layer.bias.grad = None
        y = run(x)
        y.backward(dy)
        return y.detach(), x.grad

    def forward():
        with torch.no_grad():
            return (run(x),)

    return train if training else forward


def by_torch(work, x, dy):
    """The same with PyTorch's module and autograd."""
    layer = MODULES[x.ndim](x.shape[1]).train(work != "eval")
    x, dy = torch.from_numpy(x), torch.from_numpy(dy)
    return torch_step(layer, layer, x, dy, work == "train")


def by_torch_out(work, x, dy):
    """PyTorch's forward pass into an array that is kept, so that no fresh
    memory is asked for; its backward pass has no such form."""
    if work == "train":
        raise ValueError("work must be forward or eval for torch-out")
    x, c = torch.from_numpy(x), x.shape[1]
    mean, var = torch.zeros(c), torch.ones(c)
    out = torch.empty_like(x), torch.empty(c), torch.empty(c)
    args = (x, torch.ones(c), torch.zeros(c), mean, var, work == "forward",
            0.1, 1e-5)

    def forward():
        torch.ops.aten.native_batch_norm.out(
            *args, out=out[0], save_mean=out[1], save_invstd=out[2])
        return (out[0],)

    return forward


def by_stages(work, x, dy, dtype=None):
    """The staged, transposing layer; training only. By default its
    backward pass drifts into float64, as courses leave it."""
    if work != "train":
        raise ValueError("work must be train for staged")
    one, zero = np.ones(x.shape[1], x.dtype), np.zeros(x.shape[1], x.dtype)

    def train():
        y, saved = peers.spatial_forward(x, one, zero)
        return y, peers.spatial_backward(dy, saved, dtype)[0]

    return train


PEERS = {"torch": by_torch, "torch-out": by_torch_out, "staged": by_stages,
         "staged-32": partial(by_stages, dtype=np.float32)}


def repeats(function):
    """How often to call a function so that it lasts LEAST seconds."""
    function()  # warm
    start = time.perf_counter()
    function()
    return max(1, round(LEAST / (time.perf_counter() - start)))


def timed(function, n):
    """Process CPU seconds and wall seconds of one of n calls."""
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(n):
        function()
    return ((time.process_time() - cpu) / n,
            (time.perf_counter() - wall) / n)


def measure(mine, theirs, rounds):
    """Time two functions in turn; the medians of their times and ratios."""
    pair = (mine, theirs)
    counts = [repeats(f) for f in pair]
    times = []  # (rounds, 2 functions, cpu and wall)
    for r in range(rounds):
        order = (0, 1) if r % 2 else (1, 0)
        row = {k: timed(pair[k], counts[k]) for k in order}
        times.append([row[0], row[1]])
    result = {}
    for k, clock in enumerate(("cpu", "wall")):
        a, b = ([row[i][k] for row in times] for i in (0, 1))
        ratios = [p / q for p, q in zip(a, b)]
        result[clock] = {
            "ours_ms": 1e3 * statistics.median(a),
            "peer_ms": 1e3 * statistics.median(b),
            "ratio": statistics.median(ratios),
            "ratio_range": [min(ratios), max(ratios)]}
    return result


def run(case, rounds):
    """Measure one case; a dict for the record."""
    x, dy = data(case.shape, case.layout)
    with peers.torch_threads(torch, 1):
        found = measure(ours(case.work, x, dy),
                        PEERS[case.peer](case.work, x, dy), rounds)
    met = None if case.at_most is None else (
        found["cpu"]["ratio"] <= case.at_most)
    return {**case._asdict(), "shape": list(case.shape), **found, "met": met}


def line(r):
    """One result as cells of the table."""
    goal = "" if r["at_most"] is None else f"{r['at_most']:.3g}"
    met = {None: "", True: "yes", False: "NO"}[r["met"]]
    return [f"{r['goal']:2} {r['work']} {tuple(r['shape'])} {r['layout']}",
            r["peer"], f"{r['cpu']['ours_ms']:.3g}",
            f"{r['cpu']['peer_ms']:.3g}", f"{r['cpu']['ratio']:.3g}", goal,
            met, f"{r['wall']['ratio']:.3g}"]


def main(rounds=11):
    """Measure every case, print the table, write the record."""
    results = [run(case, rounds) for case in CASES]
    head = ["goal, work, shape, layout", "peer", "ours ms", "peer ms",
            "ratio", "goal", "met", "wall ratio"]
    print(f"Speed: our time / the peer's, process CPU time, one thread, "
          f"float32, median of {rounds} rounds")
    print(report.table([head, *map(line, results)]))
    print("torch-out: PyTorch's forward into an array that is kept; "
          "staged-32: float32 throughout.\n")
    print(report.write("speed", results, rounds=rounds, dtype="float32",
                       ratio="our CPU time / the peer's"))
