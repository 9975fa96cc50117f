"""Feedback pages: for everybody, without secrets, and they do nothing."""

import re
from pathlib import Path

import nbformat
import pytest
from gradebook_cases import (
    ATTACKS,
    NAME,
    SECRETS,
    Course,
    Tags,
    attacked,
    cell,
)
from sqlalchemy.exc import OperationalError

from coursework import feedback as fb


@pytest.fixture
def course(tmp_path):
    return Course(tmp_path)


def test_no_browser_does_anything_with_feedback(course, request):
    attacked(course)
    pages = fb.feedback(course.path, NAME)
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
    pages = fb.feedback(course.path, NAME)
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


@pytest.mark.skipif(not fb.KATEX.is_file() or not fb.find_node(),
                    reason="KaTeX is not set up here: make book")
def test_formulas_are_shown_without_scripts(course):
    course.put(course.hand_in("ada", course.answered(
        q5="So $\\frac{1}{m}$, $\\href{javascript:x}{y}$, $\\undefinedhere$")))
    text = fb.feedback(course.path, NAME)[0].path.read_text()
    assert "<mfrac><mn>1</mn><mi>m</mi></mfrac>" in text
    assert "<mi>σ</mi>" in text
    assert "<code>$\\undefinedhere$</code>" in text
    assert 'href="javascript' not in text
    made, = fb.mathml([("\\href{javascript:x}{y}", False)])
    assert "href=" not in made and "<math" in made


def test_without_katex_formulas_stay_text(course, monkeypatch):
    monkeypatch.setattr(fb, "KATEX", Path("/nowhere"))
    monkeypatch.setattr(fb, "KNOWN", {})
    fb.rendered.cache_clear()
    course.put(course.hand_in("ada", course.answered(q5="So $a<b$.")))
    text = fb.feedback(course.path, NAME)[0].path.read_text()
    assert "So <code>$a&lt;b$</code>." in text
    fb.rendered.cache_clear()


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
    pages = {p.student: p for p in fb.feedback(course.path, NAME)}
    assert len(pages) == 12 and all(p.path for p in pages.values())
    assert [s for s, p in pages.items() if p.problem] == [
        "s03", "s04", "s05", "s06"]
    for student in ("s03", "s04", "s05", "s06"):
        text = pages[student].path.read_text()
        assert "could not be read" in text
        assert "2 of 2 points" in text


def test_an_end_of_nbgrader_s_batch_stops_nobody(course, monkeypatch):
    many(course, 4)
    whole, ended = fb.Marks.preprocess, []

    def preprocess(self, nb, resources):
        if resources["nbgrader"]["student"] == "s01" and not ended:
            ended.append(True)
            raise OperationalError("SELECT", {}, Exception("disk"))
        return whole(self, nb, resources)

    monkeypatch.setattr(fb.Marks, "preprocess", preprocess)
    pages = fb.feedback(course.path, NAME)
    assert ended and all(p.path and not p.problem for p in pages)
    assert "Because of" in pages[1].path.read_text()


def test_a_leak_is_held_back(course):
    many(course, 3)
    fb.feedback(course.path, NAME)
    path = course.path / "autograded" / "s00" / NAME / f"{NAME}.ipynb"
    nb = course.shown("s00")
    cell(nb, "q1-large").source += "\nx = np.float32([HIDDEN_VALUE])"
    nbformat.write(nb, path)
    nb = course.shown("s01")
    cell(nb, "q1-large").outputs[0].text = "hidden message that tells it all"
    nbformat.write(nb, course.path / f"autograded/s01/{NAME}/{NAME}.ipynb")
    pages = fb.feedback(course.path, NAME)
    assert [bool(p.path) for p in pages] == [False, False, True]
    assert all("held back" in p.problem for p in pages[:2])
    assert not (course.path / f"feedback/s00/{NAME}/{NAME}.html").exists()


def test_a_student_may_have_written_the_master_s_answer(course):
    mine = "def forward(x):\n    y = x - 1  # SOLUTION-ONE\n    return y"
    course.put(course.hand_in("ada", course.answered(q1=mine)))
    page, = fb.feedback(course.path, NAME)
    assert page.path and "SOLUTION-ONE" in page.path.read_text()


def test_a_notebook_older_than_the_scores_is_not_shown(course):
    course.put(course.hand_in("ada", course.answered()))
    old = course.shown("ada")
    course.put(course.hand_in("ada", course.answered(q5="New.")))
    nbformat.write(old, course.path / f"autograded/ada/{NAME}/{NAME}.ipynb")
    page, = fb.feedback(course.path, NAME)
    assert "import again" in page.problem
