"""What the tests of the grade book share: a small course, and students who
write attacks into everything."""

import functools
import hashlib
import html.parser
import json
import sqlite3
import tempfile
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from nbgrader.api import Gradebook

from coursework.course import course_directory, open_book
from coursework.gradebook import import_rows
from coursework.handin import grade_id, handout

HOUSE = Path(__file__).resolve().parents[1]
NAME = "a9-small"
SECRETS = ["SOLUTION-ONE", "SOLUTION-TWO", "HIDDEN-VALUE-31415",
           "hidden message that tells it all", "MODEL-ANSWER", "RUBRIC-LINE",
           "HIDDEN-STATS-27182"]
POINTS = {"q1-shapes": 2, "q1-large": 3, "q2-mean": 1, "q2-hidden": 4}


def meta(name, grade=False, solution=False, points=None):
    """nbgrader's metadata, schema 3."""
    made = {"grade_id": name, "grade": grade, "solution": solution,
            "locked": not solution, "task": False, "schema_version": 3}
    return {"nbgrader": made | ({"points": points} if points else {})}


def region(what, *lines):
    return "\n".join([f"### BEGIN {what}", *lines, f"### END {what}"])


def master_notebook():
    """A master as nbgrader's own editor makes it."""
    def code(source, **about):
        return new_code_cell(source, metadata=meta(**about))

    def text(source, **about):
        return new_markdown_cell(
            source, metadata=meta(grade=True, solution=True, **about))

    cells = [
        new_markdown_cell("# Assignment 9\n\nThe mean is $\\mu$."),
        code("import numpy as np", name="given"),
        code("def forward(x):\n    " + region(
            "SOLUTION", "    y = x - 1  # SOLUTION-ONE",
            "    return y").replace("\n###", "\n    ###"),
            name="q1-forward", solution=True),
        code("# shapes agree\nassert forward(np.ones(3)).shape == (3,)",
             name="q1-shapes", grade=True, points=2),
        code("# large means, in float32\n" + region(
            "HIDDEN TESTS", "x = np.float32([HIDDEN_VALUE])",
            "assert forward(x) == 'HIDDEN-VALUE-31415', (",
            "    'hidden message that tells it all')"),
            name="q1-large", grade=True, points=3),
        new_markdown_cell("## Question 2"),
        code("def stats(x):\n    " + region(
            "SOLUTION", "    return x.mean()  # SOLUTION-TWO").replace(
                "\n###", "\n    ###"), name="q2-stats", solution=True),
        code("# the mean\nassert stats(np.ones(2)) == 1", name="q2-mean",
             grade=True, points=1),
        code("# more of it\n" + region(
            "HIDDEN TESTS", "assert stats(np.zeros(9)) == "
            "'HIDDEN-STATS-27182'"), name="q2-hidden", grade=True, points=4),
        new_markdown_cell("## Question 5\n\nWhy is $\\sigma^2$ biased?"),
        text(region("SOLUTION", "MODEL-ANSWER: it uses the mean.", "",
                    "**Rubric.** RUBRIC-LINE 2 points for the reason."),
             name="q5", points=5),
        new_markdown_cell("## Question 6"),
        text(region("SOLUTION", "MODEL-ANSWER again"), name="q6", points=2),
    ]
    return new_notebook(cells=cells, metadata={"kernelspec": {
        "name": "python3", "language": "python", "display_name": "Python"}})


@functools.cache
def blank_book():
    """An empty grade book's bytes; nbgrader takes seconds to make one."""
    with tempfile.TemporaryDirectory() as folder:
        with open_book(course_directory(folder), make=True):
            pass
        return (Path(folder) / "gradebook.db").read_bytes()


class Course:
    """A course folder, its master, and what students handed in."""

    def __init__(self, folder):
        self.path, self.master = folder / "course", folder / f"{NAME}.ipynb"
        self.path.mkdir()
        (self.path / "gradebook.db").write_bytes(blank_book())
        nbformat.write(master_notebook(), self.master)
        self.given = handout(self.master)
        self.files = {}

    def blank(self):
        """The notebook that a student starts from."""
        return nbformat.from_dict(json.loads(json.dumps(self.given.student)))

    def answered(self, q1="def forward(x):\n    return x - x.mean()",
                 q5="Because of *m*."):
        """A student's notebook."""
        nb = self.blank()
        cell(nb, "q1-forward").source = q1
        cell(nb, "q2-stats").source = "def stats(x):\n    return sum(x) / 2"
        cell(nb, "q5").source = q5
        cell(nb, "q6").source = "Six."
        return nb

    def hand_in(self, student, nb, **about):
        """Keep a file and return a row for it."""
        data = nb if isinstance(nb, bytes) else nbformat.writes(nb).encode()
        self.files[student] = data
        return self.row(student, sha256=hashlib.sha256(data).hexdigest(),
                        **about)

    def row(self, student, status="graded", lost=(), **about):
        """A row as the grader writes it."""
        tests = {k: {"score": 0.0 if k in lost else float(p),
                     "max": float(p), "hidden": "large" in k or "hidden" in k,
                     "note": "off by 31415" if k in lost else ""}
                 for k, p in POINTS.items()} if status == "graded" else {}
        return {"student": student, "file": f"{student}.ipynb",
                "assignment": NAME, "status": status, "max": 10.0,
                "score": sum(t["score"] for t in tests.values())
                if tests else None, "questions": {}, "tests": tests,
                "manual": {"q5": 5.0, "q6": 2.0}, "notes": [],
                "reason": "" if tests else "the file is empty",
                "late": False, "sha256": None, "seconds": 0.1,
                "master": self.given.digest} | about

    def put(self, *rows):
        """Import rows."""
        return import_rows(self.path, self.master, rows, self.files)

    def book(self):
        return Gradebook(f"sqlite:///{self.path}/gradebook.db")

    def grades(self, student):
        """{cell: (automatic, by hand, extra credit, needs a person)}."""
        with self.book() as book:
            nb = book.find_submission_notebook(NAME, NAME, student)
            return {g.name: (g.auto_score, g.manual_score, g.extra_credit,
                             g.needs_manual_grade) for g in nb.grades}

    def mark(self, student, name, score=None, extra=None, comment=None):
        """Give a mark as formgrader does."""
        with self.book() as book:
            grade = book.find_grade(name, NAME, NAME, student)
            grade.manual_score, grade.extra_credit = score, extra
            grade.needs_manual_grade = (score is None
                                        and grade.auto_score is None)
            if comment:
                book.find_comment(name, NAME, NAME,
                                  student).manual_comment = comment
            book.db.commit()

    def shown(self, student):
        """The notebook that formgrader shows."""
        return nbformat.read(self.path / "autograded" / student / NAME
                             / f"{NAME}.ipynb", as_version=4)

    def dump(self):
        """All that is kept: the data base and the files."""
        with sqlite3.connect(self.path / "gradebook.db") as db:
            rows = list(db.iterdump())
        return rows, {p: p.read_bytes() for p in self.path.rglob("*")
                      if p.is_file() and not p.name.startswith("gradebook")}


def cell(nb, name):
    """A notebook's cell by its nbgrader id."""
    return next(c for c in nb.cells if grade_id(c) == name)


def sources(nb):
    return "\n".join(c.source for c in nb.cells)


ATTACKS = [
    "<script>window.pwned = 1</script>",
    "<img src=x onerror='window.pwned = 1'>",
    "<ImG sRc=http://tracker.example/p.png>",
    "<svg onload=window.pwned=1>", "<svg><script>window.pwned=1</script>",
    "<iframe src='javascript:parent.pwned=1'></iframe>",
    "<iframe srcdoc='<script>parent.pwned=1</script>'></iframe>",
    "[click](javascript:window.pwned=1)", "<javascript:window.pwned=1>",
    "[click][a]\n\n[a]: javascript:window.pwned=1",
    "[click](JaVaScRiPt&colon;window.pwned=1)",
    "[x](data:text/html;base64,PHNjcmlwdD5wd25lZD0xPC9zY3JpcHQ+)",
    "![t](http://tracker.example/p.png)",
    "![t][r]\n\n[r]: http://tracker.example/p.png",
    "[![t](http://tracker.example/p.png)](http://x.example)",
    "```mermaid\n<img src=x onerror=window.pwned=1>\n```",
    "~~~~mermaid\n</pre><script>window.pwned=1</script>\n~~~~",
    "$\\href{javascript:window.pwned=1}{x}$",
    "\\begin{align}\\href{javascript:window.pwned=1}{x}\\end{align}",
    "$$\\unicode<img src=x onerror=window.pwned=1>$$",
    "\\(\\href{javascript:window.pwned=1}{x}\\)",
    "$\\style{background:url(http://tracker.example)}{x}$",
    "$\\class{navbar-fixed-top}{x}$ $\\require{bbox}$",
    "$\\def\\x{\\href{javascript:window.pwned=1}{y}}\\x$",
    "$x$ <b onclick=window.pwned=1>y</b> $z$",
    "$5 and <script>window.pwned=1</script> $6",
    "`` ` <script>window.pwned=1</script>", 
    "` <b>\n\n<script>window.pwned=1</script>",
    "</div></div></body><script>window.pwned=1</script>",
    "<!-- --><script>window.pwned=1</script>",
    "<style>*{display:none}</style>",
    "<a href='http://x.example' onmouseover=window.pwned=1>x</a>",
    "<details open ontoggle=window.pwned=1>x</details>",
    "<math><mtext><img src=x onerror=window.pwned=1></mtext></math>",
    "<form action=http://tracker.example><input autofocus onfocus=pwned=1>",
    "<link rel=stylesheet href=http://tracker.example/a.css>",
    "<meta http-equiv=refresh content='0;url=http://tracker.example'>",
    "| a |\n|---|\n| <img src=x onerror=window.pwned=1> |",
    "# head <img src=x onerror=window.pwned=1>",
    "x\n: <img src=x onerror=window.pwned=1>",
    "{{ 7*7 }}{% raw %}<script>window.pwned=1</script>",
    "![$\\text{\" onerror=\"window.pwned=1}$](x.png)"]
QUIET = {"p", "em", "strong", "code", "pre", "span", "div", "a", "h1", "ul",
         "ol", "li", "table", "thead", "tbody", "tr", "th", "td", "dl", "dt",
         "dd", "del", "br", "hr", "blockquote"}


class Tags(html.parser.HTMLParser):
    """Collects a page's tags and attributes."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes = set(), set()
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= set(attrs)


def attacked(course):
    """A course whose students wrote all attacks into everything."""
    rows = []
    for i, (one, two) in enumerate(zip(ATTACKS[::2], ATTACKS[1::2])):
        nb = course.answered(q1=f"def forward(x):\n    return '''{one}'''",
                             q5=f"Hello {one}\n\nEnd.")
        cell(nb, "q6").source = f"Hello {two}\n\nEnd."
        nb.cells.insert(1, new_markdown_cell(f"Other {one}"))
        rows.append(course.hand_in(f"s{i:02}", nb, lost=["q1-shapes"],
                                   notes=[f"cell 3: {two}"]))
        rows[-1]["tests"]["q1-shapes"]["note"] = two
    rows.append(course.row("refused", status="refused",
                           reason=" ".join(ATTACKS)))
    course.put(*rows)
