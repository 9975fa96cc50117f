"""Make what students and teachers get from the masters.

    python -m coursework.release [MASTER ...] [--course FOLDER] [--check]

For each master of the sample course (default: all of coursework/sample): the
student notebook coursework/student/NAME.ipynb, which the book publishes; for
other masters only with --student FOLDER. With --course, also nbgrader's
source/NAME/NAME.ipynb and release/NAME/NAME.ipynb, the markers' guide
marking/NAME.md and the Gradescope package gradescope/NAME.zip in that folder.
--check writes nothing and fails where a student notebook is not what its
master gives.
"""

import argparse
import sys
from pathlib import Path

import nbformat

from coursework import source
from coursework.master import load
from normlab.lab.files import replacing

HERE = Path(__file__).resolve().parent
SAMPLE, STUDENT = HERE / "sample", HERE / "student"


def masters(paths, folder=SAMPLE):
    """The masters to release: those named, or all in the folder."""
    found = [Path(p) for p in paths] or sorted(
        p for p in folder.glob("*") if p.suffix in (".py", ".ipynb"))
    if not found:
        raise source.MasterError(f"there is no master in {folder}")
    return found


def text_of(nb):
    """A notebook as text, the same on every machine."""
    return nbformat.writes(nb, indent=1) + "\n"


def write(path, text):
    """Write a text, whole or not at all."""
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")


def stale(paths, folder, complete=True):
    """Student notebooks that are not what their masters give; if the masters
    are complete, those without one too."""
    wanted = {folder / f"{p.stem}.ipynb": text_of(load(p).student)
              for p in paths}
    for path, text in wanted.items():
        if not path.exists() or path.read_text("utf-8") != text:
            yield f"{path.name} is not what its master gives: `make release`"
    for path in set(folder.glob("*.ipynb")) - set(wanted) if complete else ():
        yield f"{path.name} has no master"


def release(path, folder, course):
    """Write what one master gives; return the files."""
    master = load(path)
    made = {}
    if folder:
        made[folder / f"{master.name}.ipynb"] = text_of(master.student)
    if course:
        from coursework import gradebook, gradescope  # slow to import

        name = f"{master.name}/{master.name}.ipynb"
        made |= {course / "source" / name: text_of(master.notebook),
                 course / "release" / name: text_of(master.student),
                 course / f"marking/{master.name}.md":
                     gradebook.marking_guide(path)}
    for file, text in made.items():
        write(file, text)
    if course:
        package = course / f"gradescope/{master.name}.zip"
        gradescope.package(path, package)
        made[package] = None
    return list(made)


def main(argv=None):
    """Release, or check."""
    parser = argparse.ArgumentParser(prog="python -m coursework.release",
                                     description=__doc__.split("\n")[0])
    parser.add_argument("masters", nargs="*", type=Path)
    parser.add_argument("--course", type=Path)
    parser.add_argument("--student", type=Path,
                        help="folder of the student notebooks")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args(argv)
    try:
        paths = masters(options.masters)
        sample = all(p.resolve().parent == SAMPLE for p in paths)
        folder = options.student or (STUDENT if sample else None)
        if options.check:
            bad = list(stale(paths, folder or STUDENT,
                             complete=not options.masters))
            print("\n".join(bad), end="\n" if bad else "")
            return 1 if bad else 0
        for path in paths:
            for file in release(path, folder, options.course):
                print(f"wrote {file}")
    except (source.MasterError, OSError) as error:
        print(f"Stopped: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
