"""Grading in a container, on Kubernetes and on Slurm, without any of them:
their own command lines run here, in something like their containers."""

import glob
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import kubernetes_validate
import nbformat
import pytest
import yaml

from benchmarks import coursework as benchmark
from coursework import gradescope, sandbox, source
from coursework.cluster import cost
from coursework.master import load

ROOT = gradescope.HOUSE
CLUSTER = ROOT / "coursework/cluster"
CONTAINERFILE = CLUSTER / "Containerfile"
SLURM = CLUSTER / "slurm.sh"
MASTER = '''\
# %%
import numpy as np

# %% answer="q1-centre"
def centre(x):
    """Return x (N, C) less its batch's mean (C,)."""
    ### BEGIN SOLUTION
    return x - x.mean(axis=0)
    ### END SOLUTION

# %% test="q1-shape" points=1
assert centre(np.ones((3, 2))).shape == (3, 2), "y must have x's shape"

# %% test="q1-mean" points=2
### BEGIN HIDDEN TESTS
x = np.arange(6.0).reshape(3, 2)
assert np.allclose(centre(x), [[-2, -2], [0, 0], [2, 2]]), "a mean"
### END HIDDEN TESTS
'''
RIGHT = "def centre(x):\n    return x - x.mean(axis=0)\n"
LITTER = '''
import os, subprocess
subprocess.Popen(["sleep", "600"], start_new_session=True)
os.mkdir("/tmp/litter", 0o700)
open("/tmp/litter/closed", "w").close()
os.chmod("/tmp/litter", 0)
seen = []
for path in ["/course", "/course/master", "/course/submissions",
             "/course/out", "/course/master/a1-layer.ipynb"]:
    try:
        seen.append(str(os.stat(path)) + str(os.listdir(path)))
    except NotADirectoryError:
        seen.append(path)
    except OSError:
        pass
if len(seen) > 1 or "[" in "".join(seen).partition(")")[2]:
    raise RuntimeError("SEEN " + "".join(seen))
'''
SLOW = "import time\ntime.sleep(4)\n"
# With six indexes ada and gus are one index's, bea and hal another's.
STUDENTS = {
    "ada": [RIGHT], "bea": ["def centre(x):\n    return x + 7\n"],
    "cy": [], "dan": ["import os\ndef centre(x):\n    os._exit(0)\n"],
    "eve": b"no notebook", "fay": [RIGHT + LITTER], "gus": [SLOW, RIGHT],
    "hal": [RIGHT, "raise ValueError('mine')"]}
SCORES = {"ada": 3, "bea": 1, "cy": 0, "dan": 0, "eve": None, "fay": 3,
          "gus": 3, "hal": 3}


def missing(why):
    """Skip, or on the machine that has to run everything fail."""
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(f"not run: {why}")


# What the files say.


def documents():
    return list(yaml.safe_load_all(
        (CLUSTER / "kubernetes.yaml").read_text()))


def job(name):
    return next(d for d in documents()
                if (d["kind"], d["metadata"]["name"]) == ("Job", name))


def pod(name):
    return job(name)["spec"]["template"]["spec"]


def container(name):
    return pod(name)["containers"][0]


def command(name, index=0):
    """A job's command line as the kubelet makes it for an index."""
    return [part.replace("$(JOB_COMPLETION_INDEX)", str(index))
            for part in container(name)["command"]]


def instructions():
    """The Containerfile's instructions: [(name, text), ...]."""
    lines = [line for line in CONTAINERFILE.read_text().splitlines()
             if not line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines()
            if line.strip()]


def copies():
    """What the image gets: {path in the image: file of the project}."""
    found = {}
    for name, text in instructions():
        if name == "COPY":
            *sources, target = text.split()
            for pattern in sources:
                paths = glob.glob(pattern, root_dir=ROOT)
                assert paths, f"COPY {pattern}: there is no such file"
                assert target.endswith("/")
                found |= {target + Path(p).name: ROOT / p for p in paths}
    return found


def docker_run():
    """The `docker run` that the Containerfile explains: options, command."""
    text = "\n".join(line.removeprefix("#").strip() for line in
                     CONTAINERFILE.read_text().splitlines())
    line = re.search(r"docker run (?:[^\n]*\\\n)+[^\n]*", text).group()
    options, _, arguments = line.replace("\\\n", " ").partition(
        " coursework ")
    entry = next(json.loads(t) for n, t in instructions()
                 if n == "ENTRYPOINT")
    return shlex.split(options), entry + shlex.split(arguments)


# Something like the container.


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """bwrap's options for a container of the image; a test adds the
    capabilities, the mounts and the command."""
    if os.geteuid() != 0:
        missing("a container is simulated by root only")
    if any(Path(p).is_relative_to("/tmp") for p in sandbox.prefixes()):
        pytest.skip("the container's own /tmp would hide this Python")
    if not shutil.which("bwrap"):
        missing("bwrap (bubblewrap) is not installed")
    files = tmp_path_factory.mktemp("image")
    for target, path in copies().items():
        place = files / target.removeprefix("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    for path in [files, *files.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    options = ["bwrap", *sandbox.mounts(), "--unshare-pid", "--unshare-net",
               "--proc", "/proc", "--dev", "/dev", "--perms", "0755",
               "--dir", "/opt", "--ro-bind", files / "opt/grader",
               "/opt/grader", "--chdir", "/opt/grader", "--die-with-parent",
               "--clearenv", "--setenv", "OMP_NUM_THREADS", "1",
               "--setenv", "PATH", f"{sys.prefix}/bin:/usr/bin:/bin",
               "--perms", "0700", "--dir", "/course"]
    run = subprocess.run([*options, "true"], capture_output=True, text=True)
    if run.returncode:
        missing(f"bwrap does not start: {run.stderr}")
    return options


def notebook(cells):
    made = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(c) for c in cells])
    return nbformat.writes(made).encode()


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A folder with `master` and `submissions`."""
    place = tmp_path_factory.mktemp("course")
    for name in ("master", "submissions"):
        (place / name).mkdir()
    (place / "master.py").write_text(MASTER)
    nbformat.write(source.read(place / "master.py"),
                   place / "master/a1-layer.ipynb")
    for student, cells in STUDENTS.items():
        (place / f"submissions/{student}.ipynb").write_bytes(
            cells if isinstance(cells, bytes) else notebook(cells))
    return place


def simulated(image, course, out, caps, line, tmp=None):
    """The command line of a container like the image's."""
    out.mkdir(parents=True, exist_ok=True)
    binds = ["--ro-bind", course / "master", "/course/master", "--ro-bind",
             course / "submissions", "/course/submissions", "--bind", out,
             "/course/out", *(["--bind", tmp, "/tmp"] if tmp else [
                 "--perms", "1777", "--tmpfs", "/tmp"]),
             "--remount-ro", "/"]
    drop = ["--cap-drop", "ALL"]
    for cap in caps:
        drop += ["--cap-add", f"CAP_{cap}"]
    return [*image, *binds, *drop, *line]


def run(*args, **kwargs):
    done = subprocess.run(simulated(*args, **kwargs), capture_output=True,
                          text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


def capabilities(name):
    return container(name)["securityContext"]["capabilities"]["add"]


def rows(out):
    """The table's rows without what no two runs share."""
    found = [json.loads(line) for line in
             (out / "results.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"}
            for row in found]


@pytest.fixture(scope="module")
def direct(image, course, tmp_path_factory):
    """The rows of `docker run`, all submissions in one container."""
    out = tmp_path_factory.mktemp("direct")
    options, line = docker_run()
    caps = [options[i + 1] for i, o in enumerate(options)
            if o == "--cap-add"]
    status, text = run(image, course, out, caps, line)
    assert status == 0, text
    return rows(out)


def test_docker_run_gives_the_scores(direct):
    assert {row["student"]: row["score"] for row in direct} == SCORES
    by_name = {row["student"]: row for row in direct}
    assert by_name["eve"]["status"] == "refused"
    assert not [n for n in by_name["fay"]["notes"] if "SEEN" in n]


def test_every_index_and_the_merge_equal_a_direct_run(image, course, direct,
                                                      tmp_path):
    count = job("grade")["spec"]["completions"]
    caps = capabilities("grade")

    def index(i):
        return run(image, course, tmp_path / "out", caps,
                   command("grade", i))

    with ThreadPoolExecutor(3) as pool:  # pods run side by side
        for status, text in pool.map(index, range(count)):
            assert status == 0, text
    status, text = run(image, course, tmp_path / "out",
                       capabilities("merge"), command("merge"))
    assert status == 0, text
    assert rows(tmp_path / "out") == direct
    left = {p.name for p in (tmp_path / "out").iterdir()}
    assert left == {"results", "results.jsonl", "results.csv", "summary.txt"}
    assert len(list((tmp_path / "out/results").iterdir())) == len(STUDENTS)


def test_a_container_is_left_clean(image, course, tmp_path):
    only = tmp_path / "only"
    shutil.copytree(course, only)
    for path in (only / "submissions").iterdir():
        if path.stem != "fay":
            path.unlink()
    tmp = tmp_path / "tmp"
    tmp.mkdir()
    tmp.chmod(0o1777)
    line = ["python", "-c", "import sys; from coursework.grade import main; "
            "from coursework.sandbox import USERS, processes_of; "
            "status = main(sys.argv[1:]); print('LEFT', processes_of(USERS)); "
            "sys.exit(status)", *command("grade")[3:]]
    line[line.index("--shard") + 1] = "0/1"
    status, text = run(image, only, tmp_path / "out", capabilities("grade"),
                       line, tmp)
    assert status == 0, text
    assert "LEFT []" in text
    assert rows(tmp_path / "out")[0]["score"] == SCORES["fay"]
    assert list(tmp.iterdir()) == []


def test_a_killed_index_goes_on_where_it_was(image, course, direct,
                                             tmp_path):
    out = tmp_path / "out"
    caps, line = capabilities("grade"), command("grade", 0)
    status, text = run(image, course, out, caps, line)
    assert status == 0, text
    files = {p.name.split("-")[0]: p for p in (out / "results").iterdir()}
    assert set(files) == {"ada", "gus"}
    for path in files.values():
        path.unlink()
    pod = subprocess.Popen(
        simulated(image, course, out, caps, line), stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True)
    end = time.monotonic() + 60
    while not files["ada"].exists() and time.monotonic() < end:
        time.sleep(0.02)
    os.killpg(pod.pid, signal.SIGKILL)
    pod.wait()
    kept = files["ada"].read_bytes()
    assert not files["gus"].exists()

    merge = capabilities("merge"), command("merge")
    status, text = run(image, course, out, *merge)
    assert status == 1  # something is missing, and it says so
    found = {row["student"]: row for row in rows(out)}
    assert found["ada"]["score"] == 3
    assert found["gus"]["score"] is None
    assert "not graded yet" in found["gus"]["reason"]

    for i in range(job("grade")["spec"]["completions"]):
        status, text = run(image, course, out, caps, command("grade", i))
        assert status == 0, text
    assert files["ada"].read_bytes() == kept  # not graded again
    status, text = run(image, course, out, *merge)
    assert status == 0, text
    assert rows(out) == direct


def test_a_course_that_students_can_read_is_not_graded(image, course,
                                                       tmp_path):
    at = image.index("/course") - 2
    loose = [*image[:at], "0755", *image[at + 1:]]
    status, text = run(loose, course, tmp_path / "out",
                       capabilities("grade"), command("grade"))
    assert status == 3
    assert "could be read by a student's code" in text


# The manifest.


@pytest.mark.parametrize("version", ["1.33", "1.37"])
def test_the_manifest_is_valid(version):
    kinds = [d["kind"] for d in documents()]
    assert kinds.count("Job") == 2 and "NetworkPolicy" in kinds
    for document in documents():
        kubernetes_validate.validate(document, version, strict=True)


def test_the_validation_is_strict():
    document = job("grade")
    document["spec"]["template"]["spec"]["hostUser"] = False
    with pytest.raises(Exception, match="hostUser"):
        kubernetes_validate.validate(document, "1.37", strict=True)


def test_indexes_cover_all_submissions():
    spec = job("grade")["spec"]
    assert spec["completionMode"] == "Indexed"
    line = container("grade")["command"]
    assert line[line.index("--shard") + 1] == (
        f"$(JOB_COMPLETION_INDEX)/{spec['completions']}")
    assert "--resume" in line
    assert spec["backoffLimitPerIndex"] >= 1
    assert spec["template"]["spec"]["restartPolicy"] == "Never"


@pytest.mark.parametrize("name", ["grade", "merge"])
def test_pods_are_closed(name):
    assert job(name)["spec"]["activeDeadlineSeconds"] > 0
    assert job(name)["spec"]["suspend"] is True
    spec = pod(name)
    assert spec["hostUsers"] is False
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["seccompProfile"] == {
        "type": "RuntimeDefault"}
    for one in spec.get("initContainers", []) + spec["containers"]:
        closed = one["securityContext"]
        assert closed["readOnlyRootFilesystem"] is True
        assert closed["allowPrivilegeEscalation"] is False
        assert closed["capabilities"]["drop"] == ["ALL"]
        assert {"cpu", "memory"} <= set(one["resources"]["limits"])
        for mount in one["volumeMounts"]:
            writable = mount["mountPath"] in ("/course/out", "/tmp")
            assert mount.get("readOnly", False) == (not writable)
    assert set(capabilities("merge")) < set(capabilities("grade"))


def test_the_account_has_no_rights_and_the_network_is_shut():
    found = documents()
    assert not [d for d in found if "Role" in d["kind"]]
    account = next(d for d in found if d["kind"] == "ServiceAccount")
    assert account["automountServiceAccountToken"] is False
    assert pod("grade")["serviceAccountName"] == account["metadata"]["name"]
    policy = next(d for d in found if d["kind"] == "NetworkPolicy")["spec"]
    assert policy == {"podSelector": {},
                      "policyTypes": ["Ingress", "Egress"]}
    spaces = {d["metadata"].get("namespace") for d in found
              if d["kind"] != "Namespace"}
    assert spaces == {"coursework"}


# The image.


def test_the_image_has_all_that_the_grader_imports():
    needed = gradescope.modules(["coursework.grade", "coursework.worker"])
    have = {p.removeprefix("/opt/grader/") for p in copies()}
    assert set(needed) <= have
    assert not [p for p in have if "sample" in p or p.endswith(".ipynb")]


def test_only_what_is_copied_goes_to_the_builder():
    lines = [line for line in (CLUSTER / "Containerfile.dockerignore"
                               ).read_text().splitlines()
             if not line.startswith("#")]
    assert lines[0] == "*"
    sources = {p for name, text in instructions() if name == "COPY"
               for p in text.split()[:-1]}
    assert {line.removeprefix("!") for line in lines[1:]} == sources


def test_every_package_is_pinned():
    image = next(t for n, t in instructions() if n == "FROM")
    assert re.fullmatch(r"python:3\.1[123]\.\d+-slim-[a-z]+", image)
    steps = [t for n, t in instructions() if n == "RUN"]
    apt = next(t for t in steps if "apt-get install" in t)
    named = re.search(r"--no-install-recommends(.*?)&&", apt).group(1)
    assert len(named.split()) == 2
    assert all(re.fullmatch(r"[a-z-]+=[\d.]+\*", p) for p in named.split())
    pip = next(t for t in steps if "pip install" in t)
    given = pip.split("constraints.txt")
    assert given[0].rstrip().endswith("-c /opt/grader/requirements/")
    names = set(given[1].split()) - {"$EXTRA"}
    assert names and names | {"torch"} <= set(gradescope.pins())


def test_docker_and_kubernetes_ask_for_the_same():
    options, line = docker_run()
    caps = [options[i + 1] for i, o in enumerate(options)
            if o == "--cap-add"]
    assert caps == capabilities("grade")
    for flag in ("--read-only", "--network none", "--cap-drop ALL",
                 "--security-opt no-new-privileges", "--memory",
                 "--pids-limit", "--tmpfs /tmp:rw,mode=1777"):
        assert flag in " ".join(options)
    assert line[:4] == command("grade")[:4]


# Slurm.


@pytest.fixture(scope="module")
def slurm(course):
    """Run the script as Slurm would: slurm(index, out, *options)."""
    why = sandbox.available("bubblewrap")
    if why:
        missing(why)
    free = {k: v for k, v in os.environ.items()
            if not k.startswith("SLURM_")}

    def task(index, out, *options, **extra):
        done = subprocess.run(
            ["bash", SLURM, course / "master/a1-layer.ipynb",
             course / "submissions", out, *options],
            env={**free, "SLURM_ARRAY_TASK_ID": str(index),
                 "SLURM_SUBMIT_DIR": str(ROOT), "PYTHON": sys.executable,
                 **extra}, cwd="/", capture_output=True, text=True,
            timeout=300)
        return done.returncode, done.stdout + done.stderr

    return task


def indexes():
    last = re.search(r"^#SBATCH --array=0-(\d+)$", SLURM.read_text(), re.M)
    return range(int(last.group(1)) + 1)


def test_slurm_tasks_and_the_merge_equal_a_direct_run(slurm, course,
                                                      tmp_path):
    lone = tmp_path / "lone"
    status, text = slurm(0, lone, "--merge")
    assert status == 1 and "8 not graded" in text
    status, text = slurm(0, lone, SHARDS="1")
    assert status == 0, text
    status, text = slurm(0, lone, "--merge")
    assert status == 0, text
    found = rows(lone)
    assert {r["student"]: r["score"] for r in found} == SCORES

    out = tmp_path / "out"
    with ThreadPoolExecutor(3) as pool:
        for status, text in pool.map(lambda i: slurm(i, out), indexes()):
            assert status == 0, text
    status, text = slurm(0, out, "--merge")
    assert status == 0, text
    assert rows(out) == found


def test_slurm_says_what_is_missing(slurm, tmp_path):
    status, text = slurm(6, tmp_path)
    assert status == 2 and "6/6" in text
    for args, why in ([], "usage"), (["a", "b", "c"], "--array"):
        done = subprocess.run(["bash", SLURM, *args], capture_output=True,
                              text=True, env={"PATH": os.environ["PATH"]})
        assert done.returncode != 0 and why in done.stderr


def test_slurms_script_is_sound():
    subprocess.run(["bash", "-n", SLURM], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", SLURM], check=True)
    default = re.search(r"SHARDS:-(\d+)", SLURM.read_text()).group(1)
    assert int(default) == len(indexes())


# What it costs.


def record(mean=0.36, start=1.8):
    return {"results": {"assignments": [
        {"assignment": "a1-layer", "ours": {"mean": mean}, "start": start}]}}


def test_cost_in_core_hours_and_hours():
    assert cost.cost(3000, 0.36, 2) == pytest.approx((0.3, 0.15))
    # 60 shares of 50, each with 1.8 s before the first: 108 s more.
    found = cost.cost(3000, 0.36, 1, start=1.8)
    assert found == pytest.approx((0.33, 0.33))
    # 64 cores: each has one share at most, so one share's time it is.
    assert cost.cost(3000, 0.36, 64, 1.8)[1] == pytest.approx(19.8 / 3600)
    assert cost.cost(30, 0.36, 64)[1] == pytest.approx(30 * 0.36 / 3600)
    for bad in ((0, 1, 1), (1, -1, 1), (1, 1, 0), (1, float("nan"), 1)):
        with pytest.raises(ValueError, match="allowed is a number above 0"):
            cost.cost(*bad)


def test_the_table_and_the_page(tmp_path, capsys):
    file, page = tmp_path / "record.json", tmp_path / "page.md"
    file.write_text(json.dumps(record()))
    assert cost.main(["--record", str(file)]) == 0
    printed = capsys.readouterr().out.strip()
    assert printed.splitlines()[2:] == [
        "| a1-layer | 0.36 | 3,000 | 0.3 | 10 min | 1 min |",
        "| a1-layer | 0.36 | 30,000 | 3.3 | 1.6 h | 3 min |"]
    page.write_text("One.\n\n<!-- cost -->\nold\n<!-- /cost -->\n\nTwo.\n")
    assert cost.main(["--record", str(file), "--page", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("One.\n\n<!-- cost -->\n| Assignment")
    assert text.endswith("|\n<!-- /cost -->\n\nTwo.\n")
    assert cost.held(text) == printed
    page.write_text("No marks.")
    assert cost.main(["--record", str(file), "--page", str(page)]) == 2
    assert page.read_text() == "No marks."


def test_the_books_table_is_what_the_record_gives():
    page = ROOT / "book/teaching.md"
    held = cost.held(page.read_text("utf-8")) if page.exists() else None
    if held is None:
        pytest.skip("book/teaching.md has no table of the cost")
    assert held == cost.table(json.loads(cost.RECORD.read_text()))


@pytest.fixture
def small(tmp_path):
    """A master that is quickly graded."""
    (tmp_path / "small.py").write_text(MASTER)
    return tmp_path / "small.py"


def test_the_benchmark_compares_full_marks_with_full_marks(slurm, small):
    row = benchmark.apart(small, 1)
    assert row["points"] == 3 and row["tests"] == 2
    assert row["ours"]["runs"] == benchmark.MINE
    assert row["nbgrader"]["runs"] == 1
    assert row["ratio"] == pytest.approx(
        row["nbgrader"]["median"] / row["ours"]["median"], abs=0.01)
    for who in ("ours", "nbgrader"):
        assert 0 < row[who]["median"] <= row[who]["p95"] <= row[who]["most"]
        # No more processor time than two cores have by the clock.
        assert row[who]["cpu"] is None or (
            0 < row[who]["cpu"] < os.cpu_count() * row[who]["most"])


def test_the_benchmark_of_a_class(slurm, small):
    row = benchmark.apart(small, "class", 3)
    assert row["copies"] == row["each"]["runs"] == 3
    assert row["seconds"] > 0 and row["peak_MiB"] > 20


def test_a_benchmark_of_wrong_answers_stops(slurm, small):
    small.write_text(MASTER.replace("[2, 2]", "[2, 3]"))
    with pytest.raises(RuntimeError, match="does not get full marks"):
        benchmark.apart(small, 1)
    with pytest.raises(RuntimeError, match="nbgrader gave 1.0 of 3.0"):
        benchmark.full(1.0, load(small), "nbgrader")
