"""`replay.py as-of`, `diff` and `history`, as auditors see them."""

from __future__ import annotations

import asyncio
import base64
import csv
import json
import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest

from ledger.domain.api_keys import ApiKeyIssued
from ledger.domain.marks import PriceMarked
from ledger.domain.orders import OrderAccepted
from ledger.domain.users import UserRegistered
from ledger.event import Metadata, NewEvent, VenueAmount
from ledger.journal import open_journal
from ledger.proof import log
from ledger.proof.folders import Folder
from ledger.proof.notes import SigningKey
from ledger.proof.publish import publish
from ledger.proof.sealer import Sealer
from ledger.settings import Settings
from projections.groups import TABLES
from tests.projections.random_events import random_events
from tests.projections.support import Run, an_id, append, fill
from tests.projections.test_keyed import filled, placed

SIZE = 80


@pytest.fixture
def filled_url(sqlite_url: str) -> str:
    """A database with a random history, and with rows in every table."""
    user_id = an_id("user 0")
    first = UserRegistered(user_id=user_id, username="user 0", password_hash="secret")
    second = ApiKeyIssued(key_id=an_id("key 0"), user_id=user_id, name="bot", key_hash="secret")
    third = PriceMarked(token="SOL", price=VenueAmount("7"))
    fill(sqlite_url, [first, second, third, *random_events(Random(1), SIZE - 3)])
    return sqlite_url


def as_json(run: Run, *arguments: str, code: int = 0) -> Any:
    """Run `replay` with --format json and return what it prints."""
    exit_code, output, errors = run("replay", *arguments, "--format", "json")
    assert (exit_code, errors) == (code, "")
    return json.loads(output)


def test_one_key_is_the_row_of_the_whole_table(run: Run, filled_url: str) -> None:
    """The row with the key alone, by whatever way it is found; none where there is none."""
    run("projections", "run", "--once")
    tables = as_json(run, "as-of", "--size", "60")["tables"]
    notes = {}
    for name, rows in tables.items():
        projection = next(each for each in TABLES[name].projections if each.name == name)
        key = str(rows[-1][projection.key])
        answer = as_json(run, "as-of", "--size", "60", "--table", name, "--key", key)
        assert answer["tables"] == {name: [rows[-1]]}
        notes[name] = answer.get("notes", [])
    folded = {name for name, texts in notes.items() if texts}
    assert folded == {"security_audit_logs", "postings"}
    assert "answered by a fold of all events" in notes["postings"][0]
    nobody = as_json(run, "as-of", "--size", "60", "--table", "users", "--key", str(an_id("x")))
    assert nobody["tables"] == {"users": []}


def test_formats_say_the_same(run: Run, filled_url: str, tmp_path: Path) -> None:
    """JSON, JSON lines, CSV, SQLite and Parquet hold the same orders; each names size and root."""
    expected = as_json(run, "as-of", "--size", "60", "--table", "orders")
    rows = expected["tables"]["orders"]
    ids = [row["order_id"] for row in rows]
    asked = ("replay", "as-of", "--size", "60", "--table", "orders")
    first, *lines = map(json.loads, run(*asked, "--format", "ndjson")[1].splitlines())
    assert (first["journal"], first["size"], first["root"]) == ("main", 60, None)
    assert [line["row"] for line in lines] == rows
    comment, *rest = run(*asked, "--format", "csv")[1].splitlines()
    assert comment == "# journal main as of size 60; root: not sealed"
    assert [row["order_id"] for row in csv.DictReader(rest)] == ids
    for name in ("sqlite", "parquet", "csv", "ndjson", "json", "table"):
        file = tmp_path / name
        assert run(*asked, "--format", name, "--output", str(file)) == (0, "", "")
        assert file.stat().st_size > 0
    with closing(sqlite3.connect(tmp_path / "sqlite")) as raw:
        assert len(raw.execute("SELECT * FROM orders").fetchall()) == len(rows)
        assert raw.execute("SELECT value FROM as_of WHERE name = 'size'").fetchone() == ("60",)
    assert (tmp_path / "csv").read_text().splitlines()[0] == comment


def test_a_sqlite_file_holds_all_tables_of_a_moment(
    run: Run, filled_url: str, tmp_path: Path
) -> None:
    """Without --table it has each read table, with all rows."""
    file = tmp_path / "moment.db"
    code, _, _ = run("replay", "as-of", "--size", "60", "--format", "sqlite", "-o", str(file))
    tables = as_json(run, "as-of", "--size", "60")["tables"]
    assert code == 0
    with closing(sqlite3.connect(file)) as raw:
        counts = {
            name: raw.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in TABLES
        }
    assert counts == {name: len(rows) for name, rows in tables.items()}


def test_effective_is_another_axis(run: Run, sqlite_url: str) -> None:
    """What is recorded now and happened last week is there last week, unless known too late."""

    async def work() -> str:
        async with open_journal(Settings(database_url=sqlite_url)) as journal:
            week_ago = journal.now() - timedelta(days=7)
            await journal.append(NewEvent(placed(1), occurred_at=week_ago))
            await journal.append(NewEvent(filled(1), occurred_at=week_ago + timedelta(hours=1)))
            await journal.append(placed_now := NewEvent(placed(2)))
            assert placed_now.occurred_at is None
            return (week_ago + timedelta(days=1)).isoformat()

    moment = asyncio.run(work())
    answer = as_json(run, "as-of", "--effective", moment, "--table", "orders")
    assert (answer["size"], answer["events"]) == (3, 2)
    assert [row["status"] for row in answer["tables"]["orders"]] == ["executed"]
    early = as_json(run, "as-of", "--effective", moment, "--recorded", "2020-01-01T00:00:00Z")
    assert (early["size"], early["events"], early["tables"]["orders"]) == (0, 0, [])
    text = run("replay", "as-of", "--effective", moment)[1]
    assert "size 3, effective at or before " in text.splitlines()[0]
    assert text.splitlines()[0].endswith(" (2 events)")


def history_events() -> list[NewEvent]:
    """Return the life of an order, and who did what."""
    user = Metadata(actor="alice", request_id="request 7")
    venue = Metadata(actor="venue", causation_id=an_id("cause"))
    accepted = OrderAccepted(order_id=an_id("order 0"), venue_order_id="v1")
    return [
        NewEvent(placed(0), metadata=user),
        NewEvent(placed(1)),
        NewEvent(accepted, metadata=venue),
        NewEvent(filled(0), metadata=venue),
    ]


@pytest.fixture
def lived_url(sqlite_url: str) -> str:
    """A database with the life of an order."""

    async def work() -> None:
        async with open_journal(Settings(database_url=sqlite_url)) as journal:
            await journal.append(history_events())

    asyncio.run(work())
    return sqlite_url


def test_history_tells_what_caused_each_state(run: Run, lived_url: str) -> None:
    """Each state with event, times, actor and request, as text, JSON and JSON lines."""
    key = str(an_id("order 0"))
    answer = as_json(run, "history", "orders", key)
    states = answer["states"]
    assert (answer["journal"], answer["size"], answer["of"]) == ("main", 4, f"orders {key}")
    assert [(each["offset"], each["event_type"]) for each in states] == [
        (0, "OrderPlaced"),
        (2, "OrderAccepted"),
        (3, "OrderFilled"),
    ]
    assert [each["row"]["status"] for each in states] == ["pending", "pending", "executed"]
    assert (states[0]["actor"], states[0]["request_id"]) == ("alice", "request 7")
    assert states[1]["causation_id"] == str(an_id("cause"))
    assert {"venue_order_id", "ord_status"} <= set(states[1]["changed"])
    code, text, _ = run("replay", "history", "orders", key, "--until", "3")
    assert code == 0
    assert text.startswith(f"journal main as of size 3\nroot: not sealed\n\norders {key}: 2 states")
    assert ", by alice, request request 7\n" in text
    assert f", by venue, cause {an_id('cause')}\n" in text
    assert "  ord_status: PendingNew -> New\n" in text
    lines = run("replay", "history", "orders", key, "--format", "ndjson")[1].splitlines()
    assert [json.loads(line) for line in lines[1:]] == states


def test_diff_shows_column_by_column(run: Run, lived_url: str) -> None:
    """Rows that came, changed or went; code 1 if there are any, 0 if not."""
    key, other = str(an_id("order 0")), str(an_id("order 1"))
    code, text, _ = run("replay", "diff", "1", "4", "--table", "orders")
    assert code == 1
    lines = text.splitlines()
    assert lines[0] == "from journal main as of size 1; root: not sealed"
    assert lines[1] == "to journal main as of size 4; root: not sealed"
    assert lines[3] == "orders: 1 added, 1 changed, 0 gone"
    assert f"~ {key}" in lines
    assert f"+ {other}" in lines
    assert "    status: pending -> executed" in lines
    answer = as_json(run, "diff", "1", "4", "--table", "orders", code=1)
    assert (answer["from"]["size"], answer["to"]["size"]) == (1, 4)
    changes = {each["key"]: each for each in answer["changes"]}
    assert changes[key]["columns"]["status"] == ["pending", "executed"]
    assert changes[other]["row"]["quantity"] == "10"
    back = as_json(run, "diff", "4", "1", "--table", "orders", code=1)
    assert {each["change"] for each in back["changes"]} == {"changed", "gone"}
    assert run("replay", "diff", "2", "2") == (
        0,
        "from journal main as of size 2; root: not sealed\n"
        "to journal main as of size 2; root: not sealed\n\nno differences\n",
        "",
    )
    everything = as_json(run, "diff", "2020-01-01T00:00:00Z", "2100-01-01T00:00:00Z", code=1)
    assert everything["to"]["provisional"]
    assert {each["change"] for each in everything["changes"]} == {"added"}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["as-of", "--size", "1", "--effective", "2026-01-01T00:00:00Z"], "--size goes neither"),
        (["as-of", "--effective", "soon"], "--effective: 'soon' is not an ISO 8601 time"),
        (["as-of", "--size", "1", "--key", "x"], "--key needs the one --table"),
        (["as-of", "--size", "1", "--key", "x", "--table", "users"], "'x' is not a user_id"),
        (["as-of", "--size", "1", "--format", "sqlite"], "--format sqlite needs --output"),
        (["as-of", "--size", "1", "--format", "csv"], "--format csv holds one table"),
        (["as-of", "--size", "1", "--log-key", "k"], "--log-key goes with --from"),
        (["as-of", "--size", "1", "-o", "."], "is a directory"),
        (["diff", "1", "later"], "'later' is not an ISO 8601 time"),
        (["diff", "1", "100"], "holds only 80 events"),
        (["history", "nothing", "x"], "'nothing' is not one of users"),
        (["history", "orders", "x"], "'x' is not a order_id"),
        (["history", "orders", str(an_id("x")), "--until", "81"], "holds only 80 events"),
    ],
)
def test_bad_requests_are_refused(
    run: Run, filled_url: str, arguments: list[str], reason: str
) -> None:
    """What cannot be answered ends with code 2 and says why, before anything is folded."""
    code, output, errors = run("replay", *arguments)
    assert (code, output) == (2, "")
    assert reason in " ".join(errors.split())


def test_an_answer_never_replaces_a_file(run: Run, filled_url: str, tmp_path: Path) -> None:
    """A file that is there stays as it is."""
    file = tmp_path / "mine"
    file.write_text("mine")
    code, _, errors = run("replay", "as-of", "--size", "1", "--format", "json", "-o", str(file))
    assert code == 2
    assert "exists already" in errors
    assert file.read_text() == "mine"


@pytest.fixture
def published(filled_url: str, tmp_path: Path) -> tuple[Path, str, list[bytes]]:
    """A published log of the first events, its key, and the roots at all sizes."""
    key = SigningKey.generate("ledger/main")

    async def work() -> list[bytes]:
        async with open_journal(Settings(database_url=filled_url)) as journal:
            await Sealer(journal, key).catch_up()
            await publish(journal, Folder(tmp_path / "log"))
            roots = [await log.root_at(journal, size) for size in range(SIZE + 1)]
            await append(journal, [placed(77)])
            return [root for root in roots if root is not None]

    roots = asyncio.run(work())
    assert len(set(roots)) == SIZE + 1
    return tmp_path / "log", key.vkey, roots


def test_answers_name_the_root(run: Run, published: tuple[Path, str, list[bytes]]) -> None:
    """It is that of the tree at this very size, as far as the journal is sealed."""
    _, _, roots = published
    text = base64.b64encode(roots[60]).decode()
    assert as_json(run, "as-of", "--size", "60", "--table", "users")["root"] == text
    assert f"\nroot: {text}\n" in run("replay", "as-of", "--size", "60")[1]
    assert as_json(run, "as-of", "--size", str(SIZE + 1), "--table", "users")["root"] is None
    answer = as_json(run, "diff", "60", str(SIZE + 1), code=1)
    assert (answer["from"]["root"], answer["to"]["root"]) == (text, None)
    assert as_json(run, "history", "marks", "SOL", "--until", "60")["root"] == text
    assert json.loads(run("replay", "trial-balance", "--size", "60", "--json")[1])["root"] == text


def test_a_published_log_is_as_good_as_the_journal(
    run: Run,
    published: tuple[Path, str, list[bytes]],
    filled_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With no journal at all the same answers come from the log, checked while it is read.

    Personal fields are in them where there are data keys.
    """
    folder, key, _ = published
    users = as_json(run, "as-of", "--size", "80", "--table", "users")["tables"]["users"]
    asked: dict[str, tuple[list[str], int]] = {
        "as-of": (["as-of", "--size", "60"], 0),
        "of a time": (["as-of", "--recorded", "2020-01-01T00:00:00Z"], 0),
        "one key": (["as-of", "--size", "80", "--table", "users", "--key", users[0]["user_id"]], 0),
        "diff": (["diff", "20", "80"], 1),
        "history": (["history", "marks", "SOL", "--until", "80"], 0),
        "effective": (["as-of", "--effective", "2100-01-01T00:00:00Z", "--table", "orders"], 0),
    }
    run("projections", "run", "--once")
    expected = {name: as_json(run, *how, code=code) for name, (how, code) in asked.items()}
    monkeypatch.setenv("LEDGER_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    asked_users = ("as-of", "--size", "80", "--table", "users", "--from", str(folder))
    blind = as_json(run, *asked_users, "--log-key", key)
    assert {row["username"] for row in blind["tables"]["users"]} == {None}
    assert "personal fields look erased" in blind["notes"][0]
    monkeypatch.setenv("LEDGER_KEYS_DATABASE_URL", filled_url)
    for name, (how, code) in asked.items():
        found = as_json(run, *how, "--from", str(folder), "--log-key", key, code=code)
        if name == "effective":
            assert found["size"] == SIZE  # the log ends there, the journal goes on
            continue
        notes = found.pop("notes", [])
        assert [note for note in notes if "published log" not in note] == []
        assert found == expected[name], name
    unsigned = as_json(run, "as-of", "--size", "60", "--from", str(folder))
    assert "no --log-key was given" in unsigned["notes"][0]


def test_a_changed_log_is_noticed(run: Run, published: tuple[Path, str, list[bytes]]) -> None:
    """Replaying ends with an error where an entry is not what was signed."""
    folder, key, _ = published
    [bundle] = [path for path in (folder / "tile" / "entries").rglob("*") if path.is_file()]
    data = bytearray(bundle.read_bytes())
    data[100] ^= 1
    bundle.write_bytes(data)
    code, output, errors = run(
        "replay", "as-of", "--size", "60", "--from", str(folder), "--log-key", key
    )
    assert (code, output) == (3, "")
    assert "entry 0 is not what was signed" in errors
