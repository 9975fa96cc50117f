"""What grading many submissions takes, from the benchmark's record.

    python -m coursework.cluster.cost [--page PAGE.md]

prints a Markdown table, or writes it between `<!-- cost -->` and
`<!-- /cost -->` of a page.
"""

import argparse
import json
import math
import sys
from pathlib import Path

from normlab.lab.files import replacing

RECORD = Path(__file__).resolve().parents[2] / "records/bench-coursework.json"
SUBMISSIONS, CORES = (3_000, 30_000), (2, 64)
SHARE = 50                # submissions of one index
MARKS = ("<!-- cost -->", "<!-- /cost -->")


def cost(submissions, seconds, cores, start=0.0, share=SHARE):
    """Core hours, and hours on that many cores, of grading submissions.

    seconds: of one core for one submission. start: seconds before the first
    one of each share of the submissions, when the reference answer is graded.
    """
    for name, value in (("submissions", submissions), ("seconds", seconds),
                        ("cores", cores), ("share", share)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name}: came {value!r}; allowed is a number "
                             "above 0")
    shares = math.ceil(submissions / share)
    total = submissions * seconds + shares * start
    rounds = math.ceil(shares / cores)  # the slowest core's shares
    longest = rounds * (min(share, submissions) * seconds + start)
    return total / 3600, max(longest, total / cores) / 3600


def span(hours):
    """A time for people."""
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{60 * hours:.0f} min" if hours >= 1 / 60 else "1 min"


def table(record):
    """The record's figures as a Markdown table."""
    lines = ["| Assignment | Seconds each | Submissions | Core hours | "
             + " | ".join(f"On {n} cores" for n in CORES) + " |",
             "|---|" + "---:|" * (3 + len(CORES))]
    for row in record["results"]["assignments"]:
        for n in SUBMISSIONS:
            found = [cost(n, row["ours"]["mean"], cores, row["start"])
                     for cores in CORES]
            lines.append(
                f"| {row['assignment']} | {row['ours']['mean']:.2f} | {n:,} "
                f"| {found[0][0]:.1f} | "
                + " | ".join(span(hours) for _, hours in found) + " |")
    return "\n".join(lines)


def held(page):
    """The table that a page holds, or None where it has no marks for one."""
    before, mark, rest = page.partition(MARKS[0])
    found, end, _ = rest.partition(MARKS[1])
    return found.strip() if mark and end else None


def main(argv=None):
    """Print the table, or write it into a page."""
    parser = argparse.ArgumentParser(
        prog="python -m coursework.cluster.cost",
        description="What grading many submissions takes.")
    parser.add_argument("--record", type=Path, default=RECORD)
    parser.add_argument("--page", type=Path)
    options = parser.parse_args(argv)
    made = table(json.loads(options.record.read_text()))
    if options.page is None:
        print(made)
        return 0
    page = options.page.read_text(encoding="utf-8")
    if held(page) is None:
        print(f"Stopped: {options.page} lacks {MARKS[0]} and {MARKS[1]}",
              file=sys.stderr)
        return 2
    head, tail = page.split(MARKS[0])[0], page.split(MARKS[1])[1]
    with replacing(options.page) as aside:
        aside.write_text(f"{head}{MARKS[0]}\n{made}\n{MARKS[1]}{tail}",
                         encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
