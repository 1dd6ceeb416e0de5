"""The parts that pages are made of: moments, addresses, charts, cells, and sums of incidents."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from xml.etree import ElementTree as ET

import httpx
import pytest
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response

from ledger.domain.api_keys import ApiKeyRefused
from ledger.domain.marks import PriceMarked
from ledger.domain.users import AccountLocked, LoginFailed, UserRegistered
from ledger.event import Event, Metadata, NewEvent, VenueAmount
from ledger.journal import open_journal
from ledger.proof.keys import write_key
from ledger.settings import Settings
from projections.console import cells, charts
from projections.console.charts import Line, Marker, Panel, Scale, Series
from projections.console.here import Here, moment_of
from projections.console.incidents import BUCKETS_MAX, incidents
from projections.console.sampling import sampled
from projections.console.trading import course_of, gained
from projections.console.views import VIEWS
from projections.console.visiting import drop_cookie
from projections.database import Database
from projections.groups import TRADING
from projections.projector import Projector
from projections.reading import Reading
from projections.reading.paging import Filter, Query
from projections.serving.app import make_app
from tests.console import day as days
from tests.console.conftest import served
from tests.console.day import Day
from tests.console.test_access import PAGES, visiting
from tests.projections.support import an_id

START = datetime(2026, 3, 2, tzinfo=UTC)


@pytest.mark.parametrize(
    ("written", "moment"),
    [
        ("1,234", "1234"),
        (" 12 345 ", "12345"),
        ("2026-03-02", "2026-03-02T00:00:00.000000Z"),
        ("2026-03-02 12:00", "2026-03-02T12:00:00.000000Z"),
        ("2026-03-02 12:00 UTC", "2026-03-02T12:00:00.000000Z"),
        ("2026-03-02T12:00:00+02:00", "2026-03-02T10:00:00.000000Z"),
        ("0001-01-01T00:00:00+14:00", "0001-01-01T00:00:00+14:00"),
        ("yesterday", "yesterday"),
    ],
)
def test_moments_are_taken_as_people_write_them(written: str, moment: str) -> None:
    """Sizes may have separators, times need no zone; all else is left for others to refuse."""
    assert moment_of(written) == moment


def test_links_keep_the_moment_and_the_pins() -> None:
    """Other pages get moment and pins; the same page all but what is changed; files the filters."""
    given = (("at", "5"), ("status", "eq:open"), ("a", "1"), ("cursor", "x"), ("limit", "25"))
    here = Here("/console/tables/orders", given)
    assert here.to("tables", "balances", "a/b:c") == "/console/tables/balances/a%2Fb%3Ac?at=5&a=1"
    assert here.to("tables", "orders", at=7) == "/console/tables/orders?at=7&a=1"
    assert here.url(cursor=None, limit=50, a=None) == (
        "/console/tables/orders?at=5&status=eq%3Aopen&limit=50"
    )
    assert here.export("csv", "export", "orders") == (
        "/console/export/orders?format=csv&at=5&status=eq%3Aopen"
    )
    assert here.without("status", "eq:open") == "/console/tables/orders?at=5&a=1&limit=25"


def parsed(drawn: Markup) -> ET.Element:
    """Return a chart as the XML that it must be."""
    return ET.fromstring(drawn)  # noqa: S314 - it is our own


def test_charts_are_sound_and_say_what_they_show() -> None:
    """They are XML with title and description, whatever texts are in them; lines break at gaps."""
    seconds = timedelta(hours=2)
    line = Line("stop", [(0, 1.0), (10, None), (20, 2.0), (30, 2.5)], steps=True, filled=True)
    marker = Marker("buy", 5, 1.5, True, "<buy> & more")
    panel = Panel("Price of <&>", 100, [line], [marker], includes_zero=True)
    drawn = charts.panels("p", "<&>", "told", (START, START + seconds), [panel])
    tree = parsed(drawn)
    assert [each.text for each in tree[:2]] == ["<&>", "told"]
    [path] = re.findall(r'class="stop" d="([^"]+)"', drawn)
    assert path.count("M") == 2
    series = [Series("failed", "failed", [0, 3]), Series("locked", "locked", [1, 1])]
    bars = charts.histogram("h", "t", [START, START + seconds], seconds, series)
    assert len(parsed(bars).findall("rect")) == 3
    parsed(charts.activity([(1, START), (5, START), (9, START + seconds)], 9, {"A": 4}))
    parsed(charts.activity([], 0, {}))


@pytest.mark.parametrize(
    ("low", "high", "values"),
    [
        (59_400, 68_600, [60_000, 65_000]),
        (-0.3, 3.8, [0, 2]),
        (5, 5, [5]),
        (0, 3e-4, [0, 1e-4, 2e-4]),
    ],
)
def test_axes_have_few_round_values(low: float, high: float, values: list[float]) -> None:
    """One to four, within the scale."""
    assert charts.round_values(Scale(low, high)) == pytest.approx(values)


def test_values_are_exact_and_safe() -> None:
    """Amounts keep all digits; texts of others never become markup; ids lead to their rows."""
    here, view = Here("/console/tables/orders", (("at", "9"),)), VIEWS["orders"]
    assert "1,234.50000000000000001" in cells.amount(Decimal("1234.50000000000000001"))
    assert "\N{MINUS SIGN}0.5" in cells.amount("-0.50")
    assert "<b>" not in cells.cell(here, view, "strategy", "<b>" * 40)
    assert 'href="/console/tables/users/7?at=9"' in cells.cell(here, view, "user_id", "7")
    assert 'href="/console/events/41?at=9"' in cells.cell(here, view, "changed_size", 42)
    assert cells.cell(here, view, "price", None) == cells.NOTHING


def _happened() -> list[NewEvent]:
    """Return failed logins of two users from two addresses, refused keys, and a lockout."""
    user = UserRegistered(user_id=an_id("ada"), username="ada")
    made: list[tuple[Event, int, str]] = [(user, 0, "192.0.2.1")]
    for minute in range(0, 180, 20):
        failed = LoginFailed(user_id=an_id("ada"), username="ada", reason="wrong password")
        made.append((failed, minute, f"192.0.2.{minute // 20 % 2}"))
    made.append((LoginFailed(username="bob"), 181, "192.0.2.1"))
    made.append((ApiKeyRefused(reason="unknown", presented="tlk"), 182, "192.0.2.1"))
    until = START + timedelta(hours=5)
    locked = AccountLocked(user_id=an_id("ada"), locked_until=until, reason="failed logins")
    made.append((locked, 183, "192.0.2.1"))
    return [
        NewEvent(
            event,
            occurred_at=START + timedelta(minutes=minute),
            metadata=Metadata(ip_address=address),
        )
        for event, minute, address in made
    ]


async def test_incidents_are_counted_by_time_address_and_account(database_url: str) -> None:
    """On both databases the sums are those of the events, up to any size, and in any span."""
    settings = Settings(database_url=database_url)
    async with open_journal(settings) as journal, Database(settings) as database:
        await journal.append(_happened())
        await Projector(database, journal, TRADING).catch_up()
        size, journal_id = await journal.size(), journal.journal_id
        whole = await incidents(database, journal_id, size)
        assert [whole.total(kind) for kind in whole.counts] == [10, 1, 1]
        assert len(whole.starts) <= BUCKETS_MAX
        assert [(each.value, each.total) for each in whole.addresses] == [
            ("192.0.2.1", 7),
            ("192.0.2.0", 5),
        ]
        assert [(each.name, each.total) for each in whole.accounts] == [("ada", 10), (None, 2)]
        half = await incidents(database, journal_id, 4)
        assert [half.total(kind) for kind in half.counts] == [3, 0, 0]
        hour = await incidents(database, journal_id, size, timedelta(hours=1))
        assert [hour.total(kind) for kind in hour.counts] == [3, 1, 1]
        nothing = await incidents(database, journal_id, 0)
        assert (nothing.starts, nothing.addresses, nothing.accounts) == ([], [], [])


def test_pages_are_there_on_postgresql(postgres_url: str, tmp_path: Path) -> None:
    """All pages work on the other database too, the proof among them."""
    key = tmp_path / "log-key"
    write_key(key, days.KEY)
    settings = Settings(database_url=postgres_url, log_key_file=key)
    day = asyncio.run(days.make(settings))
    position = f"/console/tables/positions/{day.position_id}"
    paths = [*PAGES, position, "/console/difference?a=1700&b=1705", "/console/events/9/proof.json"]

    async def look() -> dict[str, int]:
        async with visiting(address, "operator") as client:
            wanted = [httpx.URL(path).copy_merge_params({"at": day.noon_size}) for path in paths]
            return {str(each): (await client.get(each)).status_code for each in wanted}

    with served(make_app(settings)) as address:
        found = asyncio.run(look())
    assert {path: status for path, status in found.items() if status != 200} == {}


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_cookie_of_https_goes_by_https_alone(scheme: str) -> None:
    """A browser that has the cookie by HTTPS never sends it in the clear."""
    response = Response()
    scope = {"type": "http", "scheme": scheme, "path": "/console", "headers": []}
    drop_cookie(Request(scope | {"server": ("ledger.example", 443)}), response)
    assert ("Secure" in response.headers["set-cookie"]) == (scheme == "https")


async def test_samples_of_a_stream_are_of_the_offsets_asked_for(sqlite_url: str) -> None:
    """All events between two offsets where they are few; else as many as wanted, from the first."""
    async with open_journal(Settings(database_url=sqlite_url)) as journal:
        marks = [PriceMarked(token="BTC", price=VenueAmount(price)) for price in range(1, 40)]
        others = [PriceMarked(token="ETH", price=VenueAmount(1))] * 2
        for mark in marks:
            await journal.append([NewEvent(each) for each in (mark, *others)])
        every = await journal.read_stream("market-BTC")
        for start, stop in ((0, 117), (10, 50), (3, 4), (4, 6), (116, 117), (50, 50)):
            wanted = [each.offset for each in every if start <= each.offset < stop]
            found = await sampled(journal, "market-BTC", start, stop, 100)
            assert [each.offset for each in found] == wanted
            few = [each.offset for each in await sampled(journal, "market-BTC", start, stop, 5)]
            assert few == wanted[:: max(1, -(-len(wanted) // 5))]
        assert await sampled(journal, "market-SOL", 0, 117, 5) == []


async def test_gain_of_a_course_ends_with_that_of_the_row(day: Day) -> None:
    """Of long and short positions, open and closed: all that was gained, less fees."""
    async with open_journal(day.settings) as journal, Database(day.settings) as database:
        reading = Reading(day.settings, journal, database)
        kinds = (("size", "gt:0"), ("size", "lt:0"), ("status", "closed"))
        for name, text in kinds:
            query = Query("positions", (Filter.parsed(name, text),), limit=4)
            page = await reading.page(query, str(day.size))
            assert page.rows
            for row in page.rows:
                key = row["position_id"]
                _, history = await reading.history("positions", key, str(day.size))
                course = await course_of(journal, row, history, day.size)
                wanted = Decimal(row["net_pnl"]) + (
                    Decimal(row["pnl"]) if row["size"] != "0" else 0
                )
                assert gained(course)[-1].gain == pytest.approx(wanted, abs=Decimal("0.00001"))
        await reading.close()
