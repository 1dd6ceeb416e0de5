"""Mutation testing of the domain and of its folds: is every line held by a test?

`make mutation` copies the project, lets mutmut change one thing at a time there, and runs the tests
that need no database against each change. mutmut leaves decorated functions alone, so in the copy a
decorator stands behind its function as a call: `@orders.on(X) def f` becomes `f = orders.on(X)(f)`.

Mutants that cannot change any behaviour are listed in docs/mutants.md, each with the reason.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import libcst as cst

from tests.support import data

ROOT = Path(__file__).parents[1]
COPY = ROOT / "build" / "mutation"
COPIED = ("ledger", "projections", "tests", "docs", "pyproject.toml", "README.md")
MUTATED = ("ledger/domain/*.py", "projections/orders.py", "projections/positions.py")
TESTS = (
    "tests/ledger/domain",
    "tests/projections/test_fold.py",
    "tests/projections/test_order_rows.py",
    "tests/projections/test_order_states.py",
    "tests/projections/test_position_attributes.py",
    "tests/projections/test_position_rows.py",
    "tests/projections/test_reference_data.py",
)
KILLED_MIN = 0.9
"""The part of all mutants that the tests must notice."""

KILLED = {"killed", "timeout", "segfault", "caught by type check"}


class Lift(cst.CSTTransformer):
    """Moves decorators behind their functions, where mutmut does not see them as such."""

    def leave_FunctionDef(  # noqa: N802 - libcst names it
        self, original_node: cst.FunctionDef, updated_node: cst.FunctionDef
    ) -> cst.FunctionDef | cst.FlattenSentinel[cst.BaseStatement]:
        """Return the bare function, and a statement that decorates it."""
        decorators = [each.decorator for each in original_node.decorators]
        if not decorators or any(_is_kept(each) for each in decorators):
            return updated_node
        value: cst.BaseExpression = cst.Name(original_node.name.value)
        for decorator in reversed(decorators):
            value = cst.Call(decorator, [cst.Arg(value)])
        target = cst.AssignTarget(cst.Name(original_node.name.value))
        statement = cst.SimpleStatementLine([cst.Assign([target], value)])
        return cst.FlattenSentinel([updated_node.with_changes(decorators=()), statement])


def _is_kept(decorator: cst.BaseExpression) -> bool:
    """Whether mutmut can deal with a decorator itself."""
    return isinstance(decorator, cst.Name) and decorator.value in {"staticmethod", "classmethod"}


def _make_copy() -> None:
    shutil.rmtree(COPY, ignore_errors=True)
    COPY.mkdir(parents=True)
    for name in COPIED:
        source, target = ROOT / name, COPY / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    for pattern in MUTATED:
        for file in COPY.glob(pattern):
            file.write_text(cst.parse_module(file.read_text()).visit(Lift()).code)
    with (COPY / "pyproject.toml").open("a") as settings:
        settings.write(
            "\n[tool.mutmut]\n"
            'source_paths = ["ledger", "projections"]\n'
            'also_copy = ["docs"]\n'
            f"only_mutate = {list(MUTATED)}\n"
            f"pytest_add_cli_args_test_selection = {list(TESTS)}\n"
            'pytest_add_cli_args = ["-p", "no:cacheprovider", "--hypothesis-seed=1"]\n'
        )


def _mutmut(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mutmut", *arguments],
        cwd=COPY,
        env=os.environ | {"LEDGER_TEST_DATA": str(data.folder())},
        check=True,
        text=True,
        stdout=subprocess.PIPE if arguments[0] == "results" else None,
    )


def _outcomes() -> Iterator[tuple[str, str]]:
    """Yield each mutant's name with what became of it."""
    for line in _mutmut("results", "--all", "true").stdout.splitlines():
        if match := re.match(r"\s+(\S+): (.+)", line):
            yield match[1], match[2]


def main() -> int:
    """Mutate, test, and print what survived; return 0 where enough was noticed."""
    _make_copy()
    _mutmut("run", "--max-children", "2", *sys.argv[1:])
    outcomes = dict(_outcomes())
    survivors = [name for name, outcome in outcomes.items() if outcome not in KILLED]
    for name in survivors:
        print(f"{outcomes[name]}: {name}")
    files = Counter(name.partition(".x")[0] for name in outcomes)
    left = Counter(name.partition(".x")[0] for name in survivors)
    for file, count in sorted(files.items()):
        print(f"{file}: {count - left[file]} of {count} noticed")
    part = 1 - len(survivors) / len(outcomes)
    print(f"{len(outcomes) - len(survivors)} of {len(outcomes)} mutants noticed, {part:.1%}")
    return 0 if part >= KILLED_MIN else 1


if __name__ == "__main__":
    sys.exit(main())
