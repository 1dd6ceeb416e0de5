"""The commands of `ledger` for witnesses, and for going on under a new log."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer

from ledger import console
from ledger.errors import InvalidEvent
from ledger.journal import open_journal
from ledger.options import ActorOption, JournalOption, JsonOption
from ledger.proof.forking import Forked, fork
from ledger.proof.keys import KeyUnusable, read_key
from ledger.proof.log import as_text
from ledger.proof.notes import NoteInvalid, SigningKey, VerifierKey
from ledger.proof.witness import Witness, WitnessServer, WitnessUnusable
from ledger.proof.witness_client import witnesses_of
from ledger.proof.witnessing import Asked, check_witnessed, cosign_once
from ledger.settings import Settings, SettingsInvalid

KeyOption = Annotated[Path, typer.Option("--key", help="The witness's own private key.")]

witness_app = console.Program(help="Be a witness of logs, or ask the witnesses of one's own log.")


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.add_typer(witness_app, name="witness")
    app.command("fork")(fork_log)


@witness_app.command("key")
def show_key(
    file: Annotated[Path, typer.Argument(help="The file with the witness's private key.")],
    as_json: JsonOption = False,
) -> None:
    """Print the public key of the cosignatures, which LEDGER_WITNESSES of a log names."""
    vkey = read_key(file).cosigner.vkey
    console.tell({"vkey": vkey}, vkey, as_json=as_json)


@witness_app.command()
def serve(
    key: KeyOption,
    log: Annotated[
        list[str],
        typer.Option(help="The public key of a log, as `ledger keys show` prints it; repeat it."),
    ],
    state: Annotated[Path, typer.Option(help="A folder for what was seen of each log.")],
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where to listen; port 0 for any that is free.")
    ] = "127.0.0.1:7380",
    as_json: JsonOption = False,
) -> None:
    """Be a witness (C2SP tlog-witness) of some logs, until stopped (SIGINT, SIGTERM)."""
    witness = Witness(read_key(key), [_log_key(each) for each in log], state)
    with WitnessServer(_address(listen), witness) as server:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: _stop(server))
        words = f"listening at port {server.port}, key {witness.vkey}"
        console.tell({"port": server.port, "vkey": witness.vkey}, words, as_json=as_json)
        sys.stdout.flush()
        server.serve_forever()


def _stop(server: WitnessServer) -> None:
    """Have the server end; from a thread, since it waits for the loop that it interrupts."""
    threading.Thread(target=server.shutdown, daemon=True).start()


def _log_key(vkey: str) -> VerifierKey:
    try:
        return VerifierKey.parse(vkey)
    except NoteInvalid as error:
        raise KeyUnusable(f"--log {vkey[:200]}: {error}") from error


def _address(listen: str) -> tuple[str, int]:
    host, colon, port = listen.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65_535:
        raise WitnessUnusable(f"--listen {listen!r}: give it as HOST:PORT")
    return host.strip("[]"), int(port)


@witness_app.command()
def cosign(as_json: JsonOption = False, journal: JournalOption = None) -> None:
    """Have the newest signed checkpoint cosigned by all witnesses that have not done so."""
    with console.waiting("asking the witnesses"):
        asked = console.run(_cosign(_settings(), journal))
    checkpoint, count = asked.checkpoint, len(asked.signatures)
    answer = {"origin": checkpoint.origin, "size": checkpoint.size, "cosigned": count}
    words = f"{count} cosigned {checkpoint.origin} at size {checkpoint.size}"
    console.tell(answer | {"failures": asked.failures}, words, as_json=as_json)
    if asked.failures:
        raise typer.Exit(console.ENVIRONMENT)


async def _cosign(settings: Settings, name: str | None) -> Asked:
    async with open_journal(settings, name) as journal:
        return await cosign_once(journal, settings, _tell)


@witness_app.command()
def check(as_json: JsonOption = False, journal: JournalOption = None) -> None:
    """Say whether the journal is all that the witnesses have seen, as each start does."""
    with console.waiting("asking the witnesses"):
        console.run(_check(_settings(), journal))
    console.tell({"whole": True}, "the journal is all that was witnessed", as_json=as_json)


async def _check(settings: Settings, name: str | None) -> None:
    async with open_journal(settings, name) as journal:
        await check_witnessed(journal, settings)


def _settings() -> Settings:
    settings = console.load_settings()
    if not witnesses_of(settings):
        raise SettingsInvalid("LEDGER_WITNESSES: no witness is set")
    return settings


def fork_log(
    reason: Annotated[str, typer.Option(help="Why; it is recorded in the journal.")],
    actor: ActorOption = None,
    as_json: JsonOption = False,
    journal: JournalOption = None,
) -> None:
    """Go on under a new log, where the journal has lost events that were witnessed.

    LEDGER_LOG_KEY_FILE must be the new log's key, under a new name. It is recorded in the journal.
    """
    settings = console.load_settings()
    if not reason.strip():
        raise InvalidEvent("must say why the log is left", field="reason")
    if settings.log_key_file is None:
        raise KeyUnusable("set LEDGER_LOG_KEY_FILE to the new log's key (`ledger keys new`)")
    key = read_key(settings.log_key_file)
    with console.waiting("sealing the new log"):
        done = console.run(_fork(settings, key, reason, actor or console.operator(), journal))
    words = (
        f"left {done.old.origin} at size {done.old.size}; {done.seal.origin} is sealed up to size "
        f"{done.seal.size}, root {as_text(done.seal.root)}"
    )
    console.tell(done, words, as_json=as_json)


async def _fork(
    settings: Settings, key: SigningKey, reason: str, actor: str, name: str | None
) -> Forked:
    async with open_journal(settings, name) as journal:
        done = await fork(journal, settings, key, reason, actor)
        if witnesses_of(settings):
            await cosign_once(journal, settings, _tell)
        return done


def _tell(what: str) -> None:
    print(f"ledger: {what}", file=sys.stderr, flush=True)
