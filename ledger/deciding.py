"""Deciding: load what has happened, decide, append, and begin again if somebody was faster."""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, Generic, TypeVar
from uuid import UUID, uuid5
from weakref import WeakValueDictionary

import msgspec
from uuid_utils.compat import uuid7

from ledger.conditions import Condition, ExpectedVersion
from ledger.decider import Decider
from ledger.errors import (
    CommandRefused,
    Contended,
    EventExists,
    EventIdConflict,
    InvalidCommand,
    TagTaken,
    VersionConflict,
)
from ledger.event import Event, Metadata, NewEvent, RecordedEvent
from ledger.journal import Journal
from ledger.stores import Appended

TRIES_MAX = 20
PAUSE_SECONDS_MAX = 0.05
STATES_KEPT_MAX = 10_000

S = TypeVar("S")
C = TypeVar("C")
T = TypeVar("T")


class StreamMoved(VersionConflict):
    """The stream is not at the version that the caller of a command decided by."""


class Loaded(msgspec.Struct, Generic[S], frozen=True):
    """A state, and the last event that went into it (version 0 and offset -1: none)."""

    state: S
    version: int = 0
    offset: int = -1


class Done(msgspec.Struct, Generic[S], frozen=True):
    """What came of a command: its events, the state before them, and where they are stored.

    `appended` is None where there was nothing to store.
    """

    events: tuple[Event, ...]
    before: S
    appended: Appended | None = None


class Origin(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Where a command comes from: what its events carry beside their data.

    With a `command_id` a command can be repeated after an unknown outcome: the ids of its events
    follow from it and the command's name, so they are stored once, and the repeated call returns
    where they are. One id stands for one call: with other values it is still the first that counts.
    `occurred_at` None means the time of recording. With an `expected_version` a command is only
    decided while its stream is at that version (0: while there is none).
    """

    command_id: UUID | None = None
    occurred_at: datetime | None = None
    metadata: Metadata | None = None
    expected_version: int | None = None

    def of(self, command: str, events: Sequence[Event]) -> list[NewEvent]:
        """Return the events of a command on their way into the journal."""
        return [
            NewEvent(
                event,
                "",
                self.event_id(command, number) or uuid7(),
                self.occurred_at,
                self.metadata,
            )
            for number, event in enumerate(events)
        ]

    def event_id(self, command: str, number: int = 0) -> UUID | None:
        """Return the id of a command's event, None where any will do."""
        return None if self.command_id is None else uuid5(self.command_id, f"{command} {number}")

    def check_version(self, stream: str, version: int) -> None:
        """Raise StreamMoved unless a stream is at the version that was expected, if one was."""
        expected = self.expected_version
        if expected is not None and expected != version:
            raise StreamMoved(stream, expected, version)


ORIGIN = Origin()
_OF_REPEATED = (CommandRefused, EventIdConflict, InvalidCommand, StreamMoved, TagTaken)
"""What a command may meet that was stored before, since time and states have moved on."""

Guard = Callable[[], Awaitable[Sequence[Condition]]]


class Deciding:
    """Runs commands against a journal.

    States are kept between commands, so that only what is new is read. Commands of this process for
    one stream take turns; those of other processes are met by conditions, and deciding anew.
    """

    def __init__(self, journal: Journal, *, tries_max: int = TRIES_MAX) -> None:
        self.journal = journal
        self._tries_max = tries_max
        self._kept: OrderedDict[tuple[int, str], Loaded[Any]] = OrderedDict()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def turn(self, name: str) -> asyncio.Lock:
        """Return the lock under which this process's commands for `name` take turns."""
        return self._turns.setdefault(name, asyncio.Lock())

    async def load(self, decider: Decider[Any, S], stream: str) -> Loaded[S]:
        """Return the state of a stream as of now."""
        known = self.known(decider, stream)
        return self._keep(
            decider, stream, known, await self.journal.read_stream(stream, known.version)
        )

    async def load_tagged(self, decider: Decider[Any, S], tag: str) -> Loaded[S]:
        """Return the state that the events with a tag lead to; its version counts them."""
        known = self.known(decider, tag)
        return self._keep(decider, tag, known, await self.journal.read_tagged(tag, known.offset))

    def known(self, decider: Decider[Any, S], name: str) -> Loaded[S]:
        """Return the last state seen of a stream or tag, which may be out of date."""
        return self._kept.get((id(decider), name)) or Loaded(decider.initial)

    def _keep(
        self,
        decider: Decider[Any, S],
        name: str,
        known: Loaded[S],
        events: Sequence[RecordedEvent],
    ) -> Loaded[S]:
        state = known.state
        for recorded in events:
            state = decider.take(state, recorded)
        loaded = known
        if events:
            loaded = Loaded(state, known.version + len(events), events[-1].offset)
        if not loaded.version:
            return loaded  # made-up names would take the place of those that are used
        # Another call may have read more meanwhile, and what is known only grows.
        if loaded.version >= self.known(decider, name).version:
            self._kept[id(decider), name] = loaded
        self._kept.move_to_end((id(decider), name))
        while len(self._kept) > STATES_KEPT_MAX:
            self._kept.popitem(last=False)
        return loaded

    async def execute(
        self,
        decider: Decider[C, S],
        stream: str,
        command: C,
        *,
        guard: Guard | None = None,
        origin: Origin = ORIGIN,
        is_first: bool = False,
    ) -> Done[S]:
        """Decide a command on a stream and store what was decided, under the version seen.

        `guard` looks at what else the command depends on and returns the conditions under which
        that still holds. A command that `is_first` in its stream, as the one that makes a thing,
        is tried without a look at the stream: whether it is there shows at the append. Raises
        CommandRefused, InvalidCommand, Contended, and what an append raises.
        """
        name = type(command).__name__
        unseen = self.known(decider, stream) if is_first and not origin.expected_version else None

        async def attempt() -> Done[S]:
            nonlocal unseen
            loaded, unseen = unseen, None
            if loaded is None or loaded.version:
                loaded = await self.load(decider, stream)
            try:
                origin.check_version(stream, loaded.version)
                conditions = await guard() if guard else ()
                events = tuple(decider.decide(command, loaded.state))
                if events:
                    new = origin.of(name, events)
                    expected = ExpectedVersion(stream, loaded.version)
                    appended = await self.journal.append(new, expected, *conditions)
                    return Done(events, loaded.state, appended)
            except _OF_REPEATED:
                earlier = await self._earlier(stream, name, origin, loaded.state)
                if earlier is None:
                    raise
                return earlier
            # A command that finds all as it should be may be the repetition that made it so.
            earlier = await self._earlier(stream, name, origin, loaded.state)
            return earlier or Done((), loaded.state)

        async with self.turn(stream):
            return await self.until_stored(attempt, name, stream)

    async def until_stored(
        self, attempt: Callable[[], Awaitable[T]], command: str, subject: str
    ) -> T:
        """Return what `attempt` returns; run it again where others were faster, within a bound.

        Raises Contended beyond the bound.
        """
        for number in range(self._tries_max):
            try:
                return await attempt()
            except StreamMoved:
                raise
            except (VersionConflict, EventExists):
                pause_seconds = min(PAUSE_SECONDS_MAX, 0.001 * 2**number)
                await asyncio.sleep(random.uniform(0, pause_seconds))  # noqa: S311 - no secret
        raise Contended(command, subject, self._tries_max)

    async def earlier(self, stream: str, command: str, origin: Origin) -> Appended | None:
        """Return where an earlier run of a command lies in a stream, None if there was none."""
        done = await self._earlier(stream, command, origin, None)
        return None if done is None else done.appended

    async def _earlier(self, stream: str, command: str, origin: Origin, state: S) -> Done[S] | None:
        """Return what an earlier run of the same command stored in the stream."""
        if origin.command_id is None:
            return None
        found: list[RecordedEvent] = []
        for each in await self.journal.read_stream(stream):
            if each.event_id == origin.event_id(command, len(found)):
                found.append(each)
        if not found:
            return None
        offsets = tuple(each.offset for each in found)
        return Done(tuple(each.event for each in found), state, Appended(offsets, duplicate=True))
