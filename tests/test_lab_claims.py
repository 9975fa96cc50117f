"""Claims and the check of a reader's answers."""

import json
import math

import numpy as np
import pytest

from normlab.lab import claims
from normlab.lab.claims import ClaimError, claim
from normlab.lab.exercises import check_answer


@pytest.fixture
def shown(monkeypatch):
    """What claims display, as (data, metadata)."""
    seen = []
    monkeypatch.setattr(claims, "display", lambda data, raw, metadata:
                        seen.append((data, metadata)))
    return seen


def test_a_claim_prints_a_line_and_keeps_its_values(shown):
    claim("a-b2", holds=np.bool_(True), error=np.float64(0.123456),
          runs=np.array([1, 2]), share=[0.5, 0.25], kind="dense")
    (data, metadata), = shown
    assert data["text/plain"] == (
        "[a-b2] holds: error 0.123, runs 1/2, share 0.5/0.25, kind dense")
    record = json.loads(json.dumps(metadata["normlab.claim"]))
    assert record == {"id": "a-b2", "measured": [
        ["error", 0.123456], ["runs", [1, 2]], ["share", [0.5, 0.25]],
        ["kind", "dense"]]}


def test_a_claim_that_does_not_hold_raises(shown):
    with pytest.raises(ClaimError, match=r"\[a-b\].*error 3.*not hold"):
        claim("a-b", holds=False, error=3)
    assert shown == [] and issubclass(ClaimError, AssertionError)


@pytest.mark.parametrize("name", ["", "A-b", "a_b", "a--b", "-a", 3, None])
def test_a_claim_s_name_is_checked(name, shown):
    with pytest.raises(ValueError, match="name must be lower-case words"):
        claim(name, holds=True, error=1)


@pytest.mark.parametrize("holds", [
    None, "yes", 2, np.array([True, True]), np.array([True]), [True]])
def test_holds_is_one_truth_value(holds, shown):
    with pytest.raises(TypeError, match="holds must be one True or False"):
        claim("a", holds=holds, error=1)


def test_something_must_be_measured_and_be_plain(shown):
    with pytest.raises(ValueError, match="must name what was measured"):
        claim("a", holds=True)
    with pytest.raises(TypeError, match="numbers or text, got dict"):
        claim("a", holds=True, error={})
    assert shown == []


@pytest.mark.parametrize("value, text", [
    (3e-16, "below 1e-12"), (9.9e-7, "below 1e-6"), (1e-6, "1e-06"),
    (0.0, "below 1e-12"), (1234.5, "1.23e+03"), (7, "7"), ([0.1, 2], "0.1/2"),
    (math.nan, "nan"), (-0.25, "-0.25")])
def test_values_are_shown_in_three_digits(value, text):
    assert claims.show(claims.plain(value)) == text


def double(x):
    return 2 * x


def says(capsys, answer, solution=double, cases=((1.0,), (2.0,))):
    check_answer(answer, solution, *cases)
    return capsys.readouterr().out


def test_answers_are_told_right_wrong_and_not_begun(capsys):
    assert says(capsys, lambda x: x + x) == "Correct on all 2 cases.\n"
    assert says(capsys, lambda x: None).startswith("Not answered yet")
    wrong = says(capsys, lambda x: x + 1)
    assert wrong.startswith("Not yet: case 2 of 2, the largest relative")


def test_wrong_shapes_and_numbers_of_results_are_named(capsys):
    cases = ((np.ones(3),),)
    assert "the shape is (), (3,) is wanted" in says(
        capsys, lambda x: 2.0, cases=cases)

    def pair(x):
        return x, 2 * x

    assert "2 results are wanted" in says(
        capsys, lambda x: x, pair, cases=cases)
    assert "Correct" in says(capsys, pair, pair, cases=cases)
    assert "Not yet" in says(
        capsys, lambda x: (x, x), pair, cases=cases)
    assert "Not yet" in says(
        capsys, lambda x: x * np.nan, cases=cases)


def test_an_answer_may_spoil_its_arguments(capsys):
    x = np.ones(3)

    def answer(x):
        x *= 2
        return x

    assert "Correct" in says(capsys, answer, cases=((x,),))
    assert (x == 1).all()
