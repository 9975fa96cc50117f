"""Grades one submission: its code in a sandbox, the tests here."""

import ast
import contextlib
import hashlib
import json
import math
import os
import signal
import socket
import time

import nbformat
import numpy as np

from coursework import wire
from coursework.collect import Refused
from coursework.master import question
from coursework.proxy import ENDED, Gone, Link
from coursework.sandbox import Sandbox, SandboxError

NOTES, LARGEST = 20, 30 << 20
SLOWER = 100      # how much slower than the reference an answer may be


def cells_of(data):
    """The code cells of a submitted notebook: [(number, source), ...]."""
    found = [(i, source) for i, cell, source in every_cell(data)
             if cell.get("cell_type") == "code"]
    if sum(len(s) for _, s in found) > LARGEST:
        raise Refused(f"its code has more than {LARGEST >> 20} million "
                      "characters")
    return found


def every_cell(data):
    """The cells of a submitted notebook: [(number, cell, source), ...];
    of a cell's other parts nothing is known. Raises Refused."""
    if not data.strip():
        raise Refused("the file is empty")
    try:
        nb = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise Refused("not a notebook: its text is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise Refused(f"not a notebook: its JSON can't be read "
                      f"({str(error)[:80]})") from None
    if not isinstance(nb, dict) or "nbformat" not in nb:
        raise Refused("not a notebook: JSON of another kind")
    if nb["nbformat"] != 4:
        nb = upgraded(nb)
    language = language_of(nb)
    if language != "python":
        raise Refused(f"a notebook in {language[:30]!r}, not in Python")
    cells = nb.get("cells")
    if not isinstance(cells, list):
        raise Refused("a notebook without a list of cells")
    found = []
    for i, cell in enumerate(cells):
        if not isinstance(cell, dict):
            raise Refused(f"cell {i} of the notebook is not a cell")
        source = cell.get("source", "")
        if isinstance(source, list) and all(
                isinstance(s, str) for s in source):
            source = "".join(source)
        if not isinstance(source, str):
            raise Refused(f"the source of cell {i} is not text")
        found.append((i, cell, source))
    return found


def upgraded(nb):
    """A notebook of an older format as one of format 4."""
    try:
        return nbformat.reads(json.dumps(nb), as_version=4)
    except Exception as error:
        raise Refused(f"a notebook of format {str(nb['nbformat'])[:10]} "
                      f"that can't be read ({type(error).__name__})"
                      ) from None


def language_of(nb):
    """The language of a notebook, in lower case; Python if it says none."""
    info = nb.get("metadata")
    for key, field in (("kernelspec", "language"),
                       ("language_info", "name")):
        part = info.get(key) if isinstance(info, dict) else None
        name = part.get(field) if isinstance(part, dict) else None
        if isinstance(name, str) and name:
            return "python" if name.lower() in ("ipython", "python3") \
                else name.lower()
    return "python"


def same(text):
    """A text as it is compared with another: without spaces."""
    return "".join(text.split())


class Box:
    """A student's notebook, loaded in a sandbox; loaded anew when a test
    has ended its process."""

    def __init__(self, master, cells, kind, limits):
        public = {same(c.source) for c in master.student.cells
                  if c.metadata.get("nbgrader", {}).get("grade")}
        self.cells = [(i, s) for i, s in cells if same(s) not in public]
        self.before = [c.source for c in master.cells
                       if c.kind == "given" and not c.needs & master.names]
        self.kind, self.limits = kind, limits
        self.deadline = time.monotonic() + limits.total_seconds
        self.notes, self.sandbox, self.loaded = [], None, False

    def note(self, text):
        """Keep a note of the first time that the notebook is loaded. Later
        a hidden test's data could come back in one."""
        if self.loaded:
            return
        text = shown(text)
        if text not in self.notes and len(self.notes) < NOTES:
            self.notes.append(text)

    def open(self):
        """Start the sandbox; leave out cells that hang or end it."""
        while True:
            self.close()
            box = Sandbox(self.kind, self.limits)
            self.sandbox = box.__enter__()
            at = self.load()
            if at is None:
                self.loaded = True
                return
            self.cells = [(i, s) for i, s in self.cells if i != at]

    def load(self):
        """Load the cells; return the number of one that hung, or None."""
        seconds = self.limits.cell_seconds
        control, at, known = self.sandbox.control, None, dict(self.cells)
        try:
            wire.send(control, {}, json.dumps(
                {"before": self.before, "cells": self.cells}).encode())
            while True:
                message, _ = wire.receive(control, min(
                    self.deadline, time.monotonic() + 2 * seconds))
                if "loaded" in message:
                    control.settimeout(None)
                    return None
                if message.get("at") in known:
                    at = message["at"]
                error = message.get("error")
                if error and "NotImplementedError" not in str(error):
                    self.note(f"cell {at}: {str(error)[:200]}")
        except (wire.LateError, wire.ClosedError, wire.WireError,
                AttributeError, TypeError) as error:
            if time.monotonic() > self.deadline:
                raise Gone("the time for this submission is used up") \
                    from None
            if at is None:
                raise SandboxError(
                    "the worker ended before the first cell ("
                    f"{type(error).__name__})") from None
            hung = isinstance(error, wire.LateError)
            self.note(f"cell {at} was left out: it " + (
                f"ran for more than {2 * seconds:g} s" if hung else
                "ended the process"))
            return at

    @contextlib.contextmanager
    def link(self, seconds, **options):
        """A fresh copy of the loaded process, for one test that may take
        so many seconds of CPU time, and longer by the clock."""
        if time.monotonic() > self.deadline:
            raise Gone("the time for this submission is used up")
        if self.sandbox is None:
            self.open()
        ours, theirs = socket.socketpair()
        deadline = min(self.deadline, time.monotonic()
                       + max(2 * seconds, self.limits.test_seconds))
        with ours, theirs:
            try:
                self.sandbox.control.settimeout(5)
                socket.send_fds(self.sandbox.control,
                                [b"%04d" % min(math.ceil(seconds), 9999)],
                                [theirs.fileno()])
            except OSError:
                self.close()
                raise Gone("the process ended") from None
            theirs.close()
            try:
                yield Link(ours, deadline, **options)
            except Gone:
                self.close()
                raise

    def close(self):
        """End the sandbox with all that runs in it."""
        if self.sandbox is not None:
            self.sandbox.__exit__()
            self.sandbox = None


class Quiet(ast.NodeTransformer):
    """Takes the assertions out of a test that only sets things up."""

    def visit_Assert(self, node):
        """Leave it out."""
        return ast.copy_location(ast.Pass(), node)


def compiled(tree, name, last=False):
    """A tree as code; with `last`, its final expression apart."""
    tail = None
    if last and tree.body and isinstance(tree.body[-1], ast.Expr):
        tail = compile(ast.Expression(tree.body[-1].value), name, "eval",
                       optimize=0)
        tree = ast.Module(tree.body[:-1], [])
    # Assertions count, however this Python was started.
    return compile(tree, name, "exec", optimize=0), tail


def imports(tree):
    """The imports of an answer cell, which the tests may use too."""
    return ast.Module([n for n in tree.body if isinstance(
        n, (ast.Import, ast.ImportFrom))], [])


def execute(master, test, link):
    """Run a test and what it needs; return its final expression's value."""
    space = {"__name__": "__main__"}
    before = master.before(test)
    used = test.needs.union(
        *(c.needs for c in before if c.kind != "answer"))
    for cell in before:
        if cell.kind == "answer":
            exec(compiled(imports(cell.tree), cell.id)[0], space)
            for name in sorted(cell.makes & used):
                value, there = link.name(name)
                if there:
                    space[name] = value
        elif cell.kind == "given":
            # What it should have made is then missing where it is used.
            with contextlib.suppress(Exception):
                exec(compiled(cell.tree, cell.id)[0], space)
        else:
            tree = Quiet().visit(ast.parse(ast.unparse(cell.tree)))
            exec(compiled(ast.fix_missing_locations(tree), cell.id)[0],
                 space)
    code, tail = compiled(test.tree, test.id, last=True)
    exec(code, space)
    return eval(tail, space) if tail else None


def attempt(master, test, box, seconds, **options):
    """One run of a test: (passed, note, value, link); the options are the
    link's."""
    link = None
    try:
        with box.link(seconds, **options) as link:
            with clock(link.deadline):
                value = execute(master, test, link)
        return True, "", value, link
    except Gone as error:
        box.close()
        return False, str(error), None, link
    except SandboxError:
        raise
    except (MemoryError, RecursionError, KeyboardInterrupt, Exception
            ) as error:
        return False, explain(error), None, link


def explain(error):
    """An exception in a few words."""
    text = str(error).split("\n")[0][:200]
    kind = type(error).__name__
    if isinstance(error, AssertionError):
        return shown(text) or "the assertion did not hold"
    return shown(text if kind == "AnswerError" else f"{kind}: {text}")


def shown(text):
    """A text that any file and any terminal takes: what can't be written
    or would steer a terminal stands escaped."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode(
        "unicode_escape").decode() for c in text)


@contextlib.contextmanager
def clock(deadline):
    """Raise Gone in this process's own code, too, when time is up."""
    def late(*_):
        raise Gone("the test took too long")

    left = max(deadline - time.monotonic(), 0.01)
    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, left + 0.5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def number(value):
    """A final expression's value as points, or None."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(
            value, (int, float, np.integer, np.floating)):
        return None
    return float(value)


def run_test(master, test, box, reference):
    """A test's result: {"score", "max", "hidden", "note"}.

    A test whose process ended before its time is tried once more, so that
    nobody loses marks because the machine was out of memory for a moment.

    An answer may change the arguments that the reference answer changes. A
    test that passes although others were changed is run again with those
    changes left out, so that nobody passes by changing what the test
    compares with.
    """
    allowed = known = None
    start, seconds = time.monotonic(), box.limits.test_seconds
    if reference:
        allowed, known = set(reference["changed"]), set(reference["asked"])
        # Looping answers must leave time for the other questions.
        seconds = min(seconds, max(seconds / 5, SLOWER * reference["took"]))
    passed, note, value, link = attempt(master, test, box, seconds,
                                        known=known)
    took = time.monotonic() - start
    if note == ENDED and took < seconds:
        passed, note, value, link = attempt(master, test, box, seconds,
                                            known=known)
    if passed and reference and link.changed - allowed:
        passed, note, value, _ = attempt(master, test, box, seconds,
                                         known=known, allowed=allowed)
        if not passed:
            note = f"only after it had changed the test's data: {note}"
    score = test.points if passed else 0.0
    if passed and (reference is None or reference["partial"]):
        part = number(value)
        if part is not None and 0 <= part <= test.points:
            score = part
        elif reference and reference["partial"]:
            score = 0.0
    return {"score": score, "max": test.points, "hidden": test.hidden,
            "note": note}, {
        "changed": sorted(link.changed) if link else [],
        "asked": sorted(link.asked) if link else [], "took": took,
        "partial": number(value) == test.points and passed}


def check(master, submission, kind, limits, reference=None):
    """A submission's row, and what the reference needs to remember.

    submission: what collect.Submission is. reference: what the reference
    answer's own run returned, None for that run itself.
    """
    start = time.monotonic()
    row = {"student": submission.student, "file": submission.file,
           "assignment": master.name, "status": "refused", "score": None,
           "max": master.max, "questions": {}, "tests": {},
           "manual": master.manual, "notes": list(submission.notes),
           "reason": submission.reason, "late": submission.late,
           "sha256": None, "seconds": 0.0, "master": master.digest}
    learned = {}
    try:
        if submission.reason:
            raise Refused(submission.reason)
        data = submission.read()
        row["sha256"] = hashlib.sha256(data).hexdigest()
        cells = cells_of(data)
    except Refused as error:
        row["reason"] = shown(str(error))[:500]
        return row, learned
    box = Box(master, cells, kind, limits)
    try:
        # Public tests first: what an answer learns in a hidden one must
        # not come back to the student in a public one's note.
        found = {}
        for test in sorted(master.tests, key=lambda t: t.hidden):
            known = reference[test.id] if reference else None
            found[test.id], learned[test.id] = run_test(
                master, test, box, known)
        row["tests"] = {t.id: found[t.id] for t in master.tests}
    finally:
        box.close()
    row["notes"] += box.notes
    for name, result in row["tests"].items():
        part = row["questions"].setdefault(
            question(name), {"score": 0.0, "max": 0.0})
        part["score"] += result["score"]
        part["max"] += result["max"]
    row["score"] = math.fsum(t["score"] for t in row["tests"].values())
    row["status"] = "graded"
    row["seconds"] = round(time.monotonic() - start, 3)
    return row, learned


def quiet():
    """Send what tests and libraries print to nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    for fd in (1, 2):
        os.dup2(null, fd)
    os.close(null)
