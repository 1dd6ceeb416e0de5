"""The trial balance: it adds up, and notices what is wrong in postings, balances or positions."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from decimal import Decimal
from random import Random
from typing import Any

import msgspec
import pytest

import replay
from ledger import console
from ledger.domain.orders import Action, Execution, FillBusted, OrderFilled
from ledger.domain.positions import PositionLiquidated
from ledger.domain.users import UserRegistered
from ledger.event import Event, RecordedEvent, VenueAmount
from ledger.journal import open_journal
from ledger.settings import Settings
from projections.database import Database
from projections.fold import Group
from projections.groups import GROUPS, POSTINGS, TRADING
from projections.positions import Position, positions
from projections.postings import BookBalance, Posting
from projections.projection import Projection, State
from projections.projector import Projector
from projections.trial_balance import (
    Balance,
    NotComparable,
    TrialBalance,
    folded_balance,
    live_balance,
    trial_balance,
)
from tests.projections.random_events import random_events
from tests.projections.support import an_id, append, folded

USER = an_id("user")
BOOK = f"book:{USER}:SOL"
Run = Callable[..., tuple[int, str, str]]


def fill(quantity: int, price: str, fee: str = "1", currency: str | None = None) -> OrderFilled:
    """Return a fill of the user; one of a negative quantity sells."""
    return OrderFilled(
        order_id=an_id("order"),
        fill_id="fill",
        user_id=USER,
        token="SOL",
        action=Action.BUY if quantity > 0 else Action.SELL,
        price=VenueAmount(price),
        quantity=VenueAmount(abs(quantity)),
        fee=VenueAmount(fee),
        fee_currency=currency,
    )


HISTORY: list[Event] = [
    UserRegistered(user_id=USER, username="user"),
    fill(10, "100"),
    fill(-4, "130"),
    fill(-1, "90", "2", "BNB"),
    fill(-7, "120"),
]


def balance_of(
    events: Sequence[Event], trading: Group = TRADING, change: Callable[[State], None] | None = None
) -> TrialBalance:
    """Return the trial balance after these events; `change` alters the postings' state before."""
    booked, traded = folded(events, POSTINGS), folded(events, trading)
    if change is not None:
        change(booked)
    rows = (booked.rows(Posting), booked.rows(BookBalance), traded.rows(Position))
    return trial_balance(len(events), *rows)


def test_all_accounts_add_up() -> None:
    """Each account is summed by currency, and each currency to zero."""
    found = balance_of(HISTORY)
    assert found.faults == []
    assert found.totals == {"BNB": 0, "SOL": 0, "quote": 0}
    assert [(each.currency, each.account) for each in found.balances] == [
        ("BNB", "cash"),
        ("BNB", "fee"),
        ("SOL", "holding"),
        ("SOL", "venue"),
        ("quote", "cash"),
        ("quote", "cost"),
        ("quote", "fee"),
        ("quote", "realized_pnl"),
    ]
    assert Balance("holding", "SOL", Decimal(-2)) in found.balances
    assert Balance("cost", "quote", Decimal(-240)) in found.balances
    assert Balance("realized_pnl", "quote", Decimal(-210)) in found.balances
    assert (found.size, found.postings, found.books) == (5, 24, 1)


def test_random_histories_agree_at_every_size() -> None:
    """Postings and positions say the same after any events, absurd amounts included."""
    for seed in range(12):
        events = random_events(Random(seed), 120, odd_chance=0.05)
        for size in range(0, 121, 20):
            found = balance_of(events[:size])
            assert (found.faults, set(found.totals.values()) - {0}) == ([], set())


def forced(name: str, **fields: Any) -> PositionLiquidated:
    """Return a liquidation at 90 for a fee of 2."""
    return PositionLiquidated(
        position_id=an_id(name), price=VenueAmount(90), fee=VenueAmount(2), **fields
    )


def test_liquidations_of_any_book_agree() -> None:
    """Those of another cycle or book, of nothing and too late ones are booked alike by both."""
    registered, opening = HISTORY[0], fill(10, "100")
    [row] = folded([registered, opening]).rows(Position)
    own, held = an_id("hedge"), f"position:{an_id('hedge')}"
    named = msgspec.structs.replace(fill(-3, "110"), position_id=row.position_id)
    hedged = msgspec.structs.replace(fill(5, "100"), position_id=own)
    by_id = msgspec.structs.replace(forced("any"), position_id=row.position_id)
    by_book = msgspec.structs.replace(by_id, book=BOOK)
    histories: list[list[Event]] = [
        [opening, named, by_book, by_book, by_id],
        [opening, named, by_id, by_book],
        [opening, by_id, fill(-10, "90"), by_book, fill(2, "80"), by_book],
        [forced("none", book=BOOK), opening, forced("none", book=BOOK), fill(-10, "90")],
        [hedged, forced("none", book=held), forced("hedge", book=BOOK), forced("hedge")],
        [forced("hedge"), hedged, forced("hedge"), forced("hedge"), hedged, forced("hedge")],
    ]
    for events in histories:
        for size in range(len(events) + 1):
            assert balance_of([registered, *events[:size]]).faults == []


def wrong_group(wrong: Callable[[State, RecordedEvent, Execution], None]) -> Group:
    """Return the trading tables with another fold of fills into positions."""
    changed = Projection(Position, aliases=positions.aliases, derived=positions._derived)
    changed.handlers = dict(positions.handlers)
    changed.on(OrderFilled, FillBusted)(wrong)
    return Group(
        "trading", *(changed if each is positions else each for each in TRADING.projections)
    )


def averaged_on_reduction(state: State, recorded: RecordedEvent, event: Execution) -> None:
    """Fold a fill, and let a reduction move the average price as an increase does."""
    row = state.rows(Position).find("book", BOOK)
    before = None if row is None else (row.exact_size, row.cost_basis)
    positions.handlers[OrderFilled](state, recorded, event)
    if row is not None and before is not None and 0 < row.exact_size < before[0]:
        row.cost_basis = before[1] - abs(event.quantity) * event.price


def without_fees(state: State, recorded: RecordedEvent, event: Execution) -> None:
    """Fold a fill and forget what it cost."""
    positions.handlers[OrderFilled](state, recorded, event)
    for row in state.rows(Position):
        row.exact_fees, row.other_fees = Decimal(0), {}


def twice(state: State, recorded: RecordedEvent, event: Execution) -> None:
    """Fold a fill two times."""
    positions.handlers[OrderFilled](state, recorded, event)
    positions.handlers[OrderFilled](state, recorded, event)


@pytest.mark.parametrize(
    ("wrong", "noticed"),
    [
        (averaged_on_reduction, {"realized_pnl"}),
        (without_fees, {"fees", "fees in BNB"}),
        (twice, {"holding", "cost", "fees", "fees in BNB", "realized_pnl"}),
    ],
)
def test_a_wrong_fold_of_positions_is_noticed(
    wrong: Callable[[State, RecordedEvent, Execution], None], noticed: set[str]
) -> None:
    """Each figure that a wrong fold changes is named, with its book and both amounts."""
    found = balance_of(HISTORY, wrong_group(wrong))
    assert {fault.subject for fault in found.faults} == {BOOK}
    assert {fault.reason.partition(":")[0] for fault in found.faults} == noticed
    assert balance_of(HISTORY, wrong_group(positions.handlers[OrderFilled])).faults == []


def test_an_average_that_moves_on_a_reduction_is_noticed_at_once() -> None:
    """While the position is open, cost and realised P&L both differ."""
    found = balance_of(HISTORY[:3], wrong_group(averaged_on_reduction))
    assert [str(fault) for fault in found.faults] == [
        f"{BOOK}: cost: 600 in the book balances, 480 in the positions"
    ]


@pytest.mark.parametrize("column", ["holding", "cash", "cost", "fees", "realized_pnl"])
def test_a_wrong_balance_is_noticed(column: str) -> None:
    """A balance that is not the sum of its entries is named, however small the difference."""

    def change(state: State) -> None:
        [row] = state.rows(BookBalance)
        setattr(row, column, getattr(row, column) + Decimal("1e-16"))

    faults = balance_of(HISTORY, change=change).faults
    assert faults
    assert {fault.reason.partition(":")[0] for fault in faults} == {column}


def test_an_event_that_is_out_of_balance_is_noticed() -> None:
    """An entry that is too large by any amount is named by its event, as is the total."""

    def change(state: State) -> None:
        row = next(iter(state.rows(Posting)))
        row.amount = Decimal(f"10.{'0' * 29}1")

    found = balance_of(HISTORY, change=change)
    [fault] = found.faults
    assert fault.subject.startswith("event ")
    assert fault.reason == f"its entries in SOL sum to 0.{'0' * 29}1, not to zero"
    assert found.totals["SOL"] == Decimal("1e-30")


def test_an_entry_on_the_wrong_account_is_noticed() -> None:
    """Entries that still sum to zero, but lie elsewhere, do not go with their book's balances."""

    def change(state: State) -> None:
        next(row for row in state.rows(Posting) if row.account == "fee").account = "cost"

    reasons = [fault.reason for fault in balance_of(HISTORY, change=change).faults]
    assert [reason.partition(":")[0] for reason in reasons] == ["cost", "fees"]


def test_a_book_that_only_one_side_has_is_noticed() -> None:
    """A book without positions, or positions without a book, is a fault."""
    booked, traded = folded(HISTORY, POSTINGS), folded(HISTORY, TRADING)
    nothing: list[Any] = []
    assert trial_balance(5, nothing, nothing, traded.rows(Position)).faults
    assert trial_balance(5, booked.rows(Posting), booked.rows(BookBalance), nothing).faults
    assert trial_balance(0, nothing, nothing, nothing) == TrialBalance(0, 0, 0, [], {}, [])


async def test_live_tables_are_compared_at_one_size(database_url: str) -> None:
    """Tables give what a fold gives; groups at different checkpoints are not compared."""
    settings = Settings(database_url=database_url)
    async with open_journal(settings) as journal, Database(settings) as database:
        await append(journal, HISTORY)
        for group in (TRADING, POSTINGS):
            await Projector(database, journal, group).catch_up(4)
        found = await live_balance(database, journal)
        assert found == await folded_balance(journal, 4)
        assert (found.faults, found.size, found.books) == ([], 4, 1)
        await Projector(database, journal, POSTINGS).catch_up()
        with pytest.raises(NotComparable, match="positions are at size 4 and the postings at 5"):
            await live_balance(database, journal)


@pytest.fixture
def run(sqlite_url: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run `replay.py trial-balance`; return exit code, output and errors."""
    monkeypatch.setenv("LEDGER_DATABASE_URL", sqlite_url)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["replay.py", "trial-balance", *arguments])
        with pytest.raises(SystemExit) as ended:
            console.main(replay.app, "replay.py")
        output, errors = capfd.readouterr()
        return int(ended.value.code or 0), output, errors

    return call


@pytest.fixture
def filled(sqlite_url: str) -> None:
    """A journal with a history that is in the tables."""

    async def work() -> None:
        settings = Settings(database_url=sqlite_url)
        async with open_journal(settings) as journal, Database(settings) as database:
            await append(journal, HISTORY)
            for group in GROUPS.values():
                await Projector(database, journal, group).catch_up()

    asyncio.run(work())


def change(url: str, statement: str) -> None:
    """Change the tables behind the projector's back."""

    async def work() -> None:
        async with (
            Database(Settings(database_url=url)) as database,
            database.transaction() as connection,
        ):
            await connection.exec_driver_sql(statement)

    asyncio.run(work())


@pytest.mark.usefixtures("filled")
def test_the_program_prints_the_balance(run: Run) -> None:
    """Of the whole journal, of a size, of a time, or of the tables; as a table or as JSON."""
    code, output, errors = run()
    assert (code, errors) == (0, "")
    lines = output.splitlines()
    assert lines[:2] == ["journal main as of size 5", "root: not sealed"]
    assert lines[2:4] == ["", "account       currency  amount"]
    assert "realized_pnl  quote     -210\n" in output
    assert output.endswith("\nbalanced, as the positions are (postings: 24, books: 1)\n")
    answer = json.loads(run("--size", "2", "--json")[1])
    assert {"account": "cash", "currency": "quote", "amount": "-1001"} in answer.pop("balances")
    assert answer == {
        "journal": "main",
        "size": 2,
        "root": None,
        "postings": 5,
        "books": 1,
        "totals": {"SOL": "0", "quote": "0"},
        "faults": [],
    }
    live = json.loads(run("--live", "--json")[1])
    assert live == json.loads(run("--json")[1])
    past = json.loads(run("--recorded", "2020-01-01T00:00:00Z", "--json")[1])
    assert (past["size"], past["balances"], past["provisional"]) == (0, [], False)


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(
    ("statement", "noticed"),
    [
        (
            "UPDATE postings SET amount = '11' WHERE account = 'holding' AND amount = '10'",
            "its entries in SOL sum to 1, not to zero",
        ),
        (
            "UPDATE positions SET exact_realized_pnl = '0' WHERE status = 'closed'",
            f"{BOOK}: realized_pnl: 210 in the book balances, 0 in the positions",
        ),
    ],
)
def test_an_altered_table_ends_with_code_1(
    run: Run, sqlite_url: str, statement: str, noticed: str
) -> None:
    """A changed entry and a changed position are named; the journal itself is still balanced."""
    change(sqlite_url, statement)
    code, output, _ = run("--live")
    assert code == 1
    assert noticed in output
    assert " (postings: 24, books: 1)\n" in output
    code, output, _ = run("--live", "--json")
    assert code == 1
    assert noticed in " ".join(json.loads(output)["faults"])
    assert run()[0] == 0


@pytest.mark.usefixtures("filled")
def test_what_cannot_be_answered_is_refused(run: Run, sqlite_url: str) -> None:
    """Contradictory options end with code 2, tables at different sizes with code 3."""
    code, output, errors = run("--live", "--size", "3")
    assert (code, output) == (2, "")
    assert "one of --size, --recorded and --live" in errors
    change(sqlite_url, "UPDATE checkpoints SET size = 4 WHERE group_name = 'postings'")
    code, output, errors = run("--live")
    assert (code, output, errors.count("\n")) == (3, "", 1)
    assert "leave out --live" in errors
