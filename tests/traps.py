"""A database full of traps: whatever a session of ours calls without its schema fails and names itself.

Its owner, who is no superuser, made every function, operator, relation and type of pg_catalog once more in a schema of
his own, and put that first in the database's search_path (CVE-2018-1058). A trap that is sprung raises, so that the
run fails; an attacker's would do its work and be silent.
"""

from typing import Any

import psycopg
from psycopg import sql

SPRUNG = "a trap was sprung"

_TRAPS = """
CREATE SCHEMA traps;
CREATE FUNCTION traps.spring(what text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a trap was sprung: % ran as %', what, current_user;
END $$;
DO $do$
DECLARE
    each record;
BEGIN
    FOR each IN
        SELECT p.proname, pg_get_function_identity_arguments(p.oid) AS arguments, p.oid::regprocedure::text AS what,
            CASE WHEN p.proretset THEN 'SETOF ' ELSE '' END || format_type(p.prorettype, NULL) AS result
        FROM pg_proc p
        WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.prokind = 'f' AND p.provariadic = 0
            AND NOT EXISTS (SELECT FROM pg_type t WHERE t.typtype = 'p' AND (t.oid = ANY (p.proargtypes)
                OR (t.oid = p.prorettype AND t.typname <> 'void')))
            AND coalesce(array_length(p.proallargtypes, 1), 0) = 0
    LOOP
        EXECUTE format('CREATE FUNCTION traps.%I(%s) RETURNS %s LANGUAGE plpgsql AS %L', each.proname,
            each.arguments, each.result, format('BEGIN PERFORM traps.spring(%L); END', 'function ' || each.what));
    END LOOP;
    FOR each IN
        SELECT o.oprname, o.oprleft::regtype AS l, o.oprright::regtype AS r, o.oid::regoperator::text AS what,
            p.proname
        FROM pg_operator o JOIN pg_proc p ON p.oid = o.oprcode
        WHERE o.oprleft <> 0 AND o.oprright <> 0
            AND EXISTS (SELECT FROM pg_proc t WHERE t.pronamespace = 'traps'::regnamespace
                AND t.proname = p.proname AND t.proargtypes = p.proargtypes)
    LOOP
        EXECUTE format('CREATE OPERATOR traps.%s (FUNCTION = traps.%I, LEFTARG = %s, RIGHTARG = %s)',
            each.oprname, each.proname, each.l, each.r);
    END LOOP;
    FOR each IN
        SELECT c.relname, (SELECT string_agg(format('NULL::%s AS %I', format_type(
            CASE a.atttypid WHEN 'anyarray'::regtype THEN 'text'::regtype ELSE a.atttypid END, NULL), a.attname),
            ', ' ORDER BY attnum) FROM pg_attribute a WHERE a.attrelid = c.oid AND attnum > 0) AS columns
        FROM pg_class c
        WHERE c.relnamespace = 'pg_catalog'::regnamespace AND c.relkind IN ('r', 'v')
            AND c.relname NOT LIKE 'pg_stat%'  -- some have columns of any type
    LOOP
        EXECUTE format('CREATE VIEW traps.%I AS SELECT %s WHERE traps.spring(%L)', each.relname, each.columns,
            'relation ' || each.relname);
    END LOOP;
END $do$;
"""


def fill_traps(connection: psycopg.Connection[Any], owner: str) -> None:
    """Fills the connection's database, which becomes that role's, and that role makes the traps."""
    database = sql.Identifier(connection.info.dbname)
    role = sql.Identifier(owner)
    connection.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(database, role))
    connection.execute(sql.SQL("SET SESSION AUTHORIZATION {}").format(role))
    connection.execute(_TRAPS)
    connection.execute("CREATE SCHEMA app")
    connection.execute("CREATE TABLE app.rows (n int PRIMARY KEY, t text)")
    connection.execute("INSERT INTO app.rows SELECT n, n::text FROM generate_series(1, 100) n")
    connection.execute("SELECT lo_from_bytea(0, 'one')")
    connection.execute(sql.SQL("ALTER DATABASE {} SET search_path = traps, pg_catalog, app").format(database))
    connection.execute("RESET SESSION AUTHORIZATION")
