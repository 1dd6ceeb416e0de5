"""The commands of `ledger` that seal a journal, publish its log and prove events."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from pathlib import Path
from time import monotonic
from typing import Annotated

import msgspec
import typer

from ledger import console
from ledger.errors import LedgerError
from ledger.journal import open_journal
from ledger.options import JournalOption, JsonOption
from ledger.proof.folders import Folder
from ledger.proof.keys import KeyUnusable, read_key, write_key
from ledger.proof.log import as_text, default_origin, prove
from ledger.proof.notes import NoteInvalid, SigningKey
from ledger.proof.publish import Published, publish
from ledger.proof.sealer import Sealer
from ledger.proof.witness_client import witnesses_of
from ledger.proof.witnessing import Cosigner, all_or_first_error, check_sealable, cosign_once
from ledger.settings import Settings
from ledger.stores import Seal

REPEATED_AFTER_SECONDS = 60.0

keys_app = console.Program(help="Make the key of a log, or show its public part.")


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.add_typer(keys_app, name="keys")
    for command in (seal, publish_log, prove_event):
        app.command(_NAMES[command.__name__])(command)


_NAMES = {"seal": "seal", "publish_log": "publish", "prove_event": "prove"}


@keys_app.command("new")
def new_key(
    file: Annotated[Path, typer.Argument(help="Where to write the private key.")],
    name: Annotated[
        str | None,
        typer.Option(help="The log's name.", show_default="LEDGER_LOG_ORIGIN or ledger/<journal>"),
    ] = None,
    as_json: JsonOption = False,
    journal: JournalOption = None,
) -> None:
    """Make a private key that only its owner can read, and print the public key."""
    settings = console.load_settings()
    origin = name or settings.log_origin or default_origin(journal or settings.journal)
    try:
        key = SigningKey.generate(origin)
    except NoteInvalid as error:
        raise KeyUnusable(f"--name: {error}") from error
    write_key(file, key)
    console.tell({"file": str(file), "vkey": key.vkey}, key.vkey, as_json=as_json)


@keys_app.command("show")
def show_key(
    file: Annotated[Path, typer.Argument(help="The file with the private key.")],
    as_json: JsonOption = False,
) -> None:
    """Print the public key, which whoever checks the log must know."""
    vkey = read_key(file).vkey
    console.tell({"vkey": vkey}, vkey, as_json=as_json)


def seal(
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until stopped (SIGINT, SIGTERM).")
    ] = False,
    as_json: JsonOption = False,
    journal: JournalOption = None,
) -> None:
    """Seal the journal's events: hash them into the log's tiles and sign a checkpoint.

    The key is that of LEDGER_LOG_KEY_FILE. Any number may run; one works, the others stand by.
    """
    settings = console.load_settings()
    if settings.log_key_file is None:
        raise KeyUnusable("set LEDGER_LOG_KEY_FILE to the log's key; `ledger keys new` makes one")
    key = read_key(settings.log_key_file)
    if follow:
        console.run(_follow(settings, key, journal))
        return
    done = console.run(_seal(settings, key, journal))
    words = f"sealed up to size {done.size}, root {as_text(done.root)}, origin {done.origin}"
    console.tell(done, words, as_json=as_json)


async def _seal(settings: Settings, key: SigningKey, name: str | None) -> Seal:
    async with open_journal(settings, name) as journal:
        await check_sealable(journal, settings, key)
        sealer = Sealer(journal, key, settings.log_origin)
        with console.progress_bar("events") as progress:
            task = progress.add_task("sealing", total=await journal.size())
            done = await sealer.catch_up(lambda events: progress.advance(task, events))
        await cosign_once(journal, settings, _Teller())
        return done


async def _follow(settings: Settings, key: SigningKey, name: str | None) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # on Windows
            loop.add_signal_handler(number, stopping.set)
    async with open_journal(settings, name) as journal:
        await check_sealable(journal, settings, key)
        sealer = Sealer(journal, key, settings.log_origin)
        sealing = sealer.follow(stopping, _Teller())
        await all_or_first_error(sealing, Cosigner(journal, settings).follow(stopping, _Teller()))


class _Teller:
    """Tells on standard error what went wrong; the same thing again after a minute only."""

    def __init__(self) -> None:
        self._last: tuple[str, float] = ("", 0.0)

    def __call__(self, error: LedgerError | str) -> None:
        said, at = self._last
        if str(error) == said and monotonic() - at < REPEATED_AFTER_SECONDS:
            return
        self._last = str(error), monotonic()
        print(f"ledger seal: {error}", file=sys.stderr, flush=True)


def publish_log(
    target: Annotated[str, typer.Argument(metavar="DIR|URL", help="Where to, as s3://bucket/log.")],
    as_json: JsonOption = False,
    journal: JournalOption = None,
) -> None:
    """Write what is new of the sealed log to a folder or an object store.

    Where witnesses are set, up to the newest checkpoint that all of them have cosigned, unless
    LEDGER_WITNESS_UNREACHABLE is `warn`.
    """
    done = console.run(_publish(target, journal))
    words = (
        f"published up to size {done.size}, root {as_text(done.root)}, origin {done.origin}: "
        f"{done.files:,} files written"
    )
    console.tell(done, words, as_json=as_json)


async def _publish(target: str, name: str | None) -> Published:
    folder, settings = Folder(target), console.load_settings()
    is_strict = settings.witness_unreachable == "refuse"
    cosigners = [each.key for each in witnesses_of(settings)] if is_strict else []
    async with open_journal(settings, name) as journal:
        with console.progress_bar("events") as progress:
            task = progress.add_task("publishing", total=await journal.size())
            return await publish(
                journal, folder, lambda events: progress.advance(task, events), cosigners
            )


def prove_event(
    offset: Annotated[int, typer.Argument(min=0, help="The event's offset.")],
    size: Annotated[
        int | None, typer.Option(min=1, help="A signed size.", show_default="the newest")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A file.", show_default="standard output")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write JSON: the offset, and the proof as text.")
    ] = False,
    journal: JournalOption = None,
) -> None:
    """Write a proof (C2SP tlog-proof) that an event is in the sealed log, and the event with it."""
    proof = console.run(_prove(offset, size, journal))
    if as_json:
        proof = msgspec.json.encode({"offset": offset, "proof": proof.decode()}) + b"\n"
    if output is None:
        sys.stdout.buffer.write(proof)
    else:
        output.write_bytes(proof)


async def _prove(offset: int, size: int | None, name: str | None) -> bytes:
    async with open_journal(console.load_settings(), name) as journal:
        return (await prove(journal, offset, size)).render()
