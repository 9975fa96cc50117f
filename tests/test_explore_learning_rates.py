"""The Python half of the interactive figure LearningRates."""

import json
import re

import pytest

from normlab.explore import learning_rates
from normlab.explore.learning_rates import LearningRates, compact
from normlab.lab import experiments
from tools.notebooks import ROOT

CONFIG = experiments.configuration("learning-rates", "full")


def record(loss=0.5):
    """A record whose accuracies tell where they belong."""
    points = experiments.get("learning-rates").points(CONFIG)
    n, stretches = len(CONFIG["checkpoints"]), CONFIG["steps"] // CONFIG[
        "stretch"]
    return {"configuration": CONFIG, "points": [
        p | {"accuracy": [round(p["lr"] / 100 + 0.01 * p["seed"] + k / 10, 4)
                          for k in range(n)],
             "loss": [loss * (i + 1) for i in range(stretches)]}
        for p in points]}


def test_compact_holds_mean_least_and_greatest():
    sweep = compact(record())
    assert len(sweep["runs"]) == 12
    at_one = sweep["runs"]["He 20 none"][CONFIG["learning_rates"].index(1.0)]
    mean, least, greatest = at_one["right"]
    assert (mean[0], least[0], greatest[0]) == (20, 10, 30)
    assert mean[3] == 320
    # Before step 0 nothing was trained; 30, 60 and 120 are the ends of the
    # first, second and fourth stretch.
    assert at_one["loss"][:4] == [None, 0.5, 1.0, 2.0]
    assert at_one["loss"][-1] == 10.0


def test_a_loss_that_is_not_finite_is_none():
    found = record()
    found["points"][0]["loss"][0] = None
    p = found["points"][0]
    entry = compact(found)["runs"][f"{p['init']} {p['depth']} {p['method']}"]
    assert entry[0]["loss"][:3] == [None, None, 1.0]


def test_the_page_has_the_same_sliders():
    text = (ROOT / "normlab/explore/learning_rates.js").read_text()

    def array(name):
        return json.loads(re.search(
            rf"export const {name} = (\[[^\]]*\])", text).group(1))

    assert array("RATES") == CONFIG["learning_rates"]
    assert array("DEPTHS") == CONFIG["depths"]
    assert [0, *array("STEPS")] == CONFIG["checkpoints"]
    assert sorted(array("METHODS")) == sorted(CONFIG["methods"])
    assert set(learning_rates.INITS) == set(CONFIG["inits"])


def test_it_reads_the_record_and_is_small(monkeypatch):
    monkeypatch.setattr("normlab.lab.records.read_record",
                        lambda name: {"learning-rates": record()}[name])
    figure = LearningRates()
    assert repr(figure) == "LearningRates()"
    assert (figure.lr, figure.depth, figure.step, figure.init) == (
        1.0, 8, 600, "He")
    assert len(json.dumps(figure.sweep)) < 30_000


def test_other_inits_are_refused():
    with pytest.raises(Exception, match="init"):
        LearningRates(sweep={}, init="Glorot")
