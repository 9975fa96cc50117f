"""Plain data across the wall between the tests and a student's code.

A value becomes JSON and a string of bytes for the arrays: never code, never
pickle. What is not plain data does not cross: each side keeps its objects and
the other gets a number for them.
"""

import collections
import json
import math
import struct
import sys
import time

import numpy as np

HEADER, BODY = 8 << 20, 64 << 20      # the most bytes in a message
DEPTH = 50                            # how deep lists may lie in lists
SIZES = struct.Struct("<II")
TYPES = {t.__name__: t for t in (
    bool, int, float, complex, str, bytes, list, tuple, dict, set, object)}
GENERATORS = ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")
KINDS = "biufcSUMm"                   # numpy's kinds of plain data


class WireError(Exception):
    """A value that can't cross, or a message that makes no sense."""


class ClosedError(Exception):
    """The other side is gone."""


class LateError(Exception):
    """The other side did not answer in time."""


def torch():
    """PyTorch, if something here has imported it."""
    return sys.modules.get("torch")


class Packer:
    """Turns values into a tree for JSON and bytes for the arrays.

    `refer` gives the tree of an object that stays on this side; without it
    such an object raises WireError.
    """

    def __init__(self, refer=None):
        self.refer = refer
        self.parts, self.size = [], 0

    def keep(self, data):
        """Append bytes; return where they lie."""
        if self.size + len(data) > BODY:
            raise WireError(f"more than {BODY >> 20} MiB of data")
        self.parts.append(data)
        self.size += len(data)
        return [self.size - len(data), len(data)]

    def array(self, x):
        """An array, or a NumPy scalar, as its type, shape and bytes."""
        if x.nbytes > BODY:
            raise WireError(f"more than {BODY >> 20} MiB of data")
        return {"d": x.dtype.str, "s": list(x.shape),
                "b": self.keep(np.ascontiguousarray(x).tobytes())}

    def tensor(self, x):
        """A PyTorch tensor; its bits, since NumPy lacks some types."""
        t = torch()
        bits = x.detach().cpu().contiguous().reshape(-1)
        name = str(x.dtype).removeprefix("torch.")
        if bits.numel() * bits.element_size() > BODY:
            raise WireError(f"more than {BODY >> 20} MiB of data")
        return {"t": "tensor", "d": name, "s": list(x.shape),
                "g": bool(x.requires_grad),
                "b": self.keep(bits.view(t.uint8).numpy().tobytes()
                               if bits.numel() else b"")}

    def pack(self, x, depth=0):
        """The tree of a value."""
        if depth > DEPTH:
            raise WireError(f"nested more than {DEPTH} deep")
        known = self.refer and self.refer(x, False)
        if known:
            return known
        if x is None or type(x) in (bool, str):
            return x
        if isinstance(x, np.generic):
            if x.dtype.kind in KINDS:
                return {"t": "scalar", **self.array(np.asarray(x))}
        elif isinstance(x, np.ndarray):
            if x.dtype.kind in KINDS:
                return {"t": "array", **self.array(np.asarray(x))}
        elif isinstance(x, float):
            return float(x)
        elif isinstance(x, int):
            x = int(x)
            small = -(2 ** 63) <= x < 2 ** 63
            return x if small else {"t": "int", "v": hex(x)}
        elif isinstance(x, str):
            return str(x)
        elif isinstance(x, complex):
            return {"t": "complex", "v": [x.real, x.imag]}
        elif isinstance(x, (bytes, bytearray)):
            return {"t": "bytes", "b": self.keep(bytes(x))}
        elif isinstance(x, (list, tuple, set, frozenset, dict,
                            collections.deque)):
            return self.container(x, depth)
        else:
            special = self.special(x)
            if special:
                return special
        if self.refer:
            return self.refer(x, True)
        raise WireError(f"{type(x).__name__} is not plain data")

    def container(self, x, depth):
        """The tree of a list, tuple, set or dict."""
        if isinstance(x, dict):
            return {"t": "dict", "v": [
                [self.pack(k, depth + 1), self.pack(v, depth + 1)]
                for k, v in x.items()]}
        items = [self.pack(v, depth + 1) for v in x]
        if isinstance(x, (list, collections.deque)):
            return items
        fields = getattr(type(x), "_fields", None)
        if isinstance(x, tuple) and fields:
            return {"t": "named", "n": type(x).__name__,
                    "f": list(fields), "v": items}
        kind = next(k.__name__ for k in (tuple, set, frozenset)
                    if isinstance(x, k))
        return {"t": kind, "v": items}

    def special(self, x):
        """The tree of the other values that are plain enough, or None."""
        t = torch()
        if t and isinstance(x, t.Tensor):
            return self.tensor(x)
        if t and isinstance(x, t.dtype):
            return {"t": "torchtype", "v": str(x).removeprefix("torch.")}
        if isinstance(x, np.dtype) and x.kind in KINDS:
            return {"t": "dtype", "v": x.str}
        if isinstance(x, type) and TYPES.get(x.__name__) is x:
            return {"t": "type", "v": x.__name__}
        if isinstance(x, type) and issubclass(x, np.generic) and \
                getattr(np, x.__name__, None) is x:
            return {"t": "nptype", "v": x.__name__}
        if isinstance(x, slice):
            return {"t": "slice", "v": [
                self.pack(v) for v in (x.start, x.stop, x.step)]}
        if isinstance(x, range):
            return {"t": "range", "v": [x.start, x.stop, x.step]}
        if x is Ellipsis:
            return {"t": "ellipsis"}
        if isinstance(x, np.random.Generator):
            return {"t": "rng", "v": self.pack(x.bit_generator.state)}
        if isinstance(x, np.random.RandomState):
            return {"t": "oldrng", "v": self.pack(
                x.get_state(legacy=False))}
        return None


class Unpacker:
    """Turns trees back into values, trusting nothing.

    `resolve` gives the value of an object that stays on the other side.
    """

    def __init__(self, data, resolve=None):
        self.data, self.resolve = data, resolve

    def bytes(self, where):
        """The bytes that lie at [start, length]."""
        start, size = where
        if not (type(start) is int and type(size) is int
                and 0 <= start and 0 <= size
                and start + size <= len(self.data)):
            raise WireError("bytes outside of the message")
        return self.data[start:start + size]

    def shape(self, tree, itemsize, size):
        """A shape that fits its number of bytes."""
        shape = tree["s"]
        if not all(type(n) is int and 0 <= n < 2 ** 40 for n in shape) or \
                len(shape) > 32 or math.prod(shape) * itemsize != size:
            raise WireError("an array whose shape does not fit its bytes")
        return tuple(shape)

    def array(self, tree):
        """A new array of its own."""
        kind = np.dtype(str(tree["d"])[:20])
        if kind.kind not in KINDS:
            raise WireError(f"arrays of {kind} do not cross")
        raw = self.bytes(tree["b"])
        shape = self.shape(tree, kind.itemsize, len(raw))
        if kind.itemsize == 0:
            return np.zeros(shape, kind)
        return np.frombuffer(raw, kind).reshape(shape).copy()

    def tensor(self, tree):
        """A new tensor of its own."""
        t = torch()
        kind = t and getattr(t, str(tree["d"]), None)
        if not t or not isinstance(kind, t.dtype):
            raise WireError("a tensor where there is no PyTorch")
        raw = bytearray(self.bytes(tree["b"]))
        size = t.empty((), dtype=kind).element_size()
        shape = self.shape(tree, size, len(raw))
        x = (t.frombuffer(raw, dtype=t.uint8).view(kind) if raw
             else t.empty(0, dtype=kind)).reshape(shape)
        return x.requires_grad_() if tree["g"] is True else x

    def unpack(self, tree, depth=0):
        """The value of a tree. Raises WireError for any nonsense."""
        try:
            return self.build(tree, depth)
        except (WireError, ClosedError, LateError):
            raise
        except Exception as error:
            raise WireError(f"a message that makes no sense: "
                            f"{type(error).__name__}") from None

    def build(self, tree, depth):
        """The value of a tree."""
        if depth > DEPTH + 5:
            raise WireError(f"nested more than {DEPTH} deep")
        if isinstance(tree, list):
            return [self.build(v, depth + 1) for v in tree]
        if not isinstance(tree, dict):
            return tree
        kind = tree["t"]
        if kind == "array":
            return self.array(tree)
        if kind == "scalar":
            return self.array({**tree, "s": []})[()]
        if kind == "tensor":
            return self.tensor(tree)
        if kind == "dict":
            return {self.build(k, depth + 1): self.build(v, depth + 1)
                    for k, v in tree["v"]}
        if kind in ("tuple", "set", "frozenset"):
            return {"tuple": tuple, "set": set, "frozenset": frozenset}[kind](
                self.build(v, depth + 1) for v in tree["v"])
        if kind == "named":
            if any(hasattr(np.ndarray, f) for f in tree["f"][:100]):
                raise WireError("a tuple with an array's attributes")
            made = collections.namedtuple("Named", tree["f"][:100])
            return made(*(self.build(v, depth + 1) for v in tree["v"]))
        return self.small(kind, tree, depth)

    def small(self, kind, tree, depth):
        """The value of one of the rarer trees."""
        if kind == "int":
            if len(tree["v"]) > 20_000:
                raise WireError("an integer of more than 80,000 bits")
            return int(tree["v"], 16)
        if kind == "complex":
            return complex(*tree["v"])
        if kind == "bytes":
            return bytes(self.bytes(tree["b"]))
        if kind == "slice":
            return slice(*(self.build(v, depth + 1) for v in tree["v"]))
        if kind == "range":
            return range(*tree["v"])
        if kind == "ellipsis":
            return Ellipsis
        if kind == "dtype":
            return np.dtype(str(tree["v"]))
        if kind == "type":
            return TYPES[tree["v"]]
        if kind == "nptype":
            found = getattr(np, tree["v"])
            if isinstance(found, type) and issubclass(found, np.generic):
                return found
        if kind == "torchtype":
            found = getattr(torch(), tree["v"])
            if isinstance(found, torch().dtype):
                return found
        if kind in ("rng", "oldrng"):
            return self.generator(kind, self.build(tree["v"], depth + 1))
        if self.resolve:
            return self.resolve(tree)
        raise WireError(f"{kind!r} does not cross")

    @staticmethod
    def generator(kind, state):
        """A random generator in that state."""
        name = state["bit_generator"]
        if name not in GENERATORS:
            raise WireError(f"no random generator is called {name!r}")
        # NumPy reads memory at a position that it does not check.
        inner = state["state"]
        for place, most in (("pos", 624), ("buffer_pos", 4)):
            for part in (state, inner):
                if not 0 <= int(part.get(place, 0)) <= most:
                    raise WireError("a random generator in no state")
        if kind == "oldrng":
            rng = np.random.RandomState()
            rng.set_state(state)
            return rng
        bits = getattr(np.random, name)()
        bits.state = state
        return np.random.Generator(bits)


def send(sock, tree, body=b""):
    """Send a message. Raises ClosedError when nobody listens."""
    head = json.dumps(tree).encode()
    if len(head) > HEADER:
        raise WireError(f"more than {HEADER >> 20} MiB of lists")
    try:
        sock.sendall(SIZES.pack(len(head), len(body)) + head + body)
    except TimeoutError:
        raise LateError from None
    except OSError:
        raise ClosedError from None


def receive(sock, deadline=None):
    """Receive a message: (tree, body).

    Raises ClosedError, WireError, or after `deadline` (as time.monotonic
    tells it) LateError.
    """
    head, size = SIZES.unpack(exactly(sock, SIZES.size, deadline))
    if head > HEADER or size > BODY:
        raise WireError("a message that is too long")
    text = exactly(sock, head, deadline)
    body = exactly(sock, size, deadline)
    try:
        return json.loads(text), body
    except (ValueError, RecursionError):
        raise WireError("a message that is not JSON") from None


def exactly(sock, n, deadline):
    """Exactly n bytes."""
    data = bytearray()
    while len(data) < n:
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise LateError
            sock.settimeout(left)
        try:
            part = sock.recv(min(n - len(data), 1 << 20))
        except TimeoutError:
            raise LateError from None
        except OSError:
            raise ClosedError from None
        if not part:
            raise ClosedError
        data += part
    return bytes(data)
