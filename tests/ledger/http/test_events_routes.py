"""Reading events over HTTP: pages of all, of types, streams and tags, and as they come."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import httpx
import msgspec
import pytest

from ledger.domain.api_keys import ApiKeyIssued
from ledger.domain.marks import PriceMarked
from ledger.domain.orders import Action, OrderFilled
from ledger.domain.users import UserDeactivated
from ledger.event import NewEvent, VenueAmount
from ledger.http import sse
from ledger.http.routes import events
from ledger.prepare import prepare
from ledger.stores import Appended, PreparedAppend
from tests.ledger.http.applications import served
from tests.ledger.http.service import Service, a_service

TOKENS = ("BTC", "ETH", "SOL")


@pytest.fixture
async def service(sqlite_url: str) -> AsyncIterator[Service]:
    """A service that has the routes of events."""
    async with a_service(sqlite_url) as opened:
        opened.app.include_router(events.router)
        yield opened


@pytest.fixture
async def each_service(database_url: str) -> AsyncIterator[Service]:
    """The same on both kinds of database, one after the other."""
    async with a_service(database_url) as opened:
        opened.app.include_router(events.router)
        yield opened


async def mark(service: Service, count: int, first: int = 0) -> None:
    """Append so many marks, of three tokens in turn."""
    marks = [
        NewEvent(PriceMarked(token=TOKENS[number % 3], price=VenueAmount(number + 1)))
        for number in range(first, first + count)
    ]
    await service.ledger.journal.append(marks)


async def walk(service: Service, headers: dict[str, str], **asked: Any) -> list[dict[str, Any]]:
    """Return the events of all pages."""
    found: list[dict[str, Any]] = []
    after, size = -1, await service.ledger.journal.size()
    while after < size - 1:
        answer = await service.client.get(
            "/events", params={**asked, "after": after}, headers=headers
        )
        assert answer.status_code == 200, answer.text
        page = answer.json()
        assert len(page["events"]) <= asked.get("limit", 100)
        found += page["events"]
        after = page["next"]
    return [each for each in found if each["type"] != "ApiKeyUsed"]  # that is reading itself


async def test_pages_hold_each_event_once_whatever_is_asked_for(each_service: Service) -> None:
    """Pages of all events, of a type, of a stream and with a tag go on where the last ended."""
    service = each_service
    headers = await service.key("events:read")
    await mark(service, 25)
    everything = await walk(service, headers, limit=4)
    marks = [each for each in everything if each["type"] == "PriceMarked"]
    assert [each["data"]["price"] for each in marks] == [str(n + 1) for n in range(25)]
    assert await walk(service, headers, limit=3, type="PriceMarked") == marks
    solana = [each for each in marks if each["data"]["token"] == "SOL"]
    assert await walk(service, headers, limit=3, stream="market-SOL") == solana
    assert await walk(service, headers, stream="market-SOL", tag="no such tag") == []
    assert await walk(service, headers, tag="no such tag") == []
    registered = await walk(service, headers, type="UserRegistered")
    name = await service.ledger.users.username(registered[0]["data"]["user_id"])
    assert name == registered[0]["data"]["username"]


async def test_a_tag_leads_across_streams(each_service: Service) -> None:
    """Events with a tag are found wherever they are, and within a stream."""
    service = each_service
    headers = await service.key("events:read")
    user_id = await service.user()
    fills = [
        OrderFilled(
            order_id=uuid4(),
            user_id=user_id,
            token="BTC",
            action=Action.BUY,
            quantity=VenueAmount(1),
            price=VenueAmount(number),
            fill_id=str(number),
        )
        for number in (1, 2, 3)
    ]
    await service.ledger.journal.append(list(map(NewEvent, fills)))
    [tag] = fills[0].tags()
    found = await walk(service, headers, limit=2, tag=tag)
    assert [each["data"]["price"] for each in found] == ["1", "2", "3"]
    assert await walk(service, headers, tag=tag, stream=fills[1].stream()) == found[1:2]


async def test_secrets_are_not_shown(service: Service) -> None:
    """No hash and no digest is among the fields of an event, in pages or streams."""
    await service.user("ada", password="an engine weaves", email="ada@example.org")
    headers = await service.key("events:read")
    found = await walk(service, headers)
    assert {"UserRegistered", "ApiKeyIssued"} <= {each["type"] for each in found}
    text = json.dumps(found)
    assert "_hash" not in text
    assert "_digest" not in text
    assert "ada@example.org" in text


async def test_what_nobody_may_read_or_does_not_exist(service: Service) -> None:
    """Without the permission that is 403, without a key 401; what there is not, 404 or 422."""
    weak, headers = await service.key("own:read"), await service.key("events:read")
    get = service.client.get
    assert (await get("/events")).status_code == 401
    assert (await get("/events", headers=weak)).status_code == 403
    for path, status in {
        "/events?type=NoSuchEvent": 404,
        "/events?after=-2": 422,
        "/events?stream=%00": 422,
        "/events/0": 200,
        "/events/100000": 404,
    }.items():
        answer = await get(path, headers=headers)
        assert answer.status_code == status, path
        kind = "application/json" if status == 200 else "application/problem+json"
        assert answer.headers["content-type"] == kind


async def test_a_stream_is_read_by_version(service: Service) -> None:
    """A stream's pages go by version; at its end the ETag is what If-Match takes."""
    headers = await service.key("events:read")
    await mark(service, 10)
    url = "/streams/market-BTC/events"
    first = await service.client.get(url, params={"limit": 3}, headers=headers)
    assert [each["version"] for each in first.json()["events"]] == [1, 2, 3]
    assert first.json()["next"] == 3
    assert "ETag" not in first.headers
    last = await service.client.get(url, params={"after_version": 3}, headers=headers)
    assert [each["version"] for each in last.json()["events"]] == [4]
    assert last.json()["next"] is None
    assert last.headers["ETag"] == '"4"'
    none = await service.client.get("/streams/market-XYZ/events", headers=headers)
    assert none.json()["events"] == []
    assert none.headers["ETag"] == '"0"'


async def store_unknown(service: Service) -> int:
    """Store a mark as a newer release might; return its offset."""
    journal = service.ledger.journal
    new = NewEvent(PriceMarked(token="BTC", price=VenueAmount(9)))
    [known] = prepare((new,), ()).events
    body = known.body.replace(b'"PriceMarked"', b'"MarkOfTomorrow"')
    unknown = msgspec.structs.replace(known, type="MarkOfTomorrow", body=body)
    [appended] = await journal.store.append(journal.journal_id, [PreparedAppend((unknown,))])
    assert isinstance(appended, Appended)
    return appended.offsets[0]


@pytest.mark.parametrize("asked", ["", "stream=market-BTC&", "type=PriceMarked&"])
async def test_what_a_newer_release_stored_is_told(each_service: Service, asked: str) -> None:
    """Pages and streams go up to it, then say where it is; behind it, they go on."""
    service, get = each_service, each_service.client.get
    headers = await service.key("events:read")
    await mark(service, 7)
    unknown = await store_unknown(service)
    await mark(service, 7, first=7)
    page = (await get(f"/events?{asked}", headers=headers)).json()
    assert page["next"] == unknown - 1
    assert page["events"][-1]["type"] == "PriceMarked"
    at = ("/events?" + asked + f"after={unknown - 1}", f"/events/{unknown}")
    for path in at:
        refused = await get(path, headers=headers)
        assert refused.status_code == 503
        problem = refused.json()
        assert (problem["type"].rpartition(":")[2], problem["offset"]) == ("event-unknown", unknown)
    behind = (await get(f"/events?{asked}after={unknown}&limit=2", headers=headers)).json()
    assert [each["type"] for each in behind["events"]] == ["PriceMarked"] * 2
    accepting = headers | {"Accept": sse.MEDIA_TYPE}
    streamed = (await get(f"/events?{asked}", headers=accepting)).text
    *_, last, problem_name, data = [line for line in streamed.splitlines() if line]
    assert json.loads(last.partition(": ")[2])["offset"] == page["events"][-1]["offset"]
    assert problem_name == "event: problem"
    assert json.loads(data.partition(": ")[2])["offset"] == unknown


class Stream:
    """What comes of a stream of events, part by part."""

    def __init__(self, answer: httpx.Response) -> None:
        self._lines = answer.aiter_lines()

    async def take(self, count: int) -> list[tuple[int, dict[str, Any]]]:
        """Return id and data of the next events but uses of keys."""
        found: list[tuple[int, dict[str, Any]]] = []
        number = -1
        async with asyncio.timeout(10):
            while len(found) < count:
                name, _, text = (await anext(self._lines)).partition(": ")
                if name == "id":
                    number = int(text)
                elif name == "data" and (data := json.loads(text))["type"] != "ApiKeyUsed":
                    found.append((number, data))
        return found

    async def rest(self) -> list[str]:
        """Return all further lines, until the stream ends."""
        async with asyncio.timeout(10):
            return [line async for line in self._lines]


async def test_a_stream_resumes_without_gap_or_repetition(service: Service) -> None:
    """Who connects again with the last id gets what came meanwhile, then what comes."""
    headers = await service.key("events:read") | {"Accept": sse.MEDIA_TYPE}
    await mark(service, 150)
    async with served(service.app) as port, httpx.AsyncClient() as client:
        url = f"http://127.0.0.1:{port}/events?type=PriceMarked"
        async with client.stream("GET", url, headers=headers) as answer:
            assert answer.headers["content-type"].startswith(sse.MEDIA_TYPE)
            first = await Stream(answer).take(120)
        await mark(service, 5, first=150)
        resumed = headers | {"Last-Event-ID": str(first[-1][0])}
        async with client.stream("GET", url, headers=resumed) as answer:
            stream = Stream(answer)
            second = await stream.take(35)
            await mark(service, 2, first=155)
            second += await stream.take(2)
    prices = [data["data"]["price"] for _, data in first + second]
    assert prices == [str(number + 1) for number in range(157)]
    assert all(number == data["offset"] for number, data in first + second)


async def test_a_stream_ends_with_the_right_to_it_and_with_the_service(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends soon after a key is revoked or a user deactivated, and when the service stops."""
    monkeypatch.setattr(sse, "HEARTBEAT_SECONDS", 0.05)
    users = [await service.user() for _ in range(3)]
    keys = [await service.key("events:read", user_id=user_id) for user_id in users]
    async with served(service.app) as port, httpx.AsyncClient() as client:
        url = f"http://127.0.0.1:{port}/events?type=UserDeactivated"

        async def listened(headers: dict[str, str]) -> list[str]:
            accepting = headers | {"Accept": sse.MEDIA_TYPE}
            async with client.stream("GET", url, headers=accepting) as answer:
                stream = Stream(answer)
                assert answer.status_code == 200
                heard.release()
                return await stream.rest()

        heard = asyncio.Semaphore(0)
        tasks = [asyncio.create_task(listened(each)) for each in keys]
        for _ in tasks:
            await heard.acquire()
        read = service.ledger.journal.read()
        issued = [each.event async for each in read if isinstance(each.event, ApiKeyIssued)]
        await service.ledger.api_keys.revoke(key_id=issued[0].key_id)
        await tasks[0]
        await service.ledger.journal.append(NewEvent(UserDeactivated(user_id=users[1])))
        await tasks[1]
        assert not tasks[2].done()
        service.app.state.stopping = asyncio.Event()
        service.app.state.stopping.set()
        assert ": heartbeat" in await tasks[2]
    assert not service.app.state.event_streams


async def test_nobody_takes_all_places(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key has few of them, also where all are asked for at once; others listen beside it."""
    monkeypatch.setattr(sse, "STREAMS_EACH_MAX", 2)
    monkeypatch.setattr(sse, "STREAMS_MAX", 3)
    keys = [await service.key("events:read") for _ in range(3)]
    async with (
        served(service.app) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
        contextlib.AsyncExitStack() as open_streams,
    ):

        async def listen(headers: dict[str, str]) -> int:
            asked = client.stream("GET", "/events", headers=headers | {"Accept": sse.MEDIA_TYPE})
            answer = await open_streams.enter_async_context(asked)
            if answer.status_code != 200:
                problem = json.loads(await answer.aread())
                assert problem["type"].endswith(":overloaded")
                assert "Retry-After" in answer.headers
            return answer.status_code

        asked = [listen(keys[0]) for _ in range(5)]
        assert sorted(await asyncio.gather(*asked)) == [200, 200, 503, 503, 503]
        assert [await listen(key) for key in (keys[1], keys[2])] == [200, 503]
        service.app.state.stopping = asyncio.Event()
        service.app.state.stopping.set()
        await service.ledger.journal.append(NewEvent(UserDeactivated(user_id=uuid4())))
    assert not service.app.state.event_streams
