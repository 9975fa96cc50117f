"""P5 and P6: the kernels on a GPU, as fractions of a copy of the same
tensor in the same run, and beside PyTorch's own paths.

Needs a CUDA device, Triton and about 16 GB of its memory; without them it
says so and measures nothing.
"""

import os
import statistics
import subprocess
from functools import partial
from typing import NamedTuple

import torch
from torch.nn import functional

from benchmarks import report

EPS = 1e-5
FLUSH = 2**30  # bytes written before each timing: many times the L2 cache
# One value in float32 at each of three widths: 206 million, 0.8 GB. Half
# precision takes twice the batch.
SHAPES = [(256, 64, 112, 112), (256, 256, 56, 56), (512, 2048, 14, 14)]


class Work(NamedTuple):
    """What is timed, how often it passes over a tensor at least, and the
    fraction of a copy's speed that is asked for."""
    name: str
    passes: int
    goal: float | None = None
    mode: str = "train"  # "train" or "eval"
    fused: str = ""  # "", "relu" or "add+relu"
    backward: bool = False


WORKS = [
    Work("forward", 3, 0.8),
    Work("backward", 5, 0.8, backward=True),
    Work("eval", 2, 0.9, "eval"),
    Work("eval+relu", 2, 0.9, "eval", "relu"),
    Work("forward+add+relu", 4, None, fused="add+relu"),
    Work("backward+add+relu", 7, None, fused="add+relu", backward=True),
]
PEERS = ("native", "cudnn", "compiled")


class Batch(NamedTuple):
    """The tensors of one case; weight, bias, mean and var are (C,)."""
    x: torch.Tensor
    dy: torch.Tensor
    residual: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    mean: torch.Tensor
    var: torch.Tensor


def batch(shape, layout, dtype, device, seed=0):
    """Random tensors; layout is "planes" or "rows" (channels-last)."""
    memory = (torch.channels_last if layout == "rows"
              else torch.contiguous_format)
    torch.manual_seed(seed)
    full = [torch.randn(shape, device=device).to(dtype).contiguous(
        memory_format=memory) for _ in range(3)]
    weight, bias, mean = torch.randn((3, shape[1]), device=device)
    return Batch(*full, weight, bias, mean,
                 torch.rand(shape[1], device=device) + 0.5)


def ours(work, b):
    """A function that does the work once, with the book's kernels."""
    from normlab import kernels

    relu = "relu" in work.fused
    residual = b.residual if "add" in work.fused else None
    if work.mode == "eval":
        return lambda: (kernels.inference(
            b.x, b.weight, b.bias, b.mean, b.var, EPS, relu, residual),)
    if not work.backward:
        return lambda: kernels.forward(
            b.x, b.weight, b.bias, EPS, relu, residual)[:1]
    _, shift, rest, _, inv_std = kernels.forward(
        b.x, b.weight, b.bias, EPS, relu, residual)
    return lambda: kernels.backward(
        b.dy, b.x, b.weight, b.bias, shift, rest, inv_std, relu, residual)


def layer(work, b, x, weight, bias, residual):
    """The same by PyTorch's functions; also what is compiled."""
    if work.mode == "eval":
        y = functional.batch_norm(x, b.mean, b.var, weight, bias, False,
                                  eps=EPS)
    else:
        y = functional.batch_norm(x, None, None, weight, bias, True,
                                  eps=EPS)
    if "add" in work.fused:
        y = y + residual
    return functional.relu(y) if "relu" in work.fused else y


def by_torch(work, b, compiled=False):
    """A function that does the work once, with PyTorch's operators."""
    run = partial(layer, work, b)
    if compiled:
        from torch._functorch import config

        config.donated_buffer = False  # backward runs again on one graph
        torch._dynamo.reset()
        run = torch.compile(run, dynamic=False)
    leaves = [b.x, b.weight, b.bias, b.residual]
    if not work.backward:
        def forward():
            with torch.no_grad():
                return (run(*leaves),)
        return forward
    leaves = [a.detach().requires_grad_() for a in leaves]
    y = run(*leaves)
    wanted = leaves if "add" in work.fused else leaves[:3]
    return lambda: torch.autograd.grad(y, wanted, b.dy, retain_graph=True)


def contender(name, work, b):
    """One of ours, native, cudnn, compiled."""
    if name == "ours":
        return ours(work, b)
    if name == "compiled":
        return by_torch(work, b, compiled=True)
    # The choice between PyTorch's own kernels and cuDNN's is made in the
    # forward pass; backward follows it.
    with torch.backends.cudnn.flags(enabled=name == "cudnn"):
        run = by_torch(work, b)

    def chosen():
        with torch.backends.cudnn.flags(enabled=name == "cudnn"):
            return run()
    return chosen


def check(name, work, x, mine, theirs):
    """Raise AssertionError where a peer computes something else. In half
    precision a peer that rounds before the ReLU moves a few of its zeros."""
    at_most = 1e-3 if x.dtype == torch.float32 else 0.1
    for a, b in zip(mine(), theirs(), strict=True):
        error = float((a - b).float().norm() / b.float().norm())
        if not error < at_most:
            raise AssertionError(f"{name}, {work.name}: differs by {error}")


def milliseconds(function, flush):
    """GPU milliseconds of one call, with a cold cache."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    flush.zero_()  # also keeps the GPU busy while the call is queued
    start.record()
    function()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


def measure(functions, rounds, clock):
    """Time named functions in turn; the median milliseconds of each."""
    for function in functions.values():
        for _ in range(3):
            function()
    times = {name: [] for name in functions}
    for r in range(rounds):
        names = list(functions)
        for name in names[r % len(names):] + names[:r % len(names)]:
            times[name].append(clock(functions[name]))
    return {name: statistics.median(t) for name, t in times.items()}


def run(work, layout, b, rounds, clock):
    """Measure one case; a dict for the record."""
    mine = ours(work, b)
    functions = {"copy": partial(torch.empty_like(b.x).copy_, b.x),
                 "ours": mine}
    for name in PEERS:
        functions[name] = contender(name, work, b)
        check(name, work, b.x, mine, functions[name])
    ms = measure(functions, rounds, clock)
    size = b.x.numel() * b.x.element_size()
    fraction = {name: work.passes / 2 * ms["copy"] / t
                for name, t in ms.items() if name != "copy"}
    ratio = {name: ms[name] / ms["ours"] for name in PEERS}
    own = min(ratio["native"], ratio["cudnn"])  # PyTorch's better path
    least = 1.3 if layout == "planes" else 1.0
    return {
        "work": work.name, "layout": layout, "shape": list(b.x.shape),
        "dtype": str(b.x.dtype).removeprefix("torch."), "bytes": size,
        "passes": work.passes, "ms": ms, "copy_tb_s": 2e-9 * size / ms["copy"],
        "fraction_of_copy": fraction, "times_faster_than": ratio,
        "P5": None if work.goal is None else fraction["ours"] >= work.goal,
        "P6": own >= least, "cudnn_chose": backend(work, b),
    }


def backend(work, b):
    """Which of its kernels PyTorch chooses with cuDNN allowed, which isn't
    always cuDNN's; None where the version doesn't say."""
    select = getattr(torch._C, "_select_batch_norm_backend", None)
    return select and str(select(b.x, b.weight, b.bias, b.mean, b.var,
                                 work.mode == "train", EPS))


def machine():
    """What the figures are of: the device, its driver and clocks."""
    fields = ("name", "driver_version", "clocks.sm", "clocks.max.sm",
              "clocks.mem", "power.limit")
    try:
        line = subprocess.run(
            ["nvidia-smi", f"--query-gpu={','.join(fields)}",
             "--format=csv,noheader",
             f"--id=GPU-{torch.cuda.get_device_properties(0).uuid}"],
            check=True, text=True, capture_output=True).stdout
        found = dict(zip(fields, map(str.strip, line.split(","))))
    except (OSError, AttributeError, subprocess.SubprocessError):
        found = {}
    import triton
    return {"device": torch.cuda.get_device_name(), "nvidia_smi": found,
            "multiprocessors":
            torch.cuda.get_device_properties(0).multi_processor_count,
            "cuda": torch.version.cuda, "triton": triton.__version__,
            "cudnn": torch.backends.cudnn.version()}


def missing():
    """What this machine lacks, in one line; None if nothing."""
    if not torch.cuda.is_available():
        return "a CUDA device"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "TRITON_INTERPRET to be unset"
    try:
        import triton  # noqa: F401
    except ImportError:
        return "Triton"
    return None


def line(r):
    """One result as cells of the table."""
    goal = "".join({True: " yes", False: " NO", None: " -"}[r[p]]
                   for p in ("P5", "P6"))
    return [f"{r['work']} {r['layout']} {tuple(r['shape'])} {r['dtype']}",
            f"{r['ms']['ours']:.3f}", f"{r['fraction_of_copy']['ours']:.2f}",
            *(f"{r['times_faster_than'][name]:.2f}" for name in PEERS), goal]


def main(rounds=11):
    """Measure every case, print the table, write the record."""
    if missing():
        print(f"kernels: needs {missing()}; nothing was measured.")
        return
    device = torch.device("cuda")
    flush = torch.empty(FLUSH, dtype=torch.uint8, device=device)
    clock, results = partial(milliseconds, flush=flush), []
    for shape in SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            n = shape[0] * (4 // dtype.itemsize)
            for layout in ("planes", "rows"):
                b = batch((n, *shape[1:]), layout, dtype, device)
                for work in WORKS:
                    results.append(run(work, layout, b, rounds, clock))
                    torch.cuda.empty_cache()
    about = machine()
    print(f"Kernels on {about['device']}: milliseconds, fraction of a copy's "
          f"speed, times faster than its peers; median of {rounds} rounds")
    print(report.table([["work", "ms", "of copy", *PEERS, "P5, P6"],
                        *map(line, results)]))
    print(report.write("kernels", results, rounds=rounds, flush_bytes=FLUSH,
                       **about))
