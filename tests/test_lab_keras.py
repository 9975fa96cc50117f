"""The experiment that trains in Keras."""

import os
from functools import partial

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("KERAS_HOME", os.devnull)  # nothing in the home folder

import keras
import numpy as np
import pytest
import torch

from normlab.lab import experiments, keras_dense, records
from normlab.lab.sweep import compute

torch.set_num_threads(1)
CONFIG = experiments.configuration("keras-dense", "live") | {"epochs": 2}
METHODS = ["none", "BN", "BN before ReLU"]


def kernels(method, seed):
    net = keras_dense.dense_network(64, method, CONFIG, seed)
    return [keras.ops.convert_to_numpy(layer.kernel) for layer in net.layers
            if hasattr(layer, "kernel")]


def test_all_arms_start_from_the_same_weights():
    first = kernels("none", 3)
    for method in METHODS[1:]:
        assert all(map(np.array_equal, first, kernels(method, 3)))
    assert not np.array_equal(first[0], kernels("none", 4)[0])
    assert [k.shape for k in first] == [(64, 128), (128, 10)]


def test_the_layers_stand_where_the_method_says():
    names = {m: [type(layer).__name__ for layer in keras_dense.dense_network(
        64, m, CONFIG, 0).layers] for m in METHODS}
    assert names["none"] == ["Flatten", "Dense", "Dense"]
    assert names["BN"] == ["Flatten", "Dense", "BatchNormalization", "Dense"]
    assert names["BN before ReLU"] == [
        "Flatten", "Dense", "BatchNormalization", "ReLU", "Dense"]


def test_a_point_can_be_repeated_and_its_results_have_a_value_an_epoch():
    point, ticks = {"method": "BN", "lr": 1e-3, "seed": 1}, []
    run = partial(keras_dense.EXPERIMENT.run, CONFIG)
    (one,), (two,) = (compute(run, None, [point], ticks.append)
                      for _ in range(2))
    assert one | {"seconds": 0} == two | {"seconds": 0}
    assert ticks == [1, 2, 1, 2]
    for name in ("loss", "val_loss", "train_loss", "val_accuracy"):
        assert len(one[name]) == 2
    assert 0.3 < one["val_accuracy"][-1] <= 1
    assert 0.3 < one["test_accuracy"] <= 1


def test_the_moving_statistics_change_the_evaluation_only():
    one, two = (experiments.run("keras-dense", methods=["BN"], seeds=[0],
                                learning_rates=[1e-3], epochs=1,
                                momentum=momentum)[0]
                for momentum in (0.99, 0.9))
    assert one["loss"] == two["loss"]
    assert one["val_loss"][0] > two["val_loss"][0] + 0.1


def test_cross_entropy_is_pytorch_s():
    rng = np.random.default_rng(0)
    z, y = 50 * rng.standard_normal((20, 10)), rng.integers(0, 10, 20)
    want = torch.nn.functional.cross_entropy(torch.tensor(z), torch.tensor(y))
    assert keras_dense.cross_entropy(z, y) == pytest.approx(want.item())


def test_another_back_end_is_named(monkeypatch):
    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    with pytest.raises(RuntimeError, match="on torch, got jax: set .*=torch"):
        experiments.run("keras-dense", seeds=[0], methods=["none"])


def test_the_record_is_of_the_present_code():
    record = records.read_record("keras-dense")
    assert len(record["points"]) == 15
    assert {p["method"] for p in record["points"]} == set(METHODS)
    assert all(len(p["loss"]) == 10 for p in record["points"])
