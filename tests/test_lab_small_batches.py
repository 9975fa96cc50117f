"""The experiments with batch sizes, and the stack that trains them."""

import numpy as np
import pytest
import torch
from torch import nn

from normlab.lab import experiments, torch_train
from normlab.lab import small_batches as sb

torch.set_num_threads(1)
NAMES = "small-batches-dense", "small-batches-cnn"
SMALL = {"parts": [40, 20, 20], "epochs": 1, "batch_sizes": [4],
         "seeds": [0, 1], "learning_rates": [0.1, 0.3]}
DENSE_METHODS = ["none", "BN", "BN, eps 0.1", "BRN", "ghost BN", "GN", "LN"]


def config(name, **changes):
    return experiments.configuration(name, "live") | SMALL | changes


def one(name, method, cfg, seed):
    """A network of its own, with its normalisation in place."""
    norm = sb.make_norm(method, cfg, 4, 10)
    alone = norm and (lambda c: norm(c, 1))
    if name == NAMES[0]:
        return sb.small_mlp(alone, cfg["sizes"], seed)
    return sb.small_cnn(alone, cfg["widths"], cfg["strides"], 8, seed)


@pytest.mark.parametrize("name, method", [
    *((NAMES[0], m) for m in DENSE_METHODS),
    *((NAMES[1], m) for m in ["none", "BN", "BRN", "ghost BN", "GN", "LN",
                              "IN"])])
def test_a_stack_trains_each_network_as_if_it_were_alone(name, method):
    cfg = config(name, ghost_size=4)  # pairs would amplify rounding
    x, y, train, _, test = sb.parts(cfg)
    seeds, lrs, steps, size = [0, 1, 0], [0.1, 0.1, 0.3], 6, 8
    blank = nn.BatchNorm1d if name == NAMES[0] else nn.BatchNorm2d
    placeholder = None if method == "none" else blank
    nets = [sb.small_mlp(placeholder, cfg["sizes"], s) if name == NAMES[0]
            else sb.small_cnn(placeholder, cfg["widths"], cfg["strides"], 8,
                              s) for s in seeds]
    # As many steps as `one` asks the schedule for.
    stack = sb.stacked(nets, sb.make_norm(method, cfg, 4, 10))
    rows = train[seeds]
    sb.train_stack(stack, x, y, rows, steps, size, lrs, seeds,
                   lambda step: None)
    got = stack.eval()(x[test[seeds].T])  # (20, 3, 10)
    for k, (seed, lr) in enumerate(zip(seeds, lrs, strict=True)):
        net = one(name, method, cfg, seed)
        torch_train.train(net, x[train[seed]], y[train[seed]], steps, size,
                          lr, seed)
        want = net.eval()(x[test[seed]])
        torch.testing.assert_close(got[:, k], want, rtol=1e-3, atol=1e-3)


def test_a_network_that_diverges_leaves_the_others_alone():
    cfg = config(NAMES[0])
    x, y, train, _, test = sb.parts(cfg)
    outs = []
    for lr in (1e6, 0.1):
        nets = [sb.small_mlp(None, cfg["sizes"], s) for s in (0, 1)]
        net = sb.stacked(nets, None)
        sb.train_stack(net, x, y, train, 10, 8, [0.1, lr], [0, 1], id)
        outs.append(net(x[test.T])[:, 0])
    torch.testing.assert_close(*outs)


def test_parts_do_not_overlap_and_differ_between_seeds():
    x, y, *rows = sb.parts(config(NAMES[0]))
    assert x.shape == (1797, 64) and y.shape == (1797,)
    together = torch.cat(rows, dim=1)
    assert [r.shape[1] for r in rows] == [40, 20, 20]
    assert all(len(set(r.tolist())) == 80 for r in together)
    assert not torch.equal(*rows[0])
    x, *_ = sb.parts(config(NAMES[1]))
    assert x.shape == (1797, 1, 8, 8)


def test_errors_counts_wrong_answers():
    class Fixed(nn.Module):
        def forward(self, x):  # (n, K, 10): says the first feature
            return nn.functional.one_hot(x[..., 0].long(), 10)

    x = torch.arange(10.0)[:, None]
    y = torch.tensor([0, 1, 2, 3, 4, 9, 9, 9, 9, 9])
    rows = torch.tensor([[0, 1, 2, 3, 4], [3, 4, 5, 6, 7]])
    wrong = sb.errors(Fixed().eval(), x, y, rows, 2)
    np.testing.assert_allclose(wrong, [0, 0.6])
    wrong = sb.errors(Fixed().train(), x, y, rows, 2)  # a left-over one
    np.testing.assert_allclose(wrong, [0, 0.5])


@pytest.mark.parametrize("name", NAMES)
def test_points_have_results_for_every_rate_and_seed(name):
    runs = experiments.run(name, **SMALL, methods=["BN", "BRN"],
                           updates_of=8, same_updates=[["BN", 16]])
    assert [(r["method"], r["batch_size"], r["steps"]) for r in runs] == [
        ("BN", 4, 10), ("BRN", 4, 10), ("BN", 16, 5)]
    for r in runs:
        assert np.shape(r["test"]) == np.shape(r["val"]) == (2, 2)
        assert np.all((np.array(r["test"]) >= 0)
                      & (np.array(r["test"]) <= 1))
    assert "batch" in runs[0] and "precise" in runs[0]
    assert "batch" not in runs[1]


def test_it_repeats_itself():
    first, second = (experiments.run(NAMES[0], **SMALL, methods=["BRN"])
                     for _ in range(2))
    assert first[0]["test"] == second[0]["test"]
    assert first[0]["val"] == second[0]["val"]


def test_ghost_batches_run_only_where_they_differ():
    points = sb.every_size(experiments.configuration(NAMES[0], "full"))
    sizes = [p["batch_size"] for p in points if p["method"] == "ghost BN"]
    assert sizes == [32, 64, 128, 128]


def test_learn_can_leave_the_hidden_weights_alone(monkeypatch):
    kept = []
    real = sb.stacked
    monkeypatch.setattr(sb, "stacked", lambda nets, norm: kept.append(
        real(nets, norm)) or kept[-1])
    cfg = config(NAMES[0])
    test = [sb.learn(cfg, "none", 4, frozen) for frozen in (False, True)]
    assert test[0].shape == (2,) and all((t > 0).all() for t in test)
    start = real([sb.small_mlp(None, cfg["sizes"], s)
                  for s in (0, 1, 0, 1)], None)
    moved = [[not torch.equal(a.weight, b.weight)
              for a, b in zip(net, start, strict=True)
              if hasattr(a, "weight")] for net in kept]
    assert moved == [[True, True, True], [False, False, True]]


def test_learn_is_the_experiment():
    cfg = config(NAMES[0], methods=["BN"])
    row, = experiments.run(NAMES[0], **SMALL, methods=["BN"])
    np.testing.assert_allclose(sb.learn(cfg, "BN", 4),
                               sb.best([row], "BN", 4)[1], atol=1e-5)


def test_best_chooses_by_validation():
    point = {"method": "BN", "batch_size": 2, "budget": "examples",
             "learning_rates": [0.1, 0.3], "val": [[0.5, 0.4], [0.1, 0.2]],
             "test": [[0.0, 0.0], [0.3, 0.4]]}
    lr, test = sb.best([point], "BN", 2)
    assert lr == 0.3 and test.tolist() == [0.3, 0.4]
    with pytest.raises(ValueError, match="method 'GN'"):
        sb.best([point], "GN", 2)
