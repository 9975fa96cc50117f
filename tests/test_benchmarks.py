"""The benchmarks compare like with like: on small shapes everybody they
time computes the same thing. No times are asserted."""

import json

import numpy as np
import pytest
import torch

from benchmarks import accuracy, peers, report, speed
from normlab.lab import records

SMALL = {"NCHW": (4, 3, 5, 5), "NHWC": (4, 3, 5, 5), "2-D": (12, 3)}


def as_arrays(results):
    return [np.asarray(r) for r in results]


@pytest.mark.parametrize("case", speed.CASES, ids=str)
def test_contenders_agree(case):
    x, dy = speed.data(SMALL[case.layout], case.layout)
    mine = as_arrays(speed.ours(case.work, x, dy)())
    theirs = as_arrays(speed.PEERS[case.peer](case.work, x, dy)())
    assert len(mine) == len(theirs) == (2 if case.work == "train" else 1)
    for a, b in zip(mine, theirs, strict=True):
        assert a.shape == x.shape
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("peer", ["torch-out", "staged"])
def test_peers_refuse_other_work(peer):
    work = "train" if peer == "torch-out" else "eval"
    with pytest.raises(ValueError, match="work must be"):
        speed.PEERS[peer](work, *speed.data((12, 3), "2-D"))


def test_data_has_the_layout_it_says():
    x, _ = speed.data(SMALL["NHWC"], "NHWC")
    assert not x.flags.c_contiguous
    assert np.moveaxis(x, 1, -1).flags.c_contiguous
    assert speed.data(SMALL["NCHW"], "NCHW")[0].flags.c_contiguous


def test_staged_layer_against_autograd():
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, 4, 3, 5, 5))
    gamma, beta = rng.standard_normal((2, 3))
    y, saved = peers.spatial_forward(x, gamma, beta)
    grads = peers.spatial_backward(dy, saved)
    leaves = [torch.tensor(a, requires_grad=True) for a in (x, gamma, beta)]
    out = torch.nn.functional.batch_norm(
        leaves[0], None, None, *leaves[1:], training=True)
    out.backward(torch.tensor(dy))
    np.testing.assert_allclose(y, out.detach(), atol=1e-12)
    for grad, leaf in zip(grads, leaves, strict=True):
        np.testing.assert_allclose(grad, leaf.grad, atol=1e-12)


def test_measure_gives_both_clocks():
    calls = []
    found = speed.measure(lambda: calls.append("mine"),
                          lambda: calls.append("theirs"), 2)
    assert set(found) == {"cpu", "wall"}
    assert {"mine", "theirs"} == set(calls)
    low, high = found["wall"]["ratio_range"]
    assert 0 < low <= found["wall"]["ratio"] <= high


def test_accuracy_goal_on_small_batches():
    results = accuracy.run(counts=(256,))
    mine = [r for r in results if r["method"].startswith("ours")]
    assert len(mine) == 3 * len(accuracy.SETTINGS)
    assert all(map(accuracy.meets, mine))
    centred = [r for r in results if r["mean"] == 0 and r["std"] == 1]
    assert all(r["y"] < 1e-4 and r["dx"] < 1e-4 for r in centred)


def test_nan_never_meets_the_goal():
    good = {"y": 0.0, "dx": 0.0, "negative": 0}
    assert accuracy.meets(good)
    assert not accuracy.meets({**good, "y": float("nan")})
    assert not accuracy.meets({**good, "negative": 1})


def test_record_says_where_it_comes_from(tmp_path):
    path = report.write("smoke", [{"ratio": 1.0}], tmp_path, rounds=1,
                        seconds={5000: 2.5})
    record = json.loads(path.read_text())
    assert record["settings"]["seconds"] == {"5000": 2.5}
    assert record["hardware"]["threads"] == 1
    assert {"numpy", "torch", "python"} <= set(record["versions"])
    assert record["date"] and record["results"] == [{"ratio": 1.0}]
    assert list(tmp_path.iterdir()) == [path]


def test_every_record_is_json():
    paths = list(records.shipped().glob("*.json"))
    assert len(paths) >= 20
    for path in paths:
        assert json.loads(path.read_text())["command"]
