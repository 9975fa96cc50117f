"""Rows into nbgrader's grade book, feedback pages, grades for platforms."""

import csv
import hashlib
import html.parser
import http.cookiejar
import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import pytest
from nbconvert.filters.markdown_mistune import markdown2html_mistune
from nbformat.v4 import (
    new_code_cell,
    new_markdown_cell,
    new_notebook,
    new_output,
)
from nbgrader.api import Gradebook
from nbgrader.converters import GenerateAssignment
from nbgrader.coursedir import CourseDirectory
from sqlalchemy.exc import OperationalError

from coursework import gradebook as gb

HOUSE = Path(__file__).resolve().parents[1]
NAME = "a9-small"
SECRETS = ["SOLUTION-ONE", "SOLUTION-TWO", "HIDDEN-VALUE-31415",
           "hidden message that tells it all", "MODEL-ANSWER", "RUBRIC-LINE",
           "HIDDEN-STATS-27182"]
POINTS = {"q1-shapes": 2, "q1-large": 3, "q2-mean": 1, "q2-hidden": 4}


def meta(name, grade=False, solution=False, points=None):
    """nbgrader's metadata, schema 3."""
    made = {"grade_id": name, "grade": grade, "solution": solution,
            "locked": not solution, "task": False, "schema_version": 3}
    return {"nbgrader": made | ({"points": points} if points else {})}


def region(what, *lines):
    return "\n".join([f"### BEGIN {what}", *lines, f"### END {what}"])


def master_notebook():
    """A master as nbgrader's own editor makes it."""
    def code(source, **about):
        return new_code_cell(source, metadata=meta(**about))

    def text(source, **about):
        return new_markdown_cell(
            source, metadata=meta(grade=True, solution=True, **about))

    cells = [
        new_markdown_cell("# Assignment 9\n\nThe mean is $\\mu$."),
        code("import numpy as np", name="given"),
        code("def forward(x):\n    " + region(
            "SOLUTION", "    y = x - 1  # SOLUTION-ONE",
            "    return y").replace("\n###", "\n    ###"),
            name="q1-forward", solution=True),
        code("# shapes agree\nassert forward(np.ones(3)).shape == (3,)",
             name="q1-shapes", grade=True, points=2),
        code("# large means, in float32\n" + region(
            "HIDDEN TESTS", "x = np.float32([HIDDEN_VALUE])",
            "assert forward(x) == 'HIDDEN-VALUE-31415', (",
            "    'hidden message that tells it all')"),
            name="q1-large", grade=True, points=3),
        new_markdown_cell("## Question 2"),
        code("def stats(x):\n    " + region(
            "SOLUTION", "    return x.mean()  # SOLUTION-TWO").replace(
                "\n###", "\n    ###"), name="q2-stats", solution=True),
        code("# the mean\nassert stats(np.ones(2)) == 1", name="q2-mean",
             grade=True, points=1),
        code("# more of it\n" + region(
            "HIDDEN TESTS", "assert stats(np.zeros(9)) == "
            "'HIDDEN-STATS-27182'"), name="q2-hidden", grade=True, points=4),
        new_markdown_cell("## Question 5\n\nWhy is $\\sigma^2$ biased?"),
        text(region("SOLUTION", "MODEL-ANSWER: it uses the mean.", "",
                    "**Rubric.** RUBRIC-LINE 2 points for the reason."),
             name="q5", points=5),
        new_markdown_cell("## Question 6"),
        text(region("SOLUTION", "MODEL-ANSWER again"), name="q6", points=2),
    ]
    return new_notebook(cells=cells, metadata={"kernelspec": {
        "name": "python3", "language": "python", "display_name": "Python"}})


@pytest.fixture(scope="module")
def blank_book(tmp_path_factory):
    """An empty grade book; nbgrader takes seconds to make one."""
    course = tmp_path_factory.mktemp("blank")
    with gb.open_book(gb.course_directory(course), make=True):
        pass
    return course / "gradebook.db"


class Course:
    """A course folder, its master, and what students handed in."""

    def __init__(self, folder, blank):
        self.path, self.master = folder / "course", folder / f"{NAME}.ipynb"
        self.path.mkdir()
        shutil.copy(blank, self.path)
        nbformat.write(master_notebook(), self.master)
        self.given = gb.handout(self.master)
        self.files = {}

    def blank(self):
        """The notebook that a student starts from."""
        return nbformat.from_dict(json.loads(json.dumps(self.given.public)))

    def answered(self, q1="def forward(x):\n    return x - x.mean()",
                 q5="Because of *m*."):
        """A student's notebook."""
        nb = self.blank()
        cell(nb, "q1-forward").source = q1
        cell(nb, "q2-stats").source = "def stats(x):\n    return sum(x) / 2"
        cell(nb, "q5").source = q5
        cell(nb, "q6").source = "Six."
        return nb

    def hand_in(self, student, nb, **about):
        """Keep a file and return a row for it."""
        data = nb if isinstance(nb, bytes) else nbformat.writes(nb).encode()
        self.files[student] = data
        return self.row(student, sha256=hashlib.sha256(data).hexdigest(),
                        **about)

    def row(self, student, status="graded", lost=(), **about):
        """A row as the grader writes it."""
        tests = {k: {"score": 0.0 if k in lost else float(p),
                     "max": float(p), "hidden": "large" in k or "hidden" in k,
                     "note": "off by 31415" if k in lost else ""}
                 for k, p in POINTS.items()} if status == "graded" else {}
        return {"student": student, "file": f"{student}.ipynb",
                "assignment": NAME, "status": status, "max": 10.0,
                "score": sum(t["score"] for t in tests.values())
                if tests else None, "questions": {}, "tests": tests,
                "manual": {"q5": 5.0, "q6": 2.0}, "notes": [],
                "reason": "" if tests else "the file is empty",
                "late": False, "sha256": None, "seconds": 0.1,
                "master": self.given.digest} | about

    def put(self, *rows):
        """Import rows."""
        return gb.import_rows(self.path, self.master, rows, self.files)

    def book(self):
        return Gradebook(f"sqlite:///{self.path}/gradebook.db")

    def grades(self, student):
        """{cell: (automatic, by hand, extra credit, needs a person)}."""
        with self.book() as book:
            nb = book.find_submission_notebook(NAME, NAME, student)
            return {g.name: (g.auto_score, g.manual_score, g.extra_credit,
                             g.needs_manual_grade) for g in nb.grades}

    def mark(self, student, name, score=None, extra=None, comment=None):
        """Give a mark as formgrader does."""
        with self.book() as book:
            grade = book.find_grade(name, NAME, NAME, student)
            grade.manual_score, grade.extra_credit = score, extra
            grade.needs_manual_grade = (score is None
                                        and grade.auto_score is None)
            if comment:
                book.find_comment(name, NAME, NAME,
                                  student).manual_comment = comment
            book.db.commit()

    def shown(self, student):
        """The notebook that formgrader shows."""
        return nbformat.read(self.path / "autograded" / student / NAME
                             / f"{NAME}.ipynb", as_version=4)

    def dump(self):
        """All that is kept: the data base and the files."""
        with sqlite3.connect(self.path / "gradebook.db") as db:
            rows = list(db.iterdump())
        return rows, {p: p.read_bytes() for p in self.path.rglob("*")
                      if p.is_file() and not p.name.startswith("gradebook")}


@pytest.fixture
def course(tmp_path, blank_book):
    return Course(tmp_path, blank_book)


def cell(nb, name):
    """A notebook's cell by its nbgrader id."""
    return next(c for c in nb.cells if gb.grade_id(c) == name)


def sources(nb):
    return "\n".join(c.source for c in nb.cells)


# What is in the book


def test_scores_arrive_by_id(course):
    row = course.hand_in("ada", course.answered(), lost=["q2-mean"])
    row["tests"]["q1-large"]["score"] = 1.5
    assert course.put(row).problems == []
    assert course.grades("ada") == {
        "q1-shapes": (2, None, None, False),
        "q1-large": (1.5, None, None, False),
        "q2-mean": (0, None, None, False),
        "q2-hidden": (4, None, None, False),
        "q5": (None, None, None, True), "q6": (None, None, None, True)}
    with course.book() as book:
        assignment = book.find_assignment(NAME)
        submission = book.find_submission(NAME, "ada")
        assert (assignment.max_score, assignment.max_written_score,
                submission.score) == (17, 7, 7.5)
        source = book.find_source_cell("q1-large", NAME, NAME)
        assert "HIDDEN-VALUE" in source.source and source.locked


def test_the_notebook_holds_answers_and_results(course):
    row = course.hand_in("ada", course.answered(),
                         lost=["q1-shapes", "q1-large"])
    course.put(row)
    nb = course.shown("ada")
    nbformat.validate(nb)
    assert "x - x.mean()" in cell(nb, "q1-forward").source
    assert cell(nb, "q5").source == "Because of *m*."
    outputs = {k: cell(nb, k).outputs[0].text for k in POINTS}
    assert outputs == {
        "q1-shapes": "0 of 2 points: off by 31415\n",
        "q1-large": "failed: 0 of 3 points\n",
        "q2-mean": "1 of 1 points\n", "q2-hidden": "passed: 4 of 4 points\n"}
    assert "assert forward" in cell(nb, "q1-shapes").source
    assert cell(nb, "q1-large").source == "# large means, in float32"


def test_grading_again_keeps_what_people_gave(course):
    row = course.hand_in("ada", course.answered(), lost=["q2-mean"])
    course.put(row)
    course.mark("ada", "q5", 4, comment="Nearly.")
    course.mark("ada", "q6", 2)
    course.mark("ada", "q2-mean", 0.5, extra=1)
    with course.book() as book:
        nb = book.find_submission_notebook(NAME, NAME, "ada")
        nb.late_submission_penalty, nb.flagged = 0.25, True
        book.db.commit()
    assert course.put(row).review == []
    again = course.hand_in("ada", course.answered(q5="Another text."))
    assert sorted(course.put(again).review) == ["ada: q2-mean", "ada: q5"]
    grades = course.grades("ada")
    assert grades["q5"] == (None, 4, None, True)
    assert grades["q6"] == (None, 2, None, False)
    assert grades["q2-mean"] == (1, 0.5, 1, True)
    with course.book() as book:
        nb = book.find_submission_notebook(NAME, NAME, "ada")
        assert (nb.late_submission_penalty, nb.flagged) == (0.25, True)
        assert book.find_comment("q5", NAME, NAME,
                                 "ada").manual_comment == "Nearly."


@pytest.mark.parametrize("status", ["refused", "error"])
def test_what_was_not_graded_is_no_zero(course, tmp_path, status):
    course.put(course.row("bob", status=status))
    assert set(course.grades("bob").values()) == {(None, None, None, True)}
    nb = course.shown("bob")
    assert "the file is empty" in nb.cells[0].source
    assert gb.WHY[status] in nb.cells[0].source
    assert cell(nb, "q1-shapes").outputs[0].text == "not graded\n"
    report = gb.export(course.path, NAME, "csv", tmp_path / "out.csv",
                       partial=True)
    assert report.grades == {} and "the file is empty" in report.empty["bob"]
    page = gb.feedback(course.path, NAME)[0].path.read_text()
    assert "Score: not marked yet / 17.0" in page
    assert "Score: 0" not in page
    for name in [*POINTS, "q5", "q6"]:
        course.mark("bob", name, 1)
    report = gb.export(course.path, NAME, "csv", tmp_path / "out.csv")
    assert report.grades == {"bob": 6} and report.missing == 0
    course.put(course.row("bob", status=status))
    assert course.grades("bob")["q5"] == (None, 1, None, False)


def test_a_failing_grader_takes_no_score_away(course):
    row = course.hand_in("ada", course.answered())
    course.put(row)
    course.put(course.row("ada", status="error", sha256=row["sha256"]))
    assert course.grades("ada")["q1-large"] == (3, None, None, True)
    course.put(course.row("ada", status="refused", sha256="0" * 64))
    assert course.grades("ada")["q1-large"] == (None, None, None, True)


def test_no_response_is_said(course):
    nb = course.answered()
    cell(nb, "q6").source = cell(course.blank(), "q6").source
    course.put(course.hand_in("ada", nb))
    with course.book() as book:
        comments = {c.name: c.comment for c in book.find_submission_notebook(
            NAME, NAME, "ada").comments}
    assert comments["q6"] == "No response." and comments["q5"] is None


KILLED = """
import os, sys
from coursework import gradebook
def kill(*_):
    os.kill(os.getpid(), 9)
setattr(gradebook, sys.argv[1], kill)
rows = gradebook.read_rows(sys.argv[4])
gradebook.import_rows(sys.argv[2], sys.argv[3], rows, {})
"""


def test_a_kill_leaves_the_old_state(course, tmp_path):
    course.put(course.hand_in("ada", course.answered(), lost=["q2-mean"]))
    before = course.dump()
    rows = [course.row("ada", status="error"), course.row("new")]
    (tmp_path / "results.jsonl").write_text(
        "".join(json.dumps(r) + "\n" for r in rows))
    run = subprocess.run(
        [sys.executable, "-c", KILLED, "stage_master", course.path,
         course.master, tmp_path], cwd=HOUSE, capture_output=True)
    assert run.returncode == -9, run.stderr
    database, files = course.dump()
    assert database == before[0]
    assert {p: b for p, b in files.items() if p.suffix != ".tmp"} == before[1]
    report = course.put(*rows)
    assert report.imported == 2
    assert course.grades("ada")["q1-large"][0] is None


@pytest.mark.parametrize("change, words", [
    (lambda r: r.update(assignment="other"), "not of 'a9-small'"),
    (lambda r: r["tests"].pop("q2-mean"), "other tests or points"),
    (lambda r: r["tests"]["q2-mean"].update(score=2.0), "valid score"),
    (lambda r: r["tests"]["q2-mean"].update(score=float("nan")), "valid"),
    (lambda r: r.update(status="done"), "status 'done'"),
    (lambda r: r.update(student=None), "has no student")])
def test_rows_of_another_master_change_nothing(course, change, words):
    course.put(course.row("ada", status="error"))
    before, bad = course.dump(), course.row("bob")
    change(bad)
    with pytest.raises(ValueError, match=words):
        course.put(course.row("ada"), bad)
    assert course.dump() == before


def test_a_student_twice_is_refused(course):
    with pytest.raises(ValueError, match="more than one of ada"):
        course.put(course.row("ada"), course.row("ada"))


@pytest.mark.parametrize("student", [
    "../../evil", "a/b", "", ".hidden", "<b>x</b>", 'a"b', "x*", "a\\nb",
    "{0}", "a" * 300, "a "])
def test_a_name_that_is_no_folder_stops_nobody(course, tmp_path, student):
    report = course.put(course.row(student, status="error"),
                        course.row("Zoë O'Brien, B_12", status="error"))
    assert report.imported == 1 and "nbgrader can't use" in report.problems[0]
    assert not list(tmp_path.rglob("*evil*"))
    assert [p.problem for p in gb.feedback(course.path, NAME)] == [""]


def test_a_changed_master_keeps_marks(course):
    course.put(course.hand_in("ada", course.answered()))
    course.mark("ada", "q2-mean", 1)
    nb = master_notebook()
    cell(nb, "q2-hidden").metadata.nbgrader.grade_id = "q2-new"
    nbformat.write(nb, course.master)
    row = course.row("ada")
    row["tests"]["q2-new"] = row["tests"].pop("q2-hidden")
    assert "another version" in course.put(row).problems[0]
    assert course.grades("ada")["q2-new"][0] == 4
    assert course.grades("ada")["q2-mean"][1] == 1
    cell(nb, "q2-mean").metadata.nbgrader.grade_id = "q2-other"
    nbformat.write(nb, course.master)
    row["tests"]["q2-other"] = row["tests"].pop("q2-mean")
    with pytest.raises(ValueError, match="marks or comments were given"):
        course.put(row)
    assert course.grades("ada")["q2-mean"][1] == 1


def test_nbgrader_itself_goes_on_with_the_course(course, tmp_path):
    course.put(course.hand_in("ada", course.answered(), lost=["q2-mean"]))
    course.mark("ada", "q5", 4)
    out = tmp_path / "grades.csv"
    run = subprocess.run(
        [sys.executable, "-m", "nbgrader", "export", f"--to={out}"],
        cwd=course.path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    line, = csv.DictReader(out.open())
    assert (line["student_id"], line["score"], line["max_score"]) == (
        "ada", "13.0", "17.0")
    before = course.grades("ada")
    directory = CourseDirectory(root=str(course.path), assignment_id=NAME)
    GenerateAssignment(coursedir=directory, force=True).start()
    assert course.grades("ada") == before
    made = nbformat.read(course.path / "release" / NAME / f"{NAME}.ipynb", 4)
    assert [c.source for c in made.cells] == [
        c.source for c in course.given.public.cells]


# Where answers are found


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
        assert source.startswith(gb.ALL_TEXT)
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
    assert "can't be read" not in course.shown("bob").cells[0].source
    assert "not a notebook" in course.shown("ada").cells[0].source
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
    assert len(sources(shown)) < 3 * gb.LONG_CELL
    assert "[cut here" in cell(shown, "q1-forward").source


def test_a_book_in_use_is_said(course):
    course.put(course.row("ada", status="error"))
    other = sqlite3.connect(course.path / "gradebook.db")
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(ValueError, match="in use"):
        course.put(course.row("bob", status="error"))
    other.rollback()
    other.close()
    assert course.put(course.row("bob", status="error")).imported == 1


def test_a_file_changed_after_grading_is_not_shown(course):
    row = course.hand_in("ada", course.answered())
    course.files["ada"] = nbformat.writes(course.answered(q5="Late!")
                                          ).encode()
    assert "not the one that was graded" in course.put(row).problems[0]
    assert "Late!" not in sources(course.shown("ada"))


def test_a_link_is_not_followed(course, tmp_path):
    row = course.hand_in("ada", course.answered())
    (tmp_path / "link.ipynb").symlink_to(course.master)
    course.files["ada"] = tmp_path / "link.ipynb"
    row["sha256"] = None
    assert "no plain file" in course.put(row).problems[0].replace(
        "not a plain", "no plain")


# Nothing that a student writes acts

ATTACKS = [
    "<script>window.pwned = 1</script>",
    "<img src=x onerror='window.pwned = 1'>",
    "<ImG sRc=http://tracker.example/p.png>",
    "<svg onload=window.pwned=1>", "<svg><script>window.pwned=1</script>",
    "<iframe src='javascript:parent.pwned=1'></iframe>",
    "<iframe srcdoc='<script>parent.pwned=1</script>'></iframe>",
    "[click](javascript:window.pwned=1)", "<javascript:window.pwned=1>",
    "[click][a]\n\n[a]: javascript:window.pwned=1",
    "[click](JaVaScRiPt&colon;window.pwned=1)",
    "[x](data:text/html;base64,PHNjcmlwdD5wd25lZD0xPC9zY3JpcHQ+)",
    "![t](http://tracker.example/p.png)",
    "![t][r]\n\n[r]: http://tracker.example/p.png",
    "[![t](http://tracker.example/p.png)](http://x.example)",
    "```mermaid\n<img src=x onerror=window.pwned=1>\n```",
    "~~~~mermaid\n</pre><script>window.pwned=1</script>\n~~~~",
    "$\\href{javascript:window.pwned=1}{x}$",
    "\\begin{align}\\href{javascript:window.pwned=1}{x}\\end{align}",
    "$$\\unicode<img src=x onerror=window.pwned=1>$$",
    "\\(\\href{javascript:window.pwned=1}{x}\\)",
    "$\\style{background:url(http://tracker.example)}{x}$",
    "$\\class{navbar-fixed-top}{x}$ $\\require{bbox}$",
    "$\\def\\x{\\href{javascript:window.pwned=1}{y}}\\x$",
    "$x$ <b onclick=window.pwned=1>y</b> $z$",
    "$5 and <script>window.pwned=1</script> $6",
    "`` ` <script>window.pwned=1</script>", 
    "` <b>\n\n<script>window.pwned=1</script>",
    "</div></div></body><script>window.pwned=1</script>",
    "<!-- --><script>window.pwned=1</script>",
    "<style>*{display:none}</style>",
    "<a href='http://x.example' onmouseover=window.pwned=1>x</a>",
    "<details open ontoggle=window.pwned=1>x</details>",
    "<math><mtext><img src=x onerror=window.pwned=1></mtext></math>",
    "<form action=http://tracker.example><input autofocus onfocus=pwned=1>",
    "<link rel=stylesheet href=http://tracker.example/a.css>",
    "<meta http-equiv=refresh content='0;url=http://tracker.example'>",
    "| a |\n|---|\n| <img src=x onerror=window.pwned=1> |",
    "# head <img src=x onerror=window.pwned=1>",
    "x\n: <img src=x onerror=window.pwned=1>",
    "{{ 7*7 }}{% raw %}<script>window.pwned=1</script>",
    "![$\\text{\" onerror=\"window.pwned=1}$](x.png)"]
QUIET = {"p", "em", "strong", "code", "pre", "span", "div", "a", "h1", "ul",
         "ol", "li", "table", "thead", "tbody", "tr", "th", "td", "dl", "dt",
         "dd", "del", "br", "hr", "blockquote"}


class Tags(html.parser.HTMLParser):
    """Collects a page's tags and attributes."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes = set(), set()
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= set(attrs)


@pytest.mark.parametrize("attack", ATTACKS)
def test_markdown_does_nothing_where_nbgrader_renders_it(attack):
    page = markdown2html_mistune(gb.safe_markdown(f"Hello. {attack}\n\nEnd."))
    seen = Tags(page)
    assert seen.tags <= QUIET
    for name, value in seen.attributes:
        assert name in ("class", "id", "href")
        assert name != "href" or value.startswith(("http", "#"))
    outside = re.sub(r"(?s)<(pre|code)\b.*?</\1>", "", page)
    assert not re.search(r"\\(href|style|class|require|unicode|def)\b",
                         outside)
    assert "Hello." in page and "End." in page


@pytest.mark.parametrize("text", [
    "A *b* and **c**, `x < y`, $a < b$ and $$\\frac{1}{m}\\sum_i x_i$$",
    "1. one\n2. two\n\n> quoted\n\n```python\nif a < b: pass\n```",
    "| a | b |\n|---|---|\n| 1 | 2 |", "See http://example.org/a.",
    "\\begin{align} a &= b \\end{align}"])
def test_honest_markdown_stays_as_it_is(text):
    assert gb.safe_markdown(text) == text


def test_long_or_hard_text_is_quick():
    start = time.monotonic()
    for text in ("[" * 50_000, "`a``b" * 2000, "\\\\[" * 3000, "$" * 9999,
                 "> " * 4999, "a " * 4000 + " " * 1000, "**a_" * 2499):
        assert gb.safe_markdown(text)
    assert time.monotonic() - start < 20


def attacked(course):
    """A course whose students wrote all attacks into everything."""
    rows = []
    for i, (one, two) in enumerate(zip(ATTACKS[::2], ATTACKS[1::2])):
        nb = course.answered(q1=f"def forward(x):\n    return '''{one}'''",
                             q5=f"Hello {one}\n\nEnd.")
        cell(nb, "q6").source = f"Hello {two}\n\nEnd."
        nb.cells.insert(1, new_markdown_cell(f"Other {one}"))
        rows.append(course.hand_in(f"s{i:02}", nb, lost=["q1-shapes"],
                                   notes=[f"cell 3: {two}"]))
        rows[-1]["tests"]["q1-shapes"]["note"] = two
    rows.append(course.row("refused", status="refused",
                           reason=" ".join(ATTACKS)))
    course.put(*rows)


def test_no_browser_does_anything_with_feedback(course, request):
    attacked(course)
    pages = gb.feedback(course.path, NAME)
    assert len(pages) == len(ATTACKS) // 2 + 1
    assert not any(p.problem for p in pages)
    for page in pages:
        text = page.path.read_text()
        seen = Tags(text)
        assert not seen.tags & {"script", "iframe", "svg", "img", "form",
                                "link", "object", "embed", "base"}
        for name, value in seen.attributes:
            assert not name.startswith("on")
            assert name != "href" or value.startswith(("#", "http"))
    page = request.getfixturevalue("page")
    asked = []
    page.on("request", lambda r: asked.append(r.url))
    page.on("dialog", lambda d: pytest.fail("a dialog opened"))
    for made in pages:
        page.goto(made.path.as_uri())
        assert page.evaluate("window.pwned") is None
    assert {u.split(":")[0] for u in asked} == {"file"}


# Feedback


def many(course, number=12):
    """A course of twelve; one file can't be read."""
    rows = [course.hand_in(f"s{i:02}", course.answered(),
                           lost=["q1-large", "q2-hidden"])
            for i in range(number - 1)]
    for row in rows:
        for test in row["tests"].values():
            test["note"] = "hidden message that tells it all"
        row["tests"]["q1-shapes"]["note"] = ""
        row["tests"]["q2-mean"]["note"] = ""
    course.put(*rows, course.row("unreadable", status="refused"))


def test_everybody_gets_a_page_without_secrets(course):
    many(course)
    course.mark("s00", "q5", 4, comment="Well **done**. $x^2$ <script>x"
                "</script> ![t](http://tracker.example/t.png)")
    pages = gb.feedback(course.path, NAME)
    assert [p.student for p in pages] == [
        *(f"s{i:02}" for i in range(11)), "unreadable"]
    assert all(p.path and not p.problem for p in pages)
    for page in pages:
        text = page.path.read_text()
        assert page.path == (course.path / "feedback" / page.student / NAME
                             / f"{NAME}.html")
        assert not [s for s in SECRETS if s in text]
        assert not re.search(r"(?:src|href)=.?(?:https?:)?//", text)
        assert "url(http" not in text and "<script" not in text
    first = pages[0].path.read_text()
    assert "Well <strong>done</strong>" in first
    assert "Score: 4.0 / 5.0" in first and "&lt;script&gt;" in first
    assert "7 so far" in first
    assert "failed: 0 of 3 points" in first
    assert list(course.path.glob(".feedback*")) == []


@pytest.mark.skipif(not gb.KATEX.is_file() or not gb.find_node(),
                    reason="KaTeX is not set up here: make book")
def test_formulas_are_shown_without_scripts(course):
    course.put(course.hand_in("ada", course.answered(
        q5="So $\\frac{1}{m}$, $\\href{javascript:x}{y}$, $\\undefinedhere$")))
    text = gb.feedback(course.path, NAME)[0].path.read_text()
    assert "<mfrac><mn>1</mn><mi>m</mi></mfrac>" in text
    assert "<mi>σ</mi>" in text
    assert "<code>$\\undefinedhere$</code>" in text
    assert 'href="javascript' not in text
    made, = gb.Formulas().html([("\\href{javascript:x}{y}", False)])
    assert "href=" not in made and "<math" in made


def test_without_katex_formulas_stay_text(course, monkeypatch):
    monkeypatch.setattr(gb, "KATEX", Path("/nowhere"))
    monkeypatch.setattr(gb.FeedbackPage, "formulas", gb.Formulas())
    monkeypatch.setattr(gb.FeedbackPage, "rendered", {})
    course.put(course.hand_in("ada", course.answered(q5="So $a<b$.")))
    text = gb.feedback(course.path, NAME)[0].path.read_text()
    assert "So <code>$a&lt;b$</code>." in text


def test_one_bad_notebook_stops_nobody(course):
    many(course)
    folder = course.path / "autograded"
    (folder / f"s03/{NAME}/{NAME}.ipynb").write_text("{ not json")
    (folder / f"s04/{NAME}/{NAME}.ipynb").unlink()
    nb = course.shown("s05")
    cell(nb, "q5").source = "![x](attachment:missing.png)"
    nbformat.write(nb, folder / f"s05/{NAME}/{NAME}.ipynb")
    nb = course.shown("s06")
    nb.cells = nb.cells[:2]
    nbformat.write(nb, folder / f"s06/{NAME}/{NAME}.ipynb")
    pages = {p.student: p for p in gb.feedback(course.path, NAME)}
    assert len(pages) == 12 and all(p.path for p in pages.values())
    assert [s for s, p in pages.items() if p.problem] == [
        "s03", "s04", "s05", "s06"]
    for student in ("s03", "s04", "s05", "s06"):
        text = pages[student].path.read_text()
        assert "could not be read" in text
        assert "2 of 2 points" in text


def test_an_end_of_nbgrader_s_batch_stops_nobody(course, monkeypatch):
    many(course, 4)
    whole, ended = gb.Marks.preprocess, []

    def preprocess(self, nb, resources):
        if resources["nbgrader"]["student"] == "s01" and not ended:
            ended.append(True)
            raise OperationalError("SELECT", {}, Exception("disk"))
        return whole(self, nb, resources)

    monkeypatch.setattr(gb.Marks, "preprocess", preprocess)
    pages = gb.feedback(course.path, NAME)
    assert ended and all(p.path and not p.problem for p in pages)
    assert "Because of" in pages[1].path.read_text()


def test_a_leak_is_held_back(course):
    many(course, 3)
    gb.feedback(course.path, NAME)
    path = course.path / "autograded" / "s00" / NAME / f"{NAME}.ipynb"
    nb = course.shown("s00")
    cell(nb, "q1-large").source += "\nx = np.float32([HIDDEN_VALUE])"
    nbformat.write(nb, path)
    nb = course.shown("s01")
    cell(nb, "q1-large").outputs[0].text = "hidden message that tells it all"
    nbformat.write(nb, course.path / f"autograded/s01/{NAME}/{NAME}.ipynb")
    pages = gb.feedback(course.path, NAME)
    assert [bool(p.path) for p in pages] == [False, False, True]
    assert all("held back" in p.problem for p in pages[:2])
    assert not (course.path / f"feedback/s00/{NAME}/{NAME}.html").exists()


def test_a_student_may_have_written_the_master_s_answer(course):
    mine = "def forward(x):\n    y = x - 1  # SOLUTION-ONE\n    return y"
    course.put(course.hand_in("ada", course.answered(q1=mine)))
    page, = gb.feedback(course.path, NAME)
    assert page.path and "SOLUTION-ONE" in page.path.read_text()


def test_a_notebook_older_than_the_scores_is_not_shown(course):
    course.put(course.hand_in("ada", course.answered()))
    old = course.shown("ada")
    course.put(course.hand_in("ada", course.answered(q5="New.")))
    nbformat.write(old, course.path / f"autograded/ada/{NAME}/{NAME}.ipynb")
    page, = gb.feedback(course.path, NAME)
    assert "import again" in page.problem


# Grades for platforms


def marked(course):
    """Five students: done, with a mark missing, refused, and two whose
    names are formulas or not in the roster."""
    rows = [course.hand_in(s, course.answered()) for s in (
        "ada", "bob", "=cmd|calc!A1", "lovelacegrace_77")]
    report = course.put(*rows[:2], rows[3],
                        course.row("cyd", status="refused"),
                        course.row("nobody", status="error"))
    assert report.imported == 5
    for student in ("ada", "lovelacegrace_77"):
        course.mark(student, "q5", 4.5, comment="Good: <b>yes</b>")
        course.mark(student, "q6", 2)
    course.mark("bob", "q5", 1)


CANVAS = """\ufeffStudent,ID,SIS User ID,SIS Login ID,Section,Other (1),\
a9-small (4711),Final Score
,,,,,,Manual Posting,
    Points Possible,,,,,5,20,(read only)
"Lovelace, Ada",11,u11,ADA,S1,3,,1
"=SUM(A1)",12,u12,bob@school.example,S1,3,9,1
"Café, Cyd",13,cyd,u13@x.example,S1,3,8,1
"Lovelace, Grace",77,u77,grace,S1,3,EX,1
"Nothing, Ned",15,u15,ned,S1,3,,1
"Student, Test",99,,,S1,3,,1
"""


def read_csv(path, encoding="utf-8", **options):
    with path.open(encoding=encoding, newline="") as file:
        return list(csv.reader(file, **options))


def test_canvas(course, tmp_path):
    marked(course)
    roster, out = tmp_path / "canvas.csv", tmp_path / "out.csv"
    roster.write_text(CANVAS, encoding="utf-8")
    report = gb.export(course.path, NAME, "canvas", out, roster)
    assert out.read_bytes().startswith(b"\xef\xbb\xbfStudent,ID")
    header, possible, *rows = read_csv(out, "utf-8-sig")
    assert header == ["Student", "ID", "SIS User ID", "SIS Login ID",
                      "Section", "a9-small (4711)"]
    assert possible == ["    Points Possible", "", "", "", "", "20"]
    assert rows == [
        ["Lovelace, Ada", "11", "u11", "ADA", "S1", "16.5"],
        ["'=SUM(A1)", "12", "u12", "bob@school.example", "S1", ""],
        ["Café, Cyd", "13", "cyd", "u13@x.example", "S1", ""],
        ["Lovelace, Grace", "77", "u77", "grace", "S1", "EX"]]
    assert report.grades == {"ada": 16.5}
    assert set(report.empty) == {"bob", "cyd", "nobody"}
    assert report.unknown == ["nobody"]
    assert report.absent == ["Nothing, Ned"]
    words = report.text()
    assert "20 points for a9-small (4711), here it is 17" in words
    assert "bob has 9 in Canvas" in words and "is EX in Canvas" in words
    partial = gb.export(course.path, NAME, "canvas", out, roster,
                        partial=True)
    assert partial.grades["bob"] == 11
    assert "cyd" in partial.empty


def test_canvas_without_the_assignment(course, tmp_path):
    marked(course)
    roster, out = tmp_path / "canvas.csv", tmp_path / "out.csv"
    roster.write_text(CANVAS.replace("a9-small (4711)", "Ninth (4711)"))
    report = gb.export(course.path, NAME, "canvas", out, roster)
    assert "will offer to make one" in report.text()
    assert read_csv(out, "utf-8-sig")[0][-1] == NAME
    gb.export(course.path, NAME, "canvas", out, roster, column="Ninth")
    assert read_csv(out, "utf-8-sig")[0][-1] == "Ninth (4711)"
    with pytest.raises(ValueError, match="Other \\(1\\)"):
        gb.export(course.path, NAME, "canvas", out, roster, column="Tenth")


def test_a_number_of_another_person_is_no_match(course, tmp_path):
    course.put(course.row("meitnerlise_77", status="error"))
    roster = tmp_path / "canvas.csv"
    roster.write_text(CANVAS)
    report = gb.export(course.path, NAME, "canvas", tmp_path / "o.csv",
                       roster)
    assert report.unknown == ["meitnerlise_77"]


def test_two_candidates_are_no_match(course, tmp_path):
    course.put(course.row("u11", status="error"),
               course.row("u12", status="error"),
               course.row("12", status="error"))
    roster, out = tmp_path / "canvas.csv", tmp_path / "o.csv"
    roster.write_text(CANVAS.replace("cyd,", "u11,"))
    report = gb.export(course.path, NAME, "canvas", out, roster)
    assert sorted(report.unknown) == ["12", "u11", "u12"]
    assert "fits 2 lines" in report.text()
    assert "fit the same line" in report.text()
    assert len(read_csv(out, "utf-8-sig")) == 2


MOODLE = """Identifier,Full name,Email address,Status,Grade,Maximum Grade,\
Grade can be changed,Last modified (submission),Last modified (grade),\
Feedback comments
Participant 501,Ada Lovelace,ada@school.example,Submitted,,17.00,Yes,-,-,
Participant 502,Bob B,BOB,Submitted,3.00,17.00,Yes,-,-,
Participant 77,Grace Lovelace,g@school.example,Submitted,,17.00,Yes,-,-,mine
Participant 503,Cyd Café,cyd,Submitted,,17.00,Yes,-,-,
Participant 504,Ned Nothing,ned,No submission,,17.00,Yes,-,-,
"""


def test_moodle(course, tmp_path):
    marked(course)
    roster, out = tmp_path / "moodle.csv", tmp_path / "out.csv"
    roster.write_text(MOODLE, encoding="utf-8")
    report = gb.export(course.path, NAME, "moodle", out, roster)
    rows = read_csv(out)
    assert rows[0] == read_csv(roster)[0]
    lines = {r[0]: r for r in rows[1:]}
    assert {k: r[4] for k, r in lines.items()} == {
        "Participant 501": "16.5", "Participant 502": "",
        "Participant 77": "16.5", "Participant 503": "",
        "Participant 504": ""}
    assert lines["Participant 501"][9] == (
        "[a9-small] Automatic: 10, by hand: 6.5.<br>"
        "q5: Good: &lt;b&gt;yes&lt;/b&gt;")
    assert lines["Participant 77"][9] == "mine"
    assert report.absent == ["Ned Nothing"]
    assert report.unknown == ["nobody"]
    assert "was kept" in report.text()
    again = gb.export(course.path, NAME, "moodle", tmp_path / "2.csv", out)
    assert again.grades == report.grades
    assert (tmp_path / "2.csv").read_text() == out.read_text()
    roster.write_text(MOODLE.replace("17.00", "10.00"))
    words = gb.export(course.path, NAME, "moodle", out, roster).text()
    assert "maximum is 10, here it is 17" in words
    assert "ada has more than Moodle's maximum" in words


def test_plain_csv(course, tmp_path):
    marked(course)
    out = tmp_path / "out.csv"
    with course.book() as book:
        nb = book.find_submission_notebook(NAME, NAME, "ada")
        nb.late_submission_penalty = 1.5
        book.db.commit()
    report = gb.export(course.path, NAME, "csv", out)
    assert out.read_bytes().startswith(b"\xef\xbb\xbf")
    with out.open(encoding="utf-8-sig", newline="") as file:
        lines = {r["student"]: r for r in csv.DictReader(file)}
    ada, bob, cyd = lines["ada"], lines["bob"], lines["cyd"]
    assert [ada[k] for k in ("automatic", "by hand", "total", "max", "status",
                             "penalty")] == ["10", "6.5", "15", "17",
                                             "graded", "1.5"]
    assert ada["sha256"] == hashlib.sha256(course.files["ada"]).hexdigest()
    assert [bob[k] for k in ("automatic", "by hand", "total",
                             "marks missing")] == ["10", "1", "", "1"]
    assert [cyd[k] for k in ("automatic", "by hand", "total", "status")] == [
        "", "", "", "refused"]
    assert report.missing == 1
    assert "confirmed by hand: 1; these" in report.text()


@pytest.mark.parametrize("value, made", [
    ("=1+1", "'=1+1"), ("+1+1", "'+1+1"), ("-2", "-2"), ("-", "-"),
    ("@SUM(1)", "'@SUM(1)"), ("\t=1", "'\t=1"), (" =1", "' =1"),
    ("-2+3", "'-2+3"), ("12.5", "12.5"), ("Ada", "Ada"), (None, "")])
def test_formulas_are_no_formulas(value, made):
    assert gb.inert(value) == made


@pytest.mark.parametrize("to, text, words", [
    ("canvas", "Name,Grade\nx,1\n", "no Canvas export"),
    ("moodle", "Name,Grade\nx,1\n", "Moodle set to English"),
    ("canvas", "", "no header line"), ("canvas", None, "Grades > Export"),
    ("moodle", None, "grading worksheet"), ("blackboard", None, "allowed")])
def test_a_roster_of_another_kind(course, tmp_path, to, text, words):
    course.put(course.row("ada", status="error"))
    roster = None
    if text is not None:
        roster = tmp_path / "roster.csv"
        roster.write_text(text)
    with pytest.raises(ValueError, match=words):
        gb.export(course.path, NAME, to, tmp_path / "out.csv", roster)
    assert not (tmp_path / "out.csv").exists()


def test_semicolons_and_other_encodings(course, tmp_path):
    marked(course)
    roster, out = tmp_path / "canvas.csv", tmp_path / "out.csv"
    rows = read_csv_text(CANVAS.lstrip("\ufeff"))
    with roster.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=";").writerows(rows)
    gb.export(course.path, NAME, "canvas", out, roster)
    assert out.read_bytes().startswith(b"Student;ID")
    assert read_csv(out, delimiter=";")[2][-1] == "16.5"
    roster.write_bytes("Student,ID,Section\nCafé,1,2\n".encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8"):
        gb.export(course.path, NAME, "canvas", out, roster)


def read_csv_text(text):
    return list(csv.reader(text.splitlines()))


# For people: the guide, the command line, formgrader


def test_the_guide_for_markers(course):
    text = gb.marking_guide(course.master)
    assert "## q5 (5 points)" in text and "## q6 (2 points)" in text
    assert "> Why is $\\sigma^2$ biased?" in text
    assert "RUBRIC-LINE 2 points" in text and "MODEL-ANSWER again" in text
    assert "HIDDEN" not in text and "SOLUTION-ONE" not in text
    assert "BEGIN SOLUTION" not in text


def test_the_command_line(course, tmp_path, capsys):
    results, subs = tmp_path / "results", tmp_path / "subs"
    results.mkdir()
    (subs / "ada").mkdir(parents=True)
    nb = nbformat.writes(course.answered())
    (subs / "ada" / f"{NAME}.ipynb").write_text(nb)
    row = course.hand_in("ada", nb.encode())
    (results / "ada-1.json").write_text(json.dumps(row))
    args = [str(course.path), str(course.master), str(results), str(subs)]
    assert gb.main(["import", *args]) == 0
    assert "x - x.mean()" in sources(course.shown("ada"))
    assert gb.main(["feedback", str(course.path), NAME]) == 0
    assert gb.main(["export", str(course.path), NAME, "--to", "csv",
                    "--out", str(tmp_path / "o.csv")]) == 0
    assert gb.main(["guide", str(course.master), "--out",
                    str(tmp_path / "g.md")]) == 0
    assert "1 of 1 feedback pages" in capsys.readouterr().out
    assert (tmp_path / "g.md").read_text().startswith("# Marking guide")


@pytest.mark.parametrize("args, words", [
    (["feedback", "{course}", "a8"], "it has: a9-small"),
    (["feedback", "{tmp}/none", NAME], "there is no grade book"),
    (["import", "{course}", "{tmp}/no.py", "x", "y"], "no.py"),
    (["import", "{course}", "{master}", "{tmp}/no", "y"],
     "coursework.grade wrote"),
    (["export", "{course}", NAME, "--to", "canvas", "--out", "x"],
     "needs a roster")])
def test_the_command_line_says_what_is_wrong(course, tmp_path, capsys, args,
                                             words):
    course.put(course.row("ada", status="error"))
    args = [a.format(course=course.path, tmp=tmp_path, master=course.master)
            for a in args]
    assert gb.main(args) == 2
    assert words in capsys.readouterr().err


class Browser:
    """What a marker's browser does: cookies, and the token from them."""

    def __init__(self, address, token):
        self.address, self.jar = address, http.cookiejar.CookieJar()
        self.opener = urllib.request.build_opener(
            urllib.request.HTTPCookieProcessor(self.jar))
        self.get(f"/formgrader/manage_assignments?token={token}")

    def ask(self, path, method="GET", data=None):
        """Send a request; returns the answer's text."""
        headers = dict(("X-CSRFToken", c.value) for c in self.jar
                       if c.name == "_xsrf")
        request = urllib.request.Request(
            self.address + path, method=method, headers=headers,
            data=None if data is None else json.dumps(data).encode())
        with self.opener.open(request, timeout=20) as answer:
            return answer.read().decode()

    def get(self, path):
        return self.ask(path)

    def json(self, path):
        return json.loads(self.ask(path))


@pytest.fixture
def formgrader(course, tmp_path):
    """A Jupyter server with formgrader in the course's folder."""
    attacked(course)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = {k: str(tmp_path / k) for k in (
        "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR",
        "IPYTHONDIR", "HOME")}
    log = (tmp_path / "server.log").open("w")
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyter_server", "--allow-root",
         "--no-browser", "--ServerApp.ip=127.0.0.1",
         f"--ServerApp.port={port}", "--ServerApp.port_retries=0",
         "--IdentityProvider.token=secret", "--ServerApp.jpserver_extensions="
         "{'nbgrader.server_extensions.formgrader': True}"],
        cwd=course.path, env={**os.environ, **here}, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                yield Browser(address, "secret")
                break
            except (urllib.error.URLError, ConnectionError):
                assert server.poll() is None, (tmp_path
                                               / "server.log").read_text()
                time.sleep(0.1)
        else:
            pytest.fail((tmp_path / "server.log").read_text())
    finally:
        server.terminate()
        server.wait(20)
        log.close()


def test_formgrader_shows_and_takes_marks(course, formgrader, tmp_path,
                                          request):
    for path in ("manage_assignments", f"manage_submissions/{NAME}",
                 "gradebook", f"gradebook/{NAME}", f"gradebook/{NAME}/{NAME}",
                 "manage_students", f"manage_students/s00/{NAME}"):
        assert "nbgrader" in formgrader.get(f"/formgrader/{path}")
    api = "/formgrader/api"
    assignment, = formgrader.json(f"{api}/assignments")
    assert assignment["num_submissions"] == len(ATTACKS) // 2 + 1
    listed = formgrader.json(f"{api}/submissions/{NAME}")
    assert {s["student"]: s["autograded"] for s in listed} == {
        s: True for s in [*course.files, "refused"]}
    books = {b["student"]: b for b in formgrader.json(
        f"{api}/submitted_notebooks/{NAME}/{NAME}")}
    assert books["s00"]["needs_manual_grade"] and books["s00"]["score"] == 8
    one = books["s00"]["id"]
    page = formgrader.get(f"/formgrader/submissions/{one}/")
    assert "End." in page and "SOLUTION-ONE" not in page
    for grade in formgrader.json(f"{api}/grades?submission_id={one}"):
        if grade["name"] in ("q5", "q6"):
            formgrader.ask(f"{api}/grade/{grade['id']}", "PUT",
                           {"manual_score": 1.5, "extra_credit": None})
    for comment in formgrader.json(f"{api}/comments?submission_id={one}"):
        if comment["name"] == "q5":
            formgrader.ask(f"{api}/comment/{comment['id']}", "PUT",
                           {"manual_comment": "Thanks."})
    report = gb.export(course.path, NAME, "csv", tmp_path / "o.csv")
    assert report.grades == {"s00": 11}
    first = gb.feedback(course.path, NAME)[1].path.read_text()
    assert "Thanks." in first and "Score: 1.5 / 5.0" in first
    answer = json.loads(formgrader.ask(
        f"{api}/submission/{NAME}/s00/autograde", "POST", {}))
    assert not answer["success"]
    assert course.grades("s00")["q5"][1] == 1.5
    assert "End." in formgrader.get(f"/formgrader/submissions/{one}/")
    no_attack_works(formgrader, books, request.getfixturevalue("page"))


def no_attack_works(formgrader, books, page):
    """Look at every submission as a marker does, in a browser."""
    asked = []
    page.on("dialog", lambda d: pytest.fail("a dialog opened"))
    page.route("**", lambda route: (
        asked.append(route.request.url), route.continue_()
        if route.request.url.startswith(formgrader.address)
        else route.abort()))
    page.goto(f"{formgrader.address}/formgrader/gradebook?token=secret")
    for book in books.values():
        page.goto(f"{formgrader.address}/formgrader/submissions/"
                  f"{book['id']}/", wait_until="domcontentloaded")
        assert page.evaluate("window.pwned") is None, book["student"]
    outside = {u for u in asked if not u.startswith(formgrader.address)}
    # nbgrader's own page asks for MathJax.
    assert not [u for u in outside if "cloudflare.com/ajax/libs/mathjax"
                not in u]
