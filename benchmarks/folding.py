"""Folding: goal P8, and what batch normalization costs in training.

Everything is timed twice: with the C library's default allocator, which
hands large blocks back to the system and takes them again, page by page,
and then with one that keeps them, as servers' allocators do. How many pages
a network takes depends on what ran before it, by up to a fifth of the time,
and has nothing to do with its layers: P8 is judged on the second.
"""

import copy
import ctypes
import itertools
import random
import statistics

import torch
from torch.fx.experimental.optimization import fuse

from benchmarks import peers, report, speed
from normlab.folding import fold
from normlab.lab import nets
from normlab.lab.memory import saved_bytes

GOAL_SPEED, GOAL_ERROR = 0.9, 2e-6
NETS = {"ResNet-20": nets.ResNet20, "MobileNetV2": nets.MobileNetV2}
FORMATS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
BATCHES = (1, 32)
COMPILED = 32  # the batch for which torch.compile is timed: it's slow
SIDE = 32


def keep_pages():
    """Make glibc's malloc keep memory for good; elsewhere do nothing."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    # M_TRIM_THRESHOLD: never hand back; M_MMAP_MAX: no blocks of their own.
    return bool(mallopt(-1, 2**31 - 1) and mallopt(-4, 0))


def images(batch, layout, seed=0):
    """x (N, 3, 32, 32) float32, laid out as asked."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, 3, SIDE, SIDE, generator=g)
    return x.to(memory_format=FORMATS[layout])


def network(name, layout, norm=torch.nn.BatchNorm2d):
    """A network with random but usual statistics, in evaluation mode."""
    torch.manual_seed(0)
    net = nets.randomise(NETS[name](norm), images(16, "NCHW", seed=1))
    return net.to(memory_format=FORMATS[layout])


def contenders(name, layout, compiled):
    """The same network in several forms; "deleted" has no batch
    normalization at all, and so computes something else."""
    net = network(name, layout)
    found = {"unfolded": net, "folded": fold(net)[0], "torch's fuse":
             fuse(net), "deleted": network(name, layout, torch.nn.Identity)}
    if compiled:
        found["compiled"] = torch.compile(copy.deepcopy(net))
        found["folded, compiled"] = torch.compile(fold(net)[0])
    return found


def turns(functions, rounds):
    """Time functions in turn; CPU seconds of each (name: list), so that
    the ratios of one round are taken side by side."""
    counts = {k: speed.repeats(f) for k, f in functions.items()}
    names, times = list(functions), {k: [] for k in functions}
    order = random.Random(0)
    for _ in range(rounds):
        # Whoever comes next finds the caches as the last one left them.
        for k in order.sample(names, len(names)):
            times[k].append(speed.timed(functions[k], counts[k])[0])
    return times


def page_faults(functions, rounds):
    """The median number of page faults (minor) of one call of each
    function, in turn; {} where the system doesn't count them."""
    try:
        import resource
    except ImportError:
        return {}
    found = {k: [] for k in functions}
    for _ in range(rounds):
        for k, function in functions.items():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            function()
            after = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            found[k].append(after - before)
    return {k: statistics.median(v) for k, v in found.items()}


def ratio(times, a, b):
    """The median of a's time over b's, and the smallest and largest."""
    values = [p / q for p, q in zip(times[a], times[b], strict=True)]
    return {"median": statistics.median(values),
            "range": [min(values), max(values)]}


@torch.no_grad()
def inference(name, batch, layout, rounds, compiled=False):
    """One case as a dict for the record."""
    x, forms = images(batch, layout), contenders(name, layout, compiled)
    truth = forms["unfolded"](x)
    errors = {k: float((net(x) - truth).abs().max() / truth.abs().max())
              for k, net in forms.items() if k != "deleted"}
    calls = {k: lambda net=net: net(x) for k, net in forms.items()}
    times, faults = turns(calls, rounds), page_faults(calls, rounds)
    share = ratio(times, "deleted", "folded")
    return {
        "what": "inference", "net": name, "batch": batch, "layout": layout,
        "ms": {k: 1e3 * statistics.median(v) for k, v in times.items()},
        "slower_than_deleted": {k: ratio(times, k, "deleted")
                                for k in forms if k != "deleted"},
        "speed_of_deleted": share, "error": errors, "page_faults": faults,
        "met": (share["median"] >= GOAL_SPEED
                and errors["folded"] <= GOAL_ERROR)}


def step(net, x, y):
    """A function that does one step of training without the update."""
    def run():
        net.zero_grad()
        torch.nn.functional.cross_entropy(net(x), y).backward()
    return run


def training(name, batch, layout, rounds):
    """A training step with batch normalization and without."""
    x, y = images(batch, layout), torch.arange(batch) % 10
    forms = {"BN": network(name, layout).train(),
             "none": network(name, layout, torch.nn.Identity).train()}
    times = turns({k: step(net, x, y) for k, net in forms.items()}, rounds)
    kept = {k: saved_bytes(net, x) for k, net in forms.items()}
    return {
        "what": "training", "net": name, "batch": batch, "layout": layout,
        "ms": {k: 1e3 * statistics.median(v) for k, v in times.items()},
        "slower": ratio(times, "BN", "none"), "saved_bytes": kept,
        "saved_ratio": kept["BN"] / kept["none"]}


def run(rounds, batches=BATCHES, compiled=COMPILED):
    """Every case, as dicts for the record."""
    for allocator in ("default", "keeps pages"):
        if allocator != "default":
            keep_pages()
        with peers.torch_threads(torch, 1):
            for name, layout in itertools.product(NETS, FORMATS):
                for batch in batches:
                    yield {"allocator": allocator, **inference(
                        name, batch, layout, rounds,
                        batch == compiled and allocator != "default")}
                yield {"allocator": allocator, **training(
                    name, batches[-1], layout, rounds)}


def line(r):
    """One result as cells of the table."""
    slower = r["slower_than_deleted"]
    return [f"{r['net']} {r['batch']} {r['layout']}",
            *(f"{slower[k]['median']:.2f}" if k in slower else ""
              for k in ("unfolded", "folded", "torch's fuse", "compiled",
                        "folded, compiled")),
            f"{r['speed_of_deleted']['median']:.0%}",
            f"{r['error']['folded']:.0e}", "yes" if r["met"] else "NO"]


def main(rounds=11):
    """Measure every case, print the tables, write the record."""
    results = []
    for r in run(rounds):
        results.append(r)
        print(".", end="", flush=True)
    print("\nTime / that of the network with BN deleted (inference), or "
          "without BN (training step, and bytes kept for the backward "
          f"pass); process CPU time, one thread, float32, median of {rounds} "
          "rounds")
    for allocator in ("default", "keeps pages"):
        mine = [r for r in results if r["allocator"] == allocator]
        print(report.table([
            [f"inference, allocator: {allocator}", "unfolded", "folded",
             "torch's fuse", "compiled", "folded, compiled",
             "folded speed", "error", "P8 met"],
            *(line(r) for r in mine if r["what"] == "inference")]))
        print(report.table([
            ["training step", "time", "bytes"],
            *([f"{r['net']} {r['batch']} {r['layout']}",
               f"{r['slower']['median']:.2f}", f"{r['saved_ratio']:.2f}"]
              for r in mine if r["what"] == "training")]))
    print(report.write("folding", results, rounds=rounds, dtype="float32",
                       goal={"speed": GOAL_SPEED, "error": GOAL_ERROR},
                       ratio="CPU time / CPU time in the same round"))
