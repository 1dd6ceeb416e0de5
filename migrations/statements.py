"""SQL files that belong to migrations."""

from __future__ import annotations

from importlib.resources import files

from alembic import op
from sqlalchemy import text

_SEPARATOR = "\n--;;\n"


def execute_file(name: str) -> None:
    """Run the statements of `migrations/sql/<name>`, which stand between lines of `--;;`."""
    script = files("migrations").joinpath("sql", name).read_text(encoding="utf-8")
    for statement in script.split(_SEPARATOR):
        op.execute(text(statement.strip().rstrip(";").replace(":", r"\:")))
