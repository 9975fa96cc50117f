"""Cases for normlab.kernels, on small tensors: on the CPU in Triton's
interpreter, on CUDA as they are. tests/test_kernels.py runs this file in a
process of its own, since Triton reads TRITON_INTERPRET once, on import.
"""

import itertools
import os

import pytest
import torch
import triton
import triton.language as tl
from torch.nn import functional

from benchmarks import kernels as bench
from normlab import kernels
from normlab.lab.traffic import passes

torch.set_num_threads(1)
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
EPS = 1e-5
LAYOUTS = ("planes", "rows")
FUSED = [(False, False), (True, False), (False, True), (True, True)]
HALF = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Tiles so small that a few hundred values need several."""
    monkeypatch.setattr(kernels, "TILE", 256)
    monkeypatch.setattr(kernels, "PROGRAMS", 6)


def lay(a, layout):
    """a (N, C, ...) in the memory layout with that name."""
    if layout == "planes":
        return a.contiguous()
    return a.movedim(1, -1).contiguous().movedim(-1, 1)


class Batch:
    """Random x, dy, residual, weight and bias on DEVICE."""

    def __init__(self, shape, layout="planes", dtype=torch.float32, mean=0.0,
                 std=1.0, seed=0):
        torch.manual_seed(seed)
        x, dy, residual = torch.randn((3, *shape))
        self.x, self.dy, self.residual = (
            lay(a.to(dtype).to(DEVICE), layout)
            for a in (mean + std * x, dy, residual))
        self.weight, self.bias = (
            torch.rand(2, shape[1]) + 0.5).to(DEVICE)

    def ours(self, relu=False, add=False):
        """y, statistics and gradients by the kernels."""
        residual = self.residual if add else None
        y, *stats = kernels.forward(self.x, self.weight, self.bias, EPS,
                                    relu, residual)
        shift, rest, _, inv_std = stats
        return y, stats, kernels.backward(
            self.dy, self.x, self.weight, self.bias, shift, rest, inv_std,
            relu, residual)

    def reference(self, relu=False, add=False):
        """The same by autograd, in float64."""
        leaves = [a.double().requires_grad_() for a in (
            self.x, self.weight, self.bias, self.residual)]
        x, weight, bias, residual = leaves
        axes = [0, *range(2, x.dim())]
        shape = [1, -1] + [1] * (x.dim() - 2)
        mean = x.mean(axes, keepdim=True)
        var = (x - mean).square().mean(axes, keepdim=True)
        y = ((x - mean) / (var + EPS).sqrt() * weight.view(shape)
             + bias.view(shape))
        y = y + residual if add else y
        y = y.relu() if relu else y
        grads = torch.autograd.grad(
            y, leaves if add else leaves[:3], self.dy.double())
        return (y.detach(), (mean.detach().flatten(), var.detach().flatten()),
                grads)


def relative(got, want):
    """The error's norm over the norm of what is wanted."""
    norm = float(want.norm())
    return float((got.double() - want).norm()) / (norm or 1.0)


def assert_right(b, relu=False, add=False, y_atol=5e-6, rtol=1e-6):
    """Every result of a training step against float64."""
    y, (shift, rest, var, inv_std), grads = b.ours(relu, add)
    y64, (mean64, var64), grads64 = b.reference(relu, add)
    assert float((y.double() - y64).abs().max()) <= y_atol
    exact = shift.double() + rest.double()
    assert float(((exact - mean64) / (var64 + EPS).sqrt()).abs().max()) < 1e-6
    torch.testing.assert_close(var.double(), var64, rtol=1e-5, atol=1e-12)
    torch.testing.assert_close(
        inv_std.double(), (var64 + EPS).rsqrt(), rtol=1e-5, atol=0)
    assert len(grads) == len(grads64)
    for got, want in zip(grads, grads64, strict=True):
        assert relative(got, want) <= rtol
    assert y.dtype == grads[0].dtype == b.x.dtype
    assert y.stride() == grads[0].stride() == b.x.stride()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("relu, add", FUSED)
def test_a_training_step(layout, relu, add):
    assert_right(Batch((7, 5, 6, 12), layout), relu, add)


@pytest.mark.parametrize("shape", [(60, 12), (9, 3, 40), (2, 3, 4, 5, 6)])
def test_other_dimensions(shape):
    assert_right(Batch(shape), relu=True)


# The shapes that broke other kernels.
@pytest.mark.parametrize("layout, channels", [("planes", 1), ("rows", 2)])
def test_a_batch_over_2048_with_an_odd_number_of_positions(
        layout, channels, monkeypatch):
    monkeypatch.setattr(kernels, "TILE", 4096)
    assert_right(Batch((2049, channels, 7, 7), layout))


@pytest.mark.parametrize("channels", [1, 3, 65, 96])
def test_channels_that_are_no_power_of_two(channels):
    assert_right(Batch((12, channels)))


@pytest.mark.parametrize("n, spatial", [
    (1, 255), (1, 256), (1, 257), (2, 127), (8, 31), (8, 33), (17, 16)])
def test_one_value_short_of_a_tile_or_beyond(n, spatial):
    assert_right(Batch((n, 2, spatial)))


@pytest.mark.parametrize("n", [63, 64, 65, 129])
def test_one_row_short_of_a_tile_or_beyond(n):
    assert_right(Batch((n, 4)))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("std", [1.0, 1e-2])
def test_a_mean_of_ten_thousand_keeps_its_digits(layout, std):
    assert_right(Batch((16, 3, 8, 8), layout, mean=1e4, std=std))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parts_with_means_far_apart(layout):
    b = Batch((40, 2, 4, 8), layout)
    b.x += 100 * torch.arange(40.0, device=DEVICE).view(-1, 1, 1, 1)
    assert_right(b)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("layout, add", [("planes", True), ("rows", False)])
def test_half_precision_is_stored_and_float32_computed(dtype, layout, add):
    b = Batch((5, 8, 6, 8), layout, dtype, mean=3.0)
    assert_right(b, add=add, y_atol=5 * HALF[dtype], rtol=HALF[dtype])
    y, stats, (_, dweight, dbias, *_) = b.ours(add=add)
    _, (mean64, _), grads64 = b.reference(add=add)
    assert relative(stats[0] + stats[1], mean64) < 1e-6
    assert relative(dweight, grads64[1]) < 1e-6
    assert relative(dbias, grads64[2]) < 1e-6
    assert {a.dtype for a in stats} == {torch.float32}


def test_one_value_a_channel_gives_the_bias():
    b = Batch((1, 5))
    y, (shift, rest, var, _), (dx, _, dbias) = b.ours()
    torch.testing.assert_close(y[0], b.bias)
    torch.testing.assert_close(shift + rest, b.x[0])
    assert not var.any() and not dx.any()
    torch.testing.assert_close(dbias, b.dy[0])


def test_a_constant_channel_gives_the_bias_and_no_negative_variance():
    b = Batch((75, 40))
    values = torch.cat((torch.zeros(1), 1e4 * torch.randn(39))).to(DEVICE)
    b.x[:] = values
    y, (_, _, var, _), _ = b.ours()
    torch.testing.assert_close(
        y, b.bias.expand(75, 40), rtol=0, atol=1e-5)
    assert bool((var >= 0).all()) and float(var.max()) < 1e-5


def test_nan_stays_in_its_channel_and_passes_the_relu():
    b = Batch((6, 4, 40))
    b.x[2, 1, 7] = float("nan")
    y, (_, _, var, _), (dx, *_) = b.ours(relu=True)
    for a in (y, dx):
        assert bool(a[:, 1].isnan().all())
        assert not bool(a[:, [0, 2, 3]].isnan().any())
    assert var.isnan().tolist() == [False, True, False, False]


def test_the_same_bits_twice():
    b = Batch((7, 5, 6, 12), mean=10.0)
    first, second = b.ours(relu=True, add=True), b.ours(relu=True, add=True)
    for a, c in zip([first[0], *first[1], *first[2]],
                    [second[0], *second[1], *second[2]], strict=True):
        assert torch.equal(a, c)


def test_weight_and_bias_may_be_missing():
    b = Batch((7, 5, 12))
    got = kernels.forward(b.x, None, None, EPS)[0]
    want = functional.batch_norm(b.x, None, None, training=True, eps=EPS)
    torch.testing.assert_close(got, want)


def test_memory_laid_out_otherwise_is_copied():
    b = Batch((6, 4, 9, 5))
    want, _, grads = b.ours(relu=True, add=True)
    other = Batch((6, 4, 9, 5))
    wide = torch.zeros((6, 4, 9, 10), device=DEVICE)
    wide[..., ::2] = other.x
    other.x = wide[..., ::2]  # has gaps
    other.dy, other.residual = (
        lay(a, "rows") for a in (other.dy, other.residual))
    pair = torch.stack((other.weight, other.bias), 1)
    other.weight, other.bias = pair.unbind(1)  # strided
    y, _, got = other.ours(relu=True, add=True)
    assert torch.equal(y, want)
    for a, c in zip(got, grads, strict=True):
        assert torch.equal(a, c)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("relu, add", FUSED)
def test_inference(layout, relu, add):
    b = Batch((5, 6, 8, 8), layout)
    mean, var = torch.randn(6, device=DEVICE), torch.rand(6, device=DEVICE)
    got = kernels.inference(b.x, b.weight, b.bias, mean, var, EPS, relu,
                            b.residual if add else None)
    want = functional.batch_norm(b.x, mean, var, b.weight, b.bias, eps=EPS)
    want = want + b.residual if add else want
    want = want.relu() if relu else want
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert got.stride() == b.x.stride()


@pytest.mark.skipif(not INTERPRETED, reason="counts in the interpreter")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("relu, add, expected", [
    (True, False, (3, 5, 2)), (False, True, (4, 5, 3)),
    (True, True, (4, 7, 3))])
def test_no_pass_over_the_tensor_too_many(layout, relu, add, expected):
    b = Batch((12, 2, 10, 10), layout)
    residual = b.residual if add else None
    _, shift, rest, var, inv_std = kernels.forward(b.x, None, None, EPS)
    for passed, function in zip(expected, (
            lambda: kernels.forward(
                b.x, b.weight, b.bias, EPS, relu, residual),
            lambda: kernels.backward(
                b.dy, b.x, b.weight, b.bias, shift, rest, inv_std, relu,
                residual),
            lambda: kernels.inference(
                b.x, b.weight, b.bias, shift, var, EPS, relu, residual)),
            strict=True):
        assert passed <= passes(function, b.x) < passed + 0.3


@triton.jit
def chan_kernel(a, b, out):
    n, mean, m2 = kernels.chan(
        tl.load(a), tl.load(a + 1), tl.load(a + 2),
        tl.load(b), tl.load(b + 1), tl.load(b + 2))
    tl.store(out, n)
    tl.store(out + 1, mean)
    tl.store(out + 2, m2)


EMPTY, GROUP, OTHER = (0.0, 0.0, 0.0), (3.0, 0.1, 0.7), (5.0, -2.0, 1.5)


@pytest.mark.parametrize("a, b, merged", [
    (EMPTY, EMPTY, EMPTY), (GROUP, EMPTY, GROUP), (EMPTY, GROUP, GROUP),
    (GROUP, OTHER, (8.0, -9.7 / 8, 2.2 + 2.1**2 * 15 / 8))])
def test_merge_of_two_groups_one_or_both_perhaps_empty(a, b, merged):
    a, b, merged = (torch.tensor(g, device=DEVICE) for g in (a, b, merged))
    out = torch.empty_like(a)
    chan_kernel[(1,)](a, b, out)
    torch.testing.assert_close(out, merged, rtol=1e-6, atol=0)


@triton.jit
def where_kernel(out, p, N, L, C: tl.constexpr, BN: tl.constexpr,
                 BC: tl.constexpr, BL: tl.constexpr, V: tl.constexpr):
    at, inside, c, count = kernels.tile(p, N, L, C, BN, BC, BL, V)
    i = (tl.arange(0, BN)[:, None, None] * BC * BL
         + tl.arange(0, BC)[None, :, None] * BL
         + tl.arange(0, BL)[None, None, :])
    tl.store(out + i, tl.where(inside, at, -1))
    tl.store(out + BN * BC * BL, count)


def where(p, **sizes):
    """Offsets of tile p (-1: no value there) and its count a channel."""
    values = sizes["BN"] * sizes["BC"] * sizes["BL"]
    out = torch.empty(values + 1, dtype=torch.int64, device=DEVICE)
    where_kernel[(1,)](out, p, **sizes)
    return out[:-1], int(out[-1])


@pytest.mark.parametrize("shape, layout", [
    ((3, 5, 50), "planes"), ((21, 3, 7), "planes"), ((11, 70), "rows")])
def test_tiles_cover_every_value_once_and_count_what_they_cover(
        shape, layout):
    x = lay(torch.empty(shape, device=DEVICE), layout)
    sizes, tiles, programs, S = kernels.plan(x, 64)
    seen = []
    for p in range(tiles):
        at, count = where(p, **sizes)
        at = at[at >= 0]
        channel = at // sizes["L"] % sizes["C"]
        assert set(channel.bincount().tolist()) <= {0, count}
        seen += at.tolist()
    assert sorted(seen) == list(range(x.numel()))
    blocks = triton.cdiv(sizes["C"], sizes["BC"])
    assert programs == S * blocks and tiles % blocks == 0


def test_offsets_beyond_two_to_the_31():
    sizes = dict(N=10_000, L=1000, C=1000, BN=2, BC=1, BL=512, V=8)
    p = 4000 * 1000 * 2 + 7  # images 8000 and 8001, channel 7
    at, _ = where(p, **sizes)
    assert int(at.min()) == (8000 * 1000 + 7) * 1000 > 2**31


def test_a_channel_too_long_for_32_bits_is_refused():
    long = torch.empty((1, 1, 2**31 - 1), device="meta")
    with pytest.raises(ValueError, match="values a channel"):
        kernels.check(long)



def refused(error, *args, **more):
    with pytest.raises(error) as info:
        kernels.forward(*args, 1e-5, **more)
    return str(info.value)


def test_refusals_name_what_came():
    x, one = torch.ones(4, 3, device=DEVICE), torch.ones(3, device=DEVICE)
    assert "float64" in refused(TypeError, x.double(), None, None)
    assert "(4,)" in refused(ValueError, x[:, 0], None, None)
    assert "(0, 3)" in refused(ValueError, x[:0], None, None)
    assert "weight must be (3,)" in refused(ValueError, x, one[:2], None)
    assert "bias must be (3,)" in refused(ValueError, x, one, x)
    assert "residual must be (4, 3)" in refused(
        ValueError, x, one, one, residual=x[:2])
    with pytest.raises(ValueError, match=r"dy must be \(4, 3\)"):
        kernels.backward(x[:1], x, one, one, one, one, one)
    with pytest.raises(ValueError, match=r"mean must be \(3,\)"):
        kernels.inference(x, one, one, one[:1], one, 1e-5)


@pytest.mark.parametrize("layout, work", list(itertools.product(
    LAYOUTS, bench.WORKS)), ids=lambda v: getattr(v, "name", v))
def test_the_benchmark_compares_like_with_like(layout, work, monkeypatch):
    monkeypatch.setattr(bench, "PEERS", ("native", "cudnn"))
    b = bench.batch((4, 6, 4, 8), layout, torch.float32, DEVICE)
    calls = []
    found = bench.run(work, layout, b, 1, lambda f: calls.append(f) or 1.0)
    assert found["fraction_of_copy"]["ours"] == work.passes / 2
    assert len(calls) == 4


def test_the_benchmark_notices_a_peer_that_differs():
    one = torch.ones(3)
    with pytest.raises(AssertionError, match="differs"):
        bench.check("native", bench.WORKS[0], one, lambda: [one],
                    lambda: [1.1 * one])

