"""Events as they come: server-sent events, from any offset on, without gap or repetition."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from time import monotonic
from typing import cast

import msgspec
from fastapi import Request
from starlette.datastructures import State
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from ledger.errors import LedgerError, Overloaded, StoredEventInvalid
from ledger.event import RecordedEvent
from ledger.http.auth import Principal, ledger_of
from ledger.http.following import Follower
from ledger.http.permissions import EVENTS_READ, permissions_of
from ledger.http.problems import respond_to
from ledger.http.showing import shown
from ledger.services import Ledger

MEDIA_TYPE = "text/event-stream"
HEARTBEAT_SECONDS = 15.0
RETRY_MILLISECONDS = 2000
EVENTS_AT_ONCE = 100
STREAMS_MAX = 100
"""So many callers of one process may listen at a time."""

STREAMS_EACH_MAX = 10
"""So many of them with one API key, or as one user who is logged in."""

GOOD_KEYS = ("active", "rotated")


def respond(request: Request, who: Principal, follower: Follower) -> StreamingResponse:
    """Return an answer that goes on until the caller, the service or their right to it ends.

    It raises Overloaded in place of its first part where too many listen already.
    """
    state = request.app.state
    parts = _Listening(request, who, follower).parts()
    return _Stream(parts, _listeners(state), who.actor)


class _Stream(StreamingResponse):
    """An answer that counts as a listener from its beginning to its end."""

    def __init__(self, parts: AsyncIterator[bytes], listeners: Counter[str], actor: str) -> None:
        headers = {"X-Accel-Buffering": "no", "Cache-Control": "no-store"}
        super().__init__(parts, media_type=MEDIA_TYPE, headers=headers)
        self._listeners = listeners
        self._actor = actor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        if self._listeners.total() >= STREAMS_MAX:
            raise Overloaded(f"{STREAMS_MAX} callers listen to events already; try again later")
        if self._listeners[self._actor] >= STREAMS_EACH_MAX:
            raise Overloaded(
                f"you listen to events {STREAMS_EACH_MAX} times already; end one of these first"
            )
        self._listeners[self._actor] += 1
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._listeners.subtract([self._actor])
            if not self._listeners[self._actor]:
                del self._listeners[self._actor]


def _listeners(state: State) -> Counter[str]:
    """Return how many streams each caller of the process has."""
    if not hasattr(state, "event_streams"):
        state.event_streams = Counter()
    return cast("Counter[str]", state.event_streams)


class _Listening:
    """One caller who listens. What they do not take is not read yet, so a slow one costs little."""

    def __init__(self, request: Request, who: Principal, follower: Follower) -> None:
        self._ledger = ledger_of(request)
        self._request = request
        self._who = who
        self._follower = follower
        self._checked_at = monotonic()

    async def parts(self) -> AsyncIterator[bytes]:
        """Yield the parts of the answer."""
        yield f"retry: {RETRY_MILLISECONDS}\n\n".encode()
        async with self._ledger.journal.wakeups() as wakeups:
            while not self._is_stopping():
                try:
                    events = await self._follower.more(EVENTS_AT_ONCE)
                except StoredEventInvalid as error:
                    yield _problem(self._request, error)
                    return
                if events:
                    yield b"".join(map(encoded, events))
                if monotonic() - self._checked_at >= HEARTBEAT_SECONDS:
                    if not await may_listen(self._ledger, self._who):
                        return
                    self._checked_at = monotonic()
                    yield b": heartbeat\n\n"
                if self._follower.is_at_end:
                    await wakeups.wait(HEARTBEAT_SECONDS)

    def _is_stopping(self) -> bool:
        stopping = getattr(self._request.app.state, "stopping", None)
        return isinstance(stopping, asyncio.Event) and stopping.is_set()


def encoded(recorded: RecordedEvent) -> bytes:
    """Return an event in the form of the stream; its id is the offset."""
    data = msgspec.json.encode(shown(recorded))
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (recorded.offset, recorded.type.encode(), data)


def _problem(request: Request, error: LedgerError) -> bytes:
    """Return the last part of a stream that cannot go on; it has no id, so it is asked for anew."""
    return b"event: problem\ndata: %b\n\n" % bytes(respond_to(request, error).body)


async def may_listen(ledger: Ledger, who: Principal) -> bool:
    """Whether the key or session by which somebody listens is still good for that."""
    if who.key_id is not None:
        standing = (await ledger.api_keys.state(who.key_id)).standing(ledger.journal.now())
        return standing in GOOD_KEYS and (await ledger.users.state(who.user_id)).is_active
    if who.session_id is None:
        return False
    holder = await ledger.sessions.check(who.session_id)
    if holder is None:
        return False
    return EVENTS_READ in permissions_of(holder.permissions, holder.roles)
