"""Who calls the service: users with a role, by a key or a token of theirs."""

from __future__ import annotations

from uuid import UUID

import httpx

from ledger.http.permissions import ROLES
from ledger.services import Ledger

PASSWORD = "correct horse battery staple"

Headers = dict[str, str]


async def a_user(ledger: Ledger, role: str) -> UUID:
    """Register a user with a role, who is called like it."""
    made = await ledger.users.register(username=role, password=PASSWORD, roles=[role])
    return made.user_id


async def a_key(ledger: Ledger, user_id: UUID, role: str) -> Headers:
    """Issue a key for all that a role may do; return the headers of who uses it."""
    permissions = sorted(ROLES[role])
    issued = await ledger.api_keys.issue(user_id=user_id, name=role, permissions=permissions)
    assert issued.key is not None
    return {"X-API-Key": issued.key.reveal()}


async def a_token(client: httpx.AsyncClient, role: str) -> Headers:
    """Log a user in; return the headers of who acts in the session."""
    answer = await client.post("/sessions", json={"username": role, "password": PASSWORD})
    assert answer.status_code == 201, answer.text
    return {"Authorization": f"Bearer {answer.json()['access_token']}"}
