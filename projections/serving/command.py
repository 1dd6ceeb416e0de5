"""The command `projections serve`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ledger import console
from ledger.options import JournalOption, JsonOption
from ledger.settings import Settings


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(serve)


def serve(
    everything: Annotated[
        bool | None,
        typer.Option("--all/--no-all", help="All of the below.", show_default="on SQLite, alone"),
    ] = None,
    project: Annotated[
        bool, typer.Option("--project", help="Also fold new events into the tables.")
    ] = False,
    seal: Annotated[
        bool, typer.Option("--seal", help="Also seal the journal, with LEDGER_LOG_KEY_FILE.")
    ] = False,
    react: Annotated[
        bool, typer.Option("--react", help="Also place closing orders as marks cross levels.")
    ] = False,
    with_console: Annotated[
        bool, typer.Option("--console/--no-console", help="The auditors' pages, at /console.")
    ] = True,
    host: Annotated[
        str | None, typer.Option(help="Where to listen.", show_default="LEDGER_HTTP_HOST")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65_535, help="0: any free one.", show_default="LEDGER_HTTP_PORT"),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(min=0, max=65_535, help="Show metrics there too, without the service's own."),
    ] = None,
    metrics_host: Annotated[str, typer.Option(help="Where to listen for those.")] = "127.0.0.1",
    as_json: JsonOption = False,
    journal: JournalOption = None,
) -> None:
    """Serve the HTTP API and the console, until stopped (SIGINT, SIGTERM).

    Any number may run on one journal. Logs go to standard error, in JSON if that is no terminal.
    """
    from projections.serving import logs, running, server  # noqa: PLC0415 - slow to import

    given = {"http_host": host, "http_port": port, "journal": journal}
    changed = {name: value for name, value in given.items() if value is not None}
    settings = console.load_settings().model_copy(update=changed)
    if everything is None:
        everything = _is_sqlite(settings) and not (project or seal or react)
    parts = running.Parts(
        project=project or everything,
        seal=seal or everything,
        react=react or everything,
        console=with_console,
    )
    console.run(
        server.serve(
            settings,
            parts,
            log=logs.configure(sys.stderr),
            listening=lambda address: _tell(address, as_json=as_json),
            metrics_address=None if metrics_port is None else (metrics_host, metrics_port),
        )
    )


def _is_sqlite(settings: Settings) -> bool:
    return settings.address().get_backend_name() == "sqlite"


def _tell(address: str, *, as_json: bool) -> None:
    console.tell({"address": address}, f"listening on {address}", as_json=as_json)
    sys.stdout.flush()
