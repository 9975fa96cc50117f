"""LSTM, GRU and their norms against PyTorch and against plain formulas."""

import copy

import pytest
import torch
from torch import nn

from normlab import recurrent
from normlab.recurrent import (
    GRU,
    LSTM,
    NORMS,
    SequenceBatchNorm,
    StepBatchNorm,
    live_mask,
)

torch.set_num_threads(1)
CELLS = ((LSTM, nn.LSTM), (GRU, nn.GRU))
B, T, C, H = 6, 5, 3, 4


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def make(cell, norm, **options):
    return cell(C, H, norm, max_steps=T, **options).double()


def frames(batch=B, steps=T, width=C):
    return torch.randn(batch, steps, width, dtype=torch.float64)


def flat(state):
    return state if isinstance(state, tuple) else (state,)


@pytest.mark.parametrize(("ours", "theirs"), CELLS)
def test_without_norm_it_is_torch_nn(ours, theirs):
    ours, theirs = ours(C, H), theirs(C, H, batch_first=True)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    x = frames().float().requires_grad_()
    state = tuple(torch.randn(1, B, H) for _ in range(2))
    for start in (None, state if ours.has_cell else state[0]):
        y, last = ours(x, start)
        y_torch, last_torch = theirs(x, start)
        torch.testing.assert_close(y, y_torch, atol=1e-6, rtol=0)
        for a, b in zip(flat(last), flat(last_torch), strict=True):
            assert a.shape == (1, B, H)
            torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
        weights = torch.randn_like(y)
        grads = [torch.autograd.grad((out * weights).sum(),
                                     [x, *net.parameters()])
                 for out, net in ((y, ours), (y_torch, theirs))]
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("ours", "theirs"), CELLS)
def test_lengths_are_those_of_a_packed_sequence(ours, theirs):
    ours, theirs = ours(C, H), theirs(C, H, batch_first=True)
    ours.load_state_dict(theirs.state_dict())
    x, lengths = frames().float(), torch.tensor([5, 2, 4, 1, 5, 3])
    packed = nn.utils.rnn.pack_padded_sequence(
        x, lengths, batch_first=True, enforce_sorted=False)
    y_torch, last_torch = theirs(packed)
    y_torch = nn.utils.rnn.pad_packed_sequence(y_torch, True)[0]
    y, last = ours(x, lengths=lengths)
    torch.testing.assert_close(y, y_torch, atol=1e-6, rtol=0)
    for a, b in zip(flat(last), flat(last_torch), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def reference(net, x):
    """BN-LSTM, equations 6 to 8 of Cooijmans et al. (2017), in training."""
    def bn(v, norm):
        mean, var = v.mean(0), v.var(0, correction=0)
        y = norm.weight * (v - mean) / (var + 1e-5).sqrt()
        return y if norm.bias is None else y + norm.bias

    h = c = x.new_zeros(len(x), H)
    out = []
    for t in range(x.shape[1]):
        gates = (bn(x[:, t] @ net.weight_ih_l0.T, net.norm_x)
                 + bn(h @ net.weight_hh_l0.T, net.norm_h)
                 + net.bias_ih_l0 + net.bias_hh_l0)
        i, f, g, o = gates.chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(bn(c, net.norm_c))
        out.append(h)
    return torch.stack(out, 1), c


def test_per_step_lstm_is_the_papers():
    net, x = make(LSTM, "per-step"), frames()
    with torch.no_grad():
        net.norm_c.bias.normal_()
    for steps in (T, T + 3):  # with and without the shortcut over all steps
        x = frames(steps=steps)
        y, (_, c) = net(x)
        expected, c_expected = reference(net, x)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(c[0], c_expected)
    assert net.norm_x.bias is None and net.norm_h.bias is None
    assert (net.norm_c.weight == torch.tensor(0.1)).all()


def test_layer_normalised_lstm_by_hand():
    net, x = make(LSTM, "layer"), frames(steps=1)
    gates = nn.functional.layer_norm(x[:, 0] @ net.weight_ih_l0.T, (4 * H,))
    i, _, g, o = (gates + net.bias_ih_l0 + net.bias_hh_l0).chunk(4, 1)
    c = torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(nn.functional.layer_norm(c, (H,)))
    torch.testing.assert_close(net(x)[0][:, 0], h)


@pytest.mark.parametrize("cell", [LSTM, GRU])
def test_weight_norm_starts_as_the_plain_layer(cell):
    plain, normed = make(cell, None), make(cell, "weight")
    state = normed.state_dict() | plain.state_dict()
    normed.load_state_dict(state)
    normed.reset_gains()
    x = frames()
    torch.testing.assert_close(normed(x)[0], plain(x)[0])
    with torch.no_grad():
        normed.weight_hh_l0.mul_(7)  # only the direction counts
    torch.testing.assert_close(normed(x)[0], plain(x)[0])
    lengths = normed.weights()[1].norm(dim=1, keepdim=True)
    torch.testing.assert_close(lengths, normed.gain_hh)


@pytest.mark.parametrize("cell", [LSTM, GRU])
@pytest.mark.parametrize("norm", NORMS)
def test_gradients_are_right(cell, norm):
    net, x = make(cell, norm), frames(4, 3).requires_grad_()
    weights = torch.randn(4, 3, H, dtype=torch.float64)
    lengths = torch.tensor([3, 2, 2, 3])
    for ends in (None, lengths):
        assert torch.autograd.gradcheck(
            lambda x, ends=ends: (net(x, lengths=ends)[0] * weights).sum(),
            x, atol=1e-6)


@pytest.mark.parametrize("cell", [LSTM, GRU])
@pytest.mark.parametrize("norm", NORMS)
def test_padding_is_never_seen(cell, norm):
    net, lengths = make(cell, norm), torch.tensor([5, 3, 4, 2, 5, 5])
    mask, x = live_mask(lengths, B, T), frames()
    weights = torch.randn(B, T, H, dtype=torch.float64)
    results = []
    for filling in (0.0, 1e6, float("nan")):
        copied = copy.deepcopy(net)
        y, last = copied(x.where(mask[..., None], filling), lengths=lengths)
        (y * weights).sum().backward()
        assert (y[~mask] == 0).all()
        results.append([y, *flat(last), *(p.grad for p in
                                          copied.parameters()),
                        *copied.buffers()])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert a.isfinite().all() and torch.equal(a, b)


@pytest.mark.parametrize("cell", [LSTM, GRU])
@pytest.mark.parametrize("norm", NORMS)
def test_in_evaluation_a_sequence_stands_alone(cell, norm):
    net, lengths = make(cell, norm), torch.tensor([5, 3, 4, 2, 5, 5])
    for _ in range(3):
        net(frames(), lengths=lengths)
    net.eval()
    x = frames()
    y, last = net(x, lengths=lengths)
    for b, length in enumerate(lengths):
        alone, end = net(x[b:b + 1, :length])
        torch.testing.assert_close(y[b, :length], alone[0])
        torch.testing.assert_close(flat(last)[0][0, b], flat(end)[0][0, 0])


def test_step_statistics_are_each_steps_own():
    x = frames(8) * torch.arange(1, T + 1)[:, None] + 3
    norm = StepBatchNorm(C, T, momentum=1.0).double()
    y = norm(x)
    torch.testing.assert_close(y.mean(0), torch.zeros(T, C).double())
    torch.testing.assert_close(y.std(0, correction=0),
                               torch.full((T, C), 0.1).double(), rtol=1e-4,
                               atol=0)
    torch.testing.assert_close(norm.running_mean, x.mean(0))
    torch.testing.assert_close(norm.running_var, x.var(0))
    one_by_one = StepBatchNorm(C, T, momentum=1.0).double()
    steps = [one_by_one.step(x[:, t], t) for t in range(T)]
    torch.testing.assert_close(torch.stack(steps, 1), y)
    for a, b in zip(norm.buffers(), one_by_one.buffers(), strict=True):
        torch.testing.assert_close(a, b)


def test_later_steps_reuse_the_last_measured_row():
    norm = StepBatchNorm(C, 10, momentum=1.0, gamma=1.0).double()
    norm(frames(steps=4))  # rows 4 to 9 stay unmeasured
    assert norm.num_batches_tracked.tolist() == [1] * 4 + [0] * 6
    norm.eval()
    x = frames(steps=20)
    y = norm(x)
    for t in (2, 3, 4, 9, 19):
        row = min(t, 3)
        expected = (x[:, t] - norm.running_mean[row]) / (
            norm.running_var[row] + 1e-5).sqrt()
        torch.testing.assert_close(y[:, t], expected)


def test_one_row_is_shared_by_all_steps():
    shared, plain = StepBatchNorm(C, 1).double(), nn.BatchNorm1d(C).double()
    x = frames()
    shared(x)
    for t in range(T):
        plain(x[:, t])
    torch.testing.assert_close(shared.running_mean[0], plain.running_mean)
    torch.testing.assert_close(shared.running_var[0], plain.running_var)
    assert shared.num_batches_tracked.item() == T


def test_a_step_with_one_live_sequence_uses_kept_statistics():
    norm, x = StepBatchNorm(C, T, momentum=1.0).double(), frames(3)
    mask = live_mask(torch.tensor([5, 2, 2]), 3, T)
    y = norm(x, mask)
    assert norm.num_batches_tracked.tolist() == [1, 1, 0, 0, 0]
    expected = 0.1 * (x[0, 2:] - norm.running_mean[1]) / (
        norm.running_var[1] + 1e-5).sqrt()
    torch.testing.assert_close(y[0, 2:], expected)


def test_sequence_statistics_are_those_of_the_live_frames():
    lengths = torch.tensor([5, 3, 4, 2, 5, 1])
    x, mask = frames() * 3 + 2, live_mask(lengths, B, T)
    norm = SequenceBatchNorm(C, momentum=1.0).double()
    plain = nn.BatchNorm1d(C, momentum=1.0).double()
    y, rows = norm(x, mask), plain(x[mask])
    torch.testing.assert_close(y[mask], rows)
    assert (y[~mask] == 0).all()
    torch.testing.assert_close(norm.running_var[0], plain.running_var)
    torch.testing.assert_close(norm(x, torch.ones_like(mask)), norm(x))


@pytest.mark.parametrize("cell", [LSTM, GRU])
@pytest.mark.parametrize("norm", NORMS)
def test_state_dict_round_trip(cell, norm):
    net, other = make(cell, norm), make(cell, norm)
    net(frames())
    other.load_state_dict(net.state_dict())
    x = frames(steps=T + 2)
    assert torch.equal(net.eval()(x)[0], other.eval()(x)[0])
    assert x.dtype == net(x)[0].dtype


@pytest.mark.parametrize("cell", [LSTM, GRU])
def test_noise_is_for_training_without_a_given_state(cell):
    net, x = make(cell, None, noise=0.5), frames()
    assert not torch.equal(net(x)[0], net(x)[0])
    zero = torch.zeros(1, B, H, dtype=torch.float64)
    state = (zero, zero) if net.has_cell else zero
    assert torch.equal(net(x, state)[0], net.eval()(x)[0])


def test_which_part_is_normalised():
    kinds = {norm: [type(n).__name__ for n in (net.norm_x, net.norm_h,
                                               net.norm_c)]
             for norm in NORMS for net in [make(LSTM, norm)]}
    none = "NoneType"
    assert kinds["input"] == ["StepBatchNorm", none, none]
    assert kinds["sequence"] == ["SequenceBatchNorm", none, none]
    assert kinds["per-step"] == ["StepBatchNorm"] * 3
    assert kinds["layer"] == ["LayerNorm"] * 3
    assert kinds[None] == kinds["weight"] == [none] * 3
    assert make(GRU, "per-step").norm_c is None
    assert make(LSTM, "layer", gamma=0.3).norm_h.weight[0].item() == (
        pytest.approx(0.3))
    assert "per-step" in repr(make(LSTM, "per-step"))


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="norm must be one of"):
        LSTM(C, H, "batch")
    with pytest.raises(ValueError, match="max_steps is needed"):
        GRU(C, H, "per-step")
    with pytest.raises(ValueError, match="max_steps must be a whole number"):
        StepBatchNorm(C, 0)
    with pytest.raises(ValueError, match="noise"):
        LSTM(C, H, noise=-1)
    net = LSTM(C, H)
    for bad in (torch.zeros(B, C), torch.zeros(B, T, C + 1),
                torch.zeros(B, 0, C)):
        with pytest.raises(ValueError, match="x must be"):
            net(bad)
    for lengths in ([1, 2], [0] + [1] * 5, [T + 1] * 6):
        with pytest.raises(ValueError, match="lengths must be 6 whole"):
            net(torch.zeros(B, T, C), lengths=lengths)
    with pytest.raises(ValueError, match="mask must be"):
        SequenceBatchNorm(C)(torch.zeros(B, T, C), torch.ones(B, 1).bool())
    for x in (torch.zeros(1, T, C), torch.zeros(1, T + 9, C)):
        with pytest.raises(ValueError, match="at least 2 sequences"):
            StepBatchNorm(C, T)(x)


def test_docstrings_name_their_source():
    for thing in (LSTM, SequenceBatchNorm, StepBatchNorm,
                  recurrent.weight_norm):
        assert "Source:" in thing.__doc__


def test_a_state_that_does_not_fit_is_named():
    x, h = torch.zeros(3, 4, 2), torch.zeros(1, 3, 5)
    lstm, gru = recurrent.LSTM(2, 5), recurrent.GRU(2, 5)
    lstm(x, (h, h))
    gru(x, h)
    for layer, state in ((lstm, (h, h[:, :2])), (lstm, (h,)), (lstm, h),
                         (gru, h[0]), (gru, h[:, :, :4])):
        with pytest.raises(ValueError, match=r"state must be .*\(1, 3, 5\)"):
            layer(x, state)


def test_lengths_are_whole_and_noise_is_a_number():
    with pytest.raises(ValueError, match="lengths must be 2 whole numbers"):
        recurrent.LSTM(2, 5)(torch.zeros(2, 4, 2), lengths=[1.5, 2.0])
    for noise in (float("nan"), float("inf"), -0.1):
        with pytest.raises(ValueError, match="noise must be at least 0"):
            recurrent.LSTM(2, 5, noise=noise)


@pytest.mark.parametrize("options, why", [
    ({"hidden_size": 0}, "hidden_size must be .* got 0"),
    ({"hidden_size": 2.5}, "hidden_size must be .* got 2.5"),
    ({"input_size": True}, "input_size must be .* got True"),
    ({"norm": "per-step", "max_steps": 2.0}, "max_steps must be .* got 2.0"),
    ({"norm": "per-step", "max_steps": True}, "max_steps must be .* True")])
def test_sizes_are_whole_numbers(options, why):
    with pytest.raises(ValueError, match=why):
        recurrent.LSTM(**{"input_size": 2, "hidden_size": 3} | options)


def test_a_mask_holds_truth_values():
    with pytest.raises(ValueError, match="of torch.bool, got .* torch.int64"):
        SequenceBatchNorm(2)(torch.randn(3, 4, 2),
                             torch.ones(3, 4, dtype=torch.int64))


def test_a_gru_given_an_lstm_s_state_says_so():
    h = torch.zeros(1, 3, 5)
    with pytest.raises(ValueError, match="state must be h of shape"):
        recurrent.GRU(2, 5)(torch.zeros(3, 4, 2), (h, h))
