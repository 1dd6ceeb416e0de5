"""A TCP proxy before PostgreSQL that knows where requests and wake-ups begin and end.

A request is what a client sends before it waits for an answer: up to a Sync, Flush or Query
message, or one piece of a COPY. So the borders between requests are those between statements.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Self

from sqlalchemy import make_url

REQUEST_ENDS = b"QSHXdcfp"
NOTIFICATION = ord("A")
READ_BYTES = 1 << 20
LATE_SECONDS = 0.3

Act = Callable[["Link", bytes], Awaitable[None]]
"""What is done with a request in place of passing it on."""


class Messages:
    """Cuts a stream into messages; those of the beginning have no type."""

    def __init__(self, untyped: int) -> None:
        """Take how many messages come without a type."""
        self._untyped = untyped
        self._bytes = b""

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Return the messages that are complete now, each with its type (0 for none)."""
        self._bytes += data
        found = []
        while (size := self._next_size()) is not None:
            message, self._bytes = self._bytes[:size], self._bytes[size:]
            found.append((0 if self._untyped else message[0], message))
            self._untyped = max(0, self._untyped - 1)
        return found

    def _next_size(self) -> int | None:
        skipped = 0 if self._untyped else 1
        if len(self._bytes) < skipped + 4:
            return None
        size = skipped + int.from_bytes(self._bytes[skipped : skipped + 4], "big")
        return size if len(self._bytes) >= size else None


class Proxy:
    """Passes connections on; what becomes of one request, or of wake-ups, can be decided."""

    def __init__(self, url: str) -> None:
        """Take the database's address; `target` may be moved to another server later."""
        self._url = make_url(url)
        assert self._url.port is not None
        self.target = self._url.port
        self.wanted: Callable[[bytes], bool] | None = None
        self.act: Act = cut_before
        self.notify: Callable[[Link, bytes], Awaitable[None]] = pass_back
        self.disturbed = 0
        self.tripped = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._links: set[asyncio.Task[None]] = set()
        self._late: set[asyncio.Future[None]] = set()

    @classmethod
    @asynccontextmanager
    async def before(cls, url: str) -> AsyncIterator[Self]:
        """Start a proxy before a database and stop it in the end."""
        proxy = cls(url)
        proxy._server = await asyncio.start_server(proxy._accept, "127.0.0.1", 0)
        try:
            yield proxy
        finally:
            proxy._server.close()
            await proxy.cut_all()

    @property
    def url(self) -> str:
        """The database's address by way of the proxy."""
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        return self._url.set(port=port).render_as_string(hide_password=False)

    def trip(self, wanted: Callable[[bytes], bool], act: Act) -> None:
        """Do `act` with the first request that is wanted."""
        self.tripped.clear()
        self.wanted, self.act = wanted, act

    def disarm(self) -> None:
        """Pass all on."""
        self.wanted = None

    async def cut_all(self) -> None:
        """Cut all connections."""
        tasks = [*self._links, *self._late]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def is_wanted(self, request: bytes) -> bool:
        """Tell whether this request is the one; there is but one."""
        if self.wanted is None or not self.wanted(request):
            return False
        self.wanted = None
        return True

    def later(self, work: Awaitable[None]) -> asyncio.Future[None]:
        """Do something, also after the link is gone."""
        task = asyncio.ensure_future(work)
        self._late.add(task)
        task.add_done_callback(self._late.discard)
        return task

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        try:
            up = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.close()
        else:
            with suppress(asyncio.CancelledError):  # by cut_all; the streams would log it
                await Link(self, (reader, writer), up).run()
        finally:
            self._links.discard(task)


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Link:
    """One connection through the proxy."""

    def __init__(self, proxy: Proxy, client: Streams, server: Streams) -> None:
        self.proxy = proxy
        self._client_reader, self._client = client
        self._server_reader, self._server = server
        self._is_cut = asyncio.Event()
        self._is_deaf = False
        self._is_kept = False

    async def run(self) -> None:
        """Pass on both ways until one side ends or the link is cut."""
        ways = [
            asyncio.ensure_future(way)
            for way in (self._requests(), self._answers(), self._is_cut.wait())
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            self._client.transport.abort()
            if not self._is_kept:
                self._server.transport.abort()

    async def forward(self, data: bytes) -> None:
        """Send something to the server."""
        with suppress(OSError):
            self._server.write(data)
            await self._server.drain()

    async def back(self, data: bytes) -> None:
        """Send something to the client."""
        with suppress(OSError):
            self._client.write(data)
            await self._client.drain()

    def cut(self) -> None:
        """End both connections."""
        self._is_cut.set()

    def swallow_answer(self) -> None:
        """Wait for the next answer, throw it away and cut."""
        self._is_deaf = True

    def keep_server(self, data: bytes) -> None:
        """Cut the client off; what it sent last reaches the server later."""
        self._is_kept = True
        self.proxy.later(self._deliver(data))
        self.cut()

    async def _deliver(self, data: bytes) -> None:
        try:
            await asyncio.sleep(LATE_SECONDS)
            await self.forward(data)
            await asyncio.sleep(LATE_SECONDS)
        finally:
            self._server.transport.abort()

    async def _requests(self) -> None:
        request = await self._greeting()
        messages = Messages(untyped=1)
        data = request
        request = b""
        while data:
            for kind, message in messages.feed(data):
                request += message
                if kind == 0 or kind in REQUEST_ENDS:
                    await self._pass(request)
                    request = b""
            data = await self._client_reader.read(READ_BYTES)

    async def _greeting(self) -> bytes:
        """Answer the question for encryption with no; return what follows."""
        data = await self._client_reader.read(READ_BYTES)
        if len(data) == 8:
            await self.back(b"N")
            data = await self._client_reader.read(READ_BYTES)
        return data

    async def _pass(self, request: bytes) -> None:
        if self.proxy.is_wanted(request):
            # What ends the link must not end the act that does it.
            await asyncio.shield(self.proxy.later(self._act(request)))
        else:
            await self.forward(request)

    async def _act(self, request: bytes) -> None:
        await self.proxy.act(self, request)
        self.proxy.tripped.set()

    async def _answers(self) -> None:
        messages = Messages(untyped=0)
        while data := await self._server_reader.read(READ_BYTES):
            if self._is_deaf:
                return
            plain = b""
            for kind, message in messages.feed(data):
                if kind != NOTIFICATION:
                    plain += message
                    continue
                self.proxy.disturbed += self.proxy.notify is not pass_back
                await self.proxy.notify(self, message)
            await self.back(plain)


async def cut_before(link: Link, _request: bytes) -> None:
    """The server sees only the end of the connection."""
    link.cut()


async def cut_within(link: Link, request: bytes) -> None:
    """The server gets a half of the request."""
    await link.forward(request[: len(request) // 2])
    link.cut()


async def cut_after(link: Link, request: bytes) -> None:
    """The server gets the request and the end of the connection at once."""
    await link.forward(request)
    link.cut()


async def cut_answer(link: Link, request: bytes) -> None:
    """The server has done its work, its answer is thrown away."""
    link.swallow_answer()
    await link.forward(request)


async def deliver_late(link: Link, request: bytes) -> None:
    """The client is cut off now; the request is on its way and reaches the server later."""
    link.keep_server(request)


CUTS: tuple[Act, ...] = (cut_before, cut_within, cut_after, cut_answer, deliver_late)


async def pass_back(link: Link, notification: bytes) -> None:
    """Pass a wake-up on."""
    await link.back(notification)


async def lose(_link: Link, _notification: bytes) -> None:
    """Lose a wake-up."""


async def double(link: Link, notification: bytes) -> None:
    """Bring a wake-up three times."""
    await link.back(notification * 3)


async def delay(link: Link, notification: bytes) -> None:
    """Bring a wake-up late, after whatever comes in between."""

    async def later() -> None:
        await asyncio.sleep(LATE_SECONDS)
        await link.back(notification)

    link.proxy.later(later())
