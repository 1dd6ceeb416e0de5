"""A fault at each statement of an append, of projecting and of a swap, one after the other."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from itertools import count

from tests.faults.bench import Bench
from tests.faults.checking import Broken
from tests.faults.extent import Extent
from tests.faults.processes import (
    REFUSED,
    Process,
    append_once,
    project_once,
    swap_once,
)
from tests.faults.proxy import CUTS, Act, Link, Proxy, cut_after, cut_before
from tests.support.forks import FORKS

SWAPPED = ("positions",)
NEW_APPENDS = 3
PAUSE_SECONDS = 0.3
CUT_STRIDE = 3
"""Swaps take long; where their connection is cut, one statement in so many is enough."""
STATEMENTS_MAX = 2000
FLUSH = b"H\x00\x00\x00\x04"

Step = Callable[[Bench, int], Awaitable[str | None]]
"""Does something with a fault at the n-th statement; returns its kind, None if it was not hit."""


async def each_statement(bench: Bench, extent: Extent, step: Step) -> int:
    """Go through the statements until one is beyond the end; return how many there are at least."""
    statement = bench.random.randrange(extent.stride)
    for _ in range(extent.count):
        kind = await step(bench, statement)
        if kind is None:
            return statement
        await bench.settle(kind)
        statement += bench.random.randint(1, 2 * extent.stride - 1)
        if statement > STATEMENTS_MAX:
            raise Broken(f"{kind}: no end after {statement} statements")
    return statement


async def ended(process: Process, doing: str) -> bool:
    """Wait for a process; return whether it did all it had to do, and was not killed."""
    code = await asyncio.to_thread(process.wait)
    if code not in (0, -signal.SIGKILL):
        raise Broken(f"{doing} ended with {code}")
    return code == 0


async def sqlite_appends(bench: Bench, extent: Extent) -> None:
    """Kill a writer at each statement of an append on SQLite."""
    await each_statement(bench, extent, _sqlite_append)


async def sqlite_projecting(bench: Bench, extent: Extent) -> None:
    """Kill a projector at each statement of its batches on SQLite."""
    await each_statement(bench, extent, _sqlite_project)


async def sqlite_swaps(bench: Bench, extent: Extent) -> None:
    """Kill a rebuild at each statement of its swap on SQLite, while others append."""
    bench.start_appender("appender", pause_seconds=PAUSE_SECONDS)
    await each_statement(bench, extent, _sqlite_swap)


async def _sqlite_append(bench: Bench, statement: int) -> str | None:
    place = (bench.url, bench.folder, "statements", statement)
    done = await ended(Process(append_once, *place), "an append")
    return None if done else "appender killed at a statement of an append"


async def _sqlite_project(bench: Bench, statement: int) -> str | None:
    await bench.append_some(NEW_APPENDS)
    done = await ended(Process(project_once, bench.url, statement), "projecting")
    return None if done else "projector killed at a statement of projecting"


async def _sqlite_swap(bench: Bench, statement: int) -> str | None:
    done = await ended(Process(swap_once, bench.url, SWAPPED, statement, None), "a rebuild")
    return None if done else "rebuild killed at a statement of a swap"


async def postgres_appends(bench: Bench, extent: Extent) -> None:
    """Cut, kill the writer, or kill the server, in each way at each request of an append."""
    async with Proxy.before(bench.url) as proxy:
        for way in [Cut(act) for act in CUTS] + KILLS:
            await each_statement(bench, extent, _Appending(proxy, way).step)


async def postgres_projecting(bench: Bench, extent: Extent) -> None:
    """Cut, kill the projector, or kill the server, at each request of its batches."""
    async with Proxy.before(bench.url) as proxy:
        for way in WAYS:
            await each_statement(bench, extent, _Projecting(proxy, way).step)


async def postgres_swaps(bench: Bench, extent: Extent) -> None:
    """Kill the rebuild or the server at each request of its swap, under appends; also cut."""
    bench.start_appender("appender", pause_seconds=PAUSE_SECONDS)
    async with Proxy.before(bench.url) as proxy:
        for way, stride in ((Cut(), CUT_STRIDE), *((way, 1) for way in KILLS)):
            part = Extent(extent.count, extent.stride * stride)
            await each_statement(bench, part, _Swapping(proxy, way).step)


class Way:
    """What is done at a request."""

    kind: str

    def act(self, bench: Bench, process: Process) -> Act:
        """Return what is done in place of passing the request on."""
        raise NotImplementedError


class Cut(Way):
    """Cut the connection, in one way or in any."""

    kind = "connection cut at a statement of {doing}"

    def __init__(self, act: Act | None = None) -> None:
        self._act = act

    def act(self, bench: Bench, process: Process) -> Act:
        """Return one of the cuts."""
        return self._act or bench.random.choice(CUTS)


class KillProcess(Way):
    """Kill the process that has sent the request, before or after the server gets it."""

    kind = "{who} killed at a statement of {doing}"

    def act(self, bench: Bench, process: Process) -> Act:
        """Return the killing."""
        then = bench.random.choice((cut_before, cut_after))

        async def killed(link: Link, request: bytes) -> None:
            process.kill()
            await then(link, request)

        return killed


class KillServer(Way):
    """Kill the server, before or after it gets the request."""

    kind = "server killed at a statement of {doing}"

    def act(self, bench: Bench, process: Process) -> Act:
        """Return the killing."""
        is_sent = bench.random.random() < 0.5

        async def killed(link: Link, request: bytes) -> None:
            if is_sent:
                await link.forward(request)
            await asyncio.to_thread(bench.own_server.kill)
            link.cut()

        return killed


KILLS: list[Way] = [KillProcess(), KillServer()]
WAYS: list[Way] = [Cut(), *KILLS]


class _Meeting:
    """Something is done by way of the proxy, and meets a fault at its n-th request."""

    who: str
    doing: str

    def __init__(self, proxy: Proxy, way: Way) -> None:
        self.proxy = proxy
        self._way = way

    async def step(self, bench: Bench, statement: int) -> str | None:
        """Do it; return the kind of the fault that was met, None if it was done before."""
        process = await self.begun(bench, statement)
        ending = asyncio.ensure_future(asyncio.to_thread(process.wait))
        met = asyncio.ensure_future(self.proxy.tripped.wait())
        await asyncio.wait((ending, met), return_when=asyncio.FIRST_COMPLETED)
        is_met = self.proxy.wanted is None
        if is_met:
            await met
            await bench.mend()
        self.proxy.disarm()
        met.cancel()
        code = await ending
        if code and not (is_met and (process.is_killed or code in REFUSED)):
            raise Broken(f"{self.doing} ended with {code}")
        return self._way.kind.format(who=self.who, doing=self.doing) if is_met else None

    async def begun(self, bench: Bench, statement: int) -> Process:
        """Start the process and arm the proxy."""
        raise NotImplementedError

    def arm(self, bench: Bench, statement: int, process: Process) -> None:
        """Let the fault happen at a request, counted from now on."""
        requests = count()
        self.proxy.trip(lambda _request: next(requests) == statement, self._way.act(bench, process))


def has_effect(request: bytes) -> bool:
    """Whether the server is asked to do something: preparing a statement leaves all as it was."""
    return not request.endswith(FLUSH)


class _Appending(_Meeting):
    who, doing = "appender", "an append"

    async def begun(self, bench: Bench, statement: int) -> Process:
        process = Process(append_once, self.proxy.url, bench.folder, "statements", None)
        self.arm(bench, statement, process)
        return process


class _Projecting(_Meeting):
    who, doing = "projector", "projecting"

    async def begun(self, bench: Bench, statement: int) -> Process:
        await bench.append_some(NEW_APPENDS)
        process = Process(project_once, self.proxy.url, None)
        self.arm(bench, statement, process)
        return process


class _Swapping(_Meeting):
    who, doing = "rebuild", "a swap"

    async def begun(self, bench: Bench, statement: int) -> Process:
        gate, other = FORKS.Pipe()
        process = Process(swap_once, self.proxy.url, SWAPPED, None, other)
        other.close()
        try:
            await asyncio.to_thread(gate.recv)
        except EOFError as error:
            raise Broken(f"a rebuild did not come to its swap: {process.wait()}") from error
        self.arm(bench, statement, process)
        gate.send(None)
        return process
