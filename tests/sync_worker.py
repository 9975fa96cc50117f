"""What each rank of test_sync.py's worlds runs; not a test by itself.

Usage, by torchrun: sync_worker.py cases | die FOLDER | hang FOLDER
"""

import functools
import gc
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from normlab.sync import SyncBatchNorm

TIMEOUT = 4  # seconds that die and hang wait for an answer
CL, CL3 = torch.channels_last, torch.channels_last_3d


class Case(NamedTuple):
    """A batch, how it is split among the ranks, and the layer's options."""
    counts: tuple
    tail: tuple = (5,)  # channels and spatial axes
    mean: float = 0.5
    std: float = 2.0
    options: dict = {}
    dtype: torch.dtype = torch.float32
    layout: torch.memory_format = torch.contiguous_format
    steps: int = 1
    tolerance: float = 1e-6


CASES = {
    2: {
        "equal": Case((8, 8)),
        "3-13": Case((3, 13)),
        "1-59": Case((1, 59)),
        # Of two values dx is eps / var of what cancels: not 1e-5 of it here.
        "1-1": Case((1, 1), options={"eps": 1.0}),
        "pair": Case((1, 1)),
        "empty": Case((0, 16)),
        "empty-images": Case((6, 0), (3, 2, 2)),
        "sequences": Case((3, 13), (5, 7)),
        "images": Case((3, 13), (4, 5, 7)),
        "one-image": Case((1, 7), (4, 3, 3), options={"eps": 1e-3}),
        "channels-last": Case((3, 13), (4, 5, 7), layout=CL),
        "volumes": Case((2, 3), (3, 2, 3, 4), layout=CL3),
        "far": Case((3, 61), mean=1e4, std=1.0),
        "far-flat": Case((3, 61), mean=1e4, std=1e-2),
        "far-long": Case((4_000, 61_536), (2,), mean=1e4, std=1.0),
        "far-images": Case((5, 11), (3, 8, 8), mean=-1e4, std=1.0),
        "not-affine": Case((3, 13), options={"affine": False}),
        "no-eps": Case((1, 59), options={"eps": 0.0}),
        "small": Case((1, 59), std=1e-4, options={"eps": 1e-12}),
        "average": Case((3, 13), options={"momentum": None}, steps=3),
        "two-steps": Case((1, 15), options={"momentum": 0.3}, steps=2),
        "untracked": Case((3, 13), options={"track_running_stats": False}),
        "double": Case((1, 59), options={"dtype": torch.float64},
                       dtype=torch.float64, tolerance=1e-13),
        "half": Case((3, 61), dtype=torch.float16, tolerance=1e-3),
        "half-large": Case((3, 61), std=500.0, dtype=torch.float16,
                           tolerance=1e-3),  # squares are above 65504
        "bfloat": Case((3, 61), (5, 4), dtype=torch.bfloat16,
                       tolerance=1e-2),
    },
    3: {
        "1-2-29": Case((1, 2, 29)),
        "1-1-1": Case((1, 1, 1)),
        "0-1-1": Case((0, 1, 1), options={"eps": 1.0}),
        "images": Case((1, 2, 5), (4, 3, 5), layout=CL),
        "far": Case((1, 2, 61), mean=1e4, std=1.0),
        "average": Case((4, 1, 7), options={"momentum": None}, steps=3),
    },
}


def batch(case, step=0):
    """x and dy of all ranks together, and weight and bias (C,)."""
    draw = torch.Generator().manual_seed(step)
    shape = (sum(case.counts), *case.tail)
    channel = torch.randn(case.tail[0], *[1] * (len(shape) - 2),
                          generator=draw, dtype=torch.float64)
    x, dy = (torch.randn(shape, generator=draw, dtype=torch.float64)
             for _ in range(2))
    x = case.mean + case.std * (x + channel)
    weight, bias = (torch.randn(case.tail[0], generator=draw,
                                dtype=torch.float64) for _ in range(2))
    dy = dy + 0.3 * x / abs(x).max()  # related to x: no sum is near 0
    return x.to(case.dtype), dy.to(case.dtype), weight, bias


def fill(layer, weight, bias):
    """Give a layer these parameters, if it has any."""
    with torch.no_grad():
        for name, value in (("weight", weight), ("bias", bias)):
            if getattr(layer, name) is not None:
                getattr(layer, name).copy_(value)


def counted(counts):
    """Count the calls of every collective, by name."""
    for name in ("all_gather", "all_gather_into_tensor", "all_reduce",
                 "broadcast", "reduce", "reduce_scatter", "gather",
                 "scatter", "all_to_all", "send", "recv", "barrier",
                 "all_gather_object", "all_gather_single"):
        if hasattr(dist, name):
            setattr(dist, name, spy(getattr(dist, name), counts))


def spy(function, counts):
    """The function, with its calls counted by its name."""
    @functools.wraps(function)
    def call(*args, **more):
        counts[function.__name__] = counts.get(function.__name__, 0) + 1
        return function(*args, **more)

    return call


def run_case(case, rank, calls):
    """This rank's part of a case, as arrays."""
    layer = SyncBatchNorm(case.tail[0], **case.options)
    for step in range(case.steps):
        x, dy, weight, bias = batch(case, step)
        if step == 0:
            fill(layer, weight, bias)
        # Strided like a batch that a rank loads for itself.
        x, dy = (t.split(case.counts)[rank].contiguous(
            memory_format=case.layout).requires_grad_() for t in (x, dy))
        layer.zero_grad()
        calls.clear()
        y = layer(x)
        forward = dict(calls)
        calls.clear()
        y.backward(dy)
    found = {
        "y": y, "dx": x.grad, "calls": np.array(
            [forward == {"all_gather": 1}, calls == {"all_reduce": 1}]),
        "kept": np.array([t.is_contiguous(memory_format=case.layout)
                          and t.dtype == case.dtype for t in (y, x.grad)]),
        **{f"d{name}": p.grad for name, p in layer.named_parameters()},
        **dict(layer.named_buffers())}
    calls.clear()
    if case.options.get("track_running_stats", True):
        found["eval"] = layer.eval()(x)
    found["calls"] = np.append(found["calls"], not calls)
    return {k: v.detach().double().numpy() if torch.is_tensor(v) else v
            for k, v in found.items()}


def network():
    """A small network with two normalised layers, in float64."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(),
        nn.Linear(8, 7, bias=False), nn.BatchNorm1d(7), nn.ReLU(),
        nn.Linear(7, 3)).double()


def training_data(n, steps=4):
    """Batches of all ranks together: inputs (n, 6) and classes (n,)."""
    draw = torch.Generator().manual_seed(1)
    for _ in range(steps):
        yield (torch.randn(n, 6, generator=draw, dtype=torch.float64),
               torch.randint(0, 3, (n,), generator=draw))


def train(counts, rank, weighted):
    """The state after a few steps of DDP; each rank's loss is the mean
    over its own examples, weighted by their number if asked for."""
    model = SyncBatchNorm.convert_sync_batchnorm(network())
    model = DistributedDataParallel(model)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    share = counts[rank] * len(counts) / sum(counts) if weighted else 1
    for x, label in training_data(sum(counts)):
        x, label = x.split(counts)[rank], label.split(counts)[rank]
        optimiser.zero_grad()
        (share * nn.functional.cross_entropy(model(x), label)).backward()
        optimiser.step()
    return {k: v.double().numpy()
            for k, v in model.module.state_dict().items()}


def refusals(rank):
    """What is refused, and that the ranks agree and can go on."""
    layer, texts = SyncBatchNorm(3), []
    layer.label = "block.norm"
    for n in (1 if rank == 0 else 0, 0):
        try:
            layer(torch.ones(n, 3))
            texts.append("")
        except ValueError as error:
            texts.append(str(error))
    x = torch.randn(4, 3, requires_grad=True)
    dx, = torch.autograd.grad((layer(x) ** 3).sum(), x, create_graph=True)
    try:
        dx.sum().backward()
        texts.append("")
    except RuntimeError as error:
        texts.append(str(error))
    return {"texts": np.array(texts),
            "tracked": layer.num_batches_tracked.numpy()}


def fixed_input(calls):
    """How many collectives a first layer takes, whose x needs no dx."""
    layer = SyncBatchNorm(3)
    calls.clear()
    layer(torch.randn(4, 3)).square().sum().backward()
    return {"only": np.array(calls == {"all_gather": 1}),
            "dweight": np.array(layer.weight.grad is not None)}


def groups(rank, ranks):
    """Layers of a group of some ranks: the others are no part of it."""
    pair = dist.new_group([0, 1])
    x = torch.arange(8.0).view(4, 2) ** 2 + 10 * rank
    y = SyncBatchNorm(2, process_group=pair)(x)
    return {"x": x.numpy(), "y": y.detach().numpy()}


def cases():
    """Run every case for a world of this size and save what it gave."""
    rank, ranks, calls = dist.get_rank(), dist.get_world_size(), {}
    equal, unequal = (8,) * ranks, (3, 1, 20)[:ranks]
    found = {
        "ddp": train(equal, rank, False),
        "ddp-unequal": train(unequal, rank, False),
        "ddp-weighted": train(unequal, rank, True),
        "groups": groups(rank, ranks)}
    counted(calls)
    for name, case in CASES[ranks].items():
        found[name] = run_case(case, rank, calls)
    found["refused"], found["fixed"] = refusals(rank), fixed_input(calls)
    np.savez(f"rank{rank}.npz", **{
        f"{name}/{key}": value for name, arrays in found.items()
        for key, value in arrays.items()})
    gc.collect()  # what still refers to a group would keep its threads
    dist.destroy_process_group()


def lose_a_rank(how, folder):
    """Train until the last rank is gone; the others save their error."""
    rank, last = dist.get_rank(), dist.get_world_size() - 1
    Path(folder, f"pid{rank}").write_text(str(os.getpid()))
    # torchrun ends the others too: here they must end by themselves.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Only now are the ranks in step, and a short timeout is fair.
    group = dist.new_group(timeout=timedelta(seconds=TIMEOUT))
    model = SyncBatchNorm.convert_sync_batchnorm(network(), group)
    for step in range(100):
        if rank == last and step == 3 and how == "hang":
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(60)
        start = time.monotonic()
        try:
            loss = model(torch.randn(4, 6, dtype=torch.float64)).sum()
            if rank == last and step == 3:
                time.sleep(0.5)  # the others are in backward by then
                os.kill(os.getpid(), signal.SIGKILL)
            loss.backward()
        except RuntimeError as error:
            np.savez(f"rank{rank}.npz", error=str(error), step=step,
                     cause=str(error.__cause__),
                     seconds=time.monotonic() - start)
            raise


def main(what, *args):
    """Join the world and run what is asked for."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    cases() if what == "cases" else lose_a_rank(what, *args)


if __name__ == "__main__":
    main(*sys.argv[1:])
