"""Connections cut in the middle of COMMIT, and wake-ups that are lost, doubled, late or false."""

from __future__ import annotations

import asyncio

import asyncpg

from ledger.stores.postgres_wakeups import CHANNEL
from tests.faults.bench import Bench
from tests.faults.extent import Extent
from tests.faults.kills import start_all
from tests.faults.proxy import CUTS, Proxy, delay, double, lose, pass_back

FALSE = ("1", "1", "1", "999999", "nonsense", "")
BURST_APPENDS = 3
COMMITS = {
    b'"type":"': "connection cut in an append",
    b"COMMIT": "connection cut in a COMMIT of projecting",
}


async def cut_commits(bench: Bench, extent: Extent) -> None:
    """Cut the connection that carries an append, or the COMMIT of a batch, in each way in turn."""
    async with Proxy.before(bench.url) as proxy:
        start_all(bench, url=proxy.url)
        for number in range(extent.count):
            marker, kind = list(COMMITS.items())[number // len(CUTS) % len(COMMITS)]
            proxy.trip(lambda request, marker=marker: marker in request, CUTS[number % len(CUTS)])  # type: ignore[misc]
            await bench.until(proxy.tripped.is_set, "somebody commits")
            await bench.settle(kind)


async def disturb_wakeups(bench: Bench, extent: Extent) -> None:
    """Lose, double and delay what wakes projectors up, and wake them for nothing."""
    async with Proxy.before(bench.url) as proxy:
        bench.start_worker("worker 1", proxy.url)
        bench.start_worker("worker 2", proxy.url)
        await bench.settle("", 0)
        for number in range(extent.count):
            proxy.notify = (lose, double, delay, pass_back)[number % 4]
            if proxy.notify is pass_back:
                await wake_for_nothing(bench)
                await bench.settle("false wake-ups")
                continue
            before = proxy.disturbed
            await bench.append_some(BURST_APPENDS)
            await bench.until(lambda before=before: proxy.disturbed > before, "somebody listens")  # type: ignore[misc]
            await bench.settle(f"wake-ups {NAMES[number % 4]}")


NAMES = ("lost", "tripled", "late")


async def wake_for_nothing(bench: Bench) -> None:
    """Notify of journals that have not grown, or do not exist."""
    connection = await asyncpg.connect(bench.url)
    try:
        for payload in FALSE:
            await connection.execute("SELECT pg_notify($1, $2)", CHANNEL, payload)
            await asyncio.sleep(0)
    finally:
        await connection.close()
