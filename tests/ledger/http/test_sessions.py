"""Logging in and out over HTTP, and what those see who cannot."""

from __future__ import annotations

import json
import statistics
import time
from datetime import timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from ledger.domain.sessions import SessionEnded
from ledger.domain.users import SessionsEnded, user_stream
from ledger.http.routes.sessions import Credentials, SessionTokens
from ledger.security.passwords import PasswordHasher
from ledger.services import Ledger
from tests.ledger.http.applications import client_of
from tests.ledger.http.people import (
    PASSWORD,
    WRONG,
    Headers,
    a_key,
    a_token,
    a_user,
    bearing,
    log_in,
    problem,
)
from tests.ledger.services.support import a_ledger, kinds
from tests.ledger.support import Clock

TRIES = 15


async def refresh(client: httpx.AsyncClient, token: str) -> httpx.Response:
    """Present a refresh token."""
    return await client.post("/sessions/refresh", json={"refresh_token": token})


async def is_let_in(client: httpx.AsyncClient, headers: Headers) -> bool:
    """Whether a route takes these credentials."""
    return (await client.get("/anybody", headers=headers)).status_code == 200


async def test_logging_in(client: httpx.AsyncClient, ledger: Ledger, clock: Clock) -> None:
    """The answer has both tokens and who it is, is kept by nobody, and says what was stored."""
    ann = await a_user(ledger, "ann", "trader")
    answer = await log_in(client)
    assert answer.status_code == 201
    assert answer.headers["Cache-Control"] == "no-store"
    assert int(answer.headers["Ledger-Size"]) == await ledger.journal.size()
    tokens = answer.json()
    assert await is_let_in(client, bearing(tokens.pop("access_token")))
    assert tokens.pop("refresh_token").startswith("lrt_")
    session_id = tokens.pop("session_id")
    assert tokens == {
        "token_type": "Bearer",
        "expires_in": 900,
        "user_id": str(ann),
        "roles": ["trader"],
        "permissions": ["orders:write", "own:read", "positions:write"],
    }
    [started] = await ledger.journal.read_stream(f"session-{session_id}")
    assert started.metadata.ip_address == "127.0.0.1"
    assert started.metadata.request_id == answer.headers["X-Request-ID"]
    clock.move(900)
    assert not await is_let_in(client, bearing(answer.json()["access_token"]))


async def test_a_login_that_is_refused(client: httpx.AsyncClient, ledger: Ledger) -> None:
    """A wrong password, nobody of that name, a deactivated or locked user: nobody is told which."""
    await a_user(ledger)
    bob, carl = await a_user(ledger, "bob"), await a_user(ledger, "carl")
    await ledger.users.deactivate(user_id=bob)
    until = ledger.journal.now() + timedelta(hours=1)
    await ledger.users.lock(user_id=carl, locked_until=until)
    answers = [
        await log_in(client, name, password)
        for name, password in (
            ("ann", WRONG),
            ("nobody", PASSWORD),
            ("bob", WRONG),
            ("bob", PASSWORD),
            ("carl", WRONG),
            ("carl", PASSWORD),
        )
    ]
    assert [each.status_code for each in answers] == [401] * 6
    first, *others = map(problem, answers)
    assert first["type"] == "invalid-credentials"
    assert others == [first] * 5
    assert len({tuple(sorted(each.headers.keys())) for each in answers}) == 1
    assert (await kinds(ledger.journal))["SessionStarted"] == 0


async def test_unknown_names_take_as_long_as_wrong_passwords(app: FastAPI, sqlite_url: str) -> None:
    """The medians differ by less than half of the smaller one, with hashes that take a while."""
    hasher = PasswordHasher(memory_kib=8 * 1024, iterations=1)
    async with a_ledger(sqlite_url, hasher=hasher, login_failures_max=100) as ledger:
        app.state.ledger = ledger
        await a_user(ledger)
        seconds: dict[str, list[float]] = {"ann": [], "nobody": []}
        async with client_of(app) as client:
            for name in (*seconds, *list(seconds) * TRIES):
                begun = time.perf_counter()
                assert (await log_in(client, name, WRONG)).status_code == 401
                seconds[name].append(time.perf_counter() - begun)
    medians = [statistics.median(each[1:]) for each in seconds.values()]
    assert max(medians) < 1.5 * min(medians)


async def test_going_on_with_a_refresh_token(
    client: httpx.AsyncClient, ledger: Ledger, clock: Clock
) -> None:
    """It gives two new tokens for the same session, until that ends."""
    await a_user(ledger)
    first = (await log_in(client)).json()
    clock.move(900)
    answer = await refresh(client, first["refresh_token"])
    assert (answer.status_code, answer.headers["Cache-Control"]) == (200, "no-store")
    second = answer.json()
    assert second["session_id"] == first["session_id"]
    assert second["refresh_token"] != first["refresh_token"]
    assert await is_let_in(client, bearing(second["access_token"]))
    clock.move(ledger.sessions.rules.session.total_seconds() - 900 - 60)
    third = (await refresh(client, second["refresh_token"])).json()
    assert third["expires_in"] == 60
    clock.move(60)
    assert not await is_let_in(client, bearing(third["access_token"]))
    assert (await refresh(client, third["refresh_token"])).status_code == 401


async def test_a_refresh_token_that_comes_again(client: httpx.AsyncClient, ledger: Ledger) -> None:
    """It ends the session, and all tokens of it, those that came of it too."""
    await a_user(ledger)
    first = (await log_in(client)).json()
    second = (await refresh(client, first["refresh_token"])).json()
    answer = await refresh(client, first["refresh_token"])
    assert (answer.status_code, problem(answer)["type"]) == (401, "unauthenticated")
    for each in (first, second):
        assert not await is_let_in(client, bearing(each["access_token"]))
        assert (await refresh(client, each["refresh_token"])).status_code == 401
    stored = await ledger.journal.read_stream(f"session-{first['session_id']}")
    assert isinstance(stored[-1].event, SessionEnded)
    assert stored[-1].event.reason == "reused"


async def test_tokens_do_not_stand_for_each_other(
    client: httpx.AsyncClient, ledger: Ledger
) -> None:
    """A refresh token lets nobody in, and an access token refreshes nothing."""
    await a_user(ledger)
    tokens = (await log_in(client)).json()
    assert not await is_let_in(client, bearing(tokens["refresh_token"]))
    assert (await refresh(client, tokens["access_token"][:255])).status_code == 401
    assert await is_let_in(client, bearing(tokens["access_token"]))


async def test_logging_out(client: httpx.AsyncClient, ledger: Ledger) -> None:
    """It ends this session and no other one, and takes its access token."""
    ann = await a_user(ledger)
    tokens, other = (await log_in(client)).json(), await a_token(client)
    headers = bearing(tokens["access_token"])
    _, key = await a_key(ledger, ann)
    for each in ({}, key):
        assert (await client.delete("/sessions/current", headers=each)).status_code == 401
    answer = await client.delete("/sessions/current", headers=headers)
    size = await ledger.journal.size()
    assert answer.json() == {
        "session_id": tokens["session_id"],
        "offsets": [size - 1],
        "size": size,
        "duplicate": False,
    }
    assert answer.headers["Ledger-Size"] == str(size)
    assert (await client.delete("/sessions/current", headers=headers)).status_code == 401
    assert not await is_let_in(client, headers)
    assert (await refresh(client, tokens["refresh_token"])).status_code == 401
    assert await is_let_in(client, other)
    [*_, ended] = await ledger.journal.read_stream(f"session-{tokens['session_id']}")
    assert ended.offset == size - 1
    assert ended.metadata.actor == f"user:{ann}"


async def test_logging_out_everywhere(client: httpx.AsyncClient, ledger: Ledger) -> None:
    """It ends all sessions of one's own user, and of nobody else."""
    ann, _ = await a_user(ledger), await a_user(ledger, "bob")
    anns = [await a_token(client) for _ in range(2)]
    bobs = await a_token(client, "bob")
    answer = await client.delete("/sessions", headers=anns[0])
    assert (answer.status_code, answer.json()["user_id"]) == (200, str(ann))
    assert [await is_let_in(client, each) for each in (*anns, bobs)] == [False, False, True]


async def test_ending_the_sessions_of_others(client: httpx.AsyncClient, ledger: Ledger) -> None:
    """Who may write users can; the reason is kept, and the user can log in again."""
    ann = await a_user(ledger)
    await a_user(ledger, "root", "admin")
    anns, roots = await a_token(client), await a_token(client, "root")
    path, body = f"/users/{ann}/end-sessions", {"reason": "lost laptop"}
    assert (await client.post(path, json=body)).status_code == 401
    assert (await client.post(path, json=body, headers=anns)).status_code == 403
    answer = await client.post(path, json=body, headers=roots)
    assert (answer.status_code, answer.json()["duplicate"]) == (200, False)
    assert not await is_let_in(client, anns)
    assert await is_let_in(client, await a_token(client))
    stored = [each.event for each in await ledger.journal.read_stream(user_stream(ann))]
    assert SessionsEnded(user_id=ann, reason="lost laptop") in stored
    nobody = await client.post(f"/users/{uuid4()}/end-sessions", json=body, headers=roots)
    assert nobody.status_code == 404
    stale = await client.post(path, json=body, headers=roots | {"If-Match": '"1"'})
    assert stale.status_code == 412


@pytest.mark.parametrize(
    "body",
    [
        {"username": "ann"},
        {"username": "", "password": "canary"},
        {"username": "ann", "password": ""},
        {"username": "ann", "password": "canary" * 200},
        {"username": "x" * 256, "password": "canary"},
        {"username": "ann", "password": "canary", "otp": "canary"},
        {"username": ["canary"], "password": "canary"},
        {"username": "ann", "password": 7},
        {"username": "a\x00nn", "password": "canary"},
        {"username": "\ud800", "password": "canary"},
        {"username": "ann", "password": "canary\ud800"},
        ["canary"],
        "canary",
        None,
    ],
    ids=range(14),
)
async def test_bodies_that_cannot_be_right(client: httpx.AsyncClient, body: Any) -> None:
    """They are refused as such, without showing what was sent."""
    for path in ("/sessions", "/sessions/refresh"):
        headers = {"Content-Type": "application/json"}
        answer = await client.post(path, content=json.dumps(body), headers=headers)
        assert answer.status_code == 422, answer.text
        assert "canary" not in answer.text
        assert problem(answer)


def test_secrets_of_bodies_and_answers_are_not_shown() -> None:
    """Whoever logs the objects logs no secret; the answer itself has them."""
    credentials = Credentials(username="ann", password=SecretStr("canary-1"))
    tokens = SessionTokens(
        access_token=SecretStr("canary-2"),
        expires_in=900,
        refresh_token=SecretStr("canary-3"),
        session_id=uuid4(),
        user_id=uuid4(),
        roles=[],
        permissions=[],
    )
    assert "canary" not in f"{credentials!r} {credentials} {tokens!r} {tokens}"
    assert tokens.model_dump_json().count("canary") == 2


def test_the_tokens_are_described(app: FastAPI) -> None:
    """In OpenAPI they are text, and the routes that need no credentials say so by naming none."""
    schema = app.openapi()
    fields = schema["components"]["schemas"]["SessionTokens"]["properties"]
    for name in ("access_token", "refresh_token"):
        assert fields[name]["type"] == "string"
        assert "writeOnly" not in fields[name]
    for path in ("/sessions", "/sessions/refresh"):
        assert "security" not in schema["paths"][path]["post"]
    assert schema["paths"]["/sessions/current"]["delete"]["security"] == [{"Bearer": []}]
