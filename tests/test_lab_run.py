"""Experiments, their records, and the command that runs them."""

import csv
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import tomllib

import numpy as np
import pytest

from normlab.lab import experiments, figure_1, records, runs
from normlab.lab.data import DataError
from tools.notebooks import ROOT

TINY = {"methods": ["none", "BN"], "learning_rates": [0.1], "seeds": [0, 1],
        "hidden": [5], "weight_std": 0.1, "batch_size": 60, "unit": 0,
        "percentiles": [15, 50, 85], "images": 10, "data": "digits",
        "steps": 6, "checkpoints": [2, 6]}


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """An experiment "tiny", in a folder that is no source tree."""
    experiment = experiments.EXPERIMENTS["figure-1"]._replace(
        title="A tiny one", live=TINY, full=TINY)
    monkeypatch.setitem(experiments.EXPERIMENTS, "tiny", experiment)
    monkeypatch.setattr(records, "checkout", lambda: None)
    monkeypatch.setattr(records, "shipped", lambda: tmp_path / "records")
    monkeypatch.chdir(tmp_path)
    return experiment


def stop_after(monkeypatch, experiment, number, error=KeyboardInterrupt):
    """Let the experiment end itself in the point after `number`."""
    started = []

    def run(config, point, tick):
        if len(started) == number:
            raise error
        started.append(point)
        return experiment.run(config, point, tick)

    monkeypatch.setitem(experiments.EXPERIMENTS, "tiny",
                        experiment._replace(run=run, several=None))
    return started


def main(*arguments):
    runs.main([*arguments, *(["--workers", "1"] if arguments[0] == "run"
                             else [])])


def test_list_names_them(capsys):
    main("list")
    assert "figure-1: Ioffe and Szegedy" in capsys.readouterr().out


@pytest.mark.parametrize("arguments, text", [
    (["run", "figure-2"], "no experiment 'figure-2'; there are: figure-1"),
    (["run", "figure-1", "--scale", "big"], "must be one of live, full"),
    (["run"], "experiment"), ([], "command"), (["walk"], "walk"),
    (["run", "figure-1", "--workers", "0"], "workers must be a whole"),
])
def test_bad_commands_say_what_there_is(arguments, text, capsys):
    with pytest.raises(SystemExit) as caught:
        runs.main(arguments)
    assert caught.value.code == 2 and text in capsys.readouterr().err


def test_a_record_says_where_it_is_from(tiny, tmp_path, capsys):
    main("run", "tiny", "--scale", "full")
    out, err = capsys.readouterr()
    assert "4 of 4: method BN, lr 0.1, seed 1" in err
    assert f"Wrote {tmp_path / 'records' / 'tiny.json'}" in out
    record = records.read_record("tiny")
    assert record["command"].endswith("run tiny --scale full")
    assert record["configuration"] == TINY and record["seeds"] == [0, 1]
    assert {"cpu", "cores", "threads", "processes"} == set(
        record["hardware"])
    assert record["versions"]["numpy"] == np.__version__
    assert record["seconds"] >= 0 and record["date"].endswith("+00:00")
    assert {"commit", "dirty"} < set(record)
    accuracy = experiments.pick(
        record["points"], "accuracy", method="BN", lr=0.1)
    assert accuracy.shape == (2, 2) and (accuracy <= 1).all()
    assert not list(tmp_path.rglob("*.tmp"))


def test_live_writes_a_record_only_where_it_is_told(tiny, tmp_path):
    main("run", "tiny")
    assert not (tmp_path / "records").exists()
    main("run", "tiny", "--out", str(tmp_path / "mine"))
    record = json.loads((tmp_path / "mine" / "tiny.json").read_text())
    assert record["scale"] == "live"


def test_a_stopped_run_goes_on(tiny, tmp_path, monkeypatch, capsys):
    stop_after(monkeypatch, tiny, 3)
    with pytest.raises(SystemExit) as caught:
        main("run", "tiny", "--scale", "full")
    assert caught.value.code == 130
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("Stopped; 3 of 4 points are kept in ")
    assert said.endswith("the same command goes on from there.")
    assert not (tmp_path / "records" / "tiny.json").exists()
    started = stop_after(monkeypatch, tiny, 99)
    main("run", "tiny", "--scale", "full")
    assert started == [{"method": "BN", "lr": 0.1, "seed": 1}]
    whole = records.read_record("tiny")["points"]
    fresh = experiments.run("tiny", "full")
    for a, b in zip(whole, fresh, strict=True):
        assert a | {"seconds": 0} == b | {"seconds": 0}


def test_a_point_that_cannot_be_read_is_run_again(
        tiny, tmp_path, monkeypatch):
    main("run", "tiny")
    files = sorted((tmp_path / ".cache").rglob("*.json"))
    assert len(files) == 4
    files[0].write_text(files[0].read_text()[:40])
    files[1].write_text("[]")
    files[2].write_text(files[3].read_text())
    started = stop_after(monkeypatch, tiny, 99)
    main("run", "tiny")
    assert len(started) == 3


def test_other_configurations_share_nothing(tiny, monkeypatch):
    main("run", "tiny")
    changed = tiny._replace(live=TINY | {"weight_std": 0.2})
    started = stop_after(monkeypatch, changed, 99)
    main("run", "tiny")
    assert len(started) == 4


def hear_interrupts():
    """A shell's background job, as tests may be, ignores Ctrl-C, and so
    would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_killed_run_goes_on(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(f"""
        import sys, time
        from normlab.lab import experiments, figure_1, records, runs
        old = experiments.EXPERIMENTS["figure-1"]
        def run(config, point, tick):
            print("start", point["method"], point["seed"], flush=True)
            if "slow" in sys.argv and point["method"] == "BN":
                time.sleep(60)
            return old.run(config, point, tick)
        experiments.EXPERIMENTS["tiny"] = old._replace(
            live={TINY}, full={TINY}, run=run, several=None)
        records.checkout = lambda: None
        runs.main(["run", "tiny", "--scale", "full", "--workers", "1"])
        """))
    command = [sys.executable, str(script)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    for end in (signal.SIGKILL, signal.SIGINT):
        child = subprocess.Popen([*command, "slow"], cwd=tmp_path, env=env,
                                 text=True, stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE,
                                 preexec_fn=hear_interrupts)
        for line in child.stdout:
            if line.startswith("start BN"):
                break
        time.sleep(0.1)
        child.send_signal(end)
        _, said = child.communicate(timeout=40)
    assert child.returncode == 130 and "2 of 4 points are kept" in said
    assert "Traceback" not in said
    done = subprocess.run(command, cwd=tmp_path, env=env, text=True,
                          capture_output=True, check=True)
    assert done.stdout.count("start") == 2
    record = json.loads((tmp_path / "records" / "tiny.json").read_text())
    assert len(record["points"]) == 4


def test_points_that_fail_leave_no_record_and_are_tried_again(
        tiny, tmp_path, monkeypatch):
    stop_after(monkeypatch, tiny, 2, DataError("no MNIST, no network"))
    with pytest.raises(SystemExit, match="^error: 2 of 4 points failed, the "
                       "first with DataError: no MNIST, no network; no "
                       "record was written"):
        main("run", "tiny", "--scale", "full")
    assert not (tmp_path / "records" / "tiny.json").exists()
    started = stop_after(monkeypatch, tiny, 99)
    main("run", "tiny", "--scale", "full")
    assert len(started) == 2
    assert len(records.read_record("tiny")["points"]) == 4


def test_a_table_has_a_line_for_each_checkpoint(tiny, tmp_path):
    main("run", "tiny", "--table", str(tmp_path / "all.csv"))
    with open(tmp_path / "all.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 4 * 2
    assert list(table[0]) == ["method", "lr", "seed", "seconds", "index",
                              "accuracy", "percentiles.0", "percentiles.1",
                              "percentiles.2"]


def test_a_place_that_cannot_be_written_is_found_at_once(
        tiny, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    started = stop_after(monkeypatch, tiny, 99)
    with pytest.raises(SystemExit, match="error: .*file"):
        main("run", "tiny", "--out", str(tmp_path / "file"))
    assert started == []


def test_a_record_of_something_else_is_refused(tiny, tmp_path, monkeypatch):
    with pytest.raises(records.RecordError, match="there is no record .*tiny"
                       ".*run tiny --scale full"):
        records.read_record("tiny")
    main("run", "tiny", "--scale", "full")
    path = tmp_path / "records" / "tiny.json"
    good = path.read_text()
    kept = json.loads(good)

    def refused(text, why):
        path.write_text(text)
        with pytest.raises(records.RecordError, match=why):
            records.read_record("tiny")

    refused(good[:200], "is damaged")
    refused("[]", "is damaged")
    refused("{}", "is damaged")
    changed = kept | {"configuration": TINY | {"steps": 7}}
    refused(json.dumps(changed), "another configuration")
    changed = kept | {"points": kept["points"][1:]}
    refused(json.dumps(changed), "lacks some of its points")
    path.write_text(good)
    monkeypatch.setitem(experiments.EXPERIMENTS, "tiny",
                        tiny._replace(full=TINY | {"steps": 7}))
    refused(good, "another configuration")
    monkeypatch.setitem(experiments.EXPERIMENTS, "tiny",
                        tiny._replace(code=tiny.code[1:]))
    refused(good, "other code")


def test_digests_ignore_what_changes_nothing(tmp_path):
    texts = ['def f(a):\n    """One."""\n    return a + 1\n',
             'def f(a):\n    """Two,\n    longer."""\n\n'
             '    # why\n    return a + 1\n',
             'def f(a):\n    return a + 2\n']
    found = []
    for i, text in enumerate(texts):
        (tmp_path / f"m{i}.py").write_text(text)
        space = {}
        exec(compile(text, str(tmp_path / f"m{i}.py"), "exec"), space)
        found.append(records.bare(space["f"]))
    assert found[0] == found[1] != found[2]


def test_the_book_s_record_is_of_the_present_code():
    record = records.read_record("figure-1")
    assert record["scale"] == "full"
    assert len(record["points"]) == 30  # three methods, two rates, five seeds
    for point in record["points"]:
        marks = len(record["configuration"]["checkpoints"])
        assert len(point["accuracy"]) == len(point["percentiles"]) == marks


def test_both_arms_start_from_the_same_weights():
    nets = [figure_1.sigmoid_network(
        64, [10, 10], 10, flag, np.random.default_rng(3), 0.1)
        for flag in (False, True)]
    plain, normed = ([layer.weight for layer in net.leaves()
                      if layer.names == ("weight", "bias")] for net in nets)
    assert all(map(np.array_equal, plain, normed))
    assert np.std(plain[0]) == pytest.approx(0.1, rel=0.1)


def test_run_takes_changes_and_names_unknown_ones(tiny):
    points = experiments.run("tiny", seeds=[5], methods=["BN"])
    assert [p["seed"] for p in points] == [5]
    with pytest.raises(ValueError, match="tiny has no sedes .* has methods"):
        experiments.run("tiny", sedes=[1])
    with pytest.raises(ValueError, match="no run has"):
        experiments.pick(points, "accuracy", method="LN")


def test_the_command_pins_one_thread_before_numpy():
    code = ("import runpy, sys; sys.argv = ['x', 'list']; "
            "runpy.run_module('normlab.lab', run_name='__main__'); "
            "import os; print(os.environ['OMP_NUM_THREADS'])")
    env = os.environ | {"OMP_NUM_THREADS": "7"}
    done = subprocess.run([sys.executable, "-c", code], check=True, env=env,
                          capture_output=True, text=True)
    assert done.stdout.split()[-1] == "1"


def test_an_installed_copy_carries_every_package_and_the_records():
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = setup["tool"]["setuptools"]
    folders = {p.parent.relative_to(ROOT).as_posix().replace("/", ".")
               for p in (ROOT / "normlab").rglob("*.py")}
    assert set(listed["packages"]) == folders | {"normlab.records"}
    assert listed["package-dir"]["normlab.records"] == "records"
    assert "*.json" in listed["package-data"]["normlab.records"]
