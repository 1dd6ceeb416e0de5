"""Security events as OCSF: all of them, with what the classes require, and without secrets."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Any

import pytest

from ledger.codec import decode_bodies
from ledger.domain.api_keys import ApiKeyIssued, ApiKeyRefused, ApiKeyRotated, ApiKeyUsed
from ledger.domain.users import (
    AccountLocked,
    EmailChanged,
    LoginAttempted,
    LoginFailed,
    LoginSucceeded,
    PasswordChanged,
    PermissionsChanged,
    RolesChanged,
    UserRegistered,
)
from ledger.event import Event, Metadata, NewEvent
from ledger.journal import Journal
from projections.reports import ocsf
from projections.reports.ocsf import KINDS, MAPPED, UNMAPPED, activity_of
from projections.reports.span import CHUNK_SIZE
from projections.security_audit_logs import DIGESTS, OF_USERS, SECRETS
from tests import samples
from tests.ledger.support import an_id
from tests.projections.random_events import random_events
from tests.projections.reports.support import Schema, lines_of
from tests.projections.support import append

ANN, KEY = an_id("ann"), an_id("key")
WHEN = datetime(2026, 3, 2, 12, 0, 0, 123999, UTC)
CANARIES = ("canary-password-hash", "canary-key-hash")


@pytest.fixture
def schema(data_dir: Path) -> Schema:
    """OCSF's classes, from the reference data."""
    return Schema(data_dir)


def every_event() -> list[Event]:
    """Return one event of each reported type with all its fields, and one with few."""
    found: list[Event] = []
    for known in KINDS:
        for full in (False, True):
            body = samples.sample(known, full=full)
            found += decode_bodies([body], [0])
    return found


def test_what_is_audited_of_users_and_keys_is_reported() -> None:
    """A new type of event must be classified."""
    assert set(KINDS) == set(OF_USERS)


def test_every_field_is_mapped_or_left_out_on_purpose() -> None:
    """A new field is not reported before somebody has said how; secrets never are."""
    fields = {name for known in KINDS for name in known.__struct_fields__}
    left_out = {*SECRETS, *DIGESTS}
    assert fields == MAPPED | set(UNMAPPED) | left_out
    assert not (MAPPED | set(UNMAPPED)) & left_out


async def test_all_types_have_what_their_class_requires(journal: Journal, schema: Schema) -> None:
    """With all fields or with the required ones alone, with and without metadata."""
    events = every_event()
    await append_all(journal, events, Metadata())
    await append_all(journal, events, Metadata(ip_address="192.0.2.7", actor="me", request_id="r"))
    lines = await lines_of("security", journal)
    assert [line["metadata"]["event_code"] for line in lines] == [
        type(event).__name__ for event in events * 2
    ]
    for line in lines:
        schema.check(line)


async def test_what_was_erased_is_named_and_missing_only(journal: Journal, schema: Schema) -> None:
    """All types have what their class requires without it, and nothing encrypted is shown."""
    metadata = Metadata(ip_address="192.0.2.7", actor="me", request_id="r")
    await append_all(journal, every_event(), metadata)
    before = await lines_of("security", journal)
    subjects = {each.event.subject() or "nobody" async for each in journal.read()}
    assert len(subjects) >= 4
    for subject in subjects:
        await journal.privacy.destroy(subject)
    lines = await lines_of("security", journal)
    assert "enc1:" not in json.dumps(lines)
    assert "192.0.2.7" in json.dumps(before)
    assert "192.0.2.7" not in json.dumps(lines)
    for line in lines:
        schema.check(line)
        assert "ip_address" in line["unmapped"]["erased"]
        assert line["unmapped"]["erased"] == sorted(line["unmapped"]["erased"])


async def append_all(journal: Journal, events: list[Event], metadata: Metadata) -> None:
    """Append events as they are: two of them may claim the same name."""
    for event in events:
        if isinstance(event, UserRegistered | EmailChanged):
            user = an_id(f"{event} {metadata}")
            event = type(event)(user_id=user, **names_of(event, str(user)))  # noqa: PLW2901
        await journal.append(NewEvent(event, metadata=metadata))


def names_of(event: UserRegistered | EmailChanged, unique: str) -> dict[str, Any]:
    """Return names that nobody else has."""
    email = event.email and f"{unique}@x"
    return {"email": email} | ({"username": unique} if isinstance(event, UserRegistered) else {})


async def test_account_change_is_deprecated_and_so_not_used(schema: Schema) -> None:
    """Since 1.9.0, the version that the report names."""
    deprecated = schema.of_class("account_change")["@deprecated"]
    assert "User Management" in deprecated["message"]
    assert deprecated["since"] == ocsf.OCSF_VERSION
    assert 3001 not in {kind.class_uid for kind in KINDS.values()}


async def test_a_login_in_full(journal: Journal) -> None:
    """Every attribute of one event."""
    await journal.append(NewEvent(UserRegistered(user_id=ANN, username="ann")))
    metadata = Metadata(
        ip_address="192.0.2.7", request_id="r", correlation_id=an_id("c"), actor="web"
    )
    event = LoginFailed(username="ann", user_id=ANN, reason="wrong_password")
    new = NewEvent(event, event_id=an_id("e"), occurred_at=WHEN, metadata=metadata)
    await journal.append(new)
    recorded = [each async for each in journal.read()][1].recorded_at
    [_, line] = await lines_of("security", journal)
    assert line.pop("metadata") == {
        "version": "1.9.0",
        "product": {"name": "ledger", "vendor_name": "ledger", "version": version(ocsf.PACKAGE)},
        "uid": str(an_id("e")),
        "event_code": "LoginFailed",
        "sequence": 1,
        "log_name": "main",
        "log_version": "1",
        "logged_time": int(recorded.timestamp() * 1000),
        "original_time": "2026-03-02T12:00:00.123999Z",
        "correlation_uid": str(an_id("c")),
    }
    assert line == {
        "class_uid": 3002,
        "class_name": "Authentication",
        "category_uid": 3,
        "category_name": "Identity & Access Management",
        "activity_id": 1,
        "activity_name": "Logon",
        "type_uid": 300201,
        "type_name": "Authentication: Logon",
        "severity_id": 2,
        "severity": "Low",
        "status_id": 2,
        "status": "Failure",
        "status_detail": "wrong_password",
        "time": 1772452800123,
        "message": f"LoginFailed in user-{ANN}",
        "user": {"uid": str(ANN), "name": "ann"},
        "actor": {"app_name": "web"},
        "src_endpoint": {"ip": "192.0.2.7"},
        "service": {"name": "ledger", "uid": "main"},
        "unmapped": {
            "stream": f"user-{ANN}",
            "stream_version": 2,
            "request_id": "r",
            "journal_size": 2,
        },
    }


CASES: list[tuple[Event, int, dict[str, Any]]] = [
    (LoginSucceeded(user_id=ANN), 300201, {"status_id": 1, "severity_id": 1}),
    (LoginAttempted(user_id=ANN), 300206, {"status_id": 0, "status": "Unknown"}),
    (
        LoginFailed(username="x…", name_digest="d", source="host"),
        300201,
        {"user": {"name": "x…"}, "src_endpoint": {"name": "host"}},
    ),
    (LoginAttempted(name_digest="d"), 300206, {"user": {"name": "unknown"}}),
    (AccountLocked(user_id=ANN, locked_until=WHEN), 300706, {"severity_id": 3}),
    (PasswordChanged(user_id=ANN, password_hash="h"), 300708, {}),
    (PasswordChanged(user_id=ANN, password_hash="h", upgraded=True), 300702, {}),
    (
        EmailChanged(user_id=ANN, email="n@x", previous_email="o@x"),
        300702,
        {
            "user": {"uid": str(ANN), "name": "ann", "email_addr": "o@x"},
            "updated_user": {"uid": str(ANN), "name": "ann", "email_addr": "n@x"},
        },
    ),
    (PermissionsChanged(user_id=ANN, permissions=("a",)), 300702, {"privileges": ["a"]}),
    (RolesChanged(user_id=ANN, roles=("r",)), 300702, {"iam_roles": [{"name": "r"}]}),
    (
        ApiKeyRotated(key_id=KEY, successor_key_id=ANN, expires_at=WHEN),
        600303,
        {"resources": [{"uid": str(KEY), "type": "api_key"}], "actor": {"app_name": "unknown"}},
    ),
    (
        ApiKeyUsed(key_id=KEY, action="GET", resource="/orders"),
        600302,
        {
            "actor": {"user": {"uid": str(ANN), "name": "ann", "credential_uid": str(KEY)}},
            "api": {"operation": "GET"},
            "resources": [{"uid": str(KEY), "type": "api_key"}, {"name": "/orders"}],
            "src_endpoint": {"name": "unknown"},
        },
    ),
    (
        ApiKeyRefused(reason="expired", key_id=KEY, action="Assume", count=5),
        600399,
        {"count": 5, "activity_name": "Assume", "status_detail": "expired", "status_id": 2},
    ),
    (ApiKeyRefused(reason="malformed", presented="p"), 600399, {"resources": []}),
]


@pytest.mark.parametrize("number", range(len(CASES)))
async def test_how_events_are_mapped(sqlite_journal: Journal, number: int) -> None:
    """Type and attributes of one event of each kind."""
    event, type_uid, expected = CASES[number]
    await append(sqlite_journal, [UserRegistered(user_id=ANN, username="ann", email="o@x")])
    await append(sqlite_journal, [ApiKeyIssued(key_id=KEY, user_id=ANN, name="bot")])
    await sqlite_journal.append(NewEvent(event))
    [line] = await lines_of("security", sqlite_journal, "2")
    assert line["type_uid"] == type_uid
    assert {name: line[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("action", "activity_id"),
    [("GET", 2), ("CreateUser", 1), ("DescribeInstances", 2), ("PutObject", 3), ("Delete", 4),
     ("AssumeRole", 99), ("", 99), (None, 99)],
)  # fmt: skip
def test_actions_are_classified_by_their_verbs(action: str | None, activity_id: int) -> None:
    """What is none of the four activities is another one."""
    assert activity_of(action) == activity_id


async def test_no_secret_is_in_the_report(journal: Journal) -> None:
    """Neither a hash of a password nor one of a key."""
    await append(
        journal,
        [
            UserRegistered(user_id=ANN, username="ann", password_hash=CANARIES[0]),
            PasswordChanged(user_id=ANN, password_hash=CANARIES[0]),
            ApiKeyIssued(key_id=KEY, user_id=ANN, name="bot", key_hash=CANARIES[1]),
        ],
    )
    text = json.dumps(await lines_of("security", journal))
    assert text.count("UserRegistered") > 0
    assert not [each for each in (*CANARIES, "hash") if each in text]


async def test_any_history_is_reported_in_its_order(journal: Journal, schema: Schema) -> None:
    """Each security event once, and nothing else; parts make up the whole."""
    size = await append(journal, random_events(Random(11), 600))
    events = [each async for each in journal.read()]
    wanted = [each.offset for each in events if isinstance(each.event, tuple(KINDS))]
    lines = await lines_of("security", journal)
    assert [line["metadata"]["sequence"] for line in lines] == wanted
    for line in lines:
        schema.check(line)
    third = str(size // 3)
    parts = await lines_of("security", journal, None, third)
    parts += await lines_of("security", journal, third)
    assert list(map(unsized, parts)) == list(map(unsized, lines))


def unsized(line: dict[str, Any]) -> dict[str, Any]:
    """Leave out which size the report is as of, and names that somebody got only later."""
    unmapped = {n: v for n, v in line["unmapped"].items() if n != "journal_size"}
    user = {n: v for n, v in line.get("user", {}).items() if n != "name"}
    return line | {"unmapped": unmapped, "user": user, "actor": None, "updated_user": None}


async def test_names_are_looked_up_again_when_forgotten(
    sqlite_journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is bounded: what was asked for longest ago is dropped."""
    monkeypatch.setattr(ocsf, "NAMES_KEPT_MAX", 2)
    users = [an_id(f"user {number}") for number in range(5)]
    events: list[Event] = [UserRegistered(user_id=each, username=str(each)) for each in users]
    events += [LoginSucceeded(user_id=each) for each in (*users, *users)]
    await append(sqlite_journal, events)
    lines = await lines_of("security", sqlite_journal, "5")
    assert [line["user"]["name"] for line in lines] == list(map(str, (*users, *users)))


async def test_chunks_leave_no_gap(
    sqlite_journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event at the edge of what is read at once is there once."""
    monkeypatch.setattr("projections.reports.span.CHUNK_SIZE", 3)
    assert CHUNK_SIZE > 3
    await append(sqlite_journal, [LoginSucceeded(user_id=ANN) for _ in range(10)])
    lines = await lines_of("security", sqlite_journal)
    assert [line["metadata"]["sequence"] for line in lines] == list(range(10))


def test_times_before_1970_are_negative() -> None:
    """Milliseconds are cut to the one that has begun."""
    assert ocsf._milliseconds(datetime(1970, 1, 1, tzinfo=UTC) - timedelta(microseconds=1)) == -1
