"""Records: results of full-scale runs, with where they come from."""

import ast
import importlib.metadata
import inspect
import json
import os
import platform
import subprocess
import sys
import textwrap
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

import normlab
from normlab.lab import experiments
from normlab.lab.files import digest, write_json

HOME = Path(normlab.__file__).resolve().parent

class RecordError(RuntimeError):
    """A record is missing, damaged, or of another experiment."""


def checkout():
    """The root of the source tree that normlab runs from; None if it is
    an installed copy."""
    root = HOME.parent
    return root if (root / "pyproject.toml").is_file() else None


def shipped():
    """The folder of the book's records: the source tree's, or the copy in
    the installed package."""
    return (checkout() or HOME) / "records"


def read_record(name, folder=None):
    """The record of an experiment at full scale, as a dict.

    Raises RecordError if it is missing, damaged, or if its configuration
    or code are not those that the experiment has now; ValueError if there
    is no such experiment.
    """
    experiment, config = experiments.get(name), experiments.configuration(
        name, "full")
    path = Path(folder or shipped()) / f"{name}.json"
    again = (f"make it anew: python -m normlab.lab run {name} --scale full")
    if not path.is_file():
        raise RecordError(f"there is no record {path}; {again}")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        made = record["digests"]
        asked, kept = record["configuration"], record["points"]
    except (ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{path} is damaged ({error}); {again}") from error
    now = digests(experiment, config)
    if made["configuration"] != now["configuration"] or asked != config:
        raise RecordError(f"{path} was made with another configuration than "
                          f"{name} has now; {again}")
    if made["code"] != now["code"]:
        raise RecordError(f"{path} was made by other code than {name} has "
                          f"now; {again}")
    if len(kept) != len(experiment.points(config)):
        raise RecordError(f"{path} lacks some of its points; {again}")
    return record


def write_record(name, scale, points, folder, processes=1):
    """Write what a run gave, with its provenance, to `folder`/name.json;
    returns the path. `processes` is how many ran at a time, or "cluster".
    """
    experiment, config = experiments.get(name), experiments.configuration(
        name, scale)
    record = {
        "experiment": name,
        "title": experiment.title,
        "command": f"python -m normlab.lab run {name} --scale {scale}",
        **source(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware() | {"processes": processes},
        "versions": versions(),
        "seconds": round(sum(p["seconds"] for p in points), 1),
        "scale": scale,
        "configuration": config,
        "seeds": config["seeds"],
        "digests": digests(experiment, config),
        "points": points,
    }
    path = Path(folder) / f"{name}.json"
    write_json(path, record)
    return path


def digests(experiment, config):
    """Fingerprints of the configuration, of the experiment's own code, and
    of the layers it trains."""
    return {"configuration": digest(config),
            "code": digest([bare(f) for f in experiment.code]),
            "layers": digest("".join(
                (HOME / f"{name}.py").read_text(encoding="utf-8")
                for name in experiment.layers))}


def bare(function):
    """A function's text without its docstring, comment lines and blank
    lines, which change nothing."""
    lines = textwrap.dedent(inspect.getsource(function)).splitlines()
    first = ast.parse("\n".join(lines)).body[0].body[0]
    doc = range(0)
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        doc = range(first.lineno - 1, first.end_lineno)
    return [line.rstrip() for i, line in enumerate(lines)
            if i not in doc and line.strip()
            and not line.strip().startswith("#")]


def source():
    """The git commit that the code is of, and whether normlab differed
    from it; None and None where there is no git."""
    def git(*args):
        return subprocess.run(
            ["git", "-C", str(checkout()), *args], check=True, text=True,
            capture_output=True, timeout=30).stdout.strip()

    try:
        if checkout() is None:
            return {"commit": None, "dirty": None}
        return {"commit": git("rev-parse", "HEAD"),
                "dirty": bool(git("status", "--porcelain", "--", "normlab"))}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}


def hardware():
    """The processor's model, its number of cores, and the threads used."""
    return {"cpu": processor(), "cores": os.cpu_count(), "threads": 1}


def processor():
    """The processor's name, as well as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def versions():
    """Versions of Python, NumPy, normlab and of the frameworks in use."""
    try:
        own = importlib.metadata.version("normlab")
    except importlib.metadata.PackageNotFoundError:
        own = normlab.__version__
    return {"python": platform.python_version(), "numpy": np.__version__,
            "normlab": own, "platform": sys.platform} | {
                name: importlib.metadata.version(name)
                for name in ("torch", "keras") if name in sys.modules}
