"""Deciding for API keys: issuing, rotating, revoking, and whether a use is refused."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
import pytest

from ledger.domain.api_keys import (
    KEY,
    RATE_WINDOW,
    ApiKeyIssued,
    ApiKeyRefused,
    ApiKeyRevoked,
    ApiKeyRotated,
    ApiKeyUsed,
    IssueKey,
    Key,
    KeyReason,
    RevokeKey,
    RotateKey,
    api_key_stream,
    api_key_use_stream,
    decide,
    evolve,
)
from ledger.errors import CommandRefused, InvalidCommand
from ledger.event import Event

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TICK = timedelta(microseconds=1)
HOUR = timedelta(hours=1)
ID, OTHER, OWNER = UUID(int=1), UUID(int=2), UUID(int=3)
HASH = "5e" * 32
ISSUED = ApiKeyIssued(
    key_id=ID,
    user_id=OWNER,
    name="bot",
    key_hash=HASH,
    permissions=("trade",),
    rate_limit=100,
    expires_at=NOW + HOUR,
)
REVOKED = ApiKeyRevoked(key_id=ID)


def after(*events: Event) -> Key:
    """Return the key after these events."""
    key = KEY.initial
    for event in events:
        key = evolve(key, event)
    return key


def rotated(expires_at: datetime) -> ApiKeyRotated:
    """Return a rotation whose overlap ends at this time."""
    return ApiKeyRotated(key_id=ID, successor_key_id=OTHER, expires_at=expires_at)


def rotate(**fields: Any) -> RotateKey:
    """Return the command to rotate the key."""
    given: dict[str, Any] = {"key_id": ID, "now": NOW, "successor_key_id": OTHER, "key_hash": "new"}
    return RotateKey(**(given | fields))


def issue(**fields: Any) -> IssueKey:
    """Return the command to issue the key."""
    given = {name: getattr(ISSUED, name) for name in ISSUED.__struct_fields__}
    return IssueKey(**({"now": NOW} | given | fields))


def test_events_name_their_streams() -> None:
    """A key has a stream for its life and one for its uses; refusals have others."""
    assert ISSUED.stream() == REVOKED.stream() == api_key_stream(ID) == f"apikey-{ID}"
    used = ApiKeyUsed(key_id=ID, action="GET")
    assert used.stream() == api_key_use_stream(ID) == f"apikey-use-{ID}"
    assert ApiKeyRefused(reason="expired", key_id=ID).stream() == f"apikey-refused-{ID}"
    digests = {
        ApiKeyRefused(reason="unknown", presented=presented, source=source).stream()
        for presented, source in ((None, None), ("a", None), ("a", "b"), (None, "b"), ("b", "c"))
    }
    assert len(digests) == 3
    prefix = "apikey-refused-"
    assert {len(digest) for digest in digests} == {len(prefix) + 32}
    assert f"{prefix}e3b0c44298fc1c149afbf4c8996fb924" in digests  # SHA-256 of nothing


def test_issuing() -> None:
    """A new id gets a key with everything given; an id that is taken is refused, dead or not."""
    assert decide(issue(), Key()) == (ISSUED,)
    assert after(ISSUED) == Key(ISSUED, NOW + HOUR)
    for state, key in (("active", after(ISSUED)), ("revoked", after(ISSUED, REVOKED))):
        with pytest.raises(CommandRefused, match=": a key with this id exists") as refused:
            decide(issue(), key)
        assert (refused.value.state, refused.value.subject) == (state, api_key_stream(ID))
    again = msgspec.structs.replace(ISSUED, name="other")
    assert after(ISSUED, again) == after(ISSUED)
    assert after(REVOKED) == after(rotated(NOW)) == Key()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: issue(name=""), "IssueKey.name: must not be empty"),
        (lambda: issue(permissions=("a", "a")), "IssueKey.permissions: ('a', 'a') names something"),
        (
            lambda: issue(rate_limit=0),
            "IssueKey.rate_limit: must be 1 to 1,000,000 a minute, not ",
        ),
        (lambda: issue(rate_limit=1_000_001), "IssueKey.rate_limit: must be 1 to 1,000,000"),
        (
            lambda: rotate(overlap=-TICK),
            "RotateKey.overlap: must not be negative, as -1 day, 23:59:59.999999 is",
        ),
        (
            lambda: rotate(successor_key_id=ID),
            "RotateKey.successor_key_id: must be that of an",
        ),
    ],
)
def test_what_no_key_can_have_is_invalid(make: Callable[[], object], message: str) -> None:
    """The error names command, field and what is wrong with the value."""
    with pytest.raises(InvalidCommand) as wrong:
        make()
    assert str(wrong.value).startswith(message)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (issue(expires_at=NOW), "IssueKey.expires_at: 2026-01-01 00:00:00+00:00 is past"),
        *(
            (
                rotate(overlap=overlap),
                f"RotateKey.overlap: {overlap} from now is beyond the calendar",
            )
            for overlap in (timedelta(days=2_912_500), timedelta.max)
        ),
        (
            rotate(successor_expires_at=NOW),
            "RotateKey.successor_expires_at: 2026-01-01 00:00:00+00:00 is past",
        ),
    ],
)
def test_what_is_wrong_at_its_time_is_decided(command: IssueKey | RotateKey, message: str) -> None:
    """Whatever the state: a repeated command has to be found, though it comes too late."""
    for key in (after(), after(ISSUED)):
        with pytest.raises(InvalidCommand) as wrong:
            decide(command, key)
        assert str(wrong.value).startswith(message)


def test_bounds_are_inclusive() -> None:
    """The smallest and largest values that a key can have, and none."""
    for limit in (1, 1_000_000, None):
        decide(issue(rate_limit=limit, expires_at=NOW + TICK), after())
    decide(issue(expires_at=None), after())
    decide(rotate(successor_expires_at=NOW + TICK), after(ISSUED))
    assert rotate(successor_expires_at=NOW + TICK).overlap == timedelta(0)
    long = timedelta(days=366 * 2500)
    assert rotate(overlap=long).overlap == long
    assert timedelta(seconds=60) == RATE_WINDOW


def test_rotating() -> None:
    """The old key lives on for the overlap, and no longer than it would have; rights pass on."""
    successor = msgspec.structs.replace(ISSUED, key_id=OTHER, key_hash="new")
    assert decide(rotate(overlap=HOUR / 2), after(ISSUED)) == (rotated(NOW + HOUR / 2), successor)
    assert decide(rotate(overlap=2 * HOUR), after(ISSUED)) == (rotated(NOW + HOUR), successor)
    assert decide(rotate(), after(ISSUED))[0] == rotated(NOW)
    [_, longer] = decide(rotate(successor_expires_at=NOW + 2 * HOUR), after(ISSUED))
    assert longer == msgspec.structs.replace(successor, expires_at=NOW + 2 * HOUR)
    endless = msgspec.structs.replace(ISSUED, expires_at=None)
    assert decide(rotate(overlap=HOUR), after(endless)) == (
        rotated(NOW + HOUR),
        msgspec.structs.replace(successor, expires_at=None),
    )
    assert after(ISSUED, rotated(NOW + 2 * HOUR)).expires_at == NOW + HOUR
    assert after(endless, rotated(NOW + HOUR)) == Key(endless, NOW + HOUR, is_rotated=True)
    with pytest.raises(CommandRefused, match="in state rotated: another key has taken its place"):
        decide(rotate(), after(ISSUED, rotated(NOW + TICK)))


def test_revoking() -> None:
    """A key can be revoked, also one that lives on after a rotation, or has expired."""
    for key in (after(ISSUED), after(ISSUED, rotated(NOW + TICK)), after(ISSUED, rotated(NOW))):
        [event] = decide(RevokeKey(key_id=ID, now=NOW, reason="lost"), key)
        assert event == ApiKeyRevoked(key_id=ID, reason="lost")
        assert evolve(key, event).is_revoked


@pytest.mark.parametrize(
    ("command", "key", "state"),
    [
        *(
            (command, key, state)
            for command in (rotate(), RevokeKey(key_id=ID, now=NOW))
            for key, state in (
                (Key(), "unknown"),
                (after(ISSUED, REVOKED), "revoked"),
                (after(ISSUED, rotated(NOW), REVOKED), "revoked"),
            )
        ),
        (rotate(), after(ISSUED, rotated(NOW)), "expired"),
    ],
)
def test_nothing_is_done_to_dead_keys(command: RotateKey | RevokeKey, key: Key, state: str) -> None:
    """A key that is unknown or revoked stays as it is, and an expired one is not rotated."""
    with pytest.raises(
        CommandRefused, match=r": there is no such key any more, or yet$"
    ) as refused:
        decide(command, key)
    assert (refused.value.state, refused.value.subject) == (state, api_key_stream(ID))


def test_a_use_is_allowed() -> None:
    """With the secret, in time, and with the permission that is asked for, if any is."""
    key = after(ISSUED)
    assert key.refusal(HASH, "trade", NOW) is None
    assert key.refusal(HASH, None, NOW + HOUR - TICK) is None
    assert after(ISSUED, rotated(NOW + TICK)).refusal(HASH, None, NOW) is None


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        (Key(), KeyReason.UNKNOWN),
        (after(msgspec.structs.replace(ISSUED, key_hash=None)), KeyReason.UNKNOWN),
        (after(msgspec.structs.replace(ISSUED, key_hash="h\u00e4sh")), KeyReason.UNKNOWN),
        (after(ISSUED, REVOKED), KeyReason.REVOKED),
        (after(ISSUED, rotated(NOW)), KeyReason.EXPIRED),
        (after(ISSUED, rotated(NOW), REVOKED), KeyReason.REVOKED),
        (after(ISSUED), KeyReason.NOT_PERMITTED),
    ],
)
def test_a_use_is_refused(key: Key, reason: KeyReason) -> None:
    """The reason is told to who knows the secret; to all others the key is unknown."""
    assert key.refusal(HASH, "withdraw", NOW) == reason
    assert key.refusal("00" * 32, "withdraw", NOW) == KeyReason.UNKNOWN


def test_a_key_expires_to_the_microsecond() -> None:
    """At its time the key is dead."""
    key = after(ISSUED)
    assert (key.standing(NOW + HOUR - TICK), key.standing(NOW + HOUR)) == ("active", "expired")
    assert key.refusal(HASH, None, NOW + HOUR) == KeyReason.EXPIRED
    assert after(ISSUED, rotated(NOW + HOUR)).standing(NOW) == "rotated"


def test_other_events_change_nothing() -> None:
    """Uses and refusals are no part of a key's life."""
    assert evolve(after(ISSUED), ApiKeyUsed(key_id=ID, action="GET")) == after(ISSUED)


def test_what_is_not_given_is_none() -> None:
    """Every field that may be left out is then None or empty, but a refusal counts as one."""
    made = [
        ApiKeyIssued(key_id=ID, user_id=OWNER, name="bot"),
        REVOKED,
        ApiKeyUsed(key_id=ID, action="GET"),
        ApiKeyRefused(reason="unknown"),
        IssueKey(key_id=ID, now=NOW, user_id=OWNER, name="bot", key_hash=HASH),
        RevokeKey(key_id=ID, now=NOW),
        Key(),
    ]
    for each in made:
        optional = [field.name for field in msgspec.structs.fields(each) if not field.required]
        values = [getattr(each, name) for name in optional if name != "count"]
        assert all(value in (None, ()) or value is False for value in values)
    assert ApiKeyRefused(reason="unknown").count == 1


def test_times_need_a_zone() -> None:
    """A command with a time that could mean anything is invalid."""
    for make in (issue, rotate):
        with pytest.raises(InvalidCommand, match="has no time zone"):
            make(now=NOW.replace(tzinfo=None))


def test_the_words_for_reasons_are_for_ever() -> None:
    """They are stored in events."""
    assert {reason.value for reason in KeyReason} == {
        "unknown",
        "malformed",
        "expired",
        "revoked",
        "rate_limited",
        "not_permitted",
        "user_inactive",
    }
