"""Hostile and broken submissions: what they deserve, and nobody else's harm.

All cases of `coursework/hostile.py` are graded in one batch, together with
right answers and an unanswered notebook, by the command line that a teacher
uses. What each case deserves was written down by hand. To look at a few of
them: COURSEWORK_CASES=duck,zip-slip pytest tests/test_coursework_hostile.py
"""

import contextlib
import csv
import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import nbformat
import pytest

sys.path.insert(0, str(Path(__file__).parent / "coursework"))
import hostile

sys.path.pop(0)
from coursework import sandbox

ROOT = Path(__file__).resolve().parent.parent
NEIGHBOURS = {f"correct-{kind}": 15.0 for kind in hostile.KINDS} | {
    "unanswered": 0.0}
ONLY = os.environ.get("COURSEWORK_CASES", "").split(",")
CASES = {case.name: case for case in hostile.CASES
         if ONLY == [""] or case.name in ONLY}
TEST_SECONDS, TOTAL_SECONDS = 2, 60
MEMORY = 1536 << 20       # bytes that two graders' own processes may take
BATCH = 1500              # seconds for the whole batch, at the very most
OUTSIDE = ("/tmp", "/var/tmp", "/dev/shm", "/root", "/home", "/", "/run",
           "/etc", "/usr", "/var", "/opt")
pytestmark = pytest.mark.timeout(BATCH + 300)

# Runs the grader, adopts whatever outlives its parent, and looks at the
# memory of all that runs outside of a sandbox.
WATCH = """\
import ctypes, json, os, pathlib, subprocess, sys, time

ctypes.CDLL(None).prctl(36, 1)
own = os.readlink("/proc/self/ns/pid")


def children(pid):
    try:
        lines = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(p) for p in lines.split()]


def trusted(pid):
    size = 0
    for child in children(pid):
        try:
            if os.readlink(f"/proc/{child}/ns/pid") != own:
                continue
            lines = pathlib.Path(f"/proc/{child}/smaps_rollup").read_text()
            size += next(int(s.split()[1]) << 10
                         for s in lines.split("\\n") if s[:4] == "Pss:")
        except (OSError, StopIteration):
            continue
        size += trusted(child)
    return size


with open(sys.argv[1], "w") as out, open(sys.argv[2], "w") as err:
    grader = subprocess.Popen(sys.argv[4:], stdout=out, stderr=err)
    peak, rounds = 0, 0
    while grader.poll() is None:
        peak = max(peak, trusted(os.getpid()))
        time.sleep(0.2)
end = time.monotonic() + 5
while children(os.getpid()) and time.monotonic() < end:
    if os.waitpid(-1, os.WNOHANG)[0] == 0:
        time.sleep(0.05)
left = []
for pid in children(os.getpid()):
    try:
        left.append(pathlib.Path(f"/proc/{pid}/cmdline").read_text())
    except OSError:
        pass
json.dump({"code": grader.returncode, "peak": peak, "left": left},
          open(sys.argv[3], "w"))
"""


# What a forged message may ask the grader itself to make: a random generator
# whose next number lies outside of its state's memory.
IMPOSSIBLE = """\
import sys
import numpy as np
from coursework import wire

kind, pos = sys.argv[1], int(sys.argv[2])
if kind == "RandomState":
    state = np.random.RandomState(1).get_state(legacy=False)
else:
    state = getattr(np.random, kind)(1).state
if kind == "Philox":
    state["buffer_pos"] = pos
else:
    state["state"]["pos"] = pos
packer = wire.Packer()
tree = {"t": "oldrng" if kind == "RandomState" else "rng",
        "v": packer.pack(state)}
try:
    rng = wire.Unpacker(b"".join(packer.parts)).unpack(tree)
except wire.WireError:
    sys.exit(0)
rng.normal(size=10)
"""


class Graded:
    """What a run of the grader left behind."""

    def __init__(self, out, seen, seconds):
        self.out, self.seconds = out, seconds
        self.code, self.peak, self.left = (
            seen["code"], seen["peak"], seen["left"])
        self.rows = [json.loads(path.read_bytes()) for path in
                     sorted((out / "results").glob("*.json"))]
        try:
            text = (out / "results.jsonl").read_bytes().decode()
        except FileNotFoundError:
            text = ""
        self.lines = [json.loads(line) for line in text.split("\n") if line]

    def told(self):
        """What the grader printed, for messages."""
        texts = [self.out.with_suffix(end).read_bytes()
                 for end in (".err", ".txt")]
        return "\n".join(t.rpartition(b"\r")[2][-1500:].decode(
            errors="replace") for t in texts)

    def row(self, name, folder, digests):
        """The one row of a student, by name, path or file's checksum."""
        names = {name, folder, os.fsdecode(folder)}
        found = [r for r in self.rows if r["student"] in names] or [
            r for r in self.rows if digests and r["sha256"] in digests] or [
            r for r in self.rows if r["file"].split("/")[0] in names]
        assert len(found) == 1, (
            f"{len(found)} rows for {folder!r}; what the grader said:\n"
            f"{self.told()}")
        return found[0]


def grade(folder, master, subs, *options):
    """Run the command line on submissions; return what came of it."""
    path, out = folder / f"{hostile.NAME}.ipynb", folder / "out"
    nbformat.write(master, path)
    temporary = folder / "temporary"
    temporary.mkdir()
    watch = folder / "watch.py"
    watch.write_text(WATCH)
    env = {**os.environ, hostile.ENV: "hc-secret", "TMPDIR": str(temporary),
           "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    start = time.monotonic()
    watched = subprocess.run(
        [sys.executable, watch, out.with_suffix(".txt"),
         out.with_suffix(".err"), folder / "seen.json",
         sys.executable, "-m", "coursework.grade", path, subs, out,
         "--jobs", "4", *options], cwd=ROOT, env=env, timeout=BATCH)
    assert watched.returncode == 0
    seen = json.loads((folder / "seen.json").read_text())
    assert not any(temporary.iterdir()), "temporary files were left"
    return Graded(out, seen, time.monotonic() - start)


def neighbours(subs):
    """Lay right answers and an unanswered notebook beside the others."""
    for name in NEIGHBOURS:
        kind = name.removeprefix("correct-")
        nb = (hostile.student() if name == "unanswered"
              else hostile.correct(kind))
        (subs / name).mkdir(parents=True)
        nbformat.write(nb, subs / name / hostile.FILE)


def picture(*folders):
    """All files below some folders, with sizes and times."""
    found = {}
    for folder in folders:
        for path in folder.rglob("*"):
            if "__pycache__" in path.parts:
                continue
            state = path.lstat()
            found[str(path)] = (state.st_mode, state.st_size
                                * (not path.is_dir()), state.st_mtime_ns)
    return found


def cgroups():
    """The control groups of this machine that are a grader's."""
    top = Path("/sys/fs/cgroup")
    return {str(p) for pattern in ("*", "*/*", "*/*/*")
            for p in top.glob(pattern + "coursework*")}


def strays():
    """Files of the cases that lie outside of their sandboxes."""
    return [str(p) for top in OUTSIDE
            for p in Path(top).glob(f"*{hostile.MARK}*")] + [
        str(p) for p in ROOT.glob(f"*{hostile.MARK}*")] + [
        str(p) for p in (ROOT / "coursework").rglob(f"*{hostile.MARK}*")]


def survivors():
    """Processes that cases have left: they name themselves."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (path / "cmdline").read_bytes()
            if (path / "comm").read_text().strip() == hostile.COMM or (
                    hostile.SLEEP.encode() in line):
                found.append((path.name, line))
    return found


@contextlib.contextmanager
def listening():
    """Listen where the cases try to connect; yields who came."""
    came, lines = [], []

    def serve(line):
        with contextlib.suppress(OSError):
            while True:
                came.append(line.accept()[1])

    for kind, where in ((socket.AF_INET, ("127.0.0.1", hostile.PORT)),
                        (socket.AF_UNIX, f"\0{hostile.MARK}")):
        line = socket.socket(kind)
        line.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        line.bind(where)
        line.listen()
        lines.append(line)
        threading.Thread(target=serve, args=(line,), daemon=True).start()
    try:
        yield came
    finally:
        for line in lines:
            line.shutdown(socket.SHUT_RDWR)
            line.close()


@pytest.fixture(scope="module", autouse=True)
def walls():
    """There is a sandbox; without one no case may run."""
    missing = sandbox.available()
    if missing:
        if os.environ.get("CI"):
            pytest.fail(f"hostile submissions were not graded: {missing}")
        pytest.skip(f"hostile submissions were not graded: {missing}")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The neighbours, graded without anybody else."""
    folder = tmp_path_factory.mktemp("alone")
    neighbours(folder / "subs")
    return grade(folder, hostile.master(), folder / "subs")


@pytest.fixture(scope="module")
def readable():
    """A folder that every user may read, so that nothing but the sandbox
    hides what lies there."""
    folder = Path(tempfile.mkdtemp(prefix="hostile-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(os.fsencode(folder))


@pytest.fixture(scope="module")
def batch(readable):
    """All cases and the neighbours, graded together; and what else changed
    meanwhile."""
    folder = readable
    subs, canary = folder / "subs", folder / "canary"
    neighbours(subs)
    for case in CASES.values():
        hostile.write(case, subs)
    canary.mkdir()
    (canary / "gradebook.db").write_bytes(b"SQLite format 3\0")
    shutil.copy(canary / "gradebook.db", subs.parent / "gradebook.db")
    watched = (ROOT / "coursework", canary)
    before = picture(*watched), picture(subs), cgroups(), strays()
    with listening() as came:
        graded = grade(folder, hostile.master(), subs, "--test-seconds",
                       str(TEST_SECONDS), "--total-seconds",
                       str(TOTAL_SECONDS))
    graded.digests = {name: {
        hashlib.sha256(what).hexdigest()
        for what in case.files.values() if isinstance(what, bytes)}
        for name, case in CASES.items() if case.folder is not None}
    graded.before, graded.came, graded.subs = before, came, subs
    graded.watched = watched
    return graded


def test_every_submission_has_a_row(batch):
    assert batch.code == 0, batch.told()
    assert len(batch.rows) == len(CASES) + len(NEIGHBOURS), batch.told()
    assert sorted(map(json.dumps, batch.rows)) == sorted(
        map(json.dumps, batch.lines))
    errors = {r["student"]: r["reason"] for r in batch.rows
              if r["status"] == "error"}
    assert not errors


@pytest.mark.parametrize("name", CASES)
def test_case(batch, name):
    case = CASES[name]
    row = batch.row(name, case.place, batch.digests.get(name))
    told = json.dumps({k: row[k] for k in (
        "student", "file", "status", "score", "reason", "notes", "seconds")})
    told += "".join(f"\n  {k}: {t['score']:g} of {t['max']:g} {t['note']!r}"
                    for k, t in row["tests"].items())
    assert row["status"] in ({"graded", "refused"} if case.status == "either"
                             else {case.status}), told
    if row["status"] == "refused":
        assert row["score"] is None, told
        assert row["reason"], told
        return
    lost = [t for t in row["tests"].values() if t["score"] < t["max"]]
    assert all(t["note"] for t in lost), told
    points = {q: part["score"] for q, part in row["questions"].items()}
    assert row["max"] == 15.0, told
    if case.at_most:
        assert 0 <= row["score"] <= case.honest, told
        assert all(0 <= points[q] <= most for q, most in
                   case.question_scores.items()), told
    else:
        assert row["score"] == case.honest, told
        assert points == case.question_scores, told


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_neighbours_are_graded_as_if_alone(alone, batch, name):
    one, other = (run.row(name, name, ()) for run in (alone, batch))
    assert one["score"] == NEIGHBOURS[name]
    same = {"seconds": 0, "grader": "a fingerprint of its code"}
    assert {**one, **same} == {**other, **same}


def test_hidden_data_do_not_reach_public_notes(batch):
    """Public notes are what students may read."""
    if "carried-over" not in CASES:
        pytest.skip("the case was left out")
    row = batch.row("carried-over", "carried-over", ())
    shown = row["notes"] + [t["note"] for t in row["tests"].values()
                            if not t["hidden"]]
    assert not [note for note in shown if "hc-seen" in note]


def test_nothing_was_written_outside(batch):
    files, subs, _, stray = batch.before
    assert picture(*batch.watched) == files
    assert picture(batch.subs) == subs
    assert strays() == stray
    inside = {p.name for p in batch.out.iterdir()}
    assert not [n for n in inside if hostile.MARK in n], inside
    assert {p.name for p in batch.out.parent.iterdir()} == {
        "subs", "canary", "out", "temporary", "watch.py", "seen.json",
        "out.txt", "out.err", "gradebook.db", hostile.FILE}


def test_nobody_came_through(batch):
    assert batch.came == []


def test_no_process_is_left(batch):
    assert batch.left == []
    assert survivors() == []


def test_no_control_group_is_left(batch):
    new = cgroups() - batch.before[2]
    end = time.monotonic() + 20  # another grader's may come and go
    while new and time.monotonic() < end:
        time.sleep(0.5)
        new &= cgroups()
    assert not new


def test_the_grader_itself_stays_small(batch):
    assert batch.peak < MEMORY, f"{batch.peak / 2 ** 30:.1f} GiB"


def test_no_submission_takes_long(batch):
    slow = {r["student"]: r["seconds"] for r in batch.rows
            if r["seconds"] > 1.5 * TOTAL_SECONDS}
    assert not slow


def test_rows_and_files_stay_small(batch):
    sizes = {r["student"]: len(json.dumps(r)) for r in batch.rows}
    assert max(sizes.values()) < 64_000, sizes
    files = {p.name: p.stat().st_size for p in batch.out.rglob("*.json")}
    assert max(files.values()) < 64_000
    assert len(files) == len(batch.rows)


def test_the_table_holds_no_formula_and_each_row_once(batch):
    text = (batch.out / "results.csv").read_bytes().decode("utf-8-sig")
    table = list(csv.reader(io.StringIO(text, newline="")))
    assert len(table) == 1 + len(batch.rows)
    assert len({len(row) for row in table}) == 1
    risky = [c for row in table for c in row if c[:1] in tuple("=+-@\t\r")]
    assert not risky


def test_pages_show_no_script(batch):
    for path in batch.out.rglob("*.html"):
        text = path.read_text(errors="replace").lower()
        assert hostile.SCRIPT not in text, path
        assert "<img src=x onerror" not in text, path


def test_a_broken_master_publishes_nothing(tmp_path):
    neighbours(tmp_path / "subs")
    graded = grade(tmp_path, hostile.broken_master(), tmp_path / "subs")
    assert graded.code != 0, graded.told()
    assert "q2-weights" in graded.told()
    assert graded.rows == graded.lines == []
    left = [p for p in graded.out.rglob("*") if p.is_file()]
    assert left == []


def test_a_loop_costs_its_own_questions_only(tmp_path):
    """With a fifth of the time that is the default."""
    limits = sandbox.Limits()
    looping = hostile.answered(hostile.without(
        q1="def forward(*_):\n    while True:\n        pass"))
    (tmp_path / "subs/eve").mkdir(parents=True)
    (tmp_path / "subs/eve" / hostile.FILE).write_bytes(
        hostile.as_bytes(looping))
    graded = grade(tmp_path, hostile.master(), tmp_path / "subs",
                   "--test-seconds", str(limits.test_seconds / 5),
                   "--total-seconds", str(limits.total_seconds / 2))
    row, = graded.rows
    points = {q: part["score"] for q, part in row["questions"].items()}
    assert points == {"q1": 0, "q2": 5, "q3": 0, "q4": 3}, row


def test_a_second_run_gives_the_same_rows(alone):
    before = {p.name: p.read_bytes() for p in
              (alone.out / "results").glob("*.json")}
    folder = alone.out.parent
    subprocess.run(
        [sys.executable, "-m", "coursework.grade",
         folder / f"{hostile.NAME}.ipynb", folder / "subs", alone.out,
         "--jobs", "2", "--resume"], cwd=ROOT, check=True,
        capture_output=True, timeout=BATCH)
    assert before == {p.name: p.read_bytes() for p in
                      (alone.out / "results").glob("*.json")}


@pytest.mark.parametrize("pos", [10 ** 9, -10 ** 9])
@pytest.mark.parametrize("kind", ["MT19937", "Philox", "RandomState"])
def test_no_message_makes_an_impossible_generator(kind, pos):
    done = subprocess.run(
        [sys.executable, "-c", IMPOSSIBLE, kind, str(pos)], cwd=ROOT,
        capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, (done.returncode, done.stderr)


@pytest.mark.parametrize("kind", hostile.KINDS)
def test_a_right_notebook_is_valid(kind):
    nbformat.validate(hostile.correct(kind))


def test_the_students_notebook_gives_nothing_away():
    nb = hostile.student()
    nbformat.validate(nb)
    text = json.dumps(nb)
    for secret in (hostile.SECRET, "HIDDEN", "SOLUTION", "no spread",
                   "largemean", "self.xhat", "ddof"):
        assert secret not in text
    assert sum(p for p, _, _ in hostile.TESTS.values()) == 15
    assert [h for _, h, _ in hostile.TESTS.values()].count(False) == 4


@pytest.mark.parametrize("name", CASES)
def test_a_case_is_in_order(name):
    case = CASES[name]
    assert case.why and case.files
    assert case.status in ("graded", "refused", "either")
    assert case.status == "either" or (
        (case.honest is None) == (case.status == "refused"))
    if case.question_scores:
        assert sum(case.question_scores.values()) == case.honest
        assert all(0 <= v <= hostile.MAX[q]
                   for q, v in case.question_scores.items())
