"""Each request of a known sender has its entry before it is answered."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Iterator
from typing import Annotated

import httpx
import pytest
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import StreamingResponse
from sqlalchemy import make_url

from ledger.domain.requests import RequestHandled
from ledger.event import RecordedEvent
from ledger.http import Principal, install, looks, require
from ledger.http.looks import Looks
from ledger.http.middleware import PLAIN
from ledger.http.routes import sessions, streams
from ledger.services import Ledger
from tests.ledger.http.applications import client_of
from tests.ledger.http.people import Headers, a_key, a_token, a_user
from tests.ledger.services.support import a_ledger
from tests.ledger.support import read_all, settings_for

Reader = Annotated[Principal, Depends(require("tables:read"))]


@pytest.fixture
async def ledger(sqlite_url: str) -> AsyncIterator[Ledger]:
    """A ledger that does not wait long for its file."""
    async with a_ledger(sqlite_url, append_timeout_seconds=0.2) as opened:
        yield opened


@pytest.fixture
async def client(sqlite_url: str, ledger: Ledger) -> AsyncIterator[httpx.AsyncClient]:
    """An application that records its requests."""
    app = FastAPI()
    install(app, settings_for(sqlite_url, http_timeout_seconds=0.3), audits=True)
    app.state.ledger = ledger
    app.include_router(sessions.router)
    app.include_router(streams.router)
    shared = Looks()

    @app.get("/things/{thing}")
    async def read(thing: str, who: Reader) -> str:
        if thing == "none":
            raise HTTPException(404)
        if thing == "broken":
            raise ValueError
        if thing == "slow":
            await asyncio.Event().wait()
        return thing

    @app.get("/live/{thing}")
    async def live(thing: str, who: Reader, request: Request) -> str:
        request.state.looks = shared
        return await read(thing, who)

    @app.get("/stream")
    async def stream(who: Reader) -> Response:
        async def parts() -> AsyncIterator[str]:
            yield f"{len(await entries(ledger))} entry when it begins"

        return StreamingResponse(parts(), headers={"X-Own": "1"})

    async with client_of(app) as made:
        yield made


@pytest.fixture
async def bearer(ledger: Ledger, client: httpx.AsyncClient) -> Headers:
    """The headers of somebody who is logged in, and may do anything."""
    await a_user(ledger, "ann", "admin")
    return await a_token(client)


async def entries(ledger: Ledger) -> list[RecordedEvent]:
    """Return the entries of requests."""
    events = await read_all(ledger.journal)
    return [each for each in events if isinstance(each.event, RequestHandled)]


async def statuses(ledger: Ledger) -> list[int]:
    """Return the statuses of all requests that have an entry."""
    return [each.event.status for each in await entries(ledger)]  # type: ignore[attr-defined]


async def test_a_request_by_token_has_an_entry(
    ledger: Ledger, client: httpx.AsyncClient, bearer: Headers
) -> None:
    """It says who asked for what in which session, from where, and how it was answered."""
    asked = bearer | {"X-Request-ID": "r-1"}
    answer = await client.get("/things/a%20b", headers=asked, params={"token": "hunter2"})
    assert answer.json() == "a b"
    [entry] = await entries(ledger)
    event = entry.event
    assert isinstance(event, RequestHandled)
    assert (event.action, event.resource) == ("GET /things/{thing}", "/things/a%20b")
    assert (event.status, event.key_id, event.session_id is None) == (200, None, False)
    assert entry.stream == f"requests-{event.user_id}"
    assert entry.metadata.actor == f"user:{event.user_id}"
    assert (entry.metadata.request_id, entry.metadata.ip_address) == ("r-1", "127.0.0.1")
    assert b"hunter2" not in entry.body


async def test_there_is_one_entry_for_what_an_event_tells_already(
    ledger: Ledger, client: httpx.AsyncClient, bearer: Headers
) -> None:
    """The use of a key is one, and so is what a command stored."""
    _, key = await a_key(ledger, await a_user(ledger, "bob"), "tables:read")
    assert (await client.get("/things/a", headers=key)).status_code == 200
    sent = {"events": [{"type": "Noted", "data": {}}]}
    answer = await client.post("/streams/s/events", headers=bearer, json=sent)
    assert answer.status_code == 201
    assert not await entries(ledger)


async def test_what_failed_has_an_entry_in_any_case(
    ledger: Ledger, client: httpx.AsyncClient, bearer: Headers
) -> None:
    """Also by a key, whose use was accepted, and what broke down or took too long."""
    key_id, key = await a_key(ledger, await a_user(ledger, "bob"), "tables:read")
    assert (await client.get("/things/none", headers=key)).status_code == 404
    [entry] = await entries(ledger)
    assert isinstance(entry.event, RequestHandled)
    assert (entry.event.key_id, entry.event.session_id) == (key_id, None)
    assert entry.metadata.actor == f"key:{key_id}"
    for path in ("/things/broken", "/things/slow"):
        await client.get(path, headers=bearer)
    await client.post("/streams/s/events", headers=bearer, json={"events": []})
    assert await statuses(ledger) == [404, 500, 504, 422]


async def test_who_lacks_a_permission_has_an_entry(
    ledger: Ledger, client: httpx.AsyncClient
) -> None:
    """A refused access token is one of a known user; a refused key has an event of its own."""
    await a_user(ledger, "eve")
    assert (await client.get("/things/a", headers=await a_token(client, "eve"))).status_code == 403
    assert await statuses(ledger) == [403]


async def test_strangers_have_none(ledger: Ledger, client: httpx.AsyncClient) -> None:
    """Of whom nothing is known nothing is recorded: they cannot fill the journal."""
    for path in ("/things/a", "/nowhere"):
        await client.get(path)
        await client.get(path, headers={"Authorization": "Bearer x"})
    assert await ledger.journal.size() == 0


async def test_a_stream_is_recorded_when_it_begins(
    client: httpx.AsyncClient, bearer: Headers
) -> None:
    """Nothing of it is sent before."""
    answer = await client.get("/stream", headers=bearer)
    assert (answer.text, answer.headers["X-Own"]) == ("1 entry when it begins", "1")


async def test_a_look_at_a_page_that_refreshes_itself_has_one_entry(
    ledger: Ledger, client: httpx.AsyncClient, bearer: Headers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session's next look has another one, as has another session's, and whatever failed."""
    other = await a_token(client)
    for headers in (bearer, bearer, other, bearer, other):
        assert (await client.get("/live/a", headers=headers)).status_code == 200
    assert await statuses(ledger) == [200, 200]
    await client.get("/live/none", headers=bearer)
    monkeypatch.setattr(looks, "LOOK_SECONDS_MAX", 0)
    await client.get("/live/a", headers=bearer)
    assert await statuses(ledger) == [200, 200, 404, 200]
    monkeypatch.undo()
    monkeypatch.setattr(looks, "GAP_SECONDS", 0)
    await client.get("/live/a", headers=bearer)
    assert await statuses(ledger) == [200, 200, 404, 200, 200]


async def test_a_look_that_could_not_be_recorded_has_not_begun(
    sqlite_url: str, ledger: Ledger, client: httpx.AsyncClient, bearer: Headers
) -> None:
    """Its next request is not answered either."""
    with locked(sqlite_url):
        for _ in range(2):
            assert (await client.get("/live/a", headers=bearer)).status_code == 503
    assert (await client.get("/live/a", headers=bearer)).status_code == 200
    assert await statuses(ledger) == [200]


@contextlib.contextmanager
def locked(url: str) -> Iterator[None]:
    """Keep a SQLite file to oneself: others may read, and wait in vain to write."""
    with contextlib.closing(sqlite3.connect(str(make_url(url).database))) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield


async def test_nobody_is_answered_whose_request_cannot_be_recorded(
    sqlite_url: str,
    ledger: Ledger,
    client: httpx.AsyncClient,
    bearer: Headers,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A 503 says so in place of the answer; afterwards all is as it was."""
    with locked(sqlite_url):
        for path in ("/things/a", "/stream"):
            answer = await client.get(path, headers=bearer)
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
            assert answer.json()["type"].endswith(":unaudited")
            assert answer.json()["instance"] == answer.headers["X-Request-ID"]
            assert set(PLAIN) <= set(answer.headers.raw)
            assert "X-Own" not in answer.headers
    assert (await client.get("/things/a", headers=bearer)).json() == "a"
    assert await statuses(ledger) == [200]
    logged = [vars(each)["problem"] for each in caplog.records if each.name == "ledger.http"]
    assert logged == ["unaudited"] * 2


async def test_a_request_that_was_stored_before_has_an_entry(
    ledger: Ledger, client: httpx.AsyncClient, bearer: Headers
) -> None:
    """No event of its own speaks of it: what is stored is the first one's."""
    sent = {"events": [{"type": "Noted", "data": {}}]}
    for status in (201, 200):
        headers = bearer | {"Idempotency-Key": "k"}
        answer = await client.post("/streams/s/events", headers=headers, json=sent)
        assert answer.status_code == status
    assert await statuses(ledger) == [200]
