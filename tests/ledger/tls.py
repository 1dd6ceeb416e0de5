"""Certificates, and a proxy before a PostgreSQL server that speaks TLS with them."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from sqlalchemy import make_url

SSL_REQUEST = (8).to_bytes(4, "big") + (80877103).to_bytes(4, "big")
CHUNK = 1 << 16


class Authority(msgspec.Struct, frozen=True):
    """The certificate of an authority, and one of a server named `localhost` with its key."""

    ca: Path
    server: Path

    def context(self) -> ssl.SSLContext:
        """Return what a server needs to speak TLS."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.server)
        return context


def new_authority(folder: Path, name: str) -> Authority:
    """Make an authority that has certified a server, in files of a folder."""
    key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")])
    own = _builder(issuer, issuer, key.public_key())
    ca = own.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    server = _builder(issuer, subject, server_key.public_key()).add_extension(names, critical=False)
    files = Authority(folder / f"{name}.crt", folder / f"{name}-server.pem")
    files.ca.write_bytes(_pem(ca.sign(key, hashes.SHA256())))
    private = server_key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    files.server.write_bytes(private + _pem(server.sign(key, hashes.SHA256())))
    return files


def _builder(
    issuer: x509.Name, subject: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


class TlsProxy:
    """Ends TLS before a server that has none; without a context it refuses to speak TLS."""

    def __init__(self, target: str, context: ssl.SSLContext | None) -> None:
        self._target = make_url(target)
        self._context = context
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.secured = 0
        """Connections over which TLS was spoken."""
        self.plain = 0
        """Connections that went on, or began, without."""

    @classmethod
    @asynccontextmanager
    async def started(cls, target: str, context: ssl.SSLContext | None) -> AsyncIterator[Self]:
        """Start a proxy and stop it in the end."""
        proxy = cls(target, context)
        proxy._server = await asyncio.start_server(proxy._accept, "127.0.0.1", 0)
        try:
            yield proxy
        finally:
            proxy._server.close()
            for task in proxy._tasks:
                task.cancel()
            await asyncio.gather(*proxy._tasks, return_exceptions=True)

    def url(self, host: str = "localhost") -> str:
        """Return the database's address by way of the proxy."""
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        return self._target.set(host=host, port=port).render_as_string(hide_password=False)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                await self._serve(reader, writer)
        finally:
            writer.transport.abort()
            self._tasks.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.readexactly(len(SSL_REQUEST)) != SSL_REQUEST:
            self.plain += 1
            return
        if self._context is None:
            writer.write(b"N")
            self.plain += bool(await reader.read(1))
            return
        writer.write(b"S")
        await writer.start_tls(self._context)
        self.secured += 1
        up_reader, up_writer = await asyncio.open_connection(self._target.host, self._target.port)
        ways = (_pass_on(reader, up_writer), _pass_on(up_reader, writer))
        tasks = [asyncio.create_task(way) for way in ways]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in tasks:
                each.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            up_writer.transport.abort()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(CHUNK):
        writer.write(data)
        await writer.drain()
