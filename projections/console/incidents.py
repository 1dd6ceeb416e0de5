"""What went wrong at the doors, summed up: failed logins, refused keys and lockouts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.domain.api_keys import ApiKeyRefused
from ledger.domain.users import AccountLocked, LoginFailed
from projections.database import Database
from projections.security_audit_logs import SecurityAuditLog
from projections.users import User

KINDS = {
    LoginFailed.__name__: "failed logins",
    ApiKeyRefused.__name__: "refused keys",
    AccountLocked.__name__: "lockouts",
}
"""The events that are counted, and how they are called."""

BUCKETS_MAX = 60
TOP_MAX = 10
_WIDTHS = (
    *(timedelta(minutes=count) for count in (1, 5, 15, 30)),
    *(timedelta(hours=count) for count in (1, 3, 6, 12)),
    *(timedelta(days=count) for count in (1, 7, 30, 365)),
)
_LOG: Any = SecurityAuditLog.__table__.c
_USER: Any = User.__table__.c


class Top(msgspec.Struct, frozen=True):
    """An address or an account, how often each kind happened there, and when last."""

    value: str | None
    name: str | None
    counts: dict[str, int]
    last: datetime

    @property
    def total(self) -> int:
        """How often anything did."""
        return sum(self.counts.values())


class Incidents(msgspec.Struct, frozen=True):
    """All of them by time (a count for each bucket and kind), by address and by account."""

    starts: list[datetime]
    width: timedelta
    counts: dict[str, list[int]]
    addresses: list[Top]
    accounts: list[Top]

    def total(self, kind: str) -> int:
        """Return how often a kind of event happened."""
        return sum(self.counts[kind])


async def incidents(
    database: Database, journal_id: int, size: int, span: timedelta | None = None
) -> Incidents:
    """Return what the audit log says of the first `size` events of a journal.

    With `span` only the time up to the newest of them counts.
    """
    where = sa.and_(
        _LOG.journal_id == journal_id, _LOG.changed_size <= size, _LOG.event_type.in_(KINDS)
    )
    async with database.snapshot() as connection:
        ends = sa.select(sa.func.min(_LOG.timestamp), sa.func.max(_LOG.timestamp)).where(where)
        first, last = (await connection.execute(ends)).one()
        if span is not None and first is not None and first < last - span:
            first = last - span
            where = sa.and_(where, _LOG.timestamp >= first)
        starts, width = _buckets(first, last)
        return Incidents(
            starts,
            width,
            await _by_time(connection, where, starts),
            await _top(connection, where, _LOG.ip_address, {}),
            await _top(connection, where, _LOG.user_id, await _names(connection, where)),
        )


def _buckets(first: datetime | None, last: datetime | None) -> tuple[list[datetime], timedelta]:
    """Return where the buckets of the histogram begin, and how wide they are."""
    if first is None or last is None:
        return [], _WIDTHS[0]
    fitting = (each for each in _WIDTHS if (last - first) / each < BUCKETS_MAX - 1)
    width = next(fitting, (last - first) / (BUCKETS_MAX - 2))
    begin = first - (first - datetime.min.replace(tzinfo=first.tzinfo)) % width
    return [begin + width * number for number in range(int((last - begin) / width) + 1)], width


async def _by_time(
    connection: AsyncConnection, where: sa.ColumnElement[bool], starts: Sequence[datetime]
) -> dict[str, list[int]]:
    counts = {kind: [0] * len(starts) for kind in KINDS}
    if not starts:
        return counts
    # The same on both databases, which have different functions of time.
    whens = [
        (_LOG.timestamp >= start, number) for number, start in reversed(list(enumerate(starts)))
    ]
    bucket = sa.case(*whens, else_=0).label("bucket")
    rows = sa.select(_LOG.event_type, bucket).where(where).subquery().c
    query = sa.select(rows.event_type, rows.bucket, sa.func.count())
    query = query.group_by(rows.event_type, rows.bucket)
    for kind, number, count in await connection.execute(query):
        counts[kind][number] = count
    return counts


async def _top(
    connection: AsyncConnection,
    where: sa.ColumnElement[bool],
    column: sa.ColumnElement[Any],
    names: dict[UUID, str | None],
) -> list[Top]:
    """Return the values of a column under which most happened, most first."""
    total = sa.func.count()
    ranked = sa.select(column).where(where).group_by(column).order_by(total.desc(), column)
    values = (await connection.execute(ranked.limit(TOP_MAX))).scalars().all()
    among = sa.or_(column.in_([each for each in values if each is not None]), column.is_(None))
    query = sa.select(column, _LOG.event_type, total, sa.func.max(_LOG.timestamp))
    found = await connection.execute(query.where(where, among).group_by(column, _LOG.event_type))
    return _summed(values, found.all(), names)


def _summed(values: Iterable[Any], rows: Sequence[Any], names: dict[UUID, str | None]) -> list[Top]:
    tops = []
    for value in values:
        own = [row for row in rows if row[0] == value]
        counts = {kind: count for _, kind, count, _ in own}
        text = None if value is None else str(value)
        tops.append(Top(text, names.get(value), counts, max(row[3] for row in own)))
    return tops


async def _names(
    connection: AsyncConnection, where: sa.ColumnElement[bool]
) -> dict[UUID, str | None]:
    """Return the names of the accounts concerned, as they are now."""
    concerned = sa.select(_LOG.user_id).where(where)
    query = sa.select(_USER.user_id, _USER.username).where(_USER.user_id.in_(concerned))
    return {row.user_id: row.username for row in await connection.execute(query)}
