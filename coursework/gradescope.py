"""Gradescope: the autograder's zip, and results in Gradescope's form.

    python -m coursework.gradescope MASTER ZIP [--hidden-tests WHEN]

ZIP is what a teacher uploads under "Configure Autograder". It holds the
grader, the master with its answers and tests, and nothing else. In the
assignment's settings the autograder's points must be those that this command
prints, and the memory 1.5 GB or more where students use PyTorch.

Gradescope's own description, which this file follows, is at
https://gradescope-autograders.readthedocs.io/en/latest/specs/ (the zip, the
folders, results.json, visibility) and .../en/latest/troubleshooting/ (without
a valid results.json a submission "failed to execute correctly" and has no
score; the default limits are 768 MB, 10 minutes and half a processor). What
run_autograder prints is shown to instructors only.

Inside Gradescope's container students' code runs as a throw-away user, to whom
/autograder is closed. The network is cut where the container allows that;
where it does not, a student's code can send out what the tests call it with.
"""

import argparse
import ast
import importlib.metadata
import re
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

import nbformat

from coursework import collect, grade, sandbox
from coursework.master import load
from normlab.lab.files import replacing, write_json

HERE = Path(__file__).resolve().parent
HOUSE = HERE.parent
CONSTRAINTS = HOUSE / "requirements/constraints.txt"
# What the grader imports, and what students draw with.
ALWAYS = ("numpy", "nbformat", "tqdm", "matplotlib")
TOP = {"numpy", "nbformat", "tqdm"}
ROOTS = ("coursework.gradescope", "coursework.worker")
WHEN = ("after_published", "after_due_date", "visible", "hidden")
DATE = (1980, 1, 1, 0, 0, 0)
FAILED, BROKEN = 1, 3

SETUP = """\
#!/usr/bin/env bash
# Gradescope runs this as root, once, while it builds the image.
set -euo pipefail
cd "$(dirname "$0")"
export DEBIAN_FRONTEND=noninteractive

find_python() {
    for name in python3.13 python3.12 python3.11 python3; do
        if "$name" -c 'import ensurepip, sys, venv
sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    return 1
}

if ! python=$(find_python); then
    apt-get update
    for version in 3.12 3.13 3.11; do
        apt-get install -y --no-install-recommends \\
            "python$version" "python$version-venv" && break
    done
    python=$(find_python) || {
        echo "Python 3.11, 3.12 or 3.13 is needed: choose a newer base image"
        exit 1
    }
fi
# Not under /autograder, which is closed to the user that students' code has.
"$python" -m venv /opt/coursework
/opt/coursework/bin/pip install --no-cache-dir \\
    -r requirements.txt -c constraints.txt
chmod -R go+rX /opt/coursework
"""

RUN = """\
#!/usr/bin/env bash
# Gradescope runs this as root for each submission.
set -euo pipefail
root=/autograder
# Students' code runs as another user, who may look at nothing in here.
chmod 700 "$root" "$root/source" "$root/results" "$root/submission"
# That user has to read the worker; it is the same for all and no secret.
lib=$(mktemp -d)
trap 'rm -rf "$lib"' EXIT
cp -R "$root/source/coursework" "$root/source/normlab" "$lib"
chmod -R u=rwX,go=rX "$lib"
cd "$lib"
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
alone=(setpriv --no-new-privs)
# Without a network where the container lets us cut it.
if unshare --net true 2>/dev/null; then
    alone+=(unshare --net)
fi
"${{alone[@]}}" /opt/coursework/bin/python -B -m coursework.gradescope \\
    --autograde "$root" --hidden-tests {hidden} --test-seconds {seconds:g}
"""


class PackageError(ValueError):
    """The zip can't be made; the text says what is missing."""


def pins(path=CONSTRAINTS):
    """The pinned versions: {"numpy": "numpy==2.4.6", ...}."""
    lines = (line.strip() for line in Path(path).read_text().splitlines())
    return {normal(line.split("==")[0]): line for line in lines
            if "==" in line and not line.startswith("#")}


def normal(name):
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(master):
    """The lines of requirements.txt: what the grader and the master's
    cells import. Raises PackageError where one has no pinned version."""
    trees = [cell.tree for cell in master.cells]
    found = {name.split(".")[0] for tree in trees
             for name, _, _ in imported(tree)}
    owners = importlib.metadata.packages_distributions()
    names = {normal(owners.get(name, [name])[0])
             for name in found - sys.stdlib_module_names} | set(ALWAYS)
    known = pins()
    if missing := names - set(known):
        raise PackageError(
            f"master: {master.name} imports {', '.join(sorted(missing))}; "
            f"allowed is what {CONSTRAINTS.name} pins")
    return [known[name] for name in sorted(names)]


def imported(tree):
    """What code imports: (module, names from it, whether at top level)."""
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, [], id(node) in top
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", [a.name for a in node.names], \
                id(node) in top


def file_of(module):
    """The file of a module of this project, or None."""
    path = HOUSE.joinpath(*module.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file
    return None


def modules(roots=ROOTS):
    """The grader's files: {path in the zip: bytes}.

    Follows the imports from the roots. Raises PackageError if loading one
    would need a package that the zip does not install.
    """
    waiting, files = list(roots), {}
    while waiting:
        module = waiting.pop()
        path = file_of(module)
        if path is None or str(path.relative_to(HOUSE)) in files:
            continue
        files[str(path.relative_to(HOUSE))] = path.read_bytes()
        if "." in module:
            waiting.append(module.rpartition(".")[0])
        for name, parts, top in imported(ast.parse(path.read_bytes())):
            ours = name.split(".")[0] in ("coursework", "normlab")
            if ours:
                waiting += [name, *(f"{name}.{part}" for part in parts)]
            elif top:
                check_import(name.split(".")[0], path)
    return files


def check_import(name, path):
    """Raise PackageError for an import that Gradescope could not serve."""
    own = path.parent == HERE and (HERE / f"{name}.py").is_file()
    allowed = TOP | ({"torch"} if path.name == "gradients.py" else set())
    if not (own or name in allowed or name in sys.stdlib_module_names):
        raise PackageError(f"{path.name} imports {name}; the package for "
                           f"Gradescope allows {', '.join(sorted(TOP))}")


def package(master_path, zip_path, hidden="after_published",
            test_seconds=None, index=None):
    """Write the zip for Gradescope; return the points that tests give.

    hidden: when students see the results of hidden tests, one of WHEN.
    test_seconds: processor time of one test. index: the address of a second
    package index for pip, such as PyTorch's own of builds without CUDA. The
    same master gives the same bytes. Raises MasterError or PackageError, and
    then writes nothing.
    """
    if hidden not in WHEN:
        raise PackageError(f"hidden: came {hidden!r}; allowed is one of "
                           f"{', '.join(WHEN)}")
    path = Path(master_path)
    master = load(path)
    notebook = (path.read_bytes() if path.suffix == ".ipynb" else
                (nbformat.writes(master.notebook, indent=1) + "\n").encode())
    seconds = test_seconds or sandbox.Limits().test_seconds
    lines = [f"--extra-index-url {index}"] * bool(index) + requirements(master)
    run = RUN.format(hidden=hidden, seconds=seconds)
    files = modules() | {
        "setup.sh": SETUP.encode(), "run_autograder": run.encode(),
        "requirements.txt": "".join(f"{s}\n" for s in lines).encode(),
        "constraints.txt": CONSTRAINTS.read_bytes(),
        f"master/{path.stem}.ipynb": notebook}
    with replacing(zip_path) as aside, \
            zipfile.ZipFile(aside, "w") as archive:
        for name, data in sorted(files.items()):
            info = zipfile.ZipInfo(name, DATE)
            info.create_system = 3  # Unix, wherever this runs
            script = name in ("setup.sh", "run_autograder")
            info.external_attr = (0o100755 if script else 0o100644) << 16
            archive.writestr(info, data)
    return master.max


def clean(text):
    """Text that any reader of JSON takes: no lone surrogates, no control
    characters but line ends and tabs."""
    return "".join(c if c in "\n\t" or c.isprintable() else "\ufffd"
                   for c in text.encode("utf-8", "replace").decode())


def results(row, hidden="after_published"):
    """A row in Gradescope's form, for results.json.

    Public tests are visible at once, with what their failure said; hidden
    ones when `hidden` says, and without any text that came from them. A row
    that is not graded has no score at all, here or in a test: refused, it
    says why; after a fault of ours, that there is one.
    """
    if hidden not in WHEN:
        raise ValueError(f"hidden: came {hidden!r}; allowed is one of "
                         f"{', '.join(WHEN)}")
    made = {"output_format": "text", "test_output_format": "text",
            "test_name_format": "text", "visibility": "visible",
            "stdout_visibility": "hidden"}
    if row["status"] != "graded":
        text = clean(row["reason"]) if row["status"] == "refused" else (
            "The grader failed. This is no fault of yours: tell the course "
            "staff. No marks were given.")
        return {**made, "output": f"Not graded: {text}", "tests": [{
            "name": "The file can be graded", "status": "failed",
            "visibility": "visible", "output": text}]}
    notes = [clean(note) for note in row["notes"]] + [
        f"{name}: {points:g} points are given by a person"
        for name, points in row["manual"].items()]
    return {**made, "execution_time": row["seconds"],
            "output": "\n".join([f"Graded: {clean(row['file'])}", *notes]),
            "tests": [test_of(name, test, hidden)
                      for name, test in row["tests"].items()]}


def test_of(name, test, hidden):
    """One test in Gradescope's form."""
    passed = test["score"] == test["max"]
    text = test["note"]
    if test["hidden"]:
        text = "" if passed else "A hidden test that did not pass."
    return {"name": name, "score": test["score"], "max_score": test["max"],
            "status": "passed" if passed else "failed",
            "visibility": hidden if test["hidden"] else "visible",
            "output": clean(text)}


def check(root, seconds):
    """Grade what lies in /autograder; return the row. Raises GraderError
    or ValueError where the container or the master is at fault."""
    path, = (root / "source/master").glob("*.ipynb")
    master = load(path)
    limits = sandbox.Limits(test_seconds=seconds, cell_seconds=seconds)
    why = sandbox.available("container", [
        path, root / "submission", root / "results"])
    if why:
        raise grade.GraderError(why)
    job = grade.Job(master, "container", limits)
    grade.preload(master)
    with tempfile.TemporaryDirectory() as folder:
        job.learn(folder)
        handed = Path(folder, "handed")
        shutil.copytree(root / "submission", handed / "student",
                        symlinks=True)
        # With a neighbour, no name of the student's can make the folder
        # look like a platform's download of a whole class.
        (handed / "nobody").mkdir()
        submission = next(s for s in collect.collect(handed, name=master.name)
                          if s.student == "student")
        row = job.one(submission, folder)
    row["file"] = row["file"].removeprefix("student/")
    return row


def autograde(root, hidden, seconds):
    """What run_autograder does; return its exit status.

    Writes results/results.json whole or not at all: without it Gradescope
    says that the autograder failed, and gives no score.
    """
    out = root / "results/results.json"
    out.unlink(missing_ok=True)
    try:
        row = check(root, seconds)
    except (grade.GraderError, ValueError, OSError, shutil.Error) as error:
        print(f"For the staff: no marks were given. {error}")
        return BROKEN
    print(f"For the staff: {row['status']} {row['score']} of {row['max']:g} "
          f"{row['reason']}")
    for name, test in row["tests"].items():
        print(f"  {name}: {test['score']:g} of {test['max']:g} "
              f"{test['note']}")
    if row["status"] == "error":
        return FAILED
    write_json(out, results(row, hidden))
    return 0


def main(argv=None):
    """Write the zip, or, inside Gradescope, grade."""
    parser = argparse.ArgumentParser(
        prog="python -m coursework.gradescope",
        description="Write the autograder that Gradescope takes.")
    add = parser.add_argument
    add("master", type=Path, nargs="?", help=".ipynb, or .py with cells")
    add("zip", type=Path, nargs="?", help="the file to write")
    add("--hidden-tests", choices=WHEN, default=WHEN[0],
        help="when students see hidden tests' results")
    add("--test-seconds", type=grade.positive(float),
        default=sandbox.Limits().test_seconds,
        help="processor time of one test (default %(default)g)")
    add("--index", metavar="URL",
        help="a second package index, such as PyTorch's of CPU builds")
    add("--autograde", type=Path, metavar="ROOT", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.autograde:
        return autograde(options.autograde, options.hidden_tests,
                         options.test_seconds)
    if not options.zip:
        parser.error("MASTER and ZIP are needed")
    try:
        points = package(options.master, options.zip, options.hidden_tests,
                         options.test_seconds, options.index)
    except (ValueError, OSError) as error:
        print(f"Stopped: {error}", file=sys.stderr)
        return 2
    print(f"wrote {options.zip}; set the autograder's points to {points:g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
