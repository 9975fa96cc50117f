"""Weights of a layer in PyTorch, Keras, Flax and ONNX."""

import os

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("KERAS_TORCH_DEVICE", "cpu")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("KERAS_HOME", os.devnull)  # nothing in the home folder
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import jax
import jax.numpy as jnp
import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from flax import linen
from onnx.reference import ReferenceEvaluator

from normlab import convert

torch.set_num_threads(1)
BATCH = 4
# Each in all four: PyTorch's layer, Keras's, Flax's, ONNX's operator, and
# the shape of one input (C, *spatial).
LAYERS = {
    "dense": (lambda: torch.nn.Linear(6, 5),
              lambda: keras.layers.Dense(5),
              lambda: linen.Dense(5), "Gemm", (6,)),
    "dense without bias": (
        lambda: torch.nn.Linear(6, 5, bias=False),
        lambda: keras.layers.Dense(5, use_bias=False),
        lambda: linen.Dense(5, use_bias=False), "Gemm", (6,)),
    "conv1d": (lambda: torch.nn.Conv1d(3, 5, 4),
               lambda: keras.layers.Conv1D(5, 4),
               lambda: linen.Conv(5, (4,), padding="VALID"), "Conv", (3, 9)),
    "conv2d": (lambda: torch.nn.Conv2d(3, 5, (2, 3)),
               lambda: keras.layers.Conv2D(5, (2, 3)),
               lambda: linen.Conv(5, (2, 3), padding="VALID"), "Conv",
               (3, 6, 7)),
    "conv2d in groups": (
        lambda: torch.nn.Conv2d(4, 6, 3, groups=2, bias=False),
        lambda: keras.layers.Conv2D(6, 3, groups=2, use_bias=False),
        lambda: linen.Conv(6, (3, 3), padding="VALID", use_bias=False,
                           feature_group_count=2), "Conv", (4, 6, 7)),
    "conv3d": (lambda: torch.nn.Conv3d(2, 3, (1, 2, 3)),
               lambda: keras.layers.Conv3D(3, (1, 2, 3)),
               lambda: linen.Conv(3, (1, 2, 3), padding="VALID"), "Conv",
               (2, 4, 5, 6)),
    "norm": (lambda: torch.nn.BatchNorm1d(6),
             lambda: keras.layers.BatchNormalization(epsilon=1e-5),
             lambda: linen.BatchNorm(use_running_average=True),
             "BatchNormalization", (6,)),
    "norm of maps": (
        lambda: torch.nn.BatchNorm2d(3),
        lambda: keras.layers.BatchNormalization(epsilon=1e-5),
        lambda: linen.BatchNorm(use_running_average=True),
        "BatchNormalization", (3, 4, 5)),
    "norm without gamma and beta": (
        lambda: torch.nn.BatchNorm1d(6, affine=False),
        lambda: keras.layers.BatchNormalization(
            epsilon=1e-5, center=False, scale=False),
        lambda: linen.BatchNorm(use_running_average=True, use_scale=False,
                                use_bias=False), "BatchNormalization", (6,)),
}
WAYS = {"keras": (convert.to_keras, convert.from_keras),
        "flax": (convert.to_flax, convert.from_flax),
        "onnx": (convert.to_onnx, convert.from_onnx)}


@pytest.fixture(params=LAYERS)
def case(request):
    """A layer's entry, its PyTorch layer with random weights, an input and
    PyTorch's answer."""
    entry = LAYERS[request.param]
    torch.manual_seed(0)
    layer = entry[0]().eval()
    with torch.no_grad():
        for array in layer.state_dict().values():
            if array.is_floating_point():
                array.uniform_(0.2, 2)
        x = torch.randn(BATCH, *entry[-1])
        return entry, layer, x.numpy(), layer(x).numpy()


def last(x):
    return np.moveaxis(x, 1, -1)


def assert_close(got, want):
    """To 1e-6 of the largest value: float32 sums in another order."""
    assert got.shape == want.shape
    assert np.abs(got - want).max() < 1e-6 * np.abs(want).max()


def plain(layer):
    return {k: v.numpy() for k, v in layer.state_dict().items()
            if k != "num_batches_tracked"}


def assert_same(got, want):
    assert {k: v.shape for k, v in got.items()} == {
        k: v.shape for k, v in want.items()}
    for name in want:
        np.testing.assert_array_equal(got[name], want[name])


def operator(kind, weights, x, want, **attributes):
    """An ONNX model of one operator."""
    names = {"BatchNormalization": ["scale", "B", "input_mean", "input_var"],
             "Conv": ["W", "B"], "Gemm": ["B", "C"]}[kind]
    present = [n for n in names if n in weights]
    node = onnx.helper.make_node(kind, ["X", *present], ["Y"], **attributes)
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node], "one", [info("X", 1, x.shape)], [info("Y", 1, want.shape)],
        [onnx.numpy_helper.from_array(weights[n], n) for n in present])
    model = onnx.helper.make_model(
        graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 15)])
    onnx.checker.check_model(model, full_check=True)
    return model


def test_keras_gives_pytorch_s_outputs(case):
    (_, make, _, _, _), layer, x, want = case
    other = make()
    other.build(last(x).shape)
    weights = convert.to_keras(layer.state_dict())
    assert list(weights) == [w.name for w in other.weights]
    other.set_weights(list(weights.values()))
    got = keras.ops.convert_to_numpy(other(last(x), training=False))
    assert_close(got, last(want))


def test_flax_gives_pytorch_s_outputs(case):
    (_, _, make, _, _), layer, x, want = case
    variables = convert.to_flax(layer.state_dict())
    shapes = make().init(jax.random.key(0), last(x))
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, shapes)
    assert_close(np.asarray(make().apply(variables, last(x))), last(want))


def test_onnx_gives_pytorch_s_outputs(case):
    (_, _, _, kind, _), layer, x, want = case
    options = {"Gemm": {"transB": 1}, "Conv": {"group": getattr(
        layer, "groups", 1)}}.get(kind, {})
    model = operator(kind, convert.to_onnx(layer.state_dict()), x, want,
                     **options)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"])
    for run in (session.run, ReferenceEvaluator(model).run):
        assert_close(run(None, {"X": x})[0], want)


@pytest.mark.parametrize("way", WAYS)
def test_there_and_back_changes_nothing(case, way):
    there, back = WAYS[way]
    _, layer, _, want = case
    state = back(there(layer.state_dict()))
    if way == "onnx" and not getattr(layer, "affine", True):
        assert (state.pop("weight") == 1).all()
        assert (state.pop("bias") == 0).all()
    assert_same(state, plain(layer))


@pytest.mark.parametrize("way", WAYS)
def test_the_way_back_loads_into_pytorch(way):
    there, back = WAYS[way]
    old, new = torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3)
    old(torch.randn(8, 3))
    state = {k: torch.from_numpy(v) for k, v in
             back(there(old.state_dict())).items()}
    new.load_state_dict(state)
    assert_same(plain(new), plain(old))
    assert new.num_batches_tracked == 0  # nobody else counts


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_types_stay_and_nothing_is_shared(way, dtype):
    there, back = WAYS[way]
    one = np.ones(2, dtype)
    for state in ({"weight": np.ones((2, 2), dtype), "bias": one},
                  {"running_mean": one, "running_var": one}):
        other = there(state)
        arrays = [*jax.tree.leaves(other), *back(other).values()]
        assert {a.dtype for a in arrays} == {np.dtype(dtype)}
        for array in arrays:
            array += 1
        assert all((a == 1).all() for a in state.values())


def test_variables_of_the_frameworks_are_taken():
    layer = keras.layers.BatchNormalization()
    layer.build((None, 3))
    state = convert.from_keras({w.name: w for w in layer.weights})
    assert_same(state, plain(torch.nn.BatchNorm1d(3)))
    variables = linen.Conv(2, (3, 3)).init(jax.random.key(0),
                                           jnp.zeros((1, 5, 5, 4)))
    assert convert.from_flax(variables)["weight"].shape == (2, 4, 3, 3)


@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 7), (2, 3, 2, 3)])
def test_columns_follow_the_flattening(shape):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((6, np.prod(shape)))
    x = rng.standard_normal((BATCH, *shape))
    want = x.reshape(BATCH, -1) @ weight.T
    turned = convert.columns_last(weight, shape)
    got = last(x).reshape(BATCH, -1) @ turned.T
    np.testing.assert_allclose(got, want, atol=1e-12)
    assert np.abs(last(x).reshape(BATCH, -1) @ weight.T - want).max() > 0.1
    np.testing.assert_array_equal(convert.columns_first(turned, shape), weight)


@pytest.mark.parametrize("turn", [convert.columns_last, convert.columns_first])
@pytest.mark.parametrize("shape", [(1, 2, 3), (6,), (3, 1, 2)])
def test_turned_columns_are_a_copy(turn, shape):
    weight = torch.ones(2, 6)
    turned = turn(weight, shape)
    turned += 1
    assert (weight == 1).all()


def test_options_mean_the_same():
    x = np.random.default_rng(0).normal(3, 2, (8, 4)).astype(np.float32)
    layer = torch.nn.BatchNorm1d(4, eps=1e-4, momentum=0.3)
    layer(torch.from_numpy(x))
    options = convert.to_options(layer.eps, layer.momentum)
    for other in (
            keras.layers.BatchNormalization(**options),
            linen.BatchNorm(use_running_average=False, **options)):
        if isinstance(other, linen.Module):
            variables = other.init(jax.random.key(0), x)
            _, moved = other.apply(variables, x, mutable=["batch_stats"])
            mean = moved["batch_stats"]["mean"]
        else:
            other(x, training=True)
            mean = keras.ops.convert_to_numpy(other.moving_mean)
        np.testing.assert_allclose(mean, layer.running_mean, rtol=1e-6)
        assert other.epsilon == layer.eps
    assert convert.from_options(**options) == pytest.approx(
        {"eps": layer.eps, "momentum": layer.momentum})


ONE = np.ones(2)
BAD = {
    "a list": (lambda: convert.to_keras([ONE]), TypeError,
               "must be a dict of arrays, got list"),
    "an unknown name": (lambda: convert.to_keras({"gamma": ONE}), ValueError,
                        "no layer holds gamma here.* weight, bias or weight"),
    "keras's unknown name": (lambda: convert.from_keras({"weight": ONE}),
                             ValueError, "no layer holds weight here.*kernel"),
    "a missing statistic": (
        lambda: convert.to_flax({"running_var": ONE}), ValueError,
        "running_mean is missing beside running_var"),
    "unequal channels": (
        lambda: convert.to_onnx({"running_mean": ONE,
                                 "running_var": np.ones(3)}), ValueError,
        r"must all have one shape \(C,\), got .*\(2,\).*\(3,\)"),
    "statistics of two axes": (
        lambda: convert.from_keras({"moving_mean": np.ones((2, 2)),
                                    "moving_variance": np.ones((2, 2))}),
        ValueError, "must all have one shape"),
    "integers": (lambda: convert.to_keras({"weight": np.ones((2, 2), int)}),
                 TypeError, "weight must hold floats, got int64"),
    "none": (lambda: convert.to_keras({"weight": None}), TypeError,
             "weight must hold floats, got object"),
    "bfloat16": (lambda: convert.to_keras(
        {"weight": torch.ones(2, 2, dtype=torch.bfloat16)}), TypeError,
        "weight can't be a NumPy array: .*BFloat16"),
    "layer normalization": (
        lambda: convert.to_keras({"weight": ONE, "bias": ONE}), ValueError,
        r"weight must be a kernel .* got shape \(2,\) and no running"),
    "no kernel": (lambda: convert.from_flax({"params": {"bias": ONE}}),
                  ValueError, "kernel must be a kernel"),
    "a bias that doesn't fit": (
        lambda: convert.from_keras({"kernel": np.ones((3, 2)),
                                    "bias": np.ones(3)}), ValueError,
        r"bias must have shape \(2,\) beside a kernel of shape \(3, 2\)"),
    "a kernel with gamma": (
        lambda: convert.from_keras({"kernel": np.ones((3, 2)), "gamma": ONE}),
        ValueError, "no layer holds kernel, gamma here"),
    "flax without collections": (
        lambda: convert.from_flax({"kernel": ONE}), ValueError,
        r"params and batch_stats, got \['kernel'\]"),
    "flax's list": (lambda: convert.from_flax([ONE]), ValueError, "got list"),
    "momentum none": (lambda: convert.to_options(1e-5, None), ValueError,
                      "momentum=None"),
    "momentum 10": (lambda: convert.from_options(1e-5, 10), ValueError,
                    "momentum must be from 0 to 1, got 10"),
    "columns": (lambda: convert.columns_last(np.ones((2, 7)), (2, 3)),
                ValueError, r"\(out, 6\) to follow maps \(2, 3\), got \(2, 7"),
    "no columns": (lambda: convert.columns_last(np.ones((2, 0)), (0, 3)),
                   ValueError, r"each at least 1, got \(0, 3\)"),
    "columns without a shape": (
        lambda: convert.columns_first(np.ones((2, 1)), ()), ValueError,
        r"shape must be \(C, \*spatial\), .* got \(\)"),
    "columns of three axes": (
        lambda: convert.columns_first(np.ones((2, 2, 3)), (2, 3)),
        ValueError, r"got \(2, 2, 3\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_nonsense_is_named(name):
    call, error, text = BAD[name]
    with pytest.raises(error, match=text):
        call()
