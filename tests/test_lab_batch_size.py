"""The procedure for choosing a batch size."""

import numpy as np
import pytest
import torch
from torch import nn

from normlab import zoo
from normlab.lab import batch_size as tool
from normlab.lab.memory import saved_bytes

torch.set_num_threads(1)


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6))


def make_batch(size):
    return torch.randn(size, 1, 8, 8), torch.arange(size) % 6


def test_profile_has_a_row_for_each_size():
    rows = tool.profile(make_model, make_batch, [8, 2], pairs=2)
    assert [row.batch_size for row in rows] == [2, 8]
    assert [row.values for row in rows] == [
        {"1": 32, "5": 2}, {"1": 128, "5": 8}]
    for row in rows:
        assert row.examples_per_second == row.batch_size / row.seconds > 0
        x, _ = make_batch(row.batch_size)
        assert row.saved_per_example * row.batch_size == saved_bytes(
            make_model(), x)
        assert -1 <= row.agreement <= 1
    text = tool.table(rows).splitlines()
    assert len(text) == 3 and text[1].split()[0] == "2"
    assert text[2].split()[3] == "8"


def test_throughput_counts_time(monkeypatch):
    clock = iter(np.cumsum([0, 9, 0, 2, 0, 4, 0, 3]))  # the first warms up
    monkeypatch.setattr(tool.time, "perf_counter", lambda: next(clock))
    row, = tool.profile(make_model, make_batch, [6], repeats=3)
    assert row.seconds == 3 and row.examples_per_second == 2


def test_values_are_those_that_each_layer_normalises():
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), zoo.BatchRenorm2d(4), zoo.GhostBatchNorm2d(4, 2),
        nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, track_running_stats=True),
        nn.BatchNorm2d(4, track_running_stats=False))
    with tool.values_per_channel(net) as values:
        net(torch.randn(5, 1, 8, 8))
    assert values == {"1": 5 * 36, "2": 2 * 36, "5": 5 * 36}
    net(torch.randn(3, 1, 8, 8))  # the hooks are gone
    assert values["1"] == 5 * 36


def test_a_shared_layer_has_its_smallest_m():
    norm = nn.BatchNorm2d(1)
    net = nn.Sequential(norm, nn.AvgPool2d(2), norm, nn.Upsample(
        scale_factor=2), norm)
    with tool.values_per_channel(net) as values:
        net(torch.randn(2, 1, 4, 4))
    assert values == {"0": 8}


def test_frozen_layers_have_no_m():
    class FrozenBatchNorm2d(nn.BatchNorm2d):
        """Like torchvision's, it normalises with fixed statistics."""

    net = nn.Sequential(FrozenBatchNorm2d(2), nn.BatchNorm2d(2))
    with tool.values_per_channel(net) as values:
        net(torch.randn(3, 2, 2, 2))
    assert values == {"1": 12}


def test_agreement_grows_with_the_batch():
    torch.manual_seed(0)
    net = nn.Linear(20, 1)

    def make_batch(size):  # a signal of 0.5 in noise
        x = torch.randn(size, 20)
        return x, x[:, :1] * 0.5 + torch.randn(size, 1)

    small, large = (tool.gradient_agreement(
        net, make_batch, size, nn.functional.mse_loss, 40)
        for size in (2, 500))
    assert small < 0.4 < 0.8 < large


def test_knee_and_largest():
    rows = [tool.Row(b, 1.0, e, 100.0, {}, float("nan"))
            for b, e in ((2, 50), (4, 85), (8, 100), (16, 95))]
    assert tool.knee(rows) == 4
    assert tool.knee(rows, 1) == 8
    assert tool.largest(rows, 1000) == 10
    assert tool.largest(rows, 1000, fixed=700) == 3
    assert tool.largest(rows, 1000, fixed=2000) == 0
    with pytest.raises(ValueError, match="share"):
        tool.knee(rows, 0)


def test_compare_scales_the_rate_and_chooses_the_best():
    asked = []

    def train(size, lr, seed):
        asked.append((size, lr, seed))
        return float("nan") if lr > 1 else abs(lr * 32 / size - 0.1) + seed

    got = tool.compare(train, [16, 64], [0.1, 1.0], [0, 1])
    assert asked[:2] == [(16, 0.05, 0), (16, 0.05, 1)]
    assert asked[-1] == (64, 2.0, 1)
    for size in (16, 64):
        lr, errors = got[size]
        assert lr == 0.1
        np.testing.assert_allclose(errors, [0, 1], atol=1e-12)
    with pytest.raises(ValueError, match="seeds"):
        tool.compare(train, [2], [0.1], [])


def test_errors_name_what_is_wrong():
    for kwargs, name in (({"sizes": []}, "sizes"), ({"sizes": [0]}, "sizes"),
                         ({"repeats": 0}, "repeats"),
                         ({"pairs": 1.5}, "pairs")):
        with pytest.raises(ValueError, match=name):
            tool.profile(make_model, make_batch, **(
                {"sizes": [2]} | kwargs))
    with pytest.raises(ValueError, match="inputs and targets, got Tensor"):
        tool.profile(make_model, lambda n: torch.zeros(n), [2])
    with pytest.raises(ValueError, match="got 3 and 2"):
        tool.profile(make_model, lambda n: (torch.zeros(n + 1), [0] * n),
                     [2])
    with pytest.raises(ValueError, match="parameters"):
        tool.profile(nn.ReLU, make_batch, [2])
    with pytest.raises(ValueError, match="more than 1 value") as caught:
        tool.profile(make_model, make_batch, [1])
    assert caught.value.__notes__ == ["while the batch size was 1"]
