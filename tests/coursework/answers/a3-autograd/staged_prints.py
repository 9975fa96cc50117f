# %%
# A graph of small steps, each with its own backward; a dict as the cache;
# tries things out in extra cells and prints. Keeps x.
import torch
import torch as t
from torch import nn

print("start", t.__version__)


# %%
def axes(x):
    return [i for i in range(x.ndim) if i != 1]


def spread(v, x):
    """v (C,) over x."""
    return v.reshape([-1 if i == 1 else 1 for i in range(x.ndim)])


def row_share(rows, x):
    """The share of each value, in the shape of x."""
    a = rows.to(x.dtype).reshape([-1] + [1] * (x.ndim - 1))
    a = a * t.ones_like(x)
    return a / a[:, :1].sum()


# %% answer="q1-moments"
def weighted_moments(x, row_weights):
    if list(row_weights.shape) != [x.shape[0]]:
        raise ValueError("shape of row_weights")
    if bool((row_weights.float() < 0).any()):
        raise ValueError("sign of row_weights")
    if (row_weights.float() > 0).sum().item() * x[0, 0].numel() <= 1:
        raise ValueError("row_weights leave too little")
    x = x.to(t.float64 if x.dtype == t.float64 else t.float32)
    a = row_share(row_weights, x)
    mu = (a * x).sum(axes(x))
    dev = x - spread(mu, x)
    var = (a * dev * dev).sum(axes(x))
    return mu, var, var / (1 - (a ** 2).sum(axes(x)))


# %%
print(weighted_moments(t.randn(5, 2), t.ones(5)))


# %% answer="q2-backward"
def weighted_backward(dy, xhat, inv_std, row_weights, weight,
                      needs=(True, True, True)):
    grads = {"x": None, "weight": None, "bias": None}
    if needs[2]:
        grads["bias"] = dy.sum(axes(dy))
    if needs[1] and weight is not None:
        grads["weight"] = (dy * xhat).sum(axes(dy))
    if needs[0]:
        a = row_share(row_weights, xhat)
        dxhat = dy if weight is None else dy * spread(weight, dy)
        s = spread(inv_std, dy)
        dev = xhat / s
        # xhat = dev * s, s = (var + eps) ** -1/2
        ds = (dxhat * dev).sum(axes(dy))
        dvar = -0.5 * ds * inv_std ** 3
        # var = sum a dev^2, dev = x - mean, mean = sum a x
        ddev = dxhat * s + 2 * a * dev * spread(dvar, dy)
        grads["x"] = ddev - a * spread(ddev.sum(axes(dy)), dy)
    return grads["x"], grads["weight"], grads["bias"]


# %%
try:
    print(weighted_backward(t.ones(3, 2), t.ones(3, 2), t.ones(2),
                            t.ones(3), None)[0].shape)
    raise RuntimeError("something else went wrong in this cell")
finally:
    print("tried")


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


def _forward(x, rows, weight, bias, eps):
    mean, var, _ = weighted_moments(x, rows)
    cache = {"mean": mean, "s": t.pow(var + eps, -0.5)}
    cache["xhat"] = (x - spread(mean, x)) * spread(cache["s"], x)
    y = cache["xhat"]
    if weight is not None:
        y = y * spread(weight, x)
    if bias is not None:
        y = y + spread(bias, x)
    return y.to(dtype=x.dtype), cache


class WeightedBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, row_weights, weight, bias, eps):
        y, cache = _forward(x, row_weights, weight, bias, eps)
        ctx.eps = eps
        ctx.save_for_backward(x, row_weights, weight)
        return y.clone()

    @staticmethod
    def backward(ctx, dy):
        x, rows, weight = ctx.saved_tensors
        cache = _forward(x, rows, None, None, ctx.eps)[1]
        wide = dy.to(cache["s"].dtype)
        dx, dw, db = weighted_backward(wide, cache["xhat"], cache["s"],
                                       rows, weight)
        out = [dx, None, dw, db, None]
        return tuple(g if need else None
                     for g, need in zip(out, ctx.needs_input_grad))


def weighted_batch_norm(x, row_weights, weight=None, bias=None, eps=1e-5):
    return WeightedBatchNorm.apply(x, row_weights, weight, bias, eps)


# %%
leaf = t.randn(4, 2, dtype=t.float64, requires_grad=True)
print(t.autograd.gradcheck(
    lambda x: weighted_batch_norm(x, t.ones(4), eps=0.1), leaf))


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
        self.weight = nn.Parameter(t.ones(num_features))
        self.bias = nn.Parameter(t.zeros(num_features))
        self.register_buffer("running_mean", t.zeros(num_features))
        self.register_buffer("running_var", t.ones(num_features))
        self.register_buffer("num_batches_tracked", t.tensor(0))

    def forward(self, x, row_weights=None):
        if not self.training:
            s = t.rsqrt(self.running_var + self.eps)
            y = (x - spread(self.running_mean, x)) * spread(s, x)
            y = y * spread(self.weight, x) + spread(self.bias, x)
            return y.to(x.dtype)
        if row_weights is None:
            row_weights = t.full((x.shape[0],), 2.5)  # any, if all equal
        mean, _, v = (u.detach() for u in weighted_moments(x, row_weights))
        self.running_mean.data.lerp_(mean, self.momentum)
        self.running_var.data.lerp_(v, self.momentum)
        self.num_batches_tracked.data += 1
        return weighted_batch_norm(x, row_weights, self.weight, self.bias,
                                   self.eps)
