"""Write normlab's modules from the chapters' exported cells.

Usage: python -m tools.lib [--check]
"""

import argparse
import difflib
import os
import re
import shutil
import sys
import tempfile
import textwrap
from pathlib import Path

from tools import notebooks as book

HEADER = "# Written by `make lib` from the chapters. Do not edit.\n"


def exports(path):
    """Names of the modules that a chapter exports to."""
    found = {re.match(r"#\|\s*export\s+(\S+)", c.source)
             for c in book.code_cells(book.read(path))}
    return {m.group(1) for m in found if m}


def export_all(folder):
    """Export every chapter, in reading order, into `folder`."""
    from nbdev.export import nb_export

    folder = Path(folder)
    sources = {}
    for path in book.chapters():
        for module in exports(path):
            sources.setdefault(module, []).append(path.stem)
            target = folder / f"{module}.py"
            if not target.exists():
                target.write_text(f"{HEADER}\n__all__ = []\n")
    for path in book.chapters():
        if exports(path):
            shutil.copy(path, folder / path.name)
            here = os.getcwd()
            os.chdir(folder)
            try:
                nb_export(path.name, lib_path=".")
            finally:
                os.chdir(here)
            (folder / path.name).unlink()
    return {module: tidy(folder / f"{module}.py") for module in sources}


def tidy(path):
    """The exported module's text with plain, stable cell marks."""
    text = re.sub(r"^# %% (\S+?)(?:\.ipynb)?( #?\S+)?$", r"# %% \1",
                  path.read_text(), flags=re.M)
    text = re.sub(r"^__all__ = \[.*?\]$", wrap, text, flags=re.M | re.S)
    return text.rstrip() + "\n"


def wrap(match):
    """The list of exported names in lines of 79 columns."""
    names = re.findall(r"'(\w+)'", match.group())
    return textwrap.fill(
        "__all__ = [" + ", ".join(f'"{n}"' for n in names) + "]", 79,
        subsequent_indent=" " * 11)


def main():
    """Write the modules, or with --check exit 1 where they differ."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        modules = export_all(folder)
    wrong = []
    for module, text in modules.items():
        path = book.ROOT / "normlab" / f"{module}.py"
        old = path.read_text() if path.exists() else ""
        if old == text:
            continue
        wrong.append(path)
        if args.check:
            sys.stdout.writelines(list(difflib.unified_diff(
                old.splitlines(True), text.splitlines(True),
                str(path), "the chapters"))[:40])
        else:
            aside = path.with_suffix(".tmp")
            aside.write_text(text)
            aside.replace(path)
            print(f"wrote {path.relative_to(book.ROOT)}")
    if args.check and wrong:
        names = ", ".join(p.name for p in wrong)
        sys.exit(f"{names}: not what the chapters export; edit the chapter, "
                 "then `make lib`")
    if not wrong:
        print("Exported modules equal their cells.")


if __name__ == "__main__":
    main()
