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
import json
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
from nbgrader import api, utils

from coursework.clean import unfit
from coursework.collect import collect
from coursework.course import (
    course_directory,
    keep_row,
    kept_rows,
    leftovers,
    open_book,
    place_of,
    transaction,
)
from coursework.export import export
from coursework.feedback import feedback
from coursework.handin import (
    grade_id,
    handout,
    kind,
    marking_guide,
    notebook,
    points,
    submitted_cells,
)
from normlab.lab.files import digest, replacing


@dataclass
class Report:
    """What an import did."""

    imported: int = 0
    problems: list = field(default_factory=list)
    review: list = field(default_factory=list)


@dataclass
class Import:
    """What an import works with."""

    given: object                        # the hand-out
    directory: object
    submissions: Mapping
    db: object
    files: contextlib.ExitStack          # renames all files when it closes
    known: dict                          # kept_rows
    report: Report
    made: object = None                  # nbgrader's notebook

    def write(self, step, student, nb):
        """Write a notebook aside; it is there when the import ends."""
        name = self.given.name
        path = place_of(self.directory, step, student, name)
        aside = self.files.enter_context(replacing(path / f"{name}.ipynb"))
        aside.write_text(nbformat.writes(nb) + "\n", "utf-8")


def import_rows(course, master, rows, submissions):
    """Put graded rows into nbgrader's grade book and its folders.

    course: folder, made if need be. master: .ipynb or .py; its stem is the
    assignment's name. rows: dicts, or the file or folder that
    coursework.grade wrote. submissions: a dict of student to bytes or an
    object with read(); or what coursework.collect takes. Returns a Report.
    Raises ValueError when the rows are not of this master; the book is then
    as it was.
    """
    given = handout(master)
    rows = read_rows(rows) if isinstance(rows, (str, Path)) else list(rows)
    check_rows(given, rows)
    if not isinstance(submissions, Mapping):
        submissions = {s.student: s for s in collect(
            Path(submissions), name=given.name)}
    directory, report = course_directory(course), Report()
    root = Path(directory.root)
    root.mkdir(parents=True, exist_ok=True)
    for left in leftovers(root, f"*/*/*/{given.name}.ipynb.*.tmp"):
        left.unlink(missing_ok=True)
    if any(r.get("master", given.digest) != given.digest for r in rows):
        report.problems.append("some rows were graded with another version "
                               "of the master")
    # The files come last: when the book has been written.
    with contextlib.ExitStack() as files, \
            open_book(directory, make=True) as book, \
            transaction(book) as db:
        work = Import(given, directory, submissions, db, files,
                      kept_rows(db, given.name), report)
        save_assignment(work)
        for row in rows:
            save_row(work, row)
        stage_master(work)
    return report


def read_rows(path):
    """Rows from results.jsonl, from the folder that holds it, or from a
    folder with a file for each row."""
    file = path = Path(path)
    try:
        if path.is_dir():
            file = path / "results.jsonl"
            each = sorted(path.glob("*.json"))
            if each and not file.exists():
                return [json.loads(file.read_text("utf-8")) for file in each]
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
    if {k: t["max"] for k, t in row["tests"].items()} != {
            t.id: t.points for t in given.tests}:
        return "has other tests or points than the master"
    wrong = [k for k, t in row["tests"].items() if not (
        isinstance(t["score"], (int, float)) and 0 <= t["score"] <= t["max"])]
    return f"has no valid score for {', '.join(wrong)}" if wrong else ""


# --- the assignment ---

def one(db, model, extra=(), **what):
    """The entry with these values, made if there is none."""
    entry = db.query(model).filter_by(**what).one_or_none()
    if entry is None:
        entry = model(**what, **dict(extra))
        db.add(entry)
        db.flush()
    return entry


def save_assignment(work):
    """The assignment with its notebook and cells."""
    db, given = work.db, work.given
    assignment = one(db, api.Assignment, {
        "course_id": work.directory.course_id or "default_course"},
        name=given.name)
    made = work.made = one(db, api.Notebook, name=given.name,
                           assignment_id=assignment.id)
    made.kernelspec = json.dumps(given.notebook.metadata.get(
        "kernelspec", {}))
    cells = {grade_id(c): c for c in given.saved.cells if kind(c)}
    for model, kinds in ((api.GradeCell, ("test", "text")),
                         (api.TaskCell, ("task",))):
        save_cells(db, made, model, {
            k: {"max_score": points(c), "cell_type": c.cell_type}
            for k, c in cells.items() if kind(c) in kinds})
    save_cells(db, made, api.SolutionCell, {
        k: {} for k, c in cells.items() if kind(c) in ("answer", "text")})
    save_cells(db, made, api.SourceCell, {k: {
        "cell_type": c.cell_type, "locked": utils.is_locked(c),
        "source": c.source, "checksum": c.metadata.nbgrader.get("checksum"),
    } for k, c in cells.items()})
    db.flush()
    for submission in db.query(api.SubmittedNotebook).filter_by(
            notebook_id=made.id):
        complete(db, made, submission)


def save_cells(db, made, model, wanted):
    """Bring one kind of a notebook's cells up to date."""
    old = {c.name: c for c in db.query(model).filter_by(
        notebook_id=made.id)}
    for name in old.keys() - wanted.keys():
        drop_cell(db, old[name])
    for name, values in wanted.items():
        cell = old.get(name) or model(name=name, notebook_id=made.id,
                                      **values)
        for key, value in values.items():
            setattr(cell, key, value)
        db.add(cell)


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


def stage_master(work):
    """Put the master and the hand-out where nbgrader looks for them."""
    work.write("source", ".", work.given.notebook)
    work.write("release", ".", work.given.student)


# --- a row ---

def save_row(work, row):
    """Put one row into the book, and its notebook aside."""
    student, name = row["student"], work.given.name
    if unfit(student):
        work.report.problems.append(
            f"{student!r} was left out: nbgrader can't use the name; allowed "
            "are letters, digits, spaces inside and . _ - @ + , ' ( ) =")
        return
    cells, why = None, ""
    if row["status"] == "graded":
        try:
            cells = submitted_cells(work.submissions, row)
        except ValueError as error:
            why = str(error)
            work.report.problems.append(f"{student}: {why}")
    nb = notebook(work.given, row, cells, why)
    # formgrader counts these folders. The file itself stays away from
    # nbgrader, whose own autograde would run it without a sandbox.
    folder = place_of(work.directory, "submitted", student, name)
    folder.mkdir(parents=True, exist_ok=True)
    save_grades(work, save_submission(work, student, folder), row, nb)
    work.write("autograded", student, nb)
    work.report.imported += 1


def save_submission(work, student, folder):
    """A student's submission with its notebook; returns the notebook."""
    db, made = work.db, work.made
    one(db, api.Student, id=student)
    submission = one(db, api.SubmittedAssignment, student_id=student,
                     assignment_id=made.assignment_id)
    # formgrader takes a submission as new unless these agree.
    with contextlib.suppress(OSError, ValueError, OverflowError):
        text = (folder / "timestamp.txt").read_text("utf-8").strip()
        submission.timestamp = utils.parse_utc(text)
    found = one(db, api.SubmittedNotebook, notebook_id=made.id,
                assignment_id=submission.id)
    complete(db, made, found)
    db.flush()
    return found


def save_grades(work, submission, row, nb):
    """Automatic scores of a row; what a person gave stays."""
    db, given, made = work.db, work.given, work.made
    old, seen = work.known.get(row["student"], (None, {}))
    now = fingerprints(given, row, nb)
    cells = {c.id: c.name for c in made.grade_cells + made.task_cells}
    kept, tests = same_file(old, row), {t.id for t in given.tests}
    for grade in db.query(api.Grade).filter_by(notebook_id=submission.id):
        name, before = cells[grade.cell_id], grade.auto_score
        result = row["tests"].get(name) if row["status"] == "graded" else None
        grade.auto_score = (result["score"] if result else
                            before if kept and name in tests else None)
        unchanged = (before == grade.auto_score
                     and seen.get(name) == now[name])
        if grade.manual_score is None:
            grade.needs_manual_grade = (grade.auto_score is None
                                        or row["status"] != "graded")
        elif not unchanged:
            grade.needs_manual_grade = True
            work.report.review.append(f"{row['student']}: {name}")
    stubs = {k for k, c in given.of_kind("text").items()
             if now[k] == digest(c.source)}
    names = {c.id: c.name for c in made.solution_cells + made.task_cells}
    for entry in db.query(api.Comment).filter_by(notebook_id=submission.id):
        entry.auto_comment = ("No response."
                              if names[entry.cell_id] in stubs else None)
    keep_row(db, row, now)


def same_file(old, row):
    """Whether the very file was graded before, so that its automatic
    scores hold although the grader can't repeat them."""
    return (old is not None and old["status"] == "graded"
            and row["status"] != "graded" and row.get("sha256") is not None
            and old.get("sha256") == row["sha256"])


def fingerprints(given, row, nb):
    """For each cell with points what its mark rests on: an answer's text,
    or for a test the file that was graded."""
    sources = {grade_id(c): c.source for c in nb.cells}
    file = f"{row['status']} {row.get('sha256')}"
    return {k: digest(sources[k]) if kind(c) == "text"
            and row["status"] == "graded" else file
            for k, c in given.of_kind("test", "text", "task").items()}


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
    return problems(report.problems)


def run_feedback(o):
    """Make the pages, and say which are missing."""
    pages = feedback(o.course, o.assignment)
    made = [p for p in pages if p.path]
    print(f"{len(made)} of {len(pages)} feedback pages are made")
    return problems(f"{p.student}: {p.problem}" for p in pages if p.problem)


def problems(found):
    """Print problems; 1 if there are any."""
    lines = [f"Problem: {problem}" for problem in found]
    print("\n".join(lines), end="\n" if lines else "", file=sys.stderr)
    return 1 if lines else 0


def run_export(o):
    """Write grades, and what is not among them."""
    print(export(o.course, o.assignment, o.to, o.out, o.roster, o.partial,
                 o.column).text())
    return 0


def run_guide(o):
    """Write the guide for markers."""
    text = marking_guide(o.master)
    if o.out:
        with replacing(o.out) as aside:
            aside.write_text(text, encoding="utf-8")
    else:
        print(text, end="")
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
