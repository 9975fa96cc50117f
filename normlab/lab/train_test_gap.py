"""Networks trained with few values a channel, and what each repair of
their evaluation mode gains."""

from normlab.lab.cnn import images, small_cnn
from normlab.lab.experiment import Experiment


def dense(norm, features, seed, width=128, classes=10):
    """Two hidden layers of `width` units, each with norm(width) and a
    ReLU, and a linear layer, for images flattened to (N, features).

    norm: a class like torch.nn.BatchNorm1d, or None, and then the hidden
    layers have a bias instead. The same seed draws the same weights
    whatever the norm: N(0, 2 / fan_in), as in He et al. (2015).
    """
    import torch
    from torch import nn

    draw, layers = torch.Generator().manual_seed(seed), [nn.Flatten()]
    for fan_in in (features, width):
        layers.append(nn.Linear(fan_in, width, bias=not norm))
        layers += [norm(width), nn.ReLU()] if norm else [nn.ReLU()]
    net = nn.Sequential(*layers, nn.Linear(width, classes))
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu",
                                    generator=draw)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return net


def build(config, point, x):
    """The untrained network of a point, for images x (N, 1, H, W)."""
    from torch import nn

    if point["net"] == "dense":
        norm = nn.BatchNorm1d if point["norm"] == "BN" else None
        return dense(norm, x[0].numel(), point["seed"])
    norm = nn.BatchNorm2d if point["norm"] == "BN" else None
    return small_cnn(norm, config["widths"], config["strides"],
                     point["seed"])


def split(config, seed):
    """Images (N, 1, H, W) and labels (N,) by name: "train", "held" (held
    out of the training data) and "test". The seed draws the first two."""
    import torch

    x, y, x_test, y_test = images(config["data"], "cpu")
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(x), generator=draw)
    n, held = config["train"], config["held"]
    parts = {"train": rows[:n], "held": rows[n:n + held]}
    every = slice(None, None, config["test_every"])
    return {name: (x[r], y[r]) for name, r in parts.items()} | {
        "test": (x_test[every], y_test[every])}


def trained(config, point):
    """The trained network of a point in evaluation mode, and its data."""
    from normlab.lab.torch_train import train

    data = split(config, point["seed"])
    net = build(config, point, data["train"][0])
    size = point["batch_size"]
    train(net, *data["train"], config["examples"] // size, size,
          point["rate"] * size, point["seed"])
    return net.eval(), data


def training_mode(net, x, others, m, draws, seed):
    """Logits (draws, N, classes) of each of x (N, ...) in training mode,
    each time in a batch of its own with m - 1 of `others`, drawn anew."""
    import torch

    from normlab.inference import in_groups

    draw, logits = torch.Generator().manual_seed(seed), []
    with torch.no_grad(), in_groups(net, m):
        for _ in range(draws):
            rows = torch.randint(len(others), (len(x), m - 1),
                                 generator=draw)
            batch = torch.cat([x[:, None], others[rows]], dim=1)
            logits.append(net(batch.flatten(0, 1))[::m])
    return torch.stack(logits)


def outputs(net, x, size=500):
    """Logits (N, classes) of x in the mode that the network is in."""
    import torch

    with torch.no_grad():
        return torch.cat([net(part) for part in x.split(size)])


def error(logits, y):
    """Percent wrong."""
    return round(100 * (logits.argmax(-1) != y).double().mean().item(), 3)


def loss(logits, y):
    """Mean cross-entropy in nats."""
    import torch

    return round(torch.nn.functional.cross_entropy(logits, y).item(), 4)


def distance(logits, draws):
    """Mean squared distance of logits (N, classes) from the mean that
    draws (K, N, classes) estimate, in units of that mean's variance.

    The noise of the estimate, which K draws leave, is taken out.
    """
    mean = draws.mean(dim=0)
    noise = draws.var(dim=0).mean() / len(draws)
    away = (logits - mean).square().mean() - noise
    return round((away / (mean.var() - noise)).item(), 4)


def choose_alpha(net, x, y, m, factors):
    """The share alpha = factor / m of an example's own statistics that
    leaves the fewest errors on held-out training data x, y; of equals the
    smallest."""
    from normlab.inference import weigh_examples

    wrong = {}
    for alpha in sorted(factor / m for factor in factors):
        with weigh_examples(net, alpha):
            wrong[alpha] = error(outputs(net, x), y)
    return min(wrong, key=wrong.get)


def repairs(config, point, net, data, small):
    """Context managers by name, each of which repairs the network; small
    are batches of the size that it was trained with."""
    from normlab import inference

    m, result = point["batch_size"], {}
    alpha = choose_alpha(net, *data["held"], m, config["factors"])
    alphas = inference.fit_alphas(net, small)
    result["weighed"] = lambda: inference.weigh_examples(net, alpha)
    result["evalnorm"] = lambda: inference.weigh_examples(net, alphas)
    for kind in ("inverse", "slope"):
        scales = inference.measured_scales(net, small, kind)
        result[kind] = lambda s=scales: inference.correct_scale(net, s)
    if point["net"] == "dense":
        result["transfer"] = lambda: inference.use_transfer(net, m)
    return result, {"alpha": alpha,
                    "alphas": [round(a, 3) for a in alphas.values()]}


def compare(config, point, tick):
    """Train one network; the errors, losses and distances of its
    evaluation mode, as it is and with each repair."""
    import torch

    from normlab import inference

    net, data = trained(config, point)
    tick(config["examples"] // point["batch_size"])
    x, y = data["test"]
    if point["norm"] == "none":
        logits = outputs(net, x)
        return {"error": error(logits, y), "loss": loss(logits, y),
                "held_error": error(outputs(net, data["held"][0]),
                                    data["held"][1])}
    m, seed = point["batch_size"], point["seed"]
    few = slice(config["compared"])
    draws = training_mode(net, x[few], data["train"][0], m,
                          max(2, config["passes"] // m), seed)
    seen, result = draws.mean(dim=0), {}
    result["single_error"] = error(draws, y[few].expand(len(draws), -1))
    result["single_loss"] = loss(draws.flatten(0, 1),
                                 y[few].repeat(len(draws)))
    result["average_error"] = error(seen, y[few])
    result["average_loss"] = loss(seen, y[few])

    def look(name):
        logits = outputs(net, x)
        result[f"{name}_error"] = error(logits, y)
        result[f"{name}_loss"] = loss(logits, y)
        result[f"{name}_distance"] = distance(logits[few], draws)

    look("running")
    result["running_compared_error"] = error(outputs(net, x[few]), y[few])
    order = torch.randperm(
        len(data["train"][0]), generator=torch.Generator().manual_seed(seed))
    shown = data["train"][0][order[:config["shown"]]]
    small = shown[:len(shown) // m * m].split(m)
    with inference.precise_bn(net, small):
        look("precise_small")
    inference.precise_bn(net, shown.split(200))
    look("precise")
    result["precise_compared_error"] = error(outputs(net, x[few]), y[few])
    result["held_error"] = error(outputs(net, data["held"][0]),
                                 data["held"][1])
    ways, found = repairs(config, point, net, data, small)
    for name, repair in ways.items():
        with repair():
            look(name)
    return result | found


def points(config):
    """Every network, batch size, learning rate and seed; without batch
    normalization at the smallest and the largest batch size only."""
    found = []
    for net, sizes in config["batch_sizes"].items():
        for norm in ("BN", "none"):
            for size in sizes if norm == "BN" else sizes[::len(sizes) - 1]:
                found += [{"net": net, "norm": norm, "batch_size": size,
                           "rate": rate, "seed": seed}
                          for rate in config["rates"][net]
                          for seed in config["seeds"]]
    return found


GAP = {
    "seeds": [0, 1, 2],
    # The learning rate is rate * batch_size.
    "factors": [0, 0.125, 0.25, 0.5, 0.75, 1, 1.5],  # alpha * batch_size
    "passes": 64,  # the number of draws times the batch size
    "compared": 500,  # test images whose training-mode logits are drawn
}

EXPERIMENT = Experiment(
    title="Dense and convolutional networks trained with 2 to 32 images a "
          "batch, and repairs of their evaluation mode",
    live=GAP | {
        "data": "digits",
        "train": 1200,
        "held": 237,
        "test_every": 1,
        "examples": 2400,  # two epochs
        "shown": 600,
        "batch_sizes": {"dense": [2, 4, 8, 32]},
        "rates": {"dense": [0.003], "conv": [0.005]},
        "widths": [8, 16, 32],
        "strides": [1, 2, 2],
    },
    full=GAP | {
        "data": "mnist",
        "train": 8000,
        "held": 1000,
        "test_every": 4,
        "examples": 8000,  # one epoch
        "shown": 1000,
        "batch_sizes": {"dense": [2, 4, 8, 32], "conv": [2, 8, 32]},
        "rates": {"dense": [0.0015, 0.003, 0.01],
                  "conv": [0.0015, 0.015, 0.05]},
        "widths": [8, 8, 16, 16, 32, 32],
        "strides": [2, 1, 2, 1, 2, 1],
    },
    points=points,
    steps=lambda config, point: config["examples"] // point["batch_size"],
    run=compare,
    code=(dense, build, split, trained, training_mode, outputs, error, loss,
          distance, choose_alpha, repairs, compare, points, small_cnn,
          images),
    layers=("inference",),
)
