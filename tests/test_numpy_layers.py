"""The NumPy layers against PyTorch's, and what they refuse."""

import warnings

import numpy as np
import pytest
import torch
from torch.testing._internal import common_modules

from normlab import numpy_layers as nl

CLASSES = {2: torch.nn.BatchNorm1d, 3: torch.nn.BatchNorm1d,
           4: torch.nn.BatchNorm2d, 5: torch.nn.BatchNorm3d}
SHAPES = [(8, 5), (2, 5), (61, 5), (8, 5, 7), (2, 5, 1), (4, 5, 3, 6),
          (1, 5, 2, 2), (3, 5, 1, 1), (4, 5, 3, 2, 2)]
DTYPES = [np.float32, np.float64]


def pair(shape, dtype, seed=0, **options):
    """Our layer and PyTorch's with the same random parameters."""
    rng = np.random.default_rng(seed)
    ours = nl.BatchNorm(shape[1], dtype=dtype, **options)
    if ours.affine:
        ours.weight[...] = rng.standard_normal(shape[1])
        ours.bias[...] = rng.standard_normal(shape[1])
    theirs = CLASSES[len(shape)](
        shape[1], dtype=torch.from_numpy(np.empty(0, dtype)).dtype, **options)
    theirs.load_state_dict({k: torch.from_numpy(v)
                            for k, v in ours.state_dict().items()})
    return ours, theirs


def same(ours, theirs, rtol):
    theirs = theirs.detach().numpy()
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    scale = max(1.0, np.abs(theirs).max(initial=0))
    assert np.abs(ours - theirs).max(initial=0) <= rtol * scale


@pytest.mark.parametrize("track", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("momentum", [0.1, 0.7, 0.0, 1.0, None])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_pytorch(shape, dtype, momentum, affine, track):
    ours, theirs = pair(shape, dtype, momentum=momentum, affine=affine,
                        track_running_stats=track)
    rng = np.random.default_rng(1)
    rtol = 2e-5 if dtype == np.float32 else 1e-12
    for step in range(4):
        if step == 3 and not (track is False and 2 in shape[:1]):
            ours.eval()
            theirs.eval()
        x = (3 + 2 * rng.standard_normal(shape)).astype(dtype)
        dy = rng.standard_normal(shape).astype(dtype)
        kept = x.copy(), dy.copy()
        tx = torch.from_numpy(x).requires_grad_()
        ty = theirs(tx)
        theirs.zero_grad()
        ty.backward(torch.from_numpy(dy))
        same(ours(x), ty, rtol)
        # At m = 2 the gradient is of order eps / sigma^3: a difference.
        m = x.size // shape[1]
        same(ours.backward(dy), tx.grad, rtol if m > 3 else 50 * rtol)
        assert (x == kept[0]).all() and (dy == kept[1]).all()
        if affine:
            same(ours.grads["weight"], theirs.weight.grad, rtol)
            same(ours.grads["bias"], theirs.bias.grad, rtol)
        state = ours.state_dict()
        assert list(state) == list(theirs.state_dict())
        for name, value in theirs.state_dict().items():
            same(state[name], value, rtol)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["BatchNorm1d", "BatchNorm2d",
                                  "BatchNorm3d"])
def test_pytorchs_own_module_inputs(name, training):
    info = next(m for m in common_modules.module_db
                if m.module_cls is getattr(torch.nn, name))
    inputs = info.module_inputs_func(info, device="cpu", dtype=torch.float64,
                                     requires_grad=False, training=training)
    assert inputs
    for case in inputs:
        args, options = (case.constructor_input.args,
                         dict(case.constructor_input.kwargs))
        options.pop("device", None)
        dtype = options.pop("dtype", None)
        assert dtype in (None, torch.float64)
        names = ("num_features", "eps", "momentum", "affine",
                 "track_running_stats")
        options |= dict(zip(names, args, strict=False))
        if not options.pop("bias", True):
            continue  # gamma without beta: an option of PyTorch's alone
        ours = nl.BatchNorm(**options, dtype=np.float64).train(training)
        theirs = info.module_cls(**options).double().train(training)
        x = case.forward_input.args[0]
        if x.numel() == 0:  # PyTorch lets an empty batch through; we don't
            with pytest.raises(ValueError, match="empty"):
                ours(x.numpy())
            continue
        same(ours(x.numpy()), theirs(x), 1e-12)


@pytest.mark.parametrize("shape", [(4, 6, 5, 3), (2, 64, 8, 8),
                                   (3, 7, 2, 5, 2)])
def test_channels_last_memory(shape):
    rng = np.random.default_rng(0)
    x = np.moveaxis(rng.standard_normal(
        (shape[0], *shape[2:], shape[1])).astype(np.float32), -1, 1)
    dy = rng.standard_normal(shape).astype(np.float32)
    gamma, beta = np.full(shape[1], 2, np.float32), np.ones(
        shape[1], np.float32)
    y, cache = nl.batch_norm_forward(x, gamma, beta)
    dx, *_ = nl.batch_norm_backward(dy, cache)
    y2, cache2 = nl.batch_norm_forward(np.ascontiguousarray(x), gamma, beta)
    dx2, *_ = nl.batch_norm_backward(dy, cache2)
    assert y.strides == x.strides == dx.strides
    np.testing.assert_allclose(y, y2, atol=2e-6)
    np.testing.assert_allclose(dx, dx2, atol=2e-6)


def test_views_and_odd_memory():
    rng = np.random.default_rng(0)
    big = rng.standard_normal((20, 12, 9))
    ones, zeros = np.ones(6), np.zeros(6)
    for x in (big[::2, ::2], big[:, :6, ::-1], big.transpose(2, 1, 0)[:, :6],
              np.broadcast_to(big[:, :6, :1], (20, 6, 5))):
        y, cache = nl.batch_norm_forward(x, ones, zeros)
        want, kept = nl.batch_norm_forward(x.copy(), ones, zeros)
        np.testing.assert_allclose(y, want, atol=1e-12)
        np.testing.assert_allclose(nl.batch_norm_backward(y, cache)[0],
                                   nl.batch_norm_backward(want, kept)[0],
                                   atol=1e-12)


def test_many_blocks_and_chains(monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((90, 3, 37))
    args = np.ones(3), np.zeros(3)
    y, cache = nl.batch_norm_forward(x, *args)
    dx, *_ = nl.batch_norm_backward(x, cache)
    monkeypatch.setattr(nl, "BLOCK", 100)
    monkeypatch.setattr(nl, "CHAIN", 5)
    for v in (x, np.moveaxis(np.moveaxis(x, 1, -1).copy(), -1, 1)):
        y2, cache = nl.batch_norm_forward(v, *args)
        np.testing.assert_allclose(y, y2, atol=1e-12)
        np.testing.assert_allclose(
            dx, nl.batch_norm_backward(v, cache)[0], atol=1e-12)


def test_half_precision():
    rng = np.random.default_rng(0)
    x = (300 + 20 * rng.standard_normal((512, 4))).astype(np.float16)
    y, cache = nl.batch_norm_forward(x, np.ones(4, np.float32),
                                     np.zeros(4, np.float32))
    want, _ = nl.batch_norm_forward(x.astype(np.float64), np.ones(4),
                                    np.zeros(4))
    assert y.dtype == np.float16
    assert nl.batch_norm_backward(y, cache)[0].dtype == np.float16
    assert np.abs(y - want).max() < 4e-3


def test_accuracy_goal():
    """P4: at most 5e-6 in y and 1e-6 relative in dx, never a NaN."""
    rng = np.random.default_rng(0)
    for n in (4096, 50176, 50177):
        for mean, std in ((0, 1), (1e3, 1), (1e4, 1), (1e4, 1e-2)):
            x = (mean + std * rng.standard_normal((n, 4))).astype(np.float32)
            dy = rng.standard_normal((n, 4)).astype(np.float32)
            y, cache = nl.batch_norm_forward(
                x, np.ones(4, np.float32), np.zeros(4, np.float32))
            dx, *_ = nl.batch_norm_backward(dy, cache)
            tx = torch.from_numpy(x.astype(np.float64)).requires_grad_()
            centred = tx - tx.detach().mean(0)
            ty = torch.nn.functional.batch_norm(centred, None, None,
                                                training=True)
            ty.backward(torch.from_numpy(dy.astype(np.float64)))
            want = tx.grad.numpy()
            assert np.abs(y - ty.detach().numpy()).max() <= 5e-6
            assert (np.linalg.norm(dx - want)
                    <= 1e-6 * np.linalg.norm(want))


def test_constant_channel_has_no_variance():
    for value in (0.1, 1e4, -3e-5, 12345.678):
        x = np.full((1000, 3), value, np.float32)
        y, cache = nl.batch_norm_forward(x, np.ones(3, np.float32),
                                         np.full(3, 7, np.float32))
        assert (cache.var >= 0).all() and (cache.var < 1e-6 * value ** 2).all()
        assert np.abs(y - 7).max() < 1e-2


def test_double_backward_agrees_with_autograd():
    rng = np.random.default_rng(0)
    for shape in ((2, 3), (3, 3), (6, 3, 4), (2, 3, 4, 5)):
        x, dy, v = (rng.standard_normal(shape) for _ in range(3))
        gamma = rng.standard_normal(3)
        _, cache = nl.batch_norm_forward(x, gamma, np.zeros(3), 1e-2)
        tx, td, tg = (torch.tensor(a, requires_grad=True)
                      for a in (x, dy, gamma))
        ty = torch.nn.functional.batch_norm(tx, None, None, tg, None, True,
                                            eps=1e-2)
        dx, = torch.autograd.grad(ty, tx, td, create_graph=True)
        want = torch.autograd.grad((dx * torch.tensor(v)).sum(),
                                   (tx, td, tg))
        got = nl.batch_norm_double_backward(v, dy, cache)
        for g, w in zip(got, want, strict=True):
            same(g, w, 1e-11)


def small_net(rng, dtype=np.float64):
    return nl.Sequential(
        nl.Conv2d(1, 4, 3, rng, padding=1, bias=False, dtype=dtype),
        nl.BatchNorm(4, dtype=dtype), nl.ReLU(),
        nl.Conv2d(4, 4, 3, rng, padding=1, stride=2, groups=4, dtype=dtype),
        nl.Tanh(), nl.Flatten(), nl.Linear(36, 5, rng, dtype=dtype),
        nl.BatchNorm(5, dtype=dtype), nl.Sigmoid(),
        nl.Linear(5, 3, rng, dtype=dtype))


def torch_net(ours):
    t = torch.nn
    theirs = t.Sequential(
        t.Conv2d(1, 4, 3, padding=1, bias=False), t.BatchNorm2d(4), t.ReLU(),
        t.Conv2d(4, 4, 3, padding=1, stride=2, groups=4), t.Tanh(),
        t.Flatten(), t.Linear(36, 5), t.BatchNorm1d(5), t.Sigmoid(),
        t.Linear(5, 3)).double()
    theirs.load_state_dict({k: torch.from_numpy(v)
                            for k, v in ours.state_dict().items()})
    return theirs


def test_a_whole_network_trains_as_pytorchs():
    rng = np.random.default_rng(0)
    ours = small_net(rng)
    theirs = torch_net(ours)
    optimiser = nl.SGD(ours, lr=0.1, momentum=0.9, weight_decay=0.01)
    other = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9,
                            weight_decay=0.01)
    loss = nl.SoftmaxCrossEntropy()
    for _ in range(5):
        x, t = rng.standard_normal((16, 1, 6, 6)), rng.integers(0, 3, 16)
        value = loss(ours(x), t)
        ours.backward(loss.backward())
        optimiser.step()
        want = torch.nn.functional.cross_entropy(
            theirs(torch.from_numpy(x)), torch.from_numpy(t))
        other.zero_grad()
        want.backward()
        other.step()
        assert abs(value - want.item()) < 1e-10
    for name, value in theirs.state_dict().items():
        same(ours.state_dict()[name], value, 1e-9)


def test_pooling_agrees_with_pytorch():
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, 3, 4, 5)), rng.standard_normal((2, 3))
    pool = nl.GlobalAvgPool2d()
    tx = torch.from_numpy(x).requires_grad_()
    ty = torch.nn.functional.adaptive_avg_pool2d(tx, 1).flatten(1)
    same(pool(x), ty, 1e-12)
    ty.backward(torch.from_numpy(dy))
    same(np.array(pool.backward(dy)), tx.grad, 1e-12)


def test_precise_statistics_are_those_of_all_batches_together():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 4)) + np.arange(60)[:, None]
    net = nl.Sequential(nl.BatchNorm(4, dtype=np.float64))
    before = net.state_dict()
    net.eval()
    nl.precise_statistics(net, [x[:50], x[50:]])
    np.testing.assert_allclose(net[0].running_mean, x.mean(0))
    np.testing.assert_allclose(net[0].running_var, x.var(0, ddof=1))
    assert not net.training and not net[0].training
    assert net[0].num_batches_tracked == before["0.num_batches_tracked"]
    kept = net.state_dict()
    for batches in ([], [x[:1]], [x, "nonsense"]):
        with pytest.raises((ValueError, TypeError)):
            nl.precise_statistics(net, batches)
        for name, value in kept.items():
            assert (net.state_dict()[name] == value).all()


GOOD = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
BAD_INPUT = [
    (np.ones((8,), np.float32), ValueError, r"x must have 2 axes.*\(8,\)"),
    (np.array(1.0), ValueError, "x must have 2 axes"),
    (np.ones((8, 4), np.float32), ValueError, r"3 channels.*\(8, 4\)"),
    (np.ones((1, 3), np.float32), ValueError, "more than 1 value a channel"),
    (np.ones((0, 3), np.float32), ValueError, "x must not be empty"),
    (np.ones((1, 3, 1, 1)), ValueError, "more than 1 value a channel"),
    (np.ones((8, 3), int), TypeError, "x must be a NumPy array.*int64"),
    (np.ones((8, 3), bool), TypeError, "x must be a NumPy array.*bool"),
    (np.ones((8, 3), complex), TypeError, "x must be a NumPy array.*complex"),
    (np.full((8, 3), "1"), TypeError, "x must be a NumPy array.*<U1"),
    ([[1.0, 2.0, 3.0]] * 8, TypeError, "x must be a NumPy array.*list"),
    ("text", TypeError, "x must be a NumPy array.*str"),
    (None, TypeError, "x must be a NumPy array.*NoneType"),
]


@pytest.mark.parametrize("x, error, message", BAD_INPUT)
def test_bad_input_is_refused_and_changes_nothing(x, error, message):
    layer = nl.BatchNorm(3)
    layer(GOOD)
    before = layer.state_dict()
    with pytest.raises(error, match=message):
        layer(x)
    for name, value in before.items():
        assert (layer.state_dict()[name] == value).all()
    layer.backward(GOOD)  # the last good forward pass still counts


@pytest.mark.parametrize("options, error, message", [
    ({"num_features": 0}, ValueError, "num_features.*got 0"),
    ({"num_features": -3}, ValueError, "num_features.*got -3"),
    ({"num_features": 2.5}, ValueError, "num_features.*got 2.5"),
    ({"num_features": "3"}, ValueError, "num_features.*'3'"),
    ({"num_features": True}, ValueError, "num_features.*True"),
    ({"eps": 0}, ValueError, "eps.*got 0"),
    ({"eps": -1e-5}, ValueError, "eps.*got -1e-05"),
    ({"eps": float("nan")}, ValueError, "eps.*nan"),
    ({"eps": "1e-5"}, ValueError, "eps.*'1e-5'"),
    ({"eps": None}, ValueError, "eps.*None"),
    ({"momentum": -0.1}, ValueError, "momentum.*-0.1"),
    ({"momentum": 1.5}, ValueError, "momentum.*1.5"),
    ({"momentum": "x"}, ValueError, "momentum.*'x'"),
    ({"dtype": int}, TypeError, "dtype.*int"),
])
def test_bad_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        nl.BatchNorm(**{"num_features": 3, **options})


@pytest.mark.parametrize("change, error, message", [
    (lambda s: s.pop("running_var"), ValueError, "missing.*running_var"),
    (lambda s: s.update(extra=np.ones(3)), ValueError, "unexpected.*extra"),
    (lambda s: s.update(weight=np.ones(4)), ValueError,
     r"'weight'.*\(3,\).*\(4,\)"),
    (lambda s: s.update(bias=np.ones((3, 1))), ValueError, "'bias'"),
    (lambda s: s.update(bias=np.array(["a"] * 3)), TypeError, "'bias'"),
    (lambda s: s.update(num_batches_tracked=np.ones(3)), ValueError,
     "'num_batches_tracked'"),
])
def test_bad_state_dicts_are_refused_whole(change, error, message):
    layer, other = nl.BatchNorm(3), nl.BatchNorm(3)
    other(GOOD)
    state = other.state_dict()
    change(state)
    before = layer.state_dict()
    with pytest.raises(error, match=message):
        layer.load_state_dict(state)
    for name, value in before.items():
        assert (layer.state_dict()[name] == value).all()


def test_bad_functions_arguments():
    ones, zeros = np.ones(3, np.float32), np.zeros(3, np.float32)
    for args, message in [((GOOD, ones[:2], zeros), "gamma"),
                          ((GOOD, ones, zeros[:, None]), "beta"),
                          ((GOOD, ones, zeros, 0), "eps"),
                          ((GOOD, ones, zeros, -1.0), "eps")]:
        with pytest.raises(ValueError, match=message):
            nl.batch_norm_forward(*args)
    with pytest.raises(TypeError, match="gamma"):
        nl.batch_norm_forward(GOOD, [1, 1, 1], zeros)
    _, cache = nl.batch_norm_forward(GOOD, ones, zeros)
    with pytest.raises(ValueError, match="dy"):
        nl.batch_norm_backward(GOOD[:4], cache)
    with pytest.raises(TypeError, match="dy"):
        nl.batch_norm_backward(GOOD.astype(int), cache)
    layer = nl.BatchNorm(3)
    with pytest.raises(RuntimeError, match="forward pass"):
        layer.backward(GOOD)


def test_state_dict_is_a_copy():
    layer = nl.BatchNorm(3)
    state = layer.state_dict()
    state["weight"][...] = 5
    layer(GOOD)
    assert (layer.weight == 1).all() and (state["running_mean"] == 0).all()


def test_no_warnings_on_ordinary_batches():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer = nl.BatchNorm(3)
        layer.backward(layer(GOOD))
        layer.eval()
        layer.backward(layer(GOOD[:1]))
