"""Run every test: the gate, the library, the notebooks, the site.

Usage: python -m tools.test
"""

import importlib.util
import subprocess
import sys

from tools import colab
from tools.notebooks import ROOT


def without_triton():
    """Options that leave chapter 10 out where its compiler can't be had."""
    if importlib.util.find_spec("triton"):
        return []
    print("Triton exists for Linux only: chapter 10 is not tested here.")
    return ["--ignore=notebooks/10-cuda-kernels.ipynb",
            "--deselect=tests/test_alone.py::"
            "test_runs_in_an_empty_folder[10-cuda-kernels]"]


def main():
    """Stop at the gate if it fails; else run all of pytest's tests."""
    if subprocess.run([sys.executable, "-m", "tools.check"]).returncode:
        sys.exit("Mend what is listed above, then `make test` again")
    colab.main()
    command = [sys.executable, "-m", "pytest", "-n", "2", "--dist=loadfile",
               "--nbval",
               "--nbval-sanitize-with=tests/nbval_sanitize.cfg", "-ra",
               "tests", "notebooks", *without_triton(), *sys.argv[1:]]
    code = subprocess.run(command, cwd=ROOT).returncode
    if code:
        sys.exit("A test failed: its name, input and difference stand above. "
                 "After a change to a chapter, `make run` stores its new "
                 "outputs")


if __name__ == "__main__":
    main()
