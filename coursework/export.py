"""Grades for a learning platform: Canvas, Moodle, or a plain CSV file.

Only students of the platform's own export (the roster) get a line. Whoever
has no grade, or fits no line or several, is named in the Export's text, not
guessed.
"""

import contextlib
import csv
import html
import io
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from coursework.checker import same
from coursework.clean import LONG_NOTE, clean, inert
from coursework.course import assignment_of, course_directory, open_book
from normlab.lab.files import replacing


@dataclass
class Total:
    """One student's points."""

    student: str
    keys: list
    row: dict
    automatic: float = 0.0
    by_hand: float = 0.0
    penalty: float = 0.0
    missing: int = 0
    comments: list = field(default_factory=list)

    @property
    def status(self):
        """graded, refused or error; or what a person made of it."""
        known = self.row.get("status", "graded")
        return known if known == "graded" or self.missing else (
            "marked by hand")

    def grade(self, partial):
        """What to export: points, or None with a reason."""
        if self.missing and self.status != "graded":
            why = self.row.get("reason") or "no reason is known"
            return None, f"{self.status}: {clean(why, LONG_NOTE)}"
        if self.missing and not partial:
            return None, ("marks to be given or confirmed by hand: "
                          f"{self.missing}")
        return max(0.0, self.automatic + self.by_hand - self.penalty), ""


@dataclass
class Export:
    """What an export writes, and what it can't."""

    path: Path
    assignment: str
    marks: list                          # every student's Total
    most: float                          # points that can be reached
    table: object = None                 # the roster
    grades: dict = field(default_factory=dict)
    empty: dict = field(default_factory=dict)
    unknown: list = field(default_factory=list)
    absent: list = field(default_factory=list)
    warnings: list = field(default_factory=list)
    missing: int = 0

    def warn(self, text):
        """Keep a warning, once."""
        if text not in self.warnings:
            self.warnings.append(text)

    def text(self):
        """The report in words."""
        return "\n".join([
            f"{len(self.grades)} grades are in {self.path}",
            *(f"No grade for {s}: {w}" for s, w in sorted(
                self.empty.items())),
            *(f"In the grade book, not in the roster: {s}"
              for s in self.unknown),
            *(f"In the roster, not in the grade book: {s}"
              for s in self.absent),
            *(f"Warning: {w}" for w in self.warnings)])


def total(submission, row):
    """One submission's Total."""
    student = submission.student
    made = Total(student.id, [k for k in (
        student.id, student.lms_user_id, student.email) if k], row)
    made.penalty = float(submission.late_submission_penalty or 0)
    for nb in submission.notebooks:
        for grade in nb.grades:
            made.missing += bool(grade.needs_manual_grade)
            if grade.manual_score is not None:
                made.by_hand += grade.manual_score
            elif grade.auto_score is not None:
                made.automatic += grade.auto_score
            else:
                continue
            made.by_hand += grade.extra_credit or 0.0
        made.comments += [(c.name, c.comment) for c in nb.comments
                          if c.comment]
    return made


def export(course, assignment, to, out, roster=None, partial=False,
           column=None):
    """Write grades for "canvas", "moodle" or as plain "csv"; return an
    Export that says what is in the file and what is not.

    roster: the platform's own export, for canvas (Grades > Export) and
    moodle (the grading worksheet). partial: also sums in which marks by
    hand are missing. column: the assignment's column in the roster, where
    it has another name. Raises ValueError for a roster that can't be used.
    """
    writers = {"canvas": canvas, "moodle": moodle, "csv": plain_csv}
    if to not in writers:
        raise ValueError(f"to={to!r}; allowed: canvas, moodle, csv")
    if to != "csv" and roster is None:
        where = ("Grades > Export" if to == "canvas" else
                 "View all submissions > Download grading worksheet")
        raise ValueError(f"to={to!r} needs a roster: the file from {where}")
    with open_book(course_directory(course)) as book:
        found, rows = assignment_of(book.db, assignment)
        marks = [total(s, rows.get(s.student_id, {})) for s in sorted(
            found.submissions, key=lambda s: s.student_id)]
        report = Export(Path(out), assignment, marks, float(found.max_score))
    for mark in marks:
        value, why = mark.grade(partial)
        (report.empty if why else report.grades)[mark.student] = why or value
    report.missing = sum(m.missing for m in marks if m.status == "graded")
    if report.missing:
        report.warn(
            f"marks missing or to be confirmed by hand: {report.missing}; "
            + ("sums so far are written" if partial else
               "these students' cells are empty (--partial writes the sums "
               "so far)"))
    if to != "csv":
        report.table = Table.read(roster)
    writers[to](report, column)
    return report


def number(value):
    """Points with at most two digits after the point."""
    return "" if value is None else f"{value:.2f}".rstrip("0").rstrip(".")


@dataclass
class Table:
    """A CSV file in the way its platform writes it."""

    path: Path
    header: list
    rows: list
    comma: str = ","
    mark: bool = False                   # begins with a byte order mark

    @classmethod
    def read(cls, path):
        """Read a roster. Raises ValueError."""
        path = Path(path)
        try:
            data = path.read_bytes()
            text = data.decode("utf-8-sig")
        except OSError as error:
            raise ValueError(f"roster={str(path)!r}: {error.strerror}"
                             ) from None
        except UnicodeDecodeError:
            raise ValueError(f"roster={str(path)!r} is not UTF-8: save it "
                             "as CSV UTF-8, or download it anew") from None
        first = text.split("\n", 1)[0]
        comma = max(",;\t", key=first.count)
        rows = list(csv.reader(io.StringIO(text, newline=""),
                               delimiter=comma))
        if not rows or len(rows[0]) < 2:
            raise ValueError(f"roster={str(path)!r} has no header line")
        width = len(rows[0])
        body = [r + [""] * (width - len(r)) for r in rows[1:] if any(r)]
        return cls(path, [h.strip() for h in rows[0]], body, comma,
                   data.startswith(b"\xef\xbb\xbf"))

    def index(self, name):
        """The first column with this name, or None."""
        low = [h.casefold() for h in self.header]
        return low.index(name.casefold()) if name.casefold() in low else None

    def cells(self, i, *names):
        """A row's cells of the columns that there are."""
        columns = [self.index(n) for n in names]
        return [self.rows[i][c].strip() for c in columns if c is not None]

    def write(self, path, rows):
        """Write rows in this way, whole or not at all."""
        with replacing(path) as aside, aside.open(
                "w", newline="",
                encoding="utf-8-sig" if self.mark else "utf-8") as file:
            csv.writer(file, delimiter=self.comma).writerows(
                [inert(v) for v in row] for row in rows)


def plain_csv(report, _):
    """One line a student."""
    rows = [["student", "automatic", "by hand", "total", "max", "status",
             "late", "sha256", "penalty", "marks missing"]]
    for m in report.marks:
        parts = ([None, None] if m.status in ("refused", "error") else
                 [m.automatic, m.by_hand])
        rows.append([
            m.student, *map(number, parts),
            number(report.grades.get(m.student)), number(report.most),
            m.status, "late" if m.row.get("late") else "",
            m.row.get("sha256"), number(m.penalty or None),
            m.missing or ""])
    Table(None, [], [], mark=True).write(report.path, rows)


# --- who is who ---

def match(report, rows, ids, number, mail, name):
    """{row of the roster: its student's Total}.

    rows: those to look at; ids, number, mail, name: columns with ids, with
    the platform's number, with an address, and with parts of the name.
    Several candidates are no match, and neither is a number that comes with
    another name.
    """
    table, found = report.table, {}
    names = {i: " ".join(table.cells(i, *name)) for i in rows}
    known = {i: row_keys(table, i, ids, number, mail, names[i])
             for i in rows}
    for m in report.marks:
        hits = set()
        for way, mine in enumerate(student_keys(m.keys)):
            hits = hits or {i for i in rows if mine & known[i][way] and not (
                way == 1 and clash(m.student, names[i]))}
        if len(hits) == 1:
            found[m.student] = hits.pop()
        else:
            report.unknown.append(m.student)
            if hits:
                report.warn(f"{m.student} fits {len(hits)} lines of the "
                            "roster")
    counts = Counter(found.values())
    for student in [s for s, i in found.items() if counts[i] > 1]:
        report.warn(f"{student} and another student fit the same line of "
                    "the roster")
        report.unknown.append(student)
        del found[student]
    for student in report.unknown:
        report.grades.pop(student, None)
    by_row = {found[m.student]: m for m in report.marks
              if m.student in found}
    report.absent = [names[i] or table.rows[i][0] for i in rows
                     if i not in by_row]
    return by_row


def student_keys(ids):
    """A student's keys, way by way: ids; numbers in names from a download
    (1234 for Ada Lovelace_1234, which is also how a name alone could end);
    ids twice more; names."""
    ids = [k.strip() for k in ids]
    plain = {k.casefold() for k in ids}
    return (plain, {n for k in ids for n in re.findall(r"\D_(\d+)$", k)},
            plain, plain, {name_of(k) for k in ids} - {""})


def row_keys(table, i, ids, number, mail, name):
    """A row's keys, way by way: ids, numbers twice, what stands before the
    @ of an address, the name."""
    numbers = {n for t in table.cells(i, number)
               for n in re.findall(r"\d+$", t)}
    return ({t.casefold() for t in table.cells(i, *ids)} - {""}, numbers,
            numbers, {t.split("@")[0].casefold()
                      for t in table.cells(i, mail) if "@" in t},
            {letters(name)} - {""})


def name_of(student):
    """The name in a name from a platform's download, by its letters."""
    return letters(re.sub(r"_\d+$", "", student.strip()))


def letters(text):
    """A name's letters and digits, without case and accents."""
    text = unicodedata.normalize("NFKD", text)
    return re.sub(r"[\W_]", "", text).casefold()


def clash(student, name):
    """Whether a download's name and a roster's are two people's, as far as
    one can tell from names in Latin letters."""
    mine, theirs = name_of(student), letters(name)
    return (theirs != "" and mine.isascii() and theirs.isascii()
            and sorted(mine) != sorted(theirs))


# --- Canvas ---

def canvas(report, column):
    """What Canvas imports: only students who are in its own export, since
    it makes new users of others."""
    table = report.table
    section = table.index("Section")
    if (section is None or table.index("ID") is None
            or table.header[0].casefold() not in ("student", "lastname")):
        raise ValueError(f"roster={str(table.path)!r} is no Canvas export: "
                         "it needs Student, ID and Section")
    place, title = canvas_column(report, column)
    top = [r for r in table.rows if "Points Possible" in r[0]][:1]
    rows = [i for i, r in enumerate(table.rows)
            if r not in top and r[0].strip()
            and r[0].strip() not in ("Student, Test", "Test Student")]
    found = match(
        report, rows, ("ID", "SIS User ID", "SIS Login ID", "Integration ID"),
        "ID", "SIS Login ID", ("Student", "LastName", "FirstName"))
    possible = top[0][place].strip() if top and place is not None else ""
    most = number(report.most)
    if possible and possible != most:
        with contextlib.suppress(ValueError):
            if float(possible.replace(",", ".")) != report.most:
                report.warn(f"Canvas has {possible} points for {title}, here "
                            f"it is {most}")
    lines = [table.header[:section + 1] + [title],
             ["    Points Possible"] + [""] * section + [possible or most]]
    for i, mark in sorted(found.items()):
        before = table.rows[i][place].strip() if place is not None else ""
        lines.append(table.rows[i][:section + 1] + [
            canvas_cell(mark.student, before, report)])
    table.write(report.path, lines)


def canvas_cell(student, before, report):
    """A student's grade as Canvas takes it."""
    if before.casefold() in ("ex", "n/a"):
        report.warn(f"{student} is {before} in Canvas and stays so")
        report.grades.pop(student, None)
        return before
    if student not in report.grades and before not in ("", "-"):
        report.warn(f"{student} has {before} in Canvas; the empty cell takes "
                    "it away")
    return number(report.grades.get(student))


def canvas_column(report, column):
    """The assignment's place and title in Canvas' export."""
    titles = {i: h for i, h in enumerate(report.table.header)
              if re.search(r"\(\d+\)$", h)}
    wanted = column or report.assignment
    hits = [i for i, h in titles.items() if same(wanted).casefold() in (
        same(t).casefold() for t in (h, re.sub(r"\(\d+\)$", "", h)))]
    if len(hits) == 1:
        return hits[0], titles[hits[0]]
    there = ", ".join(titles.values()) or "no assignment"
    if column or hits:
        raise ValueError(f"column={wanted!r}: the roster has {len(hits)} "
                         f"such columns; it has {there}")
    report.warn(f"Canvas has no assignment called {wanted!r}: its import "
                f"will offer to make one; --column names one of: {there}")
    return None, wanted


# --- Moodle ---

def moodle(report, column):
    """Moodle's own grading worksheet, with grades and comments filled in.
    It skips a line whose grade is empty."""
    table = report.table
    grade = table.index(column or "Grade")
    if None in (grade, table.index("Identifier"),
                table.index("Last modified (grade)")):
        raise ValueError(
            f"roster={str(table.path)!r} is no grading worksheet: it needs "
            f"Identifier, {column or 'Grade'} and Last modified (grade); "
            "download it with Moodle set to English")
    found = match(
        report, range(len(table.rows)), ("Identifier", "Email address",
                                         "ID number", "Username",
                                         "Student ID"),
        "Identifier", "Email address", ("Full name",))
    for i, mark in found.items():
        line = table.rows[i]
        line[grade] = number(report.grades.get(mark.student))
        add_comment(report, line, mark)
        too_much(report, table.cells(i, "Maximum Grade"), mark)
    table.write(report.path, [table.header, *table.rows])


def add_comment(report, line, mark):
    """Put our words into a line of Moodle's worksheet."""
    words, ours = (report.table.index("Feedback comments"),
                   f"[{report.assignment}]")
    if words is None or mark.student not in report.grades:
        return
    if line[words] and ours not in line[words]:
        report.warn(f"{mark.student}: a comment in Moodle was kept, ours "
                    "left out")
        return
    parts = [f"{ours} Automatic: {number(mark.automatic)}, by hand: "
             f"{number(mark.by_hand)}."] + [
        f"{name}: {clean(text, 5000)}" for name, text in mark.comments]
    # Moodle takes it as HTML.
    line[words] = "<br>".join(
        html.escape(p).replace("\n", "<br>") for p in parts)


def too_much(report, limit, mark):
    """Warn of a grade that Moodle would silently leave out."""
    try:
        limit = float(limit[0].replace(",", "."))
    except (LookupError, ValueError):
        return
    if limit != report.most:
        report.warn(f"Moodle's maximum is {number(limit)}, here it is "
                    f"{number(report.most)}")
    if report.grades.get(mark.student, 0) > limit:
        report.warn(f"{mark.student} has more than Moodle's maximum: Moodle "
                    "leaves such a line out")
