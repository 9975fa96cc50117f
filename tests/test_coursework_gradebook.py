"""Rows into nbgrader's grade book, the command line, formgrader."""

import csv
import http.cookiejar
import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request

import nbformat
import pytest
from gradebook_cases import (
    ATTACKS,
    HOUSE,
    NAME,
    POINTS,
    Course,
    attacked,
    cell,
    master_notebook,
    sources,
)
from nbgrader.converters import GenerateAssignment
from nbgrader.coursedir import CourseDirectory

from coursework import gradebook as gb
from coursework import handin


@pytest.fixture
def course(tmp_path):
    return Course(tmp_path)


def test_scores_arrive_by_id(course):
    row = course.hand_in("ada", course.answered(), lost=["q2-mean"])
    row["tests"]["q1-large"]["score"] = 1.5
    assert course.put(row).problems == []
    assert course.grades("ada") == {
        "q1-shapes": (2, None, None, False),
        "q1-large": (1.5, None, None, False),
        "q2-mean": (0, None, None, False),
        "q2-hidden": (4, None, None, False),
        "q5": (None, None, None, True), "q6": (None, None, None, True)}
    with course.book() as book:
        assignment = book.find_assignment(NAME)
        submission = book.find_submission(NAME, "ada")
        assert (assignment.max_score, assignment.max_written_score,
                submission.score) == (17, 7, 7.5)
        source = book.find_source_cell("q1-large", NAME, NAME)
        assert "HIDDEN-VALUE" in source.source and source.locked


def test_the_notebook_holds_answers_and_results(course):
    row = course.hand_in("ada", course.answered(),
                         lost=["q1-shapes", "q1-large"])
    course.put(row)
    nb = course.shown("ada")
    nbformat.validate(nb)
    assert "x - x.mean()" in cell(nb, "q1-forward").source
    assert cell(nb, "q5").source == "Because of *m*."
    outputs = {k: cell(nb, k).outputs[0].text for k in POINTS}
    assert outputs == {
        "q1-shapes": "0 of 2 points: off by 31415\n",
        "q1-large": "failed: 0 of 3 points\n",
        "q2-mean": "1 of 1 points\n", "q2-hidden": "passed: 4 of 4 points\n"}
    assert "assert forward" in cell(nb, "q1-shapes").source
    assert cell(nb, "q1-large").source == "# large means, in float32"


def test_grading_again_keeps_what_people_gave(course):
    row = course.hand_in("ada", course.answered(), lost=["q2-mean"])
    course.put(row)
    course.mark("ada", "q5", 4, comment="Nearly.")
    course.mark("ada", "q6", 2)
    course.mark("ada", "q2-mean", 0.5, extra=1)
    with course.book() as book:
        nb = book.find_submission_notebook(NAME, NAME, "ada")
        nb.late_submission_penalty, nb.flagged = 0.25, True
        book.db.commit()
    assert course.put(row).review == []
    again = course.hand_in("ada", course.answered(q5="Another text."))
    assert sorted(course.put(again).review) == ["ada: q2-mean", "ada: q5"]
    grades = course.grades("ada")
    assert grades["q5"] == (None, 4, None, True)
    assert grades["q6"] == (None, 2, None, False)
    assert grades["q2-mean"] == (1, 0.5, 1, True)
    with course.book() as book:
        nb = book.find_submission_notebook(NAME, NAME, "ada")
        assert (nb.late_submission_penalty, nb.flagged) == (0.25, True)
        assert book.find_comment("q5", NAME, NAME,
                                 "ada").manual_comment == "Nearly."


@pytest.mark.parametrize("status", ["refused", "error"])
def test_what_was_not_graded_is_no_zero(course, tmp_path, status):
    course.put(course.row("bob", status=status))
    assert set(course.grades("bob").values()) == {(None, None, None, True)}
    nb = course.shown("bob")
    assert "the file is empty" in nb.cells[0].source
    assert handin.WHY[status] in nb.cells[0].source
    assert cell(nb, "q1-shapes").outputs[0].text == "not graded\n"
    report = gb.export(course.path, NAME, "csv", tmp_path / "out.csv",
                       partial=True)
    assert report.grades == {} and "the file is empty" in report.empty["bob"]
    page = gb.feedback(course.path, NAME)[0].path.read_text()
    assert "Score: not marked yet / 17.0" in page
    assert "Score: 0" not in page
    for name in [*POINTS, "q5", "q6"]:
        course.mark("bob", name, 1)
    report = gb.export(course.path, NAME, "csv", tmp_path / "out.csv")
    assert report.grades == {"bob": 6} and report.missing == 0
    course.put(course.row("bob", status=status))
    assert course.grades("bob")["q5"] == (None, 1, None, False)


def test_a_failing_grader_takes_no_score_away(course):
    row = course.hand_in("ada", course.answered())
    course.put(row)
    course.put(course.row("ada", status="error", sha256=row["sha256"]))
    assert course.grades("ada")["q1-large"] == (3, None, None, True)
    course.put(course.row("ada", status="refused", sha256="0" * 64))
    assert course.grades("ada")["q1-large"] == (None, None, None, True)


def test_no_response_is_said(course):
    nb = course.answered()
    cell(nb, "q6").source = cell(course.blank(), "q6").source
    course.put(course.hand_in("ada", nb))
    with course.book() as book:
        comments = {c.name: c.comment for c in book.find_submission_notebook(
            NAME, NAME, "ada").comments}
    assert comments["q6"] == "No response." and comments["q5"] is None


KILLED = """
import os, sys
from coursework import gradebook
def kill(*_):
    os.kill(os.getpid(), 9)
setattr(gradebook, sys.argv[1], kill)
rows = gradebook.read_rows(sys.argv[4])
gradebook.import_rows(sys.argv[2], sys.argv[3], rows, {})
"""


def test_a_kill_leaves_the_old_state(course, tmp_path):
    course.put(course.hand_in("ada", course.answered(), lost=["q2-mean"]))
    before = course.dump()
    rows = [course.row("ada", status="error"), course.row("new")]
    (tmp_path / "results.jsonl").write_text(
        "".join(json.dumps(r) + "\n" for r in rows))
    run = subprocess.run(
        [sys.executable, "-c", KILLED, "stage_master", course.path,
         course.master, tmp_path], cwd=HOUSE, capture_output=True)
    assert run.returncode == -9, run.stderr
    database, files = course.dump()
    assert database == before[0]
    assert {p: b for p, b in files.items() if p.suffix != ".tmp"} == before[1]
    report = course.put(*rows)
    assert report.imported == 2
    assert course.grades("ada")["q1-large"][0] is None


def test_a_failed_import_changes_nothing(course, monkeypatch):
    course.put(course.row("ada", status="error"))
    before = course.dump()

    def fail(_):
        raise OSError("no room")

    monkeypatch.setattr(gb, "stage_master", fail)
    with pytest.raises(OSError, match="no room"):
        course.put(course.row("ada"), course.row("new"))
    assert course.dump() == before


@pytest.mark.parametrize("change, words", [
    (lambda r: r.update(assignment="other"), "not of 'a9-small'"),
    (lambda r: r["tests"].pop("q2-mean"), "other tests or points"),
    (lambda r: r["tests"]["q2-mean"].update(score=2.0), "valid score"),
    (lambda r: r["tests"]["q2-mean"].update(score=float("nan")), "valid"),
    (lambda r: r.update(status="done"), "status 'done'"),
    (lambda r: r.update(student=None), "has no student")])
def test_rows_of_another_master_change_nothing(course, change, words):
    course.put(course.row("ada", status="error"))
    before, bad = course.dump(), course.row("bob")
    change(bad)
    with pytest.raises(ValueError, match=words):
        course.put(course.row("ada"), bad)
    assert course.dump() == before


def test_a_student_twice_is_refused(course):
    with pytest.raises(ValueError, match="more than one of ada"):
        course.put(course.row("ada"), course.row("ada"))


@pytest.mark.parametrize("student", [
    "../../evil", "a/b", "", ".hidden", "<b>x</b>", 'a"b', "x*", "a\\nb",
    "{0}", "a" * 300, "a "])
def test_a_name_that_is_no_folder_stops_nobody(course, tmp_path, student):
    report = course.put(course.row(student, status="error"),
                        course.row("Zoë O'Brien, B_12", status="error"))
    assert report.imported == 1 and "nbgrader can't use" in report.problems[0]
    assert not list(tmp_path.rglob("*evil*"))
    assert [p.problem for p in gb.feedback(course.path, NAME)] == [""]


def test_a_changed_master_keeps_marks(course):
    course.put(course.hand_in("ada", course.answered()))
    course.mark("ada", "q2-mean", 1)
    nb = master_notebook()
    cell(nb, "q2-hidden").metadata.nbgrader.grade_id = "q2-new"
    nbformat.write(nb, course.master)
    row = course.row("ada")
    row["tests"]["q2-new"] = row["tests"].pop("q2-hidden")
    assert "another version" in course.put(row).problems[0]
    assert course.grades("ada")["q2-new"][0] == 4
    assert course.grades("ada")["q2-mean"][1] == 1
    cell(nb, "q2-mean").metadata.nbgrader.grade_id = "q2-other"
    nbformat.write(nb, course.master)
    row["tests"]["q2-other"] = row["tests"].pop("q2-mean")
    with pytest.raises(ValueError, match="marks or comments were given"):
        course.put(row)
    assert course.grades("ada")["q2-mean"][1] == 1


def test_nbgrader_itself_goes_on_with_the_course(course, tmp_path):
    course.put(course.hand_in("ada", course.answered(), lost=["q2-mean"]))
    course.mark("ada", "q5", 4)
    out = tmp_path / "grades.csv"
    run = subprocess.run(
        [sys.executable, "-m", "nbgrader", "export", f"--to={out}"],
        cwd=course.path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    line, = csv.DictReader(out.open())
    assert (line["student_id"], line["score"], line["max_score"]) == (
        "ada", "13.0", "17.0")
    before = course.grades("ada")
    directory = CourseDirectory(root=str(course.path), assignment_id=NAME)
    GenerateAssignment(coursedir=directory, force=True).start()
    assert course.grades("ada") == before
    made = nbformat.read(course.path / "release" / NAME / f"{NAME}.ipynb", 4)
    assert [c.source for c in made.cells] == [
        c.source for c in course.given.student.cells]


def test_a_book_in_use_is_said(course):
    course.put(course.row("ada", status="error"))
    other = sqlite3.connect(course.path / "gradebook.db")
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(ValueError, match="in use"):
        course.put(course.row("bob", status="error"))
    other.rollback()
    other.close()
    assert course.put(course.row("bob", status="error")).imported == 1


def test_the_guide_for_markers(course):
    text = gb.marking_guide(course.master)
    assert "## q5 (5 points)" in text and "## q6 (2 points)" in text
    assert "> Why is $\\sigma^2$ biased?" in text
    assert "RUBRIC-LINE 2 points" in text and "MODEL-ANSWER again" in text
    assert "HIDDEN" not in text and "SOLUTION-ONE" not in text
    assert "BEGIN SOLUTION" not in text


def test_the_command_line(course, tmp_path, capsys):
    results, subs = tmp_path / "results", tmp_path / "subs"
    results.mkdir()
    (subs / "ada").mkdir(parents=True)
    nb = nbformat.writes(course.answered())
    (subs / "ada" / f"{NAME}.ipynb").write_text(nb)
    row = course.hand_in("ada", nb.encode())
    (results / "ada-1.json").write_text(json.dumps(row))
    args = [str(course.path), str(course.master), str(results), str(subs)]
    assert gb.main(["import", *args]) == 0
    assert "x - x.mean()" in sources(course.shown("ada"))
    assert gb.main(["feedback", str(course.path), NAME]) == 0
    assert gb.main(["export", str(course.path), NAME, "--to", "csv",
                    "--out", str(tmp_path / "o.csv")]) == 0
    assert gb.main(["guide", str(course.master), "--out",
                    str(tmp_path / "g.md")]) == 0
    assert "1 of 1 feedback pages" in capsys.readouterr().out
    assert (tmp_path / "g.md").read_text().startswith("# Marking guide")


@pytest.mark.parametrize("args, words", [
    (["feedback", "{course}", "a8"], "it has: a9-small"),
    (["feedback", "{tmp}/none", NAME], "there is no grade book"),
    (["import", "{course}", "{tmp}/no.py", "x", "y"], "no.py"),
    (["import", "{course}", "{master}", "{tmp}/no", "y"],
     "coursework.grade wrote"),
    (["export", "{course}", NAME, "--to", "canvas", "--out", "x"],
     "needs a roster")])
def test_the_command_line_says_what_is_wrong(course, tmp_path, capsys, args,
                                             words):
    course.put(course.row("ada", status="error"))
    args = [a.format(course=course.path, tmp=tmp_path, master=course.master)
            for a in args]
    assert gb.main(args) == 2
    assert words in capsys.readouterr().err


class Browser:
    """What a marker's browser does: cookies, and the token from them."""

    def __init__(self, address, token):
        self.address, self.jar = address, http.cookiejar.CookieJar()
        self.opener = urllib.request.build_opener(
            urllib.request.HTTPCookieProcessor(self.jar))
        self.get(f"/formgrader/manage_assignments?token={token}")

    def ask(self, path, method="GET", data=None):
        """Send a request; returns the answer's text."""
        headers = dict(("X-CSRFToken", c.value) for c in self.jar
                       if c.name == "_xsrf")
        request = urllib.request.Request(
            self.address + path, method=method, headers=headers,
            data=None if data is None else json.dumps(data).encode())
        with self.opener.open(request, timeout=20) as answer:
            return answer.read().decode()

    def get(self, path):
        return self.ask(path)

    def json(self, path):
        return json.loads(self.ask(path))


@pytest.fixture
def formgrader(course, tmp_path):
    """A Jupyter server with formgrader in the course's folder."""
    attacked(course)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = {k: str(tmp_path / k) for k in (
        "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR",
        "IPYTHONDIR", "HOME")}
    log = (tmp_path / "server.log").open("w")
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyter_server", "--allow-root",
         "--no-browser", "--ServerApp.ip=127.0.0.1",
         f"--ServerApp.port={port}", "--ServerApp.port_retries=0",
         "--IdentityProvider.token=secret", "--ServerApp.jpserver_extensions="
         "{'nbgrader.server_extensions.formgrader': True}"],
        cwd=course.path, env={**os.environ, **here}, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                yield Browser(address, "secret")
                break
            except (urllib.error.URLError, ConnectionError):
                assert server.poll() is None, (tmp_path
                                               / "server.log").read_text()
                time.sleep(0.1)
        else:
            pytest.fail((tmp_path / "server.log").read_text())
    finally:
        server.terminate()
        server.wait(20)
        log.close()


def test_formgrader_shows_and_takes_marks(course, formgrader, tmp_path,
                                          request):
    for path in ("manage_assignments", f"manage_submissions/{NAME}",
                 "gradebook", f"gradebook/{NAME}", f"gradebook/{NAME}/{NAME}",
                 "manage_students", f"manage_students/s00/{NAME}"):
        assert "nbgrader" in formgrader.get(f"/formgrader/{path}")
    api = "/formgrader/api"
    assignment, = formgrader.json(f"{api}/assignments")
    assert assignment["num_submissions"] == len(ATTACKS) // 2 + 1
    listed = formgrader.json(f"{api}/submissions/{NAME}")
    assert {s["student"]: s["autograded"] for s in listed} == {
        s: True for s in [*course.files, "refused"]}
    books = {b["student"]: b for b in formgrader.json(
        f"{api}/submitted_notebooks/{NAME}/{NAME}")}
    assert books["s00"]["needs_manual_grade"] and books["s00"]["score"] == 8
    one = books["s00"]["id"]
    page = formgrader.get(f"/formgrader/submissions/{one}/")
    assert "End." in page and "SOLUTION-ONE" not in page
    for grade in formgrader.json(f"{api}/grades?submission_id={one}"):
        if grade["name"] in ("q5", "q6"):
            formgrader.ask(f"{api}/grade/{grade['id']}", "PUT",
                           {"manual_score": 1.5, "extra_credit": None})
    for comment in formgrader.json(f"{api}/comments?submission_id={one}"):
        if comment["name"] == "q5":
            formgrader.ask(f"{api}/comment/{comment['id']}", "PUT",
                           {"manual_comment": "Thanks."})
    report = gb.export(course.path, NAME, "csv", tmp_path / "o.csv")
    assert report.grades == {"s00": 11}
    first = gb.feedback(course.path, NAME)[1].path.read_text()
    assert "Thanks." in first and "Score: 1.5 / 5.0" in first
    answer = json.loads(formgrader.ask(
        f"{api}/submission/{NAME}/s00/autograde", "POST", {}))
    assert not answer["success"]
    assert course.grades("s00")["q5"][1] == 1.5
    assert "End." in formgrader.get(f"/formgrader/submissions/{one}/")
    no_attack_works(formgrader, books, request.getfixturevalue("page"))


def no_attack_works(formgrader, books, page):
    """Look at every submission as a marker does, in a browser."""
    asked = []
    page.on("dialog", lambda d: pytest.fail("a dialog opened"))
    page.route("**", lambda route: (
        asked.append(route.request.url), route.continue_()
        if route.request.url.startswith(formgrader.address)
        else route.abort()))
    page.goto(f"{formgrader.address}/formgrader/gradebook?token=secret")
    for book in books.values():
        page.goto(f"{formgrader.address}/formgrader/submissions/"
                  f"{book['id']}/", wait_until="domcontentloaded")
        assert page.evaluate("window.pwned") is None, book["student"]
    outside = {u for u in asked if not u.startswith(formgrader.address)}
    # nbgrader's own page asks for MathJax.
    assert not [u for u in outside if "cloudflare.com/ajax/libs/mathjax"
                not in u]
