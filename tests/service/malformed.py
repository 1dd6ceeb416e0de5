"""Requests as attackers, broken clients and bad networks send them."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable
from urllib.parse import urlsplit

ANSWER_SECONDS = 1.0
"""A request that says that more is to come is waited for; its sender goes away after so long."""
KEY_SHARE = 0.4
WRITES = (
    "/orders", "/users", "/api-keys", "/marks", "/positions/protection", "/positions/liquidations",
    "/streams/desk-1/events", "/sessions", "/sessions/refresh",
    "/orders/01890000-0000-7000-8000-000000000000/fills",
    "/users/01890000-0000-7000-8000-000000000000/lock",
)  # fmt: skip
READS = (
    "/orders", "/users", "/api-keys", "/positions", "/audit-log", "/postings", "/marks", "/events",
    "/diff", "/journal", "/points", "/log/checkpoint", "/log/tile/0/000", "/proofs/consistency",
    "/operations/parked",
)  # fmt: skip
FIELDS = (
    "token", "quantity", "price", "order_id", "user_id", "username", "password", "events", "action",
    "order_type", "expires_at", "extra_data", "stop_loss", "permissions", "roles", "locked_until",
)  # fmt: skip
PARAMETERS = (
    "at", "limit", "cursor", "sort", "status", "size", "after", "from", "to", "first", "second",
    "at_least", "format", "stream", "type", "user_id", "created_at", "password_hash",
)  # fmt: skip
HEADERS = (
    "If-Match", "Idempotency-Key", "Prefer", "traceparent", "Last-Event-ID", "X-Request-ID",
    "Authorization", "Accept", "Content-Type", "Cookie", "Origin", "Range", "Expect",
    "X-Forwarded-For", "Transfer-Encoding", "Content-Length", "Content-Encoding",
)  # fmt: skip
TEXTS = (
    "", "\0", "\x1b[2J", "é", "\u202e", "🦀" * 40, "%00", "%ff%fe", "%", "%zz", "..%2f..%2fetc",
    "'; DROP TABLE events;--", "NaN", "Infinity", "-0", "1e309", "1" * 400, "-1", "0x10",
    "9223372036854775808", "eq:", "gt:\0", "in:,,,", "null:maybe", "2026-13-01T00:00:00Z",
    "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "2026-01-01T00:00:00", "eyJhIjoxfQ", "AAAA",
    "Bearer eyJhbGciOiJub25lIn0.e30.", 'W/"3"', '"-1"', '"99999999999999999999"', "wait=-1",
    "wait=1e999", "00-0-0-0", "{}", "[]", "null", "*", "chunked, chunked", "gzip", "100-continue",
)  # fmt: skip


class Garbage:
    """Makes malformed requests, the same ones for the same seed."""

    def __init__(self, key: str, seed: int) -> None:
        """Take an API key, without which few requests would come far."""
        self._key = key
        self._random = random.Random(seed)
        self._kinds: tuple[Callable[[], bytes], ...] = (
            self._noise, self._broken_json, self._wrong_values, self._wrong_values, self._headers,
            self._query, self._query, self._path, self._length,
        )  # fmt: skip

    def next(self) -> bytes:
        """Return the next request."""
        return self._random.choice(self._kinds)()

    def _request(
        self, method: str, target: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> bytes:
        shown = {"Host": "ledger", "Content-Type": "application/json"}
        if self._random.random() < KEY_SHARE:  # each use of it is stored, which takes time
            shown["X-API-Key"] = self._key
        if body:
            shown["Content-Length"] = str(len(body))
        lines = [f"{name}: {value}" for name, value in (shown | (headers or {})).items()]
        head = "\r\n".join([f"{method} {target} HTTP/1.1", *lines, "", ""])
        return head.encode("utf-8", "surrogatepass") + body

    def _noise(self) -> bytes:
        return self._random.randbytes(self._random.randint(1, 200)) + b"\r\n\r\n"

    def _broken_json(self) -> bytes:
        bodies = (
            b"{", b"\xff\xfe", b'{"a":', b"[" * 5000, b'{"token": "\xc3\x28"}', b"nul",
            b'{"token": "\\ud800", "quantity": "\\u0000"}', b'{"a":1}{"b":2}', b"\0" * 50,
            b'{"quantity": 1e400}', b'{"price": NaN}', b"{" + b'"a":{' * 3000,
        )  # fmt: skip
        return self._request("POST", self._random.choice(WRITES), self._random.choice(bodies))

    def _value(self, depth: int = 0) -> object:
        one = self._random
        plain = (None, True, 0, -1, 2**70, 1.5, one.choice(TEXTS), "x" * one.randint(1, 3000))
        if depth < 3 and one.random() < 0.3:
            nested = [self._value(depth + 1) for _ in range(one.randint(0, 5))]
            return nested if one.random() < 0.5 else dict(zip(FIELDS, nested, strict=False))
        return one.choice(plain)

    def _wrong_values(self) -> bytes:
        fields = self._random.sample(FIELDS, self._random.randint(0, len(FIELDS)))
        body = json.dumps({name: self._value() for name in fields})
        return self._request("POST", self._random.choice(WRITES), body.encode())

    def _headers(self) -> bytes:
        names = self._random.sample(HEADERS, self._random.randint(1, 4))
        given = {name: self._random.choice(TEXTS) for name in names}
        body = b"" if self._random.random() < 0.5 else b"{}"
        target = self._random.choice(WRITES if body else READS)
        return self._request("POST" if body else "GET", target, body, given)

    def _query(self) -> bytes:
        names = self._random.sample(PARAMETERS, self._random.randint(1, 4))
        query = "&".join(f"{name}={self._random.choice(TEXTS)}" for name in names)
        target = f"{self._random.choice(READS)}?{query}".replace(" ", "+")
        return self._request("GET", target.replace("\0", "%00").replace("\x1b", "%1b"))

    def _path(self) -> bytes:
        part = self._random.choice(TEXTS).replace(" ", "%20").replace("\0", "%00")
        target = f"{self._random.choice(READS)}/{part.replace(chr(27), '%1b')}"
        method = self._random.choice(("GET", "PUT", "DELETE", "PATCH", "TRACE", "OPTIONS", "POST"))
        return self._request(method, target, headers={"Content-Length": "0"})

    def _length(self) -> bytes:
        length = self._random.choice(("-1", "abc", "99999999999", "300000"))
        body = b"{}" if length != "300000" else b" " * 300_000
        return self._request("POST", "/orders", body, {"Content-Length": length})


async def send(address: str, requests: list[bytes], connections: int) -> Counter[int]:
    """Send requests over some connections; return how often each status came, 0 for none."""
    seen = Counter[int]()
    waiting = iter(requests)

    async def client() -> None:
        for request in waiting:
            seen[await exchange(address, request)] += 1

    await asyncio.gather(*(client() for _ in range(connections)))
    return seen


async def exchange(address: str, request: bytes) -> int:
    """Send one request over a connection of its own; return the status, 0 where none came."""
    parts = urlsplit(address)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        writer.write(request)
        async with asyncio.timeout(ANSWER_SECONDS):
            head = await reader.readline()
        return int(head.split()[1]) if head.startswith(b"HTTP/1.1 ") else 0
    except (ConnectionError, TimeoutError):
        return 0
    finally:
        writer.close()


async def everything(address: str, request: bytes) -> bytes:
    """Send one request over a connection of its own; return all that comes until it is closed."""
    parts = urlsplit(address)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        writer.write(request)
        async with asyncio.timeout(ANSWER_SECONDS):
            return await reader.read()
    finally:
        writer.close()
