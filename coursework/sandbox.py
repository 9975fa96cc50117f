"""Where a student's code runs: no network, read-only system, limits.

Two kinds:

- "bubblewrap": each submission in namespaces of its own. Started by root, the
  code runs as a throw-away user; started by somebody else, in a user
  namespace.
- "container": for use inside a container that is thrown away afterwards and
  whose own settings cut the network and bound the memory (Gradescope, a pod,
  `docker run --network none`). The code runs as a throw-away user, who may
  read neither the master nor other submissions. It must be asked for.

There is no third kind: without one of them nothing is graded.
"""

import contextlib
import ctypes
import json
import os
import platform
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
USERS, COUNT = 61184, 300         # the throw-away users
KINDS = ("bubblewrap", "container")
INSTALL = """\
Students' code is graded in a sandbox only, and there is none here: {why}.
  Debian, Ubuntu:  sudo apt install bubblewrap
  Fedora:          sudo dnf install bubblewrap
  Ubuntu 24.04 and later, not as root: its AppArmor profile for bwrap must
                   allow user namespaces; see "Teaching" in the book
  macOS, Windows, or no rights to install: grade in a container; the image's
                   recipe is coursework/cluster/Containerfile"""
CGROUPS = Path("/sys/fs/cgroup")
# What a student's code has no use for and an attacker would begin with.
DENIED = {
    "x86_64": (0xC000003E, 56, [
        101, 165, 166, 155, 175, 246, 248, 249, 250, 272, 298, 308, 310, 311,
        313, 320, 321, 323, 304, 425, 426, 427, 428, 429, 430, 442, 432]),
    "aarch64": (0xC00000B7, 220, [
        117, 40, 39, 41, 105, 104, 217, 218, 219, 97, 241, 268, 270, 271,
        273, 294, 280, 282, 265, 425, 426, 427, 428, 429, 430, 442, 432]),
}
SOCKET = {"x86_64": 41, "aarch64": 198}
# Names and memory by which one submission could reach the next one: bind,
# shmget, semget, msgget, mq_open.
SHARED = {"x86_64": [49, 29, 64, 68, 240],
          "aarch64": [200, 194, 190, 186, 180]}
NAMESPACES = 0x7E020080           # every CLONE_NEW... flag


@dataclass(frozen=True)
class Limits:
    """What a submission may use."""

    test_seconds: float = 10.0    # CPU time of one test; twice that by clock
    cell_seconds: float = 10.0    # a cell, while the notebook is loaded
    total_seconds: float = 90.0   # a submission, by clock
    memory: int = 2 << 30         # bytes, all of its processes together
    address_space: int = 8 << 30  # bytes that one process may map
    processes: int = 64
    file_size: int = 50 << 20
    scratch: int = 64 << 20


class SandboxError(RuntimeError):
    """There is no sandbox, or it did not start."""


def rules(machine=None, network=True):
    """The seccomp filter for this machine as bytes, or None if unknown.

    Refuses mount, ptrace, new namespaces, bpf, keys, io_uring and the like
    with "operation not permitted", and any other processor's calls; without
    `network`, sockets of the internet and what outlives a process too.
    """
    machine = machine or platform.machine()
    if machine not in DENIED:
        return None
    arch, clone, denied = DENIED[machine]
    if not network:
        denied = denied + SHARED[machine]
    load, jump, test, end = 0x20, 0x15, 0x45, 0x06
    deny, allow, missing = 0x00050001, 0x7FFF0000, 0x00050026
    code = [(load, 0, 0, 4), (jump, 1, 0, arch), (end, 0, 0, deny),
            (load, 0, 0, 0)]
    if machine == "x86_64":
        code += [(0x35, 0, 1, 0x40000000), (end, 0, 0, deny)]  # x32
    # clone3 hides its flags in memory: say that it does not exist.
    code += [(jump, 0, 1, 435), (end, 0, 0, missing)]
    for number in denied:
        code += [(jump, 0, 1, number), (end, 0, 0, deny)]
    if not network:
        code += [(jump, 0, 4, SOCKET[machine]), (load, 0, 0, 16),
                 (jump, 1, 0, socket.AF_INET),
                 (jump, 0, 1, socket.AF_INET6), (end, 0, 0, deny),
                 (load, 0, 0, 0)]
    code += [(jump, 0, 3, clone), (load, 0, 0, 16),
             (test, 0, 1, NAMESPACES), (end, 0, 0, deny),
             (end, 0, 0, allow)]
    return b"".join(struct.pack("<HBBI", *line) for line in code)


def memory_file(data):
    """A file in memory that a child may inherit."""
    fd = os.memfd_create("rules", 0)
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def prefixes():
    """The folders that Python lies in, which the sandbox shows."""
    return [Path("/usr"), *(Path(p) for p in sorted(
        {sys.base_prefix, sys.prefix}, key=len)
        if not Path(p).is_relative_to("/usr"))]


def mounts():
    """bwrap's options that show Python, the worker, and nothing else."""
    options, made = [], set()

    def show(path):
        path = Path(path)
        for parent in reversed(path.parents):
            if str(parent) != "/" and parent not in made:
                made.add(parent)
                options.extend(["--perms", "0755", "--dir", str(parent)])
        made.add(path)
        options.extend(["--ro-bind", str(path), str(path)])

    for prefix in prefixes():
        show(prefix)
    for name in ("bin", "sbin", "lib", "lib64", "lib32"):
        path = Path("/", name)
        if path.is_symlink():
            options.extend(["--symlink", os.readlink(path), str(path)])
        elif path.exists():
            show(path)
    for name in ("/etc/ld.so.cache", "/etc/alternatives"):
        if Path(name).exists():
            show(name)
    options.extend(["--perms", "0755", "--dir", "/grader"])
    for name in ("worker.py", "wire.py"):
        options.extend(["--ro-bind", str(HERE / name), f"/grader/{name}"])
    return options


def bubblewrap(fd, rlimits, limits, seccomp):
    """The command line of a worker in bubblewrap."""
    root = os.geteuid() == 0
    command = ["bwrap", "--unshare-ipc", "--unshare-pid", "--unshare-net",
               "--unshare-uts", "--unshare-cgroup-try", "--die-with-parent",
               "--new-session", "--hostname", "sandbox",
               "--proc", "/proc", "--dev", "/dev",
               "--size", str(limits.scratch), "--perms", "1777",
               "--tmpfs", "/dev/shm",
               "--size", str(limits.scratch), "--perms", "1777",
               "--tmpfs", "/tmp",
               *mounts(),  # after /tmp, where Python may lie
               "--remount-ro", "/dev", "--remount-ro", "/",
               "--chdir", "/tmp"]
    drop = []
    if root:
        command += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID",
                    "--cap-add", "CAP_SETGID", "--cap-add", "CAP_SETPCAP"]
        drop = [shutil.which("setpriv"), "--reuid", "{uid}", "--regid",
                "{uid}", "--clear-groups", "--no-new-privs",
                "--bounding-set=-all", "--inh-caps=-all"]
    else:
        command += ["--unshare-user", "--uid", "61184", "--gid", "61184",
                    "--disable-userns", "--cap-drop", "ALL"]
    if seccomp is not None:
        command += ["--seccomp", str(seccomp)]
    return [*command, "--", *drop, *python(fd, rlimits, "/grader/worker.py")]


def python(fd, rlimits, worker):
    """The command line of the worker itself."""
    return [sys.executable, "-I", "-B", worker, str(fd), json.dumps(rlimits)]


def environment(home):
    """All that the student's code sees of the environment."""
    return {"PATH": "/usr/bin:/bin", "HOME": home, "TMPDIR": home,
            "LANG": "C.UTF-8", "MPLBACKEND": "Agg", "MPLCONFIGDIR": home,
            **{f"{name}_NUM_THREADS": "1"
               for name in ("OMP", "OPENBLAS", "MKL")}}


class Cgroup:
    """Bounds the memory and number of all processes together, and gives
    them one share of the processor however many they are, where the system
    lets us; `bounded` says whether memory is."""

    def __init__(self, name, limits):
        self.made, self.bounded = [], False
        two = (CGROUPS / "cgroup.controllers").exists()
        files = ([("", "memory.max", limits.memory),
                  ("", "memory.swap.max", 0),
                  ("", "pids.max", limits.processes + 8),
                  ("", "cpu.weight", 100)] if two else
                 [("memory", "memory.limit_in_bytes", limits.memory),
                  ("memory", "memory.memsw.limit_in_bytes", limits.memory),
                  ("pids", "pids.max", limits.processes + 8),
                  ("cpu", "cpu.shares", 1024)])
        for part, file, value in files:
            folder = CGROUPS / part / name
            try:
                if folder not in self.made:
                    folder.mkdir()
                    self.made.append(folder)
                (folder / file).write_text(str(value))
                self.bounded |= file.startswith("memory")
            except OSError:
                continue

    def enter(self):
        """Move this process in: called between fork and exec."""
        for folder in self.made:
            with contextlib.suppress(OSError):
                (folder / "cgroup.procs").write_text(str(os.getpid()))

    def remove(self):
        """Take the folders away."""
        for folder in self.made:
            take_away(folder)


def take_away(folder):
    """Kill what is left in a cgroup and remove it; False if it stays."""
    for _ in range(500):
        try:
            folder.rmdir()
            return True
        except FileNotFoundError:
            return True
        except OSError:
            with contextlib.suppress(OSError):
                for pid in (folder / "cgroup.procs").read_text().split():
                    os.kill(int(pid), signal.SIGKILL)
            time.sleep(0.01)
    return False


def sweep():
    """Remove the cgroups of graders that were killed; return how many."""
    gone = 0
    for folder in [*CGROUPS.glob("coursework-*"),
                   *CGROUPS.glob("*/coursework-*")]:
        ours = re.fullmatch(r"coursework-(\d+)-\d+", folder.name)
        if ours and not Path("/proc", ours[1]).exists():
            gone += take_away(folder)
    return gone


def claim():
    """A throw-away user that no other sandbox of this machine has now:
    (uid, what holds it). The kernel lets go when the holder ends."""
    for uid in range(USERS, USERS + COUNT):
        holder = socket.socket(socket.AF_UNIX)
        try:
            holder.bind(f"\0coursework-user-{uid}")
            return uid, holder
        except OSError:
            holder.close()
    raise SandboxError(f"all {COUNT} throw-away users are taken")


class Sandbox:
    """A worker in a sandbox, with a socket to it. Use it in a `with`."""

    def __init__(self, kind, limits):
        self.kind, self.limits = kind, limits
        self.scratch = None

    def __enter__(self):
        self.uid, self.holder = claim()
        try:
            return self.start()
        except BaseException:
            self.holder.close()
            raise

    def start(self):
        """Start the worker."""
        ours, theirs = socket.socketpair()
        limits = self.limits
        rlimits = {"AS": limits.address_space, "NPROC": limits.processes,
                   "FSIZE": limits.file_size, "NOFILE": 256, "CORE": 0,
                   "CPU": int(limits.total_seconds) + 1}
        self.group = Cgroup(f"coursework-{os.getpid()}-{self.uid}", limits)
        if not self.group.bounded:
            # No common bound on memory: fewer and smaller processes.
            rlimits |= {"NPROC": min(limits.processes, 16),
                        "DATA": limits.memory}
        keep = [theirs.fileno()]
        options = {}
        if self.kind == "container":
            self.scratch = tempfile.mkdtemp(prefix="coursework-")
            os.chown(self.scratch, self.uid, self.uid)
            command = python(theirs.fileno(), rlimits, str(HERE / "worker.py"))
            options = {"user": self.uid, "group": self.uid,
                       "extra_groups": [], "cwd": self.scratch,
                       "start_new_session": True}
        else:
            filter_ = rules()
            seccomp = memory_file(filter_) if filter_ else None
            keep += [seccomp] if filter_ else []
            command = [c.replace("{uid}", str(self.uid)) for c in bubblewrap(
                theirs.fileno(), rlimits, limits, seccomp)]
        try:
            self.process = subprocess.Popen(
                command, pass_fds=keep,
                env=environment(self.scratch or "/tmp"),
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, preexec_fn=self.prepare, **options)
        except OSError as error:
            self.group.remove()
            raise SandboxError(f"the sandbox did not start: {error}") from None
        finally:
            for fd in keep[1:]:
                os.close(fd)
            theirs.close()
        self.control = ours
        return self

    def prepare(self):
        """In the child, before it becomes the worker: bounds, a common end,
        and in a container the filter that bwrap applies elsewhere."""
        self.group.enter()
        die_with_parent()
        if self.kind == "container":
            apply(rules(network=False))

    def __exit__(self, *_):
        self.control.close()
        with contextlib.suppress(OSError):
            self.process.kill()
        self.process.wait()
        if self.kind == "container":
            self.empty()
        self.group.remove()
        self.holder.close()

    def empty(self):
        """Kill all that the throw-away user has started; remove its files."""
        for _ in range(50):
            left = processes_of(self.uid)
            if not left:
                break
            for pid in left:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        for folder in [self.scratch, "/dev/shm", "/dev/mqueue", "/tmp",
                       "/var/tmp", "/run/lock"]:
            for path in Path(folder).glob("*"):
                if path.lstat().st_uid == self.uid:
                    remove(path)
        shutil.rmtree(self.scratch, ignore_errors=True)


def remove(path):
    """Remove a file or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def die_with_parent():
    """Ask the kernel to kill this process when its parent ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def apply(code):
    """Put this process, for good, under a seccomp filter."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0):  # no new privileges
        raise OSError(ctypes.get_errno(), "prctl refused")
    if code is None:
        return
    lines = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HxxxxxxP", len(code) // 8,
                          ctypes.addressof(lines))
    if libc.prctl(22, 2, program, 0, 0):
        raise OSError(ctypes.get_errno(), "the kernel refused the filter")


def processes_of(uid):
    """The processes that run as a user."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if path.stat().st_uid == uid:
                found.append(int(path.name))
    return found


def readable(paths, uid):
    """Those of the paths that a throw-away user could read."""
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
        seen = [str(p) for p in paths if os.access(p, os.R_OK)]
        os.write(into, json.dumps(seen).encode()[:60_000])
        os._exit(0)
    os.close(into)
    with os.fdopen(out) as file:
        text = file.read()
    os.waitpid(child, 0)
    return json.loads(text)


def available(kind="bubblewrap", secrets=()):
    """None if students' code can be graded here, else what is missing.

    secrets: paths that a student's code must not be able to read.
    """
    if kind not in KINDS:
        return f"sandbox {kind!r} is not one of {', '.join(KINDS)}"
    if sys.platform != "linux":
        return INSTALL.format(why=f"{sys.platform} has no namespaces")
    if kind == "container":
        if os.geteuid() != 0:
            return "the sandbox 'container' needs root inside the container"
        seen = readable(secrets, USERS)
        if seen:
            return (f"{seen[0]} could be read by a student's code; in the "
                    "container it must belong to root and be closed to "
                    "others: chmod 600 the file or chmod 700 its folder")
    shown = [p for p in secrets if kind == "bubblewrap" and any(
        Path(p).resolve().is_relative_to(prefix.resolve())
        for prefix in prefixes())]
    if shown:
        return (f"{shown[0]} lies in a folder that the sandbox shows, with "
                "Python in it; move it elsewhere")
    if kind == "bubblewrap" and not shutil.which("bwrap"):
        return INSTALL.format(why="bwrap (bubblewrap) is not installed")
    if (kind == "bubblewrap" and os.geteuid() == 0
            and not shutil.which("setpriv")):
        return INSTALL.format(why="setpriv (util-linux) is not installed")
    why = probe(kind)
    return INSTALL.format(why=why) if why and kind == "bubblewrap" else why


PROBE = """
import os, socket
found = {"uid": os.getuid(), "seen": os.path.exists(HERE), "net": []}
try:
    found["net"] = [name for _, name in socket.if_nameindex()]
except OSError:
    pass
try:
    open("/usr/probe", "w")
    found["wrote"] = True
except OSError:
    found["wrote"] = False
"""


def probe(kind):
    """Start a sandbox and look round in it; None if it holds."""
    from coursework import wire

    code = PROBE.replace("HERE", repr(str(HERE / "grade.py")))
    try:
        with Sandbox(kind, Limits()) as box:
            wire.send(box.control, {}, json.dumps(
                {"before": [code], "cells": []}).encode())
            deadline = time.monotonic() + 30
            wire.receive(box.control, deadline)
            ours, theirs = socket.socketpair()
            with ours, theirs:
                socket.send_fds(box.control, [b"0010"], [theirs.fileno()])
                theirs.close()
                wire.send(ours, {"op": "name", "name": "found"})
                answer, body = wire.receive(ours, deadline)
            found = wire.Unpacker(body).unpack(answer["ok"])
    except (SandboxError, wire.ClosedError, wire.LateError, wire.WireError,
            KeyError) as error:
        return (f"{kind} is here but did not start a worker "
                f"({type(error).__name__} {error})")
    if found["uid"] == 0 or found["wrote"]:
        return f"{kind} gave the code more rights than it should have"
    if kind == "bubblewrap" and found["net"] not in ([], ["lo"]):
        return "bubblewrap left the code a network"
    if kind == "bubblewrap" and found["seen"]:
        return "bubblewrap showed the code the grader's own files"
    return None
