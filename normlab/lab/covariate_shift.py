"""Internal covariate shift in ReLU networks, measured while they train with
and without batch normalization, and with noise after it."""

import numpy as np

from normlab.lab.experiment import Experiment, load
from normlab.lab.train import batches

EPS = 1e-5
PLACES = ("z", "y", "v")  # see `forward`


def initial(method, sizes, seeds):
    """Networks, one a seed, side by side: a list of layers, each a dict of
    tensors, weight (K, in, out) and the rest (K, 1, out).

    method: "default" (PyTorch's: weights and biases uniform within
    1 / sqrt(in)), "He" (weights N(0, 2 / in), biases 0), or "BN" (weights
    as "He"; each hidden layer has gamma and beta instead of a bias).
    Raises ValueError for another. Source: He et al. (2015).
    """
    import torch

    if method not in ("default", "He", "BN"):
        raise ValueError(f"method must be default, He or BN, got {method!r}")
    rngs, layers = [np.random.default_rng(seed) for seed in seeds], []
    for n, m in zip(sizes, sizes[1:], strict=False):
        layer = {}
        if method == "default":
            layer["weight"], layer["bias"] = (
                np.stack([rng.uniform(-1, 1, (k, m)) for rng in rngs])
                / np.sqrt(n) for k in (n, 1))
        else:
            layer["weight"] = np.stack(
                [rng.normal(0, np.sqrt(2 / n), (n, m)) for rng in rngs])
            flat = np.zeros((len(rngs), 1, m))
            if method == "BN" and len(layers) < len(sizes) - 2:
                layer |= {"gamma": flat + 1, "beta": flat}
            else:
                layer["bias"] = flat
        layers.append({name: torch.tensor(a, dtype=torch.float32)
                       for name, a in layer.items()})
    return layers


def noise_at(step, size, sizes, seeds, where="all"):
    """The noise of a step: a (shift, scale) for each hidden layer, both
    (K, 1, out), one value a unit, the same for all samples of a batch.

    shift ~ N(0, size^2), scale = 2^u with u uniform within -size and size;
    with `where` "last" they are 0 and 1 in all layers but the last. None
    if size is 0. After Santurkar et al. (2018), section 2.1.
    """
    import torch

    if not size:
        return None
    rngs = {seed: np.random.default_rng([seed, step]) for seed in seeds}
    noise = []
    for width in sizes[1:-1]:
        drawn = {seed: (size * rng.normal(size=(1, width)),
                        2 ** rng.uniform(-size, size, (1, width)))
                 for seed, rng in rngs.items()}
        noise.append([torch.tensor(
            np.stack([drawn[seed][part] for seed in seeds]),
            dtype=torch.float32) for part in (0, 1)])
    if where == "last":
        for shift, scale in noise[:-1]:
            shift.fill_(0)
            scale.fill_(1)
    return noise


def forward(layers, x, noise=None, rows=None):
    """Logits (K, N, classes) of x (K or 1, N, features), and for each
    hidden layer what it holds at three places, each (K, N, out): z, what
    the linear layer gives; y, after batch normalization (or z); v, after
    the noise (or y), which the ReLU gets.

    Batch statistics are those of the first `rows` samples (None: all).
    """
    seen, h = [], x
    for at, layer in enumerate(layers[:-1]):
        z = y = h @ layer["weight"]
        if "bias" in layer:
            z = y = z + layer["bias"]
        else:
            part = z[:, :rows]
            mean = part.mean(1, keepdim=True)
            var = part.var(1, correction=0, keepdim=True)
            y = ((z - mean) * (var + EPS).rsqrt() * layer["gamma"]
                 + layer["beta"])
        v = y if noise is None else y * noise[at][1] + noise[at][0]
        seen.append({"z": z, "y": y, "v": v})
        h = v.relu()
    return h @ layers[-1]["weight"] + layers[-1]["bias"], seen


def gradients(layers, x, y, noise=None):
    """Each network's loss (K,) on its batch x (K, N, features), y (K, N),
    and the gradients, in the form of `layers`."""
    import torch
    from torch.nn.functional import cross_entropy

    arrays = [a.requires_grad_() for layer in layers
              for a in layer.values()]
    logits, _ = forward(layers, x, noise)
    losses = cross_entropy(logits.flatten(0, 1), y.flatten(),
                           reduction="none").view(y.shape).mean(1)
    found = iter(torch.autograd.grad(losses.sum(), arrays))
    return losses.detach(), [{name: next(found) for name in layer}
                             for layer in layers]


def stepped(layers, grads, lr):
    """The layers after a step of gradient descent, lr (K, 1, 1)."""
    return [{name: (a - lr * grad[name]).detach()
             for name, a in layer.items()}
            for layer, grad in zip(layers, grads, strict=True)]


def drift(before, after):
    """How far units have moved between two measurements on the same images,
    each (K, N, out), in a unit's own standard deviations: (K,) for the
    mean, the average of |mean change| / sd, and (K,) for the spread, the
    average of |ln(sd after / sd before)|. Units with no spread don't count.
    """
    a, b = before.std(1, correction=0), after.std(1, correction=0)  # (K, out)
    alive = (a > 1e-12) & (b > 1e-12)
    count = alive.sum(1)
    moved = (after.mean(1) - before.mean(1)).abs() / a
    spread = (b / a).log().abs()
    return tuple(part.where(alive, 0.0).sum(1) / count
                 for part in (moved, spread))


def gradient_shift(layers, new, grads, x, y, noise=None):
    """Santurkar et al.'s (2018) internal covariate shift at a step.

    layers and grads: before the step; new: the layers after it. For each
    layer but the first, the gradient G of its weight before, and G' once
    the layers below it, and no others, have been moved. Returns the means
    over these layers of ||G - G'||, of ||G - G'|| / ||G|| and of their
    cosine, each (K,). Source: their Definition 2.1.
    """
    import torch

    rows = []
    for at in range(1, len(layers)):
        _, moved = gradients(new[:at] + layers[at:], x, y, noise)
        a, b = (part[at]["weight"].flatten(1) for part in (grads, moved))
        gap, size = (a - b).norm(dim=1), a.norm(dim=1)
        rows.append(torch.stack([
            gap, gap / size, torch.cosine_similarity(a, b, dim=1, eps=0)]))
    return torch.stack(rows).mean(0)


def reshaped(first, now):
    """How a layer's distribution has changed beyond its units' means and
    spreads, on the same images, each (K, N, out): (K,) for the shape of
    each unit, the mean distance of its sorted standardised values
    (Wasserstein's), and (K,) for the joint distribution, the mean change
    of the correlations between units."""
    def standard(a):
        a = a - a.mean(1, keepdim=True)
        return a / a.std(1, correction=0, keepdim=True).clamp_min(1e-12)

    a, b = standard(first), standard(now)
    shape = (a.sort(1).values - b.sort(1).values).abs().mean((1, 2))
    ra, rb = (s.mT @ s / s.shape[1] for s in (a, b))
    width = ra.shape[1]
    return shape, (ra - rb).abs().sum((1, 2)) / (width * (width - 1))


def images(config):
    """Training images and labels, and test images and labels, as tensors,
    as many as the configuration says."""
    import torch

    x, y, x_test, y_test = load(config["data"])
    n, m = config["train"], config["test"]
    return [torch.from_numpy(np.ascontiguousarray(a)) for a in (
        x[:n], y[:n].astype(np.int64), x_test[:m], y_test[:m].astype(
            np.int64))]


class Watch:
    """What is measured of K networks at the checkpoints."""

    def __init__(self, config, data, sizes, seeds, size, where):
        x, _, x_test, self.labels = data
        self.sizes, self.seeds = sizes, seeds
        self.size, self.where = size, where
        self.probe, self.test = x[None, :config["probe"]], x_test[None]
        self.first, self.rows = None, []

    def noise(self, step):
        """The noise of a step."""
        return noise_at(step, self.size, self.sizes, self.seeds,
                        self.where)

    def accuracy(self, layers):
        """Percent of the test images right (K,), with no noise and with
        batch statistics of the probe, which are training images."""
        import torch

        rows = self.probe.shape[1]
        logits, _ = forward(layers, torch.cat([self.probe, self.test], 1),
                            rows=rows)
        right = logits[:, rows:].argmax(2) == self.labels
        return 100 * right.double().mean(1)

    def look(self, step, old, new, grads, x, y):
        """Measure at `step`: old and new are the layers before and after
        it, grads, x and y those of its batch."""
        import torch

        row = {"accuracy": self.accuracy(old)}
        now, after = self.noise(step), self.noise(step + 1)
        with torch.no_grad():
            _, before = forward(old, self.probe, now)
            _, later = forward(new, self.probe, after)
        self.first = self.first or before
        for place in PLACES:
            for name, a, b in (("step", before, later),
                               ("start", self.first, before)):
                mean, spread = zip(*(drift(p[place], q[place])
                                     for p, q in zip(a, b, strict=True)),
                                   strict=True)
                row[f"{name}_{place}"] = torch.stack(mean).mean(0)
                row[f"{name}_{place}_spread"] = torch.stack(spread).mean(0)
        del row["start_z_spread"], row["start_v_spread"]
        last = before[-1]["y"]
        row["shape"], row["joint"] = reshaped(self.first[-1]["y"], last)
        row["percentiles"] = torch.quantile(
            last[:, :, 0], torch.tensor([0.15, 0.5, 0.85]), dim=1).T
        row["ics"], row["ics_relative"], row["ics_cosine"] = gradient_shift(
            old, new, grads, x, y, now)
        if self.size:
            _, row["ics_noise_relative"], row["ics_noise_cosine"] = (
                gradient_shift(old, new, grads, x, y, after))
        self.rows.append(row)

    def results(self, k):
        """Network k's measurements: {name: a list, one a checkpoint}."""
        def plain(value):
            if isinstance(value, list):
                return [plain(v) for v in value]
            return float(f"{value:.3g}") if np.isfinite(value) else None

        return {name: [plain(row[name][k].tolist()) for row in self.rows]
                for name in self.rows[0]}


def several(config, points, tick):
    """Train networks of one method and one kind of noise side by side:
    what `Watch` finds of each at the checkpoints, and its test accuracy in
    percent at the end."""
    import torch

    data = images(config)
    x, y = data[:2]
    arm = points[0]
    seeds = [point["seed"] for point in points]
    sizes = [x.shape[1], *[config["width"]] * config["depth"], 10]
    layers = initial(arm["method"], sizes, seeds)
    lr = torch.tensor([point["lr"] for point in points])[:, None, None]
    draws = {seed: batches(len(x), config["batch_size"], seed)
             for seed in seeds}
    watch = Watch(config, data, sizes, seeds, arm["noise"], arm["where"])
    for step in range(config["steps"]):
        drawn = {seed: next(draw) for seed, draw in draws.items()}
        rows = torch.from_numpy(np.stack([drawn[seed] for seed in seeds]))
        _, grads = gradients(layers, x[rows], y[rows], watch.noise(step))
        new = stepped(layers, grads, lr)
        if step in config["checkpoints"]:
            watch.look(step, layers, new, grads, x[rows], y[rows])
            tick(step)
        layers = new
    end = watch.accuracy(layers)
    tick(config["steps"])
    return [{"final": round(float(end[k]), 2), **watch.results(k)}
            for k in range(len(points))]


def alone(config, point, tick):
    """`several` for one point."""
    return several(config, [point], tick)[0]


def points(config):
    """Every arm, learning rate and seed."""
    return [{"method": method, "noise": noise, "where": where, "lr": lr,
             "seed": seed}
            for method, noise, where in config["arms"]
            for lr in config["learning_rates"] for seed in config["seeds"]]


COVARIATE_SHIFT = {
    "seeds": [0, 1, 2],
    "depth": 6,
    "width": 100,
    "batch_size": 64,
}

EXPERIMENT = Experiment(
    title="Internal covariate shift of six ReLU layers of 100, without and "
          "with batch normalization, and with noise after it",
    live=COVARIATE_SHIFT | {
        "data": "digits",
        "width": 64,
        "arms": [["He", 0, "all"], ["BN", 0, "all"], ["He", 0.1, "all"],
                 ["BN", 0.5, "all"]],
        "learning_rates": [0.03, 0.1, 0.3, 1.0],
        "train": 1437,
        "test": 360,
        "probe": 360,
        "steps": 120,
        "checkpoints": [0, 20, 60, 119],
    },
    full=COVARIATE_SHIFT | {
        "data": "mnist",
        "arms": [["default", 0, "all"],
                 *[["He", size, "all"] for size in (0, 0.1, 0.25, 0.5)],
                 *[["BN", size, "all"] for size in (0, 0.5, 1, 2, 4)],
                 ["BN", 1, "last"]],
        "learning_rates": [0.015, 0.05, 0.15, 0.5, 1.5],
        "train": 6000,
        "test": 2000,
        "probe": 500,
        "steps": 940,
        "checkpoints": [0, 10, 30, 100, 200, 400, 600, 800, 939],
    },
    points=points,
    steps=lambda config, point: config["steps"],
    run=alone,
    code=(initial, noise_at, forward, gradients, stepped, drift,
          gradient_shift, reshaped, images, Watch, several, alone, points,
          batches),
    layers=(),
    several=several,
    alike=lambda point: (point["method"], point["noise"], point["where"]),
)
