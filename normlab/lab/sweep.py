"""Sweeps: one function over many points, in parallel, kept as it goes."""

import csv
import itertools
import json
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from normlab.lab.files import digest, replacing, write_json


class SweepError(RuntimeError):
    """A sweep lost its workers; what was finished is kept."""


class Together(NamedTuple):
    """How several points are computed in one call."""
    run: Callable  # run(points, tick) returns a list of dicts of results
    alike: Callable  # alike(point): points with the same value may go
    size: int = 8  # together, as many as this


def product(**axes):
    """Every combination of the values of each axis, as points.

    product(lr=[0.1, 1.0], seed=[0, 1]) has four; the last axis runs
    fastest. Raises ValueError for an axis that is empty, TypeError for
    one that is no list.
    """
    for name, values in axes.items():
        if isinstance(values, str) or not hasattr(values, "__len__"):
            raise TypeError(f"{name} must be a list of values, got "
                            f"{values!r}")
        if len(values) == 0:
            raise ValueError(f"{name} must have at least one value, got "
                             "none")
    return [dict(zip(axes, values, strict=True))
            for values in itertools.product(*axes.values())]


def sweep(function, points, store=None, *, workers=None, cluster=None,
          cost=None, together=None, progress=True):
    """Call function(point, tick) for every point; return one row each.

    function: returns a dict of results, numbers or lists of them; it may
        call tick(done) to move the progress bar, in units of `cost`.
    points: dicts of numbers, strings and truth values, no two alike.
    store: a folder. A row is written there the moment it is finished, and
        one that is there already is not computed again, so that a sweep
        that was stopped, however it was, goes on where it was.
    workers: how many processes of this machine compute, one thread each;
        as many as it has cores by default. With 1 all is done here.
    cluster: a Dask cluster to use instead: a dask.distributed.Client, or
        its scheduler's address such as "tcp://10.0.0.1:8786". A point
        whose worker is lost is given to another.
    cost: cost(point), how long a point takes; the longest begin first.
    together: a `Together`, for points that are faster side by side.

    Returns rows in the order of the points: the point's values, its
    results, and "seconds". A point that fails has "failed" and "traceback"
    in place of its results, is kept like the others, does not end the
    sweep, and is tried again the next time. Raises TypeError or ValueError
    for arguments that don't fit, SweepError if the workers are lost.
    """
    check(points, workers)
    folder = None if store is None else Path(store)
    rows = [finished(folder, point) for point in points]
    size = [cost(point) if cost else 1 for point in points]
    jobs = partition([i for i, row in enumerate(rows) if row is None],
                     points, size, together)
    done = sum(n for n, row in zip(size, rows, strict=True) if row)
    with tqdm(total=sum(size), initial=done, unit="step" if cost else
              "point", disable=None if progress else True) as bar:

        def keep(found):
            for i, row in found:
                if folder is not None:
                    write_json(folder / title(points[i]), row)
                rows[i] = row
                if progress:
                    bar.write(said(i, row, rows, points[i]),
                              file=sys.stderr)

        if not cluster and processes(workers, len(jobs)) == 1:
            for job in jobs:
                here(function, together, job, points, size, bar, keep)
        else:
            for found in elsewhere(function, together, jobs, points,
                                   workers, cluster):
                keep(found)
                bar.update(sum(size[i] for i, _ in found))
    return rows


def check(points, workers):
    """Raise TypeError or ValueError unless a sweep can have these."""
    seen = set()
    for point in points:
        if not isinstance(point, dict) or not point or not all(
                isinstance(v, (str, bool, int, float))
                for v in point.values()):
            raise TypeError("a point must be a dict of numbers, strings "
                            f"and truth values, got {point!r}")
        name = json.dumps(point, sort_keys=True)
        if name in seen:
            raise ValueError(f"the points must differ; {point} comes twice")
        seen.add(name)
    if workers is not None and (isinstance(workers, bool) or not isinstance(
            workers, int) or workers < 1):
        raise ValueError("workers must be a whole number of at least 1, or "
                         f"None; got {workers!r}")


def processes(workers, jobs):
    """How many processes of this machine a sweep of `jobs` uses."""
    import joblib

    return min(workers or joblib.cpu_count(), max(1, jobs))


def partition(todo, points, size, together):
    """The indices in `todo` as jobs, lists of what is computed in one
    call; the longest first."""
    todo = sorted(todo, key=lambda i: -size[i])
    if together is None:
        return [[i] for i in todo]
    groups = {}
    for i in todo:
        groups.setdefault(together.alike(points[i]), []).append(i)
    return [group[k:k + together.size] for group in groups.values()
            for k in range(0, len(group), together.size)]


def here(function, together, job, points, size, bar, keep):
    """Do one job in this process, moving the bar as it goes."""
    start, share = bar.n, sum(size[i] for i in job)

    def tick(done):
        bar.update(start + min(done * len(job), share) - bar.n)

    keep(work(function, together, [(i, points[i]) for i in job], tick))
    tick(share)


def elsewhere(function, together, jobs, points, workers, cluster):
    """Do the jobs in other processes; yields what each found, as they
    finish."""
    from joblib import Parallel, delayed, parallel_config
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    options = backend(workers, cluster, len(jobs))
    with parallel_config(**options):
        found = Parallel(return_as="generator_unordered", batch_size=1,
                         pre_dispatch="all")(
            delayed(child)(os.getpid(), function, together,
                           [(i, points[i]) for i in job])
            for job in jobs)
        try:
            yield from found
        except TerminatedWorkerError as error:
            raise SweepError(
                "a worker process was killed, perhaps for want of memory; "
                "what was finished is kept. Go on with fewer workers"
            ) from error
        except Exception as error:
            if type(error).__name__ != "KilledWorker":
                raise
            raise SweepError(
                "the cluster lost the workers of one point again and again "
                f"({error}); what was finished is kept") from error
        finally:
            found.close()
            if isinstance(cluster, str):  # the connection is ours
                options["client"].close()


def backend(workers, cluster, jobs):
    """What joblib is told: processes of this machine, or a cluster."""
    if cluster is None:
        return {"backend": "loky", "n_jobs": processes(workers, jobs),
                "inner_max_num_threads": 1}
    try:
        from distributed import Client
    except ImportError as error:
        raise ImportError("a cluster needs dask.distributed: pip install "
                          "'normlab[cluster]'") from error
    if isinstance(cluster, str):
        cluster = Client(cluster, set_as_default=False)
    if not isinstance(cluster, Client):
        raise TypeError("cluster must be a dask.distributed.Client or a "
                        f"scheduler's address, got {cluster!r}")
    return {"backend": "dask", "client": cluster, "n_jobs": -1}


def work(function, together, job, tick=None):
    """Compute a job, a list of (index, point): a list of (index, row).

    Points that fail together are tried one by one, so that one of them
    does not spoil the others.
    """
    points = [point for _, point in job]
    try:
        rows = compute(function, together, points, tick)
        json.dumps(rows)  # what can't be kept is found out here
    except Exception as error:
        if len(job) > 1:
            return [found for one in job
                    for found in work(function, together, [one])]
        rows = [points[0] | {"failed": f"{type(error).__name__}: {error}",
                             "traceback": traceback.format_exc(),
                             "seconds": 0.0}]
    return [(i, row) for (i, _), row in zip(job, rows, strict=True)]


def child(parent, *job):
    """`work` in another process, which ends when its parent is gone: a
    sweep that was killed leaves nothing running."""
    if os.getppid() == parent and not any(
            t.name == "watch" for t in threading.enumerate()):
        threading.Thread(target=watch, args=(parent,), name="watch",
                         daemon=True).start()
    return work(*job)


def watch(parent):
    """End this process within a second of its parent."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def compute(function, together, points, tick=None):
    """Rows of one point, or of several together: their values, results
    and seconds. What they raise is raised."""
    from threadpoolctl import threadpool_limits  # scikit-learn brings it

    tick, start = tick or (lambda done: None), time.perf_counter()
    # On matrices this small, and the more on a busy machine, a second
    # thread makes NumPy slower, up to ten times.
    with threadpool_limits(1):
        results = ([function(points[0], tick)] if len(points) == 1
                   else together.run(points, tick))
    for point, result in zip(points, results, strict=True):
        if taken := {*point, "seconds", "failed", "traceback"} & {*result}:
            raise ValueError(f"results can't be named {sorted(taken)}: the "
                             "row has these already")
    seconds = round((time.perf_counter() - start) / len(points), 2)
    return [point | result | {"seconds": seconds}
            for point, result in zip(points, results, strict=True)]


def finished(folder, point):
    """A point's row from an earlier run; None if there is none that can be
    read, or if the point failed."""
    if folder is None:
        return None
    try:
        row = json.loads((folder / title(point)).read_text(encoding="utf-8"))
        same = all(row[k] == v for k, v in point.items())
        return row if same and "seconds" in row and "failed" not in row \
            else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def title(point):
    """The name of a point's file."""
    name = "-".join(f"{k}-{v}" for k, v in point.items())
    if not re.fullmatch(r"[\w.+ -]{1,120}", name):
        name = re.sub(r"[^\w.+ -]", "_", name)[:100] + "-" + digest(point)
    return name + ".json"


def words(point):
    """A point in words."""
    return ", ".join(f"{k} {v}" for k, v in point.items())


def said(i, row, rows, point):
    """The line that says how a point ended."""
    count = sum(r is not None for r in rows)
    end = (f"FAILED: {row['failed']}" if "failed" in row
           else f"{row['seconds']:.1f} s")
    return f"{count} of {len(rows)}: {words(point)}, {end}"


def tidy(rows):
    """Rows as one tidy table: a list of dicts with the same keys.

    A row whose results are lists becomes one row for each entry, with its
    place in the column "index"; lists in lists become columns "name.0",
    "name.1". What a row lacks is None. Raises ValueError for a row whose
    lists have different lengths.
    """
    table = []
    for row in rows:
        lists = {k: v for k, v in row.items() if isinstance(v, list)}
        lengths = {len(v) for v in lists.values()}
        if len(lengths) > 1:
            raise ValueError("the lists of a row must be of one length, got "
                             + ", ".join(f"{k} {len(v)}"
                                         for k, v in lists.items()))
        plain = {k: v for k, v in row.items()
                 if k not in lists and k != "traceback"}
        if not lists:
            table.append(plain)
        for at in range(*lengths or (0,)):
            entry = plain | {"index": at}
            for k, v in lists.items():
                entry |= ({f"{k}.{j}": a for j, a in enumerate(v[at])}
                          if isinstance(v[at], list) else {k: v[at]})
            table.append(entry)
    names = dict.fromkeys(k for entry in table for k in entry)
    return [{k: entry.get(k) for k in names} for entry in table]


def write_table(rows, path):
    """Write tidy(rows) as CSV to `path`, whole or not at all."""
    table = tidy(rows)
    with replacing(path) as aside, open(aside, "w", newline="",
                                        encoding="utf-8") as file:
        writer = csv.DictWriter(file, table[0] if table else [])
        writer.writeheader()
        writer.writerows(table)
