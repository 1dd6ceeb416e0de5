"""A real browser for tests: Chromium, wherever it is, without what it would do by itself.

`.ci/browser` sees to it that there is one. Without one its tests are skipped, or fail where CI is
true.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import pytest
from playwright.async_api import Browser, ConsoleMessage, Page, Playwright, Request, expect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-lcd-text",  # grey edges make small pictures
)
ADVICE = "no Chromium was found: run .ci/browser, or set LEDGER_TEST_CHROMIUM to one"
WAIT_MILLISECONDS = 20_000
WIDE, NARROW = 1280, 390
HEIGHT = 860

Scheme = Literal["light", "dark"]


def _candidates(playwright: Playwright) -> Iterator[str]:
    yield os.environ.get("LEDGER_TEST_CHROMIUM", "")
    yield from (shutil.which(name) or "" for name in NAMES)
    yield playwright.chromium.executable_path


def chromium(playwright: Playwright) -> str:
    """Return the path of a Chromium; skip, or fail in CI, where there is none."""
    for each in _candidates(playwright):
        if each and Path(each).is_file():
            return each
    if os.environ.get("CI") == "true":
        pytest.fail(ADVICE)
    pytest.skip(ADVICE)


async def launch(playwright: Playwright) -> Browser:
    """Start the browser; whatever is waited for may take its time on a busy machine."""
    expect.set_options(timeout=WAIT_MILLISECONDS)
    return await playwright.chromium.launch(
        executable_path=chromium(playwright), args=list(OPTIONS)
    )


@asynccontextmanager
async def visit(
    browser: Browser, address: str, *, scheme: Scheme = "light", width: int = WIDE
) -> AsyncIterator[Page]:
    """Give a page of a visitor of their own.

    At the end nothing may have gone wrong in it, and it may have asked no other server.
    """
    context = await browser.new_context(
        base_url=address, color_scheme=scheme, viewport={"width": width, "height": HEIGHT}
    )
    context.set_default_timeout(WAIT_MILLISECONDS)
    page = await context.new_page()
    wrong: list[str] = []

    def listen(message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            wrong.append(message.text)

    def watch(request: Request) -> None:
        if not request.url.startswith((f"{address}/", "blob:", "data:")):
            wrong.append(f"asked {request.url}")

    page.on("console", listen)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", watch)
    try:
        yield page
    finally:
        await context.close()
    assert not wrong
