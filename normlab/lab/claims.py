"""Claims: statements of fact that a chapter's experiment asserts."""

import math
import re

from IPython.display import display

MIME = "text/plain"
KEY = "normlab.claim"  # where the measured values lie in a cell's output


class ClaimError(AssertionError):
    """A claim of the book did not hold in this run."""


def claim(name, *, holds, **measured):
    """Assert a claim of `book/evidence.yml` and record what was measured.

    name: its id, lower-case words joined by hyphens; holds: whether the
    experiment bears it out; measured: numbers, strings, or lists of them,
    with units in their names where there are any. Prints one line and
    leaves the values, unrounded, in the metadata of the cell's output.
    Raises ClaimError if the claim does not hold, TypeError or ValueError
    if an argument is of the wrong kind.
    """
    if not isinstance(name, str) or not re.fullmatch(
            r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ValueError("name must be lower-case words joined by hyphens, "
                         f"got {name!r}")
    if getattr(holds, "shape", ()) != () or holds not in (True, False):
        raise TypeError(f"holds must be one True or False, got {holds!r}")
    if not measured:
        raise ValueError(f"claim {name!r} must name what was measured")
    # Pairs, since the notebook's format would sort the keys of a mapping.
    values = [[key, plain(value)] for key, value in measured.items()]
    record = {"id": name, "measured": values}
    if not holds:
        raise ClaimError(f"claim {line(record)} does not hold")
    display({MIME: line(record)}, raw=True, metadata={KEY: record})


def plain(value):
    """A measured value as JSON has it; TypeError if it has no such form."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a measured value must be numbers or text, got "
                    f"{type(value).__name__}")


def line(record):
    """The line that a claim prints, from its record."""
    shown = ", ".join(f"{key.replace('_', ' ')} {show(value)}"
                      for key, value in record["measured"])
    return f"[{record['id']}] holds: {shown}"


def show(value):
    """A value in three digits. What is below 1e-6 is rounding error and
    differs from machine to machine: only a bound on it is shown."""
    if isinstance(value, list):
        return "/".join(show(v) for v in value)
    if not isinstance(value, float):
        return str(value)
    for bound in ("1e-12", "1e-9", "1e-6"):
        if abs(value) < float(bound):
            return f"below {bound}"
    return f"{value:.3g}"
