"""Groups of parameters for an optimiser."""

import pytest
import torch
from torch import nn

from normlab import torch_layers, zoo
from normlab.optim import param_groups


def net():
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), torch_layers.BatchNorm2d(2),
        nn.GroupNorm(1, 2), zoo.BatchRenorm2d(2), nn.Flatten(),
        nn.Linear(8, 3))


def names(model, group):
    own = {id(p): name for name, p in model.named_parameters()}
    return [own[id(p)] for p in group["params"]]


def test_weights_are_decayed_and_vectors_are_not():
    model = net()
    decayed, rest = param_groups(model, 0.1)
    assert names(model, decayed) == ["0.weight", "6.weight"]
    assert decayed["weight_decay"] == 0.1 and rest["weight_decay"] == 0
    assert len(decayed["params"]) + len(rest["params"]) == len(
        list(model.parameters()))


@pytest.mark.parametrize("rule", [torch.optim.SGD, torch.optim.AdamW])
def test_an_optimiser_takes_the_groups(rule):
    model = net()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimiser = rule(param_groups(model, 0.5), lr=0.1)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimiser.step()
    for name, p in model.named_parameters():
        share = 0.95 if name in ("0.weight", "6.weight") else 1.0
        torch.testing.assert_close(p.detach(), share * before[name])


def test_names_that_are_not_decayed():
    model = nn.ModuleDict({"embedding": nn.Embedding(3, 2),
                           "head": nn.Linear(2, 3),
                           "subhead": nn.Linear(2, 3)})
    decayed, rest = param_groups(model, 0.1, ["embedding.weight",
                                              "head.weight"])
    assert names(model, decayed) == ["subhead.weight"]
    assert len(rest["params"]) == 4


def test_a_gamma_with_several_axes_has_to_be_named():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.LayerNorm([2, 4, 4]))
    decayed, _ = param_groups(model, 0.1)
    assert names(model, decayed) == ["0.weight", "1.weight", "1.bias"]
    decayed, rest = param_groups(model, 0.1, ["1.weight", "1.bias"])
    assert names(model, decayed) == ["0.weight"]
    assert names(model, rest) == ["0.bias", "1.weight", "1.bias"]


def test_frozen_parameters_stay_out_and_shared_ones_come_once():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.weight = first.weight
    second.bias.requires_grad_(False)
    decayed, rest = param_groups(nn.Sequential(first, second), 0.0)
    assert len(decayed["params"]) == len(rest["params"]) == 1
    torch.optim.SGD([decayed, rest], lr=0.1)


@pytest.mark.parametrize("decay", [-0.1, float("nan"), float("inf")])
def test_a_decay_that_is_none(decay):
    with pytest.raises(ValueError, match="weight_decay.*at least 0"):
        param_groups(net(), decay)


def test_errors_name_what_does_not_fit():
    with pytest.raises(ValueError, match="no parameters"):
        param_groups(nn.ReLU(), 0.1)
    frozen = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ValueError, match="require a gradient"):
        param_groups(frozen, 0.1)
    with pytest.raises(ValueError, match="ends with 'ead.weight'.*6.weight"):
        param_groups(net(), 0.1, ["ead.weight"])
    with pytest.raises(ValueError, match="a list of names"):
        param_groups(net(), 0.1, "6.weight")
