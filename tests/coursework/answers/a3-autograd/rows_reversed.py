# %%
# The module first, the statistics last; each batch is a matrix (N * S, C)
# with one weight a row. Works in place on copies. Keeps xhat as a matrix.
import torch
from torch import nn


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


class WeightedBatchNorm1d(nn.Module):
    def __init__(self, num_features, eps=1e-5, momentum=0.1):
        super().__init__()
        self.options = eps, momentum
        self.weight = nn.Parameter(torch.empty(num_features))
        self.bias = nn.Parameter(torch.empty(num_features))
        self.register_buffer("running_mean", torch.empty(num_features))
        self.register_buffer("running_var", torch.empty(num_features))
        self.register_buffer("num_batches_tracked",
                             torch.tensor(0, dtype=torch.int64))
        self.reset()

    @torch.no_grad()
    def reset(self):
        for t, start in ((self.weight, 1), (self.bias, 0),
                         (self.running_mean, 0), (self.running_var, 1)):
            t.fill_(start)

    def forward(self, x, row_weights=None):
        eps, share = self.options
        if row_weights is None:
            row_weights = torch.ones(x.shape[0], dtype=torch.bool)
        if self.training:
            with torch.no_grad():
                mean, _, unbiased = weighted_moments(x, row_weights)
                for old, new in ((self.running_mean, mean),
                                 (self.running_var, unbiased)):
                    old.copy_((1 - share) * old + share * new)
                self.num_batches_tracked.copy_(self.num_batches_tracked + 1)
            return weighted_batch_norm(x, row_weights, self.weight,
                                       self.bias, eps)
        d = matrix(x) - self.running_mean
        y = d / (self.running_var + eps) ** 0.5 * self.weight + self.bias
        return as_batch(y, x).to(x.dtype)


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
    def forward(ctx, x, row_weights, weight, bias, eps):
        mean, var, _ = weighted_moments(x, row_weights)
        xhat = matrix(x).to(mean.dtype, copy=True)
        s = (var + eps).sqrt_().reciprocal_()
        xhat.sub_(mean).mul_(s)
        y = xhat.clone()
        if weight is not None:
            y.mul_(weight)
        if bias is not None:
            y.add_(bias)
        ctx.save_for_backward(xhat, s, row_weights.clone(), weight)
        ctx.dtype = x.dtype
        return as_batch(y, x).to(x.dtype)

    @staticmethod
    def backward(ctx, dy):
        xhat, s, row_weights, weight = ctx.saved_tensors
        need = ctx.needs_input_grad
        got = weighted_backward(dy, as_batch(xhat, dy), s, row_weights,
                                weight, (need[0], need[2], need[3]))
        dx = got[0].to(ctx.dtype) if need[0] else None
        return dx, None, *got[1:], None


def weighted_batch_norm(x, row_weights, weight=None, bias=None, eps=1e-5):
    return WeightedBatchNorm.apply(x, row_weights, weight, bias, eps)


# %% answer="q2-backward"
def weighted_backward(dy, xhat, inv_std, row_weights, weight,
                      needs=(True, True, True)):
    g, h = matrix(dy).to(xhat.dtype), matrix(xhat)
    a = for_each_value(row_weights, xhat)
    dweight = (g * h).sum(0) if needs[1] and weight is not None else None
    dbias = g.sum(0) if needs[2] else None
    if not needs[0]:
        return None, dweight, dbias
    dxhat = g.clone() if weight is None else g * weight
    # From xhat to x: the way through x, the mean and the variance.
    dvar = -0.5 * inv_std ** 2 * (dxhat * h).sum(0)
    dmean = -inv_std * dxhat.sum(0)
    dxhat.mul_(inv_std)
    dxhat.add_(a * dmean).add_(2 * a * dvar * h / inv_std)
    return as_batch(dxhat, xhat), dweight, dbias


# %% answer="q1-moments"
def weighted_moments(x, row_weights):
    ok = row_weights.shape == (x.shape[0],) and row_weights.min() >= 0
    if not ok or (row_weights != 0).sum() * x[0, 0].numel() < 2:
        raise ValueError(f"row_weights not usable: {row_weights}")
    x = x.double() if x.dtype == torch.float64 else x.float()
    a = for_each_value(row_weights, x)
    values = matrix(x).clone()
    mean = (a.T @ values)[0]
    values.sub_(mean)
    again = (a.T @ values)[0]
    values.sub_(again).square_()
    var = (a.T @ values)[0]
    return mean + again, var, var / (1 - (a.T @ a)[0, 0])


# %%
def matrix(x):
    """x (N, C, *positions) as (N * S, C)."""
    return x.movedim(1, -1).reshape(-1, x.shape[1])


def as_batch(rows, x):
    """The matrix (N * S, C) in the shape of x."""
    last = x.movedim(1, -1)
    return rows.reshape(last.shape).movedim(-1, 1).contiguous()


def for_each_value(row_weights, x):
    """The share of each value, (N * S, 1)."""
    a = row_weights.to(x.dtype).repeat_interleave(x[0, 0].numel())
    return (a / a.sum())[:, None]
