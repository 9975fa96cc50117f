# Written by `make lib` from the chapters. Do not edit.

__all__ = ["evaluating", "check_draws", "take_statistics", "mc_batch_norm",
           "mc_dropout", "predictive", "disagreement", "auroc"]

# %% 20-noise-and-regularisation
"""Predictions from several random passes of one PyTorch network, and what
their scatter is worth."""
import math
from contextlib import contextmanager

import numpy as np
import torch
from scipy.stats import rankdata
from torch import nn

from normlab.adapt import (entropy, inputs_watched, load_statistics,
                           norm_layers, statistics)
from normlab.torch_layers import batch_axes

# %% 20-noise-and-regularisation
@contextmanager
def evaluating(model, training=()):
    """Within it a model is in evaluation mode, but for its layers of the
    classes `training`, which are in training mode."""
    modes = [(layer, layer.training) for layer in model.modules()]
    model.eval()
    for layer, _ in modes:
        if isinstance(layer, training):
            layer.training = True
    try:
        yield model
    finally:
        for layer, mode in modes:
            layer.training = mode


def check_draws(draws):
    """Raise ValueError unless draws is a whole number from 1."""
    if not isinstance(draws, int) or draws < 1:
        raise ValueError("draws must be a whole number from 1, got "
                         f"{draws!r}")

# %% 20-noise-and-regularisation
@torch.no_grad()
def take_statistics(model, batch):
    """Make the mean and biased variance of a batch, layer after layer as
    in training mode but without dropout, the running statistics."""
    layers = norm_layers(model)

    def take(name, x):
        if x.numel() == x.shape[1]:
            raise ValueError("batch must give every layer more than 1 "
                             f"value per channel, got {tuple(x.shape)}")
        var, mean = torch.var_mean(x, batch_axes(x), correction=0)
        layers[name].running_mean.copy_(mean)
        layers[name].running_var.copy_(var)

    with inputs_watched(model, take):
        model(batch)

# %% 20-noise-and-regularisation
@torch.no_grad()
def mc_batch_norm(model, x, images, m, draws, seed=0):
    """Logits (draws, N, ...) of x (N, ...): MCBN.

    Each draw normalises with the statistics of m of the training `images`
    (n, ...), drawn by `seed`; dropout is off. The model stays as it is.
    Raises ValueError for m or draws out of range or a model without batch
    normalization. Source: Teye, Azizpour and Smith (2018).
    """
    check_draws(draws)
    if not isinstance(m, int) or not 1 <= m <= len(images):
        raise ValueError("m must be a whole number from 1 to the "
                         f"{len(images)} images, got {m!r}")
    kept, logits = statistics(model), []
    rng = torch.Generator().manual_seed(seed)
    try:
        for _ in range(draws):
            rows = torch.randperm(len(images), generator=rng)[:m]
            take_statistics(model, images[rows.to(images.device)])
            with evaluating(model):
                logits.append(model(x))
    finally:
        load_statistics(model, kept)
    return torch.stack(logits)

# %% 20-noise-and-regularisation
@torch.no_grad()
def mc_dropout(model, x, draws, seed=0):
    """Logits (draws, N, ...) of x (N, ...) with dropout on and all else
    in evaluation mode. Raises ValueError if the model has no dropout.
    Source: Gal and Ghahramani (2016)."""
    check_draws(draws)
    kind = nn.modules.dropout._DropoutNd
    if not any(isinstance(layer, kind) for layer in model.modules()):
        raise ValueError("model must have dropout layers, "
                         f"{type(model).__name__} has none")
    with torch.random.fork_rng(), evaluating(model, kind):
        torch.manual_seed(seed)
        return torch.stack([model(x) for _ in range(draws)])

# %% 20-noise-and-regularisation
def predictive(logits):
    """Logarithms (..., K) of the mean probabilities of logits
    (draws, ..., K)."""
    return (logits.log_softmax(dim=-1).logsumexp(dim=0)
            - math.log(len(logits)))


def disagreement(logits):
    """Mutual information (N,), in nats, between draw and answer, for
    logits (draws, N, K). Source: chapter 20, (20.6)."""
    each = torch.stack([entropy(z) for z in logits])
    return (entropy(predictive(logits)) - each.mean(dim=0)).clamp(min=0)

# %% 20-noise-and-regularisation
def auroc(score, wrong):
    """The probability that a wrong answer has a larger score than a right
    one, ties counted half: 0.5 is chance, 1 a perfect ranking. score and
    wrong (N,); ValueError unless there are both kinds."""
    score, wrong = np.asarray(score), np.asarray(wrong, dtype=bool)
    n = int(wrong.sum())
    if score.shape != wrong.shape or n in (0, wrong.size):
        raise ValueError("wrong must have the shape of score and be true "
                         f"for some and not all, got {n} of {wrong.size}")
    ranks = rankdata(score)[wrong].sum() - n * (n + 1) / 2
    return float(ranks / (n * (wrong.size - n)))
