"""Sweeps: in this process, in several, on a cluster; stopped and lost."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from normlab.lab import sweep
from normlab.lab.sweep import Together, product, tidy, write_table
from tools.notebooks import ROOT


def square(point, tick):
    tick(1)
    return {"y": point["x"] ** 2}


def fussy(point, tick):
    if point["x"] == 2:
        raise ValueError("two is too many")
    return square(point, tick)


def without_seconds(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def points(n):
    return product(x=list(range(n)))


def test_a_product_has_every_combination_in_order():
    assert product(lr=[0.1, 1.0], seed=[0, 1]) == [
        {"lr": 0.1, "seed": 0}, {"lr": 0.1, "seed": 1},
        {"lr": 1.0, "seed": 0}, {"lr": 1.0, "seed": 1}]
    with pytest.raises(ValueError, match="seed must have at least one"):
        product(lr=[1], seed=[])
    with pytest.raises(TypeError, match="lr must be a list.*'0.1'"):
        product(lr="0.1")


@pytest.mark.parametrize("workers", [1, 2])
def test_rows_come_in_the_order_of_the_points(workers):
    rows = sweep.sweep(square, points(5), workers=workers, progress=False,
                       cost=lambda point: point["x"])
    assert without_seconds(rows) == [{"x": x, "y": x * x} for x in range(5)]
    assert all(row["seconds"] >= 0 for row in rows)


def test_the_longest_begin_first():
    begun = []
    sweep.sweep(lambda point, tick: begun.append(point["x"]) or {},
                points(4), workers=1, progress=False,
                cost=lambda point: point["x"] % 3)
    assert begun == [2, 1, 0, 3]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failed_point_is_a_row_and_is_tried_again(workers, tmp_path):
    rows = sweep.sweep(fussy, points(4), tmp_path, workers=workers,
                       progress=False)
    assert [row.get("y") for row in rows] == [0, 1, None, 9]
    assert rows[2]["failed"] == "ValueError: two is too many"
    assert "in fussy" in rows[2]["traceback"]
    kept = json.loads((tmp_path / "x-2.json").read_text())
    assert kept["failed"] == rows[2]["failed"]
    again = sweep.sweep(square, points(4), tmp_path, workers=1,
                        progress=False)
    assert [row["y"] for row in again] == [0, 1, 4, 9]
    assert again[3] == rows[3]


def test_what_cannot_be_kept_is_a_failed_point(tmp_path):
    row, = sweep.sweep(lambda point, tick: {"y": object()}, points(1),
                       tmp_path, workers=1, progress=False)
    assert row["failed"].startswith("TypeError: Object of type object")


@pytest.mark.parametrize("name", ["x", "seconds", "failed", "traceback"])
def test_a_result_under_a_name_that_is_taken_is_refused(name):
    row, = sweep.sweep(lambda point, tick: {name: 1}, points(1), workers=1,
                       progress=False)
    assert row["failed"] == (f"ValueError: results can't be named "
                             f"['{name}']: the row has these already")
    assert row["x"] == 0


def test_points_go_together_that_are_alike():
    calls = []

    def both(group, tick):
        calls.append([point["x"] for point in group])
        return [fussy(point, tick) for point in group]

    rows = sweep.sweep(fussy, points(7), workers=1, progress=False,
                       together=Together(both, lambda p: p["x"] % 2, 3))
    assert calls == [[0, 2, 4], [1, 3, 5]]  # 6 is alone in its group
    assert [row.get("y") for row in rows] == [0, 1, None, 9, 16, 25, 36]
    assert "failed" in rows[2]


def test_the_bar_tells_the_time_left(capsys):
    sweep.sweep(square, points(3), workers=1)
    assert "3 of 3: x 2, 0.0 s" in capsys.readouterr().err
    sweep.sweep(square, points(3), workers=1, progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("wrong, why", [
    ({"points": [{"x": 1}, {"x": 1}]}, "x.: 1} comes twice"),
    ({"points": [{"x": [1]}]}, "must be a dict of numbers.*got {'x': .1"),
    ({"points": [{}]}, "must be a dict"),
    ({"points": points(2), "workers": 0}, "workers must be.*got 0"),
    ({"points": points(2), "workers": 1.5}, "workers must be.*got 1.5"),
    ({"points": points(2), "cluster": 8}, "cluster must be.*got 8"),
])
def test_bad_arguments_are_named(wrong, why):
    with pytest.raises((TypeError, ValueError), match=why):
        sweep.sweep(square, **wrong, progress=False)


@pytest.mark.parametrize("point", [
    {"name": "a/b c:d" * 30}, {"path": "../../etc"}, {"é": "ü"}])
def test_any_point_has_a_file_of_its_own(point, tmp_path):
    other = {k: v + "." for k, v in point.items()}
    for _ in range(2):
        rows = sweep.sweep(lambda p, tick: {"y": str(p)}, [point, other],
                           tmp_path / "store", workers=1, progress=False)
        assert [row["y"] for row in rows] == [str(point), str(other)]
    assert len(list((tmp_path / "store").iterdir())) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_a_table_is_tidy(tmp_path):
    rows = [{"x": 1, "y": [1, 2], "z": [[1, 2], [3, 4]]},
            {"x": 2, "failed": "E", "traceback": "long"}]
    table = tidy(rows)
    assert table == [
        {"x": 1, "index": 0, "y": 1, "z.0": 1, "z.1": 2, "failed": None},
        {"x": 1, "index": 1, "y": 2, "z.0": 3, "z.1": 4, "failed": None},
        {"x": 2, "index": None, "y": None, "z.0": None, "z.1": None,
         "failed": "E"}]
    write_table(rows, tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text().splitlines() == [
        "x,index,y,z.0,z.1,failed", "1,0,1,1,2,", "1,1,2,3,4,", "2,,,,,E"]
    write_table([], tmp_path / "none.csv")
    with pytest.raises(ValueError, match="one length, got a 1, b 2"):
        write_table([{"a": [1], "b": [1, 2]}], tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text().startswith("x,index")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["none.csv",
                                                          "t.csv"]


SCRIPT = """
    import os, sys, time
    from pathlib import Path
    from normlab.lab.sweep import product, sweep

    def slow(point, tick):
        with open(sys.argv[1] + "/log", "a") as log:
            log.write(f"{os.getpid()} {point['x']}\\n")
        if point["x"] >= 4 and sys.argv[2] == "slow":
            time.sleep(60)
        return {"y": point["x"] ** 2}

    rows = sweep(slow, product(x=list(range(8))), sys.argv[1] + "/store",
                 workers=2)
    print([row["y"] for row in rows])
    """


def alive(pids):
    """Those of the processes that still run; a zombie does not."""
    def state(pid):
        try:
            with open(f"/proc/{pid}/stat") as file:
                return file.read().rpartition(")")[2].split()[0]
        except OSError:
            return None
    return [pid for pid in pids if state(pid) not in (None, "Z")]


def wait_until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_sweep_goes_on(end, tmp_path):
    script, log = tmp_path / "run.py", tmp_path / "log"
    script.write_text(textwrap.dedent(SCRIPT))
    command = [sys.executable, str(script), str(tmp_path)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(
        [*command, "slow"], env=env, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    wait_until(lambda: log.exists() and {"4", "5"} <= set(
        re.findall(r" (\d)", log.read_text())))
    store = tmp_path / "store"
    wait_until(lambda: len(list(store.glob("*.json"))) == 4)
    if end == signal.SIGINT:  # the whole group, as a terminal does
        os.killpg(child.pid, end)
    else:
        child.send_signal(end)
    child.communicate(timeout=30)
    assert child.returncode != 0
    workers = {line.split()[0] for line in log.read_text().splitlines()}
    wait_until(lambda: not alive(workers), 20)
    assert sorted(p.name for p in store.iterdir()) == [
        f"x-{x}.json" for x in range(4)]
    done = subprocess.run([*command, "quick"], env=env, text=True,
                          capture_output=True, check=True)
    assert done.stdout.strip() == str([x ** 2 for x in range(8)])
    begun = [int(line.split()[1]) for line in log.read_text().splitlines()]
    assert [begun.count(x) for x in range(4)] == [1, 1, 1, 1]
    assert "8 of 8" in done.stderr


def test_a_killed_worker_is_named_and_costs_only_its_point(tmp_path):
    def fatal(point, tick):
        if point["x"] == 3:
            time.sleep(0.5)  # let the others be stored
            os.kill(os.getpid(), signal.SIGKILL)
        return square(point, tick)

    with pytest.raises(sweep.SweepError, match="worker process was killed"):
        sweep.sweep(fatal, points(4), tmp_path, workers=2, progress=False)
    assert len(list(tmp_path.glob("x-[012].json"))) >= 2
    rows = sweep.sweep(square, points(4), tmp_path, workers=2,
                       progress=False)
    assert [row["y"] for row in rows] == [0, 1, 4, 9]


def count_and_sleep(point, tick):
    with open(point["log"], "a") as log:
        log.write(f"{os.getpid()} {point['x']}\n")
    time.sleep(0.3)
    return {"y": point["x"] ** 2, "pid": os.getpid()}


def test_a_cluster_by_its_address_is_left_as_it_was():
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, dashboard_address=None,
            host="127.0.0.1") as cluster:
        before = set(cluster.scheduler.clients)
        rows = sweep.sweep(square, points(3), progress=False,
                           cluster=cluster.scheduler_address)
        wait_until(lambda: set(cluster.scheduler.clients) == before)
    assert [row["y"] for row in rows] == [0, 1, 4]


def test_a_cluster_that_loses_a_worker_half_way(tmp_path):
    """Two Dask workers; one is killed while it computes. Every point has
    one row, and none that was kept by then is computed again."""
    distributed = pytest.importorskip("distributed")
    log, store, n = tmp_path / "log", tmp_path / "store", 12
    todo = product(x=list(range(n)), log=[str(log)])
    with distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None,
            host="127.0.0.1") as cluster, distributed.Client(
            cluster) as client:
        first = next(iter(client.run(os.getpid).values()))
        kept, killer = [], threading.Thread(
            target=lambda: kept.extend(kill_when_busy(first, log, store)))
        killer.start()
        rows = sweep.sweep(count_and_sleep, todo, store, cluster=client,
                           progress=False)
        killer.join(timeout=30)
    assert [row["x"] for row in rows] == list(range(n))
    assert [row["y"] for row in rows] == [x ** 2 for x in range(n)]
    assert len(list(store.iterdir())) == n
    begun = [x for _, x in entries(log)]
    assert set(begun) == set(range(n)) and len(begun) > n
    assert 1 <= len(kept) < n and all(begun.count(x) == 1 for x in kept)
    lost = [row["x"] for row in rows if row["pid"] == first]
    assert 1 <= len(lost) < n


def entries(log):
    """(process, x) of every point that was begun."""
    return [tuple(map(int, line.split()))
            for line in log.read_text().splitlines()] if log.exists() else []


def kill_when_busy(pid, log, store):
    """Kill a worker that has a point kept and is computing another;
    returns what was kept then."""
    def mine():
        return [row for row in kept() if row["pid"] == pid]

    def kept():
        return [json.loads(p.read_text()) for p in store.glob("*.json")]

    wait_until(lambda: mine() and sum(
        p == pid for p, _ in entries(log)) > len(mine()))
    found = [row["x"] for row in kept()]
    os.kill(pid, signal.SIGKILL)
    return found
