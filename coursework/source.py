"""Masters of assignments: read them, and strip what students may not see.

A master is an nbgrader notebook (.ipynb), or a Python file with cells (.py,
jupytext's percent format) whose cells say in short what they are:

    # %% answer="q1-forward"             code that a student writes
    # %% test="q1-shapes" points=2       a test that earns points
    # %% [markdown] text="q5" points=5   free text, marked by a person

Answers stand between `### BEGIN SOLUTION` and `### END SOLUTION`, tests that
students do not see between `### BEGIN HIDDEN TESTS` and `### END HIDDEN
TESTS`: nbgrader's own marks.
"""

import re
from pathlib import Path

import nbformat

SOLUTION = ("BEGIN SOLUTION", "END SOLUTION")
HIDDEN = ("BEGIN HIDDEN TESTS", "END HIDDEN TESTS")
SCHEME = ("BEGIN MARK SCHEME", "END MARK SCHEME")
STUBS = {"code": "# YOUR CODE HERE\nraise NotImplementedError()",
         "markdown": "YOUR ANSWER HERE"}
KINDS = {"answer": {"solution": True}, "test": {"grade": True},
         "text": {"solution": True, "grade": True}}
ID = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


class MasterError(ValueError):
    """The master can't be used; the text says which cell, and why."""


def read(path):
    """A master as an nbgrader notebook, from an .ipynb or a .py file."""
    path = Path(path)
    if path.suffix not in (".ipynb", ".py"):
        raise MasterError(f"{path}: a master is an .ipynb or a .py file")
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MasterError(f"{path} can't be read: {error}") from None
    if path.suffix == ".ipynb":
        try:
            return nbformat.reads(text, as_version=4)
        except Exception as error:
            raise MasterError(f"{path} is not a notebook: {error}") from None
    return from_text(text, path.stem)


def from_text(text, name):
    """The nbgrader notebook of a Python file with cells."""
    import jupytext  # not needed where the master is a notebook

    nb = jupytext.reads(text, fmt="py:percent")
    nb.metadata = nbformat.from_dict({
        "kernelspec": {"name": "python3", "language": "python",
                       "display_name": "Python 3"},
        "language_info": {"name": "python"},
        "title": name})
    nb.nbformat, nb.nbformat_minor = 4, 5
    for i, cell in enumerate(nb.cells):
        cell.metadata = nbformat.from_dict(
            {"nbgrader": metadata(cell, i, name)}
            if cell.cell_type == "code" or set(cell.metadata) & set(KINDS)
            else {})
        info = cell.metadata.get("nbgrader", {})
        cell.id = info.get("grade_id", f"cell-{i}")
    nbformat.validate(nb)
    return nb


def metadata(cell, i, name):
    """What nbgrader has to know of a cell of the Python file."""
    given = {k: v for k, v in cell.metadata.items()
             if not k.startswith("lines_to_")}  # jupytext's own
    kind = next((k for k in KINDS if k in given), None)
    known = {kind, "points"} if kind else set()
    if set(given) - known:
        raise MasterError(
            f"{name}.py, cell {i}: {', '.join(sorted(set(given) - known))} "
            "not known here; allowed: one of answer, test, text, and points")
    grade_id = given.get(kind, f"given-{i}")
    points = given.get("points")
    if not ID.fullmatch(str(grade_id)):
        raise MasterError(f"{name}.py, cell {i}: {grade_id!r} is no id; "
                          "letters, digits, - and _ are allowed")
    if (kind in ("test", "text")) != (
            isinstance(points, int) and points > 0):
        raise MasterError(f"{name}.py, cell {i}: points={points!r}; a test "
                          "and a text need a whole number above 0, others "
                          "have none")
    if kind == "text" and cell.cell_type != "markdown":
        raise MasterError(f"{name}.py, cell {i}: a text is a Markdown cell")
    if kind in ("answer", "test") and cell.cell_type != "code":
        raise MasterError(f"{name}.py, cell {i}: {kind} is for code cells")
    made = {"schema_version": 3, "grade_id": grade_id, "task": False,
            "solution": False, "grade": False,
            "locked": kind in ("test", None), **KINDS.get(kind, {})}
    return made | ({"points": points} if points else {})


def strip(source, marks, stub=None):
    """Text without its marked regions; a stub stands in place of each.

    Raises MasterError when a mark has no partner.
    """
    lines, inside, found = [], False, False
    for line in source.split("\n"):
        if marks[0] in line:
            if inside:
                raise MasterError(f"{marks[0]} twice without {marks[1]}")
            inside = found = True
            indent = line[:len(line) - len(line.lstrip())]
            lines += [indent + s for s in (stub or "").split("\n") if stub]
        elif marks[1] in line:
            if not inside:
                raise MasterError(f"{marks[1]} without {marks[0]}")
            inside = False
        elif not inside:
            lines.append(line)
    if inside:
        raise MasterError(f"{marks[0]} without {marks[1]}")
    return "\n".join(lines).rstrip("\n"), found


def region(source, marks):
    """The lines inside the marked regions."""
    kept, inside = [], False
    for line in source.split("\n"):
        if marks[0] in line or marks[1] in line:
            inside = marks[0] in line
        elif inside:
            kept.append(line)
    return "\n".join(kept)


def student(nb):
    """The notebook that students get: no answers, hidden tests, mark schemes
    or outputs."""
    nb = nbformat.from_dict(nb)
    for cell in nb.cells:
        info = cell.metadata.get("nbgrader", {})
        what = info.get("grade_id", "a cell")
        stub = STUBS.get(cell.cell_type)
        try:
            source, found = strip(cell.source, SOLUTION, stub)
            if found and not info.get("solution"):
                raise MasterError("a solution outside of an answer cell")
            if info.get("solution") and not found:
                source = stub
            cell.source, hidden = strip(source, HIDDEN)
            if hidden and not info.get("grade"):
                raise MasterError("hidden tests outside of a test cell")
            if info.get("task"):
                cell.source, _ = strip(cell.source, SCHEME)
        except MasterError as error:
            raise MasterError(f"{what}: {error}") from None
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return nb
