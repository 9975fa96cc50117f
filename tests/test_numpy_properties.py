"""What batch normalization must do for any batch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from normlab import numpy_layers as nl

EPS = 1e-12
PROFILE = settings(max_examples=60, deadline=None, derandomize=True)


@st.composite
def batches(draw, least=3):
    """A float64 batch whose channels all vary: (N, C) or (N, C, L)."""
    n, c = draw(st.integers(least, 12)), draw(st.integers(1, 4))
    shape = (n, c) if draw(st.booleans()) else (n, c, draw(
        st.integers(1, 5)))
    x = draw(hnp.arrays(np.float64, shape, elements=st.floats(
        -50, 50, width=32)))
    noise = np.random.default_rng(draw(st.integers(0, 99)))
    return x + noise.standard_normal(shape)


def normal(x, gamma=None, beta=None, eps=EPS):
    c = x.shape[1]
    gamma = np.ones(c) if gamma is None else gamma
    beta = np.zeros(c) if beta is None else beta
    return nl.batch_norm_forward(x, gamma, beta, eps)


def axes(x):
    return (0, *range(2, x.ndim))


def close(a, b, tol=1e-7):
    np.testing.assert_allclose(a, b, atol=tol, rtol=tol)


@PROFILE
@given(batches(), st.floats(-100, 100))
def test_shift_invariance(x, c):
    close(normal(x + c)[0], normal(x)[0])


@PROFILE
@given(batches(), st.floats(0.1, 100), st.sampled_from([-1, 1]))
def test_scale_gives_the_sign(x, a, sign):
    close(normal(sign * a * x)[0], sign * normal(x)[0])


@PROFILE
@given(batches(), st.integers(0, 99))
def test_permutation_of_the_batch(x, seed):
    order = np.random.default_rng(seed).permutation(len(x))
    close(normal(x[order])[0], normal(x)[0][order])


@PROFILE
@given(batches())
def test_duplication_changes_only_the_stored_variance(x):
    one, two = (nl.BatchNorm(x.shape[1], momentum=1.0, dtype=np.float64)
                for _ in range(2))
    y, both = one(x), two(np.concatenate([x, x]))
    close(both[:len(x)], y)
    m = x.size // x.shape[1]
    close(one.running_var / two.running_var,
          np.full(x.shape[1], (2 * m - 1) / (2 * m - 2)))


@PROFILE
@given(batches())
def test_two_moments_are_fixed(x):
    y, _ = normal(x)
    close(y.mean(axes(x)), 0 * y.mean(axes(x)))
    close(y.var(axes(x)), np.ones(x.shape[1]), 1e-6)


@PROFILE
@given(batches())
def test_normalised_values_are_bounded(x):
    m = x.size // x.shape[1]
    assert np.abs(normal(x)[0]).max() <= np.sqrt(m - 1) * (1 + 1e-9)


@PROFILE
@given(batches())
def test_batch_norm_of_batch_norm(x):
    y, _ = normal(x)
    close(normal(y)[0], y, 1e-6)


@PROFILE
@given(batches())
def test_the_identity_is_reachable(x):
    _, cache = normal(x)
    y, _ = normal(x, np.sqrt(cache.var + EPS), cache.shift + cache.rest)
    close(y, x)


@PROFILE
@given(batches(), st.integers(0, 99))
def test_gradient_identities(x, seed):
    rng = np.random.default_rng(seed)
    gamma, beta = rng.standard_normal((2, x.shape[1]))
    eps, dy = 0.1, rng.standard_normal(x.shape)
    y, cache = normal(x, gamma, beta, eps)
    dx, dgamma, dbeta = nl.batch_norm_backward(dy, cache)
    xhat = normal(x, eps=eps)[0]
    rho = cache.var / (cache.var + eps)
    zero = np.zeros(x.shape[1])
    close(dx.sum(axes(x)), zero)
    close((dx * xhat).sum(axes(x)),
          gamma * cache.inv_std * (1 - rho) * dgamma)
    b = beta.reshape((1, -1) + (1,) * (x.ndim - 2))
    close((dy * (y - b)).sum(axes(x)), gamma * dgamma)
    close(dbeta, dy.sum(axes(x)))


@PROFILE
@given(batches(), st.integers(0, 99))
def test_gradient_is_a_projection_when_eps_vanishes(x, seed):
    dy = np.random.default_rng(seed).standard_normal(x.shape)
    _, cache = normal(x, eps=1e-300)
    dx, *_ = nl.batch_norm_backward(dy, cache)
    xhat, m, ax = normal(x, eps=1e-300)[0], x.size // x.shape[1], axes(x)
    want = cache.inv_std ** 2 * (
        (dy ** 2).sum(ax) - m * dy.mean(ax) ** 2
        - m * (dy * xhat).mean(ax) ** 2)
    close((dx ** 2).sum(ax), want, 1e-6)


@PROFILE
@given(st.integers(0, 999))
def test_two_values_pass_no_gradient_without_eps(seed):
    rng = np.random.default_rng(seed)
    x, dy = rng.standard_normal((2, 2, 3))
    _, cache = normal(x, eps=1e-300)
    dx, *_ = nl.batch_norm_backward(dy, cache)
    close(dx * cache.var ** 0.5, np.zeros((2, 3)), 1e-6)


@PROFILE
@given(batches(least=4))
def test_training_equals_evaluation_with_the_batch_statistics(x):
    layer = nl.BatchNorm(x.shape[1], momentum=1.0, dtype=np.float64)
    y = layer(x)
    m = x.size // x.shape[1]
    layer.running_var *= (m - 1) / m
    close(layer.eval()(x), y)


@PROFILE
@given(batches(), batches())
def test_evaluation_is_affine(x, z):
    z = np.resize(z, x.shape)
    layer = nl.BatchNorm(x.shape[1], dtype=np.float64)
    layer(x)
    f = layer.eval()
    close(f(x + z) - f(x) - f(z) + f(0 * x), 0 * x, 1e-6)


@PROFILE
@given(batches(), st.integers(1, 11))
def test_merging_parts_gives_the_whole(x, cut):
    x = np.moveaxis(x, 1, -1).reshape(-1, x.shape[1])
    parts = [p for p in (x[:cut], x[cut:]) if len(p)]
    mean, var = nl.merge_moments([len(p) for p in parts],
                                 [p.mean(0) for p in parts],
                                 [p.var(0) for p in parts])
    close(mean, x.mean(0))
    close(var, x.var(0))


@pytest.mark.parametrize("m", [2, 3, 7])
@pytest.mark.parametrize("eps", [1e-5, 0.3])
def test_gradients_against_finite_differences(m, eps):
    rng = np.random.default_rng(m)
    x, dy = rng.standard_normal((2, m, 3))
    if m == 2:
        x[1] = x[0] + 0.7  # away from the spike at a tie
    gamma, beta = rng.standard_normal((2, 3))

    def loss(x, gamma, beta):
        return (nl.batch_norm_forward(x, gamma, beta, eps)[0] * dy).sum()

    _, cache = nl.batch_norm_forward(x, gamma, beta, eps)
    got = nl.batch_norm_backward(dy, cache)
    for which, grad in enumerate(got):
        args = [x, gamma, beta]
        for i in np.ndindex(grad.shape):
            steps = []
            for h in (1e-5, -1e-5):
                moved = [a.copy() for a in args]
                moved[which][i] += h
                steps.append(loss(*moved))
            slope = (steps[0] - steps[1]) / 2e-5
            assert abs(slope - grad[i]) < 1e-5 * max(1, abs(slope))
