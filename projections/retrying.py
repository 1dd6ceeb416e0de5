"""Retrying and skipping what is parked: exact, since it comes of a fresh fold of the journal.

The part of the group that is concerned is folded afresh in memory, up to the checkpoint, which is
locked for the last stretch. Written are just the rows that events have changed which were held back
before, and the lanes that are parked now. What is not retried counts as poisoned, as it does live.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.errors import LedgerError
from ledger.journal import Journal
from projections import checkpoints, leases, parking, tables
from projections.batches import REFUSED, is_refusal, reason_of
from projections.database import Database
from projections.fold import Group
from projections.guarding import Trace
from projections.lanes import Parking, Place, Rulings
from projections.parking import ParkedKey, SkippedEvent
from projections.projector import FOLD_EVENTS_PER_SECOND_MIN
from projections.replaying import CHUNK_SIZE, Refold

TRIES_MAX = 5
ROUNDS_MAX = 100

Choice = Callable[[ParkedKey], bool]
Advanced = Callable[[int], None]


class NotParked(LedgerError):
    """Nothing is parked there, or it only waits for something else; nothing was changed."""


class StillRefused(LedgerError):
    """The database still refuses what the fold makes of the events; nothing was changed."""

    exit_code = 3

    def __init__(self, group: str, error: LedgerError) -> None:
        super().__init__(
            f"group {group!r}: {reason_of(error)}; retry the others one by one with --table and "
            "--value, or skip the event"
        )


class FoldDiffers(LedgerError):
    """This program's fold raises where the live table has folded the event; nothing was changed."""

    exit_code = 3

    def __init__(self, place: Place, error: str | None) -> None:
        super().__init__(
            f"the fold of {place[0]} raises at offset {place[1]} ({error}), which the live table "
            "has folded; run this with the release whose projectors keep the table"
        )


class Overtaken(LedgerError):
    """Somebody else retried or skipped at the same time; nothing was changed. Run it again."""

    exit_code = 3

    def __init__(self, group: str) -> None:
        super().__init__(
            f"the parked keys of group {group!r} were changed by somebody else; run it again"
        )


class Retried(msgspec.Struct, frozen=True):
    """What came of it: how many keys are free, which are still parked, how many rows changed."""

    group: str
    freed: int
    rows: dict[str, int]
    parked: list[ParkedKey]


async def retry(
    database: Database,
    journal: Journal,
    group: Group,
    only: tuple[str, str] | None = None,
    advanced: Advanced = lambda _: None,
) -> Retried:
    """Fold again what is parked in a group: the keys of a table that have a value, or all.

    Keys that only waited for them are freed with them. Raises NotParked, StillRefused, Overtaken.
    """
    async with database.snapshot() as connection:
        keys = await parking.parked(connection, journal.journal_id, group)
    if not keys and only is None:
        return Retried(group.name, 0, {}, [])
    if only is not None:
        _check_choice(keys, only)
        places = {(key.table, key.offset) for key in keys if (key.table, key.value) == only}
        return await _retry(database, journal, group, _is_at(places), advanced)
    try:
        return await _retry(database, journal, group, lambda _: True, advanced)
    except StillRefused:
        return await _retry(database, journal, group, _is_of_fold, advanced)


def _check_choice(keys: Sequence[ParkedKey], only: tuple[str, str]) -> None:
    found = [key for key in keys if (key.table, key.value) == only]
    if not found:
        raise NotParked(f"{only[0]} {only[1]} is not parked; see `projections parked`")
    if all(key.error is None for key in found):
        raise NotParked(f"{only[0]} {only[1]} only waits for {found[0].waits_for}: retry that")


def _is_at(places: set[tuple[str, int]]) -> Choice:
    return lambda key: (key.table, key.offset) in places


def _is_of_fold(key: ParkedKey) -> bool:
    return not (key.error or "").startswith(REFUSED)


async def skip(
    database: Database,
    journal: Journal,
    group: Group,
    place: tuple[str, int],
    reason: str,
    actor: str | None = None,
    advanced: Advanced = lambda _: None,
) -> tuple[SkippedEvent, Retried]:
    """Leave the poisoned event at `place` (table, offset) out of the table, for ever.

    What it held back is folded as by a retry. Raises NotParked, StillRefused, Overtaken.
    """
    async with database.snapshot() as connection:
        keys = await parking.parked(connection, journal.journal_id, group)
    key = _key_at(keys, place)
    names = (group.name, key.table, key.offset, key.event_id, key.event_type, key.error)
    skipped = SkippedEvent(*names, reason, actor, datetime.now(UTC))
    return skipped, await _retry(database, journal, group, _is_at({place}), advanced, skipped)


def _key_at(keys: Sequence[ParkedKey], place: Place) -> ParkedKey:
    """Return a key that the event at a place has parked; NotParked where there is none."""
    for key in keys:
        if (key.table, key.offset) == place and key.error is not None:
            return key
    raise NotParked(
        f"no event at offset {place[1]} is parked with an error in {place[0]}, so none can be "
        "skipped; see `projections parked`"
    )


async def _retry(
    database: Database,
    journal: Journal,
    group: Group,
    choice: Choice,
    advanced: Advanced,
    skipped: SkippedEvent | None = None,
) -> Retried:
    for _ in range(TRIES_MAX):
        try:
            return await _Retry(database, journal, group, choice, advanced, skipped).run()
        except Overtaken:
            continue
        except LedgerError as error:
            if is_refusal(error):
                raise StillRefused(group.name, error) from error
            raise
    raise Overtaken(group.name)


class _Retry:
    """One try, which ends with Overtaken where the parked keys change under it."""

    def __init__(
        self,
        database: Database,
        journal: Journal,
        group: Group,
        choice: Choice,
        advanced: Advanced,
        skipped: SkippedEvent | None,
    ) -> None:
        self._database = database
        self._journal = journal
        self._group = group
        self._choice = choice
        self._skipped = skipped
        self._keys: list[ParkedKey] = []
        self._skips: list[SkippedEvent] | None = None
        self._part = group
        self._trace = Trace(Parking())
        self._advanced = advanced
        self._refold: Refold | None = None

    async def run(self) -> Retried:
        """Fold up to near the checkpoint, then the rest under its lock, and write."""
        for _ in range(ROUNDS_MAX):
            async with self._database.snapshot() as connection:
                size = await checkpoints.read(connection, self._journal.journal_id, self._group)
                refold = await self._look(connection)
            if not self._keys:
                return Retried(self._group.name, 0, {}, [])
            if size - refold.size <= CHUNK_SIZE:
                break
            await refold.advance(size)
        async with self._journal.store.write_turn(), self._database.transaction() as connection:
            await self._bound(connection)
            at = await checkpoints.lock(connection, self._journal.journal_id, self._group)
            await checkpoints.renounce(connection, self._journal.journal_id, self._group)
            refold = await self._look(connection)
            state = await refold.advance(at.size)
            self._check(state.parking)
            rows = self._trace.take(state)
            await tables.write(connection, self._part, state)
            journal_id = self._journal.journal_id
            await parking.replace(connection, journal_id, self._part, state.parking)
            if self._skipped is not None:
                await parking.record_skip(connection, journal_id, self._skipped)
            left = await parking.parked(connection, journal_id, self._part)
        kept = {each.lane for each in left}
        freed = sum(each.lane not in kept for each in self._keys)
        return Retried(self._group.name, freed, rows, left)

    async def _bound(self, connection: AsyncConnection) -> None:
        """Let the server end the transaction where this process freezes with the lock held."""
        seconds = self._database.settings.lease_seconds + CHUNK_SIZE / FOLD_EVENTS_PER_SECOND_MIN
        await leases.bound(connection, seconds, seconds)

    async def _look(self, connection: AsyncConnection) -> Refold:
        """Take in what has been parked since; raise Overtaken if anything else was changed.

        Raises NotParked where what is to be skipped has been freed or skipped meanwhile.
        """
        keys = await parking.parked(connection, self._journal.journal_id, self._group)
        skips = await parking.skipped(connection, self._journal.journal_id, self._group)
        if self._refold is None:
            self._part = self._group.only({key.table for key in keys}) if keys else self._group
            self._refold = Refold(
                self._journal, self._part, trace=self._trace, advanced=self._advanced
            )
        elif self._is_overtaken(keys, skips):
            raise Overtaken(self._group.name)
        if self._skipped is not None:
            _key_at(keys, (self._skipped.table, self._skipped.offset))
        self._keys, self._skips = keys, skips
        self._trace.old = Parking({each.lane: each.as_parked for each in keys})
        self._refold.rulings = self._rulings()
        return self._refold

    def _check(self, parking: Parking) -> None:
        """Raise FoldDiffers where something raises that was not held back before."""
        old = self._trace.old.lanes
        places: dict[Place, str | None] = {}
        held: set[Place] = set()
        for lane, parked in parking.lanes.items():
            place = (lane.table, parked.offset)
            if parked.error is not None:
                places[place] = parked.error
            if lane in old and old[lane].offset <= parked.offset:
                held.add(place)
        for place in places.keys() - held:
            raise FoldDiffers(place, places[place])

    def _is_overtaken(self, keys: list[ParkedKey], skips: list[SkippedEvent]) -> bool:
        size = 0 if self._refold is None else self._refold.size
        known = {(each.lane, each.offset) for each in self._keys if each.offset < size}
        now = {(each.lane, each.offset) for each in keys if each.offset < size}
        part = {each.name for each in self._part.projections}
        return known != now or skips != self._skips or any(key.table not in part for key in keys)

    def _rulings(self) -> Rulings:
        skipped = {(each.table, each.offset) for each in self._skips or ()}
        if self._skipped is not None:
            skipped.add((self._skipped.table, self._skipped.offset))
        poisoned = {
            (key.table, key.offset): key.error
            for key in self._keys
            if key.error is not None and not self._choice(key)
        }
        return Rulings(frozenset(skipped), poisoned)
