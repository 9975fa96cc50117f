"""`make run`: changed chapters only, and a failing one stays as it was."""

import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from tools import notebooks as book
from tools import run


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(book, "FOLDER", tmp_path)
    monkeypatch.setattr(sys, "argv", ["run"])
    return tmp_path


def write(path, *cells):
    nbformat.write(new_notebook(cells=[new_code_cell(c) for c in cells]),
                   path)


def test_only_what_changed_is_run(folder, capsys):
    one, two = folder / "01-one.ipynb", folder / "02-two.ipynb"
    write(one, "print('a')\nprint('b')", "1 + 1")
    write(two, "2 + 2")
    run.main()
    assert "01-one.ipynb:" in capsys.readouterr().out
    nb = book.read(one)
    assert [c.execution_count for c in nb.cells] == [1, 2]
    assert nb.cells[0].outputs[0].text == "a\nb\n"
    assert nb.cells[1].outputs[0].data["text/plain"] == "2"
    run.main()
    assert "up to date" in capsys.readouterr().out
    write(two, "3 + 3")
    run.main()
    out = capsys.readouterr().out
    assert "02-two.ipynb:" in out and "01-one" not in out
    nb = book.read(one)
    nb.cells[1].outputs[0].data["text/plain"] = "3"
    nbformat.write(nb, one)
    run.main()
    assert book.read(one).cells[1].outputs[0].data["text/plain"] == "2"


def test_a_failing_chapter_stays_as_it_was(folder, capsys):
    path = folder / "01-one.ipynb"
    write(path, "1 + 1", "1 / 0")
    before = path.read_bytes()
    with pytest.raises(SystemExit, match="1 of 1 chapters failed"):
        run.main()
    assert "ZeroDivisionError" in capsys.readouterr().out
    assert path.read_bytes() == before
    assert list(folder.iterdir()) == [path]


def test_an_unknown_chapter_is_named(folder, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run", "99"])
    with pytest.raises(SystemExit, match="no chapter.*'99'"):
        run.main()
