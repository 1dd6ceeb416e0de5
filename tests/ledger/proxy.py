"""A TCP proxy before a database that loses connections at chosen moments."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from enum import Enum, auto
from typing import Self

from sqlalchemy import make_url


class Cut(Enum):
    """When the connection is lost that carries the marked request."""

    BEFORE_REQUEST = auto()
    """The server sees only the end of the connection."""
    HALF_REQUEST = auto()
    """The server gets a half of the request."""
    AFTER_REQUEST = auto()
    """The server gets the request and the end of the connection at once."""
    BEFORE_ANSWER = auto()
    """The server has done its work, its answer is thrown away."""
    KEEP_SERVER = auto()
    """The request is on its way and reaches the server later; the client is cut off now."""


class Proxy:
    """Forwards connections; cuts the one that carries `marker` when told to."""

    def __init__(self, target: str, marker: bytes) -> None:
        parsed = make_url(target)
        assert parsed.host is not None
        assert parsed.port is not None
        self._host, self._port = parsed.host, parsed.port
        self._target = parsed
        self._marker = marker
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._late: list[tuple[asyncio.StreamWriter, bytes]] = []
        self.cut: Cut | None = None
        self.refusing = False
        self.cuts = 0

    @classmethod
    @asynccontextmanager
    async def started(cls, target: str, marker: bytes = b"MARKED") -> AsyncIterator[Self]:
        """Start a proxy and stop it in the end."""
        proxy = cls(target, marker)
        proxy._server = await asyncio.start_server(proxy._accept, "127.0.0.1", 0)
        try:
            yield proxy
        finally:
            proxy._server.close()
            for task in proxy._tasks:
                task.cancel()
            await asyncio.gather(*proxy._tasks, return_exceptions=True)
            for writer, _ in proxy._late:
                writer.close()

    @property
    def url(self) -> str:
        """The database's address by way of the proxy."""
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        return self._target.set(port=port).render_as_string(hide_password=False)

    async def deliver_late(self) -> None:
        """Let what is still on its way reach the server, which may be gone."""
        for writer, data in self._late:
            with suppress(OSError):
                writer.write(data)
                await writer.drain()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refusing:
            writer.close()
            return
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with suppress(OSError):
            up_reader, up_writer = await asyncio.open_connection(self._host, self._port)
            await _Link(self, reader, writer, up_reader, up_writer).run()
        self._tasks.discard(task)

    def keep(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        """Hold back what `deliver_late` delivers."""
        self._late.append((writer, data))

    def is_marked(self, data: bytes) -> bool:
        """Tell whether this request is the one to cut."""
        return self.cut is not None and self._marker in data


class _Link:
    """One connection through the proxy."""

    def __init__(
        self,
        proxy: Proxy,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        up_reader: asyncio.StreamReader,
        up_writer: asyncio.StreamWriter,
    ) -> None:
        self._proxy = proxy
        self._reader, self._writer = reader, writer
        self._up_reader, self._up_writer = up_reader, up_writer
        self._swallow = False
        self._keep_server = False

    async def run(self) -> None:
        """Forward both ways until one side ends or the link is cut."""
        ways = [asyncio.create_task(self._requests()), asyncio.create_task(self._answers())]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            self._writer.transport.abort()
            if not self._keep_server:
                self._up_writer.transport.abort()

    async def _requests(self) -> None:
        while data := await self._reader.read(1 << 20):
            if self._proxy.is_marked(data):
                if await self._cut(data):
                    return
                continue
            self._up_writer.write(data)
            await self._up_writer.drain()

    async def _cut(self, data: bytes) -> bool:
        """Do what is asked with the marked request; return whether the link ends now."""
        cut, self._proxy.cut = self._proxy.cut, None
        self._proxy.cuts += 1
        if cut is Cut.KEEP_SERVER:
            self._keep_server = True
            self._proxy.keep(self._up_writer, data)
        elif cut is not Cut.BEFORE_REQUEST:
            self._up_writer.write(data[: len(data) // 2] if cut is Cut.HALF_REQUEST else data)
            await self._up_writer.drain()
        self._swallow = cut is Cut.BEFORE_ANSWER
        return not self._swallow

    async def _answers(self) -> None:
        while data := await self._up_reader.read(1 << 20):
            if self._swallow:
                return
            self._writer.write(data)
            await self._writer.drain()
