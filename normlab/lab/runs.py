"""Running an experiment from the command line: stored, and resumed."""

import argparse
import json
import sys
from pathlib import Path

from tqdm import tqdm

from normlab.lab import experiments, records
from normlab.lab.data import DataError


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
    args = parser.parse_args(arguments)
    if args.command == "list":
        for name, experiment in experiments.EXPERIMENTS.items():
            print(f"{name}: {experiment.title}")
        return
    try:
        experiments.configuration(args.experiment, args.scale)
    except ValueError as error:
        parser.error(str(error))
    try:
        command(args.experiment, args.scale, args.out)
    except (DataError, OSError) as error:
        sys.exit(f"error: {error}")


def command(name, scale, out):
    """Run an experiment, write its record if it has a place, and say so."""
    home = records.checkout() or Path.cwd()
    if out is None and scale == "full":
        out = home / "records"
    if out is not None:  # found out now, not after the last point
        out.mkdir(parents=True, exist_ok=True)
    points = run(name, scale, home / ".cache" / "runs")
    seconds = sum(p["seconds"] for p in points)
    print(f"{name}, {scale}: {len(points)} points, {seconds:.0f} s of work.")
    if out is not None:
        path = records.write_record(name, scale, points, out)
        print(f"Wrote {path}")


def run(name, scale, store):
    """All points of an experiment, those in `store` taken from there.

    Each point is kept in a file of its own the moment it is finished.
    SystemExit on Ctrl-C names how to go on.
    """
    experiment = experiments.get(name)
    config = experiments.configuration(name, scale)
    # Other code or another configuration has another folder.
    mark = records.digest(records.digests(experiment, config))
    folder = Path(store) / f"{name}-{mark}"
    todo = experiment.points(config)
    done = [stored(folder, point) for point in todo]
    size = [experiment.steps(config, point) for point in todo]
    start = sum(n for n, p in zip(size, done, strict=True) if p)
    try:
        with tqdm(total=sum(size), initial=start, unit="step",
                  disable=None) as bar:
            for i, point in enumerate(todo):
                if done[i] is None:
                    done[i] = fresh(experiment, config, point, bar, size[i])
                    records.write_json(folder / title(point), done[i])
                    bar.write(f"{i + 1} of {len(todo)}: {words(point)}, "
                              f"{done[i]['seconds']:.1f} s",
                              file=sys.stderr)
    except KeyboardInterrupt:
        kept = sum(p is not None for p in done)
        print(f"\nStopped; {kept} of {len(todo)} points are kept in "
              f"{folder}: the same command goes on from there.",
              file=sys.stderr)
        sys.exit(130)
    return done


def fresh(experiment, config, point, bar, size):
    """Run one point, moving the bar by `size` in all."""
    start = bar.n

    def tick(step):
        bar.update(start + step - bar.n)

    result = experiments.run_point(experiment, config, point, tick)
    tick(size)
    return result


def stored(folder, point):
    """A finished point from an earlier run; None if there is none that
    can be read."""
    try:
        result = json.loads((folder / title(point)).read_text())
        same = all(result[k] == v for k, v in point.items())
        return result if same and "seconds" in result else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def title(point):
    """The name of a point's file."""
    return "-".join(f"{k}-{v}" for k, v in point.items()) + ".json"


def words(point):
    """A point in words."""
    return ", ".join(f"{k} {v}" for k, v in point.items())
