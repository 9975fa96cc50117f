"""The quick gate: what must hold of every chapter and page, in seconds.

Usage: python -m tools.check
"""

import functools
import re
import subprocess
import sys
from pathlib import Path

import yaml
from markdown_it import MarkdownIt
from pybtex.database import parse_file

from normlab.lab.claims import KEY as CLAIM
from normlab.lab.claims import line as claim_line
from tools import notebooks as book
from tools.links import anchors, equations, links, tags

LINES, COLUMNS = 25, 79
VERDICTS = ("true", "partly", "false")
ROLE = re.compile(r"\{[a-zA-Z:_-]+\}`|^\s*(```+|~~~+|:::+)\s*\{", re.M)
SETUP = """\
# Installs the book's library, normlab, where it is missing (Colab).
import importlib.util
import subprocess
import sys

SOURCE = "git+{url}"
if importlib.util.find_spec("normlab") is None:
    pip = [sys.executable, "-m", "pip", "install", "-q"]
    if subprocess.run([*pip, f"normlab @ {{SOURCE}}"]).returncode:
        sys.exit("normlab is missing and could not be installed: "
                 f"pip install 'normlab @ {{SOURCE}}'")"""
SETUP_MORE = """\
# Installs the book's library and what this chapter needs (Colab).
import importlib.util
import subprocess
import sys

SOURCE = "git+{url}"
NEEDS = [{needs}]
if not all(map(importlib.util.find_spec, NEEDS)):
    pip = [sys.executable, "-m", "pip", "install", "-q"]
    if subprocess.run([*pip, f"normlab[{extra}] @ {{SOURCE}}"]).returncode:
        sys.exit("a package is missing and could not be installed: "
                 f"pip install 'normlab[{extra}] @ {{SOURCE}}'")"""
# Chapters that need more than normlab: normlab's extra that brings it, and
# the modules that must be there.
EXTRAS = {
    "08-pytorch": ("torch", ["torch"]),
    "09-frameworks": ("frameworks",
                      ["torch", "keras", "flax", "onnxruntime"]),
    "10-cuda-kernels": ("kernels", ["torch", "triton"]),
    "11-deployment": ("onnx", ["torch", "onnxruntime", "onnxscript"]),
    "12-many-devices": ("torch", ["torch"]),
    "16-depth": ("torch", ["torch"]),
    "17-not-covariate-shift": ("torch", ["torch"]),
    "18-smoother-landscape": ("torch", ["torch"]),
    "19-scale-invariance": ("torch", ["torch"]),
    "20-noise-and-regularisation": ("torch", ["torch"]),
    "22-small-batches": ("torch", ["torch"]),
    "23-train-test-gap": ("torch", ["torch"]),
    "24-leakage": ("torch", ["torch"]),
    "25-distribution-shift": ("torch", ["torch"]),
    "26-sequences": ("torch", ["torch"]),
}


def setup(name):
    """The setup cell of the chapter with that file name."""
    stem = name.removesuffix(".ipynb")
    if stem not in EXTRAS:
        return SETUP.format(url=repository())
    extra, modules = EXTRAS[stem]
    return SETUP_MORE.format(
        url=repository(), extra=extra,
        needs=", ".join(f'"{m}"' for m in ["normlab", *modules]))


def repository():
    """The address named once, in _config.yml."""
    config = yaml.safe_load((book.ROOT / "_config.yml").read_text())
    return config["repository"]["url"]


@functools.lru_cache(maxsize=1)
def citation_keys():
    """The keys in references.bib, which takes a while to parse."""
    return frozenset(parse_file(book.ROOT / "book/references.bib").entries)


def check_runs(name, nb):
    """Every cell was run, and nobody has edited code or outputs since."""
    for i, cell in enumerate(nb.cells):
        if cell.cell_type != "code":
            continue
        if cell.source.strip() and cell.execution_count is None:
            yield f"{name} cell {i} has no execution count: `make run`"
        for out in cell.outputs:
            if out.output_type == "error":
                yield f"{name} cell {i} holds an error: {out.evalue}"
            if out.get("name") == "stderr":
                yield f"{name} cell {i} wrote to stderr: {out.text[:60]!r}"
    stored = nb.metadata.get(book.KEY, {})
    if stored.get("code") != book.code_digest(nb):
        yield f"{name}: the code has changed since it was run: `make run`"
    if stored.get("outputs") != book.output_digest(nb):
        yield f"{name}: an output is not what was run: `make run`"


def check_cells(name, nb):
    """Cells are short and narrow, and the first is the setup cell."""
    for i, cell in enumerate(nb.cells):
        if cell.cell_type != "code":
            continue
        lines = cell.source.split("\n")
        if len(lines) > LINES:
            yield f"{name} cell {i} has {len(lines)} lines, {LINES} allowed"
    yield from check_width(name, nb)
    first = next((c for c in nb.cells if c.cell_type == "code"), None)
    if first is None or first.source != setup(name):
        yield (f"{name}: the first code cell is not the setup cell for "
               f"{repository()} (tools/check.py holds its text)")


def check_width(name, nb):
    """Code fits a screen."""
    for i, cell in enumerate(nb.cells):
        if cell.cell_type == "code" and max(
                map(len, cell.source.split("\n"))) > COLUMNS:
            yield f"{name} cell {i} is wider than {COLUMNS} columns"


def check_figures(name, nb):
    """Every figure has alt text."""
    for i, cell in enumerate(nb.cells):
        if cell.cell_type == "markdown":
            if re.search(r"!\[\s*\]\(|<img(?![^>]*alt=\"[^\"]+)",
                         cell.source):
                yield f"{name} cell {i}: an image has no alt text"
            continue
        alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
        if len(alt) < 15 and any(
                "image/png" in o.get("data", {}) for o in cell.outputs):
            yield f"{name} cell {i}: its figure has no alt text"


def check_markdown(name, nb):
    """Only Markdown that every reader of notebooks shows."""
    for i, cell in enumerate(nb.cells):
        if cell.cell_type == "markdown" and ROLE.search(cell.source):
            found = ROLE.search(cell.source).group().strip()
            yield f"{name} cell {i}: MyST role or directive {found!r}"


def claims(nb):
    """The records that the claims of a notebook left, with their text."""
    for cell in book.code_cells(nb):
        for out in cell.outputs:
            record = out.get("metadata", {}).get(CLAIM)
            if record:
                yield record, out.data["text/plain"]


def check_evidence(registry, nbs):
    """Registry and chapters name the same claims, in the same chapters."""
    listed, popular = {}, set()
    for entry in registry:
        name = entry["id"]
        if name in listed:
            yield f"evidence.yml lists {name} twice"
        listed[name] = entry
        if entry.get("verdict") not in VERDICTS:
            yield f"evidence.yml: {name} has verdict {entry.get('verdict')!r}"
        for field in ("statement", "who", "chapter"):
            if not entry.get(field):
                yield f"evidence.yml: {name} has no {field}"
        if entry.get("popular") in popular:
            yield f"evidence.yml: {name} repeats a popular claim's number"
        popular.add(entry.get("popular", name))
        for key in set(entry.get("cite", [])) - citation_keys():
            yield f"evidence.yml: {name} cites {key}, not in references.bib"
    seen = {}
    for chapter, nb in nbs.items():
        for record, text in claims(nb):
            name = record["id"]
            if text.strip("'") != claim_line(record):
                yield f"{chapter}: claim {name} prints what it didn't measure"
            if name in seen:
                yield f"{chapter}: claim {name} stands in {seen[name]} too"
            seen[name] = chapter
            if listed.get(name, {}).get("chapter") != chapter:
                yield f"{chapter}: claim {name} is not in evidence.yml as its"
    for name in sorted(set(listed) - set(seen)):
        yield f"evidence.yml lists {name}, which no chapter claims"


def check_links(pages):
    """Links, citation keys and equation numbers lead somewhere."""
    found, ids = {}, {path: anchors(text) for path, text in pages.items()}
    ids[book.ROOT / "book/bibliography.md"] |= citation_keys()
    for path, text in pages.items():
        for tag in tags(text):
            if tag in found:
                yield f"{path.name}: equation {tag} is in {found[tag]} too"
            found[tag] = path.name
    for path, text in pages.items():
        for number in sorted(equations(text) - set(found)):
            yield f"{path.name}: there is no equation ({number})"
        for target in links(text):
            file, _, anchor = target.partition("#")
            to = (path.parent / file).resolve() if file else path
            if not to.exists():
                yield f"{path.name}: the link {target} leads nowhere"
            elif anchor and anchor not in ids.get(to, {anchor}):
                yield f"{path.name}: there is no {anchor} in {to.name}"


def check_pages(pages):
    """Figures in the prose pages have alt text."""
    md = MarkdownIt("commonmark")
    for path, text in pages.items():
        for token in md.parse(text):
            for child in token.children or []:
                if child.type == "image" and not child.content:
                    yield f"{path.name}: an image has no alt text"


def problems():
    """Everything that is wrong with the book, in words."""
    nbs = {p.stem: book.read(p) for p in book.chapters()}
    pages = {p: p.read_text() for p in (book.ROOT / "book").glob("*.md")}
    for name, nb in nbs.items():
        for check in (check_runs, check_cells, check_figures, check_markdown):
            yield from check(name, nb)
    yield from check_pages(pages)
    assignments = {p: book.read(p) for p in sorted(
        (book.ROOT / "coursework/student").glob("*.ipynb"))}
    for p, nb in assignments.items():
        for check in (check_width, check_markdown):
            yield from check(p.stem, nb)
    for p, nb in [*((p, nbs[p.stem]) for p in book.chapters()),
                  *assignments.items()]:
        pages[p] = "\n\n".join(c.source for c in nb.cells
                               if c.cell_type == "markdown")
    yield from check_links(pages)
    registry = yaml.safe_load(
        (book.ROOT / "book/evidence.yml").read_text()) or []
    yield from check_evidence(registry, nbs)


def main():
    """Print what is wrong; exit 1 if anything is."""
    bad = list(problems())
    for text in bad:
        print(text)
    tools = [[sys.executable, "-m", "tools.lib", "--check"],
             [sys.executable, "-m", "coursework.release", "--check"],
             [str(Path(sys.executable).with_name("ruff")), "check", "-q",
              "--no-cache", "."]]
    codes = [subprocess.run(t, cwd=book.ROOT).returncode for t in tools]
    if bad or any(codes):
        sys.exit(f"`make check` found {len(bad) + sum(map(bool, codes))} "
                 "problems, listed above")
    print("The book holds together.")


if __name__ == "__main__":
    main()
