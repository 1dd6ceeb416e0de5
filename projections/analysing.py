"""Letting PostgreSQL learn of tables that have grown much since it last looked at them.

Of a table that it knows nothing of, any index that begins with the journal's id looks as good as
the key. So it finds each row, also for each check of a foreign key, by walking all rows of the
journal: on a new database, until autovacuum gets to the table after a minute or more.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from projections.fold import Group

EVENTS_FIRST = 100
"""After so many events a projector has the tables looked at for the first time."""

ANALYSE_SECONDS = 5.0
"""So long all of it may take at most."""

_IS_OWNED = "pg_has_role(c.relowner, 'USAGE')"
_MAY_MAINTAIN = f"({_IS_OWNED} OR has_table_privilege(c.oid, 'MAINTAIN'))"
_MAINTAIN_SINCE = (17,)
_GROWN = """
    SELECT CAST(CAST(c.oid AS regclass) AS text) FROM unnest(CAST(:names AS text[])) AS t(name)
    JOIN pg_class AS c ON c.oid = to_regclass(quote_ident(t.name))
    WHERE {may} AND pg_relation_size(c.oid)
        >= greatest(1, 2 * c.relpages * CAST(current_setting('block_size') AS bigint))
    ORDER BY c.oid
"""


async def analyse_grown(
    connection: AsyncConnection, group: Group, timeout_seconds: float = ANALYSE_SECONDS
) -> None:
    """Analyse those tables of the group that have doubled since; connections then plan anew.

    Only what is looked up matters, so not append-only tables. Left out is what this role may not
    analyse, and what somebody else has locked. Raises StoreUnavailable where it takes too long.
    """
    if connection.dialect.name == "sqlite":
        return
    version = connection.dialect.server_version_info or ()
    may = _MAY_MAINTAIN if version >= _MAINTAIN_SINCE else _IS_OWNED
    names = [each.table.name for each in group.projections if not each.append_only]
    found = await connection.execute(sa.text(_GROWN.format(may=may)), {"names": names})
    if grown := found.scalars().all():
        timeout_ms = max(1, round(timeout_seconds * 1000))
        await connection.exec_driver_sql(f"SET LOCAL statement_timeout = {timeout_ms}")
        await connection.exec_driver_sql(f"ANALYZE (SKIP_LOCKED) {', '.join(grown)}")
