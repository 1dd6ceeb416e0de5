"""The commands of `ledger` for the data keys under which personal fields are encrypted."""

from __future__ import annotations

import msgspec
import typer

from ledger import console
from ledger.journal import open_journal
from ledger.options import JournalOption, JsonOption

data_keys_app = console.Program(
    help="Look at the keys under which personal fields are encrypted, or wrap them anew."
)


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.add_typer(data_keys_app, name="data-keys")


class KeyStatus(msgspec.Struct, frozen=True):
    """How many data keys a journal has.

    `outdated` ones are not wrapped as they would be today, `destroyed` ones are gone for good.
    """

    journal: str
    keys: int
    outdated: int
    destroyed: int


@data_keys_app.command()
def status(
    as_json: JsonOption = False,
    journal: JournalOption = None,
) -> None:
    """Count the data keys: all, those to be wrapped anew, those destroyed."""
    found = console.run(_status(journal))
    lines = (
        f"{found.keys} data keys in journal {found.journal}",
        f"{found.outdated} are not wrapped by the first key of LEDGER_MASTER_KEY",
        f"{found.destroyed} are destroyed",
    )
    console.tell(found, lines, as_json=as_json)


async def _status(name: str | None) -> KeyStatus:
    async with open_journal(console.load_settings(), name) as journal:
        keys = outdated = destroyed = 0
        with console.waiting("counting data keys"):
            async for key in journal.privacy.keys.stored():
                keys += 1
                destroyed += key.wrapped is None
                outdated += journal.privacy.keys.is_outdated(key)
        return KeyStatus(journal.name, keys, outdated, destroyed)


@data_keys_app.command()
def rewrap(as_json: JsonOption = False, journal: JournalOption = None) -> None:
    """Wrap all data keys by the first key of LEDGER_MASTER_KEY; the others unwrap them.

    Afterwards the others can be taken out. Can be stopped and run again at any time.
    """
    count = console.run(_rewrap(journal))
    console.tell({"rewrapped": count}, f"{count} data keys wrapped anew", as_json=as_json)


async def _rewrap(name: str | None) -> int:
    done = 0
    async with open_journal(console.load_settings(), name) as journal:
        with console.progress_bar("keys") as progress:
            task = progress.add_task("wrapping", total=None)
            async for key in journal.privacy.keys.stored():
                done += await journal.privacy.keys.rewrap(key)
                progress.update(task, advance=1)
    return done
