# Written by `make lib` from the chapters. Do not edit.

__all__ = ["TRANSPOSED", "LAYERS", "NORMS", "FoldingError", "float64",
           "scale_and_shift", "weight_blocks", "with_weights", "put",
           "fold_into_previous", "check_layer", "has_hooks", "check_norm",
           "is_batch_norm", "check_channels", "fold_into_next", "check_border",
           "Fate", "LayerTracer", "normalises", "trace", "Ranks", "describe",
           "neighbour", "uses", "absorb", "fold", "merge_branches", "kind",
           "quantise_weight", "equalise"]

# %% 11-deployment
import copy
from typing import NamedTuple

import torch
from torch import fx, nn

# %% 11-deployment
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)


class FoldingError(ValueError):
    """A batch normalization can't be folded; the message says why."""


def float64(tensor):
    """A tensor's values in float64, on the CPU: not every device has it."""
    return tensor.detach().to("cpu", torch.float64)

# %% 11-deployment
def scale_and_shift(bn):
    """The (C,) scale and shift of a batch normalization in evaluation
    mode, y = scale * x + shift, in float64."""
    scale = 1 / torch.sqrt(float64(bn.running_var) + bn.eps)
    if bn.weight is not None:
        scale = scale * float64(bn.weight)
    shift = -float64(bn.running_mean) * scale
    if bn.bias is not None:
        shift = shift + float64(bn.bias)
    return scale, shift

# %% 11-deployment
def weight_blocks(layer):
    """A layer's weight as (groups, C_out, C_in, taps), in float64; C_out
    and C_in are those of one group. Raises FoldingError."""
    check_layer(layer)
    weight, groups = float64(layer.weight), getattr(layer, "groups", 1)
    blocks = weight.reshape(groups, len(weight) // groups,
                            weight.shape[1], -1)
    # A transposed convolution stores its input channels first.
    return blocks.transpose(1, 2) if type(layer) in TRANSPOSED else blocks

# %% 11-deployment
def with_weights(layer, blocks, bias=None):
    """A copy of a layer with other weights (as `weight_blocks` gives
    them) and, if not None, another bias (C_out,).

    Dtype, device and memory format stay. Raises FoldingError if the
    values overflow the dtype.
    """
    new = copy.deepcopy(layer)
    if type(layer) in TRANSPOSED:
        blocks = blocks.transpose(1, 2)
    with torch.no_grad():
        put(new.weight, blocks.reshape(new.weight.shape))
        if bias is not None and new.bias is None:
            new.bias = nn.Parameter(new.weight.new_empty(len(bias)),
                                    new.weight.requires_grad)
        if bias is not None:
            put(new.bias, bias)
    return new

# %% 11-deployment
def put(parameter, values):
    """Copy float64 values into a parameter; FoldingError if finite ones
    don't fit its dtype."""
    parameter.copy_(values)
    if values.isfinite().all() and not parameter.isfinite().all():
        raise FoldingError(f"a folded value of {values.abs().max():.1e} "
                           f"does not fit {parameter.dtype}")

# %% 11-deployment
def fold_into_previous(layer, bn):
    """One layer that computes bn(layer(x)): equation (11.3).

    layer: nn.Linear, nn.Conv1d to 3d or nn.ConvTranspose1d to 3d; bn: a
    batch normalization in evaluation mode whose axis 1 is the layer's
    output channels. Both stay as they are. Raises FoldingError. Source:
    Jacob et al. (2018).
    """
    blocks = weight_blocks(layer)
    check_norm(bn)
    check_channels(bn, blocks.shape[0] * blocks.shape[1], "gives")
    scale, shift = scale_and_shift(bn)
    if layer.bias is not None:
        shift = shift + scale * float64(layer.bias)
    scale = scale.reshape(len(blocks), -1, 1, 1)
    return with_weights(layer, scale * blocks, shift)

# %% 11-deployment
def check_layer(layer):
    """Raise FoldingError unless it is a layer whose output is nothing but
    its weight and bias applied to its input."""
    if type(layer) not in LAYERS:
        raise FoldingError(f"{type(layer).__name__} is not one of "
                           f"{', '.join(c.__name__ for c in LAYERS)}")
    if has_hooks(layer):
        raise FoldingError(f"the {type(layer).__name__} has forward hooks or "
                           "a patched forward, which may read old values")
    if not layer.weight.is_floating_point():
        raise FoldingError(f"the {type(layer).__name__}'s weights are "
                           f"{layer.weight.dtype}, not floating point")


def has_hooks(module):
    """Whether calling a module does more than its class's forward."""
    return bool(module._forward_hooks or module._forward_pre_hooks
                or "forward" in vars(module))

# %% 11-deployment
def check_norm(bn):
    """Raise FoldingError unless a batch normalization is a fixed affine
    map of each channel."""
    kind = type(bn).__name__
    if not is_batch_norm(bn):
        raise FoldingError(f"{kind} is not a batch normalization of torch.nn "
                           "or of this book")
    if has_hooks(bn):
        raise FoldingError(f"the {kind} has forward hooks or a patched "
                           "forward, which may read old values")
    if bn.training:
        raise FoldingError(f"the {kind} is in training mode: call .eval() "
                           "first")
    if bn.running_mean is None or bn.running_var is None:
        raise FoldingError("it has no running statistics "
                           "(track_running_stats=False)")

# %% 11-deployment
NORMS = {"BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm"}


def is_batch_norm(module):
    """Whether it is one of torch.nn's or this book's own classes; another
    subclass may compute anything. In evaluation mode the synchronised ones
    are like the others."""
    kind = type(module)
    return kind.__name__ in NORMS and kind.__module__ in (
        "torch.nn.modules.batchnorm", "normlab.torch_layers", "normlab.sync")

# %% 11-deployment
def check_channels(bn, channels, verb):
    """Raise FoldingError unless bn has that many channels."""
    if bn.num_features != channels:
        raise FoldingError(f"the layer {verb} {channels} channels, the "
                           f"batch normalization has {bn.num_features}")

# %% 11-deployment
def fold_into_next(bn, layer):
    """One layer that computes layer(bn(x)): equation (11.4).

    The arguments are as in `fold_into_previous`, but bn's channels are
    the layer's input channels. Zero padding is refused: what is padded is
    bn's output, and bn of a zero is not zero. So are transposed
    convolutions, whose border sees fewer taps. Raises FoldingError.
    """
    blocks = weight_blocks(layer)
    check_norm(bn)
    check_border(layer)
    check_channels(bn, blocks.shape[0] * blocks.shape[2], "takes")
    scale, shift = (v.reshape(len(blocks), 1, -1, 1)
                    for v in scale_and_shift(bn))
    bias = (blocks * shift).sum((2, 3)).flatten()
    if layer.bias is not None:
        bias = bias + float64(layer.bias)
    return with_weights(layer, blocks * scale, bias)

# %% 11-deployment
def check_border(layer):
    """Raise FoldingError if a shift of a layer's input is not the same
    shift of its output everywhere."""
    if type(layer) in TRANSPOSED:
        raise FoldingError("at the border of a transposed convolution "
                           "fewer taps see the shift")
    if isinstance(layer, nn.Linear) or layer.padding_mode != "zeros":
        return  # what is padded are copies of the input's values
    padding = layer.padding
    if padding == "same":
        padding = [k - 1 for k in layer.kernel_size]
    if padding != "valid" and any(padding):
        raise FoldingError("the convolution pads with zeros, and the "
                           "normalization of a zero is not zero")

# %% 11-deployment
class Fate(NamedTuple):
    """What became of one batch normalization of a network."""
    name: str
    into: str | None  # the layer that it is part of now
    reason: str | None  # why it was kept


class LayerTracer(fx.Tracer):
    """Keeps each layer and each batch normalization as one node."""

    def is_leaf_module(self, m, module_qualified_name):
        """Subclasses too, which fx would look into."""
        return (isinstance(m, LAYERS) or normalises(m)
                or super().is_leaf_module(m, module_qualified_name))


def normalises(module):
    """Whether a module looks like a batch normalization of some kind."""
    return not isinstance(module, nn.modules.instancenorm._InstanceNorm) and (
        isinstance(module, nn.modules.batchnorm._BatchNorm)
        or hasattr(module, "running_var"))

# %% 11-deployment
def trace(model):
    """A copy of a model as a GraphModule; FoldingError if it is in
    training mode, or if torch.fx can't trace it whole."""
    tracer = LayerTracer()
    for name, module in model.named_modules():
        which = name or type(model).__name__
        if module.training:
            raise FoldingError(f"{which} is in training mode: call "
                               "model.eval() first")
        if has_hooks(module) and not (
                name and tracer.is_leaf_module(module, name)):
            raise FoldingError(f"{which} has forward hooks or a patched "
                               "forward, which tracing would lose")
    root = copy.deepcopy(model)
    try:
        graph = tracer.trace(root)
    except Exception as error:
        raise FoldingError("torch.fx can't trace the model: "
                           f"{error}") from error
    return fx.GraphModule(root, graph, type(model).__name__).eval()

# %% 11-deployment
class Ranks(fx.Interpreter):
    """Runs a graph and notes the number of axes of each tensor."""

    def run_node(self, n):
        """The node's result, as always."""
        result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            n.meta["rank"] = result.ndim
        return result


def describe(net, node):
    """A node in words, for a reason."""
    if node.op == "call_module":
        kind = type(net.get_submodule(node.target)).__name__
        return f"{node.target} ({kind})"
    if node.op in ("placeholder", "output"):
        return f"the network's {node.op.replace('placeholder', 'input')}"
    return getattr(node.target, "__name__", str(node.target))

# %% 11-deployment
def neighbour(net, node, side):
    """The node of the layer on that side, "previous" or "next", of a batch
    normalization's node; FoldingError if none there can take it."""
    between = node.all_input_nodes[0] if side == "previous" else node
    if len(between.users) != 1:
        raise FoldingError(f"the output of {describe(net, between)} is used "
                           f"{len(between.users)} times")
    other = between if side == "previous" else next(iter(between.users))
    if other.op != "call_module" or not isinstance(
            net.get_submodule(other.target), LAYERS):
        raise FoldingError(f"{describe(net, other)} is no layer to fold into")
    if uses(net, other.target) > 1:
        raise FoldingError(f"{other.target} or its weight is used "
                           f"{uses(net, other.target)} times")
    axes = net.get_submodule(other.target).weight.ndim
    rank = between.meta.get("rank")
    if rank is None and axes == 2:
        raise FoldingError(f"{other.target} may have 2 axes or more: pass "
                           "fold an example input")
    if rank not in (None, axes):
        raise FoldingError(f"with {rank} axes, axis 1 does not hold the "
                           f"channels of {other.target}")
    return other

# %% 11-deployment
def uses(net, target):
    """How often a graph calls a module or reads something of it."""
    return sum(n.op == "call_module" and n.target == target
               or n.op == "get_attr" and n.target.startswith(target + ".")
               for n in net.graph.nodes)

# %% 11-deployment
def absorb(net, node):
    """Fold the batch normalization that a node of the graph calls into a
    neighbour, if that is exact; returns its Fate."""
    bn, reasons = net.get_submodule(node.target), []
    for side in ("previous", "next"):
        try:
            check_norm(bn)
            other = neighbour(net, node, side)
            layer = net.get_submodule(other.target)
            new = (fold_into_previous(layer, bn) if side == "previous"
                   else fold_into_next(bn, layer))
        except FoldingError as error:
            if str(error) not in reasons:
                reasons.append(str(error))
            continue
        parent, _, last = other.target.rpartition(".")
        setattr(net.get_submodule(parent), last, new)
        if side == "next":  # before anyone changes its input in place
            node.append(other)
        node.replace_all_uses_with(node.all_input_nodes[0])
        net.graph.erase_node(node)
        return Fate(node.target, other.target, None)
    return Fate(node.target, None, "; ".join(reasons))

# %% 11-deployment
def fold(model, *example):
    """A copy of a network with its batch normalizations folded away.

    model: in evaluation mode; example: inputs of one forward pass, run to
    learn how many axes each tensor has. Without it convolutions are taken
    to get batches, and nothing is folded into a Linear. Returns (a
    GraphModule for inference, the Fates of the batch normalizations).
    Raises FoldingError for training mode or if torch.fx can't trace it.
    """
    net = trace(model)
    if example:
        with torch.no_grad():
            Ranks(net).run(*example)
    calls = [n for n in net.graph.nodes if n.op == "call_module"]
    called = {n.target for n in calls}
    fates = [absorb(net, n) for n in calls
             if normalises(net.get_submodule(n.target))]
    fates += [Fate(name, None, "the forward pass never calls it")
              for name, module in model.named_modules()
              if normalises(module) and name not in called]
    net.delete_all_unused_submodules()
    net.graph.lint()
    net.recompile()
    return net, fates

# %% 11-deployment
def merge_branches(*convs):
    """One convolution that computes the sum of several of the same input.

    convs: nn.Conv1d to 3d of one type, with the same channels, groups and
    stride, without dilation, and centred alike: a kernel that is smaller
    by 2 pads by 1 less. Raises FoldingError. Source: Ding et al. (2021).
    """
    if not convs or any(type(c) not in LAYERS[1:4] or has_hooks(c)
                        or isinstance(c.padding, str) for c in convs):
        raise FoldingError("branches must be convolutions without hooks "
                           "whose padding is given in numbers")
    largest = max(convs, key=lambda c: c.kernel_size)
    weight, biases = 0, []
    for c in convs:
        rims = [p - q for p, q in zip(largest.padding, c.padding)]
        sizes = tuple(k - 2 * r for k, r in zip(largest.kernel_size, rims))
        if kind(c) != kind(largest) or min(rims) < 0 or sizes != c.kernel_size:
            raise FoldingError(f"{c} can't be added to {largest}")
        sides = [r for rim in reversed(rims) for r in (rim, rim)]
        weight = weight + nn.functional.pad(float64(c.weight), sides)
        biases += [] if c.bias is None else [float64(c.bias)]
    return with_weights(largest, weight, sum(biases) if biases else None)

# %% 11-deployment
def kind(conv):
    """What convolutions must share to be added; no two share a dilation."""
    return (type(conv), conv.in_channels, conv.out_channels, conv.groups,
            conv.stride, conv.padding_mode, max(conv.dilation) == 1 or conv)

# %% 11-deployment
def quantise_weight(layer, per_channel, bits=8):
    """A copy of a layer whose weights lie on an integer grid.

    The grid is symmetric about 0, its largest point the largest |weight|:
    of each output channel if per_channel, else of the whole tensor. The
    values stay floating point, the bias as it is. Raises ValueError for
    less than 2 bits, and FoldingError. Source: Krishnamoorthi (2018).
    """
    if bits < 2:
        raise ValueError(f"bits must be at least 2, got {bits}")
    blocks = weight_blocks(layer)
    largest = (blocks.abs().amax((2, 3), keepdim=True) if per_channel
               else blocks.abs().max())
    limit = 2 ** (bits - 1) - 1  # 127 for 8 bits
    step = torch.where(largest > 0, largest / limit, 1)
    return with_weights(layer, (blocks / step).round() * step)

# %% 11-deployment
def equalise(first, second):
    """Two layers with the same product whose ranges agree.

    second reads what first gives, through nothing or an activation with
    f(s x) = s f(x) for s > 0, such as ReLU. Channel i of first is divided
    by s_i, that of second multiplied, with s_i as in equation (11.8).
    Returns copies of both. Raises FoldingError. Source: Nagel et al.
    (2019).
    """
    w1, w2 = weight_blocks(first), weight_blocks(second)
    out_range = w1.abs().amax((2, 3)).flatten()  # (C,)
    in_range = w2.abs().amax((1, 3)).flatten()  # (C,)
    if out_range.shape != in_range.shape:
        raise FoldingError(f"first gives {len(out_range)} channels, second "
                           f"takes {len(in_range)}")
    dead = (out_range == 0) | (in_range == 0)
    s = torch.where(dead, 1, (out_range / in_range).sqrt())
    bias = None if first.bias is None else float64(first.bias) / s
    return (with_weights(first, w1 / s.reshape(len(w1), -1, 1, 1), bias),
            with_weights(second, w2 * s.reshape(len(w2), 1, -1, 1)))
