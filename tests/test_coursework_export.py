"""Grades for platforms."""

import csv
import hashlib

import pytest
from gradebook_cases import NAME, Course

from coursework.export import export


@pytest.fixture
def course(tmp_path):
    return Course(tmp_path)


def marked(course):
    """Five students: done, with a mark missing, refused, and two whose
    names are formulas or not in the roster."""
    rows = [course.hand_in(s, course.answered()) for s in (
        "ada", "bob", "=cmd|calc!A1", "lovelacegrace_77")]
    report = course.put(*rows[:2], rows[3],
                        course.row("cyd", status="refused"),
                        course.row("nobody", status="error"))
    assert report.imported == 5
    for student in ("ada", "lovelacegrace_77"):
        course.mark(student, "q5", 4.5, comment="Good: <b>yes</b>")
        course.mark(student, "q6", 2)
    course.mark("bob", "q5", 1)


CANVAS = """\ufeffStudent,ID,SIS User ID,SIS Login ID,Section,Other (1),\
a9-small (4711),Final Score
,,,,,,Manual Posting,
    Points Possible,,,,,5,20,(read only)
"Lovelace, Ada",11,u11,ADA,S1,3,,1
"=SUM(A1)",12,u12,bob@school.example,S1,3,9,1
"Café, Cyd",13,cyd,u13@x.example,S1,3,8,1
"Lovelace, Grace",77,u77,grace,S1,3,EX,1
"Nothing, Ned",15,u15,ned,S1,3,,1
"Student, Test",99,,,S1,3,,1
"""


def read_csv(path, encoding="utf-8", **options):
    with path.open(encoding=encoding, newline="") as file:
        return list(csv.reader(file, **options))


def test_canvas(course, tmp_path):
    marked(course)
    roster, out = tmp_path / "canvas.csv", tmp_path / "out.csv"
    roster.write_text(CANVAS, encoding="utf-8")
    report = export(course.path, NAME, "canvas", out, roster)
    assert out.read_bytes().startswith(b"\xef\xbb\xbfStudent,ID")
    header, possible, *rows = read_csv(out, "utf-8-sig")
    assert header == ["Student", "ID", "SIS User ID", "SIS Login ID",
                      "Section", "a9-small (4711)"]
    assert possible == ["    Points Possible", "", "", "", "", "20"]
    assert rows == [
        ["Lovelace, Ada", "11", "u11", "ADA", "S1", "16.5"],
        ["'=SUM(A1)", "12", "u12", "bob@school.example", "S1", ""],
        ["Café, Cyd", "13", "cyd", "u13@x.example", "S1", ""],
        ["Lovelace, Grace", "77", "u77", "grace", "S1", "EX"]]
    assert report.grades == {"ada": 16.5}
    assert set(report.empty) == {"bob", "cyd", "nobody"}
    assert report.unknown == ["nobody"]
    assert report.absent == ["Nothing, Ned"]
    words = report.text()
    assert "20 points for a9-small (4711), here it is 17" in words
    assert "bob has 9 in Canvas" in words and "is EX in Canvas" in words
    partial = export(course.path, NAME, "canvas", out, roster,
                        partial=True)
    assert partial.grades["bob"] == 11
    assert "cyd" in partial.empty


def test_canvas_without_the_assignment(course, tmp_path):
    marked(course)
    roster, out = tmp_path / "canvas.csv", tmp_path / "out.csv"
    roster.write_text(CANVAS.replace("a9-small (4711)", "Ninth (4711)"))
    report = export(course.path, NAME, "canvas", out, roster)
    assert "will offer to make one" in report.text()
    assert read_csv(out, "utf-8-sig")[0][-1] == NAME
    export(course.path, NAME, "canvas", out, roster, column="Ninth")
    assert read_csv(out, "utf-8-sig")[0][-1] == "Ninth (4711)"
    with pytest.raises(ValueError, match="Other \\(1\\)"):
        export(course.path, NAME, "canvas", out, roster, column="Tenth")


def test_a_number_of_another_person_is_no_match(course, tmp_path):
    course.put(course.row("meitnerlise_77", status="error"))
    roster = tmp_path / "canvas.csv"
    roster.write_text(CANVAS)
    report = export(course.path, NAME, "canvas", tmp_path / "o.csv",
                       roster)
    assert report.unknown == ["meitnerlise_77"]


@pytest.mark.parametrize("line, there", [
    ("Lovelace,Grace,77", True), ("Meitner,Lise,77", False),
    ("Lovelace,Grace,78", True), ("Lovelace,Ada,78", False)])
def test_canvas_with_names_in_two_columns(course, tmp_path, line, there):
    course.put(course.row("lovelacegrace_77", status="error"))
    roster = tmp_path / "canvas.csv"
    roster.write_text(f"LastName,FirstName,ID,Section\n{line},S1\n")
    report = export(course.path, NAME, "canvas", tmp_path / "o.csv", roster)
    assert report.unknown == ([] if there else ["lovelacegrace_77"])


def test_two_candidates_are_no_match(course, tmp_path):
    course.put(course.row("u11", status="error"),
               course.row("u12", status="error"),
               course.row("12", status="error"))
    roster, out = tmp_path / "canvas.csv", tmp_path / "o.csv"
    roster.write_text(CANVAS.replace("cyd,", "u11,"))
    report = export(course.path, NAME, "canvas", out, roster)
    assert sorted(report.unknown) == ["12", "u11", "u12"]
    assert "fits 2 lines" in report.text()
    assert "fit the same line" in report.text()
    assert len(read_csv(out, "utf-8-sig")) == 2


MOODLE = """Identifier,Full name,Email address,Status,Grade,Maximum Grade,\
Grade can be changed,Last modified (submission),Last modified (grade),\
Feedback comments
Participant 501,Ada Lovelace,ada@school.example,Submitted,,17.00,Yes,-,-,
Participant 502,Bob B,BOB,Submitted,3.00,17.00,Yes,-,-,
Participant 77,Grace Lovelace,g@school.example,Submitted,,17.00,Yes,-,-,mine
Participant 503,Cyd Café,cyd,Submitted,,17.00,Yes,-,-,
Participant 504,Ned Nothing,ned,No submission,,17.00,Yes,-,-,
"""


def test_moodle(course, tmp_path):
    marked(course)
    roster, out = tmp_path / "moodle.csv", tmp_path / "out.csv"
    roster.write_text(MOODLE, encoding="utf-8")
    report = export(course.path, NAME, "moodle", out, roster)
    rows = read_csv(out)
    assert rows[0] == read_csv(roster)[0]
    lines = {r[0]: r for r in rows[1:]}
    assert {k: r[4] for k, r in lines.items()} == {
        "Participant 501": "16.5", "Participant 502": "",
        "Participant 77": "16.5", "Participant 503": "",
        "Participant 504": ""}
    assert lines["Participant 501"][9] == (
        "[a9-small] Automatic: 10, by hand: 6.5.<br>"
        "q5: Good: &lt;b&gt;yes&lt;/b&gt;")
    assert lines["Participant 77"][9] == "mine"
    assert report.absent == ["Ned Nothing"]
    assert report.unknown == ["nobody"]
    assert "was kept" in report.text()
    again = export(course.path, NAME, "moodle", tmp_path / "2.csv", out)
    assert again.grades == report.grades
    assert (tmp_path / "2.csv").read_text() == out.read_text()
    roster.write_text(MOODLE.replace("17.00", "10.00"))
    words = export(course.path, NAME, "moodle", out, roster).text()
    assert "maximum is 10, here it is 17" in words
    assert "ada has more than Moodle's maximum" in words


def test_plain_csv(course, tmp_path):
    marked(course)
    out = tmp_path / "out.csv"
    with course.book() as book:
        nb = book.find_submission_notebook(NAME, NAME, "ada")
        nb.late_submission_penalty = 1.5
        book.db.commit()
    report = export(course.path, NAME, "csv", out)
    assert out.read_bytes().startswith(b"\xef\xbb\xbf")
    with out.open(encoding="utf-8-sig", newline="") as file:
        lines = {r["student"]: r for r in csv.DictReader(file)}
    ada, bob, cyd = lines["ada"], lines["bob"], lines["cyd"]
    assert [ada[k] for k in ("automatic", "by hand", "total", "max", "status",
                             "penalty")] == ["10", "6.5", "15", "17",
                                             "graded", "1.5"]
    assert ada["sha256"] == hashlib.sha256(course.files["ada"]).hexdigest()
    assert [bob[k] for k in ("automatic", "by hand", "total",
                             "marks missing")] == ["10", "1", "", "1"]
    assert [cyd[k] for k in ("automatic", "by hand", "total", "status")] == [
        "", "", "", "refused"]
    assert report.missing == 1
    assert "confirmed by hand: 1; these" in report.text()


@pytest.mark.parametrize("to, text, words", [
    ("canvas", "Name,Grade\nx,1\n", "no Canvas export"),
    ("moodle", "Name,Grade\nx,1\n", "Moodle set to English"),
    ("canvas", "", "no header line"), ("canvas", None, "Grades > Export"),
    ("moodle", None, "grading worksheet"), ("blackboard", None, "allowed")])
def test_a_roster_of_another_kind(course, tmp_path, to, text, words):
    course.put(course.row("ada", status="error"))
    roster = None
    if text is not None:
        roster = tmp_path / "roster.csv"
        roster.write_text(text)
    with pytest.raises(ValueError, match=words):
        export(course.path, NAME, to, tmp_path / "out.csv", roster)
    assert not (tmp_path / "out.csv").exists()


def test_semicolons_and_other_encodings(course, tmp_path):
    marked(course)
    roster, out = tmp_path / "canvas.csv", tmp_path / "out.csv"
    rows = read_csv_text(CANVAS.lstrip("\ufeff"))
    with roster.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=";").writerows(rows)
    export(course.path, NAME, "canvas", out, roster)
    assert out.read_bytes().startswith(b"Student;ID")
    assert read_csv(out, delimiter=";")[2][-1] == "16.5"
    roster.write_bytes("Student,ID,Section\nCafé,1,2\n".encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8"):
        export(course.path, NAME, "canvas", out, roster)


def read_csv_text(text):
    return list(csv.reader(text.splitlines()))
