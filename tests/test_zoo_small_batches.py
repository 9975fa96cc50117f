"""Batch renormalisation and ghost batch normalization."""

import copy
import pickle
from functools import partial

import pytest
import torch
from torch import nn

from normlab import zoo

torch.set_num_threads(1)
SHAPES = {zoo.BatchRenorm1d: [(6, 3), (6, 3, 5)],
          zoo.BatchRenorm2d: [(6, 3, 4, 5)]}
CASES = [(kind, shape) for kind, shapes in SHAPES.items()
         for shape in shapes]
WIDE = lambda step: (1e9, 1e9)  # noqa: E731


def draw(shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return 2 + 3 * torch.randn(shape, generator=generator,
                               dtype=torch.float64).to(dtype)


def old(layer):
    """The layer with a past: parameters and statistics of its own."""
    for seed, t in enumerate(layer.state_dict().values()):
        if t.dim():
            t.copy_(draw(t.shape, seed).abs() / 2 + 0.3)
    return layer


def axes(x):
    return [i for i in range(x.dim()) if i != 1]


def column(t, x):
    return t.view(-1, *[1] * (x.dim() - 2))


@pytest.mark.parametrize("kind, shape", CASES)
def test_without_correction_it_is_batch_normalization(kind, shape):
    x = draw(shape).requires_grad_()
    ours = kind(3, dtype=torch.float64)
    theirs = getattr(nn, kind.__name__.replace("Renorm", "Norm"))(
        3, dtype=torch.float64)
    grads = []
    for layer in (ours, theirs):
        y = layer(x)
        (y ** 3).sum().backward()
        grads.append((y.detach(), x.grad, layer.weight.grad,
                      layer.bias.grad))
        x.grad = None
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind, shape", CASES)
def test_inside_the_limits_it_is_population_normalisation(kind, shape):
    x, layer = draw(shape), old(kind(3, limits=WIDE, dtype=torch.float64))
    mean, std = layer.running_mean.clone(), layer.running_std.clone()
    want = (x - column(mean, x)) / column(std, x)
    want = want * column(layer.weight, x) + column(layer.bias, x)
    torch.testing.assert_close(layer(x), want, rtol=0, atol=1e-13)


def test_limits_clip_and_pass_no_gradient():
    x = draw((6, 2)).requires_grad_()
    mean, std = torch.tensor([[0.0, 9], [0.1, 99]], dtype=torch.float64)
    y, own, own_std = zoo.batch_renorm(x, mean, std, 2.0, 0.5, eps=1e-3)
    var = x.detach().var(0, correction=0)
    torch.testing.assert_close(own_std, (var + 1e-3).sqrt())
    torch.testing.assert_close(own, x.detach().mean(0))
    r = torch.tensor([2.0, 0.5], dtype=torch.float64)
    d = torch.stack([torch.tensor(0.5), (own[1] - 9) / 99]).double()
    xhat = nn.functional.batch_norm(x, None, None, training=True, eps=1e-3)
    torch.testing.assert_close(y, xhat * r + d)
    dy = draw((6, 2), 1)
    got, = torch.autograd.grad(y, x, dy)
    want, = torch.autograd.grad(xhat * r, x, dy)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("shape", [(5, 2), (3, 2, 2, 2)])
def test_gradients_by_finite_differences(shape):
    # Clipped everywhere: r and d are constants, as autograd takes them.
    mean, std = torch.full((2,), -50.0).double(), torch.ones(2).double() / 50
    w, b, x = draw((2,), 1), draw((2,), 2), draw(shape)
    inputs = [t.requires_grad_() for t in (x, w, b)]
    torch.autograd.gradcheck(lambda x, w, b: zoo.batch_renorm(
        x, mean, std, 1.5, 0.5, w, b)[0], inputs)


def test_running_statistics_average_means_and_standard_deviations():
    layer = zoo.BatchRenorm1d(2, momentum=0.25, dtype=torch.float64)
    plain = zoo.BatchRenorm1d(2, momentum=None, dtype=torch.float64)
    means, stds, mean, std = [], [], 0.0, 1.0
    for seed in range(3):
        x = draw((7, 2), seed)
        layer(x), plain(x)
        means.append(x.mean(0))
        stds.append((x.var(0, correction=0) + 1e-5).sqrt())
        mean = 0.75 * mean + 0.25 * means[-1]
        std = 0.75 * std + 0.25 * stds[-1]
    torch.testing.assert_close(layer.running_mean, mean)
    torch.testing.assert_close(layer.running_std, std)
    torch.testing.assert_close(plain.running_mean, sum(means) / 3)
    torch.testing.assert_close(plain.running_std, sum(stds) / 3)
    assert layer.num_batches_tracked == 3


@pytest.mark.parametrize("kind, shape", CASES)
def test_evaluation_uses_the_running_statistics_alone(kind, shape):
    layer = old(kind(3, dtype=torch.float64)).eval()
    before, x = copy.deepcopy(layer.state_dict()), draw(shape)
    both, one = layer(x), layer(x[:1])
    assert torch.equal(both[:1], one)
    want = (x - column(layer.running_mean, x)) / column(layer.running_std, x)
    want = want * column(layer.weight, x) + column(layer.bias, x)
    torch.testing.assert_close(both, want)
    for name, t in layer.state_dict().items():
        assert torch.equal(t, before[name])


def test_evaluation_gradient_survives_a_training_step():
    layer = old(zoo.BatchRenorm1d(3, dtype=torch.float64)).eval()
    x = draw((4, 3)).requires_grad_()
    y, scale = layer(x), layer.weight / layer.running_std
    want = scale.detach().expand(4, 3).clone()
    layer.train()(x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, want)


def test_limits_follow_the_papers_schedule():
    steps = [0, 5_000, 15_000, 22_500, 25_000, 40_000, 99_999]
    r, d = zip(*(zoo.renorm_limits(s) for s in steps), strict=True)
    assert [round(float(v), 6) for v in r] == [
        1, 1, 1.571429, 2, 2.142857, 3, 3]
    assert [round(float(v), 6) for v in d] == [0, 0, 2.5, 4.375, 5, 5, 5]


def test_the_layer_counts_its_own_steps():
    limits = partial(zoo.renorm_limits, start=1, r_end=2, d_end=2,
                     r_max=1e9, d_max=1e9)
    layer = zoo.BatchRenorm1d(2, momentum=0.0, limits=limits,
                              dtype=torch.float64)
    x = draw((5, 2))
    first, second, third = layer(x), layer(x), layer(x)
    assert torch.equal(first, second)
    torch.testing.assert_close(third, x, rtol=0, atol=1e-12)  # mean 0, std 1


def test_state_dict_goes_there_and_back():
    layer = zoo.BatchRenorm1d(3)
    layer(draw((4, 3), dtype=torch.float32))
    assert list(layer.state_dict()) == [
        "weight", "bias", "running_mean", "running_std",
        "num_batches_tracked"]
    other = zoo.BatchRenorm1d(3)
    other.load_state_dict(pickle.loads(pickle.dumps(layer.state_dict())))
    x = draw((4, 3), 5, torch.float32)
    assert torch.equal(layer.eval()(x), other.eval()(x))
    assert other.num_batches_tracked == 1
    assert pickle.loads(pickle.dumps(layer)).eval()(x).equal(layer(x))


@pytest.mark.parametrize("layer", [
    zoo.BatchRenorm1d(3), zoo.BatchRenorm1d(3, affine=False),
    zoo.GhostBatchNorm1d(3, 2)], ids=repr)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16,
                                   torch.float32])
def test_the_output_has_the_inputs_type(layer, dtype):
    x = draw((6, 3)).to(dtype)
    for mode in (True, False):
        y = layer.train(mode)(x)
        assert y.dtype == dtype and y.shape == x.shape
    assert layer.running_mean.dtype == torch.float32


@pytest.mark.parametrize("kind", SHAPES)
def test_errors_name_what_is_wrong(kind):
    for bad in ({"num_features": 0}, {"num_features": 2.0}, {"eps": 0.0},
                {"momentum": 1.5}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            kind(**{"num_features": 3} | bad)
    layer, shape = kind(3), SHAPES[kind][0]
    with pytest.raises(ValueError, match="3 channels on axis 1"):
        layer(torch.zeros(shape[0], 4, *shape[2:]))
    with pytest.raises(ValueError, match=f"{kind.__name__} takes"):
        layer(torch.zeros(2, 3, 2, 2, 2))
    one = torch.zeros(1, 3, *[1] * (len(shape) - 2))
    with pytest.raises(ValueError, match="more than 1 value"):
        layer(one)
    assert layer.eval()(one).shape == one.shape


def test_limits_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="start"):
        zoo.renorm_limits(3, start=10, r_end=10)
    with pytest.raises(ValueError, match="r_max"):
        zoo.renorm_limits(3, r_max=0.5)
    with pytest.raises(ValueError, match="d_max"):
        zoo.renorm_limits(3, d_max=-1)


def test_repr_names_the_options():
    assert repr(zoo.BatchRenorm2d(3, momentum=0.01)) == (
        "BatchRenorm2d(3, eps=1e-05, momentum=0.01, affine=True)")
    assert "ghost_size=4" in repr(zoo.GhostBatchNorm2d(3, 4))


GHOSTS = [(zoo.GhostBatchNorm1d, nn.BatchNorm1d, (8, 3)),
          (zoo.GhostBatchNorm1d, nn.BatchNorm1d, (8, 3, 5)),
          (zoo.GhostBatchNorm2d, nn.BatchNorm2d, (8, 3, 4, 5))]


@pytest.mark.parametrize("ours, theirs, shape", GHOSTS)
@pytest.mark.parametrize("ghost_size, pieces", [
    (2, [2, 2, 2, 2]), (3, [3, 5]), (5, [8]), (8, [8]), (100, [8])])
def test_groups_are_normalised_apart(ours, theirs, shape, ghost_size,
                                     pieces):
    layer = ours(3, ghost_size, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(draw((3,), 1))
        layer.bias.copy_(draw((3,), 2))
    x = draw(shape).requires_grad_()
    want = torch.cat([nn.functional.batch_norm(
        part, None, None, layer.weight, layer.bias, training=True)
        for part in x.split(pieces)])
    y = layer(x)
    torch.testing.assert_close(y, want)
    dy = draw(shape, 3)
    for a, b in zip(*(torch.autograd.grad(
            out, (x, layer.weight, layer.bias), dy) for out in (y, want)),
            strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("ours, theirs, shape", GHOSTS)
@pytest.mark.parametrize("momentum", [0.3, None])
def test_running_statistics_and_evaluation_are_batch_norms(
        ours, theirs, shape, momentum):
    a = ours(3, 3, momentum=momentum, dtype=torch.float64)
    b = theirs(3, momentum=momentum, dtype=torch.float64)
    for seed in range(3):
        a(draw(shape, seed)), b(draw(shape, seed))
    for name, t in b.state_dict().items():
        torch.testing.assert_close(a.state_dict()[name], t)
    torch.testing.assert_close(a.eval()(draw(shape)), b.eval()(draw(shape)))
    theirs(3, dtype=torch.float64).load_state_dict(a.state_dict())


def test_ghost_without_running_statistics_keeps_its_groups():
    layer = zoo.GhostBatchNorm1d(3, 4, track_running_stats=False)
    x = draw((8, 3), dtype=torch.float32)
    assert torch.equal(layer(x), layer.eval()(x))


def test_ghost_errors_name_what_is_wrong():
    for bad in (0, -1, 2.0, None):
        with pytest.raises(ValueError, match="ghost_size"):
            zoo.GhostBatchNorm1d(3, bad)
    with pytest.raises(ValueError, match="eps"):
        zoo.GhostBatchNorm1d(3, 2, eps=0)
    with pytest.raises(ValueError, match="more than 1 value"):
        zoo.GhostBatchNorm1d(3, 1)(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="2D or 3D"):
        zoo.GhostBatchNorm1d(3, 1)(torch.zeros(4, 3, 2, 2))


def test_the_functions_refuse_what_they_cannot_do():
    x, zero, one = draw((4, 3)), torch.zeros(3), torch.ones(3)
    for limits in ((0.5, 0), (1, -1), (float("nan"), 0)):
        with pytest.raises(ValueError, match="r_max must be at least 1"):
            zoo.batch_renorm(x, zero, one, *limits)
    for size in (0, -2, 1.5):
        with pytest.raises(ValueError, match=f"from 1, got {size}"):
            zoo.ghost_batch_norm(x, size)
