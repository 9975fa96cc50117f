"""normlab.kernels without a GPU: interpreted, and compiled for sm_90; on a
GPU, where there is one. Each in a process of its own, since Triton reads
TRITON_INTERPRET once, when it is imported."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch

from benchmarks import kernels as bench
from benchmarks import sm90
from normlab.lab import records
from tools.notebooks import ROOT

pytest.importorskip("triton", reason="Triton exists for Linux only")

# What a training step needs of normlab.kernels; not the input checks, and
# not inference, which only calls one of these.
REST = {"usable", "check", "ready", "inference"}


def python(*args, folder, **env):
    """Run Python in the project's root with a Triton cache of its own."""
    kept = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *args], cwd=ROOT, text=True, capture_output=True,
        env={**kept, "TRITON_CACHE_DIR": str(folder),
             "OMP_NUM_THREADS": "1", **env})


def run_cases(folder, **env):
    """tests/kernel_cases.py by pytest; fails with what it printed."""
    done = python("-m", "pytest", "-q", "-x", "-p", "no:xdist", "--tb=short",
                  "tests/kernel_cases.py", folder=folder, **env)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 50
    assert "skipped" not in done.stdout or "TRITON_INTERPRET" not in env


def test_cases_in_the_interpreter(tmp_path):
    run_cases(tmp_path, TRITON_INTERPRET="1")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cases_on_the_gpu(tmp_path):
    run_cases(tmp_path)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Rows of benchmarks.sm90 for a choice of its cases."""
    done = python("-c", """if True:
        import json
        from benchmarks import sm90
        few = [c for c in sm90.CASES if c.fused == "add+relu"
               or c.shape != sm90.LARGE or c == sm90.CASES[1]]
        few.append(sm90.Case((1, 1), "rows", "float16", "relu"))
        print(json.dumps(sm90.run(few)))""",
        folder=tmp_path_factory.mktemp("triton"))
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_every_kernel_compiles_without_spills_in_96_registers(compiled):
    names = {row["kernel"] for row in compiled}
    assert len(names) == 5
    assert {(r["layout"], r["dtype"]) for r in compiled} >= {
        (a, b) for a in ("planes", "rows") for b in ("float32", "bfloat16")}
    for row in compiled:
        assert row["registers"] <= 96, row
        assert row["spills"] == row["stack_bytes"] == 0, row


def test_no_atomics_so_that_the_order_of_sums_is_fixed(compiled):
    assert not any(row["atomics"] for row in compiled)


def test_loads_and_stores_are_128_bits_wide_where_sizes_divide(compiled):
    tensors = [r for r in compiled if r["kernel"] != "merge_kernel"]
    wide = [r for r in tensors if r["loads_128"]]
    assert len(wide) >= 20
    for row in tensors:
        case = sm90.Case(*(row[f] for f in sm90.Case._fields))
        assert bool(row["loads_128"]) == sm90.divisible(case), row
        assert sm90.meets(row), row


@pytest.mark.parametrize("change", [
    {"registers": 97}, {"spills": 1}, {"stack_bytes": 8}, {"loads_64": 4},
    {"loads_16": 8}, {"loads_32": 16}, {"loads_128": 0}, {"stores_32": 8}])
def test_the_goal_can_be_missed(compiled, change):
    row = next(r for r in compiled if r["kernel"] == "normalise_kernel"
               and r["loads_128"])
    assert sm90.meets(row)
    assert not sm90.meets({**row, **change})


def test_the_record_is_of_this_code_and_keeps_the_goal():
    path = records.shipped() / "bench-sm90.json"
    record = json.loads(path.read_text())
    assert record["settings"]["code"] == sm90.code_digest(), (
        "the kernels have changed since: python -m benchmarks sm90")
    assert len(record["results"]) == 5 * len(sm90.CASES)
    assert all(map(sm90.meets, record["results"]))


def test_a_training_step_takes_at_most_160_lines():
    """Kernels and launchers of forward and backward, both layouts, with
    the fused forms; no docstrings, comments, imports or constants."""
    count, name = 0, None
    for _, line in sm90.code_lines(ROOT / "normlab/kernels.py"):
        if re.match(r"@triton\.jit", line):
            name = "kernel"
        elif found := re.match(r"def (\w+)", line):
            name = found[1]
        elif not line.startswith((" ", ")")):
            name = None
        count += name is not None and name not in REST
    assert 100 < count <= 160


def test_kernels_refuse_a_tensor_where_they_cannot_run(tmp_path):
    done = python("-c", """if True:
        import torch
        from normlab import kernels
        kernels.forward(torch.ones(4, 3), None, None, 1e-5)""",
        folder=tmp_path)
    assert "ValueError: x must be on CUDA" in done.stderr


def test_benchmarks_say_what_they_lack(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    bench.main(1)
    assert capsys.readouterr().out == (
        "kernels: needs a CUDA device; nothing was measured.\n")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    sm90.main(1)
    assert "not compiled" in capsys.readouterr().out


def test_measure_takes_turns_and_medians():
    seen, times = [], iter(range(100))
    functions = {name: lambda name=name: seen.append(name) for name in "ab"}

    def clock(function):
        function()
        return float(next(times))

    found = bench.measure(functions, 3, clock)
    assert seen[-6:] == ["a", "b", "b", "a", "a", "b"]
    assert found == {"a": 3.0, "b": 2.0}


@pytest.mark.parametrize("line, found", [
    ("ATOMG.E.ADD.F32.FTZ.RN.STRONG.GPU PT, RZ, desc[UR4][R2.64], R5", 1),
    ("REDG.E.ADD.F32.FTZ.RN.STRONG.GPU desc[UR4][R2.64], R5", 1),
    ("RED.E.ADD.STRONG.GPU [R2.64], R5", 1),
    ("REDUX.SUM UR6, R0", 0),
])
def test_atomic_instructions_are_known_by_name(line, found):
    assert len(sm90.ATOMIC.findall(line)) == found
