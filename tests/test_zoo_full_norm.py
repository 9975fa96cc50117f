"""normlab.zoo: full normalisation."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from normlab import zoo
from normlab.zoo import FullNorm1d

torch.set_num_threads(1)


def values(*shape, seed=0, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draw, dtype=dtype) * 2 + 3


def filled(layer, seed=1):
    """The layer with a weight and a bias that are not 1 and 0."""
    with torch.no_grad():
        layer.weight.copy_(values(layer.num_features, seed=seed))
        layer.bias.copy_(values(layer.num_features, seed=seed + 1))
    return layer


def test_mixed_moments_are_those_of_the_mixture():
    a, b = values(30, 4), 5 - values(10, 4, seed=1)
    mean, var = zoo.mix_moments(a.mean(0), a.var(0, correction=0),
                                b.mean(0), b.var(0, correction=0), 10 / 40)
    both = torch.cat([a, b])
    torch.testing.assert_close(mean, both.mean(0))
    torch.testing.assert_close(var, both.var(0, correction=0))


@pytest.mark.parametrize("shape", [(7, 3), (5, 3, 4)])
def test_with_momenta_1_it_is_batch_normalization(shape):
    ours = filled(FullNorm1d(3, momentum=1.0, backward_momentum=1.0,
                             dtype=torch.float64))
    theirs = filled(nn.BatchNorm1d(3, dtype=torch.float64))
    for seed in range(2):
        x, dy = values(*shape, seed=seed), values(*shape, seed=seed + 9)
        grads = []
        for layer in (ours, theirs):
            layer.zero_grad()
            leaf = x.clone().requires_grad_()
            y = layer(leaf)
            y.backward(dy)
            grads.append((y, leaf.grad, layer.weight.grad, layer.bias.grad))
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b)


def test_gradcheck_where_it_is_batch_normalization():
    layer = FullNorm1d(2, momentum=1.0, backward_momentum=1.0,
                       dtype=torch.float64)

    def run(x, weight, bias):
        return torch.func.functional_call(
            layer, {"weight": weight, "bias": bias}, x)

    inputs = [t.requires_grad_() for t in (
        values(4, 2), values(2, seed=1), values(2, seed=2))]
    assert torch.autograd.gradcheck(run, inputs)


def network(norm):
    draw = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), norm(6), nn.Tanh(),
                        nn.Linear(6, 4), norm(4), nn.Tanh(),
                        nn.Linear(4, 3)).double()
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, generator=draw)
            nn.init.normal_(layer.bias, generator=draw)
    return net


@pytest.mark.parametrize("sizes", [(6, 6, 6), (3, 5, 10)])
def test_batch_gradients_average_to_the_full_gradient(sizes):
    """Sorted batches, none of them like the whole: with the averages that
    all data give, their gradients are on average the whole's."""
    x = torch.sort(values(18, 5), dim=0).values
    y = torch.arange(18) % 3
    full = network(nn.BatchNorm1d)
    nn.functional.cross_entropy(full(x), y).backward()
    net = network(FullNorm1d)
    # The first step has the share 1: all averages are those of all data.
    nn.functional.cross_entropy(net(x), y).backward()
    for layer in net:
        if isinstance(layer, FullNorm1d):
            layer.momentum = layer.backward_momentum = 0
    got = mean_gradients(net, x, y, sizes)
    for a, p in zip(got, full.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad)


def mean_gradients(net, x, y, sizes):
    """The size-weighted mean of the batches' gradients."""
    total = [torch.zeros_like(p) for p in net.parameters()]
    for xs, ys in zip(x.split(sizes), y.split(sizes), strict=True):
        net.zero_grad()
        nn.functional.cross_entropy(net(xs), ys).backward()
        for sum_, p in zip(total, net.parameters(), strict=True):
            sum_ += p.grad * len(xs) / len(x)
    return total


def test_own_sums_miss_the_full_gradient():
    x = torch.sort(values(18, 5), dim=0).values
    y = torch.arange(18) % 3
    full = network(nn.BatchNorm1d)
    nn.functional.cross_entropy(full(x), y).backward()
    net = network(lambda c: FullNorm1d(c, backward_momentum=1.0))
    net.train()(x)
    for m in net:
        if isinstance(m, FullNorm1d):
            m.momentum = 0
    got = mean_gradients(net, x, y, (6, 6, 6))
    error = max((a - p.grad).abs().max().item()
                for a, p in zip(got, full.parameters(), strict=True))
    assert error > 1e-3


def test_running_averages_step_by_step():
    layer = filled(FullNorm1d(3, momentum=0.5, backward_momentum=0.25,
                              dtype=torch.float64))
    mean, square, grads = np.zeros(3), np.ones(3), np.zeros((2, 3))
    for step in range(1, 7):
        x, dy = values(6, 3, seed=step), values(6, 3, seed=step + 20)
        layer(leaf := x.clone().requires_grad_()).backward(dy)
        p, q = max(0.5, 1 / step), max(0.25, 1 / step)
        mean += p * (x.mean(0).numpy() - mean)
        square += p * ((x**2).mean(0).numpy() - square)
        var = square - mean**2
        xhat = (x.numpy() - mean) / np.sqrt(var + 1e-5)
        own = np.stack([dy.numpy().sum(0), (dy.numpy() * xhat).sum(0)])
        grads += q * (own - grads)
        dx = layer.weight.detach().numpy() / np.sqrt(var + 1e-5) * (
            dy.numpy() - (grads[0] + xhat * grads[1]) / 6)
        np.testing.assert_allclose(layer.running_mean, mean)
        np.testing.assert_allclose(layer.running_var, var)
        np.testing.assert_allclose(layer.running_grads, grads)
        np.testing.assert_allclose(leaf.grad, dx)


def test_none_is_the_plain_average():
    layer = FullNorm1d(3, momentum=None, backward_momentum=None,
                       dtype=torch.float64)
    x = values(24, 3)
    for part in x.split(6):
        layer(part)
    torch.testing.assert_close(layer.running_mean, x.mean(0))
    torch.testing.assert_close(layer.running_var, x.var(0, correction=0))


def test_momentum_0_stays_and_takes_statistics_for_constants():
    layer = FullNorm1d(3, momentum=0.0, backward_momentum=0.0,
                       dtype=torch.float64)
    x = values(5, 3).requires_grad_()
    y = layer(x)
    torch.testing.assert_close(y, x / (1 + 1e-5) ** 0.5)
    y.backward(torch.ones_like(y))
    torch.testing.assert_close(x.grad, torch.full_like(x, (1 + 1e-5) ** -0.5))
    assert layer.running_mean.abs().max() == 0
    assert layer.running_grads.abs().max() == 0


def test_both_modes_answer_alike_and_evaluation_moves_nothing():
    layer = filled(FullNorm1d(3, dtype=torch.float64))
    for seed in range(4):
        y = layer(x := values(6, 3, seed=seed))
    before = copy.deepcopy(layer.state_dict())
    layer.eval()
    torch.testing.assert_close(layer(x), y)
    torch.testing.assert_close(layer(x[:1]), y[:1])  # no batch needed
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, before[name])
    leaf = x.clone().requires_grad_()
    layer(leaf).backward(torch.ones_like(x))
    scale = layer.weight * (layer.running_var + layer.eps).rsqrt()
    torch.testing.assert_close(leaf.grad, scale.expand_as(x))


def test_state_dict_goes_round():
    one, two = FullNorm1d(3), FullNorm1d(3)
    one(values(6, 3, dtype=torch.float32)).sum().backward()
    one(values(6, 3, dtype=torch.float32)).pow(3).sum().backward()
    assert list(one.state_dict()) == [
        "weight", "bias", "running_mean", "running_var", "running_grads",
        "num_batches_tracked"]
    two.load_state_dict(one.state_dict())
    x = values(6, 3, seed=5, dtype=torch.float32)
    assert torch.equal(one(x), two(x))
    assert torch.equal(one.running_var, two.running_var)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16,
                                   torch.float64])
def test_the_answer_has_the_input_s_dtype(dtype):
    layer = FullNorm1d(3)
    x = values(6, 3).to(dtype).requires_grad_()
    y = layer(x)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == dtype
    assert layer.running_mean.dtype == torch.float32
    assert layer.eval()(x).dtype == dtype


def test_without_affine():
    layer = FullNorm1d(3, affine=False, dtype=torch.float64)
    assert layer.weight is None and not list(layer.parameters())
    x = values(6, 3).requires_grad_()
    layer(x).pow(3).sum().backward()
    assert torch.isfinite(x.grad).all() and x.grad.abs().max() > 0


def test_repr_names_its_options():
    assert repr(FullNorm1d(3, backward_momentum=1.0)) == (
        "FullNorm1d(3, eps=1e-05, momentum=0.1, backward_momentum=1.0, "
        "affine=True)")


@pytest.mark.parametrize("options, match", [
    ({"num_features": 0}, "num_features must be a whole number from 1"),
    ({"eps": 0}, "eps must be positive, got 0"),
    ({"momentum": 1.5}, "momentum must be None or from 0 to 1, got 1.5"),
    ({"backward_momentum": -1}, "momentum must be None or from 0 to 1"),
])
def test_bad_options_are_named(options, match):
    with pytest.raises(ValueError, match=match):
        FullNorm1d(**{"num_features": 3} | options)


@pytest.mark.parametrize("shape", [(4, 2), (4, 3, 2, 2), (3,), (1, 3)])
def test_bad_inputs_are_named(shape):
    with pytest.raises(ValueError, match="FullNorm1d takes|more than 1"):
        FullNorm1d(3)(torch.zeros(shape))
