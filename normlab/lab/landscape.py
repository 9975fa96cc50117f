"""How rough the loss is along the gradient, and how curved, while networks
with and without normalisation train."""

import numpy as np

from normlab.lab.experiment import Experiment, grid, load
from normlab.lab.train import batches

# How each method normalises: by the p-th root of the mean p-th power.
ORDERS = {"none": None, "default": None, "BN": 2.0, "l1": 1.0,
          "linf": float("inf")}


def gaussian_norm(p, m):
    """What lp_norm gives, on average, for m standard normal values: the
    p-th root of E|x|^p for finite p, E max |x_i| for p infinite."""
    from math import gamma, pi

    from scipy.special import erf

    if np.isfinite(p):
        return (2 ** (p / 2) * gamma((p + 1) / 2) / pi ** 0.5) ** (1 / p)
    t = np.linspace(0, 12, 24_001)  # E max = integral of P(max > t)
    tail = 1 - erf(t / 2 ** 0.5) ** m
    return float((tail[:-1] + tail[1:]).sum() * (t[1] - t[0]) / 2)


def lp_norm(d, p, eps=0.0):
    """The p-th root of the mean of |d|^p over the second-last dimension of
    d (..., m, C), the maximum for p infinite: (..., 1, C)."""
    size = d.abs()
    if p == float("inf"):
        return size.amax(-2, keepdim=True) + eps ** 0.5
    return (size.pow(p).mean(-2, keepdim=True) + eps ** (p / 2)).pow(1 / p)


def lp_normalise(z, p, eps=1e-5):
    """z (..., m, C) less its mean over the m values, divided by their lp
    norm, scaled so that Gaussian values come out with variance about 1.

    With p = 2 this is batch normalization. Source: Santurkar et al. (2018),
    section 3.3, up to the scale; they take the norm before the mean is
    subtracted.
    """
    d = z - z.mean(-2, keepdim=True)
    return d / (lp_norm(d, p, eps) / gaussian_norm(p, z.shape[-2]))


class Stack:
    """K networks of ReLU layers in one array: their shapes, and what they
    compute. They differ in their weights and in nothing else.

    method: a key of ORDERS; sizes: features, widths of the hidden layers,
    classes. The parameters are theta (K, P): all weight matrices, (in, out)
    each, and after them all other parameters.
    """

    def __init__(self, method, sizes):
        self.p, self.scaled = ORDERS[method], method == "default"
        pairs = list(zip(sizes, sizes[1:], strict=False))
        self.shapes = pairs + [(1, n) for _, n in pairs]
        if self.p:  # beta has the bias's place, gamma is extra
            self.shapes += [(1, n) for _, n in pairs[:-1]]
        self.layers = len(pairs)
        self.numbers = [a * b for a, b in self.shapes]
        self.weights = sum(self.numbers[:self.layers])

    def draw(self, seeds):
        """Initial parameters (K, P). Weights are N(0, 2 / n_in), biases 0;
        "default" has PyTorch's: all uniform within 1 / sqrt(n_in)."""
        import torch

        rows = []
        for seed in seeds:
            rng, parts = np.random.default_rng(seed), []
            for i, count in enumerate(self.numbers):
                n_in = self.shapes[i % self.layers][0]
                if self.scaled:
                    part = rng.uniform(-1, 1, count) / n_in ** 0.5
                elif i < self.layers:
                    part = rng.normal(0, (2 / n_in) ** 0.5, count)
                else:  # biases and betas are 0, gammas 1
                    part = np.full(count, float(i >= 2 * self.layers))
                parts.append(part)
            rows.append(np.concatenate(parts))
        return torch.tensor(np.stack(rows), dtype=torch.float32)

    def parts(self, theta):
        """theta (K, P) as arrays (K, in, out) and (K, 1, out)."""
        return [part.reshape(len(theta), *shape) for part, shape in zip(
            theta.split(self.numbers, dim=1), self.shapes, strict=True)]

    def logits(self, theta, x):
        """(K, N, classes) for x (K, N, features), in training mode."""
        parts, k = self.parts(theta), self.layers
        for i in range(k):
            x = x @ parts[i]
            if self.p and i < k - 1:
                x = lp_normalise(x, self.p) * parts[2 * k + i]
            x = x + parts[k + i]
            if i < k - 1:
                x = x.relu()
        return x

    def loss(self, theta, x, y):
        """Cross-entropy (K,) of labels y (K, N)."""
        from torch.nn.functional import cross_entropy

        z = self.logits(theta, x)
        return cross_entropy(z.flatten(0, 1), y.flatten(),
                             reduction="none").reshape(y.shape).mean(dim=1)

    def gradient(self, theta, x, y, graph=False):
        """Loss (K,) and its gradient (K, P); with `graph` to be
        differentiated once more."""
        import torch

        if not graph:
            theta = theta.detach().requires_grad_()
        loss = self.loss(theta, x, y)
        grad, = torch.autograd.grad(loss.sum(), theta, create_graph=graph)
        return loss.detach(), grad

    def curvature(self, theta, x, y, scale, start, steps):
        """The eigenvalue of largest size (K,) of S H S, with H the Hessian
        by the weight matrices and S the diagonal `scale` (K, weights), by
        power iteration from `start` (K, weights); and the last vector."""
        import torch

        theta = theta.detach().requires_grad_()
        _, grad = self.gradient(theta, x, y, graph=True)
        v, n = start, self.weights
        for _ in range(steps):
            v = v / v.norm(dim=1, keepdim=True)
            again, = torch.autograd.grad(
                (grad[:, :n] * (scale * v)).sum(), theta, retain_graph=True)
            u = v
            v = scale * again[:, :n]
        return (u * v).sum(dim=1), v

    def layer_norms(self, theta):
        """The Frobenius norm of each weight matrix (K, layers), and the
        same at the place of each weight (K, weights)."""
        import torch

        norms = torch.stack([part.flatten(1).norm(dim=1) for part in
                             self.parts(theta)[:self.layers]], dim=1)
        return norms, norms.repeat_interleave(
            torch.tensor(self.numbers[:self.layers]), dim=1)


def walk(stack, theta, x, y, grad, lengths):
    """The loss, the change of the gradient and its cosine with the first
    at theta - a * grad, all (K, steps), for the lengths a (K, steps); only
    the weight matrices move."""
    import torch
    from torch.nn.functional import cosine_similarity

    n, seen = stack.weights, []
    for a in lengths.T:
        there = theta.clone()
        there[:, :n] -= a[:, None] * grad[:, :n]
        loss, g = stack.gradient(there, x, y)
        seen.append((loss, (g - grad)[:, :n].norm(dim=1),
                     cosine_similarity(g[:, :n], grad[:, :n])))
    return [torch.stack(found, dim=1) for found in zip(*seen, strict=True)]


def probe(config, stack, theta, x, y, lr, starts):
    """What the loss on the batch x, y looks like around theta (K, P): a
    dict of results for each network, and where the next power iterations
    are to start."""
    import torch

    n = stack.weights
    loss, grad = stack.gradient(theta, x, y)
    size = grad[:, :n].norm(dim=1)
    norms, place = stack.layer_norms(theta)
    whole = norms.norm(dim=1)
    along = lr[:, None] * torch.tensor(config["multiples"])
    found = {"probe_loss": loss, "gradient": size, "norm": whole}
    for name, lengths in (
            ("step", along),
            ("share", (whole / size)[:, None] * torch.tensor(
                config["shares"]))):
        values = walk(stack, theta, x, y, grad, lengths)
        for key, value in zip(("loss", "change", "cosine"), values,
                              strict=True):
            found[f"{name}_{key}"] = value
    found["sharpness"], first = stack.curvature(
        theta, x, y, torch.ones_like(place), starts[0],
        config["iterations"])
    found["layer_sharpness"], second = stack.curvature(
        theta, x, y, place, starts[1], config["iterations"])
    rows = [{key: digits(value[i]) for key, value in found.items()}
            for i in range(len(theta))]
    return rows, (first, second)


def digits(value):
    """A tensor's numbers in four digits; None where not finite."""
    if value.ndim:
        return [digits(v) for v in value]
    number = float(value)
    return float(f"{number:.4g}") if np.isfinite(number) else None


def sets(config, seed):
    """Training images and labels, and test images and labels in an order
    that the seed draws: x (N, features), y (N,)."""
    x, y, x_test, y_test = load(config["data"])
    order = np.random.default_rng(seed).permutation(len(x_test))
    order = order[:config["test"]]
    return (x[:config["train"]], y[:config["train"]], x_test[order],
            y_test[order])


def accuracy(stack, theta, x, y, size):
    """Percent right (K,), each batch of `size` with its own statistics."""
    import torch

    right = 0
    with torch.no_grad():
        for i in range(0, len(x) - size + 1, size):
            z = stack.logits(theta, x[i:i + size].expand(
                len(theta), -1, -1))
            right = right + (z.argmax(-1) == y[i:i + size]).sum(dim=1)
    return 100 * right / (len(x) // size * size)


def several(config, points, tick):
    """Train the networks of points of one method side by side with plain
    SGD. At the checkpoints, `probe` those whose learning rate is among
    config["probed"]."""
    import torch

    method = points[0]["method"]
    x, y, x_test, y_test = (torch.from_numpy(a) for a in sets(config, 0))
    stack = Stack(method, [x.shape[1], *config["hidden"], 10])
    theta = stack.draw([p["seed"] for p in points])
    lr = torch.tensor([p["lr"] for p in points], dtype=torch.float32)
    draws = [batches(len(x), config["batch_size"], p["seed"])
             for p in points]
    at = [i for i, p in enumerate(points)
          if p["lr"] in config["probed"]]
    losses, seen = [], [[] for _ in points]
    starts = 2 * (torch.ones(len(at), stack.weights),)
    for step in range(config["steps"] + 1):
        rows = torch.from_numpy(np.stack([next(draw) for draw in draws]))
        if step in config["checkpoints"]:
            if at:
                found, starts = probe(config, stack, theta[at], x[rows[at]],
                                      y[rows[at]], lr[at], starts)
                for i, result in zip(at, found, strict=True):
                    seen[i].append(result)
            tick(step)
        if step < config["steps"]:
            loss, grad = stack.gradient(theta, x[rows], y[rows])
            theta = theta - lr[:, None] * grad
            losses.append(loss)
    curve = torch.stack(losses, dim=1).unflatten(
        1, (config["parts"], -1)).mean(dim=2)
    right = accuracy(stack, theta, x_test, y_test, config["batch_size"])
    return [{"loss": digits(curve[i]), "accuracy": digits(right[i])} | {
        key: [result[key] for result in seen[i]]
        for key in (seen[i][0] if seen[i] else ())}
        for i in range(len(points))]


def landscape(config, point, tick):
    """`several` for one point."""
    return several(config, [point], tick)[0]


LANDSCAPE = {
    "methods": ["none", "default", "BN", "l1", "linf"],
    "learning_rates": [0.03, 0.1, 0.3, 1.0, 3.0],
    "seeds": [0, 1, 2],
    "hidden": [100] * 5,
    "batch_size": 100,
    "parts": 10,  # into which the curve of the loss is averaged
    "multiples": [0.25, 0.5, 1.0, 2.0, 4.0],  # of the learning rate
    "shares": [0.003, 0.01, 0.03, 0.1],  # of the weights' norm
    "iterations": 16,
    "probed": [0.1, 0.3, 1.0],  # learning rates at which we look around
}

EXPERIMENT = Experiment(
    title="The loss along the gradient and its curvature: five ReLU layers "
          "of 100 without normalisation and with three kinds of it",
    live=LANDSCAPE | {
        "data": "digits",
        "hidden": [50] * 5,
        "batch_size": 50,
        "train": 1437,
        "test": 350,
        "steps": 200,
        "checkpoints": [0, 10, 25, 50, 75, 100, 150, 200],
    },
    full=LANDSCAPE | {
        "data": "mnist",
        "train": 6000,
        "test": 2000,
        "steps": 400,
        "checkpoints": [0, 10, 20, 30, 50, 75, 100, 150, 200, 250, 300, 350,
                        400],
    },
    points=grid,
    steps=lambda config, point: config["steps"],
    run=landscape,
    code=(gaussian_norm, lp_norm, lp_normalise, Stack, walk, probe, digits,
          sets, accuracy, several, landscape, grid, batches),
    layers=(),
    several=several,
    alike=lambda point: point["method"],
)
