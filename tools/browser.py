"""The built site, served on the loopback interface, and a browser for it."""

import contextlib
import functools
import http.server
import shutil
import threading
from pathlib import Path

from tools.notebooks import ROOT

SITE = ROOT / "_build/html"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
MISSING = ("no Chromium found; on Debian: apt install chromium, elsewhere: "
           ".venv/bin/playwright install chromium")
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
    return sorted(str(p.relative_to(SITE)) for folder in (
                      "book", "coursework/student", "notebooks")
                  for p in (SITE / folder).glob("*.html"))


@contextlib.contextmanager
def served():
    """Serve the site while the context lasts; gives its address."""
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(SITE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
