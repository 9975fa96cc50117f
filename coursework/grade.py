"""Grade a folder of notebooks against an nbgrader master.

    python -m coursework.grade MASTER SUBMISSIONS OUT [--jobs N] [--resume]

MASTER is an nbgrader notebook or a Python file with cells; SUBMISSIONS a
folder with one folder or one file a student, or an archive of it. Writes into
OUT: results/<student>.json (one row each, whole or absent), results.jsonl,
results.csv, summary.txt. The reference answer is graded first: unless it gets
full marks, nothing is written.
"""

import argparse
import collections
import contextlib
import csv
import dataclasses
import hashlib
import importlib
import json
import os
import resource
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from tqdm import tqdm

from coursework import checker, collect, sandbox
from coursework.clean import inert
from coursework.master import load
from normlab.lab.files import replacing, write_json

HERE = Path(__file__).resolve().parent
FAILED, USAGE, BROKEN = 1, 2, 3
COLUMNS = ["student", "status", "score", "max"]
BAR = 40
ROOM = 1 << 30    # bytes that the tests of one submission may need
DECIDES = ("checker", "collect", "gradients", "master", "proxy", "sandbox",
           "source", "wire", "worker")


class GraderError(RuntimeError):
    """Nothing was graded, and why."""


@dataclasses.dataclass
class Notebook:
    """A notebook of ours in the place of a submission."""

    student: str
    notebook: object
    file: str = ""
    late: bool = False
    notes: tuple = ()
    reason: str = ""

    def read(self):
        """Its bytes."""
        return nbformat.writes(self.notebook).encode()


def code_digest(settings):
    """A fingerprint of what decides a score."""
    parts = [(HERE / f"{name}.py").read_bytes() for name in DECIDES]
    parts.append(settings.encode())
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


class Job:
    """How to grade: the master, the sandbox, its limits."""

    def __init__(self, master, kind="bubblewrap", limits=None):
        self.master, self.kind = master, kind
        self.limits = limits or sandbox.Limits()
        self.reference = None
        self.grader = code_digest(f"{kind} {self.limits}")

    def fork(self, submission, path):
        """Grade one submission in a process of its own; return its id."""
        pid = os.fork()
        if pid:
            return pid
        try:
            sandbox.die_with_parent()
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            checker.quiet()
            room = mapped() + ROOM
            resource.setrlimit(resource.RLIMIT_AS, (room, room))
            row, learned = self.check(submission)
            if self.reference is None:
                row["learned"] = learned
            write_json(path, row)
        finally:
            os._exit(0)

    def check(self, submission):
        """The row of a submission, whatever happens."""
        try:
            row, learned = checker.check(
                self.master, submission, self.kind, self.limits,
                self.reference)
        except BaseException as error:
            row, learned = self.failure(
                submission, f"{type(error).__name__}: {error}"), {}
        return {**row, "grader": self.grader}, learned

    def failure(self, submission, why):
        """The row of a submission that the grader could not grade."""
        m = self.master
        return {"student": submission.student, "file": submission.file,
                "assignment": m.name, "status": "error", "score": None,
                "max": m.max, "questions": {}, "tests": {},
                "manual": m.manual, "notes": [],
                "reason": f"the grader failed: {why}"[:500],
                "late": submission.late, "sha256": None, "seconds": 0.0,
                "master": m.digest, "grader": self.grader}

    def one(self, submission, folder):
        """A row, computed in a process of its own."""
        path = Path(folder) / "row.json"
        os.waitpid(self.fork(submission, path), 0)
        try:
            return json.loads(path.read_text())
        except FileNotFoundError:
            raise GraderError("the grader's process ended without a result "
                              "(out of memory?)") from None
        finally:
            path.unlink(missing_ok=True)

    def learn(self, folder):
        """Grade the reference answer; return tests that an unanswered
        notebook passes. Raises GraderError unless it gets full marks."""
        row = self.one(Notebook("reference", self.master.notebook), folder)
        lost = {name: t["note"] for name, t in row["tests"].items()
                if t["score"] != t["max"]}
        if row["status"] != "graded" or lost:
            raise GraderError(
                "the reference answer does not get full marks, so nothing "
                "was graded:\n" + "\n".join(
                    [f"  {k}: {v}" for k, v in lost.items()]
                    or [f"  {row['reason']}"]))
        self.reference = row["learned"]
        blank = self.one(Notebook("unanswered", self.master.student), folder)
        return [name for name, t in blank["tests"].items() if t["score"]]


def mapped():
    """The bytes of memory that this process has mapped."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def preload(master):
    """Import what the tests import, once for all processes."""
    import ast

    for cell in master.cells:
        for node in checker.imports(cell.tree).body:
            names = ([a.name for a in node.names]
                     if isinstance(node, ast.Import) else [node.module])
            for name in filter(None, names):
                with contextlib.suppress(ImportError):
                    importlib.import_module(name)


def digest_of(submission):
    """The SHA-256 of what was handed in, or None where it can't be read."""
    if submission.reason:
        return None
    try:
        return hashlib.sha256(submission.read()).hexdigest()
    except collect.Refused:
        return None


def kept(path, job, submission):
    """Whether an earlier run's row still holds."""
    try:
        row = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return False
    return (row.get("status") in ("graded", "refused")
            and row.get("grader") == job.grader
            and row.get("master") == job.master.digest
            and row.get("file") == submission.file
            and row.get("sha256") == digest_of(submission))


def run(job, todo, folder, jobs):
    """Grade submissions, `jobs` at a time; each leaves its row's file."""
    waiting = collections.deque(todo)
    running = {}
    patience = 1.5 * job.limits.total_seconds + 30
    tqdm.monitor_interval = 0  # no thread: this process forks
    bar = tqdm(total=len(todo), desc="Grading", unit="file",
               disable=not todo, mininterval=0.5)

    def end(pid):
        submission, path, _ = running.pop(pid)
        if not path.exists():
            write_json(path, job.failure(
                submission, "its process ended without a result"))
        bar.update()

    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                submission = waiting.popleft()
                path = row_path(folder, submission)
                path.unlink(missing_ok=True)
                pid = job.fork(submission, path)
                running[pid] = submission, path, time.monotonic()
            pid, _ = os.waitpid(-1, os.WNOHANG)
            if pid in running:
                end(pid)
            else:
                time.sleep(0.005)
                for pid, (*_, start) in list(running.items()):
                    if time.monotonic() - start > patience:
                        os.kill(pid, signal.SIGKILL)
    finally:
        for pid in running:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        bar.close()
        for submission in todo:  # other shards write here too
            for path in folder.glob(
                    f"{row_path(folder, submission).name}.*.tmp"):
                path.unlink()
        sandbox.sweep()


def row_path(folder, submission):
    """Where a submission's row is kept."""
    return Path(folder) / f"{collect.slug(submission.student)}.json"


def rows_of(job, submissions, folder):
    """All rows, in the order of the submissions."""
    rows = []
    for submission in submissions:
        try:
            row = json.loads(row_path(folder, submission).read_text())
        except (FileNotFoundError, ValueError):
            row = job.failure(submission, "not graded yet")
        if row["master"] != job.master.digest:
            row = job.failure(submission, "graded with another version of "
                                          "the master")
        rows.append(row)
    return rows


def write(out, rows):
    """results.jsonl and results.csv, each whole or as it was."""
    with replacing(out / "results.jsonl") as aside:
        aside.write_text("".join(json.dumps(row) + "\n" for row in rows))
    questions = sorted({q for row in rows for q in row["questions"]})
    with replacing(out / "results.csv") as aside, \
            aside.open("w", newline="", encoding="utf-8-sig",
                       errors="backslashreplace") as file:
        table = csv.writer(file)
        table.writerow([*COLUMNS, *questions, "late", "file", "sha256",
                        "reason", "notes"])
        for row in rows:
            parts = [row["questions"].get(q, {}).get("score")
                     for q in questions]
            table.writerow([inert(v) for v in [
                *(row[c] for c in COLUMNS), *parts,
                "late" if row["late"] else "", row["file"], row["sha256"],
                row["reason"], "; ".join(row["notes"])]])


def summary(rows, seconds):
    """What a teacher wants to know first, as text."""
    graded = [r for r in rows if r["status"] == "graded"]
    lines = [f"{len(rows)} submissions: {len(graded)} graded, " + ", ".join(
        f"{sum(r['status'] == s for r in rows)} {text}" for s, text in (
            ("refused", "refused"), ("error", "not graded (our fault)")))
        + f"; {seconds:.0f} s"]
    if graded:
        scores, most = [r["score"] for r in graded], graded[0]["max"]
        lines += ["", f"Points, of {most:g} that tests give: median "
                  f"{statistics.median(scores):g}, mean "
                  f"{statistics.fmean(scores):.1f}", *histogram(scores, most)]
        lines += ["", "Most often missed:", *missed(graded)]
    for row in rows:
        if row["status"] != "graded":
            lines += [f"{row['student']!r} {row['status']}: {row['reason']}"]
    return "\n".join(lines)


def histogram(scores, most):
    """How many scores lie in each tenth of the points."""
    bins = [0] * 10
    for score in scores:
        bins[min(int(10 * score / most), 9) if most else 9] += 1
    widest = max(bins)
    return [f"  {i * most / 10:5.1f} to {(i + 1) * most / 10:5.1f} "
            f"{'#' * round(BAR * n / widest):{BAR}} {n}"
            for i, n in enumerate(bins)]


def missed(graded):
    """The tests that most submissions failed, at most five."""
    counts = collections.Counter(
        name for row in graded for name, t in row["tests"].items()
        if t["score"] < t["max"])
    return [f"  {name}: {n} of {len(graded)}"
            for name, n in counts.most_common(5)] or ["  nothing"]


def arguments(argv):
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m coursework.grade",
        description="Grade notebooks against an nbgrader master.")
    add = parser.add_argument
    limits = sandbox.Limits()
    add("master", type=Path, help="nbgrader notebook, or .py with cells")
    add("submissions", type=Path, help="folder or archive")
    add("out", type=Path, help="folder for the results")
    add("--jobs", type=positive(int), default=os.cpu_count(),
        help="submissions at a time (default: one a core)")
    add("--resume", action="store_true",
        help="keep the results that are there and still hold")
    add("--sandbox", choices=sandbox.KINDS, default="bubblewrap",
        help="container: only inside a container that is thrown away")
    add("--test-seconds", type=positive(float), default=limits.test_seconds,
        help="CPU seconds that a test may take at most (default "
        "%(default)g; less where the reference answer is quick)")
    add("--total-seconds", type=positive(float),
        default=limits.total_seconds,
        help="seconds for a submission (default %(default)g)")
    add("--memory", type=positive(int), default=limits.memory >> 20,
        metavar="MIB", help="MiB for a submission (default %(default)d)")
    add("--shard", type=shard, default=(0, 1), metavar="I/N",
        help="grade only every N-th submission, from the I-th (from 0)")
    add("--merge", action="store_true",
        help="grade nothing: write the tables from the shards' results")
    return parser.parse_args(argv)


def positive(kind):
    """A parser of numbers above 0."""
    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(
                f"{text!r}; a number above 0 is needed")
        return value
    return parse


def shard(text):
    """I/N as two numbers."""
    first, _, count = text.partition("/")
    if not (first.isdigit() and count.isdigit()
            and int(first) < int(count)):
        raise argparse.ArgumentTypeError(
            f"{text!r}; I/N is needed, with I from 0 to N-1")
    return int(first), int(count)


def prepare(options):
    """The submissions and the job. Raises ValueError or GraderError."""
    master = load(options.master)
    submissions = collect.collect(options.submissions, name=master.name)
    folder = options.out / "results"
    if folder.is_dir() and any(folder.iterdir()) and not (
            options.resume or options.merge or options.shard[1] > 1):
        raise GraderError(
            f"{options.out} holds results of an earlier run: add --resume "
            "to go on with it, or name another folder")
    limits = dataclasses.replace(
        sandbox.Limits(), test_seconds=options.test_seconds,
        cell_seconds=options.test_seconds, memory=options.memory << 20,
        total_seconds=options.total_seconds)
    return submissions, Job(master, options.sandbox, limits)


def grade(options):
    """Grade as the command line says; return the exit status."""
    start = time.monotonic()
    submissions, job = prepare(options)
    first, count = options.shard
    mine = submissions[first::count]
    folder = options.out / "results"
    if not options.merge:
        why = sandbox.available(options.sandbox, [
            options.master, options.submissions])
        if why:
            raise GraderError(why)
        sandbox.sweep()
        preload(job.master)
        with tempfile.TemporaryDirectory() as aside:
            weak = job.learn(aside)
        if weak:
            print("Warning: an unanswered notebook passes "
                  + ", ".join(weak), file=sys.stderr)
        folder.mkdir(parents=True, exist_ok=True)
        todo = [s for s in mine if not kept(row_path(folder, s), job, s)]
        if len(todo) < len(mine):
            print(f"{len(mine) - len(todo)} results kept")
        run(job, todo, folder, options.jobs)
    if count > 1:
        return 0
    rows = rows_of(job, submissions, folder)
    write(options.out, rows)
    text = summary(rows, time.monotonic() - start)
    with replacing(options.out / "summary.txt") as aside:
        aside.write_text(text + "\n", "utf-8", "backslashreplace")
    print(f"{text}\nResults are in {options.out}")
    return FAILED if any(r["status"] == "error" for r in rows) else 0


def main(argv=None):
    """Grade, or say in words why not."""
    options = arguments(argv)
    try:
        return grade(options)
    except GraderError as error:
        print(f"Stopped: {error}", file=sys.stderr)
        return BROKEN
    except (ValueError, OSError) as error:
        print(f"Stopped: {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        print(f"Stopped; --resume goes on with {options.out}",
              file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
