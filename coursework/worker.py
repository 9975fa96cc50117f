"""Runs inside the sandbox: loads a student's cells, answers calls.

Nothing here is trusted by the grader, since the student's code shares this
process: whoever rewrites it can only give other answers.
"""

import ast
import json
import linecache
import operator
import os
import random
import re
import resource
import signal
import socket
import sys
import types

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import wire

sys.path.pop(0)
MAGIC = re.compile(r"^(\s*)([%!?].*|.*\?)$")


class Anything:
    """Stands for IPython where a cell asks for it: does nothing."""

    def __getattr__(self, name):
        return self

    def __call__(self, *args, **kwargs):
        """Return itself, whatever is asked."""
        return self


def limit(limits):
    """Bounds for this process and all that it starts."""
    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        resource.setrlimit(kind, (value, value))


def python(source):
    """A cell's Python, without what only IPython understands."""
    lines = source.split("\n")
    first = next((s for s in lines if s.strip()), "")
    if first.startswith("%%"):
        magic = first[2:].split()[:1]
        if magic not in (["time"], ["timeit"], ["capture"], ["prun"]):
            return ""
        lines[lines.index(first)] = ""
    text = "\n".join(lines)
    try:
        ast.parse(text)
        return text
    except SyntaxError:
        return "\n".join(MAGIC.sub(r"\1pass", line) for line in lines)


def run_cell(source, name, namespace):
    """Run a cell; return what it raised as text, or None."""
    try:
        text = python(source)
        linecache.cache[name] = (len(text), None,
                                 text.splitlines(True), name)
        code = compile(text, name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if code.co_flags & 0x80:  # it awaits at its top level
            import asyncio  # rarely needed, slow to load

            asyncio.run(eval(code, namespace))
        else:
            exec(code, namespace)
    except BaseException as error:
        return describe(error)["text"]
    return None


def describe(error):
    """An exception as plain data."""
    try:
        text = str(error)[:500]
    except BaseException:
        text = "(its message could not be shown)"
    kinds = [f"{k.__module__}.{k.__qualname__}" for k in type(error).__mro__]
    return {"mro": kinds, "text": f"{type(error).__name__}: {text}",
            "message": text}


def snapshot(value):
    """A value's tree and bytes, to see later whether it was changed."""
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return None
    packer = wire.Packer(lambda x, last: last and {"t": "id", "v": id(x)})
    try:
        tree = packer.pack(value)
    except (wire.WireError, RecursionError):
        return None
    return json.dumps(tree), b"".join(packer.parts)


class Out(wire.Packer):
    """Packs for the grader: what can't cross stays here and gets a number,
    and so do tensors whose gradient may be asked for."""

    def __init__(self, server):
        super().__init__(server.refer)
        self.server = server

    def tensor(self, x):
        """A tensor, with a number if it has a gradient."""
        tree = super().tensor(x)
        if x.requires_grad:
            tree["k"] = self.server.number(x)
        return tree


class In(wire.Unpacker):
    """Unpacks what the tests send; tensors with a gradient are kept."""

    def __init__(self, data, server):
        super().__init__(data, server.resolve)
        self.server = server

    def tensor(self, tree):
        """A tensor of its own."""
        if "i" not in tree:
            return super().tensor(tree)
        if tree["i"] not in self.server.leaves:
            self.server.leaves[tree["i"]] = super().tensor(tree)
        return self.server.leaves[tree["i"]]


class Server:
    """Answers the calls of one test."""

    def __init__(self, sock, namespace):
        self.sock, self.namespace = sock, namespace
        self.objects, self.numbers, self.leaves = {}, {}, {}
        self.callbacks = {}

    def number(self, x):
        """The number of an object that stays here."""
        if id(x) not in self.numbers:
            self.numbers[id(x)] = len(self.objects)
            self.objects[len(self.objects)] = x
        return self.numbers[id(x)]

    def refer(self, x, last):
        """The tree of an object that stays here, or of a test's function."""
        if id(x) in self.callbacks:
            return {"t": "callback", "v": self.callbacks[id(x)][0]}
        if not last:
            return None
        return {"t": "handle", "v": self.number(x),
                "n": type(x).__name__[:80]}

    def resolve(self, tree):
        """The object that a tree of the tests names."""
        if tree["t"] == "handle":
            return self.objects[tree["v"]]
        if tree["t"] != "callback":
            raise wire.WireError(f"{tree['t']!r} does not cross")

        def callback(*args, **kwargs):
            self.reply({"callback": tree["v"]}, (args, kwargs))
            answer, body = wire.receive(self.sock)
            while "op" in answer:  # the test's function calls an answer
                self.respond(answer, body)
                answer, body = wire.receive(self.sock)
            if "error" in answer:
                raise RuntimeError(answer["error"])
            return In(body, self).unpack(answer["ok"])

        self.callbacks[id(callback)] = (tree["v"], callback)
        return callback

    def reply(self, message, value=None, changed=()):
        """Send an answer."""
        packer = Out(self)
        message["ok"] = packer.pack(value)
        message["changed"] = [[k, packer.pack(v)] for k, v in changed]
        wire.send(self.sock, message, b"".join(packer.parts))

    def serve(self):
        """Answer until the grader has no more questions."""
        while True:
            try:
                message, body = wire.receive(self.sock)
            except (wire.ClosedError, wire.WireError):
                return
            try:
                self.respond(message, body)
            except wire.ClosedError:
                return

    def respond(self, message, body):
        """Do what a message asks, and say what came of it."""
        try:
            value, changed = self.answer(message, body)
            self.reply({}, value, changed)
        except wire.ClosedError:
            raise
        except BaseException as error:
            if isinstance(error, StopIteration) and message["op"] == "next":
                wire.send(self.sock, {"stop": True})
            else:
                wire.send(self.sock, {"error": describe(error)})

    def answer(self, message, body):
        """What an operation gives, and the arguments that it changed."""
        self.seed(message.get("seeds"), body)
        args = In(body, self).unpack(message.get("args", []))
        kwargs = In(body, self).unpack(message.get("kwargs", {"t": "dict",
                                                              "v": []}))
        keys = [*range(len(args)), *kwargs]
        values = [*args, *kwargs.values()]
        before = [snapshot(v) for v in values]
        value = self.operate(message, args, kwargs)
        changed = [(k, v) for k, v, old in zip(keys, values, before)
                   if old is not None and snapshot(v) != old]
        return value, changed

    def operate(self, message, args, kwargs):
        """Do what the tests ask for."""
        op = message["op"]
        if op == "name":
            if message["name"] not in self.namespace:
                raise NameError(f"name {message['name']!r} is not defined")
            return self.namespace[message["name"]]
        if op == "grad":
            outs = [self.objects[k] for k in message["outs"]]
            ins = [self.leaves[i] for i in message["ins"]]
            return list(sys.modules["torch"].autograd.grad(
                outs, ins, args, retain_graph=True, allow_unused=True))
        target = self.objects[message["handle"]]
        if op == "call":
            return target(*args, **kwargs)
        if op == "getattr":
            return getattr(target, message["name"])
        if op == "setattr":
            return setattr(target, message["name"], *args)
        return {"getitem": lambda: target[args[0]],
                "setitem": lambda: target.__setitem__(*args),
                "len": lambda: len(target),
                "iter": lambda: iter(target),
                "next": lambda: next(target),
                "contains": lambda: args[0] in target,
                "operator": lambda: getattr(operator, message["name"])(
                    *(args[::-1] if message["swap"] else args)),
                "isinstance": lambda: isinstance(args[0], target),
                }[op]()

    @staticmethod
    def seed(seeds, body):
        """Set the global random generators as the tests have set theirs."""
        if not seeds:
            return
        state = wire.Unpacker(body).unpack(seeds)
        np.random.set_state(state["numpy"])
        random.setstate(state["random"])
        if "torch" in state and wire.torch():
            wire.torch().random.set_rng_state(state["torch"])


def load(control, message, namespace):
    """Run the student's cells, saying before and after each where we are."""
    for i, source in enumerate(message["before"]):
        run_cell(source, f"<given {i}>", namespace)
    for i, source in message["cells"]:
        wire.send(control, {"at": i})
        error = run_cell(source, f"<cell {i}>", namespace)
        wire.send(control, {"done": i, "error": error})
    wire.send(control, {"loaded": True})


def main():
    """Load once, then fork for each test."""
    control = socket.socket(fileno=int(sys.argv[1]))
    limit(json.loads(sys.argv[2]))
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    sys.argv = [""]
    namespace = module.__dict__
    namespace["get_ipython"] = Anything()
    namespace["display"] = Anything()
    _, body = wire.receive(control)
    load(control, json.loads(body), namespace)
    last = None
    while True:
        data, fds, _, _ = socket.recv_fds(control, 4, 1)
        if last is not None:
            try:
                os.kill(last, signal.SIGKILL)
                os.waitpid(last, 0)
            except OSError:
                pass
        if not data or not fds:
            return
        last = os.fork()
        if last == 0:
            control.close()
            limit({"CPU": int(data)})
            Server(socket.socket(fileno=fds[0]), namespace).serve()
            os._exit(0)
        os.close(fds[0])


main()
