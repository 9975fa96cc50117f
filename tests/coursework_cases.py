"""What the tests of the coursework share: notebooks made from masters,
answers and mutants, and the grader as a teacher calls it."""

import csv
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from coursework import sandbox, source

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "coursework/sample"
CASES = ROOT / "tests/coursework"
NAMES = sorted(p.stem for p in SAMPLE.glob("*.py"))
ANSWER = re.compile("({}.*?{})".format(*source.SOLUTION), re.DOTALL)


def need_sandbox():
    """Skip where there is no sandbox; on CI that is a failure."""
    why = sandbox.available()
    if why and os.environ.get("CI"):
        pytest.fail(why)
    if why:
        pytest.skip(why)


def master(name):
    """A sample master as an nbgrader notebook."""
    return source.read(SAMPLE / f"{name}.py")


def mutants(name):
    """A master's mutants: [(name, question, old, new), ...]; see below."""
    path = CASES / f"mutants/{name}.py"
    spec = importlib.util.spec_from_file_location("mutants", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # A submission with PyTorch takes three seconds: a third of them, unless
    # all are asked for.
    every = 3 if "autograd" in name and "COURSEWORK_ALL" not in os.environ \
        else 1
    return module.MUTANTS[::every]


def mutant(name, old, new):
    """The reference answer with one mistake, as a student hands it in."""
    nb, found = master(name), 0
    for cell in nb.cells:
        info = cell.metadata.get("nbgrader", {})
        if info.get("solution") and cell.cell_type == "code":
            parts = ANSWER.split(cell.source)  # every second is an answer
            found += sum(own.count(old) for own in parts[1::2])
            parts[1::2] = [own.replace(old, new) for own in parts[1::2]]
            cell.source = "".join(parts)
    assert found == 1, f"{old!r} occurs {found} times"
    return answered(nb)


def variants(name):
    """The names of the correct answers written in other ways."""
    return sorted(p.stem for p in (CASES / "answers" / name).glob("*.py"))


def variant(name, which):
    """The student notebook with the cells of one correct answer."""
    import jupytext

    text = (CASES / "answers" / name / f"{which}.py").read_text()
    given = jupytext.reads(text, fmt="py:percent")
    nb = source.student(master(name))
    place = {c.metadata.get("nbgrader", {}).get("grade_id"): i
             for i, c in enumerate(nb.cells)}
    first = min(place[c.metadata["answer"]] for c in given.cells
                if "answer" in c.metadata)
    extra = []
    for cell in given.cells:
        answer = cell.metadata.get("answer")
        if answer:
            nb.cells[place[answer]].source = cell.source
        elif cell.cell_type == "code":
            extra.append(nbformat.v4.new_code_cell(cell.source))
    nb.cells[first:first] = extra
    return nb


def answered(nb):
    """A master's answers in the notebook that students get."""
    handed = source.student(nb)
    for cell, full in zip(handed.cells, nb.cells):
        if full.metadata.get("nbgrader", {}).get("solution"):
            cell.source = full.source
    return handed


def write(folder, notebooks):
    """{student: notebook or bytes} as files in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for student, nb in notebooks.items():
        data = nb if isinstance(nb, bytes) else nbformat.writes(nb).encode()
        (folder / f"{student}.ipynb").write_bytes(data)
    return folder


def command(path, subs, out, *options):
    """The grader's command line."""
    return [sys.executable, "-m", "coursework.grade", str(path), str(subs),
            str(out), *map(str, options)]


def grade(path, subs, out, *options):
    """Grade: the finished process."""
    return subprocess.run(command(path, subs, out, *options), cwd=ROOT,
                          capture_output=True, text=True, timeout=570)


def rows(out):
    """{student: row} from the result files."""
    found = {}
    for path in sorted((out / "results").glob("*.json")):
        row = json.loads(path.read_text())
        found[row["student"]] = row
    return found


def graded(path, folder, notebooks, *options):
    """Grade notebooks in a folder; {student: row}."""
    subs = write(folder / "subs", notebooks)
    done = grade(path, subs, folder / "out", "--jobs", 2, *options)
    assert done.returncode == 0, done.stderr[-2000:]
    return rows(folder / "out")


def table(path):
    """A CSV's rows as dicts."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))
