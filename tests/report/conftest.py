"""Debian's chromium for the tests of pages, driven by playwright."""

from pathlib import Path

import pytest

CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="module")  # no longer: while it is open, no other test can run an event loop of its own
def browser():
    """A browser without a window; skipped with its reason where chromium or playwright is absent."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make setup")
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is absent: `make setup` as root installs it")
    with playwright.sync_playwright() as p:
        opened = p.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield opened
        opened.close()
