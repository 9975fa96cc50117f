"""Finding, reading and fingerprinting the chapters."""

import sys
from pathlib import Path

import nbformat

from normlab.lab.files import digest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"
KEY = "normlab"  # in a notebook's metadata: the fingerprints of its last run


def chapters(names=()):
    """Paths of the chapters in order, or of those whose names start with
    one of `names`; SystemExit if one of them fits none."""
    paths = sorted(FOLDER.glob("*.ipynb"))
    for name in names:
        if not any(p.stem.startswith(name) for p in paths):
            sys.exit(f"no chapter in {FOLDER} starts with {name!r}")
    return [p for p in paths
            if not names or p.stem.startswith(tuple(names))]


def read(path):
    """The notebook at `path`."""
    return nbformat.read(path, as_version=4)


def code_cells(nb):
    """The notebook's code cells that have any code."""
    return [c for c in nb.cells if c.cell_type == "code" and c.source.strip()]


def code_digest(nb):
    """A fingerprint of the code that was run."""
    return digest([c.source for c in code_cells(nb)])


def output_digest(nb):
    """A fingerprint of everything stored as output, widgets included."""
    return digest([[c.get("outputs") for c in code_cells(nb)],
                   nb.metadata.get("widgets")])


def library_digest():
    """A fingerprint of the library that the chapters import, and of the
    records that they read."""
    files = [p for kind in ("py", "js", "css")
             for p in sorted((ROOT / "normlab").rglob(f"*.{kind}"))]
    files += [p for p in sorted((ROOT / "records").glob("*.json"))
              if not p.name.startswith("bench-")]
    return digest([[str(p.relative_to(ROOT)), p.read_text()] for p in files])
