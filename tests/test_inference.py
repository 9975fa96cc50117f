"""What replaces evaluation mode's line, and the repairs of networks."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import erf
from torch import nn

from normlab import inference, torch_layers
from normlab.torch_layers import batch_norm_inference

torch.set_num_threads(1)
Z = torch.linspace(-6, 6, 49, dtype=torch.float64)


def simulate(x, m, eps, repeats=100_000, seed=0):
    """Mean and mean square of x's normalised value, and standard errors."""
    rng = np.random.default_rng(seed)
    batch = np.concatenate([np.full((repeats, 1), x),
                            rng.standard_normal((repeats, m - 1))], axis=1)
    xhat = (x - batch.mean(1)) / np.sqrt(batch.var(1) + eps)
    return (xhat.mean(), (xhat**2).mean(), xhat.std() / repeats**0.5,
            (xhat**2).std() / repeats**0.5)


def dense(dtype=torch.float32, norm=nn.BatchNorm1d, trained=True):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), norm(8), nn.ReLU(),
                        nn.Linear(8, 5), norm(5)).to(dtype)
    if trained:
        with torch.no_grad():
            for layer in inference.norms(net):
                layer.weight.uniform_(0.5, 1.5)
                layer.bias.normal_()
            for _ in range(30):
                net(torch.randn(16, 6, dtype=dtype) + 1)
    return net.eval()


def conv():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
                        nn.Conv2d(4, 3, 2), nn.BatchNorm2d(3))
    with torch.no_grad():
        for _ in range(30):
            net(torch.randn(8, 2, 6, 6) + 1)
    return net.eval()


# ---- the transfer function


def test_two_values_are_the_error_function():
    np.testing.assert_allclose(inference.transfer(Z, 2),
                               erf(Z.numpy() / math.sqrt(2)), atol=1e-13)


@pytest.mark.parametrize("m", [2, 3, 4, 8, 33])
@pytest.mark.parametrize("eps", [0.0, 1e-3, 0.3])
def test_transfer_and_noise_are_those_of_a_simulation(m, eps):
    for x in (0.4, 1.7, 4.0):
        mean, square, error, square_error = simulate(x, m, eps)
        z = torch.tensor(x, dtype=torch.float64)
        t = float(inference.transfer(z, m, eps))
        s = float(inference.transfer_std(z, m, eps))
        assert abs(t - mean) < 5 * error + 1e-12
        assert abs(s**2 + t**2 - square) < 5 * square_error + 1e-9


@pytest.mark.parametrize("m", [2, 5, 64, 256])
def test_points_are_enough(m):
    for eps in (0.0, 1e-5, 0.1):
        near = inference.transfer(Z, m, eps)
        far = inference.transfer(Z, m, eps, points=500)
        np.testing.assert_allclose(near, far, atol=1e-7)
        near = inference.transfer_std(Z, m, eps)
        far = inference.transfer_std(Z, m, eps, points=500)
        np.testing.assert_allclose(near, far, atol=1e-4)


@pytest.mark.parametrize("m", [2, 3, 8, 64, 256])
@pytest.mark.parametrize("eps", [0.0, 1e-5, 0.1])
def test_transfer_is_the_integral_by_another_rule(m, eps):
    def inside(q, x):
        share = (1 - q * q) / (1 + (m - 1) * q * q)
        away = (m - 1) * q * q * x * x + m * m * eps * q * q / (1 - q * q)
        return share ** ((m - 2) / 2) * math.exp(-away / 2)

    edges = (0, 1e-3, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 1 - 1e-12)
    for x in (0.1, 1.0, 10.0):
        total = sum(quad(inside, *ends, args=(x,), epsabs=1e-13)[0]
                    for ends in itertools.pairwise(edges))
        want = math.sqrt(2 / math.pi) * (m - 1) * x * total
        got = inference.transfer(torch.tensor(x).double(), m, eps)
        assert float(got) == pytest.approx(want, abs=1e-7)


def test_shape_of_the_transfer_function():
    for m in (2, 3, 8, 64):
        t = inference.transfer(Z, m)
        torch.testing.assert_close(t, -t.flip(0))
        assert (t.diff() > 0).all()
        assert t.max() < math.sqrt(m - 1)
    big = inference.transfer(torch.tensor(200.0).double(), 4)
    assert float(big) == pytest.approx(math.sqrt(3), abs=1e-3)
    torch.testing.assert_close(inference.transfer(Z, 200) / Z.abs().clamp(1),
                               Z / Z.abs().clamp(1), atol=0.1, rtol=0)


def test_transfer_keeps_the_dtype_takes_tensors_and_has_a_gradient():
    assert inference.transfer(Z.float(), 4).dtype == torch.float32
    assert inference.transfer(Z.half(), 4).dtype == torch.float16
    assert inference.transfer_std(Z.half(), 4).dtype == torch.float16
    eps = torch.tensor([0.0, 0.2], dtype=torch.float64)
    both = inference.transfer(Z[:, None].expand(-1, 2), 3, eps)
    torch.testing.assert_close(both[:, 1], inference.transfer(Z, 3, 0.2))
    x = torch.tensor([0.3, -2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: inference.transfer(x, 3), x)


def test_gamma_formulas_are_those_of_a_simulation():
    x = np.random.default_rng(0).standard_normal((400_000, 8))
    for m in (4, 8):
        std = x[:, :m].std(axis=1)
        assert inference.expected_std(m) == pytest.approx(
            std.mean(), abs=2e-3)
    assert inference.expected_inverse_std(8) == pytest.approx(
        (1 / std).mean(), abs=5e-3)
    assert inference.expected_std(2) == pytest.approx(1 / math.sqrt(math.pi))
    assert inference.expected_inverse_std(2) == math.inf
    # E[z T_m(z)] = E[sigma_B], by Gauss's rule for the normal density.
    q, w = np.polynomial.hermite_e.hermegauss(80)
    for m in (2, 5):
        t = inference.transfer(torch.from_numpy(q), m).numpy()
        assert (w * q * t).sum() / w.sum() == pytest.approx(
            inference.expected_std(m), abs=1e-9)


@pytest.mark.parametrize("function", [
    lambda: inference.transfer(Z, 1), lambda: inference.transfer_std(Z, 1.5),
    lambda: inference.expected_std(0), lambda: inference.use_transfer(
        dense(), 1), lambda: inference.in_groups(dense(), 1),
    lambda: inference.expected_inverse_std(float("nan"))])
def test_too_few_values_are_refused(function):
    with pytest.raises(ValueError, match="m must be at least 2, got"):
        function()


# ---- mixed statistics


def test_mixed_norm_is_the_moments_of_a_mixture():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, 4, 5, generator=draw, dtype=torch.float64)
    crowd = 2 + 3 * torch.randn(7, 2, 4, 5, generator=draw,
                                dtype=torch.float64)
    mean = crowd.mean((0, 2, 3))
    var = crowd.var((0, 2, 3), correction=0)
    y = inference.mixed_norm(x, mean, var, 1 / 8, eps=0.1)
    for n in range(3):
        whole = torch.cat([x[n:n + 1], crowd])  # the share of one is 1 / 8
        want = (x[n] - whole.mean((0, 2, 3)).view(2, 1, 1)) / (
            whole.var((0, 2, 3), correction=0).view(2, 1, 1) + 0.1).sqrt()
        torch.testing.assert_close(y[n], want)


def test_mixed_norm_at_its_ends():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, 4, 5, generator=draw, dtype=torch.float64)
    mean = torch.tensor([0.3, -1.0]).double()
    var = torch.tensor([2.0, 0.5]).double()
    torch.testing.assert_close(
        inference.mixed_norm(x, mean, var, 0),
        batch_norm_inference(x, None, None, mean, var, 1e-5))
    torch.testing.assert_close(
        inference.mixed_norm(x, mean, var, 1),
        torch.nn.functional.instance_norm(x))
    flat = x[:, :, 0, 0]
    assert (inference.mixed_norm(flat, mean, var, 1) == 0).all()
    z = (flat - mean) / var.sqrt()
    torch.testing.assert_close(
        inference.mixed_norm(flat, mean, var, 0.2, eps=0),
        math.sqrt(0.8) * z / (1 + 0.2 * z * z).sqrt())


def test_mixed_norm_has_a_gradient_and_keeps_the_dtype():
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    mean, var = torch.zeros(3).double(), torch.ones(3).double()
    assert torch.autograd.gradcheck(
        lambda x: inference.mixed_norm(x, mean, var, 0.3), x)
    assert inference.mixed_norm(x.half(), mean.float(), var.float(),
                                0.3).dtype == torch.float16


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alpha_out_of_range_is_refused(alpha):
    message = "alpha must be from 0 to 1, got"
    with pytest.raises(ValueError, match=message):
        inference.mixed_norm(Z[:, None], Z[:1], Z[:1], alpha)
    net = dense()
    with pytest.raises(ValueError, match=message):
        inference.weigh_examples(net, alpha)
    net(torch.randn(4, 6))  # and nothing was changed


# ---- networks


REPAIRS = {
    "weigh": lambda net, x: inference.weigh_examples(net, 0.2),
    "transfer": lambda net, x: inference.use_transfer(net, 4),
    "groups": lambda net, x: inference.in_groups(net, 2),
    "eval": lambda net, x: inference.eval_norm(net, x.split(4)),
    "precise": lambda net, x: inference.precise_bn(net, x.split(5)),
    "scale": lambda net, x: inference.correct_scale(net, 0.7),
    "slope": lambda net, x: inference.correct_scale(
        net, inference.measured_scales(net, x.split(4), "slope")),
}


@pytest.mark.parametrize("name", REPAIRS)
@pytest.mark.parametrize("make", [dense, conv])
def test_a_repair_changes_the_answer_and_is_undone(name, make):
    net = make()
    x = torch.randn(20, 6) if make is dense else torch.randn(20, 2, 6, 6)
    plain = net(x)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    repair = REPAIRS[name](net, x)
    assert not torch.allclose(net(x), plain, atol=1e-3)
    repair.remove()
    repair.remove()
    assert torch.equal(net(x), plain)
    with REPAIRS[name](net, x):
        assert not torch.allclose(net(x), plain, atol=1e-3)
    assert torch.equal(net(x), plain)
    assert all(torch.equal(v, before[k])
               for k, v in net.state_dict().items())
    assert not net.training and not any(m.training for m in net.modules())


def test_hooks_leave_training_mode_and_the_state_dict_alone():
    net, x = dense(), torch.randn(20, 6)
    keys = list(net.state_dict())
    want = dense().train()(x)
    with inference.use_transfer(net, 4), inference.weigh_examples(net, 0.5):
        assert list(net.state_dict()) == keys
        assert torch.equal(net.train()(x), want)


def test_replace_norm_computes_weight_function_bias():
    net, x = dense(torch.float64), torch.randn(7, 6).double()
    plain = net(x)

    def line(layer, x):
        return (x - layer.running_mean) / (
            layer.running_var + layer.eps).sqrt()

    with inference.replace_norm(net, line):
        torch.testing.assert_close(net(x), plain)
    bare = nn.Sequential(nn.BatchNorm1d(3, affine=False)).eval()
    with inference.replace_norm(bare, lambda layer, x: 2 * x):
        assert torch.equal(bare(torch.ones(2, 3)), torch.full((2, 3), 2.0))


@pytest.mark.parametrize("make", [dense, conv])
def test_groups_are_training_mode(make):
    net = make()
    x = torch.randn(12, 6) if make is dense else torch.randn(12, 2, 6, 6)
    with inference.in_groups(net, 4):
        got = net(x)
        with pytest.raises(RuntimeError):
            net(x[:10])
    net.train()
    torch.testing.assert_close(got, torch.cat([net(p) for p in x.split(4)]))


def test_precise_bn_is_the_moments_of_all_batches():
    torch.manual_seed(3)
    x = 2 + 3 * torch.randn(23, 6).double()
    net = nn.Sequential(nn.BatchNorm1d(6)).double().eval()
    inference.precise_bn(net, x.split(5))  # the last batch has 3
    torch.testing.assert_close(net[0].running_mean, x.mean(0))
    torch.testing.assert_close(net[0].running_var, x.var(0))
    assert net[0].num_batches_tracked == 0
    y = torch.randn(9, 6, 4).double()
    inference.precise_bn(net, y.split(2))
    torch.testing.assert_close(net[0].running_var, y.var((0, 2)))


def test_precise_bn_below_sees_batch_statistics():
    net, x = dense(torch.float64), torch.randn(40, 6).double()
    inference.precise_bn(net, [x])
    h = net[1].train()(net[0](x))
    h = net[3](net[2](h))
    torch.testing.assert_close(net[4].running_mean, h.mean(0))


def test_fitted_alpha_is_the_best_one_for_gaussian_values():
    torch.manual_seed(0)
    net = nn.Sequential(nn.BatchNorm1d(50)).double().eval()
    z, w = np.polynomial.hermite_e.hermegauss(80)
    for m, best in ((2, 0.387), (4, 0.150)):
        x = torch.randn(3000 * m, 50).double()
        alpha, = inference.fit_alphas(net, x.split(m)).values()
        assert alpha == pytest.approx(best, abs=0.01)
        t = inference.transfer(torch.from_numpy(z), m).numpy()
        shares = np.linspace(0, 0.9, 901)
        off = [(w * (math.sqrt(1 - a) * z / np.sqrt(1 + a * z * z) - t)**2
                ).sum() for a in shares]
        assert shares[int(np.argmin(off))] == pytest.approx(best, abs=2e-3)


def test_eval_norm_weighs_with_the_fitted_alphas():
    net, x = dense(), torch.randn(40, 6)
    alphas = inference.fit_alphas(net, x.split(4))
    assert list(alphas) == inference.norms(net)
    with inference.weigh_examples(net, alphas):
        want = net(x)
    with inference.eval_norm(net, x.split(4)):
        assert torch.equal(net(x), want)


def test_measured_scales_are_the_formulas_for_gaussian_values():
    torch.manual_seed(0)
    net = nn.Sequential(nn.BatchNorm1d(20, eps=1e-9)).double().eval()
    x = 3 * torch.randn(8 * 4000, 20).double()
    inference.precise_bn(net, [x])
    for kind, formula in (("inverse", inference.expected_inverse_std),
                          ("slope", inference.expected_std)):
        factor, = inference.measured_scales(net, x.split(8), kind).values()
        assert factor.shape == (20,)
        assert float(factor.mean()) == pytest.approx(formula(8), abs=5e-3)
    with pytest.raises(ValueError, match="kind must be inverse or slope"):
        inference.measured_scales(net, x.split(8), "std")


def test_correct_scale_multiplies_the_line():
    net = nn.Sequential(nn.BatchNorm1d(3)).double().eval()
    x = torch.randn(5, 3).double()
    factor = torch.tensor([0.5, 1.0, 2.0]).double()
    plain = net(x)
    with inference.correct_scale(net, {net[0]: factor}):
        torch.testing.assert_close(net(x), plain * factor)
    bare = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3, affine=False))
    with pytest.raises(ValueError, match="must have a weight"):
        inference.correct_scale(bare, 0.5)
    assert (bare[0].weight == 1).all()


def test_watching_leaves_everything_as_it_was():
    net = nn.Sequential(*dense(), nn.Dropout()).train()
    net[1].eval()
    modes = [m.training for m in net.modules()]
    before = {k: v.clone() for k, v in net.state_dict().items()}
    x = torch.randn(20, 6)

    def broken():
        yield x
        raise RuntimeError("no more")

    for batches in (x.split(4), broken()):
        try:
            inference.watch(net, batches, lambda x: x)
        except RuntimeError as error:
            assert "no more" in str(error)
        assert [m.training for m in net.modules()] == modes
        assert all(torch.equal(v, before[k])
                   for k, v in net.state_dict().items())
        assert not any(m._forward_hooks for m in net.modules())


def test_wrong_models_and_batches_are_named():
    with pytest.raises(ValueError, match="batches must hold at least one"):
        inference.precise_bn(dense(), [])
    for net in (nn.Linear(2, 2),
                nn.BatchNorm1d(2, track_running_stats=False)):
        with pytest.raises(ValueError, match="model must hold batch norm"):
            inference.weigh_examples(net, 0.1)


def test_this_books_layers_are_repaired_too():
    ours, theirs = dense(norm=torch_layers.BatchNorm1d), dense()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(20, 6)
    for repair in REPAIRS.values():
        with repair(ours, x), repair(theirs, x):
            torch.testing.assert_close(ours(x), theirs(x))


def test_use_transfer_is_the_curve_of_the_standardised_value():
    net = nn.Sequential(nn.BatchNorm1d(2)).double().eval()
    net[0].running_mean.copy_(torch.tensor([1.0, -2.0]))
    net[0].running_var.copy_(torch.tensor([4.0, 0.25]))
    x = torch.randn(9, 2).double()
    z = (x - net[0].running_mean) / net[0].running_var.sqrt()
    with inference.use_transfer(net, 2):
        got = net(x)
    torch.testing.assert_close(got, torch.erf(z / math.sqrt(2)), atol=2e-2,
                               rtol=0)
    eps = 1e-5 / net[0].running_var
    torch.testing.assert_close(got, inference.transfer(z, 2, eps))


@pytest.mark.parametrize("function", [inference.transfer,
                                      inference.transfer_std])
def test_a_transfer_function_refuses_what_it_cannot_take(function):
    with pytest.raises(ValueError, match="m must be at least 2, got 1"):
        function(Z, 1)
    with pytest.raises(ValueError, match="eps must be at least 0, got -0.1"):
        function(Z, 4, eps=-0.1)
    with pytest.raises(ValueError, match="eps must be at least 0"):
        function(Z, 4, eps=torch.tensor([0.1, float("nan")])[:, None])
    with pytest.raises(TypeError, match="x must be .* floats, got torch.int"):
        function(torch.arange(3), 4)
