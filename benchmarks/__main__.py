"""Measure the layers beside their peers, and write records/bench-*.json.

Usage: python -m benchmarks [PART|all] [--rounds N]
"""

import argparse
import importlib
import os

# Each part is a module benchmarks.<part> with main(rounds), which prints its
# tables and writes records/bench-<part>.json. Add new parts here.
PARTS = ("speed", "accuracy", "book", "torch_layers", "kernels", "sm90",
         "folding", "sync", "sweep", "coursework")


def pin_one_thread():
    """One thread for every library; to be called before NumPy is
    imported."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS",
                 "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
        os.environ[name] = "1"


def main():
    """Run the part that is asked for, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", nargs="?", choices=[*PARTS, "all"],
                        default="all")
    parser.add_argument("--rounds", type=int, default=11,
                        help="timed rounds, of which the median is taken")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {args.rounds}")
    for part in PARTS if args.part == "all" else [args.part]:
        importlib.import_module(f"benchmarks.{part}").main(args.rounds)


if __name__ == "__main__":
    pin_one_thread()
    main()
