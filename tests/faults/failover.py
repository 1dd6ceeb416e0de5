"""A primary that dies, and its synchronous standby that takes its place."""

from __future__ import annotations

import asyncio

from tests.faults.bench import Bench
from tests.faults.extent import Extent
from tests.faults.kills import MOMENT_SECONDS, start_all
from tests.faults.machinery import (
    HEIR,
    Standby,
    require_standby,
    wait_until_synchronous,
    wait_until_waiting,
)
from tests.faults.proxy import Proxy


async def promote_standbys(bench: Bench, extent: Extent) -> None:
    """Kill the primary, promote its standby, and go on there; clients find it by the proxy."""
    async with Proxy.before(bench.url) as proxy:
        bench.url = proxy.url
        start_all(bench)
        await bench.settle("", 0)
        for _ in range(extent.count):
            standby = await asyncio.to_thread(followed, bench)
            await bench.pause(MOMENT_SECONDS)
            await asyncio.to_thread(bench.own_server.kill)
            await asyncio.to_thread(standby.promote)
            bench.own_server.close()
            bench.server, proxy.target = standby, standby.port
            await bench.settle("standby promoted")
        await bench.finish()


def followed(bench: Bench) -> Standby:
    """Give the server a standby without which nothing is acknowledged."""
    require_standby(bench.own_server, HEIR)
    wait_until_waiting(bench.own_server)
    standby = Standby.of(bench.own_server, bench.own_server.settings)
    wait_until_synchronous(bench.own_server)
    return standby
