"""The commands of `ledger` that erase a user's personal data, or forbid that."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated
from uuid import UUID

import typer

from ledger import console
from ledger.deciding import Origin
from ledger.errors import LedgerError
from ledger.event import Metadata
from ledger.options import ActorOption, JournalOption, JsonOption
from ledger.services import open_ledger
from ledger.services.users import Erased

UserArgument = Annotated[UUID, typer.Argument(metavar="USER_ID", help="The user's id.")]
ReasonOption = Annotated[
    str,
    typer.Option(help="Why; it is recorded for ever, so it must not name the person."),
]


class NotConfirmed(LedgerError):
    """Nobody said yes; nothing was erased."""


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command("erase-user")(erase_user)
    app.command("hold-user")(hold_user)
    app.command("release-user")(release_user)


def erase_user(
    user_id: UserArgument,
    reason: ReasonOption,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    actor: ActorOption = None,
    as_json: JsonOption = False,
    journal: JournalOption = None,
) -> None:
    """Destroy the personal data of a user, for good, in the past too.

    Proofs made before stay valid. Can be run again after any error: it finishes what was begun.
    """
    if not yes:
        _confirm(user_id)
    with console.waiting("erasing"):
        done = console.run(_erase(user_id, reason, actor, journal))
    console.tell(done, _told(done), as_json=as_json)


def _confirm(user_id: UUID) -> None:
    question = f"Destroy the personal data of user {user_id}? This cannot be undone."
    try:
        is_wanted = typer.confirm(question, err=True)
    except typer.Abort:
        is_wanted = False
    if not is_wanted:
        raise NotConfirmed("nothing was erased; answer with y, or give --yes")


async def _erase(user_id: UUID, reason: str, actor: str | None, name: str | None) -> Erased:
    async with open_ledger(console.load_settings(), name) as ledger:
        return await ledger.users.erase(user_id=user_id, reason=reason, origin=_origin(actor))


def _origin(actor: str | None) -> Origin:
    return Origin(metadata=Metadata(actor=actor or console.operator()))


def _told(done: Erased) -> Iterator[str]:
    """Say what was done, what could not be, and what is next; nothing personal is among it."""
    recorded = "before" if done.appended is None else f"at offset {done.appended.offsets[0]}"
    key = "was destroyed" if done.key_destroyed else "was destroyed before"
    yield f"user {done.user_id}: the erasure was recorded {recorded}, the data key {key}"
    if done.plain_events:
        yield (
            f"at least {done.plain_events} events of the user were stored in plain by an older "
            "release: what is in them cannot be erased"
        )
    yield "next: `projections scrub` takes the values out of the read tables and their files"


def hold_user(
    user_id: UserArgument,
    reason: ReasonOption,
    actor: ActorOption = None,
    as_json: JsonOption = False,
    journal: JournalOption = None,
) -> None:
    """Place a legal hold on a user: nobody can erase the user until it is lifted."""
    console.run(_hold(user_id, reason, actor, journal))
    _tell_held(user_id, f"user {user_id} is under a legal hold", held=True, as_json=as_json)


async def _hold(user_id: UUID, reason: str, actor: str | None, name: str | None) -> None:
    async with open_ledger(console.load_settings(), name) as ledger:
        await ledger.users.hold(user_id=user_id, reason=reason, origin=_origin(actor))


def release_user(
    user_id: UserArgument,
    reason: ReasonOption,
    actor: ActorOption = None,
    as_json: JsonOption = False,
    journal: JournalOption = None,
) -> None:
    """Lift the legal hold of a user, who can be erased again."""
    console.run(_release(user_id, reason, actor, journal))
    words = f"user {user_id} is no longer under a legal hold"
    _tell_held(user_id, words, held=False, as_json=as_json)


def _tell_held(user_id: UUID, words: str, *, held: bool, as_json: bool) -> None:
    console.tell({"user_id": user_id, "held": held}, words, as_json=as_json)


async def _release(user_id: UUID, reason: str, actor: str | None, name: str | None) -> None:
    async with open_ledger(console.load_settings(), name) as ledger:
        await ledger.users.release(user_id=user_id, reason=reason, origin=_origin(actor))
