"""The experiment that compares repairs of evaluation mode."""

import pytest
import torch
from torch import nn

from normlab import inference
from normlab.lab import experiments
from normlab.lab import train_test_gap as gap

torch.set_num_threads(1)
SMALL = {"examples": 64, "train": 100, "held": 40, "shown": 40,
         "passes": 8, "factors": [0, 1], "compared": 30, "seeds": [0]}
ARMS = ("running", "precise_small", "precise", "weighed", "evalnorm",
        "inverse", "slope")


def config(**changes):
    return experiments.configuration("train-test-gap", "live") | SMALL | (
        changes)


def point(**changes):
    return {"net": "dense", "norm": "BN", "batch_size": 4, "rate": 0.003,
            "seed": 0} | changes


def test_a_dense_point_has_every_arm_and_repeats_itself():
    runs = [gap.compare(config(), point(), lambda step: None)
            for _ in range(2)]
    assert runs[0] == runs[1]
    for arm in (*ARMS, "transfer"):
        assert 0 <= runs[0][f"{arm}_error"] <= 100
        assert runs[0][f"{arm}_loss"] > 0
        assert runs[0][f"{arm}_distance"] > -0.5
    assert runs[0]["alpha"] in (0, 0.25)
    assert len(runs[0]["alphas"]) == 2


def test_a_convolutional_point_has_no_transfer_arm():
    run = gap.compare(config(), point(net="conv", batch_size=2),
                      lambda step: None)
    assert len(run["alphas"]) == 3
    assert all(f"{arm}_error" in run for arm in ARMS)
    assert "transfer_error" not in run


def test_a_point_without_normalisation():
    run = gap.compare(config(), point(norm="none"), lambda step: None)
    assert set(run) == {"error", "loss", "held_error"}


def test_every_arm_starts_from_the_same_weights():
    a, b = (gap.dense(norm, 64, seed=2) for norm in (nn.BatchNorm1d, None))
    for one, two in zip(a.modules(), b.modules(), strict=False):
        if isinstance(one, nn.Linear) and isinstance(two, nn.Linear):
            assert torch.equal(one.weight, two.weight)
    weights = [[m.weight for m in net if isinstance(m, nn.Linear)]
               for net in (a, b, gap.dense(None, 64, seed=3))]
    for x, y, z in zip(*weights, strict=True):
        assert torch.equal(x, y) and not torch.equal(x, z)


def test_points_are_all_different_and_have_the_control():
    for scale in experiments.SCALES:
        c = experiments.configuration("train-test-gap", scale)
        found = [tuple(p.items()) for p in gap.points(c)]
        assert len(set(found)) == len(found)
        assert {p["norm"] for p in gap.points(c)} == {"BN", "none"}


def test_held_out_images_are_not_trained_on():
    data = gap.split(config(), seed=1)
    trained = {tuple(x.flatten().tolist()) for x in data["train"][0]}
    held = [tuple(x.flatten().tolist()) for x in data["held"][0]]
    assert len(data["train"][0]) == 100 and len(held) == 40
    assert not trained & set(held)


def test_training_mode_is_that_of_the_network():
    net, data = gap.trained(config(), point())
    x, others = data["test"][0][:3], data["train"][0]
    draws = gap.training_mode(net, x, others, 4, draws=2, seed=5)
    rows = torch.randint(len(others), (3, 3),
                         generator=torch.Generator().manual_seed(5))
    net.train()
    for i in range(3):
        batch = torch.cat([x[i:i + 1], others[rows[i]]])
        torch.testing.assert_close(draws[0, i], net(batch)[0].detach())


def test_distance_is_zero_for_the_mean_and_one_for_a_constant():
    draw = torch.Generator().manual_seed(0)
    mean = torch.randn(400, 10, generator=draw)
    draws = mean + torch.randn(16, 400, 10, generator=draw)
    assert abs(gap.distance(mean, draws)) < 0.02
    assert gap.distance(mean.mean().expand(400, 10), draws) == pytest.approx(
        1, abs=0.02)


def test_alpha_of_equal_merit_is_the_smallest(monkeypatch):
    net, data = gap.trained(config(), point())
    monkeypatch.setattr(gap, "error", lambda logits, y: 0)
    assert gap.choose_alpha(net, *data["held"], 4, [1, 0.5, 0.25]) == 0.0625


def test_the_model_is_left_as_it_was():
    net, data = gap.trained(config(), point())
    before = {k: v.clone() for k, v in net.state_dict().items()}
    ways, _ = gap.repairs(config(), point(), net, data,
                          data["train"][0][:40].split(4))
    x = data["test"][0][:20]
    plain = gap.outputs(net, x)
    for repair in ways.values():
        with repair():
            assert not torch.equal(gap.outputs(net, x), plain)
    assert torch.equal(gap.outputs(net, x), plain)
    assert all(torch.equal(v, before[k])
               for k, v in net.state_dict().items())
    assert inference.norms(net)
