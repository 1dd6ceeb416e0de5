"""The command `ledger`: the journal's door for operators."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from ledger import console, data_keys_cli, erasing_cli, users_cli
from ledger.codec import NO_METADATA
from ledger.errors import InvalidEvent
from ledger.event import Metadata, RecordedEvent
from ledger.journal import Journal, open_journal
from ledger.ndjson import Imported, Readable, import_lines
from ledger.options import JournalOption, JsonOption
from ledger.privacy import opened_body
from ledger.proof import cli as proof_cli
from ledger.proof import witness_cli
from ledger.proof.witnessing import check_witnessed
from ledger.settings import Settings
from ledger.stores import JournalInfo, Store
from ledger.stores.opening import open_store

app = console.Program(help="Append events to a journal and read them back.")
journals_app = console.Program(help="List journals, or make one.", no_args_is_help=False)
app.add_typer(journals_app, name="journals")
proof_cli.register(app)
witness_cli.register(app)
data_keys_cli.register(app)
users_cli.register(app)
erasing_cli.register(app)


@app.command()
def migrate(
    revision: Annotated[str, typer.Argument(help="How far; the newest by default.")] = "head",
    as_json: JsonOption = False,
) -> None:
    """Create or upgrade the tables, as LEDGER_OWNER_DATABASE_URL if that is set."""
    from ledger import migrate as migrating  # noqa: PLC0415 - Alembic is slow to import

    with console.waiting("migrating"):
        migrating.migrate(console.load_settings(), revision)
    console.tell({"migrated": revision}, "the database is migrated", as_json=as_json)


@app.command()
def append(
    file: Annotated[str, typer.Argument(help="A file of NDJSON lines, or - for standard input.")],
    source: Annotated[
        str | None,
        typer.Option(help="The file's origin; needed where lines have no event_id."),
    ] = None,
    as_json: JsonOption = False,
    journal: JournalOption = None,
) -> None:
    """Append the events of an NDJSON file, in its order; known event ids are not stored again."""
    with _opened(file) as lines:
        done = console.run(_append(lines, file, source, journal))
    stored = done.lines - done.known
    console.tell(
        {"stored": stored, "known": done.known},
        f"{stored} events stored, {done.known} were stored before",
        as_json=as_json,
    )


async def _append(lines: Readable, file: str, source: str | None, name: str | None) -> Imported:
    done = Imported()
    async with _journal(name) as journal:
        await check_witnessed(journal, console.load_settings())
        with console.progress_bar("lines") as progress:
            task = progress.add_task("importing", total=None)
            async for done in import_lines(journal, lines, file, source):
                progress.update(task, completed=done.lines)
    return done


@app.command()
def tail(
    start: Annotated[
        int | None,
        typer.Option(
            "--from",
            min=0,
            help="The first offset.",
            show_default="the last 10, or all of --stream",
        ),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more events.")] = False,
    stream: Annotated[str | None, typer.Option(help="Only the events of this stream.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, as it does anyway.", show_default=False)
    ] = True,
    journal: JournalOption = None,
) -> None:
    """Print events as NDJSON, with their envelopes."""
    console.run(_tail(start, follow, stream, journal))


async def _tail(start: int | None, follow: bool, stream: str | None, name: str | None) -> None:
    async with _journal(name) as journal:
        size = await journal.size()
        first = 0 if stream is not None else max(0, size - 10)
        offset = first if start is None else start
        while True:
            async for chunk in journal.read_chunks(offset, size, stream=stream):
                for event in chunk:
                    sys.stdout.buffer.write(as_line(event))
                sys.stdout.buffer.flush()
            if not follow:
                return
            offset = max(offset, size)
            size = await journal.wait(offset + 1)


@app.command()
def size(as_json: JsonOption = False, journal: JournalOption = None) -> None:
    """Print the number of events in the journal."""
    found = console.run(_size(journal))
    console.tell({"size": found}, str(found), as_json=as_json)


async def _size(name: str | None) -> int:
    async with _journal(name) as journal:
        return await journal.size()


@journals_app.callback(invoke_without_command=True)
def journals(
    context: typer.Context,
    as_json: JsonOption = False,
) -> None:
    """List the journals: name, size, and when each was made."""
    if context.invoked_subcommand is not None:
        return
    found = console.run(_journals())
    lines = (f"{each.name}\t{each.size}\t{each.created_at.isoformat()}" for each in found)
    console.tell(found, lines, as_json=as_json)


async def _journals() -> list[JournalInfo]:
    async with _store() as store:
        return await store.journals()


@journals_app.command("new")
def new_journal(
    name: Annotated[str, typer.Argument(help="The new journal's name.")],
    as_json: JsonOption = False,
) -> None:
    """Make an empty journal."""
    made = console.run(_new_journal(name))
    console.tell(made, f"made journal {made.name}", as_json=as_json)


async def _new_journal(name: str) -> JournalInfo:
    async with _store() as store:
        return await store.create_journal(name)


class Envelope(msgspec.Struct, omit_defaults=True):
    """An event as `ledger tail` prints it."""

    offset: int
    stream: str
    version: int
    type: str
    event_id: str
    recorded_at: str
    occurred_at: str
    schema_version: int
    data: msgspec.Raw
    metadata: Metadata = NO_METADATA
    erased: tuple[str, ...] = ()


def as_line(event: RecordedEvent) -> bytes:
    """Return a recorded event as one line of JSON.

    `data` is the stored body without its type, in which personal fields are opened or null.
    """
    head = b'{"type":"' + event.type.encode() + b'"'
    data = b"{" + opened_body(event).removeprefix(head).removeprefix(b",")
    envelope = Envelope(
        event.offset,
        event.stream,
        event.version,
        event.type,
        str(event.event_id),
        event.recorded_at.isoformat(),
        event.occurred_at.isoformat(),
        event.schema_version,
        msgspec.Raw(data),
        event.metadata,
        event.erased,
    )
    return msgspec.json.encode(envelope) + b"\n"


@contextmanager
def _opened(file: str) -> Iterator[Readable]:
    if file == "-":
        yield getattr(sys.stdin.buffer, "raw", sys.stdin.buffer)
        return
    try:
        with Path(file).open("rb", buffering=0) as lines:
            yield lines
    except OSError as error:
        raise InvalidEvent(f"cannot read it: {error.strerror}", field=file) from error


@asynccontextmanager
async def _journal(name: str | None) -> AsyncIterator[Journal]:
    async with open_journal(console.load_settings(), name) as journal:
        yield journal


@asynccontextmanager
async def _store() -> AsyncIterator[Store]:
    settings: Settings = console.load_settings()
    store = open_store(settings)
    try:
        yield store
    finally:
        await store.close()


def main() -> None:
    """Run the command line program."""
    console.main(app, "ledger")
