"""Run chapters and store their outputs: changed ones only, two at a time.

Usage: python -m tools.run [--all] [NAME ...]
"""

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from tqdm import tqdm

from tools import notebooks as book

# One thread in each of the two kernels: two thread pools on two cores can
# be ten times slower than one thread.
THREADS = {name: "1" for name in (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
QUIET = {"PYDEVD_DISABLE_FILE_VALIDATION": "1"}


def is_current(nb, library):
    """Whether the stored outputs are those of this code and library."""
    return nb.metadata.get(book.KEY) == {
        "code": book.code_digest(nb), "library": library,
        "outputs": book.output_digest(nb)}


def run(path, library):
    """Execute one chapter in its folder and write it back whole."""
    nb = book.read(path)
    for cell in book.code_cells(nb):
        cell.outputs, cell.execution_count = [], None
    client = NotebookClient(
        nb, timeout=300, kernel_name="python3", record_timing=False,
        resources={"metadata": {"path": str(path.parent)}})
    start = time.perf_counter()
    # The kernel warns on stderr that it listens on TCP, each time anew.
    client.execute(stderr=subprocess.DEVNULL)
    merge_streams(nb)
    nb.metadata[book.KEY] = {
        "code": book.code_digest(nb), "library": library,
        "outputs": book.output_digest(nb)}
    aside = path.with_suffix(".tmp")
    nbformat.write(nb, aside)
    aside.replace(path)
    return time.perf_counter() - start


def merge_streams(nb):
    """Join neighbouring pieces of one stream: where a print is cut into
    pieces depends on timing."""
    for cell in book.code_cells(nb):
        joined = []
        for out in cell.outputs:
            last = joined[-1] if joined else None
            if (last and out.output_type == "stream"
                    and last.output_type == "stream"
                    and last.name == out.name):
                last.text += out.text
            else:
                joined.append(out)
        cell.outputs = joined


def main():
    """Run what needs it; exit 1 if a chapter fails."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="beginnings of names")
    parser.add_argument("--all", action="store_true", help="unchanged too")
    args = parser.parse_args()
    os.environ.update(THREADS | QUIET)
    library = book.library_digest()
    todo = [p for p in book.chapters(args.names)
            if args.all or not is_current(book.read(p), library)]
    if not todo:
        print("Every chapter's outputs are up to date.")
        return
    failed = 0
    with ThreadPoolExecutor(2) as pool, tqdm(
            total=len(todo), unit="chapter", disable=None) as bar:
        jobs = {pool.submit(run, p, library): p for p in todo}
        for job in as_completed(jobs):
            name = jobs[job].name
            try:
                bar.write(f"{name}: {job.result():.1f} s")
            except CellExecutionError as error:
                failed += 1
                bar.write(f"{name} FAILED, left as it was:\n{error}")
            bar.update()
    if failed:
        sys.exit(f"{failed} of {len(todo)} chapters failed; mend the cell "
                 "named above and run `make run` again")


if __name__ == "__main__":
    main()
