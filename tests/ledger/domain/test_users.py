"""Deciding for users and logins: what is accepted, what is refused, and when an account is shut."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.domain.users import (
    BURIED_MAX,
    USER,
    AccountLocked,
    AccountUnlocked,
    Attempt,
    Change,
    ChangeEmail,
    ChangePassword,
    ChangePermissions,
    ChangeRoles,
    ClaimLogin,
    Deactivate,
    EmailChanged,
    FinishLogin,
    Guesses,
    HoldUser,
    LegalHoldPlaced,
    Lock,
    LoginAttempted,
    LoginFailed,
    LoginReason,
    LoginRules,
    LoginSucceeded,
    PasswordChanged,
    PermissionsChanged,
    Reactivate,
    RegisterUser,
    RolesChanged,
    Unlock,
    User,
    UserDeactivated,
    UserErased,
    UserReactivated,
    UserRegistered,
    decide,
    email_tag,
    evolve,
    login_stream,
    masked,
    name_digest,
    user_stream,
    username_tag,
)
from ledger.errors import CommandRefused, InvalidCommand
from ledger.event import Event, Metadata, RecordedEvent

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ID = UUID(int=1)
RULES = LoginRules(3, timedelta(seconds=60), timedelta(seconds=10))
REGISTERED = UserRegistered(
    user_id=ID,
    username="ann",
    email="ann@example.org",
    password_hash="hash",
    permissions=("trade",),
    roles=("admin",),
)
TICK = timedelta(microseconds=1)


def after(*events: Event, at: datetime = NOW) -> User:
    """Return the user after these events, all at one time."""
    user = USER.initial
    for event in events:
        user = evolve(user, event, at)
    return user


def attempt(number: int) -> UUID:
    """Return the id of an attempt."""
    return UUID(int=1000 + number)


def claimed(number: int, at: datetime = NOW) -> LoginAttempted:
    """Return a claimed attempt."""
    return LoginAttempted(user_id=ID, attempt_id=attempt(number), expires_at=at + RULES.attempt)


def failed(number: int, reason: LoginReason = LoginReason.WRONG_PASSWORD) -> LoginFailed:
    """Return the failure of an attempt."""
    return LoginFailed(username="ann", user_id=ID, reason=reason.value, attempt_id=attempt(number))


def claim(user: User, number: int = 0, at: datetime = NOW, **fields: Any) -> Sequence[Event]:
    """Decide to claim an attempt."""
    own: dict[str, Any] = {"username": "ann", "user_id": ID, "rules": RULES} | fields
    return decide(ClaimLogin(attempt_id=attempt(number), now=at, **own), user)


def finish(
    user: User, number: int = 0, at: datetime = NOW, *, matches: bool = False, **fields: Any
) -> Sequence[Event]:
    """Decide how an attempt ends."""
    own: dict[str, Any] = {"username": "ann", "user_id": ID, "rules": RULES}
    own |= {"password_changes": 0} | fields
    return decide(FinishLogin(attempt_id=attempt(number), now=at, matches=matches, **own), user)


def test_names_are_the_same_however_written() -> None:
    """Case, outer space and accents make no other name; a stream is named by the digest."""
    assert name_digest(" Ann ") == name_digest("aNN")
    assert name_digest("Ren\u00e9") == name_digest("rene\u0301") != name_digest("rene")
    assert name_digest("\ufb01\uff11") == name_digest("FI1")
    assert len({name_digest(name) for name in ("\ud800", "\ud801", "")}) == 3
    assert len(name_digest("ann")) == 32
    assert username_tag("Ann") == f"username:{name_digest('ann')}"
    assert email_tag("Ann") == f"email:{name_digest('ann')}"
    assert login_stream(None, "Ann") == f"login-{name_digest('ann')}"
    assert login_stream(None, None) == f"login-{name_digest('')}"
    assert login_stream(None, "Ann", "digest") == "login-digest"
    assert login_stream(ID, "Ann", "digest") == user_stream(ID) == f"user-{ID}"


def test_a_digest_with_a_key_confirms_no_guess() -> None:
    """It is HMAC-SHA256, the same for every way to write a name, and another for another key."""
    expected = hmac.new(b"key", b"ann", hashlib.sha256).hexdigest()[:32]
    assert name_digest(" Ann ", b"key") == expected
    assert len({name_digest("ann", key) for key in (None, b"key", b"other")}) == 3


def test_a_name_that_nobody_has_is_masked() -> None:
    """It may be a password: the first two characters of a longer one are enough to see that."""
    assert [masked(name) for name in ("", "abcd", "abcde")] == ["…", "…", "ab…"]
    command = ClaimLogin(username="abcde", attempt_id=ID, now=NOW)
    for event in (*decide(command, User()), command.failed(LoginReason.EXPIRED), command.lock()):
        assert (event.username, event.name_digest) == ("ab…", name_digest("abcde"))  # type: ignore[attr-defined]
        assert event.stream() == command.stream == f"login-{name_digest('abcde')}"
    keyed = msgspec.structs.replace(command, name_digest="digest")
    for event in (*decide(keyed, User()), keyed.failed(LoginReason.EXPIRED), keyed.lock()):
        assert event.stream() == keyed.stream == "login-digest"
    known = msgspec.structs.replace(keyed, user_id=ID)
    assert known.failed(LoginReason.LOCKED) == LoginFailed(
        username="abcde", user_id=ID, reason="locked", attempt_id=ID
    )


@pytest.mark.parametrize("reason", [LoginReason.LOCKED, LoginReason.TOO_MANY])
def test_what_is_refused_unchecked_has_a_stream_beside(reason: LoginReason) -> None:
    """A flood of it changes nothing in the stream by which logins are decided."""
    stranger = ClaimLogin(username="x", attempt_id=ID, now=NOW, name_digest="digest")
    known = msgspec.structs.replace(stranger, user_id=ID)
    assert stranger.failed(reason).stream() == "login-refused-digest"
    assert known.failed(reason).stream() == f"login-refused-{ID}"


def test_events_name_their_streams_and_tags() -> None:
    """Events of a login belong to the user, or to the name that nobody has."""
    stranger = f"login-{name_digest('x')}"
    assert LoginAttempted(username="x").stream() == stranger
    assert LoginFailed(username="x").stream() == stranger
    assert AccountLocked(username="x", locked_until=NOW).stream() == stranger
    for event in (claimed(1), failed(1), AccountLocked(user_id=ID, locked_until=NOW), REGISTERED):
        assert event.stream() == user_stream(ID)
    assert list(REGISTERED.claims()) == [username_tag("ann"), email_tag("ann@example.org")]
    assert list(UserRegistered(user_id=ID, username="x").claims()) == [username_tag("x")]
    changed = EmailChanged(user_id=ID, email="b@x", previous_email="a@x")
    assert (list(changed.claims()), list(changed.releases())) == (
        [email_tag("b@x")],
        [email_tag("a@x")],
    )
    assert not [*EmailChanged(user_id=ID).claims(), *EmailChanged(user_id=ID).releases()]


def test_registering() -> None:
    """A new id gets a user with everything given; an id that is taken is refused."""
    command = RegisterUser(
        user_id=ID,
        username="ann",
        email="ann@example.org",
        password_hash="hash",
        permissions=("trade",),
        roles=("admin",),
    )
    assert decide(command, User()) == (REGISTERED,)
    user = after(REGISTERED)
    assert user == User(
        is_known=True,
        is_active=True,
        username_digest=name_digest("ann"),
        email_digest=name_digest("ann@example.org"),
        email="ann@example.org",
        password_hash="hash",
        permissions=("trade",),
        roles=("admin",),
    )
    message = f"user-{ID}: RegisterUser is refused in state active: a user with this id exists"
    with pytest.raises(CommandRefused, match=message):
        decide(command, user)
    again = msgspec.structs.replace(REGISTERED, email=None)
    assert after(REGISTERED, again) == user
    assert after(failed(1), claimed(2), REGISTERED) == user


GOOD: dict[str, Any] = {"user_id": ID, "username": "ann"}
BAD: list[tuple[dict[str, Any], str]] = [
    ({"username": ""}, "RegisterUser.username: must not be empty"),
    ({"username": " ann"}, "RegisterUser.username: begins or ends with space"),
    ({"username": "a" * 256}, "RegisterUser.username: has 256 characters; at most 255 fit"),
    ({"username": "a\0b"}, "RegisterUser.username: has characters that cannot be printed"),
    ({"username": "a@b"}, "RegisterUser.username: has an @; give that as e-mail"),
    ({"email": ""}, "RegisterUser.email: must not be empty"),
    ({"email": "a b@c "}, "RegisterUser.email: begins or ends with space"),
    ({"email": "ann"}, "RegisterUser.email: is not of the form name@host"),
    ({"permissions": ("a", "")}, "RegisterUser.permissions: must not be empty"),
    ({"permissions": ("a", "a")}, "RegisterUser.permissions: ('a', 'a') names something twice"),
    (
        {"roles": tuple(str(n) for n in range(101))},
        "RegisterUser.roles: has 101 names; at most 100 are allowed",
    ),
]


@pytest.mark.parametrize(("fields", "message"), BAD, ids=[message for _, message in BAD])
def test_what_nobody_can_have_is_invalid(fields: dict[str, Any], message: str) -> None:
    """The error names command, field and what is wrong with the value, but no personal value."""
    with pytest.raises(InvalidCommand) as wrong:
        RegisterUser(**(GOOD | fields))
    assert str(wrong.value) == message


@pytest.mark.parametrize("email", ["@host", "ann@", "a@b@c", "a n@b"])
def test_what_is_no_address_is_invalid(email: str) -> None:
    """An e-mail has one @, something before and behind it, and no space."""
    with pytest.raises(
        InvalidCommand, match=r"^RegisterUser\.email: is not of the form name@host$"
    ):
        RegisterUser(**(GOOD | {"email": email}))
    with pytest.raises(
        InvalidCommand, match=r"^RegisterUser\.username: begins or ends with space$"
    ):
        RegisterUser(**(GOOD | {"username": "ann\t"}))


def test_the_longest_values_are_fine() -> None:
    """Bounds are inclusive."""
    names = tuple(str(n) for n in range(100))
    RegisterUser(user_id=ID, username="a" * 255, email="a" * 253 + "@b", permissions=names)
    RegisterUser(user_id=ID, username="Ann Ü", roles=names)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: ChangeEmail(user_id=ID, email="x"), "email"),
        (lambda: ChangePermissions(user_id=ID, permissions=("",)), "permissions"),
        (lambda: ChangeRoles(user_id=ID, roles=("",)), "roles"),
        (lambda: ClaimLogin(username="", attempt_id=ID, now=NOW), "username"),
    ],
)
def test_changes_are_checked_too(make: Any, field: str) -> None:
    """What cannot be registered cannot be changed to either, nor logged in with."""
    with pytest.raises(InvalidCommand) as wrong:
        make()
    assert wrong.value.field == field


CHANGES: list[tuple[Change, Event]] = [
    (
        ChangePassword(user_id=ID, password_hash="new"),
        PasswordChanged(user_id=ID, password_hash="new"),
    ),
    (
        ChangeEmail(user_id=ID, email="b@example.org"),
        EmailChanged(
            user_id=ID,
            email="b@example.org",
            previous_email="ann@example.org",
            previous_email_digest=name_digest("ann@example.org"),
        ),
    ),
    (
        ChangeEmail(user_id=ID, email=None),
        EmailChanged(
            user_id=ID,
            previous_email="ann@example.org",
            previous_email_digest=name_digest("ann@example.org"),
        ),
    ),
    (
        ChangePermissions(user_id=ID, permissions=("b",)),
        PermissionsChanged(user_id=ID, permissions=("b",)),
    ),
    (ChangeRoles(user_id=ID, roles=("b",)), RolesChanged(user_id=ID, roles=("b",))),
    (Deactivate(user_id=ID, reason="why"), UserDeactivated(user_id=ID, reason="why")),
    (
        Lock(user_id=ID, now=NOW, locked_until=NOW + TICK, reason="why"),
        AccountLocked(user_id=ID, locked_until=NOW + TICK, reason="why"),
    ),
    (HoldUser(user_id=ID, reason="case 1"), LegalHoldPlaced(user_id=ID, reason="case 1")),
]


@pytest.mark.parametrize(("command", "event"), CHANGES)
def test_changes(command: Change, event: Event) -> None:
    """Each command has its event, for a user who exists and is not erased."""
    assert decide(command, after(REGISTERED)) == (event,)
    gone = after(REGISTERED, UserErased(user_id=ID, reason="request"))
    for state, user in (("unknown", User()), ("erased", gone)):
        with pytest.raises(CommandRefused, match=": there is no such user") as refused:
            decide(command, user)
        assert (refused.value.state, refused.value.subject) == (state, user_stream(ID))


def test_changes_to_what_is_so_already_have_no_event() -> None:
    """The same e-mail, permissions or roles again are nothing to store."""
    user = after(REGISTERED)
    assert decide(ChangeEmail(user_id=ID, email="ann@example.org"), user) == ()
    assert decide(ChangePermissions(user_id=ID, permissions=("trade",)), user) == ()
    assert decide(ChangeRoles(user_id=ID, roles=("admin",)), user) == ()
    bare = after(UserRegistered(user_id=ID, username="ann"))
    assert decide(ChangeEmail(user_id=ID, email=None), bare) == ()
    [event] = decide(ChangeEmail(user_id=ID, email="a@b"), bare)
    assert event == EmailChanged(user_id=ID, email="a@b")


def test_what_changes_lead_to() -> None:
    """Each event changes its own part; a better hash of the same password is no new password."""
    user = after(
        REGISTERED,
        PasswordChanged(user_id=ID, password_hash="b"),
        PasswordChanged(user_id=ID, password_hash="c", upgraded=True),
        EmailChanged(user_id=ID, email="b@x"),
        PermissionsChanged(user_id=ID, permissions=("p",)),
        RolesChanged(user_id=ID, roles=("r",)),
        UserDeactivated(user_id=ID),
    )
    assert user == User(
        is_known=True,
        is_active=False,
        username_digest=name_digest("ann"),
        email_digest=name_digest("b@x"),
        email="b@x",
        password_hash="c",
        password_changes=1,
        permissions=("p",),
        roles=("r",),
    )
    assert evolve(user, UserReactivated(user_id=ID)).is_active
    gone = evolve(after(REGISTERED), UserErased(user_id=ID, reason="request"))
    assert gone == User(is_known=True, is_erased=True, permissions=("trade",), roles=("admin",))
    assert evolve(gone, PasswordChanged(user_id=ID, password_hash="c")) == gone
    assert not evolve(gone, UserReactivated(user_id=ID)).is_active
    assert not after(UserReactivated(user_id=ID)).is_active
    assert (gone.standing, user.standing, User().standing) == ("erased", "deactivated", "unknown")


def test_nobody_is_deactivated_or_reactivated_twice() -> None:
    """The state that the user is in already is the reason."""
    active, inactive = after(REGISTERED), after(REGISTERED, UserDeactivated(user_id=ID))
    with pytest.raises(CommandRefused, match="in state active: the user is active already"):
        decide(Reactivate(user_id=ID), active)
    with pytest.raises(CommandRefused, match="deactivated: the user is deactivated already"):
        decide(Deactivate(user_id=ID), inactive)
    assert decide(Reactivate(user_id=ID, reason="why"), inactive) == (
        UserReactivated(user_id=ID, reason="why"),
    )


def test_locking_by_hand() -> None:
    """A lock lies in the future and can only be made longer; only what is locked is unlocked."""
    user = after(REGISTERED)
    with pytest.raises(InvalidCommand, match=r"Lock\.locked_until: 2026-01-01.*\d is past$"):
        decide(Lock(user_id=ID, now=NOW, locked_until=NOW), user)
    with pytest.raises(CommandRefused, match="in state open: the account is not locked"):
        decide(Unlock(user_id=ID, now=NOW), user)
    until = NOW + timedelta(minutes=1)
    locked = after(REGISTERED, AccountLocked(user_id=ID, locked_until=until))
    message = r"in state locked: it is locked until 2026-01-01 00:01:00\+00:00 already$"
    with pytest.raises(CommandRefused, match=message):
        decide(Lock(user_id=ID, now=NOW, locked_until=until), locked)
    [event] = decide(Lock(user_id=ID, now=NOW, locked_until=until + TICK), locked)
    assert event == AccountLocked(user_id=ID, locked_until=until + TICK)
    [event] = decide(Unlock(user_id=ID, now=until - TICK, reason="why"), locked)
    assert event == AccountUnlocked(user_id=ID, reason="why")
    with pytest.raises(CommandRefused):
        decide(Unlock(user_id=ID, now=until), locked)
    assert evolve(locked, event).guesses == Guesses()


def test_an_attempt_is_claimed() -> None:
    """The claim says until when it holds; that of a stranger names the name instead of an id."""
    [event] = claim(after(REGISTERED), 1, source="gateway")
    assert event == LoginAttempted(
        user_id=ID, attempt_id=attempt(1), expires_at=NOW + RULES.attempt, source="gateway"
    )
    assert evolve(after(REGISTERED), event).attempts == (Attempt(attempt(1), NOW + RULES.attempt),)
    [event] = claim(User(), 1, user_id=None)
    assert event == LoginAttempted(
        username="…",
        attempt_id=attempt(1),
        expires_at=NOW + RULES.attempt,
        name_digest=name_digest("ann"),
    )
    assert after(LoginAttempted(user_id=ID)).attempts == ()
    assert after(LoginAttempted(user_id=ID, attempt_id=ID)).attempts == ()
    assert after(LoginAttempted(user_id=ID, expires_at=NOW)).attempts == ()


def test_attempts_and_failures_together_are_bounded() -> None:
    """Beyond the limit nothing is looked at, while attempts are under way that may fail."""
    running = after(REGISTERED, claimed(1), failed(1), claimed(2), claimed(3))
    assert running.guesses.failures == 1
    assert claim(running, 4) == (failed(4, LoginReason.TOO_MANY),)
    ended = evolve(running, LoginSucceeded(user_id=ID, attempt_id=attempt(2)), NOW)
    assert [each.attempt_id for each in ended.attempts] == [attempt(3)]
    assert isinstance(claim(ended, 4)[0], LoginAttempted)


def test_a_login_succeeds() -> None:
    """The failures before are forgotten, other attempts go on."""
    user = after(REGISTERED, claimed(1), failed(1), claimed(2), claimed(3))
    [event] = finish(user, 2, matches=True, source="gateway")
    assert event == LoginSucceeded(user_id=ID, attempt_id=attempt(2), source="gateway")
    user = evolve(user, event, NOW)
    assert (user.guesses, len(user.attempts)) == (Guesses(), 1)


def test_an_outdated_hash_is_replaced() -> None:
    """The new hash is stored with the success; another login checked with the old one is fine."""
    user = after(REGISTERED, claimed(1), claimed(2))
    events = finish(user, 1, matches=True, new_hash="better")
    assert events == [
        PasswordChanged(user_id=ID, password_hash="better", upgraded=True),
        LoginSucceeded(user_id=ID, attempt_id=attempt(1)),
    ]
    for event in events:
        user = evolve(user, event, NOW)
    assert user.password_hash == "better"
    assert isinstance(finish(user, 2, matches=True)[0], LoginSucceeded)


def test_the_failure_that_reaches_the_limit_locks() -> None:
    """The lock comes with the last failure, and begins at that moment."""
    user = after(REGISTERED, claimed(1), failed(1), claimed(2))
    assert finish(user, 2) == [failed(2)]
    user = after(REGISTERED, claimed(1), failed(1), claimed(2), failed(2), claimed(3))
    events = finish(user, 3, source="gateway")
    locked = AccountLocked(user_id=ID, locked_until=NOW + RULES.lockout, reason="3 failed logins")
    assert events == [msgspec.structs.replace(failed(3), source="gateway"), locked]
    for event in events:
        user = evolve(user, event, NOW)
    assert user.guesses == Guesses(3, NOW + RULES.lockout)
    assert user.attempts == ()


def test_a_lock_is_right_to_the_microsecond() -> None:
    """Until the last moment nothing is looked at; from then on the count is a fresh one."""
    until = NOW + RULES.lockout
    user = after(
        REGISTERED, failed(1), failed(2), failed(3), AccountLocked(user_id=ID, locked_until=until)
    )
    assert claim(user, 4, until - TICK) == (failed(4, LoginReason.LOCKED),)
    [event] = claim(user, 4, until)
    assert isinstance(event, LoginAttempted)
    user = evolve(user, event, until)
    events = finish(user, 4, until)
    assert events == [failed(4)]
    assert evolve(user, events[0], until).guesses == Guesses(1)
    assert user.guesses.is_locked(until - TICK)
    assert not user.guesses.is_locked(until)
    assert (user.guesses.counted(until - TICK), user.guesses.counted(until)) == (3, 0)


def test_an_abandoned_attempt_counts_as_a_failed_one() -> None:
    """Whoever comes next stores the failures of attempts that nobody finished in time."""
    user = after(REGISTERED, failed(1), claimed(2), claimed(3, NOW + TICK))
    late = NOW + RULES.attempt
    assert claim(user, 4, late - TICK) == (failed(4, LoginReason.TOO_MANY),)
    assert claim(user, 4, late, source="gateway") == (
        failed(2, LoginReason.ABANDONED),
        msgspec.structs.replace(failed(4, LoginReason.TOO_MANY), source="gateway"),
    )
    at = late + TICK
    assert claim(user, 4, at) == (
        failed(2, LoginReason.ABANDONED),
        failed(3, LoginReason.ABANDONED),
        AccountLocked(user_id=ID, locked_until=at + RULES.lockout, reason="3 failed logins"),
        failed(4, LoginReason.LOCKED),
    )
    assert finish(user, 3, late, matches=True) == [
        failed(2, LoginReason.ABANDONED),
        LoginSucceeded(user_id=ID, attempt_id=attempt(3)),
    ]


def test_very_many_abandoned_attempts_are_buried_in_parts() -> None:
    """Each command stores as many failures as an append can take, the next ones the others."""
    user = after(REGISTERED, *(claimed(number) for number in range(2 * BURIED_MAX + 1)))
    rules = LoginRules(1000, RULES.lockout, RULES.attempt)
    sizes = []
    for _ in range(3):
        events = claim(user, 999, NOW + RULES.attempt, rules=rules)
        sizes.append(len(events))
        for event in events:
            user = evolve(user, event, NOW + RULES.attempt)
    assert sizes == [BURIED_MAX + 1, BURIED_MAX + 1, 2]
    assert (user.guesses.failures, len(user.attempts)) == (2 * BURIED_MAX + 1, 3)


def test_abandoned_attempts_make_room() -> None:
    """Once its failure is stored, an attempt is not under way any more."""
    user = after(REGISTERED, claimed(1), claimed(2, NOW + TICK))
    [buried, event] = claim(user, 3, NOW + RULES.attempt)
    assert buried == failed(1, LoginReason.ABANDONED)
    assert isinstance(event, LoginAttempted)


def test_an_attempt_that_took_too_long_fails() -> None:
    """The right password does not help then; when that was counted, it is only recorded."""
    user = after(REGISTERED, claimed(1))
    late = NOW + RULES.attempt
    assert isinstance(finish(user, 1, late - TICK, matches=True)[0], LoginSucceeded)
    events = finish(user, 1, late, matches=True)
    assert events == [failed(1, LoginReason.ABANDONED)]
    user = evolve(user, events[0], late)
    assert (user.attempts, user.guesses.failures) == ((), 1)
    assert finish(user, 1, late, matches=True) == (failed(1, LoginReason.EXPIRED),)


def test_the_last_abandoned_attempt_locks() -> None:
    """A lock also comes with the failure of an attempt that took too long."""
    user = after(REGISTERED, failed(1), failed(2), claimed(3))
    late = NOW + RULES.attempt
    events = finish(user, 3, late)
    assert [type(event) for event in events] == [LoginFailed, AccountLocked]


def test_a_lock_meanwhile_refuses_the_right_password() -> None:
    """Whoever was being checked when the account was locked stays outside."""
    locked = AccountLocked(user_id=ID, locked_until=NOW + RULES.lockout)
    user = after(REGISTERED, claimed(1), locked)
    assert finish(user, 1, matches=True) == (failed(1, LoginReason.LOCKED),)
    open_again = NOW + RULES.lockout
    assert finish(user, 1, open_again, matches=True) == (failed(1, LoginReason.EXPIRED),)


def test_a_deactivated_user_cannot_log_in() -> None:
    """Only the right password tells, which does not count; all else is as for everybody."""
    inactive = after(REGISTERED, claimed(1), UserDeactivated(user_id=ID))
    assert claim(inactive, 2) == (claimed(2),)
    assert finish(inactive, 1, matches=True) == [failed(1, LoginReason.INACTIVE)]
    assert finish(inactive, 1) == [failed(1)]
    changed = evolve(inactive, PasswordChanged(user_id=ID, password_hash="new"))
    assert finish(changed, 1, matches=True) == [failed(1, LoginReason.PASSWORD_CHANGED)]
    assert after(REGISTERED, failed(1, LoginReason.INACTIVE)).guesses == Guesses()


def test_a_new_password_meanwhile_refuses_the_old_one() -> None:
    """A login that was checked with the old password is a failed one."""
    changed = PasswordChanged(user_id=ID, password_hash="new")
    user = after(REGISTERED, claimed(1), changed)
    assert finish(user, 1, matches=True) == [failed(1, LoginReason.PASSWORD_CHANGED)]
    assert isinstance(finish(user, 1, matches=True, password_changes=1)[0], LoginSucceeded)


def test_a_stranger_goes_the_same_way() -> None:
    """Claims, failures and the lock are the same, named by the name; nobody can succeed."""
    stranger: dict[str, Any] = {"user_id": None}
    user, events = User(), list[Event]()
    for number in (1, 2, 3):
        [event] = claim(user, number, **stranger)
        user = evolve(user, event, NOW)
        events = list(finish(user, number, matches=True, **stranger))
        for event in events:
            user = evolve(user, event, NOW)
    assert events[0] == LoginFailed(
        username="…",
        reason=LoginReason.WRONG_PASSWORD,
        attempt_id=attempt(3),
        name_digest=name_digest("ann"),
    )
    assert events[1:] == [
        AccountLocked(
            locked_until=NOW + RULES.lockout,
            reason="3 failed logins",
            username="…",
            name_digest=name_digest("ann"),
        )
    ]
    [event] = claim(user, 4, **stranger)
    assert isinstance(event, LoginFailed)
    assert event.reason == LoginReason.LOCKED


@pytest.mark.parametrize("reason", [None, "bad password", "wrong_password", "abandoned"])
def test_failures_of_other_systems_count(reason: str | None) -> None:
    """Without a reason, or with one in other words, a failure counts."""
    event = LoginFailed(username="ann", user_id=ID, reason=reason)
    assert event.counts
    assert after(REGISTERED, event, event).guesses.failures == 2


@pytest.mark.parametrize("reason", ["locked", "inactive", "too_many_attempts", "expired"])
def test_failures_without_a_check_do_not_count(reason: str) -> None:
    """They end the attempt and change nothing else."""
    event = LoginFailed(username="ann", user_id=ID, reason=reason, attempt_id=attempt(1))
    assert not event.counts
    assert after(REGISTERED, claimed(1), event) == after(REGISTERED)


def test_what_other_systems_record_during_a_lock() -> None:
    """A lock stands whatever others report in it; what they report after it begins a new count."""
    until = NOW + RULES.lockout
    locked = Guesses(3, until)
    raw = LoginFailed(username="ann", user_id=ID)
    success = LoginSucceeded(user_id=ID)
    assert locked.after(raw, until - TICK) == locked
    assert locked.after(raw, until) == Guesses(1)
    assert locked.after(success, until - TICK) == Guesses(0, until)
    assert locked.after(success, until) == Guesses()
    assert locked.after(LoginSucceeded(user_id=ID, attempt_id=ID), NOW) == Guesses()
    assert locked.after(claimed(1), NOW) == locked
    assert evolve(after(REGISTERED), raw).guesses == Guesses(1)
    user = after(REGISTERED, AccountLocked(user_id=ID, locked_until=until))
    assert evolve(user, raw).guesses == Guesses(0, until)


def test_the_decider_weighs_events_by_when_they_happened() -> None:
    """What is loaded from a journal goes by the time at which each event happened."""
    until = NOW + timedelta(seconds=60)
    locked = AccountLocked(user_id=ID, locked_until=until)
    for at, expected in ((until - TICK, Guesses(0, until)), (until, Guesses(1))):
        user = USER.take(USER.take(after(REGISTERED), recorded(locked, NOW)), recorded(RAW, at))
        assert user.guesses == expected


def test_a_clock_that_is_ahead_lifts_no_lock() -> None:
    """What is said to have happened after it was recorded is weighed as of its recording."""
    until = NOW + timedelta(seconds=60)
    locked = USER.take(
        after(REGISTERED), recorded(AccountLocked(user_id=ID, locked_until=until), NOW)
    )
    for event, failures in ((RAW, 0), (LoginSucceeded(user_id=ID), 0)):
        early = recorded(event, until + TICK, timedelta(seconds=-1))
        assert USER.take(locked, early).guesses == Guesses(failures, until)


RAW = LoginFailed(username="ann", user_id=ID)


def recorded(event: Event, at: datetime, delay: timedelta = timedelta(days=1)) -> RecordedEvent:
    """Return the event as a journal holds it that recorded it so much later."""
    return RecordedEvent(0, "s", 1, ID, 1, at + delay, at, Metadata(), b"", event)


NUMBERS = ("password_changes", "failures", "sessions_void_offset")


def test_what_is_not_given_is_none() -> None:
    """Every field that may be left out is then None or empty, in events, commands and states."""
    made = [
        UserRegistered(user_id=ID, username="ann"),
        LoginAttempted(),
        LoginSucceeded(user_id=ID),
        LoginFailed(username="ann"),
        AccountLocked(locked_until=NOW),
        AccountUnlocked(user_id=ID),
        UserDeactivated(user_id=ID),
        UserReactivated(user_id=ID),
        RegisterUser(user_id=ID, username="ann"),
        Deactivate(user_id=ID),
        Reactivate(user_id=ID),
        Lock(user_id=ID, now=NOW, locked_until=NOW),
        Unlock(user_id=ID, now=NOW),
        User(),
        Guesses(),
    ]
    for each in made:
        optional = [field.name for field in msgspec.structs.fields(each) if not field.required]
        values = [getattr(each, name) for name in optional if name not in NUMBERS]
        assert all(value in (None, (), Guesses()) or value is False for value in values)
        assert None in values
    assert (User().password_changes, Guesses().failures) == (0, 0)
    assert User().sessions_void_offset == -1


def test_times_need_a_zone() -> None:
    """A command with a time that could mean anything is invalid."""
    with pytest.raises(InvalidCommand, match="has no time zone"):
        ClaimLogin(username="ann", attempt_id=ID, now=NOW.replace(tzinfo=None))


def test_a_login_goes_to_the_stream_of_the_user_or_the_name() -> None:
    """Commands name the stream that their events will be in."""
    command = ClaimLogin(username="ann", attempt_id=ID, now=NOW)
    assert command.stream == login_stream(None, "ann")
    assert msgspec.structs.replace(command, user_id=ID).stream == user_stream(ID)
    assert {reason.value for reason in LoginReason} == {
        "wrong_password",
        "password_changed",
        "abandoned",
        "locked",
        "inactive",
        "too_many_attempts",
        "expired",
    }


def test_the_default_rules() -> None:
    """Five failures, a quarter of an hour, half a minute for a check."""
    assert LoginRules() == LoginRules(5, timedelta(seconds=900), timedelta(seconds=30))


STEPS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 25), st.booleans()), max_size=60)


@given(STEPS, st.booleans())
def test_never_more_checks_than_the_limit(steps: list[tuple[int, int, bool]], known: bool) -> None:
    """Whatever comes when, between two successes and locks at most so many passwords are checked.

    Steps claim an attempt, finish one of those that were claimed, or only let time pass.
    """
    user, now, checks = after(REGISTERED) if known else User(), NOW, 0
    who: dict[str, Any] = {} if known else {"user_id": None}
    claims: list[int] = []
    for number, (kind, seconds, matches) in enumerate(steps):
        now += timedelta(seconds=seconds)
        if kind < 5:
            events = claim(user, number, now, **who)
            claims += [number] if isinstance(events[-1], LoginAttempted) else []
        elif claims:
            events = finish(user, claims.pop(kind % len(claims)), now, matches=matches, **who)
        else:
            continue
        for event in events:
            if isinstance(event, LoginSucceeded):
                assert known
                assert not user.guesses.is_locked(now)
            checks = _checks_after(checks, event)
            assert checks <= RULES.failures_max
            user = evolve(user, event, now)
        assert user.guesses.counted(now) < RULES.failures_max or user.guesses.is_locked(now)
        assert user.guesses.counted(now) + len(user.attempts) <= RULES.failures_max


def _checks_after(checks: int, event: Event) -> int:
    """Count by events alone: failures that count, since the last success or lock."""
    if isinstance(event, LoginSucceeded | AccountLocked):
        return 0
    return checks + (isinstance(event, LoginFailed) and event.counts)
