"""The doctor on real servers and stores: a healthy installation passes, each broken thing is named with its code."""

import contextlib
import functools
import json
import os
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fix_encryption import NewKey
from fix_postgres import DatabaseFactory, PostgresServer, standby_of, wait_for
from fix_store import SECRET_KEY, FaultProxy, S3Server
from fix_tools import Site, Wire, small_disk
from made_keys import made_keys, made_secret

from backupd import doctor, dump, locks, postgres, process
from backupd.clients import Client, find_clients
from backupd.doctor import Subject
from backupd.encryption import Identities
from backupd.errors import UsageError
from backupd.finding import Finding
from backupd.postgres import Access
from backupd.retention import Policy
from backupd.signing import Keys
from backupd.store import S3Options

CANARY = "a-password-that-no-finding-may-hold"
HINT = re.compile(r"As a superuser run: (.*)")
PRIVILEGES = ("schemas", "tables", "sequences", "large objects", "row security")


def now() -> datetime:
    return datetime.now(UTC)


@functools.cache
def clients_in(folder: Path) -> tuple[Client, ...]:
    return tuple(client for client in find_clients([folder], {}) if client.folder == folder)


@dataclass(frozen=True)
class Case:
    """A healthy installation for one database of a real server: its role may read everything and write nothing."""

    server: PostgresServer
    database: str
    role: str
    folder: Path

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def run(self, *statements: str) -> None:
        """As a superuser, in the database; `{role}` is ours."""
        with self.server.connect(self.database) as connection:
            for statement in statements:
                connection.execute(statement.replace("{role}", f'"{self.role}"').encode())

    def reach(
        self, password: str = CANARY, database: str = "", **keywords: str
    ) -> Callable[[], contextlib.AbstractContextManager[Access]]:
        """As `Installation.source` does it, by TCP, where the password counts."""
        server = self.server.as_server(password, **{"host": "127.0.0.1", "user": self.role, **keywords})
        return functools.partial(postgres.reach, server, database or self.database, self.folder, "backupd doctor")

    def subject(self, **changes: Any) -> Subject:
        healthy = Subject(
            source=self.reach(),
            databases=lambda access: [self.database],
            password_from="BACKUPD_SOURCE__PASSWORD",
            passfile=self.folder / "none",
            clients=clients_in(self.server.bin_directory),
            client_folders=[],
            options=dump.Options(),
            scratch=self.folder / "scratch",
            scratch_limit_bytes=None,
            store_url=self.store.as_uri(),
            s3_options=S3Options(),
            policy=Policy(daily=7),
        )
        return replace(healthy, **changes)

    def examine(self, clock: Callable[[], datetime] = now, **changes: Any) -> dict[str, Finding]:
        return examined(self.subject(**changes), clock)

    def of(self, check: str) -> str:
        return f"{check} of {self.database}"

    def privileges(self, **changes: Any) -> dict[str, Finding]:
        """The findings about privileges that are not fine, by the check's name."""
        found = self.examine(store_url=None, **changes)
        return {name: found[self.of(name)] for name in PRIVILEGES if found[self.of(name)].status != "ok"}

    def take_advice(self, finding: Finding) -> None:
        """Does to the letter what the hint says."""
        advice = HINT.fullmatch(finding.hint or "")
        assert advice is not None, finding
        statement, gexec, _ = advice[1].partition(" \\gexec")
        with self.server.connect(self.database) as connection:
            rows = connection.execute(statement.encode())
            for row in rows.fetchall() if gexec else []:
                connection.execute(row[0].encode())


def examined(subject: Subject, clock: Callable[[], datetime] = now) -> dict[str, Finding]:
    """The findings by name; none holds a secret, and a failure has a code that nothing else has."""
    findings = doctor.examine(subject, clock)
    for finding in findings:
        assert CANARY not in f"{finding}"
        assert SECRET_KEY not in f"{finding}"
        assert (finding.status == "fail") == (finding.exit_code != 0), finding
        assert finding.hint or finding.status in ("ok", "skip"), finding
    by_name = {finding.name: finding for finding in findings}
    assert len(by_name) == len(findings)
    return by_name


def failed(findings: dict[str, Finding]) -> dict[str, int]:
    return {name: finding.exit_code for name, finding in findings.items() if finding.status == "fail"}


def with_status(findings: dict[str, Finding], status: str) -> set[str]:
    return {name for name, finding in findings.items() if finding.status == status}


CaseFactory = Callable[[PostgresServer], Case]


@pytest.fixture
def case_of(database: DatabaseFactory, tmp_path: Path) -> Iterator[CaseFactory]:
    """Makes a healthy installation: `case_of(postgres18)`."""
    made: list[Case] = []

    def make(server: PostgresServer) -> Case:
        case = Case(server, database(server), f"doctor's {secrets.token_hex(4)}", tmp_path)
        for folder in (case.store, tmp_path / "scratch"):
            folder.mkdir()
        case.run(
            f"CREATE ROLE {{role}} LOGIN PASSWORD '{CANARY}' IN ROLE pg_read_all_data",
            "ALTER ROLE {role} SET default_transaction_read_only = on",
            "CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY)",
        )
        made.append(case)
        return case

    yield make
    for case in made:
        case.run("DROP OWNED BY {role}", "DROP ROLE {role}")


@pytest.fixture
def case(postgres17: PostgresServer, case_of: CaseFactory) -> Case:
    """A healthy installation for PostgreSQL 17."""
    return case_of(postgres17)


# --- health


def test_a_healthy_installation_has_nothing_but_the_age_of_its_client(case: Case) -> None:
    found = case.examine()

    assert with_status(found, "ok") == found.keys() - {"pg_dump"}
    assert found["pg_dump"].status == ("ok" if clients_in(case.server.bin_directory)[0].safe else "warn")
    assert "nothing is missing" in found[case.of("tables")].text


def test_nothing_is_left_in_store_scratch_and_server(case: Case) -> None:
    case.examine()

    assert sorted(case.folder.rglob("*")) == [case.folder / "scratch", case.store]
    with case.server.connect() as connection:
        query = "SELECT count(*) FROM pg_stat_activity WHERE usename = %s"
        deadline = time.monotonic() + 5
        while connection.execute(query, [case.role]).fetchone() != (0,):
            assert time.monotonic() < deadline, "sessions are left"
        assert connection.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").fetchone() == (0,)


@pytest.mark.slow
def test_a_healthy_installation_passes_on_every_server(any_postgres: PostgresServer, case_of: CaseFactory) -> None:
    assert failed(case_of(any_postgres).examine()) == {}


def test_without_a_source_only_machine_and_store_are_tried(case: Case) -> None:
    found = case.examine(source=None)

    assert with_status(found, "warn") == {"source"}
    assert failed(found) == {}
    assert found["store put"].status == "ok"


def test_without_a_store_only_machine_and_source_are_tried(case: Case) -> None:
    found = case.examine(store_url=None)

    assert found["store"].status == "warn"
    assert failed(found) == {}
    assert found[case.of("tables")].status == "ok"


def test_an_installation_without_source_and_store_is_no_healthy_one(case: Case) -> None:
    assert failed(case.examine(source=None, store_url=None)) == {"settings": 2}


def test_no_retention_policy_is_said_and_no_failure(case: Case) -> None:
    found = case.examine(policy=None)

    assert found["retention"].status == "warn"
    assert "BACKUPD_RETENTION__KEEP_DAILY" in (found["retention"].hint or "")
    assert failed(found) == {}


def test_who_is_notified_and_which_hooks_run_is_tried_without_telling_or_running_any(case: Case) -> None:
    secret = "correct-horse-battery"
    fine = case.examine(
        source=None, notify_urls=[f"json://127.0.0.1:1/{secret}"], hooks={"before": ["sh", "-c", "exit 1"]}
    )
    wrong = case.examine(source=None, notify_urls=[f"nonsense://{secret}"], hooks={"after": ["no-such-program"]})

    assert failed(fine) == {}
    assert fine["notifications"].text == "1 URLs are understood"
    assert fine["hooks"].text == "before: the programs are there"
    assert failed(wrong) == {"notifications": 2, "hooks": 2}
    assert "no-such-program" in wrong["hooks"].text
    assert "nonsense is no notification URL" in wrong["notifications"].text
    assert secret not in str(wrong)


def test_what_is_signed_and_what_is_trusted_is_said(case: Case) -> None:
    pair, public = made_keys(1, 2), made_secret().public
    for keys, status, text, hint in (
        (Keys(), "ok", "what nobody signed is taken for as good as what somebody did; nothing is signed", ""),
        (pair, "ok", "signs, and only what one of 2 keys signed is trusted", ""),
        (Keys(trusted=pair.trusted), "ok", "only what one of 2 keys signed is trusted; nothing is signed", ""),
        (Keys(pair.secret), "warn", "signs, but what nobody signed", f"BACKUPD_SIGNING__PUBLIC_KEYS={public}"),
    ):
        found = case.examine(source=None, keys=functools.partial(Keys, keys.secret, keys.trusted))["signing"]
        assert (found.status, text in found.text, hint in (found.hint or "")) == (status, True, True), found
    takes = case.examine(keys=functools.partial(Keys, None, pair.trusted))["signing"]
    assert (takes.status, "BACKUPD_SIGNING__KEY_FILE" in (takes.hint or "")) == ("warn", True)


def test_keys_that_do_not_belong_together_are_a_failure_that_names_the_one_to_add(case: Case) -> None:
    found = case.examine(source=None, keys=lambda: Keys(made_secret(1), made_keys(2).trusted))["signing"]

    assert (found.status, found.exit_code) == ("fail", 2)
    assert str(made_secret(1).public) in (found.hint or "")


def test_what_is_encrypted_is_opened_where_a_private_key_is_at_hand(case: Case, new_key: NewKey) -> None:
    ours, other, protected = new_key(), new_key(), new_key("ssh-ed25519", "a passphrase")
    to = (ours.recipient,)
    for recipients, key, status, text in (
        ((), None, "ok", "backups are in clear"),
        (to, None, "ok", "encrypted to 1 public keys, and no private key is here"),
        (to, ours, "ok", "can be opened here"),
        (to, other, "warn", "none of the identities opens"),
        (to, protected, "fail", "is protected by a passphrase"),
    ):
        identities = Identities(key.path if key else None)
        found = case.examine(source=None, recipients=recipients, identities=identities)["encryption"]
        assert (found.status, text in found.text) == (status, True), found


# --- the way to the server


def test_a_wrong_password_fails_the_connection_and_skips_what_needs_it(case: Case) -> None:
    found = case.examine(source=case.reach(password=f"{CANARY}-but-wrong"))

    assert failed(found) == {"connection": 12}
    assert "password authentication failed" in found["connection"].text
    assert "pg_hba.conf" in (found["connection"].hint or "")
    assert with_status(found, "skip") == {"TLS", "server clock", "pg_dump", "standby", "databases"}
    assert found["store delete"].status == "ok"


def test_a_server_that_is_down_fails_the_connection(case: Case) -> None:
    found = case.examine(source=case.reach(port="1"))

    assert failed(found) == {"connection": 18}
    assert "BACKUPD_SOURCE__HOST" in (found["connection"].hint or "")


def test_a_pooler_in_between_is_found(case: Case, wire: Callable[..., Wire]) -> None:
    between = wire(case.server)

    def with_its_own_pid(data: bytes) -> bytes:
        return re.sub(rb"K\0\0\0\x0c....", b"K\0\0\0\x0c\0\0\0\x07", data, flags=re.DOTALL)

    between.rewrite = with_its_own_pid
    found = case.examine(source=case.reach(port=str(between.port)))

    assert failed(found) == {"connection": 18}
    assert "pooler" in found["connection"].text
    assert "direct port" in (found["connection"].hint or "")


def test_the_second_store_is_tried_too_and_its_hints_name_its_own_settings(case: Case, tmp_path: Path) -> None:
    found = case.examine(source=None, second=((tmp_path / "second").as_uri(), S3Options()))

    assert found["store put"].status == "ok"
    assert failed(found) == {"second store list": 10}
    assert "BACKUPD_COPY__URL" in (found["second store list"].hint or "")
    (tmp_path / "second").mkdir()
    found = case.examine(source=None, second=((tmp_path / "second").as_uri(), S3Options()))
    assert found["second store delete"].status == "ok"
    assert failed(found) == {}


def test_a_missing_database_is_named_and_the_others_are_tried(case: Case) -> None:
    found = case.examine(databases=lambda access: ["not_there", case.database])

    assert failed(found) == {"database not_there": 2}
    assert found["tables of not_there"].status == "skip"
    assert found[case.of("tables")].status == "ok"


def test_a_database_that_the_role_may_not_enter_is_named_with_the_grant(case: Case) -> None:
    case.run(f"REVOKE CONNECT ON DATABASE {case.database} FROM PUBLIC")
    found = case.examine(source=case.reach(database="postgres"))

    assert failed(found) == {f"database {case.database}": 12}
    grant = (found[f"database {case.database}"].hint or "").removeprefix("Run: ")
    with case.server.connect() as connection:
        connection.execute(grant.encode())
    assert failed(case.examine(source=case.reach(database="postgres"))) == {}


def test_databases_that_cannot_be_told_fail_by_name(case: Case) -> None:
    def none(access: Access) -> Sequence[str]:
        raise UsageError("no database is named", hint="Name one.")

    assert failed(case.examine(databases=none)) == {"databases": 2}


@pytest.mark.parametrize(
    ("origin", "mode", "status", "text"),
    [
        ("BACKUPD_SOURCE__PASSWORD_FILE", None, "ok", "from BACKUPD_SOURCE__PASSWORD_FILE"),
        ("PGPASSFILE", 0o600, "ok", "from PGPASSFILE"),
        ("PGPASSFILE", 0o640, "ok", "libpq alone would ignore it for its mode 0640"),
        (None, 0o600, "ok", "from "),
        (None, 0o644, "warn", "libpq ignores"),
        (None, None, "ok", "none is set"),
    ],
)
def test_the_origin_of_the_password_is_told(
    case: Case, origin: str | None, mode: int | None, status: str, text: str
) -> None:
    passfile = case.folder / "pgpass-of-the-user"
    if mode is not None:
        passfile.write_text(f"*:*:*:*:{CANARY}\n")
        passfile.chmod(mode)
    found = case.examine(source=case.reach(port="1"), store_url=None, password_from=origin, passfile=passfile)[
        "password"
    ]

    assert found.status == status
    assert text in found.text


@pytest.mark.slow
def test_the_state_of_tls_is_told(
    own_postgres: Callable[..., tuple[PostgresServer, Callable[[], None]]], case_of: CaseFactory, tmp_path: Path
) -> None:
    plain, _ = own_postgres()
    certificate = make_certificate(plain.data_directory)
    with plain.connect() as connection:
        for name, value in {"ssl_cert_file": certificate, "ssl_key_file": certificate.with_suffix(".key")}.items():
            connection.execute(f"ALTER SYSTEM SET {name} = '{value}'".encode())
        connection.execute("ALTER SYSTEM SET ssl = on")
        connection.execute("SELECT pg_reload_conf()")
    case = case_of(plain)
    encrypted = case.examine(store_url=None)["TLS"]
    checked = case.examine(store_url=None, source=case.reach(sslmode="verify-full", sslrootcert=str(certificate)))
    local = case.examine(store_url=None, source=case.reach(host=plain.host))

    assert encrypted.status == "warn"
    assert "TLSv1" in encrypted.text
    assert "BACKUPD_SOURCE__SSLMODE=verify-full" in (encrypted.hint or "")
    assert checked["TLS"].status == "ok"
    assert "verify-full" in checked["TLS"].text
    assert "local socket" in local["TLS"].text


def make_certificate(folder: Path) -> Path:
    """A certificate for 127.0.0.1 that signs itself, and its key beside, both the server's."""
    path = folder / "server.crt"
    words = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    key = path.with_suffix(".key")
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    argv = ["openssl", *words.split(), "-keyout", str(key), "-out", str(path)]
    subprocess.run(argv, check=True, capture_output=True)
    owner = folder.stat()
    for each in (path, key):
        os.chown(each, owner.st_uid, owner.st_gid)
    key.chmod(0o600)
    return path


def test_clocks_that_differ_are_told(case: Case) -> None:
    found = case.examine(lambda: now() + timedelta(hours=2))

    assert found["server clock"].status == found["store clock"].status == "warn"
    assert "behind" in found["server clock"].text
    assert failed(found) == {}


# --- clients


def test_a_client_older_than_the_server_is_refused(case: Case, tmp_path: Path) -> None:
    old = fake_clients(tmp_path / "old", "9.6.24")
    found = case.examine(clients=clients_in(old), client_folders=[old])

    assert failed(found) == {"pg_dump": 13}
    assert "9.6" in found["pg_dump"].text
    assert f"postgresql-client-{case.server.major}" in (found["pg_dump"].hint or "")
    assert "BACKUPD_DUMP__CLIENTS" in (found["pg_dump"].hint or "")


def test_a_client_newer_than_the_server_is_a_doubt(case: Case, tmp_path: Path) -> None:
    new = fake_clients(tmp_path / "new", "99.0")
    found = case.examine(clients=clients_in(new))

    assert failed(found) == {}
    assert found["pg_dump"].status == "warn"
    assert "newer than the server" in found["pg_dump"].text


def test_no_client_at_all_is_a_failure(case: Case) -> None:
    assert failed(case.examine(clients=[])) == {"clients": 13, "pg_dump": 13}


def test_a_folder_without_pg_restore_is_named(case: Case, tmp_path: Path) -> None:
    half = fake_clients(tmp_path / "half", "17.12")
    (half / "pg_restore").unlink()
    found = case.examine(client_folders=[half])

    assert failed(found) == {"clients": 2}
    assert str(half / "pg_restore") in found["clients"].text
    assert str(half / "pg_dump") not in found["clients"].text


@pytest.mark.parametrize("name", ["missing", "n" * 300])
def test_a_folder_that_cannot_be_looked_into_has_no_clients(tmp_path: Path, name: str) -> None:
    there = fake_clients(tmp_path / "clients", "17.12")

    found = {each.folder for each in find_clients([tmp_path / name, there], {})}

    assert there in found
    assert tmp_path / name not in found


def test_a_pg_restore_of_another_version_is_found(case: Case, tmp_path: Path) -> None:
    mixed = fake_clients(tmp_path / "mixed", "17.12", restore_version="9.6.24")
    found = case.examine(clients=clients_in(mixed))

    assert failed(found) == {"clients": 13}
    assert str(mixed / "pg_restore") in found["clients"].text


def fake_clients(folder: Path, version: str, restore_version: str | None = None) -> Path:
    folder.mkdir()
    for name, said in {"pg_dump": version, "pg_restore": restore_version or version}.items():
        (folder / name).write_text(f"#!/bin/sh\necho '{name} (PostgreSQL) {said}'\n")
        (folder / name).chmod(0o755)
    return folder


# --- privileges

LIMITED = "REVOKE pg_read_all_data FROM {role}"
MAY_READ = "GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}"
MAY_COUNT = "GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO {role}"
EXTENSION = "CREATE EXTENSION hstore; CREATE TABLE part_of_it (id int); ALTER EXTENSION hstore ADD TABLE part_of_it"
CONFIGURED = (
    *EXTENSION.split("; "),
    "SET allow_system_table_mods = on",
    "UPDATE pg_extension SET extconfig = ARRAY['part_of_it'::regclass::oid], extcondition = ARRAY['']"
    " WHERE extname = 'hstore'",
)
BREAKAGES: dict[str, tuple[str, ...]] = {
    "nothing": (),
    "a table": (LIMITED, MAY_COUNT),
    "a partition's root": (
        "CREATE TABLE root (id int) PARTITION BY LIST (id)",
        "CREATE TABLE leaf PARTITION OF root DEFAULT",
        LIMITED,
        MAY_READ,
        MAY_COUNT,
        "REVOKE SELECT ON root FROM {role}",
    ),
    "an identity's sequence": (LIMITED, MAY_READ),
    "a schema": (
        "CREATE SCHEMA closed",
        "CREATE TABLE closed.t (id int)",
        LIMITED,
        MAY_READ,
        MAY_COUNT,
        "GRANT SELECT ON ALL TABLES IN SCHEMA closed TO {role}",
    ),
    "a schema of sequences": (
        "CREATE SCHEMA closed",
        "CREATE SEQUENCE closed.s",
        LIMITED,
        MAY_READ,
        MAY_COUNT,
        "GRANT SELECT ON ALL SEQUENCES IN SCHEMA closed TO {role}",
    ),
    "a large object": ("SELECT lo_from_bytea(4711, 'secret')",),
    "a public large object": ("SELECT lo_from_bytea(4711, 'x')", "GRANT SELECT ON LARGE OBJECT 4711 TO PUBLIC"),
    "a large object of its own": ("SELECT lo_from_bytea(4711, 'x')", "ALTER LARGE OBJECT 4711 OWNER TO {role}"),
    "row security": ("ALTER TABLE t ENABLE ROW LEVEL SECURITY",),
    "row security of a root": (
        "CREATE TABLE root (id int) PARTITION BY LIST (id)",
        "CREATE TABLE leaf PARTITION OF root DEFAULT",
        "ALTER TABLE root ENABLE ROW LEVEL SECURITY",
    ),
    "row security, owned": ("ALTER TABLE t ENABLE ROW LEVEL SECURITY", "ALTER TABLE t OWNER TO {role}"),
    "row security, owned and forced": (
        "ALTER TABLE t ENABLE ROW LEVEL SECURITY",
        "ALTER TABLE t FORCE ROW LEVEL SECURITY",
        "ALTER TABLE t OWNER TO {role}",
    ),
    "views and foreign tables": (
        "CREATE MATERIALIZED VIEW m AS SELECT 1 AS one",
        "CREATE VIEW v AS SELECT * FROM t",
        "CREATE FOREIGN DATA WRAPPER w",
        "CREATE SERVER s FOREIGN DATA WRAPPER w",
        "CREATE FOREIGN TABLE f (id int) SERVER s",
        LIMITED,
        MAY_COUNT,
        "GRANT SELECT ON t TO {role}",
    ),
    "an extension's table": (*EXTENSION.split("; "), LIMITED, MAY_COUNT, "GRANT SELECT ON t TO {role}"),
    "an extension's configuration": (*CONFIGURED, LIMITED, MAY_COUNT, "GRANT SELECT ON t TO {role}"),
    "an extension's configuration in pg_catalog": (
        *CONFIGURED,
        "ALTER TABLE part_of_it SET SCHEMA pg_catalog",
        LIMITED,
        MAY_COUNT,
        "GRANT SELECT ON t TO {role}",
    ),
}


# where the three differ: how sequences and large objects are read
ELSEWHERE = ("an identity's sequence", "a schema of sequences", "a large object")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("major", "breakage"),
    [(17, each) for each in BREAKAGES] + [(major, each) for major in (15, 18) for each in ELSEWHERE],
)
def test_the_doctor_and_pg_dump_agree_about_privileges(
    request: pytest.FixtureRequest, case_of: CaseFactory, major: int, breakage: str
) -> None:
    case = case_of(request.getfixturevalue(f"postgres{major}"))
    case.run(*BREAKAGES[breakage])
    found = case.privileges()

    assert {finding.exit_code for finding in found.values()} <= {12}
    assert (found == {}) == (complaint_of_pg_dump(case) == "")
    for finding in found.values():
        case.take_advice(finding)
    assert case.privileges() == {}
    assert complaint_of_pg_dump(case) == ""


def complaint_of_pg_dump(case: Case) -> str:
    """What the server's own pg_dump has to say, as our role; nothing where it ends with 0."""
    environment = {
        "PGHOST": "127.0.0.1",
        "PGPORT": str(case.server.port),
        "PGUSER": case.role,
        "PGPASSWORD": CANARY,
        "LC_ALL": "C",
    }
    argv = [
        str(case.server.bin_directory / "pg_dump"),
        "--format=custom",
        "--no-sync",
        "--file=/dev/null",
        case.database,
    ]
    ended = process.run(argv, environment)
    return ended.stderr if ended.status else ""


@pytest.mark.parametrize(
    ("breakage", "check", "words"),
    [
        ("a table", "tables", "may not read table public.t"),
        ("an identity's sequence", "sequences", "may not read sequence public.t_id_seq"),
        ("a schema", "schemas", "may not use schema closed"),
        ("a large object", "large objects", "may not read large object 4711"),
        ("row security", "row security", "table public.t"),
    ],
)
def test_a_missing_privilege_is_named_with_the_statement_that_gives_it(
    case: Case, breakage: str, check: str, words: str
) -> None:
    case.run(*BREAKAGES[breakage])
    found = case.privileges()

    assert found.keys() == {check}
    assert found[check].exit_code == 12
    assert found[check].text.endswith(words)
    case.take_advice(found[check])
    assert case.privileges() == {}


def test_of_many_missing_five_are_named_and_the_others_counted(case: Case) -> None:
    case.run(LIMITED, MAY_COUNT, *(f'CREATE TABLE "T {number}" ()' for number in range(7)))
    found = case.privileges()["tables"]

    assert found.text.count("public.") == 5
    assert found.text.endswith(" and 3 more")


def test_what_a_filter_may_leave_out_is_a_doubt(case: Case) -> None:
    case.run(LIMITED, MAY_COUNT)
    found = case.privileges(options=dump.Options(exclude=("public.t",)))

    assert found["tables"].status == "warn"
    assert "BACKUPD_DUMP__EXCLUDE" in found["tables"].text


# --- snapshot, locks, standby


def test_a_lock_that_another_session_holds_is_told_with_its_holder(case: Case) -> None:
    with case.server.connect(case.database, application_name="backupd of another pod") as connection:
        connection.execute("SELECT pg_advisory_lock(%s, %s)", locks.SOURCE)
        found = case.examine(store_url=None)
        pid = connection.info.backend_pid

    assert found[case.of("lock")].status == "warn"
    assert "backupd of another pod" in found[case.of("lock")].text
    assert str(pid) in found[case.of("lock")].text
    assert failed(found) == {}


@pytest.mark.slow
def test_a_lock_table_too_small_for_parallel_jobs_is_told(
    own_postgres: Callable[..., tuple[PostgresServer, Callable[[], None]]], case_of: CaseFactory
) -> None:
    server, _ = own_postgres(max_connections="10", max_wal_senders="0", max_locks_per_transaction="10")
    case = case_of(server)
    case.run(*(f"CREATE TABLE t{number} ()" for number in range(60)))
    parallel, single = (case.examine(options=dump.Options(jobs=jobs))[case.of("lock table")] for jobs in (2, 1))
    case.run(*(f"CREATE TABLE u{number} ()" for number in range(60)))
    hopeless = case.examine(options=dump.Options(jobs=1))[case.of("lock table")]

    assert single.status == "ok"
    assert parallel.status == hopeless.status == "warn"
    assert "one job" in parallel.text
    assert "likely to fail" in hopeless.text
    assert "max_locks_per_transaction = 26" in (parallel.hint or "")


@pytest.mark.slow
def test_a_standby_is_looked_at(
    own_postgres: Callable[..., tuple[PostgresServer, Callable[[], None]]], case_of: CaseFactory, tmp_path: Path
) -> None:
    primary, _ = own_postgres()
    case = case_of(primary)
    with standby_of(primary) as standby:
        wait_for(standby, "SELECT FROM pg_roles WHERE rolname = %s", case.role)
        there = replace(case, server=standby)
        unsafe = there.examine()
        safe = there.examine(source=functools.partial(reached_as, there, 170012))
        with standby.connect() as connection:
            connection.execute("ALTER SYSTEM SET hot_standby_feedback = on")
            connection.execute("SELECT pg_reload_conf()")
        wait_for(standby, "SELECT WHERE current_setting('hot_standby_feedback') = %s", "on")
        calm = there.examine(source=functools.partial(reached_as, there, 170012))

    assert failed(unsafe) == failed(safe) == failed(calm) == {}
    assert "a standby" in unsafe["connection"].text
    assert unsafe["standby"].status == "warn"
    assert "one job" in unsafe["standby"].text
    assert "not shared" in unsafe[case.of("snapshot")].text
    assert "hot_standby_feedback" in (safe["standby"].hint or "")
    assert "taken over" in safe[case.of("snapshot")].text
    assert calm["standby"].status == "ok"


@contextlib.contextmanager
def reached_as(case: Case, version_num: int) -> Iterator[Access]:
    """The server, saying that it is of another version: one that is safe may not be there to test with."""
    with case.reach()() as access:
        yield replace(access, version_num=version_num)


# --- scratch


def test_scratch_that_is_not_there_is_a_failure(case: Case) -> None:
    found = case.examine(scratch=case.folder / "not there")

    assert failed(found) == {"scratch": 2, case.of("room for a dump"): 2}
    assert "BACKUPD_SCRATCH__DIRECTORY" in (found["scratch"].hint or "")


def test_scratch_too_small_for_the_database_is_a_failure_with_the_bytes(case: Case) -> None:
    with small_disk(case.folder / "small", 1) as small:
        doubtful = case.examine(scratch=small, store_url=None)
        (small / "filler").write_bytes(bytes(600_000))
        found = case.examine(scratch=small, store_url=None)

    assert failed(doubtful) == {}
    assert doubtful[case.of("room for a dump")].status == "warn"
    assert failed(found) == {case.of("room for a dump"): 17}
    assert re.search(r"needs \d+ bytes of scratch, .* has \d+$", found[case.of("room for a dump")].text)


def test_scratch_beside_the_store_and_scratch_in_memory_are_told(case: Case) -> None:
    beside = case.examine(source=None)["scratch"].text
    with small_disk(case.folder / "small", 1) as small:
        memory = case.examine(source=None, scratch=small)["scratch"].text

    assert "same file system as the store" in beside
    assert "same file system" not in memory
    assert "in memory" in memory


# --- the store


def test_a_store_that_is_not_mounted_is_a_failure(case: Case) -> None:
    found = case.examine(source=None, store_url=(case.folder / "not mounted").as_uri())

    assert failed(found) == {"store list": 10}
    assert "Mount the volume" in (found["store list"].hint or "")
    assert with_status(found, "skip") == {
        f"store {name}" for name in ("put", "get", "range", "clock", "delete", "abort", "durability", "keys")
    }


def test_a_read_only_store_is_a_failure(case: Case) -> None:
    with read_only(case.folder / "read only") as folder:
        found = case.examine(source=None, store_url=folder.as_uri())

    assert failed(found) == {"store put": 12}
    assert "BACKUPD_STORE__URL" in (found["store put"].hint or "")
    assert found["store list"].status == "ok"
    assert found["store delete"].status == "skip"


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[Path]:
    """A folder that may not be written to; root needs more than its mode for that."""
    if os.geteuid() == 0:
        with small_disk(folder, 1):
            subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
            yield folder
    else:
        folder.mkdir(mode=0o555)
        yield folder


def test_a_full_store_is_a_failure_and_keeps_nothing_of_the_probe(case: Case) -> None:
    with small_disk(case.folder / "full", 1) as full:
        found = case.examine(source=None, store_url=full.as_uri())
        left = list(full.iterdir())

    assert failed(found) == {"store abort": 17}
    assert left == []


def test_a_store_in_memory_is_a_doubt(case: Case) -> None:
    with small_disk(case.folder / "memory", 8) as memory:
        found = case.examine(source=None, store_url=memory.as_uri())

    assert failed(found) == {}
    assert found["store durability"].status == "warn"
    assert "in memory" in found["store durability"].text


def in_bucket(server: S3Server, tmp_path: Path, **changes: Any) -> Subject:
    """A store under a prefix of the bucket, and no source."""
    settings: dict[str, Any] = {
        "source": None,
        "databases": lambda access: [],
        "password_from": None,
        "passfile": tmp_path / "none",
        "clients": clients_in(fake_clients(tmp_path / "clients", "17.12")),
        "client_folders": [],
        "options": dump.Options(),
        "scratch": tmp_path,
        "scratch_limit_bytes": None,
        "store_url": f"s3://{server.bucket}/a/prefix",
        "s3_options": server.options(),
        "policy": Policy(daily=7),
    }
    return Subject(**settings | changes)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["moto", "rclone"])
def test_a_bucket_passes_and_is_left_as_it_was(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    server: S3Server = request.getfixturevalue(f"{kind}_s3")
    subject = in_bucket(server, tmp_path)
    found = {name: each for name, each in examined(subject).items() if name.startswith("store")}

    assert with_status(found, "ok") == found.keys()
    assert {"store multipart", "store abort", "store clock"} <= found.keys()
    assert server.keys() == []
    assert server.uploads() == []


@pytest.mark.slow
def test_wrong_s3_credentials_are_a_failure_without_a_secret(
    rclone_s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", f"{SECRET_KEY}-but-wrong")
    found = examined(in_bucket(rclone_s3, tmp_path))

    assert failed(found) == {"store list": 12}
    assert found["store put"].status == "skip"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("refused", "failures", "skipped"),
    [
        ("GET /BUCKET[?]list-type=2", "list", "put get range clock delete keys abort multipart versions lock"),
        ("PUT ", "put", "get range clock delete keys abort multipart lock"),
        ("GET /BUCKET/a/prefix/backupd-doctor-[0-9a-f]+$", "get range", ""),
        ("POST ", "abort multipart", ""),
        ("GET /BUCKET[?]uploads", "abort", ""),
    ],
)
def test_each_permission_that_a_policy_lacks_is_named(
    rclone_s3: S3Server,
    fault_proxy: Callable[[S3Server], tuple[FaultProxy, S3Server]],
    tmp_path: Path,
    refused: str,
    failures: str,
    skipped: str,
) -> None:
    proxy, between = fault_proxy(rclone_s3)
    pattern = re.compile(refused.replace("BUCKET", rclone_s3.bucket))
    proxy.rule = lambda method, path, number: "403 AccessDenied" if pattern.match(f"{method} {path}") else None
    found = examined(in_bucket(between, tmp_path))

    assert failed(found) == {f"store {name}": 12 for name in failures.split()}
    assert all("s3:" in (found[name].hint or "") for name in failed(found))
    assert with_status(found, "skip") == {f"store {name}" for name in skipped.split()}
    assert rclone_s3.keys() == []
    assert rclone_s3.uploads() == []


@pytest.mark.slow
def test_what_was_written_before_a_failure_is_deleted(
    rclone_s3: S3Server, fault_proxy: Callable[[S3Server], tuple[FaultProxy, S3Server]], tmp_path: Path
) -> None:
    proxy, between = fault_proxy(rclone_s3)

    def refuse_lists_after_the_write(method: str, path: str, number: int) -> str | None:
        written = any(line.startswith("PUT ") for line in proxy.seen)
        return "403 AccessDenied" if written and "list-type=2" in path else None

    proxy.rule = refuse_lists_after_the_write
    found = examined(in_bucket(between, tmp_path))

    assert failed(found) == {"store put": 12}
    assert "not tried: store put failed" in found["store abort"].text
    assert rclone_s3.keys() == []


@pytest.mark.slow
def test_a_service_that_is_down_is_waited_for_once(
    rclone_s3: S3Server, fault_proxy: Callable[[S3Server], tuple[FaultProxy, S3Server]], tmp_path: Path
) -> None:
    proxy, between = fault_proxy(rclone_s3)
    proxy.rule = lambda method, path, number: "501 NotImplemented"
    found = examined(in_bucket(between, tmp_path))

    assert failed(found) == {"store list": 10}
    assert all(line.startswith("GET ") for line in proxy.seen)


# --- the command line


@pytest.mark.slow
def test_doctor_ends_with_0_where_all_is_well(
    site: Callable[..., Site], postgres17: PostgresServer, database: DatabaseFactory
) -> None:
    here = site(postgres17, BACKUPD_SOURCE__DATABASES=database(postgres17))
    text, document = here.run("doctor"), here.run("doctor", "--json")

    assert text.code == document.code == 0
    assert "ok    store delete: " in text.stdout
    findings = json.loads(document.stdout)
    assert findings[0].keys() == {"name", "status", "text", "hint", "exit_code"}
    assert "from BACKUPD_SOURCE__PASSWORD" in [each["text"] for each in findings]
    assert here.objects() == {}
    here.assert_clean()


@pytest.mark.slow
def test_doctor_ends_with_the_code_of_the_first_failure(
    site: Callable[..., Site], postgres17: PostgresServer, database: DatabaseFactory, tmp_path: Path
) -> None:
    here = site(postgres17, BACKUPD_SOURCE__DATABASES="not_there", BACKUPD_STORE__URL=(tmp_path / "none").as_uri())
    here.secrets.append(CANARY)
    missing, refused = here.run("doctor"), here.run("doctor", BACKUPD_SOURCE__PASSWORD=CANARY)

    assert missing.code == 2
    assert "fail  database not_there: " in missing.stdout
    assert "fail  store list: " in missing.stdout
    assert refused.code == 12


@pytest.mark.slow
def test_a_named_folder_without_pg_restore_ends_with_2(
    site: Callable[..., Site], postgres17: PostgresServer, database: DatabaseFactory, tmp_path: Path
) -> None:
    here = site(postgres17, BACKUPD_SOURCE__DATABASES=database(postgres17))
    half = fake_clients(tmp_path / "half", "9.6.24")
    (half / "pg_restore").unlink()

    assert here.run("doctor", BACKUPD_DUMP__CLIENTS=str(half)).code == 2


@pytest.mark.slow
def test_version_shows_the_clients_and_needs_no_right_settings(
    site: Callable[..., Site], postgres17: PostgresServer, tmp_path: Path
) -> None:
    here = site(postgres17, BACKUPD_DUMP__CLIENTS=str(fake_clients(tmp_path / "clients", "17.1")))
    right, wrong = here.run("--version"), here.run("--version", BACKUPD_STORE__URL="nonsense")

    assert right.code == wrong.code == 0
    assert right.stdout.startswith("backupd ")
    assert f"17.1 in {tmp_path / 'clients'}, below 17." in right.stdout
    assert wrong.stdout.startswith("backupd ")
    assert "BACKUPD_STORE__URL" in wrong.stdout
