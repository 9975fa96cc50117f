"""Assignments, and what grades them."""

import os

# One thread a process, as several submissions are graded at a time. Before
# NumPy is imported, which reads it once.
for _name in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{_name}_NUM_THREADS", "1")
