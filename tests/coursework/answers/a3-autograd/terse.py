# %%
# The shortest formulas that are right. Keeps xhat.
import torch
from torch import nn


# %% answer="q1-moments"
def weighted_moments(x, row_weights):
    if row_weights.shape != (len(x),) or bool((row_weights < 0).any()):
        raise ValueError("row_weights must be (N,) and not negative")
    if int((row_weights > 0).sum()) * x[0, 0].numel() < 2:
        raise ValueError("row_weights must leave two values a channel")
    x = x if x.dtype == torch.float64 else x.float()
    d = [0, *range(2, x.dim())]
    a = row_weights.to(x).view(-1, *[1] * (x.dim() - 1)).expand_as(x)
    a = a / a.sum(d, keepdim=True)
    mu = (a * x).sum(d, keepdim=True)
    var = (a * (x - mu) ** 2).sum(d)
    return mu.flatten(), var, var / (1 - (a * a).sum(d))


# %% answer="q2-backward"
def weighted_backward(dy, xhat, inv_std, row_weights, weight,
                      needs=(True, True, True)):
    d, col = [0, *range(2, dy.dim())], (-1, *[1] * (dy.dim() - 2))
    b, g = dy.sum(d), (dy * xhat).sum(d)
    a = row_weights.to(xhat).view(-1, *[1] * (dy.dim() - 1))
    a = a / (a.sum() * xhat[0, 0].numel())
    s = (inv_std * (1 if weight is None else weight)).view(col)
    dx = s * (dy - a * (b.view(col) + xhat * g.view(col))) \
        if needs[0] else None
    return (dx, g if needs[1] and weight is not None else None,
            b if needs[2] else None)


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
    def forward(ctx, x, rows, weight, bias, eps):
        mu, var, _ = weighted_moments(x, rows)
        col = (-1, *[1] * (x.dim() - 2))
        s = (var + eps) ** -0.5
        xhat = (x - mu.view(col)) * s.view(col)
        ctx.save_for_backward(xhat, s, rows, weight)
        y = xhat if weight is None else xhat * weight.view(col)
        y = y if bias is None else y + bias.view(col)
        # A copy: forward must not return what it saves.
        return y.clone().to(x.dtype)

    @staticmethod
    def backward(ctx, dy):
        xhat, s, rows, weight = ctx.saved_tensors
        need = ctx.needs_input_grad
        dx, dw, db = weighted_backward(dy.to(xhat), xhat, s, rows, weight,
                                       (need[0], need[2], need[3]))
        return dx, None, dw, db, None


def weighted_batch_norm(x, row_weights, weight=None, bias=None, eps=1e-5):
    return WeightedBatchNorm.apply(x, row_weights, weight, bias, eps)


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
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x, row_weights=None):
        if not self.training:
            return nn.functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight,
                self.bias, eps=self.eps)
        w = x.new_ones(len(x)) if row_weights is None else row_weights
        with torch.no_grad():
            mu, _, v = weighted_moments(x, w)
            self.running_mean.mul_(1 - self.momentum).add_(
                self.momentum * mu)
            self.running_var.mul_(1 - self.momentum).add_(self.momentum * v)
            self.num_batches_tracked += 1
        return weighted_batch_norm(x, w, self.weight, self.bias, self.eps)
