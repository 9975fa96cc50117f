"""Memory traffic of Triton kernels, counted in Triton's interpreter."""

import contextlib

import numpy as np


@contextlib.contextmanager
def counted():
    """Count, in the list that is yielded, the bytes of every load and store
    that kernels make while they are interpreted; masked lanes make none.
    """
    from triton.runtime.interpreter import interpreter_builder as builder

    found = []

    def note(pointers, mask):
        size = pointers.get_element_ty().primitive_bitwidth // 8
        found.append(size * int(np.count_nonzero(mask.data)))

    def load(pointers, mask, *more):
        note(pointers, mask)
        return kept[0](pointers, mask, *more)

    def store(pointers, value, mask, *more):
        note(pointers, mask)
        return kept[1](pointers, value, mask, *more)

    kept = builder.create_masked_load, builder.create_masked_store
    builder.create_masked_load, builder.create_masked_store = load, store
    try:
        yield found
    finally:
        del builder.create_masked_load, builder.create_masked_store


def passes(function, x):
    """How often the kernels that a function runs pass over a tensor of x's
    size: the bytes they load and store, over x's. Raises RuntimeError where
    kernels are compiled, since no one counts there.
    """
    with counted() as found:
        function()
    if not found:
        raise RuntimeError("traffic is counted only in Triton's interpreter: "
                           "set TRITON_INTERPRET=1 before triton is imported")
    return sum(found) / (x.numel() * x.element_size())
