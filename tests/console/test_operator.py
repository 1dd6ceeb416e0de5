"""What operators do: see what is parked, leave an event out, rebuild tables."""

from __future__ import annotations

import pytest
from playwright.async_api import Browser, expect

from ledger.services import open_ledger
from projections import marks
from projections.numbers import short
from tests.browser import visit
from tests.console.day import Day
from tests.console.pages import log_in, picture

pytestmark = pytest.mark.asyncio(loop_scope="session")
POISON = "poison"
REASON = "the venue has sent a test mark"


@pytest.fixture
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the fold of marks raise at those of one source."""

    def spoilt(text: str | None) -> str | None:
        if text == POISON:
            raise ValueError("this mark cannot be folded")
        return short(text)

    monkeypatch.setattr(marks, "short", spoilt)


@pytest.mark.usefixtures("_poison")
async def test_operator_skips_a_poisoned_event_and_rebuilds(
    browser: Browser, address: str, day: Day
) -> None:
    """A parked key is seen, and skipped with a reason; a rebuild is seen to its end."""
    async with open_ledger(day.settings) as ledger:
        marked = await ledger.markets.mark(token="DOGE", price="0.1", source=POISON)
    [offset] = marked.appended.offsets
    async with visit(browser, address) as page:
        await log_in(page, "operator", "/console/operations")
        await page.get_by_role("link", name=f"Skip the event at offset {offset} in marks").click()
        await page.get_by_label("Reason").fill(REASON)
        await page.get_by_role("button", name="Skip this event").click()
        await expect(page.get_by_text("None: every event was folded.")).to_be_visible()
        await page.get_by_label("marks", exact=True).check()
        await page.get_by_role("button", name="Start the rebuild").click()
        rebuilt = page.locator(".rebuilds li").first
        await expect(rebuilt.locator(".tag.done")).to_be_visible()
        await expect(page.locator("#announcer")).to_contain_text("Rebuild of marks: done")
        await picture(page, "operations")


async def test_auditor_sees_operations_without_buttons(browser: Browser, address: str) -> None:
    """Who may only look is offered nothing to do."""
    async with visit(browser, address) as page:
        await log_in(page, "auditor", "/console/operations")
        await expect(page.get_by_role("heading", name="Workers")).to_be_visible()
        await expect(page.locator("main form")).to_have_count(0)
