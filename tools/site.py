"""Build the site into _build/html; any warning is an error.

Usage: python -m tools.site
"""

import hashlib
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MADE = ROOT / "_build/made-with"
FIRST = ROOT / "_build/html/index.html"


def maker():
    """A fingerprint of the extensions, which Sphinx does not watch."""
    parts = [p.read_bytes() for p in sorted((ROOT / "book/_ext").glob("*.py"))]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def main():
    """Run Jupyter Book and say where the first page is."""
    start = time.perf_counter()
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build",
               ".", "-W", "-n", "--keep-going"]
    if not MADE.exists() or MADE.read_text() != maker():
        command.append("--all")
    build = subprocess.Popen(command, cwd=ROOT, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    log = []
    for text in build.stdout:
        log.append(text)
        if "WARNING" in text or "ERROR" in text or "writing" in text:
            print(text.rstrip())
    if build.wait():
        sys.stdout.writelines(log[-25:])
        sys.exit("The site was not built: mend the warnings above, then run "
                 "the same command again")
    MADE.write_text(maker())
    print(f"The book is at {FIRST} (built in "
          f"{time.perf_counter() - start:.0f} s; `make serve` serves it)")


if __name__ == "__main__":
    main()
