"""normlab.sync: several processes against one with the whole batch."""

import inspect
import os
import time
from pathlib import Path

import numpy as np
import pytest
import sync_worker
import torch
from sync_worker import CASES, TIMEOUT, Case
from torch import nn

from normlab import torch_layers
from normlab.lab.world import run_world
from normlab.sync import (
    SyncBatchNorm,
    centre,
    input_gradient,
    local_moments,
    local_sums,
    merge_ranks,
    normalise,
)

torch.set_num_threads(1)
WORKER = Path(sync_worker.__file__).read_text()
EVERY = [(ranks, name) for ranks in CASES for name in CASES[ranks]]


@pytest.fixture(scope="module")
def worlds():
    """What the ranks of each world saved: {ranks: [{case: {key: array}}]}"""
    return {ranks: [unpack(r.arrays) for r in run_world(
        WORKER, ranks, ["cases"])] for ranks in CASES}


def unpack(arrays):
    """{"case/key": array} as {case: {key: array}}."""
    found = {}
    for name, value in arrays.items():
        case, key = name.split("/")
        found.setdefault(case, {})[key] = value
    return found


def reference(case):
    """One process with the whole batch, in float64, as a dict of arrays."""
    norm = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d,
            5: nn.BatchNorm3d}[1 + len(case.tail)]
    eps = case.options.get("eps", 1e-5)
    # PyTorch refuses eps = 0; this one changes no digit that is compared.
    options = {**case.options, "dtype": torch.float64, "eps": eps or 1e-30}
    layer = norm(case.tail[0], **options)
    for step in range(case.steps):
        x, dy, weight, bias = sync_worker.batch(case, step)
        if step == 0:
            sync_worker.fill(layer, weight, bias)
        x = x.double().contiguous().requires_grad_()
        layer.zero_grad()
        y = layer(x)
        y.backward(dy.double())
    return {k: v.detach().double().numpy() for k, v in {
        "y": y, "dx": x.grad,
        **{f"d{name}": p.grad for name, p in layer.named_parameters()},
        **dict(layer.named_buffers()), "eval": layer.eval()(x)}.items()}


def gap(got, want):
    """Largest difference, relative to the largest wanted value."""
    assert got.shape == want.shape
    return abs(got - want).max(initial=0) / abs(want).max()


@pytest.fixture(scope="module")
def wanted():
    return {(ranks, name): reference(CASES[ranks][name])
            for ranks, name in EVERY}


@pytest.mark.parametrize("ranks, name", EVERY)
def test_y_equals_one_process(worlds, wanted, ranks, name):
    y = np.concatenate([world[name]["y"] for world in worlds[ranks]])
    assert gap(y, wanted[ranks, name]["y"]) <= CASES[ranks][name].tolerance


@pytest.mark.parametrize("ranks, name", [
    (r, n) for r, n in EVERY if n != "pair"])
def test_dx_equals_one_process(worlds, wanted, ranks, name):
    dx = np.concatenate([world[name]["dx"] for world in worlds[ranks]])
    assert gap(dx, wanted[ranks, name]["dx"]) <= CASES[ranks][name].tolerance


def test_dx_of_a_pair(worlds, wanted):
    # Three terms, of which a part in 1e5 is left: relative to the terms.
    dx = np.concatenate([world["pair"]["dx"] for world in worlds[2]])
    x, dy, weight, _ = sync_worker.batch(CASES[2]["pair"])
    terms = weight * dy / (x.double().var(0, correction=0) + 1e-5).sqrt()
    error = abs(dx - wanted[2, "pair"]["dx"]).max()
    assert error <= 1e-6 * abs(terms).max().item()


@pytest.mark.parametrize("ranks, name", EVERY)
@pytest.mark.parametrize("key", ["dweight", "dbias"])
def test_parameter_gradients_add_up(worlds, wanted, ranks, name, key):
    parts = [world[name].get(key) for world in worlds[ranks]]
    if key not in wanted[ranks, name]:
        assert parts == [None] * ranks
    else:
        assert gap(sum(parts), wanted[ranks, name][key]) <= max(
            2e-6, CASES[ranks][name].tolerance)


@pytest.mark.parametrize("ranks, name", EVERY)
def test_running_statistics(worlds, wanted, ranks, name):
    names = ("running_mean", "running_var", "num_batches_tracked")
    first, want = worlds[ranks][0][name], wanted[ranks, name]
    for key in names:
        assert (key in first) == (key in want)
        if key in want:
            assert gap(first[key], want[key]) <= max(
                1e-6, CASES[ranks][name].tolerance)
        for other in worlds[ranks][1:]:  # to the bit
            assert np.array_equal(first.get(key), other[name].get(key))


@pytest.mark.parametrize("ranks, name", [
    (r, n) for r, n in EVERY if "far" not in n and n != "untracked"])
def test_evaluation_mode(worlds, wanted, ranks, name):
    # PyTorch's own inference: far from 0 it holds the mean in one float32.
    parts = [world[name]["eval"] for world in worlds[ranks]]
    assert gap(np.concatenate(parts), wanted[ranks, name]["eval"]) <= max(
        5e-6, 10 * CASES[ranks][name].tolerance)


@pytest.mark.parametrize("ranks, name", EVERY)
def test_one_collective_each_way(worlds, ranks, name):
    for world in worlds[ranks]:
        forward, backward, none_in_evaluation = world[name]["calls"]
        assert forward and backward and none_in_evaluation


@pytest.mark.parametrize("ranks, name", EVERY)
def test_layout_and_dtype_are_kept(worlds, ranks, name):
    for world in worlds[ranks]:
        assert world[name]["kept"].all()


@pytest.mark.parametrize("ranks", CASES)
def test_no_collective_backward_for_a_fixed_input(worlds, ranks):
    for world in worlds[ranks]:
        assert world["fixed"]["only"] and world["fixed"]["dweight"]


@pytest.mark.parametrize("ranks", CASES)
def test_too_few_values_is_refused_on_all_ranks(worlds, ranks):
    for world in worlds[ranks]:
        one, none, _ = world["refused"]["texts"]
        assert "SyncBatchNorm(3) block.norm: expected more than 1" in one
        assert "over all ranks together, got 1;" in one
        assert "over all ranks together, got 0;" in none
        assert world["refused"]["tracked"] == 1  # only the good batch


@pytest.mark.parametrize("ranks", CASES)
def test_double_backward_is_refused(worlds, ranks):
    for world in worlds[ranks]:
        assert "once_differentiable" in world["refused"]["texts"][2]


def test_only_the_group_is_normalised_together(worlds):
    first, second, third = (w["groups"] for w in worlds[3])
    both = np.concatenate([first["x"], second["x"]])
    want = (both - both.mean(0)) / np.sqrt(both.var(0) + 1e-5)
    assert gap(np.concatenate([first["y"], second["y"]]), want) < 1e-6
    alone = third["x"]
    want = (alone - alone.mean(0)) / np.sqrt(alone.var(0) + 1e-5)
    assert gap(third["y"], want) < 1e-6


def trained(counts):
    """The state after training in one process on the whole batches."""
    net = sync_worker.network()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for x, label in sync_worker.training_data(sum(counts)):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x), label).backward()
        optimiser.step()
    return {k: v.double().numpy() for k, v in net.state_dict().items()}


def worst(got, want):
    return max(gap(got[k], want[k]) for k in want)


@pytest.mark.parametrize("ranks", CASES)
def test_ddp_with_equal_counts_is_one_process(worlds, ranks):
    want = trained((8,) * ranks)
    for world in worlds[ranks]:
        assert worst(world["ddp"], want) < 1e-12


@pytest.mark.parametrize("ranks", CASES)
def test_ddp_with_unequal_counts_needs_weighted_losses(worlds, ranks):
    want = trained((3, 1, 20)[:ranks])
    for world in worlds[ranks]:
        assert worst(world["ddp-weighted"], want) < 1e-12
        assert worst(world["ddp-unequal"], want) > 1e-2


@pytest.mark.parametrize("how, ranks", [("die", 3), ("hang", 2)])
def test_a_lost_rank_ends_the_others(tmp_path, how, ranks):
    start = time.monotonic()
    world = run_world(WORKER, ranks, [how, str(tmp_path)], timeout=60,
                      check=False)
    assert time.monotonic() - start < 50
    for rank, left in enumerate(world[:-1]):
        # The first collective that the lost rank didn't join.
        missed = {"die": ("SyncBatchNorm(7) 4", "all_reduce"),
                  "hang": ("SyncBatchNorm(8) 1", "all_gather")}[how]
        assert str(left.arrays["error"]).startswith(
            f"{missed[0]}: rank {rank} of {ranks} got no answer to its "
            f"{missed[1]}. ")
        assert str(left.arrays["cause"])  # gloo's own words are kept
        assert left.arrays["step"] == 3
        assert left.arrays["seconds"] < TIMEOUT + 3
        assert "RuntimeError" in left.errors
    if how == "hang":
        assert left.arrays["seconds"] > TIMEOUT - 1
    for rank in range(ranks):
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / f"pid{rank}").read_text()), 0)


@pytest.mark.parametrize("mean, std", [(0, 1), (1e4, 1), (1e4, 1e-2)])
@pytest.mark.parametrize("counts", [(8, 8), (1, 59), (0, 5, 0, 11), (1, 1)])
def test_merge(counts, mean, std):
    x, _, _, _ = sync_worker.batch(Case(counts, mean=mean, std=std))
    table = torch.stack([local_moments(t) for t in x.split(counts)])
    total, got_mean, got_var = merge_ranks(table)
    x = x.double()
    assert total == sum(counts)
    assert gap(got_mean.numpy(), x.mean(0).numpy()) < 1e-7 * std / abs(
        x).max().item() + 1e-15
    assert gap(got_var.numpy(), x.var(0, correction=0).numpy()) < 1e-6


def test_a_constant_channel_has_no_negative_variance():
    x = torch.full((1000, 3), 1e4 / 3)
    assert (local_moments(x)[3:6] >= 0).all()
    assert (local_moments(x)[3:6] < 1e-9).all()


def test_backward_against_finite_differences():
    """The gradient of the whole, from parts: float64, central."""
    draw = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(7, 2, generator=draw, dtype=torch.float64)
             for _ in range(2))
    weight, eps, h = torch.tensor([1.5, -0.5], dtype=torch.float64), 0.1, 1e-5

    def loss(x):
        table = torch.stack([local_moments(t) for t in x.split([2, 5])])
        _, mean, var = merge_ranks(table)
        y = normalise(*centre(x, mean), weight, None, (var + eps).rsqrt())
        return (y * dy).sum(), mean, (var + eps).rsqrt()

    _, mean, inv_std = loss(x)
    parts = [(*centre(a, mean), b) for a, b in zip(x.split([2, 5]),
                                                   dy.split([2, 5]))]
    sums = sum(local_sums(b, d, rest) for d, rest, b in parts)
    dx = torch.cat([input_gradient(b, d, rest, weight, inv_std, sums / 7)
                    for d, rest, b in parts])
    for i, j in np.ndindex(*x.shape):
        step = torch.zeros_like(x)
        step[i, j] = h
        slope = (loss(x + step)[0] - loss(x - step)[0]) / (2 * h)
        assert abs(slope - dx[i, j]) < 1e-8


def test_alone_it_is_torch_batch_norm():
    ours, theirs = SyncBatchNorm(4), nn.BatchNorm2d(4)
    x = torch.randn(3, 4, 5, 5)
    for layer in (ours, theirs):
        layer.train()
    assert torch.equal(ours(x), theirs(x))
    assert torch.equal(ours.eval()(x), theirs.eval()(x))
    for name, value in theirs.state_dict().items():
        assert torch.equal(value, ours.state_dict()[name])


def test_constructor_is_torch_nn_s():
    theirs = inspect.signature(nn.SyncBatchNorm.__init__).parameters
    mine = inspect.signature(SyncBatchNorm.__init__).parameters
    assert [p for p in mine if p != "more"] == [
        p for p in theirs if p != "bias"]
    assert all(mine[p].default == theirs[p].default for p in mine
               if p not in ("self", "more"))
    assert repr(SyncBatchNorm(3)) == repr(nn.SyncBatchNorm(3))
    if "bias" in theirs:
        assert SyncBatchNorm(3, bias=False).bias is None


def test_state_dict_goes_both_ways():
    ours, theirs = SyncBatchNorm(4), nn.SyncBatchNorm(4)
    theirs.running_mean.add_(1)
    theirs.num_batches_tracked.add_(5)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    assert ours.num_batches_tracked == 5 and ours.running_mean[0] == 1
    theirs.load_state_dict(ours.state_dict())


@pytest.mark.parametrize("options", [
    {}, {"affine": False}, {"momentum": None, "eps": 1e-3},
    {"track_running_stats": False}])
def test_convert(options):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(
        nn.BatchNorm2d(4, **options), nn.ReLU()), nn.InstanceNorm2d(4))
    keys, old = list(net.state_dict()), net[1][0].eval()
    new = SyncBatchNorm.convert_sync_batchnorm(net, "a group")[1][0]
    assert type(new) is SyncBatchNorm and new.label == "1.0"
    assert list(net.state_dict()) == keys and not new.training
    assert type(net[2]) is nn.InstanceNorm2d and net[1].training
    assert new.weight is old.weight and new.bias is old.bias
    assert new.running_var is old.running_var
    assert (new.eps, new.momentum, new.process_group) == (
        old.eps, old.momentum, "a group")


def test_convert_the_layers_of_this_book():
    old = torch_layers.BatchNorm2d(4, eps=1e-3)
    new = SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(old))[0]
    assert type(new) is SyncBatchNorm and new.eps == 1e-3
    assert new.weight is old.weight


def test_convert_a_layer_by_itself_and_a_shared_one():
    assert type(SyncBatchNorm.convert_sync_batchnorm(
        nn.BatchNorm1d(3))) is SyncBatchNorm
    norm = nn.BatchNorm1d(3)
    net = nn.ModuleDict({"a": norm, "b": norm})
    SyncBatchNorm.convert_sync_batchnorm(net)
    assert all(type(m) is SyncBatchNorm for m in net.values())
    assert net["a"].weight is net["b"].weight


@pytest.mark.parametrize("x, error, words", [
    (torch.ones(4, 2), ValueError, r"\(N, 3, ...\), got \(4, 2\)"),
    (torch.ones(3), ValueError, r"\(N, 3, ...\), got \(3,\)"),
    (torch.ones(4, 3, dtype=torch.int), TypeError, "floats, got torch.int")])
def test_wrong_input(x, error, words):
    with pytest.raises(error, match=words):
        SyncBatchNorm(3)(x)
