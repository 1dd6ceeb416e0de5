"""The table of data keys, the same statements for both databases.

It goes by journal names, since it may lie in another database than the journals.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Protocol, TypeVar

import msgspec

from ledger.sqltypes import text_to_time
from ledger.stores.queries import Queries, Statement

T = TypeVar("T")

AT_ONCE = 200
"""So many keys are asked for, or made, by one statement."""

_COLUMNS = "subject, key_id, wrapped, destroyed_at"
_FIND = f"SELECT {_COLUMNS} FROM subject_keys WHERE journal = $1 AND %s IN (%s)"  # noqa: S608
_ALL = f"""SELECT {_COLUMNS} FROM subject_keys
    WHERE journal = $1 AND subject > $2 ORDER BY subject LIMIT $3"""  # noqa: S608
_ERASED = f"""SELECT {_COLUMNS} FROM subject_keys
    WHERE journal = $1 AND destroyed_at IS NOT NULL ORDER BY destroyed_at, subject"""  # noqa: S608
_ERASURES = """SELECT count(*) FROM subject_keys
    WHERE journal = $1 AND destroyed_at IS NOT NULL"""
_INSERT = """INSERT INTO subject_keys
    (journal, subject, key_id, wrapped, created_at, destroyed_at) VALUES %s
    ON CONFLICT (journal, subject) DO NOTHING"""
_DESTROY = """UPDATE subject_keys SET wrapped = NULL, destroyed_at = $3
    WHERE journal = $1 AND subject = $2 AND destroyed_at IS NULL"""
_REWRAP = """UPDATE subject_keys SET wrapped = $4
    WHERE journal = $1 AND subject = $2 AND wrapped = $3"""


class StoredKey(msgspec.Struct, frozen=True):
    """A data key as it is stored: wrapped, or None from the time at which it was destroyed."""

    subject: str
    key_id: str
    wrapped: str | None
    destroyed_at: datetime | None = None


class KeyTable(Protocol):
    """The data keys of one journal. Every method raises StoreUnavailable, as a store does."""

    async def of_subjects(self, subjects: Sequence[str]) -> list[StoredKey]:
        """Return the keys of subjects that have one."""
        ...

    async def by_ids(self, key_ids: Sequence[str]) -> list[StoredKey]:
        """Return the keys with these ids that there are."""
        ...

    async def all(self, above: str = "", limit: int = 1000) -> list[StoredKey]:
        """Return up to `limit` keys of subjects above one, in order of the subjects."""
        ...

    async def make(self, keys: Sequence[StoredKey], now: datetime) -> None:
        """Store keys of subjects that have none yet."""
        ...

    async def destroy(self, subject: str, now: datetime) -> bool:
        """Destroy a subject's key for good; return whether there was one."""
        ...

    async def rewrap(self, key: StoredKey, wrapped: str) -> bool:
        """Store a key wrapped anew; False where it has changed meanwhile."""
        ...

    async def erasures(self) -> int:
        """Return how many keys are destroyed."""
        ...

    async def erased(self) -> list[StoredKey]:
        """Return the keys that are destroyed, the earliest first."""
        ...


class StoredKeys:
    """The data keys of one journal in a database's table."""

    def __init__(self, store: Queries, journal: str) -> None:
        """Take what runs statements, and the journal's name."""
        self._store = store
        self._journal = journal

    async def of_subjects(self, subjects: Sequence[str]) -> list[StoredKey]:
        """Return the keys of subjects that have one."""
        return await self._find("subject", subjects)

    async def by_ids(self, key_ids: Sequence[str]) -> list[StoredKey]:
        """Return the keys with these ids that there are."""
        return await self._find("key_id", key_ids)

    async def _find(self, column: str, values: Sequence[str]) -> list[StoredKey]:
        found: list[StoredKey] = []
        for some in _parts(values):
            places = ", ".join(f"${number}" for number in range(2, len(some) + 2))
            rows = await self._store.query(_FIND % (column, places), self._journal, *some)
            found += map(_stored, rows)
        return found

    async def all(self, above: str = "", limit: int = 1000) -> list[StoredKey]:
        """Return up to `limit` keys of subjects above one, in order of the subjects."""
        return [_stored(row) for row in await self._store.query(_ALL, self._journal, above, limit)]

    async def make(self, keys: Sequence[StoredKey], now: datetime) -> None:
        """Store keys of subjects that have none yet."""
        for some in _parts(keys):
            rows = [
                (self._journal, each.subject, each.key_id, each.wrapped, now, each.destroyed_at)
                for each in some
            ]
            places = ", ".join(_row(number, 6) for number in range(len(rows)))
            values = [value for row in rows for value in row]
            await self._store.transact([Statement(_INSERT % places, [values])])

    async def destroy(self, subject: str, now: datetime) -> bool:
        """Destroy a subject's key for good; return whether there was one."""
        return await self._store.transact([Statement(_DESTROY, [(self._journal, subject, now)])])

    async def rewrap(self, key: StoredKey, wrapped: str) -> bool:
        """Store a key wrapped anew; False where it has changed meanwhile."""
        values = (self._journal, key.subject, key.wrapped, wrapped)
        return await self._store.transact([Statement(_REWRAP, [values])])

    async def erasures(self) -> int:
        """Return how many keys are destroyed."""
        [[count]] = await self._store.query(_ERASURES, self._journal)
        return int(count)

    async def erased(self) -> list[StoredKey]:
        """Return the keys that are destroyed, the earliest first."""
        return [_stored(row) for row in await self._store.query(_ERASED, self._journal)]


class NoKeys:
    """Stands for the data keys where there are none: all personal fields are as if erased."""

    async def of_subjects(self, subjects: Sequence[str]) -> list[StoredKey]:
        """Return destroyed keys."""
        return [StoredKey(each, each, None) for each in subjects]

    async def by_ids(self, key_ids: Sequence[str]) -> list[StoredKey]:
        """Return destroyed keys."""
        return [StoredKey(each, each, None) for each in key_ids]

    async def all(self, above: str = "", limit: int = 1000) -> list[StoredKey]:
        """Return none."""
        return []

    async def make(self, keys: Sequence[StoredKey], now: datetime) -> None:
        """Do nothing."""

    async def destroy(self, subject: str, now: datetime) -> bool:
        """Do nothing."""
        return False

    async def rewrap(self, key: StoredKey, wrapped: str) -> bool:
        """Do nothing."""
        return False

    async def erasures(self) -> int:
        """Return 0."""
        return 0

    async def erased(self) -> list[StoredKey]:
        """Return none."""
        return []


def _parts(values: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(values), AT_ONCE):
        yield values[start : start + AT_ONCE]


def _row(number: int, columns: int) -> str:
    first = number * columns + 1
    return f"({', '.join(f'${place}' for place in range(first, first + columns))})"


def _stored(row: Sequence[Any]) -> StoredKey:
    subject, key_id, wrapped, destroyed_at = row
    if isinstance(destroyed_at, str):
        destroyed_at = text_to_time(destroyed_at)
    return StoredKey(subject, key_id, wrapped, destroyed_at)
