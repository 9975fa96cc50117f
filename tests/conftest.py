"""What several tests use: the built site, a browser to look at it with."""

import functools
import http.server
import os
import shutil
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "_build/html"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = ("--no-sandbox --disable-gpu --disable-quic --no-first-run "
         "--disable-background-networking --disable-component-update "
         "--disable-sync").split()


def find_browser(playwright):
    """The path of a Chromium, the system's or Playwright's own; or None."""
    own = playwright.chromium.executable_path
    return next(filter(None, map(shutil.which, BROWSERS)),
                own if Path(own).exists() else None)


def pages():
    """The site's pages, relative to its root."""
    return sorted(str(p.relative_to(SITE)) for folder in ("book", "notebooks")
                  for p in (SITE / folder).glob("*.html"))


@pytest.fixture(scope="session")
def site():
    """The address of the built site, served on the loopback interface."""
    if not (SITE / "index.html").exists():
        pytest.fail("there is no site in _build/html: run `make book`")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(SITE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="session")
def browser_type_launch_args(browser_type_launch_args, playwright):
    """Use the system's Chromium; without one, say how to get it."""
    path = find_browser(playwright)
    if path is None:
        message = ("no Chromium found, so the site was not tested; on Debian "
                   "and Ubuntu: apt install chromium")
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return {**browser_type_launch_args, "executable_path": path,
            "headless": True, "args": FLAGS}
