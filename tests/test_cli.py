"""The command line over a store in a directory, in process: what is printed, and how it ends."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from made_archives import make_archive
from made_backups import ARCHIVE, made_manifest

from backupd import cli
from backupd.catalog import Catalog
from backupd.commands import shared
from backupd.errors import UsageError
from backupd.installation import choose
from backupd.layout import archive_key
from backupd.manifest import Backup
from backupd.selector import Label, Name, name_of
from backupd.store import S3Options, open_store

NOW = datetime.now(UTC)


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Catalog:
    """An empty catalog, which the command line uses too."""
    for name in [name for name in os.environ if name.startswith(("BACKUPD_", "PG"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("BACKUPD_STORE__URL", f"file://{tmp_path}")
    monkeypatch.setenv("BACKUPD_SOURCE__SERVER", "prod")
    return Catalog(open_store(f"file://{tmp_path}", S3Options()))


Ran = tuple[int, str, str]


@pytest.fixture
def run(found: Catalog, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Runs a command line; returns its exit code, stdout and stderr."""

    def run(*arguments: str) -> Ran:
        code = cli.run(arguments)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def put(found: Catalog, age: timedelta = timedelta(hours=1), **facts: object) -> Backup:
    """A backup in the store; its archive is not one."""
    manifest = made_manifest(NOW - age, **facts)  # type: ignore[arg-type]
    name = Name(Label(manifest.source.server, manifest.source.database), manifest.id)
    with found.store.create(archive_key(name)) as stream:
        stream.write(ARCHIVE)
    return found.commit(manifest)


def ids(found: Catalog) -> set[str]:
    return {backup.id for backup in found.backups().backups}


def test_an_empty_store_lists_no_backups(run: Callable[..., Ran]) -> None:
    assert run("list") == (0, "no backups\n", "")


def test_what_a_manifest_says_reaches_no_terminal_unescaped(
    run: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_archive(tmp_path)
    monkeypatch.setenv("BACKUPD_STORE__URL", made.store.url)
    words = "\x1b[2J\x9bPWN\x00\u202e\n\u2028"
    made.catalog.commit(replace(made.manifest, suspect=words))
    for arguments in (("list",), ("show", "latest"), ("verify", "latest"), ("confirm", "latest")):
        code, printed, _ = run(*arguments)
        assert code == 0
        assert "PWN" in printed
        assert all(line.isprintable() for line in printed.split("\n"))


def test_list_shows_each_backup_and_json_has_its_manifest(found: Catalog, run: Callable[..., Ran]) -> None:
    backup = put(found)

    text = run("list")[1]
    documents = json.loads(run("list", "--json")[1])

    assert backup.id in text
    assert "prod/app" in text
    assert "stored" in text
    assert documents[0]["id"] == backup.id
    assert documents[0]["name"] == str(name_of(backup))


def test_list_of_one_database_shows_no_other(found: Catalog, run: Callable[..., Ran]) -> None:
    mine, other = put(found, database="app"), put(found, database="app2", number=1)

    text = run("list", "app")[1]

    assert mine.id in text
    assert other.id not in text


def test_names_that_would_act_on_a_terminal_are_shown_escaped(found: Catalog, run: Callable[..., Ran]) -> None:
    put(found, database="evil\x1b[2J\nname")

    for arguments in (["list"], ["show", "latest"], ["prune"], ["check", "--max-age", "26h"]):
        text = run(*arguments)[1]

        assert "\x1b" not in text
        assert "evil" in text


def test_a_broken_manifest_is_named_and_the_others_are_listed(found: Catalog, run: Callable[..., Ran]) -> None:
    good = put(found)
    with found.store.create(f"prod/app/{'20200101T000000Z-00000000'}.json") as stream:
        stream.write(b'{"format": 1, "id": ')

    code, text, _ = run("list")

    assert code == 0
    assert good.id in text
    assert "broken: prod/app/20200101T000000Z-00000000.json" in text


def test_orphans_are_listed_only_on_request(found: Catalog, run: Callable[..., Ran]) -> None:
    with found.store.create("prod/app/20200101T000000Z-00000000.tar") as stream:
        stream.write(b"half")

    assert "20200101T000000Z-00000000" not in run("list")[1]
    assert "20200101T000000Z-00000000.tar" in run("list", "--orphans")[1]
    assert json.loads(run("list", "--orphans", "--json")[1])[0]["size_bytes"] == 4


def test_show_of_no_such_backup_ends_with_2_and_names_the_newest(found: Catalog, run: Callable[..., Ran]) -> None:
    backup = put(found)

    code, out, err = run("show", "20990101")

    assert code == 2
    assert out == ""
    assert backup.id in json.loads(err)["hint"]


def test_delete_does_nothing_without_yes(found: Catalog, run: Callable[..., Ran]) -> None:
    backup = put(found)

    code, _, err = run("delete", backup.id)

    assert code == 2
    assert "--yes" in json.loads(err)["hint"]
    assert ids(found) == {backup.id}


def test_delete_with_yes_leaves_nothing_of_the_backup(found: Catalog, run: Callable[..., Ran]) -> None:
    backup, other = put(found), put(found, number=1)
    run("pin", backup.id)
    run("unpin", backup.id)

    assert run("delete", backup.id, "--yes")[0] == 0
    assert ids(found) == {other.id}
    assert not [entry for entry in found.store.list() if backup.id in entry.key]


def test_a_pinned_backup_is_not_deleted(found: Catalog, run: Callable[..., Ran]) -> None:
    backup = put(found)
    run("pin", backup.id)

    code, _, err = run("delete", backup.id, "--yes")

    assert code == 2
    assert "unpin" in json.loads(err)["hint"]
    assert ids(found) == {backup.id}


def test_prune_shows_its_plan_and_removes_only_with_yes(
    found: Catalog, run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BACKUPD_RETENTION__KEEP_LAST", "2")
    newest, second, oldest = (put(found, timedelta(days=days)) for days in (0, 1, 2))

    shown = run("prune")[1]
    after_plan = ids(found)
    run("prune", "--yes")

    assert "REMOVE" in shown
    assert after_plan == {newest.id, second.id, oldest.id}
    assert ids(found) == {newest.id, second.id}


def test_prune_leaves_other_servers_alone(
    found: Catalog, run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BACKUPD_RETENTION__KEEP_LAST", "1")
    monkeypatch.setenv("BACKUPD_RETENTION__FLOOR", "1")
    others = {put(found, timedelta(days=days), server="other").id for days in range(4)}

    run("prune", "--yes")

    assert ids(found) == others


def test_prune_without_a_policy_removes_nothing(found: Catalog, run: Callable[..., Ran]) -> None:
    kept = {put(found, timedelta(days=days)).id for days in range(5)}

    code, text, _ = run("prune", "--yes")

    assert code == 0
    assert "no policy is set" in text
    assert ids(found) == kept


def test_check_is_quiet_and_0_where_every_backup_is_fresh(found: Catalog, run: Callable[..., Ran]) -> None:
    put(found)

    code, text, _ = run("check", "--max-age", "26h")

    assert code == 0
    assert text.startswith("ok: ")


def test_check_ends_with_19_and_names_what_is_stale(found: Catalog, run: Callable[..., Ran]) -> None:
    put(found)
    put(found, timedelta(days=3), database="forgotten")

    code, text, err = run("check", "--max-age", "26h")

    assert code == 19
    assert text.startswith("stale: prod/forgotten: the newest good backup ")  # what a monitor shows
    assert text.count("\n") == 1
    assert "forgotten" in json.loads(err)["detail"]


def test_check_of_an_empty_store_is_not_green(run: Callable[..., Ran]) -> None:
    code, text, err = run("check", "--max-age", "26h")

    assert (code, text) == (19, "stale: no database is expected and none is backed up\n")
    assert json.loads(err)["hint"] == "Set BACKUPD_SOURCE__DATABASES."


def test_check_does_not_ask_for_databases_that_are_named_where_the_source_is_down(
    run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"DATABASES": "*", "HOST": "127.0.0.1", "PORT": "1", "USER": "app"}.items():
        monkeypatch.setenv(f"BACKUPD_SOURCE__{name}", value)
    code, _, err = run("check", "--max-age", "26h")

    assert code == 19
    assert json.loads(err.splitlines()[-1])["hint"] == "Run `backupd doctor`."


def test_a_retired_database_is_not_expected_any_more(found: Catalog, run: Callable[..., Ran]) -> None:
    put(found)
    put(found, timedelta(days=3), database="dropped")

    run("retire", "prod/dropped")

    assert run("check", "--max-age", "26h")[0] == 0
    assert "dropped" in run("list")[1]


def test_adopt_ends_the_freeze_of_a_label_with_a_new_identity(
    found: Catalog, run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BACKUPD_RETENTION__KEEP_LAST", "1")
    monkeypatch.setenv("BACKUPD_RETENTION__FLOOR", "1")
    newest = put(found, identity="2")
    for days in (1, 2):
        put(found, timedelta(days=days), identity="1")

    run("prune", "--yes")
    frozen = ids(found)
    run("adopt", "app")
    not_yet = run("prune")[1]
    run("adopt", "app", "--yes")
    run("prune", "--yes")

    assert len(frozen) == 3
    assert "REMOVE" not in not_yet
    assert ids(found) == {newest.id}


def test_a_wrong_duration_names_the_flag(run: Callable[..., Ran]) -> None:
    code, _, err = run("check", "--max-age", "yesterday")

    assert code == 2
    assert "--max-age should be a duration" in json.loads(err)["message"]


def test_a_time_without_a_zone_is_none_to_compare_with(run: Callable[..., Ran]) -> None:
    for text in ("yesterday", "2026-11-26", "2026-11-26T02:30:00", ""):
        code, _, err = run("backup", "app", "--unless-since", text)
        assert code == 2
        assert "--unless-since should be a time with its zone" in err


def test_restore_needs_one_of_as_and_into(found: Catalog, run: Callable[..., Ran]) -> None:
    put(found)

    assert run("restore", "latest")[0] == 2
    assert run("restore", "latest", "--as", "a", "--into", "b")[0] == 2
    assert run("restore", "latest", "--replace", "a", "--as", "b")[0] == 2


def test_resume_takes_nothing_that_would_be_ignored(found: Catalog, run: Callable[..., Ran]) -> None:
    put(found)

    for arguments in (("latest",), ("--as", "a"), ("--into", "a"), ("--replace", "app")):
        code, _, err = run("restore", "--resume", "app", *arguments)
        assert code == 2
        assert "--resume takes no backup" in json.loads(err)["message"]


def test_a_file_of_sql_that_cannot_be_read_is_named_before_anything_is_done(
    found: Catalog, run: Callable[..., Ran], tmp_path: Path
) -> None:
    put(found)
    (tmp_path / "latin1.sql").write_bytes(b"-- \xe4")

    for name, word in (("missing.sql", "could not read"), ("latin1.sql", "is not UTF-8 text")):
        code, _, err = run("restore", "latest", "--as", "a", "--sql", str(tmp_path / name))
        assert code == 2
        assert word in json.loads(err)["message"]


def test_a_job_without_parameters_does_nothing_and_ends_with_2(
    found: Catalog, run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BACKUPD_COMMAND", "restore")
    code, _, err = run()

    assert code == 2
    assert "BACKUPD_RESTORE_BACKUP" in json.loads(err)["hint"]
    monkeypatch.setenv("BACKUPD_RESTORE_BACKUP", "app@latest")
    assert "BACKUPD_RESTORE_AS" in json.loads(run()[2])["hint"]


def test_a_job_names_its_verb_in_the_environment(
    found: Catalog, run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BACKUPD_COMMAND", "list")

    assert run() == (0, "no backups\n", "")


def test_help_works_with_wrong_settings(run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKUPD_STROE__URL", "file:///x")

    code, text, _ = run("restore", "--help")

    assert code == 0
    assert "--as" in text


def test_a_misspelt_setting_ends_with_2_and_a_suggestion(
    run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BACKUPD_STROE__URL", "file:///x")

    code, _, err = run("list")

    assert code == 2
    assert "BACKUPD_STORE__URL" in err


def test_an_unknown_verb_or_option_ends_with_2(run: Callable[..., Ran]) -> None:
    assert run("snapshot")[0] == 2
    assert run("list", "--nonsense")[0] == 2


def test_errors_are_text_on_a_console(run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKUPD_LOG__FORMAT", "console")

    err = run("show", "20990101")[2]

    assert err.startswith("error: ")
    assert "\nhint: " in err


def test_patterns_choose_databases_each_once_and_must_match() -> None:
    there = ["app_a", "app_b", "postgres"]

    assert choose(["app_*", "app_a", "other"], there) == ["app_a", "app_b", "other"]
    assert choose(["*"], there) == there
    with pytest.raises(UsageError, match="no database matches 'none_"):
        choose(["none_*"], there)


def test_a_reader_that_stops_early_is_no_traceback(found: Catalog) -> None:
    for number in range(3):
        put(found, number=number)
    command = [sys.executable, "-m", "backupd", "list", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(os.environ)) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        stderr = child.stderr.read().decode()

    assert stderr == ""
    assert child.returncode == 1


def test_list_imports_neither_psycopg_nor_boto3(found: Catalog) -> None:
    program = (
        "import sys; from backupd import cli; cli.run(['list']);"
        "print({'psycopg', 'boto3', 'rich.progress'} & set(sys.modules))"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert printed.stdout.splitlines() == ["no backups", "set()"]


def test_wrong_settings_are_an_event_where_the_log_is_one(
    run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever reads a pod's log by program finds them too."""
    monkeypatch.setenv("BACKUPD_STORE__UR", "file:///backups")
    code, _, err = run("list")

    assert code == 2
    assert json.loads(err)["exit_code"] == 2
    assert "BACKUPD_STORE__UR" in json.loads(err)["message"]


def test_prune_says_what_is_frozen_even_where_nothing_is_due(
    found: Catalog, run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BACKUPD_RETENTION__KEEP_LAST", "9")
    put(found, identity="2")
    put(found, timedelta(days=1), identity="1")

    assert "frozen: prod/app: " in run("prune")[1]


def test_a_part_of_a_backup_never_takes_a_whole_databases_place(found: Catalog, run: Callable[..., Ran]) -> None:
    put(found)
    code, _, err = run("restore", "latest", "--replace", "app", "--table", "public.orders")

    assert code == 2
    assert "--as" in json.loads(err)["hint"]


def test_a_process_opens_its_store_once(found: Catalog) -> None:
    shared.begin()
    here = shared.installation()

    assert here.catalog().store is here.catalog().store
    assert here.catalog().store.url == found.store.url
