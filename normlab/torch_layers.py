# Written by `make lib` from the chapters. Do not edit.

__all__ = ["FLOATS", "batch_axes", "count", "per_channel", "wide", "moments",
           "batch_norm_forward", "batch_norm_backward",
           "batch_norm_double_backward", "batch_norm_inference",
           "batch_norm_inference_backward", "find_kernels", "layout",
           "kernels_for", "fold", "unfold", "BatchNormBackward",
           "BatchNormForward", "BatchNormInference", "check_input",
           "BatchNormBase", "BatchNormTraining", "BatchNorm1d", "BatchNorm2d",
           "BatchNorm3d"]

# %% 08-pytorch
"""Batch normalization for PyTorch: torch.nn's layers, computed here."""
import functools
import math

import torch
from torch import nn

# %% 08-pytorch
def batch_axes(x):
    """The axes of x (N, C, *spatial) over which a channel is averaged."""
    return (0, *range(2, x.dim()))


def count(x):
    """How many values a channel of x (N, C, *spatial) has."""
    return len(x) * math.prod(x.shape[2:])


def per_channel(t, x):
    """t (C,) in a shape that broadcasts over x (N, C, *spatial)."""
    return t.view(len(t), *[1] * (x.dim() - 2))


def wide(x):
    """x in the precision that it is computed in, at least float32."""
    return x if x.dtype == torch.float64 else x.float()

# %% 08-pytorch
def moments(x):
    """Deviations x - shift, like x, and shift, rest and var, each (C,).

    shift + rest is the mean of each channel of x (N, C, *spatial), var
    the biased variance. An empty batch has zeros.
    """
    m = max(1, count(x))
    shift = x.sum(batch_axes(x)) / m
    d = x - per_channel(shift, x)
    rest = d.sum(batch_axes(x)) / m
    var = (d * d).sum(batch_axes(x)) / m - rest * rest
    return d, shift, rest, var.clamp(min=0)

# %% 08-pytorch
def batch_norm_forward(x, weight, bias, eps):
    """Normalise each channel of a batch over all its other axes.

    x (N, C, *spatial) of any float type; weight and bias (C,) or None.
    Returns y, like x, and shift, rest, var, inv_std (C,), float32 or
    float64. Source: Ioffe and Szegedy (2015), Algorithm 1.
    """
    y, shift, rest, var = moments(wide(x))
    inv_std = (var + eps).rsqrt()
    scale = inv_std if weight is None else inv_std * weight
    offset = -rest * scale if bias is None else bias - rest * scale
    y.mul_(per_channel(scale, x)).add_(per_channel(offset, x))
    return y.to(x.dtype), shift, rest, var, inv_std

# %% 08-pytorch
def batch_norm_backward(dy, x, weight, shift, rest, inv_std):
    """Gradients dx, like x, and dweight and dbias (C,).

    dy is the loss's gradient at the y of `batch_norm_forward`, from which
    the last three arguments come; weight may be None. Chapter 3, (3.8).
    """
    m, dy = max(1, count(x)), wide(dy)
    d = wide(x) - per_channel(shift, x)
    dbias = dy.sum(batch_axes(x))
    dweight = ((dy * d).sum(batch_axes(x)) - rest * dbias) * inv_std
    slope = -inv_std * dweight / m
    offset = -dbias / m - slope * rest
    scale = inv_std if weight is None else inv_std * weight
    dx = (d * per_channel(slope, x)).add_(dy)
    dx.add_(per_channel(offset, x)).mul_(per_channel(scale, x))
    return dx.to(x.dtype), dweight, dbias

# %% 08-pytorch
def batch_norm_double_backward(v, u, w, dy, x, weight, eps):
    """Gradients at dy, x and weight of a scalar that has the gradients v
    at dx, u at dweight and w at dbias, all from `batch_norm_backward`.

    Plain operations on x, not saved statistics: autograd can go on.
    """
    v, g, m = wide(v), wide(dy), max(1, count(x))
    d, _, rest, var = moments(wide(x))
    s = (var + eps).rsqrt()
    scale = per_channel(s if weight is None else s * weight, x)
    s, u, w, rest = (per_channel(t, x) for t in (s, u, w, rest))
    xhat = (d - rest) * s

    def mean(t):
        return per_channel(t.sum(batch_axes(x)) / m, x)

    a, b = mean(v * xhat), mean(g * xhat)
    vp, gp = v - mean(v) - xhat * a, g - mean(g) - xhat * b
    k = mean(v * gp)
    at_x = s * (u * gp - scale * (k * xhat + b * vp + a * gp))
    at_weight = None if weight is None else (m * k * s).reshape(-1)
    return scale * vp + u * xhat + w, at_x, at_weight

# %% 08-pytorch
def batch_norm_inference(x, weight, bias, mean, var, eps):
    """Normalise x (N, C, *spatial) with given mean and var (C,).

    weight and bias (C,) or None. Returns y, like x. Source: Ioffe and
    Szegedy (2015), Algorithm 2, line 11.
    """
    scale = (wide(var) + eps).rsqrt()
    if weight is not None:
        scale = scale * weight
    y = (wide(x) - per_channel(mean, x)) * per_channel(scale, x)
    if bias is not None:
        y = y + per_channel(bias, x)
    return y.to(x.dtype)

# %% 08-pytorch
def batch_norm_inference_backward(dy, x, weight, mean, var, eps):
    """Gradients dx, like x, and dweight and dbias (C,), with the
    statistics held."""
    dy, s = wide(dy), (wide(var) + eps).rsqrt()
    dweight = (dy * (wide(x) - per_channel(mean, x))).sum(batch_axes(x)) * s
    scale = s if weight is None else s * weight
    dx = (dy * per_channel(scale, x)).to(x.dtype)
    if dx.stride() != x.stride():  # `where` lays its result out like x
        dx = torch.where(x.new_zeros((), dtype=torch.bool), x, dx)
    return dx, dweight, dy.sum(batch_axes(x))

# %% 08-pytorch
@functools.cache
def find_kernels():
    """The module normlab.kernels; None where Triton is missing."""
    try:
        from normlab import kernels
    except ImportError:
        return None
    return kernels


def layout(x):
    """The memory format in which x (N, C, *spatial) has no gaps, planes
    or channels-last; None if it has gaps in both."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}
    for form in (torch.contiguous_format, last.get(x.dim())):
        if form is not None and x.is_contiguous(memory_format=form):
            return form
    return None

# %% 08-pytorch
def kernels_for(x):
    """The book's GPU kernels if they are for x, otherwise None."""
    if torch.compiler.is_compiling() or not x.is_cuda or x.numel() == 0:
        return None
    if x.dtype == torch.float64 or layout(x) is None:
        return None
    return find_kernels()

# %% 08-pytorch
def fold(info, dims, args):
    """The arguments of info.batch_size stacked calls as those of one call
    with so many times C channels; dims says along which axis each argument
    is stacked (None: it isn't)."""
    folded = []
    for t, dim in zip(args, dims):
        if isinstance(t, torch.Tensor):
            if dim is None:
                t, dim = t.expand(info.batch_size, *t.shape), 0
            channel = min(1, t.dim() - 2)  # (C,) or (N, C, *spatial)
            t = t.movedim(dim, channel).flatten(channel, channel + 1)
        folded.append(t)
    return folded


def unfold(info, outputs):
    """Undo `fold` for the outputs of the one call; also returns where
    they are stacked."""
    places = tuple(min(1, t.dim() - 1) for t in outputs)
    return tuple(t.unflatten(place, (info.batch_size, -1))
                 for t, place in zip(outputs, places)), places

# %% 08-pytorch
class BatchNormBackward(torch.autograd.Function):
    """`batch_norm_backward` with `batch_norm_double_backward`."""
    @staticmethod
    def forward(dy, x, weight, shift, rest, inv_std, eps):
        kernels = kernels_for(x)
        if kernels is None:
            return batch_norm_backward(dy, x, weight, shift, rest, inv_std)
        dy = dy.contiguous(memory_format=layout(x))
        return kernels.backward(dy, x, weight, None, shift, rest, inv_std)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:3])
        ctx.eps = inputs[-1]

    @staticmethod
    def backward(ctx, v, u, w):
        grads = batch_norm_double_backward(
            v, u, w, *ctx.saved_tensors, ctx.eps)
        return *grads, None, None, None, None

    @staticmethod
    def vmap(info, dims, *args):
        return unfold(info, BatchNormBackward.apply(*fold(info, dims, args)))

# %% 08-pytorch
class BatchNormForward(torch.autograd.Function):
    """`batch_norm_forward` with `batch_norm_backward`."""
    @staticmethod
    def forward(x, weight, bias, eps):
        kernels = kernels_for(x)
        run = batch_norm_forward if kernels is None else kernels.forward
        return run(x, weight, bias, eps)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, _, ctx.eps = inputs
        _, shift, rest, var, inv_std = output
        ctx.save_for_backward(x, weight, shift, rest, inv_std)
        ctx.mark_non_differentiable(shift, rest, var, inv_std)

    @staticmethod
    def backward(ctx, dy, *_):
        grads = BatchNormBackward.apply(dy, *ctx.saved_tensors, ctx.eps)
        wanted = zip(grads, ctx.needs_input_grad)
        return *(g if needed else None for g, needed in wanted), None

    @staticmethod
    def vmap(info, dims, *args):
        return unfold(info, BatchNormForward.apply(*fold(info, dims, args)))

# %% 08-pytorch
class BatchNormInference(torch.autograd.Function):
    """`batch_norm_inference` with its backward, statistics held."""
    @staticmethod
    def forward(x, weight, bias, mean, var, eps):
        kernels = kernels_for(x)
        run = batch_norm_inference if kernels is None else kernels.inference
        return run(x, weight, bias, mean, var, eps)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, _, mean, var, ctx.eps = inputs
        # Copies: a training step may move the buffers before backward.
        ctx.save_for_backward(x, weight, mean.clone(), var.clone())

    @staticmethod
    def backward(ctx, dy):
        grads = batch_norm_inference_backward(dy, *ctx.saved_tensors, ctx.eps)
        wanted = zip(grads, ctx.needs_input_grad)
        return *(g if needed else None for g, needed in wanted), *[None] * 3

    @staticmethod
    def vmap(info, dims, *args):
        y = BatchNormInference.apply(*fold(info, dims, args))
        return y.unflatten(1, (info.batch_size, -1)), 1

# %% 08-pytorch
FLOATS = torch.float16, torch.bfloat16, torch.float32, torch.float64


def check_input(x, eps, training, **vectors):
    """Raise what torch.nn's layers raise unless x (N, C, *spatial) can be
    normalised with these vectors (C,), of which some may be None."""
    if training and count(x) == 1:
        raise ValueError("Expected more than 1 value per channel when "
                         f"training, got input size {x.shape}")
    if eps < 0 or training and eps == 0:
        raise ValueError("eps must be positive, or in evaluation mode at "
                         f"least 0, but got {eps}")
    if x.dtype not in FLOATS:
        raise NotImplementedError(f"input must be one of {FLOATS}, got "
                                  f"{x.dtype}")
    fit = {x.dtype, torch.float32 if x.itemsize == 2 else x.dtype}
    for name, t in vectors.items():
        if t is not None and t.shape != x.shape[1:2]:
            raise RuntimeError(f"{name} should contain {x.shape[1]} elements "
                               f"not {t.numel()}")
        if t is not None and t.dtype not in fit:
            raise RuntimeError(f"{name} must have one of the types {fit} for "
                               f"{x.dtype} input, got {t.dtype}")

# %% 08-pytorch
class BatchNormBase(nn.modules.batchnorm._BatchNorm):
    """The options, buffers and state dict of torch.nn's layers, which it
    inherits, with the forward pass and the gradients of this book."""
    def __init__(self, num_features, eps=1e-5, momentum=0.1, affine=True,
                 track_running_stats=True, device=None, dtype=None, *,
                 bias=True):
        super().__init__(num_features, eps, momentum, affine,
                         track_running_stats, device, dtype)
        if not bias:
            self.bias = None

    def forward(self, input):
        """Normalise input (N, C, *spatial), with its own statistics in
        training mode or where none are kept, otherwise with the running
        ones. Raises what torch.nn's layer raises."""
        self._check_input_dim(input)
        own = self.training or self.running_mean is None
        vectors = {name: getattr(self, name) for name in (
            "running_mean", "running_var", "weight", "bias")}
        check_input(input, self.eps, own, **vectors)
        return self.normalise(input) if own else BatchNormInference.apply(
            input, self.weight, self.bias, self.running_mean,
            self.running_var, self.eps)

# %% 08-pytorch
class BatchNormTraining(BatchNormBase):
    """The training mode: batch statistics, which move the running ones."""
    def normalise(self, x):
        """Normalise x with its own statistics, which training tracks."""
        y, shift, rest, var, _ = BatchNormForward.apply(
            x, self.weight, self.bias, self.eps)
        if self.training and self.track_running_stats:
            self.track(count(x), shift + rest, var)
        return y

    def track(self, m, mean, var):
        """Move the running estimates towards a batch's mean and biased
        var (C,), taken over m values a channel."""
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        if m == 0 or self.running_mean is None:
            return
        share = self.momentum
        if share is None:  # the plain average of all batches so far
            share = 1 / self.num_batches_tracked.to(var.dtype)
        unbiased = var * (m / (m - 1))
        self.running_mean.add_(share * (mean - self.running_mean))
        self.running_var.add_(share * (unbiased - self.running_var))

# %% 08-pytorch
class BatchNorm1d(BatchNormTraining, nn.BatchNorm1d):
    """torch.nn.BatchNorm1d, for (N, C) and (N, C, L), computed here."""


class BatchNorm2d(BatchNormTraining, nn.BatchNorm2d):
    """torch.nn.BatchNorm2d, for (N, C, H, W), computed here."""


class BatchNorm3d(BatchNormTraining, nn.BatchNorm3d):
    """torch.nn.BatchNorm3d, for (N, C, D, H, W), computed here."""
