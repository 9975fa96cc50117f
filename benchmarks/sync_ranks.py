"""What each rank of benchmarks/sync.py's worlds runs, by torchrun."""

import sys
import time

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from normlab import sync

SIZES = [8 << k for k in range(0, 19, 2)]  # bytes of one rank's message
SHAPES = {"30x100": (30, 100), "16x64x28x28": (16, 64, 28, 28),
          "32x512x7x7": (32, 512, 7, 7)}
CALLS, RUNS = 10, 8  # calls in a run, runs in a round


def timed(call):
    """Seconds of one of CALLS calls that the ranks begin together: the
    slowest rank's, and the least of RUNS runs, since what else the machine
    does only adds."""
    seconds = torch.zeros(RUNS, dtype=torch.float64)
    for run in range(RUNS):
        dist.barrier()
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        seconds[run] = (time.perf_counter() - start) / CALLS
    dist.all_reduce(seconds, dist.ReduceOp.MAX)
    return seconds.min().item()


def messages():
    """For each collective and size, a call to time."""
    ranks = dist.get_world_size()
    for size in SIZES:
        one = torch.zeros(size // 8, dtype=torch.float64)
        rows = list(one.new_empty(ranks, len(one)))
        yield f"all_gather/{size}", lambda m=one, r=rows: dist.all_gather(
            r, m)
        yield f"all_reduce/{size}", lambda m=one: dist.all_reduce(m)


def alone(collective, *tensors, group, layer):
    """In a collective's place: every rank sends what this one does."""
    if len(tensors) == 2:
        for row in tensors[0]:
            row.copy_(tensors[1])


def layers():
    """For each shape and layer, a forward and a backward pass to time."""
    for name, shape in SHAPES.items():
        x = torch.randn(shape, requires_grad=True)
        dy = torch.randn(shape)
        plain = (nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d)(
            shape[1])
        synced = sync.SyncBatchNorm(shape[1])

        def train(layer, x=x, dy=dy):
            x.grad = None
            layer(x).backward(dy)

        def unsent(layer, train=train):
            sync.together, real = alone, sync.together
            train(layer)
            sync.together = real

        yield f"torch/{name}", lambda f=train, m=plain: f(m)
        yield f"unsent/{name}", lambda f=unsent, m=synced: f(m)
        yield f"sync/{name}", lambda f=train, m=synced: f(m)


def main(rounds):
    """Time everything in each round; save seconds, (rounds,) arrays."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    calls = [*messages(), *layers()]
    times = {name: [] for name, _ in calls}
    for r in range(rounds + 1):
        for name, call in calls:
            seconds = timed(call)
            if r:  # the first round warms up
                times[name].append(seconds)
    np.savez(f"rank{dist.get_rank()}.npz", **times)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]))
