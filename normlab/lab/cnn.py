"""A small convolutional network with this book's batch normalization, with
PyTorch's, and without any."""

import numpy as np

from normlab.lab.experiment import Experiment, grid, load


def small_cnn(norm, widths, strides, seed, classes=10):
    """3x3 convolutions of `widths` channels, each with norm(channels) and
    a ReLU, then the mean over the image and a linear layer.

    norm: a class like torch.nn.BatchNorm2d, or None, and then each
    convolution has a bias instead. The same seed draws the same weights
    whatever the norm: N(0, 2 / fan_in), as in He et al. (2015).
    """
    import torch
    from torch import nn

    draw, layers, c_in = torch.Generator().manual_seed(seed), [], 1
    for c_out, stride in zip(widths, strides, strict=True):
        layers.append(nn.Conv2d(c_in, c_out, 3, stride, 1, bias=not norm))
        layers += [norm(c_out), nn.ReLU()] if norm else [nn.ReLU()]
        c_in = c_out
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                        nn.Linear(c_in, classes))
    for layer in net:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu",
                                    generator=draw)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return net


def images(name, device):
    """A data set of square grey images as tensors: x (N, 1, H, W) and
    y (N,), for training and for testing."""
    import torch

    x, y, x_test, y_test = load(name)
    side = round(x.shape[1] ** 0.5)
    return tuple(
        torch.from_numpy(np.ascontiguousarray(a)).to(device).reshape(
            (-1, 1, side, side) if a.ndim == 2 else (-1,))
        for a in (x, y, x_test, y_test))


def norms():
    """The methods compared: what makes their normalisation layers."""
    import torch

    from normlab import torch_layers

    return {"ours": torch_layers.BatchNorm2d, "none": None,
            "torch.nn": torch.nn.BatchNorm2d}


def small_images(config, point, tick):
    """Train one network: its test accuracy at the checkpoints, and the
    mean training loss since the checkpoint before."""
    import torch

    from normlab.lab.torch_train import accuracy, train

    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, y, x_test, y_test = images(config["data"], device)
    net = small_cnn(norms()[point["method"]], config["widths"],
                    config["strides"], point["seed"]).to(device)
    marks = config["checkpoints"]
    left = iter(marks)

    def evaluate(net):
        tick(next(left))
        return round(accuracy(net, x_test, y_test), 4)

    history = train(net, x, y, config["steps"], config["batch_size"],
                    point["lr"], point["seed"], every=marks,
                    evaluate=evaluate)
    parts = np.split(history.losses, marks)
    return {"accuracy": history.values, "device": device,
            "loss": [round(float(part.mean()), 4) for part in parts[:-1]]}


CNN = {
    "methods": ["ours", "torch.nn", "none"],
    "learning_rates": [0.1, 0.3, 1.0],
    "seeds": [0, 1, 2],
    "widths": [8, 16, 32],
    "batch_size": 64,
}

EXPERIMENT = Experiment(
    title="A small convolutional network with this book's PyTorch layer, "
          "with torch.nn's, and without batch normalization",
    live=CNN | {
        "data": "digits",
        "strides": [1, 2, 2],
        "steps": 88,  # four epochs
        "checkpoints": [10, 22, 44, 88],
    },
    full=CNN | {
        "data": "mnist",
        "batch_size": 128,
        "strides": [2, 2, 2],
        "steps": 1404,  # three epochs
        "checkpoints": [20, 50, 100, 200, 468, 936, 1404],
    },
    points=grid,
    steps=lambda config, point: config["steps"],
    run=small_images,
    code=(small_cnn, images, norms, small_images, grid),
    layers=("torch_layers",),
)
