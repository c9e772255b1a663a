-- types, indexes and data of extensions; an extension in a schema of its own; user tables in an extension's schema
CREATE SCHEMA ext;
CREATE EXTENSION hstore SCHEMA ext;
CREATE EXTENSION citext SCHEMA ext;
CREATE EXTENSION pg_trgm SCHEMA ext;
CREATE EXTENSION ltree;
CREATE EXTENSION cube;
CREATE EXTENSION earthdistance;
CREATE EXTENSION intarray;
CREATE EXTENSION unaccent;
CREATE EXTENSION bloom;
CREATE TABLE ext.users (id int, name ext.citext UNIQUE, facts ext.hstore, path ltree, place cube, tags int[]);
INSERT INTO ext.users SELECT n, 'Name' || n, ext.hstore('k', n::text), ('a.b' || n)::ltree, cube(ARRAY[n, -n]), ARRAY[n, n + 1]
    FROM generate_series(1, 40) n;
CREATE INDEX ON ext.users USING gin (facts);
CREATE INDEX ON ext.users USING gist (path);
CREATE INDEX ON ext.users USING gin (tags gin__int_ops);
CREATE INDEX ON ext.users USING gin (name ext.gin_trgm_ops);
CREATE INDEX ON ext.users USING bloom (id) WITH (length = 80);
CREATE VIEW ext.seen AS SELECT facts OPERATOR(ext.->) 'k' AS k FROM ext.users;
