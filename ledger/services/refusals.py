"""Recording refused uses of API keys, so that strangers cannot fill the journal with them.

Of each kind of refusal (source, reason and key) the first few of a minute are stored at once, the
others are counted, and the counts stored when the minute is over. Kinds beyond a bound share one
count for each reason and known key, and beyond another bound one for each reason. So a minute
stores a bounded number of events, whoever sends how much. The addresses of one IPv6 network of 64
bits are one source, since a single customer has them all.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from datetime import datetime, timedelta
from uuid import UUID

import msgspec

from ledger.domain.api_keys import ApiKeyRefused, KeyReason
from ledger.errors import LedgerError
from ledger.event import Metadata, NewEvent
from ledger.journal import Journal
from ledger.prepare import prepare
from ledger.stores import Appended

SINGLY_MAX = 3
KINDS_MAX = 256
KEYS_MAX = 256
POLL_SECONDS = 0.25


class Kind(msgspec.Struct, frozen=True):
    """What is counted together; `key_id` is that of a known key."""

    reason: KeyReason
    key_id: UUID | None = None
    network: str | None = None
    source: str | None = None


class Tally(msgspec.Struct):
    """How many refusals of a kind there were in a minute, and how many are not stored yet.

    `last_at` and `ip_address` are those of the last one.
    """

    seen: int = 0
    unstored: int = 0
    last_at: datetime | None = None
    ip_address: str | None = None


class Refusals:
    """Stores refusals in one journal. What is still only counted is lost if the process dies.

    A minute stores no more sums than one append may have.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        singly_max: int = SINGLY_MAX,
        kinds_max: int = KINDS_MAX,
        keys_max: int = KEYS_MAX,
    ) -> None:
        """Take the journal, and the bounds for one minute."""
        self._journal = journal
        self._singly_max = singly_max
        self._kinds_max = kinds_max
        self._keys_max = keys_max
        self._minute: datetime | None = None
        self._tallies: dict[Kind, Tally] = {}
        self._due: list[NewEvent] = []
        self._flushing = asyncio.Lock()
        self._watching: asyncio.Task[None] | None = None

    async def record(self, refused: ApiKeyRefused, metadata: Metadata | None) -> Appended | None:
        """Store a refusal, or count it: then None is returned.

        One that could not be stored is counted as well, and the error raised; where the outcome is
        unknown, it may be there twice.
        """
        new = NewEvent(refused, metadata=metadata)
        prepare([new], ())  # what cannot be stored must not be counted: no sum of it could be
        if self._minute != (minute := _minute_of(self._journal.now())):
            self._end_minute(minute)
        tally = self._tally(refused, metadata)
        tally.seen += 1
        if tally.seen > self._singly_max:
            self._count(tally)
            return None
        try:
            await self._store_due()
            return await self._journal.append(new)
        except LedgerError:
            self._count(self._tally(refused, metadata))  # by now this may be another minute's
            raise

    def _count(self, tally: Tally) -> None:
        """Leave a refusal to the sum of its minute."""
        tally.unstored += 1
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch())

    def _tally(self, refused: ApiKeyRefused, metadata: Metadata | None) -> Tally:
        """Return the tally of a refusal, which is its last one from now on."""
        kind = self._fitting(_kind_of(refused, metadata))
        tally = self._tallies.setdefault(kind, Tally())
        tally.last_at = self._journal.now()
        tally.ip_address = metadata.ip_address if metadata and kind.network else None
        return tally

    def _fitting(self, kind: Kind) -> Kind:
        """Return the kind, or where there are too many the one that it shares with others."""
        if kind in self._tallies or len(self._tallies) < self._kinds_max:
            return kind
        of_key = Kind(kind.reason, kind.key_id)
        has_room = len(self._tallies) < self._kinds_max + self._keys_max
        return of_key if of_key in self._tallies or has_room else Kind(kind.reason)

    def _end_minute(self, minute: datetime) -> None:
        """Begin another minute; while the last one's sums cannot be stored, go on counting."""
        if not self._due:
            self._due = [
                _sum_of(kind, tally) for kind, tally in self._tallies.items() if tally.unstored
            ]
            self._tallies = {}
            self._minute = minute

    async def _store_due(self) -> None:
        """Store the sums of a minute that is over; their ids are fixed, so repeating is safe."""
        async with self._flushing:
            if self._due:
                await self._journal.append(self._due)
                self._due = []

    async def _watch(self) -> None:
        """Store the sums when their minute is over, by the journal's clock."""
        try:
            while self._due or any(tally.unstored for tally in self._tallies.values()):
                await asyncio.sleep(POLL_SECONDS)
                if self._minute != (minute := _minute_of(self._journal.now())):
                    self._end_minute(minute)
                with contextlib.suppress(LedgerError):
                    await self._store_due()
        finally:
            self._watching = None

    async def flush(self) -> None:
        """Store all that was counted so far; raises what an append raises, and loses nothing."""
        await self._store_due()
        self._end_minute(_minute_of(self._journal.now()))
        await self._store_due()

    async def close(self) -> None:
        """Store all that was counted, and stop watching."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])
        await self.flush()


def _minute_of(moment: datetime) -> datetime:
    return moment - timedelta(seconds=moment.second, microseconds=moment.microsecond)


def _kind_of(refused: ApiKeyRefused, metadata: Metadata | None) -> Kind:
    ip_address = None if metadata is None else metadata.ip_address
    network = None if ip_address is None else _network_of(ip_address)
    return Kind(KeyReason(refused.reason), refused.key_id, network, refused.source)


def _network_of(ip_address: str) -> str:
    """Return the 64 bits of an IPv6 address that name a network; an IPv4 one in any form."""
    address = ipaddress.ip_address(ip_address)
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((address, 64), strict=False))


def _sum_of(kind: Kind, tally: Tally) -> NewEvent:
    refused = ApiKeyRefused(
        reason=kind.reason.value, key_id=kind.key_id, source=kind.source, count=tally.unstored
    )
    metadata = None if tally.ip_address is None else Metadata(ip_address=tally.ip_address)
    return NewEvent(refused, occurred_at=tally.last_at, metadata=metadata)
