"""What several tests use: the built site, a browser to look at it with."""

import os

import pytest

from tools.browser import FLAGS, MISSING, SITE, find_browser, served


@pytest.fixture(scope="session")
def site():
    """The address of the built site."""
    if not (SITE / "index.html").exists():
        pytest.fail("there is no site in _build/html: run `make book`")
    with served() as address:
        yield address


@pytest.fixture(scope="session")
def browser_type_launch_args(browser_type_launch_args, playwright):
    """Use the system's Chromium; without one, say how to get it."""
    path = find_browser(playwright)
    if path is None:
        if os.environ.get("CI"):
            pytest.fail(MISSING)
        pytest.skip(f"the site was not tested: {MISSING}")
    return {**browser_type_launch_args, "executable_path": path,
            "headless": True, "args": FLAGS}
