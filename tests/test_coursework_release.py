"""What students get holds no answer and no hidden test."""

import html
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import coursework_cases as cases
import nbformat
import pytest
from coursework_cases import NAMES, SAMPLE

from coursework import make, release, source

STUDENT = cases.ROOT / "coursework/student"
PAGES = cases.ROOT / "_build/html"


def told(text):
    """The lines of a text that say something, without spaces."""
    lines = {re.sub(r"\s+", "", line) for line in text.split("\n")}
    return {line for line in lines if len(line) >= 30}


def secrets(name):
    """The lines of answers and hidden tests that stand nowhere else."""
    nb = cases.master(name)
    hidden, public = set(), set()
    for cell in nb.cells:
        for marks in (source.SOLUTION, source.HIDDEN):
            hidden |= told(source.region(cell.source, marks))
    for cell in source.student(nb).cells:
        public |= told(cell.source)
    return hidden - public


def leaks(name, text):
    """The secrets that a text holds."""
    text = re.sub(r"\s+", "", text)
    return {s for s in secrets(name) if s in text or html.escape(s) in text}


@pytest.mark.parametrize("name", NAMES)
def test_secrets_are_found_where_they_are(name):
    found = secrets(name)
    assert len(found) > 30
    assert leaks(name, (SAMPLE / f"{name}.py").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_the_student_notebook_tells_no_secret(name):
    path = STUDENT / f"{name}.ipynb"
    nb = nbformat.read(path, 4)
    assert not leaks(name, "\n".join(c.source for c in nb.cells))
    assert not leaks(name, json.dumps(json.loads(path.read_text()),
                                      ensure_ascii=False))
    text = path.read_text()
    for mark in (*source.SOLUTION, *source.HIDDEN):
        assert mark not in text
    assert all(not c.get("outputs") for c in nb.cells)


def published():
    """Every text file of the site."""
    return [p for p in PAGES.rglob("*") if p.suffix in (
        ".html", ".js", ".ipynb", ".md", ".txt", ".json", ".py", ".inv")]


@pytest.mark.parametrize("name", NAMES)
def test_the_site_tells_no_secret(name):
    pages = published()
    assert PAGES / f"coursework/student/{name}.html" in pages
    own = [p for p in pages if name in p.name or "teaching" in p.name
           or p.name == "searchindex.js"]
    for path in own:
        assert not leaks(name, html.unescape(
            re.sub(r"<[^>]+>", "", path.read_text("utf-8"))))
    assert not [p for p in PAGES.rglob("*") if p.parent.name in (
        "sample", "answers", "mutants")]


@pytest.mark.parametrize("name", NAMES)
def test_an_assignment_is_whole(name):
    """Goals, time, points that add up, free text with a rubric."""
    nb = cases.master(name)
    first = nb.cells[0].source
    assert "Read first" in first and re.search(r"\bh\b|Minutes", first)
    points = {"auto": 0, "hand": 0}
    texts, tests = [], []
    for cell in nb.cells:
        info = cell.metadata.get("nbgrader", {})
        if info.get("grade"):
            points["hand" if info["solution"] else "auto"] += info["points"]
            (texts if info["solution"] else tests).append(cell)
    assert texts and all("Rubric" in t.source for t in texts)
    hidden = [t for t in tests if source.HIDDEN[0] in t.source]
    assert len(tests) >= 10 and 3 <= len(hidden) < len(tests)
    assert all(t.source.startswith("#") for t in hidden)
    total = re.search(r"\| (?:in total|together) \| (\d+) \| (\d+) \|",
                      first.replace("**", ""))
    assert (int(total[1]), int(total[2])) == (points["auto"], points["hand"])


@pytest.mark.parametrize("name", NAMES)
def test_the_student_notebook_runs_alone(name, tmp_path):
    """In an empty folder, without the book's library: every cell runs, but
    for answers that are missing and the tests that need them."""
    nb = nbformat.read(STUDENT / f"{name}.ipynb", 4)
    text = "\n".join(c.source for c in nb.cells if c.cell_type == "code")
    loads = set(re.findall(r"^\s*(?:import|from) (\w+)", text, re.M))
    allowed = {"numpy", "math"} | ({"torch"} if "autograd" in name else set())
    assert loads <= allowed, loads
    script = tmp_path / "run.py"
    script.write_text(
        "import json, sys\nspace, bad = {}, []\n"
        "for source, missing in json.load(open(sys.argv[1])):\n"
        "    try:\n        exec(source, space)\n"
        "    except NotImplementedError:\n        pass\n"
        "    except Exception as error:\n"
        "        bad.append(repr(error))\nassert not bad, bad\n")
    cells = tmp_path / "cells.json"
    cells.write_text(json.dumps([
        (c.source, c.metadata.get("nbgrader", {}).get("grade", False))
        for c in nb.cells if c.cell_type == "code"]))
    done = subprocess.run([sys.executable, "-I", script, cells],
                          cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", NAMES[:1])
def test_nbgrader_releases_the_same(name, tmp_path):
    """nbgrader's own generate_assignment strips what we strip."""
    nb = cases.master(name)
    folder = tmp_path / "source" / name
    folder.mkdir(parents=True)
    nbformat.write(nb, folder / f"{name}.ipynb")
    done = subprocess.run(
        [sys.executable, "-m", "nbgrader", "generate_assignment", name,
         f"--course-dir={tmp_path}"], cwd=tmp_path, capture_output=True,
        text=True, env={
            **os.environ, "JUPYTER_CONFIG_DIR": str(tmp_path),
            # It calls its own tools by name.
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"})
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = nbformat.read(tmp_path / "release" / name / f"{name}.ipynb", 4)
    ours = source.student(nb)
    assert [c.source.strip() for c in theirs.cells] == [
        c.source.strip() for c in ours.cells]


def test_release_writes_a_course(tmp_path, capsys):
    course = tmp_path / "course"
    code = make.main(["release", str(course), str(SAMPLE), "a1-layer",
                      "--student", str(tmp_path / "student")])
    assert code == 0
    made = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")
            if p.is_file()}
    assert made == {
        "student/a1-layer.ipynb", "course/source/a1-layer/a1-layer.ipynb",
        "course/release/a1-layer/a1-layer.ipynb",
        "course/marking/a1-layer.md", "course/gradescope/a1-layer.zip"}
    released = (course / "release/a1-layer/a1-layer.ipynb").read_text()
    assert released == (STUDENT / "a1-layer.ipynb").read_text()
    assert "Rubric" in (course / "marking/a1-layer.md").read_text()
    with zipfile.ZipFile(course / "gradescope/a1-layer.zip") as package:
        assert package.testzip() is None
    with pytest.raises(SystemExit, match="a1-layer, a2"):
        make.main(["release", str(course), str(SAMPLE), "a9"])
    with pytest.raises(SystemExit, match="SUBS=folder"):
        make.main(["grade", str(course), str(SAMPLE), "a1-layer", ""])


def test_check_finds_a_stale_notebook(tmp_path):
    for name in NAMES:
        text = (STUDENT / f"{name}.ipynb").read_text()
        (tmp_path / f"{name}.ipynb").write_text(text)
    masters = release.masters([])
    assert not list(release.stale(masters, tmp_path))
    (tmp_path / f"{NAMES[0]}.ipynb").write_text(text)
    (tmp_path / "own.ipynb").write_text(text)
    bad = list(release.stale(masters, tmp_path))
    assert len(bad) == 2 and NAMES[0] in bad[0] and "no master" in bad[1]
