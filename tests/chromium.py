"""The system's Chromium, driven by Playwright, without a window and without a network beyond this machine."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def browser() -> Iterator:
    """A running browser; skips where there is none."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="needs Playwright's Python package, see requirements-dev.txt"
    )
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    if not executable:
        pytest.skip("needs a Chromium on this machine (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=executable, args=list(ARGUMENTS))
        yield chromium
        chromium.close()


@contextmanager
def page(browser, url: str, query: str = "", **options) -> Iterator:
    """A page at `url`; `page.problems` collects what the extension's script raises. Whatever it asks other machines for
    is refused.
    """
    context = browser.new_context(**options)
    context.route(lambda address: not address.startswith((url, "data:", "blob:")), lambda route: route.abort())
    page = context.new_page()
    page.set_default_timeout(10_000)
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(error.stack) if "loratorio" in error.stack else None)
    page.goto(url + query)
    yield page
    context.close()
