"""What belongs to a PostgreSQL table beside its rows, and must be made again for the new one.

Each query returns the statements that do so, or names. They are read before the tables are renamed,
while the definitions still name the live table, and executed after.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

_OWNER_OR_PUBLIC = (
    "CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END"
)
_OPTION = "CASE WHEN is_grantable THEN ' WITH GRANT OPTION' ELSE '' END"
_QUOTED_OPTION = (
    "format('%I = %L', split_part(option, '=', 1), substr(option, strpos(option, '=') + 1))"
)

# Storage: what matters while rows are loaded and statistics are gathered, so it comes first.
_STORAGE = f"""
SELECT format('ALTER TABLE %I OWNER TO %I', CAST(:new AS text), pg_get_userbyid(o.relowner))
FROM pg_class o JOIN pg_class n ON n.oid = :new_oid AND n.relowner <> o.relowner WHERE o.oid = :old
UNION ALL
SELECT format('ALTER TABLE %I SET (%s)', CAST(:new AS text), string_agg(
    CASE WHEN toast THEN 'toast.' ELSE '' END || {_QUOTED_OPTION}, ', '))
FROM (SELECT false AS toast, unnest(reloptions) AS option FROM pg_class WHERE oid = :old
      UNION ALL
      SELECT true, unnest(t.reloptions) FROM pg_class c JOIN pg_class t ON t.oid = c.reltoastrelid
      WHERE c.oid = :old) AS options
HAVING count(*) > 0
UNION ALL
SELECT format('ALTER TABLE %I SET TABLESPACE %I', CAST(:new AS text), spcname)
FROM pg_class c JOIN pg_tablespace s ON s.oid = c.reltablespace WHERE c.oid = :old
UNION ALL
SELECT format('ALTER TABLE %I ALTER COLUMN %I SET STATISTICS %s', CAST(:new AS text), o.attname,
    o.attstattarget)
FROM pg_attribute o JOIN pg_attribute n ON n.attname = o.attname AND n.attrelid = :new_oid
WHERE o.attrelid = :old AND o.attnum > 0 AND NOT o.attisdropped AND o.attstattarget >= 0
UNION ALL
SELECT format('ALTER TABLE %I ALTER COLUMN %I SET (%s)', CAST(:new AS text), o.attname, (
    SELECT string_agg({_QUOTED_OPTION}, ', ') FROM unnest(o.attoptions) AS option))
FROM pg_attribute o JOIN pg_attribute n ON n.attname = o.attname AND n.attrelid = :new_oid
WHERE o.attrelid = :old AND o.attnum > 0 AND NOT o.attisdropped AND o.attoptions IS NOT NULL
UNION ALL
SELECT format('ALTER TABLE %I ALTER COLUMN %I SET STORAGE %s', CAST(:new AS text), o.attname,
    CASE o.attstorage WHEN 'p' THEN 'PLAIN' WHEN 'e' THEN 'EXTERNAL' WHEN 'm' THEN 'MAIN'
    ELSE 'EXTENDED' END)
FROM pg_attribute o JOIN pg_attribute n ON n.attname = o.attname AND n.attrelid = :new_oid
WHERE o.attrelid = :old AND o.attnum > 0 AND NOT o.attisdropped
    AND o.atttypid = n.atttypid AND o.attstorage <> n.attstorage
UNION ALL
SELECT format('ALTER TABLE %I ALTER COLUMN %I SET COMPRESSION %s', CAST(:new AS text), o.attname,
    CASE CAST(o.attcompression AS text) WHEN 'l' THEN 'lz4' ELSE 'pglz' END)
FROM pg_attribute o JOIN pg_attribute n ON n.attname = o.attname AND n.attrelid = :new_oid
WHERE o.attrelid = :old AND o.attnum > 0 AND NOT o.attisdropped AND o.attcompression <> ''
"""

_RIGHTS = f"""
SELECT 1, format('REVOKE ALL ON %I FROM %s', CAST(:table AS text), {_OWNER_OR_PUBLIC})
FROM (SELECT a.grantee FROM pg_class n, aclexplode(n.relacl) AS a
      WHERE n.oid = :new_oid AND a.grantee <> n.relowner
      UNION
      SELECT a.grantee FROM pg_attribute n, aclexplode(n.attacl) AS a
      WHERE n.attrelid = :new_oid AND n.attnum > 0 AND NOT n.attisdropped) AS given
UNION ALL
SELECT 2, format('GRANT %s ON %I TO %s%s', privilege_type, CAST(:table AS text),
    {_OWNER_OR_PUBLIC}, {_OPTION})
FROM pg_class c, aclexplode(c.relacl) WHERE c.oid = :old
UNION ALL
SELECT 2, format('GRANT %s (%I) ON %I TO %s%s', privilege_type, o.attname, CAST(:table AS text),
    {_OWNER_OR_PUBLIC}, {_OPTION})
FROM pg_attribute o JOIN pg_attribute n ON n.attname = o.attname AND n.attrelid = :new_oid,
    aclexplode(o.attacl)
WHERE o.attrelid = :old AND o.attnum > 0 AND NOT o.attisdropped
UNION ALL
SELECT 3, format('ALTER TABLE %I %s ROW LEVEL SECURITY', CAST(:table AS text),
    CASE WHEN o.relrowsecurity THEN 'ENABLE' ELSE 'DISABLE' END)
FROM pg_class o JOIN pg_class n ON n.oid = :new_oid
WHERE o.oid = :old AND n.relrowsecurity <> o.relrowsecurity
UNION ALL
SELECT 3, format('ALTER TABLE %I %s ROW LEVEL SECURITY', CAST(:table AS text),
    CASE WHEN o.relforcerowsecurity THEN 'FORCE' ELSE 'NO FORCE' END)
FROM pg_class o JOIN pg_class n ON n.oid = :new_oid
WHERE o.oid = :old AND n.relforcerowsecurity <> o.relforcerowsecurity
UNION ALL
SELECT 4, format('CREATE POLICY %I ON %I AS %s FOR %s TO %s%s%s', polname, CAST(:table AS text),
    CASE WHEN polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END,
    CASE polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE'
    WHEN 'd' THEN 'DELETE' ELSE 'ALL' END,
    CASE WHEN 0 = ANY (polroles) THEN 'PUBLIC' ELSE (
        SELECT string_agg(quote_ident(rolname), ', ') FROM pg_roles WHERE oid = ANY (polroles)) END,
    ' USING (' || pg_get_expr(polqual, polrelid) || ')',
    ' WITH CHECK (' || pg_get_expr(polwithcheck, polrelid) || ')')
FROM pg_policy WHERE polrelid = :old
UNION ALL
SELECT 5, format('COMMENT ON TABLE %I IS %L', CAST(:table AS text),
    obj_description(:old, 'pg_class'))
WHERE obj_description(:old, 'pg_class') IS NOT NULL
UNION ALL
SELECT 5, format('COMMENT ON COLUMN %I.%I IS %L', CAST(:table AS text), o.attname,
    col_description(:old, o.attnum))
FROM pg_attribute o JOIN pg_attribute n ON n.attname = o.attname AND n.attrelid = :new_oid
WHERE o.attrelid = :old AND o.attnum > 0 AND NOT o.attisdropped
    AND col_description(:old, o.attnum) IS NOT NULL
UNION ALL
SELECT 5, format('ALTER TABLE %I REPLICA IDENTITY %s', CAST(:table AS text),
    CASE relreplident WHEN 'n' THEN 'NOTHING' WHEN 'f' THEN 'FULL' ELSE 'USING INDEX ' || (
        SELECT quote_ident(relname) FROM pg_index JOIN pg_class i ON i.oid = indexrelid
        WHERE indrelid = :old AND indisreplident) END)
FROM pg_class WHERE oid = :old AND relreplident <> 'd'
UNION ALL
SELECT 6, format('ALTER PUBLICATION %I DROP TABLE %I', pubname, CAST(:kept AS text))
FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid WHERE r.prrelid = :old
UNION ALL
SELECT 7, format('ALTER PUBLICATION %I ADD TABLE %I%s%s', pubname, CAST(:table AS text),
    (SELECT ' (' || string_agg(quote_ident(attname), ', ') || ')' FROM pg_attribute
     WHERE attrelid = :old AND attnum = ANY (CAST(r.prattrs AS smallint[]))),
    ' WHERE (' || pg_get_expr(r.prqual, r.prrelid) || ')')
FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid WHERE r.prrelid = :old
UNION ALL
SELECT 8, format('DROP STATISTICS %I.%I', nspname, stxname)
FROM pg_statistic_ext JOIN pg_namespace n ON n.oid = stxnamespace WHERE stxrelid = :old
UNION ALL
SELECT 9, pg_get_statisticsobjdef(oid) FROM pg_statistic_ext WHERE stxrelid = :old
UNION ALL
SELECT 10, pg_get_triggerdef(oid) FROM pg_trigger WHERE tgrelid = :old AND NOT tgisinternal
UNION ALL
SELECT 11, format('ALTER TABLE %I %s TRIGGER %I', CAST(:table AS text),
    CASE tgenabled WHEN 'D' THEN 'DISABLE' WHEN 'R' THEN 'ENABLE REPLICA' ELSE 'ENABLE ALWAYS' END,
    tgname)
FROM pg_trigger WHERE tgrelid = :old AND NOT tgisinternal AND tgenabled <> 'O'
ORDER BY 1, 2
"""

# A kept table is only kept: it refers to nothing, and nothing happens when it is caught up. Where
# rows were secured by policies, they are so now by the absence of any.
_TAKEN_AWAY = """
SELECT format('ALTER TABLE %I DROP CONSTRAINT %I', CAST(:table AS text), conname)
FROM pg_constraint WHERE conrelid = :old AND contype = 'f'
UNION ALL
SELECT format('DROP TRIGGER %I ON %I', tgname, CAST(:table AS text))
FROM pg_trigger WHERE tgrelid = :old AND NOT tgisinternal
UNION ALL
SELECT format('DROP POLICY %I ON %I', polname, CAST(:table AS text))
FROM pg_policy WHERE polrelid = :old
"""

_VIEWS = f"""
SELECT CAST(CAST(v.oid AS regclass) AS text),
    format('CREATE OR REPLACE VIEW %s%s AS %s', CAST(v.oid AS regclass),
        (SELECT ' WITH (' || string_agg({_QUOTED_OPTION}, ', ') || ')'
         FROM unnest(v.reloptions) AS option),
        rtrim(pg_get_viewdef(v.oid), '; '))
FROM pg_class v WHERE v.relkind = 'v' AND v.oid IN (
    SELECT r.ev_class FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid
    WHERE d.classid = CAST('pg_rewrite' AS regclass)
        AND d.refclassid = CAST('pg_class' AS regclass) AND d.refobjid = ANY (:olds))
ORDER BY v.oid
"""

_REFERENCES = """
SELECT CAST(CAST(conrelid AS regclass) AS text), quote_ident(conname),
    regexp_replace(pg_get_constraintdef(oid), ' NOT VALID$', '')
FROM pg_constraint
WHERE contype = 'f' AND conparentid = 0 AND confrelid = ANY (:olds) AND conrelid <> ALL (:olds)
ORDER BY 1, 2
"""

# Dropping a foreign key of a table, as is done to one that is kept, locks the other table too.
_TARGETS = """
SELECT DISTINCT CAST(CAST(confrelid AS regclass) AS text) FROM pg_constraint
WHERE contype = 'f' AND conrelid = ANY (:olds) AND confrelid <> ALL (:olds)
    AND has_table_privilege(confrelid, 'UPDATE, DELETE, TRUNCATE')
ORDER BY 1
"""

# Whatever would keep to the replaced table and cannot be made again in its place.
_OBSTACLES = """
SELECT DISTINCT pg_describe_object(d.classid, d.objid, 0)
FROM pg_depend d
LEFT JOIN pg_rewrite r ON d.classid = CAST('pg_rewrite' AS regclass) AND r.oid = d.objid
LEFT JOIN pg_class v ON v.oid = r.ev_class
LEFT JOIN pg_policy p ON d.classid = CAST('pg_policy' AS regclass) AND p.oid = d.objid
LEFT JOIN pg_trigger t ON d.classid = CAST('pg_trigger' AS regclass) AND t.oid = d.objid
WHERE d.deptype = 'n' AND (
        d.refclassid = CAST('pg_class' AS regclass) AND d.refobjid = ANY (:olds)
        OR d.refclassid = CAST('pg_type' AS regclass) AND d.refobjid IN (
            SELECT reltype FROM pg_class WHERE oid = ANY (:olds)))
    AND d.classid NOT IN (CAST('pg_constraint' AS regclass),
        CAST('pg_publication_rel' AS regclass))
    AND coalesce(v.relkind <> 'v' OR NOT pg_has_role(v.relowner, 'USAGE'), true)
    AND coalesce(p.polrelid <> ALL (:olds), true)
    AND coalesce(t.tgrelid <> ALL (:olds), true)
    AND NOT (d.classid = CAST('pg_class' AS regclass) AND d.objid = ANY (:olds))
UNION
SELECT pg_describe_object(CAST('pg_rewrite' AS regclass), oid, 0)
FROM pg_rewrite WHERE ev_class = ANY (:olds)
UNION
SELECT 'constraint ' || conname || ' on table ' || CAST(conrelid AS regclass)
    || ', which belongs to another role'
FROM pg_constraint JOIN pg_class c ON c.oid = conrelid
WHERE contype = 'f' AND confrelid = ANY (:olds) AND NOT pg_has_role(c.relowner, 'USAGE')
ORDER BY 1
"""


class Reference(msgspec.Struct, frozen=True):
    """A foreign key of a table that stays, to one that is replaced."""

    table: str
    name: str
    definition: str

    @property
    def dropped(self) -> str:
        """The statement that takes it away."""
        return f"ALTER TABLE {self.table} DROP CONSTRAINT {self.name}"

    @property
    def added(self) -> str:
        """The statement that makes it again, for the time being unchecked for present rows."""
        return f"ALTER TABLE {self.table} ADD CONSTRAINT {self.name} {self.definition} NOT VALID"


async def oids(connection: AsyncConnection, names: Sequence[str]) -> dict[str, int]:
    """Return the numbers by which PostgreSQL knows the tables; they keep them when renamed."""
    query = sa.text(
        "SELECT name, CAST(to_regclass(quote_ident(name)) AS oid)"
        " FROM unnest(CAST(:names AS text[])) AS name"
    )
    found = await connection.execute(query, {"names": list(names)})
    return {name: oid for name, oid in found if oid is not None}


async def storage(connection: AsyncConnection, old: int, new: str, new_oid: int) -> list[str]:
    """Return the statements that give the new table the storage options of the old one."""
    return await _statements(connection, _STORAGE, {"old": old, "new": new, "new_oid": new_oid})


async def rights(
    connection: AsyncConnection, table: str, kept: str, old: int, new_oid: int
) -> list[str]:
    """Return the statements that give rights, policies, triggers … to the table now called so."""
    values = {"table": table, "kept": kept, "old": old, "new_oid": new_oid}
    return [row[1] for row in await connection.execute(sa.text(_RIGHTS), values)]


async def taken_away(connection: AsyncConnection, table: str, old: int) -> list[str]:
    """Return the statements that take from the old table what a kept one must not have."""
    return await _statements(connection, _TAKEN_AWAY, {"table": table, "old": old})


async def views(connection: AsyncConnection, olds: Sequence[int]) -> dict[str, str]:
    """Return the views that read the tables, each with the statement that makes it anew."""
    found = await connection.execute(sa.text(_VIEWS), {"olds": list(olds)})
    return {row[0]: row[1] for row in found}


async def references(connection: AsyncConnection, olds: Sequence[int]) -> list[Reference]:
    """Return the foreign keys of other tables that point at these."""
    found = await connection.execute(sa.text(_REFERENCES), {"olds": list(olds)})
    return [Reference(*row) for row in found]


async def targets(connection: AsyncConnection, olds: Sequence[int]) -> list[str]:
    """Return the quoted names of other tables that foreign keys of these point at."""
    return await _statements(connection, _TARGETS, {"olds": list(olds)})


async def obstacles(connection: AsyncConnection, olds: Sequence[int]) -> list[str]:
    """Return what depends on the tables and would be left behind with them."""
    return await _statements(connection, _OBSTACLES, {"olds": list(olds)})


async def _statements(
    connection: AsyncConnection, query: str, values: Mapping[str, Any]
) -> list[str]:
    return [row[0] for row in await connection.execute(sa.text(query), dict(values))]
