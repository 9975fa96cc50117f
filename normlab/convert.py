# Written by `make lib` from the chapters. Do not edit.

__all__ = ["TORCH", "KERAS", "FLAX", "CONV", "GEMM", "Layout", "read",
           "as_array", "channels_last", "channels_first", "translate",
           "check_norm", "check_kernel", "to_keras", "from_keras", "to_flax",
           "from_flax", "to_onnx", "from_onnx", "to_options", "from_options",
           "share", "columns_last", "columns_first", "check_columns"]

# %% 09-frameworks
"""A layer's weights in PyTorch, Keras, Flax and ONNX."""
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


class Layout(NamedTuple):
    """What a framework calls a layer's arrays, and how its kernels lie."""
    norm: tuple  # gamma, beta, and the two running statistics
    kernel: tuple  # a dense layer's or a convolution's weight and bias
    channels_last: bool  # kernels (*k, in, out), not (out, in, *k)


TORCH = Layout(("weight", "bias", "running_mean", "running_var"),
               ("weight", "bias"), False)
KERAS = Layout(("gamma", "beta", "moving_mean", "moving_variance"),
               ("kernel", "bias"), True)
FLAX = Layout(("scale", "bias", "mean", "var"), ("kernel", "bias"), True)
CONV = Layout(("scale", "B", "input_mean", "input_var"), ("W", "B"), False)
GEMM = CONV._replace(kernel=("B", "C"))  # ONNX's dense layer, transB=1

# %% 09-frameworks
def read(arrays, layout):
    """A layer's arrays, tensors or variables as a dict of NumPy arrays.

    PyTorch's num_batches_tracked, which no other framework has, is left
    out. Raises TypeError for what is no dict of floats, ValueError for
    names that no layer has together.
    """
    if not isinstance(arrays, Mapping):
        raise TypeError("a layer's weights must be a dict of arrays, got "
                        f"{type(arrays).__name__}")
    names = [name for name in arrays if name != "num_batches_tracked"]
    if not any(set(names) <= set(form) for form in layout[:2]):
        raise ValueError(f"no layer holds {', '.join(map(str, names))} here; "
                         f"there can be {', '.join(layout.kernel)} or "
                         f"{', '.join(layout.norm)}")
    return {name: as_array(name, arrays[name]) for name in names}

# %% 09-frameworks
def as_array(name, value):
    """A NumPy array of an array, a tensor or a variable on any device;
    TypeError unless it holds floats that NumPy has."""
    if hasattr(value, "assign"):  # one of Keras's variables
        value = value.value
    if hasattr(value, "detach"):  # one of PyTorch's
        value = value.detach().cpu()
    try:
        value = np.asarray(value)
    except TypeError as error:
        raise TypeError(f"{name} can't be a NumPy array: {error}") from error
    if value.dtype.kind != "f":
        raise TypeError(f"{name} must hold floats, got {value.dtype}")
    return value


def channels_last(kernel):
    """A kernel (out, in, *k) as (*k, in, out)."""
    return np.moveaxis(kernel, (0, 1), (-1, -2))


def channels_first(kernel):
    """A kernel (*k, in, out) as (out, in, *k)."""
    return np.moveaxis(kernel, (-1, -2), (0, 1))

# %% 09-frameworks
def translate(arrays, old, new):
    """A layer's arrays in another layout, as copies.

    A layer that has running statistics is batch normalization; any other
    is dense or a convolution. Raises what `read` and the checks raise.
    """
    arrays = read(arrays, old)
    if any(name in arrays for name in old.norm[2:]):
        check_norm(arrays, old)
        return {n: arrays[o].copy()
                for o, n in zip(old.norm, new.norm) if o in arrays}
    check_kernel(arrays, old)
    turned = {n: arrays[o] for o, n in zip(old.kernel, new.kernel)
              if o in arrays}
    weight = turned[new.kernel[0]]
    if old.channels_last != new.channels_last:
        turn = channels_last if new.channels_last else channels_first
        turned[new.kernel[0]] = turn(weight)
    return {name: array.copy() for name, array in turned.items()}

# %% 09-frameworks
def check_norm(arrays, layout):
    """Raise ValueError unless these are batch normalization's arrays."""
    for name in layout.norm[2:]:
        if name not in arrays:
            raise ValueError(f"{name} is missing beside {', '.join(arrays)}")
    shapes = {name: array.shape for name, array in arrays.items()}
    if set(map(len, shapes.values())) != {1} or len({*shapes.values()}) > 1:
        raise ValueError("batch normalization's arrays must all have one "
                         f"shape (C,), got {shapes}")


def check_kernel(arrays, layout):
    """Raise ValueError unless these are a dense layer's or a
    convolution's."""
    name, bias = layout.kernel
    shape = np.shape(arrays.get(name))
    if not 2 <= len(shape) <= 5:
        raise ValueError(f"{name} must be a kernel of 2 axes (dense) or 3 to "
                         f"5 (convolution), got shape {shape} and no running "
                         "statistics")
    out = shape[-1 if layout.channels_last else 0]
    if bias in arrays and arrays[bias].shape != (out,):
        raise ValueError(f"{bias} must have shape ({out},) beside a {name} "
                         f"of shape {shape}, got {arrays[bias].shape}")

# %% 09-frameworks
def to_keras(state):
    """Keras's weights of a layer from PyTorch's state dict of it: a dict
    in the order of `layer.get_weights()`."""
    return translate(state, TORCH, KERAS)


def from_keras(weights):
    """PyTorch's state dict of a layer from Keras's weights by name:
    {w.name: w for w in layer.weights}."""
    return translate(weights, KERAS, TORCH)


def to_flax(state):
    """The variables of a Flax layer, by collection, from PyTorch's state
    dict of it."""
    found, variables = translate(state, TORCH, FLAX), {}
    for name, array in found.items():
        part = "batch_stats" if name in FLAX.norm[2:] else "params"
        variables.setdefault(part, {})[name] = array
    return variables

# %% 09-frameworks
def from_flax(variables):
    """PyTorch's state dict of a layer from a Flax layer's variables:
    {"params": {...}} and, in batch normalization, {"batch_stats": ...}."""
    if (not isinstance(variables, Mapping)
            or not {"params", "batch_stats"} >= set(variables)):
        got = (list(variables) if isinstance(variables, Mapping)
               else type(variables).__name__)
        raise ValueError("variables must be a dict of the collections "
                         f"params and batch_stats, got {got}")
    parts = (variables.get(name, {}) for name in ("params", "batch_stats"))
    return translate({k: v for part in parts for k, v in part.items()},
                     FLAX, TORCH)

# %% 09-frameworks
def to_onnx(state):
    """The inputs of ONNX's Conv, Gemm (with transB=1) or
    BatchNormalization, by their formal names, from PyTorch's state dict.

    BatchNormalization must have a scale and a B: a layer without gamma or
    beta gets ones or zeros.
    """
    dense = isinstance(state, Mapping) and np.ndim(state.get("weight")) == 2
    found = translate(state, TORCH, GEMM if dense else CONV)
    if "input_mean" not in found:
        return found
    mean = found["input_mean"]
    return {"scale": np.ones_like(mean), "B": np.zeros_like(mean)} | found


def from_onnx(inputs):
    """PyTorch's state dict of a layer from the weights that ONNX's Conv,
    Gemm (with transB=1) or BatchNormalization takes, by formal names."""
    conv = isinstance(inputs, Mapping) and "W" in inputs
    return translate(inputs, CONV if conv else GEMM, TORCH)

# %% 09-frameworks
def to_options(eps, momentum):
    """Epsilon and momentum as Keras, Flax and ONNX call and mean them,
    from PyTorch's. ValueError for momentum=None, which they don't have."""
    if momentum is None:
        raise ValueError("momentum=None, the average of all batches, has no "
                         "equivalent outside PyTorch; give a number from 0 "
                         "to 1")
    return {"epsilon": eps, "momentum": 1 - share("momentum", momentum)}


def from_options(epsilon, momentum):
    """PyTorch's eps and momentum, from Keras's, Flax's or ONNX's."""
    return {"eps": epsilon, "momentum": 1 - share("momentum", momentum)}


def share(name, value):
    """`value`; ValueError unless it is from 0 to 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be from 0 to 1, got {value}")
    return value

# %% 09-frameworks
def columns_last(weight, shape):
    """A dense kernel (out, C*H*W) that follows a flattening of maps (C, H,
    W), for maps that are flattened as (H, W, C). `shape` is (C, H, W), or
    (C, *spatial). ValueError if the two don't fit."""
    weight = check_columns(weight, shape)
    maps = weight.reshape(-1, *shape)  # (out, C, *spatial)
    return np.moveaxis(maps, 1, -1).reshape(weight.shape).copy()


def columns_first(weight, shape):
    """The way back from `columns_last`; `shape` is (C, *spatial) here
    too."""
    weight = check_columns(weight, shape)
    maps = weight.reshape(-1, *shape[1:], shape[0])  # (out, *spatial, C)
    return np.moveaxis(maps, -1, 1).reshape(weight.shape).copy()

# %% 09-frameworks
def check_columns(weight, shape):
    """`weight` as an array; ValueError unless `shape` has its columns."""
    weight = as_array("weight", weight)
    if len(shape) < 1 or min(shape) < 1:
        raise ValueError("shape must be (C, *spatial), each at least 1, got "
                         f"{tuple(shape)}")
    if weight.ndim != 2 or weight.shape[1] != np.prod(shape):
        raise ValueError(f"weight must have shape (out, {np.prod(shape)}) to "
                         f"follow maps {tuple(shape)}, got {weight.shape}")
    return weight
