"""Running an experiment from the command line: stored, and resumed."""

import argparse
import sys
from functools import partial
from pathlib import Path

from normlab.lab import experiments, records, sweep
from normlab.lab.data import DataError
from normlab.lab.files import digest


def main(arguments=None):
    """Do what the command line says; SystemExit says what went wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m normlab.lab",
        description="Run the book's experiments.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="name the experiments")
    run = commands.add_parser("run", help="run one; a stopped run goes on")
    run.add_argument("experiment")
    run.add_argument("--scale", default="live", help="live (seconds, on "
                     "digits; the default) or full (as published)")
    run.add_argument("--out", type=Path, metavar="FOLDER",
                     help="where the record goes; by default records/ at "
                     "full scale, and nowhere at live scale")
    run.add_argument("--workers", type=int, metavar="N", help="processes of "
                     "this machine, one thread each; by default its cores")
    run.add_argument("--cluster", metavar="ADDRESS", help="the address of a "
                     "Dask scheduler, to compute there instead")
    run.add_argument("--table", type=Path, metavar="FILE.csv",
                     help="also write all results as one tidy table")
    args = parser.parse_args(arguments)
    if args.command == "list":
        for name, experiment in experiments.EXPERIMENTS.items():
            print(f"{name}: {experiment.title}")
        return
    try:
        experiments.configuration(args.experiment, args.scale)
        sweep.check([], args.workers)
    except ValueError as error:
        parser.error(str(error))
    try:
        command(args.experiment, args.scale, args)
    except (DataError, ImportError, OSError) as error:
        sys.exit(f"error: {error}")


def command(name, scale, args):
    """Run an experiment, write what was asked for, and say so."""
    home, out = records.checkout() or Path.cwd(), args.out
    if out is None and scale == "full":
        out = home / "records"
    if out is not None:  # found out now, not after the last point
        out.mkdir(parents=True, exist_ok=True)
    rows = run(name, scale, home / ".cache" / "runs", args.workers,
               args.cluster)
    if args.table:
        sweep.write_table(rows, args.table)
        print(f"Wrote {args.table}")
    seconds = sum(row["seconds"] for row in rows)
    print(f"{name}, {scale}: {len(rows)} points, {seconds:.0f} s of work.")
    if failed := [row for row in rows if "failed" in row]:
        sys.exit(f"error: {len(failed)} of {len(rows)} points failed, the "
                 f"first with {failed[0]['failed']}; no record was written. "
                 "The others are kept: the same command tries again those "
                 "that failed.")
    if out is not None:
        used = "cluster" if args.cluster else sweep.processes(
            args.workers, len(rows))
        path = records.write_record(name, scale, rows, out, used)
        print(f"Wrote {path}")


def run(name, scale, store, workers=None, cluster=None):
    """All points of an experiment as rows, those in `store` taken from
    there.

    SystemExit on Ctrl-C or where the workers are lost names how to go on.
    """
    experiment = experiments.get(name)
    config = experiments.configuration(name, scale)
    # Other code or another configuration has another folder.
    mark = digest(records.digests(experiment, config))
    folder, points = Path(store) / f"{name}-{mark}", experiment.points(config)

    def kept():
        number = sum(sweep.finished(folder, p) is not None for p in points)
        return (f"{number} of {len(points)} points are kept in {folder}: the "
                "same command goes on from there.")

    try:
        return sweep.sweep(
            partial(experiment.run, config), points, folder,
            workers=workers, cluster=cluster,
            cost=partial(experiment.steps, config),
            together=experiments.together(experiment, config))
    except KeyboardInterrupt:
        print(f"\nStopped; {kept()}", file=sys.stderr)
        sys.exit(130)
    except sweep.SweepError as error:
        sys.exit(f"error: {error}. {kept()}")
