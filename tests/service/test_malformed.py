"""Whatever is sent, the service answers that it was wrong, and goes on as before."""

from __future__ import annotations

import json

import httpx

from ledger.settings import Settings
from tests.service.malformed import Garbage, everything, send
from tests.support.serving import served, with_role

REQUESTS = 10_000
WARM_UP = 3_000
CONNECTIONS = 32
GROWTH_BYTES_MAX = 8 * 1024**2


async def test_malformed_requests_are_refused_and_leave_nothing_behind(sqlite_url: str) -> None:
    """Of 10,000 malformed requests none is answered by a 5xx, and memory does not grow with them.

    Afterwards the service does what it is asked for as before. What cannot be read as a request at
    all is answered by a problem, too.
    """
    admin = await with_role(Settings(database_url=sqlite_url), "admin")
    garbage = Garbage(admin.key, seed=20260302)
    requests = [garbage.next() for _ in range(REQUESTS)]
    with served("--no-console", environment={"LEDGER_DATABASE_URL": sqlite_url}) as service:
        statuses = await send(service.address, requests[:WARM_UP], CONNECTIONS)
        before = service.memory_bytes()
        statuses += await send(service.address, requests[WARM_UP:], CONNECTIONS)
        grown = service.memory_bytes() - before
        unread = await everything(service.address, b"no request at all\r\n\r\n")
        async with httpx.AsyncClient(base_url=service.address) as client:
            answer = await client.get("/orders", headers={"X-API-Key": admin.key})
    assert sum(statuses.values()) == REQUESTS
    assert not {status for status in statuses if status >= 500}, statuses
    assert statuses[400] > 100
    assert statuses[401] > 1000
    assert statuses[422] > 1000
    assert grown < GROWTH_BYTES_MAX, f"{grown:,} bytes"
    assert answer.status_code == 200
    head, _, body = unread.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head
    assert b"content-security-policy: default-src 'none'" in head
    assert json.loads(body)["type"] == "urn:trading-ledger:problem:bad-request"
