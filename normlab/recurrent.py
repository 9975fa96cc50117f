# Written by `make lib` from the chapters. Do not edit.

__all__ = ["NORMS", "TimeNorm", "normalise_rows", "check_frames",
           "SequenceBatchNorm", "StepNorm", "StepBatchNorm", "all_at_once",
           "normalise_pairs", "layer_norm", "make_norms", "RecurrentBase",
           "first_gamma", "check_options", "weight_norm", "RecurrentWeights",
           "normalise", "normalise_at", "live_mask", "Recurrent",
           "check_input", "given_state", "RecurrentLayer", "LSTM", "GRU"]

# %% 26-sequences
"""LSTM and GRU with normalisation, for PyTorch, batch first."""
import torch
from torch import nn

# %% 26-sequences
class TimeNorm(nn.Module):
    """Gamma, beta, and running statistics in `steps` rows."""

    def __init__(self, num_features, steps, gamma, bias, eps, momentum):
        super().__init__()
        if type(steps) is not int or steps < 1:
            raise ValueError("max_steps must be a whole number, at least 1, "
                             f"got {steps!r}")
        self.num_features, self.steps = num_features, steps
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.full((num_features,), float(gamma)))
        beta = nn.Parameter(torch.zeros(num_features)) if bias else None
        self.register_parameter("bias", beta)
        rows = (steps, num_features)
        self.register_buffer("running_mean", torch.zeros(rows))
        self.register_buffer("running_var", torch.ones(rows))
        self.register_buffer("num_batches_tracked",
                             torch.zeros(steps, dtype=torch.long))

    def extra_repr(self):
        return (f"{self.num_features}, steps={self.steps}, eps={self.eps}, "
                f"momentum={self.momentum}, bias={self.bias is not None}")

# %% 26-sequences
def normalise_rows(norm, x, row, own):
    """Normalise x (m, C) by its own moments, which then move those in row
    `row` of the TimeNorm, or with own=False by the moments kept there."""
    if own:
        norm.num_batches_tracked[row] += 1
    return nn.functional.batch_norm(
        x, norm.running_mean[row], norm.running_var[row], norm.weight,
        norm.bias, own, norm.momentum, norm.eps)


def check_frames(norm, x, mask):
    """Raise ValueError unless x is (B, T, C) and mask (B, T) or None."""
    if x.dim() != 3 or x.shape[2] != norm.num_features:
        raise ValueError(f"x must be (B, T, {norm.num_features}), got "
                         f"{tuple(x.shape)}")
    if mask is not None and (mask.dtype != torch.bool
                             or mask.shape != x.shape[:2]):
        raise ValueError(f"mask must be {tuple(x.shape[:2])}, of torch.bool,"
                         f" got {tuple(mask.shape)}, of {mask.dtype}")

# %% 26-sequences
class SequenceBatchNorm(TimeNorm):
    """Normalise each channel over all live frames of the batch.

    x (B, T, C) to y of that shape; mask (B, T), True where a sequence is
    live. Padding comes out as 0. Source: Amodei et al. (2016), section 3.2.
    """

    def __init__(self, num_features, eps=1e-5, momentum=0.1, gamma=1.0,
                 bias=True):
        super().__init__(num_features, 1, gamma, bias, eps, momentum)

    def forward(self, x, mask=None):
        check_frames(self, x, mask)
        if mask is None:
            y = normalise_rows(self, x.flatten(0, 1), 0, self.training)
            return y.view_as(x)
        y = torch.zeros_like(x)
        y[mask] = normalise_rows(self, x[mask], 0, self.training)  # (m, C)
        return y

# %% 26-sequences
class StepNorm(TimeNorm):
    """One step at a time, each with statistics of its own."""

    def measured(self, row):
        """The last row up to `row` that has been measured."""
        seen = int(self.num_batches_tracked.count_nonzero())
        return min(row, max(seen, 1) - 1)

    def step(self, x, t, live=None):
        """Step t of x (B, C); live (B,) is True where a sequence runs on,
        None if all do. The others come out as 0."""
        if self.training and len(x) < 2:
            raise ValueError("x must hold at least 2 sequences in training, "
                             f"got {len(x)}")
        rows = x if live is None else x[live]  # (m, C)
        row, own = min(t, self.steps - 1), self.training and len(rows) > 1
        row = row if own else self.measured(row)
        rows = normalise_rows(self, rows, row, own)
        if live is None:
            return rows
        y = torch.zeros_like(x)
        y[live] = rows
        return y

# %% 26-sequences
class StepBatchNorm(StepNorm):
    """Normalise each channel over the batch, at each step by itself.

    x (B, T, C) to y of that shape; mask (B, T) as for SequenceBatchNorm.
    Gamma and beta are shared by all steps. Statistics are kept for
    `max_steps`; later steps use the last row measured. A step with fewer
    than 2 live sequences uses the kept statistics in training too. Raises
    ValueError for B = 1 in training. Source: Cooijmans et al. (2017).
    """

    def __init__(self, num_features, max_steps, eps=1e-5, momentum=0.1,
                 gamma=0.1, bias=True):
        super().__init__(num_features, max_steps, gamma, bias, eps, momentum)

    def forward(self, x, mask=None):
        check_frames(self, x, mask)
        if all_at_once(self, x, mask):
            return normalise_pairs(self, x)
        live = [None] * x.shape[1] if mask is None else mask.unbind(1)
        return torch.stack([self.step(frame, t, live[t])
                            for t, frame in enumerate(x.unbind(1))], 1)

# %% 26-sequences
def all_at_once(norm, x, mask):
    """Whether every step of x has the whole batch and a row of its own."""
    return (norm.training and mask is None and len(x) > 1
            and x.shape[1] <= norm.steps)


def normalise_pairs(norm, x):
    """All steps of x (B, T, C) at once: each of the T C pairs of a step
    and a channel is treated as a channel of its own."""
    T = x.shape[1]
    norm.num_batches_tracked[:T] += 1
    beta = None if norm.bias is None else norm.bias.repeat(T)
    y = nn.functional.batch_norm(
        x.flatten(1), norm.running_mean[:T].view(-1),
        norm.running_var[:T].view(-1), norm.weight.repeat(T), beta, True,
        norm.momentum, norm.eps)
    return y.view_as(x)

# %% 26-sequences
NORMS = (None, "input", "sequence", "per-step", "layer", "weight")


def layer_norm(features, gamma, bias):
    """torch.nn.LayerNorm whose gain starts at gamma."""
    norm = nn.LayerNorm(features, bias=bias)
    nn.init.constant_(norm.weight, gamma)
    return norm


def make_norms(norm, features, hidden, gamma, max_steps):
    """What normalises W_x x and W_h h, `features` each, and the cell."""
    if norm == "sequence":
        return SequenceBatchNorm(features, gamma=gamma, bias=False), None, None
    if norm in (None, "weight"):
        return None, None, None
    sizes = ((features, False), (features, False), (hidden, True))
    if norm == "layer":
        return tuple(layer_norm(n, gamma, bias) for n, bias in sizes)
    norms = tuple(StepBatchNorm(n, max_steps, gamma=gamma, bias=bias)
                  for n, bias in sizes)
    return norms if norm == "per-step" else (norms[0], None, None)

# %% 26-sequences
class RecurrentBase(nn.Module):
    """Parameters, named as in torch.nn, and the three norms."""

    gates, has_cell = None, False

    def __init__(self, input_size, hidden_size, norm=None, gamma=None,
                 max_steps=None, noise=0.0):
        super().__init__()
        check_options(norm, max_steps, noise, input_size=input_size,
                      hidden_size=hidden_size)
        self.input_size, self.hidden_size = input_size, hidden_size
        self.norm, self.noise = norm, noise
        n, gamma = self.gates * hidden_size, first_gamma(norm, gamma)
        self.weight_ih_l0 = nn.Parameter(torch.empty(n, input_size))
        self.weight_hh_l0 = nn.Parameter(torch.empty(n, hidden_size))
        self.bias_ih_l0 = nn.Parameter(torch.empty(n))
        self.bias_hh_l0 = nn.Parameter(torch.empty(n))
        norms = make_norms(norm, n, hidden_size, gamma, max_steps)
        self.norm_x, self.norm_h, self.norm_c = (
            *norms[:2], norms[2] if self.has_cell else None)
        if norm == "weight":
            self.gain_ih = nn.Parameter(torch.empty(n, 1))
            self.gain_hh = nn.Parameter(torch.empty(n, 1))
        self.reset_parameters()

# %% 26-sequences
def first_gamma(norm, gamma):
    """Gamma at the start: 0.1 for "per-step", else 1, unless given."""
    return (0.1 if norm == "per-step" else 1.0) if gamma is None else gamma


def check_options(norm, max_steps, noise, **sizes):
    """Raise ValueError for options that a recurrent layer can't have."""
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {NORMS}, got {norm!r}")
    if norm in ("input", "per-step") and max_steps is None:
        raise ValueError(f"max_steps is needed with norm={norm!r}")
    if not 0 <= noise < float("inf"):
        raise ValueError("noise must be at least 0 and finite, got "
                         f"{noise!r}")
    for name, size in sizes.items():
        if type(size) is not int or size < 1:
            raise ValueError(f"{name} must be a whole number from 1, got "
                             f"{size!r}")

# %% 26-sequences
def weight_norm(v, gain):
    """Rows of v (out, in) with the lengths gain (out, 1): w = g v / |v|.

    Source: Salimans and Kingma (2016), equation 2.
    """
    return gain * v / v.norm(dim=1, keepdim=True)

# %% 26-sequences
class RecurrentWeights(RecurrentBase):
    """How the weights start, and the weights that a step uses."""

    def reset_parameters(self):
        """Uniform weights of scale 1 / sqrt(hidden), as in torch.nn."""
        bound = self.hidden_size ** -0.5
        for p in self.parameters(recurse=False):
            nn.init.uniform_(p, -bound, bound)
        self.reset_gains()

    @torch.no_grad()
    def reset_gains(self):
        """Lengths of weight norm's rows as the weights have them now."""
        if self.norm == "weight":
            self.gain_ih.copy_(self.weight_ih_l0.norm(dim=1, keepdim=True))
            self.gain_hh.copy_(self.weight_hh_l0.norm(dim=1, keepdim=True))

    def weights(self):
        """Input-to-hidden and hidden-to-hidden weights."""
        if self.norm != "weight":
            return self.weight_ih_l0, self.weight_hh_l0
        return (weight_norm(self.weight_ih_l0, self.gain_ih),
                weight_norm(self.weight_hh_l0, self.gain_hh))

# %% 26-sequences
def normalise(norm, x, mask=None):
    """x (B, T, C) through a norm of any kind, or unchanged if it's None."""
    if norm is None or isinstance(norm, nn.LayerNorm):
        return x if norm is None else norm(x)
    return norm(x, mask)


def normalise_at(norm, x, t, live=None):
    """Step t, x (B, C), through a norm of any kind."""
    if norm is None or isinstance(norm, nn.LayerNorm):
        return x if norm is None else norm(x)
    return norm.step(x, t, live)

# %% 26-sequences
def live_mask(lengths, batch, steps):
    """(batch, steps), True before each sequence's end; None for None."""
    if lengths is None:
        return None
    lengths = torch.as_tensor(lengths)
    whole = not (lengths.is_floating_point() or lengths.dtype == torch.bool)
    if (not whole or lengths.shape != (batch,)
            or not 1 <= lengths.min() <= lengths.max() <= steps):
        raise ValueError(f"lengths must be {batch} whole numbers from 1 to "
                         f"{steps}, got {lengths.tolist()}")
    return torch.arange(steps, device=lengths.device) < lengths[:, None]

# %% 26-sequences
class Recurrent(RecurrentWeights):
    """The loop over time that LSTM and GRU share."""

    def forward(self, x, state=None, lengths=None):
        check_input(self, x)
        B, T, _ = x.shape
        mask = live_mask(lengths, B, T)
        if mask is not None:
            mask = mask.to(x.device)
            x = x.where(mask[..., None], 0)  # whatever the padding held
        w_x, w_h = self.weights()
        inputs = normalise(self.norm_x, x @ w_x.T, mask)
        inputs = inputs + self.bias_ih_l0  # (B, T, gates H)
        state, outputs = self.first_state(x, state), []
        for t, a in enumerate(inputs.unbind(1)):
            live = None if mask is None else mask[:, t]
            b = normalise_at(self.norm_h, state[0] @ w_h.T, t, live)
            new = self.advance(a, b + self.bias_hh_l0, state, t, live)
            if mask is not None:
                new = tuple(n.where(live[:, None], s)
                            for n, s in zip(new, state))
            state = new
            outputs.append(state[0])
        return self.finish(outputs, state, mask)

# %% 26-sequences
def check_input(layer, x):
    """Raise ValueError unless x is (B, T, input_size)."""
    if x.dim() != 3 or x.shape[2] != layer.input_size or not x.shape[1]:
        raise ValueError(f"x must be (B, T, {layer.input_size}), got "
                         f"{tuple(x.shape)}")


def given_state(layer, state, batch):
    """The caller's state without its first axis; ValueError unless it has
    h, and c where there is a cell, of shape (1, batch, H) each."""
    parts, shape = state if layer.has_cell else [state], (
        1, batch, layer.hidden_size)
    if len(parts) != 1 + layer.has_cell or any(
            getattr(s, "shape", None) != shape for s in parts):
        raise ValueError(f"state must be {'(h, c)' if layer.has_cell else 'h'}"
                         f" of shape {shape}, got "
                         f"{[getattr(s, 'shape', s) for s in parts]}")
    return tuple(s[0] for s in parts)

# %% 26-sequences
class RecurrentLayer(Recurrent):
    """Where a sequence begins and what comes out."""

    def first_state(self, x, state):
        if state is not None:
            return given_state(self, state, len(x))
        zero = x.new_zeros(len(x), self.hidden_size)
        h = zero
        if self.training and self.noise:
            h = self.noise * torch.randn_like(zero)
        return (h, zero) if self.has_cell else (h,)

    def finish(self, outputs, state, mask):
        y = torch.stack(outputs, 1)  # (B, T, H)
        if mask is not None:
            y = y.where(mask[..., None], 0)
        state = tuple(s[None] for s in state)  # (1, B, H), as in torch.nn
        return y, state if self.has_cell else state[0]

    def extra_repr(self):
        return (f"{self.input_size}, {self.hidden_size}, norm={self.norm!r}, "
                f"noise={self.noise}")

# %% 26-sequences
class LSTM(RecurrentLayer):
    """torch.nn.LSTM(batch_first=True), one layer, with normalisation.

    x (B, T, input_size), state None or (h, c), (1, B, hidden_size) each,
    lengths None or (B,). Returns y (B, T, hidden_size) and (h, c). norm
    is one of NORMS, `gamma` its first gain, `max_steps` how many steps
    have statistics of their own, counted from 0 in each call, `noise` the
    standard deviation of h_0 in training. Raises ValueError for what
    doesn't fit. Source: Cooijmans et al. (2017), equations 6 to 8.
    """

    gates, has_cell = 4, True

    def advance(self, a, b, state, t, live):
        i, f, g, o = (a + b).chunk(4, 1)  # (B, H) each
        c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        seen = normalise_at(self.norm_c, c, t, live)
        return o.sigmoid() * seen.tanh(), c

# %% 26-sequences
class GRU(RecurrentLayer):
    """torch.nn.GRU(batch_first=True), one layer, with normalisation.

    As LSTM, but the state is h (1, B, hidden_size) alone.
    """

    gates = 3

    def advance(self, a, b, state, t, live):
        (a_r, a_z, a_n), (b_r, b_z, b_n) = a.chunk(3, 1), b.chunk(3, 1)
        r, z = (a_r + b_r).sigmoid(), (a_z + b_z).sigmoid()
        n = (a_n + r * b_n).tanh()
        return (n + z * (state[0] - n),)
