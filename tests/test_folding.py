"""Folding batch normalizations into the layers beside them."""

import copy
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.fx.experimental.optimization import fuse
from torch.nn.utils import parametrizations

from benchmarks import folding as benchmark
from normlab import folding
from normlab.folding import (
    FoldingError,
    fold,
    fold_into_next,
    fold_into_previous,
)
from normlab.lab import nets, onnx_files
from normlab.lab.memory import saved_bytes

torch.set_num_threads(1)
NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d,
         5: nn.BatchNorm3d}
AFTER = {
    "linear": nn.Linear(6, 8),
    "linear, no bias": nn.Linear(6, 8, bias=False),
    "conv1d": nn.Conv1d(6, 8, 3, padding=1),
    "conv2d": nn.Conv2d(6, 8, 3, padding=1, bias=False),
    "conv2d, stride": nn.Conv2d(6, 8, 3, stride=2),
    "conv2d, dilation": nn.Conv2d(6, 8, 3, dilation=2, padding=2),
    "conv2d, groups": nn.Conv2d(6, 8, 3, groups=2, padding="same"),
    "conv2d, depthwise": nn.Conv2d(6, 6, 3, groups=6, bias=False),
    "conv2d, reflect": nn.Conv2d(6, 8, 3, padding=1,
                                 padding_mode="reflect"),
    "conv3d": nn.Conv3d(6, 8, (1, 2, 3)),
    "transposed 1d": nn.ConvTranspose1d(6, 8, 3, stride=2),
    "transposed 2d": nn.ConvTranspose2d(6, 8, 3, padding=1, bias=False),
    "transposed 2d, groups": nn.ConvTranspose2d(
        6, 8, 3, groups=2, stride=2, output_padding=1),
    "transposed 3d, groups": nn.ConvTranspose3d(6, 9, 2, groups=3),
}
BEFORE = {
    "linear": nn.Linear(6, 8),
    "linear, no bias": nn.Linear(6, 8, bias=False),
    "conv1d": nn.Conv1d(6, 8, 3),
    "conv2d": nn.Conv2d(6, 8, 3, stride=2, bias=False),
    "conv2d, pointwise": nn.Conv2d(6, 8, 1, padding="same"),
    "conv2d, valid": nn.Conv2d(6, 8, 3, dilation=2, padding="valid"),
    "conv2d, groups": nn.Conv2d(6, 8, 3, groups=2),
    "conv2d, depthwise": nn.Conv2d(6, 12, 3, groups=6, bias=False),
    "conv2d, circular": nn.Conv2d(6, 8, 3, padding=1,
                                  padding_mode="circular"),
    "conv2d, reflect": nn.Conv2d(6, 8, 3, padding=(1, 0),
                                 padding_mode="reflect"),
    "conv3d": nn.Conv3d(6, 8, (1, 2, 3)),
}


def used(bn, seed=0):
    """Give batch normalization a past, and evaluation mode."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        n = bn.num_features
        if bn.running_mean is not None:
            bn.running_mean.copy_(torch.randn(n, generator=g))
            bn.running_var.copy_(0.1 + 4 * torch.rand(n, generator=g))
        if bn.weight is not None:
            bn.weight.copy_(torch.randn(n, generator=g))
        if bn.bias is not None:
            bn.bias.copy_(torch.randn(n, generator=g))
    return bn.eval()


def data(layer, channels, dtype, seed=1):
    """A batch for a layer, with a mean that is not 0."""
    g = torch.Generator().manual_seed(seed)
    shape = (4, channels, *[7] * (layer.weight.ndim - 2))
    return (0.5 + torch.randn(shape, generator=g)).to(dtype)


def gap(got, want):
    """The largest difference, relative to the largest value."""
    assert got.shape == want.shape and got.dtype == want.dtype
    return float((got - want).abs().max() / want.abs().max())


def channels_in(layer):
    return getattr(layer, "in_features", None) or layer.in_channels


def channels_out(layer):
    return getattr(layer, "out_features", None) or layer.out_channels


def pair(layer, before, dtype, **options):
    """A copy of the layer, a batch normalization on one side of it, x."""
    torch.manual_seed(0)
    layer = copy.deepcopy(layer).to(dtype)
    n = channels_in(layer) if before else channels_out(layer)
    bn = used(NORMS[layer.weight.ndim](n, **options).to(dtype))
    return layer, bn, data(layer, channels_in(layer), dtype)


TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", AFTER)
@torch.no_grad()
def test_folds_into_the_previous_layer(name, dtype):
    layer, bn, x = pair(AFTER[name], False, dtype)
    assert gap(fold_into_previous(layer, bn)(x),
               bn(layer(x))) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", BEFORE)
@torch.no_grad()
def test_folds_into_the_next_layer(name, dtype):
    layer, bn, x = pair(BEFORE[name], True, dtype)
    assert gap(fold_into_next(bn, layer)(x),
               layer(bn(x))) <= TOLERANCE[dtype]


@pytest.mark.parametrize("options", [
    {"affine": False}, {"bias": False}, {"eps": 0.5}, {"momentum": None}],
    ids=str)
@torch.no_grad()
def test_options_of_the_batch_normalization(options):
    for layer in (nn.Linear(6, 8), nn.Conv2d(6, 8, 3)):
        first, bn, x = pair(layer, False, torch.float64, **options)
        assert gap(fold_into_previous(first, bn)(x), bn(first(x))) < 1e-12
        second, bn, x = pair(layer, True, torch.float64, **options)
        assert gap(fold_into_next(bn, second)(x), second(bn(x))) < 1e-12


SIZES = st.integers(1, 4)


@settings(max_examples=60, deadline=None)
@given(groups=SIZES, ins=SIZES, outs=SIZES, kernel=SIZES, stride=SIZES,
       dilation=SIZES, padding=st.integers(0, 3), bias=st.booleans(),
       transposed=st.booleans(), seed=st.integers(0, 99))
@torch.no_grad()
def test_any_convolution(groups, ins, outs, kernel, stride, dilation,
                         padding, bias, transposed, seed):
    kind = nn.ConvTranspose1d if transposed else nn.Conv1d
    torch.manual_seed(seed)
    conv = kind(groups * ins, groups * outs, kernel, stride=stride,
                padding=0 if transposed else padding, dilation=dilation,
                groups=groups, bias=bias).double()
    x = torch.randn(3, groups * ins, 17).double()
    bn = used(nn.BatchNorm1d(groups * outs).double(), seed)
    assert gap(fold_into_previous(conv, bn)(x), bn(conv(x))) < 1e-11
    bn = used(nn.BatchNorm1d(groups * ins).double(), seed)
    if transposed or padding:
        with pytest.raises(FoldingError):
            fold_into_next(bn, conv)
    else:
        assert gap(fold_into_next(bn, conv)(x), conv(bn(x))) < 1e-11


def wrong(layer, bn, without):
    """The fold with one term forgotten or wrong."""
    bn, layer = copy.deepcopy(bn), copy.deepcopy(layer)
    with torch.no_grad():
        if without == "beta":
            bn.bias.zero_()
        elif without == "sign of the mean":
            bn.running_mean.neg_()
        elif without == "eps":
            bn.eps = 0.0
        elif without == "old bias":
            layer.bias.zero_()
        elif without == "gamma":
            bn.weight.fill_(1)
        elif without == "root":
            bn.running_var.square_()
            bn.eps = 0.0
    return layer, bn


@pytest.mark.parametrize("without", ["beta", "sign of the mean", "eps",
                                     "old bias", "gamma", "root"])
@pytest.mark.parametrize("before", [True, False])
@torch.no_grad()
def test_each_term_of_the_fold_shows(without, before):
    layer, bn, x = pair(nn.Conv2d(6, 8, 3), before, torch.float32)
    layer2, bn2 = wrong(layer, bn, without)
    if before:
        got, want = fold_into_next(bn2, layer2)(x), layer(bn(x))
    else:
        got, want = fold_into_previous(layer2, bn2)(x), bn(layer(x))
    assert gap(got, want) > 2e-6


@torch.no_grad()
def test_the_originals_stay_as_they_are():
    layer, bn, _ = pair(nn.Conv2d(6, 6, 3), False, torch.float32)
    before = copy.deepcopy([layer.state_dict(), bn.state_dict()])
    folded = fold_into_previous(layer, bn), fold_into_next(bn, layer)
    for old, module in zip(before, (layer, bn)):
        assert list(old) == list(module.state_dict())
        assert all(torch.equal(old[k], v)
                   for k, v in module.state_dict().items())
    for new in folded:
        assert type(new) is nn.Conv2d and new.bias is not None
        assert new.weight.data_ptr() != layer.weight.data_ptr()


def test_a_new_bias_is_trainable_like_the_weight():
    layer = nn.Conv2d(6, 8, 1, bias=False)
    bn = used(nn.BatchNorm2d(8))
    assert fold_into_previous(layer, bn).bias.requires_grad
    layer.requires_grad_(False)
    assert not fold_into_previous(layer, bn).bias.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision_rounds_once(dtype):
    layer, bn, _ = pair(nn.Conv2d(6, 8, 3, bias=False), False, dtype)
    bn.float()  # as autocast leaves it
    folded = fold_into_previous(layer, bn)
    assert folded.weight.dtype == folded.bias.dtype == dtype
    exact = fold_into_previous(layer.double(), bn.double())
    assert torch.equal(folded.weight, exact.weight.to(dtype))
    assert torch.equal(folded.bias, exact.bias.to(dtype))


def test_a_value_that_overflows_is_refused():
    layer = nn.Conv2d(2, 2, 1, bias=False).half()
    bn = used(nn.BatchNorm2d(2))
    bn.running_var.fill_(1e-12)
    with torch.no_grad():
        bn.weight.fill_(1e3)
        layer.weight.fill_(1.0)
    with pytest.raises(FoldingError, match="does not fit torch.float16"):
        fold_into_previous(layer, bn)


@torch.no_grad()
def test_memory_format_stays():
    layer, bn, _ = pair(nn.Conv2d(6, 6, 3), False, torch.float32)
    layer.to(memory_format=torch.channels_last)
    for new in (fold_into_previous(layer, bn), fold_into_next(bn, layer)):
        assert new.weight.stride() == layer.weight.stride()


@pytest.mark.parametrize("device", ["cpu", pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(),
                                     reason="no CUDA device"))])
@torch.no_grad()
def test_device_stays(device):
    x = torch.randn(4, 3, 32, 32)
    net = nets.randomise(nets.ResNet20(width=4), x).to(device)
    folded, _ = fold(net)
    assert {p.device.type for p in folded.parameters()} == {device}
    assert gap(folded(x.to(device)), net(x.to(device))) < (
        2e-6 if device == "cpu" else 1e-3)  # TF32


class Weird(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu()


class Standardised(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(
            x, self.weight - self.weight.mean((1, 2, 3), True), self.bias)


def hooked(module):
    module.register_forward_hook(lambda m, i, o: 2 * o)
    return module


class BatchNormAct(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu()


def patched(module):
    original = module.forward
    module.forward = lambda x: 2 * original(x)
    return module


CONV = nn.Conv2d(4, 4, 1)
REFUSED = {
    "BatchNormAct is not a batch": (CONV, BatchNormAct(4).eval()),
    "training mode": (CONV, nn.BatchNorm2d(4).train()),
    "no running statistics": (
        CONV, nn.BatchNorm2d(4, track_running_stats=False).eval()),
    "Weird is not a batch normalization": (CONV, Weird(4).eval()),
    "InstanceNorm2d is not a batch": (
        CONV, nn.InstanceNorm2d(4, track_running_stats=True).eval()),
    "LazyBatchNorm2d is not": (CONV, nn.LazyBatchNorm2d().eval()),
    "Standardised is not one of": (
        Standardised(4, 4, 1), nn.BatchNorm2d(4).eval()),
    "ParametrizedConv2d is not one of": (
        parametrizations.weight_norm(nn.Conv2d(4, 4, 1)),
        nn.BatchNorm2d(4).eval()),
    "Conv2d has forward hooks": (
        hooked(nn.Conv2d(4, 4, 1)), nn.BatchNorm2d(4).eval()),
    "BatchNorm2d has forward hooks": (
        CONV, hooked(nn.BatchNorm2d(4)).eval()),
    "Conv2d has forward hooks or a patched forward": (
        patched(nn.Conv2d(4, 4, 1)), nn.BatchNorm2d(4).eval()),
    "BatchNorm2d has forward hooks or a patched forward": (
        CONV, patched(nn.BatchNorm2d(4)).eval()),
    "not floating point": (
        nn.Conv2d(4, 4, 1, dtype=torch.complex64), nn.BatchNorm2d(4).eval()),
    "channels, the batch normalization has 5": (
        CONV, nn.BatchNorm2d(5).eval()),
    "ReLU is not one of": (nn.ReLU(), nn.BatchNorm2d(4).eval()),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_pairs_that_are_refused(reason):
    layer, bn = REFUSED[reason]
    with pytest.raises(FoldingError, match=reason):
        fold_into_previous(layer, bn)
    with pytest.raises(FoldingError, match=reason):
        fold_into_next(bn, layer)


@pytest.mark.parametrize("layer", [
    nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding="same"),
    nn.Conv2d(4, 4, 3, padding=(0, 1))], ids=str)
@torch.no_grad()
def test_zero_padding_is_refused_and_would_be_wrong(layer):
    bn = used(nn.BatchNorm2d(4))
    with pytest.raises(FoldingError, match="pads with zeros"):
        fold_into_next(bn, layer)
    valid = copy.deepcopy(layer)
    valid.padding, kept = (0, 0), layer.padding
    folded = fold_into_next(bn, valid)
    folded.padding = kept
    x = torch.randn(2, 4, 6, 6)
    wrong, right = folded(x), layer(bn(x))
    assert gap(wrong[..., 1:-1, 1:-1], right[..., 1:-1, 1:-1]) < 2e-6
    assert gap(wrong, right) > 1e-2


def test_transposed_after_the_batch_normalization_is_refused():
    with pytest.raises(FoldingError, match="fewer taps"):
        fold_into_next(nn.BatchNorm2d(4).eval(),
                       nn.ConvTranspose2d(4, 4, 3))


IMAGES = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
WHOLE = {
    "ResNet-20": (lambda norm: nets.ResNet20(norm), 21),
    "MobileNetV2": (lambda norm: nets.MobileNetV2(norm), 19),
}


@pytest.mark.parametrize("name", WHOLE)
@torch.no_grad()
def test_whole_networks(name):
    make, count = WHOLE[name]
    net = nets.randomise(make(nn.BatchNorm2d), IMAGES)
    kept = copy.deepcopy(net.state_dict())
    folded, fates = fold(net)
    assert len(fates) == count and all(f.into and not f.reason
                                       for f in fates)
    assert not any(map(folding.normalises, folded.modules()))
    assert gap(folded(IMAGES), net(IMAGES)) <= 2e-6
    assert gap(fuse(net)(IMAGES), folded(IMAGES)) <= 2e-6
    assert all(torch.equal(v, kept[k]) for k, v in net.state_dict().items())
    double, _ = fold(net.double())
    assert gap(double(IMAGES.double()), net(IMAGES.double())) < 1e-12


@pytest.mark.parametrize("name", WHOLE)
def test_the_normalisation_can_be_left_out(name):
    net = WHOLE[name][0](nn.Identity)
    assert not list(net.buffers())
    assert net(IMAGES[:2]).shape == (2, 10)


@torch.no_grad()
def test_the_copy_shares_nothing_with_the_network():
    net = nets.randomise(nets.ResNet20(width=4), IMAGES)
    want, (folded, _) = net(IMAGES), fold(net)
    for parameter in folded.parameters():
        parameter.zero_()
    assert torch.equal(net(IMAGES), want)


@torch.no_grad()
def test_folding_twice_changes_nothing_more():
    net = nets.randomise(nets.ResNet20(width=4), IMAGES)
    once, _ = fold(net)
    twice, fates = fold(once)
    assert fates == [] and torch.equal(once(IMAGES), twice(IMAGES))


@torch.no_grad()
def test_folded_network_is_a_drop_in():
    net = nets.randomise(nets.MobileNetV2(), IMAGES)
    folded, _ = fold(net)
    assert not folded.training
    assert set(dict(folded.named_parameters())) <= {
        n.removesuffix("weight") + end for n in dict(net.named_parameters())
        for end in ("weight", "bias") if n.endswith(("weight", "bias"))}
    again, _ = fold(net)
    again.load_state_dict(folded.state_dict())
    assert torch.equal(again(IMAGES), copy.deepcopy(folded)(IMAGES))


class Net(nn.Module):
    """Layers by name, and what to do with them."""

    def __init__(self, forward, **layers):
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                used(layer)
        self.rule = forward
        self.eval()

    def forward(self, x):
        return self.rule(self, x)


def conv(**options):
    return nn.Conv2d(4, 4, 3, **options)


def unused(net, x):
    return net.conv(x)


def shift_in_place(net, x):
    h = net.bn(x)
    x.relu_()
    return net.conv(h) + x[..., 1:-1, 1:-1]


BN = nn.BatchNorm2d
CASES = {  # forward, layers, folded into, why not
    "after": (lambda n, x: n.bn(n.conv(x)), {"conv": conv()}, "conv", None),
    "before": (lambda n, x: n.conv(n.bn(x)), {"conv": conv()}, "conv", None),
    "keyword": (lambda n, x: n.bn(input=n.conv(input=x)), {"conv": conv()},
                "conv", None),
    "between two": (lambda n, x: n.conv(n.bn(n.first(x))),
                    {"conv": conv(), "first": conv()}, "first", None),
    "second choice": (lambda n, x: n.conv(n.bn(n.first(x).relu())),
                      {"conv": conv(), "first": conv()}, "conv", None),
    "input changed in place": (shift_in_place, {"conv": conv()}, "conv",
                               None),
    "used twice": (
        lambda n, x: (lambda y: n.bn(y) + y)(n.conv(x)), {"conv": conv()},
        None, r"the output of conv \(Conv2d\) is used 2 times"),
    "shared layer": (
        lambda n, x: n.bn(n.conv(n.conv(x).relu())), {"conv": conv()},
        None, "conv or its weight is used 2 times"),
    "weight read": (
        lambda n, x: n.bn(n.conv(x)) + n.conv.weight.mean(),
        {"conv": conv()}, None, "conv or its weight is used 2 times"),
    "ReLU between": (
        lambda n, x: n.bn(n.relu(n.conv(x))),
        {"conv": conv(), "relu": nn.ReLU()}, None,
        r"relu \(ReLU\) is no layer.*the network's output is no layer"),
    "function between": (
        lambda n, x: n.bn(n.conv(x).relu()), {"conv": conv()}, None,
        "relu is no layer"),
    "padding": (
        lambda n, x: n.conv(n.bn(x)), {"conv": conv(padding=1)}, None,
        "pads with zeros"),
    "no layer": (lambda n, x: n.bn(x), {}, None, "input is no layer"),
    "never called": (unused, {"conv": conv()}, None, "never calls it"),
    "two readers": (
        lambda n, x: (lambda h: n.conv(h) + n.other(h))(n.bn(x)),
        {"conv": conv(), "other": conv()}, None,
        r"bn \(BatchNorm2d\) is used 2 times"),
    "no statistics": (
        lambda n, x: n.bn(n.conv(x)),
        {"conv": conv(), "bn": BN(4, track_running_stats=False)}, None,
        "no running statistics"),
    "own subclass": (
        lambda n, x: n.bn(n.conv(x)), {"conv": conv(), "bn": Weird(4)},
        None, "Weird is not a batch normalization"),
    "standardised weights": (
        lambda n, x: n.bn(n.conv(x)), {"conv": Standardised(4, 4, 3)},
        None, "Standardised is not one of"),
    "hook on the layer": (
        lambda n, x: n.bn(n.conv(x)), {"conv": hooked(conv())}, None,
        "Conv2d has forward hooks"),
}


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_graphs(name):
    forward, layers, into, reason = CASES[name]
    net = Net(forward, **{"bn": BN(4), **copy.deepcopy(layers)}).double()
    x = torch.randn(2, 4, 9, 9).double()
    want = net(x.clone())
    for example in ((), (x.clone(),)):
        folded, (fate,) = fold(net, *example)
        assert fate.name == "bn" and fate.into == into
        assert gap(folded(x.clone()), want) < 1e-12
        if reason is None:
            assert fate.reason is None
        else:
            assert re.search(reason, fate.reason)


@pytest.mark.parametrize("forward, layers, into", [
    (lambda n, x: n.bn(n.b(n.bn(n.a(x)).relu())), "bn", ["a", "b"]),
    (lambda n, x: n.d(n.bn(n.a(x))), "bn d", ["a", "a"]),
], ids=["one in two places", "two in a row"])
@torch.no_grad()
def test_one_normalization_after_two_layers_and_two_after_one(
        forward, layers, into):
    net = Net(forward, a=conv(), b=conv(),
              **{name: BN(4) for name in layers.split()})
    x = torch.randn(2, 4, 9, 9)
    folded, fates = fold(net)
    assert [f.into for f in fates] == into
    assert gap(folded(x), net(x)) <= 2e-6


@torch.no_grad()
def test_linear_needs_to_know_its_axes():
    net = Net(lambda n, x: n.bn(n.fc(x)), fc=nn.Linear(4, 4),
              bn=nn.BatchNorm1d(4))
    flat, deep = torch.randn(5, 4), torch.randn(5, 4, 4)
    assert "pass fold an example" in fold(net)[1][0].reason
    folded, (fate,) = fold(net, flat)
    assert fate.into == "fc" and gap(folded(flat), net(flat)) <= 2e-6
    folded, (fate,) = fold(net, deep)
    assert "with 3 axes" in fate.reason
    assert torch.equal(folded(deep), net(deep))
    # PyTorch's own fuser goes by the number of features alone.
    assert gap(fuse(net)(deep), net(deep)) > 0.1


def test_training_mode_is_an_error():
    net = nets.ResNet20(width=4)
    with pytest.raises(FoldingError, match="ResNet20 is in training mode"):
        fold(net)
    net.eval().blocks[0].norm1.train()
    with pytest.raises(FoldingError, match="blocks.0.norm1 is in training"):
        fold(net)


def test_what_cannot_be_traced_is_an_error():
    net = Net(lambda n, x: n.bn(x) if x.sum() > 0 else x, bn=BN(4))
    with pytest.raises(FoldingError, match="can't trace.*control flow"):
        fold(net)


def test_hooks_that_tracing_would_lose_are_an_error():
    net = nets.randomise(nets.ResNet20(width=4), IMAGES)
    hooked(net.blocks[1])
    with pytest.raises(FoldingError, match="blocks.1 has forward hooks"):
        fold(net)


@torch.no_grad()
def test_instance_normalization_is_left_alone():
    net = Net(lambda n, x: n.norm(n.conv(x)), conv=conv(),
              norm=nn.InstanceNorm2d(4, track_running_stats=True))
    folded, fates = fold(net)
    assert fates == [] and any(
        isinstance(m, nn.InstanceNorm2d) for m in folded.modules())


@torch.no_grad()
def test_the_books_own_layer():
    layers = pytest.importorskip("normlab.torch_layers")
    net = nets.randomise(nets.ResNet20(layers.BatchNorm2d, width=4), IMAGES)
    folded, fates = fold(net)
    assert [f.reason for f in fates] == [None] * 21
    assert gap(folded(IMAGES), net(IMAGES)) <= 2e-6


@pytest.mark.parametrize("book", [False, True])
@torch.no_grad()
def test_synchronised_layers_fold_too(book):
    kind = (pytest.importorskip("normlab.sync").SyncBatchNorm if book
            else nn.SyncBatchNorm)
    plain = nets.randomise(nets.ResNet20(width=4), IMAGES)
    net = kind.convert_sync_batchnorm(copy.deepcopy(plain))
    assert sum(type(m) is kind for m in net.modules()) == 21
    folded, fates = fold(net)
    assert [f.reason for f in fates] == [None] * 21
    assert gap(folded(IMAGES), plain(IMAGES)) <= 2e-6


def test_only_the_books_own_classes_pass_for_batch_normalization():
    sync = pytest.importorskip("normlab.sync")
    layers = pytest.importorskip("normlab.torch_layers")
    assert folding.is_batch_norm(sync.SyncBatchNorm(4))
    assert folding.is_batch_norm(layers.BatchNorm1d(4))
    assert not folding.is_batch_norm(sync.SyncBatchNormState(4))
    assert not folding.is_batch_norm(
        type("SyncBatchNorm", (sync.SyncBatchNorm,), {})(4))


class Counts(nn.Module):
    """Looks like a batch normalization, and takes no input."""

    def __init__(self):
        super().__init__()
        self.register_buffer("running_var", torch.ones(4, 1, 1))

    def forward(self):
        return self.running_var


@torch.no_grad()
def test_a_look_alike_without_input_is_kept():
    net = Net(lambda n, x: n.conv(x) + n.bn(), conv=conv(), bn=Counts())
    x = torch.randn(2, 4, 9, 9)
    folded, (fate,) = fold(net)
    assert "Counts is not a batch normalization" in fate.reason
    assert torch.equal(folded(x), net(x))


def branches(channels=6, stride=1, groups=1):
    """Three branches of a RepVGG block, each normalised."""
    conv3 = nn.Conv2d(channels, channels, 3, stride, 1, groups=groups,
                      bias=False)
    conv1 = nn.Conv2d(channels, channels, 1, stride, groups=groups)
    same = nn.Conv2d(channels, channels, 1, stride, groups=groups)
    nn.init.dirac_(same.weight, groups)
    nn.init.zeros_(same.bias)
    return [(c.double(), used(BN(channels).double(), i))
            for i, c in enumerate((conv3, conv1, same))]


@pytest.mark.parametrize("groups", [1, 2, 6])
@torch.no_grad()
def test_merged_branches(groups):
    parts = branches(groups=groups)
    x = torch.randn(2, 6, 7, 7).double()
    want = sum(bn(c(x)) for c, bn in parts)
    merged = folding.merge_branches(
        *(fold_into_previous(c, bn) for c, bn in parts))
    assert merged.kernel_size == (3, 3)
    assert gap(merged(x), want) < 1e-12
    assert gap(merged(x), want - parts[2][1](x)) > 1e-2


@pytest.mark.parametrize("other", [
    nn.Conv2d(6, 6, 1, padding=1), nn.Conv2d(6, 6, 1, 2),
    nn.Conv2d(6, 5, 1), nn.Conv2d(6, 6, 1, groups=2),
    nn.Conv2d(6, 6, 3, padding=1, dilation=2), nn.Linear(6, 6),
    nn.Conv2d(6, 6, 3, padding="same")], ids=str)
def test_branches_that_do_not_add_up(other):
    with pytest.raises(FoldingError, match="can't be added|must be conv"):
        folding.merge_branches(other, nn.Conv2d(6, 6, 5, padding=2))
    with pytest.raises(FoldingError, match="can't be added|must be conv"):
        folding.merge_branches(nn.Conv2d(6, 6, 3, padding=1), other)


def test_branches_that_are_none_or_hooked_are_refused():
    with pytest.raises(FoldingError, match="must be convolutions"):
        folding.merge_branches()
    with pytest.raises(FoldingError, match="without hooks"):
        folding.merge_branches(hooked(nn.Conv2d(6, 6, 1)))


@pytest.mark.parametrize("layer", [
    parametrizations.weight_norm(nn.ConvTranspose2d(4, 6, 3)),
    Standardised(4, 4, 3), hooked(nn.Conv2d(4, 4, 3)), nn.ReLU()],
    ids=lambda layer: type(layer).__name__)
def test_weights_that_are_not_stored_are_neither_quantised_nor_equalised(
        layer):
    refused = pytest.raises(FoldingError, match="is not one of|has forward")
    with refused:
        folding.quantise_weight(layer, True)
    with refused:
        folding.equalise(layer, nn.Conv2d(4, 4, 1))
    with refused:
        folding.equalise(nn.Conv2d(4, 4, 1), layer)


@pytest.mark.parametrize("bits", [0, 1])
def test_a_grid_needs_two_bits(bits):
    with pytest.raises(ValueError, match="bits must be at least 2, got"):
        folding.quantise_weight(nn.Linear(3, 3), False, bits)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("layer", [
    nn.Conv2d(6, 8, 3, groups=2), nn.ConvTranspose2d(6, 8, 3), nn.Linear(6, 8)
], ids=str)
@torch.no_grad()
def test_quantised_weights_lie_on_the_grid(layer, bits):
    limit = 2 ** (bits - 1) - 1
    blocks = folding.weight_blocks(layer)
    for per_channel in (True, False):
        new = folding.quantise_weight(layer, per_channel, bits)
        largest = blocks.abs().amax((2, 3), keepdim=True)
        if not per_channel:
            largest = blocks.abs().max()
        grid = folding.weight_blocks(new) / (largest / limit)
        assert (grid - grid.round()).abs().max() < 1e-4
        assert grid.round().abs().max() == limit
        off = (folding.weight_blocks(new) - blocks).abs()
        assert (off <= largest / limit / 2 * (1 + 1e-5)).all()
        assert torch.equal(new.bias, layer.bias)


@torch.no_grad()
def test_a_channel_of_zeros_stays_zero():
    layer = nn.Conv2d(3, 4, 1)
    layer.weight[1] = 0
    new = folding.quantise_weight(layer, True)
    assert torch.isfinite(new.weight).all() and (new.weight[1] == 0).all()
    nn.init.zeros_(layer.weight)
    assert (folding.quantise_weight(layer, False).weight == 0).all()


@pytest.mark.parametrize("second", [
    nn.Conv2d(6, 5, 1), nn.Conv2d(6, 6, 3, groups=6, bias=False),
    nn.Conv2d(6, 4, 3, groups=2, padding=1)], ids=str)
@torch.no_grad()
def test_equalised_layers(second):
    torch.manual_seed(0)
    first = nn.Conv2d(3, 6, 1).double()
    second = copy.deepcopy(second).double()
    first.weight *= torch.logspace(-2, 2, 6).reshape(6, 1, 1, 1)
    a, b = folding.equalise(first, second)
    x = torch.randn(2, 3, 5, 5).double()
    assert gap(b(a(x).relu()), second(first(x).relu())) < 1e-12
    outs = folding.weight_blocks(a).abs().amax((2, 3)).flatten()
    ins = folding.weight_blocks(b).abs().amax((1, 3)).flatten()
    assert torch.allclose(outs, ins)
    assert (b.bias is None) == (second.bias is None)


@torch.no_grad()
def test_equalise_leaves_dead_channels_and_refuses_misfits():
    first, second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
    first.weight[0] = 0
    a, b = folding.equalise(first, second)
    assert torch.equal(b.weight[:, 0], second.weight[:, 0])
    assert torch.isfinite(a.bias).all()
    with pytest.raises(FoldingError, match="first gives 4 channels"):
        folding.equalise(first, nn.Conv2d(5, 2, 1))


@torch.no_grad()
def test_random_past_shows_in_every_statistic():
    net = nets.randomise(nets.MobileNetV2(), IMAGES)
    for bn in net.modules():
        if isinstance(bn, nn.BatchNorm2d):
            assert not bn.training and bn.momentum == 0.1
            for values, new in ((bn.weight, 1), (bn.bias, 0),
                                (bn.running_mean, 0), (bn.running_var, 1)):
                assert ((values - new).abs() > 1e-3).float().mean() > 0.8


def test_benchmark_compares_like_with_like():
    x = benchmark.images(2, "NHWC")
    assert x.is_contiguous(memory_format=torch.channels_last)
    forms = benchmark.contenders("MobileNetV2", "NHWC", compiled=False)
    outputs = {k: net(x).detach() for k, net in forms.items()}
    different = outputs.pop("deleted")
    want = outputs["unfolded"]
    assert all(gap(v, want) <= 2e-6 for v in outputs.values())
    assert gap(different, want) > 0.1
    r = benchmark.inference("MobileNetV2", 1, "NHWC", 1)
    assert r["error"]["folded"] <= 2e-6 and set(r["ms"]) == set(forms)
    assert not r["page_faults"] or set(r["page_faults"]) == set(forms)
    r = benchmark.training("MobileNetV2", 2, "NHWC", 1)
    assert r["saved_bytes"]["BN"] > r["saved_bytes"]["none"]


def test_bytes_kept_for_the_backward_pass():
    layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False),
                           nn.BatchNorm2d(8), nn.ReLU())
    plain = nn.Sequential(layers[0], layers[2])
    x = torch.randn(4, 3, 32, 32)
    size = 4 * 8 * 32 * 32  # of an activation
    # The convolution keeps x, ReLU its output.
    assert saved_bytes(plain, x) == 4 * (x.numel() + size)
    # Batch normalization its input, the batch's means and 1 / std.
    more = saved_bytes(layers, x) - saved_bytes(plain, x)
    assert more == 4 * (size + 2 * 8)


@torch.no_grad()
def test_onnx_before_and_after(tmp_path):
    x = torch.randn(4, 3, 8, 8)
    net = nets.randomise(nets.MobileNetV2(blocks=((1, 8, 1), (2, 8, 1))), x)
    want = net(x)
    for name, form, nodes in (("before", net, 7), ("after", fold(net)[0], 0)):
        path = onnx_files.export(form, x, tmp_path / f"{name}.onnx", False)
        assert onnx_files.operators(path)["BatchNormalization"] == nodes
        for optimise in (True, False):
            y = onnx_files.run(path, x.numpy(), optimise)
            assert gap(torch.from_numpy(y), want) <= 1e-5
