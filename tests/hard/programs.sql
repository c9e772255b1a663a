-- event triggers, functions of every kind, operators, aggregates, operator classes, languages, transforms of text search
CREATE FUNCTION allow() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
CREATE EVENT TRIGGER sees_tables ON ddl_command_end WHEN TAG IN ('CREATE TABLE', 'DROP TABLE') EXECUTE FUNCTION allow();
CREATE EVENT TRIGGER is_off ON sql_drop EXECUTE FUNCTION allow();
ALTER EVENT TRIGGER is_off DISABLE;
CREATE EVENT TRIGGER on_replicas ON ddl_command_start EXECUTE FUNCTION allow();
ALTER EVENT TRIGGER on_replicas ENABLE REPLICA;
CREATE FUNCTION add(a int, b int DEFAULT 2, VARIADIC rest int[] DEFAULT '{}', OUT sum int, OUT why text)
    LANGUAGE plpgsql STABLE PARALLEL SAFE COST 7 SECURITY DEFINER SET search_path = pg_catalog, "odd ""one"
    SET work_mem = '3MB' AS $x$ BEGIN sum := a + b; why := $y$it's $$ here$y$; END $x$;
CREATE FUNCTION standard(a int) RETURNS TABLE (b int) LANGUAGE sql BEGIN ATOMIC SELECT a + 1; SELECT a; END;
CREATE PROCEDURE does(INOUT x int) LANGUAGE plpgsql AS 'BEGIN x := 1; COMMIT; END';
CREATE FUNCTION near(a int, b int) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT abs(a - b) < 2';
CREATE OPERATOR <~> (FUNCTION = near, LEFTARG = int, RIGHTARG = int, COMMUTATOR = <~>, RESTRICT = eqsel, JOIN = eqjoinsel);
CREATE FUNCTION flip(a int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT -a';
CREATE OPERATOR !!! (FUNCTION = flip, RIGHTARG = int);
CREATE AGGREGATE product(float8) (SFUNC = float8mul, STYPE = float8, INITCOND = '1', PARALLEL = safe);
CREATE AGGREGATE moving(int) (SFUNC = int4_sum, STYPE = int8, MSFUNC = int4_avg_accum, MINVFUNC = int4_avg_accum_inv,
    MSTYPE = int8[], MFINALFUNC = int2int4_sum, MINITCOND = '{0,0}');
CREATE FUNCTION backwards(a text, b text) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT bttextcmp(b, a)';
CREATE OPERATOR FAMILY backwards_family USING btree;
CREATE OPERATOR CLASS backwards_ops FOR TYPE text USING btree FAMILY backwards_family AS
    OPERATOR 1 > , OPERATOR 2 >=, OPERATOR 3 =, OPERATOR 4 <=, OPERATOR 5 <, FUNCTION 1 backwards(text, text);
CREATE TABLE words (word text, n int);
INSERT INTO words SELECT md5(n::text), n FROM generate_series(1, 50) n;
CREATE INDEX ON words (word backwards_ops);
CREATE INDEX ON words (public.flip(n) DESC NULLS LAST) WHERE n OPERATOR(public.<~>) 7;
CREATE TEXT SEARCH DICTIONARY plain (TEMPLATE = pg_catalog.simple, STOPWORDS = english, ACCEPT = false);
CREATE TEXT SEARCH CONFIGURATION ours (COPY = pg_catalog.english);
ALTER TEXT SEARCH CONFIGURATION ours ALTER MAPPING FOR asciiword, word WITH plain, english_stem;
ALTER TEXT SEARCH CONFIGURATION ours DROP MAPPING FOR email;
CREATE INDEX ON words USING gin (to_tsvector('public.ours', word));
CREATE STATISTICS both_columns (dependencies, ndistinct, mcv) ON word, n FROM words;
CREATE STATISTICS of_expression ON (n % 3), lower(word) FROM words;
ALTER STATISTICS both_columns SET STATISTICS 50;
CREATE ACCESS METHOD another TYPE TABLE HANDLER heap_tableam_handler;
CREATE TABLE in_another (n int) USING another;
INSERT INTO in_another SELECT generate_series(1, 9);
CREATE CONVERSION odd_conversion FOR 'LATIN1' TO 'UTF8' FROM iso8859_1_to_utf8;
CREATE COLLATION plain_c (PROVIDER = libc, LOCALE = 'C');
CREATE TABLE collated (a text COLLATE plain_c, b text COLLATE "POSIX");
INSERT INTO collated VALUES ('ä', 'b'), ('B', 'a');
CREATE INDEX ON collated (b COLLATE plain_c);
