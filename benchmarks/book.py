"""The book as software: P11 (how long it takes) and P12 (what it weighs).

Times are wall seconds of one run each; they depend on the machine and on
what else it does, so they are measured here and never tested.
"""

import gzip
import re
import shutil
import subprocess
import sys
import time

import nbformat

from benchmarks.report import table, write
from tools.notebooks import ROOT, chapters, read

SITE = ROOT / "_build/html"
TEXT, FIGURES = 300, 500  # kB, compressed


def seconds(*command):
    """Wall seconds of a command; RuntimeError with its output if it fails."""
    start = time.perf_counter()
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(run.stdout[-2000:] + run.stderr[-2000:])
    return time.perf_counter() - start


def page_weight(path):
    """Compressed kB of a page and of everything that it loads at once:
    (text, style, scripts and fonts; images)."""
    html = path.read_text(encoding="utf-8")
    rest, images = len(gzip.compress(path.read_bytes())), 0
    found = set(re.findall(
        r'<(?:script|img|link)[^>]*?(?:src|href)="([^"#?]+)', html))
    for name in found:
        file = (path.parent / name).resolve()
        if not file.is_file() or file.suffix == ".html":
            continue
        if file.suffix in (".png", ".jpg", ".webp"):
            images += file.stat().st_size
        elif file.suffix in (".css", ".js", ".svg"):
            rest += len(gzip.compress(file.read_bytes()))
        elif file.suffix == ".woff2":
            rest += file.stat().st_size
    for family in sorted(fonts(html)):
        rest += family.stat().st_size
    return rest / 1000, images / 1000


def fonts(html):
    """KaTeX's font files that the formulas of a page use."""
    if 'class="katex"' not in html:
        return set()
    folder = SITE / "_static/vendor/katex/fonts"
    names = {"Main-Regular", "Math-Italic"}
    for mark, name in (("large-op", "Size2-Regular"),
                       ("small-op", "Size1-Regular"),
                       ("delimsizing size1", "Size1-Regular"),
                       ("delimsizing size3", "Size3-Regular"),
                       ("mathbf", "Main-Bold"), ("mathbb", "AMS-Regular"),
                       ("mathcal", "Caligraphic-Regular")):
        if mark in html:
            names.add(name)
    return {folder / f"KaTeX_{name}.woff2" for name in names}


def weights():
    """Rows of P12: each page's weight beside its goal."""
    for path in sorted([*SITE.glob("book/*.html"),
                        *SITE.glob("notebooks/*.html")]):
        text, images = page_weight(path)
        goal = FIGURES if images else TEXT
        yield {"page": path.stem, "text_kB": round(text),
               "images_kB": round(images), "goal_kB": goal,
               "met": text + images <= goal}


def times():
    """Rows of P11: wall seconds beside the goal."""
    shutil.rmtree(ROOT / "_build", ignore_errors=True)
    build = [sys.executable, "-m", "tools.site"]
    yield row("cold build of the site", 120, seconds(*build))
    yield row("build, nothing changed", 5, seconds(*build))
    page = chapters()[0]
    kept = page.read_bytes()
    try:
        nb = read(page)
        nb.cells[0].source += "\n\nOne more line."
        page.write_text(nbformat.writes(nb))
        yield row("build, one cell edited", 15, seconds(*build))
    finally:
        page.write_bytes(kept)
    seconds(*build)
    yield row("strict nbval of every chapter, two workers", 300, seconds(
        sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist=loadfile",
        "--nbval", "--nbval-sanitize-with=tests/nbval_sanitize.cfg",
        "notebooks"))


def row(what, goal, measured):
    """One line of P11's table."""
    return {"what": what, "goal_s": goal, "measured_s": round(measured, 1),
            "met": measured <= goal}


def main(rounds):
    """Print both tables and write records/bench-book.json; `rounds` isn't
    used, since each build is timed once."""
    timed = list(times())
    weighed = list(weights())
    print(table([["", "goal", "measured", "met"]] + [
        [r["what"], f"{r['goal_s']} s", f"{r['measured_s']} s",
         "yes" if r["met"] else "no"] for r in timed]))
    print(table([["page", "goal", "all but images", "images", "met"]] + [
        [r["page"], f"{r['goal_kB']} kB", f"{r['text_kB']} kB",
         f"{r['images_kB']} kB", "yes" if r["met"] else "no"]
        for r in weighed]))
    print("wrote", write("book", {"times": timed, "weights": weighed}))
