# Written by `make lib` from the chapters. Do not edit.

__all__ = ["ends", "check_names", "param_groups"]

# %% 19-scale-invariance
"""Groups of parameters for an optimiser."""


def ends(name, suffixes):
    """Whether a dotted name ends with one of `suffixes`, at a dot."""
    return any(f".{name}".endswith(f".{suffix}") for suffix in suffixes)


def check_names(model, no_decay):
    """Raise ValueError unless each of `no_decay` fits a parameter."""
    if isinstance(no_decay, str):
        raise ValueError("no_decay must be a list of names, got the text "
                         f"{no_decay!r}")
    names = [name for name, _ in model.named_parameters()]
    for suffix in no_decay:
        if not any(ends(name, [suffix]) for name in names):
            raise ValueError(f"no_decay: no parameter's name ends with "
                             f"{suffix!r}; there are {', '.join(names)}")

# %% 19-scale-invariance
def param_groups(model, weight_decay, no_decay=()):
    """Two groups for a torch optimiser: weights with decay, and without
    it all vectors and scalars (biases, and the gamma and beta of a batch
    normalization) and what is named in `no_decay`.

    model: a torch.nn.Module; weight_decay: a number of at least 0;
    no_decay: ends of parameters' names ("embedding.weight", or a gamma of
    several axes, as of LayerNorm over (C, H, W)). Frozen parameters are
    left out, shared ones taken once. Raises ValueError if weight_decay is
    negative or not finite, nothing is left to train, or a name of
    `no_decay` fits none. Source: He et al. (2019), 3.1, "no bias decay".
    """
    if not 0 <= weight_decay < float("inf"):
        raise ValueError("weight_decay must be a number of at least 0, got "
                         f"{weight_decay!r}")
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise ValueError("model has no parameters that require a gradient")
    check_names(model, no_decay)
    groups = {True: [], False: []}
    for name, p in named:
        groups[p.dim() > 1 and not ends(name, no_decay)].append(p)
    return [{"params": groups[True], "weight_decay": weight_decay},
            {"params": groups[False], "weight_decay": 0.0}]
