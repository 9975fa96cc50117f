"""Each chapter runs by itself: an empty folder, Colab's packages, and a
first cell that installs normlab from its repository, here with no network
and git told that the address means a snapshot of this working tree."""

import json
import os
import shutil
import subprocess

import nbformat
import pytest
from nbclient import NotebookClient

from tools import colab
from tools.check import repository
from tools.notebooks import ROOT

CHAPTERS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    """A repository that holds the working tree as one commit."""
    folder = tmp_path_factory.mktemp("snapshot")
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True,
        capture_output=True, check=True).stdout.splitlines()
    for name in names:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    me = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    for command in (["init", "-q", "-b", "main"], ["add", "-A"],
                    [*me, "commit", "-qm", "The working tree"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


@pytest.fixture
def bare_environment(snapshot, monkeypatch):
    """Colab's packages without normlab and what it brings; no network."""
    colab.main()
    subprocess.run([colab.python(), "-m", "pip", "uninstall", "-qy",
                    "normlab", "anywidget", "psygnal", "pooch",
                    "onnxruntime", "onnxscript"],
                   check=True, stderr=subprocess.DEVNULL)
    for name in list(os.environ):
        if name.startswith(("PYTHON", "NORMLAB", "PIP_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(colab.WHEELS))
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.file://{snapshot}.insteadOf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", repository())
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_runs_in_an_empty_folder(path, bare_environment, tmp_path,
                                 monkeypatch):
    work, spec = tmp_path / "empty", tmp_path / "jupyter/kernels/alone"
    work.mkdir()
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(json.dumps({
        "argv": [str(colab.python()), "-m", "ipykernel_launcher", "-f",
                 "{connection_file}"],
        "display_name": "Alone", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    nb = nbformat.read(path, as_version=4)
    NotebookClient(nb, timeout=300, kernel_name="alone",
                   resources={"metadata": {"path": str(work)}}).execute()
    assert not list(work.iterdir()), "the chapter left files behind"
