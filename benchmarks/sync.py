"""Synchronisation: what a message between ranks of one machine takes, and
what it adds to the layer. Wall time, one thread a rank, gloo, loopback."""

import statistics
from pathlib import Path

from benchmarks import report
from benchmarks.sync_ranks import CALLS, RUNS
from normlab.lab.world import run_world

RANKS = (2, 3)
WORKER = Path(__file__).with_name("sync_ranks.py")


def run(rounds, ranks_of=RANKS):
    """Every measurement in worlds of each size; a list of dicts."""
    results = []
    for ranks in ranks_of:
        world = run_world(WORKER.read_text(), ranks, [str(rounds)],
                          timeout=1200)
        for name, seconds in world[0].arrays.items():
            what, size = name.split("/")
            us = [1e6 * s for s in seconds]
            results.append({
                "ranks": ranks, "what": what,
                **({"bytes": int(size)} if size.isdigit()
                   else {"shape": [int(n) for n in size.split("x")]}),
                "us": statistics.median(us), "us_range": [min(us), max(us)]})
    return results


def rows(results, key):
    """A table's rows: one for each size, one column a measurement."""
    some = [r for r in results if key in r]
    columns = sorted({(r["ranks"], r["what"]) for r in some})
    yield [key, *(f"{what}, {ranks} ranks" for ranks, what in columns)]
    for size in dict.fromkeys(str(r[key]) for r in some):
        found = {(r["ranks"], r["what"]): f"{r['us']:.0f}"
                 for r in some if str(r[key]) == size}
        yield [size, *(found[c] for c in columns)]


def main(rounds=11):
    """Measure everything, print the tables, write the record."""
    results = run(rounds)
    print("Microseconds of one call, the slowest rank's, median of "
          f"{rounds} rounds (in each\nthe least of {RUNS} runs of {CALLS} "
          "calls); bytes are one rank's message")
    print(report.table(list(rows(results, "bytes"))) + "\n")
    print("Microseconds of a layer's forward and backward pass: PyTorch's "
          "without\nsynchronisation, ours without and with its two messages")
    print(report.table(list(rows(results, "shape"))))
    print(report.write("sync", results, rounds=rounds, backend="gloo",
                       network="loopback", runs=RUNS, calls=CALLS))
