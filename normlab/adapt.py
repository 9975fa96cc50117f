# Written by `make lib` from the chapters. Do not edit.

__all__ = ["norm_layers", "statistics", "load_statistics", "inputs_watched",
           "tensors", "input_moments", "write_moments", "adapt_statistics",
           "check_prior", "mix_statistics", "PredictionTimeNorm",
           "prediction_time", "entropy", "use_batch_statistics", "Tent",
           "calibration_error", "statistics_shift", "shift_score"]

# %% 25-distribution-shift
"""Batch normalization on shifted data: PyTorch models whose statistics
are replaced, mixed with the batch's, or watched, and TENT."""
import copy
from contextlib import contextmanager

import torch
from torch import nn

from normlab.sync import local_moments, merge_ranks
from normlab.torch_layers import batch_norm_inference, moments, wide

# %% 25-distribution-shift
def norm_layers(model):
    """The batch normalizations of a model that keep running statistics, by
    name. Raises TypeError or ValueError if there are none."""
    if not isinstance(model, nn.Module):
        raise TypeError("model must be a torch.nn.Module, got "
                        f"{type(model).__name__}")
    kind = nn.modules.batchnorm._BatchNorm  # of every dimension, and ours
    found = {name: layer for name, layer in model.named_modules()
             if isinstance(layer, kind) and layer.running_mean is not None}
    if not found:
        raise ValueError("model must have batch normalization layers with "
                         f"running statistics, {type(model).__name__} has "
                         "none")
    return found

# %% 25-distribution-shift
def statistics(model):
    """A copy of all running statistics: {layer's name: (mean, var)}."""
    return {name: (layer.running_mean.clone(), layer.running_var.clone())
            for name, layer in norm_layers(model).items()}


@torch.no_grad()
def load_statistics(model, stats):
    """Write what `statistics` returned into the model, in place."""
    layers = norm_layers(model)
    if set(stats) != set(layers):
        raise ValueError(f"stats must be for the layers {set(layers)}, got "
                         f"{set(stats)}")
    for name, pair in stats.items():
        if any(t.shape != layers[name].running_mean.shape for t in pair):
            raise ValueError(f"stats[{name!r}] must have two tensors of "
                             f"shape {layers[name].running_mean.shape}, got "
                             f"{[tuple(t.shape) for t in pair]}")
    for name, (mean, var) in stats.items():
        layers[name].running_mean.copy_(mean)
        layers[name].running_var.copy_(var)

# %% 25-distribution-shift
@contextmanager
def inputs_watched(model, see):
    """Within it, see(name, x) is called with the input of each batch
    normalization, and the model is in evaluation mode."""
    modes = [(module, module.training) for module in model.modules()]
    hooks = [layer.register_forward_pre_hook(
                 lambda module, args, name=name: see(name, args[0]))
             for name, layer in norm_layers(model).items()]
    try:
        yield model.eval()
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode

# %% 25-distribution-shift
def tensors(batches):
    """The tensors in `batches`: itself if it is one, else what it yields,
    or the first of each pair (x, y). Raises TypeError."""
    for batch in [batches] if torch.is_tensor(batches) else batches:
        x = batch[0] if isinstance(batch, (tuple, list)) else batch
        if not torch.is_tensor(x):
            raise TypeError("batches must be a tensor, or tensors, or pairs "
                            f"with a tensor first; got {type(x).__name__}")
        yield x

# %% 25-distribution-shift
@torch.no_grad()
def input_moments(model, batches):
    """Count, mean (C,) and biased variance (C,), in float64, of what each
    batch normalization gets from `batches` in evaluation mode: {name:
    (count, mean, var)}, in the order in which the layers are used."""
    seen = {}

    def see(name, x):
        seen.setdefault(name, []).append(local_moments(x))

    with inputs_watched(model, see):
        for x in tensors(batches):
            model(x)
    if not seen:
        raise ValueError("batches must hold at least one, got none")
    return {name: merge_ranks(torch.stack(rows))
            for name, rows in seen.items()}

# %% 25-distribution-shift
def write_moments(layer, name, n, mean, var):
    """Make these moments, of n values a channel, a layer's running
    statistics; ValueError with its name if they can't be."""
    if n < 2:
        raise ValueError(f"batches must give layer {name!r} more than 1 "
                         f"value per channel, got {int(n)}")
    if not (mean.isfinite().all() and var.isfinite().all()):
        raise ValueError(f"batches must give layer {name!r} finite values, "
                         "got inf or NaN")
    layer.running_mean.copy_(mean)
    layer.running_var.copy_(var * n / (n - 1))

# %% 25-distribution-shift
@torch.no_grad()
def adapt_statistics(model, batches, inplace=False):
    """The model with the running statistics of other data: AdaBN.

    batches: unlabelled inputs (N, ...), or a list or loader of such, gone
    through once to find the layers' order and once for every layer: the
    first layer's moments are merged over all batches and written, then the
    second's measured, and so on. Neither order nor size of the batches
    matters. Returns a copy, or with inplace the model: save `statistics`
    before and `load_statistics` undoes it. Source: Li et al. (2016).
    """
    if not torch.is_tensor(batches) and iter(batches) is batches:
        raise TypeError("batches must be a tensor, list or loader, to be "
                        "gone through repeatedly; got an iterator")
    new = copy.deepcopy(model)
    layers = norm_layers(new)
    for name in input_moments(new, batches):
        write_moments(layers[name], name, *input_moments(new, batches)[name])
    if not inplace:
        return new
    load_statistics(model, statistics(new))  # all layers, or none
    return model

# %% 25-distribution-shift
def check_prior(prior):
    """Raise ValueError unless a source can count for so many examples."""
    if isinstance(prior, (str, bool)) or not prior >= 0:
        raise ValueError(f"prior must be a number from 0, got {prior!r}")


def mix_statistics(source, target, n, prior, between=False):
    """Mean and variance (C,) between those of two domains.

    source, target: pairs (mean, var) of (C,); n: examples behind the
    target's; prior: how many examples the source's count for, from 0 to
    infinity. between=True adds to the variance what the distance of the
    two means contributes. Source: Schneider et al. (2020).
    """
    if not n > 0:
        raise ValueError(f"n must be positive, got {n}")
    check_prior(prior)
    w = 1.0 if prior == float("inf") else prior / (prior + n)
    mean, var = (w * s + (1 - w) * t for s, t in zip(source, target))
    if between:
        var = var + w * (1 - w) * (source[0] - target[0]) ** 2
    return mean, var

# %% 25-distribution-shift
class PredictionTimeNorm(nn.Module):
    """A batch normalization that, in either mode, normalises with the
    batch's statistics mixed with the source's, and stores nothing."""
    def __init__(self, layer, prior=0.0, between=False):
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.eps, self.prior, self.between = layer.eps, prior, between
        self.register_buffer("source_mean", layer.running_mean.clone())
        self.register_buffer("source_var", layer.running_var.clone())

    def forward(self, x):
        """Normalise x (N, C, *spatial)."""
        if self.prior == 0 and x.numel() == x.shape[1]:
            raise ValueError("Expected more than 1 value per channel where "
                             f"prior is 0, got input size {x.shape}")
        _, shift, rest, var = moments(wide(x))
        mean, var = mix_statistics((self.source_mean, self.source_var),
                                   (shift + rest, var), len(x), self.prior,
                                   self.between)
        return batch_norm_inference(x, self.weight, self.bias, mean, var,
                                    self.eps)

    def extra_repr(self):
        return f"{len(self.source_mean)}, prior={self.prior}, eps={self.eps}"

# %% 25-distribution-shift
def prediction_time(model, prior=0.0, between=False):
    """A copy of the model that normalises each batch with its own
    statistics, in which the running ones count for `prior` examples.

    prior=0 is prediction-time batch normalization (Nado et al., 2020);
    an infinite prior is the model in evaluation mode; see
    `mix_statistics`. The copy is in evaluation mode.
    """
    check_prior(prior)
    model = copy.deepcopy(model)
    for name, layer in norm_layers(model).items():
        new = PredictionTimeNorm(layer, prior, between).eval()
        if name == "":  # the model is itself the layer
            return new
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, new)
    return model.eval()

# %% 25-distribution-shift
def entropy(logits):
    """Entropy (N,), in nats, of the class probabilities of logits (N, K)."""
    return -(logits.softmax(dim=1) * logits.log_softmax(dim=1)).sum(dim=1)


def use_batch_statistics(model):
    """Let a model's batch normalizations, in place, normalise with the
    batch in either mode; returns their gammas and betas."""
    learned = []
    for name, layer in norm_layers(model).items():
        if layer.weight is None or layer.bias is None:
            raise ValueError(f"layer {name!r} has no gamma or no beta")
        learned += [layer.weight, layer.bias]
        # Without running statistics a layer uses the batch's.
        layer.track_running_stats = False
        layer.running_mean = layer.running_var = None
        layer.num_batches_tracked = None
    return learned

# %% 25-distribution-shift
class Tent:
    """A copy of a model that learns from unlabelled batches.

    tent(x) gives the logits of x under its own statistics, then moves gamma
    and beta alone one step down their entropy. Source: Wang et al. (2021).
    """
    def __init__(self, model, lr=1e-3, optimiser=torch.optim.Adam):
        self.source, self.lr, self.optimiser = model, lr, optimiser
        self.reset()

    def reset(self):
        self.model = copy.deepcopy(self.source)
        learned = use_batch_statistics(self.model)
        self.model.eval().requires_grad_(False)
        self.step = self.optimiser([p.requires_grad_() for p in learned],
                                   lr=self.lr)

    @torch.enable_grad()
    def __call__(self, x):
        logits = self.model(x)
        self.step.zero_grad()
        entropy(logits).mean().backward()
        self.step.step()
        return logits.detach()

# %% 25-distribution-shift
def calibration_error(logits, y, bins=15):
    """Expected calibration error, 0 to 1, of logits (N, K) for labels y
    (N,): how far confidence and accuracy lie apart, averaged over bins of
    equal width. Raises ValueError for other shapes. Source: Guo et al.
    (2017)."""
    if logits.ndim != 2 or y.shape != logits.shape[:1] or not len(y):
        raise ValueError("logits must be (N, K) and y (N,), N at least 1; "
                         f"got {tuple(logits.shape)} and {tuple(y.shape)}")
    confidence, guess = logits.softmax(dim=1).max(dim=1)
    right = (guess == y).double()
    place = (confidence * bins).ceil().clamp(min=1).long() - 1  # (N,)
    gap = torch.zeros(bins, dtype=torch.float64).to(logits.device)
    gap.index_add_(0, place, confidence.double() - right)
    return float(gap.abs().sum()) / len(y)

# %% 25-distribution-shift
def statistics_shift(model, batches):
    """How far each layer's inputs have moved: {name: distance (C,)}.

    The distance is sqrt((mean - mean_s)^2 + (std - std_s)^2) / std_s, with
    the running statistics as source s, measured in evaluation mode: the
    2-Wasserstein distance between two normal distributions, in standard
    deviations of the source. The model stays as it is.
    """
    layers, distances = norm_layers(model), {}
    for name, (_, mean, var) in input_moments(model, batches).items():
        source_std = (layers[name].running_var.double()
                      + layers[name].eps).sqrt()
        d = mean - layers[name].running_mean
        stretch = (var + layers[name].eps).sqrt() - source_std
        distances[name] = (d ** 2 + stretch ** 2).sqrt() / source_std
    return distances


def shift_score(distances):
    """One number for all: the largest of the layers' mean distances."""
    return max(float(d.mean()) for d in distances.values())
