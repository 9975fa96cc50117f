"""Worlds: a script run by several ranks on this machine, with torchrun."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

import normlab

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone",
          "--local-addr=127.0.0.1", "--max-restarts=0"]
# What a script ends with: its exit functions, and then no shutdown of Python,
# during which a thread of the back end that still runs can abort the rank.
LEAVE = """
import atexit, os, sys
atexit._run_exitfuncs()
sys.stdout.flush()
sys.stderr.flush()
os._exit(0)
"""


class Rank(NamedTuple):
    """What one rank left: what it printed, what it wrote to stderr, and the
    arrays that it saved as rank<number>.npz, by name."""
    text: str
    errors: str
    arrays: dict


def run_world(script, ranks=2, args=(), timeout=120, check=True):
    """Run the text of a Python script on `ranks` processes of this machine.

    torchrun starts them, in a temporary folder of their own; a script keeps
    arrays by np.savez(f"rank{rank}.npz", ...). Returns a list of Rank.
    Raises RuntimeError with the ranks' errors if one of them failed (unless
    check is False), TimeoutError after `timeout` seconds; either way no
    process is left.
    """
    folder = Path(tempfile.mkdtemp(prefix="world-"))
    try:
        (folder / "script.py").write_text(script + LEAVE, encoding="utf-8")
        command = [*LAUNCH, f"--nproc-per-node={ranks}", "--redirects=3",
                   f"--log-dir={folder / 'logs'}", "script.py", *args]
        code, said = launch(command, folder, timeout)
        found = [collect(folder, rank) for rank in range(ranks)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    trouble = "\n".join(f"rank {k}:\n{r.errors[-3000:]}"
                        for k, r in enumerate(found) if r.errors)
    if code is None:
        raise TimeoutError(f"{ranks} ranks did not end within {timeout} s\n"
                           f"{trouble or said[-3000:]}")
    if code and check:
        raise RuntimeError(f"a world of {ranks} ranks failed\n"
                           f"{trouble or said[-3000:]}")
    return found


def launch(command, folder, timeout):
    """Exit code and output of a torchrun; the code is None if it had to be
    ended, which ends its ranks too."""
    with subprocess.Popen(
            command, cwd=folder, env=environment(), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            said, _ = process.communicate(timeout=timeout)
            return process.returncode, said
        except BaseException as error:
            said = end(process)
            if isinstance(error, subprocess.TimeoutExpired):
                return None, said
            raise


def end(process):
    """End a torchrun: first in a way that lets it end its ranks."""
    process.terminate()
    try:
        return process.communicate(timeout=40)[0]  # ranks get 30 s to end
    except subprocess.TimeoutExpired:
        process.kill()
        return process.communicate()[0]


def environment():
    """This process's environment, one thread a rank, on the loopback. The
    ranks meet at torchrun's own store, which chose a free port by opening
    it: worlds that start at the same time can't collide."""
    loopback = [name for _, name in socket.if_nameindex()
                if name in ("lo", "lo0")]
    path = [str(Path(normlab.__file__).resolve().parents[1]),
            os.environ.get("PYTHONPATH", "")]
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PET_")}
    return {**kept, "OMP_NUM_THREADS": "1",
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "0",
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            **({"GLOO_SOCKET_IFNAME": loopback[0]} if loopback else {})}


def collect(folder, rank):
    """What a rank left in its folder."""
    def log(name):
        return "".join(p.read_text(errors="replace") for p in sorted(
            (folder / "logs").glob(f"*/attempt_0/{rank}/{name}.log")))

    arrays = {}
    try:
        with np.load(folder / f"rank{rank}.npz") as saved:
            arrays = dict(saved)
    except (FileNotFoundError, EOFError, zipfile.BadZipFile):
        pass  # the rank saved nothing, or was ended while it did
    return Rank(log("stdout"), log("stderr"), arrays)
