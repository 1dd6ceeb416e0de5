"""Rollback defence: a journal's log is shown to witnesses, who remember how far it has come.

Whoever opens a journal for work shows its newest signed checkpoint first (`check_witnessed`). A
database that was put back, or a standby that lost events, is shorter than what a witness has
cosigned, or has another history; then nothing starts.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

import msgspec

from ledger.errors import AppendOutcomeUnknown, LedgerError, StoreUnavailable
from ledger.journal import Journal
from ledger.proof.log import (
    LogDamaged,
    NotSealed,
    as_text,
    body_of,
    consistency,
    leaf_hashes,
    log_of,
    newest_checkpoint,
    root_of_tiles,
)
from ledger.proof.merkle import EMPTY_ROOT, HASH_BYTES
from ledger.proof.notes import (
    CheckpointBody,
    Note,
    NoteInvalid,
    Signature,
    SigningKey,
    VerifierKey,
)
from ledger.proof.tiles import TILE_WIDTH
from ledger.proof.witness_client import (
    Witness,
    WitnessFailed,
    WitnessSawMore,
    WitnessSawOther,
    witnesses_of,
)
from ledger.settings import Settings
from ledger.stores import SealedLog, SignedCheckpoint

TRIES = 30
"""A sealer may get ahead each time between reading the newest checkpoint and showing it."""
TRY_SECONDS_MAX = 0.05
PAGE = 100
PAGES_MAX = 100

_Answer = Signature | WitnessFailed | WitnessSawMore | WitnessSawOther

_logger = logging.getLogger(__name__)


BEHIND = (
    "It looks like a restored backup, a standby that was promoted without its last events, or "
    "tampering: bring back the database that has them, or go on without them by "
    "`ledger fork --reason TEXT`"
)
CONTRADICTS = (
    "Events were lost or changed in this database itself, which no restored backup does: restore "
    "one that is whole"
)


class JournalRolledBack(LedgerError):
    """The journal is shorter than what was sealed or witnessed, or has another history.

    `size` is what the log in the database is sealed up to, `seen_size` the size at which they part.
    """

    exit_code = 3

    def __init__(
        self, journal: str, reason: str, *, size: int, seen_size: int, advice: str = BEHIND
    ) -> None:
        super().__init__(f"journal {journal!r} {reason}. {advice}")
        self.journal = journal
        self.size = size
        self.seen_size = seen_size


class WitnessUnreachable(LedgerError):
    """No witness has answered, so it is open whether the journal is what was witnessed."""

    exit_code = 3


class NotWitnessed(LedgerError):
    """Witnesses are set, but the journal has no signed checkpoint that they could be shown."""

    exit_code = 3


class Asked(msgspec.Struct):
    """What became of showing a checkpoint to witnesses: cosignatures, and reasons for none."""

    checkpoint: SignedCheckpoint
    signatures: list[Signature] = []
    failures: dict[str, str] = {}
    """By name of the witness."""
    seen_more: tuple[str, int] | None = None
    """A witness that has cosigned a larger size than was shown, and that size."""


async def check_witnessed(
    journal: Journal, settings: Settings, *, must_be_sealed: bool = True
) -> None:
    """Raise unless the journal is all that its sealed log and the witnesses have seen.

    Does nothing where no witness is set, nor, unless it `must_be_sealed`, for a journal that was
    never sealed. Events above the sealed size are not covered, and of those below only the last
    tile is read again; `replay.py verify` reads all. Raises JournalRolledBack, NotWitnessed,
    LogDamaged, and WitnessUnreachable where that is set.
    """
    if witnesses := witnesses_of(settings):
        try:
            await check_own(journal, [each.key for each in witnesses])
            asked = await ask(journal, witnesses, settings)
        except NotSealed as error:
            if not must_be_sealed:
                return
            raise NotWitnessed(
                f"LEDGER_WITNESSES is set, but journal {journal.name!r} is not sealed, so nothing "
                "tells whether it is complete; run `ledger seal` first"
            ) from error
        _judge(asked, settings)


async def check_sealable(journal: Journal, settings: Settings, key: SigningKey) -> None:
    """Do the same before anything is signed with the log's key.

    A journal that was never sealed must be new to the witnesses too: they are shown a checkpoint
    of size 0, which contradicts nothing, and is not stored.
    """
    if await log_of(journal).seal() is not None:
        await check_witnessed(journal, settings)
    elif witnesses := witnesses_of(settings):
        body = CheckpointBody(key.name, 0, EMPTY_ROOT)
        note = Note(body.text, (key.sign(body.text),)).render().decode()
        first = SignedCheckpoint(body.origin, 0, note, journal.now())
        asked = await _show(journal, witnesses, first, settings)
        if asked.seen_more is not None:
            raise await _shorter(journal, body, asked.seen_more)
        _judge(asked, settings)


def _judge(asked: Asked, settings: Settings) -> None:
    """Say which witnesses were silent; refuse where all were, unless that is set otherwise."""
    for name, reason in asked.failures.items():
        _logger.warning(
            "witness %s did not answer for %s: %s", name, asked.checkpoint.origin, reason
        )
    if asked.signatures or settings.witness_unreachable == "warn":
        return
    raise WitnessUnreachable(
        f"no witness says whether the log {asked.checkpoint.origin} is complete ("
        f"{_listed(asked.failures)}); see to that, or set LEDGER_WITNESS_UNREACHABLE=warn to "
        "start all the same"
    )


def _listed(failures: dict[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in failures.items())


async def check_own(journal: Journal, keys: Sequence[VerifierKey]) -> None:
    """Raise unless the journal, its tiles and what was signed of it fit each other.

    Read are the newest checkpoint, the newest that one of `keys` has cosigned, and the events of
    the last tile. Raises JournalRolledBack, LogDamaged, and NotSealed.
    """
    log = log_of(journal)
    newest = await newest_checkpoint(log)
    await _check_root(log, body_of(newest))
    cosigned = await newest_cosigned(log, newest, keys, needed=1, pages_max=1)
    if cosigned is not None:
        await _check_root(log, body_of(cosigned))
    held = await journal.size()
    if held < newest.size:
        reason = f"holds {held} events, but its log {newest.origin} is sealed up to {newest.size}"
        raise _contradiction(journal, reason, newest, held)
    await _check_last_tile(journal, newest)


async def _check_root(log: SealedLog, body: CheckpointBody) -> None:
    root = await root_of_tiles(log, body.size)
    if root != body.root:
        raise LogDamaged(
            f"{body.origin}: the tiles lead to root {as_text(root)} at size {body.size}, signed "
            f"was {as_text(body.root)}; run `replay.py verify`, and restore a backup that is whole"
        )


async def _check_last_tile(journal: Journal, newest: SignedCheckpoint) -> None:
    """Raise JournalRolledBack where an event of the last tile is not what was sealed."""
    start = max(0, newest.size - 1) // TILE_WIDTH * TILE_WIDTH
    hashes = await leaf_hashes(journal, start, newest.size)
    tiles = await log_of(journal).tiles(0, start // TILE_WIDTH, start // TILE_WIDTH + 1)
    for place, own in enumerate(hashes):
        if tiles[0].hashes[place * HASH_BYTES : (place + 1) * HASH_BYTES] != own:
            at = start + place
            reason = (
                f"has another event at offset {at} than was sealed in its log {newest.origin} "
                f"(size {newest.size}); `replay.py verify` names the first one"
            )
            raise _contradiction(journal, reason, newest, at)


def _contradiction(
    journal: Journal, reason: str, newest: SignedCheckpoint, at: int
) -> JournalRolledBack:
    size = newest.size
    return JournalRolledBack(journal.name, reason, size=size, seen_size=at, advice=CONTRADICTS)


async def newest_cosigned(
    log: SealedLog,
    newest: SignedCheckpoint,
    keys: Sequence[VerifierKey],
    *,
    needed: int,
    pages_max: int = PAGES_MAX,
) -> SignedCheckpoint | None:
    """Return the newest kept checkpoint that at least `needed` of the keys have cosigned.

    None where the newest `pages_max` pages of 100 hold none. Raises LogDamaged where a signature by
    one of the keys is wrong.
    """
    below = newest.size + 1
    for _ in range(pages_max):
        page = await log.checkpoints_below(newest.origin, below, PAGE)
        for each in page:
            if sum(_has_signed(each, key) for key in keys) >= needed:
                return each
        if len(page) < PAGE:
            return None
        below = page[-1].size
    return None


async def cosigned_by_all(
    log: SealedLog, newest: SignedCheckpoint, keys: Sequence[VerifierKey]
) -> SignedCheckpoint:
    """Return the newest checkpoint that all keys have cosigned; NotWitnessed where none is kept."""
    found = await newest_cosigned(log, newest, keys, needed=len(keys))
    if found is None:
        raise NotWitnessed(
            f"no kept checkpoint of {newest.origin} is cosigned by all witnesses of "
            "LEDGER_WITNESSES; run `ledger witness cosign`, or set LEDGER_WITNESS_UNREACHABLE=warn "
            "to do without"
        )
    return found


def _has_signed(checkpoint: SignedCheckpoint, key: VerifierKey) -> bool:
    """Whether a key has cosigned; LogDamaged where its signature is not of this checkpoint."""
    try:
        note = Note.parse(checkpoint.note.encode())
        signatures = [each for each in note.signatures if key.signed(each)]
        for each in signatures:
            key.verify(note.text, each)
    except NoteInvalid as error:
        raise LogDamaged(f"the signed checkpoint of size {checkpoint.size}: {error}") from error
    return bool(signatures)


async def ask(
    journal: Journal,
    witnesses: Sequence[Witness],
    settings: Settings,
    *,
    is_lacking: bool = False,
) -> Asked:
    """Show the newest checkpoint to witnesses, all at once; return what they say.

    With `is_lacking` only to those who have not cosigned it yet. Raises JournalRolledBack and
    LogDamaged; NotSealed where there is no checkpoint.
    """
    newest = await newest_checkpoint(log_of(journal))
    for _ in range(TRIES):
        shown = [each for each in witnesses if not (is_lacking and _has_signed(newest, each.key))]
        asked = await _show(journal, shown, newest, settings)
        seen = asked.seen_more
        if seen is None:
            return asked
        # Written first, shown later: what a sealer has shown meanwhile is in the database.
        now = await newest_checkpoint(log_of(journal))
        if now.origin == newest.origin and now.size < seen[1]:
            raise await _shorter(journal, body_of(now), seen)
        newest = now
        await asyncio.sleep(random.uniform(0, TRY_SECONDS_MAX))  # noqa: S311 - jitter
    raise StoreUnavailable(
        f"the log {newest.origin} was sealed and shown by others each of {TRIES} times that it was "
        "to be shown to witnesses; try again"
    )


async def _show(
    journal: Journal, witnesses: Sequence[Witness], shown: SignedCheckpoint, settings: Settings
) -> Asked:
    """Show a checkpoint; JournalRolledBack where a witness has cosigned another history."""

    async def prove(old: int, new: int) -> list[bytes]:
        return await consistency(journal, old, new)

    async def one(witness: Witness) -> _Answer:
        try:
            return await witness.cosign(
                shown.note.encode(), prove, settings.witness_timeout_seconds
            )
        except (WitnessFailed, WitnessSawMore, WitnessSawOther) as error:
            return error

    answers = await asyncio.gather(*map(one, witnesses))
    asked = Asked(shown)
    for witness, answer in zip(witnesses, answers, strict=True):
        if isinstance(answer, WitnessSawOther):
            raise await _other(journal, body_of(shown), (witness.name, answer.size))
        _note(asked, witness.name, answer)
    return asked


def _note(asked: Asked, name: str, answer: Signature | WitnessFailed | WitnessSawMore) -> None:
    """Add what a witness has answered."""
    if isinstance(answer, Signature):
        asked.signatures.append(answer)
    elif isinstance(answer, WitnessFailed):
        asked.failures[name] = str(answer)
    elif asked.seen_more is None or answer.size > asked.seen_more[1]:
        asked.seen_more = (name, answer.size)


async def _shorter(
    journal: Journal, body: CheckpointBody, seen: tuple[str, int]
) -> JournalRolledBack:
    name, size = seen
    reason = (
        f"holds {await journal.size()} events and its log {body.origin} is sealed up to size "
        f"{body.size}, root {as_text(body.root)}, but the witness {name} has cosigned size {size}"
    )
    return JournalRolledBack(journal.name, reason, size=body.size, seen_size=size)


async def _other(
    journal: Journal, body: CheckpointBody, seen: tuple[str, int]
) -> JournalRolledBack:
    name, size = seen
    root = await root_of_tiles(log_of(journal), size)
    reason = (
        f"has another history than was witnessed: its log {body.origin} (size {body.size}, root "
        f"{as_text(body.root)}) has root {as_text(root)} at size {size}, where the witness {name} "
        "has cosigned another root"
    )
    return JournalRolledBack(journal.name, reason, size=body.size, seen_size=size)


class Cosigner:
    """Has witnesses cosign the newest checkpoint of a journal, and stores what they sign."""

    def __init__(self, journal: Journal, settings: Settings) -> None:
        """Take the journal; the witnesses are those of the settings."""
        self._journal = journal
        self._settings = settings
        self._log = log_of(journal)
        self._witnesses = witnesses_of(settings)
        self._last: SignedCheckpoint | None = None
        self._fewer: SignedCheckpoint | None = None
        """The newest one that fewer witnesses have signed than the one before."""
        """What was cosigned last; it makes room for what is cosigned next."""

    async def once(self) -> Asked:
        """Have the newest checkpoint cosigned by all who have not done so; return what came of it.

        Raises JournalRolledBack, LogDamaged, NotSealed, StoreUnavailable.
        """
        asked = await ask(self._journal, self._witnesses, self._settings, is_lacking=True)
        if asked.signatures:
            await self._store(asked.checkpoint, asked.signatures)
        return asked

    async def _store(self, cosigned: SignedCheckpoint, signatures: Sequence[Signature]) -> None:
        """Add the signatures to a checkpoint, which may have been dropped or changed meanwhile."""
        found: SignedCheckpoint | None = cosigned
        for _ in range(TRIES):
            before = found or cosigned
            note = Note.parse(before.note.encode())
            more = [each for each in signatures if not _is_by_one_of(note.signatures, each)]
            lines = "".join(each.line for each in more)
            after = msgspec.structs.replace(before, note=before.note + lines)
            if not more or await self._write(found, after):
                await self._make_room(after)
                return
            found = await self._log.checkpoint(cosigned.origin, cosigned.size)
        raise StoreUnavailable(
            f"the checkpoint of size {cosigned.size} was changed by others each time that "
            "cosignatures were added to it"
        )

    async def _write(self, found: SignedCheckpoint | None, after: SignedCheckpoint) -> bool:
        if found is None:
            return await self._log.keep(after)
        return await self._log.replace_note(found, after.note)

    async def _make_room(self, cosigned: SignedCheckpoint) -> None:
        """Drop the one before, unless it is the first of its minute, or others have signed it."""
        last, fewer = self._last, self._fewer
        if last is not None and not _signers(last) <= _signers(cosigned):
            last, self._fewer = None, cosigned
        else:
            self._last, self._fewer = cosigned, None
        for each in (last, fewer):
            if each is not None and (each.origin, each.size) != (cosigned.origin, cosigned.size):
                await self._log.drop(each)

    async def follow(self, stopping: asyncio.Event, tell: Callable[[str], None]) -> None:
        """Have checkpoints cosigned every few seconds until `stopping` is set.

        `tell` is given what is wrong with a witness or the database when it changes. Without
        witnesses it returns at once. Raises JournalRolledBack and LogDamaged: then nothing may be
        signed any more.
        """
        told: dict[str, str] = {}
        while self._witnesses and not stopping.is_set():
            failures: dict[str, str] = {}
            try:
                failures = (await self.once()).failures
            except (StoreUnavailable, AppendOutcomeUnknown) as error:
                failures["the database"] = str(error)
            except NotSealed:
                failures = {}  # the sealer is about to make the first checkpoint
            for name in failures.keys() | told.keys():
                if failures.get(name) != told.get(name):
                    tell(f"{name}: {failures.get(name, 'answers again')}")
            told = failures
            await _pause(stopping, self._settings.witness_seconds)


def _signers(checkpoint: SignedCheckpoint) -> set[tuple[str, bytes]]:
    signatures = Note.parse(checkpoint.note.encode()).signatures
    return {(each.name, each.key_id) for each in signatures}


async def cosign_once(journal: Journal, settings: Settings, tell: Callable[[str], None]) -> Asked:
    """Have the newest checkpoint cosigned; `tell` is given who did not, and why."""
    asked = await Cosigner(journal, settings).once()
    for name, reason in asked.failures.items():
        tell(f"witness {name}: {reason}")
    return asked


async def all_or_first_error(*works: Coroutine[Any, Any, None]) -> None:
    """Wait for all; where one fails, stop the others and raise its error."""
    try:
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(work)
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from errors


def _is_by_one_of(signatures: Iterable[Signature], new: Signature) -> bool:
    return any((each.name, each.key_id) == (new.name, new.key_id) for each in signatures)


async def _pause(stopping: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stopping.wait()
    except TimeoutError:
        return
