"""Events of other services: stored as they are sent, under conditions, by whoever may."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4, uuid5

import httpx
import pytest
from fastapi import FastAPI

from ledger.codec import decode_bodies
from ledger.domain.orders import Action
from ledger.http import install
from ledger.http.permissions import PERMISSIONS
from ledger.http.routes import events, streams
from ledger.http.routes.streams import CLOSED, RESERVED, is_command_only
from ledger.security.passwords import PasswordHasher
from ledger.security.refresh_tokens import RefreshToken
from ledger.services.orders import _EXECUTIONS
from tests import samples
from tests.ledger.http.applications import client_of
from tests.ledger.http.service import Service
from tests.ledger.services.support import CHEAP, a_ledger
from tests.ledger.support import an_id, settings_for

PATH = "/streams/s/events"
OWN_ID = UUID("3f0e8b52-7f1c-4c3e-9a55-0d7f2b7c9d11")
COMMANDS_ONLY = {
    "ApiKeyIssued",
    "ApiKeyRotated",
    "LogForked",
    "PasswordChanged",
    "RequestHandled",
    "SessionEnded",
    "SessionRefreshed",
    "SessionStarted",
    "UserErased",
    "UserRegistered",
}
DOCUMENT = Path(__file__).parents[3] / "docs" / "http-api.md"


@contextlib.asynccontextmanager
async def a_service(url: str) -> AsyncIterator[Service]:
    """Open the routes of streams and events on a test database."""
    app = FastAPI()
    install(app, settings_for(url))
    app.include_router(streams.router)
    app.include_router(events.router)
    async with a_ledger(url) as ledger, client_of(app) as client:
        app.state.ledger = ledger
        yield Service(app, ledger, client)


@pytest.fixture
async def service(sqlite_url: str) -> AsyncIterator[Service]:
    """The routes of streams and events."""
    async with a_service(sqlite_url) as opened:
        yield opened


@pytest.fixture
async def either(database_url: str) -> AsyncIterator[Service]:
    """The same, on both databases."""
    async with a_service(database_url) as opened:
        yield opened


async def a_writer(service: Service) -> dict[str, str]:
    """Return the headers of a service that writes and reads events."""
    return await service.key("events:write", "events:read")


def noted(text: str = "", **fields: Any) -> dict[str, Any]:
    """Return an event as it is sent."""
    data = {"text": text} if text else {}
    return {"type": "Noted", "data": data} | fields


def body(*texts: str, conditions: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """Return a body with events."""
    return {"events": [noted(text) for text in texts], "conditions": conditions or []}


def slug(answer: httpx.Response) -> str:
    """Return the type of a problem."""
    return str(answer.json()["type"].rpartition(":")[2])


async def test_events_are_stored_together(either: Service) -> None:
    """The answer says where; they are read as they were sent, ids, times and names of streams."""
    writer = await a_writer(either)
    event_id, at = str(uuid4()), "2026-01-02T03:04:05.678Z"
    sent = {"events": [noted("one", event_id=event_id, occurred_at=at), noted("zw\u00f6lf")]}
    path = "/streams/a%2Fb%20c/events"
    answer = await either.post(path, writer, sent)
    stored = answer.json()
    assert answer.status_code == 201
    assert (stored["stream"], stored["duplicate"]) == ("a/b c", False)
    assert stored["size"] == stored["offsets"][-1] + 1 == int(answer.headers["Ledger-Size"])
    read = (await either.client.get(path, headers=writer)).json()["events"]
    assert [each["data"] for each in read] == [{"text": "one"}, {"text": "zw\u00f6lf"}]
    assert [each["offset"] for each in read] == stored["offsets"]
    assert [each["event_id"] for each in read] == stored["event_ids"]
    assert (read[0]["event_id"], read[0]["occurred_at"][:19]) == (event_id, at[:19])


async def test_a_stream_is_at_the_version_that_is_asked_for(service: Service) -> None:
    """If-Match and If-None-Match are conditions of the append; the ETag of a stream fits them."""
    writer = await a_writer(service)
    assert (await service.post(PATH, writer, body("1"), If_None_Match="*")).status_code == 201
    for header in ({"If_None_Match": "*"}, {"If_Match": '"0"'}, {"If_Match": '"2"'}):
        answer = await service.post(PATH, writer, body("2"), **header)
        assert (answer.status_code, slug(answer)) == (412, "precondition-failed")
        assert answer.json()["actual"] == 1
    tag = (await service.client.get(PATH, headers=writer)).headers["ETag"]
    assert (await service.post(PATH, writer, body("2", "3"), If_Match=tag)).status_code == 201
    assert len(await service.ledger.journal.read_stream("s")) == 3


async def test_conditions_look_at_other_streams(either: Service) -> None:
    """Each kind lets an append through as long as it holds, and is a conflict when it does not."""
    writer = await a_writer(either)
    for kind, refusal in (
        ({"type": "expected_version", "stream": "o", "version": 0}, (409, "version-conflict")),
        ({"type": "no_event", "stream": "o", "types": ["Noted"]}, (409, "event-exists")),
        ({"type": "no_event", "tag": "t", "after": -1}, (409, "event-exists")),
    ):
        other = {"events": [{"type": "Noted", "data": {"tagged": ["t"]}}]}
        stream = kind.get("stream", "o")
        path = f"/streams/{stream}/events"
        asked = body("x", conditions=[kind])
        before = await either.ledger.journal.read_stream("o")
        if not before:
            assert (await either.post(PATH, writer, asked)).status_code == 201
            assert (await either.post(path, writer, other)).status_code == 201
        answer = await either.post(PATH, writer, asked)
        assert (answer.status_code, slug(answer)) == refusal


async def test_a_window_is_kept(service: Service) -> None:
    """More than it may hold is too many requests, with the time after which there is room."""
    writer = await a_writer(service)
    window = {"type": "at_most", "stream": "s", "count": 2, "window_seconds": 60}
    assert (await service.post(PATH, writer, body("1", "2", conditions=[window]))).is_success
    answer = await service.post(PATH, writer, body("3", conditions=[window]))
    assert (answer.status_code, slug(answer)) == (429, "too-many-events")
    assert answer.headers["Retry-After"] == "60"


async def test_events_are_stored_once(either: Service) -> None:
    """By their own ids, or by those that follow from the Idempotency-Key; other content is told."""
    writer = await a_writer(either)
    own = {"events": [noted("own", event_id=str(OWN_ID))]}
    for sent, key in ((body("1", "2"), {"Idempotency_Key": "k"}), (own, {})):
        first = await either.post(PATH, writer, sent, **key)
        again = await either.post(PATH, writer, sent, If_Match='"0"', **key)
        assert (first.status_code, again.status_code) == (201, 200)
        assert again.json() == first.json() | {"duplicate": True}
    for sent, key, refusal in (
        (body("1", "3"), {"Idempotency_Key": "k"}, (422, "idempotency-key-reused")),
        (body("1"), {"Idempotency_Key": "k"}, (422, "idempotency-key-reused")),
        (
            {"events": [noted("other", event_id=str(OWN_ID))]},
            {"Idempotency_Key": "l"},
            (409, "event-id-conflict"),
        ),
    ):
        answer = await either.post(PATH, writer, sent, **key)
        assert (answer.status_code, slug(answer)) == refusal
    assert len(await either.ledger.journal.read_stream("s")) == 3


async def test_events_with_ids_of_their_own_are_known_by_these(service: Service) -> None:
    """Whatever key they come with again: it is the same event, and no key was used twice."""
    writer, sent = await a_writer(service), {"events": [noted("own", event_id=str(OWN_ID))]}
    answers = [
        await service.post(PATH, writer, sent, **key)
        for key in ({"Idempotency_Key": "k"}, {"Idempotency_Key": "l"}, {})
    ]
    assert [each.status_code for each in answers] == [201, 200, 200]
    assert [each.json()["offsets"] for each in answers] == [answers[0].json()["offsets"]] * 3


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ({"events": [{"type": "Unheard", "data": {}}]}, ("unknown-event-type", "events[0].type")),
        ({"events": [noted(), noted(data={"text": 1})]}, ("invalid-event", "events[1].data.text")),
        ({"events": [noted(data={"x": 1})]}, ("invalid-event", "events[0].data.x")),
        ({"events": [noted(data={"text": "\x00"})]}, ("invalid-event", "data")),
        ({"events": [noted(data={"type": "Noted"})]}, ("invalid-event", "events[0].data.type")),
        ({"events": [noted(occurred_at="9999-01-01T00:00:00Z")]}, ("invalid-event", "occurred_at")),
        ({"events": [noted(event_id=str(OWN_ID))] * 2}, ("invalid-event", "event_id")),
        (
            {"events": [noted(), noted(event_id=str(an_id(1)))]},
            ("invalid-event", "events[1].event_id"),
        ),
        (
            {"events": [noted(event_id="0f1e2d3c-4b5a-8978-8695-a4b3c2d1e0f1")]},
            ("invalid-event", "events[0].event_id"),
        ),
        (body("x", conditions=[{"type": "no_event"}]), ("invalid-event", "conditions")),
        (
            body("x", conditions=[{"type": "no_event", "stream": "s", "types": ["Unheard"]}]),
            ("unknown-event-type", "conditions"),
        ),
        ({"events": []}, ("invalid-request", None)),
        ({"events": [noted()] * 101}, ("invalid-request", None)),
        ({"events": [noted(occurred_at="2026-01-01T00:00:00")]}, ("invalid-request", None)),
        ({"events": [noted(stream="s")]}, ("invalid-request", None)),
        ({"events": [noted()], "more": 1}, ("invalid-request", None)),
    ],
)
async def test_what_cannot_be_stored_is_told_with_its_place(
    service: Service, sent: dict[str, Any], expected: tuple[str, str | None]
) -> None:
    """And nothing of the append is stored."""
    writer = await a_writer(service)
    answer = await service.post(PATH, writer, sent)
    assert (answer.status_code, slug(answer), answer.json().get("field")) == (422, *expected)
    assert not await service.ledger.journal.read_stream("s")


@pytest.mark.parametrize(
    "price", ["1e400", "NaN", "1.5", '"1.50"x', '"\\ud800"', '"1e3"', "1" * 5000]
)
async def test_numbers_never_pass_through_floats(service: Service, price: str) -> None:
    """An amount is text; what else JSON, or what passes for it, may hold there is refused."""
    headers = await service.key("events:write", "marks:write")
    event = f'{{"type": "PriceMarked", "data": {{"token": "B", "price": {price}}}}}'
    answer = await service.client.post(
        "/streams/market-B/events",
        headers=headers | {"Content-Type": "application/json"},
        content=f'{{"events": [{event}]}}',
    )
    assert answer.status_code == 422, answer.text


async def test_every_event_of_the_domain_takes_its_commands_permissions(service: Service) -> None:
    """Whoever may write events, but lacks one of those, can store none of its streams' events.

    What its command alone stores is refused whatever they may do.
    """
    every = set(PERMISSIONS)
    keys = {lacking: await service.key(*every - {lacking}) for lacking in every}
    everything, refused = await service.key(*every), set()
    for name, known in samples.domain_types().items():
        full = samples.sample(known, full=True)
        stream = stream_of(full)
        fields = json.loads(full)
        del fields["type"]
        sent = {"events": [{"type": name, "data": fields}]}
        path = f"/streams/{stream}/events"
        needed = RESERVED.get(stream.partition("-")[0], ())
        if not needed or is_command_only(known):
            answer = await service.post(path, everything, sent)
            assert (answer.status_code, slug(answer)) == (422, "command-only"), name
            refused.add(name)
            continue
        for lacking in needed:
            answer = await service.post(path, keys[lacking], sent)
            assert (answer.status_code, answer.json()["permission"]) == (403, lacking), name
    assert refused == COMMANDS_ONLY


def test_what_only_commands_store_is_documented() -> None:
    """All of these types, and no other one, are in the section on streams."""
    section = DOCUMENT.read_text("utf-8").partition("\n## Streams\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"`([A-Z]\w+)`", section)) == COMMANDS_ONLY


async def test_nobody_becomes_somebody_else_by_events(service: Service) -> None:
    """Neither by a session, a password or a key of one's own making, nor is a hold gone round."""
    root = await service.user("root", password="correct horse", roles=["admin"])
    await service.ledger.users.hold(user_id=root, reason="case 4711")
    token, key_id = RefreshToken.first(uuid4()), uuid4()
    made_up: dict[str, dict[str, Any]] = {
        f"session-{token.session_id}": {
            "type": "SessionStarted",
            "data": {
                "session_id": str(token.session_id),
                "user_id": str(root),
                "expires_at": "2099-01-01T00:00:00Z",
                "refresh_digest": token.digest,
                "family_digest": token.family_digest,
            },
        },
        f"user-{root}": {
            "type": "PasswordChanged",
            "data": {
                "user_id": str(root),
                "password_hash": PasswordHasher(**CHEAP).hash("hacked"),
            },
        },
        f"apikey-{key_id}": {
            "type": "ApiKeyIssued",
            "data": {"key_id": str(key_id), "user_id": str(root), "name": "k", "key_hash": "0"},
        },
    }
    erased = {"type": "UserErased", "data": {"user_id": str(root), "reason": "x"}}
    all_powerful = await service.key(*PERMISSIONS)
    for stream, event in [*made_up.items(), (f"user-{root}", erased)]:
        for sent in ([event], [noted(), event]):
            path = f"/streams/{stream}/events"
            answer = await service.post(path, all_powerful, {"events": sent})
            assert (answer.status_code, slug(answer)) == (422, "command-only")
    assert await service.ledger.sessions.refresh(refresh_token=token.reveal()) is None
    assert await service.ledger.sessions.start(username="root", password="hacked") is None
    assert (await service.ledger.users.state(root)).is_active


async def test_nobody_takes_the_ids_of_fills(service: Service) -> None:
    """A fill's id follows from what it is; under another event of that id it could not be told."""
    order_id = uuid4()
    name = f"{service.ledger.journal.name}:{order_id}:OrderFilled:F-1"
    taken = {"type": "PriceMarked", "data": {"token": "BTC", "price": "1"}}
    sent = {"events": [taken | {"event_id": str(uuid5(_EXECUTIONS, name))}]}
    writer = await service.key("events:write", "marks:write")
    answer = await service.post("/streams/market-BTC/events", writer, sent)
    assert (answer.status_code, answer.json()["field"]) == (422, "events[0].event_id")
    await service.ledger.orders.fill(
        order_id=order_id,
        fill_id="F-1",
        quantity=1,
        price=10,
        token="BTC",
        user_id=await service.user(),
        action=Action.BUY,
    )
    [stored] = await service.ledger.journal.read_stream(f"order-{order_id}")
    assert stored.event_id == uuid5(_EXECUTIONS, name)


def stream_of(sample: bytes) -> str:
    """Return the stream that an event names."""
    [event] = decode_bodies([sample], [0])
    stream = event.stream()
    assert stream is not None
    return stream


async def test_nobody_gives_what_is_not_theirs(service: Service) -> None:
    """An event that gives roles or permissions takes all of them, as the command does."""
    held = set(PERMISSIONS) - {"act:any"}
    user_id = an_id("user")
    path, sent = f"/streams/user-{user_id}/events", {}
    for name, granted in (
        ("RolesChanged", {"roles": ["admin"]}),
        ("PermissionsChanged", {"permissions": ["act:any"]}),
    ):
        data = {"user_id": str(user_id)} | granted
        sent = {"events": [{"type": name, "data": data}]}
        answer = await service.post(path, await service.key(*held), sent)
        assert (answer.status_code, answer.json()["permission"]) == (403, "act:any")
        assert not await service.ledger.journal.read_stream(f"user-{user_id}")
    assert (await service.post(path, await service.key(*PERMISSIONS), sent)).status_code == 201


async def test_events_of_ones_own_do_not_get_into_the_ledgers_streams(service: Service) -> None:
    """A type that fits any stream fits none of those, without what they take."""
    writer = await a_writer(service)
    for names, status in ((RESERVED, 403), (CLOSED, 422)):
        for name in names:
            answer = await service.post(f"/streams/{name}-{uuid4()}/events", writer, body("x"))
            assert answer.status_code == status
    reader = await service.key("events:read")
    assert (await service.post(PATH, reader, body("x"))).json()["permission"] == "events:write"
