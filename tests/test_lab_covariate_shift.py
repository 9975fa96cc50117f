"""The experiment that measures internal covariate shift."""

import numpy as np
import pytest
import torch
from torch import nn

from normlab.lab import covariate_shift as cs
from normlab.lab import experiments

torch.set_num_threads(1)
SIZES, SEEDS = [64, 16, 16, 16, 10], [0, 1]
SMALL = {"depth": 3, "width": 16, "steps": 6, "checkpoints": [0, 2, 5],
         "learning_rates": [0.1, 0.3], "seeds": [0, 1], "probe": 40,
         "test": 50, "arms": [["default", 0, "all"], ["BN", 0.5, "last"]]}


def batch(n=20):
    rng = np.random.default_rng(3)
    x = torch.tensor(rng.normal(size=(2, n, 64)), dtype=torch.float32)
    return x, torch.tensor(rng.integers(0, 10, (2, n)))


def as_torch(layers, k):
    """Network k of `layers` as PyTorch's modules."""
    parts = []
    for layer in layers:
        weight = layer["weight"][k].T
        linear = nn.Linear(*weight.T.shape, bias="bias" in layer)
        linear.weight = nn.Parameter(weight.clone())
        parts.append(linear)
        if "bias" in layer:
            linear.bias = nn.Parameter(layer["bias"][k, 0].clone())
        else:
            norm = nn.BatchNorm1d(len(weight))
            norm.weight = nn.Parameter(layer["gamma"][k, 0].clone())
            norm.bias = nn.Parameter(layer["beta"][k, 0].clone())
            parts.append(norm)
        parts.append(nn.ReLU())
    return nn.Sequential(*parts[:-1])


@pytest.mark.parametrize("method", ["default", "He", "BN"])
def test_networks_and_gradients_are_pytorchs(method):
    layers = cs.initial(method, SIZES, SEEDS)
    for layer in layers:
        for name in set(layer) & {"gamma", "beta", "bias"}:
            layer[name] += 0.1 * torch.randn_like(layer[name])
    x, y = batch()
    losses, grads = cs.gradients(layers, x, y)
    logits, _ = cs.forward(layers, x)
    for k in range(2):
        net = as_torch([{n: a.detach() for n, a in layer.items()}
                        for layer in layers], k)
        torch.testing.assert_close(net(x[k]), logits[k])
        loss = nn.functional.cross_entropy(net(x[k]), y[k])
        torch.testing.assert_close(loss, losses[k])
        loss.backward()
        want = [p.grad for p in net.parameters()]
        order = [g[name][k] for g in grads for name in
                 ("weight", "bias", "gamma", "beta") if name in g]
        for a, b in zip(order, want, strict=True):
            torch.testing.assert_close(
                a.T if b.ndim == 2 else a[0], b, atol=1e-6, rtol=1e-4)


def test_initial_weights():
    big = [400, 300, 200, 10]
    default, he, bn = (cs.initial(m, big, [5]) for m in (
        "default", "He", "BN"))
    assert float(default[0]["weight"].std()) == pytest.approx(
        (1 / 1200) ** 0.5, rel=0.02)
    assert float(he[0]["weight"].std()) == pytest.approx(
        (1 / 200) ** 0.5, rel=0.02)
    assert all(torch.equal(a["weight"], b["weight"])
               for a, b in zip(he, bn, strict=True))
    assert "bias" not in bn[0] and set(bn[-1]) == {"weight", "bias"}
    with pytest.raises(ValueError, match="default, He or BN, got 'GN'"):
        cs.initial("GN", big, [0])


def test_a_networks_draws_do_not_depend_on_its_company():
    pair, one = (cs.initial("He", SIZES, s) for s in ([0, 1], [1]))
    assert torch.equal(pair[2]["weight"][1:], one[2]["weight"])
    for a, b in zip(cs.noise_at(7, 0.5, SIZES, [0, 1]),
                    cs.noise_at(7, 0.5, SIZES, [1]), strict=True):
        assert torch.equal(a[0][1:], b[0]) and torch.equal(a[1][1:], b[1])


def test_noise():
    assert cs.noise_at(3, 0, SIZES, SEEDS) is None
    wide = [64, 5000, 5000, 10]
    noise = cs.noise_at(3, 0.5, wide, [0])
    for shift, scale in noise:
        assert shift.shape == scale.shape == (1, 1, 5000)
        assert float(shift.std()) == pytest.approx(0.5, rel=0.05)
        assert abs(float(shift.mean())) < 0.03
        assert 2 ** -0.5 <= float(scale.min()) < 0.72
        assert 1.40 < float(scale.max()) <= 2 ** 0.5
    again, other = (cs.noise_at(t, 0.5, wide, [0]) for t in (3, 4))
    assert torch.equal(again[0][0], noise[0][0])
    assert not torch.equal(other[0][0], noise[0][0])
    last = cs.noise_at(3, 0.5, wide, [0], "last")
    assert torch.equal(last[-1][0], noise[-1][0])
    assert not last[0][0].any() and (last[0][1] == 1).all()


def test_forward_shows_all_three_places():
    layers, (x, _) = cs.initial("BN", SIZES, SEEDS), batch()
    noise = cs.noise_at(1, 0.5, SIZES, SEEDS)
    _, seen = cs.forward(layers, x, noise)
    for (shift, scale), place in zip(noise, seen, strict=True):
        torch.testing.assert_close(place["v"], place["y"] * scale + shift)
        assert float(place["y"].mean(1).abs().max()) < 1e-5
        assert float((place["y"].std(1, correction=0) - 1).abs().max()) < .01
    _, part = cs.forward(layers, x, rows=5)
    assert float(part[0]["y"][:, :5].mean(1).abs().max()) < 1e-5
    assert float(part[0]["y"].mean(1).abs().max()) > 0.01
    first = part[0]["y"][:, 5:]
    alone = cs.forward(layers, x[:, :6], rows=5)[1][0]["y"][:, 5:]
    torch.testing.assert_close(first[:, :1], alone)


def test_drift_is_in_units_of_the_units_own_spread():
    a = torch.randn(2, 50, 3)
    sd = a.std(1, correction=0, keepdim=True)
    mean, spread = cs.drift(a, a + 0.25 * sd)
    torch.testing.assert_close(mean, torch.tensor([0.25, 0.25]))
    assert float(spread.max()) < 1e-5
    mean, spread = cs.drift(a - a.mean(1, keepdim=True),
                            2 * (a - a.mean(1, keepdim=True)))
    assert float(mean.max()) < 1e-5
    torch.testing.assert_close(spread, torch.log(torch.tensor([2., 2.])))
    a[:, :, 0] = 1  # a dead unit doesn't count
    mean, _ = cs.drift(a, a + torch.tensor([5, 0, 0]))
    assert float(mean.max()) < 1e-5


def test_gradient_shift_is_the_definition():
    layers, (x, y) = cs.initial("BN", SIZES, [0]), batch()
    x, y = x[:1], y[:1]
    _, grads = cs.gradients(layers, x, y)
    new = cs.stepped(layers, grads, torch.full((1, 1, 1), 0.5))
    rows = []
    for at in (1, 2, 3):
        nets = [as_torch([{n: a.detach() for n, a in layer.items()}
                          for layer in new[:low] + layers[low:]], 0)
                for low in (0, at)]
        found = []
        for net in nets:
            nn.functional.cross_entropy(net(x[0]), y[0]).backward()
            found.append([m for m in net if isinstance(m, nn.Linear)][
                at].weight.grad)
        g, moved = found
        rows.append([(g - moved).norm(), (g - moved).norm() / g.norm(),
                     nn.functional.cosine_similarity(
                         g.flatten(), moved.flatten(), dim=0)])
    got = cs.gradient_shift(layers, new, grads, x, y)
    for a, b in zip(got, torch.tensor(rows).mean(0), strict=True):
        assert float(a[0]) == pytest.approx(float(b), rel=1e-3)


def test_gradient_shift_is_nothing_if_nothing_moves():
    layers, (x, y) = cs.initial("He", SIZES, SEEDS), batch()
    _, grads = cs.gradients(layers, x, y)
    gap, share, cosine = cs.gradient_shift(layers, layers, grads, x, y)
    assert not gap.any() and not share.any()
    torch.testing.assert_close(cosine, torch.ones(2))


def test_reshaped_ignores_means_spreads_and_sees_the_rest():
    a = torch.randn(2, 400, 4)
    shape, joint = cs.reshaped(a, 3 * a + 7)
    assert max(float(shape.max()), float(joint.max())) < 1e-5
    shape, joint = cs.reshaped(a, a.exp())
    assert float(shape.min()) > 0.1
    together = torch.stack([a[:, :, 0]] * 4, dim=2)
    _, joint = cs.reshaped(a, together)
    assert float(joint.min()) > 0.8


def test_accuracy_is_that_of_batch_statistics_of_the_probe():
    config = experiments.configuration("covariate-shift", "live") | SMALL
    data = cs.images(config)
    layers = cs.initial("BN", SIZES, SEEDS)
    got = cs.Watch(config, data, SIZES, SEEDS, 0.5, "all").accuracy(layers)
    for k in range(2):
        net = as_torch(layers, k)
        for m in net:
            if isinstance(m, nn.BatchNorm1d):
                m.momentum = 1.0
        with torch.no_grad():
            net(data[0][:40])
            for m in net:  # biased, as in training
                if isinstance(m, nn.BatchNorm1d):
                    m.running_var *= 39 / 40
            right = net.eval()(data[2]).argmax(1) == data[3]
        assert float(got[k]) == pytest.approx(100 * float(
            right.double().mean()), abs=2.01)  # one of the 50 images


def test_points_repeat_themselves_together_or_alone():
    runs = experiments.run("covariate-shift", **SMALL)
    assert len(runs) == 8
    config = experiments.configuration("covariate-shift", "live") | SMALL
    every = cs.points(config)
    both = cs.several(config, every[4:], lambda step: None)
    assert both == cs.several(config, every[4:], lambda step: None)
    for run, other in zip(runs[4:], both, strict=True):
        assert set(other) < set(run)
        for name in ("step_v", "start_y", "ics_cosine", "joint",
                     "ics_noise_cosine", "accuracy"):
            assert len(run[name]) == 3
            np.testing.assert_allclose(run[name], other[name], rtol=0.05,
                                       atol=2e-4)
    assert np.shape(runs[0]["percentiles"]) == (3, 3)
    assert "ics_noise_cosine" not in runs[0]
    assert runs[0]["start_z"][0] == 0


def test_the_full_scale_has_its_controls():
    config = experiments.configuration("covariate-shift", "full")
    arms = {tuple(arm) for arm in config["arms"]}
    assert {("default", 0, "all"), ("He", 0, "all"), ("BN", 0, "all")} < arms
    assert len(config["seeds"]) >= 3 and 0.05 in config["learning_rates"]
    assert config["steps"] - 1 in config["checkpoints"]


def test_a_step_goes_down_at_each_networks_own_rate():
    layers, (x, y) = cs.initial("BN", SIZES, SEEDS), batch()
    losses, grads = cs.gradients(layers, x, y)
    new = cs.stepped(layers, grads, torch.tensor([0.1, 0.0])[:, None, None])
    later, _ = cs.gradients(new, x, y)
    assert later[0] < losses[0] - 0.01 and later[1] == losses[1]
    assert torch.equal(new[0]["weight"][1], layers[0]["weight"][1])


def test_what_follows_the_noise_sees_that_of_the_next_step():
    arm = {"arms": [["BN", 0.5, "all"]], "learning_rates": [0.1]}
    run = experiments.run("covariate-shift", **SMALL | arm)[0]
    # The mean of |difference of two N(0, 1/4)| is 0.56, in units of scales
    # from 0.7 to 1.4.
    assert 0.4 < min(run["step_v"]) and max(run["step_v"]) < 0.8
    assert max(run["step_y"]) < 0.05 < min(run["step_z"][1:])
    assert run["ics_cosine"][0] > run["ics_noise_cosine"][0]
