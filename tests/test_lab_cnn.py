"""The CNN experiment and the loop that trains PyTorch networks."""

import numpy as np
import pytest
import torch
from torch import nn

from normlab.lab import cnn, experiments, torch_train

torch.set_num_threads(1)
SMALL = {"steps": 4, "checkpoints": [2, 4], "seeds": [0],
         "learning_rates": [0.1]}


def test_every_method_starts_from_the_same_weights():
    nets = [cnn.small_cnn(norm, (4, 6), (1, 2), seed=3)
            for norm in cnn.norms().values()]
    for kind in (nn.Conv2d, nn.Linear):
        weights = [[m.weight for m in net if isinstance(m, kind)]
                   for net in nets]
        for others in weights[1:]:
            for a, b in zip(weights[0], others, strict=True):
                assert torch.equal(a, b)
    assert nets[0][0].bias is None
    assert not torch.equal(cnn.small_cnn(None, (4,), (1,), 0)[0].weight,
                           cnn.small_cnn(None, (4,), (1,), 1)[0].weight)


def test_a_point_has_its_accuracies_and_losses():
    runs = experiments.run("cnn", scale="live", **SMALL)
    assert [r["method"] for r in runs] == ["ours", "torch.nn", "none"]
    for r in runs:
        assert len(r["accuracy"]) == len(r["loss"]) == 2
        assert 0 < r["accuracy"][-1] < 1 and r["loss"][-1] > 0
    ours, theirs, none = (r["loss"] for r in runs)
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
    assert ours != none


def test_accuracy_leaves_modes_and_statistics_as_they_were():
    net = cnn.small_cnn(nn.BatchNorm2d, (4, 6), (1, 2), 0)
    net[1].eval()
    before = [m.training for m in net.modules()]
    x, y = torch.randn(5, 1, 8, 8), torch.arange(5)
    share = torch_train.accuracy(net, x, y, size=2)
    assert share in {k / 5 for k in range(6)}
    assert [m.training for m in net.modules()] == before
    assert net[4].num_batches_tracked == 0


def test_training_lowers_the_loss_and_repeats_itself():
    x, y, *_ = cnn.images("digits", "cpu")
    curves = []
    for _ in range(2):
        net = cnn.small_cnn(nn.BatchNorm2d, (4, 6), (2, 2), 0)
        history = torch_train.train(net, x, y, 40, 64, 0.3, seed=1, every=20,
                                    evaluate=lambda net: net.training)
        curves.append(history.losses)
    assert history.steps == [20, 40] and history.values == [True, True]
    assert (curves[0] == curves[1]).all()
    assert curves[0][-5:].mean() < curves[0][:5].mean()


def test_bad_arguments_are_named():
    x, y, *_ = cnn.images("digits", "cpu")
    net = cnn.small_cnn(None, (4,), (2,), 0)
    with pytest.raises(ValueError, match="batch_size"):
        torch_train.train(net, x, y, 1, 10_000, 0.1, 0)
    with pytest.raises(ValueError, match="every"):
        torch_train.train(net, x, y, 1, 10, 0.1, 0, every=[2],
                          evaluate=len)
