"""Learning rate, weight decay and the length of weights that batch
normalization makes scale-invariant; many small networks in one array."""

import numpy as np

from normlab.lab.experiment import Experiment, load
from normlab.lab.train import batches

EPS = 1e-5


def draw(sizes, seeds, batch_norm=True, dtype="float32"):
    """The parameters of K ReLU networks side by side, as a dict.

    Hidden layer i has "weight{i}" (K, out, in), from N(0, 2 / in) as in He
    et al. (2015), and "gamma{i}" and "beta{i}" (K, out), or "bias{i}"
    without batch normalization; the last layer has "head" (K, classes, in)
    and "head_bias" (K, classes). Network k is drawn from seeds[k] alone,
    with the same weights whatever `batch_norm` and `dtype`.
    """
    import torch

    rngs = [np.random.default_rng(seed) for seed in seeds]
    kind, k, params = getattr(torch, dtype), len(seeds), {}
    for i, (n_in, n_out) in enumerate(zip(sizes, sizes[1:], strict=False)):
        weight = np.stack([rng.normal(0, (2 / n_in) ** 0.5, (n_out, n_in))
                           for rng in rngs])
        zero = torch.zeros(k, n_out, dtype=kind)
        if i == len(sizes) - 2:
            own = {"head": None, "head_bias": zero}
        elif batch_norm:
            own = {f"weight{i}": None, f"gamma{i}": zero + 1,
                   f"beta{i}": zero}
        else:
            own = {f"weight{i}": None, f"bias{i}": zero}
        own[next(iter(own))] = torch.from_numpy(weight).to(kind)
        params |= own
    return params


def logits(params, x, eps=EPS, first=None):
    """The K networks' outputs (K, N, classes) for x (N, in), the same for
    all, or (K, N, in).

    Each layer is normalised with the mean and the variance of all N
    examples, or of the `first` so many: put the training examples there
    and you have the others in evaluation mode.
    """
    i = 0
    while (weight := params.get(f"weight{i}")) is not None:
        x = x @ weight.transpose(1, 2)
        if f"gamma{i}" in params:
            part = x[:, :first]
            mean = part.mean(dim=1, keepdim=True)
            var = (part - mean).square().mean(dim=1, keepdim=True)
            scale = params[f"gamma{i}"][:, None] * (var + eps).rsqrt()
            x = (x - mean) * scale + params[f"beta{i}"][:, None]
        else:
            x = x + params[f"bias{i}"][:, None]
        x, i = x.relu(), i + 1
    return x @ params["head"].transpose(1, 2) + params["head_bias"][:, None]


def gradients(params, x, y, eps=EPS):
    """Each network's cross-entropy (K,) on x (N, in) or (K, N, in) with
    labels y (N,) or (K, N), and the gradients of all parameters."""
    import torch

    for p in params.values():
        p.requires_grad_(True)
    out = logits(params, x, eps)
    k, n, classes = out.shape
    loss = torch.nn.functional.cross_entropy(
        out.flatten(0, 1), y.expand(k, n).flatten(),
        reduction="none").view(k, n).mean(dim=1)
    # The sum's gradient is each network's own: they share no parameter.
    found = torch.autograd.grad(loss.sum(), list(params.values()))
    for p in params.values():
        p.requires_grad_(False)
    return loss.detach(), dict(zip(params, found, strict=True))


def train(params, x, y, steps, size, lrs, decays, seeds, momenta=0.0,
          rest=None, decayed="hidden", watch=None, watched=()):
    """Train K networks in place as torch.optim.SGD does: g + decay * w
    enters v = momentum * v + ..., and w loses lr * v.

    lrs, decays, seeds, momenta: one for each network; rest: the learning
    rates of what is no hidden layer's weight, `lrs` unless given; decayed:
    the "hidden" layers' weights, all weight "matrices" or "all"
    parameters. watch(step, before, params, grads) is called after each
    step in `watched`, with copies of the hidden layers' weights before it.
    """
    import torch

    k, dtype = len(seeds), x.dtype
    own = {seed: batches(len(x), size, seed) for seed in set(seeds)}

    def column(values, like):
        values = torch.as_tensor(values, dtype=dtype).expand(k)
        return values.view(-1, *[1] * (like.dim() - 1))

    hidden = [name for name in params if name.startswith("weight")]
    chosen = {"hidden": hidden, "matrices": [*hidden, "head"],
              "all": list(params)}[decayed]
    rate = {name: column(lrs if name in hidden or rest is None else rest, p)
            for name, p in params.items()}
    shrink = {name: column(decays, params[name]) for name in chosen}
    keep = {name: column(momenta, p) for name, p in params.items()}
    moving = bool(np.any(momenta))
    speed = {name: torch.zeros_like(p) for name, p in params.items()}
    for step in range(steps):
        now = {seed: next(draws) for seed, draws in own.items()}
        rows = torch.from_numpy(np.stack([now[seed] for seed in seeds]))
        _, grads = gradients(params, x[rows], y[rows])
        before = ({name: params[name].clone() for name in hidden}
                  if step in watched else None)
        for name, p in params.items():
            force = grads[name]
            if name in shrink:
                force = torch.addcmul(force, shrink[name], p)
            if moving:
                force = speed[name].mul_(keep[name]).add_(force)
            p.addcmul_(rate[name], force, value=-1)
        if before is not None:
            watch(step, before, params, grads)


def turned(before, after, dim=-1):
    """The angle in radians between two tensors along `dim`, exact for
    small angles: by the chord between them at length 1."""
    one, two = (a / a.norm(dim=dim, keepdim=True) for a in (before, after))
    return 2 * ((two - one).norm(dim=dim) / 2).asin()


class Trace:
    """What `train` watches: of each hidden layer its norm, the angle of a
    step, for the layer as one vector and (root mean square) for its units,
    and the squared norm of its gradient at length 1. Lists of arrays (K,
    layers), one an observed step."""

    def __init__(self):
        self.steps, self.norm, self.angle = [], [], []
        self.unit_angle, self.unit_gradient = [], []

    def __call__(self, step, before, params, grads):
        """Keep what this step shows."""
        import torch

        rows = [], [], [], []
        for name, old in before.items():
            flat = old.flatten(1)
            rows[0].append(flat.norm(dim=1))
            rows[1].append(turned(flat, params[name].flatten(1)))
            rows[2].append(turned(old, params[name]).square().mean(1).sqrt())
            rows[3].append((flat.norm(dim=1) *
                            grads[name].flatten(1).norm(dim=1)).square())
        self.steps.append(step)
        for kept, row in zip((self.norm, self.angle, self.unit_angle,
                              self.unit_gradient), rows, strict=True):
            kept.append(torch.stack(row, dim=1).double().numpy())


def percent_right(params, x, y, x_test, y_test):
    """Test accuracies (K,) in percent, in evaluation mode with the
    statistics of all training examples x, and the standard deviation (K,)
    of the test logits around their mean for each image."""
    import torch

    with torch.no_grad():
        out = logits(params, torch.cat([x, x_test]), first=len(x))[:, len(x):]
    right = (out.argmax(dim=2) == y_test).double().mean(dim=1)
    size = (out - out.mean(dim=2, keepdim=True)).square().mean(dim=(1, 2))
    return 100 * right.numpy(), size.double().sqrt().numpy()


@np.errstate(divide="ignore", invalid="ignore")
def several(config, points, tick):
    """Train networks that are alike, and what came of each: traces, means
    over the last steps, and the test accuracy."""
    import torch

    n, n_test = config["images"]
    x, y, x_test, y_test = (
        torch.from_numpy(a[:m]) for a, m in
        zip(load(config["data"]), (n, n, n_test, n_test), strict=True))
    kind = getattr(torch, config["dtype"])
    x, x_test = x.to(kind), x_test.to(kind)
    seeds = [p["seed"] for p in points]
    params = draw(config["sizes"], seeds, points[0]["method"] == "BN",
                  config["dtype"])
    steps, window = config["steps"], config["window"]
    watched = {*range(0, steps, config["every"]),
               *range(steps - window, steps, 2)}
    trace = Trace()

    def watch(step, *rest):
        trace(step, *rest)
        tick(step)

    train(params, x, y, steps, config["batch_size"],
          [p["lr"] for p in points], [p["decay"] for p in points], seeds,
          [p["momentum"] for p in points], [p["rest"] for p in points],
          points[0]["decayed"], watch, watched)
    right, size = percent_right(params, x, y, x_test, y_test)
    marks = [i for i, s in enumerate(trace.steps) if s % config["every"] == 0]
    late = [i for i, s in enumerate(trace.steps) if s >= steps - window]
    norm, angle, units, pull = (np.array(a) for a in (
        trace.norm, trace.angle, trace.unit_angle, trace.unit_gradient))
    return [{
        "accuracy": round(float(right[k]), 3),
        "logit_size": float(f"{size[k]:.4g}"),
        "norms": short(norm[marks, k]), "angles": short(angle[marks, k]),
        "late_angle": short((angle[late, k] ** 2).mean(0) ** 0.5),
        "late_unit_angle": short((units[late, k] ** 2).mean(0) ** 0.5),
        "late_norm": short(norm[late, k].mean(0)),
        "late_gradient": short(pull[late, k].mean(0)),
    } for k in range(len(points))]


def short(values):
    """An array as nested lists of numbers of four digits."""
    return [short(v) if np.ndim(v) else float(f"{v:.4g}") for v in values]


def scale_invariance(config, point, tick):
    """`several` for one point."""
    return several(config, [point], tick)[0]


def arms(config):
    """All points: for each arm of a configuration its method, what is
    decayed, and every learning rate with every product of learning rate
    and decay, for every seed. `rest` is the learning rate of all but the
    hidden layers' weights."""
    return [{"arm": name, "method": method, "decayed": decayed,
             "lr": lr, "product": product, "decay": product / lr,
             "momentum": momentum, "rest": rest or lr, "seed": seed}
            for name, (method, decayed, momentum, rest, lrs, products)
            in config["arms"].items()
            for lr in lrs for product in products
            for seed in config["seeds"]]


LIVE = {
    "data": "digits",
    "images": [1437, 360],
    "dtype": "float64",
    "sizes": [64, 32, 32, 10],
    "seeds": [0, 1, 2],
    "batch_size": 32,
    "steps": 1200,
    "every": 50,
    "window": 240,
    # arm: method, what is decayed, momentum, learning rate of the rest (0:
    # the same), learning rates, products of learning rate and decay
    "arms": {
        "grid": ["BN", "hidden", 0.0, 0.1, [0.1, 0.4], [0.002, 0.008]],
        "momentum": ["BN", "hidden", 0.9, 0.01, [0.02], [0.0004, 0.0016]],
    },
}
RATES, PRODUCTS = [0.05, 0.2, 0.8], [0.001, 0.004, 0.016]
EXPERIMENT = Experiment(
    title="Learning rate times weight decay: lengths and angles of the "
          "weights before batch normalization",
    live=LIVE,
    full=LIVE | {
        "data": "mnist",
        "images": [6000, 2000],
        "dtype": "float32",
        "sizes": [784, 100, 100, 10],
        "batch_size": 50,
        "steps": 2000,
        "every": 100,
        "window": 400,
        "arms": {
            "grid": ["BN", "hidden", 0.0, 0.2, RATES, [0.0, *PRODUCTS]],
            "one rate": ["BN", "hidden", 0.0, 0.0, [0.05, 0.8], PRODUCTS],
            "momentum": ["BN", "hidden", 0.9, 0.02, [0.02],
                         [0.0001, 0.0004, 0.0016]],
            "all decayed": ["BN", "all", 0.0, 0.0, [0.2], PRODUCTS],
            "no BN": ["none", "matrices", 0.0, 0.0, [0.05, 0.2],
                      [0.0, 0.0001, 0.001, 0.004]],
        },
    },
    points=arms,
    steps=lambda config, point: config["steps"],
    run=scale_invariance,
    code=(draw, logits, gradients, train, turned, Trace, percent_right,
          several, short, scale_invariance, arms, batches),
    layers=(),
    several=several,
    alike=lambda point: point["arm"],
)
