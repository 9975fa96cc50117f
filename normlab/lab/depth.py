"""Networks of many layers: what gradients do in them at the start, and which
of them train. All networks of one kind are computed side by side."""

from typing import NamedTuple

import numpy as np

from normlab.lab.experiment import Experiment
from normlab.lab.small_batches import parts
from normlab.lab.train import batches


class Arm(NamedTuple):
    """How a network is built from blocks f(h) = W relu(norm(h))."""
    norm: str  # "none", "BN" or "LN"
    skip: bool = False  # h + scale * f(h) instead of f(h)
    scale: str = "one"  # "one"; "root", 1/sqrt(blocks); "skipinit", learned


ARMS = {
    "plain": Arm("none"),
    "plain BN": Arm("BN"),
    "plain LN": Arm("LN"),
    "residual": Arm("none", True),
    "residual BN": Arm("BN", True),
    "residual, 1/sqrt(L)": Arm("none", True, "root"),
    "SkipInit": Arm("none", True, "skipinit"),
}


def start(arm, sizes, blocks, seeds, gain=2 ** 0.5, dtype="float32"):
    """Parameters of K networks, one a seed, each array with K in front:
    features, width, classes = sizes. Weights are N(0, gain^2 / fan_in), the
    first and the last layer's N(0, 1 / fan_in); the same seed gives the
    same weights to every arm. Without a norm each layer has a bias.
    """
    import torch

    features, width, classes = sizes
    draws = [np.random.default_rng(seed) for seed in seeds]

    def normal(std, *shape):
        return torch.from_numpy(np.stack(
            [std * draw.standard_normal(shape) for draw in draws])).to(
            getattr(torch, dtype))

    p = {"first": normal(features ** -0.5, features, width),
         "last": normal(width ** -0.5, width, classes),
         "blocks": normal(gain * width ** -0.5, blocks, width, width)}
    k, like = len(seeds), {"dtype": p["first"].dtype}
    p["last_bias"] = torch.zeros(k, 1, classes, **like)
    p["biases"] = torch.zeros(k, blocks + 1, 1, width, **like)
    if arm.norm != "none":
        p["gammas"] = torch.ones(k, blocks + 1, 1, width, **like)
    if arm.scale == "skipinit":
        p["alphas"] = torch.zeros(k, blocks, 1, 1, **like)
    return p


def normalise(h, norm, statistics=None, training=True, eps=1e-5):
    """h (K, B, width), normalised over the batch or over the features.

    statistics: a pair of running means and variances (K * width,), moved
    with momentum 0.1 in training and used out of it.
    """
    from torch.nn import functional

    if norm == "none":
        return h
    k, n, width = h.shape
    if norm == "LN":
        return functional.layer_norm(h, (width,), eps=eps)
    mean, var = statistics or (None, None)
    flat = h.transpose(1, 2).reshape(1, k * width, n)
    flat = functional.batch_norm(flat, mean, var, training=training, eps=eps)
    return flat.reshape(k, width, n).transpose(1, 2)


def forward(p, x, arm, act, running=None, training=True):
    """States h_0 ... h_L (K, B, width) and logits (K, B, classes) of K
    networks for x (K, B, features); act is the activation. running: a pair
    of tensors (blocks + 1, K * width), or None."""
    h = x @ p["first"]
    states, blocks = [h], p["blocks"].unbind(1)
    biases, alphas = p["biases"].unbind(1), None
    gammas = p["gammas"].unbind(1) if "gammas" in p else None
    if "alphas" in p:
        alphas = p["alphas"].unbind(1)
    for i in range(len(blocks) + 1):
        now = running and (running[0][i], running[1][i])
        f = normalise(h, arm.norm, now, training)
        f = act(f * gammas[i] + biases[i] if gammas else f + biases[i])
        if i == len(blocks):
            return states, f @ p["last"] + p["last_bias"]
        f = f @ blocks[i]
        if alphas:
            f = f * alphas[i]
        elif arm.scale == "root":
            f = f * len(blocks) ** -0.5
        h = h + f if arm.skip else f
        states.append(h)


def gradient_norms(p, x, arm, act, depths, seed):
    """For K networks at their start: one array (depth + 1, K) for each of
    `depths`, the norm of the gradient at the states from the first to that
    of this depth, where a random gradient stands, relative to it."""
    import torch

    draw = torch.Generator().manual_seed(seed)
    first = p["first"].clone().requires_grad_()
    states, _ = forward(p | {"first": first}, x, arm, act)
    found = []
    for depth in depths:
        last = torch.randn(x.shape[0], x.shape[1], first.shape[2],
                           generator=draw, dtype=x.dtype)
        grads = torch.autograd.grad(states[depth], states[:depth + 1], last,
                                    retain_graph=True)
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in grads])
        found.append((norms / norms[-1]).numpy())
    return found


def activation(name):
    """The function called relu, tanh or identity."""
    import torch

    return {"relu": torch.relu, "tanh": torch.tanh,
            "identity": lambda z: z}[name]


def at_the_start(config, point, tick):
    """For each depth, at ten states from the first on in equal steps: the
    base-10 logarithm of the gradient's norm, relative to that at the state
    of this depth, averaged over the seeds ("mean") and its standard
    deviation over them ("sd"). Input is Gaussian."""
    import torch

    tick(0)
    width, depths, seeds = config["width"], config["depths"], config["seeds"]
    arm = Arm(point["norm"], point["skip"])
    found = []
    for seed in seeds:
        p = start(arm, (width, width, 1), max(depths), [seed], point["gain"],
                  "float64")
        x = torch.from_numpy(np.random.default_rng([seed, 1])
                             .standard_normal((1, point["batch_size"],
                                               width)))
        norms = gradient_norms(p, x, arm, activation(point["act"]), depths,
                               seed)
        found.append([np.log10(a[:-1:d // 10, 0])
                      for a, d in zip(norms, depths, strict=True)])
    return {"mean": np.mean(found, axis=0).round(3).tolist(),
            "sd": np.std(found, axis=0, ddof=1).round(3).tolist()}


def starts(config):
    """Points of `at_the_start`: batch normalization at every batch size,
    the others at one, no normalisation at every gain; then with a skip."""
    def point(norm, act, batch_size=config["batch_size"], gain=1.0,
              skip=False):
        return {"norm": norm, "act": act, "batch_size": batch_size,
                "gain": gain, "skip": skip}

    acts, he = config["acts"], 2 ** 0.5
    return [
        *(point("BN", act, n) for act in acts
          for n in config["batch_sizes"]),
        *(point("LN", act) for act in acts),
        *(point("none", act, gain=g) for act in acts
          for g in config["gains"]),
        *(point("BN", "relu", n, he, True) for n in config["batch_sizes"]),
        *(point(norm, "relu", gain=he, skip=True)
          for norm in ("none", "LN"))]


def train(p, arm, x, y, rows, steps, size, lrs, seeds, momentum, tick):
    """Train K networks in place with cross-entropy and SGD with momentum,
    each with its rows (K, n), learning rate and order of the batches.
    Returns losses (steps, K) and the running statistics."""
    import torch

    own = {seed: batches(rows.shape[1], size, seed) for seed in set(seeds)}
    k, blocks, width = p["blocks"].shape[:3]
    running = (torch.zeros(blocks + 1, k * width),
               torch.ones(blocks + 1, k * width))
    params = [a.requires_grad_() for a in p.values()]
    speeds = [torch.zeros_like(a) for a in params]
    rates = torch.tensor(lrs, dtype=torch.float32)
    rates = [rates.view(-1, *[1] * (a.dim() - 1)) for a in params]
    losses = np.empty((steps, k), np.float32)
    for step in range(steps):
        if step % 20 == 0:
            tick(step)
        now = {seed: next(draw) for seed, draw in own.items()}
        here = rows.gather(1, torch.from_numpy(
            np.stack([now[s] for s in seeds])))  # (K, size)
        _, logits = forward(p, x[here], arm, torch.relu, running)
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), y[here].flatten(),
            reduction="none").view(k, size).mean(1)
        losses[step] = loss.detach().numpy()
        grads = torch.autograd.grad(loss.sum(), params)
        with torch.no_grad():
            for a, v, g, rate in zip(params, speeds, grads, rates,
                                     strict=True):
                v.mul_(momentum).add_(g)
                a.sub_(v * rate)
    return losses, running


def accuracies(p, arm, x, y, rows, size, running=None):
    """The share (K,) of right answers on each network's own rows (K, n):
    with running statistics, or with those of batches of `size`."""
    import torch

    right = 0
    with torch.no_grad():
        for here in rows.split(size, 1):  # (K, size)
            _, logits = forward(p, x[here], arm, torch.relu, running,
                                running is None)
            finite = logits.isfinite().all(2)
            right = right + ((logits.argmax(2) == y[here]) & finite).sum(1)
    return right.numpy() / rows.shape[1]


def deep(config, point, tick):
    """Train one arm at one depth, all learning rates and seeds at once.

    Results are lists [learning rate][seed]: shares of right answers, with
    running statistics ("val", "test") and with those of the test batches
    ("batch"), and the mean training loss of the last 20 steps ("loss";
    None where it is not finite).
    """
    arm, size = ARMS[point["method"]], config["batch_size"]
    x, y, *rows = parts(config)
    rates = config["learning_rates"]["skip" if arm.skip else "plain"]
    seeds, k = config["seeds"], len(rates)
    lrs, each = np.repeat(rates, len(seeds)), seeds * k
    train_rows, val, test = (r.repeat(k, 1) for r in rows)
    p = start(arm, (x.shape[1], config["width"], 10), point["blocks"], each)
    losses, running = train(p, arm, x, y, train_rows, config["steps"], size,
                            lrs, each, config["momentum"], tick)
    loss = losses[-20:].mean(0)
    found = {"val": accuracies(p, arm, x, y, val, 500, running),
             "test": accuracies(p, arm, x, y, test, 500, running),
             "batch": accuracies(p, arm, x, y, test, size)}
    shape = k, len(seeds)
    return {"learning_rates": rates} | {
        key: np.round(v.astype(float).reshape(shape), 4).tolist()
        for key, v in found.items()} | {
        "loss": [[round(float(v), 4) if np.isfinite(v) else None
                  for v in row] for row in loss.reshape(shape)]}


def every_arm(config):
    """Every arm at every depth."""
    return [{"method": method, "blocks": blocks}
            for blocks in config["blocks"] for method in config["methods"]]


def best(points, method, blocks, key="test"):
    """The learning rate of the best mean validation accuracy, and result
    `key` (seeds,) at it; ValueError if there is no such point."""
    for p in points:
        if (p["method"], p["blocks"]) == (method, blocks):
            row = int(np.argmax(np.mean(p["val"], axis=1)))
            return p["learning_rates"][row], np.array(p[key][row])
    raise ValueError(f"no point has method {method!r} and {blocks} blocks")


DEEP = {
    "methods": list(ARMS),
    "learning_rates": {"plain": [0.0003, 0.001, 0.003, 0.01, 0.03, 0.1],
                       "skip": [0.001, 0.003, 0.01, 0.03, 0.1]},
    "seeds": [0, 1, 2],
    "sizes": None,  # flat images, for `parts`
    "momentum": 0.9,
    "batch_size": 64,
}
EXPERIMENT = Experiment(
    title="Networks of 20, 50 and 100 layers, plain and residual, with and "
          "without normalization",
    live=DEEP | {
        "data": "digits", "blocks": [100], "width": 32, "steps": 40,
        "batch_size": 32, "parts": [1137, 300, 360],
        "learning_rates": {"plain": [0.001, 0.01], "skip": [0.01, 0.03]},
    },
    full=DEEP | {
        "data": "mnist", "blocks": [20, 50, 100], "width": 64, "steps": 300,
        "parts": [6000, 1000, 2000],
    },
    points=every_arm,
    steps=lambda config, point: config["steps"],
    run=deep,
    code=(start, normalise, forward, train, accuracies, deep, parts, batches,
          every_arm),
    layers=(),  # PyTorch's own
)

STARTS = {
    "seeds": [0, 1, 2],
    "acts": ["relu", "tanh", "identity"],
    "batch_sizes": [4, 8, 16, 32, 64],
    "batch_size": 32,
    "gains": [0.5, 1.0, 2 ** 0.5, 2.0],
}
GRADIENTS = Experiment(
    title="The size of the gradient at each of 100 layers of random weights",
    live=STARTS | {"width": 128, "depths": [10, 20]},
    full=STARTS | {"width": 512, "depths": [10, 20, 50, 100]},
    points=starts,
    steps=lambda config, point: 1,
    run=at_the_start,
    code=(start, normalise, forward, gradient_norms, activation,
          at_the_start, starts),
    layers=(),
)
