"""Erasing users: whose data an event holds, which names are free again, and what a hold forbids."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.domain import api_keys
from ledger.domain.api_keys import (
    ApiKeyIssued,
    ApiKeyRefused,
    ApiKeyRevoked,
    ApiKeyRotated,
    ApiKeyUsed,
    Key,
    RotateKey,
    api_key_stream,
)
from ledger.domain.marks import PriceMarked
from ledger.domain.orders import (
    Action,
    OrderAccepted,
    OrderEvent,
    OrderFilled,
    OrderPlaced,
    OrderType,
    order_stream,
    owner_of_book,
    position_tag,
)
from ledger.domain.positions import PositionLiquidated, ProtectionSet
from ledger.domain.users import (
    AccountLocked,
    AccountUnlocked,
    AnyCommand,
    ChangeEmail,
    ChangePassword,
    ChangeRoles,
    ClaimLogin,
    Deactivate,
    EmailChanged,
    EraseUser,
    FinishLogin,
    HoldUser,
    LegalHoldLifted,
    LegalHoldPlaced,
    LoginAttempted,
    LoginFailed,
    LoginSucceeded,
    PasswordChanged,
    Reactivate,
    RegisterUser,
    ReleaseUser,
    User,
    UserErased,
    UserRegistered,
    decide,
    email_tag,
    evolve,
    name_digest,
    user_stream,
    username_tag,
)
from ledger.errors import CommandRefused, InvalidCommand
from ledger.event import Event, Metadata, VenueAmount, personal_fields
from tests.samples import domain_types

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ID, THING = UUID(int=1), UUID(int=2)
OWNER = user_stream(ID)
KEY = b"a key for names"
KEYED = partial(name_digest, key=KEY)
ANN, MAIL = "ann", "ann@example.org"
REGISTERED = UserRegistered(user_id=ID, username=ANN, email=MAIL, password_hash="hash")
PLACED = OrderPlaced(
    order_id=THING, user_id=ID, token="BTC", action=Action.BUY, order_type=OrderType.MARKET
)
ISSUED = ApiKeyIssued(key_id=THING, user_id=ID, name="bot", key_hash="hash")


def filled(user_id: UUID | None) -> OrderFilled:
    """Return a fill of an order."""
    one = VenueAmount(1)
    return OrderFilled(
        order_id=THING,
        fill_id="1",
        token="BTC",
        action=Action.BUY,
        price=one,
        quantity=one,
        user_id=user_id,
    )


def after(*events: Event) -> User:
    """Return the user after these events."""
    user = User()
    for event in events:
        user = evolve(user, event, NOW)
    return user


OF_A_USER: list[Event] = [
    REGISTERED,
    PasswordChanged(user_id=ID, password_hash="hash"),
    LoginAttempted(user_id=ID),
    LoginSucceeded(user_id=ID),
    LoginFailed(username=ANN, user_id=ID),
    LoginFailed(username=ANN, user_id=ID, reason="locked"),
    AccountLocked(user_id=ID, locked_until=NOW),
    AccountUnlocked(user_id=ID),
    UserErased(user_id=ID, reason="request"),
    ISSUED,
    PLACED,
    filled(ID),
    ProtectionSet(position_id=THING, book=position_tag(ID, "BTC", None)),
    PositionLiquidated(
        position_id=THING, book=position_tag(ID, "a:b\u2029", None), price=VenueAmount(1)
    ),
]
OF_A_THING: list[tuple[Event, str | None]] = [
    (ApiKeyRotated(key_id=THING, successor_key_id=ID, expires_at=NOW), api_key_stream(THING)),
    (ApiKeyRevoked(key_id=THING), api_key_stream(THING)),
    (ApiKeyUsed(key_id=THING, action="GET"), api_key_stream(THING)),
    (ApiKeyRefused(reason="expired", key_id=THING), api_key_stream(THING)),
    (ApiKeyRefused(reason="unknown"), None),
    (OrderAccepted(order_id=THING), order_stream(THING)),
    (filled(None), order_stream(THING)),
    (LoginAttempted(username="no…"), None),
    (LoginFailed(username="no…"), None),
    (AccountLocked(username="no…", locked_until=NOW), None),
    (ProtectionSet(position_id=THING, book=position_tag(ID, "BTC", THING)), None),
    (ProtectionSet(position_id=THING), None),
    (PriceMarked(token="BTC", price=VenueAmount(1)), None),
]


@pytest.mark.parametrize("event", OF_A_USER, ids=lambda each: type(each).__name__)
def test_what_names_a_user_is_about_that_user(event: Event) -> None:
    """The subject is the user's stream, whatever the event's own stream is."""
    assert event.subject() == OWNER == f"user-{ID}"


@pytest.mark.parametrize(("event", "owner"), OF_A_THING)
def test_what_names_no_user_may_name_a_thing_that_does(event: Event, owner: str | None) -> None:
    """A key's and an order's stream begins with the user's id; nobody is known of the others."""
    assert (event.subject(), event.owner_stream()) == (None, owner)
    if isinstance(event, OrderEvent):
        assert event.stream() == owner


@pytest.mark.parametrize("tag", ["book:", "book:x:BTC", f"position:{ID}", f"book:{ID}", f"a{ID}:"])
def test_a_book_that_names_no_user_has_no_owner(tag: str) -> None:
    """Events of other systems may carry any text."""
    assert owner_of_book(tag) is None
    assert owner_of_book(f"book:{ID}:") == OWNER


def test_which_fields_are_personal() -> None:
    """These fields are encrypted, and for ever: what is stored is bound to their names."""
    found = {name: personal_fields(known) for name, known in domain_types().items()}
    assert {name: fields for name, fields in found.items() if fields} == {
        "UserRegistered": ("username", "email", "password_hash"),
        "PasswordChanged": ("password_hash",),
        "EmailChanged": ("email", "previous_email"),
        "LoginAttempted": ("username", "source"),
        "LoginSucceeded": ("source",),
        "LoginFailed": ("username", "source"),
        "AccountLocked": ("username",),
        "ApiKeyIssued": ("name", "key_hash"),
        "ApiKeyUsed": ("source",),
        "ApiKeyRefused": ("source",),
    }
    assert personal_fields(Metadata) == ("ip_address",)
    assert [name for name, known in domain_types().items() if known.erases] == ["UserErased"]


def test_names_are_claimed_by_their_digests() -> None:
    """The digests are made with a key, whatever was given; no name no digest."""
    assert REGISTERED.with_digests(KEYED) == msgspec.structs.replace(
        REGISTERED, username_digest=KEYED(ANN), email_digest=KEYED(MAIL)
    )
    made_up = msgspec.structs.replace(REGISTERED, email=None, username_digest="x", email_digest="x")
    digested = made_up.with_digests(KEYED)
    assert (digested.username_digest, digested.email_digest) == (KEYED(ANN), None)
    assert list(digested.claims()) == [username_tag("Ann ", KEY)]
    both = REGISTERED.with_digests(KEYED)
    assert list(both.claims()) == [username_tag(ANN, KEY), email_tag(MAIL, KEY)]


def test_what_is_claimed_stays_claimed_when_it_cannot_be_read() -> None:
    """The tags of an erased event are those it was stored with; an older one has none left."""
    erased: dict[str, Any] = {"username": None, "email": None, "password_hash": None}
    gone = msgspec.structs.replace(REGISTERED.with_digests(KEYED), **erased)
    assert list(gone.claims()) == [username_tag(ANN, KEY), email_tag(MAIL, KEY)]
    assert not list(msgspec.structs.replace(REGISTERED, **erased).claims())
    assert list(REGISTERED.claims()) == [username_tag(ANN), email_tag(MAIL)]


def test_a_changed_email_gives_back_what_was_claimed() -> None:
    """The old address has a digest with a key, but for one that an older release claimed."""
    changed = EmailChanged(user_id=ID, email="b@x", previous_email=MAIL).with_digests(KEYED)
    assert list(changed.claims()) == [email_tag("b@x", KEY)]
    assert list(changed.releases()) == [email_tag(MAIL, KEY)]
    old = EmailChanged(user_id=ID, previous_email=MAIL, previous_email_digest=name_digest(MAIL))
    assert old.with_digests(KEYED) == old
    assert (list(old.claims()), list(old.releases())) == ([], [email_tag(MAIL)])
    unread = msgspec.structs.replace(changed, email=None, previous_email=None)
    assert list(unread.releases()) == [email_tag(MAIL, KEY)]
    assert unread.with_digests(KEYED).previous_email_digest == KEYED(MAIL)
    foreign = msgspec.structs.replace(changed, previous_email_digest="another journal's")
    assert foreign.with_digests(KEYED) == changed


def test_an_address_written_in_another_way_stays_claimed() -> None:
    """It is given back only where the claim was made without a key: the new one has one."""
    command = ChangeEmail(user_id=ID, email="Ann@example.org")
    [event] = decide(command, after(REGISTERED.with_digests(KEYED)))
    assert event == EmailChanged(user_id=ID, email="Ann@example.org")
    [event] = decide(command, after(REGISTERED))
    assert list(event.with_digests(KEYED).claims()) == [email_tag(MAIL, KEY)]
    assert list(event.with_digests(KEYED).releases()) == [email_tag(MAIL)]
    [event] = decide(ChangeEmail(user_id=ID, email="b@x"), after(REGISTERED.with_digests(KEYED)))
    assert list(event.releases()) == [email_tag(MAIL, KEY)]


def test_erasing() -> None:
    """The event gives back the names that the user has by now, in the way they were claimed."""
    command = EraseUser(user_id=ID, reason="request 7")
    [event] = decide(command, after(REGISTERED.with_digests(KEYED)))
    assert event == UserErased(
        user_id=ID,
        reason="request 7",
        username_digest=KEYED(ANN),
        email_digest=KEYED(MAIL),
    )
    assert list(event.releases()) == [username_tag(ANN, KEY), email_tag(MAIL, KEY)]
    changed = EmailChanged(user_id=ID, email="b@x").with_digests(KEYED)
    [event] = decide(command, after(REGISTERED, changed))
    assert list(event.releases()) == [username_tag(ANN), email_tag("b@x", KEY)]
    [event] = decide(command, after(REGISTERED, EmailChanged(user_id=ID, previous_email=MAIL)))
    assert list(event.releases()) == [username_tag(ANN)]


def test_erasing_again_has_no_event() -> None:
    """So the command can be repeated, to finish what is done beside the event."""
    erased = after(REGISTERED, UserErased(user_id=ID, reason="request"))
    assert decide(EraseUser(user_id=ID, reason="again"), erased) == ()
    message = f"^{OWNER}: EraseUser is refused in state unknown: there is no such user$"
    with pytest.raises(CommandRefused, match=message):
        decide(EraseUser(user_id=ID, reason="request"), User())


def test_a_legal_hold_forbids_erasing() -> None:
    """It is placed once and lifted once; then the user can be erased."""
    place, lift = HoldUser(user_id=ID, reason="case 1"), ReleaseUser(user_id=ID, reason="closed")
    free = after(REGISTERED)
    with pytest.raises(CommandRefused, match="in state active: the user is not under a legal hold"):
        decide(lift, free)
    [placed] = decide(place, free)
    assert placed == LegalHoldPlaced(user_id=ID, reason="case 1")
    held = evolve(free, placed)
    message = f"^{OWNER}: HoldUser is refused in state held: the user is under a legal hold$"
    with pytest.raises(CommandRefused, match=message):
        decide(place, held)
    with pytest.raises(CommandRefused, match=r"hold; it must be lifted first$") as refused:
        decide(EraseUser(user_id=ID, reason="request"), held)
    assert (refused.value.state, refused.value.subject) == ("held", OWNER)
    [lifted] = decide(lift, held)
    assert lifted == LegalHoldLifted(user_id=ID, reason="closed")
    assert evolve(held, lifted) == free


@pytest.mark.parametrize("kind", [EraseUser, HoldUser, ReleaseUser])
@pytest.mark.parametrize("reason", ["", " ", "a\0", "x" * 256])
def test_a_reason_can_be_read(kind: type[EraseUser | HoldUser | ReleaseUser], reason: str) -> None:
    """Whoever asks later why it was done finds a text."""
    with pytest.raises(InvalidCommand) as wrong:
        kind(user_id=ID, reason=reason)
    assert wrong.value.field == "reason"


def test_the_key_of_an_erased_owner_lets_nobody_in() -> None:
    """Its hash is gone, so that no use of it is accepted, and no other key takes its place."""
    key = Key(msgspec.structs.replace(ISSUED, name=None, key_hash=None))
    assert key.refusal("hash", None, NOW) == "unknown"
    rotate = RotateKey(key_id=THING, now=NOW, successor_key_id=ID, key_hash="other")
    message = f"^{api_key_stream(THING)}: RotateKey is refused in state erased: the data of its "
    with pytest.raises(CommandRefused, match=message):
        api_keys.decide(rotate, key)


REASON = st.just("why")
NAME = st.sampled_from([ANN, "bob"])
EMAIL = st.sampled_from([None, MAIL, "Ann@Example.org", "b@x"])
ATTEMPT = st.integers(1, 3).map(lambda number: UUID(int=number))
LOGIN: dict[str, Any] = {
    "username": NAME,
    "user_id": st.just(ID),
    "attempt_id": ATTEMPT,
    "now": st.integers(0, 60).map(lambda seconds: NOW + timedelta(seconds=seconds)),
    "source": st.just("gateway"),
}
COMMANDS: st.SearchStrategy[AnyCommand] = st.one_of(
    st.builds(RegisterUser, user_id=st.just(ID), username=NAME, email=EMAIL),
    st.builds(ChangeEmail, user_id=st.just(ID), email=EMAIL),
    st.builds(ChangePassword, user_id=st.just(ID), password_hash=st.just("hash")),
    st.builds(ChangeRoles, user_id=st.just(ID), roles=st.just(("r",))),
    st.builds(Deactivate, user_id=st.just(ID)),
    st.builds(Reactivate, user_id=st.just(ID)),
    st.builds(EraseUser, user_id=st.just(ID), reason=REASON),
    st.builds(HoldUser, user_id=st.just(ID), reason=REASON),
    st.builds(ReleaseUser, user_id=st.just(ID), reason=REASON),
    st.builds(ClaimLogin, **LOGIN),
    st.builds(
        FinishLogin,
        matches=st.booleans(),
        password_changes=st.integers(0, 2),
        new_hash=st.sampled_from([None, "hash"]),
        **LOGIN,
    ),
)


def run(commands: Sequence[AnyCommand], *, keyed: bool) -> tuple[list[Event], list[User]]:
    """Run commands; return their events and the states after each."""
    events: list[Event] = []
    states = [User()]
    for command in commands:
        try:
            made = decide(command, states[-1])
        except CommandRefused:
            made = ()
        stored = [event.with_digests(KEYED) for event in made] if keyed else list(made)
        events += stored
        state = states[-1]
        for event in stored:
            state = evolve(state, event, NOW)
        states.append(state)
    return events, states


@given(st.lists(COMMANDS, max_size=40), st.booleans())
def test_an_erased_user_has_no_personal_value(commands: list[AnyCommand], keyed: bool) -> None:
    """Whatever comes before and after, and no later event tells more than what was typed."""
    events, states = run(commands, keyed=keyed)
    for state in states:
        if state.is_erased:
            assert not state.is_active
            assert {state.username_digest, state.email_digest} == {None}
            assert {state.email, state.password_hash} == {None}
    erasures = [n for n, event in enumerate(events) if isinstance(event, UserErased)]
    assert len(erasures) <= 1
    for event in events[erasures[0] + 1 :] if erasures else ():
        assert isinstance(event, LoginAttempted | LoginFailed | AccountLocked)


@given(st.lists(COMMANDS, max_size=40))
def test_a_held_user_is_never_erased(commands: list[AnyCommand]) -> None:
    """A hold stands until it is lifted, and is placed on nobody who is erased."""
    events, states = run(commands, keyed=True)
    is_held = False
    for event in events:
        match event:
            case LegalHoldPlaced() | LegalHoldLifted():
                assert is_held == isinstance(event, LegalHoldLifted)
                is_held = isinstance(event, LegalHoldPlaced)
            case UserErased():
                assert not is_held
    assert not [state for state in states if state.is_held and state.is_erased]


@given(st.lists(COMMANDS, max_size=40), st.booleans())
def test_what_is_claimed_is_given_back(commands: list[AnyCommand], switched: bool) -> None:
    """A user holds what the state says, however it was claimed, and nothing once erased."""
    half = len(commands) // 2 if switched else 0
    held: set[str] = set()
    state = User()
    for number, command in enumerate(commands):
        try:
            made = decide(command, state)
        except CommandRefused:
            continue
        for event in made:
            stored = event.with_digests(KEYED) if number >= half else _as_before(event)
            held |= set(stored.claims())
            held -= set(stored.releases())
            state = evolve(state, stored, NOW)
        tags = {"username": state.username_digest, "email": state.email_digest}
        assert held == {f"{kind}:{digest}" for kind, digest in tags.items() if digest}


def _as_before(event: Event) -> Event:
    """Return an event as a release stored it that had no digests, and kept what was the same."""
    if not isinstance(event, EmailChanged):
        return event
    old, new = event.previous_email, event.email
    is_same = old is not None and new is not None and email_tag(old) == email_tag(new)
    return EmailChanged(user_id=ID, email=new, previous_email=None if is_same else old)
