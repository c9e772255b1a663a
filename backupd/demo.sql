-- The small shop of `backupd demo`: one of most things that a real database has, the same in every run.

CREATE SCHEMA sales;
CREATE SCHEMA stock;
CREATE SCHEMA web;

CREATE TYPE sales.status AS ENUM ('new', 'paid', 'sent', 'returned');

CREATE TABLE sales.customers (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL,
    email text NOT NULL UNIQUE,
    tags text[],
    since date NOT NULL
);
CREATE TABLE stock.products (
    id serial PRIMARY KEY,
    name text NOT NULL,
    price numeric(10, 2) NOT NULL CHECK (price > 0),
    facts jsonb
);
CREATE TABLE stock.pictures (product int PRIMARY KEY REFERENCES stock.products, picture bytea NOT NULL);
CREATE TABLE stock.price_changes (
    product int NOT NULL REFERENCES stock.products,
    old_price numeric(10, 2) NOT NULL,
    new_price numeric(10, 2) NOT NULL
);
CREATE TABLE stock."Größe, ""Maß"" & Co." ("Nr." int PRIMARY KEY, "cm²" numeric, "what; --" text);
CREATE TABLE sales.orders (
    id bigint PRIMARY KEY,
    customer bigint NOT NULL REFERENCES sales.customers,
    ordered_at timestamptz NOT NULL,
    status sales.status NOT NULL,
    note text
);
CREATE TABLE sales.order_lines (
    "order" bigint REFERENCES sales.orders,
    line int,
    product int NOT NULL REFERENCES stock.products,
    quantity int NOT NULL,
    price numeric(10, 2) NOT NULL,
    PRIMARY KEY ("order", line)
);
CREATE TABLE sales.contracts (customer bigint PRIMARY KEY REFERENCES sales.customers, scan oid NOT NULL);
CREATE TABLE web.visits (at timestamptz NOT NULL, path text NOT NULL, visitor uuid, milliseconds real)
    PARTITION BY RANGE (at);
CREATE TABLE web.visits_q1 PARTITION OF web.visits FOR VALUES FROM ('2026-01-01Z') TO ('2026-04-01Z');
CREATE TABLE web.visits_q2 PARTITION OF web.visits FOR VALUES FROM ('2026-04-01Z') TO ('2026-07-01Z');
CREATE TABLE web.visits_q3 PARTITION OF web.visits FOR VALUES FROM ('2026-07-01Z') TO ('2026-10-01Z');
CREATE TABLE web.visits_rest PARTITION OF web.visits DEFAULT;

INSERT INTO sales.customers (name, email, tags, since)
    SELECT 'Customer ' || n, 'c' || n || '@example.org', ARRAY['a' || n % 7, NULL, '"'], date '2019-01-01' + n % 2500
    FROM generate_series(1, 20000) n;
INSERT INTO stock.products (name, price, facts)
    SELECT 'Product ' || n, 1 + n % 400 + 0.99, jsonb_build_object('weight', n % 90, 'colour', 'grün')
    FROM generate_series(1, 2000) n;
INSERT INTO stock.pictures
    SELECT n, (SELECT string_agg(sha256((n || '.' || m)::bytea), '') FROM generate_series(1, 100) m)
    FROM generate_series(1, 200) n;
INSERT INTO stock."Größe, ""Maß"" & Co."
    SELECT n, n * 1.5, E'a tab\t, a backslash \\, two\nlines and \\. at ' || n FROM generate_series(1, 50) n;
INSERT INTO sales.orders
    SELECT n, 1 + (hashint8(n) & 16383), timestamptz '2026-01-01Z' + n * interval '8 minutes',
        (enum_range(NULL::sales.status))[1 + n % 4], CASE WHEN n % 20 = 0 THEN 'a present, wrap it' END
    FROM generate_series(1, 60000) n;
INSERT INTO sales.order_lines
    SELECT 1 + n / 3, n % 3, 1 + (hashint8(n) & 1023), 1 + n % 5, 1 + n % 400 + 0.99
    FROM generate_series(0, 149999) n;
INSERT INTO sales.contracts
    SELECT n, lo_from_bytea(0, (SELECT string_agg(sha256((n || '-' || m)::bytea), '') FROM generate_series(1, n * 500) m))
    FROM generate_series(1, 8) n;
INSERT INTO web.visits
    SELECT timestamptz '2026-01-01Z' + n * interval '6 minutes', '/product/' || n % 2000, md5(n::text)::uuid,
        (hashint8(n) & 4095) / 8.0
    FROM generate_series(0, 79999) n;

CREATE INDEX ON sales.orders (customer);
CREATE INDEX ON sales.order_lines (product);
CREATE INDEX ON web.visits (at);

CREATE FUNCTION stock.note_price() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO stock.price_changes VALUES (NEW.id, OLD.price, NEW.price);
    RETURN NEW;
END $$;
CREATE TRIGGER note_price AFTER UPDATE OF price ON stock.products
    FOR EACH ROW WHEN (OLD.price <> NEW.price) EXECUTE FUNCTION stock.note_price();
UPDATE stock.products SET price = price + 1 WHERE id % 4 = 0;

CREATE VIEW sales.turnover AS
    SELECT o.status, sum(l.quantity * l.price) AS turnover
    FROM sales.orders o JOIN sales.order_lines l ON l."order" = o.id GROUP BY o.status;
CREATE MATERIALIZED VIEW web.busiest AS
    SELECT path, count(*) AS visits FROM web.visits GROUP BY path HAVING count(*) > 30;
COMMENT ON TABLE sales.orders IS 'what was ordered; when; by whom';
