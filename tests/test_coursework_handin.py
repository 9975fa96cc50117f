"""A student's answers in the hand-out: where they are found."""

import json

import nbformat
import pytest
from gradebook_cases import (
    Course,
    cell,
    master_notebook,
    meta,
    region,
    sources,
)
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output

from coursework import clean, handin


@pytest.fixture
def course(tmp_path):
    return Course(tmp_path)


def placed(course, nb):
    """The shown notebook for a student's notebook."""
    course.put(course.hand_in("ada", nb))
    return course.shown("ada")


def bare(nb):
    """A notebook as an editor leaves it that loses metadata."""
    for c in nb.cells:
        c.metadata = nbformat.from_dict({})
    return nb


def test_answers_without_metadata_go_by_names_and_places(course):
    nb = placed(course, bare(course.answered()))
    assert "x - x.mean()" in cell(nb, "q1-forward").source
    assert "sum(x) / 2" in cell(nb, "q2-stats").source
    assert cell(nb, "q5").source == "Because of *m*."
    assert cell(nb, "q6").source == "Six."
    assert "Other cells" not in sources(nb)


def test_a_moved_function_is_found(course):
    nb = course.answered()
    cell(nb, "q1-forward").source = cell(course.blank(), "q1-forward").source
    nb.cells += [new_code_cell("def forward(x):\n    return 'moved'"),
                 new_code_cell("scratch = 1")]
    shown = placed(course, nb)
    assert "moved" in cell(shown, "q1-forward").source
    assert "NotImplementedError" not in cell(shown, "q1-forward").source
    assert shown.cells[-2].source == "## Other cells of the submission"
    assert shown.cells[-1].source == "scratch = 1"


def test_all_functions_in_one_cell(course):
    nb = course.blank()
    nb.cells = [new_code_cell("def forward(x): return 1\n"
                              "def stats(x): return 2")]
    shown = placed(course, nb)
    assert "return 2" in cell(shown, "q1-forward").source
    assert cell(shown, "q2-stats").source == (
        "# This answer is in the cell of q1-forward.")


def test_two_cells_with_one_id_are_both_shown(course):
    nb = course.answered()
    extra = new_code_cell("def forward(x): return 'second'",
                          metadata=meta("q1-forward", solution=True))
    nb.cells.append(extra)
    source = cell(placed(course, nb), "q1-forward").source
    assert "x - x.mean()" in source and "second" in source


def test_changed_tests_are_not_shown_as_tests(course):
    nb = course.answered()
    cell(nb, "q1-shapes").source = "assert True  # mine"
    shown = placed(course, nb)
    assert "mine" not in cell(shown, "q1-shapes").source
    assert "mine" in shown.cells[-1].source


def test_a_text_goes_on_in_the_next_cell(course):
    nb = course.answered()
    at = nb.cells.index(cell(nb, "q5"))
    nb.cells.insert(at + 1, new_markdown_cell("And a second reason."))
    assert cell(placed(course, nb), "q5").source == (
        "Because of *m*.\n\nAnd a second reason.")


def test_text_without_a_place_is_all_shown(course):
    nb = course.blank()
    nb.cells = [new_markdown_cell("One thought."), new_markdown_cell("Two.")]
    shown = placed(course, nb)
    for name in ("q5", "q6"):
        source = cell(shown, name).source
        assert source.startswith(handin.ALL_TEXT)
        assert "One thought." in source and "Two." in source


def test_other_text_is_shown_at_the_end(course):
    nb = course.answered()
    nb.cells.insert(1, new_markdown_cell("Dear marker."))
    shown = placed(course, nb)
    assert shown.cells[-2].source == "## Other text of the submission"
    assert shown.cells[-1].source == "Dear marker."


def test_outputs_and_attachments_are_left_behind(course):
    nb = course.answered(q5="![photo](attachment:a.png) see above")
    cell(nb, "q5")["attachments"] = {"a.png": {"image/png": "QUFBQQ=="}}
    cell(nb, "q1-forward").outputs = [new_output(
        "display_data", {"text/html": "<script>alert(1)</script>"})]
    text = nbformat.writes(placed(course, nb))
    assert "QUFBQQ" not in text and "alert" not in text
    assert "photo" in text


@pytest.mark.parametrize("data", [
    b"", b"{", b"[]", b"\xff\xfe", b"null", b'{"nbformat": 4}',
    b'{"nbformat": 4, "cells": [1]}', b"[" * 100_000,
    b'{"nbformat": 9, "cells": 3}'])
def test_an_unreadable_file_stops_nobody(course, data):
    report = course.put(course.hand_in("ada", data),
                        course.hand_in("bob", course.answered()))
    assert report.imported == 2 and len(report.problems) == 1
    assert "not shown here" not in course.shown("bob").cells[0].source
    assert "not shown here" in course.shown("ada").cells[0].source
    assert course.grades("ada")["q1-large"][0] == 3


def test_what_cannot_be_seen_is_spelt_out(course):
    nb = json.loads(nbformat.writes(course.answered(q5="KEEP", q1="CODE")))
    text = json.dumps(nb).replace("KEEP", "a\\u202eb\\ud800c\\u0000").replace(
        "CODE", "x = 1  # \\u2066 \\u001b[31m")
    shown = placed(course, text.encode())
    assert cell(shown, "q5").source == "a\\u202eb?c\\u0000"
    assert cell(shown, "q1-forward").source == "x = 1  # \\u2066 \\u001b[31m"


def test_a_giant_cell_is_cut(course):
    shown = placed(course, course.answered(q1="x = 1\n" * 200_000,
                                           q5="word " * 100_000))
    assert len(sources(shown)) < 3 * clean.LONG_CELL
    assert "[cut here" in cell(shown, "q1-forward").source


def test_a_file_changed_after_grading_is_not_shown(course):
    row = course.hand_in("ada", course.answered())
    course.files["ada"] = nbformat.writes(course.answered(q5="Late!")
                                          ).encode()
    assert "not the one that was graded" in course.put(row).problems[0]
    assert "Late!" not in sources(course.shown("ada"))


def test_a_mark_scheme_stays_with_the_teacher(tmp_path):
    nb, path = master_notebook(), tmp_path / "a9-small.ipynb"
    task = meta("q7", points=3)
    task["nbgrader"] |= {"task": True, "locked": True}
    nb.cells.append(new_markdown_cell(
        "Plot it.\n" + region("MARK SCHEME", "SCHEME-LINE"), metadata=task))
    nbformat.write(nb, path)
    given = handin.handout(path)
    assert "SCHEME-LINE" not in sources(given.student)
    assert "SCHEME-LINE" not in sources(given.release)
    assert "Plot it." in cell(given.release, "q7").source
    assert "SCHEME-LINE" in handin.marking_guide(path)
