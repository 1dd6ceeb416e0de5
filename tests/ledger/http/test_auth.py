"""Who sent a request: keys and tokens that are good, and that are good no more."""

from __future__ import annotations

import logging
from datetime import timedelta
from uuid import uuid4

import httpx
import msgspec
import pytest
from fastapi import FastAPI, Request

from ledger.domain.api_keys import ApiKeyUsed, api_key_use_stream
from ledger.http import tokens
from ledger.http.auth import Principal, ip_address_of, principal_of_token
from ledger.http.errors import CHALLENGE, Unauthenticated
from ledger.http.permissions import PERMISSIONS
from ledger.security.api_keys import generate
from ledger.services import Ledger
from tests.ledger.http.people import PASSWORD, a_key, a_token, a_user, bearing, log_in, problem
from tests.ledger.services.support import kinds
from tests.ledger.support import Clock
from tests.support.secrets import SecretsHandler

PATHS = ("/things/7", "/anybody", "/keys-only", "/sessions-only")


@pytest.mark.parametrize("path", PATHS)
async def test_nobody_gets_in(client: httpx.AsyncClient, path: str) -> None:
    """Without credentials, or with such as are of no kind that is known, the answer is 401."""
    for headers in ({}, {"Authorization": "Basic YTpi"}, {"Authorization": "Bearer"}):
        answer = await client.get(path, headers=headers)
        assert answer.status_code == 401
        assert problem(answer)["type"] == "unauthenticated"
        assert answer.headers["WWW-Authenticate"] == CHALLENGE


async def test_the_use_of_a_key_is_stored_first(client: httpx.AsyncClient, ledger: Ledger) -> None:
    """With the route as declared, the path that was asked for, and where it came from."""
    ann = await a_user(ledger)
    key_id, headers = await a_key(ledger, ann, "tables:read")
    answer = await client.get("/things/7?of=mine", headers=headers | {"X-Request-ID": "r-17"})
    assert (answer.status_code, answer.json()) == (200, f"key:{key_id}")
    [used] = await ledger.journal.read_stream(api_key_use_stream(key_id))
    assert used.event == ApiKeyUsed(
        key_id=key_id, action="GET /things/{thing}", resource="/things/7"
    )
    assert (used.metadata.request_id, used.metadata.ip_address) == ("r-17", "127.0.0.1")
    assert used.metadata.correlation_id is not None


async def test_a_key_may_do_what_it_was_issued_for(
    client: httpx.AsyncClient, ledger: Ledger
) -> None:
    """Not what its user may: neither roles nor a star are permissions of a key."""
    ann = await a_user(ledger, "ann", "admin")
    for permissions in ((), ("*",), ("auditor", "admin"), ("marks:write",)):
        _, headers = await a_key(ledger, ann, *permissions)
        assert (await client.get("/anybody", headers=headers)).json() == sorted(permissions)
        answer = await client.get("/things/7", headers=headers)
        assert answer.status_code == 403
        found = problem(answer)
        assert (found["type"], found["permission"]) == ("forbidden", "tables:read")
    assert (await kinds(ledger.journal))["ApiKeyRefused"] > 0


async def test_keys_that_are_not_good_get_one_answer(
    client: httpx.AsyncClient, ledger: Ledger, clock: Clock
) -> None:
    """Malformed, unknown, revoked, expired, or of somebody who cannot act: nobody is told which."""
    ann, bob = await a_user(ledger), await a_user(ledger, "bob")
    revoked_id, revoked = await a_key(ledger, ann, "tables:read")
    ends = clock.now + timedelta(seconds=60)
    _, expired = await a_key(ledger, ann, "tables:read", expires_at=ends)
    _, inactive = await a_key(ledger, bob, "tables:read")
    for headers in (revoked, expired, inactive):
        assert (await client.get("/things/7", headers=headers)).status_code == 200
    await ledger.api_keys.revoke(key_id=revoked_id)
    await ledger.users.deactivate(user_id=bob)
    clock.move(60)
    unknown = generate(uuid4())[0].reveal()
    answers = [
        await client.get("/things/7", headers=httpx.Headers(headers, "latin-1"))
        for headers in (revoked, expired, inactive, {"X-API-Key": unknown}, {"X-API-Key": "\xe9"})
    ]
    assert [each.status_code for each in answers] == [401] * 5
    first, *others = map(problem, answers)
    assert others == [first] * 4
    assert (await kinds(ledger.journal))["ApiKeyRefused"] == 5


async def test_a_rate_limit_that_is_used_up(client: httpx.AsyncClient, ledger: Ledger) -> None:
    """The answer says when there is room again."""
    _, headers = await a_key(ledger, await a_user(ledger), "tables:read", rate_limit=1)
    assert (await client.get("/things/7", headers=headers)).status_code == 200
    answer = await client.get("/things/7", headers=headers)
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "60")
    assert problem(answer)["type"] == "rate-limited"


@pytest.mark.parametrize(
    ("path", "resource"),
    [
        ("/things/%00%ff%0a", "/things/%00%EF%BF%BD%0A"),
        ("/things/%e2%82%ac", "/things/%E2%82%AC"),
        ("/things/" + "x" * 5000, "/things/" + "x" * 2040),
    ],
)
async def test_any_path_can_be_stored(
    client: httpx.AsyncClient, ledger: Ledger, path: str, resource: str
) -> None:
    """In characters that can be printed, and so many of them as are stored."""
    key_id, headers = await a_key(ledger, await a_user(ledger), "tables:read")
    assert (await client.get(path, headers=headers)).status_code == 200
    [used] = await ledger.journal.read_stream(api_key_use_stream(key_id))
    assert isinstance(used.event, ApiKeyUsed)
    assert used.event.resource == resource


async def test_a_token_may_do_what_its_user_may_now(
    client: httpx.AsyncClient, ledger: Ledger
) -> None:
    """Own permissions and those of roles; a change counts from the next request on."""
    ann = await a_user(ledger, "ann", "auditor")
    headers = await a_token(client)
    assert (await client.get("/things/7", headers=headers)).json() == f"user:{ann}"
    await ledger.users.change_permissions(user_id=ann, permissions=["trade"])
    granted = (await client.get("/anybody", headers=headers)).json()
    assert granted == ["events:read", "operations:read", "tables:read", "trade"]
    await ledger.users.change_roles(user_id=ann, roles=["admin", "captain"])
    granted = (await client.get("/anybody", headers=headers)).json()
    assert granted == sorted({*PERMISSIONS, "trade"})
    await ledger.users.change_roles(user_id=ann, roles=[])
    answer = await client.get("/things/7", headers=headers)
    assert (answer.status_code, problem(answer)["permission"]) == (403, "tables:read")


async def test_a_token_is_refused_at_once(client: httpx.AsyncClient, ledger: Ledger) -> None:
    """When its session is ended, and when its user is deactivated, with the one answer."""
    await a_user(ledger, "ann", "auditor")
    bob = await a_user(ledger, "bob", "auditor")
    anns, bobs = await a_token(client), await a_token(client, "bob")
    for headers in (anns, bobs):
        assert (await client.get("/things/7", headers=headers)).status_code == 200
    assert (await client.delete("/sessions/current", headers=anns)).status_code == 200
    await ledger.users.deactivate(user_id=bob)
    answers = [
        await client.get("/things/7", headers=httpx.Headers(each, "latin-1"))
        for each in (anns, bobs, bearing("a.b.c"), bearing("\xe9"), {})
    ]
    assert [each.status_code for each in answers] == [401] * 5
    assert len({str(problem(each)) for each in answers}) == 1


async def test_routes_for_one_kind_of_credentials(
    client: httpx.AsyncClient, ledger: Ledger
) -> None:
    """Some take keys only, some access tokens only; where both are sent, the key counts."""
    ann = await a_user(ledger, "ann", "auditor")
    key_id, key = await a_key(ledger, ann, "tables:read")
    token = await a_token(client)
    assert (await client.get("/keys-only", headers=key)).json() == f"key:{key_id}"
    assert (await client.get("/keys-only", headers=token)).status_code == 401
    assert (await client.get("/sessions-only", headers=token)).json() == f"user:{ann}"
    assert (await client.get("/sessions-only", headers=key)).status_code == 401
    assert (await client.get("/things/7", headers=key | token)).json() == f"key:{key_id}"
    bad = {"X-API-Key": "tlk_bad"} | token
    assert (await client.get("/things/7", headers=bad)).status_code == 401


async def test_a_token_without_a_request(client: httpx.AsyncClient, ledger: Ledger) -> None:
    """Whoever has it in a cookie finds out whose it is in the same way."""
    ann = await a_user(ledger, "ann", "auditor")
    sent = (await log_in(client)).json()
    who = await principal_of_token(ledger, sent["access_token"])
    assert (who.user_id, str(who.session_id)) == (ann, sent["session_id"])
    assert (who.roles, who.key_id) == (("auditor",), None)
    assert who.may("tables:read")
    assert not who.may("tables:write")
    for text in ("", "\ud800", sent["refresh_token"], sent["access_token"] + "x"):
        with pytest.raises(Unauthenticated):
            await principal_of_token(ledger, text)


async def test_a_token_for_another_user_than_its_sessions(
    client: httpx.AsyncClient, ledger: Ledger
) -> None:
    """It is refused, whoever signed it: the session says whose it is."""
    await a_user(ledger, "ann", "auditor")
    bob = await a_user(ledger, "bob", "admin")
    opened = await ledger.sessions.start(username="ann", password=PASSWORD)
    assert opened is not None
    now = ledger.journal.now()
    for user_id, status in ((opened.holder.user_id, 200), (bob, 401)):
        holder = msgspec.structs.replace(opened.holder, user_id=user_id)
        token = await tokens.issue(ledger.sessions, holder, ledger.journal.name, now)
        answer = await client.get("/things/7", headers=bearing(token.text))
        assert answer.status_code == status


async def test_the_route_and_others_see_who_it_is(app: FastAPI, client: httpx.AsyncClient) -> None:
    """The request's state has the principal, also where a permission is lacking."""
    seen: list[Principal | None] = []

    @app.middleware("http")
    async def look(request: Request, call_next):  # type: ignore[no-untyped-def]
        answer = await call_next(request)
        seen.append(getattr(request.state, "principal", None))
        return answer

    ledger: Ledger = app.state.ledger
    ann = await a_user(ledger)
    key_id, key = await a_key(ledger, ann)
    token = await a_token(client)
    for path, headers in (("/anybody", key), ("/anybody", token), ("/things/7", token)):
        await client.get(path, headers=headers)
    by_key, *by_token = seen[1:]
    assert by_key == Principal(ann, frozenset(), key_id=key_id)
    assert [each and each.user_id for each in by_token] == [ann, ann]


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:DB8::1", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("testclient", None),
        ("", None),
        (None, None),
    ],
)
def test_where_a_request_came_from(host: str | None, address: str | None) -> None:
    """What is no address, or there is none, is not known."""
    client = None if host is None else (host, 1234)
    assert ip_address_of(Request({"type": "http", "client": client})) == address


def test_openapi_names_both_kinds_of_credentials(app: FastAPI) -> None:
    """Each route says which of them it takes."""
    schema = app.openapi()
    assert {
        name: (each["type"], each.get("in") or each["scheme"])
        for name, each in schema["components"]["securitySchemes"].items()
    } == {"ApiKey": ("apiKey", "header"), "Bearer": ("http", "bearer")}
    taken = {path: schema["paths"][path]["get"]["security"] for path in PATHS[1:]}
    assert taken == {
        "/anybody": [{"ApiKey": []}, {"Bearer": []}],
        "/keys-only": [{"ApiKey": []}],
        "/sessions-only": [{"Bearer": []}],
    }


async def test_refused_tokens_show_in_the_log(
    client: httpx.AsyncClient, ledger: Ledger, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """With the request and the kind of reason, and nothing of the token; the journal has none."""
    caplog.set_level(logging.INFO, "ledger.http")
    await a_user(ledger)
    sent, other = (await log_in(client)).json(), await a_token(client)
    await client.delete("/sessions/current", headers=bearing(sent["access_token"]))
    size = await ledger.journal.size()
    told = [
        await client.get("/things/7", headers=headers)
        for headers in (bearing("a.b.c"), bearing(sent["access_token"]), {}, {"X-API-Key": "no"})
    ]
    told.append(await client.post("/sessions/refresh", json={"refresh_token": "lrt_no"}))
    clock.move(900)
    told.append(await client.get("/things/7", headers=other))
    assert [each.status_code for each in told] == [401] * 6
    ids = [told[number].headers["X-Request-ID"] for number in (0, 1, 4, 5)]
    lines = [
        (each.levelname, each.getMessage(), vars(each)["request_id"]) for each in caplog.records
    ]
    assert lines == [
        ("WARNING", "access token refused: unreadable", ids[0]),
        ("WARNING", "access token refused: session_over", ids[1]),
        ("WARNING", "refresh token refused: not_good", ids[2]),
        ("INFO", "access token refused: expired", ids[3]),
    ]
    assert (await kinds(ledger.journal))["ApiKeyRefused"] == await ledger.journal.size() - size


async def test_no_credentials_are_logged_or_told(client: httpx.AsyncClient, ledger: Ledger) -> None:
    """Neither good ones nor bad ones, at any level, nor in the texts of refusals."""
    handler, root = SecretsHandler(), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        _, key = await a_key(ledger, await a_user(ledger), "marks:write", rate_limit=2)
        sent = (await log_in(client)).json()
        bad = bearing(sent["access_token"][:-4])
        answers = [
            await client.get("/things/7", headers=each)
            for each in (key, key, key, bad, {"X-API-Key": key["X-API-Key"][:-1]})
        ]
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    assert handler.found == []
    told = "".join(each.text for each in answers)
    assert sent["access_token"][:40] not in told
    assert key["X-API-Key"][:10] not in told
