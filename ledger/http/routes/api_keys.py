"""Commands for API keys."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Annotated
from uuid import UUID

from fastapi import Depends, Response
from pydantic import SecretStr

from ledger.deciding import StreamMoved
from ledger.domain.api_keys import ApiKeyIssued
from ledger.errors import CommandRefused
from ledger.http import routing
from ledger.http.answering import changing, making, not_found, stored
from ledger.http.calls import Call, call
from ledger.http.errors import IdTaken
from ledger.http.granting import check_granted
from ledger.http.models import KeyRotation, KeyShown, KeyStored, NewKey, Why
from ledger.http.permissions import ACT_ANY, API_KEYS_WRITE
from ledger.services.api_keys import KeyIssued

router = routing.router("api-keys")

Keeping = Annotated[Call, Depends(call(API_KEYS_WRITE))]


@router.post("/api-keys", status_code=201, responses=making(KeyShown, 409, 412))
async def issue_key(body: NewKey, by: Keeping, response: Response) -> KeyShown:
    """Issue an API key; the answer is the only place where it can ever be seen.

    It can be given the permissions that one has oneself. `act:any` is needed for another user.
    """
    check_granted(by.who, body.permissions)
    user_id = by.for_user(body.user_id)
    async with _unseen(by, body.key_id):
        issued = await by.ledger.api_keys.issue(
            **body.given("user_id"), user_id=user_id, origin=by.origin
        )
    return await _shown(by, response, issued)


@router.post(
    "/api-keys/{key_id}/rotate", status_code=201, responses=making(KeyShown, 404, 409, 412)
)
async def rotate_key(key_id: UUID, body: KeyRotation, by: Keeping, response: Response) -> KeyShown:
    """Let a new key with the same rights take a key's place, which lives on for a while.

    It must be one's own, or `act:any` is needed, and have no permission that one lacks oneself.
    """
    issued = await _own(by, key_id)
    check_granted(by.who, issued.permissions)
    async with _unseen(by, body.successor_key_id):
        rotated = await by.ledger.api_keys.rotate(
            key_id=key_id,
            overlap=timedelta(seconds=body.overlap_seconds),
            expires_at=body.expires_at,
            successor_key_id=body.successor_key_id,
            origin=by.origin,
        )
    return await _shown(by, response, rotated)


@router.post("/api-keys/{key_id}/revoke", responses=changing(404, 409, 412))
async def revoke_key(key_id: UUID, body: Why, by: Keeping, response: Response) -> KeyStored:
    """End a key: no process accepts a use from the moment at which this is stored."""
    await _own(by, key_id)
    revoked = await by.ledger.api_keys.revoke(key_id=key_id, reason=body.reason, origin=by.origin)
    return KeyStored(key_id=key_id, **await stored(by, response, revoked.appended))


async def _shown(by: Call, response: Response, issued: KeyIssued) -> KeyShown:
    response.headers["Cache-Control"] = "no-store"
    key = None if issued.key is None else SecretStr(issued.key.reveal())
    fields = await stored(by, response, issued.appended)
    return KeyShown(key_id=issued.key_id, key=key, **fields)


async def _own(by: Call, key_id: UUID) -> ApiKeyIssued:
    """Return how a key was issued; one of somebody else is not there without `act:any`."""
    issued = (await by.ledger.api_keys.state(key_id)).issued
    if issued is None or not _may_see(by, issued):
        raise not_found("key")
    return issued


def _may_see(by: Call, issued: ApiKeyIssued) -> bool:
    return by.who.may(ACT_ANY) or issued.user_id == by.who.user_id


@asynccontextmanager
async def _unseen(by: Call, key_id: UUID | None) -> AsyncIterator[None]:
    """Tell no more of somebody else's key than that its id is taken."""
    try:
        yield
    except (CommandRefused, StreamMoved):
        issued = None if key_id is None else (await by.ledger.api_keys.state(key_id)).issued
        if issued is not None and not _may_see(by, issued):
            raise IdTaken from None
        raise
