"""Check a published log: `python -m ledger.proof.verifier --log DIR --key VKEY`.

Needs the standard library and `cryptography`, no database and none of the rest of the project.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from base64 import b64encode
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

from ledger.proof.checking import LogFolder, LogReader, Progress, Report, verify_log
from ledger.proof.envelopes import (
    Bundle,
    EntryInvalid,
    Problem,
    examine_bundle,
    place,
    read_envelope,
)
from ledger.proof.merkle import ProofInvalid, leaf_hash
from ledger.proof.notes import NoteInvalid, TlogProof, VerifierKey

__all__ = [
    "Bundle",
    "EntryInvalid",
    "LogFolder",
    "LogReader",
    "Problem",
    "Progress",
    "Report",
    "examine_bundle",
    "main",
    "read_envelope",
    "verify_log",
]

VERIFIED, NOT_VERIFIED, INTERRUPTED = 0, 1, 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ledger.proof.verifier",
        description="Check a published log, or one proof, against a public key.",
        epilog="Exit code: 0 verified, 1 not verified, 2 wrong usage or nothing to read.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--log", metavar="DIR", help="check the log in this directory")
    what.add_argument("--proof", metavar="FILE", help="check this .tlog-proof file")
    parser.add_argument("--key", metavar="VKEY", required=True, help="the log's public key")
    parser.add_argument(
        "--witness",
        metavar="VKEY",
        action="append",
        default=[],
        help="the checkpoint must be cosigned with this key too (may be given several times)",
    )
    entry = parser.add_mutually_exclusive_group()
    entry.add_argument("--entry", metavar="FILE", help="with --proof: the entry, - for stdin")
    entry.add_argument("--hash", metavar="HEX", help="with --proof: the entry's leaf hash")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if (options.proof is None) != (options.entry is None and options.hash is None):
        parser.error("--proof needs --entry or --hash, and --log neither")
    try:
        key = VerifierKey.parse(options.key)
        witnesses = [VerifierKey.parse(each) for each in options.witness]
        check = _check_log if options.proof is None else _check_proof
        return check(options, key, witnesses)
    except (NoteInvalid, OSError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        return INTERRUPTED


def _check_log(options: argparse.Namespace, key: VerifierKey, witnesses: list[VerifierKey]) -> int:
    if not Path(options.log).is_dir():
        raise NotADirectoryError(f"{options.log} is not a directory")
    progress = _Progress()
    try:
        report = verify_log(options.log, key, witnesses, progress=progress)
    finally:
        progress.end()
    print(json.dumps(report.as_dict(), indent=2) if options.json else _in_words(report))
    return VERIFIED if report.verified else NOT_VERIFIED


def _moment(seconds: int) -> str:
    """Return a time in words; a witness may have signed any number."""
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%FT%TZ}"
    except (OverflowError, OSError, ValueError):
        return f"{seconds} s"


def _in_words(report: Report) -> str:
    lines = ["verified" if report.verified else "NOT VERIFIED"]
    lines += [f"  {each.message}" for each in sorted(report.problems, key=place)]
    if not report.verified and report.first_bad_offset is not None:
        lines.append(f"first bad offset  {_offsets(report.first_problem)}")
    values = {
        "log": report.origin,
        "journal": report.journal,
        "size": report.size,
        "root": None if report.root is None else b64encode(report.root).decode(),
        "found good": f"{report.entries} entries, {report.tiles} tiles",
        "older checkpoints": f"{len(report.checkpoints)} agree",
    }
    lines += [f"{name:<17} {value}" for name, value in values.items() if value is not None]
    for name, seconds in report.witnesses.items():
        lines.append(f"{'witness':<17} {name} at {_moment(seconds)}")
    return "\n".join(lines)


def _offsets(problem: Problem | None) -> str:
    if problem is None or problem.offset is None:
        return "unknown"
    if problem.until is None or problem.until == problem.offset + 1:
        return str(problem.offset)
    return f"one of {problem.offset} to {problem.until - 1}"


def _check_proof(
    options: argparse.Namespace, key: VerifierKey, witnesses: list[VerifierKey]
) -> int:
    leaf = _leaf(options)
    result: dict[str, Any] = {"verified": False}
    try:
        proof = TlogProof.parse(Path(options.proof).read_bytes())
        body = proof.verify(leaf, key, witnesses)
    except (NoteInvalid, ProofInvalid) as error:
        result["problem"] = str(error)
    else:
        root = b64encode(body.root).decode()
        result = {"verified": True, "origin": body.origin, "offset": proof.index}
        result |= {"size": body.size, "root": root}
    heading = "verified" if result.pop("verified") else "NOT VERIFIED"
    if options.json:
        print(json.dumps({"verified": heading == "verified", **result}, indent=2))
    else:
        print("\n".join([heading, *(f"{name:<17} {value}" for name, value in result.items())]))
    return VERIFIED if heading == "verified" else NOT_VERIFIED


def _leaf(options: argparse.Namespace) -> bytes:
    """Return the leaf hash that was given, or that of the entry."""
    if options.hash is not None:
        if not re.fullmatch("[0-9a-fA-F]{64}", options.hash):
            raise NoteInvalid("--hash takes 64 hex digits")
        return bytes.fromhex(options.hash)
    if options.entry == "-":
        return leaf_hash(sys.stdin.buffer.read())
    return leaf_hash(Path(options.entry).read_bytes())


class _Progress:
    """Tells on standard error how far long work has come: each second, in a file each minute."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._every_seconds = 1.0 if self._terminal else 60.0
        self._told_at = monotonic()
        self._told = False

    def __call__(self, done: int, total: int) -> None:
        now = monotonic()
        if now - self._told_at < self._every_seconds:
            return
        self._told_at, self._told = now, True
        line = f"checked {done:,} of {total:,} entries ({done / total:.0%})"
        print(
            f"\r{line}" if self._terminal else line,
            end="" if self._terminal else "\n",
            file=sys.stderr,
            flush=True,
        )

    def end(self) -> None:
        """Leave the line of the terminal."""
        if self._terminal and self._told:
            print(file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
