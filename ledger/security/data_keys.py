"""The data keys of a journal's subjects: made when needed, remembered, gone once destroyed."""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from time import monotonic
from typing import Any, TypeVar

import msgspec
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from ledger.errors import LedgerError
from ledger.security.master_keys import DataKeyUnusable, LocalMasterKeys, MasterKey
from ledger.settings import SettingsInvalid
from ledger.stores.subject_keys import KeyTable, StoredKey

T = TypeVar("T")

NAMES = "names"
"""Has the key for digests of names in place of a subject. It is the first one that is made."""

ELSEWHERE = "elsewhere"
"""In the journal's own table: says that the keys lie in another database, which has this id."""

NAME_KEY = "name-key"
"""Has a check of the key for digests of names that was used first, so that no other one is."""

MARKS = (ELSEWHERE, NAME_KEY)
SERVICE_SECONDS = 10.0
"""So long may a key service take for one key."""

DATA_KEY_BYTES = 32
KEY_ID_BYTES = 12
CACHE_SECONDS = 10.0
KEYS_KEPT_MAX = 100_000


class DataKey(msgspec.Struct, frozen=True, eq=False):
    """A subject's key; `cipher` is None once it is destroyed.

    It is right until `fresh_until`, by the clock of `time.monotonic`, and then to be read again.
    """

    stored: StoredKey
    cipher: AESSIV | None
    secret: bytes
    fresh_until: float

    @property
    def key_id(self) -> str:
        """The key's id."""
        return self.stored.key_id

    def __repr__(self) -> str:
        return f"<data key {self.key_id}>"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("key_id", self.key_id)]


class DataKeys:
    """The data keys of one journal.

    Whoever has a key goes on with it for at most `cache_seconds` after it was destroyed; not even
    that long where the erasure was seen in the journal (`forget`).
    """

    def __init__(
        self,
        table: KeyTable,
        journal: str,
        master: MasterKey | None = None,
        *,
        cache_seconds: float = CACHE_SECONDS,
        own_table: KeyTable | None = None,
    ) -> None:
        """Take the table of keys, the journal's name, and what wraps keys.

        `own_table` is that of the journal's own database, where the keys lie in another one.
        """
        self.table = table
        self._own_table = own_table
        self._is_placed = False
        self._checked_name_key: bytes | None = None
        self._journal = journal
        self._master = master or LocalMasterKeys()
        self._cache_seconds = cache_seconds
        self._kept: OrderedDict[str, DataKey] = OrderedDict()
        self._ids: dict[str, str] = {}
        self._forgotten: set[str] = set()

    async def of_subjects(self, subjects: Collection[str]) -> dict[str, DataKey | LedgerError]:
        """Return the keys of subjects, or why there is none; who has none gets one, stored first.

        A key that this process has, and the table no longer, was lost with a server that took over
        from another one: it is stored again, since events may have been encrypted with it.
        """
        now, found = monotonic(), dict[str, DataKey | LedgerError]()
        for subject in subjects:
            kept = self._kept.get(self._ids.get(subject, ""))
            if kept is not None and now < kept.fresh_until:
                found[subject] = kept
        unsure = sorted(set(subjects) - found.keys())
        if unsure:
            found |= await self._read(partial(self.table.of_subjects, unsure))
            if lacking := [each for each in unsure if each not in found]:
                found |= await self._made(lacking)
        return found

    async def by_ids(self, key_ids: Collection[str]) -> dict[str, DataKey]:
        """Return the keys with these ids that there are."""
        now, found = monotonic(), dict[str, DataKey]()
        for key_id in key_ids:
            kept = self._kept.get(key_id)
            if kept is not None and now < kept.fresh_until:
                found[key_id] = kept
        if unsure := sorted(set(key_ids) - found.keys()):
            read = await self._read(partial(self.table.by_ids, unsure))
            for each in read.values():
                if isinstance(each, LedgerError):
                    raise each
                found[each.key_id] = each
        return found

    async def check_name_key(self, name_key: bytes) -> None:
        """Raise SettingsInvalid where names of this journal were digested with another key.

        Under two keys one name would be two people's.
        """
        if self._checked_name_key == name_key:
            return
        check = check_of(name_key)
        if not (found := await self.table.of_subjects([NAME_KEY])):
            await self.table.make([StoredKey(NAME_KEY, check, NAME_KEY)], datetime.now(UTC))
            found = await self.table.of_subjects([NAME_KEY])
        if any(each.key_id != check for each in found):
            raise SettingsInvalid(
                f"LEDGER_NAME_KEY: names of journal {self._journal!r} are kept under another key; "
                "set that one, or none if none was set at first"
            )
        self._checked_name_key = name_key

    def doubt(self) -> None:
        """Read every key again before it is used: the server may be another one by now."""
        for key_id, key in self._kept.items():
            self._kept[key_id] = msgspec.structs.replace(key, fresh_until=0.0)

    def forget(self, subject: str) -> None:
        """Take a subject's key for destroyed from now on: the journal says so."""
        self._forgotten.add(subject)
        key = self._kept.get(self._ids.get(subject, ""))
        if key is not None and key.cipher is not None:
            self._keep(self._gone(key.stored))

    async def destroy(self, subject: str) -> bool:
        """Destroy a subject's key for good; return whether it was there until now.

        A subject that never had one gets one that is destroyed, so that it never has one.
        """
        self.forget(subject)
        now = datetime.now(UTC)
        if await self.table.destroy(subject, now):
            return True
        if await self.table.of_subjects([subject]):
            return False
        await self.table.make([StoredKey(subject, _new_id(), None, now)], now)
        await self.table.destroy(subject, now)  # if somebody made one meanwhile
        return True

    async def stored(self) -> AsyncIterator[StoredKey]:
        """Yield all keys as they are stored."""
        above = ""
        while found := await self.table.all(above):
            for key in found:
                if key.subject not in MARKS:
                    yield key
            above = found[-1].subject

    def is_outdated(self, key: StoredKey) -> bool:
        """Whether a key is wrapped in another way than it would be today."""
        return key.wrapped is not None and not self._master.is_current(key.wrapped)

    async def rewrap(self, key: StoredKey) -> bool:
        """Wrap a key by the master key of today, if it is not; return whether that was done."""
        if key.wrapped is None or not self.is_outdated(key):
            return False
        context = self._context(key)
        data_key = await _asked(self._master.unwrap(key.wrapped, context))
        return await self.table.rewrap(key, await _asked(self._master.wrap(data_key, context)))

    async def _made(self, subjects: Sequence[str]) -> dict[str, DataKey | LedgerError]:
        """Make keys of subjects; those that this process knows already are stored again."""
        if NAMES not in subjects:
            first = (await self.of_subjects([NAMES]))[NAMES]
            # Who cannot read the first key must not make others, which nobody else could read.
            if isinstance(first, LedgerError):
                return dict.fromkeys(subjects, first)
            await self._check_place(first.key_id)
        now = datetime.now(UTC)
        await self.table.make([await self._known_or_new(each, now) for each in subjects], now)
        return await self._read(partial(self.table.of_subjects, subjects))

    async def _check_place(self, first_id: str) -> None:
        """Raise SettingsInvalid where this journal's keys lie in another place than this one.

        Keys in two places would be two for one person, each unreadable for half of the processes.
        """
        if self._is_placed:
            return
        table = self._own_table or self.table
        there = {each.subject: each.key_id for each in await table.of_subjects([NAMES, ELSEWHERE])}
        if self._own_table is None:
            if ELSEWHERE in there:
                raise _misplaced(self._journal, "lie in another database, which is not set")
        elif NAMES in there:
            raise _misplaced(self._journal, "lie in its own database: move them, or unset it")
        elif there.get(ELSEWHERE, first_id) != first_id:
            raise _misplaced(self._journal, "lie in another database than the one that is set")
        elif ELSEWHERE not in there:
            mark = StoredKey(ELSEWHERE, first_id, ELSEWHERE)
            await self._own_table.make([mark], datetime.now(UTC))
        self._is_placed = True

    async def _known_or_new(self, subject: str, now: datetime) -> StoredKey:
        known = self._kept.get(self._ids.get(subject, ""))
        if known is None:
            return await self._new(subject)
        if known.cipher is None:
            return msgspec.structs.replace(known.stored, wrapped=None, destroyed_at=now)
        return known.stored

    async def _new(self, subject: str) -> StoredKey:
        key = StoredKey(subject, _new_id(), None)
        data_key = secrets.token_bytes(DATA_KEY_BYTES)
        wrapped = await _asked(self._master.wrap(data_key, self._context(key)))
        return msgspec.structs.replace(key, wrapped=wrapped)

    async def _read(
        self, read: Callable[[], Awaitable[Iterable[StoredKey]]]
    ) -> dict[str, DataKey | LedgerError]:
        """Read keys and remember them; they are as old as the question, not as the answer."""
        fresh_until = monotonic() + self._cache_seconds
        found: dict[str, DataKey | LedgerError] = {}
        for stored in await read():
            try:
                found[stored.subject] = self._keep(await self._opened(stored, fresh_until))
            except LedgerError as error:
                found[stored.subject] = error
        return found

    async def _opened(self, stored: StoredKey, fresh_until: float) -> DataKey:
        if stored.wrapped is None:
            return self._gone(stored)
        kept = self._kept.get(stored.key_id)
        if kept is not None and kept.stored == stored:
            return msgspec.structs.replace(kept, fresh_until=fresh_until)
        secret = await _asked(self._master.unwrap(stored.wrapped, self._context(stored)))
        return DataKey(stored, AESSIV(secret), secret, fresh_until)

    def _gone(self, stored: StoredKey) -> DataKey:
        return DataKey(stored, None, b"", float("inf"))

    def _keep(self, key: DataKey) -> DataKey:
        """Remember a key, and return it; what was destroyed never comes back."""
        subject, known = key.stored.subject, self._kept.get(key.key_id)
        if subject in self._forgotten or (known is not None and known.cipher is None):
            key = self._gone(key.stored)
        self._kept[key.key_id] = key
        self._kept.move_to_end(key.key_id)
        self._ids[subject] = key.key_id
        if len(self._kept) > KEYS_KEPT_MAX:
            _, oldest = self._kept.popitem(last=False)
            self._ids.pop(oldest.stored.subject, None)
        return key

    def _context(self, key: StoredKey) -> bytes:
        return f"{self._journal}\0{key.subject}\0{key.key_id}".encode()


def check_of(name_key: bytes) -> str:
    """Return by what a key for digests of names is known."""
    return hmac.digest(name_key, NAME_KEY.encode(), "sha256").hex()[:16]


async def _asked(answer: Awaitable[T]) -> T:
    """Return what a key service answers; DataKeyUnusable where it fails, or takes too long."""
    try:
        async with asyncio.timeout(SERVICE_SECONDS):
            return await answer
    except LedgerError:
        raise
    except Exception as error:
        raise DataKeyUnusable(f"the key service failed: {error!r}") from error


def _misplaced(journal: str, where: str) -> SettingsInvalid:
    return SettingsInvalid(
        f"LEDGER_KEYS_DATABASE_URL: the data keys of journal {journal!r} {where}"
    )


def _new_id() -> str:
    return secrets.token_urlsafe(KEY_ID_BYTES)
