"""ONNX's own backend cases for BatchNormalization."""

import warnings

import numpy as np
import onnx
import pytest

from normlab import numpy_layers as nl

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from onnx.backend.test.case.node import collect_testcases

    CASES = collect_testcases("BatchNormalization")


def test_there_are_cases():
    assert len(CASES) >= 4


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_case(case):
    options = {a.name: onnx.helper.get_attribute_value(a)
               for a in case.model.graph.node[0].attribute}
    eps, old = options.get("epsilon", 1e-5), options.get("momentum", 0.9)
    (inputs, outputs), = case.data_sets
    x, gamma, beta, mean, var = inputs
    if options.get("training_mode"):
        y, cache = nl.batch_norm_forward(x, gamma, beta, eps)
        # ONNX weighs the old value, and stores the biased variance.
        mean = old * mean + (1 - old) * (cache.shift + cache.rest)
        var = old * var + (1 - old) * cache.var
        got = y, mean, var
    else:
        got = nl.batch_norm_inference(x, mean, var, gamma, beta, eps)[:1]
    assert len(got) == len(outputs)
    for g, want in zip(got, outputs, strict=True):
        np.testing.assert_allclose(g, want, rtol=case.rtol, atol=1e-6)
