"""Monte Carlo batch normalization and dropout, and what they are worth."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from normlab import torch_layers, uncertainty

torch.set_num_threads(1)


def network(kind=nn, seed=0):
    """Two normalised layers with a past, and a dropout, in float64."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), kind.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
        nn.Dropout(0.5), nn.Linear(4 * 16, 5), kind.BatchNorm1d(5),
        nn.ReLU(), nn.Linear(5, 3)).double()
    for _ in range(3):
        net(torch.randn(16, 1, 6, 6, dtype=torch.float64))
    return net.eval()


def images(n=20, seed=1):
    torch.manual_seed(seed)
    return 2 * torch.randn(n, 1, 6, 6, dtype=torch.float64) + 1


def frozen(net):
    return copy.deepcopy(net.state_dict())


def same(a, b):
    return all(torch.equal(u, v) for u, v in zip(a.values(), b.values(),
                                                 strict=True))


@pytest.mark.parametrize("kind", [nn, torch_layers])
def test_a_batchs_own_answers_are_those_of_training_mode(kind):
    net, batch = network(kind), images(8)
    net[4].p = 0.0  # training mode without dropout
    got = uncertainty.mc_batch_norm(net, batch, batch, m=8, draws=2)
    want = net.train()(batch)
    assert got.shape == (2, 8, 3)
    torch.testing.assert_close(got[0], want)
    torch.testing.assert_close(got[1], want)


def test_an_image_alone_gets_the_statistics_of_the_batch_only():
    net, batch, x = network(), images(8), images(3, seed=5)
    got = uncertainty.mc_batch_norm(net, x, batch, m=8, draws=1)[0]
    one = uncertainty.mc_batch_norm(net, x[1:2], batch, m=8, draws=1)[0]
    torch.testing.assert_close(got[1:2], one)
    z = net[0](batch)
    var, mean = torch.var_mean(z, (0, 2, 3), correction=0)
    h = (net[0](x) - mean.view(-1, 1, 1)) / (
        var.view(-1, 1, 1) + net[1].eps).sqrt()
    own = (z - mean.view(-1, 1, 1)) / (
        var.view(-1, 1, 1) + net[1].eps).sqrt()
    z, h = (net[5](torch.relu(v).flatten(1)) for v in (own, h))
    var, mean = torch.var_mean(z, 0, correction=0)
    h = (h - mean) / (var + net[6].eps).sqrt()
    torch.testing.assert_close(got, net[8](torch.relu(h)))


@pytest.mark.parametrize("training", [True, False])
def test_the_model_stays_as_it_is(training):
    net = network().train(training)
    net[1].eval()
    state, modes = frozen(net), [layer.training for layer in net.modules()]
    uncertainty.mc_batch_norm(net, images(3), images(), m=4, draws=3)
    uncertainty.mc_dropout(net, images(3), draws=3)
    assert same(state, net.state_dict())
    assert modes == [layer.training for layer in net.modules()]
    assert not any(layer._forward_pre_hooks for layer in net.modules())


def test_the_model_stays_as_it_is_after_an_error():
    net = network()
    state = frozen(net)
    with pytest.raises(RuntimeError):
        uncertainty.mc_batch_norm(net, torch.zeros(2, 3), images(), 4, 2)
    assert same(state, net.state_dict())


def test_draws_differ_and_repeat_by_seed():
    net, x = network(), images(3)
    a, b, c = (uncertainty.mc_batch_norm(net, x, images(), 4, 3, seed)
               for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert not torch.equal(a[0], a[1])
    a, b, c = (uncertainty.mc_dropout(net, x, 3, seed) for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert not torch.equal(a[0], a[1])


def test_dropout_draws_average_to_a_linear_models_answer():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 2)).double().eval()
    x = torch.randn(4, 6, dtype=torch.float64)
    state = torch.random.get_rng_state()
    draws = uncertainty.mc_dropout(net, x, 4000)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.testing.assert_close(draws.mean(dim=0), net(x), atol=0.15, rtol=0)


def test_more_images_a_draw_scatter_less():
    net, x, data = network(), images(5), images(400)
    few, many = (uncertainty.mc_batch_norm(net, x, data, m, 40).std(dim=0)
                 for m in (4, 100))
    assert many.mean() < 0.5 * few.mean()
    everything = uncertainty.mc_batch_norm(net, x, data, 400, 3)
    assert everything.std(dim=0).max() < 1e-12


def test_predictive_is_the_mean_probability():
    logits = torch.randn(7, 4, 3, dtype=torch.float64)
    got = uncertainty.predictive(logits)
    torch.testing.assert_close(got.exp(), logits.softmax(2).mean(0))
    far = torch.tensor([[[0.0, -1e4]], [[0.0, -1e4]]])
    assert torch.isfinite(uncertainty.predictive(far)).all()


def test_disagreement_by_hand():
    sure = torch.tensor([[[100.0, 0.0]], [[0.0, 100.0]]])
    assert uncertainty.disagreement(sure).item() == pytest.approx(
        math.log(2), rel=1e-5)
    logits = 3 * torch.randn(5, 4, 3, dtype=torch.float64)
    p = logits.softmax(2)
    information = (p * (p / p.mean(0)).log()).sum(2).mean(0)
    torch.testing.assert_close(uncertainty.disagreement(logits), information)
    alike = torch.randn(1, 4, 3).expand(5, 4, 3)
    assert uncertainty.disagreement(alike).abs().max() < 1e-6


def test_auroc_counts_pairs():
    rng = np.random.default_rng(0)
    score = rng.integers(0, 6, 40).astype(float)  # with ties
    wrong = rng.random(40) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in score[wrong]
             for b in score[~wrong]]
    assert uncertainty.auroc(score, wrong) == pytest.approx(np.mean(pairs))
    assert uncertainty.auroc(torch.tensor([1.0, 0.0]),
                             torch.tensor([True, False])) == 1


@pytest.mark.parametrize("m, draws, match", [
    (0, 2, "m must be .* 20 images, got 0"), (21, 2, "got 21"),
    (2.5, 2, "got 2.5"), (4, 0, "draws must be .* got 0"),
    (4, 1.5, "draws .* got 1.5"), (1, 2, "more than 1 value per channel")])
def test_errors(m, draws, match):
    net = network()
    state = frozen(net)
    with pytest.raises(ValueError, match=match):
        uncertainty.mc_batch_norm(net, images(2), images(), m, draws)
    assert same(state, net.state_dict())


def test_errors_of_the_others():
    plain = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="batch normalization"):
        uncertainty.mc_batch_norm(plain, torch.zeros(2, 2),
                                  torch.zeros(4, 2), 2, 2)
    with pytest.raises(ValueError, match="dropout layers, Linear has none"):
        uncertainty.mc_dropout(plain, torch.zeros(2, 2), 2)
    with pytest.raises(ValueError, match="got 0 of 3"):
        uncertainty.auroc([1.0, 2, 3], [False] * 3)
    with pytest.raises(ValueError, match="got 3 of 3"):
        uncertainty.auroc([1.0, 2, 3], [True] * 3)
