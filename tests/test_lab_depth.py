"""Deep networks: what the gradient does at the start, and the training."""

import numpy as np
import pytest
import torch
from torch import nn

from normlab.lab import depth, experiments
from normlab.lab.depth import ARMS

torch.set_num_threads(1)
SMALL = {"parts": [40, 20, 20], "blocks": [3], "width": 6, "steps": 4,
         "seeds": [0, 1], "batch_size": 8,
         "learning_rates": {"plain": [0.1, 0.3], "skip": [0.2]}}
arms = pytest.mark.parametrize("name", ARMS)


def config(name="depth", **changes):
    return experiments.configuration(name, "live") | changes


def put(p, k):
    """A copy of network k's parameters."""
    return {name: a[k].clone() for name, a in p.items()}


class Alone(nn.Module):
    """One network of an arm, of PyTorch's own layers."""

    def __init__(self, arm, p):
        super().__init__()
        self.arm, n, width = arm, len(p["blocks"]), p["first"].shape[1]
        make = {"BN": nn.BatchNorm1d, "LN": nn.LayerNorm,
                "none": lambda c: nn.Identity()}[arm.norm]
        self.norms = nn.ModuleList(make(width) for _ in range(n + 1))
        self.p = nn.ParameterDict(p)

    def forward(self, x):
        p, h = self.p, x @ self.p["first"]
        for i, norm in enumerate(self.norms):
            f = norm(h) * p["gammas"][i] if "gammas" in p else h
            f = (f + p["biases"][i]).relu()
            if i == len(p["blocks"]):
                return f @ p["last"] + p["last_bias"]
            f = f @ p["blocks"][i]
            f = f * {"one": 1, "root": len(p["blocks"]) ** -0.5,
                     "skipinit": p.get("alphas", [0] * 9)[i]}[self.arm.scale]
            h = h + f if self.arm.skip else f


@arms
def test_networks_side_by_side_train_as_if_each_were_alone(name):
    arm, seeds, lrs = ARMS[name], [0, 1, 0], [0.05, 0.1, 0.2]
    x = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    y = torch.arange(60) % 3
    rows = torch.stack([torch.arange(40), torch.arange(40) + 20,
                        torch.arange(40)])
    p = depth.start(arm, (5, 6, 3), 3, seeds)
    nets = [Alone(arm, put(p, k)) for k in range(3)]
    losses, running = depth.train(p, arm, x, y, rows, 5, 10, lrs, seeds, 0.9,
                                  lambda step: None)
    for k, net in enumerate(nets):
        rule = torch.optim.SGD(net.p.parameters(), lrs[k], momentum=0.9)
        own = depth.batches(40, 10, seeds[k])
        for step in range(5):
            here = rows[k][torch.from_numpy(next(own))]
            loss = nn.functional.cross_entropy(net(x[here]), y[here])
            assert losses[step, k] == pytest.approx(loss.item(), rel=1e-3)
            rule.zero_grad()
            loss.backward()
            rule.step()
        if name == "plain BN":
            mean = torch.stack([n.running_mean for n in net.norms])
            torch.testing.assert_close(
                running[0].view(4, 3, 6)[:, k], mean, rtol=1e-3, atol=1e-4)


@arms
def test_the_same_seed_gives_every_arm_the_same_weights(name):
    a = depth.start(ARMS[name], (5, 6, 3), 3, [7, 8])
    b = depth.start(ARMS["plain"], (5, 6, 3), 3, [8])
    assert torch.equal(a["blocks"][1:], b["blocks"])
    assert torch.equal(a["last"][1:], b["last"])
    assert ("gammas" in a) is (ARMS[name].norm != "none")
    assert ("alphas" in a) is (name == "SkipInit")


def test_skipinit_starts_as_the_identity():
    p = depth.start(ARMS["SkipInit"], (5, 6, 3), 3, [0])
    x = torch.randn(1, 8, 5)
    states, _ = depth.forward(p, x, ARMS["SkipInit"], torch.relu)
    assert len(states) == 4
    for h in states[1:]:
        assert torch.equal(h, states[0])


@pytest.mark.parametrize("norm, axis", [("BN", 1), ("LN", 2), ("none", None)])
def test_normalise(norm, axis):
    h = torch.randn(2, 9, 6, dtype=torch.float64) * 3 + 1
    y = depth.normalise(h, norm, eps=1e-14)
    want = h if axis is None else (h - h.mean(axis, keepdim=True)) / h.std(
        axis, correction=0, keepdim=True)
    torch.testing.assert_close(y, want)


def test_running_statistics_replace_those_of_the_batch():
    h = torch.randn(2, 9, 6)
    running = torch.full((12,), 2.0), torch.full((12,), 4.0)
    y = depth.normalise(h, "BN", running, training=False)
    torch.testing.assert_close(y, (h - 2) / 2, rtol=1e-4, atol=1e-4)


def test_gradient_norms_are_those_of_the_chain_rule():
    arm, seeds = ARMS["plain"], [0, 1]
    p = depth.start(arm, (4, 4, 1), 6, seeds, 1.0, "float64")
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    short, long = depth.gradient_norms(p, x, arm, depth.activation(
        "identity"), [3, 6], 9)
    assert short.shape == (4, 2) and long.shape == (7, 2)
    last = torch.randn(2, 5, 4, dtype=torch.float64,
                       generator=torch.Generator().manual_seed(9))
    first = last.flatten(1).norm(dim=1)
    for layer in (3, 2, 1, 0):  # the gradient at h is dh W^T
        want = last.flatten(1).norm(dim=1) / first
        np.testing.assert_allclose(short[layer], want.numpy())
        last = last @ p["blocks"][:, layer - 1].transpose(1, 2)


def test_both_experiments_return_what_they_promise():
    row = experiments.run("depth", **SMALL, methods=["plain BN"])[0]
    assert row["learning_rates"] == [0.1, 0.3]
    for key in ("val", "test", "batch", "loss"):
        assert np.shape(row[key]) == (2, 2)
    skip = experiments.run("depth", **SMALL, methods=["SkipInit"])[0]
    assert skip["learning_rates"] == [0.2] and np.shape(skip["val"]) == (1, 2)
    again = experiments.run("depth", **SMALL, methods=["plain BN"])[0]
    assert row["test"] == again["test"] and row["loss"] == again["loss"]
    rows = experiments.run("depth-gradients", width=16, depths=[10, 20],
                           seeds=[0, 1], batch_sizes=[4])
    assert np.shape(rows[0]["mean"]) == np.shape(rows[0]["sd"]) == (2, 10)
    # Without normalisation, at gain 2 and with no activation: ten doublings.
    row, = (r for r in rows if (r["norm"], r["act"], r["gain"]) == (
        "none", "identity", 2))
    assert row["mean"][0][0] == pytest.approx(10 * np.log10(2), abs=0.5)


def test_best_is_chosen_by_validation():
    points = [{"method": "plain", "blocks": 20, "learning_rates": [1, 2],
               "val": [[0.5, 0.5], [0.9, 0.3]],
               "test": [[0.3, 0.4], [0.1, 0.2]]}]
    lr, test = depth.best(points, "plain", 20)
    assert lr == 2 and test.tolist() == [0.1, 0.2]
    with pytest.raises(ValueError, match="'plain' and 50 blocks"):
        depth.best(points, "plain", 50)


def test_a_network_that_diverges_leaves_the_others_alone():
    x, y = torch.randn(40, 5), torch.arange(40) % 3
    rows = torch.arange(40).repeat(2, 1)
    found = []
    for lr in (1e9, 0.1):
        p = depth.start(ARMS["residual"], (5, 6, 3), 3, [0, 1])
        losses, _ = depth.train(p, ARMS["residual"], x, y, rows, 6, 8,
                                [0.1, lr], [0, 1], 0.9, lambda step: None)
        found.append(losses[:, 0])
        right = depth.accuracies(p, ARMS["residual"], x, y, rows, 8)
        assert 0 <= right.min() and right.max() <= 1
    np.testing.assert_array_equal(*found)
