"""Batch sizes from 2 to 128 with every normalisation, on a dense and on a
convolutional network; all seeds and learning rates train in one stack."""

import functools

import numpy as np

from normlab.lab.experiment import Experiment, load
from normlab.lab.train import batches


def small_mlp(norm, sizes, seed):
    """Linear layers of `sizes` features, each but the last with
    norm(features) and a ReLU.

    norm: a class like torch.nn.BatchNorm1d, or None, and then each linear
    layer has a bias instead. The same seed draws the same weights whatever
    the norm: N(0, 2 / fan_in), as in He et al. (2015).
    """
    import torch
    from torch import nn

    draw, layers = torch.Generator().manual_seed(seed), []
    for i, (c_in, c_out) in enumerate(zip(sizes, sizes[1:], strict=False)):
        last = i == len(sizes) - 2
        layers.append(nn.Linear(c_in, c_out, bias=last or not norm))
        nn.init.kaiming_normal_(layers[-1].weight, nonlinearity="relu",
                                generator=draw)
        if layers[-1].bias is not None:
            nn.init.zeros_(layers[-1].bias)
        if not last:
            layers += [norm(c_out), nn.ReLU()] if norm else [nn.ReLU()]
    return nn.Sequential(*layers)


def small_cnn(norm, widths, strides, side, seed):
    """3x3 convolutions of `widths` channels on grey images of side x side
    pixels, each with norm(channels) and a ReLU, then a linear layer to ten
    classes; weights and norm as in small_mlp."""
    import torch
    from torch import nn

    draw, layers, c_in = torch.Generator().manual_seed(seed), [], 1
    for c_out, stride in zip(widths, strides, strict=True):
        layers.append(nn.Conv2d(c_in, c_out, 3, stride, 1, bias=not norm))
        layers += [norm(c_out), nn.ReLU()] if norm else [nn.ReLU()]
        c_in, side = c_out, (side + stride - 1) // stride
    net = nn.Sequential(*layers, nn.Flatten(),
                        nn.Linear(c_in * side * side, 10))
    for layer in net:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu",
                                    generator=draw)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return net


def make_norm(method, config, batch_size, steps):
    """What makes the normalisation of K networks side by side: a function
    of (channels, networks), or None.

    The momentum of running statistics is such that they remember the same
    number of examples at every batch size, within bounds. The schedule of
    batch renormalisation is the paper's for 100,000 steps, shortened.
    """
    from torch import nn

    from normlab import zoo

    momentum = float(np.clip(0.1 * batch_size / 32, 0.01, 0.1))
    dense, groups = "sizes" in config, config["groups"]
    limits = functools.partial(
        zoo.renorm_limits, start=0.05 * steps, r_end=0.4 * steps,
        d_end=0.25 * steps)
    bn, brn, ghost = (
        (nn.BatchNorm1d, zoo.BatchRenorm1d, zoo.GhostBatchNorm1d) if dense
        else (nn.BatchNorm2d, zoo.BatchRenorm2d, zoo.GhostBatchNorm2d))
    return {
        "none": None,
        "BN": lambda c, k: bn(c * k, momentum=momentum),
        "BN, eps 0.1": lambda c, k: bn(c * k, eps=0.1, momentum=momentum),
        "BRN": lambda c, k: brn(c * k, momentum=momentum, limits=limits),
        "ghost BN": lambda c, k: ghost(c * k, config["ghost_size"],
                                       momentum=momentum),
        "GN": lambda c, k: nn.GroupNorm(groups * k, c * k),
        "LN": lambda c, k: nn.GroupNorm(k, c * k),
        "IN": lambda c, k: nn.GroupNorm(c * k, c * k),
    }[method]


def stacked(nets, norm):
    """K networks of the same layers as one, which takes x (N, K, ...) and
    gives logits (N, K, classes); norm(channels, K) makes what stands in
    the place of each of their normalisations."""
    import torch
    from torch import nn

    class Side(nn.Module):
        """K linear layers side by side: (N, K * in) to (N, K * out)."""

        def __init__(self, layers):
            super().__init__()
            self.weight = nn.Parameter(torch.stack(
                [a.weight.detach().T for a in layers]))  # (K, in, out)
            self.bias = None
            if layers[0].bias is not None:
                self.bias = nn.Parameter(torch.stack(
                    [a.bias.detach() for a in layers])[:, None])

        def forward(self, x):
            x = x.reshape(len(x), len(self.weight), -1).transpose(0, 1)
            y = x @ self.weight
            y = y if self.bias is None else y + self.bias
            return y.transpose(0, 1).flatten(1)

    layers, k = [], len(nets)
    for column in zip(*nets, strict=True):
        first = column[0]
        if isinstance(first, nn.Linear):
            layers.append(Side(column))
        elif isinstance(first, nn.Conv2d):
            many = nn.Conv2d(
                first.in_channels * k, first.out_channels * k,
                first.kernel_size, first.stride, first.padding, groups=k,
                bias=first.bias is not None)
            with torch.no_grad():
                many.weight.copy_(torch.cat([a.weight for a in column]))
                if first.bias is not None:
                    many.bias.copy_(torch.cat([a.bias for a in column]))
            layers.append(many)
        elif hasattr(first, "num_features"):
            layers.append(norm(first.num_features, k))
        else:
            layers.append(first)
    return nn.Sequential(nn.Flatten(1, 2), *layers, nn.Unflatten(1, (k, -1)))


def parts(config):
    """Images x and labels y as tensors, and for each seed the rows for
    training, validation and testing."""
    import torch

    x, y, x_test, y_test = load(config["data"])
    if "sizes" not in config:  # a channel and two axes for the images
        side = round(x.shape[1] ** 0.5)
        x, x_test = (a.reshape(-1, 1, side, side) for a in (x, x_test))
    n, (a, b, c) = len(x) + len(x_test), config["parts"]
    rows = [np.random.default_rng(seed).permutation(n)[:a + b + c]
            for seed in config["seeds"]]
    split = [np.split(r, [a, a + b]) for r in rows]
    return (torch.from_numpy(np.concatenate([x, x_test])),
            torch.from_numpy(np.concatenate([y, y_test])),
            *(torch.from_numpy(np.stack(r)) for r in
              zip(*split, strict=True)))


def errors(net, x, y, rows, size):
    """The share (K,) of wrong answers on each network's own rows (K, n),
    in batches of `size` and in the mode that the network is in; what is
    left over is not asked if the network is in training mode."""
    import torch

    wrong, n = 0, rows.shape[1]
    if net.training:
        n -= n % size
    with torch.no_grad():
        for i in range(0, n, size):
            here = rows[:, i:min(i + size, n)].T  # (size, K)
            wrong = wrong + (net(x[here]).argmax(2) != y[here]).sum(0)
    return wrong.numpy() / n


def train_stack(net, x, y, rows, steps, size, lrs, seeds, tick):
    """Train K networks side by side with cross-entropy and plain SGD, each
    with its rows (K, n), learning rate and order of the batches."""
    import torch

    own = {seed: batches(rows.shape[1], size, seed) for seed in set(seeds)}
    params = [p for p in net.parameters() if p.requires_grad]
    lrs = torch.tensor(lrs, dtype=torch.float32)
    rates = [(lrs if len(p) == len(lrs) else lrs.repeat_interleave(
        len(p) // len(lrs))).view(-1, *[1] * (p.dim() - 1)) for p in params]
    net.train()
    for step in range(steps):
        if step % 100 == 0:
            tick(step)
        now = {seed: next(draw) for seed, draw in own.items()}
        here = torch.from_numpy(np.stack([now[s] for s in seeds]))
        here = rows.gather(1, here).T  # (size, K)
        logits = net(x[here])
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), y[here].flatten(), reduction="sum") / size
        grads = torch.autograd.grad(loss, params)
        with torch.no_grad():
            torch._foreach_sub_(params, torch._foreach_mul(grads, rates))


def precise(net, x, rows, size):
    """Set running statistics to the plain average over one pass of batches
    at fixed weights, as torch.optim.swa_utils.update_bn does."""
    import torch

    norms = [m for m in net.modules() if hasattr(m, "running_mean")]
    for m in norms:
        m.reset_running_stats()
        m.momentum = None
    with torch.no_grad():
        net.train()
        for i in range(0, rows.shape[1] - size + 1, size):
            net(x[rows[:, i:i + size].T])


def number_of_steps(config, point):
    """Steps of a point: so many epochs, or as many as another batch size
    makes in them."""
    size = point["batch_size"]
    if point["budget"] == "updates":
        size = config["updates_of"]
    return config["epochs"] * (config["parts"][0] // size)


def small_batch(config, point, tick):
    """Train a method at a batch size, all learning rates and seeds at
    once. Results are lists [learning rate][seed] of shares of wrong
    answers: validation, test, and for batch normalization test with
    precise statistics and with those of test batches of the same size.
    """
    import torch

    method, size = point["method"], point["batch_size"]
    steps = number_of_steps(config, point)
    x, y, train, val, test = parts(config)
    seeds = config["seeds"] * len(config["learning_rates"])
    lrs = np.repeat(config["learning_rates"], len(config["seeds"]))
    train, val, test = (r.repeat(len(config["learning_rates"]), 1)
                        for r in (train, val, test))
    norm = make_norm(method, config, size, steps)
    if "sizes" in config:
        nets = [small_mlp(norm and torch.nn.BatchNorm1d, config["sizes"], s)
                for s in seeds]
    else:
        nets = [small_cnn(norm and torch.nn.BatchNorm2d, config["widths"],
                          config["strides"], x.shape[-1], s)
                for s in seeds]
    net = stacked(nets, norm)
    train_stack(net, x, y, train, steps, size, lrs * size / 32, seeds, tick)
    net.eval()
    result = {"val": errors(net, x, y, val, 500),
              "test": errors(net, x, y, test, 500)}
    if method in ("BN", "BN, eps 0.1", "ghost BN"):
        net.train()
        result["batch"] = errors(net, x, y, test, size)
        precise(net, x, train, size)
        net.eval()
        result["precise"] = errors(net, x, y, test, 500)
    shape = len(config["learning_rates"]), len(config["seeds"])
    return {"steps": steps, "learning_rates": config["learning_rates"]} | {
        key: np.round(v.reshape(shape), 5).tolist()
        for key, v in result.items()}


def learn(config, method, size, frozen=False):
    """Train the dense networks of `config` at one batch size, the hidden
    layers' weights left as they were drawn if `frozen`; the test errors
    (seeds,) at the learning rate with the smallest validation error."""
    import torch

    x, y, *rows = parts(config)
    seeds = config["seeds"] * len(config["learning_rates"])
    lrs = np.repeat(config["learning_rates"], len(config["seeds"]))
    train, val, test = (r.repeat(len(config["learning_rates"]), 1)
                        for r in rows)
    steps = config["epochs"] * (config["parts"][0] // size)
    norm = make_norm(method, config, size, steps)
    net = stacked([small_mlp(norm and torch.nn.BatchNorm1d,
                             config["sizes"], s) for s in seeds], norm)
    linear = [m.weight for m in net if getattr(m, "weight", None)
              is not None and m.weight.dim() == 3]
    for weight in linear[:-1] if frozen else []:
        weight.requires_grad_(False)
    train_stack(net, x, y, train, steps, size, lrs * size / 32, seeds,
                lambda step: None)
    net.eval()
    shape = len(config["learning_rates"]), len(config["seeds"])
    row = np.nanargmin(errors(net, x, y, val, 500).reshape(shape).mean(1))
    return errors(net, x, y, test, 500).reshape(shape)[row]


def every_size(config):
    """Every method at every batch size where it is something new, then
    the arms with another number of updates."""
    points = [{"method": method, "batch_size": size, "budget": "examples"}
              for method in config["methods"] for size in config["batch_sizes"]
              if method != "ghost BN" or size > config["ghost_size"]]
    return points + [{"method": method, "batch_size": size,
                      "budget": "updates"}
                     for method, size in config["same_updates"]]


def best(points, method, size, key="test", budget="examples"):
    """The learning rate (as a multiple of batch size / 32) with the
    smallest mean validation error, and result `key` (seeds,) at it."""
    for p in points:
        if (p["method"], p["batch_size"], p["budget"]) == (
                method, size, budget):
            row = int(np.nanargmin(np.mean(p["val"], axis=1)))
            return p["learning_rates"][row], np.array(p[key][row])
    raise ValueError(f"no point has method {method!r}, batch size {size} "
                     f"and budget {budget!r}")


DENSE = {
    "data": "digits",
    "methods": ["none", "BN", "BN, eps 0.1", "BRN", "ghost BN", "GN", "LN"],
    "learning_rates": [0.01, 0.03, 0.1, 0.3, 1.0, 3.0],  # at size 32
    "seeds": [0, 1, 2, 3, 4],
    "batch_sizes": [2, 4, 8, 16, 32, 64, 128],
    "sizes": [64, 128, 128, 10],
    "groups": 8,
    "ghost_size": 16,
    "parts": [1137, 300, 360],  # images to train, to choose, to test
    "epochs": 15,
    "updates_of": 8,
    "same_updates": [["none", 128], ["BN", 128], ["ghost BN", 128]],
}
CONVOLUTIONAL = {
    "data": "mnist",
    "methods": ["none", "BN", "BRN", "ghost BN", "GN", "LN", "IN"],
    "learning_rates": [0.03, 0.1, 0.3, 1.0],
    "seeds": [0, 1, 2],
    "batch_sizes": [2, 4, 8, 16, 32, 64, 128],
    "widths": [8, 16, 16],
    "strides": [2, 2, 2],
    "groups": 4,
    "ghost_size": 16,
    "parts": [4000, 2000, 4000],
    "epochs": 3,
    "updates_of": 32,
    "same_updates": [["none", 128], ["BN", 128], ["GN", 128]],
}
CODE = (small_mlp, small_cnn, make_norm, stacked, parts, errors,
        train_stack, precise, number_of_steps, small_batch, every_size)

DENSE_EXPERIMENT = Experiment(
    title="Batch sizes 2 to 128 with every normalisation: a dense network "
          "on digits",
    live=DENSE | {
        "methods": ["none", "BN", "BN, eps 0.1", "BRN", "GN"],
        "learning_rates": [0.1, 0.3, 1.0],
        "seeds": [0, 1, 2],
        "batch_sizes": [2, 32],
        "epochs": 2,
        "same_updates": [],
    },
    full=DENSE,
    points=every_size,
    steps=number_of_steps,
    run=small_batch,
    code=CODE,
    layers=("zoo",),
)
CNN_EXPERIMENT = Experiment(
    title="Batch sizes 2 to 128 with every normalisation: a convolutional "
          "network on MNIST",
    live=CONVOLUTIONAL | {
        "data": "digits",
        "strides": [1, 2, 2],
        "methods": ["none", "BN", "GN"],
        "learning_rates": [0.03, 0.1, 0.3],
        "batch_sizes": [2, 32],
        "parts": [1137, 300, 360],
        "epochs": 3,
        "same_updates": [],
    },
    full=CONVOLUTIONAL,
    points=every_size,
    steps=number_of_steps,
    run=small_batch,
    code=CODE,
    layers=("zoo",),
)
