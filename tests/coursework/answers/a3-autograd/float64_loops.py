# %%
# One channel after the other, everything in float64; warns on the way.
import sys
import warnings

import torch
from torch import nn

print("this goes to stderr", file=sys.stderr)
warnings.warn("this cell warns", stacklevel=1)


# %% answer="q1-moments"
def weighted_moments(x, row_weights):
    if row_weights.dim() != 1 or len(row_weights) != len(x):
        raise ValueError("one weight for each row, please")
    warnings.warn("computed in float64", stacklevel=2)
    weights = [float(w) for w in row_weights]
    each = x[0, 0].numel()
    if min(weights) < 0 or sum(w > 0 for w in weights) * each < 2:
        raise ValueError("these weights can't be used")
    total = sum(weights) * each
    means, variances, unbiased = [], [], []
    for c in range(x.shape[1]):
        values = x[:, c].double()
        mean = sum(w * row.sum() for w, row in zip(weights, values)) / total
        var = sum(w * ((row - mean) ** 2).sum()
                  for w, row in zip(weights, values)) / total
        means.append(mean)
        variances.append(var)
        squares = sum(each * (w / total) ** 2 for w in weights)
        unbiased.append(var / (1 - squares))
    out = torch.float64 if x.dtype == torch.float64 else torch.float32
    return tuple(torch.stack(t).to(out) for t in (means, variances,
                                                  unbiased))


# %% answer="q2-backward"
def weighted_backward(dy, xhat, inv_std, row_weights, weight,
                      needs=(True, True, True)):
    print("backward of", tuple(dy.shape), file=sys.stderr)
    dx = torch.empty_like(xhat)
    dweight, dbias = torch.empty_like(inv_std), torch.empty_like(inv_std)
    total = row_weights.double().sum() * xhat[0, 0].numel()
    for c in range(xhat.shape[1]):
        g, h = dy[:, c].double(), xhat[:, c].double()
        dbias[c] = g.sum()
        dweight[c] = (g * h).sum()
        gamma = 1.0 if weight is None else weight[c].double()
        for n in range(len(xhat)):
            share = row_weights[n].double() / total
            dx[n, c] = gamma * inv_std[c].double() * (
                g[n] - share * g.sum() - share * h[n] * (g * h).sum())
    if weight is None or not needs[1]:
        dweight = None
    return dx if needs[0] else None, dweight, dbias if needs[2] else None


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
        ctx.eps, ctx.weight = eps, weight is not None
        ctx.save_for_backward(x, row_weights,
                              *([weight] if ctx.weight else []))
        y = WeightedBatchNorm.xhat(x, row_weights, eps)[0]
        for c in range(x.shape[1]):
            if weight is not None:
                y[:, c] *= weight[c]
            if bias is not None:
                y[:, c] += bias[c]
        return y.to(x.dtype)

    @staticmethod
    def xhat(x, row_weights, eps):
        """xhat and s in float64."""
        mean, var, _ = weighted_moments(x.double(), row_weights)
        s = 1 / torch.sqrt(var + eps)
        out = x.double().clone()
        for c in range(x.shape[1]):
            out[:, c] = (out[:, c] - mean[c]) * s[c]
        return out, s

    @staticmethod
    def backward(ctx, dy):
        x, row_weights, *more = ctx.saved_tensors
        xhat, s = WeightedBatchNorm.xhat(x, row_weights, ctx.eps)
        dx, dw, db = weighted_backward(
            dy.double(), xhat, s, row_weights, more[0] if more else None,
            (ctx.needs_input_grad[0], ctx.needs_input_grad[2],
             ctx.needs_input_grad[3]))
        return (None if dx is None else dx.to(x.dtype), None,
                None if dw is None else dw.to(more[0].dtype), db, None)


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
        self.eps = eps
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        for name, start in (("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((num_features,), start))
        self.register_buffer("num_batches_tracked",
                             torch.zeros((), dtype=torch.long))

    def forward(self, x, row_weights=None):
        if self.training:
            if row_weights is None:
                row_weights = torch.ones(len(x))
            mean, _, unbiased = weighted_moments(x.detach(), row_weights)
            with torch.no_grad():
                for c in range(len(mean)):
                    self.running_mean[c] += self.momentum * (
                        mean[c] - self.running_mean[c])
                    self.running_var[c] += self.momentum * (
                        unbiased[c] - self.running_var[c])
                self.num_batches_tracked += 1
            return weighted_batch_norm(x, row_weights, self.weight,
                                       self.bias, self.eps)
        y = []
        for c in range(x.shape[1]):
            s = 1 / torch.sqrt(self.running_var[c] + self.eps)
            y.append(self.weight[c] * (x[:, c] - self.running_mean[c]) * s
                     + self.bias[c])
        return torch.stack(y, dim=1).to(x.dtype)
