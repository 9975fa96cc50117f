"""The wall: what a student's code can reach, and what may cross."""

import itertools
import json
import os
import platform
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import coursework_cases as cases
import nbformat
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from coursework import sandbox, wire

PROBES = {
    "root": ("os.getuid()", lambda v: v != 0),
    "caps": ("[s for s in open('/proc/self/status') if s.startswith('Cap')]",
             lambda v: all(int(s.split()[1], 16) == 0 for s in v)),
    "privileges": ("[s for s in open('/proc/self/status') "
                   "if s.startswith('NoNewPrivs')][0]",
                   lambda v: v.split()[1] == "1"),
    "network": ("socket.if_nameindex()",
                lambda v: [n for _, n in v] == ["lo"]),
    "loopback": ("tried(lambda: socket.create_connection("
                 "('127.0.0.1', PORT), 1))", lambda v: "Refused" in v),
    "dns": ("tried(lambda: socket.getaddrinfo('example.org', 80))",
            lambda v: "gaierror" in v),
    "processes": ("[p for p in os.listdir('/proc') if p.isdigit()]",
                  lambda v: len(v) <= 4),
    "book": ("os.path.exists(BOOK)", lambda v: v is False),
    "secret": ("os.path.exists(SECRET)", lambda v: v is False),
    "passwd": ("os.path.exists('/etc/passwd')", lambda v: v is False),
    "environment": ("sorted(os.environ)",
                    lambda v: "SECRET" not in v and len(v) < 12),
    "write usr": ("tried(lambda: open('/usr/x', 'w'))", lambda v: "Err" in v),
    "write root": ("tried(lambda: open('/x', 'w'))", lambda v: "Err" in v),
    "write grader": ("tried(lambda: open('/grader/worker.py', 'a'))",
                     lambda v: "Err" in v),
    "write site": ("tried(lambda: open(np.__file__, 'a'))",
                   lambda v: "Err" in v),
    "write dev": ("tried(lambda: open('/dev/x', 'w'))", lambda v: "Err" in v),
    "write tmp": ("open('/tmp/by-a-student', 'w').write('ok')",
                  lambda v: v == 2),
    "fill tmp": ("tried(fill)", lambda v: "OSError" in v),
    "big file": ("tried(lambda: open('/tmp/b', 'wb').write("
                 "bytes(60 << 20)))", lambda v: "OSError" in v),
    "memory": ("tried(lambda: np.ones(10 << 27))",
               lambda v: "Memory" in v),
    "mount": ("libc.mount(b'none', b'/tmp', b'tmpfs', 0, None)",
              lambda v: v == -1),
    "user namespace": ("libc.unshare(0x10000000)", lambda v: v == -1),
    "clone": ("libc.syscall(CLONE, 0x10000000 | 17, 0, 0, 0, 0)",
              lambda v: v == -1),
    "ptrace": ("libc.ptrace(16, 1, 0, 0)", lambda v: v == -1),
    "kill": ("tried(lambda: os.kill(1, 9))", lambda v: True),
    "setuid": ("tried(lambda: os.setuid(0))", lambda v: "Err" in v),
    "priority": ("tried(lambda: os.nice(-5))", lambda v: "Err" in v),
    "terminal": ("tried(lambda: open('/dev/tty'))", lambda v: "Err" in v),
    "input": ("tried(input)", lambda v: "EOFError" in v),
    "forks": ("forks()", lambda v: v < 64),
}
CODE = """
import ctypes, os, signal, socket
import numpy as np
libc = ctypes.CDLL(None)
def tried(f):
    try:
        return f"done: {f()}"
    except BaseException as error:
        return f"{type(error).__mro__}: {error}"
def fill():
    for i in range(10):
        open(f"/tmp/fill{i}", "wb").write(bytes(20 << 20))
def forks():
    pids = []
    try:
        for _ in range(200):
            pid = os.fork()
            if pid == 0:
                signal.pause()
            pids.append(pid)
    except OSError:
        pass
    for pid in pids:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    return len(pids)
def probe(text):
    return eval(text, globals())
"""


@pytest.fixture(scope="module")
def look(tmp_path_factory):
    """Evaluate an expression in the sandbox, as a student's code."""
    cases.need_sandbox()
    secret = tmp_path_factory.mktemp("other") / "secret"
    secret.write_text("answers")
    secret.chmod(0o644)
    listener = socket.create_server(("127.0.0.1", 0))
    code = (f"PORT = {listener.getsockname()[1]}\nSECRET = {str(secret)!r}\n"
            f"BOOK = {str(cases.ROOT / 'coursework')!r}\n"
            f"CLONE = {56 if platform.machine() == 'x86_64' else 220}\n"
            + CODE)
    os.environ["SECRET"] = "1"
    with sandbox.Sandbox("bubblewrap", sandbox.Limits(memory=1 << 30)) as box:
        wire.send(box.control, {}, json.dumps(
            {"before": [], "cells": [[0, code]]}).encode())
        for _ in range(3):
            message, _ = wire.receive(box.control)
            assert not message.get("error"), message

        def ask(text):
            ours, theirs = socket.socketpair()
            with ours, theirs:
                socket.send_fds(box.control, [b"0060"], [theirs.fileno()])
                theirs.close()
                wire.send(ours, {"op": "name", "name": "probe"})
                answer, _ = wire.receive(ours)
                wire.send(ours, {"op": "call", "args": [text],
                                 "handle": answer["ok"]["v"]})
                answer, body = wire.receive(ours)
            assert "ok" in answer, answer
            return wire.Unpacker(body).unpack(answer["ok"])

        yield ask
    del os.environ["SECRET"]
    listener.close()
    groups = [*sandbox.CGROUPS.glob(f"coursework-{os.getpid()}-*"),
              *sandbox.CGROUPS.glob(f"*/coursework-{os.getpid()}-*")]
    assert not groups


@pytest.mark.parametrize("name", PROBES)
def test_a_student_cannot(look, name):
    text, holds = PROBES[name]
    seen = look(text)
    assert holds(seen), seen


def test_the_seccomp_filter_for_both_processors():
    for machine, network in itertools.product(sandbox.DENIED, (True, False)):
        code = sandbox.rules(machine, network)
        lines = list(struct.iter_unpack("<HBBI", code))
        assert len(lines) > 60 and lines[-1] == (6, 0, 0, 0x7FFF0000)
        for i, (_, yes, no, _) in enumerate(lines):
            assert i + 1 + max(yes, no) < len(lines) or lines[i][0] == 6
    assert sandbox.rules("sparc") is None


@pytest.mark.skipif(sys.platform != "linux", reason="a filter of Linux")
def test_the_filter_of_containers_cuts_the_network():
    code = ("import socket, sys\nfrom coursework import sandbox\n"
            "sandbox.apply(sandbox.rules(network=False))\n"
            "socket.socketpair()\n"
            "for kind in (socket.AF_INET, socket.AF_INET6):\n"
            "    try:\n        socket.socket(kind)\n"
            "        sys.exit('a socket was made')\n"
            "    except PermissionError:\n        pass\n"
            "try:\n    socket.socket(socket.AF_UNIX).bind('\\0name')\n"
            "    sys.exit('a socket got a name')\n"
            "except PermissionError:\n    pass\n")
    done = subprocess.run([sys.executable, "-c", code], cwd=cases.ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False)
    | st.text() | st.binary() | st.complex_numbers(allow_nan=False)
    | hnp.arrays(st.sampled_from(["f4", "f8", "i8", "u1", "?", "c16", "U3"]),
                 hnp.array_shapes(min_dims=0, min_side=0),
                 elements=None, fill=None),
    lambda inner: st.lists(inner, max_size=4)
    | st.lists(inner, max_size=3).map(tuple)
    | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=4),
    max_leaves=8)


def crossed(value):
    """A value that went through a socket."""
    packer = wire.Packer()
    tree = packer.pack(value)
    return wire.Unpacker(b"".join(packer.parts)).unpack(
        json.loads(json.dumps(tree)))


def equal(a, b):
    """Equal in value and in type, to the bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        return (a.dtype == b.dtype and a.shape == b.shape
                and a.tobytes() == b.tobytes())
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    return repr(a) == repr(b)


@given(PLAIN)
@settings(max_examples=150, deadline=None)
def test_plain_data_crosses_unchanged(value):
    assert equal(crossed(value), value)


@pytest.mark.parametrize("value", [
    {1, 2}, frozenset("a"), slice(1, None, 2), range(3), ..., 10 ** 200,
    np.float32(2.5), np.bool_(True), np.int8(-3), np.dtype("f4"), np.float16,
    float, np.datetime64("2026-11-21"), float("inf")], ids=repr)
def test_rarer_data_crosses(value):
    assert crossed(value) == value and type(crossed(value)) is type(value)


@pytest.mark.parametrize("kind", [
    torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool])
def test_tensors_cross(kind):
    for x in (torch.arange(6).reshape(2, 3).to(kind), torch.tensor(1).to(kind),
              torch.empty(0, 4, dtype=kind)):
        y = crossed(x)
        assert y.dtype == kind and y.shape == x.shape and torch.equal(x, y)
    assert crossed(torch.ones(2, requires_grad=True)).requires_grad
    assert crossed(torch.float64) is torch.float64


def test_generators_cross():
    rng = np.random.default_rng(4)
    assert crossed(rng).normal() == rng.normal()
    old = np.random.RandomState(4)
    assert crossed(old).rand() == old.rand()


def test_what_does_not_cross():
    loop = []
    loop.append(loop)
    for value, text in [(object(), "object"), (loop, "deep"),
                        (np.array([object()]), "plain"),
                        (np.zeros(9 << 20), "MiB"), (lambda: 0, "plain")]:
        with pytest.raises(wire.WireError, match=text):
            wire.Packer().pack(value)


NONSENSE = [
    {"t": "array", "d": "<f8", "s": [3], "b": [0, 8]},
    {"t": "array", "d": "<f8", "s": [-1], "b": [0, 8]},
    {"t": "array", "d": "O", "s": [1], "b": [0, 8]},
    {"t": "array", "d": "<f8", "s": [1], "b": [4, 8]},
    {"t": "array", "d": "<f8", "s": [1], "b": [-8, 8]},
    {"t": "array", "d": "<f8", "s": [2 ** 62, 2 ** 62, 0], "b": [0, 0]},
    {"t": "array"}, {"t": "tensor", "d": "load", "s": [], "b": [0, 4],
                     "g": True},
    {"t": "type", "v": "eval"}, {"t": "nptype", "v": "load"},
    {"t": "rng", "v": {"t": "dict", "v": [["bit_generator", "os"]]}},
    {"t": "named", "f": ["__import__('os')"], "v": [1]},
    {"t": "int", "v": "0x" + "f" * 30_000}, {"t": "handle", "v": 1},
    {"t": ["list"]}, {"v": 1}, {"t": "dict", "v": [[[1], 2]]},
    {"t": "torchtype", "v": "nn"}, {"t": "slice", "v": [1, 2, 3, 4]},
]


@pytest.mark.parametrize("tree", NONSENSE, ids=lambda t: json.dumps(t)[:60])
def test_nonsense_is_refused(tree):
    with pytest.raises(wire.WireError):
        wire.Unpacker(bytes(8)).unpack(tree)


JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=8) | st.sampled_from(
        ["array", "tensor", "dict", "rng", "<f8", "handle", "named"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["t", "v", "d", "s", "b", "f", "n", "g", "k"]),
        inner, max_size=6), max_leaves=12)


@given(JSON)
@settings(max_examples=300, deadline=None)
def test_any_message_gives_a_value_or_a_refusal(tree):
    try:
        wire.Unpacker(bytes(16)).unpack(tree)
    except wire.WireError:
        pass


def test_messages_have_a_largest_size():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for sizes in ((1 << 31, 0), (2, 1 << 31)):
            ours.sendall(wire.SIZES.pack(*sizes) + b"{}")
            with pytest.raises(wire.WireError, match="too long"):
                wire.receive(theirs, None)
            theirs.recv(10)
        ours.sendall(wire.SIZES.pack(100_000, 0))
        ours.sendall(b"[" * 100_000)
        with pytest.raises(wire.WireError, match="not JSON"):
            wire.receive(theirs)
        with pytest.raises(wire.LateError):
            wire.receive(theirs, 0)
        ours.close()
        with pytest.raises(wire.ClosedError):
            wire.receive(theirs)


def test_a_master_says_what_is_wrong_with_it(tmp_path):
    from coursework.master import load
    from coursework.source import MasterError

    for text, says in [
            ('# %% answer="q1"\nx = 1\n', "no cell is a test"),
            ('# %% test="q1"\nassert x\n', "points=None"),
            ('# %% test="q1" points=-1\nassert x\n', "points=-1"),
            ('# %% answer="q 1"\nx = 1\n', "no id"),
            ('# %% answer="a" wrong=1\nx = 1\n', "wrong"),
            ('# %% answer="a"\nx = \n', "a.py, a"),
            ('# %% text="a" points=2\nx = 1\n', "Markdown"),
            ('# %% answer="a"\n### BEGIN SOLUTION\nx = 1\n'
             '# %% test="t" points=1\nassert x', "without END"),
            ('# %% answer="a"\nx = 1\n# %% test="a" points=1\nassert x',
             "two cells|duplicate|same"),
            ('# %%\n### BEGIN HIDDEN TESTS\n### END HIDDEN TESTS\n'
             '# %% answer="b"\nx=1\n# %% test="c" points=1\nassert x',
             "outside of a test")]:
        path = tmp_path / "a.py"
        path.write_text(text)
        with pytest.raises(MasterError, match=says):
            load(path)


def test_what_the_sandbox_shows_holds_no_secret():
    inside = os.path.join(sys.prefix, "masters/a1.ipynb")
    assert "a1.ipynb lies in a folder" in sandbox.available(
        secrets=[cases.ROOT / "coursework", inside])


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0,
                    reason="only root makes processor groups")
def test_many_processes_have_one_share_of_the_processor():
    groups = [sandbox.Cgroup(f"coursework-{os.getpid()}-{k}",
                             sandbox.Limits()) for k in (1, 2)]
    spin = ("import os\nos.sched_setaffinity(0, {0})\n"
            "print(flush=True)\nwhile True: pass")
    running = []

    def used():
        """Each process's user time so far, in clock ticks."""
        stats = [Path(f"/proc/{p.pid}/stat").read_text() for p in running]
        return np.array([int(s.rpartition(")")[2].split()[11])
                         for s in stats])

    try:
        if not any((f / name).exists() for f in groups[0].made
                   for name in ("cpu.shares", "cpu.weight")):
            pytest.skip("this system gives no processor groups")
        for group, count in zip(groups, (6, 1), strict=True):
            running += [subprocess.Popen(
                [sys.executable, "-c", spin], stdout=subprocess.PIPE,
                preexec_fn=group.enter) for _ in range(count)]
        for process in running:
            process.stdout.readline()  # it spins from here on
        before = used()
        time.sleep(2)
        took = used() - before
    finally:
        for process in running:
            process.kill()
            process.communicate()
        for group in groups:
            group.remove()
    assert took[-1] > 0.3 * took.sum()  # without groups: a seventh


def test_old_notebooks_are_read():
    from coursework.checker import cells_of

    three = nbformat.v3.new_notebook(worksheets=[nbformat.v3.new_worksheet(
        cells=[nbformat.v3.new_code_cell("x = 1")])])
    assert cells_of(nbformat.v3.nbjson.writes(three).encode()) == [
        (0, "x = 1")]
