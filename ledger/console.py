"""What all command line programs of this project share: errors, exit codes, progress."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Coroutine
from typing import Any, NoReturn, TypeVar

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ledger.errors import LedgerError
from ledger.settings import Settings, SettingsInvalid

T = TypeVar("T")

INTERRUPTED = 130
INSIST_SECONDS = 1.0

if sys.platform == "win32":
    from asyncio import run as _run
else:
    from uvloop import run as _run


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a program's asynchronous part on the fastest event loop there is."""
    try:
        return _run(_interruptible(work))
    except BrokenPipeError:
        # The reader has seen enough (`ledger tail | head`); keep the interpreter from complaining,
        # and Typer, which would make an error of it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


async def _interruptible(work: Coroutine[Any, Any, T]) -> T:
    """Cancel the work at SIGINT, again and again until it has ended.

    Once is not enough: before Python 3.12, `asyncio.wait_for` may lose a cancellation that arrives
    at the same time as its result, and drivers use it.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(work)

    def cancel() -> None:
        if task.cancel():
            loop.call_later(INSIST_SECONDS, cancel)

    with contextlib.suppress(NotImplementedError):  # on Windows
        loop.add_signal_handler(signal.SIGINT, cancel)
    return await task


def load_settings() -> Settings:
    """Return the settings; SettingsInvalid names the variables that are wrong."""
    try:
        return Settings()
    except ValidationError as error:
        wrong = "; ".join(
            f"LEDGER_{'_'.join(map(str, part['loc'])).upper()}: {part['msg']}"
            for part in error.errors()
        )
        raise SettingsInvalid(wrong) from error


def main(app: typer.Typer, name: str) -> NoReturn:
    """Run a program: errors become one line on standard error and an exit code."""
    try:
        app(prog_name=name)
    except LedgerError as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except asyncio.CancelledError:
        sys.exit(INTERRUPTED)
    sys.exit(0)


def progress_bar(unit: str) -> Progress:
    """Return a progress bar on standard error; it shows nothing where that is not a terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
