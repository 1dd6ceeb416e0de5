"""Personal fields in journals: encrypted when stored, opened when read, None once erased."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sqlite3
from base64 import b64encode
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest
from pydantic import SecretStr

from ledger.cli import as_line
from ledger.conditions import ExpectedVersion
from ledger.domain.api_keys import ApiKeyIssued, ApiKeyRefused, ApiKeyUsed
from ledger.domain.orders import (
    Action,
    OrderAccepted,
    OrderCancelRequested,
    OrderPlaced,
    OrderType,
)
from ledger.domain.positions import ProtectionSet
from ledger.domain.users import (
    EmailChanged,
    LoginFailed,
    PermissionsChanged,
    UserErased,
    UserRegistered,
    name_digest,
)
from ledger.errors import EventIdConflict, LedgerError, StoredEventInvalid, StoreUnavailable
from ledger.event import Amount, Metadata, NewEvent, RecordedEvent, event_types
from ledger.journal import Journal, open_journal
from ledger.keyring import Keyring
from ledger.lens import Lens
from ledger.prepare import prepare
from ledger.privacy import NOBODY, opened_body
from ledger.security import data_keys
from ledger.security.data_keys import ELSEWHERE, NAMES, DataKeys
from ledger.security.master_keys import DataKeyUnusable, LocalMasterKeys
from ledger.settings import Settings, SettingsInvalid
from ledger.stores import PreparedAppend, Store
from ledger.stores.opening import open_store
from ledger.stores.queries import Statement
from ledger.stores.subject_keys import KeyTable, NoKeys, StoredKey
from tests.ledger.support import an_id, append_unasked, note, opened, settings_for
from tests.postgres import PostgresServer

ANN, BOB = an_id("ann"), an_id("bob")
OF_ANN, OF_BOB = f"user-{ANN}", f"user-{BOB}"
KEY_ID = an_id("key")
IP = "203.0.113.77"
FROM = Metadata(ip_address=IP)
MASTER = b64encode(bytes(32)).decode()
OTHER = b64encode(bytes([1]) * 32).decode()


def registered(user_id: UUID = ANN, name: str = "annabelle") -> NewEvent:
    """Return a registration."""
    event = UserRegistered(user_id=user_id, username=name, email=f"{name}@example.org")
    return NewEvent(event, metadata=FROM)


def used(key_id: UUID = KEY_ID) -> NewEvent:
    """Return a use of an API key, which does not say whose it is."""
    return NewEvent(ApiKeyUsed(key_id=key_id, action="read", source="desk-7"), metadata=FROM)


ISSUED = NewEvent(ApiKeyIssued(key_id=KEY_ID, user_id=ANN, name="laptop", key_hash="0f0f"))


async def everything(journal: Journal) -> list[RecordedEvent]:
    """Return all events."""
    return [each async for each in journal.read()]


async def stored(journal: Journal) -> bytes:
    """Return the bytes of all bodies and metadata as they are stored."""
    found = await journal.store.read(journal.journal_id, 0, 1000)
    return b"\n".join(each.body + (each.metadata or b"") for each in found)


async def keys_of(journal: Journal) -> dict[str, StoredKey]:
    """Return the stored keys by subject."""
    return {each.subject: each async for each in journal.privacy.keys.stored()}


async def test_what_is_stored_cannot_be_read(database_url: str) -> None:
    """Names, addresses, hashes and sources are ciphertext in the row, and plain when read."""
    async with opened(database_url) as journal:
        await journal.append([registered(), ISSUED, used()])
        bytes_stored = await stored(journal)
        for secret in ("annabelle", "example.org", IP, "laptop", "0f0f", "desk-7"):
            assert secret.encode() not in bytes_stored
        first, second, third = await everything(journal)
        assert first.event.username == "annabelle"  # type: ignore[attr-defined]
        assert first.event.email == "annabelle@example.org"  # type: ignore[attr-defined]
        assert first.metadata == third.metadata == FROM
        assert (second.event, third.event) == (ISSUED.event, used().event)
        assert {each.erased for each in (first, second, third)} == {()}


async def test_all_ways_to_read_open(database_url: str) -> None:
    """By offset, stream, tag and type, and through lenses with and without the envelope."""
    async with opened(database_url) as journal:
        await journal.append([registered(), ISSUED, used()])
        tag = f"username:{name_digest('annabelle', await journal.privacy.name_key())}"
        lenses = [Lens(event_types().values(), envelope=each) for each in (True, False)]
        plain = [
            (await everything(journal))[0],
            (await journal.read_stream(OF_ANN))[0],
            (await journal.read_tagged(tag))[0],
            (await journal.read_but(["ApiKeyUsed", "ApiKeyIssued"], 0, 3))[0],
            *[(await journal.read_lens(lens, 0, 3))[0] for lens in lenses],
        ]
        assert {each.event.username for each in plain} == {"annabelle"}  # type: ignore[attr-defined]
        assert [each.metadata.ip_address for each in plain] == [IP] * 5 + [None]


async def test_once_the_key_is_destroyed(database_url: str) -> None:
    """Fields of that subject are None, whatever way they are read; others' are as before."""
    async with opened(database_url) as journal:
        await journal.append([registered(), ISSUED, used(), registered(BOB, "robert")])
        *_, bob = await everything(journal)
        assert await journal.privacy.destroy(OF_ANN)
        assert not await journal.privacy.destroy(OF_ANN)
        first, second, third, other = await everything(journal)
        assert other == bob
        assert (first.event.username, first.event.email) == (None, None)  # type: ignore[attr-defined]
        assert first.erased == ("username", "email", "ip_address")
        assert (second.erased, third.erased) == (("name", "key_hash"), ("source", "ip_address"))
        assert third.metadata.ip_address is None
        for envelope in (True, False):
            seen = await journal.read_lens(Lens(event_types().values(), envelope=envelope), 0, 4)
            assert seen[0].event.username is None  # type: ignore[attr-defined]
            assert seen[0].erased[:2] == ("username", "email")
        assert await journal.privacy.erasures() == 1
        [destroyed] = await journal.privacy.destroyed()
        assert destroyed.subject == OF_ANN
        assert await journal.privacy.is_destroyed(OF_ANN)
        assert not await journal.privacy.is_destroyed(OF_BOB)


async def test_other_processes_notice(database_url: str) -> None:
    """At once where the cache may be no older, or where they see the erasure in the journal."""
    settings = settings_for(database_url)
    eager = settings.model_copy(update={"key_cache_seconds": 0})
    slow = settings.model_copy(update={"key_cache_seconds": 3600})
    async with (
        opened(database_url) as journal,
        open_journal(eager) as at_once,
        open_journal(slow) as later,
    ):
        await journal.append(registered())
        for reader in (at_once, later):
            assert (await everything(reader))[0].erased == ()
        await journal.privacy.destroy(OF_ANN)
        assert (await everything(at_once))[0].erased != ()
        assert (await everything(later))[0].erased == ()
        await journal.append(NewEvent(UserErased(user_id=ANN, reason="request 7")))
        assert (await everything(later))[0].erased != ()


async def test_an_erasure_in_the_journal_counts_before_the_key_is_gone(database_url: str) -> None:
    """Whoever reads past it opens nothing of that subject any more."""
    async with opened(database_url) as journal:
        erased = NewEvent(UserErased(user_id=ANN, reason="request 7"))
        await journal.append([registered(), erased, registered(BOB, "robert")])
        first, _, other = await everything(journal)
        assert first.event.username is None  # type: ignore[attr-defined]
        assert other.event.username == "robert"  # type: ignore[attr-defined]


async def test_a_repeated_append_is_the_same(database_url: str) -> None:
    """Also by another process, with other events beside; other content is another append."""
    event = registered()
    async with opened(database_url) as journal, open_journal(settings_for(database_url)) as other:
        first = await journal.append(event)
        again = await other.append(event)
        assert (again.offsets, again.duplicate) == (first.offsets, True)
        changed = msgspec.structs.replace(event, event=registered(name="annabell").event)
        with pytest.raises(EventIdConflict):
            await other.append(changed)


async def test_what_comes_after_an_erasure_is_stored_without_values(database_url: str) -> None:
    """Nothing is lost but the personal fields, and no new key is made."""
    async with opened(database_url) as journal:
        await journal.append([registered(), ISSUED])
        await journal.privacy.destroy(OF_ANN)
        failed = LoginFailed(username="annabelle", user_id=ANN, reason="wrong_password")
        await journal.append([NewEvent(failed, metadata=FROM), used()])
        *_, login, use = await everything(journal)
        assert (login.event.username, login.event.reason) == (None, "wrong_password")  # type: ignore[attr-defined]
        assert (login.erased, use.erased) == (("username", "ip_address"), ("source", "ip_address"))
        assert (await keys_of(journal))[OF_ANN].wrapped is None


async def test_who_never_had_a_key_gets_none_once_erased(database_url: str) -> None:
    """An erasure before the first personal field counts as well."""
    async with opened(database_url) as journal:
        assert await journal.privacy.destroy(OF_BOB)
        await journal.append(registered(BOB, "robert"))
        [event] = await everything(journal)
        assert event.erased == ("username", "email", "ip_address")


async def test_whose_data_an_event_holds(database_url: str) -> None:
    """The user it names, else the owner of the key; nobody where none is known."""
    unknown = NewEvent(ApiKeyRefused(reason="unknown", presented="tlk_x"), metadata=FROM)
    async with opened(database_url) as journal:
        await journal.append(registered())
        await journal.append(ISSUED)
        await journal.append([used(), used(an_id("no such key")), unknown])
        ids = {each.key_id: name for name, each in (await keys_of(journal)).items()}
        assert sorted(ids.values()) == sorted([NAMES, NOBODY, OF_ANN])
        found = await journal.store.read(journal.journal_id, 2, 5)
        owners = [ids[(each.metadata or b"").decode().split(":")[2]] for each in found]
        assert owners == [OF_ANN, NOBODY, NOBODY]


@pytest.mark.parametrize(
    "protection",
    [
        ProtectionSet(position_id=KEY_ID, book=f"book:{ANN}:BTC"),
        ProtectionSet(position_id=KEY_ID, book=f"position:{KEY_ID}", user_id=ANN),
    ],
    ids=["netting", "hedging"],
)
async def test_whose_a_position_is(sqlite_url: str, protection: ProtectionSet) -> None:
    """The book says so, or the event itself where it is of an explicit position."""
    async with opened(sqlite_url) as journal:
        await journal.append(NewEvent(protection, metadata=FROM))
        await journal.privacy.destroy(OF_ANN)
        assert (await everything(journal))[0].erased == ("ip_address",)


async def test_plain_events_of_older_releases_stay_readable(database_url: str) -> None:
    """What they stored in plain is read as it is, beside what is encrypted."""
    async with opened(database_url) as journal:
        await append_unasked(journal, registered())
        await journal.append(registered(BOB, "robert"))
        assert b"annabelle" in await stored(journal)
        names = [each.event.username for each in await everything(journal)]  # type: ignore[attr-defined]
        assert names == ["annabelle", "robert"]


@pytest.mark.parametrize("wrong", ["body", "subject_keys"])
async def test_what_was_tampered_with_is_named(sqlite_url: str, wrong: str) -> None:
    """A value moved to another event, and a key that is missing, name the offset."""
    async with opened(sqlite_url) as journal:
        await journal.append([registered(), registered(BOB, "robert")])
        first, second = await journal.store.read(journal.journal_id, 0, 2)
    path = sqlite_url.removeprefix("sqlite:///")
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        for [trigger] in connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'trigger'"
        ).fetchall():
            connection.execute(f'DROP TRIGGER "{trigger}"')
        if wrong == "body":
            moved = msgspec.json.decode(first.body)["username"]
            body = msgspec.json.decode(second.body) | {"username": moved}
            changed = (msgspec.json.encode(body), second.offset)
            connection.execute('UPDATE events SET body = ? WHERE "offset" = ?', changed)
        else:
            connection.execute("DELETE FROM subject_keys WHERE subject = ?", (OF_BOB,))
    async with open_journal(settings_for(sqlite_url)) as journal:
        with pytest.raises(StoredEventInvalid, match="username") as caught:
            await everything(journal)
        assert caught.value.offset == 1
        assert "robert" not in str(caught.value)


async def test_names_are_looked_up_by_keyed_digests(database_url: str) -> None:
    """The key is random and the journal's own, unless the settings have one."""
    async with opened(database_url) as journal:
        await journal.append(registered())
        own = await journal.privacy.name_key()
        assert await journal.holder(f"username:{name_digest('Annabelle', own)}") == OF_ANN
        assert await journal.holder(f"username:{name_digest('annabelle')}") is None
        assert len(own) == 32


async def test_names_are_kept_under_one_key(database_url: str) -> None:
    """Under two keys one name would be two people's: the first one that is used is marked."""
    settings = settings_for(database_url)
    one, other = (
        settings.model_copy(update={"name_key": SecretStr(f"key {number} of the settings")})
        for number in (1, 2)
    )
    async with opened(database_url):
        pass
    async with open_journal(one) as journal:
        assert await journal.privacy.name_key() == b"key 1 of the settings"
        await journal.append(registered())
    for wrong in (other, settings):
        async with open_journal(wrong) as journal:
            with pytest.raises(SettingsInvalid, match="LEDGER_NAME_KEY: names of journal 'main'"):
                await journal.append(registered(BOB, "robert"))
            await journal.append(note())
    async with open_journal(one) as journal:
        await journal.append(registered(BOB, "robert"))


async def test_keys_are_wrapped_by_the_master_key(database_url: str) -> None:
    """Whoever has the database alone can read nothing; with the key, everything."""
    settings = settings_for(database_url)
    locked = settings.model_copy(update={"master_key": SecretStr(MASTER)})
    async with opened(database_url):
        pass
    async with open_journal(locked) as journal:
        await journal.append(registered())
        wrapped = [each.wrapped or "" for each in (await keys_of(journal)).values()]
        assert {each[:5] for each in wrapped} == {"siv1:"}
    async with open_journal(locked) as journal:
        assert (await everything(journal))[0].erased == ()
    async with open_journal(settings) as journal:
        with pytest.raises(DataKeyUnusable, match="LEDGER_MASTER_KEY does not hold"):
            await everything(journal)


async def test_a_master_key_is_replaced(database_url: str) -> None:
    """Keys are wrapped anew one by one; what is destroyed stays so."""
    settings = settings_for(database_url)
    async with opened(database_url) as journal:
        await journal.append([registered(), registered(BOB, "robert")])
        await journal.privacy.destroy(OF_BOB)
    for text in (MASTER, f"{OTHER},{MASTER}"):
        locked = settings.model_copy(update={"master_key": SecretStr(text)})
        async with open_journal(locked) as journal:
            keys = journal.privacy.keys
            done = [await keys.rewrap(each) async for each in keys.stored()]
            assert sum(done) == len(done) - 1
            assert not any([keys.is_outdated(each) async for each in keys.stored()])
    last = settings.model_copy(update={"master_key": SecretStr(OTHER)})
    async with open_journal(last) as journal:
        assert (await everything(journal))[0].erased == ()


class KeyService:
    """A key service of somebody else, which only turns bytes round."""

    async def wrap(self, data_key: bytes, context: bytes) -> str:
        """Return the wrapped key."""
        return "kms:" + (data_key + context)[::-1].hex()

    async def unwrap(self, wrapped: str, context: bytes) -> bytes:
        """Return the key."""
        return bytes.fromhex(wrapped.removeprefix("kms:"))[::-1].removesuffix(context)

    def is_current(self, wrapped: str) -> bool:
        """Whether it was wrapped here."""
        return wrapped.startswith("kms:")


async def test_a_key_service_takes_the_place_of_the_master_key(database_url: str) -> None:
    """What wraps is given when a journal is opened."""
    async with opened(database_url):
        pass
    settings = settings_for(database_url)
    async with open_journal(settings, master_key=KeyService()) as journal:
        await journal.append(registered())
    async with open_journal(settings, master_key=KeyService()) as journal:
        assert (await everything(journal))[0].erased == ()
        wrapped = [each.wrapped or "" for each in (await keys_of(journal)).values()]
        assert {each[:4] for each in wrapped} == {"kms:"}


@pytest.fixture
def apart(database_url: str, migrated_sqlite: Path, tmp_path: Path) -> Settings:
    """Settings with the data keys in a database of their own."""
    elsewhere = shutil.copy(migrated_sqlite, tmp_path / "keys.db")
    change = {"keys_database_url": f"sqlite:///{elsewhere}"}
    return settings_for(database_url).model_copy(update=change)


async def test_keys_in_another_database(database_url: str, apart: Settings) -> None:
    """The journal's own database has but a mark; without the other nothing is read, or stored."""
    async with open_journal(apart) as journal:
        await journal.append(registered())
        assert (await everything(journal))[0].erased == ()
        assert sorted(await keys_of(journal)) == [NAMES, OF_ANN]
    async with open_journal(settings_for(database_url)) as journal:
        assert await keys_of(journal) == {}
        assert len(await journal.privacy.keys.table.of_subjects([ELSEWHERE])) == 1
        with pytest.raises(StoredEventInvalid, match="missing in table subject_keys"):
            await everything(journal)
        with pytest.raises(SettingsInvalid, match="'main' lie in another database, which is not"):
            await journal.append(registered(BOB, "robert"))
        assert await journal.size() == 1


async def test_keys_do_not_move_by_themselves(
    database_url: str, apart: Settings, migrated_sqlite: Path, tmp_path: Path
) -> None:
    """Where there are keys already, other settings are refused before a second one is made."""
    async with opened(database_url) as journal:
        await journal.append(registered())
    async with open_journal(apart) as journal:
        with pytest.raises(SettingsInvalid, match="lie in its own database"):
            await journal.append(registered(BOB, "robert"))
    third = shutil.copy(migrated_sqlite, tmp_path / "third.db")
    async with open_journal(
        settings_for(f"sqlite:///{third}").model_copy(
            update={"keys_database_url": apart.keys_database_url}
        )
    ) as journal:
        await journal.append(registered())
    fourth = shutil.copy(migrated_sqlite, tmp_path / "fourth.db")
    wrong = settings_for(f"sqlite:///{third}").model_copy(
        update={"keys_database_url": f"sqlite:///{fourth}"}
    )
    async with open_journal(wrong) as journal:
        with pytest.raises(SettingsInvalid, match="another database than the one that is set"):
            await journal.append(registered(BOB, "robert"))


async def test_many_at_once_make_one_key_each(database_url: str) -> None:
    """Appends of two processes that need the same new keys at the same moment agree on them."""
    async with opened(database_url) as journal, open_journal(settings_for(database_url)) as other:
        users = [an_id(f"user {number}") for number in range(50)]
        await asyncio.gather(
            *(
                each.append(registered(user, f"name {user}{number}"))
                for user in users
                for number, each in enumerate((journal, other))
            )
        )
        assert len(await keys_of(journal)) == 51
        assert {each.erased for each in await everything(other)} == {()}


async def test_a_reader_without_keys_sees_all_but_personal_fields(database_url: str) -> None:
    """As one of a published log does."""
    async with opened(database_url) as journal:
        await journal.append([registered(), ISSUED])
        info = (await journal.store.journals())[0]
        blind = Journal(journal.store, info, keys=DataKeys(NoKeys(), info.name))
        first, second = await everything(blind)
        assert first.erased == ("username", "email", "ip_address")
        assert second.event.user_id == ANN  # type: ignore[attr-defined]


async def test_a_line_shows_what_was_read(database_url: str) -> None:
    """Opened values in the stored order, null and named where they are erased."""
    async with opened(database_url) as journal:
        await journal.append([ISSUED, NewEvent(LoginFailed(username="stra…"), metadata=FROM)])
        lines = [msgspec.json.decode(as_line(each)) for each in await everything(journal)]
        assert lines[0]["data"]["name"] == "laptop"
        assert list(lines[0]["data"]) == ["key_id", "user_id", "name", "key_hash"]
        assert "erased" not in lines[0]
        await journal.privacy.destroy(OF_ANN)
        [issued, _] = await everything(journal)
        line = msgspec.json.decode(as_line(issued))
        assert (line["data"]["name"], line["erased"]) == (None, ["name", "key_hash"])
        assert b"enc1:" not in opened_body(issued)


class Away(NoKeys):
    """A table of keys whose database is away."""

    async def of_subjects(self, subjects: Sequence[str]) -> list[StoredKey]:
        """Fail."""
        raise StoreUnavailable("away")


async def test_whoever_needs_keys_is_told_when_they_cannot_be_had(database_url: str) -> None:
    """The appends that need them fail; others are stored, and the next ones find keys again."""
    async with opened(database_url) as journal:
        table = journal.privacy.keys.table
        journal.privacy.keys.table = Away()
        appends = (registered(), note(), registered(BOB, "robert"))
        results = await asyncio.gather(*map(journal.append, appends), return_exceptions=True)
        assert [isinstance(each, StoreUnavailable) for each in results] == [True, False, True]
        journal.privacy.keys.table = table
        await journal.append(registered())
        assert await journal.size() == 2


async def test_appends_are_stored_in_the_order_of_the_calls(database_url: str) -> None:
    """One that needs a key is not overtaken by one that needs none."""
    async with opened(database_url) as journal:
        calls = [
            journal.append(new, ExpectedVersion(OF_ANN, version))
            for version, new in enumerate(
                [
                    registered(),
                    NewEvent(PermissionsChanged(user_id=ANN, permissions=("a",))),
                    NewEvent(EmailChanged(user_id=ANN, email="b@x.org")),
                    NewEvent(PermissionsChanged(user_id=ANN, permissions=("b",))),
                ]
            )
        ]
        appended = await asyncio.gather(*calls)
        assert [each.offsets for each in appended] == [(0,), (1,), (2,), (3,)]


@pytest.mark.parametrize("turn", [1, -1])
async def test_the_owner_may_come_with_the_use(database_url: str, turn: int) -> None:
    """In the same append, before or after it, or in one that is called before it."""
    async with opened(database_url) as journal:
        await journal.append([ISSUED, used()][::turn])
        other = an_id("other key")
        issued = NewEvent(ApiKeyIssued(key_id=other, user_id=BOB, name="x", key_hash="y"))
        await asyncio.gather(journal.append(issued), journal.append(used(other)))
        await journal.privacy.destroy(OF_ANN)
        await journal.privacy.destroy(OF_BOB)
        assert all(each.erased for each in await everything(journal))


async def test_a_later_issue_of_the_same_key_owns_nothing(database_url: str) -> None:
    """Only the first event of a stream says whose a key is, as for the tables."""
    async with opened(database_url) as journal:
        await journal.append([registered(), ISSUED])
        again = NewEvent(ApiKeyIssued(key_id=KEY_ID, user_id=BOB, name="x", key_hash="y"))
        await journal.append([again, used()])
        await journal.privacy.destroy(OF_ANN)
        *_, use = await everything(journal)
        assert use.erased == ("source", "ip_address")


async def test_the_venue_may_be_first(database_url: str) -> None:
    """The first event of an order that names a user says whose it is, if it is among the first."""
    order = an_id("order")
    placed = OrderPlaced(
        order_id=order,
        user_id=ANN,
        token="SOL",
        action=Action.BUY,
        order_type=OrderType.MARKET,
        quantity=Amount(1),
    )
    async with opened(database_url) as journal:
        for event in (OrderAccepted(order_id=order), placed, OrderCancelRequested(order_id=order)):
            await journal.append(NewEvent(event, metadata=FROM))
        await journal.privacy.destroy(OF_ANN)
        assert [each.erased for each in await everything(journal)] == [(), *[("ip_address",)] * 2]


async def test_a_stream_that_cannot_be_read_fails_only_who_needs_it(sqlite_url: str) -> None:
    """Whose an order is cannot be told, and the others of the batch are stored all the same."""
    order = an_id("order")
    async with opened(sqlite_url) as journal:
        unknown = prepare([NewEvent(OrderAccepted(order_id=order))], ()).events[0]
        odd = msgspec.structs.replace(unknown, type="Unheard", body=b'{"type":"Unheard"}')
        await journal.store.append(journal.journal_id, [PreparedAppend((odd,))])
        cancel = NewEvent(OrderCancelRequested(order_id=order), metadata=FROM)
        appends = (cancel, registered(), note())
        results = await asyncio.gather(*map(journal.append, appends), return_exceptions=True)
        assert [isinstance(each, StoredEventInvalid) for each in results] == [True, False, False]


class Failing(LocalMasterKeys):
    """A key service that fails, or never answers."""

    def __init__(self, *, hangs: bool) -> None:
        super().__init__()
        self._hangs = hangs

    async def wrap(self, data_key: bytes, context: bytes) -> str:
        """Fail."""
        if self._hangs:
            await asyncio.Event().wait()
        raise ConnectionError("gone")


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_key_service_that_is_away(
    database_url: str, hangs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who needs it is told after a bounded time that nothing was stored; others are stored."""
    monkeypatch.setattr(data_keys, "SERVICE_SECONDS", 0.05)
    async with opened(database_url):
        pass
    service = Failing(hangs=hangs)
    async with open_journal(settings_for(database_url), master_key=service) as journal:
        appends = (registered(), note())
        results = await asyncio.gather(*map(journal.append, appends), return_exceptions=True)
        assert [isinstance(each, DataKeyUnusable) for each in results] == [True, False]
        assert await journal.size() == 1


async def test_one_bad_key_fails_only_who_needs_it(database_url: str) -> None:
    """A key that another master key wrapped does not keep others from being stored."""
    settings = settings_for(database_url)
    locked = settings.model_copy(update={"master_key": SecretStr(f"{MASTER},{OTHER}")})
    async with opened(database_url):
        pass
    async with open_journal(locked) as journal:
        await journal.append(registered(an_id("first"), "first"))
    elsewhere = settings.model_copy(update={"master_key": SecretStr(f"{OTHER},{MASTER}")})
    async with open_journal(elsewhere) as journal:
        await journal.append(registered(BOB, "robert"))
    async with open_journal(
        settings.model_copy(update={"master_key": SecretStr(MASTER)})
    ) as journal:
        changed = NewEvent(EmailChanged(user_id=BOB, email="b@x.org"))
        appends = (registered(), changed, note())
        results = await asyncio.gather(*map(journal.append, appends), return_exceptions=True)
        assert [isinstance(each, DataKeyUnusable) for each in results] == [False, True, False]


async def test_who_cannot_read_keys_makes_none(database_url: str) -> None:
    """A process that lacks the master key does not store keys in plain beside wrapped ones."""
    settings = settings_for(database_url)
    locked = settings.model_copy(update={"master_key": SecretStr(MASTER)})
    async with opened(database_url):
        pass
    async with open_journal(locked) as journal:
        await journal.append(NewEvent(ISSUED.event))
    async with open_journal(settings) as journal:
        with pytest.raises(DataKeyUnusable):
            await journal.append(NewEvent(LoginFailed(username="x…", user_id=BOB)))
        assert sorted(await keys_of(journal)) == [NAMES, OF_ANN]


async def test_a_key_read_slowly_does_not_outlive_its_end(database_url: str) -> None:
    """Destroyed between question and answer, it is right for no longer than the question."""
    async with opened(database_url) as journal:
        await journal.append(registered())
        slow, other = await other_reader(journal, cache_seconds=0.05)
        reading = asyncio.create_task(everything(slow))
        await other.asked.wait()
        await journal.privacy.destroy(OF_ANN)
        other.may_answer.set()
        await reading
        async with asyncio.timeout(5):
            while (await everything(slow))[0].erased == ():  # noqa: ASYNC110 - time has to pass
                await asyncio.sleep(0.01)
        slow.privacy.keys.forget(OF_ANN)
        assert (await everything(slow))[0].event.username is None  # type: ignore[attr-defined]


class Slow:
    """A table of keys that answers when it may."""

    def __init__(self, table: KeyTable) -> None:
        self._table = table
        self.asked, self.may_answer = asyncio.Event(), asyncio.Event()

    async def by_ids(self, key_ids: Sequence[str]) -> list[StoredKey]:
        """Return what there was when it was asked."""
        found = await self._table.by_ids(key_ids)
        self.asked.set()
        await self.may_answer.wait()
        return found


async def other_reader(journal: Journal, *, cache_seconds: float) -> tuple[Journal, Slow]:
    """Return the journal as another process sees it whose keys come slowly."""
    slow: Any = Slow(journal.privacy.keys.table)
    [info] = await journal.store.journals()
    keys = DataKeys(slow, info.name, cache_seconds=cache_seconds)
    return Journal(journal.store, info, keys=keys), slow


async def test_a_key_that_a_fail_over_lost_is_stored_again(
    postgres_url: str, postgres_server: PostgresServer
) -> None:
    """A service that still has it repeats the append; whoever comes later can read the event."""
    name = postgres_url.rpartition("/")[2]
    async with opened(postgres_url) as journal:
        await journal.append(registered(BOB, "robert"))
        before = await keys_of(journal)
        event = registered()
        await journal.append(event)
        wipe = "DELETE FROM {} WHERE {}"
        postgres_server.psql(
            "SET session_replication_role = replica;"
            "ALTER TABLE subject_keys DISABLE TRIGGER ALL; ALTER TABLE events DISABLE TRIGGER ALL;"
            "ALTER TABLE event_tags DISABLE TRIGGER ALL; ALTER TABLE journals DISABLE TRIGGER ALL;"
            + ";".join(
                [
                    wipe.format("subject_keys", f"subject = '{OF_ANN}'"),
                    wipe.format("event_tags", '"offset" = 1'),
                    wipe.format("events", '"offset" = 1'),
                    "UPDATE journals SET size = 1",
                ]
            )
            + ";SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            f" WHERE datname = '{name}' AND pid <> pg_backend_pid()",
            name,
        )
        assert (await journal.append(event)).offsets == (1,)
        assert await keys_of(journal) != before
    async with open_journal(settings_for(postgres_url)) as journal:
        assert (await everything(journal))[1].erased == ()


DAMAGE = [
    "DELETE FROM subject_keys",
    "UPDATE subject_keys SET wrapped = 'plain1:', destroyed_at = NULL WHERE wrapped IS NULL",
    "UPDATE subject_keys SET subject = subject || 'x'",
    "UPDATE subject_keys SET key_id = 'x'",
]


@pytest.mark.parametrize("statement", DAMAGE)
async def test_a_key_only_ends(database_url: str, statement: str) -> None:
    """Not even who owns the table can lose one by a slip, or bring one back."""
    async with opened(database_url) as journal:
        await journal.append([registered(), registered(BOB, "robert")])
        await journal.privacy.destroy(OF_BOB)
        before = await keys_of(journal)
        store: Any = journal.store
        with pytest.raises(LedgerError, match=r"data key|append-only"):
            await store.transact([Statement(statement, [()])])
        assert await keys_of(journal) == before


async def test_sqlite_replaces_no_key(sqlite_url: str) -> None:
    """REPLACE, which gets past delete triggers, leaves the key that is there."""
    async with opened(sqlite_url) as journal:
        await journal.append(registered())
        before = await keys_of(journal)
        store: Any = journal.store
        sql = """INSERT OR REPLACE INTO subject_keys
            SELECT journal, subject, 'x', 'plain1:', created_at, NULL FROM subject_keys"""
        await store.transact([Statement(sql, [()])])
        assert await keys_of(journal) == before


@contextlib.asynccontextmanager
async def opened_store(settings: Settings) -> AsyncIterator[Store]:
    """Open a store."""
    store = open_store(settings)
    try:
        yield store
    finally:
        await store.close()


async def test_who_may_do_what_with_keys(
    postgres_url: str, postgres_server: PostgresServer
) -> None:
    """Services make keys, projectors and readers read them; only an eraser destroys them."""
    database = postgres_url.rpartition("/")[2]
    async with opened(postgres_url) as journal:
        await journal.append(registered())
    may_make, may_destroy = set(), set()
    for role in ("service", "projector", "reader", "eraser"):
        name = f"{role}_{database}"
        postgres_server.psql(f"CREATE ROLE {name} LOGIN; GRANT ledger_{role} TO {name}")
        try:
            settings = settings_for(postgres_server.url(database, name))
            async with opened_store(settings) as store:
                keys = Keyring(settings, store).keys_of("main")
                [key] = await keys.table.of_subjects([OF_ANN])
                with contextlib.suppress(StoreUnavailable):
                    await keys.of_subjects([f"user-{role}"])
                    may_make.add(role)
                with contextlib.suppress(StoreUnavailable):
                    await keys.table.rewrap(key, key.wrapped or "")
                    may_destroy.add(role)
        finally:
            postgres_server.psql(f"DROP OWNED BY {name}", database)
            postgres_server.psql(f"DROP ROLE {name}")
    assert (may_make, may_destroy) == ({"service", "eraser"}, {"eraser"})
