-- views, recursive ones, materialised views on each other, rules, circular dependencies between view and function
CREATE TABLE facts (day date, amount int);
INSERT INTO facts SELECT date '2026-01-01' + n % 20, n FROM generate_series(1, 100) n;
CREATE VIEW recent WITH (security_barrier, check_option = local) AS SELECT * FROM facts WHERE amount > 50;
CREATE MATERIALIZED VIEW by_day AS SELECT day, sum(amount) AS total FROM facts GROUP BY day;
CREATE UNIQUE INDEX ON by_day (day);
CREATE MATERIALIZED VIEW by_month AS SELECT date_trunc('month', day) AS month, sum(total) AS total FROM by_day GROUP BY 1;
CREATE MATERIALIZED VIEW of_both AS SELECT d.day, d.total / m.total AS part FROM by_day d, by_month m, recent r
    WHERE r.day = d.day WITH DATA;
CREATE MATERIALIZED VIEW never_filled AS SELECT * FROM of_both WITH NO DATA;
CREATE VIEW on_materialised AS SELECT * FROM by_month;
CREATE RECURSIVE VIEW numbers (n) AS SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 10;
CREATE TABLE log (what text, at int);
CREATE RULE logged AS ON INSERT TO facts WHERE NEW.amount < 0 DO ALSO INSERT INTO log VALUES ('negative', NEW.amount);
CREATE RULE no_delete AS ON DELETE TO log DO INSTEAD NOTHING;
CREATE RULE redirected AS ON UPDATE TO on_materialised DO INSTEAD UPDATE facts SET amount = 0 WHERE false;
INSERT INTO facts VALUES ('2026-02-01', -5);
REFRESH MATERIALIZED VIEW by_day;
REFRESH MATERIALIZED VIEW by_month;
REFRESH MATERIALIZED VIEW of_both;
CREATE VIEW circular AS SELECT 1 AS x;
CREATE FUNCTION of_view() RETURNS SETOF circular LANGUAGE sql AS 'SELECT 1';
CREATE OR REPLACE VIEW circular AS SELECT x FROM of_view();
CREATE VIEW grouped AS SELECT day, amount, count(*) OVER w FROM facts WINDOW w AS (PARTITION BY day ORDER BY amount);
CREATE TABLE keyed (id int PRIMARY KEY, name text);
CREATE VIEW by_key AS SELECT id, name, count(*) FROM keyed GROUP BY id;
