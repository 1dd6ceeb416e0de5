"""Settings, read from the environment (`LEDGER_…`)."""

from __future__ import annotations

import ssl
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from ledger.errors import LedgerError

_AUTHORITIES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Alpine
    "/etc/pki/tls/certs/ca-bundle.crt",  # Red Hat, Fedora
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/etc/ssl/cert.pem",
)
_ASYNC_DRIVERS = {"postgresql": "postgresql+asyncpg", "postgres": "postgresql+asyncpg"}


class SettingsInvalid(LedgerError):
    """A setting has a value that cannot be used."""


class Settings(BaseSettings):
    """What can be set; each field is the variable LEDGER_<FIELD>."""

    model_config = SettingsConfigDict(env_prefix="LEDGER_")

    database_url: str = "sqlite:///./ledger.db"
    owner_database_url: str | None = None
    journal: str = "main"
    pool_size: int = Field(5, ge=1, le=1000)
    pool_overflow: int = Field(15, ge=0, le=1000)
    connect_timeout_seconds: float = Field(10, gt=0)
    append_timeout_seconds: float = Field(30, gt=0)
    statement_timeout_seconds: float = Field(60, gt=0)
    queue_events_max: int = Field(100_000, ge=1)
    lease_seconds: float = Field(10, gt=0)
    projector_waits_for_disk: bool = True
    login_failures_max: int = Field(5, ge=1, le=100)
    login_attempt_seconds: float = Field(30, gt=0, le=3600)
    lockout_seconds: float = Field(900, gt=0, le=31_536_000)
    password_threads: int = Field(2, ge=1, le=64)
    password_queue_max: int = Field(1000, ge=0)
    name_key: SecretStr | None = Field(None, min_length=16)
    master_key: SecretStr | None = None
    key_service: str | None = Field(None, min_length=1)
    keys_database_url: str | None = None
    key_cache_seconds: float = Field(10, ge=0, le=3600)
    log_key_file: Path | None = None
    log_origin: str | None = Field(None, min_length=1, max_length=255, pattern=r"^[^\s+]+$")
    witnesses: str = ""
    witness_unreachable: Literal["refuse", "warn"] = "refuse"
    witness_timeout_seconds: float = Field(5, gt=0, le=300)
    witness_seconds: float = Field(5, gt=0, le=86_400)
    database_tls: Literal["prefer", "require", "verify-ca", "verify-full"] | None = None
    database_tls_ca: Path | None = None
    token_key: SecretStr | None = Field(None, min_length=32)
    token_seconds: float = Field(900, gt=0, le=86_400)
    session_seconds: float = Field(43_200, gt=0, le=31_536_000)
    http_host: str = "127.0.0.1"
    http_port: int = Field(8000, ge=0, le=65_535)
    http_body_bytes_max: int = Field(262_144, ge=1024)
    http_requests_max: int = Field(256, ge=1)
    http_timeout_seconds: float = Field(30, gt=0, le=3600)
    http_page_rows_max: int = Field(1000, ge=1, le=10_000)
    http_cors_origins: str = ""
    http_trusted_proxies: str = ""
    http_audits_reads: bool = False
    metrics_token: SecretStr | None = Field(None, min_length=16)

    def address(self, url: str | None = None) -> URL:
        """Return `url`, `database_url` by default, for async engines, with the TLS that is set.

        Raises SettingsInvalid as `async_url` does.
        """
        parsed = async_url(self.database_url if url is None else url)
        if self.database_tls is None or parsed.get_backend_name() == "sqlite":
            return parsed
        options: dict[str, str] = {"sslmode": self.database_tls}
        is_checked = self.database_tls.startswith("verify")
        authorities = self.database_tls_ca or (_system_authorities() if is_checked else None)
        if authorities is not None:
            options["sslrootcert"] = str(authorities)
        return parsed.update_query_dict(options)

    @property
    def migration_url(self) -> str:
        """The URL of the role that owns the tables; used by `ledger migrate` alone."""
        return self.owner_database_url or self.database_url

    @property
    def name_key_bytes(self) -> bytes | None:
        """The key for digests of names, None for one that the journal has itself."""
        return None if self.name_key is None else self.name_key.get_secret_value().encode()


def _system_authorities() -> Path | None:
    """Return the file with the certificates that this machine trusts, if it has one."""
    known = ssl.get_default_verify_paths().cafile
    candidates = map(Path, (*([known] if known else ()), *_AUTHORITIES))
    return next((each for each in candidates if each.is_file()), None)


@lru_cache
def async_url(url: str) -> URL:
    """Return `url` for SQLAlchemy's async engines.

    `postgresql://…` becomes `postgresql+asyncpg://…` and `sqlite://…` `sqlite+aiosqlite://…`; any
    other database, and a SQLite without a file, raises SettingsInvalid.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise SettingsInvalid(f"database URL: {error}") from error
    backend = parsed.drivername.partition("+")[0]
    if backend == "sqlite":
        if parsed.database in (None, "", ":memory:"):
            raise SettingsInvalid("database URL: a journal needs a file, as sqlite:///ledger.db")
        return parsed.set(drivername="sqlite+aiosqlite")
    if backend in _ASYNC_DRIVERS:
        return parsed.set(drivername=_ASYNC_DRIVERS[backend])
    raise SettingsInvalid(
        f"database URL: {parsed.drivername!r} is not supported; use postgresql:// or sqlite://"
    )
