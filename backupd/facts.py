"""What backupd asks a database about itself: identity, properties, tables, files on disk. SQL and its answers only.

Read in the dump's own snapshot where it describes the dump, and in a fresh look where it must notice what happened
since. Answers are the manifest's types, so that backup and restore compare like with like.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from backupd import marks
from backupd.contract import Facts, Relation
from backupd.errors import AccessRefused
from backupd.manifest import DatabaseProperties, Extension, Grant, Membership, Recovery, Role, Setting
from backupd.postgres import Session


def read(session: Session, role_names: Collection[str], *, passwords: bool = False) -> Facts:
    """The facts of the session's database, of which `role_names` are the roles that a dump of it names.

    With the verifiers of the roles' passwords only on demand.
    """
    return Facts(
        system_identifier=system_identifier(session),
        database_bytes=database_bytes(session),
        properties=properties(session),
        relations=tuple(relations(session)),
        extensions=tuple(extensions(session)),
        recovery=recovery(session),
        roles=tuple(roles(session, role_names, passwords=passwords)),
    )


def recovery(session: Session) -> Recovery | None:
    """How the standby stands; None for a primary. What was replayed to its end does not lag, however old it is."""
    row = session.row(
        "SELECT pg_is_in_recovery(), current_setting('hot_standby_feedback')::bool,"
        " current_setting('max_standby_streaming_delay'),"
        " CASE WHEN pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() THEN 0"
        " ELSE extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) END::float8"
    )
    return Recovery(row[1], row[2], row[3]) if row[0] else None


def conflicts(session: Session) -> int:
    """How many queries of the session's database its standby has cancelled so far, for any reason."""
    query = (
        "SELECT coalesce(sum(confl_tablespace + confl_lock + confl_snapshot + confl_bufferpin + confl_deadlock), 0)"
        "::int8 FROM pg_stat_database_conflicts WHERE datname = current_database()"
    )
    return int(session.row(query)[0])


def system_identifier(session: Session) -> str:
    """The cluster's identity, as text. Every role may ask."""
    return str(session.row("SELECT system_identifier FROM pg_control_system()")[0])


def database_bytes(session: Session) -> int:
    """The database's size on disk."""
    return int(session.row("SELECT pg_database_size(current_database())")[0])


def encoding(session: Session) -> str:
    """The encoding in which the session's database keeps its text, whatever sessions are told to speak."""
    return str(session.row("SELECT current_setting('server_encoding')")[0])


def databases(session: Session) -> list[str]:
    """The cluster's databases that accept connections, sorted; without templates and those that backupd made."""
    query = (
        "SELECT datname, shobj_description(oid, 'pg_database') FROM pg_database"
        " WHERE datallowconn AND NOT datistemplate AND datconnlimit <> -2 ORDER BY datname"
    )
    return [str(name) for name, comment in session.rows(query) if not marks.is_ours(name, comment)]


def invalid_databases(session: Session) -> list[str]:
    """Those that an interrupted DROP DATABASE left, sorted: nobody can connect, as pg_dumpall and vacuumdb know too."""
    # DATCONNLIMIT_INVALID_DB of pg_database.h, since the minors of August 2023 (15.4)
    return [str(row[0]) for row in session.rows("SELECT datname FROM pg_database WHERE datconnlimit = -2 ORDER BY 1")]


def sizes(session: Session, names: Sequence[str]) -> list[int]:
    """The size of each database in bytes; 0 where that is not ours to know."""
    query = (
        "SELECT datname, CASE WHEN has_database_privilege(oid, 'CONNECT')"
        " OR pg_has_role('pg_read_all_stats', 'USAGE') THEN pg_database_size(oid) ELSE 0 END FROM pg_database"
        " WHERE datname = ANY(%s)"
    )
    found = {str(name): int(size) for name, size in session.rows(query, [list(names)])}
    return [found.get(name, 0) for name in names]


def table_bytes(session: Session) -> int:
    """About how many bytes the tables have without their indexes, as VACUUM or ANALYZE last saw them.

    Not pg_table_size: it would wait for each table's lock, behind whoever waits for that because of our dump.
    """
    query = (
        "SELECT coalesce(sum(greatest(t.relpages, 0) + greatest(o.relpages, 0)), 0)::int8"
        " * current_setting('block_size')::int8"
        " FROM pg_class t LEFT JOIN pg_class o ON o.oid = t.reltoastrelid"
        " WHERE t.relkind = 'r' AND t.relnamespace <> 'pg_catalog'::regnamespace"
    )
    return int(session.row(query)[0])


def properties(session: Session, database: str | None = None) -> DatabaseProperties:
    """What CREATE DATABASE, ALTER DATABASE and COMMENT need to make one like that, or like the session's own."""
    # to_jsonb, because the columns' names differ: daticulocale in 15 and 16, datlocale from 17, daticurules from 16
    row, owner, encoding, comment = session.row(
        "SELECT to_jsonb(d), pg_get_userbyid(d.datdba), pg_encoding_to_char(d.encoding),"
        " shobj_description(d.oid, 'pg_database') FROM pg_database d"
        " WHERE d.datname = coalesce(%s, current_database())",
        [database],
    )
    settings = session.rows(
        "SELECT coalesce(r.rolname, ''), split_part(s, '=', 1), substr(s, strpos(s, '=') + 1)"
        " FROM pg_db_role_setting d LEFT JOIN pg_roles r ON r.oid = d.setrole, unnest(d.setconfig) s"
        " WHERE d.setdatabase = (SELECT oid FROM pg_database WHERE datname = coalesce(%s, current_database()))"
        " ORDER BY 1, 2",
        [database],
    )
    grants = session.rows(
        "SELECT coalesce(r.rolname, ''), a.privilege_type, a.is_grantable FROM pg_database d, aclexplode(d.datacl) a"
        " LEFT JOIN pg_roles r ON r.oid = a.grantee WHERE d.datname = coalesce(%s, current_database()) ORDER BY 1, 2",
        [database],
    )
    return DatabaseProperties(
        owner=owner,
        encoding=encoding,
        locale_provider=row.get("datlocprovider", "c"),
        collate=row["datcollate"],
        ctype=row["datctype"],
        locale=row.get("datlocale", row.get("daticulocale")),
        icu_rules=row.get("daticurules"),
        comment=marks.own_comment(comment),
        connection_limit=row["datconnlimit"],
        settings=tuple(Setting(*setting) for setting in settings),
        grants=None if row["datacl"] is None else tuple(Grant(*grant) for grant in grants),
    )


def missing_roles(session: Session, names: Collection[str]) -> list[str]:
    """Those of the roles that the cluster has not, sorted."""
    query = "SELECT rolname FROM pg_roles WHERE rolname = ANY(%s)"
    return sorted(set(names) - {str(row[0]) for row in session.rows(query, [list(names)])})


def roles(session: Session, names: Collection[str], *, passwords: bool = False) -> list[Role]:
    """What those roles are, the ones with settings of their own for the database, and all of which they are members.

    Without PostgreSQL's own. Every role may ask, but for `passwords`.
    """
    # No other role is looked at: databases share them, and a name that one's encoding gave another's may not have.
    query = (
        "WITH RECURSIVE wanted (oid) AS (SELECT oid FROM pg_roles WHERE rolname = ANY(%s) OR oid IN (SELECT setrole"
        " FROM pg_db_role_setting WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database()))"
        " UNION SELECT m.roleid FROM pg_auth_members m JOIN wanted w ON w.oid = m.member) SELECT oid::int8 FROM wanted"
    )
    wanted = [int(row[0]) for row in session.rows(query, [list(names)])]
    # to_jsonb, because inherit_option and set_option are there from 16 on
    query = (
        "SELECT pg_get_userbyid(m.member), pg_get_userbyid(m.roleid), to_jsonb(m) FROM pg_auth_members m"
        " WHERE m.member = ANY(%s::oid[]) ORDER BY 1, 2"
    )
    memberships: dict[str, list[Membership]] = {}
    for member, role, row in session.rows(query, [wanted]):
        found = Membership(role, row["admin_option"], row.get("inherit_option", True), row.get("set_option", True))
        memberships.setdefault(member, []).append(found)
    query = (
        "SELECT rolname, rolcanlogin, rolsuper, rolinherit, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls,"
        " rolconnlimit FROM pg_roles WHERE rolname NOT LIKE 'pg\\_%%' AND oid = ANY(%s::oid[]) ORDER BY rolname"
    )
    plain = [Role(*row) for row in session.rows(query, [wanted])]
    verifiers = _verifiers(session, [role.name for role in plain]) if passwords else {}
    return [
        replace(role, member_of=tuple(memberships.get(role.name, ())), password=verifiers.get(role.name))
        for role in plain
    ]


def _verifiers(session: Session, names: Sequence[str]) -> Mapping[str, str]:
    """What the server checks each role's password by. Raises AccessRefused where the session's role may not see it."""
    if not session.row("SELECT has_column_privilege('pg_authid', 'rolpassword', 'SELECT')")[0]:
        raise AccessRefused(
            "role may not read the passwords of roles (pg_authid)",
            hint="GRANT SELECT ON pg_authid TO it in this database, or do without --with-role-passwords.",
        )
    query = "SELECT rolname, rolpassword FROM pg_authid WHERE rolpassword IS NOT NULL AND rolname = ANY(%s)"
    return dict(session.rows(query, [list(names)]))


def relations(session: Session) -> list[Relation]:
    """Every table, partitioned table, foreign table and materialised view that is not temporary or PostgreSQL's.

    An extension's may be in pg_catalog all the same, as pg_ivm's: pg_dump has the rows of its configuration.
    """
    query = (
        "SELECT c.oid::int8, n.nspname, c.relname, c.relkind::text, c.relpersistence::text, d.objid IS NOT NULL"
        " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " LEFT JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'"
        " WHERE c.relkind IN ('r', 'p', 'f', 'm') AND c.relpersistence <> 't' AND (d.objid IS NOT NULL"
        " OR n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema') ORDER BY c.oid"
    )
    return [Relation(*row) for row in session.rows(query)]


def partition_roots(session: Session) -> dict[tuple[str, str], tuple[str, str]]:
    """The root (schema, name) of each partition (schema, name)."""
    query = (
        "SELECT n.nspname, c.relname, rn.nspname, r.relname"
        " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " JOIN pg_class r ON r.oid = pg_partition_root(c.oid) JOIN pg_namespace rn ON rn.oid = r.relnamespace"
        " WHERE c.relispartition AND c.relkind = 'r'"
    )
    return {(schema, name): (root_schema, root) for schema, name, root_schema, root in session.rows(query)}


def parents(session: Session) -> list[tuple[int, int]]:
    """The OIDs of each table that is another's partition, or its child by inheritance, and of that other table."""
    query = (
        "SELECT i.inhrelid::int8, i.inhparent::int8 FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
        " WHERE c.relkind IN ('r', 'p', 'f') ORDER BY 1, 2"
    )
    return [(child, parent) for child, parent in session.rows(query)]


def extensions(session: Session) -> list[Extension]:
    """The installed extensions, sorted."""
    query = (
        "SELECT e.extname, e.extversion, n.nspname FROM pg_extension e"
        " JOIN pg_namespace n ON n.oid = e.extnamespace ORDER BY e.extname"
    )
    return [Extension(*row) for row in session.rows(query)]


def filenodes(session: Session) -> Mapping[int, tuple[int, str, str]]:
    """File on disk and name of each ordinary table by OID: TRUNCATE, VACUUM FULL and rewriting ALTERs give a new file.

    The name counts because pg_dump locks and reads tables by name: what was dropped and made again, or renamed into
    another's place, would be read under the old one's entry.
    """
    query = (
        "SELECT c.oid::int8, c.relfilenode::int8, n.nspname, c.relname"
        " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'r'"
    )
    return {oid: (filenode, schema, name) for oid, filenode, schema, name in session.rows(query)}


def rewritten(
    before: Mapping[int, tuple[int, str, str]], now: Mapping[int, tuple[int, str, str]], dumped: Collection[int]
) -> list[int]:
    """The OIDs of dumped tables whose file or name changed between two looks, or that are gone."""
    return sorted(oid for oid in dumped if oid in before and now.get(oid) != before[oid])


def vacuum_age(session: Session, application: str) -> int:
    """How many transactions began since the oldest snapshot of that application's sessions in this database.

    VACUUM may remove no row version that was dead only after it, in any table of the database.
    """
    query = (
        "SELECT coalesce(max(age(backend_xmin)), 0)::int8 FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = %s AND pid <> pg_backend_pid()"
    )
    return int(session.row(query, [application])[0])


def copying(session: Session) -> tuple[int, int]:
    """Bytes and rows that COPYs in the session's database have written so far (pg_stat_progress_copy)."""
    query = (
        "SELECT coalesce(sum(bytes_processed), 0)::int8, coalesce(sum(tuples_processed), 0)::int8"
        " FROM pg_stat_progress_copy WHERE datname = current_database() AND command = 'COPY TO'"
    )
    copied_bytes, rows = session.row(query)
    return int(copied_bytes), int(rows)
