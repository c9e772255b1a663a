"""Hooks: what they are given, how they end, and what their failure stops and what not."""

import json
import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from fix_postgres import DatabaseFactory, PostgresServer
from fix_tools import Site, wait_until

from backupd import cli, hook
from backupd.catalog import Catalog
from backupd.errors import HookFailed, UsageError
from backupd.settings import load
from backupd.store.local import LocalStore

LIMIT = timedelta(seconds=30)


def writes(path: Path, *, then: str = "") -> list[str]:
    """A command that appends its environment to a file as a line of JSON."""
    return [
        sys.executable,
        "-c",
        f"import json, os, sys; open({str(path)!r}, 'a').write(json.dumps(dict(os.environ)) + '\\n'); {then}",
    ]


def environments(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- one command


def test_a_hook_gets_the_facts_of_the_run_and_no_secret(tmp_path: Path) -> None:
    given = {
        "PATH": "/bin",
        "KEPT": "x",
        "PGPASSWORD": "s",
        "BACKUPD_SOURCE__PASSWORD": "s",
        "AWS_SECRET_ACCESS_KEY": "s",
    }
    argv = writes(tmp_path / "seen")

    hook.run("after", argv, given, {"database": "a\nb'; rm\0 -rf $HOME", "rows": 7, "suspect": "é" * 9000}, LIMIT)

    (seen,) = environments(tmp_path / "seen")
    assert {name for name in seen if name not in ("LC_CTYPE", "__CF_USER_TEXT_ENCODING")} == {
        "PATH",
        "KEPT",
        "BACKUP_EVENT",
        "BACKUP_DATABASE",
        "BACKUP_ROWS",
        "BACKUP_SUSPECT",
    }
    assert (seen["BACKUP_EVENT"], seen["BACKUP_ROWS"]) == ("after", "7")
    assert seen["BACKUP_DATABASE"] == "a\nb'; rm -rf $HOME"
    assert len(seen["BACKUP_SUSPECT"]) == hook.FACT_LIMIT


def test_no_command_is_no_hook() -> None:
    hook.run("before", (), {}, {}, LIMIT)


def test_a_hook_that_fails_says_so_with_what_it_said() -> None:
    with pytest.raises(HookFailed, match=r"hook before \(sh\) ended with 3") as caught:
        hook.run("before", ["sh", "-c", "echo too bad >&2; exit 3"], {"PATH": "/bin:/usr/bin"}, {}, LIMIT)
    assert caught.value.detail == "It said: too bad"
    assert "BACKUPD_HOOK__BEFORE" in (caught.value.hint or "")


def test_a_hook_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(HookFailed, match=f"could not be started: {tmp_path}/none") as caught:
        hook.run("before", [f"{tmp_path}/none"], {}, {}, LIMIT)
    assert "No such file" in (caught.value.detail or "")
    assert "CLIENTS" not in (caught.value.hint or "")


def test_a_hook_that_takes_too_long_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"sleep 600 & echo $! > {pids}; sleep 600"

    with pytest.raises(HookFailed, match="did not end within 1 s"):
        hook.run("before", ["sh", "-c", script], {"PATH": "/bin:/usr/bin"}, {}, timedelta(seconds=1))

    assert not Path(f"/proc/{pids.read_text().strip()}").exists()


def test_a_hook_that_never_stops_talking_does_not_fill_the_memory() -> None:
    script = "head -c 30000000 /dev/zero; head -c 3000000 /dev/zero >&2; exit 1"

    with pytest.raises(HookFailed) as caught:
        hook.run("after", ["sh", "-c", script], {"PATH": "/bin:/usr/bin"}, {}, LIMIT)
    assert len(caught.value.detail or "") < 300_000


@pytest.mark.parametrize(
    ("text", "argv"),
    [
        ("/bin/x", ("/bin/x",)),
        ("x 'two words' $HOME", ("x", "two words", "$HOME")),
        ('["x", "a b", ""]', ("x", "a b", "")),
        (' ["x"]', ("x",)),
    ],
)
def test_a_command_is_words_or_a_json_list(text: str, argv: tuple[str, ...]) -> None:
    assert load({"BACKUPD_HOOK__BEFORE": text}).hook.before == argv


@pytest.mark.parametrize("text", ["'open", "[", "[]", '[""]', "[1]", '["x", 1]', "{}x'"])
def test_what_is_no_command_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="BACKUPD_HOOK__AFTER should be a program and its arguments"):
        load({"BACKUPD_HOOK__AFTER": text})


# --- runs


def test_the_failure_hook_runs_for_each_database_where_the_server_is_not_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "SOURCE__HOST": "127.0.0.1",
        "SOURCE__PORT": "1",
        "SOURCE__PASSWORD": "correct-horse",
        "STORE__URL": tmp_path.as_uri(),
        "HOOK__BEFORE": json.dumps(writes(tmp_path / "before")),
        "HOOK__FAILURE": json.dumps(writes(tmp_path / "failure")),
    }
    for name, value in settings.items():
        monkeypatch.setenv(f"BACKUPD_{name}", value)

    assert cli.run(["backup", "app", "crm"]) == 18

    seen = environments(tmp_path / "failure")
    assert [(each["BACKUP_DATABASE"], each["BACKUP_EXIT_CODE"], each["BACKUP_REASON"]) for each in seen] == [
        (database, "18", "database") for database in ("app", "crm")
    ]
    assert not (tmp_path / "before").exists()
    assert "correct-horse" not in (tmp_path / "failure").read_text()
    assert len(Catalog(LocalStore(tmp_path)).backups().failures) == 2


@pytest.mark.slow
def test_a_before_that_fails_stops_its_database_with_its_own_reason_and_no_other(
    postgres17: PostgresServer, site: Callable[..., Site], database: DatabaseFactory, tmp_path: Path
) -> None:
    first, last = database(postgres17), database(postgres17)
    fails = writes(tmp_path / "before", then=f"sys.exit(os.environ['BACKUP_DATABASE'] == {first!r})")
    here = site(
        postgres17,
        BACKUPD_HOOK__BEFORE=json.dumps(fails),
        BACKUPD_HOOK__AFTER=json.dumps(writes(tmp_path / "after", then="sys.exit(9)")),
        BACKUPD_HOOK__FAILURE=json.dumps(writes(tmp_path / "failure", then="sys.exit(9)")),
    )

    ended = here.run("backup", first, last)

    assert (ended.code, ended.error["reason"]) == (21, "hook_failed"), ended.stderr
    (listed,) = here.catalog.backups().backups
    (after,) = environments(tmp_path / "after")
    (failed,) = environments(tmp_path / "failure")
    assert listed.source.database == last == after["BACKUP_DATABASE"]
    assert (after["BACKUP_ID"], after["BACKUP_TABLES"]) == (listed.id, "0")
    assert (failed["BACKUP_DATABASE"], failed["BACKUP_EXIT_CODE"]) == (first, "21")
    assert [event["database"] for event in ended.events if event["event"] == "hook.failed"] == [first, last]
    assert here.failures() == [(first, "hook_failed", 1)]
    here.assert_no_secret("".join(path.read_text() for path in tmp_path.glob("*") if path.is_file()))
    here.assert_clean()


@pytest.mark.slow
def test_an_after_that_fails_is_logged_and_changes_nothing(
    postgres17: PostgresServer, site: Callable[..., Site], database: DatabaseFactory
) -> None:
    here = site(postgres17, BACKUPD_HOOK__AFTER="false")

    ended = here.run("backup", database(postgres17))

    assert ended.code == 0
    assert "hook.failed" in [event["event"] for event in ended.events]
    assert len(here.listed()) == 1
    assert here.failures() == []


@pytest.mark.slow
def test_a_signal_ends_a_hook_and_the_run(
    postgres17: PostgresServer, site: Callable[..., Site], database: DatabaseFactory, tmp_path: Path
) -> None:
    here = site(
        postgres17, BACKUPD_HOOK__BEFORE=json.dumps(writes(tmp_path / "begun", then="__import__('time').sleep(60)"))
    )
    run = here.start("backup", database(postgres17))
    wait_until((tmp_path / "begun").exists, "the hook has not begun")
    run.send(signal.SIGTERM)

    assert run.end().code == 143
    assert here.listed() == []
    here.assert_clean()
