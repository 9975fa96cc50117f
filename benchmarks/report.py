"""What the benchmarks share: the date and place of a run, and tables."""

import os
from datetime import UTC, datetime

import torch

from normlab.lab import records
from normlab.lab.files import write_json


def write(part, results, folder=None, **settings):
    """Write records/bench-<part>.json; returns its path."""
    path = (folder or records.shipped()) / f"bench-{part}.json"
    write_json(path, {
        "command": f"python -m benchmarks {part}",
        **records.source(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": records.hardware(),
        "load": round(os.getloadavg()[0], 1),  # 1 is this run itself
        "versions": {**records.versions(), "torch": torch.__version__},
        "settings": settings,
        "results": results,
    })
    return path


def table(rows):
    """Rows of cells as text, the first column to the left."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(
        cell.rjust(w) if i else cell.ljust(w)
        for i, (cell, w) in enumerate(zip(row, widths))).rstrip()
        for row in rows)
