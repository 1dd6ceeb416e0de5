"""The users' table: it counts failures as the decider does, and says who may do what."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from ledger.domain.users import (
    USER,
    AccountLocked,
    EmailChanged,
    LoginFailed,
    LoginSucceeded,
    PasswordChanged,
    RolesChanged,
    UserDeactivated,
    UserErased,
    UserReactivated,
    UserRegistered,
    user_stream,
)
from ledger.event import RecordedEvent, personal_fields
from projections.groups import TRADING
from projections.users import User
from tests.projections.random_events import Dice
from tests.projections.support import START, an_id, folded, one_row, record

USER_ID = an_id("user")
REGISTERED = UserRegistered(user_id=USER_ID, username="ann", permissions=("trade",))
FAILED = LoginFailed(user_id=USER_ID, username="ann")


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 150))
def test_the_table_agrees_with_the_decider(seed: int, count: int) -> None:
    """Whatever was recorded, by whomever, decider and read model have the same idea of a user."""
    dice = Dice(Random(seed), 0.03)
    events = record(dice.user_event() for _ in range(count))
    for row in folded(each.event for each in events).rows(User):
        state = USER.initial
        for each in events:
            if each.stream == user_stream(row.user_id):
                state = USER.take(state, each)
        shown = (row.failed_login_attempts, row.locked_until)
        assert shown == (state.guesses.failures, state.guesses.locked_until)
        assert row.is_erased == state.is_erased
        if state.is_erased:
            assert (row.username, row.email, row.password_hash) == (None, None, None)
            continue
        assert (tuple(row.permissions), tuple(row.roles)) == (state.permissions, state.roles)
        assert row.is_active == state.is_active
        assert (row.email, row.password_hash) == (state.email, state.password_hash)


def test_failures_around_a_lock() -> None:
    """During a lock the number that led to it stays; the first failure after it counts as one."""
    until = START + timedelta(seconds=6)
    locked = AccountLocked(user_id=USER_ID, locked_until=until)
    unchecked = LoginFailed(user_id=USER_ID, username="ann", reason="locked")
    events = [REGISTERED, FAILED, FAILED, locked, unchecked, FAILED, FAILED]
    row = one_row(events[:-1], User)
    assert (row.failed_login_attempts, row.locked_until) == (2, until)
    row = one_row(events, User)
    assert (row.failed_login_attempts, row.locked_until) == (1, None)
    row = one_row([*events, LoginSucceeded(user_id=USER_ID)], User)
    assert (row.failed_login_attempts, row.last_login) == (0, START + timedelta(seconds=7))


def test_a_clock_that_is_ahead_lifts_no_lock() -> None:
    """A failure that is said to have happened after it was recorded leaves the lock in force."""
    until = START + timedelta(minutes=1)
    events = record([REGISTERED, AccountLocked(user_id=USER_ID, locked_until=until), FAILED])
    events[-1] = replace(events[-1], occurred_at=until + timedelta(hours=1))
    state = TRADING.state(1, "main")
    TRADING.fold(state, events)
    [row] = state.rows(User)
    assert (row.failed_login_attempts, row.locked_until) == (0, until)


def test_an_erased_user_may_do_nothing() -> None:
    """Whatever other systems record then, and no name comes back; others can be reactivated."""
    erased = UserErased(user_id=USER_ID, reason="request")
    back = UserReactivated(user_id=USER_ID)
    changed = EmailChanged(user_id=USER_ID, email="ann@host")
    row = one_row([REGISTERED, erased, back, changed], User)
    assert (row.is_erased, row.username, row.email) == (True, None, None)
    shown = User(is_active=row.is_active, is_erased=True, permissions=["trade"], roles=["admin"])
    assert (shown.has_permission("trade"), shown.has_admin_role) == (False, False)
    assert one_row([REGISTERED, UserDeactivated(user_id=USER_ID), back], User).is_active


def redacted(events: list[RecordedEvent]) -> list[RecordedEvent]:
    """Return the events as they are read once their user is erased."""
    found = []
    for each in events:
        names = tuple(n for n in personal_fields(type(each.event)) if getattr(each.event, n))
        event = replace(each.event, **dict.fromkeys(names))
        found.append(replace(each, event=event, erased=names))
    return found


def test_an_erasure_changes_nothing_else_of_the_past() -> None:
    """As of a time before it, the user is marked and has no names, and is as active as then."""
    gone = UserDeactivated(user_id=USER_ID), UserReactivated(user_id=USER_ID)
    state = TRADING.state(1, "main")
    TRADING.fold(state, redacted(record([REGISTERED, *gone])))
    [row] = state.rows(User)
    assert (row.is_erased, row.username, row.is_active) == (True, None, True)


def test_the_past_of_an_erased_user_meets_the_present() -> None:
    """A fold that saw the data and one that did not give the same row from the erasure on."""
    events = record(
        [
            replace(REGISTERED, email="ann@host", password_hash="secret"),
            EmailChanged(user_id=USER_ID, email="bo@host", previous_email="ann@host"),
            PasswordChanged(user_id=USER_ID, password_hash="other"),
            UserErased(user_id=USER_ID, reason="request"),
            RolesChanged(user_id=USER_ID, roles=("admin",)),
        ]
    )
    for size in (4, 5):
        states = [TRADING.state(1, "main"), TRADING.state(1, "main")]
        for state, seen in zip(states, (events, redacted(events)), strict=True):
            TRADING.fold(state, seen[:size])
        assert list(states[0].rows(User)) == list(states[1].rows(User))


def test_what_a_user_may_do() -> None:
    """Permissions and roles are those of an active user."""
    user = User(is_active=True, permissions=["trade"], roles=["trader"])
    assert (user.has_permission("trade"), user.has_permission("withdraw")) == (True, False)
    assert (user.has_role("trader"), user.has_admin_role) == (True, False)
    user.roles = ["trader", "admin"]
    assert user.has_admin_role
    gone = User(is_active=False, permissions=["trade"], roles=["admin"])
    assert (gone.has_permission("trade"), gone.has_admin_role) == (False, False)


def test_a_user_is_locked_until_the_lock_ends() -> None:
    """A lock in the past is none."""
    now = datetime.now(UTC)
    assert not User(locked_until=None).is_locked
    assert not User(locked_until=now).is_locked
    assert User(locked_until=now + timedelta(hours=1)).is_locked


def test_roles_and_activity_follow_events() -> None:
    """The row has what the last events say."""
    row = one_row(
        [REGISTERED, RolesChanged(user_id=USER_ID, roles=("admin",))],
        User,
    )
    assert (row.roles, row.permissions, row.is_active) == (["admin"], ["trade"], True)
    assert not one_row([REGISTERED, UserDeactivated(user_id=USER_ID)], User).is_active
