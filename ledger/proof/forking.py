"""Forking a log: going on under a new origin, where the old log cannot be continued.

The old one's signed checkpoints stay, as does what was published of it. The journal records the
fork as an event, so that it is sealed: which log was left, at which checkpoint, why, by whom.
"""

from __future__ import annotations

import msgspec

from ledger.conditions import ExpectedVersion
from ledger.domain.logs import LogForked, log_stream
from ledger.errors import LedgerError, VersionConflict
from ledger.event import Metadata, NewEvent
from ledger.journal import Journal
from ledger.proof.log import NotSealed, log_of, newest_checkpoint
from ledger.proof.notes import CheckpointBody, Note, SigningKey
from ledger.proof.sealer import Sealer
from ledger.proof.witness_client import witnesses_of
from ledger.proof.witnessing import JournalRolledBack, ask, check_own
from ledger.settings import Settings
from ledger.stores import Seal, SignedCheckpoint

TRIES = 20


class CannotFork(LedgerError):
    """The new log has no name or key of its own, or the journal's own tables do not fit."""


class Forked(msgspec.Struct, frozen=True):
    """The log that was left, and how far the new one is sealed."""

    old: SignedCheckpoint
    seal: Seal
    witnessed_size: int | None


async def fork(
    journal: Journal, settings: Settings, key: SigningKey, reason: str, actor: str
) -> Forked:
    """Go on under the log that `key` names; it may be called again after it was interrupted.

    Records LogForked, then signs the first checkpoint of the new log and seals up to the end.
    Raises NotSealed, CannotFork, and JournalRolledBack or LogDamaged where the events are not what
    was sealed in this very database: no log can be continued from that.
    """
    if (begun := await _begun(journal, key)) is not None:
        body = old_checkpoint(begun)
        left = SignedCheckpoint(body.origin, body.size, begun.checkpoint, journal.now())
        return Forked(left, await Sealer(journal, key).catch_up(), begun.witnessed_size)
    old = await _left(journal, settings, key)
    await check_own(journal, [each.key for each in witnesses_of(settings)])
    witnessed = await _witnessed_size(journal, settings)
    forked = LogForked(
        origin=key.name, reason=reason, checkpoint=old.note, witnessed_size=witnessed
    )
    try:
        new = NewEvent(forked, metadata=Metadata(actor=actor))
        await journal.append(new, ExpectedVersion(log_stream(key.name), 0))
    except VersionConflict:
        pass  # recorded already, by a call that was interrupted before the log was left
    await _leave(journal, key)
    return Forked(old, await Sealer(journal, key).catch_up(), witnessed)


async def _begun(journal: Journal, key: SigningKey) -> LogForked | None:
    """Return what a fork has recorded that was interrupted after the old log was left."""
    seal = await log_of(journal).seal()
    if seal is None or seal.origin != key.name:
        return None
    async for chunk in journal.read_chunks(seal.size, stream=log_stream(key.name)):
        for recorded in chunk:
            if isinstance(recorded.event, LogForked):
                return recorded.event
    return None


async def _left(journal: Journal, settings: Settings, key: SigningKey) -> SignedCheckpoint:
    """Return the newest checkpoint of the log to leave; CannotFork where the new one cannot be."""
    old = await newest_checkpoint(log_of(journal))
    if settings.log_origin not in (None, key.name):
        raise CannotFork(
            f"LEDGER_LOG_ORIGIN is {settings.log_origin!r}, the key is {key.name!r}'s: set it to "
            "the new log's name, or leave it out"
        )
    if await log_of(journal).checkpoints(key.name, -1, 1):
        raise CannotFork(
            f"the journal's log is or was {key.name!r} already; a fork needs a new name: "
            f"make a key with `ledger keys new FILE --name {_next_name(key.name)}` and set "
            "LEDGER_LOG_KEY_FILE to it"
        )
    return old


def _next_name(name: str) -> str:
    """Return a name for the log after this one: x, x.2, x.3."""
    head, dot, number = name.rpartition(".")
    return f"{head}.{int(number) + 1}" if dot and number.isdecimal() else f"{name}.2"


async def _witnessed_size(journal: Journal, settings: Settings) -> int | None:
    """Return what a witness has seen of the old log, None where none answers."""
    try:
        asked = await ask(journal, witnesses_of(settings), settings)
    except JournalRolledBack as error:
        return error.seen_size
    return asked.checkpoint.size if asked.signatures else None


async def _leave(journal: Journal, key: SigningKey) -> None:
    """Sign the first checkpoint of the new log: the tree of the old one, as far as it is sealed."""
    log = log_of(journal)
    for _ in range(TRIES):
        seal = await log.seal()
        if seal is None:
            raise NotSealed("the journal is not sealed; there is no log to leave")
        now = journal.now()
        body = CheckpointBody(key.name, seal.size, seal.root)
        note = Note(body.text, (key.sign(body.text),)).render().decode()
        first = SignedCheckpoint(key.name, seal.size, note, now)
        if await log.extend(seal, Seal(key.name, seal.size, seal.root, now), [], first):
            return
    raise CannotFork(
        f"others have sealed the journal each of {TRIES} times that its log was to be left; stop "
        "`ledger seal --follow`, and call it again"
    )


def old_checkpoint(forked: LogForked) -> CheckpointBody:
    """Return what the last checkpoint of the old log says."""
    return CheckpointBody.parse(Note.parse(forked.checkpoint.encode()).text)
