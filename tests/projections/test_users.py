"""The users' table: it counts failures as the decider does, and says who may do what."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from random import Random

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.domain.users import (
    USER,
    AccountLocked,
    LoginFailed,
    LoginSucceeded,
    RolesChanged,
    UserDeactivated,
    UserErased,
    UserReactivated,
    UserRegistered,
    user_stream,
)
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
        assert (tuple(row.permissions), tuple(row.roles)) == (state.permissions, state.roles)
        assert row.is_active == state.is_active
        if not state.is_erased:
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
    events[-1] = msgspec.structs.replace(events[-1], occurred_at=until + timedelta(hours=1))
    state = TRADING.state(1, "main")
    TRADING.fold(state, events)
    [row] = state.rows(User)
    assert (row.failed_login_attempts, row.locked_until) == (0, until)


def test_an_erased_user_stays_inactive() -> None:
    """Whatever other systems record, as in the decider; who is only deactivated comes back."""
    erased = UserErased(user_id=USER_ID, reason="request")
    back = UserReactivated(user_id=USER_ID)
    assert not one_row([REGISTERED, erased, back], User).is_active
    assert one_row([REGISTERED, UserDeactivated(user_id=USER_ID), back], User).is_active


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
