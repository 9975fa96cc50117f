"""The experiments that read images as sequences."""

import numpy as np
import pytest
import torch

from normlab.lab import experiments, sequences

torch.set_num_threads(1)
ROWS = {"checkpoints": [2, 4], "seeds": [0], "learning_rates": [0.001]}
PIXELS = ROWS | {"orders": ["permuted"], "hidden": 4, "train_size": 200,
                 "test_size": 100}


def test_every_method_of_a_cell_starts_from_the_same_weights():
    for cell in ("LSTM", "GRU"):
        nets = [sequences.classifier(name, 8, 6, 8, 5)
                for name, (kind, _) in sequences.methods().items()
                if kind == cell]
        for net in nets:
            for name in ("weight_ih_l0", "weight_hh_l0"):
                assert torch.equal(getattr(net.rnn, name),
                                   getattr(nets[0].rnn, name))
            assert torch.equal(net.head.weight, nets[0].head.weight)
            assert torch.equal(net.rnn.weight_hh_l0[:6], torch.eye(6))
            assert (net.rnn.bias_ih_l0 == 0).all()
    weighted = sequences.classifier("weight norm", 8, 6, 8, 5)
    torch.testing.assert_close(weighted.rnn.weights()[1],
                               weighted.rnn.weight_hh_l0)


def test_rows_repeat_and_have_their_results():
    first, again = (experiments.run("rows", **ROWS) for _ in range(2))
    assert [r["method"] for r in first] == ["LSTM", "LN", "step BN",
                                            "shared BN"]
    for a, b in zip(first, again, strict=True):
        assert len(a["accuracy"]) == 2 and a["loss"] > 0
        assert a["accuracy"] == b["accuracy"] and a["loss"] == b["loss"]
        assert 0 <= a["own_batch"] <= 100


def test_shared_statistics_change_no_weight_in_training():
    step, shared = (r for r in experiments.run("rows", **ROWS)
                    if r["method"] in ("step BN", "shared BN"))
    assert step["loss"] == pytest.approx(shared["loss"], abs=2e-3)
    assert step["accuracy"] != shared["accuracy"]


def test_pixels_have_their_points_and_results():
    runs = experiments.run("sequential-mnist", **PIXELS)
    assert [(r["method"], r["order"], r["noise"]) for r in runs] == [
        ("LSTM", "permuted", 0.1), ("LN", "permuted", 0.1),
        ("step BN", "permuted", 0.1), ("step BN", "sequential", 0.0)]
    assert ["shared" in r for r in runs] == [False, False, True, True]


def test_images_are_pooled_and_permuted():
    straight = sequences.pixel_images("digits", "sequential", 4, 50, 20)
    shuffled = sequences.pixel_images("digits", "permuted", 4, 50, 20)
    x, y, x_test, y_test = straight
    assert x.shape == (50, 16, 1) and x_test.shape == (20, 16, 1)
    assert len(y) == 50 and len(y_test) == 20
    whole = sequences.load("digits")[0][0].reshape(8, 8)
    assert x[0, 1, 0] == pytest.approx(whole[:2, 2:4].mean())
    way = np.random.default_rng(0).permutation(16)
    assert torch.equal(shuffled[0], x[:, way])
    assert (way != np.arange(16)).any()


def test_percent_leaves_the_network_as_it_was():
    x, y, *_ = sequences.row_images(0)
    net = sequences.classifier("step BN", 8, 4, 8, 0, noise=0.1).eval()
    before = [b.clone() for b in net.buffers()]
    one, two = (sequences.percent(net, x, y, own_batch=True)
                for _ in range(2))
    assert one == two and not net.training and net.rnn.noise == 0.1
    for a, b in zip(before, net.buffers(), strict=True):
        assert torch.equal(a, b)


def test_sharing_keeps_the_weights():
    x, *_ = sequences.row_images(0)
    net = sequences.classifier("step BN", 8, 4, 8, 3)
    shared = sequences.shared_statistics(net, x, 32, 3, 0)
    for a, b in zip(net.parameters(), shared.parameters(), strict=True):
        assert torch.equal(a, b)
    assert shared.rnn.norm_h.num_batches_tracked.tolist() == [3 * 8]


def test_training_lowers_the_loss():
    x, y, *_ = sequences.row_images(0)
    net = sequences.classifier("GRU step BN", 8, 16, 8, 0)
    losses, values = sequences.fit(net, x, y, 60, 64, 0.001, 0, [30, 60],
                                   lambda net: net.training)
    assert losses[-5:].mean() < losses[:5].mean() and values == [True, True]


def test_percent_is_the_share_of_right_answers():
    x, y, *_ = sequences.row_images(0)
    net = sequences.classifier("LSTM", 8, 8, 8, 0).eval()
    with torch.no_grad():
        right = (net(x[:700]).argmax(1) == y[:700]).sum().item()
    assert sequences.percent(net, x[:700], y[:700]) == round(right / 7, 2)


def test_gradients_are_clipped():
    x, y, *_ = sequences.row_images(0)
    net, norms = sequences.classifier("LSTM", 8, 8, 8, 0), []

    def evaluate(net):
        norms.append(sum((p.grad ** 2).sum() for p in net.parameters()))

    with torch.no_grad():
        net.head.weight.mul_(100)
    sequences.fit(net, x, y, 3, 64, 0.001, 0, [1, 2, 3], evaluate)
    assert max(norms) <= 1.001 and max(norms) > 0.99
