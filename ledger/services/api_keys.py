"""Commands for API keys, and using one."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID, uuid5

import msgspec
from uuid_utils.compat import uuid7

from ledger.conditions import AtMost, Condition, ExpectedVersion, NoEvent
from ledger.deciding import ORIGIN, Deciding, Origin
from ledger.domain.api_keys import (
    KEY,
    RATE_WINDOW,
    ApiKeyIssued,
    ApiKeyRefused,
    ApiKeyRevoked,
    ApiKeyRotated,
    ApiKeyUsed,
    IssueKey,
    Key,
    KeyReason,
    RevokeKey,
    RotateKey,
    api_key_stream,
    api_key_use_stream,
)
from ledger.domain.users import TEXT_CHARS_MAX, USER, user_stream
from ledger.errors import InvalidCommand, TooManyEvents
from ledger.security.api_keys import ApiKeyText, Malformed, ParsedKey, digest_of, generate, parse
from ledger.services.refusals import Refusals
from ledger.services.users import active_after, require_active
from ledger.stores import Appended

KEYS_REMEMBERED_MAX = 10_000
RESOURCE_CHARS_MAX = 2048


class KeyIssued(msgspec.Struct, frozen=True):
    """A key was issued. This is the only time that it is shown.

    `key` is None where the command is a repeated one: then the first call had the key, which is not
    the one that this call made. If it was lost, revoke it and issue another.
    """

    key_id: UUID
    key: ApiKeyText | None
    appended: Appended | None


class KeyRevoked(msgspec.Struct, frozen=True):
    """A key is dead."""

    key_id: UUID
    appended: Appended | None


class KeyUse(msgspec.Struct, frozen=True):
    """Whether a use was accepted, with the key, its owner and its permissions, else `reason`.

    `appended` is None for a refusal that is counted and stored later, in a sum. An accepted use is
    not `is_new` where it was stored under this command id before: no rate limit counted it again,
    so the action may only be done if it has not been.
    """

    accepted: bool
    key_id: UUID | None
    user_id: UUID | None
    reason: KeyReason | None
    appended: Appended | None
    is_new: bool = True
    permissions: tuple[str, ...] = ()


class Use(msgspec.Struct, frozen=True):
    """What somebody wants to do with a key."""

    action: str
    permission: str | None
    resource: str | None
    source: str | None
    origin: Origin


class Alive(msgspec.Struct, frozen=True):
    """A key that may be used, and the last events of it and of its owner that say so."""

    key: ApiKeyIssued
    key_offset: int
    owner_offset: int


class ApiKeys:
    """All commands for API keys.

    Errors of all but `use`: InvalidCommand for values that no key can have, CommandRefused for a
    key or owner that is not in the state for it, Contended, and what an append raises.
    """

    def __init__(self, deciding: Deciding, refusals: Refusals | None = None) -> None:
        """Take what decides and what counts refusals."""
        self._deciding = deciding
        self._refusals = refusals or Refusals(deciding.journal)
        self._alive_at: OrderedDict[UUID, tuple[Alive, int]] = OrderedDict()

    async def issue(
        self,
        *,
        user_id: UUID,
        name: str,
        permissions: Sequence[str] = (),
        rate_limit: int | None = None,
        expires_at: datetime | None = None,
        key_id: UUID | None = None,
        origin: Origin = ORIGIN,
    ) -> KeyIssued:
        """Make a key for a user who is active; `rate_limit` is in requests a minute."""
        key_id = key_id or _made_id(origin, "key")
        key, key_hash = generate(key_id)
        command = IssueKey(
            key_id=key_id,
            now=self._now(),
            user_id=user_id,
            name=name,
            key_hash=key_hash,
            permissions=tuple(permissions),
            rate_limit=rate_limit,
            expires_at=expires_at,
        )

        async def guard() -> Sequence[Condition]:
            return (await require_active(self._deciding, "IssueKey", user_id),)

        done = await self._deciding.execute(
            KEY, command.stream, command, guard=guard, origin=origin
        )
        return await self._issued(key_id, key, key_hash, done.appended)

    async def rotate(
        self,
        *,
        key_id: UUID,
        overlap: timedelta,
        expires_at: datetime | None = None,
        successor_key_id: UUID | None = None,
        origin: Origin = ORIGIN,
    ) -> KeyIssued:
        """Let a new key take this one's place, which lives on for `overlap`, then expires.

        Name, permissions and rate limit (of each) are the same; so is the time at which the new one
        expires, unless `expires_at` is given.
        """
        successor_key_id = successor_key_id or _made_id(origin, "successor")
        key, key_hash = generate(successor_key_id)
        command = RotateKey(
            key_id=key_id,
            now=self._now(),
            successor_key_id=successor_key_id,
            key_hash=key_hash,
            overlap=overlap,
            successor_expires_at=expires_at,
        )

        async def guard() -> Sequence[Condition]:
            old = (await self._deciding.load(KEY, command.stream)).state
            is_repeated = origin.command_id is not None and old.is_rotated
            absent = await self._absent(command, is_repeated=is_repeated)
            if old.issued is None:
                return (absent,)
            return (absent, await require_active(self._deciding, "RotateKey", old.issued.user_id))

        done = await self._deciding.execute(
            KEY, command.stream, command, guard=guard, origin=origin
        )
        return await self._issued(successor_key_id, key, key_hash, done.appended)

    async def _issued(
        self, key_id: UUID, key: ApiKeyText, key_hash: str, appended: Appended | None
    ) -> KeyIssued:
        """Show a key if it is the one that is stored: that of a repeated command is another.

        The store may have repeated the append itself, so that it is a duplicate says nothing.
        """
        if appended is None or not appended.duplicate:
            return KeyIssued(key_id, key, appended)
        for recorded in await self._deciding.journal.read_stream(api_key_stream(key_id)):
            if isinstance(recorded.event, ApiKeyIssued):
                offsets = tuple(sorted({*appended.offsets, recorded.offset}))
                is_own = recorded.event.key_hash == key_hash
                return KeyIssued(key_id, key if is_own else None, Appended(offsets, duplicate=True))
        return KeyIssued(key_id, None, appended)

    async def _absent(self, command: RotateKey, *, is_repeated: bool) -> ExpectedVersion:
        """Return the condition that there is no successor yet; else raise CommandRefused.

        That of a command that may be repeated exists: deciding finds that the old key is rotated.
        """
        stream = api_key_stream(command.successor_key_id)
        loaded = await self._deciding.load(KEY, stream)
        if loaded.version and not is_repeated:
            standing = loaded.state.standing(command.now)
            raise command.refused(stream, standing, "a key with this id exists")
        return ExpectedVersion(stream, 0)

    async def revoke(
        self, *, key_id: UUID, reason: str | None = None, origin: Origin = ORIGIN
    ) -> KeyRevoked:
        """End a key: no process accepts a use from the moment at which this is stored."""
        command = RevokeKey(key_id=key_id, now=self._now(), reason=reason)
        done = await self._deciding.execute(KEY, command.stream, command, origin=origin)
        return KeyRevoked(key_id, done.appended)

    async def state(self, key_id: UUID) -> Key:
        """Return a key as its events have it now; `issued` is None if there is none."""
        return (await self._deciding.load(KEY, api_key_stream(key_id))).state

    async def use(
        self,
        *,
        presented: str,
        action: str,
        permission: str | None = None,
        resource: str | None = None,
        source: str | None = None,
        origin: Origin = ORIGIN,
    ) -> KeyUse:
        """Store that a key is used for `action`, if it may be; only then go on with the action.

        `permission` is what the key must have been given, None if any key will do; `source` says
        where the request came from when that is not an ip address. A refusal is an answer, not an
        error, and recorded too, in sums where there are many. Raises InvalidCommand for texts that
        cannot be stored, Contended, and what an append raises; then the use is not accepted. A
        repeated command is decided anew, by what is known of the key now, and stored once.
        """
        for field, text in (("action", action), ("resource", resource), ("source", source)):
            _check(field, text)
        wanted = Use(action, permission, resource, source, origin)
        parsed = parse(presented)
        if isinstance(parsed, Malformed):
            digest = digest_of(presented, await self._deciding.journal.privacy.name_key())
            return await self._refused(KeyReason.MALFORMED, wanted, digest)
        tries = itertools.count()

        async def attempt() -> KeyUse | KeyReason:
            return await self._attempt(parsed, wanted, loads=next(tries) > 0)

        used = await self._deciding.until_stored(attempt, "UseKey", api_key_stream(parsed.key_id))
        if isinstance(used, KeyUse):
            return used
        # A key of somebody who was erased has no hash any more; what comes for it is theirs still.
        is_unknown = used == KeyReason.UNKNOWN and not self._is_erased(parsed.key_id)
        key_id = None if is_unknown else parsed.key_id
        return await self._refused(used, wanted, parsed.public_id if is_unknown else None, key_id)

    def _is_erased(self, key_id: UUID) -> bool:
        issued = self._deciding.known(KEY, api_key_stream(key_id)).state.issued
        return issued is not None and issued.key_hash is None

    async def _attempt(self, parsed: ParsedKey, wanted: Use, *, loads: bool) -> KeyUse | KeyReason:
        """Store a use, if the key may be used.

        One that is stored already was so under what held then, so it is decided again.
        """
        alive = await self._alive(parsed, wanted, loads=loads)
        if not isinstance(alive, Alive):
            return alive
        used = await self._store(alive, wanted)
        if isinstance(used, KeyUse) and not used.is_new:
            again = await self._alive(parsed, wanted, loads=True)
            return used if isinstance(again, Alive) else again
        return used

    async def _alive(self, parsed: ParsedKey, wanted: Use, *, loads: bool) -> Alive | KeyReason:
        """Decide by what is known of the key and its owner; look it up where need be."""
        stream = api_key_stream(parsed.key_id)
        key = self._deciding.known(KEY, stream)
        if loads or key.state.issued is None:
            key = await self._deciding.load(KEY, stream)
        refusal = key.state.refusal(parsed.key_hash, wanted.permission, self._now())
        if refusal is not None or key.state.issued is None:
            return refusal or KeyReason.UNKNOWN
        owner = await self._active_owner(key.state.issued.user_id, loads=loads)
        if owner is None:
            return KeyReason.USER_INACTIVE
        return Alive(key.state.issued, key.offset, owner)

    async def _active_owner(self, user_id: UUID, *, loads: bool) -> int | None:
        """Return the offset at which the owner was last known to be active, None if not active."""
        stream = user_stream(user_id)
        owner = self._deciding.known(USER, stream)
        if loads or not owner.state.is_active:
            owner = await self._deciding.load(USER, stream)
        return owner.offset if owner.state.is_active else None

    async def _store(self, alive: Alive, wanted: Use) -> KeyUse | KeyReason:
        """Append a use if key and owner are still alive, and the rate limit allows one more."""
        key = alive.key
        used = ApiKeyUsed(
            key_id=key.key_id,
            action=wanted.action,
            resource=wanted.resource,
            source=wanted.source,
        )
        try:
            appended = await self._deciding.journal.append(
                wanted.origin.of("UseKey", [used]), *self._conditions(alive)
            )
        except TooManyEvents:
            return KeyReason.RATE_LIMITED
        if not appended.duplicate:
            self._remember(alive, appended)
        is_new = not appended.duplicate or wanted.origin.command_id is None
        return KeyUse(True, key.key_id, key.user_id, None, appended, is_new, key.permissions)

    def _conditions(self, alive: Alive) -> list[Condition]:
        """Return what has to hold for a use: nothing has ended what was alive when last looked."""
        key, seen = alive.key, self._seen(alive)
        conditions: list[Condition] = [
            NoEvent(
                types=(ApiKeyRevoked, ApiKeyRotated),
                stream=key.stream(),
                after=max(alive.key_offset, seen),
            ),
            active_after(max(alive.owner_offset, seen), key.user_id),
        ]
        if key.rate_limit is not None:
            conditions.append(AtMost(api_key_use_stream(key.key_id), key.rate_limit, RATE_WINDOW))
        return conditions

    def _seen(self, alive: Alive) -> int:
        """Return the last use that was stored under exactly what is known, -1 if there is none."""
        known, offset = self._alive_at.get(alive.key.key_id, (None, -1))
        return offset if known == alive else -1

    def _remember(self, alive: Alive, appended: Appended) -> None:
        """Note that key and owner were alive at an accepted use, by what was known of them."""
        key_id = alive.key.key_id
        self._alive_at[key_id] = (alive, max(self._seen(alive), *appended.offsets))
        self._alive_at.move_to_end(key_id)
        if len(self._alive_at) > KEYS_REMEMBERED_MAX:
            self._alive_at.popitem(last=False)

    async def _refused(
        self,
        reason: KeyReason,
        wanted: Use,
        presented: str | None,
        key_id: UUID | None = None,
    ) -> KeyUse:
        refused = ApiKeyRefused(
            reason=reason.value,
            key_id=key_id,
            presented=presented,
            action=wanted.action,
            resource=wanted.resource,
            source=wanted.source,
        )
        appended = await self._refusals.record(refused, wanted.origin.metadata)
        return KeyUse(False, key_id, None, reason, appended)

    def _now(self) -> datetime:
        return self._deciding.journal.now()

    async def flush(self) -> None:
        """Store the refusals that are only counted so far."""
        await self._refusals.flush()

    async def close(self) -> None:
        """Store the refusals that are only counted so far, and stop counting."""
        await self._refusals.close()


def _made_id(origin: Origin, name: str) -> UUID:
    """A repeated command has to mean the same key."""
    return uuid7() if origin.command_id is None else uuid5(origin.command_id, name)


def _check(field: str, text: str | None) -> None:
    """Refuse what the journal would not store, before anything is counted."""
    if text is None:
        return
    if not 1 <= len(text) <= (RESOURCE_CHARS_MAX if field == "resource" else TEXT_CHARS_MAX):
        raise InvalidCommand("UseKey", field, f"has {len(text)} characters, none or too many")
    if not text.isprintable():
        raise InvalidCommand("UseKey", field, "has characters that cannot be printed")
