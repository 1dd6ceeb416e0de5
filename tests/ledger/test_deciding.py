"""Deciding: states are kept, conditions meet what others do, repetition stores nothing twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from uuid import uuid4

import pytest

from ledger.conditions import NoEvent
from ledger.decider import Command, Decider
from ledger.deciding import Deciding, Origin, StreamMoved
from ledger.errors import CommandRefused, Contended, InvalidCommand
from ledger.event import Amount, Event, Metadata, NewEvent
from ledger.journal import Journal
from ledger.stores import Appended
from tests.ledger.support import AnyEvent, Remarked, opened, read_all


class Count(Command):
    """Count to `limit`, by one."""

    limit: int = 1_000
    amount: Amount | None = None


class Counted(AnyEvent):
    """An event that names its stream, as the domain's do."""

    def stream(self) -> str:
        """Name the one counter."""
        return "counter"


def decide(command: Count, state: int) -> Sequence[Event]:
    """Refuse to count beyond the limit; a limit of zero asks for nothing."""
    if command.limit == 0:
        return ()
    if state >= command.limit:
        raise command.refused("counter", str(state), "it is at its limit")
    return (Counted(text=str(state + 1), tagged=("counted",)),)


def evolve(state: int, event: Event) -> int:
    """Count what was counted."""
    return state + isinstance(event, Counted)


COUNTER = Decider(0, decide, evolve)


@pytest.fixture
async def journal(database_url: str) -> AsyncIterator[Journal]:
    """An open journal."""
    async with opened(database_url) as journal:
        yield journal


async def test_parallel_commands_are_decided_one_after_the_other(
    journal: Journal, database_url: str
) -> None:
    """Two services count 40 times in all at once: no number is left out or stored twice."""
    async with opened(database_url) as other:
        services = [Deciding(journal), Deciding(other)]
        await asyncio.gather(
            *(services[n % 2].execute(COUNTER, "counter", Count()) for n in range(40))
        )
    texts = [event.event.text for event in await read_all(journal)]  # type: ignore[attr-defined]
    assert texts == [str(n) for n in range(1, 41)]


async def test_a_command_that_should_be_first_need_not_be(
    journal: Journal, database_url: str
) -> None:
    """It is tried without a look at the stream; where others were there, it is decided anew."""
    async with opened(database_url) as other:
        await Deciding(other).execute(COUNTER, "counter", Count(), is_first=True)
    deciding = Deciding(journal)
    done = await deciding.execute(COUNTER, "counter", Count(), is_first=True)
    assert (done.before, done.appended) == (1, Appended((1,)))
    with pytest.raises(CommandRefused, match="in state 2"):
        await deciding.execute(COUNTER, "counter", Count(limit=2), is_first=True)


async def test_a_refused_command_leaves_no_event(journal: Journal) -> None:
    """The error names command, state and subject; a command that means nothing stores nothing."""
    deciding = Deciding(journal)
    await deciding.execute(COUNTER, "counter", Count(limit=1))
    with pytest.raises(CommandRefused, match="counter: Count is refused in state 1") as refused:
        await deciding.execute(COUNTER, "counter", Count(limit=1))
    assert (refused.value.command, refused.value.state) == ("Count", "1")
    assert (await deciding.execute(COUNTER, "counter", Count(limit=0))).appended is None
    assert await journal.size() == 1


async def test_a_repeated_command_is_stored_once(journal: Journal) -> None:
    """The same command id gives the same offsets, whether it would be refused now or not."""
    origin = Origin(command_id=uuid4(), metadata=Metadata(actor="test"))
    for limit in (1, 1_000):
        command = Count(limit=limit)
        first = await Deciding(journal).execute(COUNTER, "counter", Count(), origin=origin)
        again = await Deciding(journal).execute(COUNTER, "counter", command, origin=origin)
        assert first.appended
        assert again.appended
        assert (again.appended.offsets, again.appended.duplicate) == (first.appended.offsets, True)
        assert again.events == first.events
    [event] = await read_all(journal)
    assert event.metadata.actor == "test"


async def test_a_guard_is_asked_again_and_in_the_end_given_up(journal: Journal) -> None:
    """What a guard's condition rules out makes it decide anew; a bound ends that."""
    await journal.append(NewEvent(Remarked(), "other"))
    asked = 0

    async def guard() -> Sequence[NoEvent]:
        nonlocal asked
        asked += 1
        return (NoEvent(stream="other", after=-1 if asked < 3 else 0),)

    await Deciding(journal).execute(COUNTER, "counter", Count(), guard=guard)
    assert asked == 3
    asked = -100
    with pytest.raises(Contended, match="counter: Count was decided 5 times"):
        await Deciding(journal, tries_max=5).execute(COUNTER, "counter", Count(), guard=guard)
    assert await journal.size() == 2


async def test_only_what_is_new_is_read(journal: Journal) -> None:
    """A state is kept and brought up to date by stream and by tag, alone or with others."""
    deciding, other = Deciding(journal), Deciding(journal)
    for count in (1, 2, 3):
        await other.execute(COUNTER, "counter", Count())
        loaded = await deciding.load(COUNTER, "counter")
        assert (loaded.state, loaded.version, loaded.offset) == (count, count, count - 1)
        assert deciding.known(COUNTER, "counter") is loaded
        tagged = await deciding.load_tagged(COUNTER, "counted")
        assert (tagged.state, tagged.version, tagged.offset) == (count, count, count - 1)
    assert deciding.known(COUNTER, "never").version == 0


def test_an_amount_of_a_command_must_fit() -> None:
    """An amount that no column can hold is refused with the command's and the field's name."""
    assert Count(amount="1.50").amount == Amount("1.5")  # type: ignore[arg-type] # becomes one
    with pytest.raises(InvalidCommand, match=r"Count\.amount: .* too many digits") as wrong:
        Count(amount="0.000000001")  # type: ignore[arg-type] # becomes an amount
    assert wrong.value.field == "amount"


class Recount(Count):
    """Another command on the same stream."""


async def test_one_id_for_two_commands_stores_both(journal: Journal) -> None:
    """The ids of events follow from the command's name too, so none is taken for the other."""
    origin = Origin(command_id=uuid4())
    for command in (Count(), Recount(), Count(limit=0)):
        done = await Deciding(journal).execute(COUNTER, "counter", command, origin=origin)
        assert done.appended
        assert done.appended.duplicate == (command.limit == 0)
    assert await journal.size() == 2


async def test_what_is_known_only_grows(journal: Journal) -> None:
    """A slow read that ends last does not put an older state in the place of a newer one."""
    deciding = Deciding(journal)
    await deciding.execute(COUNTER, "counter", Count())
    known = deciding.known(COUNTER, "counter")
    slow = deciding.load(COUNTER, "counter")
    await Deciding(journal).execute(COUNTER, "counter", Count())
    first = asyncio.create_task(slow)
    loaded = await asyncio.gather(first, *(deciding.load(COUNTER, "counter") for _ in range(5)))
    assert {each.version for each in loaded} == {2}
    assert (known.version, deciding.known(COUNTER, "counter").version) == (0, 2)


async def test_a_version_that_the_caller_gave_is_not_decided_anew(journal: Journal) -> None:
    """Another version is an error at once; a repeated command still finds what it stored."""
    deciding = Deciding(journal)
    first = Origin(command_id=uuid4(), expected_version=0)
    done = await deciding.execute(COUNTER, "counter", Count(), origin=first)
    for is_first in (False, True):
        with pytest.raises(StreamMoved, match="is at version 1, not at the expected 7") as moved:
            await Deciding(journal).execute(
                COUNTER,
                "counter",
                Count(),
                origin=Origin(expected_version=7),
                is_first=is_first,
            )
        assert (moved.value.expected, moved.value.actual) == (7, 1)
    again = await Deciding(journal).execute(COUNTER, "counter", Count(), origin=first)
    assert done.appended
    assert again.appended
    assert (again.appended.offsets, again.appended.duplicate) == (done.appended.offsets, True)
    assert await journal.size() == 1


async def test_a_repeated_command_may_come_too_late_for_its_values(journal: Journal) -> None:
    """What was right when it was stored is found, though it cannot be right any more."""
    is_late = False

    def punctual(command: Count, state: int) -> Sequence[Event]:
        if is_late:
            raise command.invalid("limit", "is past")
        return decide(command, state)

    decider, origin = Decider(0, punctual, evolve), Origin(command_id=uuid4())
    for is_first in (True, False):
        first = await Deciding(journal).execute(
            decider, "counter", Count(), origin=origin, is_first=is_first
        )
        assert first.appended
        is_late = True
        again = await Deciding(journal).execute(
            decider, "counter", Count(), origin=origin, is_first=is_first
        )
        assert again.appended == Appended(first.appended.offsets, duplicate=True)
        with pytest.raises(InvalidCommand, match="is past"):
            await Deciding(journal).execute(decider, "counter", Count(), is_first=is_first)
        is_late = False


async def test_names_of_nothing_take_no_room(journal: Journal) -> None:
    """However many are made up, what is kept of streams that are there stays."""
    deciding = Deciding(journal)
    await deciding.execute(COUNTER, "counter", Count())
    kept = await deciding.load(COUNTER, "counter")
    for name in ("never", "nowhere"):
        assert (await deciding.load(COUNTER, name)).version == 0
        assert (await deciding.load_tagged(COUNTER, name)).version == 0
    assert list(deciding._kept.values()) == [kept]
