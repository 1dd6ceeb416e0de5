"""API calls that AWS CloudTrail recorded, as events about users and their keys.

    python examples/cloudtrail.py FILE | ledger append -

    any row with a key_id  ApiKeyUsed, or ApiKeyRefused with the error_code as its reason
    CreateUser             UserRegistered (UserReactivated for a name that was deleted before)
    DeleteUser             UserDeactivated
    CreateAccessKey        ApiKeyIssued
    DeleteAccessKey        ApiKeyRevoked
    ConsoleLogin           LoginSucceeded or LoginFailed

A row's first event keeps the row's event_id. A row that both uses a key and has an effect gives two
events: the effect has an id derived from it and names the use as its cause. A call with an
error_code had no effect. Rows with neither a key nor an effect are skipped and counted.

A source that is no ip address but a service's name ("AWS Internal") is the event's `source`.

Made up: most users and keys are older than the file. Before its first use a key is issued to the
user or role who uses it, and each such user is registered; a role counts as a user of its name. A
key used without a name belongs to a user named after the identity's type and the key.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import ClassVar
from uuid import UUID

from examples.adapter import Adapter, Row, instant, place, run
from ledger.domain.api_keys import ApiKeyIssued, ApiKeyRefused, ApiKeyRevoked, ApiKeyUsed
from ledger.domain.users import LoginFailed, LoginSucceeded, UserDeactivated, UserReactivated
from ledger.event import Event, Metadata, NewEvent


class CloudTrail(Adapter):
    """Key uses and what became of users and keys."""

    name = "cloudtrail"
    columns: ClassVar[tuple[str, ...]] = (
        *("event_id", "event_time", "event_source", "event_name", "identity_type", "user_name"),
        *("key_id", "source_ip", "error_code", "subject_user", "subject_key_id", "console_login"),
    )

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        self._keys: set[str] = set()
        self._effects: dict[str, Callable[[Row], Event]] = {
            "CreateUser": self._user_created,
            "DeleteUser": lambda row: UserDeactivated(user_id=self._subject(row)),
            "CreateAccessKey": self._key_created,
            "DeleteAccessKey": lambda row: ApiKeyRevoked(
                key_id=self._key_id(row, "subject_key_id")
            ),
            "ConsoleLogin": self._console_login,
        }

    def events(self, rows: Iterator[Row]) -> Iterator[NewEvent]:
        """Give the use of a row's key first, then the row's effect."""
        for row in rows:
            event_id = row.read("event_id", UUID)
            has_key, has_effect = bool(row.text("key_id")), self._has_effect(row)
            if has_key:
                yield from self._made_up_key(row, "key_id", _owner(row))
                yield self._event(row, self._use(row), event_id)
            if has_effect:
                yield from self._made_up_subject(row)
                effect = self._effects[row.name("event_name")](row)
                second = self.id("effect", event_id) if has_key else event_id
                yield self._event(row, effect, second, event_id if has_key else None)
            if not has_key and not has_effect:
                self.skipped["rows with neither a key nor an effect"] += 1

    def _has_effect(self, row: Row) -> bool:
        """Say whether the call changed something; a login is a fact even when it failed."""
        name = row.name("event_name")
        return name in self._effects and (name == "ConsoleLogin" or not row.text("error_code"))

    def _use(self, row: Row) -> Event:
        _, source = place(row.text("source_ip"))
        key_id, error_code = self._key_id(row, "key_id"), row.text("error_code")
        action, resource = row.name("event_name"), row.name("event_source")
        if error_code:
            return ApiKeyRefused(
                reason=error_code, key_id=key_id, action=action, resource=resource, source=source
            )
        return ApiKeyUsed(key_id=key_id, action=action, resource=resource, source=source)

    def _user_created(self, row: Row) -> Event:
        registered = self.new_user(row.name("subject_user"))
        return registered or UserReactivated(user_id=self._subject(row))

    def _key_created(self, row: Row) -> Event:
        return self._issued(row.name("subject_key_id"), _key_subject(row))

    def _console_login(self, row: Row) -> Event:
        username = row.name("user_name")
        _, source = place(row.text("source_ip"))
        if row.one_of("console_login", {"Success": True, "Failure": False}):
            return LoginSucceeded(user_id=self.user_id(username), source=source)
        reason = row.text("error_code") or None
        return LoginFailed(
            username=username, user_id=self.user_id(username), reason=reason, source=source
        )

    def _made_up_subject(self, row: Row) -> Iterator[NewEvent]:
        """Make up whom or what the effect is about, unless it brings it into being itself."""
        when = row.read("event_time", instant)
        match row.name("event_name"):
            case "DeleteUser":
                yield from self.made_up_user(row.name("subject_user"), when)
            case "CreateAccessKey":
                yield from self.made_up_user(_key_subject(row), when)
            case "DeleteAccessKey":
                yield from self._made_up_key(row, "subject_key_id", _key_subject(row))
            case "ConsoleLogin":
                yield from self.made_up_user(row.name("user_name"), when)

    def _made_up_key(self, row: Row, field: str, owner: str) -> Iterator[NewEvent]:
        key = row.name(field)
        if key in self._keys:
            return
        when = row.read("event_time", instant)
        yield from self.made_up_user(owner, when)
        yield self.make_up(self._issued(key, owner), self.id("key", key), when, key)

    def _issued(self, key: str, owner: str) -> ApiKeyIssued:
        self._keys.add(key)
        return ApiKeyIssued(key_id=self.id("key", key), user_id=self.user_id(owner), name=key)

    def _key_id(self, row: Row, field: str) -> UUID:
        return self.id("key", row.name(field))

    def _subject(self, row: Row) -> UUID:
        return self.user_id(row.name("subject_user"))

    def _event(
        self, row: Row, event: Event, event_id: UUID, causation_id: UUID | None = None
    ) -> NewEvent:
        """Add when, by whom and from where."""
        when: datetime = row.read("event_time", instant)
        actor = row.text("user_name") or row.text("identity_type") or None
        ip_address, _ = place(row.text("source_ip"))
        metadata = Metadata(actor=actor, ip_address=ip_address, causation_id=causation_id)
        return NewEvent(event, event_id=event_id, occurred_at=when, metadata=metadata)


def _key_subject(row: Row) -> str:
    """Return whose key the call is about: callers may leave themselves out."""
    return row.text("subject_user") or row.text("user_name") or row.name("subject_user")


def _owner(row: Row) -> str:
    """Return the name of the user whom the row's key belongs to."""
    nameless = f"{row.text('identity_type') or 'unknown'} {row.name('key_id')}"
    return row.text("user_name") or nameless


if __name__ == "__main__":
    sys.exit(run(CloudTrail, __doc__))
