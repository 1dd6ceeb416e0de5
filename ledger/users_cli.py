"""The command of `ledger` that registers a user: nobody can make the first one over HTTP."""

from __future__ import annotations

import sys
from typing import Annotated

import msgspec
import typer
from pydantic import SecretStr

from ledger import console
from ledger.deciding import Origin
from ledger.errors import LedgerError
from ledger.event import Metadata
from ledger.options import ActorOption, JournalOption, JsonOption
from ledger.services import open_ledger
from ledger.services.users import Registered

RolesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--role", help="A role (auditor, operator, trader, admin or your own); repeatable."
    ),
]
PermissionsOption = Annotated[
    list[str] | None, typer.Option("--permission", help="A permission; repeatable.")
]
StdinOption = Annotated[
    bool, typer.Option("--password-stdin", help="Read the password from standard input.")
]


class NoPassword(LedgerError):
    """Nobody gave a password; nobody was registered."""


class NewUser(msgspec.Struct, frozen=True):
    """Who is to be registered."""

    username: str
    password: SecretStr
    email: str | None
    permissions: tuple[str, ...]
    roles: tuple[str, ...]


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("register")(register_user)


def register_user(
    username: Annotated[str, typer.Argument(metavar="USERNAME", help="To log in with.")],
    roles: RolesOption = None,
    permissions: PermissionsOption = None,
    email: Annotated[str | None, typer.Option(help="The e-mail address.")] = None,
    password_stdin: StdinOption = False,
    actor: ActorOption = None,
    as_json: JsonOption = False,
    journal: JournalOption = None,
) -> None:
    """Register a user; asks for the password."""
    password = SecretStr(_read() if password_stdin else _asked())
    new = NewUser(username, password, email, tuple(permissions or ()), tuple(roles or ()))
    made = console.run(_register(new, actor, journal))
    offset = None if made.appended is None else made.appended.offsets[0]
    console.tell(
        {"user_id": made.user_id, "offset": offset},
        f"user {made.user_id} was registered at offset {offset}",
        as_json=as_json,
    )


def _read() -> str:
    """Return the first line of standard input."""
    try:
        return sys.stdin.buffer.readline().decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise NoPassword("standard input is no UTF-8 text; nobody was registered") from error


def _asked() -> str:
    """Return what somebody types twice, without showing it."""
    if not sys.stdin.isatty():
        raise NoPassword("nobody can be asked for a password here; give --password-stdin")
    try:
        return str(typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True))
    except typer.Abort:
        raise NoPassword("no password was given; nobody was registered") from None


async def _register(new: NewUser, actor: str | None, name: str | None) -> Registered:
    metadata = Metadata(actor=actor or console.operator())
    async with open_ledger(console.load_settings(), name) as ledger:
        return await ledger.users.register(
            username=new.username,
            password=new.password.get_secret_value(),
            email=new.email,
            permissions=new.permissions,
            roles=new.roles,
            origin=Origin(metadata=metadata),
        )
