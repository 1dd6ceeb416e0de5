"""What auditors do: look at the past, follow a row to its events, and prove them."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.async_api import Browser, Page, expect

from tests.browser import visit
from tests.console.day import Day
from tests.console.pages import log_in, move, picture, slider

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_auditor_follows_a_position_from_noon_to_its_proof(
    browser: Browser, address: str, day: Day, tmp_path: Path
) -> None:
    """Log in, go to noon, find a position, see its history and a proof, pin two points, export."""
    async with visit(browser, address) as page:
        await page.goto("/console")
        await picture(page, "log-in")
        await log_in(page, "auditor", f"/console/tables/positions?user_id=eq:{day.user_id}")
        await expect(page.locator("tbody tr")).to_contain_text(["64,381.42857143"])
        await move(page, day.noon_size)
        await expect(page.locator("tbody tr")).to_contain_text(["3.5"])
        assert parse_qs(urlsplit(page.url).query)["at"] == [str(day.noon_size)]
        await expect(slider(page)).to_have_attribute(
            "aria-valuetext", f"size {day.noon_size:,}, 2026-03-02 12:00 UTC"
        )
        await picture(page, "positions-at-noon")
        await page.locator("tbody th a").click()
        await _follow(page)
        await page.go_back()
        await _compare(page, day, tmp_path)


async def _follow(page: Page) -> None:
    """Go from the row by its history to the event that opened the position, and see it proved."""
    await expect(page.get_by_role("heading", level=1)).to_contain_text("Position")
    await expect(page.get_by_role("img", name="The position in BTC over time")).to_be_visible()
    opening = page.locator("table.history tbody tr").last
    for text in ("OrderFilled", "user:ada", "req-ada-1", "198.51.100.23"):
        await expect(opening).to_contain_text(text)
    await opening.scroll_into_view_if_needed()
    await picture(page, "history")
    await opening.get_by_role("rowheader").get_by_role("link").click()
    await expect(page.locator("#verdict")).to_contain_text("Verified in this browser")
    await expect(page.locator("#steps > li")).to_have_count(5)
    await picture(page, "proof")


async def _compare(page: Page, day: Day, folder: Path) -> None:
    """Pin noon and now, see what the position became meanwhile, and take all of it along."""
    await page.get_by_role("link", name="Pin A").click()
    await page.get_by_role("link", name="Now", exact=True).click()
    await page.get_by_role("link", name="Pin B").click()
    await page.get_by_role("link", name="Compare A and B").click()
    await page.get_by_label("Table", exact=True).select_option("Positions")
    await page.get_by_role("button", name="Compare", exact=True).click()
    own = page.locator("tbody tr").filter(has_text=day.position_id[:23])
    await expect(own).to_contain_text("changed")
    await expect(own.locator("li").first).to_have_text(re.compile(r"size\s*3\.5\s*→\s*3"))
    await picture(page, "difference")
    async with page.expect_download() as started:
        await page.get_by_role("link", name="CSV").click()
    file = folder / "difference.csv"
    await (await started.value).save_as(file)
    _head, *lines = file.read_text().splitlines()
    kinds = {row["key"]: row["change"] for row in csv.DictReader(lines)}
    assert kinds[day.position_id] == "changed"


async def test_time_bar_is_moved_with_the_keyboard_and_keeps_the_focus(
    browser: Browser, address: str, day: Day
) -> None:
    """Arrow keys move by an event; the page follows, the focus stays, going back works."""
    async with visit(browser, address) as page:
        await log_in(page, "auditor", "/console/tables/marks")
        await move(page, day.noon_size)
        await slider(page).focus()
        for _ in range(3):
            await page.keyboard.press("ArrowLeft")
        moment = page.locator("#moment")
        await expect(moment).to_have_attribute("data-value", str(day.noon_size - 3))
        await expect(slider(page)).to_be_focused()
        await expect(page.get_by_role("status").last).to_contain_text(f"{day.noon_size - 3:,}")
        await page.go_back()
        await expect(moment).to_have_attribute("data-value", str(day.noon_size))
        await page.get_by_label("Size or time").fill("2026-03-02 06:00")
        await page.keyboard.press("Enter")
        await expect(moment).to_contain_text("2026-03-02 06:00:00")


async def test_security_page_obeys_the_time_bar(browser: Browser, address: str, day: Day) -> None:
    """At noon there were fewer failed logins than at the end of the day, in all that is shown."""
    async with visit(browser, address) as page:
        await log_in(page, "auditor", "/console/security")
        count = page.locator(".counts li").filter(has_text="failed logins").locator("b")
        await move(page, day.size)
        at_night = int(await count.inner_text())
        await picture(page, "security")
        await move(page, day.noon_size)
        assert 0 < int(await count.inner_text()) < at_night
        await page.get_by_role("link", name="the last day").click()
        await expect(page.locator(".spans b")).to_have_text("the last day")
        assert await page.locator("rect.failed").count()
