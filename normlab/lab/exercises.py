"""Checks of a reader's answers to the exercises in code."""

import numpy as np


def check_answer(answer, solution, *cases, rtol=1e-6):
    """Compare a reader's function with the solution on some inputs.

    answer, solution: functions of the same arguments; cases: tuples of
    arguments. Prints whether the answer is right, or the first case where
    it isn't and by how much; an answer that returns None (an exercise not
    begun) is named as such. Arrays, numbers and tuples of them compare.
    """
    for number, case in enumerate(cases, 1):
        got = answer(*(np.copy(a) if isinstance(a, np.ndarray) else a
                       for a in case))
        if got is None:
            print("Not answered yet: fill in the function and run again.")
            return
        fault = difference(got, solution(*case), rtol)
        if fault:
            print(f"Not yet: case {number} of {len(cases)}, {fault}.")
            return
    print(f"Correct on all {len(cases)} cases.")


def difference(got, want, rtol):
    """In words, how `got` differs from `want`; None if it doesn't."""
    if isinstance(want, tuple):
        if not isinstance(got, tuple) or len(got) != len(want):
            return f"{len(want)} results are wanted"
        faults = (difference(g, w, rtol)
                  for g, w in zip(got, want, strict=True))
        return next((f for f in faults if f), None)
    got, want = np.asarray(got), np.asarray(want)
    if got.shape != want.shape:
        return f"the shape is {got.shape}, {want.shape} is wanted"
    scale = max(1e-12, float(np.abs(want).max(initial=0)))
    error = float(np.abs(got - want).max(initial=0)) / scale
    if not error <= rtol:
        return f"the largest relative error is {error:.1e}"
    return None
