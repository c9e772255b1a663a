-- names that nobody would choose
CREATE SCHEMA "select";
CREATE SCHEMA "new
line";
CREATE SCHEMA " ";
CREATE SCHEMA "we ird.";
CREATE SCHEMA "we";
CREATE TABLE "select"."table" ("column" int, "or der" text, "ü" int, "'" int, "\" int, "%" int, "{}" int, "$1" int, "
" int);
INSERT INTO "select"."table" VALUES (1, 'x', 2, 3, 4, 5, 6, 7, 8);
CREATE TABLE "new
line"."tab	le" (n int);
INSERT INTO "new
line"."tab	le" VALUES (1), (2);
CREATE TABLE "new line" (n int);
INSERT INTO "new line" VALUES (3);
CREATE TABLE "new
line" (n int);
INSERT INTO "new
line" VALUES (4), (5);
CREATE TABLE " "." " (" " int);
INSERT INTO " "." " VALUES (6);
CREATE TABLE "we ird."."x" (n int);
INSERT INTO "we ird."."x" VALUES (7);
CREATE TABLE "we"."ird. x" (n int);
INSERT INTO "we"."ird. x" VALUES (8), (9);
CREATE TABLE "--dbname=other" (n int);
INSERT INTO "--dbname=other" VALUES (10);
CREATE TABLE "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" (n serial PRIMARY KEY);
INSERT INTO "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" DEFAULT VALUES;
CREATE TABLE "üüüüüüüüüüüüüüüüüüüüüüüüüüüüüüü🐘" (n int);
CREATE TABLE "pg_catalog.pg_class" (n int);
INSERT INTO "pg_catalog.pg_class" VALUES (11);
CREATE TABLE "UPPER" (n int);
CREATE TABLE upper (n int);
INSERT INTO upper VALUES (12);
CREATE SEQUENCE "seq'uence;";
SELECT setval('"seq''uence;"', 77);
CREATE FUNCTION "fun""c(x)"(int) RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE TABLE "TO" (n int);
GRANT SELECT ON "TO" TO "hard owner";
CREATE POLICY "USING" ON "TO" TO hard_reader USING (n IN (SELECT 1 FROM "we"."ird. x"));
