"""What visitors do on pages."""

from __future__ import annotations

import os
from pathlib import Path

from playwright.async_api import FloatRect, Locator, Page, expect

from tests.console.day import PASSWORD

PICTURE_HEIGHT = 760
SCREENSHOTS = os.environ.get("LEDGER_SCREENSHOTS")


async def log_in(page: Page, name: str, path: str = "/console") -> None:
    """Ask for a page, be sent to the log-in, and come back."""
    await page.goto(path)
    await page.get_by_label("Username or e-mail address").fill(name)
    await page.get_by_label("Password").fill(PASSWORD)
    await page.get_by_role("button", name="Log in").click()
    await expect(page.get_by_role("button", name="Log out")).to_be_visible()


async def move(page: Page, size: int) -> None:
    """Move the time bar to a size, and wait for the page as of it."""
    await slider(page).fill(str(size))
    await expect(page.locator("#moment")).to_have_attribute("data-value", str(size))


def slider(page: Page) -> Locator:
    """Return the time bar's slider."""
    return page.get_by_role("slider")


async def picture(page: Page, name: str) -> None:
    """Keep what the page looks like, where LEDGER_SCREENSHOTS says that pictures are wanted."""
    if SCREENSHOTS is not None:
        width = await page.evaluate("window.innerWidth")
        clip: FloatRect = {"x": 0, "y": 0, "width": width, "height": PICTURE_HEIGHT}
        await page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png", clip=clip)
