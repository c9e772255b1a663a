"""What `doctor --print-...` prints is enough, and nothing in it is too much: each right is taken away in turn."""

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fake_s3 import Fake, Upload, Version
from fix_postgres import DatabaseFactory, PostgresServer
from fix_restore import NewName, RestoreClients
from fix_store import ACCESS_KEY, S3Server
from fix_tools import Ended, Site, s3_site
from psycopg import sql
from structlog.testing import capture_logs

from backupd import fetch, grants, retention
from backupd.commands import shared
from backupd.errors import BackupdError, UsageError
from backupd.progress import Progress
from backupd.retention import Policy
from backupd.store import S3Options

MakeFake = Callable[..., tuple[Fake, S3Server]]
MakeSite = Callable[..., Site]
URL = "s3://backups/a/prefix"
KEY = "arn:aws:kms:eu-central-1:123456789012:key/x"
LOCKED: dict[str, Any] = {"object_lock": "governance", "object_lock_for": timedelta(days=1)}
ENCRYPTED: dict[str, Any] = {"sse": "aws:kms", "kms_key_id": KEY}


# --- S3


@dataclass(frozen=True)
class Case:
    """An installation whose store is a fake that knows what each credential may do."""

    fake: Fake
    here: Site
    database: str
    versions: dict[str, list[Version]] = field(default_factory=dict)

    def allow(self, kind: str, but: str = "") -> None:
        """Lets the credential do from now on what is printed for that kind, but for one action."""
        policy = grants.policies(URL, self.here.s3_options)[kind]
        self.fake.policies[ACCESS_KEY] = {
            "Statement": [
                {**statement, "Action": [action for action in statement["Action"] if action != but]}
                for statement in policy["Statement"]
            ]
        }

    def actions(self, kind: str) -> list[str]:
        """All that is printed for that kind."""
        policy = grants.policies(URL, self.here.s3_options)[kind]
        return [action for statement in policy["Statement"] for action in statement["Action"]]

    def prepare(self) -> None:
        """Two backups, only the newer locked (if any is), and an upload that somebody left long ago."""
        self.fake.policies.clear()
        if not self.versions:
            self.here.take(self.database)
            self.fake.expire_locks()
            self.here.take(self.database)
            self.versions.update({key: list(found) for key, found in self.fake.versions.items()})
        self.fake.versions = {key: list(found) for key, found in self.versions.items()}
        long_ago = self.fake.now - timedelta(days=9)
        self.fake.uploads = {"x": Upload(f"a/prefix/prod/{self.database}/x.tar", {}, long_ago)}

    def take(self) -> None:
        """A third backup, which also sweeps."""
        self.here.take(self.database)
        assert self.fake.uploads == {}

    def fetch(self, folder: Path) -> None:
        """All that a restore reads."""
        found = self.here.catalog
        backup = found.find(f"{self.database}@latest")
        folder.mkdir()
        fetch.members(found, backup, self.here.index(backup), folder, Progress())

    def prune(self) -> None:
        """Down to one backup, as far as locks allow."""
        found = self.here.catalog
        listing = found.backups("prod", self.database)
        assert listing.broken == ()
        plan = retention.plan(listing.backups, Policy(last=1, floor=1), self.fake.now)
        assert plan.removed
        shared.carry_out(found, plan)


def complaints(act: Callable[[], object]) -> list[str]:
    """What fails, or is warned of."""
    with capture_logs() as events:
        try:
            act()
        except (BackupdError, AssertionError) as exc:
            return [str(exc)]
    return [str(event) for event in events if event["log_level"] in ("warning", "error")]


@pytest.fixture
def case_of(
    fake_s3: MakeFake, site: MakeSite, postgres17: PostgresServer, shop_of: Callable[[PostgresServer], str]
) -> Callable[..., Case]:
    """A fake in some configuration, as `prepare` leaves it."""

    def make(**options: Any) -> Case:
        fake, server = fake_s3(locks=True)
        here = s3_site(site, postgres17, server)
        here.s3_options = server.options(region="us-east-1", **options)
        made = Case(fake, here, shop_of(postgres17))
        made.prepare()
        return made

    return make


@pytest.fixture
def case(case_of: Callable[..., Case]) -> Case:
    """With all that takes rights of its own: a lock and a key."""
    return case_of(**LOCKED, **ENCRYPTED)


@pytest.mark.slow
def test_without_locks_and_keys_fewer_actions_are_enough(case_of: Callable[..., Case], tmp_path: Path) -> None:
    case = case_of()
    fetch: Callable[[], None] = partial(case.fetch, tmp_path / "x")
    for kind, act in (("restore", fetch), ("backup", case.take), ("prune", case.prune)):
        case.allow(kind)
        assert complaints(act) == []
    assert "kms" not in json.dumps(grants.policies(URL, case.here.s3_options))
    assert len(case.here.listed()) == 1


@pytest.mark.slow
def test_the_policy_of_backups_is_enough_and_each_action_is_needed(case: Case) -> None:
    case.allow("backup")
    assert complaints(case.take) == []
    assert len(case.actions("backup")) == 9
    for action in case.actions("backup"):
        case.prepare()
        case.allow("backup", but=action)
        assert complaints(case.take) != [], f"{action} is not needed"


@pytest.mark.slow
def test_the_policy_of_restores_is_enough_and_each_action_is_needed(case: Case, tmp_path: Path) -> None:
    case.allow("restore")
    assert complaints(partial(case.fetch, tmp_path / "whole")) == []
    assert (tmp_path / "whole" / "toc.dat").exists()
    for action in case.actions("restore"):
        case.allow("restore", but=action)
        assert complaints(partial(case.fetch, tmp_path / action)) != [], f"{action} is not needed"


@pytest.mark.slow
def test_the_policy_of_pruning_is_enough_and_each_action_is_needed(case: Case) -> None:
    case.here.take(case.database)  # of three one goes, and one is locked
    for action in case.actions("prune"):
        case.allow("prune", but=action)
        assert complaints(case.prune) != [], f"{action} is not needed"
    case.fake.policies.clear()
    assert len(case.here.listed()) == 2  # without s3:GetObjectRetention the first went too
    case.prepare()
    case.here.take(case.database)
    case.allow("prune")
    assert complaints(case.prune) == []
    case.fake.policies.clear()
    assert len(case.here.listed()) == 2


def test_another_prefix_and_another_bucket_are_out_of_reach(fake_s3: MakeFake) -> None:
    fake, server = fake_s3()
    for policy in grants.policies("s3://backups/a/pre", S3Options()).values():
        fake.policies[ACCESS_KEY] = policy
        with pytest.raises(BackupdError, match="could not list"):
            list(server.store().list())
    assert all("arn:aws-cn:s3" in json.dumps(each) for each in grants.policies(URL, S3Options(region="cn-x")).values())


def test_a_folder_has_no_policies() -> None:
    with pytest.raises(UsageError, match="no bucket"):
        grants.policies("file:///b", S3Options())
    with pytest.raises(UsageError, match="no bucket"):
        grants.lifecycle("file:///b", None, S3Options())


# --- PostgreSQL


@dataclass(frozen=True)
class Granted:
    """A database with row security, a large object and nothing for PUBLIC, and two roles as the SQL makes them."""

    here: Site
    server: PostgresServer
    database: str
    maintenance: str
    backup_role: str
    restore_role: str
    owner: str

    def psql(self, script: str) -> None:
        """Runs it as the documentation says."""
        argv = [str(self.server.bin_directory / "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-h", self.server.host]
        argv += ["-p", str(self.server.port), "-U", self.server.user, "-d", "postgres"]
        ended = subprocess.run(argv, input=script, text=True, capture_output=True, check=False)
        assert ended.returncode == 0, ended.stderr

    def sql(self, statement: str) -> None:
        """As a superuser in the database; `{backup}`, `{restore}`, `{owner}`, `{database}`... are names."""
        names = {
            "backup": self.backup_role,
            "restore": self.restore_role,
            "owner": self.owner,
            "database": self.database,
            "maintenance": self.maintenance,
        }
        with self.server.connect(self.database) as connection:
            made = sql.SQL(statement).format(**{key: sql.Identifier(name) for key, name in names.items()})
            connection.execute(made)

    def run(self, *arguments: str, **settings: str) -> Ended:
        """The command line with these two roles."""
        return self.here.run(*arguments, **settings)

    def grants(self, database: str) -> tuple[str, list[str]]:
        """The owner of a database, and who may do what in it."""
        query = (
            "SELECT pg_get_userbyid(datdba), array(SELECT a::text FROM unnest(datacl) a ORDER BY 1) FROM pg_database"
            " WHERE datname = %s"
        )
        with self.server.connect() as connection:
            row = connection.execute(query, [database]).fetchone()
        assert row is not None
        return row[0], row[1]

    def restored(self) -> Ended:
        """Replaces the database while a stranger is in it."""
        with self.server.connect(self.database, user=self.backup_role):
            return self.run("restore", f"{self.database}@latest", "--replace", self.database)


PLAIN = "CREATE TABLE plain AS SELECT n FROM generate_series(1, 10) n"
"""What everybody has: a table in public that belongs to the database's owner."""

HARD = """
CREATE TABLE seen (id int GENERATED ALWAYS AS IDENTITY, note text);
INSERT INTO seen (note) SELECT md5(n::text) FROM generate_series(1, 20) n;
CREATE TABLE mine (id int);
INSERT INTO mine VALUES (1);
ALTER TABLE mine ENABLE ROW LEVEL SECURITY;
CREATE TABLE forced (id int);
INSERT INTO forced VALUES (1);
ALTER TABLE forced ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
SELECT lo_from_bytea(0, 'scan');
"""


@pytest.fixture
def granted(
    site: MakeSite, database: DatabaseFactory, new_role: Callable[..., str], request: pytest.FixtureRequest
) -> Granted:
    """What the SQL made, for the server that the test names (17 unless it does)."""
    server: PostgresServer = request.getfixturevalue(f"postgres{getattr(request, 'param', 17)}")
    owner, backup_role, restore_role = (
        new_role(server, name=f"{word} {os.getpid()}") for word in ("ow'ner", "b\\u", "r=e")
    )
    name, maintenance = database(server, 'it\'s="a"'), database(server, "maintenance")
    here = site(server, BACKUPD_SOURCE__USER=backup_role, BACKUPD_TARGET__USER=restore_role)
    here.settings |= {"BACKUPD_TARGET__PASSWORD": server.password, "BACKUPD_TARGET__DATABASE": maintenance}
    here.settings |= {"BACKUPD_SOURCE__DATABASES": name}
    made = Granted(here, server, name, maintenance, backup_role, restore_role, owner)
    for statement in (
        "ALTER DATABASE {database} OWNER TO {owner}",
        "REVOKE CONNECT ON DATABASE {database} FROM PUBLIC",
        "REVOKE CONNECT ON DATABASE {maintenance} FROM PUBLIC",
        "ALTER ROLE {backup} NOLOGIN",
        "ALTER ROLE {restore} NOLOGIN",
    ):
        made.sql(statement)
    with server.connect(name) as connection:
        connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(owner)))
        connection.execute(PLAIN)
        connection.execute("CREATE SCHEMA own")
        connection.execute("SET search_path = own")
        for line in HARD.strip().splitlines():
            connection.execute(line.encode())
    made.psql(here.run("doctor", "--print-sql").stdout)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("granted", [15, 17, 18], ids="postgres{}".format, indirect=True)
def test_the_printed_sql_is_enough_to_back_up_to_replace_and_to_undo(granted: Granted) -> None:
    taken = granted.run("backup")
    assert taken.code == 0, taken.stderr
    before = granted.grants(granted.database)
    restored = granted.restored()
    assert restored.code == 0, restored.stderr
    assert granted.grants(granted.database) == before
    undone = granted.run("undo", granted.database)
    assert undone.code == 0, undone.stderr
    granted.psql(granted.run("doctor", "--print-sql").stdout)  # and again changes nothing


@pytest.mark.slow
@pytest.mark.parametrize("granted", [15, 17, 18], ids="postgres{}".format, indirect=True)
def test_the_printed_sql_is_enough_to_restore_into_a_new_database(granted: Granted, new_name: NewName) -> None:
    taken = granted.run("backup")
    assert taken.code == 0, taken.stderr
    name = new_name(granted.server)
    restored = granted.run("restore", f"{granted.database}@latest", "--as", name)
    assert restored.code == 0, restored.stderr
    assert granted.grants(name) == granted.grants(granted.database)
    with granted.server.connect(name) as connection:
        query = "SELECT pg_get_userbyid(relowner) FROM pg_class WHERE relname = 'plain'"
        assert connection.execute(query).fetchone() == (granted.owner,)


@pytest.mark.slow
@pytest.mark.parametrize("granted", [15, 17], ids="postgres{}".format, indirect=True)
def test_the_owner_gets_into_no_database_that_has_not_proved_equal(
    granted: Granted, new_name: NewName, restore_clients: RestoreClients
) -> None:
    assert granted.run("backup").code == 0
    quoted = granted.owner.replace("'", "\\'")
    script = '"$real" "$@" || exit\n' + f"""target="$target user='{quoted}'"\n""" + 'psql "SELECT 1" && exit 99\nexit 0'
    clients = restore_clients(granted.server, script)
    name = new_name(granted.server)
    restored = granted.run("restore", f"{granted.database}@latest", "--as", name, BACKUPD_DUMP__CLIENTS=str(clients))
    assert restored.code == 0, restored.stderr
    assert "permission denied for database" in restored.stderr
    with granted.server.connect(name, user=granted.owner):
        pass


@pytest.mark.slow
def test_a_role_that_could_not_count_forced_rows_is_told_before_anything_is_written(granted: Granted) -> None:
    assert granted.run("backup").code == 0
    granted.sql("ALTER ROLE {restore} NOBYPASSRLS")
    refused = granted.run("restore", f"{granted.database}@latest", "--as", "never made")
    assert refused.code == 12, refused.stderr
    assert "own.forced" in refused.error["detail"]
    assert "own.mine" not in refused.error["detail"]
    assert [event["event"] for event in refused.events] == ["run.finished", "run.failed"]  # the preflight did not pass


@pytest.mark.slow
def test_without_forced_row_security_nobody_bypasses_any_for_restores(granted: Granted) -> None:
    granted.sql("ALTER ROLE {restore} NOBYPASSRLS")
    granted.sql("DROP TABLE own.forced")
    granted.psql(granted.run("doctor", "--print-sql").stdout)
    with granted.server.connect() as connection:
        query = "SELECT rolbypassrls FROM pg_roles WHERE rolname = %s"
        assert connection.execute(query, [granted.restore_role]).fetchone() == (False,)
    assert granted.run("backup").code == 0
    restored = granted.restored()
    assert restored.code == 0, restored.stderr


_MAINTENANCE = "GRANT CONNECT ON DATABASE {maintenance} TO {restore}"


def _objects(verb: str, word: str) -> str:
    """A DO block for every large object, with the role's name as a dollar-quoted identifier."""
    return (
        "DO $do$ DECLARE o oid; BEGIN FOR o IN SELECT oid FROM pg_largeobject_metadata LOOP"
        f" EXECUTE '{verb} SELECT ON LARGE OBJECT ' || o || ' {word} ' || $name${{backup}}$name$; END LOOP; END $do$"
    )


@pytest.mark.slow
def test_each_right_of_the_role_of_backups_is_needed(granted: Granted) -> None:
    for away, back in {
        "ALTER ROLE {backup} NOLOGIN": "ALTER ROLE {backup} LOGIN",
        "REVOKE pg_read_all_data FROM {backup}": "GRANT pg_read_all_data TO {backup}",
        "REVOKE CONNECT ON DATABASE {database} FROM {backup}": "GRANT CONNECT ON DATABASE {database} TO {backup}",
        "ALTER ROLE {backup} NOBYPASSRLS": "ALTER ROLE {backup} BYPASSRLS",
        _objects("REVOKE", "FROM"): _objects("GRANT", "TO"),
    }.items():
        granted.sql(away)
        assert granted.run("backup").code in (12, 18), f"works after {away}"
        granted.sql(back)
    assert granted.run("backup").code == 0


@pytest.mark.slow
def test_each_right_of_the_role_of_restores_is_needed(granted: Granted) -> None:
    assert granted.run("backup").code == 0
    for away, back in {
        "ALTER ROLE {restore} NOLOGIN": "ALTER ROLE {restore} LOGIN",
        "ALTER ROLE {restore} NOCREATEDB": "ALTER ROLE {restore} CREATEDB",
        "REVOKE {owner} FROM {restore}": "GRANT {owner} TO {restore}",
        "REVOKE CONNECT ON DATABASE {maintenance} FROM {restore}": _MAINTENANCE,
        "REVOKE pg_signal_backend FROM {restore}": "GRANT pg_signal_backend TO {restore}",
        "ALTER ROLE {restore} NOBYPASSRLS": "ALTER ROLE {restore} BYPASSRLS",
    }.items():
        granted.sql(away)
        assert granted.restored().code in (12, 15, 18), f"works after {away}"
        granted.sql(back)
    assert granted.restored().code == 0


@pytest.mark.parametrize(("role", "database"), [("a\nb", "app"), ("a", "b\nDROP"), ("a", "\x1b]2")])
def test_a_name_that_no_script_can_hold_is_refused(role: str, database: str) -> None:
    with pytest.raises(UsageError, match="control characters"):
        grants.backup_sql(role, [database])


@pytest.mark.slow
def test_the_sql_of_restores_does_not_end_where_a_database_is_not_there_yet(granted: Granted) -> None:
    granted.psql(grants.restore_sql(granted.restore_role, granted.maintenance, ["not yet", granted.database]))


def test_where_patterns_name_the_databases_the_sql_says_what_to_run_in_each() -> None:
    text = grants.backup_sql("backup", ["*"])
    assert "In each database" in text
    assert "\\connect" not in text
    assert 'GRANT CONNECT ON DATABASE "postgres"' in text
    assert "\\connect" not in grants.restore_sql("restore", "postgres", ["*"])
