"""Training a PyTorch network: the loop, its batches, accuracy."""

import torch

from normlab.lab.train import History, batches, check_marks


def train(net, x, y, steps, batch_size, lr, seed, every=None, evaluate=None):
    """Train `net` in place with cross-entropy and plain SGD.

    x (N, ...) and y (N,), tensors on the network's device; `seed` orders
    the mini-batches, the same ones as in `normlab.lab.train`. evaluate(net)
    is called after each multiple of `every`, or after each step that the
    list `every` names, with the network in training mode. Returns a
    History. A run that diverges ends with losses that are not finite.
    """
    marks = check_marks(every, evaluate, steps)
    draw = batches(len(x), batch_size, seed)
    optimiser = torch.optim.SGD(net.parameters(), lr=lr)
    losses, seen, values = torch.empty(steps), [], []
    net.train()
    for step in range(steps + 1):
        if step in marks:
            seen.append(step)
            values.append(evaluate(net))
        if step < steps:
            rows = torch.from_numpy(next(draw)).to(x.device)
            loss = torch.nn.functional.cross_entropy(net(x[rows]), y[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses[step] = loss.detach()
    return History(losses.numpy(), seen, values)


@torch.no_grad()
def accuracy(net, x, y, size=2000):
    """The share of samples, 0 to 1, that the network in evaluation mode
    assigns to their class. Each layer keeps the mode it had."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        right = [(net(x[i:i + size]).argmax(dim=1) == y[i:i + size]).sum()
                 for i in range(0, len(x), size)]
    finally:
        for module, mode in modes:
            module.training = mode
    return int(sum(right)) / len(x)
