# Written by `make lib` from the chapters. Do not edit.

__all__ = ["nodes", "check_m", "check_transfer", "transfer", "transfer_std",
           "expected_std", "expected_inverse_std", "own_norm", "Repair",
           "norms", "replace_norm", "in_groups", "watch", "restore", "moments",
           "precise_bn", "use_transfer", "mixed_norm", "weigh_examples",
           "nearest_alpha", "fit_alphas", "eval_norm", "measured_scales",
           "correct_scale"]

# %% 23-train-test-gap
"""What PyTorch networks may compute in evaluation mode instead of a line:
the training mode's average, and repairs that come near it."""
import math
from functools import partial

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import nn

from normlab.numpy_layers import merge_moments
from normlab.torch_layers import batch_axes, count, per_channel, wide

# %% 23-train-test-gap
def nodes(points):
    """Nodes q = sin(t) and weights, (points,) each, of an integral over q
    from 0 to 1: Gauss's rule in t."""
    t, w = np.polynomial.legendre.leggauss(points)
    t = (t + 1) * math.pi / 4
    return np.sin(t), w * math.pi / 4 * np.cos(t)


def check_m(m):
    """Raise ValueError unless m values a channel can be normalised."""
    if not m >= 2:
        raise ValueError(f"m must be at least 2, got {m}")


def check_transfer(x, m, eps):
    """Raise TypeError or ValueError unless `transfer` takes these."""
    check_m(m)
    if not x.is_floating_point():
        raise TypeError(f"x must be a tensor of floats, got {x.dtype}")
    if not (torch.as_tensor(eps) >= 0).all():
        raise ValueError(f"eps must be at least 0, got {eps}")

# %% 23-train-test-gap
def transfer(x, m, eps=0.0, points=128):
    """T_m(x), the mean of a normalised value in training mode.

    x, a tensor of any shape: the value in standard deviations from the
    population's mean; its m - 1 companions are independent N(0, 1). eps,
    a number or a tensor that broadcasts: the layer's epsilon over the
    population's variance. With 128 points the error is below 1e-7 for |x|
    up to 6 and m up to 256. Raises TypeError unless x has floats,
    ValueError if m < 2 or eps < 0. Source: chapter 23, (23.9).
    """
    check_transfer(x, m, eps)
    z, total = wide(x), 0
    for q, w in zip(*nodes(points)):
        share = (1 - q**2) / (1 + (m - 1) * q**2)
        away = (m - 1) * q**2 * z * z + m**2 * eps * q**2 / (1 - q**2)
        total = total + w * share ** ((m - 2) / 2) * torch.exp(-away / 2)
    return (math.sqrt(2 / math.pi) * (m - 1) * z * total).to(x.dtype)

# %% 23-train-test-gap
def transfer_std(x, m, eps=0.0, points=128):
    """Standard deviation of the normalised value whose mean is T_m(x).

    Arguments and errors as for `transfer`. Source: chapter 23, (23.13).
    """
    check_transfer(x, m, eps)
    z, total = wide(x), 0
    for p, w in zip(*nodes(points)):
        q2 = 1 - p**2
        share = p**2 / (1 + (m - 1) * q2)
        away = (m - 1) * q2 * z * z + m**2 * eps * q2 / p**2
        total = total + w * share ** ((m - 2) / 2) * (
            1 + (m - 1) * p**2 * z * z) * torch.exp(-away / 2)
    square = (m - 1) * total - transfer(z, m, eps, points) ** 2
    return square.clamp(min=0).sqrt().to(x.dtype)

# %% 23-train-test-gap
def expected_std(m):
    """E[sigma_B] of m independent N(0, 1) values, biased: (23.15)."""
    check_m(m)
    return math.sqrt(2 / m) * math.exp(
        math.lgamma(m / 2) - math.lgamma((m - 1) / 2))


def expected_inverse_std(m):
    """E[1 / sigma_B] of m independent N(0, 1) values, biased, infinite
    at m = 2: (23.16)."""
    check_m(m)
    if m == 2:
        return math.inf
    return math.sqrt(m / 2) * math.exp(
        math.lgamma((m - 2) / 2) - math.lgamma((m - 1) / 2))

# %% 23-train-test-gap
def own_norm(layer, x):
    """x (N, C, *spatial) normalised by the batch, without gamma, beta."""
    mean, var = (per_channel(t, x) for t in (
        wide(x).mean(batch_axes(x)),
        wide(x).var(batch_axes(x), correction=0)))
    return (wide(x) - mean) * (var + layer.eps).rsqrt()

# %% 23-train-test-gap
class Repair:
    """What was changed in a model; `remove()` puts it back.

    Also a context manager, which does so at the end of its block.
    """
    def __init__(self, undo):
        self.undo = list(undo)

    def remove(self):
        """Put back what was changed; again, it does nothing."""
        while self.undo:
            self.undo.pop()()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.remove()

# %% 23-train-test-gap
def norms(model):
    """The model's batch normalizations with running statistics, of
    torch.nn or of this book; ValueError if there are none."""
    found = [layer for layer in model.modules()
             if isinstance(layer, nn.modules.batchnorm._BatchNorm)
             and layer.running_var is not None]
    if not found:
        raise ValueError("model must hold batch normalizations with running "
                         "statistics, got none")
    return found

# %% 23-train-test-gap
def replace_norm(model, function):
    """In evaluation mode, let every batch normalization compute
    weight * function(layer, x) + bias, for its input x (N, C, *spatial).

    Training mode, parameters and buffers stay as they are. Returns a
    Repair.
    """
    def hook(layer, inputs, output):
        if layer.training:
            return None
        y = function(layer, inputs[0])
        if layer.weight is not None:
            y = y * per_channel(layer.weight, y)
        if layer.bias is not None:
            y = y + per_channel(layer.bias, y)
        return y.to(output.dtype)

    return Repair([layer.register_forward_hook(hook).remove
                   for layer in norms(model)])

# %% 23-train-test-gap
def in_groups(model, m):
    """In evaluation mode, normalise every m consecutive examples with
    their own statistics, as training mode does with a batch of m.

    Parameters and buffers stay as they are. Returns a Repair. A batch
    that m does not divide raises RuntimeError.
    """
    check_m(m)

    def own(layer, x):
        groups = wide(x).unflatten(0, (-1, m))  # (N / m, m, C, *spatial)
        axes = (1, *range(3, groups.dim()))
        mean = groups.mean(axes, keepdim=True)
        var = groups.var(axes, correction=0, keepdim=True)
        return ((groups - mean) * (var + layer.eps).rsqrt()).flatten(0, 1)

    return replace_norm(model, own)

# %% 23-train-test-gap
@torch.no_grad()
def watch(model, batches, look):
    """Run the batches, each normalised with its own statistics, and list
    look(x) of each layer's inputs x (N, C, *spatial): {layer: [...]}.

    The rest of the model is in evaluation mode. Buffers and modes are
    left as they were, also if a batch raises; ValueError if none came."""
    seen = {layer: [] for layer in norms(model)}
    before = {name: t.clone() for name, t in model.named_buffers()}
    modes = [(module, module.training) for module in model.modules()]
    hooks = [layer.register_forward_hook(
        lambda layer, inputs, _: seen[layer].append(look(inputs[0])))
        for layer in seen]
    try:
        model.eval()
        for layer in seen:
            layer.train()
        for x in batches:
            model(x)
    finally:
        restore(model, before, modes, hooks)
    if not all(seen.values()):
        raise ValueError("batches must hold at least one batch, got none")
    return seen

# %% 23-train-test-gap
def restore(model, buffers, modes, hooks):
    """Put back a model's buffers and modes, and remove hooks."""
    for hook in hooks:
        hook.remove()
    for module, mode in modes:
        module.training = mode
    with torch.no_grad():
        for name, t in model.named_buffers():
            t.copy_(buffers[name])

# %% 23-train-test-gap
def moments(x):
    """Values a channel, and mean and biased variance (C,) in float64, of
    x (N, C, *spatial)."""
    h = x.double()
    return (count(h), h.mean(batch_axes(h)).cpu().numpy(),
            h.var(batch_axes(h), correction=0).cpu().numpy())

# %% 23-train-test-gap
@torch.no_grad()
def precise_bn(model, batches):
    """Set the running statistics to those of all batches put together,
    the variance unbiased: PreciseBN.

    Returns a Repair. Raises ValueError if there is no batch. Source: Wu
    and Johnson (2021), section 3; chapter 6, (6.8) and (6.9).
    """
    undo = []
    for layer, rows in watch(model, batches, moments).items():
        mean, var = merge_moments(*zip(*rows))
        m = sum(n for n, *_ in rows)
        for buffer, new in ((layer.running_mean, mean),
                            (layer.running_var, var * m / (m - 1))):
            undo.append(partial(buffer.copy_, buffer.clone()))
            buffer.copy_(torch.from_numpy(new))
    return Repair(undo)

# %% 23-train-test-gap
def use_transfer(model, m):
    """In evaluation mode, let every layer answer with T_m((x - mean) /
    std) for the running mean and standard deviation, as if each value had
    m - 1 independent Gaussian companions.

    For dense layers; in a feature map, values are not independent.
    Returns a Repair. Raises ValueError if m < 2. Source: this book.
    """
    check_m(m)

    def curve(layer, x):
        var = per_channel(wide(layer.running_var), x)
        var = var.clamp(min=torch.finfo(var.dtype).tiny)
        z = (wide(x) - per_channel(layer.running_mean, x)) * var.rsqrt()
        return transfer(z, m, layer.eps / var)

    return replace_norm(model, curve)

# %% 23-train-test-gap
def mixed_norm(x, mean, var, alpha, eps=1e-5):
    """Normalise each example of x (N, C, *spatial) by the mixture of its
    own statistics, with the share alpha, and of mean and var (C,).

    alpha from 0, the usual evaluation mode, to 1, instance normalization.
    Returns a tensor like x. Raises ValueError for another alpha. Source:
    Summers and Dinneen (2020); Singh and Shrivastava (2019); (23.18).
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be from 0 to 1, got {alpha}")
    h, axes = wide(x), tuple(range(2, x.dim()))
    own, spread = h, 0  # a value alone has no variance
    if axes:
        own = h.mean(axes, keepdim=True)  # (N, C, 1, ...)
        spread = h.var(axes, correction=0, keepdim=True)
    away = own - per_channel(mean, x)
    mixed = alpha * spread + (1 - alpha) * (
        per_channel(var, x) + alpha * away * away)
    centred = h - per_channel(mean, x) - alpha * away
    return (centred * (mixed + eps).rsqrt()).to(x.dtype)

# %% 23-train-test-gap
def weigh_examples(model, alpha):
    """In evaluation mode, normalise each example with `mixed_norm` of its
    own and the running statistics: inference example weighing.

    alpha: one number from 0 to 1 for all layers, or {layer: number}.
    Returns a Repair. Source: Summers and Dinneen (2020).
    """
    shares = alpha if isinstance(alpha, dict) else dict.fromkeys(
        norms(model), alpha)
    for share in shares.values():
        if not 0 <= share <= 1:
            raise ValueError(f"alpha must be from 0 to 1, got {share}")
    return replace_norm(model, lambda layer, x: mixed_norm(
        x, layer.running_mean, layer.running_var, shares[layer], layer.eps))

# %% 23-train-test-gap
def nearest_alpha(layer, inputs):
    """The alpha whose `mixed_norm` comes nearest, in mean square, to the
    layer's training mode on inputs, a list of batches (N, C, *spatial)."""
    x = torch.cat(inputs)
    target = torch.cat([own_norm(layer, one) for one in inputs])

    def off(alpha):
        y = mixed_norm(x, layer.running_mean, layer.running_var, alpha,
                       layer.eps)
        return float((y - target).square().mean())

    return float(minimize_scalar(off, bounds=(0, 1), method="bounded",
                                 options={"xatol": 1e-3}).x)


def fit_alphas(model, batches):
    """The `nearest_alpha` of each layer on training batches of the size
    that the model was trained with: {layer: alpha}."""
    seen = watch(model, batches, lambda x: x)
    return {layer: nearest_alpha(layer, xs) for layer, xs in seen.items()}

# %% 23-train-test-gap
def eval_norm(model, batches):
    """Inference example weighing with an alpha for each layer, fitted by
    `fit_alphas` to training batches, after EvalNorm. Returns a Repair.

    Source: Singh and Shrivastava (2019), who estimate alpha otherwise.
    """
    return weigh_examples(model, fit_alphas(model, batches))

# %% 23-train-test-gap
def measured_scales(model, batches, kind):
    """For each layer the factor (C,) that its line is to be multiplied
    with, measured on training batches: {layer: factor}.

    kind "inverse": the mean of 1 / sigma_B times the running standard
    deviation; "slope": the slope of the best line for the training mode's
    outputs. Raises ValueError for another kind. Source: this book.
    """
    if kind not in ("inverse", "slope"):
        raise ValueError(f"kind must be inverse or slope, got {kind!r}")
    seen = watch(model, batches, lambda x: torch.var(
        wide(x), batch_axes(x), correction=0))
    factors = {}
    for layer, rows in seen.items():
        var = torch.stack(rows)  # (batches, C)
        inverse = (var + layer.eps).rsqrt()
        std = (layer.running_var + layer.eps).sqrt()
        factors[layer] = (std * inverse).mean(0) if kind == "inverse" else (
            (var * inverse).mean(0) / std)
    return factors

# %% 23-train-test-gap
@torch.no_grad()
def correct_scale(model, factor):
    """Multiply every layer's line by a factor, in its weight, so that the
    model stays foldable; training mode changes too, until removed.

    factor: a number, or {layer: number or (C,)}. Returns a Repair. Raises
    ValueError if a layer has no weight. Source: this book.
    """
    layers = norms(model)
    for layer in layers:
        if layer.weight is None:
            raise ValueError("every layer must have a weight to hold the "
                             f"factor, got {layer}")
    undo = []
    for layer in layers:
        weight = layer.weight.data
        undo.append(partial(weight.copy_, weight.clone()))
        weight.mul_(factor[layer] if isinstance(factor, dict)
                    else factor)
    return Repair(undo)
