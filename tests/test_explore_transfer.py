"""The Python half of the interactive figure TransferCurve."""

import re
from pathlib import Path

import numpy as np
import torch

from normlab import inference
from normlab.explore.transfer import POINTS, TransferCurve, curve, nodes

PAGE = Path(__file__).parent / "js/transfer.test.mjs"


def test_the_curve_is_the_pages():
    rows = re.findall(r"\[(-?\d), (\d+), ([\d.e-]+), (-?[\d.]{10,})\]",
                      PAGE.read_text())
    assert len(rows) == 4
    for x, m, eps, want in rows:
        np.testing.assert_allclose(curve(float(x), int(m), float(eps)),
                                   float(want), atol=1e-12)


def test_the_curve_is_the_librarys():
    x = np.linspace(-4, 4, 33)
    for m in (2, 3, 8, 64):
        for eps in (0.0, 1e-5, 0.1):
            want = inference.transfer(torch.from_numpy(x), m, eps)
            np.testing.assert_allclose(curve(x, m, eps), want, atol=2e-5)


def test_nodes_integrate_a_polynomial():
    q, w = nodes()
    assert len(q) == POINTS
    np.testing.assert_allclose([w.sum(), w @ q**2], [1, 1 / 3], atol=1e-4)


def test_the_page_uses_as_many_points():
    script = Path(inference.__file__).parent / "explore/transfer.js"
    assert f"const POINTS = {POINTS};" in script.read_text()


def test_the_state_it_starts_in():
    figure = TransferCurve()
    assert repr(figure) == "TransferCurve()"
    assert (figure.m, figure.value, figure.eps, figure.alpha) == (
        4, 3.0, 1e-5, 0.15)
