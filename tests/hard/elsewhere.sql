-- foreign tables, servers, user mappings, publications, disabled subscriptions
CREATE EXTENSION postgres_fdw;
CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host 'nowhere.invalid', dbname 'it''s "x"');
CREATE USER MAPPING FOR hard_reader SERVER far OPTIONS (user 'u', password 'p\ass');
CREATE USER MAPPING FOR PUBLIC SERVER far OPTIONS (user 'all');
GRANT USAGE ON FOREIGN SERVER far TO hard_reader;
CREATE FOREIGN TABLE distant (id int OPTIONS (column_name 'ID') NOT NULL, name text DEFAULT 'x')
    SERVER far OPTIONS (table_name 't');
CREATE FOREIGN DATA WRAPPER without_handler OPTIONS (debug 'true');
CREATE SERVER nothing TYPE 'none' VERSION '1' FOREIGN DATA WRAPPER without_handler;
CREATE FOREIGN TABLE unreadable (n int) SERVER nothing;
CREATE TABLE parted (n int) PARTITION BY RANGE (n);
CREATE TABLE parted_near PARTITION OF parted FOR VALUES FROM (0) TO (10);
CREATE EXTENSION file_fdw;
CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;
CREATE FOREIGN TABLE parted_far PARTITION OF parted FOR VALUES FROM (10) TO (20) SERVER files OPTIONS (filename '/dev/null');
INSERT INTO parted SELECT generate_series(0, 9);
CREATE TABLE published (id int PRIMARY KEY, secret text, shown text);
INSERT INTO published SELECT n, 's', 't' FROM generate_series(1, 5) n;
ALTER TABLE published REPLICA IDENTITY FULL;
CREATE PUBLICATION part FOR TABLE published (id, shown) WHERE (id > 2), parted WITH (publish = 'insert, delete');
CREATE PUBLICATION all_of_it FOR ALL TABLES WITH (publish_via_partition_root);
CREATE SCHEMA whole;
CREATE PUBLICATION of_schema FOR TABLES IN SCHEMA whole;
CREATE SUBSCRIPTION unconnected CONNECTION 'host=nowhere.invalid password=x' PUBLICATION part, "oth er"
    WITH (connect = false, slot_name = NONE);
