"""The audit log: everything that matters to security, once, and no secret."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from msgspec.structs import replace

from ledger import domain
from ledger.codec import encode_event
from ledger.deciding import Origin
from ledger.domain.api_keys import ApiKeyUsed
from ledger.domain.orders import (
    Action,
    OrderCancelRejected,
    OrderCancelRequested,
    OrderFailed,
    OrderPlaced,
    OrderRejected,
    OrderReplaceRejected,
    OrderType,
)
from ledger.domain.requests import RequestHandled
from ledger.domain.users import LoginAttempted, UserRegistered, name_digest
from ledger.errors import CommandRefused
from ledger.event import Amount, Event, Metadata, NewEvent, RecordedEvent, event_types
from ledger.security.passwords import PasswordHasher, Passwords
from ledger.services import Ledger, open_ledger
from ledger.settings import Settings
from projections.database import Database
from projections.groups import TRADING
from projections.projector import Projector
from projections.security_audit_logs import ACTIONS, ORIGINS, SECRETS, SecurityAuditLog
from tests.ledger.support import Clock, read_all
from tests.projections.support import (
    all_rows,
    an_id,
    assert_live_is_replay,
    live_tables,
    record,
)

V4, V6 = "192.0.2.7", "2001:db8::7"
PASSWORDS = ("canary-first", "canary-second", "canary-old", "canary-guess")
SALT = "canary-salt"
OLD_HASH = hashlib.pbkdf2_hmac("sha256", b"canary-old", SALT.encode(), 100_000).hex()


@pytest.fixture
async def service(settings: Settings) -> AsyncIterator[Ledger]:
    """The facade on the database under test, with cheap hashes."""
    passwords = Passwords(PasswordHasher(memory_kib=8, iterations=1))
    async with open_ledger(settings, clock=Clock(), passwords=passwords) as opened:
        yield opened


def origin(address: str, request: str = "request 1") -> Origin:
    """Say where a command comes from."""
    return Origin(metadata=Metadata(ip_address=address, request_id=request, actor="test"))


async def live_a_life(service: Ledger) -> list[str]:
    """Do everything that a user and their keys can go through; return what was shown once."""
    users, keys = service.users, service.api_keys
    ann = (
        await users.register(username="ann", password=PASSWORDS[0], email="a@x", origin=origin(V4))
    ).user_id
    for name, password in (("ann", PASSWORDS[0]), ("ann", PASSWORDS[3]), ("bob", PASSWORDS[3])):
        await users.login(username=name, password=password, origin=origin(V6, "login"))
    await users.change_password(user_id=ann, password=PASSWORDS[1], origin=origin(V4))
    await users.change_email(user_id=ann, email="b@x")
    await users.change_permissions(user_id=ann, permissions=["trade"])
    await users.change_roles(user_id=ann, roles=["admin"])
    for _ in range(6):
        await users.login(username="ann", password=PASSWORDS[3], origin=origin(V6))
    await users.unlock(user_id=ann)
    opened = await service.sessions.start(username="ann", password=PASSWORDS[1], origin=origin(V4))
    assert opened
    token = opened.refresh_token.reveal()
    for _ in range(2):
        await service.sessions.refresh(refresh_token=token, origin=origin(V4))
    await users.end_sessions(user_id=ann)
    old = UserRegistered(user_id=uuid4(), username="old", password_hash=f"{OLD_HASH}:{SALT}")
    await service.journal.append(NewEvent(old))
    await users.login(username="old", password=PASSWORDS[2])
    for _ in range(6):
        await users.login(username=PASSWORDS[1], password=PASSWORDS[0])
    await users.deactivate(user_id=old.user_id)
    await users.reactivate(user_id=old.user_id)
    with pytest.raises(CommandRefused):
        await users.reactivate(user_id=old.user_id)
    await users.hold(user_id=old.user_id, reason="case 1")
    await users.release(user_id=old.user_id, reason="case 1")
    await users.erase(user_id=old.user_id, reason="request")
    first = await keys.issue(user_id=ann, name="bot", permissions=["trade"], rate_limit=1)
    second = await keys.rotate(key_id=first.key_id, overlap=timedelta(0))
    assert first.key
    assert second.key
    shown = [first.key.reveal(), second.key.reveal()]
    await users.login(username=shown[1], password=PASSWORDS[0])
    for presented in (*shown, shown[1], shown[0] + "x", shown[0][:-1] + "!"):
        await keys.use(presented=presented, action="GET", resource="/orders", origin=origin(V6))
    await keys.revoke(key_id=second.key_id, origin=origin(V4))
    await keys.flush()
    return [*shown, token]


async def rows_of(service: Ledger, settings: Settings) -> list[dict[str, Any]]:
    """Project the journal, and return the audit log."""
    async with Database(settings) as database:
        await Projector(database, service.journal, TRADING).catch_up()
        await assert_live_is_replay(service.journal, database, TRADING)
        return list((await live_tables(database, TRADING))["security_audit_logs"].values())


async def test_a_whole_life_is_audited_once_and_without_secrets(
    service: Ledger, settings: Settings
) -> None:
    """Each event has one row; passwords and keys are nowhere, hashes only in their own columns."""
    shown = await live_a_life(service)
    events = await read_all(service.journal)
    rows = await rows_of(service, settings)
    assert {row["log_id"] for row in rows} == {each.event_id for each in events}
    assert len(rows) == len(events)
    assert {row["event_type"] for row in rows} == set(domain_types())
    secrets = [*PASSWORDS, *shown, *(key[27:] for key in shown), *(key[27:-6] for key in shown)]
    hashes = [*hashes_in(events), OLD_HASH, SALT]
    logged = json.dumps(rows, default=str)
    assert not [secret for secret in (*secrets, *hashes) if secret in logged]
    for each in events:
        body = each.body.decode()
        assert not [secret for secret in (*secrets, *hashes) if secret in body]


def hashes_in(events: list[RecordedEvent]) -> list[str]:
    """Return all hashes that were stored and can still be read."""
    named = ("password_hash", "key_hash")
    found = [getattr(each.event, name, None) for each in events for name in named]
    hashes = [value for value in found if value is not None]
    assert len(hashes) >= 4
    return hashes


def domain_types() -> dict[str, type[Event]]:
    """Return the event types of users, their sessions and API keys."""
    modules = [each.__name__ for each in (domain.users, domain.sessions, domain.api_keys)]
    return {name: known for name, known in event_types().items() if known.__module__ in modules}


async def test_rows_say_who_did_what_from_where(service: Ledger, settings: Settings) -> None:
    """User, address of both families, resource, action, success and request id."""
    await live_a_life(service)
    rows = await rows_of(service, settings)
    [registered] = [row for row in rows if row["event_type"] == "UserRegistered"][:1]
    assert (registered["ip_address"], registered["request_id"]) == (V4, "request 1")
    assert registered["resource"] == f"user-{registered['user_id']}"
    told = Counter((row["event_type"], row["action"], row["success"]) for row in rows)
    assert told["LoginAttempted", "attempt_login", True] == 3 + 4 + 1 + 1 + 5 + 1
    assert told["LoginSucceeded", "login", True] == 3
    assert told["SessionRefreshed", "refresh_session", True] == 1
    assert told["SessionEnded", "end_session", True] == 1
    assert told["LoginFailed", "login", False] == 1 + 1 + 6 + 6 + 1
    assert told["AccountLocked", "lock", True] == 2
    assert told["ApiKeyUsed", "GET", True] == 1
    assert told["ApiKeyRefused", "GET", False] == 4
    [stranger, *_] = [row for row in rows if row["details"].get("name_digest")]
    name_key = await service.journal.privacy.name_key()
    assert stranger["details"]["name_digest"] == name_digest("bob", name_key)
    assert (stranger["user_id"], stranger["ip_address"]) == (None, V6)
    used = next(row for row in rows if row["event_type"] == "ApiKeyUsed")
    assert (used["user_id"], used["resource"]) == (registered["user_id"], "/orders")


def test_rows_say_who_acted_and_in_which_connection() -> None:
    """Actor, correlation and causation are in the details, where they are known."""
    registered = UserRegistered(user_id=an_id("user"), username="ann")
    metadata = Metadata(actor="op-7", correlation_id=an_id("a"), causation_id=an_id("b"))
    given, bare = (audited(registered, metadata), audited(registered, Metadata()))
    origin = {
        "actor": "op-7",
        "correlation_id": str(an_id("a")),
        "causation_id": str(an_id("b")),
    }
    assert given.details == bare.details | origin
    assert not set(bare.details) & set(ORIGINS)
    fields = {name for known in ACTIONS for name in known.__struct_fields__}
    assert not fields & set(ORIGINS)


def test_details_hold_what_can_be_read_and_name_what_was_erased() -> None:
    """Not what is stored, which is encrypted; neither digests nor the names of secrets."""
    event = UserRegistered(
        user_id=an_id("user"),
        username="ann",
        email="a@x",
        password_hash="secret",
        username_digest="digest",
        email_digest="digest",
    )
    shown = audited(event, Metadata(ip_address=V4))
    assert shown.details == {"user_id": str(an_id("user")), "username": "ann", "email": "a@x"}
    [recorded] = record([event], metadata=Metadata(ip_address=V4))
    stored = replace(event, username="enc1:k:a", email="enc1:k:b", password_hash="enc1:k:c")
    gone = replace(event, username=None, email=None, password_hash=None)
    recorded = replace(
        recorded,
        event=gone,
        body=encode_event(stored),
        metadata=Metadata(),
        erased=("username", "email", "password_hash", "ip_address"),
    )
    state = TRADING.state(1, "main")
    TRADING.fold(state, [recorded])
    [row] = state.rows(SecurityAuditLog)
    erased = ["email", "ip_address", "username"]
    assert row.details == {"user_id": str(an_id("user")), "erased": erased}
    assert row.ip_address is None


def test_texts_that_are_too_long_are_cut() -> None:
    """The beginning of a resource or request id is better than none."""
    used = ApiKeyUsed(key_id=an_id("key"), action="a" * 300, resource="/o?" + "r" * 300)
    row = audited(used, Metadata(request_id="q" * 300))
    assert (row.action, row.resource) == ("a" * 255, "/o?" + "r" * 252)
    assert row.request_id == "q" * 255


def audited(event: Event, metadata: Metadata) -> SecurityAuditLog:
    """Return the row of one event."""
    state = TRADING.state(1, "main")
    TRADING.fold(state, record([event], metadata=metadata))
    [row] = state.rows(SecurityAuditLog)
    return row


def test_an_attempt_and_its_outcome_name_each_other() -> None:
    """One whose process died is a row of its own, under the id that an outcome would have."""
    attempted = LoginAttempted(user_id=an_id("user"), attempt_id=an_id("attempt"), source="gateway")
    [row] = all_rows([attempted], SecurityAuditLog)
    expected = {"attempt_id": str(an_id("attempt")), "source": "gateway"}
    assert row.details == {"user_id": str(an_id("user"))} | expected
    assert (row.action, row.success) == ("attempt_login", True)


@pytest.mark.parametrize(("status", "is_success"), [(204, True), (399, True), (400, False)])
def test_requests_say_themselves_what_was_done(status: int, is_success: bool) -> None:
    """As uses of keys do: action and resource are the request's, its status says how it went."""
    request = RequestHandled(
        user_id=an_id("user"), action="GET /orders/{order_id}", resource="/orders/7", status=status
    )
    row = audited(request, Metadata(actor="user:7"))
    assert (row.action, row.resource) == ("GET /orders/{order_id}", "/orders/7")
    assert (row.success, row.details["status"]) == (is_success, status)


def test_no_field_that_holds_a_secret_is_shown() -> None:
    """Whatever a field of any event is called after a secret is left out of the details."""
    words = ("hash", "secret", "password")
    fields = {
        name
        for known in event_types().values()
        for name in known.__struct_fields__
        if any(word in name for word in words)
    }
    assert fields == set(SECRETS)
    assert set(domain_types().values()) <= set(ACTIONS)


def test_requests_that_came_to_nothing_are_failures() -> None:
    """Orders that were refused or failed, and changes that the venue refused."""
    order_id = an_id("order")
    placed = OrderPlaced(
        order_id=order_id,
        user_id=an_id("user"),
        token="SOL",
        action=Action.BUY,
        order_type=OrderType.MARKET,
        quantity=Amount("1"),
    )
    outcomes = [
        OrderRejected(order_id=order_id, reason="no funds"),
        OrderFailed(order_id=order_id, reason="broken"),
        OrderCancelRejected(order_id=order_id),
        OrderReplaceRejected(order_id=order_id),
    ]
    registered = UserRegistered(user_id=an_id("user"), username="ann")
    events = [registered, placed, OrderCancelRequested(order_id=order_id), *outcomes]
    rows = all_rows(events, SecurityAuditLog)
    assert [row.success for row in rows] == [True] * 3 + [False] * 4
    assert [row.action for row in rows[3:]] == [
        "place_order",
        "place_order",
        "cancel_order",
        "replace_order",
    ]
    assert {row.user_id for row in rows} == {an_id("user")}
