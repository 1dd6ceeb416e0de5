"""Tables over HTTP: pages, filters, points, files, and who may read which rows."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import uuid4

import sqlalchemy as sa
from fastapi.routing import APIRoute
from pydantic import TypeAdapter

from ledger.domain.marks import PriceMarked
from ledger.event import NewEvent, VenueAmount
from projections.bookkeeping import parked_keys
from projections.groups import TABLES
from projections.http import read_routers
from projections.http.routes.tables import TABLE_OF
from tests.ledger.http.applications import limits_of, until
from tests.projections.http.service import Headers, Service

FORMS = ("csv", "ndjson", "json")


async def pages(service: Service, headers: Headers, path: str, **asked: Any) -> list[Any]:
    """Return the rows of all pages."""
    rows: list[Any] = []
    found: dict[str, Any] = {"next": None}
    while True:
        more = {} if found["next"] is None else {"cursor": found["next"]}
        found = await service.get(path, headers, **asked, **more)
        assert len(found["rows"]) <= asked["limit"]
        rows += found["rows"]
        if found["next"] is None:
            return rows


async def test_all_tables_are_read_live_and_in_the_past(each_service: Service) -> None:
    """A page live and as of its size agree, also when the tables have gone on since."""
    service = each_service
    headers = await service.key("tables:read")
    size = await service.trade()
    live = {slug: await pages(service, headers, f"/{slug}", limit=30) for slug in TABLE_OF}
    await service.trade(100, seed=8)
    for slug, rows in live.items():
        assert rows, slug
        past = await pages(service, headers, f"/{slug}", limit=30, at=size)
        differing = ("is_locked", "is_expired", "is_valid")  # these are of now
        assert past == [
            {name: None if name in differing else value for name, value in row.items()}
            for row in rows
        ]


FORMS_OF = {
    route.path_format: TypeAdapter(route.response_model)
    for router in read_routers()
    for route in router.routes
    if isinstance(route, APIRoute) and route.response_model is not None
}
"""What each path answers with, as it is described."""


def check(path: str, answer: dict[str, Any]) -> None:
    """Hold an answer against its described form: it has just those fields, of just those types."""
    form = FORMS_OF[path]
    found = form.validate_json(json.dumps(answer), strict=True)
    assert json.loads(form.dump_json(found, by_alias=True)) == answer


async def test_answers_are_what_openapi_says(service: Service) -> None:
    """Pages, rows, histories, points and differences have the described form, and nothing else."""
    headers = await service.key("tables:read")
    size = await service.trade()
    for slug in TABLE_OF:
        page = await service.get(f"/{slug}", headers, limit=3)
        check(f"/{slug}", page)
        key = next(iter(page["rows"][0].values()))
        check(f"/{slug}/{{key}}", await service.get(f"/{slug}/{key}", headers))
        history = await service.get(f"/{slug}/{key}/history", headers, limit=2)
        check(f"/{slug}/{{key}}/history", history)
        assert history["states"]
    check("/points", await service.get("/points", headers, at=size))
    check("/journal", await service.get("/journal", headers))
    difference = await service.get("/diff", headers, **{"from": 50, "to": size})
    check("/diff", difference)
    assert difference["changes"]


async def test_no_hash_is_shown_or_can_be_asked_about(service: Service) -> None:
    """Neither rows, histories, differences nor files hold one; filters on one are refused."""
    user_id = await service.user()
    headers = await service.key("tables:read", user_id=user_id)
    await service.project()
    size = await service.journal.size()
    [key_row] = (await service.get("/api-keys", headers, user_id=user_id))["rows"]
    texts = [
        (await service.client.get(path, headers=headers)).text
        for path in (
            "/users",
            f"/users/{user_id}/history",
            f"/api-keys/{key_row['key_id']}",
            f"/api-keys/{key_row['key_id']}/history",
            f"/diff?from=0&to={size}",
            "/users?format=csv",
            "/api-keys?format=json&at=2",
        )
    ]
    assert str(user_id) in texts[0]
    for text in texts:
        assert "_hash" not in text
        assert "$argon2" not in text
    for query in ("users?password_hash=a", "api-keys?key_hash=a", "users?sort=password_hash"):
        assert await service.status(f"/{query}", headers) == 422
    assert await service.status("/positions?exact_size=gt:0", headers) == 422


async def test_who_reads_only_their_own_sees_nothing_else(service: Service) -> None:
    """With own:read there are one's own rows and all marks; others' are not found."""
    ada, bob = await service.user(), await service.user()
    for user_id in (ada, bob):
        await service.open_position(user_id)
    await service.key(user_id=bob)
    everybody = await service.key("tables:read")
    headers = await service.key("own:read", user_id=ada)
    nobody = await service.key("orders:write")
    await service.project()
    size = await service.journal.size()
    for slug in ("users", "api-keys", "orders", "positions", "audit-log"):
        for asked in ({}, {"at": size - 2}, {"user_id": str(bob)}):
            own = (await service.get(f"/{slug}", headers, **asked))["rows"]
            assert bool(own) == ("user_id" not in asked), slug
            assert {each["user_id"] for each in own} <= {str(ada)}
        theirs = (await service.get(f"/{slug}", everybody, user_id=f"eq:{bob}"))["rows"][0]
        for path in (f"/{slug}/{theirs[next(iter(theirs))]}",):
            assert await service.status(path, everybody) == 200
            assert await service.status(path, headers) == 404
            assert await service.status(f"{path}/history", headers) == 404
            assert await service.status(path, nobody) == 403
            assert await service.status(path) == 401
    file = await service.client.get("/orders?format=ndjson", headers=headers)
    assert str(bob) not in file.text
    assert [each["token"] for each in (await service.get("/marks", headers))["rows"]] == ["BTC"]
    for path in ("postings", "balances", "postings/x", "balances/x", "diff?from=0&to=1"):
        key = path.replace("postings/x", f"postings/{uuid4()}")
        assert await service.status(f"/{key}", headers) == 403


async def test_an_open_position_is_shown_at_the_mark(each_service: Service) -> None:
    """Gains are computed at the mark, live and at the mark of a point in the past."""
    service = each_service
    user_id = await service.user()
    await service.open_position(user_id)
    size = await service.journal.size()
    headers = await service.key("tables:read")
    await service.open_position(await service.user(), "ETH")
    await service.project()
    [row] = (await service.get("/positions", headers, token="BTC"))["rows"]
    assert (row["current_price"], row["pnl"], row["pnl_pct"]) == ("130", "60", "30")
    at = await service.get(f"/positions/{row['position_id']}", headers, at=size)
    assert at["row"] == row
    before = await service.get("/positions", headers, at=size - 1)
    assert [each["pnl"] for each in before["rows"]] == [None]


async def test_filters_are_written_in_two_ways(service: Service) -> None:
    """A parameter of a column's name and `filter` mean the same, alone and together."""
    headers = await service.key("tables:read")
    await service.trade()
    both = {"quantity": ["gt:2", "lt:15"], "token": "in:BTC,ETH"}
    named = ["quantity:gt:2", "quantity:lt:15", "token:in:BTC,ETH"]
    rows = (await service.get("/orders", headers, **both))["rows"]
    assert rows
    assert all(2 < Decimal(each["quantity"]) < 15 for each in rows)
    assert {each["token"] for each in rows} <= {"BTC", "ETH"}
    assert (await service.get("/orders", headers, filter=named))["rows"] == rows
    mixed = await service.get("/orders", headers, filter=named[:2], token="in:BTC,ETH")
    assert mixed["rows"] == rows
    assert await service.status("/orders?filter=quantity:many", headers) == 422


async def test_all_rows_come_as_a_file(service: Service) -> None:
    """CSV, NDJSON and JSON hold the rows of all pages, and name the point."""
    headers = await service.key("tables:read")
    size = await service.trade()
    for at in ({}, {"at": size - 50}):
        rows = await pages(service, headers, "/orders", limit=1000, sort="-created_at", **at)
        ids = [each["order_id"] for each in rows]
        asked: dict[str, Any] = {"sort": "-created_at", **at}
        found = {
            form: await service.client.get(
                "/orders", params=asked | {"format": form}, headers=headers
            )
            for form in ("csv", "ndjson", "json")
        }
        for form, answer in found.items():
            named = f'attachment; filename="orders-{at.get("at", size)}.{form}"'
            assert answer.headers["content-disposition"] == named
            assert answer.headers["ledger-size"] == str(at.get("at", size))
        head, *lines = found["csv"].text.splitlines()
        assert head.startswith(f"# journal main as of size {at.get('at', size)}")
        table = csv.DictReader(io.StringIO("\n".join(lines)))
        assert [each["order_id"] for each in table] == ids
        lines = found["ndjson"].text.splitlines()
        assert [json.loads(each)["row"]["order_id"] for each in lines[1:]] == ids
        assert [each["order_id"] for each in found["json"].json()["rows"]] == ids


async def test_a_difference_comes_in_pages_and_as_a_file(service: Service) -> None:
    """Pages of changes fit together, and a file has them all."""
    headers = await service.key("tables:read")
    size = await service.trade()
    asked = {"from": str(size - 60), "to": str(size)}
    whole = await service.get("/diff", headers, **asked)
    assert whole["next"] is None
    assert (whole["from"]["size"], whole["to"]["size"]) == (size - 60, size)
    changes: list[Any] = []
    start: int | None = 0
    while start is not None:
        page = await service.get("/diff", headers, **asked, limit=7, start=start)
        changes, start = changes + page["changes"], page["next"]
    assert changes == whole["changes"]
    of_orders = await service.get("/diff", headers, **asked, table="orders")
    assert of_orders["changes"] == [each for each in changes if each["table"] == "orders"]
    answer = await service.client.get("/diff", params=asked | {"format": "ndjson"}, headers=headers)
    assert [json.loads(each) for each in answer.text.splitlines()[1:]] == changes


async def test_what_cannot_be_asked(service: Service) -> None:
    """Bad filters, points and cursors are refused, and say what would be right."""
    headers = await service.key("tables:read")
    size = await service.trade(60)
    for query, status in {
        "orders?no_such=1": 422,
        "orders?quantity=gt:many": 422,
        "orders?quantity=contains:1": 422,
        "orders?created_at=2026-02-30T00:00:00Z": 422,
        "orders?user_id=eq:ada": 422,
        "orders?sort=flags": 422,
        "orders?limit=0": 422,
        "orders?at=yesterday": 422,
        f"orders?at={size + 1000}": 404,
        "orders?cursor=abc": 404,
        f"orders?at_least={size + 1000}": 404,
        f"orders/{uuid4()}": 404,
        f"orders/{uuid4()}/history": 404,
        "marks/NOTHING": 404,
        "orders/ada": 404,
        "diff?from=0": 422,
    }.items():
        assert await service.status(f"/{query}", headers) == status, query
    page = await service.get("/orders", headers, limit=1)
    for other in ("sort=-price", "at=3"):
        path = f"/orders?limit=1&{other}&cursor={page['next']}"
        assert await service.status(path, headers) == 404


async def test_reading_waits_for_the_tables(each_service: Service) -> None:
    """A size that is asked for is waited for; where it does not come, that is said."""
    service = each_service
    headers = await service.key("tables:read")
    await service.project()
    await service.open_position(await service.user())
    size = await service.journal.size()
    behind = await service.client.get(
        f"/positions?at_least={size}", headers=headers | {"Prefer": "wait=0"}
    )
    assert (behind.status_code, behind.json()["type"]) == (
        503,
        "urn:trading-ledger:problem:not-caught-up",
    )
    preferred = await service.client.get("/positions", headers=headers | {"Prefer": "wait=0"})
    assert preferred.status_code == 200
    assert "preference-applied" not in preferred.headers
    await service.project()
    waited = await service.client.get(
        f"/positions?at_least={size}", headers=headers | {"Prefer": "wait=5"}
    )
    assert waited.headers["preference-applied"] == "wait=5"
    assert int(waited.headers["ledger-size"]) >= size
    assert len(waited.json()["rows"]) == 1


async def test_who_waits_for_the_tables_keeps_nobody_out(service: Service) -> None:
    """They have no place meanwhile; where very many wait, the next is told to come again."""
    headers = await service.key("tables:read")
    await service.project()
    await service.client.get("/positions", headers=headers)  # its key's use is behind
    limits, size = limits_of(service.app), await service.journal.size()
    path = f"/positions?at_least={size}"
    waiting = asyncio.create_task(service.client.get(path, headers=headers))
    await until(lambda: limits.waiting == 1)
    assert limits.working == 0
    limits.waiting_max = 1
    refused = await service.client.get(path, headers=headers)
    assert (refused.status_code, refused.json()["type"][-11:]) == (503, ":overloaded")
    await service.project()
    assert (await waiting).status_code == 200
    assert (limits.working, limits.waiting) == (0, 0)


async def test_spreadsheets_compute_nothing_of_an_exported_file(service: Service) -> None:
    """Whoever names keys chooses what others open: names that look like formulas are texts."""
    formula = "=HYPERLINK(1)"
    headers = await service.key("tables:read")
    issued = await service.ledger.api_keys.issue(user_id=await service.user(), name=formula)
    await service.ledger.markets.mark(token=formula, price="-2")
    await service.project()
    size = await service.journal.size()
    for path in ("/api-keys?format=csv", f"/api-keys?format=csv&at={size}"):
        answer = await service.client.get(path, headers=headers)
        rows = csv.DictReader(answer.text.splitlines()[1:])
        names = {row["key_id"]: row["name"] for row in rows}
        assert names[str(issued.key_id)] == f"'{formula}"
    asked: dict[str, str | int] = {"from": 0, "to": size, "table": "marks", "format": "csv"}
    answer = await service.client.get("/diff", params=asked, headers=headers)
    [change] = csv.DictReader(answer.text.splitlines()[1:])
    assert change["key"] == f"'{formula}"
    found = await service.get("/api-keys", headers, name=f"eq:{formula}")
    assert [row["name"] for row in found["rows"]] == [formula]


async def test_who_reads_only_their_own_hears_of_no_others_keys(service: Service) -> None:
    """What waits in a table is named, with its error, to those who may read all rows of it."""
    ada, bob = await service.user(), await service.user()
    for user_id in (ada, bob):
        await service.open_position(user_id)
    everybody = await service.key("tables:read")
    own = await service.key("own:read", user_id=ada)
    await service.project()
    size = await service.journal.size()
    [order] = (await service.get("/orders", own))["rows"]
    [of_bob] = (await service.get("/orders", everybody, user_id=str(bob)))["rows"]
    offset = (await service.get(f"/orders/{of_bob['order_id']}/history", everybody))["states"][0]
    await park(service, "orders", offset["offset"], 30)
    path = f"/orders/{order['order_id']}"
    for asked in (
        "/orders",
        f"/orders?at={size - 1}",
        path,
        f"{path}?at={size - 1}",
        f"{path}/history",
        *(f"/orders?format={form}" for form in FORMS),
        *(f"/orders?format={form}&at={size - 1}" for form in FORMS),
    ):
        named, untold = [
            (await service.client.get(asked, headers=each)).text for each in (everybody, own)
        ]
        assert order["order_id"] in untold
        for secret in ("secret-", of_bob["order_id"]):
            assert secret not in untold
        if "csv" not in asked:
            assert ("some keys wait" in named, "some keys wait" in untold) == (False, True), asked
    notes = (await service.get("/orders", everybody))["point"]["notes"]
    assert "secret-0: secret-error" in notes[0].replace(
        f" is parked at offset {offset['offset']} (OrderPlaced)", ""
    )
    assert (len(notes), notes[-1]) == (21, "and 10 more")


async def park(service: Service, table: str, offset: int, count: int) -> None:
    """Let keys of a table be parked by an event, with an error that tells of its owner."""
    parked = {
        "journal_id": service.journal.journal_id,
        "group_name": TABLES[table].name,
        "table_name": table,
        "column_name": "order_id",
        "offset": offset,
        "event_id": uuid4(),
        "event_type": "OrderPlaced",
        "error": "secret-error",
        "waiting": 1,
        "parked_at": datetime.now(UTC),
    }
    rows = [parked | {"value": f"secret-{number}"} for number in range(count)]
    async with service.database.transaction() as connection:
        await connection.execute(sa.insert(parked_keys), rows)


async def test_a_position_is_read_where_marks_wait(service: Service) -> None:
    """Its mark then comes from a fold of all marks."""
    headers, user_id = await service.key("tables:read"), await service.user()
    await service.open_position(user_id)
    await service.project()
    size = await service.journal.size()
    await park(service, "marks", size - 1, 1)
    await service.open_position(user_id)
    [row] = (await service.get("/positions", headers))["rows"]
    found = await service.get(f"/positions/{row['position_id']}", headers, at=size - 1)
    assert (found["row"]["size"], found["row"]["current_price"]) == ("2", None)


async def test_a_history_comes_in_parts(service: Service) -> None:
    """Parts fit together, and end; behind the last state of a row that is there is nothing."""
    headers = await service.key("own:read")
    await service.journal.append(
        [NewEvent(PriceMarked(token="BTC", price=VenueAmount(n))) for n in (1, 2, 3)]
    )
    path, found, after = "/marks/BTC/history", [], -1
    while True:
        part = await service.get(path, headers, after=after, limit=2)
        found += part["states"]
        if part["next"] is None:
            break
        after = part["next"]
    assert [each["row"]["price"] for each in found] == ["1", "2", "3"]
    assert "price" in found[1]["changed"]
    assert (await service.get(path, headers, after=10**6))["states"] == []
    assert await service.status("/marks/ETH/history", headers) == 404


async def test_keys_with_slashes(service: Service) -> None:
    """A slash that is sent encoded belongs to the key, also where the path ends like a history."""
    headers = await service.key("own:read")
    await service.journal.append(
        [
            NewEvent(PriceMarked(token=token, price=VenueAmount(price)))
            for token, price in (("BTC", 1), ("BTC/history", 2), ("A/B", 3))
        ]
    )
    await service.project()
    for path, price in {"BTC": "1", "BTC%2Fhistory": "2", "A%2FB": "3", "A/B": "3"}.items():
        assert (await service.get(f"/marks/{path}", headers))["row"]["price"] == price
        states = (await service.get(f"/marks/{path}/history", headers))["states"]
        assert [each["row"]["price"] for each in states] == [price]


async def test_pages_of_a_difference_stay_between_its_sizes(service: Service) -> None:
    """Times are looked up once: whoever goes on names the sizes of the first page."""
    headers = await service.key("tables:read")
    await service.trade(60)
    ends: dict[str, Any] = {"from": 0, "to": "2999-01-01T00:00:00Z"}
    first = await service.get("/diff", headers, **ends, limit=5)
    size = first["to"]["size"]
    await service.trade(60, seed=8)
    query = "&".join(f"{name}={end}" for name, end in ends.items())
    assert await service.status(f"/diff?{query}&start=5", headers) == 422
    sizes: dict[str, Any] = {"from": 0, "to": size}
    rest = await service.get("/diff", headers, **sizes, start=first["next"], limit=1000)
    whole = await service.get("/diff", headers, **sizes)
    assert first["changes"] + rest["changes"] == whole["changes"]
    assert rest["next"] is None


async def test_what_is_there_needs_no_waiting(service: Service) -> None:
    """A table that has come to a size is read at once, however short the wait is to be."""
    headers = await service.key("tables:read")
    size = await service.trade(30)
    answer = await service.client.get(
        f"/positions?at_least={size}", headers=headers | {"Prefer": "wait=0"}
    )
    assert (answer.status_code, answer.headers["preference-applied"]) == (200, "wait=0")
