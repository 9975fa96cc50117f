"""The experiment that looks at the loss around networks while they train."""

import numpy as np
import pytest
import torch
from torch.nn.functional import batch_norm, cross_entropy

from normlab.lab import experiments
from normlab.lab import landscape as land

torch.set_num_threads(1)
SMALL = {"hidden": [6, 5], "batch_size": 20, "train": 60, "test": 40,
         "steps": 20, "parts": 2, "checkpoints": [0, 20], "seeds": [0, 1],
         "iterations": 3}
INF = float("inf")


def config(**changes):
    return experiments.configuration("landscape", "live") | SMALL | changes


def point(**changes):
    return {"method": "BN", "lr": 0.1, "seed": 0} | changes


def small(method, k=2, dtype=torch.float64):
    """A stack of K networks 4-5-3, a batch, and parameters off the start."""
    stack = land.Stack(method, [4, 5, 3])
    draw = torch.Generator().manual_seed(1)
    theta = stack.draw(range(k)).to(dtype)
    theta = theta + 0.3 * torch.randn(theta.shape, generator=draw,
                                      dtype=dtype)
    x = torch.randn(k, 12, 4, generator=draw, dtype=dtype)
    y = torch.randint(3, (k, 12), generator=draw)
    return stack, theta, x, y


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, INF])
def test_gaussian_values_come_out_with_variance_one(p):
    z = 3 + 2 * torch.randn(100, 2000, dtype=torch.float64,
                            generator=torch.Generator().manual_seed(0))
    out = land.lp_normalise(z, p, eps=0.0)
    # The maximum varies from batch to batch: E(1 / max^2) E(max)^2 > 1.
    assert abs(out.var(correction=0).item() - 1) < 0.05
    assert out.mean(0).abs().max() < 1e-12
    torch.testing.assert_close(land.lp_normalise(5 * z - 7, p, eps=0.0), out)


def test_gaussian_norms_by_sampling():
    x = np.abs(np.random.default_rng(0).normal(size=(20_000, 50)))
    for p, want in ((1.0, x.mean()), (2.0, 1.0),
                    (4.0, (x ** 4).mean() ** 0.25), (INF, x.max(1).mean())):
        assert land.gaussian_norm(p, 50) == pytest.approx(want, rel=0.01)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, INF])
def test_epsilon_is_a_variance_for_every_order(p):
    zero = torch.zeros(4, 2, dtype=torch.float64)
    torch.testing.assert_close(land.lp_norm(zero, p, 1e-4),
                               torch.full((1, 2), 0.01).double())
    d = torch.tensor([[0.01], [-0.02], [0.03]], dtype=torch.float64)
    m = d.abs().pow(p).mean() if p < INF else d.max()
    want = (m + 0.01 ** p) ** (1 / p) if p < INF else m + 0.01
    assert land.lp_norm(d, p, 1e-4).item() == pytest.approx(want.item())


def test_order_two_is_batch_normalization():
    z = torch.randn(30, 4, dtype=torch.float64) * 0.01
    torch.testing.assert_close(
        land.lp_normalise(z, 2.0),
        batch_norm(z, None, None, training=True, eps=1e-5))


@pytest.mark.parametrize("p", [1.0, 3.0, INF])
def test_gradient_of_the_layer_by_differences(p):
    z = torch.randn(7, 3, dtype=torch.float64, requires_grad=True,
                    generator=torch.Generator().manual_seed(3))
    assert torch.autograd.gradcheck(
        lambda t: land.lp_normalise(t, p), (z,))


@pytest.mark.parametrize("method", ["none", "BN"])
def test_a_network_computes_what_pytorch_does(method):
    stack, theta, x, y = small(method)
    for k in range(2):
        w1, w2, b1, b2, *gamma = [part[k] for part in stack.parts(theta)]
        z = x[k] @ w1
        if gamma:
            z = batch_norm(z, None, None, gamma[0][0], training=True,
                           eps=1e-5)
        logits = (z + b1).relu() @ w2 + b2
        torch.testing.assert_close(stack.logits(theta, x)[k], logits)
        torch.testing.assert_close(stack.loss(theta, x, y)[k],
                                   cross_entropy(logits, y[k]))


def hessian(stack, theta, x, y, k):
    """The Hessian of network k by its weight matrices, in full."""
    def loss(row):
        return stack.loss(row[None], x[k:k + 1], y[k:k + 1]).sum()

    n = stack.weights
    return torch.autograd.functional.hessian(loss, theta[k])[:n, :n]


@pytest.mark.parametrize("method", ["none", "BN", "l1", "linf"])
def test_curvature_is_the_largest_eigenvalue(method):
    stack, theta, x, y = small(method)
    place = stack.layer_norms(theta)[1]
    for scale in (torch.ones_like(place), place):
        found, v = stack.curvature(theta, x, y, scale,
                                   torch.ones_like(place), 300)
        for k in range(2):
            full = scale[k][:, None] * hessian(stack, theta, x, y,
                                               k) * scale[k]
            values = torch.linalg.eigvalsh(full)
            want = values[values.abs().argmax()]
            torch.testing.assert_close(found[k], want, rtol=1e-2, atol=1e-6)


def test_layer_norms_are_those_of_the_matrices():
    stack, theta, _, _ = small("none")
    norms, place = stack.layer_norms(theta)
    torch.testing.assert_close(norms[1, 0], theta[1, :20].norm())
    torch.testing.assert_close(norms[1, 1], theta[1, 20:35].norm())
    assert place.shape == (2, 35)
    assert (place[0, :20] == norms[0, 0]).all()
    assert (place[0, 20:] == norms[0, 1]).all()


def test_a_walk_moves_the_weights_and_nothing_else():
    stack, theta, x, y = small("BN")
    loss, grad = stack.gradient(theta, x, y)
    at = torch.tensor([[0.0, 0.2], [0.0, 0.1]], dtype=theta.dtype)
    losses, change, cosine = land.walk(stack, theta, x, y, grad, at)
    torch.testing.assert_close(losses[:, 0], loss)
    assert (change[:, 0] == 0).all()
    torch.testing.assert_close(cosine[:, 0], torch.ones_like(loss))
    moved = theta.clone()
    moved[0, :stack.weights] -= 0.2 * grad[0, :stack.weights]
    there, g = stack.gradient(moved, x, y)
    torch.testing.assert_close(losses[0, 1], there[0])
    torch.testing.assert_close(
        change[0, 1], (g - grad)[0, :stack.weights].norm())


def test_points_side_by_side_are_the_same_as_alone():
    points = [point(), point(seed=1, lr=0.3), point(lr=0.03)]
    many = land.several(config(), points, lambda step: None)
    for p, row in zip(points, many, strict=True):
        alone = land.landscape(config(), p, lambda step: None)
        assert set(alone) == set(row)
        np.testing.assert_allclose(row["loss"], alone["loss"], rtol=1e-3)
        if p["lr"] in config()["probed"]:
            np.testing.assert_allclose(row["sharpness"],
                                       alone["sharpness"], rtol=1e-2)
            assert np.shape(row["step_loss"]) == (2, 5)
            assert np.shape(row["share_cosine"]) == (2, 4)
        else:
            assert "sharpness" not in row


def test_a_run_repeats_itself_and_ticks():
    seen = []
    runs = [land.landscape(config(), point(method="linf"), seen.append)
            for _ in range(2)]
    assert runs[0] == runs[1] and seen == [0, 20, 0, 20]


def test_a_network_that_diverges_is_recorded_as_such():
    row = land.landscape(config(), point(method="none", lr=1e30),
                         lambda step: None)
    assert row["loss"][-1] is None
    assert land.digits(torch.tensor([1.23456, float("inf")])) == [1.235,
                                                                  None]


def test_normalised_and_plain_networks_start_from_the_same_weights():
    starts = {m: land.Stack(m, [64, 6, 10]).draw([3]) for m in land.ORDERS}
    n = 64 * 6 + 6 * 10
    for method in ("BN", "l1", "linf"):
        assert torch.equal(starts["none"][:, :n], starts[method][:, :n])
    plain = starts["none"][0]
    assert plain[:384].std() == pytest.approx((2 / 64) ** 0.5, rel=0.1)
    assert (plain[n:] == 0).all()
    assert (starts["BN"][0, -6:] == 1).all()
    default = starts["default"][0]
    assert 0.1 < default[:384].abs().max() <= 0.125
    assert 0 < default[n:].abs().max() <= 6 ** -0.5


def test_every_scale_has_the_controls_and_the_probed_rates():
    for scale in experiments.SCALES:
        c = experiments.configuration("landscape", scale)
        assert {"none", "default", "BN"} <= set(c["methods"])
        assert set(c["probed"]) <= set(c["learning_rates"])
        assert len(c["seeds"]) >= 3 and c["steps"] % c["parts"] == 0
