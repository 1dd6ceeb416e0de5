"""TLS to the database: all connections of all parts use it as the settings say, or are refused."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from ledger.errors import StoreUnavailable
from ledger.journal import open_journal
from ledger.migrate import migrate
from ledger.settings import Settings
from projections.database import Database
from projections.groups import TABLES
from projections.loading import PostgresLoader
from projections.rewriting import rewrite
from tests.ledger.support import note
from tests.ledger.tls import Authority, TlsProxy, new_authority
from tests.postgres import PostgresServer

WAIT_SECONDS = 10.0
LISTENING = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
Door = Callable[[Settings], Awaitable[object]]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who has certified the server `localhost`."""
    return new_authority(tmp_path_factory.mktemp("authority"), "ours")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Another authority, which has certified another server of the same name."""
    return new_authority(tmp_path_factory.mktemp("stranger"), "theirs")


def settings_of(url: str, ca: Path) -> Settings:
    """Return settings that demand TLS with the right host and authority."""
    return Settings(
        database_url=url,
        database_tls="verify-full",
        database_tls_ca=ca,
        connect_timeout_seconds=WAIT_SECONDS,
    )


async def append(settings: Settings) -> None:
    """Append an event."""
    async with open_journal(settings) as journal:
        await journal.append(note())


async def read(settings: Settings) -> None:
    """Read a table."""
    async with Database(settings) as database, database.snapshot():
        pass


async def copy(settings: Settings) -> None:
    """Connect as what loads rows by COPY."""
    [users] = (each for each in TABLES["users"].projections if each.name == "users")
    async with Database(settings) as database, open_journal(settings) as journal:
        loader = await PostgresLoader.open(journal, database, users, None)
        await loader.close()


async def scrub(settings: Settings) -> None:
    """Rewrite tables, as scrubbing does."""
    await rewrite(settings, settings.database_url, WAIT_SECONDS, lambda _: None)


async def upgrade(settings: Settings) -> None:
    """Migrate."""
    await asyncio.to_thread(migrate, settings)


DOORS: list[Door] = [append, read, copy, upgrade, scrub]


async def test_all_connections_are_made_with_tls(
    postgres_server: PostgresServer, postgres_url: str, authority: Authority
) -> None:
    """With `verify-full` all parts connect to the right server, and none goes on without TLS.

    That is appending, listening, reading, copying, migrating and scrubbing.
    """
    async with TlsProxy.started(postgres_url, authority.context()) as proxy:
        settings = settings_of(proxy.url(), authority.ca)
        for door in DOORS:
            before = proxy.secured
            await door(settings)
            assert proxy.secured > before, door
        async with open_journal(settings) as journal, journal.wakeups():
            await _until_listening(postgres_server)
        assert proxy.plain == 0


async def _until_listening(server: PostgresServer) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while await asyncio.to_thread(server.psql, LISTENING) == "0":  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("door", DOORS)
async def test_a_server_of_another_authority_is_refused(
    door: Door, postgres_url: str, authority: Authority, stranger: Authority
) -> None:
    """Nobody's word but that of the authority that is set counts."""
    async with TlsProxy.started(postgres_url, stranger.context()) as proxy:
        with pytest.raises(StoreUnavailable, match=r"(?i)certificate verify failed"):
            await door(settings_of(proxy.url(), authority.ca))
        assert (proxy.secured, proxy.plain) == (0, 0)


@pytest.mark.parametrize("door", DOORS)
async def test_a_server_under_another_name_is_refused(
    door: Door, postgres_url: str, authority: Authority
) -> None:
    """The certificate must be for the host that was asked for, not just for any."""
    async with TlsProxy.started(postgres_url, authority.context()) as proxy:
        with pytest.raises(StoreUnavailable, match=r"(?i)mismatch"):
            await door(settings_of(proxy.url("127.0.0.1"), authority.ca))
        assert (proxy.secured, proxy.plain) == (0, 0)


@pytest.mark.parametrize("door", DOORS)
async def test_a_server_without_tls_is_refused(
    door: Door, postgres_url: str, authority: Authority
) -> None:
    """Nothing is sent to a server that does not speak TLS, not even who we are."""
    async with TlsProxy.started(postgres_url, None) as proxy:
        with pytest.raises(StoreUnavailable, match=r"(?i)rejected SSL"):
            await door(settings_of(proxy.url(), authority.ca))
        assert (proxy.secured, proxy.plain) == (0, 0)


async def test_without_an_authority_of_its_own_that_of_the_machine_counts(
    postgres_url: str, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is not certified by anybody whom the machine trusts is refused."""
    async with TlsProxy.started(postgres_url, authority.context()) as proxy:
        settings = Settings(database_url=proxy.url(), database_tls="verify-full")
        with pytest.raises(StoreUnavailable):
            await append(settings)
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca))
        await append(settings)


def test_the_setting_has_the_last_word(tmp_path: Path) -> None:
    """An address cannot weaken what is set; without the setting it says itself what it wants."""
    weak = "postgresql://localhost/db?sslmode=disable"
    strict = Settings(
        database_url=weak, database_tls="verify-full", database_tls_ca=tmp_path / "ca.pem"
    )
    assert strict.address().query == {
        "sslmode": "verify-full",
        "sslrootcert": str(tmp_path / "ca.pem"),
    }
    assert Settings(database_url=weak).address().query == {"sslmode": "disable"}
    assert not Settings(database_url="sqlite:///a.db", database_tls="require").address().query
