"""What `make release` and `make grade` do.

    python -m coursework.make release COURSE MASTERS ASSIGNMENT [OPTION ...]
    python -m coursework.make grade COURSE MASTERS ASSIGNMENT SUBS [OPTION ...]

COURSE is the folder that nbgrader works in, MASTERS the folder that holds the
masters (.py or .ipynb), ASSIGNMENT a master's name ("" releases all), OPTION
one of coursework.release's or coursework.grade's.
"""

import sys
from pathlib import Path

from coursework import grade, release
from coursework.source import MasterError

NEXT = """
Next, with .venv/bin on your PATH (. .venv/bin/activate):
  mark by hand  cd {course} && jupyter lab, then Nbgrader, Formgrader; the
                guide is marking/{name}.md (make release writes it)
  feedback      python -m coursework.gradebook feedback {course} {name}
  export        python -m coursework.gradebook export {course} {name} \\
                    --to csv --out marks.csv
                (--to canvas or moodle, with --roster FILE from there)"""


def find(masters, name):
    """The master of an assignment; SystemExit names those that exist."""
    folder = Path(masters)
    known = {p.stem: p for p in sorted(folder.glob("*"))
             if p.suffix in (".py", ".ipynb")}
    if name not in known:
        sys.exit(f"ASSIGNMENT={name!r}: {folder} holds "
                 f"{', '.join(known) or 'no master'}")
    return known[name]


def main(argv):
    """Do it; return the exit status."""
    what, course, masters, name, *rest = [*argv, ""][:max(len(argv), 4)]
    course = Path(course).resolve()
    if what == "release":
        try:
            paths = ([find(masters, name)] if name
                     else release.masters([], Path(masters)))
        except MasterError as error:
            sys.exit(f"Stopped: {error}")
        return release.main([*map(str, paths), "--course", str(course),
                             *rest])
    subs, *options = [*rest, ""][:max(len(rest), 1)]
    master = find(masters, name)
    if not subs:
        sys.exit("SUBS=folder is missing: a folder or an archive of what "
                 "was handed in")
    out = course / "grades" / name
    code = grade.main([str(master), subs, str(out), "--resume", *options])
    if code not in (0, grade.FAILED):
        return code
    from coursework import gradebook  # slow to import

    bad = gradebook.main(["import", str(course), str(master),
                          str(out), subs])
    if not bad:
        print(NEXT.format(course=course, name=name))
    return code or bad


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
