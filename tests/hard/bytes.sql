-- wide rows, long values, and every byte that COPY escapes
DO $$ BEGIN
    EXECUTE (SELECT 'CREATE TABLE wide (' || string_agg('c' || n || ' int DEFAULT ' || n, ', ') || ')'
        FROM generate_series(1, 1600) n);
END $$;
INSERT INTO wide DEFAULT VALUES;
INSERT INTO wide (c1, c1600) VALUES (NULL, NULL);
CREATE TABLE long (id int, t text, b bytea, x xml);
ALTER TABLE long ALTER t SET STORAGE EXTERNAL, ALTER b SET STORAGE EXTERNAL;
INSERT INTO long VALUES (1, repeat(E'\\\t\n', 700000), decode(repeat('00ff0a5c', 500000), 'hex'));
INSERT INTO long SELECT 2, string_agg(chr(n), '' ORDER BY n), NULL FROM generate_series(1, 60000) n
    WHERE n NOT BETWEEN 55296 AND 57343;
CREATE TABLE escapes (id int, t text, b bytea, c "char", ch char(3), a text[]);
INSERT INTO escapes SELECT n, chr(n), decode(lpad(to_hex(n % 256), 2, '0'), 'hex'), chr(n % 127 + 1)::"char", chr(n), ARRAY[chr(n), NULL]
    FROM generate_series(1, 600) n;
INSERT INTO escapes (id, t) VALUES (1001, '\N'), (1002, E'\\.'), (1003, E'\\.\n'), (1004, ''), (1005, E'\r\n'), (1006, E'\r'),
    (1007, E'\\x00'), (1008, NULL), (1009, E'\\'), (1010, E'a\\\nb'), (1011, E'\b\f\v'), (1012, ' '), (1013, E'\n\\.\n\n\n');
INSERT INTO escapes (id, b) VALUES (2001, '\x'), (2002, '\x00'), (2003, '\x5c2e0a'), (2004, decode(repeat('00', 100000), 'hex'));
CREATE TABLE one_column (t text);
INSERT INTO one_column VALUES (E'\\.'), (''), (NULL), ('\N'), (E'\n'), (E'\\.\n');
CREATE TABLE numbers (f4 float4, f8 float8, n numeric, i interval, ts timestamp, tz timestamptz, d date, tt timetz, m money,
    bt bit varying(9), o oid, l pg_lsn, j json, jb jsonb, jp jsonpath, ts1 tsvector, q tsquery, mac macaddr8, cc cidr,
    pg polygon, ci circle, u uuid, xs xid8, r regclass, na name);
INSERT INTO numbers VALUES ('NaN', 'Infinity', 'NaN', '-178000000 years', '-infinity', '294276-12-31 23:59:59.999999+00',
    '5874897-12-31', '24:00:00-15:59', '-92233720368547758.08', B'101', 4294967295, 'FFFFFFFF/FFFFFFFF', '{"a": 1, "a":  2 }',
    '{"k": "\ufffe", "n": 1e400}', '$.a[*] ? (@ > 1)', '''it''''s'':1A b:2', '!a & (b | c:*)', '08:00:2b:01:02:03:04:05', '10.0.0.0/8',
    '((0,0),(1e308,1),(-0,2))', '<(1,2),3>', '00000000-0000-0000-0000-000000000000', '18446744073709551615', 'pg_class', 'x'),
    ('1e-45', '5e-324', '-0.00', '1 mon -1 day +00:00:00.000001', '4713-01-01 BC', '4714-11-24 00:00:00+00 BC', '4713-01-01 BC', NULL,
    '0', B'', 0, '0/0', 'null', 'null', '$', '', '', NULL, NULL, NULL, NULL, NULL, '0', NULL, '');
INSERT INTO numbers (n) SELECT (repeat('9', 1000) || '.' || repeat('1', 1000))::numeric;
CREATE UNLOGGED TABLE unlogged (id int GENERATED ALWAYS AS IDENTITY, t text);
INSERT INTO unlogged (t) SELECT md5(n::text) FROM generate_series(1, 20) n;
CREATE UNLOGGED TABLE unlogged_toast (b bytea);
INSERT INTO unlogged_toast SELECT decode(repeat('00ff', 50000), 'hex');
