-- domains, composites, ranges, multiranges, arrays, enums, base types of one's own, casts
CREATE SCHEMA "odd types";
CREATE TYPE mood AS ENUM ('fine', 'it''s bad', 'ü', '');
ALTER TYPE mood ADD VALUE 'between' BEFORE 'ü';
CREATE TYPE point3 AS (x float8, y float8, "z z" numeric(10, 3));
CREATE TYPE "odd types".nested AS (p point3, moods mood[], note text COLLATE "C");
CREATE DOMAIN positive AS int CHECK (VALUE > 0) DEFAULT 1;
CREATE DOMAIN small_positive AS positive CONSTRAINT "at most" CHECK (VALUE < 100) NOT NULL;
CREATE DOMAIN triple AS int[] CHECK (array_length(VALUE, 1) = 3);
CREATE DOMAIN of_composite AS point3 CHECK ((VALUE).x IS NOT NULL);
CREATE FUNCTION text_gap(a text, b text) RETURNS float8 LANGUAGE sql IMMUTABLE AS 'SELECT 1.0::float8';
CREATE TYPE textrange AS RANGE (subtype = text, subtype_diff = text_gap, collation = "C");
CREATE TYPE positiverange AS RANGE (subtype = positive, multirange_type_name = many_positives);
CREATE TABLE values_of_all (
    m mood, ms mood[], p point3, ps point3[], n "odd types".nested, ns "odd types".nested[],
    d positive, s small_positive, t triple, c of_composite, r textrange, rs textrange[], mr int4multirange,
    pr positiverange, mpr many_positives, whole "odd types".nested[][]
);
INSERT INTO values_of_all VALUES (
    'it''s bad', '{"ü",NULL,"",fine}', ROW(1.5, -0.0, 3), ARRAY[ROW(1, 2, 3)::point3, NULL],
    ROW(ROW(1, NULL, 2), '{fine}', E'a "quoted", (nested) \\ text\n'), ARRAY[ROW(NULL, NULL, '')::"odd types".nested],
    5, 6, '{1,2,3}', ROW(1, 2, 3), '[a,"b,)")', '{"[a,b)",empty}', '{[1,2),[5,9)}', '[1,5)', '{[1,2),[7,9)}',
    ARRAY[ARRAY[ROW(NULL, '{}', NULL)::"odd types".nested]]
), (NULL, '{}', NULL, '{}', NULL, NULL, NULL, 7, NULL, ROW(0, NULL, NULL), 'empty', NULL, '{}', NULL, NULL, NULL);
CREATE TABLE of_a_type OF point3 (x NOT NULL, PRIMARY KEY (x));
INSERT INTO of_a_type VALUES (1, 2, 3), (4, NULL, NULL);
CREATE TABLE arrays (a int[], b text[][], c int[], d bytea[]);
INSERT INTO arrays VALUES ('[-1:1]={1,2,3}', '{{"a,b","\"q\""},{NULL,"null"}}', '{}', '{"\\x00ff"}');
CREATE TYPE shell_only;
CREATE FUNCTION pair_in(cstring) RETURNS shell_only AS 'int8in' LANGUAGE internal IMMUTABLE STRICT;
CREATE FUNCTION pair_out(shell_only) RETURNS cstring AS 'int8out' LANGUAGE internal IMMUTABLE STRICT;
CREATE TYPE shell_only (INPUT = pair_in, OUTPUT = pair_out, INTERNALLENGTH = 8, PASSEDBYVALUE, ALIGNMENT = double);
CREATE CAST (shell_only AS int8) WITHOUT FUNCTION AS ASSIGNMENT;
CREATE CAST (point3 AS mood) WITH INOUT;
CREATE TABLE of_base (v shell_only);
INSERT INTO of_base VALUES ('42'), ('-7'), (NULL);
