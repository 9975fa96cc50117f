"""The grader: right answers, classic bugs, any master, kills."""

import json
import os
import shutil
import signal
import subprocess
import time

import coursework_cases as cases
import nbformat
import pytest
from coursework_cases import NAMES, SAMPLE

from coursework import grade, sandbox, source
from normlab.lab.files import replacing


@pytest.fixture(scope="module", autouse=True)
def _sandbox():
    cases.need_sandbox()


@pytest.fixture(scope="module", params=NAMES)
def batch(request, tmp_path_factory):
    """A sample master's answers and mutants, graded in one batch."""
    name = request.param
    made = {f"variant-{v}": cases.variant(name, v)
            for v in cases.variants(name)}
    made["reference"] = cases.answered(cases.master(name))
    made["blank"] = source.student(cases.master(name))
    for bug, _, old, new in cases.mutants(name):
        made[f"mutant-{bug}"] = cases.mutant(name, old, new)
    rows = cases.graded(SAMPLE / f"{name}.py",
                        tmp_path_factory.mktemp(name), made)
    assert set(rows) == set(made)
    return name, rows


def test_every_right_answer_gets_full_marks(batch):
    name, rows = batch
    right = {k: r for k, r in rows.items()
             if k.startswith(("variant", "reference"))}
    assert len(right) >= 5
    for student, row in right.items():
        lost = {k: t["note"] for k, t in row["tests"].items()
                if t["score"] < t["max"]}
        assert row["status"] == "graded" and not lost, (student, lost)
        assert row["score"] == row["max"] > 0


def test_an_unanswered_notebook_gets_nothing(batch):
    _, rows = batch
    assert rows["blank"]["status"] == "graded"
    assert rows["blank"]["score"] == 0


def test_every_bug_loses_marks_in_its_question(batch):
    name, rows = batch
    bugs = cases.mutants(name)
    assert len(bugs) >= 10
    for bug, question, *_ in bugs:
        row = rows[f"mutant-{bug}"]
        part = row["questions"][question]
        assert part["score"] < part["max"], bug


def test_most_bugs_lose_marks_in_no_other_question(batch):
    name, rows = batch
    alone = [all(p["score"] == p["max"] for q, p in
                 rows[f"mutant-{bug}"]["questions"].items() if q != question)
             for bug, question, *_ in cases.mutants(name)]
    # In a3 question 3 is built from the answers to 1 and 2.
    share = 0.6 if name == "a3-autograd" else 0.9
    assert sum(alone) >= share * len(alone)


def test_rows_say_what_was_graded(batch):
    name, rows = batch
    for row in rows.values():
        assert row["assignment"] == name
        assert len(row["sha256"]) == len(row["master"]) == 64
        assert row["manual"] and row["seconds"] > 0
        assert sum(t["score"] for t in row["tests"].values()) == row["score"]


def cell(kind, source_, grade_id, points=None):
    """A cell of an nbgrader master."""
    new = (nbformat.v4.new_markdown_cell if kind == "text"
           else nbformat.v4.new_code_cell)(source_)
    if kind:
        new.metadata["nbgrader"] = {
            "schema_version": 3, "grade_id": grade_id, "task": False,
            "solution": kind in ("answer", "text"), "locked": True,
            "grade": kind in ("test", "text"),
            **({"points": points} if points else {})}
    return new


def answer(text, stub="raise NotImplementedError()"):
    """The lines of an answer cell, with nbgrader's marks."""
    head, *body = text.strip("\n").split("\n")
    return "\n".join([head, "    ### BEGIN SOLUTION", *body,
                      "    ### END SOLUTION"])


ANY = [
    (None, "import numpy as np\nfrom math import sqrt", "i"),
    (None, "np.random.seed(3)\nDATA = [1.0, 2.0, 4.0]", "d"),
    (None, "def helper(f, x):\n    return f(x) + 1", "h"),
    ("answer", answer("""
def stats(x):
    m = sum(x) / len(x)
    return {"mean": m, "all": (m, [v - m for v in x])}"""), "a1"),
    ("test", "s = stats(DATA)\nassert abs(s['mean'] - 7 / 3) < 1e-12\n"
     "assert isinstance(s['all'], tuple) and len(s['all'][1]) == 3",
     "t-dict", 1),
    ("answer", answer("""
def forward(x):
    class Cache:
        pass
    cache = Cache()
    cache.x, cache.f = x, lambda v: 2 * v
    return 2 * x, cache"""), "a2"),
    ("answer", answer("""
def backward(dy, cache):
    return cache.f(dy) + 0 * cache.x"""), "a3"),
    ("test", "### BEGIN HIDDEN TESTS\nx = np.arange(6.0).reshape(2, 3)\n"
     "y, cache = forward(x)\nassert y.shape == x.shape\n"
     "assert np.array_equal(backward(y, cache), 4 * x)\n"
     "assert np.array_equal(helper(lambda v: forward(v)[0], x), 2 * x + 1)\n"
     "### END HIDDEN TESTS", "t-opaque", 2),
    ("answer", answer("""
def update(state, x, rng):
    state["n"] += 1
    state["sum"] += x
    x[:] = 0
    return rng.normal(), np.random.rand()"""), "a4"),
    ("test", "state = {'n': 0, 'sum': np.zeros(2)}\nkept = state['sum']\n"
     "x = np.ones(2)\nrng = np.random.default_rng(5)\nnp.random.seed(7)\n"
     "a, b = update(state, x, rng)\nassert state['n'] == 1\n"
     "assert kept is state['sum'] and kept.tolist() == [1, 1]\n"
     "assert x.tolist() == [0, 0]\n"
     "same = np.random.default_rng(5)\nassert same.normal() == a\n"
     "assert same.normal() == rng.normal()\n"
     "np.random.seed(7)\nassert np.random.rand() == b", "t-change", 2),
    ("answer", answer("""
def root(f, a, b):
    if a > b:
        raise ValueError("a is above b")
    while b - a > 1e-9:
        m = (a + b) / 2
        a, b = (m, b) if f(m) < 0 else (a, m)
    return a"""), "a5"),
    ("test", "assert abs(root(lambda v: v * v - 2, 0, 2) - sqrt(2)) < 1e-6\n"
     "try:\n    root(abs, 1, 0)\nexcept ValueError as error:\n"
     "    assert 'above' in str(error)\n"
     "else:\n    raise AssertionError('no error')", "t-callback", 1),
    ("answer", answer("""
class Layer:
    def __init__(self, c):
        self.weight = np.ones(c)
        self.training = True
    def __call__(self, x):
        return self.weight * x
    def eval(self):
        self.training = False
        return self
    def __len__(self):
        return len(self.weight)
    def __iter__(self):
        return iter(self.weight)
    def __add__(self, other):
        return Layer(len(self) + other)"""), "a6"),
    ("test", "layer = Layer(3)\nassert isinstance(layer, Layer)\n"
     "assert layer.training and not layer.eval().training\n"
     "layer.weight = 2 * layer.weight\nassert layer(np.ones(3)).sum() == 6\n"
     "assert len(layer) == 3 and len(layer + 2) == 5\n"
     "assert [float(v) for v in layer] == [2, 2, 2]\n"
     "### BEGIN HIDDEN TESTS\nassert not isinstance(4, Layer)\n"
     "### END HIDDEN TESTS", "t-class", 3),
    ("answer", "### BEGIN SOLUTION\ncount = 42\n### END SOLUTION", "a7"),
    ("test", "parts = [count == 42, count > 0]\nsum(parts)", "t-part", 2),
    ("text", "### BEGIN SOLUTION\nbecause\n### END SOLUTION", "free", 5),
]


@pytest.fixture(scope="module")
def general(tmp_path_factory):
    """A master that is none of the book's."""
    path = tmp_path_factory.mktemp("any") / "any.ipynb"
    nb = nbformat.v4.new_notebook(cells=[cell(*c) for c in ANY])
    nbformat.write(nb, path)
    return path, source.read(path)


def test_any_master(general, tmp_path):
    """Tuples, dicts, opaque caches, callbacks, classes, changed arguments,
    generators, exceptions; metadata lost; part of a test's points."""
    path, nb = general
    bare = cases.answered(nb)
    for c in bare.cells:
        c.metadata = {}
    one = cases.answered(nb)
    for c in one.cells:
        c.source = c.source.replace("count = 42", "count = 41")
    forgetful = cases.answered(nb)
    del forgetful.cells[0:3]
    rows = cases.graded(path, tmp_path, {
        "full": cases.answered(nb), "bare": bare, "blank": source.student(nb),
        "one": one, "forgetful": forgetful})
    for who in ("full", "bare", "forgetful"):
        assert rows[who]["score"] == 11, rows[who]["tests"]
    assert rows["blank"]["score"] == 0
    assert rows["one"]["score"] == 10
    assert rows["one"]["tests"]["t-part"]["score"] == 1
    assert rows["full"]["manual"] == {"free": 5.0}
    assert rows["full"]["tests"]["t-class"]["hidden"]
    assert not rows["full"]["tests"]["t-dict"]["hidden"]
    table = {r["student"]: r
             for r in cases.table(tmp_path / "out/results.csv")}
    assert table["one"]["score"] == "10" and table["one"]["t-part"] == "1"
    lines = (tmp_path / "out/results.jsonl").read_text().splitlines()
    assert [json.loads(s)["student"] for s in lines] == sorted(rows)
    assert "5 submissions: 5 graded" in (
        tmp_path / "out/summary.txt").read_text()


def test_nobody_passes_by_changing_what_is_compared(tmp_path):
    """An answer that makes the test's own data fit."""
    nb = nbformat.v4.new_notebook(cells=[cell(*c) for c in [
        (None, "import numpy as np", "i"),
        ("answer", answer("def centre(x):\n    return x - x.mean()"), "a"),
        ("test", "x = np.array([1.0, 2.0, 6.0])\ny = centre(x)\n"
         "assert np.allclose(y, x - x.mean())", "q1", 1)]])
    nbformat.write(nb, tmp_path / "m.ipynb")
    honest, cheat, tidy = (cases.answered(nb) for _ in range(3))
    cheat.cells[1].source = "def centre(x):\n    x[:] = 0\n    return x"
    tidy.cells[1].source = (
        "def centre(x):\n    m = x.mean()\n    x -= m\n    y = x.copy()\n"
        "    x += m\n    return y")
    rows = cases.graded(tmp_path / "m.ipynb", tmp_path, {
        "honest": honest, "cheat": cheat, "tidy": tidy})
    assert {k: r["score"] for k, r in rows.items()} == {
        "honest": 1, "cheat": 0, "tidy": 1}
    assert "changed the test's data" in rows["cheat"]["tests"]["q1"]["note"]


def test_an_object_does_not_pass_for_data(tmp_path):
    """Objects that have the right shape, end a loop, or say yes."""
    nb = nbformat.v4.new_notebook(cells=[cell(*c) for c in [
        (None, "import numpy as np", "i"),
        ("answer", answer("def double(x):\n    return 2 * x"), "a"),
        ("test", "y = double(np.ones(3))\nassert y.shape == (3,)", "q1", 1),
        ("test", "assert all(map(lambda v: double(v) == 2 * v, [1, 2, 3]))",
         "q2", 1),
        ("test", "assert 2 in double([2])", "q3", 1)]])
    nbformat.write(nb, tmp_path / "m.ipynb")
    duck, stop, yes = (cases.answered(nb) for _ in range(3))
    duck.cells[1].source = ("class Duck:\n    shape = (3,)\n"
                            "def double(x):\n    return Duck()")
    stop.cells[1].source = "def double(x):\n    raise StopIteration"
    yes.cells[1].source = (
        "class Yes:\n    def __eq__(self, other):\n        return True\n"
        "    def __contains__(self, x):\n        return True\n"
        "    def __bool__(self):\n        return True\n"
        "def double(x):\n    return Yes()")
    rows = cases.graded(tmp_path / "m.ipynb", tmp_path, {
        "honest": cases.answered(nb), "duck": duck, "stop": stop, "yes": yes})
    assert {k: r["score"] for k, r in rows.items()} == {
        "honest": 3, "duck": 0, "stop": 0, "yes": 0}


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_that_returns_nothing_earns_nothing(name, tmp_path):
    """Every function returns an empty tuple, every class is empty."""
    nb = source.student(cases.master(name))
    empty = "\n".join(
        f"def {answer}(*args, **kwargs):\n    return ()"
        for answer in sorted(grade.load(SAMPLE / f"{name}.py").names))
    nb.cells.append(nbformat.v4.new_code_cell(empty))
    rows = cases.graded(SAMPLE / f"{name}.py", tmp_path, {"empty": nb})
    assert rows["empty"]["score"] == 0, {
        k: t["score"] for k, t in rows["empty"]["tests"].items()}


def test_assertions_count_however_python_was_started(tmp_path):
    nb = nbformat.v4.new_notebook(cells=[cell(*c) for c in [
        ("answer", answer("def one():\n    return 1"), "a"),
        ("test", "import numpy as np\nassert one() == 1\n"
         "np.sum([one() == 1, one() > 0])", "q1", 2)]])
    nbformat.write(nb, tmp_path / "m.ipynb")
    wrong, half = cases.answered(nb), cases.answered(nb)
    wrong.cells[0].source = "def one():\n    return 2"
    half.cells[0].source = (
        "calls = []\ndef one():\n    calls.append(1)\n"
        "    return 1 if len(calls) < 3 else 0")
    subs = cases.write(tmp_path / "subs", {"wrong": wrong, "half": half})
    done = subprocess.run(
        cases.command(tmp_path / "m.ipynb", subs, tmp_path / "out"),
        cwd=cases.ROOT, capture_output=True, text=True, timeout=100,
        env={**os.environ, "PYTHONOPTIMIZE": "1"})
    assert done.returncode == 0, done.stderr
    rows = cases.rows(tmp_path / "out")
    assert rows["wrong"]["score"] == 0
    assert rows["half"]["score"] == 1


def test_a_callback_that_asserts_fails_its_test(tmp_path):
    nb = nbformat.v4.new_notebook(cells=[cell(*c) for c in [
        ("answer", answer("def use(f):\n    return f(1)"), "a"),
        ("test", "def f(x):\n    assert x == 1\n    return x\n"
         "assert use(f) in (1, None)", "q1", 1)]])
    nbformat.write(nb, tmp_path / "m.ipynb")
    silent = cases.answered(nb)
    silent.cells[0].source = (
        "def use(f):\n    try:\n        return f(2)\n"
        "    except Exception:\n        return None")
    rows = cases.graded(tmp_path / "m.ipynb", tmp_path, {
        "honest": cases.answered(nb), "silent": silent})
    assert (rows["honest"]["score"], rows["silent"]["score"]) == (1, 0)


@pytest.mark.parametrize("broken", ["wrong", "raises", "loops"])
def test_a_broken_master_publishes_nothing(general, tmp_path, broken):
    path, nb = general
    nb = nbformat.from_dict(nb)
    change = {"wrong": "return 3 * x, cache", "raises": "raise OSError",
              "loops": "while True: pass"}[broken]
    for c in nb.cells:
        c.source = c.source.replace("return 2 * x, cache", change)
    nbformat.write(nb, tmp_path / "any.ipynb")
    subs = cases.write(tmp_path / "subs", {"ada": cases.answered(nb)})
    done = cases.grade(tmp_path / "any.ipynb", subs, tmp_path / "out",
                       "--test-seconds", 1)
    assert done.returncode == grade.BROKEN
    assert "t-opaque" in done.stderr and "Traceback" not in done.stderr
    assert not any(p.is_file() for p in (tmp_path / "out").rglob("*"))


def test_kill_and_resume(general, tmp_path):
    path, nb = general
    full = cases.answered(nb)
    subs = cases.write(tmp_path / "subs", {f"s{i:02}": full
                                           for i in range(24)})
    out = tmp_path / "out"
    child = subprocess.Popen(
        cases.command(path, subs, out, "--jobs", 2), cwd=cases.ROOT,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(3000):
        if len(list((out / "results").glob("*.json"))) >= 6:
            break
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    time.sleep(0.5)
    first = {p: p.stat().st_mtime_ns for p in (out / "results").glob("*.json")}
    assert 6 <= len(first) < 24
    for p in first:
        json.loads(p.read_text())
    done = cases.grade(path, subs, out, "--jobs", 2)
    assert done.returncode == grade.BROKEN and "--resume" in done.stderr
    (subs / "s00.ipynb").write_bytes(b"{")
    done = cases.grade(path, subs, out, "--jobs", 2, "--resume")
    assert done.returncode == 0 and "results kept" in done.stdout
    rows = cases.rows(out)
    assert len(rows) == 24
    assert rows.pop("s00")["status"] == "refused"
    assert all(r["score"] == 11 for r in rows.values())
    kept = [p for p, t in first.items() if p.stat().st_mtime_ns == t]
    assert len(kept) >= len(first) - 1
    assert not list(out.rglob("*.tmp")) and not leftovers()


def leftovers():
    """Processes of throw-away users, and cgroups that nobody needs."""
    users = range(sandbox.USERS, sandbox.USERS + sandbox.COUNT)
    alive = [pid for pid in os.listdir("/proc")
             if pid.isdigit() and owner(pid) in users]
    groups = [g for g in [*sandbox.CGROUPS.glob("coursework-*"),
                          *sandbox.CGROUPS.glob("*/coursework-*")]
              if not os.path.exists(f"/proc/{g.name.split('-')[1]}")]
    return alive + groups


def owner(pid):
    """The user of a process, or None if it has ended."""
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None


def test_shards_and_merge_give_what_one_run_gives(general, tmp_path):
    path, nb = general
    made = {f"s{i}": cases.answered(nb) if i % 2 else source.student(nb)
            for i in range(5)}
    whole = cases.graded(path, tmp_path, made)
    for i in range(3):
        done = cases.grade(path, tmp_path / "subs", tmp_path / "parts",
                           "--shard", f"{i}/3", "--jobs", 1)
        assert done.returncode == 0, done.stderr
    assert not (tmp_path / "parts/results.csv").exists()
    done = cases.grade(path, tmp_path / "subs", tmp_path / "parts", "--merge")
    assert done.returncode == 0, done.stderr
    parts = cases.rows(tmp_path / "parts")
    for row in [*whole.values(), *parts.values()]:
        row.pop("seconds")
    assert parts == whole
    one = next((tmp_path / "parts/results").glob("s0*"))
    one.unlink()
    done = cases.grade(path, tmp_path / "subs", tmp_path / "parts", "--merge")
    assert done.returncode == grade.FAILED
    assert "not graded yet" in done.stdout


@pytest.mark.parametrize("options, text", [
    (["--jobs", "0"], "above 0"), (["--jobs", "x"], "'x'"),
    (["--test-seconds", "nan"], "'nan'"), (["--shard", "3/3"], "I/N"),
    (["--memory", "-1"], "above 0"), (["--sandbox", "none"], "bubblewrap")])
def test_nonsense_options(general, tmp_path, options, text):
    path, nb = general
    subs = cases.write(tmp_path / "subs", {"a": source.student(nb)})
    done = cases.grade(path, subs, tmp_path / "out", *options)
    assert done.returncode == 2 and text in done.stderr
    assert not (tmp_path / "out").exists()


def test_missing_things(general, tmp_path):
    path, nb = general
    subs = cases.write(tmp_path / "subs", {"a": source.student(nb)})
    (tmp_path / "bad.ipynb").write_text("{}")
    (tmp_path / "empty").mkdir()
    for args, text in [
            ((tmp_path / "no.ipynb", subs), "no.ipynb"),
            ((tmp_path / "bad.ipynb", subs), "bad.ipynb"),
            ((path, tmp_path / "nowhere"), "nowhere"),
            ((path, tmp_path / "empty"), "empty")]:
        done = cases.grade(*args, tmp_path / "out")
        assert done.returncode == 2 and text in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "out").exists()


def test_no_sandbox_means_no_grading(general, tmp_path):
    """Without bwrap nothing is graded, and the text says how to get it."""
    path, nb = general
    subs = cases.write(tmp_path / "subs", {"a": cases.answered(nb)})
    done = subprocess.run(
        cases.command(path, subs, tmp_path / "out"), cwd=cases.ROOT,
        capture_output=True, text=True, timeout=60,
        env={**os.environ, "PATH": str(tmp_path)})
    assert done.returncode == grade.BROKEN
    assert "apt install bubblewrap" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_grader_that_fails_says_so_and_gives_no_mark(general, tmp_path,
                                                       monkeypatch):
    """The grader's own failure is neither a zero nor lost."""
    path, nb = general
    job = grade.Job(grade.load(path))
    job.reference = {}
    submission = grade.Notebook("ada", cases.answered(nb))
    job.kind = "no such sandbox"
    monkeypatch.setattr(sandbox, "bubblewrap",
                        lambda *a: ["/no/such/program"])
    row, _ = job.check(submission)
    assert row["status"] == "error" and row["score"] is None
    assert "grader failed" in row["reason"]


def test_two_sandboxes_never_share_a_user():
    first, second = sandbox.claim(), sandbox.claim()
    assert first[0] != second[0]
    first[1].close()
    again = sandbox.claim()
    assert again[0] == first[0]
    again[1].close()
    second[1].close()


def test_formulas_stay_text_in_the_table():
    for text in ("=1+1", "+cmd", "-2+3", "@x", "\t=1"):
        assert grade.inert(text) == "'" + text
    assert grade.inert(-2.0) == "-2" and grade.inert(None) == ""


def test_replacing_is_what_results_are_written_with(tmp_path):
    with pytest.raises(RuntimeError):
        with replacing(tmp_path / "row.json") as aside:
            aside.write_text("half")
            raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_container_kind_closes_the_master(general, tmp_path):
    """The kind for containers refuses while students could read masters."""
    if os.geteuid() or not shutil.which("setpriv"):
        pytest.skip("only root can give a process to another user")
    os.chmod(tmp_path, 0o755)
    open_file = tmp_path / "open.ipynb"
    open_file.write_text("x")
    os.chmod(open_file, 0o644)
    reached = all(os.stat(p).st_mode & 0o001 for p in open_file.parents)
    if reached:
        why = sandbox.available("container", [open_file])
        assert why and "open.ipynb" in why
    os.chmod(open_file, 0o600)
    assert "open.ipynb" not in str(sandbox.available("container",
                                                     [open_file]))
