"""How much memory a network keeps for its backward pass."""


def saved_bytes(net, x):
    """Bytes that autograd keeps after net(x) for the backward pass.

    Each storage counts once; the network's own parameters and buffers,
    which exist anyway, don't count.
    """
    import torch

    own = {t.untyped_storage().data_ptr()
           for t in (*net.parameters(), *net.buffers())}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            # The tensor too, lest its address be used again.
            kept[storage.data_ptr()] = storage.nbytes(), tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        net(x)
    return sum(size for size, _ in kept.values())
