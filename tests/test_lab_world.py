"""Worlds: what they return, and that they leave nothing behind."""

import os

import numpy as np
import pytest

from normlab.lab.world import environment, run_world

SAVING = """\
import os, sys
import numpy as np
rank = int(os.environ["RANK"])
print(sys.argv[1], rank, "of", os.environ["WORLD_SIZE"])
np.savez(f"rank{rank}.npz", a=np.arange(rank + 1))
"""


def test_a_world_returns_what_each_rank_left(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    world = run_world(SAVING, 2, ["hello"])
    assert [r.text for r in world] == ["hello 0 of 2\n", "hello 1 of 2\n"]
    assert [len(r.arrays["a"]) for r in world] == [1, 2]
    assert isinstance(world[0].arrays["a"], np.ndarray)
    assert not list(tmp_path.iterdir())


def test_a_world_that_takes_too_long_is_ended(tmp_path):
    note = tmp_path / "pid"
    script = ("import os, time, pathlib\n"
              f"pathlib.Path({str(note)!r}).write_text(str(os.getpid()))\n"
              "time.sleep(60)\n")
    for seconds in (6, 40):  # a busy machine takes a while to begin
        with pytest.raises(TimeoutError, match=f"end within {seconds} s"):
            run_world(script, 1, timeout=seconds)
        if note.exists():
            break
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)


def test_a_world_that_fails_says_why():
    with pytest.raises(RuntimeError, match="(?s)rank 0:.*no such luck"):
        run_world("raise SystemExit('no such luck')", 1)


@pytest.mark.parametrize("left", [b"", b"PK\x03\x04 cut short"])
def test_a_file_that_was_cut_short_hides_no_error(left):
    script = (f"open('rank0.npz', 'wb').write({left!r})\n"
              "raise SystemExit('ended while it saved')")
    with pytest.raises(RuntimeError, match="(?s)rank 0:.*ended while it"):
        run_world(script, 1)


def test_settings_of_another_torchrun_do_not_reach_the_world(monkeypatch):
    monkeypatch.setenv("PET_NNODES", "2")  # torchrun's own defaults
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    left = environment()
    assert "PET_NNODES" not in left
    assert left["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "0"
