"""What the grader knows of a master: its answers' names and its tests."""

import ast
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from coursework import source
from coursework.source import HIDDEN, MasterError

SETTINGS = {"np", "numpy", "random", "warnings", "torch", "sys", "os"}

NUMBERED = re.compile(
    r"((?:q|ex|exercise|question|problem|task|part)?[-_]?\d+[a-z]?)"
    r"(?:[-_.].*)?", re.I)


@dataclass
class Cell:
    """A code cell of a master, and the names that it makes and needs."""

    kind: str                 # given, answer, test
    id: str
    source: str
    points: float = 0.0
    hidden: bool = False
    tree: object = None
    sets: bool = False
    makes: frozenset = frozenset()
    needs: frozenset = frozenset()


@dataclass
class Master:
    """A master, read."""

    name: str
    digest: str
    cells: list
    manual: dict                          # points that a person gives
    notebook: object
    student: object
    names: frozenset = frozenset()        # what answers define

    @property
    def tests(self):
        """The cells that earn points."""
        return [c for c in self.cells if c.kind == "test"]

    @property
    def max(self):
        """All points that tests give."""
        return sum(t.points for t in self.tests)

    def before(self, test):
        """The cells to run before a test, in order: answers, what makes a
        name that is needed, and settings such as np.random.seed(0)."""
        earlier = self.cells[:self.cells.index(test)]
        wanted, keep = set(test.needs), []
        for cell in reversed(earlier):
            if cell.kind == "answer":
                keep.append(cell)
            elif cell.makes & wanted or cell.kind == "given" and cell.sets:
                keep.append(cell)
                wanted = wanted - cell.makes | cell.needs
        return keep[::-1]


class Names(ast.NodeVisitor):
    """The names that code makes at its top level, and those that it needs
    from elsewhere: used before it has made them, or in a function."""

    def __init__(self, tree, imports):
        self.imports, self.makes, self.needs = imports, set(), set()
        self.inner = set()
        self.visit(tree)
        self.needs |= self.inner - self.makes

    def visit_Name(self, node):
        """A name that is stored, or loaded."""
        if not isinstance(node.ctx, ast.Load):
            self.makes.add(node.id)
        elif node.id not in self.makes:
            self.needs.add(node.id)

    def visit_Assign(self, node):
        """The value comes first, whatever stands first."""
        self.visit(node.value)
        for target in node.targets:
            self.visit(target)

    def visit_AugAssign(self, node):
        """Uses what it stores."""
        self.visit(node.value)
        if isinstance(node.target, ast.Name):
            if node.target.id not in self.makes:
                self.needs.add(node.target.id)
        self.visit(node.target)

    def visit_Import(self, node):
        """Makes the modules' names."""
        if self.imports:
            self.makes |= {(a.asname or a.name).split(".")[0]
                           for a in node.names}

    visit_ImportFrom = visit_Import  # noqa: N815

    def scope(self, node):
        """A function or class: what it needs counts when it runs, later."""
        for part in getattr(node, "decorator_list", []):
            self.visit(part)
        if hasattr(node, "args"):
            for part in [*node.args.defaults, *node.args.kw_defaults]:
                if part:
                    self.visit(part)
        if not isinstance(node, ast.Lambda):
            self.makes.add(node.name)
        self.inside(node)

    def inside(self, node):
        """What a scope of its own uses without making it."""
        loads, own = set(), set()
        for part in ast.walk(node):
            if isinstance(part, ast.Name):
                (loads if isinstance(part.ctx, ast.Load) else own).add(
                    part.id)
            elif isinstance(part, ast.arg):
                own.add(part.arg)
        self.inner |= loads - own

    visit_FunctionDef = visit_AsyncFunctionDef = scope  # noqa: N815
    visit_ClassDef = visit_Lambda = scope  # noqa: N815
    visit_ListComp = visit_SetComp = inside  # noqa: N815
    visit_DictComp = visit_GeneratorExp = inside  # noqa: N815


def sets(tree):
    """Whether code changes the settings of a library, as a seed does."""
    for node in tree.body:
        call = node.value if isinstance(node, ast.Expr) else None
        root = call.func if isinstance(call, ast.Call) else None
        while isinstance(root, ast.Attribute):
            root = root.value
        if isinstance(root, ast.Name) and root.id in SETTINGS:
            return True
    return False


def parse(text, where):
    """Code as a tree, without the lines that only a notebook understands."""
    for version in (text, plain(text)):
        try:
            return ast.parse(version)
        except (SyntaxError, ValueError) as error:
            why = error
    raise MasterError(f"{where}: {why}")


def plain(text):
    """Code without the lines that only a notebook understands."""
    return "\n".join(
        re.sub(r"^(\s*)[%!].*", r"\1pass", line) for line in text.split("\n"))


def question(grade_id):
    """The question that a test belongs to: q1 for q1-shapes."""
    match = NUMBERED.fullmatch(grade_id)
    return match.group(1) if match else grade_id


def load(path):
    """Read a master for grading. Raises MasterError."""
    path = Path(path)
    nb = source.read(path)
    cells, manual, seen = [], {}, set()
    for i, cell in enumerate(nb.cells):
        info = cell.metadata.get("nbgrader", {})
        grade_id = info.get("grade_id", f"cell-{i}")
        if info:
            if grade_id in seen:
                raise MasterError(f"two cells are called {grade_id}")
            seen.add(grade_id)
        if info.get("grade") and info.get("solution") or info.get("task"):
            manual[grade_id] = float(info.get("points", 0))
        if cell.cell_type != "code":
            continue
        kind = ("answer" if info.get("solution") else
                "test" if info.get("grade") else "given")
        tree = parse(cell.source, f"{path.name}, {grade_id}")
        found = Names(tree, imports=kind != "answer")
        points = float(info.get("points", 0)) if kind == "test" else 0.0
        if points < 0 or points != points:
            raise MasterError(f"{grade_id}: points={points}; 0 or more")
        cells.append(Cell(kind, grade_id, cell.source, points,
                          HIDDEN[0] in cell.source, tree, sets(tree),
                          frozenset(found.makes), frozenset(found.needs)))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    made = Master(path.stem, digest, cells, manual, nb, source.student(nb))
    made.names = frozenset().union(
        *(c.makes for c in cells if c.kind == "answer"))
    if not made.tests:
        raise MasterError(
            f"{path}: no cell is a test (nbgrader metadata grade: true, "
            "solution: false); nothing could be graded")
    if not any(c.kind == "answer" for c in cells):
        raise MasterError(f"{path}: no cell is an answer")
    return made
