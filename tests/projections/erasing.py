"""People who leave traces in a journal, and the search for these in files, as bytes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec

from ledger.deciding import Origin
from ledger.domain.orders import Action, OrderType
from ledger.event import Metadata, RecordedEvent
from ledger.services import Ledger
from tests.projections.support import an_id


class Person(msgspec.Struct, frozen=True):
    """A user whose data can be told from all else."""

    name: str
    addresses: tuple[str, str]

    @property
    def user_id(self) -> UUID:
        """The user's id, in which nothing of the name can be found."""
        return an_id(f"person {self.name}")

    @property
    def emails(self) -> tuple[str, str]:
        """The e-mail address, and the one after it."""
        return f"{self.name}@first.example", f"{self.name}@second.example"

    @property
    def password(self) -> str:
        """The password."""
        return f"password-of-{self.name}"

    @property
    def key_name(self) -> str:
        """The name of the API key, with letters that JSON may escape."""
        return f"clé de {self.name}"

    @property
    def source(self) -> str:
        """The place from which the user logs in, and uses keys."""
        return f"kiosk-of-{self.name}"

    def origin(self, number: int = 0) -> Origin:
        """Return an origin with one of the addresses."""
        return Origin(metadata=Metadata(ip_address=self.addresses[number]))

    def values(self) -> list[str]:
        """Return all that is personal."""
        return [
            *(self.name, *self.emails, *self.addresses),
            *(self.password, self.key_name, self.source),
        ]


VICTIM = Person("zanzibar-quokka", ("203.0.113.77", "2001:db8:77::beef:1"))
OTHERS = (
    Person("ordinary-wombat", ("198.51.100.8", "2001:db8:8::1")),
    Person("plain-numbat", ("198.51.100.9", "2001:db8:9::1")),
)


async def live(ledger: Ledger, person: Person) -> None:
    """Do everything that leaves personal data in a journal."""
    users, user_id = ledger.users, person.user_id
    await users.register(
        username=person.name,
        email=person.emails[0],
        password=person.password,
        user_id=user_id,
        permissions=["trade"],
        origin=person.origin(),
    )
    for name, password in ((person.name, person.password), (person.emails[0], "wrong-password")):
        await users.login(
            username=name, password=password, source=person.source, origin=person.origin(1)
        )
    await users.change_email(user_id=user_id, email=person.emails[1], origin=person.origin())
    await users.change_password(user_id=user_id, password=person.password, origin=person.origin())
    await use_keys(ledger, person)
    await trade(ledger, person)


async def use_keys(ledger: Ledger, person: Person) -> None:
    """Name a key, use it, and once too often."""
    issued = await ledger.api_keys.issue(
        user_id=person.user_id, name=person.key_name, rate_limit=1, origin=person.origin()
    )
    assert issued.key
    for _ in range(2):
        await ledger.api_keys.use(
            presented=issued.key.reveal(),
            action="GET",
            source=person.source,
            origin=person.origin(1),
        )
    await ledger.api_keys.flush()


async def trade(ledger: Ledger, person: Person) -> None:
    """Place an order, which is filled."""
    order_id = an_id(f"order of {person.name}")
    await ledger.orders.place(
        order_id=order_id,
        user_id=person.user_id,
        token="SOL",
        action=Action.BUY,
        order_type=OrderType.MARKET,
        quantity="2",
        origin=person.origin(),
    )
    await ledger.orders.fill(
        order_id=order_id, fill_id="1", quantity="2", price="10", origin=person.origin(1)
    )


def hashes_of(events: Iterable[RecordedEvent], user_id: UUID) -> list[str]:
    """Return the hashes of a user's passwords and keys, which are personal too."""
    own = [each.event for each in events if getattr(each.event, "user_id", None) == user_id]
    named = ("password_hash", "key_hash")
    found = (getattr(event, name, None) for event in own for name in named)
    return [value for value in found if value]


def forms(value: str) -> Iterator[bytes]:
    """Yield the bytes by which a text may lie in a file."""
    yield value.encode()
    yield value.encode("utf-16-le")
    yield json.dumps(value)[1:-1].encode()
    yield value.encode().hex().encode()
    try:
        yield ip_address(value).packed
    except ValueError:
        return


def found_in(files: Iterable[Path], values: Iterable[str]) -> set[tuple[str, str]]:
    """Return which values lie in which files in any form."""
    wanted = [(value, form) for value in values for form in set(forms(value))]
    found: set[tuple[str, str]] = set()
    for file in files:
        try:
            data = file.read_bytes()
        except FileNotFoundError:  # a running server drops its caches, and makes them again
            continue
        found |= {(value, file.name) for value, form in wanted if form in data}
    return found


def of_others(
    tables: dict[str, dict[Any, dict[str, Any]]], user_id: UUID
) -> dict[str, dict[Any, dict[str, Any]]]:
    """Return the rows that are not a user's."""
    return {
        table: {key: row for key, row in rows.items() if row.get("user_id") != user_id}
        for table, rows in tables.items()
    }
