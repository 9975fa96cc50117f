# %%
# einsum on (N, C, S), forward and setup_context apart as in chapter 8; the
# statistics are outputs without a gradient. Keeps x.
import torch
from torch import nn


# %%
def three_axes(t):
    """t (N, C, *positions) as (N, C, S)."""
    return t.reshape(t.shape[0], t.shape[1], -1)


def shares(row_weights, positions, like):
    """The share of each value of a row, (N,)."""
    w = row_weights.to(like.dtype)
    return w / torch.sum(w) / positions


# %% answer="q1-moments"
def weighted_moments(x, row_weights):
    n = x.shape[0]
    positions = x[0, 0].numel()
    if tuple(row_weights.shape) != (n,):
        raise ValueError(f"row_weights: {n} weights expected")
    if torch.any(row_weights < 0):
        raise ValueError("row_weights: negative")
    if torch.count_nonzero(row_weights) * positions < 2:
        raise ValueError("row_weights: fewer than two values")
    v = three_axes(x.to(torch.promote_types(torch.float32, x.dtype)))
    a = shares(row_weights, positions, v)
    mean = torch.einsum("n,ncs->c", a, v)
    d = v - mean[None, :, None]
    # What rounding left of the mean is taken out of the variance, too.
    rest = torch.einsum("n,ncs->c", a, d)
    var = torch.einsum("n,ncs,ncs->c", a, d, d) - rest ** 2
    return mean + rest, var, var / (1 - positions * torch.dot(a, a))


# %% answer="q2-backward"
def weighted_backward(dy, xhat, inv_std, row_weights, weight,
                      needs=(True, True, True)):
    g, h = three_axes(dy), three_axes(xhat)
    dx = dweight = dbias = None
    if needs[2]:
        dbias = torch.einsum("ncs->c", g)
    if needs[1] and weight is not None:
        dweight = torch.einsum("ncs,ncs->c", g, h)
    if needs[0]:
        scale = inv_std * weight if weight is not None else inv_std
        g = torch.einsum("ncs,c->ncs", g, scale)
        a = shares(row_weights, h.shape[2], h)
        dmean = torch.einsum("ncs->c", g)
        dscale = torch.einsum("ncs,ncs->c", g, h)
        dx = g - torch.einsum("n,c->nc", a, dmean)[:, :, None]
        dx -= torch.einsum("n,ncs,c->ncs", a, h, dscale)
        dx = dx.reshape(xhat.shape)
    return dx, dweight, dbias


# %% answer="q3-function"
def saved_bytes(x, row_weights, weight, bias):
    """Given, leave as it is: the bytes that forward keeps for backward."""
    kept = {}

    def note(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda t: t)
    with torch.enable_grad(), hooks:
        x = x.detach().clone().requires_grad_()
        y = weighted_batch_norm(x, row_weights, weight, bias)
    return sum(kept.values()) if y.requires_grad else 0


class WeightedBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(x, row_weights, weight, bias, eps):
        mean, var, _ = weighted_moments(x, row_weights)
        inv_std = torch.rsqrt(var + eps)
        y = (three_axes(x) - mean[:, None]) * inv_std[:, None]
        if weight is not None:
            y *= weight[:, None]
        if bias is not None:
            y += bias[:, None]
        return y.reshape(x.shape).to(x.dtype), mean, inv_std

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, row_weights, weight, _, _ = inputs
        ctx.save_for_backward(x, row_weights, weight, *output[1:])
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx, dy, *_):
        x, row_weights, weight, mean, inv_std = ctx.saved_tensors
        xhat = (three_axes(x) - mean[:, None]) * inv_std[:, None]
        dx, dw, db = weighted_backward(
            dy.to(xhat.dtype), xhat.reshape(x.shape), inv_std, row_weights,
            weight, (ctx.needs_input_grad[0], *ctx.needs_input_grad[2:4]))
        return None if dx is None else dx.to(x.dtype), None, dw, db, None


def weighted_batch_norm(x, row_weights, weight=None, bias=None, eps=1e-5):
    return WeightedBatchNorm.apply(x, row_weights, weight, bias, eps)[0]


# %% answer="q4-module"
def probe(layer, x, row_weights, dy):
    """Given, leave as it is: a training step of the layer, from inside.

    Returns a dict: "in place", whether the buffers are the same tensors as
    before; "graph", whether one hangs on a graph; and the gradients at x,
    weight and bias of a loss whose gradient at y is dy.
    """
    before = layer.running_mean, layer.running_var
    with torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        y = layer.train()(x * 1, row_weights)
    after = layer.running_mean, layer.running_var
    grads = torch.autograd.grad(y, [x, layer.weight, layer.bias], dy)
    return {"in place": all(a is b for a, b in zip(after, before)),
            "graph": any(t.requires_grad for t in after),
            **dict(zip(("x", "weight", "bias"), grads))}


class WeightedBatchNorm1d(nn.BatchNorm1d):
    """Options, buffers and evaluation mode are inherited."""

    def forward(self, x, row_weights=None):
        if not self.training:
            return super().forward(x)
        if row_weights is None:
            row_weights = torch.ones(x.shape[0])
        y, mean, inv_std = WeightedBatchNorm.apply(
            x, row_weights, self.weight, self.bias, self.eps)
        unbiased = weighted_moments(x.detach(), row_weights)[2]
        with torch.no_grad():
            self.running_mean += self.momentum * (mean - self.running_mean)
            self.running_var += self.momentum * (unbiased - self.running_var)
        self.num_batches_tracked.add_(1)
        return y
