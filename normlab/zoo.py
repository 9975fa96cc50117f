# Written by `make lib` from the chapters. Do not edit.

__all__ = ["batch_renorm", "scale_shift", "check_limits", "renorm_limits",
           "BatchRenorm", "check_options", "check_shape", "BatchRenormModes",
           "BatchRenorm1d", "BatchRenorm2d", "check_ghost_size",
           "ghost_batch_norm", "GhostBatchNorm", "GhostModes",
           "GhostBatchNorm1d", "GhostBatchNorm2d", "mix_moments",
           "full_norm_backward", "FullNormalise", "FullNormState", "share",
           "move_moments", "FullNormModes", "FullNorm1d"]

# %% 22-small-batches
"""Normalisation layers for PyTorch, beside batch normalization itself."""
import torch
from torch import nn

from normlab.torch_layers import batch_axes, count, per_channel, wide

# %% 22-small-batches
def batch_renorm(x, mean, std, r_max, d_max, weight=None, bias=None,
                 eps=1e-5):
    """Normalise x (N, C, *spatial) by its own moments, corrected towards
    the given mean and std (C,).

    r_max >= 1 and d_max >= 0: how far; weight and bias (C,) or None.
    Returns y, like x, and the batch's mean and std (C,), detached. No
    gradient passes through the correction. Raises ValueError for other
    limits. Source: Ioffe (2017), Algorithm 1.
    """
    check_limits(r_max, d_max)
    v = wide(x)
    var, own = torch.var_mean(v, batch_axes(x), correction=0)
    own_std = (var + eps).sqrt()
    with torch.no_grad():
        r = (own_std / std).clamp(1 / r_max, r_max)
        d = ((own - mean) / std).clamp(-d_max, d_max)
    y = (v - per_channel(own, x)) * per_channel(r / own_std, x)
    y = scale_shift(y + per_channel(d, x), weight, bias)
    return y.to(x.dtype), own.detach(), own_std.detach()

# %% 22-small-batches
def scale_shift(y, weight, bias):
    """weight * y + bias for y (N, C, *spatial); each (C,) or None."""
    if weight is not None:
        y = y * per_channel(weight, y)
    return y if bias is None else y + per_channel(bias, y)


def check_limits(r_max, d_max):
    """Raise ValueError unless BRN's correction can have these limits."""
    if not (r_max >= 1 and d_max >= 0):
        raise ValueError("r_max must be at least 1 and d_max at least 0, "
                         f"got {r_max} and {d_max}")

# %% 22-small-batches
def renorm_limits(step, start=5_000, r_end=40_000, d_end=25_000, r_max=3.0,
                  d_max=5.0):
    """The limits of batch renormalisation at a step, a number or a tensor.

    1 and 0 up to `start`, where it is batch normalization; from there
    linearly to r_max at step r_end and to d_max at step d_end. Raises
    ValueError if these don't fit. Source: Ioffe (2017): the defaults.
    """
    if not 0 <= start < min(r_end, d_end):
        raise ValueError("start must be at least 0 and below r_end and "
                         f"d_end, got {start}, {r_end} and {d_end}")
    check_limits(r_max, d_max)
    step = torch.as_tensor(step)
    r_share = ((step - start) / (r_end - start)).clamp(0, 1)
    d_share = ((step - start) / (d_end - start)).clamp(0, 1)
    return 1 + (r_max - 1) * r_share, d_max * d_share

# %% 22-small-batches
class BatchRenorm(nn.Module):
    """Batch renormalisation of C = num_features channels: batch_renorm
    with a running mean and a running standard deviation.

    momentum: the share of the new value, or None for the plain average;
    limits(step) gives r_max and d_max. Raises ValueError for arguments
    and inputs that don't fit. Source: Ioffe (2017), Algorithm 1.
    """
    dims = ()  # how many axes an input may have: set by the subclasses

    def __init__(self, num_features, eps=1e-5, momentum=0.1, affine=True,
                 limits=renorm_limits, device=None, dtype=None):
        super().__init__()
        check_options(num_features, eps, momentum)
        self.num_features, self.eps = num_features, eps
        self.momentum, self.limits = momentum, limits
        new = {"device": device, "dtype": dtype}
        for name, start in (("weight", torch.ones), ("bias", torch.zeros)):
            self.register_parameter(name, nn.Parameter(start(
                num_features, **new)) if affine else None)
        self.register_buffer("running_mean", torch.zeros(num_features, **new))
        self.register_buffer("running_std", torch.ones(num_features, **new))
        self.register_buffer("num_batches_tracked",
                             torch.tensor(0, device=device))

# %% 22-small-batches
def check_options(num_features, eps, momentum):
    """Raise ValueError unless a layer can have these options."""
    if not isinstance(num_features, int) or num_features < 1:
        raise ValueError("num_features must be a whole number from 1, got "
                         f"{num_features!r}")
    if not eps > 0:
        raise ValueError(f"eps must be positive, got {eps!r}")
    if momentum is not None and not 0 <= momentum <= 1:
        raise ValueError("momentum must be None or from 0 to 1, got "
                         f"{momentum!r}")


def check_shape(layer, x):
    """Raise ValueError unless x (N, C, *spatial) fits the layer."""
    if x.dim() not in layer.dims or x.shape[1] != layer.num_features:
        axes = " or ".join(map(str, layer.dims))
        raise ValueError(
            f"{type(layer).__name__} takes {axes} axes with "
            f"{layer.num_features} channels on axis 1, got an input of "
            f"shape {tuple(x.shape)}")
    if layer.training and count(x) < 2:
        raise ValueError("training needs more than 1 value a channel, got "
                         f"an input of shape {tuple(x.shape)}")

# %% 22-small-batches
class BatchRenormModes(BatchRenorm):
    """The two modes: corrected batch statistics, or the running ones."""
    def forward(self, x):
        """x (N, C, *spatial) to y, like x; training moves the buffers."""
        check_shape(self, x)
        if not self.training:
            y = wide(x) - per_channel(self.running_mean, x)
            y = y * per_channel(1 / self.running_std, x)
            return scale_shift(y, self.weight, self.bias).to(x.dtype)
        y, mean, std = batch_renorm(
            x, self.running_mean, self.running_std,
            *self.limits(self.num_batches_tracked), self.weight, self.bias,
            self.eps)
        self.num_batches_tracked.add_(1)
        share = self.momentum
        if share is None:
            share = 1 / self.num_batches_tracked
        self.running_mean += share * (mean - self.running_mean)
        self.running_std += share * (std - self.running_std)
        return y

    def extra_repr(self):
        return (f"{self.num_features}, eps={self.eps}, "
                f"momentum={self.momentum}, affine={self.weight is not None}")

# %% 22-small-batches
class BatchRenorm1d(BatchRenormModes):
    """BatchRenorm for (N, C) and (N, C, L)."""
    dims = 2, 3


class BatchRenorm2d(BatchRenormModes):
    """BatchRenorm for (N, C, H, W)."""
    dims = 4,

# %% 22-small-batches
def check_ghost_size(size):
    """Raise ValueError unless groups can have this size."""
    if not isinstance(size, int) or size < 1:
        raise ValueError("ghost_size must be a whole number from 1, got "
                         f"{size!r}")

# %% 22-small-batches
def ghost_batch_norm(x, ghost_size, weight=None, bias=None, eps=1e-5):
    """Normalise x (N, C, *spatial) in groups of ghost_size examples, in
    order, each by its own moments.

    Examples left over join the last group, so no group is smaller than
    ghost_size, unless the batch is: then it is one group. weight and bias
    (C,) or None. Raises ValueError for a ghost_size below 1. Source:
    Hoffer, Hubara and Soudry (2017).
    """
    check_ghost_size(ghost_size)
    groups = max(1, len(x) // ghost_size)
    if len(x) % ghost_size and groups > 1:
        cut = (groups - 1) * ghost_size
        return torch.cat([ghost_batch_norm(part, len(part) // n, weight,
                                           bias, eps)
                          for part, n in ((x[:cut], groups - 1),
                                          (x[cut:], 1))])
    size = len(x) // groups
    side = x.unflatten(0, (groups, size)).transpose(0, 1).flatten(1, 2)
    w, b = (None if t is None else t.repeat(groups) for t in (weight, bias))
    y = nn.functional.batch_norm(side, None, None, w, b, True, eps=eps)
    return y.unflatten(1, (groups, -1)).transpose(0, 1).flatten(0, 1)

# %% 22-small-batches
class GhostBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalization in groups of ghost_size examples; the running
    statistics are those of whole batches, as torch.nn.BatchNorm's.

    Options, state dict and evaluation are torch.nn.BatchNorm's too.
    Raises ValueError for a ghost_size that is no whole number from 1.
    Source: Hoffer, Hubara and Soudry (2017).
    """
    def __init__(self, num_features, ghost_size, eps=1e-5, momentum=0.1,
                 affine=True, track_running_stats=True, device=None,
                 dtype=None):
        check_options(num_features, eps, momentum)
        check_ghost_size(ghost_size)
        super().__init__(num_features, eps, momentum, affine,
                         track_running_stats, device, dtype)
        self.ghost_size = ghost_size

    def extra_repr(self):
        return f"{super().extra_repr()}, ghost_size={self.ghost_size}"

# %% 22-small-batches
class GhostModes(GhostBatchNorm):
    """The two modes: the groups' statistics, or the running ones."""
    def forward(self, input):
        """input (N, C, *spatial) to y, like it."""
        self._check_input_dim(input)
        if not self.training and self.track_running_stats:
            return super().forward(input)
        y = ghost_batch_norm(input, self.ghost_size, self.weight, self.bias,
                             self.eps)
        if self.training and self.track_running_stats:
            self.track(wide(input.detach()))
        return y

    def track(self, x):
        """Move the running statistics towards those of the batch x."""
        var, mean = torch.var_mean(x, batch_axes(x), correction=1)
        self.num_batches_tracked.add_(1)
        share = self.momentum
        if share is None:
            share = 1 / self.num_batches_tracked
        self.running_mean += share * (mean - self.running_mean)
        self.running_var += share * (var - self.running_var)

# %% 22-small-batches
class GhostBatchNorm1d(GhostModes, nn.BatchNorm1d):
    """GhostBatchNorm for (N, C) and (N, C, L)."""


class GhostBatchNorm2d(GhostModes, nn.BatchNorm2d):
    """GhostBatchNorm for (N, C, H, W)."""

# %% 24-leakage
def mix_moments(mean, var, new_mean, new_var, share):
    """Mean and biased variance (C,) of a mixture: `share` of its values
    have the moments new_mean and new_var (C,), the rest mean and var.

    Unlike an average of variances it counts how far the means are apart.
    Source: equation (24.9) of the book.
    """
    step = new_mean - mean
    return (mean + share * step,
            var + share * (new_var - var) + share * (1 - share) * step**2)

# %% 24-leakage
def full_norm_backward(dy, xhat, scale, dbias, dweight):
    """The gradient dx, like dy (N, C, *spatial), of normalisation by the
    statistics of all data.

    xhat like dy; scale (C,) is weight * inv_std; dbias and dweight (C,)
    are what the sums of dy and of dy * xhat over a batch are on average.
    Source: equation (24.8) of the book.
    """
    sums = per_channel(dbias, dy) + xhat * per_channel(dweight, dy)
    return per_channel(scale, dy) * (dy - sums / count(dy))

# %% 24-leakage
from torch.autograd.function import once_differentiable

# %% 24-leakage
class FullNormalise(torch.autograd.Function):
    """Normalise x with the given statistics. Backward moves the averages
    (2, C) of dbias and dweight by `share`, in place, and uses them."""
    @staticmethod
    def forward(ctx, x, weight, bias, mean, inv_std, averages, share):
        xhat = (wide(x) - per_channel(mean, x)) * per_channel(inv_std, x)
        ctx.save_for_backward(xhat, weight, inv_std)
        ctx.averages, ctx.share, ctx.dtype = averages, share, x.dtype
        return scale_shift(xhat, weight, bias).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        (xhat, weight, inv_std), dy = ctx.saved_tensors, wide(dy)
        axes = batch_axes(dy)
        sums = torch.stack([dy.sum(axes), (dy * xhat).sum(axes)])
        ctx.averages += ctx.share * (sums - ctx.averages)
        scale = inv_std if weight is None else inv_std * weight
        dx = full_norm_backward(dy, xhat, scale, *ctx.averages)
        dbias, dweight = sums if weight is not None else (None, None)
        return dx.to(ctx.dtype), dweight, dbias, None, None, None, None

# %% 24-leakage
class FullNormState(nn.Module):
    """What FullNorm1d holds."""
    def __init__(self, num_features, eps=1e-5, momentum=0.1,
                 backward_momentum=0.1, affine=True, device=None,
                 dtype=None):
        super().__init__()
        check_options(num_features, eps, momentum)
        check_options(num_features, eps, backward_momentum)
        self.num_features, self.eps = num_features, eps
        self.momentum, self.backward_momentum = momentum, backward_momentum
        c, new = num_features, {"device": device, "dtype": dtype}
        for name, start in (("weight", torch.ones), ("bias", torch.zeros)):
            self.register_parameter(
                name, nn.Parameter(start(c, **new)) if affine else None)
        for name, start in (("running_mean", torch.zeros(c, **new)),
                            ("running_var", torch.ones(c, **new)),
                            ("running_grads", torch.zeros(2, c, **new)),
                            ("num_batches_tracked",
                             torch.tensor(0, device=device))):
            self.register_buffer(name, start)

# %% 24-leakage
def share(layer, momentum):
    """How much of this batch goes into one of a layer's averages."""
    if momentum == 0:
        return 0
    first = 1 / layer.num_batches_tracked.double()
    return first.clamp(min=momentum or 0)

# %% 24-leakage
def move_moments(layer, x):
    """Mix the moments of the batch x into a layer's running ones."""
    var, mean = torch.var_mean(x, batch_axes(x), correction=0)
    mean, var = mix_moments(layer.running_mean, layer.running_var, mean, var,
                            share(layer, layer.momentum))
    layer.running_mean.copy_(mean)
    layer.running_var.copy_(var)

# %% 24-leakage
class FullNormModes(FullNormState):
    """Both modes normalise with the running statistics; training moves
    them first, and its backward pass differentiates through them."""
    def forward(self, x):
        """x (N, C, *spatial) to y, like x."""
        check_shape(self, x)
        if self.training:
            self.num_batches_tracked.add_(1)
            move_moments(self, wide(x.detach()))
        mean = wide(self.running_mean)
        inv_std = (wide(self.running_var) + self.eps).rsqrt()
        if self.training:
            return FullNormalise.apply(
                x, self.weight, self.bias, mean, inv_std,
                self.running_grads, share(self, self.backward_momentum))
        xhat = (wide(x) - per_channel(mean, x)) * per_channel(inv_std, x)
        return scale_shift(xhat, self.weight, self.bias).to(x.dtype)

# %% 24-leakage
class FullNorm1d(FullNormModes):
    """Full normalisation of (N, C) and (N, C, L): running statistics
    forward, running averages of dbias and dweight backward.

    momentum and backward_momentum: the share of the new batch in them, at
    least 1/t in step t; None: 1/t, the plain average. The running variance
    is biased. The loss must be a mean over the batch. Raises ValueError
    for arguments and inputs that don't fit. Source: this book's reading of
    Lian and Liu (2019).
    """
    dims = 2, 3

    def extra_repr(self):
        return (f"{self.num_features}, eps={self.eps}, "
                f"momentum={self.momentum}, "
                f"backward_momentum={self.backward_momentum}, "
                f"affine={self.weight is not None}")
