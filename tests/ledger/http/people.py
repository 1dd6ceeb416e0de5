"""Users, their keys and their tokens, as headers of requests."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import httpx

from ledger.services import Ledger

PASSWORD = "an engine weaves"
WRONG = "another guess"

Headers = dict[str, str]


async def a_user(ledger: Ledger, name: str = "ann", *roles: str) -> UUID:
    """Register a user who can log in."""
    made = await ledger.users.register(username=name, password=PASSWORD, roles=roles)
    return made.user_id


async def a_key(
    ledger: Ledger,
    user_id: UUID,
    *permissions: str,
    rate_limit: int | None = None,
    expires_at: datetime | None = None,
) -> tuple[UUID, Headers]:
    """Issue a key; return its id, and the headers of who uses it."""
    issued = await ledger.api_keys.issue(
        user_id=user_id,
        name="bot",
        permissions=permissions,
        rate_limit=rate_limit,
        expires_at=expires_at,
    )
    assert issued.key is not None
    return issued.key_id, {"X-API-Key": issued.key.reveal()}


async def log_in(
    client: httpx.AsyncClient, username: str = "ann", password: str = PASSWORD
) -> httpx.Response:
    """Send what somebody logs in with."""
    return await client.post("/sessions", json={"username": username, "password": password})


async def a_token(client: httpx.AsyncClient, username: str = "ann") -> Headers:
    """Log a user in; return the headers of who acts in the session."""
    answer = await log_in(client, username)
    assert answer.status_code == 201, answer.text
    return bearing(answer.json()["access_token"])


def bearing(token: str) -> Headers:
    """Return the headers of a request with an access token."""
    return {"Authorization": f"Bearer {token}"}


def problem(answer: httpx.Response) -> dict[str, object]:
    """Return what an answer says is wrong, without what differs from request to request."""
    assert answer.headers["content-type"] == "application/problem+json"
    found: dict[str, object] = answer.json()
    assert found.pop("instance") == answer.headers["X-Request-ID"]
    return found | {"type": str(found["type"]).rpartition(":")[2]}
