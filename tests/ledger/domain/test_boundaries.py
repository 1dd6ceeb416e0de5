"""Decisions at their boundaries: smallest sizes, longest tokens, and whom a refusal is about."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal, getcontext, localcontext
from functools import reduce
from typing import Any

import pytest

from ledger.domain import api_keys, order_commands, positions, users
from ledger.domain.api_keys import (
    ApiKeyIssued,
    ApiKeyRefused,
    ApiKeyRotated,
    RotateKey,
    api_key_stream,
)
from ledger.domain.order_commands import RequestReplace
from ledger.domain.orders import (
    Action,
    OrderFilled,
    OrderReplaceRequested,
    OrderType,
    kept_token,
    position_tag,
)
from ledger.domain.positions import Book, SetProtection
from ledger.domain.users import (
    AccountLocked,
    Deactivate,
    FinishLogin,
    Guesses,
    Lock,
    LoginAttempted,
    LoginFailed,
    LoginRules,
    Reactivate,
    Unlock,
    UserDeactivated,
    UserErased,
    UserRegistered,
    user_stream,
)
from ledger.errors import CommandRefused, InvalidCommand
from ledger.event import Amount, Event, VenueAmount
from tests.ledger.support import an_id
from tests.support.orders import ORDER, after, placed

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(minutes=1)
USER, KEY, OTHER_KEY, ATTEMPT = an_id("user"), an_id("key"), an_id("other"), an_id("attempt")
REGISTERED = UserRegistered(user_id=USER, username="ann")
LOCKED = AccountLocked(user_id=USER, locked_until=LATER)


def fill(size: str, **values: Any) -> OrderFilled:
    """Return a fill at 10; one of a negative size sells."""
    given: dict[str, Any] = {"user_id": USER, "token": "SOL", "price": VenueAmount(10)}
    return OrderFilled(
        order_id=an_id("order"),
        fill_id="fill",
        action=Action.SELL if size.startswith("-") else Action.BUY,
        quantity=VenueAmount(size.lstrip("-")),
        **given | values,
    )


def book_after(*events: Event) -> Book:
    """Return the book after these events, without ids of cycles."""
    return reduce(positions.evolve, events, Book())


@pytest.mark.parametrize(
    ("token", "is_kept"),
    [("SOL", True), ("x" * 200, True), ("x" * 201, False), ("a\nb", False), ("x\n" * 200, False)],
)
def test_a_tag_holds_a_token_or_its_digest(token: str, is_kept: bool) -> None:
    """As it is up to 200 printable characters; else the digest, so that no fact is refused."""
    held = token if is_kept else hashlib.sha256(token.encode()).hexdigest()
    assert position_tag(USER, token, None) == f"book:{USER}:{held}"
    assert position_tag(USER, token, KEY) == f"position:{KEY}"


@pytest.mark.parametrize(("length", "is_kept"), [(1, True), (255, True), (256, False)])
def test_a_column_holds_a_token_or_its_digest(length: int, is_kept: bool) -> None:
    """As it is up to the length of a column."""
    token = "x" * length
    digest = f"sha256:{hashlib.sha256(token.encode()).hexdigest()}"
    assert kept_token(token) == (token if is_kept else digest)


def test_the_price_of_an_order_over_an_amount_can_be_replaced() -> None:
    """It has no quantity that could be, but it can have a limit."""
    order = placed(None, amount="100", order_type=OrderType.LIMIT, trigger_price=None)
    [asked] = order_commands.decide(
        RequestReplace(order_id=ORDER, price=Amount(24)), after([order])
    )
    assert asked == OrderReplaceRequested(order_id=ORDER, price=Amount(24))


@pytest.mark.parametrize("size", ["0.5", "1", "-0.5", "-1"])
def test_levels_lie_on_the_right_sides_of_the_smallest_positions(size: str) -> None:
    """A long position stops below its target, a short one above; the error says which it is."""
    book = Book(Decimal(size), 1, KEY, user_id=USER, token="SOL")
    is_long = book.size > 0
    low, high = Amount(9), Amount(11)
    stop, target = (low, high) if is_long else (high, low)
    names = {"user_id": USER, "token": "SOL"}
    right = SetProtection(stop_loss=stop, take_profit=target, **names)  # type: ignore[arg-type]
    assert positions.decide(right, book)
    wrong = SetProtection(stop_loss=target, take_profit=stop, **names)  # type: ignore[arg-type]
    said = "below .* a long position" if is_long else "above .* a short position"
    with pytest.raises(InvalidCommand, match=said):
        positions.decide(wrong, book)


def test_the_smallest_position_is_moved_in_its_cycle() -> None:
    """More of it, or less, opens no other cycle; only the other side of flat does."""
    assert [book_after(*map(fill, sizes)).cycles for sizes in (
        ["0.5"], ["0.5", "0.25"], ["-0.5", "-0.25"], ["-0.5", "0.25"], ["0.5", "-0.75"],
    )] == [1, 1, 1, 1, 2]  # fmt: skip


def test_an_execution_of_nothing_moves_no_book() -> None:
    """Neither does its fee in the token, which would be taken out of what is held."""
    nothing = fill("0", fee=VenueAmount(1), fee_currency="SOL")
    assert book_after(nothing) == Book()
    held = book_after(fill("4"))
    assert positions.evolve(held, nothing) == held


def test_sizes_are_exact_in_any_decimal_context() -> None:
    """A caller who works with few digits gets all that were filled."""
    with localcontext(getcontext()) as context:
        context.prec = 3
        book = book_after(fill("123456.789"), fill("0.0000001"))
    assert book.size == Decimal("123456.7890001")


def user_after(*events: Event, at: datetime = NOW) -> users.User:
    """Return the user after events that all happened at one time."""
    return reduce(lambda user, event: users.evolve(user, event, at), events, users.User())


def key_after(*events: Event) -> api_keys.Key:
    """Return the key after these events."""
    return reduce(api_keys.evolve, events, api_keys.Key())


ISSUED = ApiKeyIssued(key_id=KEY, user_id=USER, name="bot", key_hash="hash")
ROTATED = ApiKeyRotated(key_id=KEY, successor_key_id=OTHER_KEY, expires_at=LATER)
REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "reactivating an active user": (
        lambda: users.decide(Reactivate(user_id=USER), user_after(REGISTERED)),
        user_stream(USER),
    ),
    "deactivating a deactivated user": (
        lambda: users.decide(
            Deactivate(user_id=USER), user_after(REGISTERED, UserDeactivated(user_id=USER))
        ),
        user_stream(USER),
    ),
    "unlocking an open account": (
        lambda: users.decide(Unlock(user_id=USER, now=NOW), user_after(REGISTERED)),
        user_stream(USER),
    ),
    "making a lock shorter": (
        lambda: users.decide(
            Lock(user_id=USER, now=NOW, locked_until=LATER), user_after(REGISTERED, LOCKED)
        ),
        user_stream(USER),
    ),
    "rotating a rotated key": (
        lambda: api_keys.decide(
            RotateKey(key_id=KEY, now=NOW, successor_key_id=USER, key_hash="other"),
            key_after(ISSUED, ROTATED),
        ),
        api_key_stream(KEY),
    ),
}


@pytest.mark.parametrize(("decide", "stream"), REFUSED.values(), ids=REFUSED)
def test_a_refusal_says_what_it_is_about(decide: Callable[[], object], stream: str) -> None:
    """The error names the stream of the user or key, for whoever reads it in a log."""
    with pytest.raises(CommandRefused) as caught:
        decide()
    assert caught.value.subject == stream
    assert str(caught.value).startswith(f"{stream}: ")


def test_an_erased_user_is_inactive() -> None:
    """Nothing can be done as a user whose data is destroyed."""
    erased = user_after(REGISTERED, UserErased(user_id=USER, reason="request"))
    assert (erased.standing, erased.is_active) == ("erased", False)


def test_the_failure_of_a_claimed_attempt_ends_a_lock() -> None:
    """An attempt with an id was claimed when no lock was in force, whatever its clock says."""
    locked = Guesses(3, LATER)
    failed = LoginFailed(username="ann", user_id=USER, reason="wrong_password", attempt_id=ATTEMPT)
    assert locked.after(failed, NOW) == Guesses(1)
    foreign = LoginFailed(username="ann", user_id=USER, reason="wrong_password")
    assert locked.after(foreign, NOW) == locked
    assert locked.after(foreign, LATER) == Guesses(1)


def test_failures_from_before_a_lock_that_is_over_lock_nobody_again() -> None:
    """Neither when the login after the lock ends in a failure that is no guess."""
    claimed = LoginAttempted(
        user_id=USER, attempt_id=ATTEMPT, expires_at=LATER + timedelta(seconds=30)
    )
    failed = LoginFailed(username="ann", user_id=USER, reason="wrong_password")
    user = user_after(REGISTERED, failed, LOCKED, claimed, UserDeactivated(user_id=USER))
    command = FinishLogin(
        user_id=USER,
        username="ann",
        attempt_id=ATTEMPT,
        now=LATER,
        rules=LoginRules(failures_max=1),
        matches=True,
        password_changes=0,
    )
    [event] = users.decide(command, user)
    assert isinstance(event, LoginFailed)
    assert event.reason == "inactive"


def test_refusals_of_unknown_keys_are_told_apart_by_what_was_presented() -> None:
    """From wherever it came; where nothing was presented, by where it came from."""
    named = [
        ApiKeyRefused(reason="unknown", presented=presented, source=source).stream()
        for presented, source in (("a", None), ("a", "x"), ("b", "x"), (None, "x"), (None, None))
    ]
    assert named[0] == named[1]
    assert len(set(named)) == 4
    known = ApiKeyRefused(reason="expired", key_id=KEY, presented="a")
    assert known.stream() == f"apikey-refused-{KEY}"
