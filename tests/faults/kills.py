"""Kill -9 at random moments, of everything that there is to kill, and freezing."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress

from tests.faults.bench import Bench
from tests.faults.extent import Extent
from tests.faults.machinery import frozen

MOMENT_SECONDS = 0.15
REBUILD_SECONDS = 1.2
WORKERS = "worker 1", "worker 2"
APPENDERS = "appender 1", "appender 2"


def start_all(bench: Bench, *, url: str | None = None) -> None:
    """Have two processes append and two project."""
    for name in APPENDERS:
        bench.start_appender(name, url)
    for name in WORKERS:
        bench.start_worker(name, url)


async def kill_appenders(bench: Bench, extent: Extent) -> None:
    """Kill a writer while it appends; who takes its place appends again what was left open."""
    start_all(bench)
    for _ in range(extent.count):
        await bench.pause(MOMENT_SECONDS)
        bench.kill(bench.random.choice(APPENDERS))
        await bench.settle("appender killed")


async def kill_workers(bench: Bench, extent: Extent) -> None:
    """Kill a projector; the other one, or the next, takes over."""
    start_all(bench)
    for _ in range(extent.count):
        await bench.pause(MOMENT_SECONDS)
        bench.kill(bench.random.choice(WORKERS))
        await bench.settle("projector killed")


async def kill_rebuilds(bench: Bench, extent: Extent) -> None:
    """Kill a rebuild or rollback of all tables, wherever it is."""
    start_all(bench)
    bench.start_rebuilds("rebuild")
    for _ in range(extent.count):
        await bench.pause(REBUILD_SECONDS)
        bench.kill("rebuild")
        await bench.settle("rebuild killed")


async def kill_server(bench: Bench, extent: Extent) -> None:
    """Kill all processes of the server at once, under appends, projectors and a rebuild."""
    start_all(bench)
    bench.start_rebuilds("rebuild")
    for _ in range(extent.count):
        await bench.pause(REBUILD_SECONDS)
        await asyncio.to_thread(bench.own_server.kill)
        await bench.settle("server killed")


async def kill_backends(bench: Bench, extent: Extent) -> None:
    """Kill one process of the server; it ends all others then, and recovers by itself."""
    start_all(bench)
    for _ in range(extent.count):
        await bench.pause(MOMENT_SECONDS)
        with suppress(ProcessLookupError):
            os.kill(bench.random.choice(bench.own_server.pids[1:]), signal.SIGKILL)
        await bench.settle("process of the server killed")


async def freeze_server(bench: Bench, extent: Extent) -> None:
    """Let the whole server stand still, for less or more than clients wait."""
    start_all(bench)
    for number in range(extent.count):
        await bench.pause(MOMENT_SECONDS)
        seconds = 5 if number % 4 == 3 else bench.random.uniform(0.2, 1.5)
        await frozen(bench.own_server.pids, seconds)
        await bench.settle("server frozen")


async def freeze_clients(bench: Bench, extent: Extent) -> None:
    """Let a writer or a projector stand still, whatever it holds, for longer than a lease."""
    start_all(bench)
    for _ in range(extent.count):
        await bench.pause(MOMENT_SECONDS)
        process = bench.process(bench.random.choice([*APPENDERS, *WORKERS]))
        await frozen([process.pid], bench.random.uniform(0.2, 1.5))
        await bench.settle("writer or projector frozen")
