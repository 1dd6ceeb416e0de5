"""The example application does what a service needs, beside a projector that keeps up."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI

from examples.fastapi_app import make_app
from ledger import event
from ledger.domain.orders import Action, OrderType
from ledger.services import Ledger
from ledger.settings import Settings
from projections.groups import GROUPS
from projections.projector import Projector
from projections.security_audit_logs import SecurityAuditLog
from tests.ledger.http.applications import served

DOCS = Path(__file__).parents[2] / "docs"


class Running:
    """The application as it is served, and the ledger beside it."""

    def __init__(self, app: FastAPI, client: httpx.AsyncClient) -> None:
        self.state = app.state
        self.client = client

    @property
    def ledger(self) -> Ledger:
        """The commands."""
        ledger: Ledger = self.state.ledger
        return ledger

    async def trader(self, name: str, *permissions: str) -> tuple[UUID, dict[str, str]]:
        """Register a user; return their id, and the headers of who has their key."""
        user = await self.ledger.users.register(username=name)
        issued = await self.ledger.api_keys.issue(
            user_id=user.user_id, name="app", permissions=permissions
        )
        assert issued.key is not None
        return user.user_id, {"X-API-Key": issued.key.reveal()}

    async def buy(self, user_id: UUID, quantity: str) -> None:
        """Let a user buy some BTC at 100; it is worth 130."""
        orders = self.ledger.orders
        placed = await orders.place(
            user_id=user_id,
            token="BTC",
            action=Action.BUY,
            order_type=OrderType.MARKET,
            quantity=quantity,
        )
        await orders.fill(order_id=placed.order_id, fill_id="1", quantity=quantity, price="100")
        await self.ledger.markets.mark(token="BTC", price="130")

    async def project(self) -> None:
        """Let the tables catch up."""
        for group in GROUPS.values():
            await Projector(self.state.database, self.ledger.journal, group).catch_up()

    async def audited(self, user_id: UUID) -> list[dict[str, Any]]:
        """Return what the audit log has of a user's requests."""
        log = SecurityAuditLog
        kinds = ("ApiKeyUsed", "RequestHandled")
        query = sa.select(log.event_type, log.action, log.resource, log.success, log.ip_address)
        query = query.where(log.user_id == user_id, log.event_type.in_(kinds))
        async with self.state.database.session() as session:
            found = await session.execute(query.order_by(log.timestamp))
            return [dict(row) for row in found.mappings()]


@pytest.fixture
async def running(database_url: str) -> AsyncIterator[Running]:
    """The application, served on a port."""
    app = make_app(Settings(database_url=database_url))
    async with served(app) as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as made:
        yield Running(app, made)


async def test_whoever_has_a_key_sees_their_positions(running: Running) -> None:
    """No others, nothing without a key, and the audit log says who has looked."""
    ann, key = await running.trader("ann", "own:read")
    bob, _ = await running.trader("bob", "own:read")
    await running.buy(ann, "2")
    await running.buy(bob, "5")
    await running.project()
    [position] = (await running.client.get("/positions", headers=key)).json()
    UUID(position.pop("position_id"))
    assert position == {"token": "BTC", "size": "2", "entry_price": "100", "pnl": "60"}
    await running.project()
    assert await running.audited(ann) == [
        {
            "event_type": "ApiKeyUsed",
            "action": "GET /positions",
            "resource": "/positions",
            "success": True,
            "ip_address": "127.0.0.1",
        }
    ]
    assert not await running.audited(bob)


async def test_nobody_else_gets_in(running: Running) -> None:
    """Without a key, with a wrong one, without the permission, and once it is revoked."""
    ann, key = await running.trader("ann", "own:read")
    _, powerless = await running.trader("bob")
    for headers, status in (({}, 401), ({"X-API-Key": "x"}, 401), (powerless, 403), (key, 200)):
        answer = await running.client.get("/positions", headers=headers)
        assert answer.status_code == status
    [used] = [
        each.event
        async for each in running.ledger.journal.read()
        if each.type == "ApiKeyIssued" and each.event.user_id == ann  # type: ignore[attr-defined]
    ]
    await running.ledger.api_keys.revoke(key_id=used.key_id)  # type: ignore[attr-defined]
    assert (await running.client.get("/positions", headers=key)).status_code == 401


def test_it_is_short() -> None:
    """As short as it is said to be."""
    source = Path(make_app.__code__.co_filename)
    assert len(source.read_text("utf-8").splitlines()) < 60


async def test_the_example_of_the_document_runs(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code of docs/integrate-fastapi.md takes an order once, from whoever may order."""
    monkeypatch.setenv("LEDGER_DATABASE_URL", sqlite_url)
    monkeypatch.setattr("ledger.event._registry", dict(event._registry))
    text = (DOCS / "integrate-fastapi.md").read_text("utf-8")
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {"__name__": "docs.integrate_fastapi"}
    exec(compile(code, "integrate-fastapi.md", "exec", dont_inherit=True), names)  # noqa: S102
    app = names["app"]
    async with served(app) as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as made:
        running = Running(app, made)
        _, key = await running.trader("ann", "reports:order")
        headers = key | {"Idempotency-Key": "monday"}
        first, again = [await made.post("/reports", headers=headers) for _ in range(2)]
        assert (first.status_code, again.status_code) == (201, 200)
        assert first.json() == again.json() == {"size": int(again.headers["Ledger-Size"])}
        assert (await made.post("/reports")).status_code == 401
