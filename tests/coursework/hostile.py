"""An assignment, and what hostile or unlucky students hand in for it.

`master()` is an nbgrader master, "Running a layer"; `student()` is what
students get; `correct(kind)` answers it in one of four ways. `CASES` are
hostile or broken submissions. What an honest marker gives for each was written
down by hand, from reading the answers: no grader had a say in it.

Never run a case outside of a sandbox. Each is bounded: memory to 3 GiB,
processes to 300, and nothing that kills others runs where it can see more than
40 processes.
"""

import io
import json
import os
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nbformat

NAME = "running-layer"                    # the assignment
FILE = f"{NAME}.ipynb"
KINDS = ("plain", "loops", "staged", "noisy")
MAX = {"q1": 4.0, "q2": 5.0, "q3": 3.0, "q4": 3.0}
# Of this run alone, so that two runs on one machine do not meet.
RUN = os.getpid()
MARK = f"hc-canary-{RUN}-"                # in the name of all that escapes
COMM = f"hc-{RUN}"                        # what processes call themselves
SLEEP = f"98765.{RUN:010d}"               # for how long programs sleep
PORT = 20_000 + RUN % 12_000              # where the tests listen
SECRET = "the marten crossed"             # stands in the master only
ENV = "COURSEWORK_CANARY"                 # a secret in the environment
SCRIPT = "<script>alert('hc')</script>"   # must not reach a page unescaped

# --- the assignment ----------------------------------------------------------

GIVEN = '''\
import numpy as np


def batch(n, c, seed, shift=0.0):
    """Return n samples of c features, around `shift`."""
    return np.random.default_rng(seed).normal(shift, 2.0, (n, c))'''

STUBBED = {
    "q1-forward": ('''\
def forward(x, gamma, beta, eps=1e-5):
    """Normalise x (N, C) with its batch's statistics.

    Return y (N, C), and a cache of any kind that `backward` understands.
    """
''', '''\
    # SECRET by night, and no student reads this.
    class Kept:
        def __init__(self, xhat, std, gamma):
            self.xhat, self.std, self.gamma = xhat, std, gamma

    mean = x.mean(axis=0)
    std = np.sqrt(((x - mean) ** 2).mean(axis=0) + eps)
    xhat = (x - mean) / std
    return gamma * xhat + beta, Kept(xhat, std, gamma)
'''.replace("SECRET", SECRET)),
    "q2-update": ('''\
def update(state, x, momentum=0.1):
    """Move state["mean"] and state["var"] (C,) towards the batch x (N, C).

    Changes the dict in place and adds 1 to state["steps"]. The variance is
    the unbiased one; momentum is the weight of the new batch. Raises
    ValueError, and changes nothing, if momentum is not in 0..1.
    """
''', '''\
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum={momentum}; allowed: 0 to 1")
    for name, new in (("mean", x.mean(axis=0)), ("var", x.var(0, ddof=1))):
        state[name] = (1 - momentum) * state[name] + momentum * new
    state["steps"] += 1
'''),
    "q3-backward": ('''\
def backward(dy, cache):
    """Return dx (N, C), dgamma (C,) and dbeta (C,) for the gradient dy."""
''', '''\
    g = dy * cache.gamma
    dgamma = (dy * cache.xhat).sum(axis=0)
    back = g - g.mean(0) - cache.xhat * (g * cache.xhat).mean(0)
    return back / cache.std, dgamma, dy.sum(axis=0)
'''),
    "q4-layer": ('''\
class Layer:
    """Batch normalization of c features, without gamma and beta.

    momentum is a number, or a function that is called once in each training
    step with the step's number (from 1) and returns the momentum. Attributes:
    running_mean (C,) from 0, running_var (C,) from 1 (unbiased), training.
    """

''', '''\
    def __init__(self, c, momentum=0.1, eps=1e-5):
        self.running_mean, self.running_var = np.zeros(c), np.ones(c)
        self.momentum, self.eps = momentum, eps
        self.training, self.steps = True, 0

    def train(self):
        self.training = True

    def eval(self):
        self.training = False

    def __call__(self, x):
        mean, var = self.running_mean, self.running_var
        if self.training:
            self.steps += 1
            m = self.momentum
            m = m(self.steps) if callable(m) else m
            mean, var = x.mean(axis=0), x.var(axis=0)
            self.running_mean = (1 - m) * self.running_mean + m * mean
            self.running_var = (
                (1 - m) * self.running_var + m * x.var(axis=0, ddof=1))
        return (x - mean) / np.sqrt(var + self.eps)
'''),
}

# id: points, hidden, source. Expected values come from copies.
TESTS = {
    "q1-shapes": (1, False, '''\
x = batch(6, 3, seed=1, shift=4.0)
shape = x.shape
y, cache = forward(x, np.ones(3), np.zeros(3))
assert y.shape == shape, "y must have the shape of x"
assert np.max(np.abs(np.mean(y, axis=0))) < 1e-9, "the means must be 0"
assert np.max(np.abs(np.std(y, axis=0) - 1)) < 1e-3, "they must spread"'''),
    "q1-values": (1, True, '''\
x = batch(5, 2, seed=2, shift=-3.0)
before, gamma, beta = x.copy(), np.array([2.0, -1.0]), np.array([0.5, 7.0])
want = gamma * (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) + beta
y, cache = forward(x, gamma.copy(), beta.copy())
assert isinstance(y, np.ndarray), "y must be an array"
assert y.shape == want.shape, "y must have the shape of x"
assert np.allclose(y, want), "gamma, beta or the statistics are wrong"
assert np.array_equal(x, before), "x must stay as it was"'''),
    "q1-eps": (1, True, '''\
x = batch(7, 3, seed=3)


def right(eps):
    want = (x - x.mean(0)) / np.sqrt(x.var(0) + eps)
    y, cache = forward(x.copy(), np.ones(3), np.zeros(3), eps)
    return y.shape == want.shape and np.max(np.abs(y - want)) < 1e-9


assert all(map(right, (1e-5, 0.1, 10.0))), "eps stands in the wrong place"'''),
    "q1-large-mean": (1, True, '''\
x = batch(64, 3, seed=4, shift=3e4).astype(np.float32)
wide = x.astype(np.float64)
want = (wide - wide.mean(0)) / np.sqrt(wide.var(0) + 1e-5)
one, zero = np.ones(3, np.float32), np.zeros(3, np.float32)
y, cache = forward(x, one, zero)
assert y.shape == want.shape, "y must have the shape of x"
np.testing.assert_allclose(y, want, rtol=0, atol=0.02)'''),
    "q2-in-place": (1, False, '''\
x = batch(6, 3, seed=5, shift=4.0)
want = 0.1 * x.mean(0)
state = {"mean": np.zeros(3), "var": np.ones(3), "steps": 0}
update(state, x, 0.1)
assert np.shape(state["mean"]) == (3,), "the mean must have shape (C,)"
assert np.allclose(state["mean"], want), "the mean is wrong"
assert state["steps"] == 1, "one step was done\"'''),
    "q2-weights": (2, True, '''\
x = batch(4, 2, seed=6, shift=2.0)
mean = 0.7 * np.array([5.0, -5.0]) + 0.3 * x.mean(0)
var = 0.7 * np.array([2.0, 9.0]) + 0.3 * x.var(0, ddof=1)
state = {"mean": np.array([5.0, -5.0]), "var": np.array([2.0, 9.0]),
         "steps": 7}
update(state, x, 0.3)
for name, want in (("mean", mean), ("var", var)):
    assert np.shape(state[name]) == (2,), f"{name} must have shape (C,)"
    np.testing.assert_allclose(state[name], want, rtol=1e-9)
assert state["steps"] == 8, "a step must be counted"'''),
    "q2-steps": (1, True, '''\
state = {"mean": np.zeros(3), "var": np.ones(3), "steps": 0}
own = {"mean": np.zeros(3), "var": np.ones(3)}


def follows(seed):
    x = batch(5, 3, seed=seed, shift=seed)
    own["mean"] = 0.5 * own["mean"] + 0.5 * x.mean(0)
    own["var"] = 0.5 * own["var"] + 0.5 * x.var(0, ddof=1)
    update(state, x, 0.5)
    return all(np.shape(state[k]) == (3,) and np.allclose(state[k], own[k])
               for k in own)


assert all(map(follows, (7, 8, 9))), "the statistics lose their way\"'''),
    "q2-errors": (1, True, '''\
x = batch(4, 2, seed=10)
state = {"mean": np.zeros(2), "var": np.ones(2), "steps": 0}
want = x.mean(0).copy()
update(state, x, 1)
assert np.allclose(state["mean"], want), "a momentum of 1 is allowed"
for wrong in (-0.1, 1.5):
    try:
        update(state, x, wrong)
    except ValueError:
        pass
    else:
        raise AssertionError(f"momentum={wrong} must be refused")
assert np.allclose(state["mean"], want), "a refused step changes nothing"
assert state["steps"] == 1, "a refused step does not count"'''),
    "q3-shapes": (1, False, '''\
x, dy = batch(6, 3, seed=11), batch(6, 3, seed=12)
y, cache = forward(x, np.full(3, 2.0), np.ones(3))
dx, dgamma, dbeta = backward(dy, cache)
assert dx.shape == (6, 3), "dx must have the shape of x"
assert dgamma.shape == (3,), "dgamma must have shape (C,)"
assert dbeta.shape == (3,), "dbeta must have shape (C,)"
assert np.max(np.abs(np.sum(dx, axis=0))) < 1e-9, "dx must sum to 0"
assert np.max(np.abs(dx)) > 1e-3, "dx must not vanish"'''),
    "q3-dx": (1, True, '''\
x, dy = batch(5, 2, seed=13, shift=3.0), batch(5, 2, seed=14)
gamma = np.array([1.5, -0.5])
std = np.sqrt(x.var(0) + 0.01)
xhat, g = (x - x.mean(0)) / std, dy * gamma
want = (g - g.mean(0) - xhat * (g * xhat).mean(0)) / std
y, cache = forward(x, gamma.copy(), np.ones(2), 0.01)
dx = backward(dy, cache)[0]
assert dx.shape == want.shape, "dx must have the shape of x"
assert np.allclose(dx, want), "a path from y to x is missing"'''),
    "q3-parameters": (1, True, '''\
x, dy = batch(5, 2, seed=15, shift=1.0), batch(5, 2, seed=16)
xhat = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
want = (dy * xhat).sum(0), dy.sum(0)
y, cache = forward(x, np.array([3.0, 4.0]), np.array([1.0, 2.0]))
found = backward(dy, cache)[1:]
for have, right in zip(found, want, strict=True):
    assert have.shape == (2,), "gamma and beta have shape (C,)"
    np.testing.assert_allclose(have, right, rtol=1e-6)'''),
    "q4-train": (1, False, '''\
x = batch(8, 3, seed=17, shift=4.0)
want, mean = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5), 0.1 * x.mean(0)
layer = Layer(3)
assert layer.training is True, "a layer begins in training"
y = layer(x)
assert y.shape == want.shape, "y must have the shape of x"
assert np.allclose(y, want), "in training the batch's statistics count"
assert layer.running_mean.shape == (3,), "running_mean has shape (C,)"
assert np.allclose(layer.running_mean, mean), "running_mean is wrong"'''),
    "q4-eval": (1, True, '''\
x, other = batch(8, 3, seed=18, shift=4.0), batch(8, 3, seed=19)
mean, var = 0.5 * x.mean(0), 0.5 + 0.5 * x.var(0, ddof=1)
want = (other - mean) / np.sqrt(var + 1e-3)
layer = Layer(3, momentum=0.5, eps=1e-3)
layer(x)
layer.eval()
assert layer.training is False, "eval() ends training"
y = layer(other)
assert y.shape == want.shape, "y must have the shape of x"
assert np.allclose(y, want), "in evaluation the running statistics count"
assert np.allclose(layer.running_var, var), "evaluation changes nothing"
layer.train()
assert layer.training is True, "train() goes back to training"'''),
    "q4-schedule": (1, True, '''\
seen = []


def average(step):
    seen.append(step)
    return 1 / step


xs = [batch(4, 2, seed=20 + k, shift=k) for k in range(3)]
want = np.mean([x.mean(0) for x in xs], axis=0)
layer = Layer(2, momentum=average)
for x in xs:
    layer(x)
assert seen == [1, 2, 3], "the schedule is asked once in each step"
assert layer.running_mean.shape == (2,), "running_mean has shape (C,)"
assert np.allclose(layer.running_mean, want), "this is a plain average"'''),
}
TEXTS = {
    "title": "# Running a layer\n\nForward, running statistics, backward, "
             "and the layer that holds them together.",
    "q5-why": "### BEGIN SOLUTION\nThe batch of one has no spread.\n"
              "### END SOLUTION",
}
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
HIDE, SHOW = "### BEGIN HIDDEN TESTS", "### END HIDDEN TESTS"


def indent(text, source):
    """The text, as far in as the source's lines are."""
    return " " * (len(source) - len(source.lstrip())) + text


def tagged(source, grade_id, kind="code", **info):
    """A cell with nbgrader's metadata."""
    meta = {"schema_version": 3, "grade": False, "solution": False,
            "locked": False, "task": False, "grade_id": grade_id,
            "cell_type": kind, **info}
    return cell(source, kind, nbgrader=meta, id=grade_id)


def cell(source, kind="code", id="added", **metadata):
    """A cell of a notebook."""
    made = {"cell_type": kind, "id": id, "metadata": metadata,
            "source": source}
    if kind == "code":
        made |= {"outputs": [], "execution_count": None}
    return made


def notebook(cells):
    """A notebook as a plain dict."""
    kernel = {"name": "python3", "language": "python",
              "display_name": "Python 3"}
    cells = [{**c, "id": f"{c['id'][:50]}-{i}"} if "id" in c else c
             for i, c in enumerate(cells)]
    return {"nbformat": 4, "nbformat_minor": 5, "cells": cells,
            "metadata": {"kernelspec": kernel,
                         "language_info": {"name": "python"}}}


def assemble(answer, test, text):
    """The assignment's cells, with these makers of its three kinds."""
    cells = [cell(TEXTS["title"], "markdown", id="title"),
             tagged(GIVEN, "given", locked=True)]
    for key in STUBBED:
        cells.append(tagged(answer(key), key, solution=True))
        cells += [tagged(test(name), name, grade=True, locked=True,
                         points=TESTS[name][0])
                  for name in TESTS if name.startswith(key[:3])]
    cells.append(tagged(text, "q5-why", "markdown", grade=True, solution=True,
                        points=5))
    return cells


def master():
    """The teacher's notebook: answers, hidden tests, points."""
    def answer(key):
        head, body = STUBBED[key]
        return (head + indent(BEGIN, body) + "\n" + body
                + indent(END, body))

    def test(name):
        _, hidden, source = TESTS[name]
        return f"{HIDE}\n{source}\n{SHOW}" if hidden else source

    return nbformat.from_dict(
        notebook(assemble(answer, test, TEXTS["q5-why"])))


def broken_master():
    """The master with a wrong reference answer: nothing may be graded."""
    nb = master()
    for c in nb.cells:
        if c.metadata.get("nbgrader", {}).get("grade_id") == "q2-update":
            c.source = c.source.replace("var(0, ddof=1)", "var(0)")
    return nb


def stub(key):
    """An answer cell as students get it."""
    head, body = STUBBED[key]
    return "\n".join([head.rstrip("\n"), indent("# YOUR CODE HERE", body),
                      indent("raise NotImplementedError()", body)])


def public(name):
    """A test cell as students get it: empty if it is hidden."""
    return "" if TESTS[name][1] else TESTS[name][2]


def student():
    """What students get: no answers, no hidden tests."""
    return nbformat.from_dict(
        notebook(assemble(stub, public, "YOUR ANSWER HERE")))


# --- four correct ways -------------------------------------------------------

PLAIN = {
    "q1-forward": '''\
def forward(x, gamma, beta, eps=1e-5):
    mean = x.mean(axis=0)
    std = np.sqrt(((x - mean) ** 2).mean(axis=0) + eps)
    xhat = (x - mean) / std
    return gamma * xhat + beta, {"xhat": xhat, "std": std, "gamma": gamma}''',
    "q2-update": '''\
def update(state, x, momentum=0.1):
    if not 0 <= momentum <= 1:
        raise ValueError("momentum must lie between 0 and 1")
    m = momentum
    state["mean"] = (1 - m) * state["mean"] + m * x.mean(axis=0)
    state["var"] = (1 - m) * state["var"] + m * x.var(axis=0, ddof=1)
    state["steps"] += 1''',
    "q3-backward": '''\
def backward(dy, cache):
    xhat, g = cache["xhat"], dy * cache["gamma"]
    dx = (g - g.mean(axis=0) - xhat * (g * xhat).mean(axis=0)) / cache["std"]
    return dx, (dy * xhat).sum(axis=0), dy.sum(axis=0)''',
    "q4-layer": STUBBED["q4-layer"][0] + STUBBED["q4-layer"][1],
}
LOOPS = {
    "q1-forward": '''\
class Memory:
    __slots__ = ("columns", "gamma")

    def __init__(self, gamma):
        self.columns, self.gamma = [], gamma


def column(values, eps):
    n = len(values)
    mean = sum(values) / n
    spread = (sum((v - mean) ** 2 for v in values) / n + eps) ** 0.5
    return [(v - mean) / spread for v in values], spread


def forward(x, gamma, beta, eps=1e-5):
    memory, out = Memory(gamma), np.empty(x.shape)
    for j in range(x.shape[1]):
        xhat, spread = column([float(v) for v in x[:, j]], eps)
        memory.columns.append((xhat, spread))
        for i, v in enumerate(xhat):
            out[i, j] = gamma[j] * v + beta[j]
    return out, memory''',
    "q2-update": '''\
def update(state, x, momentum=0.1):
    if momentum < 0 or momentum > 1:
        raise ValueError(momentum)
    n, c = x.shape
    for j in range(c):
        mean = sum(x[i, j] for i in range(n)) / n
        var = sum((x[i, j] - mean) ** 2 for i in range(n)) / (n - 1)
        state["mean"][j] += momentum * (mean - state["mean"][j])
        state["var"][j] += momentum * (var - state["var"][j])
    state["steps"] = state["steps"] + 1''',
    "q3-backward": '''\
def backward(dy, cache):
    n, c = dy.shape
    dx, dgamma, dbeta = np.zeros((n, c)), np.zeros(c), np.zeros(c)
    for j, (xhat, spread) in enumerate(cache.columns):
        for i in range(n):
            dgamma[j] += dy[i, j] * xhat[i]
            dbeta[j] += dy[i, j]
        for i in range(n):
            dx[i, j] = cache.gamma[j] / spread * (
                dy[i, j] - dbeta[j] / n - xhat[i] * dgamma[j] / n)
    return [dx, dgamma, dbeta]''',
    "q4-layer": '''\
class Layer:
    def __init__(self, c, momentum=0.1, eps=1e-5):
        self.state = {"mean": np.zeros(c), "var": np.ones(c), "steps": 0}
        self.momentum, self.eps, self.training = momentum, eps, True

    @property
    def running_mean(self):
        return self.state["mean"]

    @property
    def running_var(self):
        return self.state["var"]

    def train(self):
        self.training = True
        return self

    def eval(self):
        self.training = False
        return self

    def __call__(self, x):
        if not self.training:
            std = np.sqrt(self.running_var + self.eps)
            return (x - self.running_mean) / std
        momentum = self.momentum
        if not isinstance(momentum, (int, float)):
            momentum = momentum(self.state["steps"] + 1)
        update(self.state, x, momentum)
        c = x.shape[1]
        return forward(x, [1.0] * c, [0.0] * c, self.eps)[0]''',
}
STAGED = {
    "q1-forward": '''\
def forward(x, gamma, beta, eps=1e-5):
    n = x.shape[0]
    mu = np.ones(n, x.dtype) @ x / n
    xmu = x - mu
    sqrtvar = np.sqrt(np.einsum("nc,nc->c", xmu, xmu) / n + eps)
    ivar = 1.0 / sqrtvar
    xhat = xmu * ivar

    def chain(dy):
        dxhat = np.einsum("nc,c->nc", dy, gamma)
        divar = (dxhat * xmu).sum(0)
        dxmu = dxhat * ivar
        dvar = 0.5 / sqrtvar * (-1.0 / sqrtvar ** 2) * divar
        dxmu = dxmu + 2 * xmu * np.ones_like(xmu) * dvar / n
        return dxmu - dxmu.mean(axis=0), (dy * xhat).sum(0), dy.sum(0)

    return np.multiply(xhat, gamma) + beta, chain''',
    "q2-update": '''\
def update(state, x, momentum=0.1):
    valid = momentum == min(max(momentum, 0), 1)
    if not valid:
        raise ValueError(f"{momentum} is not allowed")
    n = len(x)
    new = dict(mean=np.average(x, axis=0), var=np.var(x, 0) * n / (n - 1))
    state.update({k: state[k] + momentum * (new[k] - state[k])
                  for k in new}, steps=state["steps"] + 1)
    return state''',
    "q3-backward": "backward = lambda dy, cache: cache(dy)",
    "q4-layer": '''\
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Layer:
    c: int
    momentum: Any = 0.1
    eps: float = 1e-5
    training: bool = True
    history: list = field(default_factory=list)

    def __post_init__(self):
        self.running_mean = np.zeros(self.c)
        self.running_var = np.ones(self.c)

    def train(self, mode=True):
        self.training = mode

    def eval(self):
        self.train(False)

    def __call__(self, x):
        if self.training:
            self.history.append(x.shape)
            m = (self.momentum(len(self.history))
                 if callable(self.momentum) else self.momentum)
            mean, var = x.mean(0), x.var(0)
            n = len(x)
            self.running_mean += m * (mean - self.running_mean)
            self.running_var += m * (n / (n - 1) * var - self.running_var)
        else:
            mean, var = self.running_mean, self.running_var
        return (x - mean) * (var + self.eps) ** -0.5''',
}
NOISY = {
    "q1-forward": '''\
import sys
import warnings

print("defining forward", file=sys.stderr)


def forward(x, gamma, beta, eps=1e-5):
    warnings.warn("this is only a test", stacklevel=2)
    print("forward", x.shape, np.asarray(x).dtype)
    work = np.array(x, dtype=np.float64)
    work -= work.mean(0)
    std = np.sqrt(np.square(work).mean(0) + eps)
    work /= std
    np.zeros(3) / np.zeros(3)
    return (work * gamma + beta).astype(x.dtype), (work, std, gamma)''',
    "q2-update": '''\
def update(state, x, momentum=0.1):
    print("before", state, file=sys.stderr)
    if not (0 <= momentum <= 1):
        raise ValueError("bad momentum")
    state["mean"] *= 1 - momentum
    state["mean"] += momentum * np.mean(x, 0)
    state["var"] *= 1 - momentum
    state["var"] += momentum * np.cov(x.T).diagonal()
    state["steps"] += 1
    print("after", state)''',
    "q3-backward": '''\
def backward(dy, cache):
    xhat, std, gamma = cache
    n = len(dy)
    dgamma = np.sum(dy * xhat, axis=0)
    dbeta = np.sum(dy, axis=0)
    print(dgamma, dbeta)
    dx = gamma / (n * std) * (n * dy - dbeta - xhat * dgamma)
    return dx, dgamma, dbeta''',
    "q4-layer": PLAIN["q4-layer"].replace(
        "mean, var = self.running_mean, self.running_var",
        'print("layer", self.training); '
        "mean, var = self.running_mean, self.running_var"),
}
WAYS = {"plain": PLAIN, "loops": LOOPS, "staged": STAGED, "noisy": NOISY}
ORDER = {"loops": ["q3-backward", "q4-layer", "q2-update", "q1-forward"]}


def correct(kind):
    """The assignment, answered right in one of the four KINDS of ways."""
    return nbformat.from_dict(answered(WAYS[kind], order=ORDER.get(kind)))


def answered(answers=PLAIN, before=(), after=(), order=None, tests=True):
    """A student's notebook as a dict, with these answers (a stub else).

    before, after: sources of cells before the first answer and at the end;
    order: the answers' ids in the order in which they stand.
    """
    cells = assemble(lambda key: answers.get(key, stub(key)), public,
                     "Because a batch of one has no spread.")
    if not tests:
        cells = [c for c in cells if c["metadata"].get(
            "nbgrader", {}).get("grade_id") not in TESTS]
    if order:
        places = [i for i, c in enumerate(cells)
                  if c["id"] in STUBBED]
        moved = {c["id"]: c for c in cells}
        for place, key in zip(places, order):
            cells[place] = moved[key]
    cells[2:2] = [cell(s, id="before") for s in before]
    cells += [cell(s, id="after") for s in after]
    return notebook(cells)


def as_bytes(nb):
    """A notebook as a file's bytes."""
    return json.dumps(nb, indent=1).encode()


# --- what a case is ----------------------------------------------------------


@dataclass(frozen=True)
class Link:
    """In place of a file's bytes: a symbolic link."""

    target: str


@dataclass(frozen=True)
class Folder:
    """In place of a file's bytes: an empty folder."""


@dataclass(frozen=True)
class Pipe:
    """In place of a file's bytes: a FIFO, which nobody writes to."""


@dataclass(frozen=True)
class Sparse:
    """In place of a file's bytes: a file of that size without content."""

    size: int


@dataclass(frozen=True)
class Later:
    """In place of a file's bytes: a function that makes them when needed."""

    make: Callable


@dataclass(frozen=True)
class Case:
    """A submission, and what an honest marker makes of it.

    files: path in the student's folder -> bytes (or one of the above).
    honest: the automatic points that it deserves, None where refused.
    status: "graded", "refused", or "either" where a marker may do both; then
    `honest` holds if it is graded.
    at_most: anything from 0 to `honest` will do: the code harms itself.
    folder: the student's folder, where it is not the case's name.
    """

    name: str
    why: str
    files: dict
    honest: float | None
    status: str = "graded"
    question_scores: dict | None = None
    at_most: bool = False
    folder: str | bytes | None = None

    @property
    def place(self):
        """The name of the student's folder."""
        return self.name if self.folder is None else self.folder


def write(case, root):
    """Lay a case's files under the folder `root`; return the student's."""
    top = os.path.join(os.fsencode(root), os.fsencode(case.place))
    os.makedirs(top, exist_ok=True)
    for name, what in case.files.items():
        path = os.path.join(top, os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if isinstance(what, Link):
            os.symlink(what.target, path)
        elif isinstance(what, Folder):
            os.makedirs(path)
        elif isinstance(what, Pipe):
            os.mkfifo(path)
        elif isinstance(what, Sparse):
            with open(path, "wb") as file:
                file.truncate(what.size)
        else:
            data = what.make() if isinstance(what, Later) else what
            with open(path, "wb") as file:
                file.write(data)
    return Path(os.fsdecode(top))


CASES = []


def case(name, why, files, honest, scores=None, status="graded", **more):
    """Add a case. `scores` are the points of q1 to q4; files may be a
    notebook's dict or its bytes."""
    if isinstance(files, dict) and "nbformat" in files:
        files = as_bytes(files)
    if isinstance(files, (bytes, Later)):
        files = {FILE: files}
    if scores:
        scores = dict(zip(MAX, map(float, scores)))
    CASES.append(Case(name, why, files, honest, status, scores, **more))


FULL = (4, 5, 3, 3)


def without(**changed):
    """The plain answers, with some of q1 to q4 replaced (None: a stub)."""
    answers = dict(PLAIN)
    for key, source in changed.items():
        full = next(k for k in answers if k.startswith(key))
        if source is None:
            del answers[full]
        else:
            answers[full] = source
    return answers


def beside(name, why, source, honest=15, scores=FULL, **more):
    """A hostile cell before right answers."""
    case(name, why, answered(before=[source]), honest, scores, **more)


def alone(name, why, source, honest=0, scores=(0, 0, 0, 0), **more):
    """Hostile cells and no answer: nothing is earned."""
    case(name, why, answered({}, after=[source]), honest, scores, **more)


def in_forward(name, why, source, honest=8, scores=(0, 5, 0, 3), **more):
    """A hostile q1; q3 needs its cache."""
    case(name, why, answered(without(q1=source)), honest, scores, **more)


def in_update(name, why, source, honest=10, scores=(4, 0, 3, 3), **more):
    """A hostile q2."""
    case(name, why, answered(without(q2=source)), honest, scores, **more)


def in_backward(name, why, source, honest=12, scores=(4, 5, 0, 3), **more):
    """A hostile q3."""
    case(name, why, answered(without(q3=source)), honest, scores, **more)


def in_layer(name, why, source, honest=12, scores=(4, 5, 3, 0), **more):
    """A hostile q4."""
    case(name, why, answered(without(q4=source)), honest, scores, **more)


# --- while the notebook is loaded --------------------------------------------

GUARD = """\
import os
import signal
import sys
import time


def few():
    return sum(p.isdigit() for p in os.listdir("/proc")) < 40


def rename():
    try:
        open("/proc/self/comm", "w").write("COMM")
    except OSError:
        pass


""".replace("COMM", COMM)

beside("exit-at-load", "sys.exit in a cell of its own", """\
import sys
sys.exit(0)""")
beside("os-exit-at-load", "ends the process; that cell is left out", """\
import os
os._exit(0)""")
beside("loop-at-load", "a cell that never ends is left out", """\
while True:
    pass""")
beside("loop-that-catches", "a loop that catches every exception", """\
while True:
    try:
        while True:
            pass
    except BaseException:
        pass""")
case("loop-in-answer-cell", "the loop stands before the answer", answered(
    without(q1="while True:\n    pass\n\n\n" + PLAIN["q1-forward"])),
    8, (0, 5, 0, 3))
case("exit-in-answer-cell", "os._exit stands before the answer", answered(
    without(q2="import os\nos._exit(3)\n" + PLAIN["q2-update"])),
    10, (4, 0, 3, 3))
beside("input-at-load", "input() has nobody to answer",
       'name = input("Your name? ")')
beside("stdout-50-mb", "prints 50 MB", """\
for _ in range(50):
    print("x" * 1_000_000)""")
beside("stderr-50-mb", "50 MB on stderr and on both descriptors", """\
import os
import sys
for _ in range(25):
    sys.stderr.write("y" * 1_000_000)
    os.write(2, b"z" * 500_000)
    os.write(1, b"z" * 500_000)""")
beside("file-200-mb", "writes a file of 200 MB", """\
with open("big.bin", "wb") as file:
    for _ in range(200):
        file.write(b"x" * 1_000_000)""", at_most=True)
beside("many-files", "fills the scratch space with small files", """\
for i in range(3000):
    with open(f"f{i}", "w") as file:
        file.write("x" * 10_000)""", at_most=True)
beside("fork-bomb", "300 processes, each sleeps", GUARD + """\
for _ in range(300):
    if os.fork() == 0:
        rename()
        time.sleep(30)
        os._exit(0)""", at_most=True)
beside("memory-bomb", "3 GiB, touched", """\
import numpy
hold = [numpy.ones(2 ** 25) for _ in range(12)]""", at_most=True)
beside("kill-all", "kills whatever it may", GUARD + """\
if few():
    os.kill(-1, signal.SIGKILL)""", at_most=True)
beside("kill-parent", "kills its parent", GUARD + """\
if few():
    os.kill(os.getppid(), signal.SIGKILL)""", at_most=True)
beside("kill-init", "kills process 1 of its world", GUARD + """\
if few():
    for kind in (signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP):
        os.kill(1, kind)""", at_most=True)
beside("kill-itself", "kills itself; that cell is left out", GUARD + """\
if few():
    os.kill(os.getpid(), signal.SIGKILL)""")
beside("kill-group", "kills its process group", GUARD + """\
if few():
    os.killpg(0, signal.SIGKILL)""", at_most=True)
beside("stop-itself", "stops itself with SIGSTOP", GUARD + """\
if few():
    os.kill(os.getpid(), signal.SIGSTOP)""", at_most=True)
beside("close-everything", "closes all files", """\
import os
os.closerange(0, 1024)""", at_most=True)
beside("busy-thread", "a thread goes on computing", """\
import threading


def spin():
    while True:
        sum(range(1000))


threading.Thread(target=spin, daemon=True).start()""", at_most=True)
beside("waiting-thread", "a thread that is no daemon waits for ever", """\
import threading
threading.Thread(target=threading.Event().wait).start()""")
beside("printing-thread", "a thread holds the output's lock", """\
import threading


def chat():
    while True:
        print("still here", flush=True)


for _ in range(3):
    threading.Thread(target=chat, daemon=True).start()""", at_most=True)
beside("orphan", "a child in a session of its own sleeps for an hour",
       GUARD + """\
if os.fork() == 0:
    os.setsid()
    rename()
    if os.fork() == 0:
        rename()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(3600)
    os._exit(0)""")
beside("sleep-program", "starts a program that outlives the cell", """\
import subprocess
LONG = "SLEEP"
subprocess.Popen(["sleep", LONG], start_new_session=True)
subprocess.Popen(["sh", "-c", f"trap '' TERM; sleep {LONG} & sleep {LONG}"],
                 start_new_session=True)""".replace("SLEEP", SLEEP))
beside("fork-and-go-on", "both halves of a fork go on", """\
import os
os.fork()""", at_most=True)
case("many-deaths", "12 cells, each of which ends the process", answered(
    before=["import os\nos._exit(1)"] * 12), 15, FULL, at_most=True)
case("many-loops", "12 cells, each of which hangs", answered(
    before=["while True:\n    pass"] * 12), 15, FULL, at_most=True)
beside("signals", "an alarm a hundred times a second", """\
import signal
signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)""", at_most=True)
beside("ignored-signals", "ignores all that can be ignored", """\
import signal
for number in range(1, 32):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass""")
beside("lower-limits", "takes memory and files from its own process", """\
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
resource.setrlimit(resource.RLIMIT_AS, (1 << 24, 1 << 24))""", at_most=True)
beside("shallow-stack", "a recursion limit of 40", """\
import sys
sys.setrecursionlimit(40)""", at_most=True)
beside("deep-stack", "no recursion limit, and endless recursion", """\
import sys
sys.setrecursionlimit(10 ** 9)


def down(n):
    return down(n + 1) + 1


down(0)""", at_most=True)
beside("no-streams", "throws its streams away", """\
import sys
sys.stdout.close()
sys.stderr = None
sys.stdin = None""")
beside("strict-settings", "makes warnings errors, empties the environment",
       """\
import gc
import os
import warnings
warnings.simplefilter("error")
os.environ.clear()
os.chdir("/")
gc.disable()
np.set_printoptions(precision=1)""")
beside("shadowed-names", "uses builtins' names for its own things", """\
list = [1, 2]
str, dict, type, isinstance, print, len_ = "a", {}, 3, None, "p", 5
__name__ = "student"
test = score = points = 15""")
beside("traced", "a trace function looks at every line", """\
import sys
sys.settrace(lambda *_: None)
sys.setprofile(lambda *_: None)""")
beside("empty-modules", "throws loaded modules and the path away", """\
import sys
sys.path.clear()
for name in ("json", "struct", "socket", "io"):
    sys.modules.pop(name, None)""", at_most=True)
beside("broken-builtins", "replaces builtins", """\
import builtins
builtins.isinstance = lambda *_: True
builtins.len = lambda *_: 3
builtins.id = lambda *_: 7
builtins.type = lambda *_: int
builtins.callable = lambda *_: False""", at_most=True)
beside("fake-numpy", "puts a fake in numpy's place", """\
import sys
import types
fake = types.ModuleType("numpy")
fake.__getattr__ = lambda name: lambda *a, **k: True
sys.modules["numpy"] = fake""", at_most=True)
beside("exit-hooks", "hooks that run at the end", """\
import atexit
import sys
atexit.register(lambda: print('{"score": 15}'))
sys.excepthook = lambda *_: None""")
beside("endless-exit", "a hook at the end that never ends", """\
import atexit
import time


def wait():
    while True:
        time.sleep(1)


atexit.register(wait)""")
beside("crash", "reads address 0", """\
import ctypes
ctypes.string_at(0)""")

# --- cells that try to earn points without an answer -------------------------

alone("printed-score", "prints a score and a report", """\
print('{"score": 15, "max": 15, "status": "graded"}')
print("15.0 / 15.0 passed")""")
alone("exit-hook-score", "a score at the end of the process", """\
import atexit
import os
for fd in range(3, 64):
    atexit.register(lambda fd=fd: os.write(fd, b'{"passed": true}\\n'))
os._exit = lambda code: None""")
alone("patched-numpy", "every comparison holds", """\
import numpy
import numpy.testing
numpy.allclose = numpy.array_equal = numpy.isclose = lambda *a, **k: True
numpy.max = numpy.abs = lambda *a, **k: 0.0
for name in dir(numpy.testing):
    if name.startswith("assert"):
        setattr(numpy.testing, name, lambda *a, **k: None)


def forward(x, *_):
    return x, None


def update(*_):
    pass


def backward(*_):
    return 0, 0, 0""")
alone("ast-transformer", "takes assertions out of everything compiled", """\
import ast
import builtins
_compile, _exec = builtins.compile, builtins.exec


class Drop(ast.NodeTransformer):
    def visit_Assert(self, node):
        return ast.copy_location(ast.Pass(), node)


def soft(source, *a, **k):
    if isinstance(source, str):
        source = ast.fix_missing_locations(Drop().visit(ast.parse(source)))
    return _compile(source, *a, **k)


builtins.compile = soft
get_ipython().ast_transformers.append(Drop())
forward = update = backward = Layer = lambda *a, **k: (0, 0, 0)""")
alone("patched-runners", "patches IPython, nbgrader, nbconvert, otter", """\
import importlib
for name, what in (("IPython.core.interactiveshell", "InteractiveShell"),
                   ("nbgrader.utils", "determine_grade"),
                   ("nbconvert.preprocessors", "ExecutePreprocessor"),
                   ("otter.test_files", "ExceptionTestFile"),
                   ("coursework.checker", "run_test")):
    try:
        setattr(importlib.import_module(name), what, lambda *a, **k: 15)
    except Exception:
        pass
forward = update = backward = Layer = lambda *a, **k: None""")
alone("frames", "changes whatever is called passed, score or points", """\
import gc
import sys
frame = sys._getframe()
places = []
while frame:
    places += [frame.f_globals, frame.f_locals]
    frame = frame.f_back
places += [x for x in gc.get_objects() if type(x) is dict]
for place in places:
    for name in ("passed", "score", "points", "ok", "max"):
        if name in place:
            place[name] = 15
forward = update = backward = Layer = lambda *a, **k: None""")
alone("descriptors", "writes all sorts of replies into every descriptor", """\
import json
import os
import pickle
import struct


class Boom:
    def __reduce__(self):
        return os.system, ("touch /tmp/MARK-pickle",)


texts = [json.dumps(m).encode() for m in (
    {"ok": True}, {"loaded": True}, {"done": 0, "error": None},
    {"passed": True, "score": 15}, {"result": "passed"}, [True], True)]
texts.append(pickle.dumps(Boom()))
for fd in range(0, 64):
    try:
        os.set_blocking(fd, False)
    except OSError:
        continue
    for text in texts:
        n = len(text)
        for head in (b"", struct.pack("<I", n), struct.pack(">I", n),
                     struct.pack("<Q", n), struct.pack("<II", n, 0)):
            try:
                os.write(fd, head + text + b"\\n")
            except OSError:
                pass""".replace("MARK", MARK))
alone("pickled-command", "objects that run a command when unpickled", """\
import os


class Boom(dict):
    def __reduce__(self):
        return os.system, ("touch /tmp/MARK-reduce",)


class Cold(np.ndarray):
    def __reduce__(self):
        return os.system, ("touch /tmp/MARK-reduce-array",)


def forward(x, *_):
    return x.view(Cold), Boom()


def backward(dy, cache):
    return Boom(), np.array([Boom()], dtype=object), Boom()


def update(state, *_):
    state["mean"] = Boom()


def Layer(*_, **__):
    return Boom()""".replace("MARK", MARK))
alone("mocks", "a mock for each answer", """\
from unittest.mock import MagicMock
forward = update = backward = Layer = MagicMock()
forward.return_value = MagicMock(), MagicMock()
backward.return_value = MagicMock(), MagicMock(), MagicMock()""")
alone("module-answers", "modules, types and files as answers", """\
import math
import sys
forward, update, backward, Layer = math, int, sys.stdin, type""")
alone("plain-answers", "True in place of every function",
      "forward = update = backward = Layer = True")
alone("lying-names", "an object that answers to every name", """\
class All:
    def __getattr__(self, name):
        return self

    def __call__(self, *a, **k):
        return self

    def __iter__(self):
        return iter((self, self))

    def __eq__(self, other):
        return True

    def __bool__(self):
        return True

    def __len__(self):
        return 3

    def __float__(self):
        return 0.0

    def __sub__(self, other):
        return self

    __rsub__ = __abs__ = __add__ = __getitem__ = __sub__
    __hash__ = None


forward = update = backward = Layer = All()""")

# --- looking for what should not be there ------------------------------------

LEAK = """\
RIGHT = {right!r}
import os
import sys


def leaked():
{body}


try:
    found = leaked()
except BaseException:
    found = False
if found:
    for text in RIGHT:
        exec(text)
"""


def leak(name, why, body):
    """Right answers, but only if the sandbox shows what it must not."""
    body = "\n".join("    " + line if line else "" for line in
                     body.split("\n"))
    alone(name, why, LEAK.format(right=list(PLAIN.values()), body=body))


WALK = """\
import time
end = time.monotonic() + 2
tops = ["/" + d for d in os.listdir("/") if d not in (
    "bin", "boot", "dev", "lib", "lib32", "lib64", "proc", "sbin", "sys")]
tops = [os.getcwd(), *sorted(tops, key="/usr".__eq__)]
tops += [os.path.dirname(p) for p in sys.path if p]
tops += ["/".join(sys.executable.split("/")[:-k]) for k in (3, 4, 5)]
tops += [f"/proc/{p}/{k}" for p in os.listdir("/proc") if p.isdigit()
         for k in ("cwd", "root/tmp", "root/home", "root/srv")]
for top in tops:
    for folder, inner, names in os.walk(top or "/nothing"):
        inner[:] = [d for d in inner if d not in (
            "site-packages", ".venv", "lib", "proc", "sys")]
        if time.monotonic() > end:
            return False
        for name in names:
            path = os.path.join(folder, name)
"""
leak("read-master", "looks for the master and takes its answers", WALK + """\
            if name.endswith((".ipynb", ".py")):
                try:
                    if "the marten " + "crossed" in open(path).read(9 ** 7):
                        return True
                except (OSError, ValueError):
                    pass""")
leak("read-others", "looks for other students' files", WALK + """\
            if name.endswith(".ipynb"):
                return True""")
leak("read-gradebook", "looks for the grade book and the results",
     WALK + """\
            if name in ("gradebook.db", "results.csv", "results.jsonl"):
                return True
            if name.endswith(".json") and "results" in folder:
                return True""")
leak("read-grader", "looks for the grader's own files", WALK + """\
            if name in ("grade.py", "checker.py", "hostile.py"):
                return True""")
leak("environment", "looks for the grader's environment", """\
for pid in ["self", *os.listdir("/proc")]:
    try:
        text = open(f"/proc/{pid}/environ", "rb").read()
    except OSError:
        continue
    if b"ENV" in text or b"SECRET" in text:
        return True
return "ENV" in os.environ or "SECRET" in str(os.environ)
""".replace("ENV", ENV))
leak("processes", "looks for the grader among the processes", """\
me = os.getpid()
for pid in os.listdir("/proc"):
    if pid.isdigit():
        line = open(f"/proc/{pid}/cmdline", "rb").read()
        if b"coursework.grade" in line or b"pytest" in line:
            return True
return False""")
leak("network", "connects to what listens on this machine", """\
import socket
for host in ("127.0.0.1", "::1", "localhost", socket.gethostname()):
    try:
        socket.create_connection((host, PORT), 0.3).close()
        return True
    except OSError:
        pass
return False""".replace("PORT", str(PORT)))
leak("abstract-socket", "connects to a socket without a file", """\
import socket
line = socket.socket(socket.AF_UNIX)
line.connect("\\0MARK")
return True""".replace("MARK", MARK))
leak("interfaces", "looks for a network and for a name server", """\
import socket
others = [n for _, n in socket.if_nameindex() if n != "lo"]
if others:
    return True
line = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
line.settimeout(0.3)
line.connect(("192.0.2.1", 53))
return True""")
leak("capabilities", "looks at its rights", """\
words = dict(line.split(":\\t", 1)
             for line in open("/proc/self/status") if ":\\t" in line)
return (os.getuid() == 0 or int(words["CapEff"], 16) != 0
        or words["NoNewPrivs"].strip() != "1")""")
leak("become-root", "asks for root", """\
for ask in (lambda: os.setuid(0), lambda: os.setresuid(0, 0, 0),
            lambda: os.setgroups([0]), lambda: os.chroot("/tmp")):
    try:
        ask()
        return True
    except OSError:
        pass
return False""")
leak("new-namespace", "asks for namespaces, mounts and tracing", """\
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
for flag in (0x10000000, 0x20000000, 0x00020000, 0x40000000):
    if libc.unshare(flag) == 0:
        return True
if libc.mount(b"none", b"/tmp", b"tmpfs", 0, None) == 0:
    return True
return any(libc.ptrace(16, int(p), 0, 0) == 0 for p in os.listdir("/proc")
           if p.isdigit() and int(p) not in (os.getpid(), 1))""")
leak("write-system", "writes where it must not", """\
import glob
for path in ("/usr", "/etc", "/grader", "/proc/sys/kernel", sys.prefix,
             *sys.path, os.path.dirname(os.path.abspath(sys.executable)),
             *glob.glob("/sys/fs/cgroup/*"), "/", "/dev"):
    try:
        with open(os.path.join(path, "MARK"), "w") as file:
            file.write("was here")
        return True
    except OSError:
        pass
for module in list(sys.modules.values()):
    try:
        open(module.__file__, "r+").close()
        return True
    except (OSError, AttributeError, TypeError):
        pass
return False""".replace("MARK", MARK))
leak("devices", "looks for disks, memory and terminals", """\
for name in os.listdir("/dev"):
    if name.startswith(("sd", "vd", "nvme", "loop", "mem", "kmsg", "kvm",
                        "fuse", "tty0", "console")):
        try:
            os.close(os.open(f"/dev/{name}", os.O_RDONLY | os.O_NONBLOCK))
            return True
        except OSError:
            pass
return False""")
leak("password-file", "reads the users of this machine", """\
for path in ("/etc/passwd", "/etc/shadow", "/root/.ssh", "/root/.bashrc"):
    try:
        if os.path.isdir(path) and os.listdir(path) or open(path).read():
            return True
    except OSError:
        pass
return False""")
leak("extra-descriptors", "reads whatever files it was given", """\
import stat
for fd in range(3, 256):
    try:
        kind = os.fstat(fd).st_mode
        where = os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        continue
    if stat.S_ISREG(kind) and not where.startswith(
            ("/usr", "/memfd:", "/tmp", sys.prefix)):
        return True
    if stat.S_ISDIR(kind) and not where.startswith(("/proc", "/usr")):
        return True
return False""")
beside("canary-files", "leaves files wherever it can", """\
import os
for k in range(8):
    for top in ("/tmp", "/var/tmp", "/dev/shm", "/root", "/home", "/",
                "/run", "../" * k, os.path.expanduser("~")):
        for name in ("MARK", "../MARK", "MARK/x"):
            try:
                path = os.path.join(top, name)
                os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
                open(path, "w").write("was here")
            except OSError:
                pass""".replace("MARK", MARK))

# --- in a function: ends, hangs, raises --------------------------------------

in_forward("exit-in-forward", "sys.exit(0), as if all were well", """\
import sys


def forward(*_):
    sys.exit(0)""")
in_backward("os-exit-in-backward", "ends the process", """\
import os


def backward(*_):
    os._exit(0)""")
in_backward("loop-in-backward", "never returns", """\
def backward(*_):
    while True:
        pass""")
in_backward("stubborn-loop", "catches all that would end the loop", """\
import signal
for number in range(1, 32):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass


def backward(*_):
    while True:
        try:
            while True:
                pass
        except BaseException:
            pass""")
in_backward("loop-in-c", "a computation that lets nobody else run", """\
def backward(*_):
    return sum(range(10 ** 13)), 7 ** 10 ** 9, 0""")
in_backward("sleep-in-backward", "sleeps for an hour", """\
import time


def backward(*_):
    time.sleep(3600)""")
in_backward("slow-but-right", "waits a second, then answers right", """\
import time


def backward(dy, cache):
    time.sleep(1.0)
    xhat, g = cache["xhat"], dy * cache["gamma"]
    dx = (g - g.mean(axis=0) - xhat * (g * xhat).mean(axis=0)) / cache["std"]
    return dx, (dy * xhat).sum(axis=0), dy.sum(axis=0)""", 15, FULL)
in_backward("stop-in-backward", "stops itself with SIGSTOP", GUARD + """\
def backward(*_):
    if few():
        os.kill(os.getpid(), signal.SIGSTOP)""")
in_backward("kill-in-backward", "kills all that it may", GUARD + """\
def backward(*_):
    if few():
        os.kill(-1, signal.SIGKILL)""", at_most=True)
in_backward("forks-in-backward", "300 processes in a function", GUARD + """\
def backward(*_):
    for _ in range(300):
        if os.fork() == 0:
            rename()
            time.sleep(60)
            os._exit(0)""")
in_backward("orphan-in-backward", "leaves a child behind, answers right",
            GUARD + """\
def backward(dy, cache):
    if os.fork() == 0:
        os.setsid()
        rename()
        time.sleep(3600)
        os._exit(0)
    xhat, g = cache["xhat"], dy * cache["gamma"]
    dx = (g - g.mean(axis=0) - xhat * (g * xhat).mean(axis=0)) / cache["std"]
    return dx, (dy * xhat).sum(axis=0), dy.sum(axis=0)""", 15, FULL)
in_backward("memory-in-backward", "3 GiB, touched", """\
def backward(*_):
    hold = [np.ones(2 ** 25) for _ in range(12)]
    return hold[:3]""")
in_backward("endless-recursion", "calls itself", """\
def backward(*a):
    return backward(*a)""")
in_backward("crash-in-backward", "reads address 0", """\
import ctypes


def backward(*_):
    ctypes.string_at(0)""")
in_backward("input-in-backward", "asks for the answer", """\
def backward(*_):
    return eval(input("dx, dgamma, dbeta? "))""")
in_backward("output-in-backward", "prints 50 MB, answers right", """\
def backward(dy, cache):
    for _ in range(50):
        print("x" * 1_000_000)
    xhat, g = cache["xhat"], dy * cache["gamma"]
    dx = (g - g.mean(axis=0) - xhat * (g * xhat).mean(axis=0)) / cache["std"]
    return dx, (dy * xhat).sum(axis=0), dy.sum(axis=0)""", 15, FULL)
in_backward("closed-in-backward", "closes all files, then answers", """\
import os


def backward(dy, cache):
    os.closerange(0, 1024)
    return dy, dy[0], dy[0]""")
in_backward("loop-when-freed", "an object that hangs when it is freed", """\
class Stay:
    def __del__(self):
        while True:
            pass


def backward(*_):
    Stay()
    return 0, 0, 0""")
in_backward("raise-when-freed", "an error while freeing; right else", """\
class Stay:
    def __del__(self):
        raise SystemExit("freed")


def backward(dy, cache):
    Stay()
    xhat, g = cache["xhat"], dy * cache["gamma"]
    dx = (g - g.mean(axis=0) - xhat * (g * xhat).mean(axis=0)) / cache["std"]
    return dx, (dy * xhat).sum(axis=0), dy.sum(axis=0)""", 15, FULL)

RAISES = {
    "keyboard-interrupt": "raise KeyboardInterrupt",
    "generator-exit": "raise GeneratorExit",
    "system-exit-class": """\
class Done(SystemExit):
        pass

    raise Done(0)""",
    "memory-error": "raise MemoryError",
    "eof-error": "raise EOFError",
    "timeout-error": "raise TimeoutError('timed out')",
    "broken-pipe": "raise BrokenPipeError(32, 'Broken pipe')",
    "reset": "raise ConnectionResetError",
    "unicode-error": "raise UnicodeDecodeError('utf-8', b'x', 0, 1, 'no')",
    "value-error": "raise ValueError('always')",
    "assertion": "raise AssertionError('')",
    "exception-group": "raise BaseExceptionGroup('g', [KeyboardInterrupt()])",
    "stop-async": "raise StopAsyncIteration",
    "syntax-error": "raise SyntaxError('a', (1, 2, 3, 4))",
    "not-implemented": "raise NotImplementedError",
    "warning": "raise DeprecationWarning(b'x')",
}
for _name, _source in RAISES.items():
    in_update(f"raises-{_name}", _source.split("\n")[0],
              f"def update(*_):\n    {_source}")
in_update("stop-iteration", "StopIteration ends a test's map() early", """\
def update(*_):
    raise StopIteration""")
in_forward("stop-iteration-forward", "the same, from forward", """\
def forward(*_):
    raise StopIteration(True)""")
in_layer("stop-iteration-layer", "the same, from a layer's attribute", """\
class Layer:
    def __init__(self, *_, **__):
        pass

    def __getattr__(self, name):
        raise StopIteration

    def __call__(self, x):
        return next(iter(()))""")
in_update("hostile-message", "an exception whose text can't be made", """\
class Odd(Exception):
    def __str__(self):
        raise KeyboardInterrupt

    __repr__ = __str__


def update(*_):
    raise Odd""")
in_update("endless-message", "an exception whose text never ends", """\
class Odd(Exception):
    def __str__(self):
        while True:
            pass


def update(state, *_):
    raise Odd""")
in_update("huge-message", "an exception with 50 MB of text", """\
def update(*_):
    raise RuntimeError("x" * 50_000_000)""")
in_update("markup-message", "an exception with a script in its text", f"""\
def update(*_):
    raise RuntimeError("{SCRIPT}")""")
in_update("formula-message", "an exception that a spreadsheet would run", """\
class Odd(BaseException):
    pass


Odd.__name__ = Odd.__qualname__ = '=HYPERLINK("http://x.example","ok")'


def update(*_):
    raise Odd("=1+1\\r\\n+cmd|' /C calc'!A0")""")
in_update("surrogate-message", "an exception whose text is not Unicode", """\
def update(*_):
    raise RuntimeError("\\ud800 \\udfff \\x00 \\x1b[2J \\u202e")""")
in_update("hostile-class", "an exception with a hostile class", """\
class Meta(type):
    @property
    def __name__(cls):
        raise SystemExit

    @property
    def __mro__(cls):
        raise SystemExit

    def __instancecheck__(cls, x):
        return True


class Odd(BaseException, metaclass=Meta):
    @property
    def __class__(self):
        raise SystemExit

    @property
    def __traceback__(self):
        return 5


def update(*_):
    raise Odd""")
in_update("endless-causes", "an exception with 50,000 causes and a cycle", """\
def update(*_):
    first = error = RuntimeError("a")
    for _ in range(50_000):
        error.__cause__ = RuntimeError("b")
        error = error.__cause__
    error.__context__ = first
    raise first""")
in_update("errors-at-load-and-later", "a hostile text in a cell, too", """\
def update(*_):
    raise RuntimeError


raise RuntimeError("=1+1;\\ud800\\n\\n,\\"<script>alert('hc')</script>")""")

# --- in a function: what comes back ------------------------------------------

LIAR = """\
class Liar:
    shape, dtype, ndim, size = (6, 3), np.dtype(float), 2, 18
    __array_priority__ = 1e9

    def __init__(self, *_, **__):
        pass

    def __eq__(self, other):
        return True

    def __ne__(self, other):
        return False

    def __bool__(self):
        return True

    def __float__(self):
        return 0.0

    def __index__(self):
        return 0

    def __len__(self):
        return 3

    def __abs__(self):
        return 0.0

    def __array__(self, *_, **__):
        return np.zeros((6, 3))

    def __array_ufunc__(self, *_, **__):
        return np.bool_(True)

    def __array_function__(self, *_, **__):
        return True

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *a, **k: 0.0

    __lt__ = __le__ = __gt__ = __ge__ = __eq__
    __hash__ = object.__hash__


"""
in_forward("liar", "an object that is equal to everything", LIAR + """\
def forward(*_):
    return Liar(), Liar()""")
in_update("liar-in-state", "such objects in the state", LIAR + """\
def update(state, *_):
    for key in state:
        state[key] = Liar()""")
in_backward("liars-as-gradients", "such objects as gradients", LIAR + """\
def backward(*_):
    return Liar(), Liar(), Liar()""")
in_layer("liar-as-layer", "such an object as the layer", LIAR + """\
class Layer(Liar):
    training = True

    def __call__(self, *_):
        return self""")
DUCK = """\
class Zero(float):
    pass


class Duck:
    def __init__(self, shape):
        self.shape = shape

    def zeros(self, *_, **__):
        return np.zeros(self.shape)

    __sub__ = __rsub__ = __add__ = __radd__ = __mul__ = __rmul__ = zeros
    __truediv__ = __rtruediv__ = __pow__ = __matmul__ = __neg__ = zeros

    def mean(self, *_, **__):
        return np.zeros(self.shape[-1])

    def std(self, *_, **__):
        return np.ones(self.shape[-1])

    def max(self, *_, **__):
        return 1.0

    sum = mean


"""
in_forward("duck", "no array, but its mean is 0, and so is each difference",
           DUCK + """\
def forward(x, *_):
    return Duck(x.shape), None""")
in_backward("ducks-as-gradients", "the same, as gradients", DUCK + """\
def backward(dy, *_):
    return Duck(dy.shape), Duck(dy.shape[1:]), Duck(dy.shape[1:])""")
in_forward("address-as-array", "names an address for its data", """\
class Far:
    shape = (6, 3)
    __array_interface__ = {"shape": (6, 3), "typestr": "<f8", "version": 3,
                           "data": (0x1000, False)}
    __array_struct__ = 1

    def __getattr__(self, name):
        return {"shape": (6, 3), "typestr": "<f8", "version": 3,
                "data": (0x1000, False)}


def forward(*_):
    return Far(), Far()""")
in_forward("claimed-class", "claims to be an array", """\
class Claim:
    __class__ = np.ndarray
    shape = (6, 3)


class Plain(float):
    @property
    def __class__(self):
        return np.ndarray


def forward(*_):
    return Claim(), Plain(0)""")
in_forward("lying-subclass", "an array whose operators lie", """\
class Cold(np.ndarray):
    def __sub__(self, other):
        return np.zeros(self.shape)

    def __eq__(self, other):
        return np.ones(self.shape, bool)

    def mean(self, *_, **__):
        return np.zeros(self.shape[-1])

    def __array_ufunc__(self, *_, **__):
        return np.zeros(self.shape)

    def __array_function__(self, *_, **__):
        return True

    def __array_finalize__(self, other):
        pass

    __rsub__ = __sub__


def forward(x, *_):
    return x.view(Cold), None""")
in_update("lying-numbers", "numbers, texts and dicts whose methods lie", """\
class Number(float):
    def __eq__(self, other):
        return True

    def __sub__(self, other):
        return 0.0

    def __float__(self):
        return 0.1

    __rsub__ = __sub__
    __hash__ = float.__hash__


class Text(str):
    def __eq__(self, other):
        return True

    __hash__ = str.__hash__


class Book(dict):
    def __getitem__(self, key):
        return 1

    def items(self):
        return [(Text("mean"), Number(3))]


def update(state, *_):
    state["mean"], state["var"] = Book(mean=3), Number(1)
    state[Text("steps")] = Number(1)""")
in_update("lying-lists", "lists that never end and tuples that lie", """\
class Long(list):
    def __iter__(self):
        while True:
            yield 0.0

    def __len__(self):
        return 3


def update(state, *_):
    state["mean"] = Long([0, 0, 0])
    state["var"] = Long()""")
in_forward("masked", "an array with everything masked", """\
def forward(x, *_):
    return np.ma.masked_all(x.shape), None""")
in_forward("nan", "nothing but NaN", """\
def forward(x, *_):
    return np.full(x.shape, np.nan), None""")
in_forward("inf", "nothing but infinity", """\
def forward(x, *_):
    return np.full(x.shape, np.inf), None""")
in_forward("empty", "an empty array", """\
def forward(x, *_):
    return np.empty((0, x.shape[1])), np.empty((0, 0, 2 ** 40))""")
in_forward("scalar", "one number for all", """\
def forward(x, *_):
    return np.float64(0.0), 0.0""")
in_forward("row", "one row for all samples", """\
def forward(x, *_):
    return np.zeros((1, x.shape[1])), None""")
in_forward("two-gib", "an array of 2 GiB", """\
def forward(x, *_):
    return np.zeros(2 ** 28), None""")
in_forward("wide-view", "a view of 2**40 numbers that takes 8 bytes", """\
def forward(x, *_):
    wide = np.lib.stride_tricks.as_strided(
        np.zeros(1), (2 ** 40,), (0,))
    return wide, wide""")
in_forward("many-dimensions", "an array with 64 dimensions", """\
def forward(x, *_):
    return np.zeros((1,) * 64), None""")
in_forward("object-array", "an array of objects", """\
class Boom:
    def __float__(self):
        raise SystemExit


def forward(x, *_):
    return np.full(x.shape, Boom(), dtype=object), np.array([None])""")
in_forward("structured", "an array with named fields", """\
def forward(x, *_):
    kind = np.dtype([(f"f{i}", "f8") for i in range(2000)])
    return np.zeros(x.shape, kind), np.zeros(3, [("shape", "O")])""")
in_forward("dates", "an array of dates", """\
def forward(x, *_):
    return np.full(x.shape, np.datetime64("NaT")), np.zeros(2, "M8[Y]")""")
in_forward("texts", "arrays of texts, of no and of great length", """\
def forward(x, *_):
    return np.full(x.shape, "0.0"), np.zeros(3, "U1000000")""")
in_forward("mapped-file", "an array that lies in a file", """\
def forward(x, *_):
    return np.memmap("/tmp/m", "f8", "w+", shape=x.shape), None""")
in_forward("generator", "values for ever", """\
def forward(x, *_):
    while True:
        yield 0.0""")
in_forward("list-in-itself", "a list that contains itself, twice", """\
def forward(x, *_):
    y = []
    y += [y, y]
    return y, y""")
in_forward("deep-list", "a list 100,000 deep", """\
def forward(x, *_):
    y = []
    for _ in range(100_000):
        y = [y]
    return y, {"y": y}""")
in_forward("doubling-list", "a list of 2**60 entries in 60 objects", """\
def forward(x, *_):
    y = [0.0]
    for _ in range(60):
        y = [y, y]
    return y, None""")
in_forward("own-index", "an object whose every element is itself", """\
class Same:
    shape = (6, 3)

    def __len__(self):
        return 2

    def __getitem__(self, key):
        return self

    def __iter__(self):
        return iter((self, self))


def forward(x, *_):
    return Same(), Same()""")
in_forward("wrong-length", "objects whose length is nonsense", """\
class Long:
    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, key):
        return 0.0


def forward(x, *_):
    return Long(2 ** 62), Long(-1)""")
in_forward("three-results", "three values where two are due", """\
def forward(x, *_):
    return x, None, x""")
in_forward("nothing", "returns nothing", "def forward(*_):\n    pass")
in_forward("coroutine", "a function that must be awaited", """\
async def forward(x, *_):
    return x, None""")
in_update("million-keys", "a million keys in the state", """\
def update(state, *_):
    state.update(dict.fromkeys(range(10 ** 6)))""")
in_update("huge-number", "a number with 10 million bits", """\
def update(state, *_):
    state["steps"] = 1 << 10 ** 7
    state["mean"] = [10 ** 5000] * 3""")
in_update("huge-range", "a range, which is small until it is an array", """\
def update(state, *_):
    state["mean"] = state["var"] = range(6 * 10 ** 7)""")
in_update("colliding-numbers", "60,000 numbers with the same hash", """\
def update(state, *_):
    state["mean"] = {k * (2 ** 61 - 1): 0 for k in range(20_000)}""")
in_update("state-in-itself", "a state that contains itself", """\
def update(state, *_):
    state["mean"], state["self"] = state, [state, state]""")
in_update("cleared-state", "an empty state", """\
def update(state, *_):
    state.clear()""")
in_update("hostile-keys", "objects as keys", """\
class Key:
    def __hash__(self):
        return hash("mean")

    def __eq__(self, other):
        return True


def update(state, *_):
    state.clear()
    state[Key()] = state[np.float64("nan")] = state[()] = 1""")
in_update("surrogate-keys", "texts that are not Unicode", """\
def update(state, *_):
    state["mean"] = "\\ud800"
    state["\\udfff\\x00"] = b"\\xff" * 100""")
in_update("named-tuples", "a class of its own for each of 3,000 tuples", """\
from collections import namedtuple


def update(state, *_):
    state["mean"] = [namedtuple(f"T{i}", f"a{i} shape")(i, (3,))
                     for i in range(3000)]
    state["var"] = namedtuple("T", "shape mean")((3,), 0)""")

# --- arguments ---------------------------------------------------------------

in_forward("zeroed-input", "sets x to 0, so that 0 is right", """\
def forward(x, gamma, beta, eps=1e-5):
    x[:] = 0
    gamma[:] = 0
    beta[:] = 0
    return np.zeros(x.shape), None""")
in_backward("zeroed-gradient", "sets dy to 0, so that 0 is right", """\
def backward(dy, cache):
    dy[:] = 0
    for value in cache.values():
        value[:] = 0
    return np.zeros(dy.shape), np.zeros(dy.shape[1]), np.zeros(dy.shape[1])""")
in_layer("zeroed-layer-input", "the same in the layer", """\
class Layer:
    def __init__(self, c, momentum=0.1, eps=1e-5):
        self.running_mean = self.running_var = np.zeros(c)
        self.training = True

    def eval(self):
        self.training = False

    def train(self):
        self.training = True

    def __call__(self, x):
        x[:] = 0
        return x""")
in_update("other-shape", "changes the shape and the type of the batch", """\
def update(state, x, *_):
    x.shape = (-1,)
    x.dtype = np.uint8
    state["mean"] = x
    state["x"] = x[::-1]""")
in_forward("larger-input", "makes the batch larger in place", """\
def forward(x, *_):
    x.resize((2 ** 10, 3), refcheck=False)
    return x, x""")
in_forward("recorded-arguments", "answers with what it saw before", """\
import pickle
import sys
SEEN = "/tmp/seen"


def forward(x, *rest):
    try:
        seen = pickle.load(open(SEEN, "rb"))
    except OSError:
        seen = []
    seen.append((x, rest))
    pickle.dump(seen, open(SEEN, "wb"))
    sys.modules["json"].seen = seen
    return seen[0][0], seen""")
case("carried-over", "hidden tests' data in the message of a public test",
     answered(without(q1="""\
import mmap
SHARED = mmap.mmap(-1, 10_000)


def forward(x, gamma, beta, eps=1e-5):
    if x.shape != (6, 3):
        text = f"hc-seen {x.tolist()} {gamma} {beta}"
        SHARED[:len(text)] = text.encode()
        open("/tmp/seen", "w").write(text)
    mean = x.mean(axis=0)
    std = np.sqrt(((x - mean) ** 2).mean(axis=0) + eps)
    xhat = (x - mean) / std
    return gamma * xhat + beta, {"xhat": xhat, "std": std, "gamma": gamma}""",
                      q2="""\
def update(*_):
    try:
        raise RuntimeError(open("/tmp/seen").read())
    except OSError:
        text = SHARED[:1000].strip(b"\\0").decode()
        raise RuntimeError(text) from None""")),
     10, (4, 0, 3, 3))
case("table-of-public-tests", "right for the public test's batch alone",
     answered(without(q1="""\
KNOWN = np.random.default_rng(1).normal(4.0, 2.0, (6, 3))


def forward(x, gamma, beta, eps=1e-5):
    std = np.sqrt(x.var(axis=0) + eps)
    xhat = (x - x.mean(axis=0)) / std
    kept = {"xhat": xhat, "std": std, "gamma": gamma}
    if x.shape == KNOWN.shape and np.allclose(x, KNOWN):
        return xhat, kept
    return np.zeros(x.shape), kept""")), 12, (1, 5, 3, 3))
in_layer("flood-of-calls", "calls the test's function for ever", """\
class Layer:
    def __init__(self, c, momentum=0.1, eps=1e-5):
        while callable(momentum):
            momentum(1)""")
in_layer("hostile-calls", "gives the test's function hostile arguments",
         LIAR + """\
class Layer:
    def __init__(self, c, momentum=0.1, eps=1e-5):
        self.running_mean, self.training = np.zeros(c), True
        self.momentum = momentum

    def __call__(self, x):
        deep = []
        for _ in range(1000):
            deep = [deep]
        for what in (Liar(), deep, 1 << 10 ** 6, "\\ud800", Exception,
                     np.zeros(2 ** 24), range(10 ** 12), self.momentum):
            try:
                self.momentum(what)
            except BaseException:
                pass
        return x""")
in_layer("prying-calls", "reaches through the test's function", """\
class Layer:
    def __init__(self, c, momentum=0.1, eps=1e-5):
        self.running_mean, self.training = np.zeros(c), True
        for name in ("__globals__", "__closure__", "__code__", "__self__",
                     "__wrapped__", "gi_frame"):
            try:
                inside = getattr(momentum, name)
                inside["np"].allclose = lambda *a, **k: True
                inside["seen"] = [1, 2, 3]
            except Exception:
                pass

    def __call__(self, x):
        return x""")
in_layer("late-calls", "a thread calls the test's function later", """\
import threading
import time


class Layer:
    def __init__(self, c, momentum=0.1, eps=1e-5):
        self.training, self.running_mean = True, np.zeros(c)

        def later():
            for k in range(100):
                time.sleep(0.01)
                momentum(k)

        if callable(momentum):
            threading.Thread(target=later, daemon=True).start()

    def __call__(self, x):
        time.sleep(0.1)
        return x""")
in_layer("hostile-attributes", "attributes that hang, lie and raise", """\
class Layer:
    def __init__(self, *_, **__):
        self.n = 0

    @property
    def training(self):
        raise SystemExit

    @property
    def running_mean(self):
        self.n += 1
        return np.zeros(self.n)

    @property
    def running_var(self):
        while True:
            pass

    def train(self):
        raise GeneratorExit

    def __call__(self, x):
        return self""")
in_layer("hostile-type", "a class whose metaclass lies", """\
class Meta(type):
    def __call__(cls, *_, **__):
        return cls

    def __instancecheck__(cls, x):
        return True

    def __bool__(cls):
        raise SystemExit

    def __getattr__(cls, name):
        return cls


Meta.__name__ = "<script>alert('hc')</script>\\n=1+1\\ud800"


class Layer(metaclass=Meta):
    training = True""")

# --- unusual, but right ------------------------------------------------------

case("unusual-arrays", "right values in arrays of unusual make", answered(
    without(q1="""\
def forward(x, gamma, beta, eps=1e-5):
    mean = x.mean(axis=0)
    std = np.sqrt(((x - mean) ** 2).mean(axis=0) + eps)
    xhat = np.asfortranarray((x - mean) / std)
    y = (gamma * xhat + beta).astype(">f8")[::-1, ::-1][::-1, ::-1]
    y.flags.writeable = False
    return y, (xhat.astype(np.longdouble), std, [gamma, {"n": 1}])""",
            q3="""\
def backward(dy, cache):
    xhat, std, rest = cache
    xhat, g = xhat.astype(float), dy * rest[0]
    dx = (g - g.mean(axis=0) - xhat * (g * xhat).mean(axis=0)) / std
    return dx, (dy * xhat).sum(axis=0), dy.sum(axis=0)""")), 15, FULL)
case("cache-in-a-global", "keeps the cache in a global, returns None",
     answered(without(q1=PLAIN["q1-forward"].replace(
         "return gamma * xhat + beta, {", "global last\n    last = {")
         + "\n    return gamma * xhat + beta, None",
         q3=PLAIN["q3-backward"].replace(
             "xhat, g =", "cache = last\n    xhat, g ="))), 15, FULL)
case("cache-of-all-sorts", "plain data and own objects in one cache",
     answered(without(q1="""\
import threading
from types import SimpleNamespace


def forward(x, gamma, beta, eps=1e-5):
    mean = x.mean(axis=0)
    std = np.sqrt(((x - mean) ** 2).mean(axis=0) + eps)
    own = SimpleNamespace(xhat=(x - mean) / std, std=std)
    kept = {"own": own, 7: (gamma, own), "lock": threading.Lock()}
    return gamma * own.xhat + beta, kept""", q3="""\
def backward(dy, cache):
    own, gamma = cache["own"], cache[7][0]
    assert cache[7][1] is own
    xhat, g = own.xhat, dy * gamma
    dx = (g - g.mean(axis=0) - xhat * (g * xhat).mean(axis=0)) / own.std
    return dx, (dy * xhat).sum(axis=0), dy.sum(axis=0)""")), 15, FULL)
case("cache-is-a-generator", "the cache is a generator that waits for dy",
     answered(without(q1="""\
def rest(xhat, std, gamma):
    dy = yield
    g = dy * gamma
    dx = (g - g.mean(axis=0) - xhat * (g * xhat).mean(axis=0)) / std
    yield dx, (dy * xhat).sum(axis=0), dy.sum(axis=0)


def forward(x, gamma, beta, eps=1e-5):
    mean = x.mean(axis=0)
    std = np.sqrt(((x - mean) ** 2).mean(axis=0) + eps)
    xhat = (x - mean) / std
    waiting = rest(xhat, std, gamma)
    next(waiting)
    return gamma * xhat + beta, waiting""",
                      q3="def backward(dy, cache):\n    "
                         "return cache.send(dy)")), 15, FULL)
case("large-cache", "a cache of 8 MB", answered(without(
    q1=PLAIN["q1-forward"].replace(
        '"xhat": xhat', '"spare": np.ones(1_000_000), "xhat": xhat'))),
    15, FULL)
case("answers-from-factories", "partial, a bound method, a callable object",
     answered({**PLAIN, "q2-update": """\
import functools


class Mover:
    def move(self, state, x, momentum=0.1):
        if not 0 <= momentum <= 1:
            raise ValueError("momentum must lie between 0 and 1")
        for name, new in (("mean", x.mean(0)), ("var", x.var(0, ddof=1))):
            state[name] = (1 - momentum) * state[name] + momentum * new
        state["steps"] = np.int64(state["steps"] + 1)


update = Mover().move""", "q3-backward": """\
@functools.lru_cache
def nothing():
    pass


class Back:
    def __call__(self, sign, dy, cache):
        xhat, g = cache["xhat"], dy * cache["gamma"]
        dx = g - g.mean(axis=0) - xhat * (g * xhat).mean(axis=0)
        dx = sign * dx / cache["std"]
        return dx, (dy * xhat).sum(axis=0), dy.sum(axis=0)


backward = functools.partial(Back(), 1)"""}), 15, FULL)

# --- forged messages ---------------------------------------------------------
#
# The student's process holds the sandbox's end of the line. These rewrite what
# it says; without answers, no words are worth a point.

FORGE = """\
import sys
import time
wire = next(m for m in list(sys.modules.values())
            if hasattr(m, "Packer") and hasattr(m, "send"))
honest_send = wire.send


def send(sock, tree, body=b""):
    if isinstance(tree, dict) and tree.get("ok", 0) is None:
        forged(sock, tree)
        return None
    return honest_send(sock, tree, body)


def reply(sock, ok, body=b"", changed=()):
    honest_send(sock, {"ok": ok, "changed": list(changed)}, body)


def zeros(*shape):
    n = 1
    for k in shape:
        n *= k
    return ({"t": "array", "d": "<f8", "s": list(shape), "b": [0, 8 * n]},
            bytes(8 * n))


wire.send = send
NAMES = lambda *a, **k: None


"""


def forge(name, why, source, names="forward = update = backward = Layer"):
    """A student's process that sends other replies; it answers nothing.

    What takes long defines few names: each of their tests runs into its limit.
    """
    alone(f"forged-{name}", why, FORGE.replace("NAMES", names) + source)


forge("amplified", "40 arrays that share 60 MB: 2.4 GB for the grader", """\
def forged(sock, tree):
    body = bytes(60_000_000)
    one = {"t": "array", "d": "|u1", "s": [len(body)], "b": [0, len(body)]}
    reply(sock, {"t": "tuple", "v": [one] * 40}, body)""", "Layer")
forge("amplified-bytes", "the same with byte strings in changed arguments",
      """\
def forged(sock, tree):
    body = bytes(60_000_000)
    one = {"t": "bytes", "b": [0, len(body)]}
    reply(sock, None, body, [[0, [one] * 40]])""", "Layer")
forge("long-list", "as many small values as a message holds", """\
def forged(sock, tree):
    text = b'{"changed":[],"ok":[' + b"[]," * 5_000_000 + b"0]}"
    sock.sendall(wire.SIZES.pack(len(text), 0) + text)""", "Layer")
forge("range", "a range of 60 million as an array of three", """\
def forged(sock, tree):
    long = {"t": "range", "v": [0, 60_000_000, 1]}
    state = {"t": "dict", "v": [["mean", long], ["var", long],
                                ["steps", 1]]}
    reply(sock, {"t": "tuple", "v": [long, long]}, b"", [[0, state]])""",
      "update")
forge("classes", "20,000 named tuples, a class each", """\
def forged(sock, tree):
    reply(sock, [{"t": "named", "n": "N", "f": [f"a{i}"], "v": [1]}
                 for i in range(20_000)])""", "Layer")
forge("names", "named tuples whose fields are code", """\
def forged(sock, tree):
    for field in ("__class__", "x=__import__('os').system('id')", "shape"):
        reply(sock, {"t": "named", "n": "int", "f": [field], "v": [[6, 3]]})
        return None""")
forge("changed", "changed arguments that were never given", """\
def forged(sock, tree):
    one, body = zeros(3)
    reply(sock, None, body, [[k, one] for k in (
        -1, -2, 99, 0, True, "x", "__class__", None, [1], 1e300)])""")
forge("changed-state", "a changed state that fits the public test", """\
def forged(sock, tree):
    one, body = zeros(3)
    reply(sock, None, body, [[0, {"t": "dict", "v": [
        ["mean", one], ["var", one], ["steps", 1]]}]])""")
forge("zeros", "zeros in place of an answer, and zeroed arguments", """\
def forged(sock, tree):
    one, body = zeros(6, 3)
    reply(sock, {"t": "tuple", "v": [one, one]}, body,
          [[k, one] for k in range(4)])""")
forge("callbacks", "asks for functions that the test never passed", """\
def forged(sock, tree):
    for number in (-1, 10 ** 9, "0", None, [0]):
        honest_send(sock, {"callback": number,
                           "ok": [[1], {"t": "dict", "v": []}]})
        wire.receive(sock)
    reply(sock, {"t": "callback", "v": -1})""")
forge("endless-callbacks", "asks for such functions for ever", """\
def forged(sock, tree):
    while True:
        honest_send(sock, {"callback": 0, "ok": [[], {"t": "dict",
                                                      "v": []}]})
        wire.receive(sock)""", "Layer")
forge("errors", "names errors that would end the grader", """\
def forged(sock, tree):
    honest_send(sock, {"error": {"mro": [
        "builtins.SystemExit", "builtins.KeyboardInterrupt",
        "builtins.exit", "builtins.print", "coursework.proxy.Gone",
        "builtins.BaseException", "builtins.StopIteration"],
        "text": "x" * 5_000_000, "message": {"a": 1}}})""")
forge("strange-errors", "errors of a strange form", """\
FORMS = iter(([], 1, {"mro": 1}, {"mro": [[]], "text": []},
              {"mro": "builtins.ValueError"}, {"mro": None}) * 9)


def forged(sock, tree):
    honest_send(sock, {"error": next(FORMS)})""")
forge("stops", "says that an iteration is over", """\
def forged(sock, tree):
    honest_send(sock, {"stop": True})""")
forge("strange-replies", "replies of a strange form", """\
FORMS = (None, 1, "x", [], {}, {"ok": 1}, {"changed": []},
         {"ok": {"t": 1}, "changed": []}, {"ok": {}, "changed": 1},
         {"ok": {"t": "array", "d": "O", "s": [1], "b": [0, 8]},
          "changed": []},
         {"ok": {"t": "array", "d": "S0", "s": [2 ** 39], "b": [0, 0]},
          "changed": []},
         {"ok": {"t": "array", "d": "<f8", "s": [-1], "b": [0, -8]},
          "changed": []},
         {"ok": {"t": "handle", "v": 10 ** 30, "n": "n" * 9 ** 6},
          "changed": []},
         {"ok": {"t": "int", "v": "0x" + "f" * 10 ** 6}, "changed": []})


def forged(sock, tree):
    import os
    honest_send(sock, FORMS[int.from_bytes(os.urandom(2), "big")
                            % len(FORMS)])""")
forge("handle", "a handle in place of each answer, with a long name", """\
def forged(sock, tree):
    reply(sock, {"t": "handle", "v": 0, "c": True,
                 "n": "<script>alert('hc')</script>\\ud800" * 10_000})""")
forge("lengths", "a message of 4 GB, of which nothing comes", """\
def forged(sock, tree):
    sock.sendall(b"\\xff" * 8)
    time.sleep(60)""", "Layer")
forge("slow-bytes", "a byte now and then", """\
def forged(sock, tree):
    sock.sendall(wire.SIZES.pack(10_000, 0))
    while True:
        sock.sendall(b" ")
        time.sleep(0.05)""", "Layer")
forge("deep", "JSON that is 1,000,000 deep", """\
def forged(sock, tree):
    text = b"[" * 1_000_000
    sock.sendall(wire.SIZES.pack(len(text), 0) + text)""", "Layer")
forge("generators", "random generators in impossible states", """\
def forged(sock, tree):
    key, body = {"t": "array", "d": "<u4", "s": [624], "b": [0, 2496]}, \\
        bytes(2496)
    state = {"t": "dict", "v": [
        ["bit_generator", "MT19937"], ["state", {"t": "dict", "v": [
            ["key", key], ["pos", 10 ** 9]]}]]}
    reply(sock, {"t": "tuple", "v": [{"t": "rng", "v": state}] * 2}, body)""")
CONTROL = FORGE.replace("NAMES", "forward = Layer") + """\
def lie(tree):
    pass


def send(sock, tree, body=b""):
    if isinstance(tree, dict) and "done" in tree:
        lies(sock, tree)
    return honest_send(sock, tree, body)


wire.send = send


"""
alone("forged-loading", "says that all is loaded, in many ways", CONTROL + """\
def lies(sock, tree):
    for what in ({"at": 10 ** 9}, {"at": -1}, {"done": 0, "error": None},
                 {"loaded": True, "score": 15}):
        honest_send(sock, what)""")
alone("forged-notes", "reports of 8 MB that no text file takes", CONTROL + """\
def lies(sock, tree):
    for k in range(30):
        honest_send(sock, {"done": 0, "error":
                           f"{k} \\ud800 =1+1 <script>alert('hc')</script>"
                           + "x" * 8_000_000})""")
alone("forged-progress", "strange reports while the notebook is loaded",
      CONTROL + """\
def lies(sock, tree):
    for what in ({"at": []}, {"at": {}}, [], "loaded", 5):
        honest_send(sock, what)""", at_most=True)
alone("endless-progress", "reports for ever", CONTROL + """\
def lies(sock, tree):
    while True:
        honest_send(sock, {"at": 2})""", at_most=True)

# --- the notebook's cells ----------------------------------------------------


def edited(change, answers=PLAIN):
    """A right notebook after change(cells), which edits or returns them."""
    nb = answered(answers)
    nb["cells"] = change(nb["cells"]) or nb["cells"]
    return nb


def graded(c):
    """nbgrader's metadata of a cell, or an empty dict."""
    return c["metadata"].get("nbgrader", {})


def each(change):
    """A change of all cells that nbgrader knows."""
    def all_of(cells):
        for i, c in enumerate(cells):
            if graded(c):
                change(c, i)

    return all_of


case("tests-deleted", "all test cells deleted; right answers",
     edited(lambda cells: [c for c in cells if not (
         graded(c).get("grade") and c["cell_type"] == "code")]), 15, FULL)
case("tests-rewritten", "test cells say `assert True`; no answers",
     edited(each(lambda c, i: c.update(source="assert True")
                 if graded(c).get("grade") else None), {}), 0, (0, 0, 0, 0))
case("tests-that-answer", "test cells hold a skipped test and a pass",
     edited(each(lambda c, i: c.update(source="raise SystemExit(0)")
                 if graded(c).get("grade") else None), {}), 0, (0, 0, 0, 0))
case("tests-that-harm", "test cells that end the process; right answers",
     edited(each(lambda c, i: c.update(source="import os\nos._exit(0)")
                 if graded(c).get("grade_id") in ("q1-shapes", "q2-in-place")
                 else None)), 15, FULL)
case("cells-doubled", "each cell stands there twice",
     edited(lambda cells: [c for c in cells for _ in range(2)]), 15, FULL)
case("ids-doubled", "all cells carry one grade_id",
     edited(each(lambda c, i: graded(c).update(grade_id="q1-forward"))),
     15, FULL)
case("metadata-lost", "an editor has dropped all metadata",
     edited(lambda cells: [{**c, "metadata": {}} for c in cells]), 15, FULL)
case("ids-and-metadata-lost", "no cell ids either, as format 4.4 has it",
     {**edited(lambda cells: [{k: v for k, v in {**c, "metadata": {}}.items()
                               if k != "id"} for c in cells]),
      "nbformat_minor": 4, "metadata": {}}, 15, FULL)
case("metadata-nonsense", "metadata of wrong types", edited(
    lambda cells: [{**c, "metadata": m} for c, m in zip(cells, [
        {"nbgrader": "x"}, {"nbgrader": []}, {"nbgrader": {"points": []}},
        {"nbgrader": {"grade_id": "../../etc", "schema_version": "no"}},
        {"tags": 5}] * 9)]), 15, FULL)
case("points-raised", "each test claims 1,000 points; a stub for q2",
     edited(each(lambda c, i: graded(c).update(points=1000)),
            without(q2=None)), 10, (4, 0, 3, 3))
case("points-strange", "points of NaN, text and less than 0",
     edited(each(lambda c, i: graded(c).update(
         points=(float("nan"), "15", -5, None)[i % 4]))), 15, FULL)
case("extra-test", "a test cell of the student's own worth 100",
     edited(lambda cells: [*cells, tagged(
         "assert True", "q9-mine", grade=True, locked=True, points=100)],
         {}), 0, (0, 0, 0, 0))
case("roles-swapped", "answers marked as tests, tests as answers",
     edited(each(lambda c, i: graded(c).update(
         grade=graded(c)["solution"], solution=graded(c)["grade"]))),
     15, FULL)
case("other-order", "answers in another order", answered(
    order=["q4-layer", "q3-backward", "q2-update", "q1-forward"]), 15, FULL)
case("one-cell", "all answers in one cell of the student's own", answered(
    {}, after=["\n\n\n".join(PLAIN.values())]), 15, FULL)
case("answers-above-stubs", "right answers above untouched stubs: the stubs "
     "define the functions again; the layer's stub ends in an error",
     answered({}, before=["\n\n\n".join(PLAIN.values())]), 3, (0, 0, 0, 3))
case("later-wins", "q2 right first, then defined again and wrong", answered(
    after=["def update(state, x, momentum=0.1):\n    state['steps'] += 1"]),
    10, (4, 0, 3, 3))
case("answer-in-markdown", "q2 in a text cell", edited(
    lambda cells: [{k: v for k, v in {**c, "cell_type": "markdown"}.items()
                    if k not in ("outputs", "execution_count")}
                   if graded(c).get("grade_id") == "q2-update" else c
                   for c in cells]), 10, (4, 0, 3, 3))
case("answer-in-raw-cell", "q3 in a raw cell", edited(
    lambda cells: [{k: v for k, v in {**c, "cell_type": "raw"}.items()
                    if k not in ("outputs", "execution_count")}
                   if graded(c).get("grade_id") == "q3-backward" else c
                   for c in cells]), 12, (4, 5, 0, 3))
case("stub-left-inside", "the stub stands after the return", answered(
    without(q1=PLAIN["q1-forward"] + "\n    raise NotImplementedError()")),
    15, FULL)
case("stub-left-in-cell", "the stub stands at the cell's end", answered(
    {k: v + "\n\n# YOUR CODE HERE\nraise NotImplementedError()"
     for k, v in PLAIN.items()}), 15, FULL)
case("syntax-error", "q2 can't be read", answered(without(
    q2="def update(state, x, momentum=0.1:\n    pass")), 10, (4, 0, 3, 3))
case("syntax-error-beside", "a cell of notes that is no Python", answered(
    after=["this is what I learnt today!", "def f(:", "'''"]), 15, FULL)
case("indentation", "q3 mixes tabs and spaces", answered(without(
    q3="def backward(dy, cache):\n\tx = 1\n        return x")),
    12, (4, 5, 0, 3))
case("tabs-and-crlf", "tabs, and Windows' ends of lines", answered(
    {k: v.replace("    ", "\t").replace("\n", "\r\n")
     for k, v in PLAIN.items()}), 15, FULL)
case("magics", "IPython's commands between right answers", answered(
    {**PLAIN, "q1-forward": "%%time\n" + PLAIN["q1-forward"],
     "q2-update": "%load_ext autoreload\n" + PLAIN["q2-update"]
     + "\n\n%timeit -n1 sum([])\n!ls -l"},
    before=["%matplotlib inline\n!pip install numpy\nfiles = !ls\n"
            "print(files)", "np.mean?", "??forward", "%%bash\nrm -f *.tmp",
            "%%html\n<b>x</b>", "get_ipython().run_line_magic('pwd', '')",
            "display(np.zeros(2))"]), 15, FULL)
case("top-level-await", "await outside of a function", answered(
    before=["import asyncio\nawait asyncio.sleep(0)\nready = True"],
    after=["async def f():\n    return 1\nassert await f() == 1"]), 15, FULL)
case("own-tests", "the student's own tests, one of which fails", answered(
    after=["assert forward(np.eye(2), 1, 0)[0].shape == (2, 2)",
           "assert False, 'my own'", "forward(3, 4, 5)"]), 15, FULL)
case("missing-import", "imports what is not there", answered(
    before=["import pandas_of_mine", "from google.colab import drive\n"
            "drive.mount('/content/drive')"]), 15, FULL)
case("given-rewritten", "gives itself easy data", answered(
    {}, after=["def batch(n, c, seed, shift=0.0):\n    return np.zeros((n, c))"
               "\n\n\ndef forward(x, *_):\n    return np.zeros(x.shape), None"]
), 0, (0, 0, 0, 0))
case("numpy-forgotten", "the given cell is deleted; so is its import",
     edited(lambda cells: [c for c in cells
                           if graded(c).get("grade_id") != "given"]),
     15, FULL)
case("null-bytes-in-code", "a null byte in q3", answered(without(
    q3="def backward(dy, cache):\n    return \x00")), 12, (4, 5, 0, 3))
case("surrogates-in-code", "half a character in a cell of its own",
     answered(after=["x = '\ud800'"]), 15, FULL)
case("parser-bomb", "code that is too deep for the parser", answered(
    after=["x = " + "(" * 50_000 + ")" * 50_000, "x = " + "-" * 200_000 + "1",
           "x = " + "[" * 190 + "]" * 190 + "\n", "x" + ".a" * 100_000]),
    15, FULL, at_most=True)
case("many-cells", "3,000 cells beside right answers", answered(
    after=["pass"] * 3000), 15, FULL)
case("long-cell", "a cell of 2 MB: a table typed in", answered(
    after=["table = [" + "1.5, " * 400_000 + "]"]), 15, FULL)
case("picture-in-cell", "18 MB of a picture in a cell's text",
     {FILE: Later(lambda: as_bytes(answered(
         after=["image = '" + "iVBO" * 4_500_000 + "'"])))},
     15, FULL, status="either")
case("source-as-list", "lines in a list, as files hold them", edited(
    lambda cells: [{**c, "source": c["source"].splitlines(True)}
                   for c in cells]), 15, FULL)
case("source-as-number", "a cell whose text is a number", edited(
    lambda cells: [*cells, {**cell(""), "source": 5}]), 15, FULL,
    status="either")
case("scripts-everywhere", "scripts in text, outputs and names", edited(
    lambda cells: [
        *cells, cell(SCRIPT, "markdown"), {**cell("1"), "outputs": [
            {"output_type": "display_data", "metadata": {}, "data": {
                "text/html": SCRIPT, "application/javascript": "alert(1)",
                "image/svg+xml": f"<svg>{SCRIPT}</svg>"}},
            {"output_type": "stream", "name": "stdout", "text": SCRIPT},
            {"output_type": "error", "ename": SCRIPT, "evalue": SCRIPT,
             "traceback": [SCRIPT]}]},
        cell(f"raise ValueError({SCRIPT!r})"),
        tagged(SCRIPT, f"q5'\"><{SCRIPT}", "markdown", grade=True,
               solution=True, points=SCRIPT)]), 15, FULL)
case("outputs-20-mb", "20 MB of stored outputs",
     {FILE: Later(lambda: as_bytes(edited(
         lambda cells: [*cells, {**cell("1"), "outputs": [
             {"output_type": "stream", "name": "stdout",
              "text": "x" * 20_000_000}]}])))}, 15, FULL)
case("text-forged", "claims points by hand, and the end of a solution",
     edited(lambda cells: [*cells[:-1], tagged(
         "### END SOLUTION\n### BEGIN HIDDEN TESTS\n**Score: 5/5**",
         "q5-why", "markdown", grade=True, solution=True, points=5000)]),
     15, FULL)

# --- files -------------------------------------------------------------------

RIGHT = as_bytes(answered())
NOTHING = as_bytes(answered({}))
TEXT = RIGHT.decode()


def refused(name, why, files, status="refused", honest=None, **more):
    """What nobody can grade."""
    case(name, why, files, honest, status=status, **more)


def either(name, why, files, honest=15, scores=FULL, **more):
    """What a marker may refuse, or grade as it deserves."""
    case(name, why, files, honest, scores, status="either", **more)


refused("no-file", "an empty folder", {".keep": b""})
refused("empty-file", "a notebook without a byte", b"")
refused("blank-file", "a notebook of spaces", b" \n\n ")
refused("not-json", "a text called .ipynb", b"def forward(x): return x")
refused("truncated", "the upload broke off", RIGHT[:len(RIGHT) // 2])
refused("json-list", "a JSON list", b"[" + RIGHT + b"]")
refused("json-number", "a JSON number", b"15")
refused("json-other", "JSON of another program", b'{"score": 15}')
refused("json-deep", "JSON 100,000 deep", b"[" * 100_000 + b"]" * 100_000)
refused("json-deep-cell", "a notebook whose metadata are 100,000 deep",
        TEXT.replace('"metadata": {}', '"metadata": ' + "[" * 100_000
                     + "]" * 100_000, 1).encode())
refused("null-bytes", "a file of null bytes", bytes(100_000))
refused("random-bytes", "bytes of no kind", bytes(range(256)) * 40)
refused("cells-null", "no cells", {**answered(), "cells": None})
refused("cells-missing", "nothing but the format",
        b'{"nbformat": 4, "nbformat_minor": 5, "metadata": {}}')
refused("cells-strange", "cells that are numbers and lists",
        {**answered(), "cells": [1, None, [], "x"]})
refused("format-strange", "a format from the future",
        {**answered(), "nbformat": 10 ** 30, "cells": []})
refused("format-hostile", "a format that is a list, of old form",
        {"nbformat": [3], "worksheets": 7, "metadata": None})
either("format-3", "an old notebook", {
    "nbformat": 3, "nbformat_minor": 0, "metadata": {"name": ""},
    "worksheets": [{"metadata": {}, "cells": [
        {"cell_type": "code", "collapsed": False, "input": text,
         "language": "python", "metadata": {}, "outputs": []}
        for text in (GIVEN, *PLAIN.values())]}]})
case("huge-json-number", "a number of 10,000 digits in the metadata",
     TEXT.replace('"metadata": {}', '"metadata": {"n": ' + "9" * 10_000
                  + "}", 1).encode(), 15, FULL, status="either")
case("json-nan", "NaN and Infinity in the metadata",
     TEXT.replace('"metadata": {}', '"metadata": {"n": NaN, "m": 1e999}', 1)
     .encode(), 15, FULL)
case("doubled-keys", "each of JSON's keys twice",
     TEXT.replace('"nbformat": 4', '"nbformat": 3, "nbformat": 4').encode(),
     15, FULL)
either("kernel-r", "a notebook in R", {**answered(
    {}, after=["forward <- function(x) x"]), "metadata": {
        "kernelspec": {"name": "ir", "language": "R", "display_name": "R"},
        "language_info": {"name": "R"}}}, 0, (0, 0, 0, 0))
case("kernel-of-mine", "right, from a kernel of the student's own", {
    **answered(), "metadata": {"kernelspec": {
        "name": "../../evil; rm -rf", "display_name": SCRIPT}}}, 15, FULL)
either("bom", "UTF-8 with a byte order mark", b"\xef\xbb\xbf" + RIGHT)
either("utf-16", "UTF-16", TEXT.encode("utf-16"))
either("latin-1", "a comment in Latin-1",
       TEXT.replace("# Running a layer", "# Ein L\xe4ufer").encode("latin-1"))
case("crlf-file", "the file itself has Windows' ends of lines",
     RIGHT.replace(b"\n", b"\r\n"), 15, FULL)
refused("python-file", "a .py in place of a notebook",
        {"running-layer.py": "\n\n\n".join(PLAIN.values()).encode()})
refused("word-file", "a .docx", {"running-layer.docx": b"PK\x03\x04word"})
refused("pdf-file", "a .pdf", {"running-layer.pdf": b"%PDF-1.7\n%%EOF"})
refused("pdf-as-notebook", "a .pdf called .ipynb", b"%PDF-1.7\n%%EOF")
refused("folder-as-notebook", "a folder called like the notebook",
        {FILE: Folder()})
refused("pipe-as-notebook", "a pipe that nobody writes to", {FILE: Pipe()})
refused("device-link", "a link to a device that never ends",
        {FILE: Link("/dev/zero")})
refused("link-outside", "a link to a file of this machine",
        {FILE: Link("/etc/passwd")})
refused("link-to-neighbour", "a link to another student's work",
        {FILE: Link(f"../correct-plain/{FILE}")})
refused("link-to-itself", "a link to itself", {FILE: Link(FILE)})
refused("link-to-nothing", "a link to nothing", {FILE: Link("gone.ipynb")})
refused("folder-link", "a folder that is a link to a neighbour's",
        {"work": Link("../correct-plain")})
refused("folder-loop", "a folder that contains itself", {
    "a/again": Link("../../folder-loop"), "a/x.txt": b""})
refused("huge-file", "300 MB of null bytes", {FILE: Sparse(300_000_000)})
refused("larger-than-memory", "1 TB, of which nothing is there",
        {FILE: Sparse(10 ** 12)})
case("other-name", "right, under another name",
     {"Kopie von running-layer (2).ipynb": RIGHT}, 15, FULL)
case("accents-in-name", "right, with spaces and accents in its name",
     {"ma copie \xe9t\xe9 \u6279.ipynb": RIGHT}, 15, FULL)
case("decomposed-name", "right, accents as a Mac writes them",
     {"e\u0301te\u0301.ipynb": RIGHT}, 15, FULL)
case("newline-in-name", "right, with a newline in its name",
     {"run\nning=1+1\r.ipynb": RIGHT}, 15, FULL)
case("quotes-in-name", "right, with a command in its name",
     {"a';touch MARK;`touch MARK`$(touch MARK)\"|.ipynb".replace(
         "MARK", MARK): RIGHT}, 15, FULL)
case("dots-in-name", "right; a name that begins with dots may be hidden",
     {"..running-layer..ipynb": RIGHT}, 15, FULL, status="either")
case("capital-suffix", "right, called .IPYNB", {"RUNNING-LAYER.IPYNB": RIGHT},
     15, FULL, status="either")
case("long-name", "right, with the longest name that a disk takes",
     {"n" * 249 + ".ipynb": RIGHT}, 15, FULL)
case("bytes-in-name", "right, its name is no text",
     {os.fsdecode(b"\xff\xfe.ipynb"): RIGHT}, 15, FULL)
case("deep-folder", "right, 20 folders down",
     {"a/" * 20 + FILE: RIGHT}, 15, FULL, status="either")
case("with-checkpoints", "right, beside an editor's old copies", {
    FILE: RIGHT, f".ipynb_checkpoints/{NAME}-checkpoint.ipynb": NOTHING,
    ".DS_Store": b"\0\0", f"__MACOSX/._{FILE}": b"\0\5\x16\7",
    "__pycache__/x.pyc": b""}, 15, FULL)
case("named-and-other", "the notebook, and another one beside it",
     {FILE: RIGHT, "scratch.ipynb": NOTHING}, 15, FULL)
refused("two-notebooks", "two different notebooks, neither with its name",
        {"a.ipynb": RIGHT, "b.ipynb": NOTHING})
either("two-alike", "the same notebook twice",
       {"a.ipynb": RIGHT, "b.ipynb": RIGHT})
case("module-beside", "a numpy.py and a wire.py beside the notebook", {
    FILE: RIGHT, "numpy.py": b"raise SystemExit", "wire.py": b"1/0",
    "sitecustomize.py": b"1/0", "usercustomize.py": b"1/0",
    "conftest.py": b"1/0", "autograde.json": b'{"score": 15}',
    "results.json": b'{"score": 15}'}, 15, FULL)
case("results-beside", "a row of results beside an empty notebook", {
    FILE: NOTHING, "results.jsonl": b'{"student": "x", "score": 15}\n',
    "results/results-beside.json": b'{"status": "graded", "score": 15}',
    "timestamp.txt": b"0001-01-01 00:00:00 UTC"}, 0, (0, 0, 0, 0))

# --- archives ----------------------------------------------------------------


def zipped(entries, kind=zipfile.ZIP_DEFLATED):
    """A zip of (name or ZipInfo, bytes) pairs."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", kind) as file:
        for name, data in entries:
            if isinstance(name, str):
                name = zipfile.ZipInfo(name, (2024, 1, 1, 0, 0, 0))
                name.compress_type = kind
            file.writestr(name, data)
    return out.getvalue()


def link_info(name):
    """The entry of a symbolic link in a zip."""
    info = zipfile.ZipInfo(name, (2024, 1, 1, 0, 0, 0))
    info.create_system = 3
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


def locked_zip():
    """A zip whose entries say that they are encrypted."""
    data = bytearray(zipped([(FILE, RIGHT)]))
    central = data.rindex(b"PK\x01\x02")
    data[6] |= 1
    data[central + 8] |= 1
    return bytes(data)


def bomb():
    """1 GB of zeros in about 1 MB, called a notebook."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        with file.open(FILE, "w", force_zip64=True) as entry:
            for _ in range(1000):
                entry.write(bytes(1_000_000))
    return out.getvalue()


def lying_zip():
    """A zip that says that 50 MB of zeros are 100 bytes."""
    data = bytearray(zipped([(FILE, bytes(50_000_000))]))
    central = data.rindex(b"PK\x01\x02")
    data[22:26] = data[central + 24:central + 28] = struct.pack("<I", 100)
    return bytes(data)


def many_entries():
    """A zip with 100,000 empty files, the notebook among them."""
    return zipped([(f"f{i}.txt", b"") for i in range(100_000)]
                  + [(FILE, RIGHT)], zipfile.ZIP_STORED)


def tarred(entries, mode="w:gz"):
    """A tar of (TarInfo or name, bytes) pairs."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as file:
        for info, data in entries:
            if isinstance(info, str):
                info = tarfile.TarInfo(info)
            if info.isreg():
                info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return out.getvalue()


def special(name, kind, target=""):
    """A link, device or pipe in a tar."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    info.devmajor, info.devminor = 1, 5
    return info


def nested(depth):
    """Zips in zips, the notebook in the last."""
    data = zipped([(FILE, RIGHT)])
    for _ in range(depth):
        data = zipped([("inner.zip", data)])
    return data


case("zip", "the notebook in a zip", {"work.zip": zipped([(FILE, RIGHT)])},
     15, FULL)
case("zip-from-mac", "a zip as a Mac makes it", {"work.zip": zipped([
    (f"work/{FILE}", RIGHT), ("work/.DS_Store", b"\0"),
    (f"__MACOSX/work/._{FILE}", b"\0\5\x16\7")])}, 15, FULL)
either("zip-slip", "an entry that climbs out of the folder", {
    "work.zip": zipped([(FILE, RIGHT)] + [
        ("../" * k + MARK + ".ipynb", b"out") for k in range(1, 9)])})
either("zip-absolute", "an entry with an absolute path", {
    "work.zip": zipped([(FILE, RIGHT), (f"/tmp/{MARK}-zip", b"out"),
                        (f"C:\\{MARK}", b"out")])})
refused("zip-slip-alone", "nothing but an entry that climbs out", {
    "work.zip": zipped([(f"../correct-plain/{FILE}", NOTHING)])},
    status="either", honest=0)
refused("zip-link", "the notebook is a link to a neighbour's", {
    "work.zip": zipped([(link_info(FILE),
                         f"../correct-plain/{FILE}".encode())])})
either("zip-link-first", "a link to /tmp, then a file through it", {
    "work.zip": zipped([(link_info("out"), b"/tmp"),
                        (f"out/{MARK}-link", b"out"), (FILE, RIGHT)])})
refused("zip-bomb", "1 GB in 1 MB", {"work.zip": Later(bomb)})
refused("zip-lying", "50 MB that claim to be 100 bytes",
        {"work.zip": Later(lying_zip)})
refused("zip-locked", "encrypted", {"work.zip": locked_zip()})
refused("zip-corrupt", "its second half is missing",
        {"work.zip": zipped([(FILE, RIGHT)])[:-600]})
refused("zip-garbled", "its data do not fit its checksum", {
    "work.zip": zipped([(FILE, RIGHT)], zipfile.ZIP_STORED).replace(
        b"forward", b"badword")})
refused("zip-empty", "a zip without entries", {"work.zip": zipped([])})
refused("zip-as-notebook", "a zip called .ipynb",
        {FILE: zipped([(FILE, RIGHT)])}, status="either", honest=15)
refused("zip-many", "100,000 entries", {"work.zip": Later(many_entries)},
        status="either", honest=15)
either("zip-nested", "a zip in a zip", {"work.zip": nested(1)})
refused("zip-very-nested", "zips in zips, 40 deep", {"work.zip": nested(40)},
        status="either", honest=15)
either("zip-and-notebook", "the notebook, and an older zip", {
    FILE: RIGHT, "old.zip": zipped([(FILE, NOTHING)])})
refused("zip-folder", "a folder called like the notebook", {
    "work.zip": zipped([(FILE + "/", b""), (FILE + "/x", b"")])})
either("tar", "the notebook in a tar", {"work.tar.gz": tarred([
    (FILE, RIGHT)])})
either("tar-specials", "devices, links and pipes around the notebook", {
    "work.tar.gz": tarred([
        (special("zero", tarfile.CHRTYPE), b""),
        (special("pipe", tarfile.FIFOTYPE), b""),
        (special("soft", tarfile.SYMTYPE, "/etc/passwd"), b""),
        (special("hard", tarfile.LNKTYPE, "/etc/passwd"), b""),
        (special("out", tarfile.SYMTYPE, "/tmp"), b""),
        (f"out/{MARK}-tar", b"out"), (f"../../{MARK}-tar", b"out"),
        (f"/tmp/{MARK}-tar", b"out"), (FILE, RIGHT)])})
refused("tar-device", "the notebook is a device", {
    "work.tar": tarred([(special(FILE, tarfile.CHRTYPE), b"")], "w")})
refused("tar-hard-link", "the notebook is a hard link to the outside", {
    "work.tar": tarred([(special(
        FILE, tarfile.LNKTYPE, f"../correct-plain/{FILE}"), b"")], "w")})
refused("tar-truncated", "a tar that breaks off", {
    "work.tar.gz": tarred([(FILE, RIGHT)])[:-500]})
refused("seven-zip", "an archive that nothing here opens",
        {"work.7z": b"7z\xbc\xaf\x27\x1c" + bytes(100)})

# --- the student's folder ----------------------------------------------------


def called(name, why, folder, honest=15, **more):
    """A folder with a strange name. The file is one of a kind, so that its
    row is found again by its checksum."""
    answers = PLAIN if honest else {}
    case(name, why, answered(answers, after=[f"# {name}"]), honest,
         FULL if honest else (0, 0, 0, 0), folder=folder, **more)


called("folder-spaces", "spaces and an apostrophe", "Ada O'Neil  Lovelace ")
called("folder-twin-a", "this name and the next three look alike",
       "Zo\xeb K")
called("folder-twin-b", "no answers: may not get its twin's 15",
       "zoe-k", 0)
called("folder-twin-c", "no answers", "zoe k", 0)
called("folder-twin-d", "right again", "ZOE_K")
called("folder-formula", "a spreadsheet would run it",
       "=cmd|' &C calc'!A0")
called("folder-markup", "a page would run it", "<img src=x onerror=alert(1)>")
called("folder-newline", "a second row in the table",
       "eve\nmallory,15,15,graded")
called("folder-option", "looks like an option", "--resume")
called("folder-format", "looks like a format", "%s{0}{x}$HOME\\n")
called("folder-results", "called like the grader's own files", "results.csv")
called("folder-long", "the longest name that a disk takes", "l" * 255)
called("folder-long-twin", "another that begins alike; no answers",
       "l" * 254 + "m", 0)
called("folder-wide", "as long, in letters of three bytes", "\u6279" * 85)
called("folder-bytes", "no text at all", b"\xff\xfebytes")
called("folder-control", "control characters and right-to-left",
       "a\x1b[2Jb\x07\u202ec")
called("folder-device", "a name that Windows keeps to itself", "CON")
