"""`projections serve` as a process of its own: what it does beside requests, and how it ends."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa

from ledger.journal import Journal
from ledger.proof.keys import write_key
from ledger.proof.log import log_of
from ledger.proof.notes import SigningKey
from ledger.services import open_ledger
from ledger.settings import Settings
from projections.bookkeeping import workers
from projections.database import Database
from tests.support import programs
from tests.support.serving import PASSWORD, served, with_role

SECONDS = 20.0
ORDER = {"token": "BTC", "action": "buy", "order_type": "limit", "quantity": "1", "price": "2"}
FORWARDED = {"X-Forwarded-For": "203.0.113.9"}
"""What a proxy says of the client, and anybody else can say too."""

PLANTED = "planted-9f1c"
"""What must not be found in the log, in whatever place of a request it is sent."""


def environment(url: str, **more: str) -> dict[str, str]:
    """Return what a service needs to know."""
    return {"LEDGER_DATABASE_URL": url, **more}


async def until(holds: Callable[[], Any], seconds: float = SECONDS) -> None:
    """Wait until something asynchronous is true."""
    deadline = time.monotonic() + seconds
    while not await holds():
        assert time.monotonic() < deadline, "it did not come to pass"


def mode_of(file: str) -> int:
    """Return who may do what with a file."""
    return Path(file).stat().st_mode & 0o777


async def place(client: httpx.AsyncClient, key: str) -> dict[str, Any]:
    """Place an order; return the answer once the tables show it."""
    headers = {"X-API-Key": key, "Prefer": "wait=10", **FORWARDED}
    answer = await client.post("/orders", json=ORDER, headers=headers)
    assert answer.status_code == 201, answer.text
    assert answer.headers["preference-applied"] == "wait=10"
    found: dict[str, Any] = answer.json()
    return found


async def test_on_sqlite_one_process_does_everything(sqlite_url: str) -> None:
    """Orders are projected and sealed with a key of its own; at the end the leases are back.

    The proxy before it is believed, since it is trusted.
    """
    settings = Settings(database_url=sqlite_url)
    admin = await with_role(settings, "admin")
    own = environment(sqlite_url, LEDGER_HTTP_TRUSTED_PROXIES="127.0.0.1, ::1")
    with served(environment=own) as service:
        async with httpx.AsyncClient(base_url=service.address) as client:
            placed = await place(client, admin.key)
            assert (await client.get("/health/ready")).status_code == 200
        async with open_ledger(settings) as ledger:
            journal = ledger.journal

            async def is_sealed() -> bool:
                seal = await log_of(journal).seal()
                return seal is not None and seal.size >= placed["size"]

            await until(is_sealed)
            assert await address_of_last(journal) == "203.0.113.9"
        assert "made a key to seal with" in service.log()
    assert mode_of(f"{settings.address().database}.log-key") == 0o600
    async with Database(settings) as database, database.snapshot() as connection:
        assert await connection.scalar(sa.select(sa.func.count()).select_from(workers)) == 0


async def test_the_log_holds_requests_but_no_secrets(sqlite_url: str) -> None:
    """Of all that is sent in a run, the log has ids and templates, and nothing else.

    Nor is it believed where a request says that it came from.
    """
    admin = await with_role(Settings(database_url=sqlite_url), "admin")
    with served("--no-all", environment=environment(sqlite_url)) as service:
        async with httpx.AsyncClient(base_url=service.address) as client:
            token = await send_secrets(client, admin.key)
        found = [json.loads(line) for line in service.log().splitlines() if line[:1] == "{"]
        printed = service.log()
    async with open_ledger(Settings(database_url=sqlite_url)) as ledger:
        assert await address_of_last(ledger.journal) == "127.0.0.1"
    for secret in (admin.key, token, PASSWORD, PLANTED, admin.username):
        assert secret not in printed, secret
    requests = [each for each in found if each["message"] == "request"]
    assert {each["status"] for each in requests} >= {201, 401, 404, 422}
    [placed] = (each for each in requests if (each["route"], each["status"]) == ("/orders", 201))
    assert placed["user_id"] == str(admin.user_id)
    assert placed["key_id"]
    assert int(placed["size"]) > 0
    assert placed["request_id"]
    assert 0 < placed["latency_ms"] < 1000 * SECONDS


async def address_of_last(journal: Journal) -> str | None:
    """Return from where the latest event came."""
    size = await journal.size()
    [event] = [event async for event in journal.read(size - 1, size)]
    return event.metadata.ip_address


async def send_secrets(client: httpx.AsyncClient, key: str) -> str:
    """Send requests with secrets in all places; return an access token that was given."""
    own = {"X-API-Key": key, **FORWARDED}
    login = {"username": "admin", "password": PASSWORD}
    token = (await client.post("/sessions", json=login)).json()["access_token"]
    await client.post("/sessions", json={"username": PLANTED, "password": PLANTED})
    await client.post("/sessions", json={"username": PLANTED, "unknown": PLANTED})
    await client.get("/operations/pool", headers={"Authorization": f"Bearer {token}"})
    await client.get("/operations/pool", headers={"X-API-Key": key[:-1] + "0"})
    await client.get(f"/{PLANTED}?q={PLANTED}", headers=own)
    await client.post("/orders", json={**ORDER, "token": PLANTED * 99}, headers=own)
    await client.post("/orders", json=ORDER, headers=own)
    await client.post("/users", json={"username": PLANTED, "password": PLANTED}, headers=own)
    return str(token)


async def test_metrics_have_a_port_of_their_own(sqlite_url: str) -> None:
    """There, no token is needed where none is set; the service itself shows none then."""
    options = ("--no-all", "--no-console", "--metrics-port", "0")
    with served(*options, environment=environment(sqlite_url)) as service:
        async with httpx.AsyncClient() as client:
            addresses: list[str] = []

            async def are_told() -> bool:
                addresses[:] = re.findall(r"http://[\d.]+:\d+", service.log())
                return len(addresses) == 2

            await until(are_told)
            answers = [await client.get(f"{each}/metrics") for each in addresses]
            elsewhere = [await client.get(f"{each}/health/live") for each in addresses]
    assert sorted(each.status_code for each in answers) == [200, 404]
    assert sorted(each.status_code for each in elsewhere) == [200, 404]
    assert any("ledger_database_up 1.0" in each.text for each in answers)


async def test_requests_under_way_are_finished(sqlite_url: str) -> None:
    """Who was being answered when the service was told to end gets the answer.

    Streams of events end then: they would go on for ever.
    """
    settings = Settings(database_url=sqlite_url)
    admin = await with_role(settings, "admin")
    with served("--no-all", environment=environment(sqlite_url)) as service:
        async with httpx.AsyncClient(base_url=service.address, timeout=SECONDS) as client:
            # Nobody projects, so that this one waits for as long as it may.
            headers = {"X-API-Key": admin.key, "Prefer": "wait=2"}
            task = asyncio.create_task(client.post("/orders", json=ORDER, headers=headers))
            async with open_ledger(settings) as ledger:
                size = await ledger.journal.size()

                async def has_come() -> bool:
                    return await ledger.journal.size() >= size + 2

                await until(has_come)
            key = {"X-API-Key": admin.key}
            stream = {"Accept": "text/event-stream"} | key
            async with client.stream("GET", "/events", headers=stream) as events:
                service.process.terminate()
                assert (await task).status_code == 201
                async for _ in events.aiter_lines():
                    pass


def run(arguments: tuple[str, ...], environment: Mapping[str, str]) -> tuple[int, str]:
    """Run a service that is to end by itself; return its exit code and what it printed."""
    done = programs.run("projections", "serve", *arguments, environment=environment)
    return done.returncode, (done.stdout + done.stderr).decode()


def test_a_part_that_ends_for_good_ends_the_service(sqlite_url: str, tmp_path: Path) -> None:
    """A key of another log can never seal this journal: the service says so, and ends."""
    write_key(tmp_path / "key", SigningKey.generate("ledger/another"))
    own = environment(sqlite_url, LEDGER_HTTP_PORT="0", LEDGER_LOG_KEY_FILE=str(tmp_path / "key"))
    code, printed = run(("--seal",), own)
    assert code == 3
    assert "a log signs under its own name" in printed


def test_what_keeps_a_service_from_starting(tmp_path: Path, sqlite_url: str) -> None:
    """A database without tables and an address that is no address end it at once, in one line.

    Nothing is left behind.
    """
    code, printed = run(("--port", "0"), environment(f"sqlite:///{tmp_path}/new.db"))
    assert code == 3
    assert "ledger migrate" in printed
    assert "Traceback" not in printed
    code, printed = run(("--host", "192.0.2.1", "--port", "0"), environment(sqlite_url))
    assert code == 3
    assert "Traceback" not in printed
    assert not list(tmp_path.glob("*.log-key"))
