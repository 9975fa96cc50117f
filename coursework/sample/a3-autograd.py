# %% [markdown]
# # Assignment 3: a gradient of your own in PyTorch
#
# When you have done it you can put an operation that PyTorch does not have
# into a network: its forward pass, its gradient by hand, its buffers, in
# half precision too.
#
# The operation is **weighted batch normalization**. Every example of the
# batch has a weight, and the batch's mean and variance are weighted by it.
# With weights 1 and 0 it is a mask: rows of padding are normalised like all
# others but have no say in the statistics. No call of `torch.nn` computes it.
#
# **You learn to**
#
# - generalise a derivation that you know (chapter 3) and find out which of
#   its terms change;
# - write a `torch.autograd.Function` that keeps as little as it can, and
#   answers `None` where there is no gradient;
# - prove a gradient with `torch.autograd.gradcheck`;
# - keep statistics in float32 where the data is in half precision;
# - write an `nn.Module` whose buffers are saved, move in place and keep no
#   graph.
#
# **Read first**: [chapter 8](../../notebooks/08-pytorch.ipynb) up to "Half
# precision and autocast", and [chapter 3](../../notebooks/03-backward.ipynb)
# up to (3.8). For the running variance
# [chapter 6](../../notebooks/06-train-and-inference.ipynb).
#
# | Question | What | Automatic | By hand | Minutes |
# |---|---|---:|---:|---:|
# | q1 | weighted statistics | 4 | | 30 |
# | q2 | the gradient, as a plain function | 5 | | 60 |
# | q3 | the `torch.autograd.Function` | 6 | | 50 |
# | q4 | the module | 5 | | 40 |
# | q5 | in your own words: memory, and a leak | | 5 | 30 |
# | | **together** | **20** | **5** | **210** |
#
# **Rules**
#
# - You need PyTorch and nothing else; nothing has to be installed on Colab.
#   It runs on a CPU in seconds.
# - Write your code where it says YOUR CODE HERE. Keep the names and the
#   arguments. You may add cells and functions of your own.
# - Two functions are marked "given": leave them as they are. The tests use
#   them to look into your code.
# - Run the public tests: a cell that prints nothing has passed. Hidden tests
#   check more; their comments say what.
# - Restart, run all cells, save, and hand in this one file.

# %%
import torch
from torch import nn

# %% [markdown]
# ## Question 1: weighted statistics (4 points)
#
# A batch `x` is $(N, C)$ or $(N, C, L)$ or $(N, C, H, W)$; let $S$ be the
# number of positions of one channel of one example: 1, $L$ or $H\cdot W$.
# Row $n$ has the weight $w_n \ge 0$, the same for all its channels and
# positions. The share of each of its values in a channel's statistics is
#
# $$a_n = \frac{w_n}{S\,\sum_k w_k},
# \qquad\text{so that}\qquad \sum_{n,s} a_n = 1 ,$$
#
# and with it
#
# $$\mu_c = \sum_{n,s} a_n\,x_{ncs}, \qquad
# \sigma_c^2 = \sum_{n,s} a_n\,(x_{ncs}-\mu_c)^2, \qquad
# v_c = \frac{\sigma_c^2}{1-\sum_{n,s} a_n^2} .$$
#
# $\sigma^2_c$ is what the layer divides by. $v_c$ is the unbiased estimate
# for the running variance: if the values are independent, its expectation is
# the variance of the population. (With equal weights the divisor is
# $1 - 1/m$ with $m = N S$: Bessel's correction.)
#
# Write `weighted_moments`. Compute in float32 at least: a bfloat16 or
# float16 batch has float32 statistics, a float64 batch has float64 ones. The
# tests try float32 data whose mean is far larger than its spread.


# %% answer="q1-moments"
def weighted_moments(x, row_weights):
    """Mean, biased variance and unbiased variance of each channel.

    x: (N, C, *positions), any float type. row_weights: (N,), float or
    bool. Returns mean, var and unbiased, (C,) each: float64 if x is,
    otherwise float32. Raises ValueError unless row_weights is (N,), none
    is negative and at least two values a channel have a weight above 0.
    """
    ### BEGIN SOLUTION
    if row_weights.shape != x.shape[:1]:
        raise ValueError("row_weights must have one weight for each of the "
                         f"{len(x)} rows of x, got {row_weights.shape}")
    positions = x[0, 0].numel()
    if (row_weights < 0).any() or (row_weights > 0).sum() * positions < 2:
        raise ValueError("row_weights must be 0 or more and above 0 for at "
                         f"least two values a channel, got {row_weights}")
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    share = row_weights.to(x.dtype)
    share = share / (positions * share.sum())  # (N,)
    values = x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)  # (N, C, S)
    mean = (values.sum(2) * share[:, None]).sum(0)
    squares = (values - mean[:, None]).square().sum(2)
    var = (squares * share[:, None]).sum(0)
    return mean, var, var / (1 - positions * share.square().sum())
    ### END SOLUTION


# %% test="q1-mask" points=1
# Public test: a mask, with numbers that you can check by hand.
x = torch.tensor([[1.0, 10.0], [3.0, 10.0], [5.0, 40.0], [99.0, -7.0]])
mean, var, unbiased = weighted_moments(x, torch.tensor([1.0, 1.0, 1.0, 0.0]))
for result in (mean, var, unbiased):
    assert result.shape == (2,), "one value a channel, (C,)"
    assert result.dtype == torch.float32
assert torch.allclose(mean, torch.tensor([3.0, 20.0])), "the means"
assert torch.allclose(var, torch.tensor([8 / 3, 200.0])), "the variances"
assert torch.allclose(unbiased, torch.tensor([4.0, 300.0])), "unbiased"
mean, var, unbiased = weighted_moments(x[:2], torch.tensor([1.0, 3.0]))
assert torch.allclose(mean, torch.tensor([2.5, 10.0])), "weights 1 and 3"
assert torch.allclose(var, torch.tensor([0.75, 0.0])), "weights 1 and 3"
assert torch.allclose(unbiased, torch.tensor([2.0, 0.0])), "weights 1 and 3"

# %% test="q1-refused" points=1
# Public test: weights that cannot be used are refused.
x = torch.arange(12.0).reshape(3, 4)
for wrong in ([1.0, 1.0, 1.0, 1.0], [1.0, -0.5, 1.0], [0.0, 0.0, 0.0],
              [0.0, 2.0, 0.0]):
    try:
        weighted_moments(x, torch.tensor(wrong))
        refused = False
    except ValueError:
        refused = True
    assert refused, f"row_weights {wrong} must raise ValueError"
weighted_moments(x[:, :, None] + torch.tensor([0.0, 1.0]),
                 torch.tensor([False, True, False]))  # two values: allowed

# %% test="q1-weights" points=1
# Hidden test: weights of all sizes, with positions, and x left as it was.
### BEGIN HIDDEN TESTS
torch.manual_seed(1)
for shape in ((6, 3), (6, 3, 4), (5, 2, 3, 2)):
    x = torch.randn(shape, dtype=torch.float64) * 3 + 1
    rows = torch.rand(shape[0], dtype=torch.float64) * 4
    rows[1] = 0
    positions = x[0, 0].numel()
    flat = x.flatten(2) if x.dim() > 2 else x[:, :, None]
    values = flat.movedim(1, 2).flatten(0, 1)  # (N * S, C)
    a = rows.repeat_interleave(positions)
    a = (a / a.sum())[:, None]
    mean = (a * values).sum(0)
    var = (a * (values - mean) ** 2).sum(0)
    want = mean, var, var / (1 - (a ** 2).sum())
    before = x.clone(), rows.clone()
    got = weighted_moments(x, rows)
    assert torch.equal(x, before[0]) and torch.equal(rows, before[1]), (
        "the arguments must not be changed")
    for name, g, w in zip(("mean", "var", "unbiased"), got, want,
                          strict=True):
        assert g.shape == w.shape, f"{name} must be (C,)"
        assert g.dtype == torch.float64, f"{name} of float64 data"
        assert torch.allclose(g, w, rtol=1e-9), (
            f"{name} is wrong for weights of all sizes, x {shape}")
### END HIDDEN TESTS

# %% test="q1-precision" points=1
# Hidden test: float32 data with mean 3e4; bfloat16 and float16 data.
### BEGIN HIDDEN TESTS
torch.manual_seed(2)
for dtype, at, spread in ((torch.float32, 3e4, 1.0),
                          (torch.bfloat16, 300.0, 5.0),
                          (torch.float16, 600.0, 5.0)):
    x = (at + spread * torch.randn(400, 3)).to(dtype)
    rows = torch.rand(400)
    a = (rows.double() / rows.double().sum())[:, None]
    exact_mean = (a * x.double()).sum(0)
    exact_var = (a * (x.double() - exact_mean) ** 2).sum(0)
    mean, var, unbiased = weighted_moments(x, rows)
    for t in (mean, var, unbiased):
        assert t.dtype == torch.float32, f"statistics of {dtype} data"
    assert ((mean.double() - exact_mean).abs() < 0.02 * spread).all(), (
        f"the mean of {dtype} data is off")
    assert torch.allclose(var.double(), exact_var, rtol=0.02), (
        f"the variance of {dtype} data is off")
### END HIDDEN TESTS

# %% [markdown]
# ## Question 2: the gradient, as a plain function (5 points)
#
# $$\hat x_{ncs} = (x_{ncs}-\mu_c)\,s_c, \qquad
# s_c = (\sigma_c^2+\varepsilon)^{-1/2}, \qquad
# y_{ncs} = \gamma_c\,\hat x_{ncs} + \beta_c .$$
#
# All rows are normalised, those of weight 0 too. Derive the gradients of a
# loss at $x$, $\gamma$ and $\beta$ from its gradient `dy` at $y$. The
# derivation of (3.8) is your guide. At each step where it says $1/m$, ask
# what that $1/m$ stands for: how far a value moves the statistics, or the
# mean of something? The weights $w$ are constants.
#
# `needs` says which of the three gradients are wanted. What is not wanted is
# `None`, and should cost nothing.


# %% answer="q2-backward"
def weighted_backward(dy, xhat, inv_std, row_weights, weight,
                      needs=(True, True, True)):
    """Gradients at x, weight and bias of weighted batch normalization.

    dy, xhat: (N, C, *positions), the gradient at y and the normalised x.
    inv_std: (C,), s of the equation. row_weights: (N,), float or bool.
    weight: (C,), or None for gamma = 1. needs: three bools. Returns dx
    like xhat, dweight (C,) and dbias (C,). Each is None where needs says
    False; dweight is None too if weight is. Changes no argument.
    """
    ### BEGIN SOLUTION
    n, c = xhat.shape[:2]
    ones = [1] * (xhat.dim() - 2)
    dims = [0, *range(2, xhat.dim())]
    dbias = dy.sum(dims)
    dweight = (dy * xhat).sum(dims)
    dx = None
    if needs[0]:
        rows = row_weights.to(xhat.dtype)
        share = rows / (rows.sum() * xhat[0, 0].numel())
        share = share.view(n, 1, *ones)
        scale = inv_std if weight is None else inv_std * weight
        through_mean = dbias.view(c, *ones)
        through_var = xhat * dweight.view(c, *ones)
        dx = dy - share * (through_mean + through_var)
        dx = dx * scale.view(c, *ones)
    wanted = needs[1] and weight is not None
    return dx, dweight if wanted else None, dbias if needs[2] else None
    ### END SOLUTION


# %% test="q2-dense" points=2
# Public test: four rows, one of weight 0, one of weight 2, with numbers.
xhat = torch.tensor([[-1.0, 0.5], [1.0, 0.5], [0.0, -0.5], [3.0, 2.0]],
                    dtype=torch.float64)
dy = torch.tensor([[1.0, 0.0], [2.0, 4.0], [-1.0, 2.0], [4.0, 1.0]],
                  dtype=torch.float64)
inv_std = torch.tensor([0.5, 2.0], dtype=torch.float64)
rows = torch.tensor([1.0, 1.0, 2.0, 0.0], dtype=torch.float64)
weight = torch.tensor([2.0, -1.0], dtype=torch.float64)
dx, dweight, dbias = weighted_backward(dy, xhat, inv_std, rows, weight)
assert dx.shape == (4, 2) and dweight.shape == dbias.shape == (2,)
assert torch.allclose(dweight, torch.tensor([13.0, 3.0]).double()), "dweight"
assert torch.allclose(dbias, torch.tensor([6.0, 7.0]).double()), "dbias"
want = torch.tensor([[2.75, 4.25], [-2.75, -3.75], [-4.0, 1.5], [4.0, -2.0]])
assert torch.allclose(dx, want.double()), "dx"

# %% test="q2-images" points=2
# Hidden test: dx with positions, for weights of all sizes and for a mask.
### BEGIN HIDDEN TESTS
torch.manual_seed(3)
for shape, mask in (((5, 3), False), ((5, 3, 4), True),
                    ((4, 2, 3, 2), False)):
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    rows = torch.rand(shape[0], dtype=torch.float64) * 3
    rows = rows > 1 if mask else rows
    rows[:2] = True
    weight = torch.randn(shape[1], dtype=torch.float64)
    dy = torch.randn(shape, dtype=torch.float64)
    dims = [0, *range(2, x.dim())]
    column = [-1] + [1] * (x.dim() - 2)
    a = rows.double().view(-1, *[1] * (x.dim() - 1)).expand(shape)
    a = a / a.sum(dims, keepdim=True)
    mean = (a * x).sum(dims, keepdim=True)
    var = (a * (x - mean) ** 2).sum(dims, keepdim=True)
    xhat = (x - mean) * (var + 0.1) ** -0.5
    want, = torch.autograd.grad(xhat * weight.view(column), x, dy)
    inv_std = (var.detach() + 0.1).pow(-0.5).flatten()
    dx = weighted_backward(dy, xhat.detach(), inv_std, rows, weight)[0]
    assert dx.shape == shape, f"dx must have the shape of x, {shape}"
    assert dx.dtype == torch.float64, "dx must have xhat's type"
    assert torch.allclose(dx, want, rtol=1e-9, atol=1e-11), (
        f"dx is wrong for x {shape}, "
        + ("a mask" if mask else "weights of all sizes"))
### END HIDDEN TESTS

# %% test="q2-needs" points=1
# Hidden test: dweight and dbias with positions, no weight, what is not
# needed, and arguments left as they were.
### BEGIN HIDDEN TESTS
torch.manual_seed(4)
xhat, dy = torch.randn(2, 4, 3, 5)
inv_std, weight = torch.rand(2, 3) + 0.5
rows = torch.tensor([1.0, 0.0, 2.0, 2.5])
dgamma = (dy.double() * xhat.double()).sum((0, 2)).float()
dbeta = dy.double().sum((0, 2)).float()
args = dy, xhat, inv_std, rows, weight
copies = [t.clone() for t in args]
for needs in ((True, True, True), (False, True, True), (True, False, True),
              (True, True, False), (False, False, True)):
    got = weighted_backward(*args, needs)
    assert len(got) == 3, "three gradients, None among them"
    for name, g, needed in zip(("dx", "dweight", "dbias"), got, needs):
        assert (g is not None) == needed, f"{name} for needs {needs}"
    if needs[1]:
        assert got[1].shape == (3,), "dweight must be (C,)"
        assert torch.allclose(got[1], dgamma, atol=1e-4), "dweight is off"
    if needs[2]:
        assert got[2].shape == (3,), "dbias must be (C,)"
        assert torch.allclose(got[2], dbeta, atol=1e-4), "dbias is off"
    for t, copy in zip(args, copies):
        assert torch.equal(t, copy), "an argument was changed"
one = weighted_backward(dy, xhat, inv_std, rows, torch.ones(3))[0].clone()
none = weighted_backward(dy, xhat, inv_std, rows, None)
assert none[1] is None, "without weight there is no dweight"
assert torch.allclose(none[0], one, atol=1e-5), "no weight means weight 1"
### END HIDDEN TESTS

# %% [markdown]
# ## Question 3: telling autograd (6 points)
#
# Put the forward pass and the gradient into a `torch.autograd.Function`, and
# a function around its `apply`. You may write `forward` with `ctx`, as here,
# or `forward` and `setup_context`, as in chapter 8.
#
# - `y` has the type of `x`; in between compute in float32 at least, in both
#   directions. `weight` and `bias` are float32 where `x` is half precision.
# - What backward needs goes through `ctx.save_for_backward`, and only **one**
#   array of the size of `x` may be kept (in float32 at most). You choose
#   which; question 5 asks why.
# - Inputs without a gradient answer `None`: what is `None` itself, `eps`, and
#   `row_weights`, which are constants even if they ask for a gradient.
# - `gradcheck` must hold in float64.


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
    """Weighted batch normalization with its gradient by hand."""

    @staticmethod
    def forward(ctx, x, row_weights, weight, bias, eps):
        """Normalise x (N, C, *positions) with weighted statistics."""
        ### BEGIN SOLUTION
        mean, var, _ = weighted_moments(x, row_weights)
        inv_std = (var + eps).rsqrt()
        ctx.save_for_backward(x, row_weights, weight, mean, inv_std)
        y = WeightedBatchNorm.normalised(x, mean, inv_std)
        if weight is not None:
            y = y * weight.view(-1, *[1] * (x.dim() - 2))
        if bias is not None:
            y = y + bias.view(-1, *[1] * (x.dim() - 2))
        return y.to(x.dtype)
        ### END SOLUTION

    @staticmethod
    def backward(ctx, dy):
        """The gradient of each of the five inputs, or None."""
        ### BEGIN SOLUTION
        x, row_weights, weight, mean, inv_std = ctx.saved_tensors
        xhat = WeightedBatchNorm.normalised(x, mean, inv_std)
        grads = weighted_backward(
            dy.to(xhat.dtype), xhat, inv_std, row_weights, weight,
            [ctx.needs_input_grad[i] for i in (0, 2, 3)])
        return grads[0], None, grads[1], grads[2], None

    @staticmethod
    def normalised(x, mean, inv_std):
        """xhat, like x but in the type of mean and inv_std (C,)."""
        column = -1, *[1] * (x.dim() - 2)
        return (x - mean.view(column)) * inv_std.view(column)
        ### END SOLUTION


def weighted_batch_norm(x, row_weights, weight=None, bias=None, eps=1e-5):
    """Normalise each channel of x by its weighted statistics.

    x: (N, C, *positions), any float type. row_weights: (N,), float or
    bool, no gradient. weight, bias: (C,) or None. Returns y, like x.
    """
    ### BEGIN SOLUTION
    return WeightedBatchNorm.apply(x, row_weights, weight, bias, eps)
    ### END SOLUTION


# %% test="q3-forward" points=1
# Public test: values that you can check by hand (eps is 1).
x = torch.tensor([[1.0, 0.0], [5.0, 4.0], [7.0, 20.0]])
weight, bias = torch.tensor([2.0, 3.0]), torch.tensor([10.0, 0.0])
rows = torch.tensor([True, True, False])
y = weighted_batch_norm(x, rows, weight, bias, 1.0)
assert y.shape == x.shape and y.dtype == torch.float32
root = 5 ** 0.5
want = torch.tensor([[10 - 4 / root, -6 / root], [10 + 4 / root, 6 / root],
                     [10 + 8 / root, 54 / root]])
assert torch.allclose(y, want), "y"
y = weighted_batch_norm(x, rows)
want = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [2.0, 9.0]])
assert torch.allclose(y, want, atol=1e-3), "without weight and bias"

# %% test="q3-gradcheck" points=1
# Public test: gradcheck, in float64.
torch.manual_seed(5)
inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True)
          for shape in ((4, 2), 2, 2)]
rows = torch.tensor([1.0, 0.5, 2.0, 0.0], dtype=torch.float64)


def run(x, weight, bias):
    """Weighted batch normalization with these rows."""
    return weighted_batch_norm(x, rows, weight, bias, 0.1)


assert run(*inputs).shape == (4, 2), "y must have the shape of x"
assert torch.autograd.gradcheck(run, inputs)

# %% test="q3-none" points=1
# Hidden test: no weight, no bias, some inputs without a gradient.
### BEGIN HIDDEN TESTS
torch.manual_seed(6)
x = torch.randn(5, 3, 2, dtype=torch.float64)
weight, bias = torch.rand(2, 3, dtype=torch.float64) + 0.5
rows = torch.rand(5, dtype=torch.float64)
leaf, gamma, beta = (t.clone().requires_grad_() for t in (x, weight, bias))
before = x.clone()
for args, wanted in (((leaf, rows, None, None), [leaf]),
                     ((x, rows, gamma, None), [gamma]),
                     ((x, rows, None, beta), [beta]),
                     ((leaf, rows, weight, beta), [leaf, beta])):
    y = weighted_batch_norm(*args)
    grads = torch.autograd.grad(y.sum(), wanted)
    for g, t in zip(grads, wanted):
        assert g.shape == t.shape, "a gradient has its input's shape"
y = weighted_batch_norm(x, rows, None, beta)
grad, = torch.autograd.grad(y.sum(), beta)
assert torch.allclose(grad, torch.full_like(beta, 10.0)), "bias alone"
assert not weighted_batch_norm(x, rows).requires_grad
asking = rows.clone().requires_grad_()
y = weighted_batch_norm(leaf, asking, gamma, beta)
grad = torch.autograd.grad((y ** 3).sum(), asking, allow_unused=True)[0]
assert grad is None or not grad.any(), "row_weights are constants"
assert torch.equal(x, before), "x must not be changed"
### END HIDDEN TESTS

# %% test="q3-half" points=1
# Hidden test: y for bfloat16 and float16 data.
### BEGIN HIDDEN TESTS
torch.manual_seed(7)
for dtype, at, spread in ((torch.bfloat16, 300.0, 5.0),
                          (torch.float16, 700.0, 5.0)):
    x = (at + spread * torch.randn(80, 3, 4)).to(dtype)
    rows = torch.rand(80)
    weight, bias = torch.tensor([1.0, 0.5, 1.5]), torch.zeros(3)
    a = (rows.double() / rows.double().sum() / 4)[:, None, None]
    d = x.double() - (a * x.double()).sum((0, 2), keepdim=True)
    var = (a * d ** 2).sum((0, 2), keepdim=True)
    want = d * (var + 1e-5) ** -0.5 * weight[:, None].double()
    y = weighted_batch_norm(x, rows, weight, bias)
    assert y.shape == x.shape and y.dtype == dtype, "y has the type of x"
    assert (y.double() - want).abs().max() < 0.05, f"y of {dtype} data"
### END HIDDEN TESTS

# %% test="q3-half-gradient" points=1
# Hidden test: gradients for bfloat16 data.
### BEGIN HIDDEN TESTS
torch.manual_seed(8)
x = (300 + 5 * torch.randn(80, 3, 4)).bfloat16()
dy = (1 + torch.randn(80, 3, 4)).bfloat16()
rows, weight = torch.rand(80), torch.tensor([1.0, 0.5, 1.5])
exact, gamma = x.double().requires_grad_(), weight.double().requires_grad_()
a = (rows.double() / rows.double().sum() / 4)[:, None, None]
d = exact - (a * exact).sum((0, 2), keepdim=True)
var = (a * d ** 2).sum((0, 2), keepdim=True)
out = d * (var + 1e-5) ** -0.5 * gamma[:, None]
want = torch.autograd.grad(out, [exact, gamma], dy.double())
x.requires_grad_(), weight.requires_grad_()
bias = torch.zeros(3, requires_grad=True)
y = weighted_batch_norm(x, rows, weight, bias)
dx, dweight, dbias = torch.autograd.grad(y, [x, weight, bias], dy)
assert dx.dtype == torch.bfloat16, "dx has the type of x"
assert dweight.dtype == dbias.dtype == torch.float32
for name, g, w in (("dx", dx, want[0]), ("dweight", dweight, want[1]),
                   ("dbias", dbias, dy.double().sum((0, 2)))):
    assert (g - w).abs().max() < 0.02 * w.abs().max(), (
        f"{name} of bfloat16 data")
### END HIDDEN TESTS

# %% test="q3-saved" points=1
# Hidden test: what is kept for backward is one array of the size of x.
### BEGIN HIDDEN TESTS
torch.manual_seed(9)
x, rows = torch.randn(64, 8, 16), torch.rand(64)
kept = saved_bytes(x, rows, torch.ones(8), torch.zeros(8))
size = x.numel() * 4
assert kept > 0.9 * size, ("what backward needs goes through "
                           "ctx.save_for_backward")
assert kept < 1.5 * size, f"{kept / size:.1f} arrays are kept, one may be"
### END HIDDEN TESTS

# %% [markdown]
# ## Question 4: the module (5 points)
#
# `WeightedBatchNorm1d(num_features, eps=1e-5, momentum=0.1)` has the
# parameters `weight` and `bias` and the buffers `running_mean`,
# `running_var` and `num_batches_tracked`, with the names, shapes and first
# values of `nn.BatchNorm1d`, so that the two exchange state dicts.
#
# - Training: `layer(x, row_weights)`, or `layer(x)` for equal weights. It
#   normalises by the batch's weighted statistics and moves the running ones
#   towards $\mu$ and $v$ of question 1; `momentum` is the share of the new
#   value, as in PyTorch.
# - Evaluation: the running statistics, nothing moves, `row_weights` has no
#   effect.
# - The buffers are updated **in place** and hang on **no graph**. Whoever
#   holds a buffer (a data-parallel wrapper, a captured GPU graph) must see
#   the new values in the tensor that it has.


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
    """Batch normalization whose statistics are weighted by row."""

    def __init__(self, num_features, eps=1e-5, momentum=0.1):
        """Parameters and buffers as nn.BatchNorm1d has them."""
        ### BEGIN SOLUTION
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0))
        ### END SOLUTION

    def forward(self, x, row_weights=None):
        """x (N, C, *positions) to y, like x; row_weights (N,) or None."""
        ### BEGIN SOLUTION
        if not self.training:
            column = -1, *[1] * (x.dim() - 2)
            scale = self.weight * (self.running_var + self.eps).rsqrt()
            y = (x - self.running_mean.view(column)) * scale.view(column)
            return (y + self.bias.view(column)).to(x.dtype)
        if row_weights is None:
            row_weights = torch.ones(len(x), device=x.device)
        self.track(x, row_weights)
        return weighted_batch_norm(x, row_weights, self.weight, self.bias,
                                   self.eps)

    @torch.no_grad()
    def track(self, x, row_weights):
        """Move the running statistics towards those of the batch x."""
        mean, _, unbiased = weighted_moments(x, row_weights)
        self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
        self.running_var.lerp_(unbiased.to(self.running_var), self.momentum)
        self.num_batches_tracked.add_(1)
        ### END SOLUTION


# %% test="q4-state" points=1
# Public test: the state dict, to and from nn.BatchNorm1d.
layer, theirs = WeightedBatchNorm1d(3), nn.BatchNorm1d(3)
state = layer.state_dict()
assert list(state) == list(theirs.state_dict()), "names, in this order"
for name, value in theirs.state_dict().items():
    assert state[name].shape == value.shape, f"the shape of {name}"
    assert torch.equal(state[name], value), f"the first value of {name}"
theirs.running_mean += 2
theirs.running_var *= 4
theirs.load_state_dict(state)
theirs.running_mean += 5
layer.load_state_dict(theirs.state_dict())
layer.eval()
assert torch.allclose(layer(torch.full((2, 3), 6.0)), torch.ones(2, 3))


# %% test="q4-running" points=2
# Hidden test: the running statistics of two steps, with positions and
# with weights. (A mistake in question 1 is not counted twice.)
### BEGIN HIDDEN TESTS
def moments(x, rows):
    """Mean and unbiased variance for whole weights: as repetitions."""
    flat = x.flatten(2) if x.dim() > 2 else x[:, :, None]
    a = rows.repeat_interleave(flat.shape[2])
    values = flat.movedim(1, 2).flatten(0, 1)
    mean = (a[:, None] * values).sum(0) / a.sum()
    var = (a[:, None] * (values - mean) ** 2).sum(0) / a.sum()
    return mean, var, var / (1 - (a / a.sum()).square().sum())


torch.manual_seed(10)
mask = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0])
for shape, rows in (((5, 3), None), ((3, 3, 2), None), ((5, 3), mask)):
    layer = WeightedBatchNorm1d(3, momentum=0.3)
    layer.train()
    passed = [[torch.zeros(3), torch.ones(3)] for _ in range(2)]
    for _ in range(2):
        x = torch.randn(shape) * 2 + 1
        used = torch.ones(len(x)) if rows is None else rows
        for source, way in zip((moments, weighted_moments), passed):
            mean, _, unbiased = source(x.clone(), used.clone())
            way[0] = 0.7 * way[0] + 0.3 * mean
            way[1] = 0.7 * way[1] + 0.3 * unbiased
        y = layer(x) if rows is None else layer(x, rows)
        assert y.shape == x.shape, "y must have the shape of x"
    state = layer.state_dict()
    for i, name in enumerate(("running_mean", "running_var")):
        assert state[name].shape == (3,), f"the shape of {name}"
        assert any(torch.allclose(state[name], way[i], rtol=1e-4)
                   for way in passed), (
            f"{name} after two steps, x {shape}, "
            + ("equal weights" if rows is None else "a mask"))
    assert state["num_batches_tracked"].item() == 2, "two batches"
### END HIDDEN TESTS

# %% test="q4-eval" points=1
# Hidden test: evaluation mode, in float32 and bfloat16.
### BEGIN HIDDEN TESTS
torch.manual_seed(11)
theirs = nn.BatchNorm1d(3, eps=0.5)
theirs.running_mean.copy_(torch.tensor([1.0, -2.0, 0.5]))
theirs.running_var.copy_(torch.tensor([4.0, 0.25, 1.0]))
with torch.no_grad():
    theirs.weight.copy_(torch.tensor([2.0, -1.0, 0.5]))
    theirs.bias.copy_(torch.tensor([0.0, 1.0, -1.0]))
layer = WeightedBatchNorm1d(3, eps=0.5)
layer.load_state_dict(theirs.eval().state_dict())
layer.eval()
for x in (torch.randn(4, 3), torch.randn(4, 3, 2)):
    want = theirs(x).detach()
    rows = torch.rand(4)
    for y in (layer(x).detach(), layer(x, rows).detach()):
        assert y.shape == x.shape, "y must have the shape of x"
        assert torch.allclose(y, want, atol=1e-5), (
            "y in evaluation mode: the running statistics, no weights")
assert layer(torch.randn(2, 3).bfloat16()).dtype == torch.bfloat16
state = layer.state_dict()
for name, value in theirs.state_dict().items():
    assert torch.equal(state[name], value), f"evaluation changed {name}"
### END HIDDEN TESTS

# %% test="q4-step" points=1
# Hidden test: buffers in place and without a graph; gradients of a step.
# (A mistake in questions 1 to 3 is not counted twice.)
### BEGIN HIDDEN TESTS
torch.manual_seed(12)
x, dy = torch.randn(2, 6, 2)
rows = torch.tensor([1.0, 2.0, 0.0, 1.0, 1.0, 3.0])
twice = x[[0, 1, 1, 3, 4, 5, 5, 5]].double()  # weights as repetitions
mean, var = twice.mean(0), twice.var(0, correction=0)
xhat = (x.double() - mean) / (var + 1e-5).sqrt()
leaves = torch.ones(2).requires_grad_(), torch.zeros(2).requires_grad_()
y = weighted_batch_norm(x.clone(), rows.clone(), *leaves)
wants = [[(dy.double() * xhat).sum(0).float(), dy.sum(0)],
         torch.autograd.grad(y, leaves, dy)]
seen = probe(WeightedBatchNorm1d(2), x, rows, dy)
assert seen["in place"], "the running buffers must be updated in place"
assert not seen["graph"], "a running buffer hangs on a graph"
assert seen["x"].shape == (6, 2), "the gradient at x"
for i, name in enumerate(("weight", "bias")):
    assert seen[name].shape == (2,), f"the gradient at {name}"
    assert any(torch.allclose(seen[name], want[i], atol=1e-4)
               for want in wants), f"the gradient at {name}"
### END HIDDEN TESTS

# %% [markdown]
# ## Question 5: memory, and a leak (5 points, by hand)
#
# Answer in 150 to 300 words.
#
# **a.** A layer of yours gets $64 \times 256 \times 56 \times 56$ values in
# bfloat16 from a convolution. Compare two ways of writing backward: save
# `x` and compute $\hat x$ again, or save $\hat x$ in float32. Give the bytes
# that each keeps, say what else in a network keeps one of these arrays
# alive anyway, what each costs in time, and which you chose.
#
# **b.** A colleague writes in the training branch, without `no_grad`,
# `self.running_mean = 0.9 * self.running_mean + 0.1 * mean`, where `mean`
# comes from plain tensor operations on `x`. Say what is leaked, how it shows
# in a long run, and give two ways to mend it. Why does the same line leak
# nothing if `mean` is computed inside `WeightedBatchNorm.forward` and
# returned as an output that is marked as non-differentiable?

# %% [markdown] text="q5" points=5
# ### BEGIN SOLUTION
# **a.** The array has $64\cdot256\cdot56\cdot56 = 51{,}380{,}224$ values.
# `x` in bfloat16 is 102.8 MB (98 MiB), $\hat x$ in float32 is 205.5 MB
# (196 MiB). The convolution's output `x` is made for this layer: a
# convolution saves its *input*, not its output, so saving `x` is what keeps
# it alive, and saving $\hat x$ instead lets `x` be freed after the forward
# pass. So the true comparison is 103 against 206 MB for each layer (in
# float32 it would be equal). If something else saves `x` as well, such as a
# residual branch or an activation that needs its input, saving `x` costs
# nothing more. Recomputing $\hat x$ is one subtraction and one
# multiplication a value, in a pass that reads an array of that size anyway;
# the layer is bound by memory traffic, and reading 2 bytes a value in place
# of 4 is less traffic, so it need not be slower. I save `x`, and the mean
# and $s$, which are 256 numbers each. (Saving $\hat x$ is as defensible in
# float32, where it saves two operations.)
#
# **b.** `mean` hangs on the graph of `x`: its history reaches back through
# all layers before. The new buffer hangs on `mean` and on the old buffer, so
# each step's graph, with the activations that it saved, stays reachable for
# as long as the buffer lives. Memory grows by about one step's graph a step,
# until the process runs out; `copy.deepcopy` of the layer fails. To mend
# it: update under `torch.no_grad()`, in place; or take the statistics from
# `mean.detach()`. Inside a `Function`'s `forward` nothing is recorded, and
# an output marked as non-differentiable has no `grad_fn` and needs no
# gradient. There is nothing for the buffer to hold on to.
#
# **Rubric.** One point each, no halves:
#
# 1. Both sizes right within 2 %: 103 MB (or 98 MiB) and 206 MB (196 MiB),
#    or the number of values and the factor 2.
# 2. Says what else holds an array: for example that the convolution keeps
#    its input and not `x`, or that a residual branch does keep `x`; **or**
#    that saving $\hat x$ saves memory only if `x` can then be freed.
# 3. Makes a choice that fits the bytes given and names the price in time
#    (one more pass of cheap arithmetic, or memory traffic). Either choice
#    earns the point; a choice without a reason does not.
# 4. The leak: the buffer keeps each step's graph, and so its saved
#    activations, **and** the symptom (memory grows with the number of
#    steps, or `deepcopy` fails). "It uses more memory" alone: no point.
# 5. Two ways to mend it (among: `no_grad`, `detach`, in-place update under
#    `no_grad`, non-differentiable output) **and** the reason for the last
#    sentence: nothing is recorded in `forward`, so the output has no
#    `grad_fn`.
# ### END SOLUTION
