"""All pages can be used by everybody: axe finds nothing serious, nothing is wider than a phone."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import pytest
from playwright.async_api import Browser, Page, expect

from tests.browser import NARROW, Scheme, visit
from tests.console.day import Day
from tests.console.pages import log_in, picture

pytestmark = pytest.mark.asyncio(loop_scope="session")

AXE = (files("axe_playwright_python") / "axe.min.js").read_text()
TOO_BAD = {"serious", "critical"}
RULES: dict[Scheme, Any] = {
    "light": {"resultTypes": ["violations"]},
    "dark": {"runOnly": ["color-contrast"]},
}
"""In the dark, only the colours are others."""


def paths(day: Day) -> dict[str, str]:
    """Return a page of each kind."""
    noon = day.noon_size
    return {
        "table": f"/console/tables/orders?at={noon}&sort=-created_at&fees=gt:0&limit=25",
        "position": f"/console/tables/positions/{day.position_id}?a=100&b={noon}",
        "event": "/console/events/1500",
        "security": "/console/security",
        "difference": f"/console/difference?a={noon - 5}&b={noon}",
        "operations": "/console/operations",
    }


async def test_no_page_has_a_serious_violation(browser: Browser, address: str, day: Day) -> None:
    """Log-in and all pages, light and dark, have no serious or critical violation."""
    async with visit(browser, address) as page:
        await page.goto("/console/login")
        found = {"login": await _violations(page)}
        await log_in(page, "operator")
        for name, path in paths(day).items():
            await page.goto(path)
            if name == "position":
                await picture(page, name)
            await _open_all(page)
            found[name] = await _violations(page)
    assert {name: bad for name, bad in found.items() if bad} == {}


async def _open_all(page: Page) -> None:
    """Open what is folded away, and wait for what a script has to say."""
    await page.evaluate(
        "document.querySelectorAll('details').forEach((each) => (each.open = true))"
    )
    if await page.locator("#verdict").count():
        await expect(page.locator("#verdict")).to_have_class("verdict holds")


async def _violations(page: Page) -> list[Any]:
    await page.evaluate(AXE)
    violations = []
    for scheme, rules in RULES.items():
        await page.emulate_media(color_scheme=scheme)
        found = await page.evaluate("(rules) => axe.run(rules)", rules)
        violations += [(scheme, each) for each in found["violations"]]
    await page.emulate_media(color_scheme="light")
    return [
        (scheme, each["id"], [node["html"] for node in each["nodes"]])
        for scheme, each in violations
        if each["impact"] in TOO_BAD
    ]


async def test_pages_fit_a_phone(browser: Browser, address: str, day: Day) -> None:
    """At 390 pixels only tables scroll sideways, in their own region."""
    async with visit(browser, address, width=NARROW) as page:
        await log_in(page, "operator")
        for name, path in paths(day).items():
            await page.goto(path)
            await _open_all(page)
            width = await page.evaluate("document.scrollingElement.scrollWidth")
            assert width <= NARROW, name
            if name == "table":
                await picture(page, "phone")


async def test_skip_link_leads_to_the_content(browser: Browser, address: str) -> None:
    """The first thing that the keyboard gets to skips navigation and time bar."""
    async with visit(browser, address) as page:
        await log_in(page, "auditor")
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
        await page.keyboard.press("Enter")
        await expect(page.locator("main")).to_be_focused()
