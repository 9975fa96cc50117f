"""The Python half of the interactive figure BatchSize."""

import re

import numpy as np
import pytest

from normlab.explore import batch_size
from normlab.explore.batch_size import BatchSize, mean_scale, scale_quantiles
from tools.notebooks import ROOT

ERRORS = {net: {"BN": [1.0] * 7, "GN": [2.0] * 7}
          for net in batch_size.NETS}


def test_mean_scale_is_that_of_the_page():
    # The same numbers as in tests/js/batch_size.test.mjs.
    text = (ROOT / "tests/js/batch_size.test.mjs").read_text()
    pairs = re.findall(r"(\d+): ([\d.]+)", re.search(
        r"MEANS = \{(.*?)\}", text).group(1))
    assert len(pairs) == 4
    for m, want in pairs:
        assert mean_scale(int(m)) == pytest.approx(float(want), abs=1e-5)
    assert mean_scale(2) == float("inf")


@pytest.mark.parametrize("m", [2, 4, 32])
def test_quantiles_are_those_of_batches(m):
    x = np.random.default_rng(m).normal(size=(200_000, m))
    scale = 1 / x.std(axis=1)
    for share, at in zip((0.05, 0.5, 0.95),
                         scale_quantiles()[int(np.log2(m)) - 1],
                         strict=True):
        assert np.mean(scale < at) == pytest.approx(share, abs=0.004)


def test_measured_reads_the_records(monkeypatch):
    points = [{"method": method, "batch_size": size, "budget": "examples",
               "learning_rates": [0.1, 0.3], "val": [[0.2], [0.1]],
               "test": [[0.9], [size / 1000]]}
              for method in ("BN", "GN") for size in batch_size.SIZES]
    monkeypatch.setattr("normlab.lab.records.read_record",
                        lambda name: {"points": points})
    assert batch_size.measured()["dense"]["GN"][:2] == [0.2, 0.4]


def test_shows_itself_by_its_name_alone():
    figure = BatchSize(errors=ERRORS)
    assert repr(figure) == "BatchSize()"
    assert (figure.batch_size, figure.devices, figure.side) == (8, 4, 4)
    assert np.shape(figure.quantiles) == (17, 3)
