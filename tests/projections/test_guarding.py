"""The guarded fold: whom a poisoned event concerns waits; all others go on as if it were not."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from random import Random
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.domain.orders import Action, OrderCancelled, OrderFilled, OrderPlaced, OrderType
from ledger.domain.positions import ProtectionSet, closing_order_id, cycle_id
from ledger.domain.users import EmailChanged, UserRegistered
from ledger.event import Amount, Event, RecordedEvent, VenueAmount
from projections.fold import Group
from projections.groups import GROUPS, TRADING
from projections.guarding import LanesUnknown, fold_guarded, lanes_of
from projections.lanes import Lane, Parked, Parking, Rulings
from projections.model import values_of
from projections.positions import Position
from projections.projection import State
from projections.users import User
from tests.projections import poison
from tests.projections.random_events import random_events
from tests.projections.support import JOURNAL, JOURNAL_ID, an_id, record

SEEDS, COUNTS = st.integers(0, 2**32), st.integers(1, 150)
POISONS = st.integers(1, 4)


def guarded(group: Group, events: list[RecordedEvent], rulings: Rulings | None = None) -> State:
    """Return the state after a guarded fold of all events."""
    state = group.state(JOURNAL_ID, JOURNAL)
    fold_guarded(group, state, events, rulings or Rulings())
    return state


def plain(group: Group, events: list[RecordedEvent]) -> State:
    """Return the state after a plain fold of all events."""
    state = group.state(JOURNAL_ID, JOURNAL)
    group.fold(state, events)
    return state


class Shelf:
    """Rows and parked lanes between batches, as the database would keep them."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.rows: dict[str, dict[Any, dict[str, Any]]] = defaultdict(dict)
        self.lanes: dict[Lane, Parked] = {}

    def fold(self, batch: list[RecordedEvent]) -> None:
        """Fold one batch on nothing but the rows and lanes that its events ask for."""
        state = self.group.state(JOURNAL_ID, JOURNAL)
        wanted = {
            lane
            for each in batch
            for projection in self.group.projections
            for lane in lanes_of(projection, JOURNAL, each)
        }
        for projection in self.group.projections:
            for stored in self.rows[projection.name].values():
                copied = {n: dict(v) if type(v) is dict else v for n, v in stored.items()}
                row = projection.row(**copied)
                names = {Lane(projection.name, *name) for name in projection.names_of(row)}
                if projection.append_only or not self._is_wanted(projection, row, wanted):
                    continue
                state.tables[projection.name].put(row)
                wanted |= names
        known = {lane: self.lanes[lane] for lane in wanted if lane in self.lanes}
        state.parking = Parking(known)
        fold_guarded(self.group, state, batch)
        self.lanes |= state.parking.lanes
        for name, rows in state.tables.items():
            for row in self.group.changed(state, name):
                self.rows[name][getattr(row, rows.projection.key)] = values_of(row)

    @staticmethod
    def _is_wanted(projection: Any, row: Any, wanted: set[Lane]) -> bool:
        if Lane(projection.name, projection.key, str(getattr(row, projection.key))) in wanted:
            return True
        return any(
            alias.is_meant(row)
            and Lane(projection.name, alias.column, str(getattr(row, alias.column))) in wanted
            for alias in projection.aliases
        )


@settings(max_examples=150, deadline=None)
@given(SEEDS, COUNTS, POISONS, st.lists(st.integers(1, 30), min_size=1))
def test_batches_do_not_matter(seed: int, count: int, poisons: int, sizes: list[int]) -> None:
    """Rows and parked lanes are the same wherever batches end, after each of them."""
    events = record(random_events(Random(seed), count))
    for whole in GROUPS.values():
        group = poison.poisoned(whole, poison.at(*poison.some(whole, seed, count, poisons)))
        shelf, start, state = Shelf(group), 0, group.state(JOURNAL_ID, JOURNAL)
        while start < len(events):
            batch = events[start : start + sizes[start % len(sizes)]]
            shelf.fold(batch)
            fold_guarded(group, state, batch)
            start += len(batch)
            assert shelf.lanes == state.parking.lanes
            rows = poison.rows_by_key(group, state)
            assert {name: shelf.rows[name] for name in rows} == rows


@settings(max_examples=300, deadline=None)
@given(SEEDS, COUNTS, POISONS)
def test_what_is_not_parked_is_what_it_would_be_without_poison(
    seed: int, count: int, poisons: int
) -> None:
    """A row differs from the plain fold only if a lane of it is parked."""
    events = record(random_events(Random(seed), count))
    for whole in GROUPS.values():
        places = poison.some(whole, seed, count, poisons)
        group = poison.poisoned(whole, poison.at(*places))
        state, other = guarded(group, events), plain(whole, events)
        found, expected = poison.rows_by_key(group, state), poison.rows_by_key(whole, other)
        for projection in whole.projections:
            name = projection.name
            held = {
                getattr(row, projection.key)
                for each in (state, other)
                for row in each.tables[name]
                if poison.is_parked(projection, state, row) or name == "postings"
            }
            for key in found[name].keys() | expected[name].keys():
                assert key in held or found[name].get(key) == expected[name].get(key)


@settings(max_examples=300, deadline=None)
@given(SEEDS, COUNTS, POISONS)
def test_a_parked_row_stays_as_it_was(seed: int, count: int, poisons: int) -> None:
    """No event from that on changes a row which its lane holds back, not even a little."""
    events = record(random_events(Random(seed), count))
    for whole in GROUPS.values():
        group = poison.poisoned(whole, poison.at(*poison.some(whole, seed, count, poisons)))
        state = guarded(group, events)
        for projection in whole.projections:
            for row in state.tables[projection.name]:
                for name in projection.names_of(row):
                    parked = state.parking.lanes.get(Lane(projection.name, *name))
                    assert parked is None or row.changed_size <= parked.offset


@settings(max_examples=100, deadline=None)
@given(SEEDS, COUNTS, POISONS)
def test_part_of_a_group_parks_the_same(seed: int, count: int, poisons: int) -> None:
    """A part that is closed under what it looks up has the rows and lanes of the whole."""
    events = record(random_events(Random(seed), count))
    group = poison.poisoned(TRADING, poison.at(*poison.some(TRADING, seed, count, poisons)))
    state = guarded(group, events)
    for names in (["users"], ["api_keys"], ["orders"]):
        part = group.only(names)
        own = {each.name for each in part.projections}
        found = guarded(part, events)
        assert found.parking.lanes == {
            lane: each for lane, each in state.parking.lanes.items() if lane.table in own
        }
        rows = poison.rows_by_key(group, state)
        assert poison.rows_by_key(part, found) == {name: rows[name] for name in own}


@settings(max_examples=100, deadline=None)
@given(SEEDS, COUNTS)
def test_without_poison_the_guarded_fold_is_the_plain_one(seed: int, count: int) -> None:
    """The guard changes nothing where nothing raises: rows, their order, and how they are found."""
    events = record(random_events(Random(seed), count))
    for group in GROUPS.values():
        state, other = guarded(group, events), plain(group, events)
        assert not state.parking
        for name, rows in state.tables.items():
            assert list(map(values_of, rows)) == list(map(values_of, other.tables[name]))
            assert list(rows.changed) == list(other.tables[name].changed)


@settings(max_examples=100, deadline=None)
@given(SEEDS, COUNTS, POISONS)
def test_recorded_poison_does_what_a_raising_fold_does(seed: int, count: int, poisons: int) -> None:
    """Events that are ruled poisoned park the same lanes and rows as those whose fold raises."""
    events = record(random_events(Random(seed), count))
    places = poison.some(TRADING, seed, count, poisons)
    raising = poison.poisoned(TRADING, poison.at(*places))
    state = guarded(raising, events)
    ruled = {
        (lane.table, each.offset): each.error
        for lane, each in state.parking.lanes.items()
        if each.error is not None
    }
    found = guarded(TRADING, events, Rulings(poisoned=ruled))
    assert found.parking.lanes == state.parking.lanes
    assert poison.rows_by_key(TRADING, found) == poison.rows_by_key(raising, state)


def test_a_poisoned_event_parks_its_lane_with_the_error() -> None:
    """Its row stays as it was, later events of the key are counted, other keys go on."""
    state = guarded(poison.poisoned(TRADING, poison.at(("users", 2))), record(addresses()))
    lane = Lane("users", "user_id", str(an_id("user 0")))
    parked = state.parking.lanes[lane]
    assert (parked.offset, parked.event_type, parked.waiting) == (2, "EmailChanged", 2)
    assert parked.error == "Spoilt: users at 2"
    emails = {row.user_id: row.email for row in state.rows(User)}
    assert emails == {an_id("user 0"): "a@host", an_id("user 1"): "z@host"}


def test_what_depends_on_a_parked_row_waits() -> None:
    """An audit row that would look at it waits in a lane of its own, which says for what."""
    state = guarded(poison.poisoned(TRADING, poison.at(("users", 2))), record(addresses()))
    waiting = state.parking.lanes[Lane("security_audit_logs", "log_id", str(an_id("event 2")))]
    assert waiting.error is None
    assert waiting.waits_for == f"users user_id={an_id('user 0')}"


def test_a_skipped_event_is_left_out_of_its_table_alone() -> None:
    """Its fold is not called; later events of the key and other tables fold on."""
    group = poison.poisoned(TRADING, poison.at(("users", 2)))
    state = guarded(group, record(addresses()), Rulings(frozenset({("users", 2)})))
    assert not state.parking
    assert {row.email for row in state.rows(User)} == {"c@host", "z@host"}
    assert len(state.tables["security_audit_logs"]) == len(addresses())


def addresses() -> list[Event]:
    """Two users, whose addresses change."""
    one, other = an_id("user 0"), an_id("user 1")
    return [
        UserRegistered(user_id=one, username="one", email="a@host", password_hash="x"),
        UserRegistered(user_id=other, username="other", email="y@host", password_hash="x"),
        EmailChanged(user_id=one, email="b@host", previous_email="a@host"),
        EmailChanged(user_id=other, email="z@host", previous_email="y@host"),
        EmailChanged(user_id=one, email="c@host", previous_email="b@host"),
    ]


BOOK = f"book:{an_id('user 0')}:SOL"


def fill(number: int, action: Action = Action.BUY, **fields: Any) -> OrderFilled:
    """Make a fill of one token at 10, of an order of its own."""
    return OrderFilled(
        order_id=an_id(f"order {number}"),
        user_id=an_id("user 0"),
        fill_id=f"fill {number}",
        token="SOL",
        action=action,
        price=VenueAmount("10"),
        quantity=VenueAmount("1"),
        **fields,
    )


def opened_by(number: int, opening: OrderFilled) -> UUID:
    """Return the id of the cycle that the event at an offset opens."""
    return cycle_id(JOURNAL, an_id(f"event {number}"), opening, is_first=True)


def test_what_a_poisoned_event_would_have_made_is_waited_for() -> None:
    """An event that names the cycle which a poisoned fill would have opened waits for it."""
    opened = opened_by(0, fill(0))
    events = record([fill(0), ProtectionSet(position_id=opened, stop_loss=Amount("9"))])
    state = guarded(poison.poisoned(TRADING, poison.at(("positions", 0))), events)
    assert state.parking.lanes[Lane("positions", "position_id", str(opened))].waiting == 2
    audited = state.parking.lanes[Lane("security_audit_logs", "log_id", str(an_id("event 1")))]
    assert audited.waits_for == f"positions position_id={opened}"


def test_a_row_is_parked_under_all_its_names() -> None:
    """The end of a closing order waits where the book of its position is parked."""
    group = poison.poisoned(TRADING, poison.at(("positions", 3)))
    closing, events = closed_by_order()
    ended = record([*events, fill(3), OrderCancelled(order_id=closing, reason="user")])
    state = guarded(group, ended)
    lane = state.parking.lanes[Lane("positions", "closing_order_id", str(closing))]
    assert (lane.offset, lane.waits_for) == (4, f"positions book={BOOK}")
    [row] = state.rows(Position)
    assert (row.closing_order_id, row.changed_size) == (closing, 3)


def closed_by_order() -> tuple[UUID, list[Event]]:
    """Return the order that is at work to close a position, and the three events until then."""
    opened = opened_by(0, fill(0))
    closing = closing_order_id(opened, 2)
    placed = OrderPlaced(
        order_id=closing,
        user_id=an_id("user 0"),
        token="SOL",
        action=Action.SELL,
        order_type=OrderType.MARKET,
        quantity=Amount("1"),
        reduce_only=True,
        closes_position_id=opened,
    )
    armed = ProtectionSet(position_id=opened, book=BOOK, stop_loss=Amount("9"))
    return closing, [fill(0), armed, placed]


def test_a_name_that_a_poisoned_event_gave_is_taken_back() -> None:
    """The row is not found by it any more, neither in the row itself nor in the index."""
    closing, events = closed_by_order()
    state = guarded(poison.poisoned(TRADING, poison.at(("positions", 2))), record(events))
    [row] = state.rows(Position)
    assert row.closing_order_id is None
    assert state.rows(Position).find("closing_order_id", closing) is None


def test_a_closed_cycle_does_not_hold_up_its_book() -> None:
    """The book opens another cycle while a closed one is parked, whatever is in memory."""
    late = ProtectionSet(position_id=opened_by(0, fill(0)), stop_loss=Amount("9"))
    events = record([fill(0), fill(1, Action.SELL), late, fill(3)])
    group = poison.poisoned(TRADING, poison.at(("positions", 2)))
    shelf, state = Shelf(group), guarded(group, events)
    for event in events:
        shelf.fold([event])
    assert shelf.lanes == state.parking.lanes
    assert [row.status for row in state.rows(Position)] == ["closed", "open"]


def test_a_read_model_that_cannot_say_whom_an_event_concerns_stops_the_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody may guess who would have to wait."""
    group = poison.poisoned(TRADING, poison.at(("users", 2)))

    def broken(_event: Event) -> Any:
        raise ValueError("no idea")

    monkeypatch.setattr(group.projections[0], "wanted", broken)
    with pytest.raises(LanesUnknown, match="users cannot tell whom the EmailChanged at offset 2"):
        guarded(group, record(addresses()))


def test_a_handler_that_hides_errors_waits_all_the_same() -> None:
    """Coming upon a parked row cannot be swallowed: what the handler did is undone."""
    group = poison.poisoned(TRADING, poison.at(("users", 2)))
    audit = group.projections[-1]
    wrapped = audit.handlers[EmailChanged]

    def swallowing(state: State, recorded: RecordedEvent, event: Any) -> None:
        with contextlib.suppress(Exception):
            wrapped(state, recorded, event)
        state.tables[audit.name].add(an_id("made up"), recorded)

    audit.handlers[EmailChanged] = swallowing
    state = guarded(group, record(addresses()[:3]))
    assert state.tables[audit.name].get(an_id("made up")) is None
    assert Lane(audit.name, "log_id", str(an_id("event 2"))) in state.parking.lanes


def test_a_lack_of_memory_is_no_poison() -> None:
    """It tells of this machine, not of the event."""

    def out_of_memory(_table: str, _event: RecordedEvent) -> bool:
        raise MemoryError

    with pytest.raises(MemoryError):
        guarded(poison.poisoned(TRADING, out_of_memory), record(addresses()))
