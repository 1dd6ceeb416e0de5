"""Wrapping data keys."""

from __future__ import annotations

from base64 import b64encode
from importlib.metadata import EntryPoint, EntryPoints

import pytest
from pydantic import SecretStr

from ledger.security import master_keys
from ledger.security.master_keys import (
    KEY_SERVICES,
    DataKeyUnusable,
    LocalMasterKeys,
    master_key_of,
)
from ledger.settings import Settings, SettingsInvalid

OLD, NEW = (b64encode(bytes([number]) * 32).decode() for number in (1, 2))
KEY = bytes(range(32))


async def test_the_first_key_wraps_and_all_unwrap() -> None:
    """So a master key can be replaced without a moment at which keys cannot be read."""
    old, both = LocalMasterKeys.parse(OLD), LocalMasterKeys.parse(f"{NEW}, {OLD}")
    wrapped = await old.wrap(KEY, b"c")
    assert wrapped.startswith("siv1:")
    assert await both.unwrap(wrapped, b"c") == KEY
    assert old.is_current(wrapped)
    assert not both.is_current(wrapped)
    again = await both.wrap(KEY, b"c")
    assert both.is_current(again)
    assert await LocalMasterKeys.parse(NEW).unwrap(again, b"c") == KEY
    with pytest.raises(DataKeyUnusable, match="LEDGER_MASTER_KEY does not hold"):
        await old.unwrap(again, b"c")


async def test_without_a_master_key() -> None:
    """Data keys stand in plain, and can be wrapped once there is one."""
    none, some = LocalMasterKeys(), LocalMasterKeys.parse(NEW)
    wrapped = await none.wrap(KEY, b"c")
    assert wrapped.startswith("plain1:")
    assert await none.unwrap(wrapped, b"c") == await some.unwrap(wrapped, b"c") == KEY
    assert none.is_current(wrapped)
    assert not some.is_current(wrapped)


async def test_a_wrapped_key_is_bound_to_whose_it_is() -> None:
    """One subject's key in the row of another opens nothing."""
    keys = LocalMasterKeys.parse(NEW)
    wrapped = await keys.wrap(KEY, b"user-1")
    for altered, context in ((wrapped, b"user-2"), (wrapped[:-4] + "AAA=", b"user-1")):
        with pytest.raises(DataKeyUnusable, match="altered"):
            await keys.unwrap(altered, context)
    with pytest.raises(DataKeyUnusable, match="key service"):
        await keys.unwrap("kms:abc", b"user-1")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("?", "not base64"),
        (" ", "has 0 bytes"),
        (f"{NEW},", "has 0 bytes"),
        (b64encode(b"short").decode(), "has 5 bytes"),
    ],
)
def test_what_is_no_master_key(text: str, reason: str) -> None:
    """The error says how to make one, and never repeats it."""
    with pytest.raises(SettingsInvalid, match=reason) as caught:
        LocalMasterKeys.parse(text)
    assert not text.strip() or text not in str(caught.value)


class Service(LocalMasterKeys):
    """A key service of another package."""


def test_the_settings_name_a_key_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry point of an installed package; not together with a master key."""
    point = EntryPoint("vault", f"{__name__}:Service", KEY_SERVICES)

    def found(*, group: str, name: str | None = None) -> EntryPoints:
        assert group == KEY_SERVICES
        return EntryPoints([each for each in [point] if name in (None, each.name)])

    monkeypatch.setattr(master_keys, "entry_points", found)
    assert type(master_key_of(Settings(key_service="vault"))) is Service
    with pytest.raises(SettingsInvalid, match=r"'other'.*there are: vault"):
        master_key_of(Settings(key_service="other"))
    with pytest.raises(SettingsInvalid, match="exclude each other"):
        master_key_of(Settings(key_service="vault", master_key=SecretStr(NEW)))
    assert type(master_key_of(Settings())) is LocalMasterKeys


async def test_an_altered_plain_key_is_told() -> None:
    """Not with an error of the base64 decoder."""
    with pytest.raises(DataKeyUnusable, match="not base64"):
        await LocalMasterKeys().unwrap("plain1:x", b"c")
