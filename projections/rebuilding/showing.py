"""A rebuild on a terminal: what it does, how far it is, how fast, and for how long still."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import monotonic

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from projections.rebuilding.comparing import Comparison
from projections.rebuilding.work import Watch

LINE_SECONDS = 10.0
"""Where standard error is no terminal, a line tells about this often how far the folding is."""


class Shown(Watch):
    """Shows on standard error what is done; asks on a terminal whether differences are accepted."""

    def __init__(self, *, accept: bool, quiet: bool = False) -> None:
        """Take whether differences are accepted without asking, and printed by somebody else."""
        self._accept = accept
        self._quiet = quiet
        self._console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]} events/s"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(
            *columns, console=self._console, disable=not self._console.is_terminal, transient=True
        )
        self._task: TaskID | None = None
        self._started = self._told = monotonic()

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Leave no bar behind."""
        try:
            yield
        finally:
            self._bar.stop()

    def stage(self, text: str) -> None:
        """Show what is done from now on."""
        self._bar.stop()
        self._task = None
        self._started = self._told = monotonic()
        self._console.print(text, highlight=False, soft_wrap=True)

    def folded(self, events: int, total: int) -> None:
        """Show how far the folding is."""
        rate = events / max(monotonic() - self._started, 0.001)
        if self._bar.disable:
            self._tell(events, total, rate)
            return
        if self._task is None:
            self._task = self._bar.add_task("folding", total=total, rate="0")
            self._bar.start()
        self._bar.update(self._task, completed=events, rate=f"{rate:,.0f}")

    def _tell(self, events: int, total: int, rate: float) -> None:
        if monotonic() < self._told + LINE_SECONDS:
            return
        self._told = monotonic()
        left = (total - events) / max(rate, 1)
        done = f"{events / max(total, 1):.0%}: {events:,} of {total:,} events"
        line = f"  {done}, {rate:,.0f} events/s, {left:.0f} s left"
        self._console.print(line, highlight=False, soft_wrap=True)

    def accepts(self, compared: Sequence[Comparison]) -> bool:
        """Ask, unless the answer was given already; without a terminal the answer is no."""
        self._bar.stop()
        for each in compared:
            if not (each.is_same or self._quiet):
                print(each)
        sys.stdout.flush()
        if self._accept or self._quiet or not sys.stdin.isatty():
            return self._accept
        return typer.confirm("Swap the new tables in?", err=True)
