"""python -m normlab.lab: the book's experiments from the command line."""

import os

# Before NumPy is first imported: its thread pool reads these once, and on
# small matrices, or a busy machine, more threads are slower.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

from normlab.lab.runs import main  # noqa: E402

if __name__ == "__main__":
    main()
