"""Bad input is refused with its field and its reason, by the journal and by `ledger append`."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from ledger.codec import BODY_BYTES_MAX
from ledger.conditions import AtMost, ExpectedVersion, NoEvent
from ledger.domain.orders import Action, OrderPlaced, OrderType
from ledger.domain.positions import ProtectionSet
from ledger.domain.users import UserRegistered
from ledger.errors import InvalidEvent, LedgerError, UnknownEventType
from ledger.event import Amount, Metadata, NewEvent, RecordedEvent, VenueAmount
from ledger.ndjson import LINE_BYTES_MAX, Imported, ImportStopped, import_lines, parse_line
from tests.ledger.support import Clock, an_id, ledger, note, opened, read_all

ORDER = str(an_id("order"))
STREAM = f"order-{ORDER}"


def a_line(**changes: Any) -> dict[str, Any]:
    """Return a good line, changed."""
    line = {
        "stream": STREAM,
        "type": "OrderFailed",
        "data": {"order_id": ORDER, "reason": "r"},
        "event_id": str(an_id("event")),
    }
    return line | changes


def a_mark(price: Any) -> dict[str, Any]:
    """Return a line with an amount."""
    return a_line(stream="market-T", type="PriceMarked", data={"token": "T", "price": price})


def protection(amount: Any) -> dict[str, Any]:
    """Return a line with an amount that must fit a column."""
    position = str(an_id("position"))
    data = {"position_id": position, "stop_loss": amount}
    return a_line(stream=f"position-{position}", type="ProtectionSet", data=data)


def data(**changes: Any) -> dict[str, Any]:
    """Return a line whose data are changed."""
    return a_line(data={"order_id": ORDER, "reason": "r"} | changes)


BAD_LINES: dict[str, tuple[Any, str | None, str]] = {
    "malformed": (b'{"stream":', "line", "not valid JSON: .*truncated"),
    "two values": (
        json.dumps(a_line()).encode() + b" {}", "line", "not valid JSON: .*trailing"),
    "a list": ([], None, "Expected `object`, got `array`"),
    "a byte order mark": (b"\xef\xbb\xbf{}", "line", "not valid JSON"),
    "nested deeply": (b'{"data":' + b"[" * 30_000, "line", "not valid JSON"),
    "line too long": (b'{"x":"' + b"x" * LINE_BYTES_MAX, None, "longer than 262,144 bytes"),
    "no type": ({"stream": "s", "data": {}}, "type", "missing required field"),
    "unknown line field": (a_line(extra=1), "extra", "unknown field"),
    "unknown type": (a_line(type="Nothing"), "type", "'Nothing' is not a known event type"),
    "abstract type": (a_line(type="OrderEvent"), "type", "is not a known event type"),
    "bad event id": (a_line(event_id="x"), "event_id", "Invalid UUID"),
    "naive time": (a_line(occurred_at="2026-01-01T00:00:00"), "occurred_at", "timezone"),
    "no time": (a_line(occurred_at="yesterday"), "occurred_at", "Invalid RFC3339"),
    "time before year 1": (
        a_line(occurred_at="0001-01-01T00:00:00+01:00"), "occurred_at", "outside 0001-01-02"),
    "negative version": (a_line(expected_version=-1), "expected_version", ">= 0"),
    "huge version": (a_line(expected_version=2**63), "condition", "out of range"),
    "data is no object": (a_line(data=[1]), "data", "must be a JSON object"),
    "type in data": (data(type="OrderFailed"), "data.type", "beside the data"),
    "missing field": (a_line(data={"order_id": ORDER}), "data.reason", "missing required field"),
    "superfluous field": (data(more=1), "data.more", "unknown field"),
    "wrong type": (data(reason=5), "data.reason", "Expected `str`, got `int`"),
    "bad id in data": (data(order_id="5"), "data.order_id", "Invalid UUID"),
    "NUL": (data(reason="a\0b"), "data", "NUL"),
    "bad UTF-8": (
        json.dumps(data()).encode().replace(b'"r"', b'"\xff"'), "data", "not valid JSON"),
    "lone surrogate": (
        json.dumps(data()).encode().replace(b'"r"', b'"\\ud800"'), "line", "not valid JSON"),
    "too large": (data(reason="x" * BODY_BYTES_MAX), "data", "takes 32,8.* at most 32,768"),
    "float": (a_mark(1.5), "data.price", "text such as '12.50', not float"),
    "exponent": (a_mark("1e5"), "data.price", "'1e5' is not a plain decimal"),
    "NaN": (a_mark("NaN"), "data.price", "'NaN' is not a plain decimal"),
    "infinity": (a_mark("-Infinity"), "data.price", "is not a plain decimal"),
    "other digits": (a_mark("\u0661"), "data.price", "is not a plain decimal"),
    "no amount": (a_mark(""), "data.price", "is not a plain decimal"),
    "amount with a sign": (a_mark("+1"), "data.price", "is not a plain decimal"),
    "too many places": (protection("0.123456789"), "data.stop_loss", "12 before and 8 after"),
    "too many digits": (protection("1234567890123"), "data.stop_loss", "12 before and 8 after"),
    "too many of the venue's": (a_mark("1" * 41), "data.price", "40 before and 30 after"),
    "stream of other data": (a_line(stream="order-x"), "stream", "does not fit the data"),
    "metadata field": (a_line(metadata={"x": 1}), "metadata.x", "unknown field"),
    "metadata type": (a_line(metadata={"actor": 1}), "metadata.actor", "Expected `str"),
    "address": (
        a_line(metadata={"ip_address": "1.2.3"}), "metadata.ip_address", "IPv4 or IPv6"),
    "metadata too large": (a_line(metadata={"actor": "x" * 4096}), "metadata", "at most 4,096"),
    "unprintable stream": (
        a_mark("1") | {"stream": "market-\n", "data": {"token": "\n", "price": "1"}},
        "stream", "cannot be printed"),
    "stream too long": (
        a_mark("1") | {"stream": "", "data": {"token": "x" * 249, "price": "1"}},
        "stream", "1 to 255"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_bad_line_is_refused_with_field_and_reason(kind: str) -> None:
    """Each kind of bad line has an error that names what is wrong and where."""
    content, field, reason = BAD_LINES[kind]
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    with pytest.raises(InvalidEvent, match=reason) as caught:
        parse_line(raw, 1, None)
    assert caught.value.field == field
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_an_unknown_type_has_an_error_of_its_own() -> None:
    """A program that is too old can tell that from other errors."""
    with pytest.raises(UnknownEventType):
        parse_line(json.dumps(a_line(type="FromTheFuture")).encode(), 1, None)


def test_a_line_without_an_id_needs_a_source() -> None:
    """The id is derived from source, line number and content, and from nothing else."""
    line = a_line()
    del line["event_id"]
    raw = json.dumps(line).encode()
    with pytest.raises(InvalidEvent, match="--source") as caught:
        parse_line(raw, 1, None)
    assert caught.value.field == "event_id"
    first = parse_line(raw, 1, "a").event.event_id
    assert first == parse_line(raw, 1, "a").event.event_id
    others = [parse_line(raw, 2, "a"), parse_line(raw, 1, "b"), parse_line(raw + b" ", 1, "a")]
    assert len({first, *(entry.event.event_id for entry in others)}) == 4


def test_a_line_whose_stream_is_empty_expects_the_version_of_its_own() -> None:
    """An expected version goes with the stream that the data name."""
    entry = parse_line(json.dumps(a_line(stream="", expected_version=3)).encode(), 1, None)
    assert entry.conditions == (ExpectedVersion(STREAM, 3),)


USER = UUID(int=1)
BAD_EVENTS: dict[str, tuple[Callable[[], object], str]] = {
    "float amount": (lambda: Amount(1.5), "not float"),  # type: ignore[arg-type]
    "bool amount": (lambda: Amount(True), "not bool"),
    "NaN": (lambda: Amount(Decimal("NaN")), "NaN is not a number"),
    "infinity": (lambda: VenueAmount(Decimal("-Infinity")), "Infinity is not a number"),
    "too many places": (lambda: Amount(Decimal("1E-9")), "too many digits"),
    "too many digits": (lambda: Amount(10**12), "too many digits"),
    "float in an event": (
        lambda: ProtectionSet(position_id=USER, stop_loss=1.5),  # type: ignore[arg-type]
        "not float"),
    "no stream and version": (lambda: ExpectedVersion("s", -1), "0 or more"),
    "nothing to look at": (NoEvent, "a tag or a stream"),
    "both to look at": (lambda: NoEvent(tag="t", stream="s"), "a tag or a stream"),
    "empty window": (lambda: AtMost("s", 0, timedelta(days=36_501)), "count of 1 or more"),
    "endless window": (lambda: AtMost("s", 1, timedelta(days=36_501)), "a century"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_EVENTS)
def test_what_cannot_even_be_made(kind: str) -> None:
    """Amounts and conditions that mean nothing raise where they are made."""
    make, reason = BAD_EVENTS[kind]
    with pytest.raises(ValueError, match=reason):
        make()


def an_order(**changes: Any) -> OrderPlaced:
    """Return an order, changed past what types allow."""
    fields: dict[str, Any] = {
        "order_id": USER, "user_id": USER, "token": "T",
        "action": Action.BUY, "order_type": OrderType.MARKET,
    }  # fmt: skip
    return OrderPlaced(**fields | changes)


BAD_APPENDS: dict[str, tuple[Callable[[], Any], str | None, str]] = {
    "nothing": (list, None, "1 to 1000 events, not 0"),
    "too much": (lambda: [note() for _ in range(1001)], None, "not 1001"),
    "other stream": (lambda: NewEvent(an_order(), "order-1"), "stream", "does not fit the data"),
    "no stream": (lambda: note(""), "stream", "needs a stream"),
    "too large": (lambda: note(text="x" * BODY_BYTES_MAX), "data", "at most 32,768"),
    "NUL": (lambda: note(text="\0"), "data", "NUL"),
    "surrogate": (lambda: note(text="\udfff"), "data", "surrogates"),
    "id of a wrong type": (
        lambda: NewEvent(an_order(order_id="x")), "data.order_id", "Expected `uuid`"),
    "element of a wrong type": (
        lambda: NewEvent(UserRegistered(
            user_id=USER, username="u", roles=("a", 5))),  # type: ignore[arg-type]
        "data.roles[1]", "Expected `str`"),
    "value of a wrong type": (
        lambda: NewEvent(an_order(extra_data={"a": 1})), "data.extra_data[...]", "Expected `str`"),
    "no such choice": (
        lambda: NewEvent(an_order(action="hold")), "data.action", "Invalid enum value"),
    "address": (
        lambda: NewEvent(an_order(), metadata=Metadata(ip_address="::g")),
        "metadata.ip_address", "IPv4 or IPv6"),
    "tag too long": (
        lambda: note(tagged=("t" * 256,)), "tag", "1 to 255"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_APPENDS)
async def test_a_bad_append_is_refused_with_field_and_reason(sqlite_url: str, kind: str) -> None:
    """The same through Journal.append, also past the type checker; nothing is stored."""
    make, field, reason = BAD_APPENDS[kind]
    async with opened(sqlite_url) as journal:
        with pytest.raises(InvalidEvent, match=reason) as caught:
            await journal.append(make())
        assert await journal.size() == 0
    assert caught.value.field == field


def some_lines(count: int) -> list[bytes]:
    """Return good lines of several streams."""
    return [
        json.dumps(
            {
                "stream": f"market-{n % 3}",
                "type": "PriceMarked",
                "data": {"token": str(n % 3), "price": str(n)},
                "event_id": str(an_id(n)),
            }
        ).encode()
        for n in range(count)
    ]


def stored(url: str) -> list[RecordedEvent]:
    """Return what the journal holds."""

    async def read() -> list[RecordedEvent]:
        async with opened(url) as journal:
            return await read_all(journal)

    return asyncio.run(read())


def imported(url: str, text: bytes, source: str | None = None) -> tuple[int, int]:
    """Import lines; return how many there were and how many of them were stored before."""

    async def run() -> Imported:
        done = Imported()
        async with opened(url) as journal:
            async for done in import_lines(journal, io.BytesIO(text), "file", source):  # noqa: B007
                pass
        return done

    done = asyncio.run(run())
    return done.lines, done.known


def prices(url: str) -> list[str]:
    """Return the prices that the journal holds."""
    return [str(getattr(event.event, "price", "")) for event in stored(url)]


def test_a_bad_line_stops_the_import(database_url: str, tmp_path: Path) -> None:
    """The lines before are stored, none after; when it is mended the rest is stored, none twice."""
    lines = some_lines(1200)
    file = tmp_path / "events.ndjson"
    mended = lines[700]
    lines[700] = mended.replace(b'"price": "700"', b'"price": "7e2"')
    file.write_bytes(b"\n".join(lines))
    done = ledger(database_url, "append", str(file))
    assert done.returncode == 2
    assert done.stdout == b""
    assert done.stderr.decode() == (
        f"ledger: {file}, line 701: data.price: '7e2' is not a plain decimal such as '12.50'; "
        "700 lines are stored; mend what is wrong and run the import again: it stores the rest and "
        "nothing twice\n"
    )
    assert prices(database_url) == [str(n) for n in range(700)]
    lines[700] = mended
    file.write_bytes(b"\n".join(lines))
    done = ledger(database_url, "append", str(file))
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"500 events stored, 700 were stored before\n"
    assert prices(database_url) == [str(n) for n in range(1200)]


@pytest.mark.parametrize(
    ("position", "line", "reason"),
    [
        (0, a_mark("x"), "line 1: data.price"),
        (9, a_mark("x"), "line 10: data.price"),
        (5, a_line(expected_version=4), "at version 0, not at the expected 4"),
        (5, a_mark("1") | {"event_id": str(an_id(3))}, "already stored at offset 3"),
    ],
    ids=["first", "last", "version", "known id"],
)
def test_no_line_after_the_bad_one_is_stored(
    sqlite_url: str, position: int, line: dict[str, Any], reason: str
) -> None:
    """Wherever it stands, and whether the line or the journal is at fault."""
    lines = some_lines(10)
    lines[position] = json.dumps(line).encode()
    with pytest.raises(ImportStopped, match=reason) as caught:
        imported(sqlite_url, b"\n".join(lines))
    assert str(caught.value).startswith(f"file, line {position + 1}: ")
    assert f"; {position} lines are stored" in str(caught.value)
    assert (caught.value.line, caught.value.stored) == (position + 1, position)
    assert prices(sqlite_url) == [str(n) for n in range(position)]


def test_a_taken_name_stops_the_import(sqlite_url: str) -> None:
    """Two users of one name in one file: the second line is named."""
    lines = [
        json.dumps(
            {
                "stream": f"user-{an_id(n)}",
                "type": "UserRegistered",
                "data": {"user_id": str(an_id(n)), "username": "Ann"},
                "event_id": str(an_id(n)),
            }
        ).encode()
        for n in range(2)
    ]
    with pytest.raises(ImportStopped, match=r"^file, line 2: tag 'username:"):
        imported(sqlite_url, b"\n".join(lines))
    assert len(stored(sqlite_url)) == 1


def test_expected_versions_in_one_file(database_url: str) -> None:
    """Lines that expect the versions which earlier lines lead to are all stored."""
    lines = [
        json.dumps(json.loads(line) | {"expected_version": n // 3}).encode()
        for n, line in enumerate(some_lines(9))
    ]
    assert imported(database_url, b"\n".join(lines)) == (9, 0)
    assert imported(database_url, b"\n".join(lines)) == (9, 9)


def test_the_same_line_twice_is_stored_once(sqlite_url: str) -> None:
    """A line whose event id came before in the file counts as stored before."""
    line = some_lines(1)
    assert imported(sqlite_url, b"\n".join(line * 3)) == (3, 2)


def test_line_ends_and_blank_lines(sqlite_url: str) -> None:
    """CRLF, blank lines and a missing last newline are no matter; numbers count every line."""
    lines = some_lines(3)
    text = b"\r\n" + lines[0] + b"\r\n\r\n  \n" + lines[1] + b"\n\n" + lines[2]
    assert imported(sqlite_url, text) == (3, 0)
    with pytest.raises(ImportStopped, match="line 9: line: not valid JSON"):
        imported(sqlite_url, text + b"\n\n{")
    assert len(stored(sqlite_url)) == 3


def test_the_end_of_a_line_is_not_its_content(sqlite_url: str) -> None:
    """With --source, a file is the same file whichever way its lines end."""
    line = json.loads(some_lines(1)[0])
    del line["event_id"]
    raw = json.dumps(line).encode()
    known = [imported(sqlite_url, raw + end, "feed") for end in (b"", b"\n", b"\r\n")]
    assert known == [(1, 0), (1, 1), (1, 1)]
    with pytest.raises(ImportStopped, match="--source"):
        imported(sqlite_url, raw)
    assert imported(sqlite_url, raw, "other") == (1, 0)


def test_a_giant_line_is_refused_without_reading_it_all(sqlite_url: str) -> None:
    """A line of 20 MB without an end stops the import like any other bad line."""
    text = some_lines(1)[0] + b"\n" + b"x" * 20_000_000
    done = ledger(sqlite_url, "append", "-", stdin=text)
    assert done.returncode == 2
    assert b"line 2: the line is longer than 262,144 bytes; 1 lines are stored" in done.stderr
    assert len(stored(sqlite_url)) == 1


def test_an_empty_file(sqlite_url: str) -> None:
    """No lines are no error."""
    assert imported(sqlite_url, b"") == (0, 0)


@pytest.mark.parametrize("path", ["missing.ndjson", "."])
def test_a_file_that_cannot_be_read(sqlite_url: str, path: str, tmp_path: Path) -> None:
    """The error is one line with the file's name, and the exit code that of bad input."""
    done = ledger(sqlite_url, "append", str(tmp_path / path))
    assert done.returncode == 2
    assert done.stderr.startswith(f"ledger: {tmp_path / path}: cannot read it: ".encode())
    assert done.stderr.count(b"\n") == 1


def test_errors_have_one_root() -> None:
    """Whoever catches LedgerError catches every refusal."""
    assert issubclass(InvalidEvent, LedgerError)
    assert issubclass(UnknownEventType, InvalidEvent)


async def test_a_retry_of_a_stored_event_is_never_too_early(database_url: str) -> None:
    """An event that was taken with a time a little ahead is known also after clocks went back."""
    clock = Clock()
    ahead = msgspec.structs.replace(note(), occurred_at=clock() + timedelta(seconds=4))
    async with opened(database_url, clock=clock) as journal:
        stored = await journal.append(ahead)
        clock.move(-3)
        again = await journal.append(ahead)
        assert again.offsets == stored.offsets
        other = msgspec.structs.replace(ahead, event_id=uuid4())
        with pytest.raises(InvalidEvent, match="lies in the future"):
            await journal.append(other)
        assert await journal.size() == 1
