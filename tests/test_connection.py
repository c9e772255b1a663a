"""connection: password files that libpq itself reads back, and children's environments without secrets."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import conninfo, pq

from backupd import connection
from backupd.connection import Server
from backupd.errors import UsageError

PASSWORDS = st.text(st.characters(exclude_characters="\n\r\0", exclude_categories=["Cs"]), min_size=1)


def libpq_password(passfile: Path) -> str | None:
    """The password that libpq takes from the file for a server that nobody can reach."""
    string = conninfo.make_conninfo("", host="127.0.0.1", port=1, user="u", dbname="d", passfile=str(passfile))
    link = pq.PGconn.connect_start(string.encode())
    try:
        return link.password.decode() if link.password is not None else None
    finally:
        link.finish()


@pytest.fixture
def passfile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("PGPASSWORD", raising=False)
    path = tmp_path / "pgpass"
    path.touch(0o600)
    return path


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(PASSWORDS)
def test_libpq_reads_every_password_back_from_our_password_file(passfile: Path, password: str) -> None:
    passfile.write_text(connection.passfile_text(Server({}, password)) or "", encoding="utf-8")
    assert libpq_password(passfile) == password


@given(PASSWORDS)
def test_our_own_reader_finds_every_password_that_we_wrote(password: str) -> None:
    text = connection.passfile_text(Server({}, password))
    assert text is not None
    assert connection.passfile_passwords(text) == (password,)


@pytest.mark.parametrize("password", ["a\nb", "a\n", "a\rb", "a\0b"])
def test_a_password_that_no_password_file_can_hold_is_refused_and_not_repeated(password: str) -> None:
    with pytest.raises(UsageError, match="line break") as caught:
        connection.passfile_text(Server({}, "canary" + password))
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("server", "named"),
    [
        (Server({}), False),
        (Server({"port": "5433", "host": ""}, environment={"PGUSER": "app"}), False),
        (Server({"host": "db"}), True),
        (Server({"service": "prod"}), True),
        (Server({}, environment={"PGHOSTADDR": "10.0.0.1"}), True),
    ],
)
def test_a_host_is_named_by_a_keyword_or_a_variable(server: Server, named: bool) -> None:
    assert connection.names_host(server) is named


def test_the_users_password_file_is_handed_on_as_it_is() -> None:
    text = "# comment\ndb:5432:*:app:a\\:b"
    assert connection.passfile_text(Server({}, passfile=text)) == text


def test_a_password_wins_over_the_users_password_file() -> None:
    assert connection.passfile_text(Server({}, "own", passfile="*:*:*:*:other\n")) == "*:*:*:*:own\n"


def test_without_password_and_file_libpq_keeps_its_own_default() -> None:
    assert connection.passfile_text(Server({})) is None


@pytest.mark.parametrize(
    ("text", "passwords"),
    [
        ("", ()),
        ("# db:5432:*:app:comment\n", ()),
        ("db:5432:*:app:first\n*:*:*:*:second", ("first", "second")),
        ("db:5432:*:app:with\\:colon\\\\and backslash\n", ("with:colon\\and backslash",)),
        ("\\:\\:1:5432:*:app:six\n", ("six",)),
        ("db:5432:*:app:cut:here\n", ("cut",)),
        ("db:5432:*:app:\n", ()),
        ("just-a-password\n", ()),
    ],
)
def test_passwords_of_a_password_file_are_found(text: str, passwords: tuple[str, ...]) -> None:
    assert connection.passfile_passwords(text) == passwords


def test_secrets_do_not_reach_children() -> None:
    secret = {
        "PGPASSWORD": "canary",
        "AWS_SECRET_ACCESS_KEY": "canary",
        "AWS_SESSION_TOKEN": "canary",
        "BACKUPD_SOURCE__PASSWORD": "canary",
        "BACKUPD_SOURCE__PASSWORD_FILE": "canary",
    }
    harmless = {"PATH": "/bin", "PGSSLMODE": "require", "PGSERVICE": "main", "HOME": "/root"}
    assert connection.without_secrets(secret | harmless) == harmless


def test_children_of_another_server_hear_nothing_of_the_sources() -> None:
    source = dict.fromkeys(("PGSERVICE", "PGHOST", "PGHOSTADDR", "PGPORT", "PGUSER", "PGDATABASE"), "x")
    source["PGTARGETSESSIONATTRS"] = "standby"
    assert connection.without_server(source | {"PGSSLMODE": "require"}) == {"PGSSLMODE": "require"}


def test_the_users_options_come_before_ours_so_that_rows_stay_comparable() -> None:
    server = Server({}, environment={"PGOPTIONS": "-c work_mem=64MB -c TimeZone=Asia/Tokyo"})
    options = connection.child_environment(server, None, "backupd")["PGOPTIONS"]
    assert options.startswith("-c work_mem=64MB -c TimeZone=Asia/Tokyo -c ")
    assert options.endswith("-c lc_monetary=C -c statement_timeout=0 -c synchronous_commit=off")


def test_a_childs_environment_is_whole() -> None:
    server = Server({}, environment={"PATH": "/bin", "LC_ALL": "de_DE.UTF-8", "PG_COLOR": "always"})
    assert connection.child_environment(server, Path("/scratch/pgpass"), "backupd/app") == {
        "PATH": "/bin",
        "LC_ALL": "C",
        "LC_MESSAGES": "C",
        "PG_COLOR": "never",
        "PGAPPNAME": "backupd/app",
        "PGOPTIONS": connection.CHILD_OPTIONS,
        "PGPASSFILE": "/scratch/pgpass",
    }
    assert "PGPASSFILE" not in connection.child_environment(server, None, "backupd")
    assert server.environment["PG_COLOR"] == "always"


def test_a_servers_repr_has_no_secret() -> None:
    server = Server({"host": "db"}, "canary", passfile="*:*:*:*:canary\n", environment={"X": "canary"})
    assert "canary" not in repr(server)
    assert "db" in repr(server)
