"""nbgrader's course: its folders, its grade book, and what we keep in it.

The import writes here; feedback and export read. Beside nbgrader's own tables
stands coursework_row: for each submission the row that it was graded with.
"""

import contextlib
import json
import os
import sys
import time
from pathlib import Path

from nbgrader import api
from nbgrader.coursedir import CourseDirectory
from sqlalchemy import inspect
from sqlalchemy import text as sql
from sqlalchemy.exc import OperationalError
from traitlets.config import PyFileConfigLoader

TABLE = """CREATE TABLE IF NOT EXISTS coursework_row (
    assignment VARCHAR(128) NOT NULL, student VARCHAR(128) NOT NULL,
    row TEXT NOT NULL, answers TEXT NOT NULL,
    PRIMARY KEY (assignment, student))"""


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


def leftovers(folder, pattern):
    """What a killed run left behind; a running one's is younger."""
    return [p for p in Path(folder).glob(pattern)
            if time.time() - p.stat().st_mtime > 3600]


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
    with book:
        yield book


@contextlib.contextmanager
def transaction(book):
    """The book's data base; all is kept at the end, or nothing."""
    db = book.db
    try:
        if book.engine.dialect.name == "sqlite":
            db.execute(sql("BEGIN IMMEDIATE"))
        db.execute(sql(TABLE))
        yield db
        db.commit()
    except BaseException as error:
        db.rollback()
        if isinstance(error, OperationalError) and "locked" in str(error):
            raise ValueError("the grade book is in use (another import, or "
                             "formgrader saving): try again") from None
        raise


def keep_row(db, row, answers):
    """Keep a row beside the scores that it gave."""
    what = {"a": row["assignment"], "s": row["student"]}
    db.execute(sql("DELETE FROM coursework_row WHERE assignment = :a "
                   "AND student = :s"), what)
    db.execute(sql("INSERT INTO coursework_row VALUES (:a, :s, :r, :n)"),
               {**what, "r": json.dumps(row), "n": json.dumps(answers)})


def kept_rows(db, assignment):
    """{student: (row, answers)} of an assignment's last import."""
    if not inspect(db.connection()).has_table("coursework_row"):
        return {}                        # nbgrader's own grades, not ours
    return {s: (json.loads(r), json.loads(n)) for s, r, n in db.execute(sql(
        "SELECT student, row, answers FROM coursework_row "
        "WHERE assignment = :a"), {"a": assignment})}


def assignment_of(db, name):
    """An assignment of the book, and {student: row}. Raises ValueError."""
    found = db.query(api.Assignment).filter_by(name=name).one_or_none()
    if found is None:
        names = ", ".join(a.name for a in db.query(api.Assignment)) or "none"
        raise ValueError(f"assignment={name!r} is not in the grade book; it "
                         f"has: {names}")
    return found, {s: row for s, (row, _) in kept_rows(db, name).items()}
