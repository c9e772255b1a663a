"""Which privileges pg_dump needs that the session's role lacks, and the statement that gives them.

Asked of the server, not tried by a dump: pg_dump stops at the first that is missing, these queries name them all.
"""

from dataclasses import dataclass
from typing import LiteralString

from backupd.postgres import Session

NAMED = 5
"""How many of the missing are named."""


@dataclass(frozen=True)
class Privilege:
    """A query for the names of what is missing and their number, the problem in words, and the statement against it.

    In `remedy` `{role}` is the role's name quoted for SQL, and `{literal}` as a string.
    """

    query: LiteralString
    problem: str
    remedy: str


def missing(session: Session, privilege: Privilege) -> tuple[list[str], int]:
    """The first few of what the role lacks, and how many more there are."""
    rows = session.rows(_DUMPED + privilege.query + " ORDER BY 1 LIMIT %s", [NAMED])
    return [str(row[0]) for row in rows], int(rows[0][1]) - len(rows) if rows else 0


def count_locks(session: Session) -> tuple[int, int, int]:
    """How many tables a dump locks; max_locks_per_transaction; by how many sessions the lock table is multiplied."""
    query: LiteralString = (
        "SELECT (SELECT count(*) FROM dumped WHERE relkind <> 'S'), current_setting('max_locks_per_transaction')::int,"
        " current_setting('max_connections')::int + current_setting('max_prepared_transactions')::int"
    )
    tables, setting, sessions = session.row(_DUMPED + query)
    return int(tables), int(setting), int(sessions)


# What pg_dump locks and reads, tried with 15, 17 and 18: neither views of any kind nor foreign tables, and of
# extensions only the tables that they have marked as configuration, in whatever schema.
_DUMPED: LiteralString = (
    "WITH dumped AS (SELECT c.oid, c.relkind, c.relnamespace, quote_ident(n.nspname) AS schema,"
    " quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS name"
    " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
    " WHERE c.relkind IN ('r', 'p', 'S') AND c.relpersistence <> 't'"
    " AND (c.oid IN (SELECT unnest(extconfig) FROM pg_extension)"
    " OR n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND NOT EXISTS (SELECT FROM pg_depend d"
    " WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'))) "
)

_READ_ALL = "GRANT pg_read_all_data TO {role};"

SCHEMAS = Privilege(
    # 18 reads sequences without their schema
    "SELECT schema, count(*) OVER () FROM dumped WHERE NOT has_schema_privilege(relnamespace, 'USAGE')"
    " AND (relkind <> 'S' OR current_setting('server_version_num')::int < 180000) GROUP BY schema",
    "may not use schema",
    _READ_ALL,
)
TABLES = Privilege(
    "SELECT name, count(*) OVER () FROM dumped WHERE relkind <> 'S' AND NOT has_table_privilege(oid, 'SELECT')",
    "may not read table",
    _READ_ALL,
)
SEQUENCES = Privilege(
    # not has_sequence_privilege: called for a table before the filter has dropped that, it raises
    "SELECT name, count(*) OVER () FROM dumped WHERE relkind = 'S' AND NOT has_table_privilege(oid, 'SELECT')",
    "may not read sequence",
    _READ_ALL,
)
LARGE_OBJECTS = Privilege(
    # has_largeobject_privilege came with 18; with 19 pg_read_all_data counts for large objects too
    "SELECT m.oid::text, count(*) OVER () FROM pg_largeobject_metadata m"
    " WHERE current_setting('lo_compat_privileges') = 'off' AND NOT pg_has_role(m.lomowner, 'USAGE')"
    " AND NOT EXISTS (SELECT FROM aclexplode(m.lomacl) a WHERE a.privilege_type = 'SELECT'"
    " AND (a.grantee = 0 OR pg_has_role(a.grantee, 'USAGE')))"
    " AND NOT (current_setting('server_version_num')::int >= 190000 AND pg_has_role('pg_read_all_data', 'USAGE'))",
    "may not read large object",
    "SELECT format('GRANT SELECT ON LARGE OBJECT %s TO %I', oid, {literal}) FROM pg_largeobject_metadata \\gexec",
)
ROW_SECURITY = Privilege(
    "SELECT name, count(*) OVER () FROM dumped WHERE relkind = 'r' AND row_security_active(oid)",
    "is subject to row security, under which pg_dump refuses to read table",
    "ALTER ROLE {role} BYPASSRLS;",
)
