"""Convolutional networks whose normalisation is an argument."""

import torch
from torch import nn

from normlab.lab.data import digits


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, each normalised, and a shortcut.

    Source: He et al. (2016), figure 2 and section 4.2; where the shape
    changes the shortcut is a normalised 1x1 convolution.
    """

    def __init__(self, c_in, c_out, stride, norm, relu):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.norm1 = norm(c_out)
        self.relu1 = relu()
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.norm2 = norm(c_out)
        self.shortcut = nn.Identity()
        if stride != 1 or c_in != c_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(c_in, c_out, 1, stride, bias=False), norm(c_out))
        self.relu2 = relu()

    def forward(self, x):
        """x (N, c_in, H, W) to (N, c_out, H / stride, W / stride)."""
        y = self.relu1(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return self.relu2(y + self.shortcut(x))


class ResNet20(nn.Module):
    """Nine residual blocks of 16, 32 and 64 channels for small images: 21
    normalisations.

    norm(channels) makes a normalisation (nn.Identity: none); relu() an
    activation. x (N, channels, H, W) to logits (N, classes). Source: He
    et al. (2016), section 4.2, but with 1x1 convolutions in the two
    shortcuts where the shape changes.
    """

    def __init__(self, norm=nn.BatchNorm2d, relu=nn.ReLU, classes=10,
                 channels=3, width=16):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, 1, 1, bias=False), norm(width),
            relu())
        blocks, c_in = [], width
        for stage in range(3):
            for i in range(3):
                stride = 2 if stage and not i else 1
                blocks.append(BasicBlock(c_in, width * 2**stage, stride,
                                         norm, relu))
                c_in = width * 2**stage
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(c_in, classes)

    def forward(self, x):
        """x (N, channels, H, W) to logits (N, classes)."""
        return self.head(self.flatten(self.pool(self.blocks(self.stem(x)))))


class InvertedResidual(nn.Module):
    """Expand with a 1x1, filter with a depthwise 3x3, project with a 1x1
    convolution; each normalised, the last not activated.

    Source: Sandler et al. (2018), section 3.3 and figure 4d.
    """

    def __init__(self, c_in, c_out, stride, expand, norm, relu):
        super().__init__()
        c, layers = c_in * expand, []
        if expand > 1:
            layers += [nn.Conv2d(c_in, c, 1, bias=False), norm(c), relu()]
        layers += [nn.Conv2d(c, c, 3, stride, 1, groups=c, bias=False),
                   norm(c), relu(), nn.Conv2d(c, c_out, 1, bias=False),
                   norm(c_out)]
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x):
        """x (N, c_in, H, W) to (N, c_out, H / stride, W / stride)."""
        return x + self.layers(x) if self.residual else self.layers(x)


class MobileNetV2(nn.Module):
    """A small MobileNetV2 for small images: six inverted residual blocks
    and, as it stands, 19 normalisations.

    blocks: (expansion, channels, stride) of each; norm(channels) makes a
    normalisation (nn.Identity: none), relu() an activation. x (N,
    channels, H, W) to logits (N, classes). Source: Sandler et al. (2018),
    with fewer blocks and less stride.
    """

    BLOCKS = ((1, 16, 1), (6, 24, 1), (6, 24, 1), (6, 32, 2), (6, 32, 1),
              (6, 64, 2))

    def __init__(self, norm=nn.BatchNorm2d, relu=nn.ReLU6, classes=10,
                 channels=3, stem=32, head=256, blocks=BLOCKS):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, stem, 3, 1, 1, bias=False), norm(stem),
            relu())
        layers, c_in = [], stem
        for expand, c_out, stride in blocks:
            layers.append(InvertedResidual(c_in, c_out, stride, expand,
                                           norm, relu))
            c_in = c_out
        self.blocks = nn.Sequential(*layers)
        self.last = nn.Sequential(nn.Conv2d(c_in, head, 1, bias=False),
                                  norm(head), relu())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(head, classes)

    def forward(self, x):
        """x (N, channels, H, W) to logits (N, classes)."""
        y = self.last(self.blocks(self.stem(x)))
        return self.head(self.flatten(self.pool(y)))


def randomise(net, x, seed=0):
    """Give a network's batch normalizations a past: random gamma (0.5 to
    1.5) and beta, and the running statistics that the batch x produces.

    Returns the same network in evaluation mode. With gamma = 1, beta = 0,
    mean 0 and variance 1, as new layers have them, a wrong fold could go
    unseen.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = [m for m in net.modules()
             if getattr(m, "running_var", None) is not None]
    with torch.no_grad():
        for bn in norms:
            if bn.weight is not None:
                bn.weight.copy_(0.5 + torch.rand(
                    len(bn.weight), generator=generator))
            if bn.bias is not None:
                bn.bias.copy_(torch.randn(
                    len(bn.bias), generator=generator) / 4)
        momenta = [bn.momentum for bn in norms]
        for bn in norms:
            bn.momentum = 1.0
        net.train()(x)
        for bn, momentum in zip(norms, momenta, strict=True):
            bn.momentum = momentum
    return net.eval()


def digits_mobilenet(seed=0, relu=nn.ReLU, steps=100):
    """A MobileNetV2 of three blocks, trained on digits for a second or two.

    Returns (the network in evaluation mode, x_test (360, 1, 8, 8), y_test
    (360,)). SGD with momentum 0.9, batches of 32, one cycle of the learning
    rate up to 0.1. `seed` draws split, weights and batches.
    """
    x, y, x_test, y_test = (torch.from_numpy(a) for a in digits(seed))
    x, x_test = x.reshape(-1, 1, 8, 8), x_test.reshape(-1, 1, 8, 8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = MobileNetV2(relu=relu, channels=1, stem=8, head=32, blocks=(
            (1, 8, 1), (6, 12, 2), (6, 12, 1)))
        optimiser = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.1,
                                                    total_steps=steps)
        for _ in range(steps):
            batch = torch.randint(len(x), (32,))
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
            optimiser.step()
            cycle.step()
    return net.eval(), x_test, y_test
