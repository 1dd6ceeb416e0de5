"""The states of orders against FIX Appendix D and another engine, and what the document says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from decimal import Decimal
from itertools import product
from pathlib import Path

import pytest

from ledger.domain import orders as events
from ledger.domain.order_commands import (
    OrderState,
    RequestCancel,
    RequestReplace,
    decide,
    evolve,
)
from ledger.domain.order_stages import STATUSES, Stage, leaves, ord_status, reaches, status, step
from ledger.domain.orders import (
    Execution,
    FillConflicted,
    OrderAccepted,
    OrderCancelled,
    OrderCancelPending,
    OrderCancelRejected,
    OrderCancelRequested,
    OrderDoneForDay,
    OrderEvent,
    OrderExpired,
    OrderFailed,
    OrderFilled,
    OrderPlaced,
    OrderRejected,
    OrderReplaced,
    OrderReplacePending,
    OrderReplaceRejected,
    OrderReplaceRequested,
    OrderRestated,
    OrderStopped,
    OrderTriggered,
)
from ledger.errors import CommandRefused
from ledger.event import VenueAmount, event_types
from ledger.services.orders import Orders
from tests.support.orders import ORDER, WAYS, after, answer, bust, fill, placed, scenarios

DOCUMENT = (Path(__file__).parents[3] / "docs" / "order-states.md").read_text(encoding="utf-8")
DIFFERENCES_MAX = 25
COMMANDS = {"OrderPlaced", "OrderReplaceRequested", "OrderCancelRequested", "OrderFailed"}


def rows_under(heading: str) -> list[list[str]]:
    """Return the cells of the first table under a heading of the document, without its head."""
    lines = DOCUMENT.partition(f"## {heading}\n")[2].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("|"))
    found = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def report(state: OrderState) -> tuple[object, ...]:
    """Return OrdStatus, OrderQty, CumQty and LeavesQty as an execution report has them."""
    left = leaves(state.stage, state.is_filled, state.filled, state.quantity)
    name = ord_status(state.stage, state.has_fills, state.is_filled)
    return name, state.quantity, state.filled, left


def test_fix_scenarios_step_by_step(data_dir: Path) -> None:
    """Each report of FIX's nine matrices is what our state says after the same events."""
    checked = 0
    for scenario in scenarios(data_dir):
        state = OrderState()
        for event, (message, _, expected, quantity, filled, left, last) in scenario.events():
            state = evolve(state, event)
            if expected is not None:
                known = (quantity, filled, left) if quantity is not None else report(state)[1:]
                assert report(state) == (expected, *known), (scenario.name, message)
                checked += 1
            if isinstance(event, OrderFilled):
                assert event.quantity == last
    assert checked == 39


def test_fix_scenarios_ask_for_nothing_that_we_refuse(data_dir: Path) -> None:
    """Every request of the matrices is a command that fits, but that for the unknown order."""
    refused = []
    for scenario in scenarios(data_dir):
        state = OrderState()
        for event, _ in scenario.events():
            try:
                if isinstance(event, OrderCancelRequested):
                    assert decide(RequestCancel(order_id=ORDER), state) == (event,)
                if isinstance(event, OrderReplaceRequested):
                    asked = RequestReplace(order_id=ORDER, quantity=event.quantity)
                    assert decide(asked, state) == (event,)
            except CommandRefused as error:
                refused.append((scenario.name, error.state))
            state = evolve(state, event)
    assert refused == [("B.unknown", "Unknown")]


def possible(state: OrderState) -> Iterator[OrderEvent]:
    """Yield facts that can follow, over an order of a few pieces."""
    for kind in (
        *(OrderAccepted, OrderStopped, OrderDoneForDay, OrderReplacePending, OrderReplaceRejected),
        *(OrderCancelPending, OrderCancelRejected, OrderCancelled, OrderExpired, OrderRestated),
    ):
        yield kind(order_id=ORDER)
    yield OrderRejected(order_id=ORDER, reason="no")
    yield from (OrderReplaced(order_id=ORDER, quantity=VenueAmount(n)) for n in (1, 2, 3))
    if state.quantity is not None and state.filled < state.quantity:
        yield fill(1, str(len(state.fills)))
    if state.filled > 0:
        yield bust(next(f for f in state.fills.values() if f.fill_id not in state.busted))


def fitting_transitions() -> set[tuple[str, str]]:
    """Return all changes of OrdStatus by up to six facts that fit."""
    found, seen = set(), set()
    wave = [after([placed(2)])]
    for _ in range(6):
        following = []
        for state in wave:
            for event in possible(state):
                if state.step(type(event)).misfit is None:
                    then = evolve(state, event)
                    found.add((state.name, then.name))
                    key = (then.stage, then.filled, then.quantity)
                    following += [] if key in seen else [then]
                    seen.add(key)
        wave = following
    return found


def test_every_illustrated_transition_happens(data_dir: Path) -> None:
    """Each transition that FIX illustrates is made by a fact that fits; none leads out of ends."""
    matrices = json.loads((data_dir / "oracle_fix_matrices.json").read_text())
    illustrated = {
        (before, then)
        for before, following in matrices["meta"]["illustrated_transitions"].items()
        for then in following
    }
    found = fitting_transitions()
    assert illustrated - found == set()
    assert {pair for pair in found if pair[0] in {"Canceled", "Rejected", "Expired"}} == {
        (ended, ended) for ended in ("Canceled", "Rejected", "Expired")
    }


def test_precedence_is_that_of_fix(data_dir: Path) -> None:
    """Of two states that apply at once, the one that FIX ranks higher is reported."""
    ranks = json.loads((data_dir / "oracle_fix_matrices.json").read_text())["meta"]["precedence"]
    bits = {
        "PendingCancel": Stage.CANCEL_PENDING,
        "PendingReplace": Stage.REPLACE_PENDING,
        "DoneForDay": Stage.DONE_FOR_DAY,
        "Stopped": Stage.STOPPED,
        "New": Stage.ACKNOWLEDGED,
        "Filled": Stage.PLACED,
        "PartiallyFilled": Stage.PLACED,
    }
    for (one, bit), (other, more) in product(bits.items(), repeat=2):
        names = {one, other}
        is_filled = "Filled" in names
        has_fills = is_filled or "PartiallyFilled" in names
        name = ord_status(int(Stage.PLACED | bit | more), has_fills, is_filled)
        assert name == max(names, key=lambda each: ranks[each])


def test_differences_from_another_engine_are_those_of_the_document(data_dir: Path) -> None:
    """All 121 cells are as nautilus_trader answers, but for those listed with their reason."""
    table = json.loads((data_dir / "oracle_order_fsm.json").read_text())["table"]
    cells = [(state, event) for state in table for event in table[state]]
    assert len(cells) == 121
    differing = {}
    for state, event in cells:
        theirs = "ILLEGAL" if table[state][event].startswith("n/a") else table[state][event]
        ours = answer(state, event)
        if ours != theirs:
            differing[state, event] = (theirs, ours)
    listed = rows_under("Differences from another engine")
    assert {(row[0], row[1]): (row[2], row[3]) for row in listed} == differing
    assert len(listed) == len(differing) <= DIFFERENCES_MAX
    source = re.compile(r"[A-J]\.[\w.]+|precedence|illustrated transitions")
    assert all(source.search(row[4]) for row in listed)


def test_the_document_marks_every_event_as_command_or_fact() -> None:
    """The table has each type of order event, its kind, and a method of the service."""
    own = {name for name, known in event_types().items() if known.__module__ == events.__name__}
    listed = {row[0].strip("`"): row[1:3] for row in rows_under("Commands and facts")}
    assert listed.keys() == own
    assert {name for name, row in listed.items() if row[0] == "command"} == COMMANDS
    assert {row[0] for row in listed.values()} == {"command", "venue fact"}
    for name, (_, method) in listed.items():
        called = re.findall(r"`(\w+)`", method)[0]
        assert callable(getattr(Orders, called)), name


NOTHING, PART, ALL = (False, False), (True, False), (True, True)
PLACED = Stage.PLACED
WORKING = Stage.PLACED | Stage.ACKNOWLEDGED


@pytest.mark.parametrize(
    ("stage", "event_type", "quantities", "misfit"),
    [
        (0, OrderPlaced, NOTHING, None),
        (PLACED, OrderPlaced, NOTHING, "placed_again"),
        (Stage.EARLY, OrderPlaced, PART, "placed_late"),
        (0, OrderFilled, NOTHING, "unknown_order:OrderFilled"),
        (0, OrderCancelRequested, NOTHING, "unknown_order:OrderCancelRequested"),
        (Stage.EARLY | Stage.CANCELLED, OrderFilled, NOTHING, "unknown_order:OrderFilled"),
        (PLACED, OrderAccepted, PART, None),
        (PLACED, OrderAccepted, ALL, None),
        (WORKING, OrderAccepted, NOTHING, "accepted_again"),
        (WORKING, OrderAccepted, ALL, "accepted_again"),
        (PLACED, OrderTriggered, NOTHING, "not_accepted:OrderTriggered"),
        (WORKING, OrderTriggered, NOTHING, None),
        (WORKING, OrderTriggered, PART, "after_partially_filled:OrderTriggered"),
        (WORKING | Stage.TRIGGERED, OrderTriggered, NOTHING, "triggered_again"),
        (WORKING | Stage.CANCEL_PENDING, OrderTriggered, NOTHING, "cancel_pending:OrderTriggered"),
        (WORKING | Stage.REPLACE_PENDING, OrderTriggered, NOTHING, None),
        (PLACED, OrderExpired, NOTHING, "not_accepted:OrderExpired"),
        (PLACED, OrderExpired, PART, None),
        (WORKING, OrderExpired, NOTHING, None),
        (WORKING, OrderExpired, ALL, "after_executed:OrderExpired"),
        (WORKING, OrderRejected, PART, "after_partially_filled:OrderRejected"),
        (WORKING, OrderFailed, PART, "after_partially_filled:OrderFailed"),
        (WORKING, OrderFailed, NOTHING, None),
        (WORKING, OrderRejected, ALL, "after_executed:OrderRejected"),
        (
            WORKING | Stage.CANCEL_PENDING,
            OrderReplacePending,
            NOTHING,
            "cancel_pending:OrderReplacePending",
        ),
        (
            WORKING | Stage.CANCEL_PENDING,
            OrderReplaceRequested,
            PART,
            "cancel_pending:OrderReplaceRequested",
        ),
        (WORKING | Stage.CANCEL_PENDING, OrderReplaced, NOTHING, None),
        (WORKING | Stage.CANCEL_PENDING, OrderCancelRequested, NOTHING, None),
        (WORKING, OrderCancelRequested, ALL, "after_executed:OrderCancelRequested"),
        (WORKING, OrderCancelPending, ALL, "after_executed:OrderCancelPending"),
        (WORKING, OrderCancelRejected, ALL, None),
        (WORKING, OrderReplaceRejected, ALL, None),
        (WORKING, OrderReplaceRequested, ALL, None),
        (WORKING, OrderReplaced, ALL, None),
        (WORKING, OrderRestated, ALL, None),
        (WORKING, OrderFilled, ALL, None),
        (WORKING, events.FillBusted, ALL, None),
        (WORKING, FillConflicted, ALL, None),
        (WORKING, OrderStopped, ALL, "after_executed:OrderStopped"),
        (WORKING, OrderDoneForDay, ALL, "after_executed:OrderDoneForDay"),
        (WORKING | Stage.CANCELLED, OrderFilled, PART, "after_cancelled:OrderFilled"),
        (WORKING | Stage.CANCELLED, OrderFilled, ALL, "after_cancelled:OrderFilled"),
        (WORKING | Stage.EXPIRED, OrderReplaced, NOTHING, "after_expired:OrderReplaced"),
        (WORKING | Stage.REJECTED, OrderAccepted, NOTHING, "after_failed:OrderAccepted"),
        (WORKING | Stage.FAILED, OrderRejected, NOTHING, "after_failed:OrderRejected"),
        (WORKING | Stage.CANCELLED, OrderCancelRejected, NOTHING, None),
        (WORKING | Stage.CANCELLED, OrderReplaceRejected, PART, None),
        (WORKING | Stage.CANCELLED, FillConflicted, NOTHING, None),
    ],
)
def test_what_fits(
    stage: int, event_type: type[OrderEvent], quantities: tuple[bool, bool], misfit: str | None
) -> None:
    """Each kind of misfit has its name, and an event that fits has none."""
    assert step(int(stage), event_type, *quantities).misfit == misfit


@pytest.mark.parametrize(
    ("stage", "event_type", "quantities", "expected"),
    [
        (Stage.CANCELLED, OrderFilled, NOTHING, Stage.EARLY | Stage.CANCELLED),
        (0, OrderPlaced, NOTHING, PLACED),
        (PLACED | Stage.STOPPED, OrderPlaced, NOTHING, PLACED | Stage.STOPPED),
        (Stage.EARLY | Stage.FAILED, OrderPlaced, NOTHING, PLACED | Stage.EARLY | Stage.FAILED),
        (0, OrderFilled, NOTHING, Stage.EARLY),
        (0, OrderCancelRequested, NOTHING, Stage(0)),
        (0, OrderReplaceRequested, NOTHING, Stage(0)),
        (0, OrderCancelRejected, NOTHING, Stage.EARLY | Stage.DISOWNED),
        (0, OrderReplaceRejected, NOTHING, Stage.EARLY | Stage.DISOWNED),
        (0, OrderCancelled, NOTHING, Stage.EARLY | Stage.CANCELLED),
        (PLACED, OrderAccepted, NOTHING, WORKING),
        (WORKING, OrderTriggered, NOTHING, WORKING | Stage.TRIGGERED),
        (WORKING, OrderStopped, NOTHING, WORKING | Stage.STOPPED),
        (WORKING, OrderDoneForDay, PART, WORKING | Stage.DONE_FOR_DAY),
        (WORKING | Stage.STOPPED | Stage.DONE_FOR_DAY, OrderFilled, NOTHING, WORKING),
        (WORKING | Stage.STOPPED, OrderRestated, PART, WORKING | Stage.STOPPED),
        (WORKING | Stage.DONE_FOR_DAY, OrderRestated, PART, WORKING),
        (WORKING, OrderCancelPending, NOTHING, WORKING | Stage.CANCEL_PENDING),
        (WORKING, OrderReplacePending, NOTHING, WORKING | Stage.REPLACE_PENDING),
        (WORKING | Stage.REPLACE_PENDING, OrderReplaced, NOTHING, WORKING),
        (WORKING | Stage.REPLACE_PENDING, OrderReplaceRejected, NOTHING, WORKING),
        (WORKING | Stage.CANCEL_PENDING, OrderCancelRejected, ALL, WORKING),
        *(
            (WORKING | Stage.CANCEL_PENDING | Stage.REPLACE_PENDING, end, ALL, WORKING)
            for end in (OrderCancelled, OrderExpired, OrderRejected, OrderFailed)
        ),
        (
            WORKING | Stage.CANCEL_PENDING | Stage.REPLACE_PENDING,
            OrderReplaced,
            NOTHING,
            WORKING | Stage.CANCEL_PENDING,
        ),
        (
            WORKING | Stage.CANCEL_PENDING | Stage.REPLACE_PENDING,
            OrderCancelRejected,
            NOTHING,
            WORKING | Stage.REPLACE_PENDING,
        ),
        (
            WORKING
            | Stage.TRIGGERED
            | Stage.STOPPED
            | Stage.DONE_FOR_DAY
            | Stage.CANCEL_PENDING
            | Stage.REPLACE_PENDING,
            OrderCancelled,
            PART,
            WORKING | Stage.TRIGGERED | Stage.CANCELLED,
        ),
        (WORKING, OrderExpired, PART, WORKING | Stage.EXPIRED),
        (WORKING, OrderRejected, PART, WORKING | Stage.REJECTED),
        (PLACED, OrderFailed, NOTHING, PLACED | Stage.FAILED),
        (WORKING, OrderCancelled, ALL, WORKING),
        (WORKING | Stage.CANCELLED, OrderExpired, PART, WORKING | Stage.CANCELLED),
        (WORKING | Stage.CANCELLED, OrderCancelPending, NOTHING, WORKING | Stage.CANCELLED),
        (WORKING | Stage.FAILED, OrderCancelRejected, NOTHING, WORKING | Stage.FAILED),
    ],
)
def test_what_events_do(
    stage: int, event_type: type[OrderEvent], quantities: tuple[bool, bool], expected: Stage
) -> None:
    """Facts take effect whether they fit or not; what has ended or is filled does not end again."""
    found = step(int(stage), event_type, *quantities).stage
    assert found == expected
    assert type(found) is int


@pytest.mark.parametrize(
    ("stage", "quantities", "names"),
    [
        (0, NOTHING, ("PendingNew", "pending")),
        (Stage.EARLY | Stage.DISOWNED, NOTHING, ("Rejected", "failed")),
        (Stage.EARLY | Stage.DISOWNED, PART, ("PartiallyFilled", "partially_filled")),
        (Stage.DISOWNED | Stage.DONE_FOR_DAY, NOTHING, ("Rejected", "failed")),
        (Stage.DISOWNED | PLACED, NOTHING, ("PendingNew", "pending")),
        (Stage.DISOWNED | Stage.ACKNOWLEDGED, NOTHING, ("New", "pending")),
        (Stage.DISOWNED | Stage.TRIGGERED, NOTHING, ("New", "pending")),
        (PLACED, NOTHING, ("PendingNew", "pending")),
        (PLACED | Stage.TRIGGERED, NOTHING, ("New", "pending")),
        (WORKING, NOTHING, ("New", "pending")),
        (WORKING, PART, ("PartiallyFilled", "partially_filled")),
        (WORKING, ALL, ("Filled", "executed")),
        (WORKING | Stage.DONE_FOR_DAY, PART, ("DoneForDay", "partially_filled")),
        (WORKING | Stage.CANCEL_PENDING, ALL, ("PendingCancel", "executed")),
        (WORKING | Stage.CANCELLED, PART, ("Canceled", "cancelled")),
        (WORKING | Stage.CANCELLED, ALL, ("Canceled", "cancelled")),
        (WORKING | Stage.EXPIRED, ALL, ("Expired", "expired")),
        (WORKING | Stage.REJECTED, NOTHING, ("Rejected", "failed")),
        (WORKING | Stage.FAILED, NOTHING, ("Rejected", "failed")),
    ],
)
def test_names_of_states(stage: int, quantities: tuple[bool, bool], names: tuple[str, str]) -> None:
    """FIX's name follows from precedence, the platform's from the end or the quantities."""
    assert (ord_status(int(stage), *quantities), status(int(stage), *quantities)) == names
    assert names[1] in STATUSES
    unmoved = step(int(stage), OrderCancelRequested, *quantities)
    assert (unmoved.ord_status, unmoved.status) == names


@pytest.mark.parametrize(
    ("sums", "expected"),
    [
        ((0, 0, 0, None), False),
        ((-1, 0, -2, None), False),
        ((2, 50, 2, None), True),
        ((1, 50, 2, 10), False),
        ((3, 50, 2, None), True),
        ((1, 50, None, 50), True),
        ((1, 49, None, 50), False),
        ((1, 49, None, None), False),
        ((Decimal("0.1"), 5, Decimal("0.1"), None), True),
    ],
)
def test_when_an_order_is_filled(sums: tuple[Decimal, ...], expected: bool) -> None:
    """The quantity decides, the amount only where there is none; nothing filled is not filled."""
    assert reaches(*sums) is expected


def test_leaves() -> None:
    """What is left is the rest while the order is active, nothing at its end, never negative."""
    ten, four = Decimal(10), Decimal(4)
    assert leaves(WORKING, False, four, ten) == 6
    assert leaves(WORKING | Stage.DONE_FOR_DAY, False, four, ten) == 6
    assert leaves(WORKING, False, four, None) is None
    assert leaves(WORKING, True, four, None) == 0
    assert leaves(WORKING, False, ten, four) == 0
    for ended in (Stage.CANCELLED, Stage.EXPIRED, Stage.REJECTED, Stage.FAILED):
        assert leaves(WORKING | ended, False, four, ten) == 0


def test_no_two_ways_disagree() -> None:
    """The states that are compared with the other engine are all reached by facts that fit."""
    for name, way in WAYS.items():
        state = OrderState()
        for event in way:
            assert state.step(type(event)).misfit is None, name
            state = evolve(state, event)
    assert {kind for kind in event_types().values() if issubclass(kind, Execution)} == {
        OrderFilled,
        events.FillBusted,
        FillConflicted,
    }
