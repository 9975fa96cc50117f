"""The gate goes red for each thing that it guards."""

import copy
import re
import tomllib

import pytest
import yaml

from normlab.lab.claims import KEY
from tools import check, lib
from tools import notebooks as book
from tools.links import anchors, equations, links, slug, tags

PATH = book.chapters(["03"])[0]
NAME = PATH.stem


@pytest.fixture(scope="module")
def chapter():
    return book.read(PATH)


@pytest.fixture
def nb(chapter):
    return copy.deepcopy(chapter)


def found(checks, *args):
    return "\n".join(checks(*args))


def text_outputs(nb):
    return [o for c in book.code_cells(nb) for o in c.outputs
            if o.output_type == "stream"]


def claim_outputs(nb):
    return [o for c in book.code_cells(nb) for o in c.outputs
            if KEY in o.get("metadata", {})]


def test_the_book_as_it_is_passes(nb):
    for part in (check.check_runs, check.check_cells, check.check_figures,
                 check.check_markdown):
        assert not found(part, NAME, nb)


def test_an_edited_number_in_an_output(nb):
    out = next(o for o in text_outputs(nb) if re.search(r"\d", o.text))
    out.text = re.sub(r"\d", lambda m: str((int(m[0]) + 1) % 10), out.text,
                      count=1)
    assert "an output is not what was run" in found(
        check.check_runs, NAME, nb)


def test_code_changed_since_the_run(nb):
    book.code_cells(nb)[3].source += "\n# more"
    assert "code has changed" in found(check.check_runs, NAME, nb)


def test_a_cell_that_was_never_run(nb):
    book.code_cells(nb)[2].execution_count = None
    assert "no execution count" in found(check.check_runs, NAME, nb)


def test_long_and_wide_cells(nb):
    book.code_cells(nb)[2].source = "x = 1\n" * 26
    book.code_cells(nb)[3].source = "x" * 80
    text = found(check.check_cells, NAME, nb)
    assert "25 allowed" in text and "79 columns" in text


def test_another_repository_in_the_setup_cell(nb):
    first = book.code_cells(nb)[0]
    first.source = first.source.replace("https://github.com", "https://x.y")
    assert "not the setup cell" in found(check.check_cells, NAME, nb)


def test_a_setup_cell_that_forgets_what_its_chapter_needs():
    nb = book.read(book.chapters(["10"])[0])
    assert not found(check.check_cells, "10-cuda-kernels", nb)
    book.code_cells(nb)[0].source = check.setup(NAME)
    assert "not the setup cell" in found(
        check.check_cells, "10-cuda-kernels", nb)


@pytest.mark.parametrize("name", check.EXTRAS)
def test_extras_that_setup_cells_ask_for_exist(name):
    project = tomllib.loads((book.ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    assert check.EXTRAS[name][0] in extras
    assert book.chapters([name])


def test_a_figure_without_alt_text(nb):
    cell = next(c for c in book.code_cells(nb) if "mystnb" in c.metadata)
    cell.metadata.mystnb["image"]["alt"] = ""
    assert "no alt text" in found(check.check_figures, NAME, nb)


@pytest.mark.parametrize("text", ["see {eq}`x`", "```{note}\nhello\n```",
                                  ":::{tip}\nhello\n:::"])
def test_roles_and_directives(nb, text):
    nb.cells[0].source += "\n\n" + text
    assert "role or directive" in found(check.check_markdown, NAME, nb)


def evidence(nb, registry):
    return found(check.check_evidence, registry, {NAME: nb})


@pytest.fixture
def registry():
    entries = yaml.safe_load((book.ROOT / "book/evidence.yml").read_text())
    return [e for e in entries if e["chapter"] == NAME]


def test_evidence_as_it_is(nb, registry):
    assert not evidence(nb, registry)


def test_a_claim_that_is_not_listed(nb, registry):
    assert "is not in evidence.yml" in evidence(nb, registry[1:])


def test_a_listed_claim_that_nobody_makes(nb, registry):
    extra = {**registry[0], "id": "not-made"}
    assert "not-made, which no chapter claims" in evidence(
        nb, [*registry, extra])


def test_a_claim_in_the_wrong_chapter(nb, registry):
    registry[0]["chapter"] = "01-why-scale-matters"
    assert "is not in evidence.yml as its" in evidence(nb, registry)


def test_an_unknown_verdict_and_an_unknown_source(nb, registry):
    registry[0]["verdict"] = "maybe"
    registry[1]["cite"] = ["nobody2000nothing"]
    text = evidence(nb, registry)
    assert "verdict 'maybe'" in text and "nobody2000nothing" in text


def test_a_claim_line_that_was_edited(nb, registry):
    out = claim_outputs(nb)[0]
    out.data["text/plain"] = out.data["text/plain"] + ", better 9"
    assert "prints what it didn't measure" in evidence(nb, registry)


def pages():
    page = {p: p.read_text() for p in (book.ROOT / "book").glob("*.md")}
    for p in book.chapters():
        page[p] = "\n\n".join(c.source for c in book.read(p).cells
                              if c.cell_type == "markdown")
    return page


def test_links_as_they_are():
    assert not found(check.check_links, pages())


@pytest.mark.parametrize("text, fault", [
    ("by (3.99)", r"no equation \(3.99\)"),
    ("[x](../book/nowhere.md)", "nowhere.md leads nowhere"),
    ("[x](../book/glossary.md#nothing)", "no nothing in glossary.md"),
    ("[x](../book/bibliography.md#nobody)", "no nobody in bibliography.md"),
    ("$$\na \\tag{3.1}\n$$", "3.1 is in"),
])
def test_broken_links_and_numbers(text, fault):
    page = pages()
    page[PATH] += "\n\n" + text
    assert re.search(fault, found(check.check_links, page))


def test_what_markdown_holds():
    text = ("# A `b` *c*, d's\n\n[x](y.md#z) `[no](no.md)` see (1.2)\n\n"
            "$$\na=(9.9) \\tag{1.2}\n$$\n\n```py\n(8.8)\n```\n")
    assert slug("A `b` *c*, d's") == "a-b-c-ds"
    assert anchors(text) == {"a-b-c-ds"}
    assert links(text) == ["y.md#z"]
    assert tags(text) == ["1.2"]
    assert equations(text) == {"1.2"}


def test_exported_modules_equal_their_cells(tmp_path):
    modules = lib.export_all(tmp_path)
    assert "numpy_layers" in modules
    for name, text in modules.items():
        assert (book.ROOT / f"normlab/{name}.py").read_text() == text
        assert "Do not edit" in text.split("\n")[0]
