"""Disks that fail and disks that are full."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import asyncpg

from tests.faults.bench import Bench
from tests.faults.extent import Extent
from tests.faults.kills import APPENDERS, start_all
from tests.faults.machinery import Strace, tiny_disk, why_no_strace

ERRORS = (
    ("fdatasync:error=EIO", "EIO on {log}"),
    ("pwrite64:error=ENOSPC", "ENOSPC on {log}"),
)
WRITERS = """SELECT pid FROM pg_stat_activity
    WHERE backend_type = 'walwriter' OR application_name = 'ledger'"""
CALLS_MAX = 5


async def fail_wal(bench: Bench, extent: Extent) -> None:
    """Let calls on PostgreSQL's write-ahead log fail: the server panics, and recovers.

    A call may also have been on another file; then it only fails what was asked for.
    """
    if reason := why_no_strace():
        bench.skip("EIO and ENOSPC on the write-ahead log", reason)
        return
    start_all(bench)
    await bench.settle("", 0)
    for number in range(extent.count):
        injection, kind = ERRORS[number % len(ERRORS)]
        before = told(bench)
        with Strace(await wal_writers(bench), f"{injection}:when=1", log_of(bench)) as strace:
            await bench.until(lambda: strace.injected > 0, "a call fails")
        await bench.until(lambda: told(bench) > before, "the server tells of it")  # noqa: B023
        await bench.settle(kind.format(log="the write-ahead log"))


def told(bench: Bench) -> int:
    """Return how often the server has told of failed calls."""
    log = bench.own_server.log.read_text()
    return sum(map(log.count, ("Input/output error", "No space left on device")))


async def wal_writers(bench: Bench) -> list[int]:
    """Return the processes of the server that write the log for those who append."""
    connection = await asyncpg.connect(bench.url)
    try:
        return [row["pid"] for row in await connection.fetch(WRITERS)]
    finally:
        await connection.close()


def log_of(bench: Bench) -> Path:
    """Return an empty place for what strace tells."""
    log = bench.folder / "strace"
    log.unlink(missing_ok=True)
    return log


async def fail_sqlite(bench: Bench, extent: Extent) -> None:
    """Let one or several calls of a writer on the SQLite file fail."""
    if reason := why_no_strace():
        bench.skip("EIO and ENOSPC on the SQLite file", reason)
        return
    start_all(bench)
    await bench.settle("", 0)
    for number in range(extent.count):
        injection, kind = ERRORS[number % len(ERRORS)]
        calls = bench.random.randint(1, CALLS_MAX)
        writer = bench.process(bench.random.choice(APPENDERS))
        with Strace([writer.pid], f"{injection}:when=1..{calls}", log_of(bench)) as strace:
            await bench.until(lambda: strace.injected >= calls, "calls fail")  # noqa: B023
        await bench.settle(kind.format(log="the SQLite file"))


async def fill_disk(bench: Bench, extent: Extent) -> None:
    """Fill the file system of a SQLite file until appends are refused, then make room again."""
    with tiny_disk() as disk:
        if disk is None:
            bench.skip("disk full", "mounting a small file system is not permitted")
            return
        file = Path(shutil.copy(bench.url.removeprefix("sqlite:///"), disk / "ledger.db"))
        bench.url = f"sqlite:///{file}"
        try:
            start_all(bench)
            await bench.settle("", 0)
            for _ in range(extent.count):
                await fill_once(bench, disk / "ballast")
                await bench.settle("disk full")
            await bench.finish()
        finally:
            bench.end()


async def fill_once(bench: Bench, ballast: Path) -> None:
    """Leave no room until an append is refused."""
    before = len(bench.account.refusals())
    await bench.pause(0.1)
    try:
        await asyncio.to_thread(fill, ballast)
        await bench.until(lambda: is_refused(bench, before), "an append is refused")
    finally:
        await asyncio.to_thread(ballast.unlink)


def is_refused(bench: Bench, before: int) -> bool:
    """Tell whether another append was refused for want of room."""
    return any("full" in reason for reason in bench.account.refusals()[before:])


def fill(ballast: Path) -> None:
    """Write until there is no room."""
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return
