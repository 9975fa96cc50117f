"""The hand-out with a student's answers in it, for whoever marks them.

Reads a master as nbgrader sees it (handout), a student's file (read_cells),
finds out which of the student's cells answer which question (place) and makes
the notebook that formgrader and feedback show (notebook). Nothing of a
student's file gets there but its text, made harmless.
"""

import copy
import hashlib
import re
from collections import Counter
from dataclasses import dataclass

from nbformat.v4 import new_code_cell, new_markdown_cell, new_output
from nbgrader.preprocessors import ClearSolutions, ComputeChecksums

from coursework.checker import every_cell, same
from coursework.clean import LONG_NOTE, clean, fence, safe_markdown
from coursework.master import Master, load
from coursework.source import SCHEME, SOLUTION, region
from normlab.lab.files import digest

# --- the master, and what was handed out ---

@dataclass
class Handout(Master):
    """A master, and what nbgrader sees of it."""

    saved: object = None                 # without answers: nbgrader's copy
    release: object = None               # what students get

    def of_kind(self, *kinds):
        """The hand-out's cells of some kinds, by id."""
        return {grade_id(c): c for c in self.release.cells
                if kind(c) in kinds}

    @property
    def makes(self):
        """The names that each cell of code defines."""
        return {c.id: c.makes for c in self.cells}


def grade_id(cell):
    """A cell's nbgrader id, or None."""
    return cell.metadata.get("nbgrader", {}).get("grade_id")


def points(cell):
    """The points that a cell can earn."""
    return float(cell.metadata.nbgrader.get("points", 0))


def kind(cell):
    """What a cell is: test, text (by hand), task, answer, given or ""."""
    info = cell.metadata.get("nbgrader", {})
    if info.get("task"):
        return "task"
    if info.get("grade"):
        return "text" if info.get("solution") else "test"
    return ("answer" if info.get("solution") else
            "given" if info.get("locked") else "")


def handout(path):
    """Read a master. Raises MasterError when it can't be used."""
    given = Handout(**vars(load(path)))
    release = copy.deepcopy(given.student)
    release.nbformat_minor = 5
    for i, cell in enumerate(release.cells):
        cell.setdefault("id", f"cell-{i}")
    saved, _ = ClearSolutions().preprocess(copy.deepcopy(given.notebook), {})
    given.saved, _ = ComputeChecksums().preprocess(saved, {})
    given.release, _ = ComputeChecksums().preprocess(release, {})
    return given


def marking_guide(master):
    """Rubrics and model answers of what a person marks, as Markdown."""
    given = handout(master)
    lines = [f"# Marking guide: {given.name}", "",
             "For markers only: it holds the answers."]
    heading = ""
    for cell in given.notebook.cells:
        if kind(cell) in ("text", "task"):
            marks = SOLUTION if kind(cell) == "text" else SCHEME
            model = region(cell.source, marks) or cell.source
            lines += ["", f"## {grade_id(cell)} ({points(cell):g} points)",
                      "", "**The question**", "",
                      *(f"> {line}".rstrip() for line in
                        heading.strip().split("\n")), "",
                      "**Model answer and rubric**", "", model.strip()]
        elif cell.cell_type == "markdown":
            heading = cell.source
    return "\n".join(lines) + "\n"


# --- a student's file, and where the answers are ---

@dataclass
class Cell:
    """A cell of a student's notebook."""

    number: int
    kind: str
    source: str
    grade_id: str | None = None


NAME = re.compile(r"^(?:(?:async +)?(?:def|class) +(\w+)|(\w+) *(?::[^=\n]+)?"
                  r"=(?!=))", re.M)


def read_cells(data):
    """The cells of a notebook's bytes. Raises Refused."""
    found = []
    for i, cell, source in every_cell(data):
        info = cell.get("metadata")
        for key in ("nbgrader", "grade_id"):
            info = info.get(key) if isinstance(info, dict) else None
        found.append(Cell(i, str(cell.get("cell_type")), clean(source),
                          info if isinstance(info, str) else None))
    return found


def submitted_cells(submissions, row):
    """The cells of a graded submission; ValueError says why there are
    none, as when the file is not the one that was graded."""
    item = submissions.get(row["student"])
    if item is None:
        raise ValueError("the submission was not found")
    data = item if isinstance(item, bytes) else item.read()
    if row.get("sha256") not in (None, hashlib.sha256(data).hexdigest()):
        raise ValueError("the file is not the one that was graded: grade "
                         "again")
    return read_cells(data)


def defined(cells):
    """Names that a student's code, which need not parse, defines at its
    left margin."""
    return {a or b for c in cells for a, b in NAME.findall(c.source)}


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
    found, taken = {}, set()
    for name, cell in asked.items():
        mine = [c for c in cells if c.grade_id == name]
        written = [c for c in mine if same(c.source) != same(cell.source)]
        wanted = given.makes[name] - defined(written)
        moved = [c for c in cells if c.grade_id not in asked
                 and c.number not in taken and defined([c]) & wanted]
        found[name] = (written + moved) or mine
        taken |= {c.number for c in mine + moved}
    public = {same(c.source) for c in given.release.cells}
    return found, [c for c in cells if c.number not in taken
                   and same(c.source) not in public and c.source.strip()]


def place_text(given, cells):
    """Free text by grade_id, else by where it stands; and the rest."""
    handed = given.release.cells
    asked = {grade_id(c): i for i, c in enumerate(handed)
             if kind(c) == "text" and c.cell_type == "markdown"}
    known = anchors(handed, cells)
    found, rest = {k: [] for k in asked}, []
    for i, cell in enumerate(cells):
        name = cell.grade_id if cell.grade_id in asked else None
        if name is None and (cell.kind == "code" or known[i] is not None
                             or not cell.source.strip()):
            continue
        if name is None:
            before = [k for k in known[:i] if k is not None][-1:] or [-1]
            after = [k for k in known[i:] if k is not None][:1] or [
                len(handed)]
            near = [k for k in asked if before[0] <= asked[k] <= after[0]]
            name = near[0] if len(near) == 1 else None
        (found[name] if name else rest).append(cell)
    for name, mine in found.items():
        stub = same(handed[asked[name]].source)
        found[name] = [c for c in mine if same(c.source) != stub] or mine
    return found, rest


def anchors(handed, cells):
    """For each cell of a student the place of the hand-out's cell that it
    is, or None."""
    ids = {grade_id(c): i for i, c in enumerate(handed) if grade_id(c)}
    counts = Counter(same(c.source) for c in handed)
    texts = {same(c.source): i for i, c in enumerate(handed)
             if counts[same(c.source)] == 1}
    return [ids.get(c.grade_id, texts.get(same(c.source))) for c in cells]


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
        if kind(cell) == "test":
            cell.outputs = [new_output("stream", name="stdout",
                                       text=outcome(given, row, cell))]
    nb.cells = (opening(row, why) + nb.cells
                + (closing(given, placed) if placed else []))
    nb.metadata["coursework"] = {"row": digest(row)}
    return nb


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
    return [new_markdown_cell("\n".join(lines), id="coursework-opening")
            ] if lines else []


def closing(given, placed):
    """Last cells with whatever of the submission is not shown above."""
    cells, student = [], {"coursework": {"student": True}}
    unplaced = [k for k, c in given.of_kind("text").items()
                if c.cell_type == "markdown" and not placed.answers[k]]
    if placed.code:
        cells += [new_markdown_cell("## Other cells of the submission",
                                    id="coursework-other"),
                  new_code_cell(joined(placed.code), metadata=student,
                                id="coursework-other-code")]
    if placed.text and not unplaced:
        cells += [new_markdown_cell("## Other text of the submission",
                                    id="coursework-text"),
                  new_markdown_cell(safe_markdown(prose(placed.text)),
                                    metadata=student,
                                    id="coursework-other-text")]
    return cells


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
    for other, cells in placed.answers.items():
        if defined(cells) & given.makes[name]:
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
    hidden = {t.id for t in given.tests if t.hidden}
    if name in hidden or result.get("hidden"):
        word = ("passed" if full else "partly passed" if result["score"]
                else "failed")
        return f"{word}: {score}\n"
    note = clean(result.get("note") or "", LONG_NOTE)
    return f"{score}\n" if full or not note else f"{score}: {note}\n"
