"""What all command line programs of this project share: help, answers, errors, progress."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import io
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Coroutine, Iterable, Iterator
from time import monotonic
from typing import Any, NoReturn, TypeVar

import msgspec
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ledger.errors import LedgerError
from ledger.settings import Settings, SettingsInvalid

T = TypeVar("T")
Command = TypeVar("Command", bound=Callable[..., Any])

ENVIRONMENT = 3
INTERRUPTED = 130
INSIST_SECONDS = 1.0
EPILOG = (
    "Exit codes: 0 done, 1 differences found or a check failed, 2 bad input or usage, "
    "3 environment, 130 interrupted."
)

if sys.platform == "win32":
    from asyncio import run as _run
else:
    from uvloop import run as _run


class Program(typer.Typer):
    """A program, or a group of its commands; the help of each ends with the exit codes."""

    def __init__(self, *, help: str, no_args_is_help: bool = True) -> None:  # noqa: A002
        super().__init__(
            help=help,
            epilog=EPILOG,
            no_args_is_help=no_args_is_help,
            pretty_exceptions_enable=False,
        )

    def command(self, *args: Any, **options: Any) -> Callable[[Command], Command]:
        """Add a command, as Typer does."""
        return super().command(*args, **({"epilog": EPILOG} | options))


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a program's asynchronous part on the fastest event loop there is."""
    return _run(_interruptible(work))


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
    """Run a program: errors become one line on standard error and an exit code.

    1 is kept for differences found, so a defect of the program itself, shown with its traceback,
    ends with 3.
    """
    _buffer_output()
    try:
        app(prog_name=name)
        code: str | int | None = 0
    except LedgerError as error:
        print(f"{name}: {error}", file=sys.stderr)
        code = error.exit_code
    except SystemExit as stop:
        # Where the reader has seen enough (`ledger tail | head`), Typer ends with 1.
        code = 0 if isinstance(stop.__context__, BrokenPipeError) else stop.code
    except (asyncio.CancelledError, KeyboardInterrupt):
        code = INTERRUPTED
    except OSError as error:
        print(f"{name}: {error}", file=sys.stderr)
        code = ENVIRONMENT
    except Exception:  # noqa: BLE001 - it is shown whole
        traceback.print_exc()
        code = ENVIRONMENT
    sys.exit(_flush(code))


def _buffer_output() -> None:
    """Give standard output a buffer where PYTHONUNBUFFERED took it away.

    Without one, Python takes it for done when the system has taken a part of what is printed.
    """
    raw = getattr(sys.stdout, "buffer", None)
    if sys.stdout is sys.__stdout__ and isinstance(raw, io.RawIOBase):
        buffer = io.BufferedWriter(raw)
        sys.stdout = io.TextIOWrapper(buffer, encoding="utf-8", line_buffering=True)


def _flush(code: str | int | None) -> str | int | None:
    """Print what is still to be printed; return the exit code, another where that fails."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError) and code != ENVIRONMENT:
            print(f"cannot print: {error.strerror}", file=sys.stderr)
            return ENVIRONMENT
    return code


@contextlib.contextmanager
def folding(total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Show on standard error how many events are folded, if it takes more than a second."""
    bar = progress_bar("events")
    task = bar.add_task("folding", total=total)
    started = monotonic()

    def advanced(events: int) -> None:
        bar.advance(task, events)
        if monotonic() - started > 1:
            bar.start()

    try:
        yield advanced
    finally:
        if bar.live.is_started:
            bar.stop()


def tell(answer: object, words: str | Iterable[str], *, as_json: bool) -> None:
    """Print an answer: as one JSON document, or else in words, a line each."""
    if as_json:
        print(msgspec.json.encode(answer, enc_hook=_as_plain_text).decode())
        return
    for line in [words] if isinstance(words, str) else words:
        print(line)


def _as_plain_text(value: object) -> str:
    """Return text of a class of its own, such as SQLAlchemy's names, as text."""
    if isinstance(value, str):
        return str(value)
    raise TypeError(f"an answer holds {type(value).__name__}, which is no JSON")


def operator() -> str:
    """Return who runs the program, as user@host."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):  # a user without a name
        return f"unknown@{socket.gethostname()}"


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show on a terminal that something is under way whose end nobody knows."""
    console = Console(stderr=True)
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    bar = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
    bar.add_task(what, total=None)
    with bar:
        yield


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
