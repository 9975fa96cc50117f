"""Make the environment that a chapter alone is tested in.

It holds what Colab has and the chapters need, but not normlab nor what
normlab brings along; those lie as files in a folder, so that the chapter's
own first cell installs them with no network.

Usage: python -m tools.colab
"""

import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENV = ROOT / ".cache/colab/env"
WHEELS = ROOT / ".cache/colab/wheels"
PINS = ROOT / "requirements/constraints.txt"
KERNELS = ROOT / "requirements/kernels.txt"
USUAL = ["numpy", "torch", "matplotlib", "ipywidgets", "scikit-learn",
         "tqdm", "pyyaml", "ipykernel", "keras", "flax"]
BROUGHT = ["anywidget", "pooch", "setuptools", "onnxruntime", "onnxscript"]


def python():
    """The environment's interpreter."""
    return ENV / ("Scripts/python.exe" if sys.platform == "win32"
                  else "bin/python")


def main():
    """Create both, once for a set of pins."""
    done, wanted = ENV / "pins", PINS.read_text() + KERNELS.read_text()
    if done.exists() and done.read_text() == wanted:
        return
    print("Making an environment like Colab's (two minutes) ...", flush=True)
    venv.create(ENV, clear=True, with_pip=True)
    pip = [str(python()), "-I", "-m", "pip"]  # without normlab on its path
    for command in (
            [*pip, "install", "-q", "-c", str(PINS), *USUAL],
            # Colab's PyTorch brings Triton along.
            [*pip, "install", "-q", "-r", str(KERNELS)],
            [*pip, "download", "-q", "-c", str(PINS), "-d", str(WHEELS),
             *BROUGHT]):
        if subprocess.run(command).returncode:
            sys.exit("pip could not install the packages above; check the "
                     "network, then run the same command again")
    done.write_text(wanted)


if __name__ == "__main__":
    main()
