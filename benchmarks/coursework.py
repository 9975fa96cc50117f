"""Grading: seconds for a submission beside nbgrader's autograde, and a class
of 300 with two jobs. Submissions are copies of the reference answers."""

import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat

from coursework import grade
from coursework.master import load

HOUSE = Path(__file__).resolve().parent.parent
SAMPLE = HOUSE / "coursework/sample"
MINE = 4                  # of our runs for each of nbgrader's
COPIES, JOBS, WATCHED = 300, 2, 20
GOAL, CLASS_GOAL = 0.5, 60.0  # seconds: a submission's median, the class
SAMPLING = 0.2            # seconds between two looks at the memory
ACCOUNTS = Path("/sys/fs/cgroup/cpuacct")


@contextlib.contextmanager
def metered():
    """A function that gives the processor seconds of this process and of all
    that it starts, or None where the kernel keeps no such account for us.

    An account of the kernel's, since a sandbox that is killed takes the time
    of what ran in it along. Version 2 of cgroups lacks it: there a sandbox
    has a cgroup of its own, outside of ours.
    """
    folder = ACCOUNTS / f"benchmark-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / "cgroup.procs").write_text(str(os.getpid()))
    except OSError:
        yield lambda: None
        return
    try:
        yield lambda: int((folder / "cpuacct.usage").read_text()) / 1e9
    finally:
        (ACCOUNTS / "cgroup.procs").write_text(str(os.getpid()))
        folder.rmdir()


def timed(run, used):
    """Seconds of a call by clock, and by the processor or None; `used` is
    what metered() gives."""
    before, start = used(), time.perf_counter()
    run()
    wall = time.perf_counter() - start
    if before is None:
        return wall, None
    time.sleep(0.05)  # the last processes end
    return wall, used() - before


def ours(master, folder):
    """A function that grades a copy as coursework.grade does, and the
    seconds that it takes before the first."""
    start = time.perf_counter()
    job = grade.Job(master)
    grade.preload(master)
    job.learn(folder)
    took = time.perf_counter() - start

    def run(student):
        copy = grade.Notebook(student, master.notebook)
        with contextlib.redirect_stderr(io.StringIO()):
            grade.run(job, [copy], folder, 1)
        row = json.loads(grade.row_path(folder, copy).read_text())
        full(row["score"], master, "the grader")

    return run, took


def theirs(master, folder, students):
    """A function that grades a copy with nbgrader's own interface."""
    from nbgrader.api import MissingEntry
    from nbgrader.apps import NbGraderAPI
    from traitlets.config import Config

    # nbgrader starts alembic, which lies beside this Python.
    os.environ["PATH"] = f"{sys.prefix}/bin{os.pathsep}{os.environ['PATH']}"
    name, text = master.name, nbformat.writes(master.notebook)
    for place in ["source", *(f"submitted/{s}" for s in students)]:
        path = folder / place / name / f"{name}.ipynb"
        path.parent.mkdir(parents=True)
        path.write_text(text)
    config = Config()
    config.CourseDirectory.root = str(folder)
    config.NbGrader.log_level = "ERROR"
    api = NbGraderAPI(config=config)
    made = api.generate_assignment(name)
    if not made["success"]:
        raise RuntimeError(f"nbgrader: {made['log'][-2000:]}")

    def run(student):
        done = api.autograde(name, student)
        if not done["success"]:
            raise RuntimeError(f"nbgrader: {done['log'][-2000:]}")

    def check():
        with api.gradebook as book:
            for student in students:
                try:
                    found = book.find_submission(name, student)
                except MissingEntry:
                    raise RuntimeError("nbgrader graded nothing") from None
                full(found.code_score, master, "nbgrader")

    return run, check


def full(score, master, who):
    """Raise RuntimeError unless a copy of the answer got full marks."""
    if score != master.max:
        raise RuntimeError(f"{who} gave {score} of {master.max} to the "
                           f"reference answer of {master.name}")


def measure(path, rounds):
    """One assignment, ours and nbgrader's in turn; a row of the record."""
    master = load(path)
    students = [f"s{i:03}" for i in range(rounds + 1)]
    took = {"ours": [], "nbgrader": []}
    with tempfile.TemporaryDirectory() as here, metered() as used:
        here = Path(here)
        (here / "rows").mkdir()
        run, start = ours(master, here / "rows")
        peer, check = theirs(master, here / "course", students)
        for lap, student in enumerate(students):
            mine = [timed(lambda s=f"{student}-{i}": run(s), used)
                    for i in range(MINE)]
            other = timed(lambda s=student: peer(s), used)
            if lap:  # the first warms everything up
                took["ours"] += mine
                took["nbgrader"].append(other)
        check()
    found = {who: figures(times) for who, times in took.items()}
    ratio = found["nbgrader"]["median"] / found["ours"]["median"]
    return {"assignment": master.name, "points": master.max,
            "tests": len(master.tests), "start": round(start, 3), **found,
            "ratio": round(ratio, 2)}


def figures(times):
    """What the record keeps of [(wall, processor seconds), ...]."""
    wall, used = zip(*times)
    used = None if None in used else statistics.fmean(used)
    ninety = statistics.quantiles(wall, n=20, method="inclusive")[-1] \
        if len(wall) > 1 else wall[0]
    return {"runs": len(wall), **{k: round(v, 4) for k, v in {
        "median": statistics.median(wall), "mean": statistics.fmean(wall),
        "p95": ninety, "most": max(wall)}.items()},
        "cpu": used and round(used, 4)}


def below(root):
    """The ids of a process and of all that descend from it."""
    children = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = path.read_text().rpartition(")")[2].split()[1]
            children.setdefault(int(parent), []).append(
                int(path.parent.name))
    found, waiting = [], [root]
    while waiting:
        found.append(waiting.pop())
        waiting += children.get(found[-1], [])
    return found


def memory(root):
    """MiB of a process and all below it; shared pages count once."""
    total = 0
    for pid in below(root):
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().split("\n")
            line = next(s for s in lines if s.startswith("Pss:"))
            total += int(line.split()[1])
    return total / 1024


def a_class(path, copies, jobs):
    """Grade a class by the command line; a row of the record."""
    master = load(path)
    with tempfile.TemporaryDirectory() as here, metered() as used:
        line, out = prepared(master, path, Path(here, "all"), copies, jobs)
        wall, cpu = timed(lambda: command(line), used)
        rows = [json.loads(line) for line in
                (out / "results.jsonl").read_text().splitlines()]
        # Once more: who watches, slows.
        line, _ = prepared(master, path, Path(here, "few"),
                           min(copies, WATCHED), jobs)
        peak = watched(line)
    if len(rows) != copies:
        raise RuntimeError(f"{len(rows)} rows for {copies} submissions")
    for row in rows:
        full(row["score"], master, "the grader")
    return {"assignment": master.name, "copies": copies, "jobs": jobs,
            "seconds": round(wall, 2), "cpu": cpu and round(cpu, 2),
            "each": figures([(row["seconds"], None) for row in rows]),
            "peak_MiB": round(peak)}


def prepared(master, path, folder, copies, jobs):
    """Write copies of the answer; the command that grades them, and where
    it writes."""
    text = nbformat.writes(master.notebook)
    (folder / "handed").mkdir(parents=True)
    for i in range(copies):
        (folder / f"handed/s{i:04}.ipynb").write_text(text)
    return [sys.executable, "-m", "coursework.grade", path, folder / "handed",
            folder / "out", "--jobs", str(jobs)], folder / "out"


def command(line):
    """Run a command; RuntimeError with its output if it fails."""
    done = subprocess.run(line, cwd=HOUSE, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError((done.stdout + done.stderr)[-2000:])


def watched(line):
    """The most MiB that a command and all that it starts take together."""
    most = 0.0
    with subprocess.Popen(line, cwd=HOUSE, stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            most = max(most, memory(process.pid))
            time.sleep(SAMPLING)
    if process.returncode:
        raise RuntimeError(f"{line[1:]} failed: {process.returncode}")
    return most


def apart(*arguments):
    """Measure in a fresh process; PyTorch and nbgrader slow our forks."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.coursework", *map(str, arguments)],
        cwd=HOUSE, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def shown(value):
    """A figure for the table; one that could not be had is a dash."""
    return "-" if value is None else f"{value:.2f}"


def main(rounds, copies=COPIES, folder=None):
    """Measure all assignments, print the tables and write the record."""
    from benchmarks import report  # imports PyTorch

    rows = [apart(path, rounds) for path in sorted(SAMPLE.glob("*.py"))]
    print(report.table([
        ["assignment", "median s", "p95 s", "CPU s", "nbgrader, median s",
         "CPU s", "nbgrader / ours"], *(
            [r["assignment"], *(shown(r["ours"][k]) for k in (
                "median", "p95", "cpu")), *(
                shown(r["nbgrader"][k]) for k in ("median", "cpu")),
             shown(r["ratio"])] for r in rows)]))
    crowd = apart(min(SAMPLE.glob("*.py")), "class", copies)
    print(f"\n{copies} copies of {crowd['assignment']}, {JOBS} jobs: "
          f"{crowd['seconds']:.1f} s, {shown(crowd['cpu'])} s of CPU, at "
          f"most {crowd['peak_MiB']} MiB")
    print(f"goals: median at most {GOAL} s for "
          f"{sum(r['ours']['median'] <= GOAL for r in rows)} of {len(rows)}; "
          f"{COPIES} in {CLASS_GOAL:.0f} s: "
          f"{crowd['seconds'] * COPIES / copies:.1f} s")
    print(report.write("coursework", {"assignments": rows, "class": crowd},
                       folder, rounds=rounds, jobs=JOBS, copies=copies,
                       mine_per_nbgrader=MINE))


if __name__ == "__main__":
    given, what, *more = sys.argv[1:]
    print(json.dumps(a_class(given, int(more[0]), JOBS) if what == "class"
                     else measure(given, int(what))))
