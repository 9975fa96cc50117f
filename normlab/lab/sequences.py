"""LSTM and GRU with the normalisations of chapter 26, on images read as
sequences: digits row by row, MNIST pixel by pixel."""

import copy

import numpy as np

from normlab.lab import data
from normlab.lab.experiment import Experiment, grid, load


def methods():
    """The methods compared: the cell of each, and its options."""
    return {
        "LSTM": ("LSTM", {}),
        "weight norm": ("LSTM", {"norm": "weight"}),
        "LN": ("LSTM", {"norm": "layer"}),
        "LN 0.1": ("LSTM", {"norm": "layer", "gamma": 0.1}),
        "input BN": ("LSTM", {"norm": "input"}),
        "sequence BN": ("LSTM", {"norm": "sequence"}),
        "step BN": ("LSTM", {"norm": "per-step", "gamma": 0.1}),
        "step BN 1": ("LSTM", {"norm": "per-step", "gamma": 1.0}),
        "shared BN": ("LSTM", {"norm": "per-step", "gamma": 0.1,
                               "max_steps": 1}),
        "GRU": ("GRU", {}),
        "GRU LN": ("GRU", {"norm": "layer"}),
        "GRU step BN": ("GRU", {"norm": "per-step", "gamma": 0.1}),
    }


def classifier(method, features, hidden, steps, seed, noise=0.0):
    """A recurrent layer, then a linear one on its last state: a module
    from x (B, T, features) and lengths (B,) or None to logits (B, 10).

    The same seed draws the same weights for every method of a cell. Each
    recurrent block starts as the identity and each bias at 0.
    """
    import torch
    from torch import nn

    from normlab import recurrent

    class Classifier(nn.Module):
        def __init__(self, kind, options):
            super().__init__()
            self.head = nn.Linear(hidden, 10)
            self.rnn = getattr(recurrent, kind)(features, hidden, **options)

        def forward(self, x, lengths=None):
            state = self.rnn(x, lengths=lengths)[1]
            h = state[0] if self.rnn.has_cell else state  # (1, B, hidden)
            return self.head(h[0])

    kind, options = methods()[method]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Classifier(kind, {"max_steps": steps, "noise": noise} | options)
    with torch.no_grad():
        net.rnn.weight_hh_l0.copy_(torch.eye(hidden).repeat(net.rnn.gates, 1))
        net.rnn.bias_ih_l0.zero_()
        net.rnn.bias_hh_l0.zero_()
    net.rnn.reset_gains()
    return net


def fit(net, x, y, steps, batch_size, lr, seed, marks=(), evaluate=None):
    """Train with RMSProp, momentum 0.9, gradients clipped to norm 1.

    `seed` orders the batches and draws the noise. evaluate(net) is called
    after each step in `marks`; returns the losses (steps,) and what it
    returned.
    """
    import torch

    from normlab.lab.train import batches

    draw, losses, values = batches(len(x), batch_size, seed), [], []
    rule = torch.optim.RMSprop(net.parameters(), lr=lr, momentum=0.9)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for step in range(1, steps + 1):
            rows = torch.from_numpy(next(draw))
            loss = torch.nn.functional.cross_entropy(net.train()(x[rows]),
                                                     y[rows])
            rule.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            rule.step()
            losses.append(loss.item())
            if step in marks:
                values.append(evaluate(net))
    return np.array(losses), values


def percent(net, x, y, size=500, own_batch=False):
    """Percent right in evaluation mode, or with own_batch=True on a copy
    in training mode, without noise: by each test batch's own statistics."""
    import torch

    net = copy.deepcopy(net).train(own_batch)
    net.rnn.noise = 0.0
    with torch.no_grad():
        right = [(net(a).argmax(1) == b).sum()
                 for a, b in zip(x.split(size), y.split(size), strict=True)]
    return round(100 * int(sum(right)) / len(x), 2)


def shared_statistics(net, x, batch_size, count, seed):
    """A copy of a per-step network that keeps one row of statistics for
    all steps: `count` training batches, each step of which moves it."""
    import torch

    from normlab.lab.train import batches

    old = net.rnn
    new = classifier("shared BN", old.input_size, old.hidden_size, 1, 0,
                     old.noise)
    draw = batches(len(x), batch_size, seed)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for p, q in zip(new.parameters(), net.parameters(), strict=True):
            p.copy_(q)
        for _ in range(count):
            new(x[torch.from_numpy(next(draw))])
    return new


def row_images(seed):
    """Digits row by row: x (N, 8, 8) and y for training, then for tests."""
    import torch

    x, y, x_test, y_test = (torch.from_numpy(a) for a in data.digits(seed))
    return x.view(-1, 8, 8), y, x_test.view(-1, 8, 8), y_test


def pixel_images(name, order, side, train_size, test_size):
    """Images pooled to side x side pixels, which come one by one: x (N,
    side^2, 1) and y for training, then for tests.

    order: "sequential", row after row, or "permuted", one fixed shuffle.
    """
    import torch

    way = np.arange(side * side)
    if order == "permuted":
        way = np.random.default_rng(0).permutation(way)

    def read(images):
        width = round(images.shape[1] ** 0.5)
        pooled = torch.nn.functional.adaptive_avg_pool2d(
            torch.from_numpy(images).view(-1, width, width), side)
        return pooled.view(len(images), -1, 1)[:, way].contiguous()

    x, y, x_test, y_test = load(name)
    return (read(x[:train_size]), torch.from_numpy(y[:train_size]),
            read(x_test[:test_size]), torch.from_numpy(y_test[:test_size]))


def learn(config, point, tick, images, noise):
    """Train one network: percent right at the checkpoints, at the end also
    with the test batch's own statistics; the loss before the end."""
    x, y, x_test, y_test = images
    net = classifier(point["method"], x.shape[2], config["hidden"],
                     x.shape[1], point["seed"], noise)
    marks, size = config["checkpoints"], config["batch_size"]
    left = iter(marks)

    def evaluate(net):
        tick(next(left))
        return percent(net, x_test, y_test)

    losses, values = fit(net, x, y, marks[-1], size, point["lr"],
                         point["seed"], marks, evaluate)
    return net, {"accuracy": values, "own_batch": percent(
        net, x_test, y_test, own_batch=True),
        "loss": round(float(losses[-20:].mean()), 4)}


def read_rows(config, point, tick):
    """One network on digits, row by row."""
    return learn(config, point, tick, row_images(point["seed"]), 0.0)[1]


def read_pixels(config, point, tick):
    """One network on images, pixel by pixel. For per-step statistics also
    `shared`: percent right with the same weights and one row for all."""
    images = pixel_images(config["data"], point["order"], config["side"],
                          config["train_size"], config["test_size"])
    net, result = learn(config, point, tick, images, point["noise"])
    if point["method"] == "step BN":
        x, _, x_test, y_test = images
        shared = shared_statistics(net, x, config["batch_size"], 20, 0)
        result["shared"] = percent(shared, x_test, y_test)
    return result


def pixel_points(config):
    """Every order, method, rate and seed; and per-step normalisation once
    more at one rate, without the noise in h_0."""
    points = [{"order": order, "method": method, "lr": lr,
               "noise": config["noise"], "seed": seed}
              for order in config["orders"] for method in config["methods"]
              for lr in config["learning_rates"] for seed in config["seeds"]]
    return points + [
        {"order": "sequential", "method": "step BN", "noise": 0.0,
         "lr": config["rate_without_noise"], "seed": seed}
        for seed in config["seeds"]]


def last_checkpoint(config, point):
    """How many steps a point takes."""
    return config["checkpoints"][-1]


CODE = (methods, classifier, fit, percent, learn)
ROWS = {"learning_rates": [0.0003, 0.001, 0.003], "seeds": [0, 1, 2],
        "hidden": 32, "batch_size": 64}
PIXELS = {"methods": ["LSTM", "LN", "step BN"], "seeds": [0, 1, 2],
          "learning_rates": [0.0003, 0.001, 0.003], "noise": 0.1,
          "rate_without_noise": 0.001, "batch_size": 100,
          "orders": ["sequential", "permuted"]}

READ_ROWS = Experiment(
    title="Digits read row by row by an LSTM and a GRU with seven kinds of "
          "normalisation",
    live=ROWS | {
        "methods": ["LSTM", "LN", "step BN", "shared BN"],
        "learning_rates": [0.001, 0.003],
        "checkpoints": [22, 44, 66, 88, 110],  # five epochs
    },
    full=ROWS | {
        "methods": list(methods()),
        "checkpoints": [44, 110, 220, 440],  # 2, 5, 10 and 20 epochs
    },
    points=grid,
    steps=last_checkpoint,
    run=read_rows,
    code=(*CODE, row_images, read_rows, grid),
    layers=("recurrent",),
)

READ_PIXELS = Experiment(
    title="MNIST pooled to 7x7 and read pixel by pixel, in order and "
          "permuted",
    live=PIXELS | {"data": "digits", "side": 4, "hidden": 16,
                   "train_size": 1437, "test_size": 360,
                   "checkpoints": [14, 28]},
    full=PIXELS | {"data": "mnist", "side": 7, "hidden": 64,
                   "train_size": 30000, "test_size": 2000,
                   "checkpoints": [100, 200, 300]},  # one epoch
    points=pixel_points,
    steps=last_checkpoint,
    run=read_pixels,
    code=(*CODE, shared_statistics, pixel_images, read_pixels, pixel_points),
    layers=("recurrent",),
)
