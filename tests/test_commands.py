"""Every command of the three programs: its help, its exit codes, its JSON, its completion."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any
from uuid import NAMESPACE_OID, uuid5

import pytest
import typer.main

import ledger.cli
import projections.cli
import replay
from ledger import console
from ledger.domain.marks import PriceMarked
from ledger.domain.users import UserRegistered
from ledger.event import VenueAmount
from ledger.proof.keys import read_key
from ledger.proof.notes import SigningKey
from projections.groups import GROUPS, MARKS, TABLES
from tests.ledger.proof.witnesses import served
from tests.projections import poison
from tests.projections.random_events import random_events
from tests.projections.support import fill

APPS = {"ledger": ledger.cli.app, "projections": projections.cli.app, "replay.py": replay.app}
USER = uuid5(NAMESPACE_OID, "user of the commands")
MARK = json.dumps(
    {"stream": "market-SOL", "type": "PriceMarked", "data": {"token": "SOL", "price": "25"}}
)

WITHOUT_END = {"ledger witness serve", "projections serve"}
"""They run until they are stopped; their own tests read what they print first."""
ASKING = {"ledger register"}
"""They ask for a secret; their own tests give it."""
NAMES = {"log": "ledger/main", "fork": "ledger/main.2"}
NO_TABLES = {"ledger migrate", "ledger keys new", "ledger keys show", "ledger witness key"}

Steps = Iterator[tuple[str, tuple[str, ...]]]


def walk(program: str) -> Iterator[tuple[str, Any]]:
    """Yield each command of a program with its full name, groups of commands too."""

    def below(name: str, command: Any) -> Iterator[tuple[str, Any]]:
        yield name, command
        for each, found in getattr(command, "commands", {}).items():
            yield from below(f"{name} {each}", found)

    yield from below(program, typer.main.get_command(APPS[program]))


COMMANDS = {name: command for program in APPS for name, command in walk(program)}
LEAVES = {
    name
    for name, command in COMMANDS.items()
    if not getattr(command, "commands", {}) or command.invoke_without_command
}

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command by its full name in this process; return exit code, output and errors."""

    def call(name: str, *arguments: str) -> tuple[int, str, str]:
        program, *path = name.split()
        monkeypatch.setattr(sys, "argv", [program, *path, *arguments])
        with pytest.raises(SystemExit) as ended:
            console.main(APPS[program], program)
        output, errors = capfd.readouterr()
        return int(ended.value.code or 0), output, errors

    return call


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_whole(name: str) -> None:
    """It begins with a sentence, describes every option, and ends with the exit codes."""
    command = COMMANDS[name]
    first = command.help.partition("\n")[0]
    assert first[0].isupper()
    assert first.endswith(".")
    assert command.epilog == console.EPILOG
    for each in command.params:
        assert each.help, f"{name}: {each.name} is not described"
        assert "[default" not in each.help, f"{name}: {each.name}: give it as show_default"


@pytest.mark.parametrize("name", APPS)
def test_help_is_printed(run: Run, name: str) -> None:
    """`--help` of a program needs no database and ends with 0."""
    code, output, errors = run(name, "--help")
    assert (code, errors) == (0, "")
    assert all(
        command.split()[1] in output for command in COMMANDS if command.startswith(f"{name} ")
    )
    assert "Exit codes: 0 done" in output


def test_what_gives_an_answer_gives_it_as_json_too() -> None:
    """Each command has --json, spelled so."""
    for name in LEAVES:
        options = {option for each in COMMANDS[name].params for option in each.opts}
        assert "--json" in options, name


@pytest.mark.parametrize("name", sorted(LEAVES))
def test_bad_usage_ends_with_2(run: Run, name: str) -> None:
    """An option that does not exist is bad usage of any command."""
    code, output, errors = run(name, "--no-such-option")
    assert (code, output) == (2, "")
    assert "No such option" in errors


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files that commands are given."""
    (tmp_path / "marks.ndjson").write_text(f"{MARK}\n")
    return tmp_path


def poisoning(folder: Path) -> Steps:
    """Yield what is done while the fold of the first mark raises."""
    yield "ledger append", (str(folder / "marks.ndjson"), "--source", "marks")
    yield "projections run", ("--once",)
    yield "projections parked", ()
    yield "projections retry", ("--all",)
    yield "projections skip", ("--table", "marks", "--offset", "0", "--reason", "it is spoilt")


def reading(folder: Path) -> Steps:
    """Yield what looks at a journal and its tables."""
    yield "ledger size", ()
    yield "ledger tail", ()
    yield "ledger journals", ()
    yield "ledger data-keys status", ()
    yield "projections run", ("--once",)
    yield "projections status", ()
    yield "projections flagged", ()
    yield "replay.py as-of", ("--size", "20")
    yield "replay.py diff", ("0", "20")
    yield "replay.py history", ("users", str(USER))
    yield "replay.py verify", ()
    yield "replay.py trial-balance", ()
    yield "replay.py report security", ()
    yield "replay.py report orders", ()


def proving(folder: Path) -> Steps:
    """Yield what seals and proves; it takes a witness."""
    yield "ledger keys new", (str(folder / "new.key"),)
    yield "ledger keys show", (str(folder / "log.key"),)
    yield "ledger witness key", (str(folder / "log.key"),)
    yield "ledger seal", ()
    yield "ledger witness cosign", ()
    yield "ledger witness check", ()
    yield "ledger publish", (str(folder / "log"),)
    yield "ledger prove", ("0",)
    yield "replay.py bundle", (str(folder / "bundle.zip"),)


def changing(folder: Path) -> Steps:
    """Yield what changes a database."""
    yield "ledger migrate", ()
    yield "ledger journals new", ("second",)
    yield "ledger hold-user", (str(USER), "--reason", "a lawsuit")
    yield "ledger release-user", (str(USER), "--reason", "it is over")
    yield "ledger erase-user", (str(USER), "--reason", "a request", "--yes")
    yield "ledger data-keys rewrap", ()
    yield "projections react", ("--once",)
    yield "projections check", ()
    yield "projections scrub", ("--yes", "--workers", "1")
    yield "replay.py snapshot take", ("--group", "marks")
    yield "replay.py snapshot list", ()
    yield "replay.py snapshot drop", ("--all",)
    yield "replay.py rebuild", ("marks", "--workers", "1", "--accept")
    yield "replay.py rollback", ("marks", "--workers", "1")
    yield "replay.py drop-old", ("marks",)


ALL = {name for steps in (poisoning, reading, proving, changing) for name, _ in steps(Path())}
FOUND = {"projections retry", "replay.py diff"}
"""In these steps they find something, and say so by their exit code."""
LINES = {"ledger tail", "projections react", "replay.py report security", "replay.py report orders"}


def test_every_command_is_tried() -> None:
    """No command is left out of the tests below, except those that are named."""
    elsewhere = WITHOUT_END | ASKING | {"ledger fork"}
    assert ALL | (elsewhere & LEAVES) == LEAVES
    assert not ALL & elsewhere


def answers(run: Run, steps: Steps) -> dict[str, Any]:
    """Run commands with --json; return what they print, after holding that it is JSON."""
    found: dict[str, Any] = {}
    for name, arguments in steps:
        code, output, errors = run(name, *arguments, "--json")
        assert code == (name in FOUND), f"{name}: {code}\n{output}\n{errors}"
        documents = output.splitlines() if name in LINES else [output]
        found[name] = [json.loads(each) for each in documents]
    return found


@pytest.fixture
def filled_url(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A database with a history, among others of USER."""
    user = UserRegistered(user_id=USER, username="ada", password_hash="secret")
    mark = PriceMarked(token="SOL", price=VenueAmount("7"))
    fill(sqlite_url, [user, mark, *random_events(Random(1), 30)])
    monkeypatch.setenv("LEDGER_DATABASE_URL", sqlite_url)
    return sqlite_url


def test_json_of_poisoned_events(
    run: Run, sqlite_url: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is parked, what a retry has freed and what a skip leaves out."""
    monkeypatch.setenv("LEDGER_DATABASE_URL", sqlite_url)
    spoilt = poison.poisoned(MARKS, poison.at(("marks", 0)))
    monkeypatch.setitem(GROUPS, "marks", spoilt)
    monkeypatch.setitem(TABLES, "marks", spoilt)
    found = answers(run, poisoning(folder))
    assert found["ledger append"] == [{"stored": 1, "known": 0}]
    assert found["projections parked"][0][0]["value"] == "SOL"
    [retried] = [each for each in found["projections retry"][0] if each["group"] == "marks"]
    assert (retried["freed"], len(retried["parked"])) == (0, 1)
    assert found["projections skip"][0]["skipped"]["reason"] == "it is spoilt"


@pytest.mark.usefixtures("filled_url")
def test_json_of_what_reads(run: Run, folder: Path) -> None:
    """Each answer is JSON, and of this database."""
    found = answers(run, reading(folder))
    assert found["ledger size"] == [{"size": 32}]
    assert [each["offset"] for each in found["ledger tail"]] == list(range(22, 32))
    assert found["projections run"][0]["events"] == dict.fromkeys(GROUPS, 32)
    assert found["replay.py verify"][0]["verified"] is True
    assert found["replay.py verify"][0]["differences"] == 0
    assert found["replay.py as-of"][0]["size"] == 20
    assert found["replay.py history"][0]["states"][0]["row"]["username"] == "ada"
    assert found["replay.py diff"][0]["to"]["size"] == 20


@pytest.mark.usefixtures("filled_url")
def test_json_of_what_proves(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answer names the same log and the same root; a fork leaves that log."""
    for name, origin in NAMES.items():
        run("ledger keys new", str(folder / f"{name}.key"), "--name", origin)
    keys = {name: read_key(folder / f"{name}.key") for name in NAMES}
    monkeypatch.setenv("LEDGER_LOG_KEY_FILE", str(folder / "log.key"))
    logs = [key.verifier for key in keys.values()]
    with served(folder / "witness", logs=logs) as witness:
        monkeypatch.setenv("LEDGER_WITNESSES", witness.setting)
        found = answers(run, proving(folder))
        monkeypatch.setenv("LEDGER_LOG_KEY_FILE", str(folder / "fork.key"))
        [forked] = answers(run, iter([("ledger fork", ("--reason", "a test"))]))["ledger fork"]
    assert found["ledger keys show"] == [{"vkey": keys["log"].vkey}]
    assert found["ledger publish"][0]["root"] == found["ledger seal"][0]["root"]
    assert found["ledger witness check"] == [{"whole": True}]
    assert found["ledger prove"][0]["proof"].startswith("c2sp.org/tlog-proof")
    assert (forked["old"]["origin"], forked["seal"]["origin"]) == tuple(NAMES.values())


@pytest.mark.usefixtures("filled_url")
def test_json_of_what_changes(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answer says what was done."""
    monkeypatch.setenv("LEDGER_KEY_CACHE_SECONDS", "0")  # a scrub waits for those of others
    run("projections run", "--once")
    found = answers(run, changing(folder))
    assert found["ledger journals new"][0]["name"] == "second"
    assert found["ledger hold-user"] == [{"user_id": str(USER), "held": True}]
    assert found["ledger erase-user"][0]["key_destroyed"] is True
    assert found["projections check"][0]["failed"] == 0
    assert found["projections scrub"][0]["erased"] >= 1
    assert found["replay.py rebuild"][0]["swapped"] == ["marks"]
    assert found["replay.py drop-old"] == [{"dropped": ["marks__old"]}]


def test_a_database_without_tables_ends_with_3(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command that needs one says so in one line, as a failure of the environment."""
    (folder / "empty.db").touch()
    monkeypatch.setenv("LEDGER_DATABASE_URL", f"sqlite:///{folder / 'empty.db'}")
    witness = SigningKey.generate("w").cosigner.vkey
    monkeypatch.setenv("LEDGER_WITNESSES", f"http://127.0.0.1:1 {witness}")
    monkeypatch.setenv("LEDGER_LOG_KEY_FILE", str(folder / "log.key"))
    run("ledger keys new", str(folder / "log.key"))
    steps = [step for steps in (poisoning, reading, proving, changing) for step in steps(folder)]
    for name, arguments in steps:
        if name in NO_TABLES:
            continue
        code, output, errors = run(name, *arguments)
        assert (code, output) == (3, ""), f"{name}: {code} {output} {errors}"
        assert errors.splitlines()[-1].startswith(name.split()[0]), errors
        assert "Traceback" not in errors


SHELLS: dict[str, Callable[[str], dict[str, str]]] = {
    "bash": lambda words: {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)},
    "zsh": lambda words: {"_TYPER_COMPLETE_ARGS": words},
    "fish": lambda words: {
        "_TYPER_COMPLETE_ARGS": words,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    },
}
COMPLETED = {
    "ledger witness s": "serve",
    "ledger size --journal m": "main",
    "projections run --group po": "postings",
    "projections retry --table bo": "book_balances",
    "replay.py as-of --table security": "security_audit_logs",
    "replay.py as-of --format par": "parquet",
    "replay.py history positio": "positions",
    "replay.py rebuild use": "users",
}


@pytest.mark.parametrize("words", COMPLETED)
def test_completion(run: Run, sqlite_url: str, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    """Each shell is told of commands, and of the names of tables, groups and journals."""
    monkeypatch.setenv("LEDGER_DATABASE_URL", sqlite_url)
    program = words.split(maxsplit=1)[0]
    for shell, variables in SHELLS.items():
        with monkeypatch.context() as patch:
            patch.setenv(f"_{program.upper()}_COMPLETE", f"complete_{shell}")
            for name, value in variables(words).items():
                patch.setenv(name, value)
            code, output, errors = run(program)
        assert (code, errors) == (0, ""), shell
        assert COMPLETED[words] in output, shell
        assert "size" not in output, shell


def test_completion_of_a_database_that_is_away(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt is no place for errors: no names are offered, and nothing is said."""
    monkeypatch.setenv("LEDGER_DATABASE_URL", "sqlite:////nowhere/ledger.db")
    monkeypatch.setenv("_LEDGER_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "ledger size --journal ")
    monkeypatch.setenv("COMP_CWORD", "3")
    assert run("ledger") == (0, "\n", "")


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("program", APPS)
def test_completion_has_a_script(
    run: Run, monkeypatch: pytest.MonkeyPatch, program: str, shell: str
) -> None:
    """What --install-completion puts where the shell finds it asks the program itself."""
    variable = f"_{program.upper()}_COMPLETE"
    monkeypatch.setenv(variable, f"source_{shell}")
    code, output, errors = run(program)
    assert (code, errors) == (0, "")
    assert f"{variable}=complete_{shell}" in output
    assert "--install-completion" in {
        option for each in COMMANDS[program].params for option in each.opts
    }


LONG = {
    "ledger migrate": ((), "migrating"),
    "ledger append": (("{folder}/marks.ndjson", "--source", "marks"), "importing"),
    "ledger data-keys status": ((), "counting data keys"),
    "projections run": (("--once",), "folding"),
    "replay.py snapshot take": (("--group", "marks"), "events folded"),
}


@pytest.mark.usefixtures("filled_url")
@pytest.mark.parametrize("name", LONG)
def test_what_takes_long_shows_how_far_it_is(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """On a terminal, and on standard error, so that what is printed stays JSON."""
    arguments, shown = LONG[name]
    given = [each.format(folder=folder) for each in arguments]
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    code, output, errors = run(name, *given, "--json")
    assert code == 0
    assert shown in errors
    json.loads(output)
    monkeypatch.setenv("TTY_COMPATIBLE", "0")
    assert shown not in run(name, *given, "--json")[2]
