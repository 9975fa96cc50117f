"""The PyTorch layers against torch.nn's, and what they refuse."""

import copy
import importlib.util
import inspect
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacrev, stack_module_state, vmap
from torch.optim.swa_utils import update_bn
from torch.testing._internal import common_modules
from torch.utils.checkpoint import checkpoint

from normlab import torch_layers as tl
from tools.notebooks import ROOT

torch.set_num_threads(1)
NAMES = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d"]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
# In units of the largest value; at half precision two steps of rounding.
RTOL = {torch.float64: 1e-11, torch.float32: 2e-5, torch.float16: 2e-3,
        torch.bfloat16: 1.6e-2}
MODES = pytest.mark.parametrize("training", [True, False],
                                ids=["train", "eval"])
SHAPES_BY_AXES = {2: "BatchNorm1d", 4: "BatchNorm2d"}
SHAPES = {(8, 5): "BatchNorm1d", (2, 5): "BatchNorm1d",
          (4, 5, 7): "BatchNorm1d", (3, 5, 4, 6): "BatchNorm2d",
          (2, 5, 1, 1): "BatchNorm2d", (2, 5, 2, 3, 4): "BatchNorm3d"}


def close(ours, theirs, rtol=None, kind=True):
    """Equal up to rounding, of the same shape, type and device."""
    assert ours.shape == theirs.shape and ours.device == theirs.device
    assert not kind or ours.dtype == theirs.dtype
    rtol = rtol or RTOL[theirs.dtype]
    a, b = ours.detach().double(), theirs.detach().double()
    scale = max(1, b.abs().max().item()) if b.numel() else 1
    assert torch.isfinite(a).all() == torch.isfinite(b).all()
    assert (a - b).abs().max().item() <= rtol * scale if a.numel() else True


def pair(name, *args, seed=0, **options):
    """Our layer and torch.nn's with the same random parameters."""
    ours = getattr(tl, name)(*args, **options)
    theirs = getattr(nn, name)(*args, **options)
    torch.manual_seed(seed)
    for p in theirs.parameters():
        nn.init.normal_(p)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def gradients(layer, x, twice=False):
    """The gradients of an uneven loss at x and the parameters, and, if
    `twice`, those of a function of these gradients."""
    leaves = [x, *layer.parameters()]
    y = layer(x)
    loss = (y.float() if y.dtype.itemsize == 2 else y).sin().sum()
    first = torch.autograd.grad(loss, leaves, create_graph=twice)
    if not twice:
        return y, first
    total = sum((g * torch.linspace(-1, 2, g.numel()).to(g).view(
        g.shape)).sum() for g in first)
    return y, first + torch.autograd.grad(total, leaves)


def same_step(ours, theirs, x, twice=False):
    """One forward and backward of both on copies of x; all is equal."""
    mine, yours = (x.detach().clone().requires_grad_() for _ in range(2))
    (y, got), (want_y, want) = (gradients(ours, mine, twice),
                                gradients(theirs, yours, twice))
    close(y, want_y)
    assert y.stride() == want_y.stride()
    for a, b in zip(got, want, strict=True):
        close(a, b, 4 * max(RTOL[x.dtype], RTOL[b.dtype]))
    for (name, a), (other, b) in zip(ours.named_buffers(),
                                     theirs.named_buffers(), strict=True):
        assert name == other
        close(a, b, RTOL[x.dtype] if a.is_floating_point() else 1e-9)


def own_inputs(name, device, dtype, training):
    """PyTorch's own inputs for its module: constructors and inputs."""
    info = next(m for m in common_modules.module_db
                if m.module_cls is getattr(nn, name))
    torch.manual_seed(0)
    return info, info.module_inputs_func(
        info, device=device, dtype=dtype, requires_grad=False,
        training=training)


@pytest.mark.parametrize("channels_last", [False, True])
@MODES
@pytest.mark.parametrize("dtype", list(RTOL), ids=str)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("device", DEVICES)
def test_pytorchs_own_module_inputs(device, name, dtype, training,
                                    channels_last):
    _, inputs = own_inputs(name, device, dtype, training)
    assert len(inputs) > 6
    last = {4: torch.channels_last, 5: torch.channels_last_3d}
    for case in inputs:
        args = case.constructor_input.args
        ours, theirs = pair(name, *args, device=device, dtype=dtype,
                            **case.constructor_input.kwargs)
        ours.train(training), theirs.train(training)
        x = case.forward_input.args[0]
        if channels_last and x.dim() in last:
            x = x.to(memory_format=last[x.dim()])
        for _ in range(2):
            same_step(ours, theirs, x, twice=dtype.itemsize > 2)


@pytest.mark.parametrize("name", NAMES)
def test_pytorchs_own_error_inputs(name):
    info, _ = own_inputs(name, "cpu", torch.float32, True)
    cases = info.module_error_inputs_func(
        info, device="cpu", dtype=torch.float32, requires_grad=False,
        training=True)
    assert cases
    for case in cases:
        made = case.module_error_input
        layer = getattr(tl, name)(*made.constructor_input.args,
                                  **made.constructor_input.kwargs)
        with pytest.raises(case.error_type, match=case.error_regex):
            layer(*made.forward_input.args)


@pytest.mark.parametrize("track", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0, None])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_steps_agree_with_pytorch(shape, momentum, bias, track):
    ours, theirs = pair(SHAPES[shape], 5, momentum=momentum, bias=bias,
                        track_running_stats=track, dtype=torch.float64)
    torch.manual_seed(1)
    for step in range(4):
        if step == 3:
            ours.eval(), theirs.eval()
        x = 3 + 2 * torch.randn(shape, dtype=torch.float64)
        same_step(ours, theirs, x)


@pytest.mark.parametrize("affine", [True, False])
@MODES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_gradcheck_gradgradcheck_and_the_third_order(device, shape,
                                                     training, affine):
    torch.manual_seed(0)
    layer = getattr(tl, SHAPES[shape])(
        5, eps=0.1, momentum=0.0, affine=affine, device=device,
        dtype=torch.float64).train(training)
    params = dict(layer.named_parameters())
    for p in params.values():
        nn.init.normal_(p)
    args = [torch.randn(shape, dtype=torch.float64, device=device,
                        requires_grad=True), *params.values()]

    def run(x, *p):
        return functional_call(layer, dict(zip(params, p)), (x,))

    def slope(*args):
        total = (run(*args) ** 3).sum()
        return torch.autograd.grad(total, args, create_graph=True)

    fast = {"fast_mode": True}  # random projections of the Jacobians
    assert torch.autograd.gradcheck(run, args)
    assert torch.autograd.gradgradcheck(run, args, **fast)
    assert torch.autograd.gradgradcheck(slope, args, **fast)


def test_the_functions_alone_agree_with_autograd():
    torch.manual_seed(0)
    x, dy, v = torch.randn(3, 4, 3, 5, dtype=torch.float64)
    weight, u, w = torch.randn(3, 3, dtype=torch.float64)
    leaves = [t.requires_grad_() for t in (dy, x, weight)]
    y = nn.functional.batch_norm(x, None, None, weight, 0 * weight, True,
                                 eps=0.1)
    dx, dweight = torch.autograd.grad(y, (x, weight), dy, create_graph=True)
    ours = tl.batch_norm_forward(x, weight, None, 0.1)
    stats = ours[1], ours[2], ours[4]
    got = tl.batch_norm_backward(dy, x, weight, *stats)
    close(ours[0], y)
    for a, b in zip(got, (dx, dweight, dy.sum((0, 2))), strict=True):
        close(a, b)
    total = (dx * v).sum() + dweight @ u + dy.sum((0, 2)) @ w
    want = torch.autograd.grad(total, leaves)
    got = tl.batch_norm_double_backward(v, u, w, dy, x, weight, 0.1)
    for a, b in zip(got, want, strict=True):
        close(a, b)


@pytest.mark.parametrize("wanted", [(0, 1, 1), (1, 0, 1), (1, 1, 0),
                                    (1, 0, 0), (0, 1, 0), (0, 0, 1)], ids=str)
@MODES
def test_double_backward_of_some_of_the_inputs(wanted, training):
    found = []
    for layer in pair("BatchNorm1d", 3, eps=0.1, dtype=torch.float64):
        layer.train(training)
        torch.manual_seed(1)
        inputs = torch.randn(8, 3, dtype=torch.float64), *layer.parameters()
        for t, want in zip(inputs, wanted):
            t.requires_grad_(bool(want))
        leaves = [t for t in inputs if t.requires_grad]
        slopes = torch.autograd.grad((layer(inputs[0]) ** 3).sum(), leaves,
                                     create_graph=True)
        total = sum((g ** 2).sum() for g in slopes)
        found.append((*slopes, *torch.autograd.grad(total, leaves)))
    for a, b in zip(*found, strict=True):
        close(a, b, 1e-10)


@pytest.mark.parametrize("absent", [(), ("weight",), ("bias",),
                                    ("weight", "bias")], ids=str)
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("half_layer", [True, False])
@MODES
def test_half_precision_derivatives_keep_their_types(half, half_layer, absent,
                                                     training):
    found = []
    for kind, layer_kind in ((half, half if half_layer else torch.float32),
                             (torch.float64, torch.float64)):
        torch.manual_seed(0)
        layer = tl.BatchNorm1d(3, eps=0.1, dtype=layer_kind).train(training)
        for name in absent:
            setattr(layer, name, None)
        x = torch.randn(16, 3).to(half).to(kind).requires_grad_()
        y, grads = gradients(layer, x, twice=True)
        leaves = [x, *layer.parameters()] * 2
        assert [g.dtype for g in grads] == [t.dtype for t in leaves]
        found.append((y, *grads))
    for a, b in zip(*found, strict=True):
        close(a, b, 8 * RTOL[half], kind=False)


@MODES
@pytest.mark.parametrize("shape", [(6, 3), (2, 3, 2, 2)], ids=str)
def test_batched_gradients(shape, training):
    layer = getattr(tl, SHAPES_BY_AXES[len(shape)])(
        3, eps=0.1, momentum=0.0, dtype=torch.float64).train(training)
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(layer, x, check_batched_grad=True)


@pytest.mark.parametrize("absent", [
    ("running_mean", "running_var"), ("num_batches_tracked",),
    ("running_mean", "running_var", "num_batches_tracked")], ids=str)
@MODES
def test_buffers_taken_away_by_hand(absent, training):
    ours, theirs = pair("BatchNorm1d", 3)
    for layer in (ours.train(training), theirs.train(training)):
        for name in absent:
            setattr(layer, name, None)
    torch.manual_seed(0)
    same_step(ours, theirs, 3 + torch.randn(6, 3))


def attempt(build):
    """The error that build() raises."""
    with pytest.raises(Exception) as caught:
        build()
    return caught.value


X = torch.ones(4, 3)
WRONG = {
    "axes": lambda m: m.BatchNorm2d(3)(torch.ones(2, 3, 4)),
    "axes 1d": lambda m: m.BatchNorm1d(3)(torch.ones(2, 3, 4, 4)),
    "axes 3d": lambda m: m.BatchNorm3d(3)(X),
    "channels": lambda m: m.BatchNorm1d(4)(X),
    "channels eval": lambda m: m.BatchNorm1d(4).eval()(X),
    "channels untracked": lambda m: m.BatchNorm1d(
        4, track_running_stats=False)(X),
    "one value": lambda m: m.BatchNorm1d(3)(X[:1]),
    "one value eval": lambda m: m.BatchNorm1d(
        3, track_running_stats=False).eval()(X[:1]),
    "eps 0": lambda m: m.BatchNorm1d(3, eps=0.0)(X),
    "eps negative": lambda m: m.BatchNorm1d(3, eps=-1.0).eval()(X),
    "integers": lambda m: m.BatchNorm1d(3)(X.long()),
    "complex": lambda m: m.BatchNorm1d(3).eval()(X.cfloat()),
    "double input": lambda m: m.BatchNorm1d(3)(X.double()),
    "double layer": lambda m: m.BatchNorm1d(3, dtype=torch.float64)(X),
    "half layer": lambda m: m.BatchNorm1d(3, dtype=torch.bfloat16)(X),
    "two halves": lambda m: m.BatchNorm1d(
        3, dtype=torch.bfloat16)(X.half()),
    "a list": lambda m: m.BatchNorm1d(3)([1.0]),
    "features": lambda m: m.BatchNorm1d(-1),
    "features 2.5": lambda m: m.BatchNorm1d(2.5),
    "option": lambda m: m.BatchNorm1d(3, epsilon=1e-5),
    "key": lambda m: m.BatchNorm1d(3).load_state_dict({"weight": X[0]}),
    "shape": lambda m: m.BatchNorm1d(3).load_state_dict(
        m.BatchNorm1d(4).state_dict()),
}
# Whose text is torch.nn's as well, since it comes from what we inherit.
SAME_TEXT = {"axes", "axes 1d", "axes 3d", "one value", "one value eval",
             "channels", "channels eval", "a list", "features", "key",
             "channels untracked", "features 2.5"}


@pytest.mark.parametrize("case", WRONG)
def test_errors_are_those_of_pytorch(case):
    ours, theirs = (attempt(lambda m=m: WRONG[case](m)) for m in (tl, nn))
    assert type(ours) is type(theirs)
    if case in SAME_TEXT:
        assert str(ours) == str(theirs)


def test_a_refused_batch_changes_nothing():
    layer = tl.BatchNorm1d(3)
    before = copy.deepcopy(layer.state_dict())
    for x in (X[:1], X.long(), X.double(), torch.ones(4, 2)):
        attempt(lambda x=x: layer(x))
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("name", NAMES)
def test_it_stands_in_for_pytorchs_class(name):
    ours, theirs = getattr(tl, name), getattr(nn, name)
    assert inspect.signature(ours) == inspect.signature(theirs) or (
        list(inspect.signature(ours).parameters)
        == list(inspect.signature(theirs).parameters))
    for key, p in inspect.signature(ours).parameters.items():
        other = inspect.signature(theirs).parameters[key]
        assert (p.default, p.kind) == (other.default, other.kind)
    for options in ({}, {"affine": False}, {"bias": False},
                    {"momentum": None, "eps": 1e-3}):
        assert repr(ours(3, **options)) == repr(theirs(3, **options))
    assert isinstance(ours(3), theirs)
    assert isinstance(ours(3), nn.modules.batchnorm._BatchNorm)


@pytest.mark.parametrize("options", [
    {}, {"affine": False}, {"bias": False}, {"track_running_stats": False}],
    ids=str)
def test_state_dicts_go_both_ways(options):
    ours, theirs = pair("BatchNorm1d", 3, **options)
    ours(torch.randn(5, 3))
    theirs.load_state_dict(ours.state_dict(), strict=True)
    again = tl.BatchNorm1d(3, **options)
    again.load_state_dict(theirs.state_dict(), strict=True)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert ours.state_dict()._metadata == theirs.state_dict()._metadata
    for name, value in ours.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])


def test_a_checkpoint_from_before_the_counter_loads():
    state = nn.BatchNorm1d(3).state_dict()
    del state["num_batches_tracked"]
    state._metadata[""]["version"] = 1
    layer = tl.BatchNorm1d(3)
    layer.load_state_dict(state, strict=True)
    assert layer.num_batches_tracked == 0


def test_tools_that_look_for_pytorchs_class_find_it():
    net = nn.Sequential(nn.Linear(3, 4), tl.BatchNorm1d(4))
    twin = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    twin.load_state_dict(net.state_dict())
    batches = [torch.randn(8, 3) for _ in range(5)]
    update_bn(batches, net), update_bn(batches, twin)
    for a, b in zip(net.buffers(), twin.buffers(), strict=True):
        close(a, b, 1e-5)
    assert net[1].num_batches_tracked == 5
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    assert isinstance(synced[1], nn.SyncBatchNorm)
    torch.func.replace_all_batch_norm_modules_(net)


def laid_out(shape, kind):
    """A random tensor whose memory is laid out as asked."""
    torch.manual_seed(0)
    x = torch.randn(shape)
    if kind == "channels-last":
        return x.contiguous(memory_format=torch.channels_last)
    if kind == "transposed":
        return torch.randn(shape[::-1]).permute(*range(len(shape))[::-1])
    if kind == "gaps":
        return torch.randn(*shape, 2)[..., 0]
    if kind == "expanded":
        return torch.randn(shape[0], shape[1], 1, 1).expand(shape)
    return x


@MODES
@pytest.mark.parametrize("dy_kind", ["planes", "channels-last", "expanded"])
@pytest.mark.parametrize("kind", ["planes", "channels-last", "transposed",
                                  "gaps", "expanded"])
@pytest.mark.parametrize("device", DEVICES)
def test_memory_formats(device, kind, dy_kind, training):
    shape = (4, 6, 5, 3)
    ours, theirs = pair("BatchNorm2d", 6, device=device)
    ours.train(training), theirs.train(training)
    x, dy = laid_out(shape, kind), laid_out(shape, dy_kind)
    found = []
    for layer in (ours, theirs):
        leaf = x.to(device).detach().requires_grad_()
        y = layer(leaf)
        found.append((y, *torch.autograd.grad(y, leaf, dy.to(device))))
    (y, dx), (want_y, want_dx) = found
    close(y, want_y)
    close(dx, want_dx, 1e-4)
    if kind in ("planes", "channels-last"):
        assert y.stride() == x.stride() == want_y.stride()
        assert dx.stride() == x.stride() == want_dx.stride()


@pytest.mark.parametrize("layer_dtype", ["float32", "same"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_half_precision_input_has_float32_statistics(device, dtype,
                                                     layer_dtype):
    kind = torch.float32 if layer_dtype == "float32" else dtype
    ours, theirs = pair("BatchNorm1d", 4, device=device, dtype=kind)
    torch.manual_seed(0)
    x = (200 + 10 * torch.randn(2048, 4, device=device)).to(dtype)
    same_step(ours, theirs, x)
    want = nn.functional.batch_norm(x.double(), None, None, None, None, True)
    y, shift, rest, var, _ = tl.BatchNormForward.apply(x, None, None, 1e-5)
    assert y.dtype == dtype and shift.dtype == var.dtype == torch.float32
    assert (y.double() - want).abs().max() < RTOL[dtype]  # rounded once
    mean = shift.double() + rest.double()
    assert (mean - x.double().mean(0)).abs().max() < 1e-6
    assert (var / x.double().var(0, correction=0) - 1).abs().max() < 1e-6
    assert ours.running_mean.dtype == ours.weight.dtype == kind


@pytest.mark.parametrize("device", DEVICES)
def test_autocast(device):
    nets = [nn.Sequential(nn.Conv2d(2, 3, 3), kind(3)).to(device)
            for kind in (tl.BatchNorm2d, nn.BatchNorm2d)]
    nets[1].load_state_dict(nets[0].state_dict())
    torch.manual_seed(0)
    x, grads = torch.randn(8, 2, 6, 6, device=device), []
    for net in nets:
        with torch.autocast(device, dtype=torch.bfloat16):
            y = net(x)
            loss = (y ** 3).sum()
        loss.backward()
        grads.append((y, *(p.grad for p in net.parameters())))
        assert y.dtype == torch.bfloat16
        assert net[1].running_mean.dtype == torch.float32
    for a, b in zip(*grads, strict=True):
        close(a, b, 3e-2)


@pytest.mark.parametrize("mean, std", [(0, 1), (1e3, 1), (1e4, 1),
                                       (1e4, 1e-2)])
@pytest.mark.parametrize("planes", [True, False])
@pytest.mark.parametrize("n", [4096, 65_537])
@pytest.mark.parametrize("device", DEVICES)
def test_accuracy_goal(device, n, planes, mean, std):
    torch.manual_seed(0)
    x = (mean + std * torch.randn(n, 4, dtype=torch.float64)).float()
    x, dy = x.to(device), torch.randn(n, 4, device=device)
    if planes:
        x, dy = (t.T.reshape(1, 4, n).contiguous() for t in (x, dy))
    leaf, exact = x.requires_grad_(), x.detach().double().requires_grad_()
    y, *_ = tl.BatchNormForward.apply(leaf, None, None, 1e-5)
    centre = exact.detach().mean(tl.batch_axes(x), keepdim=True)
    want = nn.functional.batch_norm(exact - centre, None, None,
                                    training=True)
    y.backward(dy), want.backward(dy.double())
    assert (y - want).abs().max() < 5e-6
    assert (leaf.grad - exact.grad).norm() < 1e-6 * exact.grad.norm()


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4), (2, 3, 0), (2, 0, 4)],
                         ids=str)
@MODES
def test_empty_batches(shape, training):
    layer = tl.BatchNorm1d(shape[1]).train(training)
    x = torch.ones(shape, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.shape == shape
    for p in layer.parameters():
        assert (p.grad == 0).all()
    assert (layer.running_mean == 0).all() and (layer.running_var == 1).all()
    assert layer.num_batches_tracked == training


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_without_graph_breaks(backend, momentum):
    torch._dynamo.reset()
    nets = [nn.Sequential(nn.Conv2d(2, 3, 3), kind(3, momentum=momentum),
                          nn.ReLU())
            for kind in (tl.BatchNorm2d, nn.BatchNorm2d)]
    nets[1].load_state_dict(nets[0].state_dict())
    fast = torch.compile(nets[0], fullgraph=True, backend=backend)
    torch._dynamo.utils.counters.clear()
    torch.manual_seed(0)
    for size in (4, 4, 6):  # another size: compiled anew, as dynamic
        x = torch.randn(size, 2, 6, 6)
        for net in (fast, nets[1]):
            net.zero_grad()
            (net(x) ** 3).sum().backward()
        for a, b in zip(nets[0].parameters(), nets[1].parameters()):
            close(a.grad, b.grad, 1e-4)
        for a, b in zip(nets[0].buffers(), nets[1].buffers()):
            close(a, b, 1e-5)
    assert not torch._dynamo.utils.counters["graph_break"]
    nets[0].eval(), nets[1].eval()
    close(fast(x), nets[1](x))


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a compiler")
def test_inductor_computes_the_same():
    torch._dynamo.reset()
    ours, theirs = pair("BatchNorm1d", 3)
    fast = torch.compile(ours, fullgraph=True)
    x = torch.randn(16, 3)
    (y, got), (want_y, want) = (gradients(m, x.clone().requires_grad_())
                                for m in (fast, theirs))
    for a, b in zip((y, *got), (want_y, *want), strict=True):
        close(a, b, 1e-4)
    close(ours.running_var, theirs.running_var)


def stacked(kind, size=3, **options):
    """`size` layers with random parameters; also their arrays, stacked."""
    torch.manual_seed(0)
    layers = [kind(4, **options) for _ in range(size)]
    for p in (p for layer in layers for p in layer.parameters()):
        nn.init.normal_(p)
    return layers, *stack_module_state(layers)


@pytest.mark.parametrize("x_dim", [0, 2, None])
@pytest.mark.parametrize("momentum", [0.1, None])
@MODES
def test_vmap_over_stacked_layers_is_a_loop(training, momentum, x_dim):
    layers, params, buffers = stacked(tl.BatchNorm2d, momentum=momentum)
    loop, _, _ = stacked(nn.BatchNorm2d, momentum=momentum)
    for layer in layers + loop:
        layer.train(training)

    def loss(params, buffers, x):
        y = functional_call(layers[0], (params, buffers), (x,))
        return (y ** 3).sum(), y

    x = torch.randn(3, 5, 4, 2, 3)
    x = x[0] if x_dim is None else x.movedim(0, x_dim)
    at = vmap(grad(loss, argnums=(0, 2), has_aux=True), (0, 0, x_dim))
    for _ in range(2):
        (got, dx), y = at(params, buffers, x)
        for i, layer in enumerate(loop):
            part = x if x_dim is None else x.movedim(x_dim, 0)[i]
            part = part.clone().requires_grad_()
            want = layer(part)
            layer.zero_grad()
            (want ** 3).sum().backward()
            close(y[i], want, 1e-5)
            close(dx[i], part.grad, 1e-4)
            for name, p in layer.named_parameters():
                close(got[name][i], p.grad, 1e-4)
            for name, b in layer.named_buffers():
                close(buffers[name][i], b, 1e-5)


def test_vmap_of_second_derivatives():
    x = torch.randn(3, 4, 2, dtype=torch.float64)
    layer = tl.BatchNorm1d(2, eps=0.1, track_running_stats=False,
                           dtype=torch.float64)
    twin = nn.BatchNorm1d(2, eps=0.1, track_running_stats=False,
                          dtype=torch.float64)
    got = vmap(jacrev(jacrev(lambda x: (layer(x) ** 3).sum())))(x)
    want = torch.stack([torch.autograd.functional.hessian(
        lambda t: (twin(t) ** 3).sum(), t) for t in x])
    close(got, want)


def test_vmap_with_buffers_that_are_not_stacked_is_refused():
    with pytest.raises(RuntimeError):
        vmap(tl.BatchNorm1d(4))(torch.randn(3, 5, 4))


@pytest.mark.parametrize("copied", [
    copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))],
    ids=["deepcopy", "pickle"])
def test_copies_after_a_training_step(copied):
    layer = tl.BatchNorm1d(3)
    layer(torch.randn(5, 3)).sum().backward()
    again = copied(layer)
    for a, b in zip(again.state_dict().values(),
                    layer.state_dict().values(), strict=True):
        assert torch.equal(a, b) and a.data_ptr() != b.data_ptr()
    layer(torch.randn(5, 3))
    assert again.num_batches_tracked == 1


def nodes(tensor):
    """How many nodes of autograd's graph hang on a tensor."""
    seen, todo = set(), [tensor.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [n for n, _ in node.next_functions]
    return len(seen)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_buffers_keep_no_graph(momentum):
    net = nn.Sequential(nn.Linear(3, 3), tl.BatchNorm1d(3, momentum=momentum))
    sizes = set()
    for _ in range(5):
        y = net(torch.randn(6, 3))
        y.sum().backward()
        sizes.add(nodes(y))
        for b in net.buffers():
            assert b.grad_fn is None and not b.requires_grad
    assert len(sizes) == 1


def test_eval_then_train_then_backward_uses_the_statistics_of_eval():
    layer = tl.BatchNorm1d(3).eval()
    x = torch.randn(4, 3, requires_grad=True)
    y = layer(x)
    layer.train()(5 + torch.randn(4, 3))
    y.sum().backward()
    close(x.grad, torch.full((4, 3), (1 + 1e-5) ** -0.5))


def test_two_training_passes_before_one_backward():
    ours, theirs = pair("BatchNorm1d", 3)
    x = torch.randn(2, 6, 3)
    for layer in (ours, theirs):
        ((layer(x[0]) ** 3).sum() + (layer(x[1]) ** 2).sum()).backward()
    close(ours.weight.grad, theirs.weight.grad)
    close(ours.running_var, theirs.running_var)


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_counts_twice_as_in_pytorch(reentrant):
    for kind in (tl.BatchNorm1d, nn.BatchNorm1d):
        net = nn.Sequential(kind(3), nn.Sigmoid(), nn.Linear(3, 3))
        x = torch.randn(5, 3, requires_grad=True)
        checkpoint(net, x, use_reentrant=reentrant).sum().backward()
        assert net[0].num_batches_tracked == 2
        mean = x.detach().mean(0)
        close(net[0].running_mean, 0.19 * mean)


def test_meta_device_then_real():
    layer = tl.BatchNorm2d(3, device="meta")
    assert layer(torch.empty(2, 3, 4, 4, device="meta")).is_meta
    layer = layer.to_empty(device="cpu")
    layer.reset_parameters()
    assert (layer.weight == 1).all() and (layer.running_var == 1).all()


def test_frozen_parameters_get_no_gradient():
    layer = tl.BatchNorm1d(3).requires_grad_(False)
    x = torch.randn(4, 3, requires_grad=True)
    (layer(x) ** 3).sum().backward()
    assert x.grad is not None and layer.weight.grad is None
    layer = tl.BatchNorm1d(3)
    (layer(x.detach()) ** 3).sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.skipif(importlib.util.find_spec("normlab.kernels") is None
                    or importlib.util.find_spec("triton") is None,
                    reason="needs normlab.kernels and Triton")
def test_the_real_kernels_in_triton_s_interpreter():
    code = """
        import torch
        from normlab import kernels, torch_layers as tl
        from tests.test_torch_layers import (
            SHAPES_BY_AXES, laid_out, pair, same_step)
        tl.kernels_for = lambda x: kernels
        half, single = torch.bfloat16, torch.float32
        for shape, form, x_type, layer_type in (
                ((6, 3), "planes", single, single),
                ((2, 3, 4, 4), "planes", single, single),
                ((2, 3, 4, 4), "channels-last", single, single),
                ((2, 3, 4, 4), "planes", half, single),
                ((6, 3), "planes", half, half)):
            name = SHAPES_BY_AXES[len(shape)]
            ours, theirs = pair(name, 3, dtype=layer_type)
            x = laid_out(shape, form).to(x_type)
            same_step(ours, theirs, x, twice=x_type is single)
            same_step(ours.eval(), theirs.eval(), x)
        print("the same")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, text=True,
        capture_output=True, timeout=300,
        env=os.environ | {"TRITON_INTERPRET": "1"})
    assert done.stdout.strip() == "the same", done.stderr[-2000:]


class Recorder:
    """Stands in for normlab.kernels: plain maths that notes its calls."""
    def __init__(self):
        self.calls = []

    def forward(self, x, weight, bias, eps):
        self.calls.append(("forward", (x, weight, bias), eps))
        return tl.batch_norm_forward(x, weight, bias, eps)

    def backward(self, dy, x, weight, bias, shift, rest, inv_std):
        self.calls.append(("backward", (x, weight, bias), None))
        assert dy.stride() == x.stride()
        return tl.batch_norm_backward(dy, x, weight, shift, rest, inv_std)

    def inference(self, x, weight, bias, mean, var, eps):
        self.calls.append(("inference", (x, weight, bias), eps))
        return tl.batch_norm_inference(x, weight, bias, mean, var, eps)


@pytest.mark.parametrize("form", ["planes", "channels-last"])
def test_kernels_get_the_layers_arguments(form, monkeypatch):
    spy = Recorder()
    monkeypatch.setattr(tl, "kernels_for", lambda x: spy)
    ours, theirs = pair("BatchNorm2d", 3, eps=1e-3)
    x = laid_out((2, 3, 4, 5), form)
    same_step(ours, theirs, x)
    same_step(ours.eval(), theirs.eval(), x)
    assert [name for name, *_ in spy.calls] == ["forward", "backward",
                                                "inference"]
    ours.train()(x.requires_grad_()).sum().backward()  # dy has no strides
    for name, (seen, weight, bias), eps in spy.calls:
        assert seen.stride() == x.stride() and torch.equal(
            weight, ours.weight)
        assert eps == (None if name == "backward" else 1e-3)
        assert bias is None if name == "backward" else torch.equal(
            bias, ours.bias)


class OnGPU(torch.Tensor):
    """A CPU tensor that says it lies on a GPU."""
    is_cuda = property(lambda self: True)


def test_kernels_are_for_dense_cuda_tensors_up_to_float32(monkeypatch):
    there = SimpleNamespace()
    monkeypatch.setattr(tl, "find_kernels", lambda: there)
    x = torch.randn(2, 3, 4, 4)
    for good in (x, x.half(), x.bfloat16(), x[..., 0, 0].contiguous(),
                 x.contiguous(memory_format=torch.channels_last)):
        assert tl.kernels_for(good.as_subclass(OnGPU)) is there
        assert tl.kernels_for(good) is None
    for bad in (x.double(), x[:0], x[..., :2], x.permute(0, 1, 3, 2)):
        assert tl.kernels_for(bad.as_subclass(OnGPU)) is None


def test_without_triton_there_are_no_kernels(monkeypatch):
    monkeypatch.setitem(sys.modules, "normlab.kernels", None)
    tl.find_kernels.cache_clear()
    assert tl.find_kernels() is None
    tl.find_kernels.cache_clear()
