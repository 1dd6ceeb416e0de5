"""What people and the reactor are told of poisoned events."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterator

import pytest

import replay
from ledger import console
from ledger.domain.orders import Action, OrderAccepted, OrderCancelRequested, OrderFilled, OrderType
from ledger.event import RecordedEvent
from ledger.journal import Journal, open_journal
from ledger.settings import Settings
from projections import cli
from projections.database import Database
from projections.groups import GROUPS, TABLES, TRADING
from projections.projector import Projector
from projections.retrying import retry
from tests.projections import poison
from tests.projections.support import append
from tests.projections.test_parking import ONE, POISONED, history
from tests.projections.test_reactor import BUY, Desk

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(sqlite_url: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run `replay` or `projections`; return exit code, output and errors."""
    monkeypatch.setenv("LEDGER_DATABASE_URL", sqlite_url)
    apps = {"replay": replay.app, "projections": cli.app}

    def call(name: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        with pytest.raises(SystemExit) as ended:
            console.main(apps[name], name)
        output, errors = capfd.readouterr()
        return int(ended.value.code or 0), output, errors

    return call


@pytest.fixture
def parked(run: Run, sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A database in which the change at offset 2 is poisoned; undo it to mend the fold."""

    async def fill() -> None:
        async with open_journal(Settings(database_url=sqlite_url)) as journal:
            await append(journal, history())

    asyncio.run(fill())
    folds = pytest.MonkeyPatch()
    folds.setitem(GROUPS, "trading", POISONED)
    for each in POISONED.projections:
        folds.setitem(TABLES, each.name, POISONED)
    assert run("projections", "run", "--once")[0] == 0
    return folds


@pytest.fixture(autouse=True)
def _mended() -> Iterator[None]:
    """Take the poison out after each test."""
    yield
    GROUPS["trading"] = TRADING
    TABLES.update({each.name: TRADING for each in TRADING.projections})


@pytest.mark.usefixtures("parked")
def test_parked_keys_are_listed(run: Run) -> None:
    """Since which event, with its error or for what it waits, and how many events wait."""
    code, output, _ = run("projections", "parked")
    cause, *waiting = output.splitlines()
    assert code == 0
    assert cause.startswith(
        f"users user_id={ONE} is parked at offset 2 (EmailChanged): Spoilt: users at 2; since "
    )
    assert cause.endswith("2 events wait")
    assert all(f"waits for users user_id={ONE}" in line for line in waiting)
    found = json.loads(run("projections", "parked", "--json")[1])
    assert (found[0]["value"], found[0]["offset"], found[0]["waiting"]) == (str(ONE), 2, 2)
    assert "Spoilt" in run("projections", "status")[1]


@pytest.mark.usefixtures("parked")
def test_verify_and_as_of_tell_what_is_parked(run: Run) -> None:
    """Verify ends with code 1 as long as a key is parked; as-of notes it."""
    code, output, _ = run("replay", "verify")
    assert code == 1
    assert f"not verified: users user_id={ONE} is parked at offset 2" in output
    assert "not verified: 3 parked keys, else as it should be: 5 events" in output
    code, output, _ = run("replay", "as-of", "--size", "5", "--table", "users")
    assert code == 0
    assert f"note: users user_id={ONE} is parked at offset 2" in output
    assert "a@host" in output
    answer = json.loads(run("replay", "as-of", "--size", "5", "--format", "json")[1])
    assert "Spoilt" in answer["notes"][0]
    assert "notes" not in json.loads(run("replay", "as-of", "--size", "2", "--format", "json")[1])


def test_a_retry_after_the_mend_frees_the_keys(run: Run, parked: pytest.MonkeyPatch) -> None:
    """Before it ends with code 1 and says what is still parked; after it all is verified."""
    code, output, _ = run("projections", "retry", "--all")
    assert code == 1
    assert "trading: 0 keys are free" in output
    assert f"still parked: users user_id={ONE}" in output
    assert run("projections", "retry", "--table", "users", "--value", str(ONE))[0] == 1
    parked.undo()
    code, output, _ = run("projections", "retry", "--table", "users", "--value", str(ONE))
    assert (code, output) == (0, "trading: 3 keys are free, 3 rows written\n")
    assert run("replay", "verify")[1].startswith("verified: 5 events")
    assert run("projections", "parked") == (0, "", "")


@pytest.mark.usefixtures("parked")
def test_a_skip_is_told_for_ever(run: Run) -> None:
    """Verify is satisfied, and says what is left out, by whom and why; as-of does so too."""
    skip = ("projections", "skip", "--table", "users", "--offset", "2")
    code, output, _ = run(*skip, "--reason", "sent twice", "--actor", "ops")
    told = "users without the EmailChanged at offset 2, skipped by ops at "
    assert code == 0
    assert output.startswith(told)
    assert "trading: 3 keys are free" in output
    code, output, _ = run("replay", "verify")
    assert code == 0
    assert f"left out: {told}" in output
    assert "sent twice" in output
    assert "verified, but for 1 skipped events: 5 events" in output
    assert f"note: {told}" in run("replay", "as-of", "--size", "3")[1]
    assert "note: " not in run("replay", "as-of", "--size", "2")[1]
    code, _, errors = run(*skip, "--reason", "again")
    assert (code, errors.count("\n")) == (2, 1)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["retry"], "give both --table and --value, or --all"),
        (["retry", "--table", "users"], "give both --table and --value, or --all"),
        (["retry", "--all", "--table", "users", "--value", "x"], "or --all"),
        (["retry", "--table", "nothing", "--value", "x"], "'nothing' is unknown"),
        (["retry", "--table", "users", "--value", "x"], "is not parked"),
        (["skip", "--table", "users", "--offset", "1", "--reason", " "], "must say why"),
        (["skip", "--table", "users", "--offset", "1", "--reason", "x"], "no event at offset 1"),
    ],
)
def test_bad_requests_are_refused(run: Run, arguments: list[str], reason: str) -> None:
    """What cannot be done ends with code 2 and one line that says why."""
    code, output, errors = run("projections", *arguments)
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert reason in errors


@pytest.fixture
def desk(journal: Journal, database: Database) -> Desk:
    """A desk on a fresh journal."""
    return Desk(journal, database)


async def project(desk: Desk, table: str, kind: type) -> None:
    """Bring the tables up to date with a fold to which the last event of a kind is poison."""
    last = (await desk.events(kind))[-1].offset

    def is_poison(name: str, recorded: RecordedEvent) -> bool:
        return (name, recorded.offset) == (table, last)

    group = poison.poisoned(TRADING, is_poison)
    await Projector(desk.database, desk.journal, group).catch_up()


async def test_the_reactor_leaves_a_parked_position_alone(desk: Desk) -> None:
    """No order is placed by a size that is not true; that is said once, and made up for later."""
    position_id = await desk.open()
    await desk.trade(BUY, "1")
    await project(desk, "positions", OrderFilled)
    for _ in range(2):
        await desk.mark("80")
        await desk.react()
    assert await desk.closing() == []
    [said] = desk.reactions
    assert (said.what, said.subject) == ("left alone in positions:", position_id)
    assert "Spoilt" in said.because
    await retry(desk.database, desk.journal, TRADING)
    await desk.mark("80")
    await desk.react()
    [placed] = await desk.closing()
    assert placed.quantity == 3


async def test_the_reactor_leaves_a_parked_order_alone(desk: Desk) -> None:
    """An order of which not all is known is neither cancelled nor activated, nor its position."""
    await desk.open()
    await desk.rest("resting", OrderType.STOP_LOSS, "85")
    await project(desk, "orders", OrderAccepted)
    await desk.mark("80")
    await desk.react()
    assert await desk.closing() == []
    await desk.trade(Action.SELL, "2")
    await desk.react()
    assert await desk.events(OrderCancelRequested) == []
    assert {each.what for each in desk.reactions} == {"left alone in orders:"}
    await retry(desk.database, desk.journal, TRADING)
    await desk.react(desk.new_reactor())
    assert len(await desk.events(OrderCancelRequested)) == 1
