"""Accuracy: goal P4. Errors in float32 against float64, same input."""

from functools import partial

import numpy as np
import torch

from benchmarks import peers, report
from normlab import numpy_layers as layers

GOAL_Y, GOAL_DX = 5e-6, 1e-6
COUNTS = (4_096, 200_704)  # values a channel: 64 x 8 x 8 and 64 x 56 x 56
SETTINGS = [(mean, std) for mean in (0.0, 1e3, 1e4) for std in (1.0, 1e-2)]
CHANNELS, EPS = 16, 1e-5


def data(n, mean, std, seed=0):
    """x with that mean and standard deviation, and dy: (n, C) float32."""
    rng = np.random.default_rng(seed)
    x = mean + std * rng.standard_normal((n, CHANNELS))
    dy = rng.standard_normal((n, CHANNELS))
    return x.astype(np.float32), dy.astype(np.float32)


def lay(a, layout):
    """(n, C) as it is ("2-D"), or as images (64, C, H, W) whose memory is
    NHWC or NCHW."""
    if layout == "2-D":
        return a
    side = int((len(a) // 64) ** 0.5)
    a = np.moveaxis(a.reshape(64, side, side, -1), -1, 1)
    return np.ascontiguousarray(a) if layout == "NCHW" else a


def unlay(a):
    """Undo `lay`."""
    return np.moveaxis(a, 1, -1).reshape(-1, a.shape[1])


def ours(x, dy):
    """y, dx and the batch variance from this book's functions."""
    one, zero = np.ones(x.shape[1], "f"), np.zeros(x.shape[1], "f")
    y, cache = layers.batch_norm_forward(x, one, zero, EPS)
    return y, layers.batch_norm_backward(dy, cache)[0], cache.var


def by_torch(x, dy):
    """The same from PyTorch; the variance by way of its running average."""
    x = torch.from_numpy(x).requires_grad_()
    c = x.shape[1]
    mean, var = torch.zeros(c), torch.zeros(c)
    y = torch.nn.functional.batch_norm(
        x, mean, var, torch.ones(c), torch.zeros(c), True, 1.0, EPS)
    y.backward(torch.from_numpy(dy))
    m = x.numel() // c
    return y.detach().numpy(), x.grad.numpy(), var.numpy() * (m - 1) / m


def staged(x, dy, variance=None):
    """The same from the staged layer, x (N, C)."""
    one, zero = np.ones(x.shape[1], "f"), np.zeros(x.shape[1], "f")
    with np.errstate(invalid="ignore"):
        y, saved = peers.staged_forward(x, one, zero, EPS, variance)
        dx, _, _ = peers.staged_backward(dy, saved)
    var = x.var(axis=0) if variance is None else variance(x)
    return y, dx, var


METHODS = {
    **{f"ours {at}": (ours, at) for at in ("2-D", "NHWC", "NCHW")},
    **{f"torch {at}": (by_torch, at) for at in ("2-D", "NHWC", "NCHW")},
    "staged 2-D": (staged, "2-D"),
    "one-pass 2-D": (
        partial(staged, variance=peers.one_pass_variance), "2-D"),
}


def reference(x, dy):
    """y, dx and the variance in float64; x and dy (n, C)."""
    x, dy = x.astype(float), dy.astype(float)
    var = x.var(axis=0)
    inv_std = 1 / np.sqrt(var + EPS)
    x_hat = (x - x.mean(axis=0)) * inv_std
    inner = (dy * x_hat).mean(axis=0)
    return x_hat, inv_std * (dy - dy.mean(axis=0) - x_hat * inner), var


def errors(method, layout, x, dy, truth):
    """Largest |y - y64|, relative error of dx and of the variance, and the
    number of negative variances."""
    y, dx, var = method(lay(x, layout), lay(dy, layout))
    y64, dx64, var64 = truth
    gap = np.linalg.norm(unlay(dx) - dx64) / np.linalg.norm(dx64)
    return {"y": float(np.abs(unlay(y) - y64).max()), "dx": float(gap),
            "var": float(np.abs(var / var64 - 1).max()),
            "negative": int((var < 0).sum())}


def run(counts=COUNTS, settings=SETTINGS):
    """Every method on every setting; a list of dicts for the record."""
    results = []
    with peers.torch_threads(torch, 1):
        for n in counts:
            for mean, std in settings:
                x, dy = data(n, mean, std)
                truth = reference(x, dy)
                results += [
                    {"method": name, "n": n, "mean": mean, "std": std,
                     **errors(method, layout, x, dy, truth)}
                    for name, (method, layout) in METHODS.items()]
    return results


def meets(r):
    """Whether one of our results meets goal P4; NaN does not."""
    return r["y"] <= GOAL_Y and r["dx"] <= GOAL_DX and r["negative"] == 0


def show(r):
    """One result as a cell."""
    text = f"{r['y']:.0e} {r['dx']:.0e}"
    return text.upper() if "nan" in text else text


def plain(r):
    """A result as JSON can hold it: NaN as text."""
    return {k: str(v) if v != v else v for k, v in r.items()}


def main(rounds=None):
    """Run everything, print the tables, write the record. `rounds` is for
    what is timed, and not used here."""
    results = run()
    for n in COUNTS:
        cells = [[f"{n:,} values", *(f"{m:g}/{s:g}" for m, s in SETTINGS)]]
        for name in METHODS:
            cells.append([name, *(show(r) for r in results
                                  if r["n"] == n and r["method"] == name)])
        print(report.table(cells) + "\n")
    mine = [r for r in results if r["method"].startswith("ours")]
    met = all(map(meets, mine))
    print("Accuracy: max |y - y64|, then relative error of dx, at mean/std; "
          "one thread")
    print(f"P4, ours: y <= {GOAL_Y:.0e} (worst {max(r['y'] for r in mine):.1e}"
          f"), dx <= {GOAL_DX:.0e} (worst {max(r['dx'] for r in mine):.1e}), "
          f"no negative variance: {'met' if met else 'NOT met'}")
    print(report.write("accuracy", [plain(r) for r in results], met=met,
                       goal={"y": GOAL_Y, "dx": GOAL_DX},
                       channels=CHANNELS, eps=EPS))
