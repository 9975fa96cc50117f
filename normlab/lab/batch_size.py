"""Choosing a batch size: what a model of one's own does at each."""

import math
import time
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from normlab.lab.memory import saved_bytes


class Row(NamedTuple):
    """What was measured at one batch size."""
    batch_size: int
    seconds: float  # a training step, the median of the repeats
    examples_per_second: float
    saved_per_example: float  # bytes kept for the backward pass
    values: dict  # name of a normalisation layer: m, values per channel
    agreement: float  # cosine of two batches' gradients; nan: not asked


def profile(make_model, make_batch, sizes, *, loss=None, repeats=5,
            pairs=0):
    """Measure a training step of a model at several batch sizes.

    make_model() returns a new torch model; make_batch(size) returns a
    tuple (inputs, targets) of `size` examples, on the model's device;
    loss(outputs, targets) a number, cross-entropy by default. Each size
    takes a fresh model, one step to warm up and `repeats` timed ones.
    pairs: how many pairs of batches to compare gradients of, at the
    model's initial weights; 0 leaves it out. Returns one Row a size.
    Raises TypeError or ValueError for arguments that don't fit; what the
    model raises is passed on with the batch size in its notes.
    """
    import torch

    sizes, loss = check(sizes, repeats, pairs), (
        loss or torch.nn.functional.cross_entropy)
    rows = []
    for size in sizes:
        try:
            rows.append(measure(make_model, make_batch, size, loss, repeats,
                                pairs))
        except Exception as error:
            error.add_note(f"while the batch size was {size}")
            raise
    return rows


def check(sizes, repeats, pairs):
    """The sizes in order; ValueError unless all are whole numbers."""
    sizes = sorted(set(sizes))
    if not sizes:
        raise ValueError("sizes must hold at least one batch size")
    for name, least, values in (("sizes", 1, sizes), ("repeats", 1,
                                [repeats]), ("pairs", 0, [pairs])):
        for value in values:
            if not isinstance(value, (int, np.integer)) or value < least:
                raise ValueError(f"{name} must be whole numbers from "
                                 f"{least}, got {value!r}")
    return [int(size) for size in sizes]


def measure(make_model, make_batch, size, loss, repeats, pairs):
    """The Row of one batch size."""
    model = make_model().train()
    x, y = batch(make_batch, size)
    params = [p for p in model.parameters() if p.requires_grad]
    if not params:
        raise ValueError("make_model must return a model with parameters "
                         "to train, got one without")
    agreement = math.nan
    if pairs:
        agreement = gradient_agreement(model, make_batch, size, loss, pairs)
    with values_per_channel(model) as values:
        bytes_kept = saved_bytes(model, x)
    times = []
    for _ in range(repeats + 1):
        wait(x)
        start = time.perf_counter()
        gradient(model, x, y, loss, params)
        wait(x)
        times.append(time.perf_counter() - start)
    seconds = float(np.median(times[1:]))
    return Row(size, seconds, size / seconds, bytes_kept / size,
               dict(values), agreement)


def batch(make_batch, size):
    """One batch; ValueError if it isn't a pair of `size` examples."""
    made = make_batch(size)
    if not isinstance(made, (tuple, list)) or len(made) != 2:
        raise ValueError("make_batch must return inputs and targets, got "
                         f"{type(made).__name__}")
    if len(made[0]) != size or len(made[1]) != size:
        raise ValueError(f"make_batch({size}) must return {size} inputs and "
                         f"targets, got {len(made[0])} and {len(made[1])}")
    return made


def wait(x):
    """Wait for the device of x to finish its work."""
    import torch

    if x.is_cuda:
        torch.cuda.synchronize(x.device)


def gradient(model, x, y, loss, params):
    """The loss's gradients at the parameters."""
    import torch

    return torch.autograd.grad(loss(model(x), y), params, allow_unused=True)


@contextmanager
def values_per_channel(model):
    """A dict that fills, while the model runs, with the number of values m
    that each batch normalization layer averages over in one channel.

    A layer is one if it has running statistics or is of a class whose
    name says BatchNorm or BatchRenorm, unless it says Frozen; ghost batches
    count as they are normalised. A layer that runs several times has its
    smallest m.
    """
    found = {}

    def note(name):
        def hook(layer, inputs):
            x = inputs[0]
            n = len(x)
            ghost = getattr(layer, "ghost_size", n)
            m = min(n, ghost) * math.prod(x.shape[2:])
            found[name] = min(m, found.get(name, m))
        return hook

    hooks = [layer.register_forward_pre_hook(note(name))
             for name, layer in model.named_modules() if normalises(layer)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def normalises(layer):
    """Whether a layer normalises over the batch."""
    name = type(layer).__name__
    if "InstanceNorm" in name or "Frozen" in name:
        return False
    return (hasattr(layer, "running_mean")
            or "BatchNorm" in name or "BatchRenorm" in name)


def gradient_agreement(model, make_batch, size, loss, pairs):
    """The mean cosine between the gradients of two batches of `size`
    examples at the same weights: near 0 a step is mostly noise, near 1 a
    larger batch would say the same again."""
    import torch

    params = [p for p in model.parameters() if p.requires_grad]
    cosines = []
    for _ in range(pairs):
        flat = []
        for _ in range(2):
            grads = gradient(model, *batch(make_batch, size), loss, params)
            flat.append(torch.cat([g.flatten() for g in grads
                                   if g is not None]))
        cosines.append(float(torch.nn.functional.cosine_similarity(
            *flat, dim=0)))
    return float(np.mean(cosines))


def knee(rows, share=0.8):
    """The smallest batch size of `rows` that reaches `share` of the best
    examples per second."""
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, got {share}")
    best = max(row.examples_per_second for row in rows)
    return min(row.batch_size for row in rows
               if row.examples_per_second >= share * best)


def largest(rows, memory, fixed=0):
    """The largest batch size whose saved tensors fit into `memory` bytes
    beside `fixed` bytes (weights, gradients, optimiser), from the bytes
    an example of the largest size measured; 0 if none does. The backward
    pass needs room of its own, which is not counted."""
    per_example = max(rows, key=lambda row: row.batch_size).saved_per_example
    return max(0, int((memory - fixed) // per_example))


def compare(train, sizes, learning_rates, seeds, *, reference=32):
    """Train at each batch size, with a sweep of the learning rate for each.

    train(size, lr, seed) returns an error on held-out examples, smaller
    is better; it decides what is kept equal, examples or updates. Rates
    are those for the batch size `reference` and scale in proportion.
    Returns {size: (best rate at `reference`, errors of the seeds)}.
    Raises ValueError if there is nothing to compare.
    """
    if not (len(sizes) and len(learning_rates) and len(seeds)):
        raise ValueError("sizes, learning_rates and seeds must each hold at "
                         "least one value")
    result = {}
    for size in sizes:
        runs = {lr: np.array([train(size, lr * size / reference, seed)
                              for seed in seeds]) for lr in learning_rates}
        means = {lr: np.inf if np.isnan(e).any() else e.mean()
                 for lr, e in runs.items()}
        lr = min(means, key=means.get)
        result[size] = lr, runs[lr]
    return result


def table(rows):
    """The rows as aligned text; the smallest m stands for all layers."""
    lines = [f"{'B':>5}{'examples/s':>12}{'kB/example':>12}{'least m':>9}"
             f"{'agreement':>11}"]
    for row in rows:
        least = min(row.values.values()) if row.values else "-"
        agree = ("-" if math.isnan(row.agreement)
                 else f"{row.agreement:.2f}")
        lines.append(f"{row.batch_size:5}{row.examples_per_second:12,.0f}"
                     f"{row.saved_per_example / 1e3:12.1f}{least:>9}"
                     f"{agree:>11}")
    return "\n".join(lines)
