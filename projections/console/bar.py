"""The time bar over every page: the journal, the moment that is shown, and how far it is sealed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec
from markupsafe import Markup

from ledger.journal import Journal
from ledger.proof.log import LogDamaged, as_text, log_of, seal_and_checkpoint
from ledger.sqltypes import text_to_time
from projections.console import charts
from projections.console.here import Here, moment_of
from projections.points import InvalidRequest, Point
from projections.reading import Reading
from projections.reading.activity import activity


class Sealing(msgspec.Struct, frozen=True):
    """How far a journal is sealed: its newest signed checkpoint."""

    size: int
    root: str
    origin: str
    signed_at: datetime


class Bar(msgspec.Struct, frozen=True):
    """All that the time bar shows.

    `value` is the size that is shown, `recorded_at` when its last event was recorded, `samples`
    are sizes with seconds since 1970, by which scripts tell the time of a size.
    """

    journal: str
    size: int
    value: int
    recorded_at: datetime | None
    is_now: bool
    provisional: bool
    samples: list[tuple[int, int]]
    chart: Markup
    pins: dict[str, int]
    sealing: Sealing | None
    fault: str | None = None

    @property
    def text(self) -> str:
        """The moment in words, for the slider."""
        if self.recorded_at is None:
            return f"size {self.value:,}"
        return f"size {self.value:,}, {self.recorded_at:%Y-%m-%d %H:%M} UTC"


async def bar_of(reading: Reading, journal: Journal, here: Here) -> Bar:
    """Return the time bar for a page; raises InvalidRequest where its moment does not exist."""
    seen = await activity(journal)
    point = Point(seen.size) if here.at is None else await reading.point(here.at)
    pins = {}
    for name in ("a", "b"):
        if (text := here.get(name)) is not None:
            pins[name.upper()] = (await reading.point(moment_of(text))).size
    return await _bar(journal, seen.size, seen.samples, point, pins, is_now=here.at is None)


async def _bar(
    journal: Journal,
    size: int,
    samples: Sequence[tuple[int, datetime]],
    point: Point,
    pins: dict[str, int],
    *,
    is_now: bool,
) -> Bar:
    sealing, fault = await _sealing(journal)
    return Bar(
        journal=journal.name,
        size=size,
        value=point.size,
        recorded_at=await _recorded_at(journal, point.size),
        is_now=is_now,
        provisional=point.provisional,
        samples=[(at, int(moment.timestamp())) for at, moment in samples],
        chart=charts.activity(samples, size, pins),
        pins=pins,
        sealing=sealing,
        fault=fault,
    )


async def _recorded_at(journal: Journal, size: int) -> datetime | None:
    """Return when the last of `size` events was recorded, also if that cannot be decoded."""
    if size == 0:
        return None
    raw = await journal.store.read_raw(journal.journal_id, size - 1, size)
    return text_to_time(raw.recorded_at[0]) if raw.recorded_at else None


async def _sealing(journal: Journal) -> tuple[Sealing | None, str | None]:
    """Return the newest signed checkpoint, or that the log's tables contradict each other."""
    try:
        seal, checkpoint = await seal_and_checkpoint(log_of(journal))
    except LogDamaged as error:
        return None, str(error)
    if seal is None:
        return None, None
    if checkpoint is None:
        return None, f"{seal.origin} has no signed checkpoint of its sealed size {seal.size}"
    return Sealing(seal.size, as_text(seal.root), seal.origin, checkpoint.made_at), None


async def bar_of_now(reading: Reading, journal: Journal, here: Here) -> Bar:
    """Return the time bar for a page whose moment does not exist: it shows the present."""
    try:
        return await bar_of(reading, journal, here)
    except InvalidRequest:
        return await bar_of(reading, journal, Here(here.path))
