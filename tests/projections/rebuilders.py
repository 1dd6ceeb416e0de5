"""Rebuilds as processes of their own, which die at a given moment."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.settings import Settings
from projections.database import explained
from projections.rebuilding import Options, Watch, rebuild, rollback, shape_postgres
from tests.support.forks import FORKS

DONE = 0


class Accepting(Watch):
    """Accepts whatever is found."""

    def accepts(self, compared: Sequence[Any]) -> bool:
        """Accept."""
        return True


def start(
    url: str, tables: Sequence[str], statement: int = 0, *, back: bool = False
) -> BaseProcess:
    """Start a rebuild (or a rollback) that kills itself before a statement of its swap."""
    process = FORKS.Process(target=_rebuild, args=(url, tables, statement, back), daemon=True)
    process.start()
    return process


def start_in_processes(url: str, tables: Sequence[str]) -> BaseProcess:
    """Start a rebuild as users do, with processes that fold; it may be killed from outside."""
    process = FORKS.Process(target=_rebuild_in_processes, args=(url, tables))
    process.start()
    return process


def _rebuild_in_processes(url: str, tables: Sequence[str]) -> None:
    options = Options(workers=2, replace_old=True)
    asyncio.run(rebuild(Settings(database_url=url), tables, options=options, watch=Accepting()))


def _rebuild(url: str, tables: Sequence[str], statement: int, back: bool) -> None:
    if statement:
        _die_before(statement)
    settings = Settings(database_url=url)
    options = Options(workers=2, replace_old=True)
    with ThreadPoolExecutor(2) as executor:
        if back:
            work = rollback(settings, tables, options=options, executor=executor)
        else:
            work = rebuild(settings, tables, options=options, executor=executor, watch=Accepting())
        asyncio.run(work)


def _die_before(statement: int) -> None:
    """Count the statements from the swap's first on, each for itself, and die at one of them."""
    counted = 0

    def count(_connection: Any, _cursor: Any, text: str, *_: Any) -> None:
        nonlocal counted
        begun = counted or "lock_timeout = 2000" in text or "legacy_alter_table = ON" in text
        counted += bool(begun)
        if counted == statement:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(Engine, "before_cursor_execute", count)
    shape_postgres.run_script = _run_one_by_one


async def _run_one_by_one(connection: AsyncConnection, statements: Sequence[str]) -> None:
    with explained():
        for statement in statements:
            await connection.execute(sa.text(statement.replace(":", r"\:")))
