"""The log of an OpenSSH server, structured by loghub, as events.

    python examples/openssh.py FILE | ledger append -

    E9, E10, E8   LoginFailed; "invalid user" means that nobody of that name exists
    E14           LoginFailed as many times as "message repeated N times" says
    E1            LoginSucceeded
    E5, E18       AccountLocked; E18 names no user, the last attempt of the same process does

All other lines are skipped, and so are lock-outs of users who do not exist. A line is known by its
host, time, process and line id; the process is the request id.

Made up, since the log does not hold it:

- the year (`--year`), and that its times are UTC;
- a registration for each user whom the log shows to exist: a name that was not called invalid;
- the end of a lock-out, 15 minutes after it: the server itself only drops the connection.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import ClassVar

from examples.adapter import Adapter, Row, place, run
from ledger.domain.users import AccountLocked, LoginFailed, LoginSucceeded
from ledger.event import Event, Metadata, NewEvent

CONTENT_CHARS_MAX = 4000
LOCKED_FOR = timedelta(minutes=15)

# A name may hold blanks and even " from ": what the server itself wrote stands last.
ATTEMPT = re.compile(
    r"(?:message repeated (?P<times>[0-9]{1,6}) times: \[ )?"
    r"(?:Accepted|Failed) (?P<method>\S+) for (?P<invalid>invalid user )?(?P<user>.*)"
    r" from (?P<source>\S+) port [0-9]+ ssh2(?:: .*)?\]?"
)
LOCK_OUT = re.compile(
    r"Disconnecting: Too many authentication failures for (?P<user>.*) \[preauth\]"
)


class OpenSsh(Adapter):
    """Logins and lock-outs of one server."""

    name = "openssh"
    columns: ClassVar[tuple[str, ...]] = (
        *("LineId", "Date", "Day", "Time", "Component", "Pid", "Content", "EventId"),
    )

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        self._attempted: dict[str, str | None] = {}

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """Add what the log does not say."""
        parser.add_argument("--year", type=int, default=2015, help="default: %(default)s")

    def events(self, rows: Iterator[Row]) -> Iterator[NewEvent]:
        """Turn the lines about logins and lock-outs into events."""
        kinds: dict[str, Callable[[Row, datetime], Iterator[NewEvent]]] = {
            "E1": self._accepted,
            **dict.fromkeys(("E8", "E9", "E10", "E14"), self._failed),
            "E5": self._disconnected,
            "E18": self._retries_ignored,
        }
        for row in rows:
            convert = kinds.get(row.name("EventId"))
            if convert is None:
                self.skipped["lines about something else"] += 1
            else:
                yield from convert(row, self._when(row))

    def _accepted(self, row: Row, when: datetime) -> Iterator[NewEvent]:
        match = _match(row, ATTEMPT)
        ip_address, source = place(match["source"])
        self._attempted[row.name("Pid")] = match["user"]
        yield from self.made_up_user(match["user"], when)
        event = LoginSucceeded(user_id=self.user_id(match["user"]), source=source)
        yield self._event(row, event, when, ip_address)

    def _failed(self, row: Row, when: datetime) -> Iterator[NewEvent]:
        match = _match(row, ATTEMPT)
        exists = match["invalid"] is None
        ip_address, source = place(match["source"])
        self._attempted[row.name("Pid")] = match["user"] if exists else None
        if exists:
            yield from self.made_up_user(match["user"], when)
        event = LoginFailed(
            username=match["user"],
            user_id=self.user_id(match["user"]) if exists else None,
            reason=f"failed {match['method']}",
            source=source,
        )
        for repetition in range(int(match["times"] or 1)):
            yield self._event(row, event, when, ip_address, repetition)

    def _disconnected(self, row: Row, when: datetime) -> Iterator[NewEvent]:
        username = _match(row, LOCK_OUT)["user"]
        yield from self.made_up_user(username, when)
        yield self._locked(row, when, username, "too many authentication failures")

    def _retries_ignored(self, row: Row, when: datetime) -> Iterator[NewEvent]:
        username = self._attempted.get(row.name("Pid"))
        if username is None:
            self.skipped["lock-outs of users who do not exist"] += 1
        else:
            yield self._locked(row, when, username, "ignoring max retries")

    def _locked(self, row: Row, when: datetime, username: str, reason: str) -> NewEvent:
        event = AccountLocked(
            user_id=self.user_id(username), locked_until=when + LOCKED_FOR, reason=reason
        )
        return self._event(row, event, when)

    def _event(
        self,
        row: Row,
        event: Event,
        when: datetime,
        ip_address: str | None = None,
        repetition: int = 0,
    ) -> NewEvent:
        """Name the event after its line."""
        source_ids = map(row.name, ("Component", "Date", "Day", "Time", "Pid", "LineId"))
        event_id = self.id("line", *source_ids, repetition)
        metadata = Metadata(request_id=f"sshd[{row.name('Pid')}]", ip_address=ip_address)
        return NewEvent(event, event_id=event_id, occurred_at=when, metadata=metadata)

    def _when(self, row: Row) -> datetime:
        """Read a time such as Dec 10 06:55:46."""
        day = f"{self.options.year} {row.name('Date')} {row.name('Day')}"
        return row.read("Time", lambda time: _utc_time(f"{day} {time}"))


def _utc_time(text: str) -> datetime:
    return datetime.strptime(text, "%Y %b %d %H:%M:%S").replace(tzinfo=UTC)


def _match(row: Row, pattern: re.Pattern[str]) -> re.Match[str]:
    match = pattern.fullmatch(row.text("Content", CONTENT_CHARS_MAX))
    if match is None:
        raise row.bad("Content", f"is not what event {row.name('EventId')} looks like")
    return match


if __name__ == "__main__":
    sys.exit(run(OpenSsh, __doc__))
