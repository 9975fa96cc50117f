"""The experiment with dropout and the batch's noise."""

import numpy as np
import pytest
import torch
from torch import nn

from normlab.lab import experiments, torch_train
from normlab.lab import regularisation as reg
from normlab.lab.small_batches import parts, small_mlp, stacked
from normlab.zoo import GhostBatchNorm1d

torch.set_num_threads(1)
CONFIG = experiments.configuration("regularisation", "live") | {
    "parts": [48, 24, 24], "epochs": 2, "seeds": [0, 1], "ghosts": [4],
    "learning_rates": [0.1, 0.3], "batch_sizes": [8, 16], "dropout": [0.5]}


def point(method, p=0.0, size=16, m=16):
    return {"method": method, "p": p, "batch_size": size, "m": m}


def stack(method, p, m, size, seeds):
    norm = reg.make_norm(method, m, size)
    nets = [reg.arrange(small_mlp(norm and nn.BatchNorm1d, CONFIG["sizes"],
                                  seed), method, p) for seed in seeds]
    return stacked(nets, norm)


def one(method, m, seed):
    norm = reg.make_norm(method, m, 16)
    return small_mlp(norm and (lambda c: norm(c, 1)), CONFIG["sizes"], seed)


def learn(net, arm, rows, lrs, seeds, steps=6):
    x, y, *_ = parts(CONFIG)
    reg.learn(net, x, y, rows, arm, steps, lrs, seeds, lambda step: None)


def test_every_point_is_another_and_runs():
    points = reg.points(CONFIG)
    assert len({tuple(p.values()) for p in points}) == len(points)
    for p in points:
        result = reg.regularise(CONFIG, p, lambda step: None)
        for key in ("train", "val", "test"):
            wrong = np.array(result[f"{key}_wrong"])
            assert wrong.shape == (2, 2)
            assert 0 <= wrong.min() and wrong.max() <= 100
        assert ("precise_test_wrong" in result) == (
            p["method"] not in ("none", "dropout", "frozen"))


def test_dropout_stands_where_the_method_says():
    def places(method):
        net = reg.arrange(small_mlp(nn.BatchNorm1d, [4, 4, 4, 4, 2], 0),
                          method, 0.3)
        assert all(a.p == 0.3 for a in net if isinstance(a, nn.Dropout))
        return [i for i, a in enumerate(net) if isinstance(a, nn.Dropout)]

    assert places("BN") == places("none") == places("whole") == []
    assert places("dropout") == places("BN+dropout") == [3, 7, 11]
    assert places("BN+last") == [9]


@pytest.mark.parametrize("method, m", [("none", 0), ("BN", 16), ("BN", 4)])
def test_a_stack_trains_each_network_as_if_it_were_alone(method, m):
    x, y, train, _, test = parts(CONFIG)
    seeds, lrs = [0, 1, 0], [0.1, 0.1, 0.3]
    net = stack(method, 0.0, m, 16, seeds)
    learn(net, point(method, m=m), train[seeds], lrs, seeds)
    got = net.eval()(x[test[seeds].T])
    for k, (seed, lr) in enumerate(zip(seeds, lrs, strict=True)):
        alone = one(method, m, seed)
        torch_train.train(alone, x[train[seed]], y[train[seed]], 6, 16, lr,
                          seed)
        torch.testing.assert_close(got[:, k], alone.eval()(x[test[seed]]),
                                   rtol=1e-3, atol=1e-3)


def test_ghosts_have_the_size_of_their_arm():
    assert isinstance(reg.make_norm("BN", 4, 16)(3, 2), GhostBatchNorm1d)
    assert reg.make_norm("BN", 4, 16)(3, 2).ghost_size == 4
    assert type(reg.make_norm("BN", 16, 16)(3, 2)) is nn.BatchNorm1d
    assert type(reg.make_norm("whole", 48, 16)(3, 2)) is nn.BatchNorm1d
    assert reg.make_norm("dropout", 0, 16) is None


def test_whole_statistics_are_batch_normalization_of_all_images():
    x, _, train, *_ = parts(CONFIG)
    nets = [stack(method, 0.0, 48, 48, [0, 1]) for method in ("BN", "whole")]
    for net, method in zip(nets, ("BN", "whole"), strict=True):
        learn(net, point(method, size=48, m=48), train, [0.1, 0.3], [0, 1])
        net.eval()
    torch.testing.assert_close(*(net(x[train.T]) for net in nets),
                               rtol=1e-3, atol=1e-4)


def test_whole_statistics_take_the_loss_of_the_mini_batch():
    x, y, train, *_ = parts(CONFIG)
    net = stack("whole", 0.0, 48, 16, [0])
    learn(net, point("whole", m=48), train[:1], [0.1], [0], steps=1)
    alone = small_mlp(nn.BatchNorm1d, CONFIG["sizes"], 0)
    rows = next(reg.batches(48, 16, 0))
    loss = nn.functional.cross_entropy(alone(x[train[0]])[rows],
                                       y[train[0]][rows])
    params = list(alone.parameters())
    grads = torch.autograd.grad(loss, params)
    want = [p - 0.1 * g for p, g in zip(params, grads, strict=True)]
    torch.testing.assert_close(net[1].weight[0].T, want[0])
    torch.testing.assert_close(net[2].weight, want[1])


def test_frozen_statistics_are_the_first_ones_and_stay():
    x, _, train, *_ = parts(CONFIG)
    net = stack("frozen", 0.0, 48, 16, [0])
    h = x[train[0]] @ net[1].weight[0].detach()
    gamma = net[2].weight.clone()
    learn(net, point("frozen", m=48), train[:1], [0.1], [0])
    torch.testing.assert_close(net[2].running_mean, h.mean(0))
    torch.testing.assert_close(net[2].running_var, h.var(0))
    assert not torch.equal(net[2].weight, gamma)


def test_recalibrate_measures_without_dropout():
    x, _, train, *_ = parts(CONFIG)
    net = stack("BN+dropout", 0.5, 16, 16, [0, 1])
    reg.recalibrate(net, x, train)
    assert not any(layer.training for layer in net)
    net[2].train()  # the statistics of the images themselves
    h = torch.relu(net[2](net[1](net[0](x[train.T]))))
    z = net[5](h)  # past the dropout
    torch.testing.assert_close(net[6].running_mean, z.mean(0))
    torch.testing.assert_close(net[6].running_var, z.var(0))


def test_judge_counts_and_takes_the_mean():
    x, y, *_, test = parts(CONFIG)
    net = stack("dropout", 0.5, 0, 16, [0, 1])
    wrong, loss = reg.judge(net, x, y, test, size=10)
    for k in range(2):
        logits = net.eval()(x[test.T])[:, k].detach()
        true = y[test[k]]
        assert loss[k] == pytest.approx(
            float(nn.functional.cross_entropy(logits, true)), rel=1e-5)
        assert wrong[k] == pytest.approx(
            100 * float((logits.argmax(1) != true).double().mean()))


def test_a_run_repeats_wherever_the_generator_is():
    runs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        runs.append(reg.regularise(CONFIG, point("BN+dropout", 0.5),
                                   lambda step: None))
    assert runs[0] == runs[1]


def test_a_run_learns():
    config = CONFIG | {"epochs": 12, "learning_rates": [1.0, 0.001]}
    result = reg.regularise(config, point("BN", size=8, m=8),
                            lambda step: None)
    assert result["rates"] == [0.25, 0.00025]  # in proportion to the size
    assert np.max(result["train_wrong"][0]) < 10
    assert np.min(result["train_wrong"][1]) > 40


def test_trained_networks_are_rates_of_copies_of_seeds():
    net, x, y, rows = reg.trained(CONFIG, "BN", 0.0, 16, (0.1, 0.0), 2)
    assert not net.training
    assert [r.shape for r in rows] == [(8, 48), (8, 24), (8, 24)]
    _, _, train, *_ = parts(CONFIG)
    assert torch.equal(rows[0], train[[0, 1] * 4])
    # A rate of 0 leaves each network as its seed drew it.
    for k, seed in enumerate((0, 1, 1000, 1001)):
        weight = small_mlp(nn.BatchNorm1d, CONFIG["sizes"], seed)[0].weight
        torch.testing.assert_close(net[1].weight[4 + k].T, weight)
        assert not torch.allclose(net[1].weight[k].T, weight)


def test_best_chooses_by_validation_over_rates_and_shares():
    def made(p, val):
        return point("dropout", p) | {
            "rates": [1, 2], "val_wrong": val,
            "test_wrong": [[10 * p, 10 * p], [20 * p, 20 * p]]}

    points = [made(0.2, [[5, 5], [4, 2]]), made(0.5, [[9, 9], [9, 9]])]
    rate, wrong = reg.best(points, method="dropout")
    assert rate == 2 and wrong.tolist() == [4, 4]
    rate, wrong = reg.best(points, method="dropout", p=0.5)
    assert wrong.tolist() == [5, 5]
    with pytest.raises(ValueError, match="no point has"):
        reg.best(points, method="BN")
