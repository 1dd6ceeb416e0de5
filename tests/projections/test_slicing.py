"""A journal that several processes fold at once gives the rows that one process would make."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from uuid import UUID

import pytest
from hypothesis import event as note
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.domain.orders import (
    Action,
    OrderAccepted,
    OrderFilled,
    OrderPlaced,
    OrderType,
)
from ledger.domain.positions import ProtectionSet
from ledger.domain.users import UserRegistered
from ledger.event import Amount, Event, RecordedEvent, VenueAmount
from ledger.journal import Journal
from ledger.settings import Settings
from projections import parking, snapshots
from projections.building import Built, Part
from projections.database import Database
from projections.fold import Group
from projections.groups import GROUPS, TABLES, TRADING
from projections.projection import State
from projections.projector import Projector
from projections.rebuilding.plan import Plan, Share
from projections.rebuilding.rebuild import _entangled
from projections.slicing import (
    NO_CLAIMS,
    Claims,
    Entangled,
    Slice,
    Slicer,
    can_be_cut,
    is_whole,
)
from tests.projections.poison import at, poisoned, rows_by_key
from tests.projections.random_events import Dice, random_events
from tests.projections.rebuilds import Asked, assert_verified, project, rebuilt
from tests.projections.support import JOURNAL, JOURNAL_ID, an_id, append
from tests.projections.test_building import through_lens

PART = TRADING.only(["orders", "positions"])
AGAIN = "again in one piece"


class World(Dice):
    """One user with orders and positions of their own, and hardly a fact that comes too early."""

    def __init__(self, random: Random, name: str) -> None:
        super().__init__(random, odd_chance=0.02)
        self.name = name
        self.closing = an_id(f"{name} order 0")
        self.orders: list[UUID] = []
        self.positions: list[UUID] = []

    def one_of(self, name: str, count: int) -> str:
        """Name one of a few things of this user."""
        return f"{self.name} {super().one_of(name, count)}"

    def user(self) -> str:
        """Name the user."""
        return self.name

    def event(self) -> Event:
        """Make an event that names what there is, as a rule."""
        made = super().event()
        while self.random.random() > 0.01 and not self._is_known(made):
            made = super().event()
        if isinstance(made, OrderPlaced):
            self.orders.append(made.order_id)
        if isinstance(made, OrderFilled) and made.position_id is not None and made.user_id:
            self.orders.append(made.order_id)
            self.positions.append(made.position_id)
        return made

    def _is_known(self, made: Event) -> bool:
        if isinstance(made, OrderPlaced) or getattr(made, "user_id", None) is not None:
            return True
        named = [getattr(made, name, None) for name in ("order_id", "position_id")]
        return all(each in (None, *self.orders, *self.positions) for each in named)


def worlds(seed: int, count: int, odd_chance: float) -> list[Event]:
    """Return what some users did, and now and then something that concerns several of them."""
    random = Random(seed)
    apart = [World(random, f"user {number}") for number in range(4)]
    shared = Dice(random, 0.02)
    return [
        (shared if random.random() < odd_chance else random.choice(apart)).next()
        for _ in range(count)
    ]


def folded(recorded: Sequence[RecordedEvent]) -> State:
    """Fold in one piece."""
    state = PART.state(JOURNAL_ID, JOURNAL, str)
    PART.fold(state, recorded)
    return state


def folded_in_slices(recorded: Sequence[RecordedEvent], count: int) -> list[State] | None:
    """Fold in slices; None where that does not go."""
    states = [PART.state(JOURNAL_ID, JOURNAL, str) for _ in range(count)]
    claims: list[Claims] = []
    for number, state in enumerate(states):
        away = {name: set[str]() for name in state.tables}
        slicer = Slicer(Slice("", number, count), len(recorded), PART, state, away)
        try:
            PART.fold(state, slicer.pick(recorded))
        except Entangled:
            return None
        claims.append(slicer.claims)
    return states if is_whole(claims) else None


@given(
    seed=st.integers(0, 2**32),
    size=st.integers(1, 150),
    count=st.integers(2, 4),
    odd_chance=st.sampled_from([0.0, 0.01, 0.2]),
)
@settings(max_examples=150, deadline=None)
def test_slices_make_all_rows_once_or_say_that_they_cannot(
    seed: int, size: int, count: int, odd_chance: float
) -> None:
    """Unless users share rows, the slices together have the very rows of the fold in one piece."""
    recorded = through_lens(worlds(seed, size, odd_chance))
    slices = folded_in_slices(recorded, count)
    note("in one piece" if slices is None else "in slices")
    if slices is None:
        return
    expected, found = rows_by_key(PART, folded(recorded)), [rows_by_key(PART, s) for s in slices]
    for table in ("orders", "positions"):
        assert sum(len(each[table]) for each in found) == len(expected[table])
        assert {k: row for each in found for k, row in each[table].items()} == expected[table]
    assert all(each["users"] == expected["users"] for each in found)


def test_users_with_rows_of_their_own_go_in_slices() -> None:
    """Most histories without anything odd are cut, so that the other tests show something."""
    recorded = [through_lens(worlds(seed, 60, 0.0)) for seed in range(40)]
    assert sum(folded_in_slices(each, 2) is not None for each in recorded) >= 15
    shared = [through_lens(random_events(Random(seed), 60)) for seed in range(20)]
    assert sum(folded_in_slices(each, 2) is None for each in shared) >= 15


SLICES = 2
USERS = [an_id(f"user {number}") for number in range(8)]
ONE = USERS[0]
OTHER = next(each for each in USERS if int(str(each)[-8:], 16) % 2 != int(str(ONE)[-8:], 16) % 2)
ORDER, POSITION = an_id("order"), an_id("position")


def placed(user_id: UUID, order: str = "order", closes: UUID | None = None) -> Event:
    """Make an order."""
    return OrderPlaced(
        order_id=an_id(order),
        user_id=user_id,
        token="SOL",
        action=Action.BUY,
        order_type=OrderType.MARKET,
        quantity=Amount("2"),
        reduce_only=closes is not None,
        closes_position_id=closes,
    )


def filled(user_id: UUID | None, order: str = "order", position_id: UUID | None = None) -> Event:
    """Make a fill."""
    return OrderFilled(
        order_id=an_id(order),
        user_id=user_id,
        fill_id=f"{order} {user_id}",
        token="SOL",
        action=Action.BUY,
        price=VenueAmount("10"),
        quantity=VenueAmount("1"),
        position_id=position_id,
    )


GOOD = [placed(ONE), placed(OTHER, "2"), OrderAccepted(order_id=ORDER), filled(ONE), filled(None)]
BAD: dict[str, list[Event]] = {
    "a fill of another user's order": [placed(ONE), filled(OTHER)],
    "a fact before the order is known": [OrderAccepted(order_id=ORDER), placed(ONE)],
    "an order under another's id": [placed(ONE), placed(OTHER)],
    "a fill of another's position": [filled(ONE, "1", POSITION), filled(OTHER, "2", POSITION)],
    "an order that closes another's position": [
        filled(ONE, "1", POSITION),
        placed(OTHER, "2", POSITION),
    ],
    "levels under another's book": [
        filled(ONE, "1", POSITION),
        filled(OTHER, "2"),
        ProtectionSet(position_id=POSITION, book=f"book:{OTHER}:SOL", stop_loss=Amount("1")),
    ],
    "one event for nobody and one for two": [
        placed(ONE),
        placed(OTHER, "2"),
        filled(ONE, position_id=POSITION),
        filled(OTHER, "2"),
        OrderAccepted(order_id=an_id("3")),
        ProtectionSet(position_id=POSITION, book=f"book:{OTHER}:SOL", stop_loss=Amount("1")),
    ],
    "the same with a fill of nobody": [
        placed(ONE),
        filled(ONE),
        filled(OTHER, "2", POSITION),
        OrderAccepted(order_id=an_id("3")),
        filled(None, "order", POSITION),
    ],
    "levels of no position": [ProtectionSet(position_id=POSITION, stop_loss=Amount("1"))],
}


def test_what_belongs_to_one_user_is_cut() -> None:
    """Facts without a user follow the order that they name."""
    assert folded_in_slices(through_lens(GOOD), SLICES) is not None


@pytest.mark.parametrize("name", BAD)
def test_what_links_two_users_is_noticed(name: str) -> None:
    """An event that several slices would have to fold, or none, is not passed over."""
    assert folded_in_slices(through_lens([*GOOD[1:2], *BAD[name]]), SLICES) is None


async def test_a_rebuild_in_slices(
    settings: Settings, journal: Journal, database: Database
) -> None:
    """All tables, the audit log too, are made by several processes for one journal."""
    users: list[Event] = [UserRegistered(user_id=each, username=str(each)) for each in USERS]
    await append(journal, [*users, *GOOD])
    await project(journal, database)
    asked = Asked()
    outcome = await rebuilt(settings, watch=asked, sliced_size_min=1, workers=6)
    assert outcome.swapped
    assert all(each.is_same for each in outcome.compared)
    assert not [stage for stage in asked.stages if AGAIN in stage]
    await assert_verified(journal, database)


@pytest.mark.parametrize("tables", [[], ["orders"], ["security_audit_logs"]], ids=str)
async def test_a_rebuild_that_cannot_be_cut(
    settings: Settings, journal: Journal, database: Database, tables: list[str]
) -> None:
    """Where users share rows all is folded once more, in one piece, and nothing is there twice."""
    await append(journal, [placed(ONE), filled(OTHER), *random_events(Random(1), 200)])
    await project(journal, database)
    asked = Asked()
    outcome = await rebuilt(settings, tables, asked, sliced_size_min=1, workers=4)
    assert outcome.swapped
    assert all(each.is_same for each in outcome.compared)
    assert [stage for stage in asked.stages if AGAIN in stage]
    await assert_verified(journal, database)


async def test_a_snapshot_is_not_cut(
    settings: Settings, journal: Journal, database: Database
) -> None:
    """The first slice goes on with the whole of a kept state, and the others have nothing to do."""
    await append(journal, GOOD)
    await snapshots.take(database, journal, TRADING)
    await append(journal, [filled(ONE), OrderAccepted(order_id=an_id("2"))])
    await project(journal, database)
    asked = Asked()
    outcome = await rebuilt(settings, ["orders", "positions"], asked, sliced_size_min=1, workers=4)
    assert all(each.is_same for each in outcome.compared)
    assert not [stage for stage in asked.stages if AGAIN in stage]
    await assert_verified(journal, database)


async def test_a_poisoned_event_ends_the_slices(
    settings: Settings, journal: Journal, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has to wait behind an event that raises is known when all is folded in one piece."""
    group = poisoned(TRADING, at(("orders", 2)))
    monkeypatch.setitem(GROUPS, "trading", group)
    for each in group.projections:
        monkeypatch.setitem(TABLES, each.name, group)
    await append(journal, GOOD)
    await Projector(database, journal, group).catch_up()
    asked = Asked()
    outcome = await rebuilt(settings, ["orders", "positions"], asked, sliced_size_min=1, workers=4)
    assert outcome.swapped
    assert [stage for stage in asked.stages if AGAIN in stage]
    async with database.snapshot() as connection:
        lanes = (await parking.load(connection, journal.journal_id, "trading")).lanes
    assert {(lane.table, lane.value) for lane in lanes} >= {("orders", str(ORDER))}


def test_a_share_in_slices() -> None:
    """What is not cut is made by the first slice only; what cannot be cut stays whole."""
    plan = Plan(TRADING, ["users", "orders", "security_audit_logs"], "new_1")
    [share] = [each for each in plan.parts if "orders" in each.tables]
    first, second = plan.cut(share, 2)
    assert first._replace(slice=None) == share
    assert second.tables == {"orders", "positions", "security_audit_logs"} & share.tables
    assert "OrderPlaced" in second.types["security_audit_logs"]
    assert "UserRegistered" not in second.types["security_audit_logs"]
    assert [each.slice.number for each in (first, second) if each.slice] == [0, 1]
    keys = Share({"users", "api_keys"}, {})
    assert plan.cut(keys, 2) == [keys]
    assert plan.cut(share, 1) == [share]
    assert not can_be_cut(TRADING.only(["api_keys"]))
    assert not can_be_cut(Group("other", *PART.projections))


def test_slices_are_counted() -> None:
    """A group is folded again unless its slices claimed each event once, and saw the same ones."""
    parts = [
        Part("x", "main", 1, "trading", {}, 9, slice=Slice("orders", number, 2))
        for number in range(2)
    ]

    def fits(*slices: Claims | None) -> bool:
        built = [
            Built(9, {}, NO_CLAIMS if each is None else each, is_entangled=each is None)
            for each in slices
        ]
        return not _entangled(parts, built)

    def claims(claimed: int, claimable: int) -> Claims:
        return Claims(bytes([claimed]), bytes([claimable]))

    assert fits(claims(0b1010, 0b1011), claims(0b0001, 0b1011))
    assert fits(NO_CLAIMS, NO_CLAIMS)
    assert not fits(claims(0b1010, 0b1111), claims(0b0001, 0b1111))
    assert not fits(claims(0b1010, 0b1011), claims(0b1001, 0b1011))
    assert not fits(claims(0b1010, 0b1111), claims(0b0010, 0b1111))
    assert not fits(claims(0b0001, 0b0001), NO_CLAIMS)
    assert not fits(claims(0b0001, 0b0001), None)
