"""What holds for every adapter: valid lines, stable ids, and errors that say where they are."""

import gzip
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ledger.domain.api_keys import ApiKeyIssued
from ledger.domain.users import UserRegistered, name_digest
from tests.examples.support import FILES, Conversion, Line, command, conversion, run, write_csv

Converted = Callable[[str], list[Line]]
RealFile = Callable[[str], Path]
RealConversion = Callable[[str], Conversion]

LOBSTER_HEADER = "time_s,type,order_id,size,price_x10000,direction"
OPENSSH_HEADER = "LineId,Date,Day,Time,Component,Pid,Content,EventId,EventTemplate"
CLOUDTRAIL_HEADER = (
    "event_id,event_time,event_source,event_name,identity_type,user_name,key_id,source_ip,"
    "error_code,subject_user,subject_key_id,console_login"
)
HYPERLIQUID_HEADER = (
    "account,coin,kind,segment,seq,since_flat,minute_utc,side,price,size,start_position,"
    "direction,closed_pnl,fee,tx_pseudonym,order_id,taker,price_tick"
)
HEADERS = {
    "hyperliquid": HYPERLIQUID_HEADER,
    "lobster": LOBSTER_HEADER,
    "openssh": OPENSSH_HEADER,
    "cloudtrail": CLOUDTRAIL_HEADER,
}

every_adapter = pytest.mark.parametrize("name", FILES)


@every_adapter
def test_every_line_is_an_event_in_its_own_stream(name: str, converted: Converted) -> None:
    """A line decodes to an event, and its stream is the one the event names."""
    assert all(line.event.stream() == line.stream for line in converted(name))


@every_adapter
def test_event_ids_are_unique(name: str, converted: Converted) -> None:
    """No two lines share an id."""
    found = converted(name)
    assert len({line.event_id for line in found}) == len(found)


@every_adapter
def test_a_renamed_file_gives_the_same_lines(
    name: str, real_file: RealFile, tmp_path: Path, real_conversion: RealConversion
) -> None:
    """Output depends on neither the file's name nor on the run."""
    renamed = shutil.copyfile(real_file(name), tmp_path / "renamed.txt")
    done = run(name, renamed)
    assert done.returncode == 0
    assert done.stdout == real_conversion(name).output


@every_adapter
def test_users_and_keys_exist_before_anything_happens_to_them(
    name: str, converted: Converted
) -> None:
    """Every user and key that an event names was registered or issued by an earlier line."""
    known = set()
    for line in converted(name):
        event = line.event
        if isinstance(event, UserRegistered):
            known.add(event.user_id)
        if isinstance(event, ApiKeyIssued):
            known.add(event.key_id)
        named = {getattr(event, field, None) for field in ("user_id", "key_id")}
        assert named - {None} <= known


@every_adapter
def test_each_username_is_registered_once(name: str, converted: Converted) -> None:
    """No two registrations claim one name, however it is written."""
    users = [e for line in converted(name) if isinstance(e := line.event, UserRegistered)]
    assert len({name_digest(user.username or "") for user in users}) == len(users)


@every_adapter
def test_the_summary_tells_what_was_made_up(name: str, real_conversion: RealConversion) -> None:
    """Standard error counts rows, events by type, and made-up events by type."""
    found, summary = real_conversion(name).lines, real_conversion(name).summary
    assert f"{len(found):,} events written" in summary
    for kind in {line.type for line in found}:
        made_up = sum(line.is_made_up() for line in found if line.type == kind)
        assert f"  {sum(line.type == kind for line in found):,} {kind}\n" in summary
        assert (f"made up: {made_up:,} {kind}: " in summary) == (made_up > 0)


@every_adapter
def test_help_says_what_is_made_up(name: str) -> None:
    """`--help` is the module's description."""
    done = run(name, "--help")
    assert done.returncode == 0
    assert b"Made up" in done.stdout


@every_adapter
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    """Exit code 2 and the file's name, no traceback."""
    done = run(name, tmp_path / "nowhere.csv")
    assert done.returncode == 2
    assert b"nowhere.csv" in done.stderr
    assert b"Traceback" not in done.stderr


@every_adapter
def test_no_file_is_a_usage_error(name: str) -> None:
    """Exit code 2 and the usage."""
    done = run(name)
    assert done.returncode == 2
    assert b"usage:" in done.stderr


HYPERLIQUID = "acct,ETH,perp,1,1,1,2024-12-02T17:20Z,BUY,10,2,0,Open Long,0,0.1,0xa,7,TRUE,0.01"
LOBSTER = "34200.5,1,7,100,5794000,1"
OPENSSH = "1,Dec,10,06:55:46,LabSZ,24200,Failed password for root from 10.0.0.1 port 1 ssh2,E9,x"
CLOUDTRAIL = (
    "875240ac-e821-4fc6-a311-8c352a1d20f5,2023-07-10T11:42:18Z,s3,GetObject,IAMUser,ben,key_1,"
    "10.0.0.1,,,,"
)


@pytest.mark.parametrize(
    ("name", "good", "old", "new", "field"),
    [
        ("hyperliquid", HYPERLIQUID, ",10,2,", ",ten,2,", "price"),
        ("hyperliquid", HYPERLIQUID, ",10,2,", ",10,0,", "size"),
        ("hyperliquid", HYPERLIQUID, ",10,2,", ",10,0.000000001,", "size"),
        ("hyperliquid", HYPERLIQUID, "17:20Z", "17:20", "minute_utc"),
        ("hyperliquid", HYPERLIQUID, "BUY", "HOLD", "side"),
        ("hyperliquid", HYPERLIQUID, "TRUE", "MAYBE", "taker"),
        ("hyperliquid", HYPERLIQUID, "perp", "future", "kind"),
        ("hyperliquid", HYPERLIQUID, "acct", "", "account"),
        ("hyperliquid", HYPERLIQUID, "ETH", "E\x07TH", "coin"),
        ("hyperliquid", HYPERLIQUID, "ETH", "E" * 201, "coin"),
        ("hyperliquid", HYPERLIQUID, ",0.1,0xa", ",NaN,0xa", "fee"),
        ("hyperliquid", HYPERLIQUID, ",TRUE,0.01", "", "taker"),
        ("lobster", LOBSTER, "34200.5", "86400", "time_s"),
        ("lobster", LOBSTER, ",1,7", ",9,7", "type"),
        ("lobster", LOBSTER, "5794000", "0", "price_x10000"),
        ("lobster", LOBSTER, "100,", "1e3,", "size"),
        ("lobster", LOBSTER, "4000,1", "4000,2", "direction"),
        ("lobster", LOBSTER, "4000,1", "4000,1,1", "(after the last)"),
        ("openssh", OPENSSH, "Dec", "Dez", "Time"),
        ("openssh", OPENSSH, "Failed password", "Tailed password", "Content"),
        ("openssh", OPENSSH, ",E9", ",", "EventId"),
        ("cloudtrail", CLOUDTRAIL, "875240ac", "875240", "event_id"),
        ("cloudtrail", CLOUDTRAIL, "2023-07-10", "yesterday", "event_time"),
        ("cloudtrail", CLOUDTRAIL, "GetObject", "CreateUser", "subject_user"),
        ("cloudtrail", CLOUDTRAIL, "GetObject", "ConsoleLogin", "console_login"),
    ],
)
def test_a_bad_row_is_located(
    name: str, good: str, old: str, new: str, field: str, tmp_path: Path
) -> None:
    """Exit code 2 and a message with file, line and field."""
    file = write_csv(tmp_path / "bad.csv", HEADERS[name], good.replace(old, new, 1))
    done = run(name, file)
    assert done.returncode == 2
    assert f"{file}, line 2, field {field}: " in done.stderr.decode()
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("hyperliquid", HYPERLIQUID),
        ("lobster", LOBSTER),
        ("openssh", OPENSSH),
        ("cloudtrail", CLOUDTRAIL),
    ],
)
def test_the_rows_above_are_good_before_they_are_spoilt(
    name: str, good: str, tmp_path: Path
) -> None:
    """Plain or packed, each gives its event and the parents of it."""
    file = write_csv(tmp_path / "good.csv", HEADERS[name], good)
    packed = tmp_path / "packed"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    found = conversion(name, file)
    assert found.lines
    assert conversion(name, packed).output == found.output


@every_adapter
def test_a_missing_column_is_named(name: str, tmp_path: Path) -> None:
    """A file of another kind is refused at its header."""
    done = run(name, write_csv(tmp_path / "other.csv", "a,b", "1,2"))
    assert done.returncode == 2
    assert b"other.csv, line 1, field " in done.stderr


def test_bytes_that_are_not_text_are_located(tmp_path: Path) -> None:
    """A field that is not UTF-8 is found where it is read."""
    file = tmp_path / "latin.csv"
    row = HYPERLIQUID.replace("acct", "K\xf6ln")
    file.write_bytes(f"{HYPERLIQUID_HEADER}\n{row}\n".encode("latin-1"))
    assert b"line 2, field account: " in run("hyperliquid", file).stderr


def test_a_cut_off_file_is_an_error(tmp_path: Path) -> None:
    """A gzip file without its end gives exit code 2, after the rows before the cut."""
    rows = "".join(f"34200.{n},5,0,1,{5794000 + n},1\n" for n in range(20_000))
    file = tmp_path / "cut.csv.gz"
    file.write_bytes(gzip.compress(f"{LOBSTER_HEADER}\n{rows}".encode())[:-2000])
    done = run("lobster", file)
    assert done.returncode == 2
    assert b"field (whole row): " in done.stderr


def test_an_open_quote_is_an_error(tmp_path: Path) -> None:
    """A quote that is never closed does not swallow the rest of the file."""
    file = write_csv(tmp_path / "quote.csv", OPENSSH_HEADER, OPENSSH, f'"{OPENSSH}')
    done = run("openssh", file)
    assert done.returncode == 2
    assert b"field (whole row): " in done.stderr


def test_a_closed_pipe_ends_quietly(tmp_path: Path) -> None:
    """`| head -1` gives no traceback."""
    rows = (f"34200.{n},5,0,1,5794000,1" for n in range(20_000))
    file = write_csv(tmp_path / "long.csv", LOBSTER_HEADER, *rows)
    pipe = subprocess.PIPE
    with subprocess.Popen(command("lobster", file), stdout=pipe, stderr=pipe) as adapter:
        assert adapter.stdout is not None
        assert adapter.stderr is not None
        adapter.stdout.readline()
        adapter.stdout.close()
        assert adapter.stderr.read() == b""
    assert adapter.returncode == 0
