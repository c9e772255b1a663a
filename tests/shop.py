"""A small shop whose database has one of nearly everything that pg_dump handles, hostile names and values included."""

import random
from typing import Any

import psycopg
from psycopg import sql

OWNER = "shop owner"
READER = "shop_reader"

HOSTILE_SCHEMA = 'we ird."schema"'
HOSTILE_TABLE = "new\nline'; DROP TABLE \\ %s -- ü"
HOSTILE_SEQUENCE = "it's a \\ sequence"

STATEMENTS = r"""
CREATE SCHEMA shop AUTHORIZATION "shop owner";
CREATE SCHEMA extensions;
CREATE EXTENSION hstore SCHEMA extensions;
SET search_path = shop, extensions, pg_catalog;

CREATE TYPE status AS ENUM ('new', 'paid', 'sent', 'it''s lost');
CREATE TYPE size AS (width int, height int);
CREATE DOMAIN email AS text CHECK (VALUE ~ '@') NOT NULL;
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN NEW.touched := NEW.touched + 1; RETURN NEW; END $body$;

CREATE TABLE customers (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    email email UNIQUE,
    name text COLLATE "C",
    lowered text GENERATED ALWAYS AS (lower(name)) STORED,
    labels extensions.hstore,
    touched int NOT NULL DEFAULT 0
);
COMMENT ON TABLE customers IS E'who buys;\nand ''why''';
ALTER TABLE customers OWNER TO "shop owner";
GRANT SELECT ON customers TO shop_reader;
GRANT UPDATE (name) ON customers TO shop_reader WITH GRANT OPTION;
CREATE TRIGGER touched BEFORE UPDATE ON customers FOR EACH ROW EXECUTE FUNCTION touch();
ALTER TABLE customers ENABLE ROW LEVEL SECURITY;
CREATE POLICY readers ON customers FOR SELECT TO shop_reader USING (touched >= 0);

CREATE TABLE products (id serial PRIMARY KEY, name text NOT NULL, price numeric(12, 2), box size, facts jsonb);
CREATE INDEX ON products USING gin (facts);
CREATE STATISTICS product_statistics (dependencies) ON name, price FROM products;

CREATE TABLE orders (
    id bigint, ordered_on date NOT NULL, customer bigint REFERENCES customers, status status NOT NULL, total numeric,
    PRIMARY KEY (id, ordered_on)
) PARTITION BY RANGE (ordered_on);
CREATE TABLE orders_2025 PARTITION OF orders FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
CREATE TABLE orders_2026 PARTITION OF orders FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
CREATE TABLE orders_rest PARTITION OF orders DEFAULT;

CREATE TABLE events (status status, payload text) PARTITION BY HASH (status);
CREATE TABLE events_0 PARTITION OF events FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE events_1 PARTITION OF events FOR VALUES WITH (MODULUS 2, REMAINDER 1);

CREATE TABLE documents (id int PRIMARY KEY, body text, scan bytea);
ALTER TABLE documents ALTER body SET STORAGE EXTERNAL;

CREATE TABLE kinds (
    id int, f float8, n numeric, i interval, t timestamptz, b bit(5), a text[], m int[][], r int4range, u uuid, ip inet,
    p point, v tsvector, c "char", e bytea, w text
);
CREATE TABLE animals (name text, legs int);
CREATE TABLE birds (wings int, legs int, name text);
ALTER TABLE birds INHERIT animals;
CREATE UNLOGGED TABLE carts (id int, content text);
CREATE TABLE nobody_bought (id int PRIMARY KEY, note text);
CREATE TABLE nothing ();
CREATE SEQUENCE never_called START 7;
CREATE SEQUENCE downwards INCREMENT -3 MINVALUE -1000000 MAXVALUE 10 START 10;
CREATE VIEW paid AS SELECT id, total FROM orders WHERE status = 'paid';
CREATE MATERIALIZED VIEW totals AS SELECT customer, sum(total) AS total FROM orders GROUP BY customer;
CREATE UNIQUE INDEX ON totals (customer);
"""

ROWS = r"""
SET search_path = shop, extensions, pg_catalog;
INSERT INTO customers (email, name, labels)
    SELECT 'c' || n || '@example.org', 'Customer ' || n || E'\t\\ \n', hstore('n', n::text)
    FROM generate_series(1, greatest({rows} / 10, 1)) n;
INSERT INTO products (name, price, box, facts)
    SELECT 'product ' || n, n * 1.25, row(n, 2 * n)::size, jsonb_build_object('n', n, 'tags', array['a', 'ü "', null])
    FROM generate_series(1, greatest({rows} / 10, 1)) n;
INSERT INTO orders
    SELECT n, date '2025-01-01' + (n * 7 % 1000)::int, 1 + n % greatest({rows} / 10, 1),
        (enum_range(null::status))[1 + n % 4], n * 0.5
    FROM generate_series(1, {rows}) n;
INSERT INTO events SELECT (enum_range(null::status))[1 + n % 4], md5(n::text) FROM generate_series(1, {rows} / 5) n;
INSERT INTO documents
    SELECT n, (SELECT string_agg(md5(n || '.' || m), '') FROM generate_series(1, 800) m),
        decode(repeat('00ff5c2e', n), 'hex')
    FROM generate_series(1, 5) n;
INSERT INTO kinds VALUES (
    1, 'NaN', 'NaN', '1 year -2 days 03:04:05.678', 'infinity', B'10110', array['', null, 'a,b', '{{}}"\'],
    '{{{{1,2}},{{3,4}}}}', '[1,5)', '00000000-0000-4000-8000-000000000001', '10.0.0.1/8', '(1.5,-0)', 'a b:3', '\',
    '\x00010a0d5c2e', '\N'
), (
    2, '-Infinity', 123456789012345678901234567890.0000000001, '-00:00:00.000001', '0001-01-01 BC', B'00000', '{{}}',
    '{{}}', 'empty', null, '::1', null, '', '', '', ''
);
INSERT INTO kinds (id, f, n, t, w) VALUES
    (3, 0.1, -0.0, '2026-11-23 22:16:14.123456+01', E'\\.'),
    (4, 1e-300, 1e100, 'epoch', E'\r\n\t\b\f\v\\n ü 🐘 '),
    (5, null, null, null, null);
INSERT INTO animals VALUES ('cat', 4);
INSERT INTO birds VALUES (2, 2, 'duck'), (2, 2, 'owl');
INSERT INTO carts SELECT n, md5(n::text) FROM generate_series(1, 10) n;
INSERT INTO nothing SELECT FROM generate_series(1, 3);
SELECT nextval('downwards') FROM generate_series(1, 5);
REFRESH MATERIALIZED VIEW totals;
"""


def fill_shop(connection: psycopg.Connection[Any], rows: int = 500, large_objects: int = 4) -> None:
    """Fills an empty database: `rows` orders, and fewer of everything else. The session's search_path stays as it was.

    The first large object is empty. The roles belong to the cluster and stay.
    """
    for role in (OWNER, READER):
        _create_role(connection, role)
    with connection.transaction():
        search_path = connection.execute("SHOW search_path").fetchone()
        connection.execute(STATEMENTS.encode())
        _create_hostile(connection)
        connection.execute(ROWS.format(rows=rows).encode())
        _create_large_objects(connection, large_objects)
        connection.execute("SELECT set_config('search_path', %s, false)", search_path)
    connection.execute("ANALYZE")


def count_rows(connection: psycopg.Connection[Any]) -> dict[tuple[str, str], int]:
    """The rows of every ordinary table outside the system's schemas, by (schema, name)."""
    found = connection.execute(
        "SELECT nspname, relname FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace"
        " WHERE relkind = 'r' AND nspname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1, 2"
    ).fetchall()
    counts = {}
    for schema, name in found:
        statement = sql.SQL("SELECT count(*) FROM ONLY {}").format(sql.Identifier(schema, name))
        row = connection.execute(statement).fetchone()
        assert row is not None
        counts[schema, name] = row[0]
    return counts


def _create_role(connection: psycopg.Connection[Any], name: str) -> None:
    if connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [name]).fetchone() is None:
        connection.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(name)))


def _create_hostile(connection: psycopg.Connection[Any]) -> None:
    connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(HOSTILE_SCHEMA)))
    table = sql.Identifier(HOSTILE_SCHEMA, HOSTILE_TABLE)
    column = sql.Identifier('co"l\numn')
    connection.execute(sql.SQL("CREATE TABLE {} ({} text, b int)").format(table, column))
    connection.execute(sql.SQL("INSERT INTO {} VALUES ('one', 1), (E'two\n', 2)").format(table))
    connection.execute(sql.SQL("COMMENT ON COLUMN {}.{} IS 'x'").format(table, column))
    sequence = sql.Identifier(HOSTILE_SCHEMA, HOSTILE_SEQUENCE)
    connection.execute(sql.SQL("CREATE SEQUENCE {}").format(sequence))
    connection.execute("SELECT setval(%s, 42)", [sequence.as_string(connection)])


def _create_large_objects(connection: psycopg.Connection[Any], count: int) -> None:
    """Of 0 to about 600 kB, the first ones empty, small and larger than a page; owned, granted and described."""
    generator = random.Random(1)
    sizes = [0, 10, 5_000, 600_000]
    for number in range(count):
        content = generator.randbytes(sizes[number] if number < len(sizes) else number % 100)
        row = connection.execute("SELECT lo_from_bytea(0, %s)", [content]).fetchone()
        assert row is not None
        if number == 1:
            connection.execute(f'ALTER LARGE OBJECT {row[0]} OWNER TO "{OWNER}"'.encode())
            connection.execute(f"GRANT SELECT ON LARGE OBJECT {row[0]} TO {READER}".encode())
            connection.execute(f"COMMENT ON LARGE OBJECT {row[0]} IS 'a scan'".encode())
