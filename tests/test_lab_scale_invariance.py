"""Length and angle of scale-invariant weights under decay."""

import copy

import numpy as np
import pytest
import torch

from normlab.lab import experiments
from normlab.lab import scale_invariance as si
from normlab.lab.train import batches

torch.set_num_threads(1)
SIZES = [6, 5, 4, 3]


def data(n=24, seed=0):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=draw, dtype=torch.float64)
    return x, torch.arange(n) % 3


def module(params, k, batch_norm=True):
    """Network k as PyTorch's own layers."""
    layers = []
    for i, (n_in, n_out) in enumerate(zip(SIZES, SIZES[1:], strict=False)):
        last = i == len(SIZES) - 2
        layers.append(torch.nn.Linear(n_in, n_out,
                                      bias=last or not batch_norm))
        if not last:
            layers += [torch.nn.BatchNorm1d(n_out)] * batch_norm
            layers.append(torch.nn.ReLU())
    net = torch.nn.Sequential(*layers).double()
    with torch.no_grad():
        for mine, theirs in zip(params.values(), net.parameters(),
                                strict=True):
            theirs.copy_(mine[k])
    return net


def groups(net, params, decayed, point):
    """The parameters of a module as torch.optim.SGD wants them."""
    chosen = {"hidden": lambda n: n.startswith("weight"),
              "matrices": lambda n: n.startswith("weight") or n == "head",
              "all": lambda n: True}[decayed]
    return [{"params": [p], "lr": point["lr"] if name.startswith("weight")
             else point["rest"], "weight_decay": point["decay"] * chosen(name)}
            for name, p in zip(params, net.parameters(), strict=True)]


@pytest.mark.parametrize("batch_norm", [True, False])
def test_logits_and_gradients_are_those_of_pytorch(batch_norm):
    x, y = data()
    params = si.draw(SIZES, [0, 1], batch_norm, "float64")
    for name in params:  # gamma, beta and biases leave their start
        params[name] += 0.1 * torch.randn_like(params[name])
    loss, grads = si.gradients(params, x, y)
    for k in range(2):
        net = module(params, k, batch_norm)
        torch.testing.assert_close(si.logits(params, x)[k], net(x).detach())
        want = torch.nn.functional.cross_entropy(net(x), y)
        want.backward()
        torch.testing.assert_close(loss[k], want.detach())
        for mine, theirs in zip(grads.values(), net.parameters(),
                                strict=True):
            torch.testing.assert_close(mine[k], theirs.grad)
    assert not any(p.requires_grad for p in params.values())


def test_the_same_seed_draws_the_same_weights():
    one = si.draw(SIZES, [3], True)
    two = si.draw(SIZES, [0, 3], False, "float64")
    for name in ("weight0", "weight1", "head"):
        torch.testing.assert_close(one[name][0].double(), two[name][1],
                                   rtol=1e-6, atol=1e-7)
    assert set(two) == {"weight0", "bias0", "weight1", "bias1", "head",
                        "head_bias"}


@pytest.mark.parametrize("decayed", ["hidden", "matrices", "all"])
def test_training_is_that_of_torch_optim(decayed):
    x, y = data()
    points = [{"lr": 0.1, "decay": 0.05, "momentum": 0.9, "rest": 0.02},
              {"lr": 0.3, "decay": 0.0, "momentum": 0.0, "rest": 0.3}]
    params, seeds = si.draw(SIZES, [0, 0], True, "float64"), [0, 1]
    nets = [module(params, k) for k in range(2)]
    column = {key: [p[key] for p in points] for key in points[0]}
    si.train(params, x, y, 5, 8, column["lr"], column["decay"], seeds,
             column["momentum"], column["rest"], decayed)
    for k, (net, point) in enumerate(zip(nets, points, strict=True)):
        rule = torch.optim.SGD(groups(net, params, decayed, point),
                               momentum=point["momentum"])
        draws = batches(len(x), 8, seeds[k])
        for _ in range(5):
            rows = torch.from_numpy(next(draws))
            rule.zero_grad()
            torch.nn.functional.cross_entropy(net(x[rows]),
                                              y[rows]).backward()
            rule.step()
        for mine, theirs in zip(params.values(), net.parameters(),
                                strict=True):
            torch.testing.assert_close(mine[k], theirs.detach())


def test_an_angle_that_is_small_is_exact():
    after = torch.tensor([[np.cos(1e-9), np.sin(1e-9)], [0.0, 2.0]],
                         dtype=torch.float64)
    before = torch.tensor([[3.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    got = si.turned(before, after)
    torch.testing.assert_close(got, torch.tensor(
        [1e-9, np.pi / 2], dtype=torch.float64), rtol=1e-6, atol=0)


def test_a_trace_has_norm_and_angle_of_each_observed_step():
    x, y = data()
    params = si.draw(SIZES, [0, 1], True, "float64")
    start = params["weight0"].clone()
    trace = si.Trace()
    si.train(params, x, y, 4, 8, [0.1, 0.2], [0.0, 0.0], [0, 1],
             watch=trace, watched={0, 3})
    assert trace.steps == [0, 3] and np.shape(trace.angle) == (2, 2, 2)
    np.testing.assert_allclose(trace.norm[0][:, 0],
                               start.flatten(1).norm(dim=1))
    # Without decay the step stands at right angles to the weights:
    # tan(angle) = lr * |g| / |w|, here with |g| |w| the kept gradient.
    want = np.array([[0.1], [0.2]]) * np.sqrt(trace.unit_gradient[0]) / (
        trace.norm[0] ** 2)
    np.testing.assert_allclose(np.tan(trace.angle[0]), want, rtol=1e-3)


def test_accuracy_uses_the_training_statistics():
    x, y = data()
    params = si.draw(SIZES, [0], True, "float64")
    net = module(params, 0)
    for layer in net:
        if isinstance(layer, torch.nn.BatchNorm1d):
            layer.momentum = 1.0
    net(x)
    for layer in net:  # PyTorch's running variance is the unbiased one
        if isinstance(layer, torch.nn.BatchNorm1d):
            layer.running_var *= (len(x) - 1) / len(x)
    out = net.eval()(x[:7] + 1).detach()
    right, size = si.percent_right(params, x, y, x[:7] + 1, y[:7])
    assert right[0] == pytest.approx(
        100 * float((out.argmax(1) == y[:7]).double().mean()))
    assert size[0] == pytest.approx(float(
        (out - out.mean(1, keepdim=True)).square().mean().sqrt()))


def test_the_experiment_repeats_and_its_points_differ():
    small = {"steps": 6, "window": 4, "every": 3, "images": [64, 20],
             "seeds": [0]}
    one, two = (experiments.run("scale-invariance", **copy.deepcopy(small))
                for _ in range(2))
    assert len(one) == 6
    for a, b in zip(one, two, strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}
        assert a["lr"] * a["decay"] == pytest.approx(a["product"])
        assert np.shape(a["norms"]) == (2, 2) == np.shape(a["angles"])
    full = si.arms(experiments.configuration("scale-invariance", "full"))
    assert len({tuple(p.items()) for p in full}) == len(full) == 96
    assert {p["rest"] for p in full if p["arm"] == "one rate"} == {0.05, 0.8}


def test_side_by_side_is_one_after_another():
    cfg = experiments.configuration("scale-invariance", "live") | {
        "steps": 5, "window": 4, "every": 2, "images": [64, 20]}
    points = [p for p in si.arms(cfg) if p["arm"] == "grid"][:3]
    many = si.several(cfg, points, lambda step: None)
    for point, row in zip(points, many, strict=True):
        alone = si.scale_invariance(cfg, point, lambda step: None)
        np.testing.assert_allclose(row["norms"], alone["norms"], rtol=1e-3)
        np.testing.assert_allclose(row["angles"], alone["angles"], rtol=1e-3)
