"""The book as software: P11 (how long it takes) and P12 (what it weighs).

Times are wall seconds of one run each; they depend on the machine and on
what else it does, so they are measured here and never tested.
"""

import gzip
import shutil
import subprocess
import sys
import time

import nbformat
from playwright.sync_api import sync_playwright

from benchmarks.report import table, write
from tools import browser
from tools.notebooks import ROOT, chapters, read

TEXT, FIGURES = 300, 500  # kB, compressed


def seconds(*command):
    """Wall seconds of a command; RuntimeError with its output if it fails."""
    start = time.perf_counter()
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(run.stdout[-2000:] + run.stderr[-2000:])
    return time.perf_counter() - start


def weight(page, address):
    """Compressed kB that a browser fetches to show a page: (all, images)."""
    bodies = {}

    def keep(response):
        if response.ok and response.url.startswith("http"):
            bodies[response.url] = (
                response.headers.get("content-type", ""), response.body())

    page.on("response", keep)
    page.goto(address)
    page.wait_for_load_state("networkidle")
    kB = {"all": 0.0, "images": 0.0}
    for kind, body in bodies.values():
        packed = kind.startswith(("image/png", "font/"))
        size = len(body if packed else gzip.compress(body)) / 1000
        kB["all"] += size
        kB["images"] += size * kind.startswith("image/png")
    return kB["all"], kB["images"]


def weights():
    """Rows of P12: each page's weight beside its goal."""
    with sync_playwright() as playwright, browser.served() as site:
        path = browser.find_browser(playwright)
        if path is None:
            sys.exit(browser.MISSING)
        chromium = playwright.chromium.launch(
            executable_path=path, args=browser.FLAGS)
        for name in browser.pages():
            page = chromium.new_page()
            total, images = weight(page, site + name)
            page.close()
            goal = FIGURES if images else TEXT
            yield {"page": name.removesuffix(".html"), "goal_kB": goal,
                   "all_kB": round(total), "images_kB": round(images),
                   "met": total <= goal}
        chromium.close()


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
    print(table([["page", "goal", "all", "of it images", "met"]] + [
        [r["page"], f"{r['goal_kB']} kB", f"{r['all_kB']} kB",
         f"{r['images_kB']} kB", "yes" if r["met"] else "no"]
        for r in weighed]))
    print("wrote", write("book", {"times": timed, "weights": weighed}))
