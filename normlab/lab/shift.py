"""Networks trained on clean images and asked about damaged ones, with and
without adaptation of their batch normalization."""

import numpy as np

from normlab.lab.cnn import images, small_cnn
from normlab.lab.corruptions import DAMAGE, HELD_OUT, LEVELS, corrupt
from normlab.lab.experiment import Experiment

SEVERITIES = (1, 2, 3, 4, 5)


def trained(config, method, lr, seed):
    """A small network trained on clean images, in evaluation mode, and its
    accuracy in percent on the images held out of the training set."""
    from normlab.lab.torch_train import accuracy, train

    x, y, *_ = images(config["data"], "cpu")
    n = len(x) - config["held_out"]
    net = small_cnn(norm(method), config["widths"], config["strides"], seed)
    train(net, x[:n], y[:n], config["steps"], config["batch_size"], lr, seed)
    return net.eval(), 100 * accuracy(net, x[n:], y[n:])


def norm(method):
    """What makes the normalisation layers of a method; None: none."""
    from torch import nn

    return {"BN": nn.BatchNorm2d, "none": None,
            "GN": lambda channels: nn.GroupNorm(4, channels)}[method]


def best_trained(config, method, seed, tick):
    """The network of the learning rate that is best on held-out images,
    and that learning rate."""
    runs = []
    for lr in config["learning_rates"]:
        runs.append((*trained(config, method, lr, seed), lr))
        tick(len(runs) * config["steps"])
    net, _, lr = max(runs, key=lambda run: run[1])
    return net, lr


def test_images(config, seed):
    """Test images (N, 1, H, W) and labels (N,) in an order drawn by `seed`,
    as many as the configuration says."""
    import torch

    *_, x, y = images(config["data"], "cpu")
    rows = np.random.default_rng(seed).permutation(len(x))[:config["test"]]
    return x[rows], y[torch.from_numpy(rows)]


def damaged(x, name, severity, seed=0):
    """`corrupt` for a tensor."""
    import torch

    return torch.from_numpy(corrupt(x.numpy(), name, severity, seed))


def logits_of(answer, x, size):
    """Logits (N, K) of x, answered in batches of `size`; a remainder that
    is smaller goes with the batch before it."""
    import torch

    cuts = range(size, len(x) - size + 1, size)
    with torch.no_grad():
        return torch.cat([answer(part) for part in
                          torch.tensor_split(x, list(cuts))])


def percent(logits, y):
    """Accuracy in percent."""
    return round(100 * float((logits.argmax(dim=1) == y).double().mean()), 2)


def answers(net, x, size, prior, tent_lr):
    """Logits of x by every method: {method: (N, K)}."""
    from normlab.adapt import Tent, adapt_statistics, prediction_time

    batches = x.split(500)
    return {"source": logits_of(net, x, 500),
            "adabn": logits_of(adapt_statistics(net, batches), x, 500),
            "batch": logits_of(prediction_time(net), x, size),
            "mix": logits_of(prediction_time(net, prior), x, size),
            "tent": logits_of(Tent(net, tent_lr), x, size)}


def choose(config, net, seed):
    """What is best on held-out training images with held-out corruptions:
    {size of batch: prior}, the learning rate of TENT, and the accuracies
    in percent by which the priors were chosen (sizes, priors)."""
    from normlab.adapt import Tent, prediction_time

    x, y, *_ = images(config["data"], "cpu")
    x, y = (t[-config["held_out"]:][:config["choose"]] for t in (x, y))
    sets = [damaged(x, name, severity, seed + 100)
            for name in HELD_OUT for severity in (3, 5)]

    def score(make, size):
        return round(float(np.mean([percent(logits_of(make(), z, size), y)
                                    for z in sets])), 2)

    scores = [[score(lambda n=n: prediction_time(net, n), size)
               for n in config["priors"]] for size in config["sizes"]]
    priors = {size: config["priors"][int(np.argmax(row))]
              for size, row in zip(config["sizes"], scores, strict=True)}
    rates = {lr: score(lambda lr=lr: Tent(net, lr), config["size"])
             for lr in config["tent_rates"]}
    return priors, max(rates, key=rates.get), scores


def table(net, x, y, size, prior, tent_lr, seed):
    """Accuracy in percent and calibration error of every method for each
    corruption and severity, and how far the statistics have moved."""
    from normlab.adapt import calibration_error, shift_score, statistics_shift

    out = {"shift": []}
    for name in LEVELS:
        rows = {}
        for severity in SEVERITIES:
            z = damaged(x, name, severity, seed)
            rows.setdefault("shift", []).append(
                round(shift_score(statistics_shift(net, z)), 4))
            for method, logits in answers(net, z, size, prior,
                                          tent_lr).items():
                rows.setdefault(method, []).append(percent(logits, y))
                rows.setdefault(f"ece_{method}", []).append(
                    round(calibration_error(logits, y), 4))
        for key, row in rows.items():
            out.setdefault(key, []).append(row)
    return out


def by_size(config, net, x, y, priors, seed):
    """Mean accuracy in percent over all corruptions at severity 3, for
    each size of batch: with batch statistics alone, and mixed."""
    from normlab.adapt import prediction_time

    n = max(config["sizes"])
    sets = [damaged(x[:n], name, 3, seed) for name in LEVELS]
    plain, mixed = ([round(float(np.mean([
        percent(logits_of(prediction_time(net, prior), z, size), y[:n])
        for z in sets])), 2) for size, prior in chosen.items()]
        for chosen in (dict.fromkeys(priors, 0), priors))
    return {"size_plain": plain, "size_mix": mixed}


def in_class_order(config, net, x, y, prior, tent_lr, seed):
    """Accuracy in percent of every method when the images come class by
    class: clean, and the mean over corruptions at severity 3."""
    order = y.argsort(stable=True)
    x, y = x[order], y[order]
    rows = [[percent(logits, y) for logits in
             answers(net, z, config["size"], prior, tent_lr).values()]
            for z in [x] + [damaged(x, name, 3, seed) for name in LEVELS]]
    return {"sorted_clean": rows[0],
            "sorted": np.mean(rows[1:], axis=0).round(2).tolist()}


def long_tent(config, net, x, y, tent_lr, seed):
    """Accuracy in percent and mean entropy of each pass of a TENT that is
    never reset, over noise of severity 3: in random order and class by
    class, at the chosen learning rate and at ten times that."""
    from normlab.adapt import Tent, entropy

    out, z = {}, damaged(x, "noise", 3, seed)
    order = y.argsort(stable=True)
    for key, rows in (("random", slice(None)), ("sorted", order)):
        for speed in (1, 10):
            tent, curve = Tent(net, tent_lr * speed), []
            for _ in range(config["passes"]):
                logits = logits_of(tent, z[rows], config["size"])
                curve.append([percent(logits, y[rows]),
                              round(float(entropy(logits).mean()), 4)])
            out[f"long_{key}_{speed}"] = curve
    return out


def shifted(config, point, tick):
    """All that is measured on one network of a method and a seed."""
    seed = point["seed"]
    net, lr = best_trained(config, point["method"], seed, tick)
    x, y = test_images(config, seed)
    if point["method"] != "BN":
        z = [[damaged(x, name, s, seed) for s in SEVERITIES]
             for name in LEVELS]
        return {"lr": lr, "clean": [percent(logits_of(net, x, 500), y)],
                "source": [[percent(logits_of(net, a, 500), y) for a in row]
                           for row in z]}
    from normlab.adapt import calibration_error

    priors, tent_lr, scores = choose(config, net, seed)
    prior = priors[config["size"]]
    clean = answers(net, x, config["size"], prior, tent_lr)
    return {"lr": lr, "priors": list(priors.values()), "tent_lr": tent_lr,
            "prior_scores": scores,
            "clean": [percent(logits, y) for logits in clean.values()],
            "ece_clean": [round(calibration_error(logits, y), 4)
                          for logits in clean.values()],
            **table(net, x, y, config["size"], prior, tent_lr, seed),
            **by_size(config, net, x, y, priors, seed),
            **in_class_order(config, net, x, y, prior, tent_lr, seed),
            **long_tent(config, net, x, y, tent_lr, seed)}


def points(config):
    """Every method and seed."""
    return [{"method": method, "seed": seed}
            for method in config["methods"] for seed in config["seeds"]]


SHIFT = {
    "methods": ["BN", "GN", "none"],
    "learning_rates": [0.3, 1.0, 3.0],
    "seeds": [0, 1, 2],
    "size": 64,  # images in a batch at test time
    "priors": [0, 0.25, 1, 4, 16, 64, 256],
    "tent_rates": [0.0003, 0.001, 0.003, 0.01],
    "passes": 10,
    "levels": {name: list(v) for name, v in (LEVELS | HELD_OUT).items()},
}

EXPERIMENT = Experiment(
    title="Damaged digits: source statistics, AdaBN, prediction-time batch "
          "normalization, mixtures and TENT, beside networks without",
    live=SHIFT | {
        "data": "digits",
        "widths": [8, 16, 32],
        "strides": [1, 2, 2],
        "batch_size": 64,
        "steps": 160,
        "held_out": 360,
        "choose": 180,
        "test": 360,
        "sizes": [1, 2, 8, 64, 360],
    },
    full=SHIFT | {
        "data": "mnist",
        "widths": [8, 16, 32],
        "strides": [2, 2, 2],
        "batch_size": 128,
        "steps": 1404,  # 3.3 epochs of the 55,000 images left
        "held_out": 5000,
        "choose": 256,
        "test": 2000,
        "sizes": [1, 2, 8, 64, 512],
    },
    points=points,
    steps=lambda config, point: (len(config["learning_rates"])
                                 * config["steps"]),
    run=shifted,
    code=(trained, norm, best_trained, test_images, damaged, logits_of,
          percent, answers, choose, table, by_size, in_class_order,
          long_tent, shifted, points, images, small_cnn, corrupt,
          *DAMAGE.values()),
    layers=("adapt",),
)
