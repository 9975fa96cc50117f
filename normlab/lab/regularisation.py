"""Batch normalization beside dropout, with and without the batch's noise,
on few images; all seeds and learning rates train in one stack."""

import numpy as np

from normlab.lab.experiment import Experiment
from normlab.lab.small_batches import parts, small_mlp, stacked
from normlab.lab.train import batches


def arrange(net, method, p):
    """A small_mlp's layers, a list, with the dropout of a method: after
    every ReLU, or after the last one only."""
    from torch import nn

    layers, last = [], len(net) - 2  # the place of the last ReLU
    for i, layer in enumerate(net):
        layers.append(layer)
        if isinstance(layer, nn.ReLU) and (
                method in ("dropout", "BN+dropout")
                or method == "BN+last" and i == last):
            layers.append(nn.Dropout(p))
    return nn.Sequential(*layers)


def make_norm(method, m, batch_size):
    """What makes the normalisation of K networks side by side: a function
    of (channels, networks), or None."""
    from torch import nn

    from normlab.zoo import GhostBatchNorm1d

    if method in ("none", "dropout"):
        return None
    if m < batch_size:
        return lambda c, k: GhostBatchNorm1d(c * k, m)
    return lambda c, k: nn.BatchNorm1d(c * k)


def norms(net):
    """The normalisations of a network, a list."""
    return [layer for layer in net if hasattr(layer, "running_mean")]


def recalibrate(net, x, rows):
    """Make the statistics of the images in rows (K, n), all in one batch
    and without dropout, the running ones; the network ends in evaluation
    mode."""
    import torch

    net.eval()
    for layer in norms(net):
        layer.reset_running_stats()
        layer.momentum = None
        layer.train()
    with torch.no_grad():
        net(x[rows.T])
    net.eval()


def learn(net, x, y, rows, point, steps, lrs, seeds, tick):
    """Train K networks side by side with cross-entropy and plain SGD, each
    with its rows (K, n), learning rate and order of the batches.

    "whole" asks all n images in every step, so that the statistics are
    theirs, and takes the loss of the mini-batch. "frozen" keeps the
    statistics that the n images have at the start.
    """
    import torch

    size, n = point["batch_size"], rows.shape[1]
    own = {seed: batches(n, size, seed) for seed in set(seeds)}
    params = list(net.parameters())
    lrs = torch.tensor(lrs, dtype=torch.float32)
    rates = [(lrs if len(p) == len(lrs) else lrs.repeat_interleave(
        len(p) // len(lrs))).view(-1, *[1] * (p.dim() - 1)) for p in params]
    networks = torch.arange(len(rows))
    if point["method"] == "frozen":
        recalibrate(net, x, rows)
    else:
        net.train()
    for step in range(steps):
        if step % 50 == 0:
            tick(step)
        now = {seed: next(draw) for seed, draw in own.items()}
        here = torch.from_numpy(np.stack([now[s] for s in seeds]))  # (K, B)
        targets = y[rows.gather(1, here).T]  # (B, K)
        if point["method"] == "whole":
            logits = net(x[rows.T])[here.T, networks]  # (B, K, classes)
        else:
            logits = net(x[rows.gather(1, here).T])
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), reduction="sum") / size
        grads = torch.autograd.grad(loss, params)
        with torch.no_grad():
            torch._foreach_sub_(params, torch._foreach_mul(grads, rates))


def judge(net, x, y, rows, size=500):
    """Percent wrong (K,) and mean negative log-likelihood (K,) of each
    network, in evaluation mode, on its own rows (K, n)."""
    import torch

    wrong, loss = 0, 0
    net.eval()
    with torch.no_grad():
        for part in rows.split(size, dim=1):
            logits, true = net(x[part.T]), y[part.T]  # (n, K, 10), (n, K)
            wrong = wrong + (logits.argmax(2) != true).sum(0)
            loss = loss - logits.double().log_softmax(2).gather(
                2, true[..., None]).sum((0, 2))
    n = rows.shape[1]
    return 100 * wrong.numpy() / n, loss.numpy() / n


def number_of_steps(config, point):
    """Steps of a point: the same number of epochs for all."""
    return config["epochs"] * (config["parts"][0] // point["batch_size"])


def regularise(config, point, tick):
    """Train one arm at all learning rates and seeds at once. Results are
    lists [learning rate][seed]: percent wrong on training, validation and
    test images and the losses, with the running statistics; the same with
    those of the training set where the arm has any ("precise")."""
    import torch

    size, rates = point["batch_size"], config["learning_rates"]
    x, y, *rows = parts(config)
    rows = [r.repeat(len(rates), 1) for r in rows]
    seeds = config["seeds"] * len(rates)
    lrs = np.repeat(rates, len(config["seeds"])) * size / 32
    norm = make_norm(point["method"], point["m"], size)
    nets = [arrange(small_mlp(norm and torch.nn.BatchNorm1d,
                              config["sizes"], seed),
                    point["method"], point["p"]) for seed in seeds]
    net = stacked(nets, norm)
    shape = len(rates), len(config["seeds"])
    result = {"rates": (np.array(rates) * size / 32).tolist()}

    def note(key, part):
        for name, v in zip(("wrong", "loss"), judge(net, x, y, part),
                           strict=True):
            result[f"{key}_{name}"] = np.round(v.reshape(shape), 4).tolist()

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config["seeds"][0])  # the dropout's masks
        learn(net, x, y, rows[0], point, number_of_steps(config, point),
              lrs, seeds, tick)
    for key, part in zip(("train", "val", "test"), rows, strict=True):
        note(key, part)
    if norms(net) and point["method"] != "frozen":
        recalibrate(net, x, rows[0])
        for key, part in zip(("val", "test"), rows[1:], strict=True):
            note(f"precise_{key}", part)
    return result


def points(config):
    """Every arm: a method, its share p of units dropped, the batch size,
    and m, how many images its statistics are of (0: none)."""
    arms, n = [], config["parts"][0]
    for size in config["batch_sizes"]:
        arms += [("none", 0.0, size, 0), ("frozen", 0.0, size, n),
                 ("BN", 0.0, size, size)]
        for p in config["dropout"]:
            arms += [("dropout", p, size, 0), ("BN+dropout", p, size, size)]
    size = max(config["batch_sizes"])
    arms += [("BN+last", p, size, size) for p in config["dropout"]]
    arms += [("BN", 0.0, size, m) for m in config["ghosts"]]
    arms += [("whole", 0.0, size, n)]
    return [dict(zip(("method", "p", "batch_size", "m"), arm, strict=True))
            for arm in arms]


def best(points, key="test_wrong", **arm):
    """The learning rate with the smallest mean validation error of an arm,
    and result `key` (seeds,) at it; where an arm has several points, such
    as shares of dropout, of the best of them."""
    found = [p for p in points if all(p[k] == v for k, v in arm.items())]
    if not found:
        raise ValueError(f"no point has {arm}")
    judged = "precise_val_wrong" if "precise" in key else "val_wrong"
    means = [np.mean(p[judged], axis=1) for p in found]
    i = int(np.argmin([np.nanmin(mean) for mean in means]))
    row = int(np.nanargmin(means[i]))
    return found[i]["rates"][row], np.array(found[i][key][row])


def trained(config, method, p=0.0, batch_size=32, lrs=(0.1,), copies=1):
    """Networks of every learning rate, copy and seed, trained side by side
    on the images of their seed: the network, images, labels, and the rows
    (K, n) for training, validation and testing. K runs over the learning
    rates, for each over the copies, for each over the seeds; copies differ
    in their weights and in the order of their batches."""
    import torch

    x, y, *rows = parts(config)
    rows = [r.repeat(len(lrs) * copies, 1) for r in rows]
    seeds = [seed + 1000 * copy for copy in range(copies)
             for seed in config["seeds"]] * len(lrs)
    norm = make_norm(method, batch_size, batch_size)
    nets = [arrange(small_mlp(norm and torch.nn.BatchNorm1d,
                              config["sizes"], seed), method, p)
            for seed in seeds]
    net = stacked(nets, norm)
    point = {"method": method, "batch_size": batch_size}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config["seeds"][0])
        learn(net, x, y, rows[0], point, number_of_steps(config, point),
              np.repeat(lrs, copies * len(config["seeds"])), seeds,
              lambda step: None)
    return net.eval(), x, y, rows


COMMON = {
    "learning_rates": [0.02, 0.06, 0.2, 0.6],  # at batch size 32
    "dropout": [0.2, 0.5],
    "batch_sizes": [16, 128],
    "ghosts": [8, 16, 32],
}

EXPERIMENT = Experiment(
    title="Batch normalization, dropout and both on few images, with and "
          "without the batch's noise",
    live=COMMON | {
        "data": "digits",
        "sizes": [64, 64, 64, 10],
        "parts": [256, 300, 1000],
        "epochs": 20,
        "seeds": [0, 1, 2],
    },
    full=COMMON | {
        "data": "mnist",
        "sizes": [784, 256, 256, 10],
        "parts": [1000, 2000, 5000],  # images to train, to choose, to test
        "epochs": 40,
        "seeds": [0, 1, 2, 3],
    },
    points=points,
    steps=number_of_steps,
    run=regularise,
    code=(arrange, make_norm, norms, recalibrate, learn, judge,
          number_of_steps, regularise, points, parts, small_mlp, stacked,
          batches),
    layers=("zoo",),
)
