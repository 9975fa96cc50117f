"""Adaptation of batch normalization's statistics to shifted data."""

import copy

import pytest
import torch
from torch import nn

from normlab import adapt, torch_layers

torch.set_num_threads(1)
KINDS = [nn, torch_layers]


def network(kind=nn, seed=0, dtype=torch.float64):
    """Two normalised layers with a past, in evaluation mode."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), kind.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 5, 3, bias=False), kind.BatchNorm2d(5), nn.ReLU(),
        nn.Flatten(), nn.Dropout(0.5), nn.Linear(5 * 16, 3)).to(dtype)
    for _ in range(3):
        net(torch.randn(16, 1, 8, 8, dtype=dtype))
    for layer in (net[1], net[4]):
        nn.init.uniform_(layer.weight, 0.5, 1.5)
        nn.init.normal_(layer.bias)
    return net.eval()


def target(n=40, seed=1, dtype=torch.float64):
    torch.manual_seed(seed)
    return 3 * torch.randn(n, 1, 8, 8, dtype=dtype) - 2


def same(state, other):
    return all(torch.equal(a, b)
               for a, b in zip(state.values(), other.values(), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_adapted_statistics_are_those_of_the_data(kind):
    net, x = network(kind), target()
    new = adapt.adapt_statistics(net, x)
    z = net[0](x)
    mean, var = z.mean((0, 2, 3)), z.var((0, 2, 3), unbiased=True)
    torch.testing.assert_close(new[1].running_mean, mean)
    torch.testing.assert_close(new[1].running_var, var)
    # The second layer's are measured behind the adapted first.
    z = new[:4](x)
    torch.testing.assert_close(new[4].running_mean, z.mean((0, 2, 3)))
    torch.testing.assert_close(new[4].running_var, z.var((0, 2, 3)))


def test_order_and_size_of_the_batches_do_not_matter():
    net, x = network(), target()
    whole = adapt.adapt_statistics(net, x)
    order = x.mean((1, 2, 3)).argsort()  # sorted, as classes might be
    parts = adapt.adapt_statistics(net, x[order].split([1, 7, 32]))
    for a, b in zip(whole.state_dict().values(), parts.state_dict().values(),
                    strict=True):
        torch.testing.assert_close(a, b)


def test_batches_may_be_pairs_or_a_loader():
    net, x = network(), target()
    data = torch.utils.data.TensorDataset(x, torch.arange(len(x)))
    loader = torch.utils.data.DataLoader(data, batch_size=9, shuffle=True)
    a, b = (adapt.adapt_statistics(net, batches) for batches in (x, loader))
    torch.testing.assert_close(a[4].running_var, b[4].running_var)


@pytest.mark.parametrize("use", [
    lambda net, x: adapt.adapt_statistics(net, x),
    lambda net, x: adapt.prediction_time(net, 4)(x),
    lambda net, x: adapt.Tent(net, 0.1)(x),
    lambda net, x: adapt.statistics_shift(net, x),
    lambda net, x: adapt.statistics(net)["1"][0].zero_(),
])
def test_the_given_model_stays_as_it_was(use):
    net = network().train()
    net[1].eval()
    modes = [m.training for m in net.modules()]
    grads = [p.requires_grad for p in net.parameters()]
    before = copy.deepcopy(net.state_dict())
    use(net, target())
    assert same(before, net.state_dict())
    assert [m.training for m in net.modules()] == modes
    assert [p.requires_grad for p in net.parameters()] == grads
    assert not net[1]._forward_pre_hooks


def test_in_place_is_the_model_itself_and_can_be_undone():
    net = network()
    before, kept = copy.deepcopy(net.state_dict()), adapt.statistics(net)
    assert adapt.adapt_statistics(net, target(), inplace=True) is net
    assert not same(before, net.state_dict())
    adapt.load_statistics(net, kept)
    assert same(before, net.state_dict())
    with pytest.raises(ValueError, match="stats must be for the layers"):
        adapt.load_statistics(net, {"1": kept["1"]})


@pytest.mark.parametrize("kind", KINDS)
def test_prediction_time_is_training_mode_that_stores_nothing(kind):
    net, x = network(kind), target()
    want = copy.deepcopy(net)
    for layer in (want[1], want[4]):
        layer.train()
    new = adapt.prediction_time(net)
    torch.testing.assert_close(new(x), want(x))
    state = copy.deepcopy(new.state_dict())
    new(x + 1)
    assert same(state, new.state_dict())
    torch.testing.assert_close(new.train()[1](x.expand(-1, 4, -1, -1)),
                               new.eval()[1](x.expand(-1, 4, -1, -1)))


def test_the_prior_goes_from_the_batch_to_the_source():
    net, x = network(), target()
    torch.testing.assert_close(adapt.prediction_time(net, float("inf"))(x),
                               net(x))
    far = (adapt.prediction_time(net, 0)(x) - net(x)).abs().max()
    near = (adapt.prediction_time(net, 1e9)(x) - net(x)).abs().max()
    assert near < 1e-5 < far
    # One example alone: nothing of its own to divide by in a dense layer.
    layer = nn.BatchNorm1d(3).eval()
    one = adapt.prediction_time(layer, 1)(torch.tensor([[2.0, 4, 6]]))
    want = torch.tensor([[1.0, 2, 3]]) / (0.5 + layer.eps) ** 0.5
    torch.testing.assert_close(one, want)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        adapt.prediction_time(layer, 0)(torch.zeros(1, 3))


def test_the_mixture_between_domains_is_exact_with_between():
    a, b = torch.randn(30, 4).double(), 5 + 2 * torch.randn(10, 4).double()
    source, target = ((t.mean(0), t.var(0, unbiased=False)) for t in (a, b))
    both = torch.cat([a, b])
    mean, var = adapt.mix_statistics(source, target, 10, 30, between=True)
    torch.testing.assert_close(mean, both.mean(0))
    torch.testing.assert_close(var, both.var(0, unbiased=False))
    _, plain = adapt.mix_statistics(source, target, 10, 30)
    torch.testing.assert_close(plain, 0.75 * source[1] + 0.25 * target[1])


@pytest.mark.parametrize("kind", KINDS)
def test_tent_answers_then_learns_gamma_and_beta_alone(kind):
    net, x = network(kind), target()
    tent = adapt.Tent(net, 0.01)
    first = tent(x)
    torch.testing.assert_close(first, adapt.prediction_time(net)(x))
    entropies = [float(adapt.entropy(tent(x)).mean()) for _ in range(20)]
    assert entropies[-1] < float(adapt.entropy(first).mean())
    moved = {name for name, p in tent.model.named_parameters()
             if not torch.equal(p, net.get_parameter(name))}
    assert moved == {"1.weight", "1.bias", "4.weight", "4.bias"}
    learning = {name for name, p in tent.model.named_parameters()
                if p.requires_grad or p.grad is not None}
    assert learning == moved
    tent.reset()
    torch.testing.assert_close(tent(x), first)


def test_tent_steps_as_its_formula_says():
    net, x = network(), target()
    tent = adapt.Tent(net, 0.5, torch.optim.SGD)
    twin = copy.deepcopy(net)
    for layer in (twin[1], twin[4]):
        layer.train()
    p = twin(x).softmax(1)
    loss = -(p * p.log()).sum(1).mean()
    grad, = torch.autograd.grad(loss, twin[1].bias)
    with torch.no_grad():  # as in a loop that evaluates
        tent(x)
    torch.testing.assert_close(tent.model[1].bias, net[1].bias - 0.5 * grad)


def test_shift_is_in_standard_deviations_of_the_source():
    layer = nn.BatchNorm1d(2, eps=0).double().eval()
    layer.running_mean.copy_(torch.tensor([1.0, 0]))
    layer.running_var.copy_(torch.tensor([4.0, 1]))
    x = torch.tensor([[4.0, -2], [10, 2]]).double()  # 7 and 0, std 3 and 2
    got = adapt.statistics_shift(layer, x)[""]
    torch.testing.assert_close(got, torch.tensor([37 ** 0.5 / 2, 1]).double())
    assert adapt.shift_score({"a": got, "b": got * 0}) == float(got.mean())


def test_calibration_error_by_hand():
    p = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.3, 0.7]])
    y = torch.tensor([0, 1, 1, 1])
    # Two bins, (0.5, 0.75] has gaps 0.4 and 0.3; (0.75, 1] -0.1 and 0.8.
    assert adapt.calibration_error(p.log(), y, 4) == pytest.approx(
        (abs(0.65 - 1) * 2 + abs(0.85 - 0.5) * 2) / 4)
    sure = torch.tensor([[50.0, 0]])
    assert adapt.calibration_error(sure, torch.tensor([1])) == pytest.approx(
        1)


def test_bad_arguments_are_named():
    net, x = network(), target()
    plain = nn.Sequential(nn.Linear(2, 2))
    for use in (adapt.adapt_statistics, adapt.statistics_shift):
        with pytest.raises(ValueError, match="model must have batch norm"):
            use(plain, x)
        with pytest.raises(TypeError, match="batches must be a tensor"):
            use(net, [x.numpy()])
        with pytest.raises(ValueError, match="batches must hold at least"):
            use(net, [])
    with pytest.raises(TypeError, match="got an iterator"):
        adapt.adapt_statistics(net, iter([x]))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        adapt.adapt_statistics(nn.BatchNorm1d(3), torch.zeros(1, 3))
    for use in (adapt.prediction_time, adapt.Tent, adapt.statistics):
        with pytest.raises(ValueError, match="model must have batch norm"):
            use(plain)
        with pytest.raises(TypeError, match="model must be a torch.nn"):
            use(x)
    with pytest.raises(ValueError, match="prior must be a number from 0"):
        adapt.prediction_time(net, -1)
    pair = torch.zeros(2), torch.ones(2)
    with pytest.raises(ValueError, match="n must be positive"):
        adapt.mix_statistics(pair, pair, 0, 1)
    with pytest.raises(ValueError, match="prior must be a number from 0"):
        adapt.mix_statistics(pair, pair, 1, float("nan"))
    with pytest.raises(ValueError, match="no gamma or no beta"):
        adapt.Tent(nn.BatchNorm1d(3, affine=False))


def test_float32_and_half_keep_their_type():
    for dtype in (torch.float32, torch.bfloat16):
        net, x = network(dtype=dtype), target(dtype=dtype)
        assert adapt.prediction_time(net, 3)(x).dtype == dtype
        assert adapt.adapt_statistics(net, x)(x).dtype == dtype
        assert adapt.Tent(net)(x).dtype == dtype


def test_what_cannot_be_measured_changes_nothing():
    net, x = network(), target()
    x[3, 0, 2, 2] = float("nan")
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match="layer '1' finite values"):
        adapt.adapt_statistics(net, x, inplace=True)
    assert same(net.state_dict(), before)


def test_a_later_layer_s_fault_leaves_the_earlier_ones():
    net = nn.Sequential(nn.BatchNorm2d(1), nn.AdaptiveAvgPool2d(1),
                        nn.BatchNorm2d(1)).eval()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match="layer '2' more than 1 value"):
        adapt.adapt_statistics(net, torch.randn(1, 1, 4, 4), inplace=True)
    assert same(net.state_dict(), before)


def test_statistics_of_another_shape_are_refused_whole():
    net = network()
    stats, before = adapt.statistics(net), copy.deepcopy(net.state_dict())
    stats["1"] = tuple(t + 1 for t in stats["1"])
    stats["4"] = tuple(t[:1] for t in stats["4"])
    with pytest.raises(ValueError, match=r"stats\['4'\] must have"):
        adapt.load_statistics(net, stats)
    assert same(net.state_dict(), before)


@pytest.mark.parametrize("logits, y", [
    (torch.zeros(0, 3), torch.zeros(0)), (torch.zeros(4), torch.zeros(4)),
    (torch.zeros(4, 3), torch.zeros(5))])
def test_calibration_error_names_shapes_that_do_not_fit(logits, y):
    with pytest.raises(ValueError, match=r"logits must be \(N, K\)"):
        adapt.calibration_error(logits, y)


def test_a_prior_is_a_number():
    with pytest.raises(ValueError, match="number from 0, got 'a'"):
        adapt.prediction_time(network(), prior="a")
