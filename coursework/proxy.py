"""The tests' side of the wall: a student's objects as handles.

A test calls a student's function as if it were here. The call's arguments go
into the sandbox as plain data, and plain data comes back; what is not plain
data stays there and the test gets a Handle, which has no value of its own:
it can't claim to be equal to a number or to be true.
"""

import builtins
import itertools
import random

import numpy as np

from coursework import wire

MESSAGE = 300
ENDED = "the process ended (an exit, a crash, or its limit of time or memory)"


class AnswerError(Exception):
    """The student's code raised something, or gave what can't be used."""


class Gone(BaseException):
    """The student's process ended or took too long: the test is over. Not
    an Exception, so that no test takes it for an error that it expects."""


class Handle:
    """An object that stays in the sandbox."""

    __slots__ = ("_link", "_number", "_type", "_label")
    __array_ufunc__ = None

    def __init__(self, link, number, kind, label):
        for name, value in (("_link", link), ("_number", number),
                            ("_type", kind), ("_label", label)):
            object.__setattr__(self, name, value)

    def _ask(self, op, *args, **extra):
        return self._link.ask({"op": op, "handle": self._number, **extra},
                              args, label=f"{self._label}.{op}")

    def __call__(self, *args, **kwargs):
        """Call the object where it is."""
        return self._link.call(self, args, kwargs)

    def __getattr__(self, name):
        if name.startswith("__array") or name.startswith("_ipython"):
            raise AttributeError(name)
        return self._link.ask(
            {"op": "getattr", "handle": self._number, "name": name},
            label=f"{self._label}.{name}")

    def __setattr__(self, name, value):
        self._ask("setattr", value, name=name)

    def __getitem__(self, key):
        return self._ask("getitem", key)

    def __setitem__(self, key, value):
        self._ask("setitem", key, value)

    def __contains__(self, key):
        return self._ask("contains", key) is True

    def __len__(self):
        n = self._ask("len")
        if type(n) is not int or not 0 <= n < 2 ** 40:
            raise AnswerError(f"{self!r} has no length")
        return n

    def __iter__(self):
        return self._ask("iter")

    def __next__(self):
        return self._ask("next")

    def __instancecheck__(self, x):
        return self._ask("isinstance", x) is True

    def __bool__(self):
        raise AnswerError(f"{self!r} is neither true nor false")

    def __eq__(self, other):
        if other is None:
            return False
        if isinstance(other, Handle):
            return self._operate("eq", other, False) is True
        raise AnswerError(f"{self!r} was compared with a value")

    def __ne__(self, other):
        return not self == other

    __hash__ = object.__hash__

    def __array__(self, *_, **__):
        raise AnswerError(f"{self!r} is not an array")

    def __repr__(self):
        return f"<an object of type {self._type}>"

    def _operate(self, name, other, swap):
        return self._ask("operator", self, other, name=name, swap=swap)

    def __neg__(self):
        return self._ask("operator", self, name="neg", swap=False)


def _operators():
    def forward(name):
        return lambda self, other: self._operate(name, other, False)

    def backward(name):
        return lambda self, other: self._operate(name, other, True)

    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow",
                 "matmul"):
        setattr(Handle, f"__{name}__", forward(name))
        setattr(Handle, f"__r{name}__", backward(name))


_operators()


class Give(wire.Packer):
    """Packs what tests send."""

    def __init__(self, link):
        super().__init__(link.refer)
        self.link, self.tensors = link, {}

    def tensor(self, x):
        """A tensor; one with a gradient gets a number."""
        tree = super().tensor(x)
        if x.requires_grad:
            known = [i for i, y in self.tensors.items() if y is x]
            tree["i"] = known[0] if known else next(self.link.count)
            self.tensors[tree["i"]] = x
        return tree


class Take(wire.Unpacker):
    """Unpacks what the sandbox sends."""

    def __init__(self, data, link, label):
        super().__init__(data, link.resolve)
        self.label, self.tensors = label, []

    def tensor(self, tree):
        """A tensor; those with a gradient are remembered by number."""
        x = super().tensor(tree)
        if type(tree.get("k")) is int:
            self.tensors.append((tree["k"], x))
        return x


class Link:
    """One test's line into the sandbox.

    allowed: labels of the arguments that may be changed, or None for all.
    known: what the reference answer's objects were asked for in this test,
    or None. Nothing else is asked of a student's object, so that one that
    stands where an array should cannot say that it has the right shape.
    changed, asked: what the student's code has changed, what was asked for.
    """

    def __init__(self, sock, deadline, allowed=None, known=None):
        self.sock, self.deadline = sock, deadline
        self.allowed, self.known = allowed, known
        self.changed, self.asked, self.callbacks = set(), set(), []
        self.count, self.sent, self.failed = itertools.count(), None, None

    def refer(self, x, last):
        """The tree of a handle, or of a function that a test passes."""
        if isinstance(x, Handle):
            if x._link is not self:
                raise wire.WireError("an object of another test")
            return {"t": "handle", "v": x._number}
        if not last:
            return None
        if callable(x) and not isinstance(x, type):
            self.callbacks.append(x)
            return {"t": "callback", "v": len(self.callbacks) - 1}
        raise wire.WireError(
            f"a {type(x).__name__} can't go to a student's function: only "
            "plain data, arrays, functions, and what an answer has returned")

    def resolve(self, tree):
        """The handle, or the test's function, that a tree names."""
        if tree["t"] == "callback":
            return self.callbacks[tree["v"]]
        if tree["t"] != "handle" or type(tree["v"]) is not int:
            raise wire.WireError("an unknown object")
        return Handle(self, tree["v"], str(tree["n"])[:80], self.label)

    def name(self, name):
        """A name of the student's; None and False where it is missing."""
        try:
            return self.ask({"op": "name", "name": name}, label=name), True
        except NameError:
            return None, False

    def call(self, handle, args, kwargs):
        """Call a handle; gradients flow through if tensors ask for them."""
        torch = wire.torch()
        message = {"op": "call", "handle": handle._number}
        label = f"{handle._label}()"
        if torch and torch.is_grad_enabled() and tensors(
                [args, list(kwargs.values())]):
            from coursework.gradients import call
            return call(self, message, args, kwargs, label)
        return self.ask(message, args, kwargs, label)

    def ask(self, message, args=(), kwargs=None, label=""):
        """Send a question; return the answer's value."""
        if message["op"] in ("getattr", "setattr", "operator", "contains"):
            what = f"{message['op']} {message.get('name', '')}".strip()
            if self.known is not None and what not in self.known:
                raise AnswerError("an object of the answer's own stands "
                                  "where plain data is expected")
            self.asked.add(what)
        return self.exchange(message, args, kwargs or {}, label)[0]

    def exchange(self, message, args, kwargs, label):
        """Send a question: (value, tensors sent, tensors that came)."""
        give = Give(self)
        try:
            message["args"] = [give.pack(a) for a in args]
            message["kwargs"] = give.pack(kwargs)
            seeds = self.seeds()
            message["seeds"] = seeds and give.pack(seeds)
        except wire.WireError as error:
            raise AnswerError(str(error)) from None
        try:
            wire.send(self.sock, message, b"".join(give.parts))
            answer, body = wire.receive(self.sock, self.deadline)
            while "callback" in answer:
                self.callback(answer, body)
                answer, body = wire.receive(self.sock, self.deadline)
            error, value, changes = answer.get("error"), None, []
            if error:
                error = failure(error)
            elif "stop" in answer and message["op"] == "next":
                error = StopIteration()
            else:
                self.label = label
                take = Take(body, self, label)
                value = take.unpack(answer["ok"])
                changes = [(key, take.unpack(tree))
                           for key, tree in answer["changed"]]
        except wire.ClosedError:
            raise Gone(ENDED) from None
        except wire.LateError:
            raise Gone("no answer in time") from None
        except (wire.WireError, AttributeError, LookupError, TypeError,
                ValueError) as why:
            raise Gone(f"an answer that makes no sense ({why})") from None
        if self.failed:  # whatever the student's code made of it
            raise self.failed
        if error:
            raise error
        for key, new in changes:
            self.apply(args, kwargs, key, new, f"{label}[{key}]")
        return value, give.tensors, take.tensors

    def apply(self, args, kwargs, key, new, label):
        """Let an argument's change show, if it may."""
        self.changed.add(label)
        if self.allowed is not None and label not in self.allowed:
            return
        if isinstance(key, int) and 0 <= key < len(args):
            change(args[key], new)
        elif isinstance(key, str) and key in kwargs:
            change(kwargs[key], new)

    def callback(self, question, body):
        """Call a test's own function for the student's code."""
        give = Give(self)
        try:
            take = Take(body, self, "callback")
            args, kwargs = take.unpack(question["ok"])
            found = self.callbacks[question["callback"]]
            answer = {"ok": give.pack(found(*args, **kwargs))}
        except Exception as error:
            if isinstance(error, AssertionError):
                self.failed = error
            answer = {"error": f"{type(error).__name__}"}
            give = Give(self)
        wire.send(self.sock, answer, b"".join(give.parts))

    def seeds(self):
        """The state of the global generators, if a test has set them."""
        torch = wire.torch()
        state = {"numpy": np.random.get_state(),
                 "random": random.getstate()}
        mark = [state["numpy"][1].tobytes(), state["numpy"][2:],
                state["random"]]
        if torch:
            state["torch"] = torch.random.get_rng_state()
            mark.append(state["torch"].numpy().tobytes())
        if mark == self.sent:
            return None
        self.sent = mark
        return state


def tensors(values):
    """Whether a tensor that asks for its gradient is in there."""
    torch = wire.torch()
    if isinstance(values, torch.Tensor):
        return values.requires_grad
    if isinstance(values, dict):
        values = list(values.values())
    return isinstance(values, (list, tuple)) and any(map(tensors, values))


def failure(error):
    """The nearest built-in exception to what the student's code raised."""
    text = str(error.get("message"))[:MESSAGE]
    for name in error.get("mro", [])[:30]:
        module, _, kind = str(name).rpartition(".")
        found = getattr(builtins, kind, None) if module == "builtins" else {
            "numpy.linalg.LinAlgError": np.linalg.LinAlgError,
            "numpy.exceptions.AxisError": np.exceptions.AxisError,
        }.get(str(name))
        if found in (Exception, StopIteration) or not (
                isinstance(found, type) and issubclass(found, Exception)):
            continue
        try:
            made = found(text)
            break
        except TypeError:
            continue
    else:
        made = AnswerError(str(error.get("text"))[:MESSAGE])
    made.student = True
    return made


def change(old, new):
    """Make an object equal to its changed copy, in place where possible."""
    torch = wire.torch()
    if isinstance(old, np.ndarray) and isinstance(new, np.ndarray):
        if old.shape == new.shape and old.flags.writeable:
            old[...] = new
    elif torch and isinstance(old, torch.Tensor):
        if isinstance(new, torch.Tensor) and old.shape == new.shape:
            with torch.no_grad():
                old.copy_(new)
    elif isinstance(old, list) and isinstance(new, list):
        old[:] = [merged(a, b) for a, b in zip(old, new)] + new[len(old):]
    elif isinstance(old, dict) and isinstance(new, dict):
        for key in [k for k in old if k not in new]:
            del old[key]
        for key, value in new.items():
            old[key] = merged(old[key], value) if key in old else value
    elif isinstance(old, set) and isinstance(new, set):
        old.clear()
        old.update(new)
    elif isinstance(old, np.random.Generator):
        if isinstance(new, np.random.Generator):
            old.bit_generator.state = new.bit_generator.state
    elif isinstance(old, np.random.RandomState):
        if isinstance(new, np.random.RandomState):
            old.set_state(new.get_state())
    elif isinstance(old, tuple) and isinstance(new, tuple):
        for a, b in zip(old, new):
            change(a, b)


def merged(old, new):
    """The old object with its changes, or the new one if it is another."""
    same = type(old) is type(new)
    if same and isinstance(old, np.ndarray):
        same = old.shape == new.shape and old.dtype == new.dtype
    if same and isinstance(old, (np.ndarray, list, dict, set)):
        change(old, new)
        return old
    return new
