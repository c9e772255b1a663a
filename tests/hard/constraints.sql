-- exclusion and deferred constraints, circles of foreign keys, not valid, actions, matches, triggers of constraints
CREATE EXTENSION btree_gist;
CREATE TABLE bookings (
    room int, during tstzrange,
    EXCLUDE USING gist (room WITH =, during WITH &&) WHERE (room > 0) DEFERRABLE INITIALLY DEFERRED
);
INSERT INTO bookings SELECT n % 3 + 1, tstzrange('2026-01-01 00:00+00'::timestamptz + n * interval '1 day',
    '2026-01-01 00:00+00'::timestamptz + (n + 1) * interval '1 day') FROM generate_series(1, 30) n;
CREATE TABLE eggs (id int PRIMARY KEY, hen int NOT NULL);
CREATE TABLE hens (id int PRIMARY KEY, egg int NOT NULL REFERENCES eggs DEFERRABLE INITIALLY DEFERRED);
ALTER TABLE eggs ADD CONSTRAINT "egg's hen" FOREIGN KEY (hen) REFERENCES hens ON DELETE CASCADE DEFERRABLE;
BEGIN;
SET CONSTRAINTS ALL DEFERRED;
INSERT INTO eggs SELECT n, n FROM generate_series(1, 10) n;
INSERT INTO hens SELECT n, 11 - n FROM generate_series(1, 10) n;
COMMIT;
CREATE TABLE tree (id int PRIMARY KEY, parent int REFERENCES tree ON UPDATE CASCADE ON DELETE SET NULL);
INSERT INTO tree SELECT n, NULLIF(n / 2, 0) FROM generate_series(1, 63) n;
CREATE TABLE checked (a int, b int, UNIQUE (a, b) INCLUDE (b), CHECK (a < b) NOT VALID);
ALTER TABLE checked DISABLE TRIGGER ALL;
INSERT INTO checked VALUES (1, 2), (NULL, NULL), (NULL, NULL);
CREATE UNIQUE INDEX pairs_key ON checked (a, b);
CREATE TABLE pairs (a int, b int, FOREIGN KEY (a, b) REFERENCES checked (a, b) MATCH FULL ON DELETE SET DEFAULT);
INSERT INTO pairs VALUES (1, 2), (NULL, NULL);
CREATE TABLE wrong_now (n int);
INSERT INTO wrong_now VALUES (-1);
ALTER TABLE wrong_now ADD CHECK (n > 0) NOT VALID;
CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE CONSTRAINT TRIGGER looks AFTER INSERT OR UPDATE OF n ON wrong_now DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.n > 5) EXECUTE FUNCTION look();
CREATE TRIGGER sees AFTER UPDATE ON tree REFERENCING OLD TABLE AS before NEW TABLE AS after
    FOR EACH STATEMENT EXECUTE FUNCTION look();
ALTER TABLE tree DISABLE TRIGGER sees;
ALTER TABLE wrong_now ENABLE ALWAYS TRIGGER looks;
CREATE UNIQUE INDEX same ON tree (id);
ALTER TABLE tree REPLICA IDENTITY USING INDEX same;
ALTER TABLE tree CLUSTER ON tree_pkey;
