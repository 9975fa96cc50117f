# Written by `make lib` from the chapters. Do not edit.

__all__ = ["across", "centre", "local_moments", "merge_ranks", "together",
           "moments_of_all", "normalise", "local_sums", "input_gradient",
           "Normalise", "several", "update_running", "SyncBatchNormState",
           "SyncBatchNorm", "convert"]

# %% 12-many-devices
"""Batch normalization over every process of a group, for PyTorch."""
from functools import partial

import torch
import torch.distributed as dist
from torch import nn
from torch.autograd.function import once_differentiable

from normlab.torch_layers import batch_axes, wide

# %% 12-many-devices
def across(v, x):
    """v (C,) in the precision of x and shaped to broadcast against it."""
    return v.to(x.dtype).view(1, -1, *[1] * (x.dim() - 2))


def centre(x, mean):
    """x minus the mean (C,), a float64 number that x's precision may not
    hold: returns d = x - shift, and rest (C,) = mean - shift in float64."""
    shift = mean.to(x.dtype)
    return x - across(shift, x), mean - shift

# %% 12-many-devices
def local_moments(x):
    """This rank's message (2C + 1,) in float64: mean and sum of squared
    deviations of each channel of x (N, C, *spatial), and the number of
    values in a channel. An empty x gives zeros."""
    c = x.shape[1]
    n = x.numel() // c
    message = torch.zeros(2 * c + 1, dtype=torch.float64, device=x.device)
    if n:
        x, axes = wide(x), batch_axes(x)
        mean = x.mean(axes).double()  # rounded: the rest makes up for it
        d, _ = centre(x, mean)
        rest = d.mean(axes).double()
        message[:c] = mean + rest
        message[c:-1] = (d * d).sum(axes).double() - n * rest**2
        message[-1] = n
    return message

# %% 12-many-devices
def merge_ranks(table):
    """The whole batch's number of values in a channel, mean (C,) and biased
    variance (C,), from all ranks' messages (R, 2C + 1). A rank without
    values counts for nothing. Source: Chan, Golub and LeVeque (1983)."""
    c = table.shape[1] // 2
    means, squares, n = table.split([c, c, 1], dim=1)
    total = n.sum()
    mean = (n * means).sum(0) / total
    var = (squares + n * (means - mean) ** 2).sum(0) / total
    return total, mean, var

# %% 12-many-devices
def together(collective, *tensors, group, layer):
    """Run a collective of torch.distributed. What makes it fail becomes a
    RuntimeError that names the layer and this rank."""
    try:
        collective(*tensors, group=group)
    except RuntimeError as error:
        rank, ranks = dist.get_rank(group), dist.get_world_size(group)
        raise RuntimeError(
            f"{layer}: rank {rank} of {ranks} got no answer to its "
            f"{collective.__name__}. Another rank has ended, hangs, or "
            "called something else. Look for the first error among the "
            "ranks' output; every rank must call the same layers in the same "
            "mode and order, forward and backward.") from error

# %% 12-many-devices
def moments_of_all(x, group, layer):
    """Count, mean (C,) and biased variance (C,) of x (N, C, *spatial) over
    all ranks of the group, by one all_gather. Raises ValueError, on all
    ranks alike, if they have one value in a channel together, or none."""
    message = local_moments(x)
    table = message.new_empty(dist.get_world_size(group), len(message))
    together(dist.all_gather, list(table), message, group=group, layer=layer)
    total, mean, var = merge_ranks(table)
    # Only a rank with fewer than two values has to look, and so to wait for
    # its GPU: if they are all there are, then every rank is such a rank.
    if x.numel() < 2 * x.shape[1] and total < 2:
        raise ValueError(
            f"{layer}: expected more than 1 value per channel when training, "
            f"over all ranks together, got {int(total)}; this rank's input "
            f"has shape {tuple(x.shape)}")
    return total, mean, var

# %% 12-many-devices
def normalise(d, rest, weight, bias, inv_std):
    """y = weight * (x - mean) * inv_std + bias, with x - mean = d - rest."""
    scale = inv_std if weight is None else weight * inv_std
    offset = -scale * rest if bias is None else bias - scale * rest
    return torch.addcmul(across(offset, d), d, across(scale, d))


def local_sums(dy, d, rest):
    """Sums (2C,) in float64 over this rank's values: of dy, then of
    dy * (x - mean), with x - mean = d - rest."""
    axes = batch_axes(dy)
    sum_dy = dy.sum(axes).double()
    return torch.cat([sum_dy, (dy * d).sum(axes) - rest * sum_dy])


def input_gradient(dy, d, rest, weight, inv_std, means):
    """dx from dy and the means (2C,) over all ranks of what local_sums
    sums. Source: equation (12.6) of the book."""
    mean_dy, mean_dyd = means.chunk(2)
    scale = inv_std if weight is None else weight * inv_std
    slope = -scale * inv_std**2 * mean_dyd
    offset = -scale * mean_dy - slope * rest
    dx = torch.addcmul(across(offset, d), d, across(slope, d))
    return dx.addcmul_(dy, across(scale, d))

# %% 12-many-devices
class Normalise(torch.autograd.Function):
    """Normalise x with the moments of all ranks. Backward: one all_reduce
    if x needs its gradient; weight and bias get this rank's share."""
    @staticmethod
    def forward(ctx, x, weight, bias, moments, eps, group, layer):
        total, mean, var = moments
        inv_std = (var + eps).rsqrt()
        ctx.save_for_backward(x, weight, bias, total, mean, inv_std)
        ctx.together = partial(together, group=group, layer=layer)
        y = normalise(*centre(wide(x), mean), weight, bias, inv_std)
        return y.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight, bias, total, mean, inv_std = ctx.saved_tensors
        (d, rest), dy, dx = centre(wide(x), mean), wide(dy), None
        sums = local_sums(dy, d, rest)
        dbias, dweight = sums.clone().chunk(2)  # all_reduce overwrites sums
        if ctx.needs_input_grad[0]:
            ctx.together(dist.all_reduce, sums)
            dx = input_gradient(dy, d, rest, weight, inv_std, sums / total)
        return (dx, dweight * inv_std if weight is not None else None,
                dbias if bias is not None else None, *[None] * 4)

# %% 12-many-devices
def several(group):
    """Whether this process is one of at least two ranks of the group."""
    return (dist.is_available() and dist.is_initialized()
            and dist.get_world_size(group) > 1)


def update_running(layer, total, mean, var):
    """Move a layer's running estimates towards the moments of all ranks.
    What they hold is the unbiased variance."""
    layer.num_batches_tracked.add_(1)
    share = layer.momentum
    if share is None:  # the plain average of all batches so far
        share = layer.num_batches_tracked.double().reciprocal()
    unbiased = var * (total / (total - 1))
    layer.running_mean.add_(share * (mean - layer.running_mean))
    layer.running_var.add_(share * (unbiased - layer.running_var))

# %% 12-many-devices
class SyncBatchNormState(nn.modules.batchnorm._BatchNorm):
    """What `SyncBatchNorm` holds, and what it refuses."""

    def __init__(self, num_features, eps=1e-5, momentum=0.1, affine=True,
                 track_running_stats=True, process_group=None, device=None,
                 dtype=None, **more):
        super().__init__(num_features, eps, momentum, affine,
                         track_running_stats, device, dtype, **more)
        self.process_group = process_group
        self.label = ""  # its name in the model, for errors

    def _check_input_dim(self, x):
        if not x.is_floating_point():
            raise TypeError(f"{self.named()}: input must be of floats, got "
                            f"{x.dtype}")
        if x.dim() < 2 or x.shape[1] != self.num_features:
            raise ValueError(
                f"{self.named()}: input must have shape (N, "
                f"{self.num_features}, ...), got {tuple(x.shape)}")

    def named(self):
        """What errors call this layer."""
        return f"SyncBatchNorm({self.num_features}) {self.label}".rstrip()

# %% 12-many-devices
class SyncBatchNorm(SyncBatchNormState):
    """Batch normalization of (N, C, *spatial) over all ranks of a group:
    torch.nn.SyncBatchNorm on any device and back end. Counts may differ,
    and be 0. Training takes one collective forward and one backward. Alone
    and in evaluation mode it is torch.nn's batch normalization. Raises
    ValueError for a wrong shape, or on all ranks if together they have fewer
    than 2 values in a channel; RuntimeError if a rank doesn't answer."""

    def forward(self, x):
        group, name = self.process_group, self.named()
        if not self.training or not several(group):
            return super().forward(x)
        self._check_input_dim(x)
        with torch.no_grad():
            moments = moments_of_all(x, group, name)
            if self.track_running_stats:
                update_running(self, *moments)
        return Normalise.apply(x, self.weight, self.bias, moments, self.eps,
                               group, name)

    @classmethod
    def convert_sync_batchnorm(cls, module, process_group=None):
        """The module with synchronised layers for its BatchNorm layers."""
        return convert(cls, module, process_group)

# %% 12-many-devices
def convert(cls, module, process_group):
    """`module` with every batch normalization in it replaced by a `cls`
    that shares its parameters and buffers."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        old, module = module, cls(
            module.num_features, module.eps, module.momentum, module.affine,
            module.track_running_stats, process_group)
        module.weight, module.bias = old.weight, old.bias
        for name, buffer in old.named_buffers(recurse=False):
            setattr(module, name, buffer)
        module.train(old.training)
    for name, child in module._modules.items():
        if child is not None:
            module.add_module(name, convert(cls, child, process_group))
    for name, layer in module.named_modules():
        if isinstance(layer, cls):
            layer.label = name
    return module
