"""The verifier: what it finds in a log that was changed, and that it finds nothing otherwise."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from uuid import UUID

import cryptography
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.proof import verifier
from ledger.proof.merkle import inclusion_proof, leaf_hash, root_of
from ledger.proof.notes import NoteInvalid, SigningKey, TlogProof
from ledger.proof.tiles import decode_bundle, encode_bundle
from ledger.proof.verifier import (
    EntryInvalid,
    LogFolder,
    Problem,
    Report,
    main,
    read_envelope,
    verify_log,
)
from tests.ledger.proof.logs import (
    KEY,
    Log,
    checkpoint,
    entries,
    entry,
    flipped,
    tile_files,
)

VKEY = KEY.vkey
WITNESS = SigningKey("witness.example/w", bytes(range(32, 64)))
SIZES = (0, 1, 2, 255, 256, 257, 511, 512, 700)
GOOD = entries(700)
ROOT = Path(__file__).parents[3]
OLDER = (0, 1, 100, 256, 400, 512, 700)


def first(log: Log) -> Problem:
    """Return the first problem of a log that has one."""
    report = verify_log(log, VKEY)
    assert not report.verified
    assert report.first_problem is not None
    return report.first_problem


def offset(log: Log) -> int | None:
    """Return the first bad offset, which must be exact."""
    problem = first(log)
    assert problem.until is None
    return problem.offset


@pytest.mark.parametrize("size", SIZES)
def test_a_good_log_is_verified(size: int, tmp_path: Path) -> None:
    """At sizes about those of tiles, from a directory, with what was checked."""
    older = [each for each in OLDER if each <= size]
    report = verify_log(Log.of(GOOD[:size], older).write_to(tmp_path), KEY.verifier)
    assert report.problems == []
    assert report.verified
    assert report.first_bad_offset is None
    root = root_of([leaf_hash(each) for each in GOOD[:size]])
    assert (report.origin, report.size, report.root) == ("ledger/main", size, root)
    assert (report.entries, report.journal) == (size, "main" if size else None)
    assert report.tiles == len(tile_files([b""] * size))
    assert report.checkpoints == (older if size else [])


@settings(max_examples=60)
@given(st.integers(1, 700), st.randoms(use_true_random=False))
def test_each_byte_of_an_entry_counts(size: int, random: Random) -> None:
    """One changed byte of a bundle, lengths included, is found at the entry it belongs to."""
    log = Log.of(GOOD[:size])
    at = random.randrange(size)
    path = next(path for path in log.files if path.startswith(f"tile/entries/{at // 256:03}"))
    head = decode_bundle(log.files[path])[: at % 256]
    start = len(encode_bundle(head))
    stop = start + 2 + len(GOOD[at])
    data = log.files[path]
    log.files[path] = data[:start] + flipped(data[start:stop], random) + data[stop:]
    assert offset(log) == at


@settings(max_examples=60)
@given(st.integers(1, 700), st.randoms(use_true_random=False))
def test_each_byte_of_a_tile_counts(size: int, random: Random) -> None:
    """One changed byte of a hash is found at the entries below it, and in which file it is."""
    log = Log.of(GOOD[:size])
    path = random.choice([path for path in log.files if path.startswith(("tile/0", "tile/1"))])
    at = random.randrange(len(log.files[path]) // 32)
    data = log.files[path]
    changed = flipped(data[32 * at : 32 * at + 32], random)
    log.files[path] = data[: 32 * at] + changed + data[32 * at + 32 :]
    problem = first(log)
    assert problem.file == path
    level, index = int(path[5]), int(path[7:10])
    start = (256 * index + at) << 8 * level
    assert (problem.offset, problem.until) == (start, start + 256 if level else None)


def changed(at: int, **values: object) -> list[bytes]:
    """Return the good entries with one of them made anew."""
    return [*GOOD[:at], entry(at, **values), *GOOD[at + 1 :]]


def without_tiles(logged: Sequence[bytes]) -> Log:
    """Return the good log with other entries, its tiles and checkpoint left as they were."""
    log, other = Log.of(GOOD), Log.of(logged)
    bundles = {path: data for path, data in other.files.items() if "entries" in path}
    kept = {path: data for path, data in log.files.items() if "entries" not in path}
    return Log(kept | bundles)


@pytest.mark.parametrize(
    ("logged", "expected"),
    [
        (changed(300, body='{"text":"other"}'), 300),
        (changed(300, occurred_at="2026-01-02T00:00:00.000000Z"), 300),
        ([*GOOD[:300], *GOOD[301:]], 300),
        ([*GOOD[:300], GOOD[300], *GOOD[300:]], 301),
        ([*GOOD[:300], GOOD[301], GOOD[300], *GOOD[302:]], 300),
        (GOOD[:600], 512),  # the wider bundle is missing
        (GOOD[:256], 256),
        ([*GOOD[256:512], *GOOD[:256], *GOOD[512:]], 0),
    ],
    ids=["body", "envelope", "deleted", "inserted", "order", "short", "shorter", "bundles"],
)
def test_changed_entries_are_found_at_the_first(logged: list[bytes], expected: int) -> None:
    """Entries changed, deleted, inserted or exchanged, the rest of the log left as it was."""
    log = without_tiles(logged)
    assert offset(log) == expected


def test_it_is_said_which_of_entry_and_tile_was_changed() -> None:
    """The signed root tells, where only one of them was."""
    log = without_tiles(changed(300, body="{}"))
    assert "the entry is not the one that was signed" in first(log).message
    log = Log.of(GOOD)
    log.files["tile/0/001"] = bytes(32) + log.files["tile/0/001"][32:]
    assert "tile/0/001 was changed at entry 256" in first(log).message
    log = without_tiles(changed(300, body="{}"))
    log.files["tile/0/001"] = bytes(32) + log.files["tile/0/001"][32:]
    assert "the signed root proves neither" in first(log).message
    log = Log.of(GOOD)
    log.files["tile/0/001"] = Log.of(changed(300, body="{}")).files["tile/0/001"]
    log.files |= without_tiles(changed(300, body="{}")).files | {
        "tile/0/001": log.files["tile/0/001"]
    }
    problem = first(log)
    assert (problem.offset, problem.until) == (256, 512)
    assert "which the signed root proves" in problem.message


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("tile/0/002.p/188", "entry 512 differs .* the signed root proves neither"),
        ("tile/1/000.p/2", "entries 0 to 255 do not lead .* does not prove either"),
    ],
)
def test_a_changed_partial_tile_proves_nothing(path: str, reason: str) -> None:
    """The right edge is proved as a whole, or not at all."""
    log = Log.of(GOOD)
    log.files[path] = bytes(32) + log.files[path][32:]
    assert re.search(reason, first(log).message)


def test_an_entry_changed_in_the_last_bundle_is_told_from_its_tile() -> None:
    """The partial tiles lead to the signed root."""
    log = without_tiles(changed(600, body="{}"))
    problem = first(log)
    assert problem.offset == 600
    assert "the entry is not the one that was signed" in problem.message


def test_exchanged_tiles_are_found() -> None:
    """At the first entry that does not lead to its hash."""
    log = Log.of(GOOD)
    one, other = log.files["tile/0/000"], log.files["tile/0/001"]
    log.files |= {"tile/0/000": other, "tile/0/001": one}
    assert offset(log) == 0


def test_a_log_made_anew_does_not_have_the_signed_root() -> None:
    """Where tiles were rewritten too, older checkpoints tell between which sizes."""
    forged, good = Log.of(changed(300, body="{}")), Log.of(GOOD, OLDER)
    signed = {path: data for path, data in good.files.items() if "checkpoint" in path}
    problem = first(Log(forged.files | signed))
    assert (problem.offset, problem.until) == (256, 400)
    assert problem.file == "checkpoints/400"
    problem = first(Log(forged.files | {"checkpoint": signed["checkpoint"]}))
    assert (problem.offset, problem.until, problem.file) == (0, 700, "checkpoint")


def test_a_range_is_found_at_upper_levels_too() -> None:
    """A hash of level 2 stands for 65,536 entries."""
    log = Log.of(entries(65_536 + 300))
    path = "tile/2/000.p/1"
    log.files[path] = bytes(32)
    problem = first(log)
    assert (problem.file, problem.offset, problem.until) == (path, 0, 65_536)


@pytest.mark.parametrize("at", [300, 256])
@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"version": 99}, "it is version 99 of stream .* whose last version is"),
        ({"version": 1}, "it is version 1 of stream .* whose last version is"),
        ({"stream": "order-new"}, "whose last version is 0"),
        ({"journal": "other"}, 'it is of journal "other", those before of "main"'),
        ({"recorded_at": "2025-12-31T00:00:00.000000Z"}, "it was recorded at 2025-12-31"),
        ({"event_id": str(UUID(int=7))}, "entry 6 has its event id"),
        ({"event_id": str(UUID(int=255))}, "entry 254 has its event id"),
        ({"offset": 299}, "it says that its offset is 299"),
        ({"v": 2}, "it does not have the form"),
        ({"body": "[]"}, "its body is not a JSON object"),
        ({"metadata": []}, "its metadata is not a JSON object"),
    ],
)
def test_a_signed_log_must_make_sense(at: int, values: dict[str, object], reason: str) -> None:
    """Properly signed entries that no journal holds are named, within a bundle and at its start."""
    problem = first(Log.of(changed(at, **values)))
    assert (problem.offset, problem.until) == (at, None)
    assert re.search(reason, problem.message)


@pytest.mark.parametrize(
    "wrong",
    [
        entry(0).replace(b'"v":1', b'"v": 1'),
        entry(0).replace(b'"offset":0', b'"offset":00'),
        entry(0).replace(b'"version":1', b'"version":0'),
        entry(0).replace(b'"schema_version":1', b'"schema_version":1.0'),
        entry(0).replace(b'"type"', b'"kind"'),
        entry(0).replace(b".000000Z", b"Z"),
        entry(0).replace(b".000000Z", b".000000+00:00"),
        entry(0, recorded_at="2026-13-01T00:00:00.000000Z"),
        entry(0, event_id="00000000-0000-0000-0000-00000000000A"),
        entry(0, stream="\x7f\\").replace(b"\x7f", b"\n"),
        entry(0).replace(b"order", b"\\u006frder"),
        entry(0).replace("é".encode(), b"\xff"),
        entry(0) + b"\n",
        entry(0) + b"}",
        entry(0)[:-1],
        entry(0, body="{}{}"),
        entry(0, body="{"),
        entry(0, body='{"a":NaN}'),
        entry(0, body='{"a":01}'),
        entry(0, body='{"a":"\n"}'),
        entry(0, body='{"a":1,\n"b":2}'),
        entry(0, body='{"a":' + "[" * 30_000),
        entry(0, body='{},"body":{}'),
        entry(0, metadata={}).replace(b"{},", b"{}, "),
        b"",
        b"{}",
    ],
    ids=range(26),
)
def test_what_is_not_the_canonical_form_is_refused(wrong: bytes) -> None:
    """There is one way to write an entry, so that there is one hash for it."""
    with pytest.raises(EntryInvalid):
        read_envelope(wrong, 0)


@pytest.mark.parametrize("text", ["", 'a"b', "a\\b", "\x00\x1f", "\n\t\r\b\f", "ä€😀", "\x7f", "/"])
def test_any_text_can_stand_in_an_entry(text: str) -> None:
    """Text is escaped as msgspec and the standard library escape it."""
    written = entry(0, stream=text, type=text, journal=text, metadata={"actor": text})
    envelope = read_envelope(written, 0)
    assert [json.loads(each) for each in (envelope.journal, envelope.stream)] == [text, text]
    assert msgspec.json.encode(text).decode() == envelope.stream


def delete(path: str) -> Callable[[dict[str, bytes]], None]:
    """Return what deletes a file."""

    def spoil(files: dict[str, bytes]) -> None:
        del files[path]

    return spoil


def cut(path: str, count: int) -> Callable[[dict[str, bytes]], None]:
    """Return what cuts bytes off a file's end."""
    return lambda files: files.update({path: files[path][:-count]})


def grow(path: str, more: bytes) -> Callable[[dict[str, bytes]], None]:
    """Return what adds bytes to a file's end."""
    return lambda files: files.update({path: files[path] + more})


@pytest.mark.parametrize(
    ("spoil", "file", "expected", "reason"),
    [
        (delete("checkpoint"), "checkpoint", None, "is missing"),
        (delete("tile/entries/001"), "tile/entries/001", 256, "is missing"),
        (delete("tile/entries/002.p/188"), "tile/entries/002.p/188", 512, "is missing"),
        (delete("tile/0/001"), "tile/0/001", 256, "is missing"),
        (delete("tile/1/000.p/2"), "tile/1/000.p/2", 0, "is missing"),
        (cut("tile/0/001", 1), "tile/0/001", 511, "is too short: 8191 bytes, not 8192"),
        (cut("tile/0/001", 64), "tile/0/001", 510, "is too short: 8128 bytes, not 8192"),
        (grow("tile/0/001", b"x"), "tile/0/001", 511, "is too long: 8193 bytes, not 8192"),
        (cut("tile/0/002.p/188", 6016), "tile/0/002.p/188", 512, "is too short: 0 bytes"),
        (cut("tile/entries/001", 1), "tile/0/001", 511, "entry 511 differs from its hash"),
        (cut("tile/entries/002.p/188", 10**6), "tile/entries/002.p/188", 512, "0 entries, not 188"),
        (grow("tile/entries/001", b"\0"), "tile/entries/001", 512, "is too long"),
        (grow("tile/entries/001", b"\0\0"), "tile/entries/001", 512, "257 entries, not 256"),
    ],
    ids=range(13),
)
def test_a_missing_or_damaged_file_is_named(
    spoil: Callable[[dict[str, bytes]], None], file: str, expected: int | None, reason: str
) -> None:
    """Which file, from which offset on, and whether it is missing, too short or too long."""
    log = Log.of(GOOD)
    spoil(log.files)
    problem = first(log)
    assert problem.file == file
    assert problem.offset == expected
    assert reason in problem.message


@pytest.mark.parametrize(
    ("path", "data", "reason"),
    [
        ("checkpoint", b"", "is not valid"),
        ("checkpoint", checkpoint([], SigningKey.generate("ledger/main")), "is not valid"),
        ("checkpoints/5", checkpoint([], SigningKey.generate("ledger/main")), "is not valid"),
        ("checkpoints/5", checkpoint([leaf_hash(each) for each in GOOD[:4]]), "is of size 4"),
        ("checkpoints/700", checkpoint([leaf_hash(b"")] * 700), "its root differs"),
        ("checkpoints/701", checkpoint([leaf_hash(b"")] * 701), "an older one was put back"),
    ],
    ids=range(6),
)
def test_each_checkpoint_kept_is_checked(path: str, data: bytes, reason: str) -> None:
    """By its signature, its size and root, and whether there is a newer one than the newest."""
    log = Log.of(GOOD)
    log.files[path] = data
    problem = first(log)
    assert (problem.file, problem.offset) == (path, None)
    assert reason in problem.message


def test_other_files_are_let_be() -> None:
    """Files of other names, and of entries that no checkpoint covers yet, do no harm."""
    log = Log.of(GOOD)
    bigger = Log.of([*GOOD, *entries(800)[700:]])
    del bigger.files["checkpoint"]
    log.files = bigger.files | log.files | {"checkpoints/README": b"", "index.html": b""}
    assert verify_log(log, VKEY).verified


def test_partial_files_may_be_gone_once_there_are_full_ones() -> None:
    """The log grew after the checkpoint, and what was partial was deleted."""
    log = Log.of(GOOD[:300], [100])
    partial = [path for path in log.files if path.startswith(("tile/0/001.p", "tile/entries/001"))]
    grown = Log.of(GOOD[:512])
    for path in partial:
        del log.files[path]
        log.files[path.partition(".")[0]] = grown.files[path.partition(".")[0]]
    report = verify_log(log, VKEY)
    assert report.problems == []
    assert report.entries == 300
    log.files["tile/entries/001"] = Log.of(changed(299, body="{}")[:512]).files["tile/entries/001"]
    assert offset(log) == 299


def test_a_log_may_be_published_while_it_is_checked() -> None:
    """Checkpoints kept since the newest was read are not taken for traces of an older log."""

    class Growing(Log):
        def read(self, path: str) -> bytes:
            data = super().read(path)
            self.files |= Log.of(GOOD, [650]).files
            self.files.pop("checkpoints/3", None)
            return data

    log = Log.of(GOOD[:300], [3, 280])
    assert verify_log(Growing(log.files), VKEY).checkpoints == [280]


def test_witnesses_are_checked_where_they_are_asked_for(tmp_path: Path) -> None:
    """With the time they cosigned at; a log without the cosignature is not verified."""
    log = Log.of(GOOD)
    asked = [WITNESS.cosigner.vkey]
    report = verify_log(log, VKEY, asked)
    assert "not cosigned by witness.example/w" in report.problems[0].message
    log.files["checkpoint"] = checkpoint([leaf_hash(each) for each in GOOD], cosigners=[WITNESS])
    report = verify_log(log, VKEY, asked)
    assert (report.verified, report.witnesses) == (True, {"witness.example/w": 1_800_000_000})


def test_a_key_that_is_none_is_refused() -> None:
    """Nothing is checked against it."""
    with pytest.raises(NoteInvalid):
        verify_log(Log.of(GOOD), "ledger/main")


def test_progress_is_told_bundle_by_bundle() -> None:
    """How many of how many entries."""
    told: list[tuple[int, int]] = []
    verify_log(Log.of(GOOD), VKEY, progress=lambda *each: told.append(each))
    assert told == [(256, 700), (512, 700), (700, 700)]


def test_results_of_bundles_may_be_kept() -> None:
    """What a bundle holds is asked of the function given, once for each."""
    asked: list[int] = []

    def examine(data: bytes, start: int) -> verifier.Bundle:
        asked.append(start)
        return verifier.examine_bundle(data, start)

    assert verify_log(Log.of(GOOD), VKEY, examine=examine).verified
    assert asked == [0, 256, 512]


def test_a_file_in_place_of_a_folder_is_missing(tmp_path: Path) -> None:
    """A directory where a file should be, or the other way about, reads as a missing file."""
    (tmp_path / "tile").write_bytes(b"")
    (tmp_path / "checkpoint").mkdir()
    folder = LogFolder(tmp_path)
    for path in ("tile/0/000", "checkpoint", "other"):
        with pytest.raises(FileNotFoundError):
            folder.read(path)
    assert folder.names("checkpoints") == []


def test_the_first_problem_is_the_one_with_the_smallest_offset() -> None:
    """One without an offset comes last."""
    report = Report("ledger/main", problems=[Problem("a"), Problem("b", offset=3)])
    report.problems.append(Problem("c", offset=2))
    assert report.first_bad_offset == 2
    assert [each["message"] for each in report.as_dict()["problems"]] == ["c", "b", "a"]


def test_the_program_says_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In words and as JSON, with exit code 0."""
    log = Log.of(GOOD, [100, 300])
    log.files["checkpoint"] = checkpoint([leaf_hash(each) for each in GOOD], cosigners=[WITNESS])
    arguments = ["--log", str(log.write_to(tmp_path)), "--key", VKEY]
    arguments += ["--witness", WITNESS.cosigner.vkey]
    assert main(arguments) == 0
    words = capsys.readouterr().out
    assert words.startswith("verified\nlog               ledger/main\n")
    assert "700 entries, 4 tiles" in words
    assert "witness           witness.example/w at 2027-01-15T08:00:00Z" in words
    assert main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["verified"] is True
    assert (result["size"], result["checkpoints"]) == (700, [100, 300])


def test_the_program_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first bad offset, in words and as JSON, with exit code 1."""
    log = without_tiles(changed(300, body="{}"))
    arguments = ["--log", str(log.write_to(tmp_path)), "--key", VKEY]
    assert main(arguments) == 1
    words = capsys.readouterr().out
    assert words.startswith("NOT VERIFIED\n  entry 300 differs from its hash in tile/0/001")
    assert "first bad offset  300\n" in words
    assert main([*arguments, "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert (result["verified"], result["first_bad_offset"]) == (False, 300)
    assert result["problems"][0]["file"] == "tile/0/001"
    assert result["entries"] == 256
    (tmp_path / "tile/1/000.p/2").write_bytes(bytes(64))
    assert main(arguments) == 1
    assert "first bad offset  one of 0 to 255\n" in capsys.readouterr().out
    (tmp_path / "checkpoint").unlink()
    assert main(arguments) == 1
    assert "checkpoint is missing" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--log", "."],
        ["--key", VKEY],
        ["--log", ".", "--key", "x"],
        ["--log", "nowhere", "--key", VKEY],
        ["--log", ".", "--proof", "x", "--key", VKEY],
        ["--log", ".", "--key", VKEY, "--hash", "00"],
        ["--proof", "x", "--key", VKEY],
        ["--proof", "x", "--key", VKEY, "--hash", "00"],
        ["--proof", "nowhere", "--key", VKEY, "--hash", "00" * 32],
    ],
    ids=range(10),
)
def test_wrong_usage_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """With a line that says what is wrong."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_it_can_be_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends as other programs do, with 130, and without a traceback."""

    def interrupted(*_: object, **__: object) -> Report:
        raise KeyboardInterrupt

    monkeypatch.setattr(verifier, "verify_log", interrupted)
    assert main(["--log", str(tmp_path), "--key", VKEY]) == 130


@pytest.fixture
def proof(tmp_path: Path) -> Path:
    """Write a proof of entry 3 and the entry; return the proof's path."""
    leaves = [leaf_hash(each) for each in GOOD[:11]]
    read_hash = lambda level, at: root_of(leaves[at << level : (at + 1) << level])  # noqa: E731
    hashes = tuple(inclusion_proof(3, 11, read_hash))
    path = tmp_path / "3.tlog-proof"
    path.write_bytes(TlogProof(3, hashes, checkpoint(leaves, cosigners=[WITNESS])).render())
    (tmp_path / "entry").write_bytes(GOOD[3])
    return path


def test_the_program_checks_a_proof(proof: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the entry or its leaf hash, and the witness's key."""
    start = ["--proof", str(proof), "--key", VKEY, "--witness", WITNESS.cosigner.vkey]
    for what in (["--entry", str(proof.parent / "entry")], ["--hash", leaf_hash(GOOD[3]).hex()]):
        assert main([*start, *what]) == 0
        assert capsys.readouterr().out.startswith("verified\norigin            ledger/main\n")
        assert main([*start, *what, "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
        assert (result["verified"], result["offset"], result["size"]) == (True, 3, 11)
    assert main([*start, "--hash", leaf_hash(GOOD[4]).hex()]) == 1
    assert "the proof of leaf 3 leads to another root" in capsys.readouterr().out
    proof.write_bytes(b"")
    assert main([*start, "--hash", "00" * 32, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["verified"] is False


def test_the_program_takes_an_entry_from_standard_input(proof: Path) -> None:
    """As it comes out of a pipe."""
    command = [sys.executable, "-m", "ledger.proof.verifier", "--proof", str(proof)]
    command += ["--key", VKEY, "--entry", "-"]
    done = subprocess.run(command, input=GOOD[3], capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


def test_long_work_is_told_of_on_standard_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line after a while, on a terminal one that is written over."""
    seconds = iter(range(0, 10_000, 100))
    monkeypatch.setattr(verifier, "monotonic", lambda: next(seconds))
    arguments = ["--log", str(Log.of(GOOD).write_to(tmp_path)), "--key", VKEY]
    main(arguments)
    assert capsys.readouterr().err.splitlines()[0] == "checked 256 of 700 entries (37%)"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    main(arguments)
    assert capsys.readouterr().err.endswith("\rchecked 700 of 700 entries (100%)\n")


ALONE = """
import sys
sys.path[:] = {path!r}
from ledger.proof.verifier import main
code = main({arguments!r})
files = [getattr(each, "__file__", None) for each in list(sys.modules.values())]
print([each for each in files if each and not each.startswith(tuple(sys.path))])
print(sorted(each.partition(".")[0] for each in sys.modules if not each.startswith("ledger.")))
sys.exit(code)
"""


def test_it_runs_where_only_cryptography_is_installed(tmp_path: Path) -> None:
    """Nothing but the standard library, `cryptography` and what it needs can be imported."""
    site, log = tmp_path / "site", tmp_path / "log"
    site.mkdir()
    installed = Path(cryptography.__file__).parents[1]
    needed = ["cryptography", "cffi", "pycparser", *(e.name for e in installed.glob("_cffi_*"))]
    for name in needed:
        if (installed / name).exists():
            (site / name).symlink_to(installed / name)
    (site / "ledger").symlink_to(ROOT / "ledger")
    paths = sysconfig.get_paths()
    library = [paths["stdlib"], str(Path(paths["stdlib"]) / "lib-dynload")]
    arguments = ["--log", str(Log.of(GOOD, [100]).write_to(log)), "--key", VKEY]
    code = ALONE.format(path=[str(site), *library], arguments=arguments)
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, b"")
    *_, elsewhere, imported = done.stdout.decode().splitlines()
    assert elsewhere == "[]"
    others = set(ast.literal_eval(imported)) - set(sys.stdlib_module_names)
    of_cryptography = {"cryptography", "_openssl", "_cffi_backend", "cffi", "pycparser"}
    assert others <= {"__main__", "ledger"} | of_cryptography
