"""Who is told what, when again, and that neither a dead nor a talkative receiver touches a backup or shows a secret."""

import io
import json
import os
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fix_postgres import DatabaseFactory, PostgresServer
from fix_receiver import SECRET, Receiver
from fix_tools import Site, locked_table
from made_backups import made_backup, made_manifest, made_note

from backupd import cli, failure, log, notice, notify, status
from backupd.catalog import Catalog, Listing
from backupd.failure import Failure
from backupd.manifest import Backup
from backupd.retention import Policy
from backupd.store.local import LocalStore

START = datetime(2026, 11, 1, 22, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Catalog:
    """The empty catalog of a command line whose source does not answer."""
    for name in [name for name in os.environ if name.startswith(("BACKUPD_", "PG"))]:
        monkeypatch.delenv(name)
    settings = {"SOURCE__HOST": "127.0.0.1", "SOURCE__PORT": "1", "SOURCE__SERVER": "prod"}
    for name, value in (settings | {"STORE__URL": tmp_path.as_uri()}).items():
        monkeypatch.setenv(f"BACKUPD_{name}", value)
    return Catalog(LocalStore(tmp_path))


# --- what is worth telling


def failed(at: datetime, reason: str = "database") -> Failure:
    identifier = f"{at:%Y%m%dT%H%M%SZ}-00000000"
    return Failure(identifier, "prod", "app", "backup", at, at, 1, 18, reason, "it broke", "Why.", "What to do.")


def told(times: Sequence[datetime]) -> list[timedelta]:
    """Since the beginning, when a failure at each of these times is told."""
    before: Failure | None = None
    found = []
    for at in times:
        now = failure.following(failed(at), before)
        found += [at - times[0]] if notice.of_failure(now, before) else []
        before = now
    return found


def test_a_failure_that_goes_on_is_told_after_1_2_4_8_days() -> None:
    hourly = told([START + hours * HOUR for hours in range(24 * 10)])
    nightly = told([START + days * DAY + (days % 3) * HOUR / 60 for days in range(20)])
    weekly = told([START + 7 * days * DAY for days in range(6)])

    assert hourly == [days * DAY for days in (0, 1, 2, 4, 8)]
    assert [round(span / DAY) for span in nightly] == [0, 1, 2, 4, 8, 16]
    assert [span // DAY for span in weekly] == [0, 7, 14, 21, 35]


def test_a_failure_with_another_reason_is_told_at_once() -> None:
    before = failed(START)
    now = failure.following(failed(START + HOUR, "locked"), before)

    found = notice.of_failure(now, before)

    assert found is not None
    assert found.text == (
        "locked (18): it broke. Why. What to do. That is 2 times in a row, since 2026-11-01 22:00 UTC."
    )


def test_the_first_backup_and_the_first_after_failures_are_told_and_no_other() -> None:
    earlier, taken = (made_backup(made_manifest(START + days * DAY)) for days in (0, 2))
    again = failure.following(failed(START + DAY), failed(START + HOUR))

    first = notice.of_success(taken, [], [])
    recovered = notice.of_success(taken, [earlier], [again, failed(START + HOUR)])

    assert first is not None
    assert first.kind == "succeeded for the first time"
    assert recovered is not None
    assert (recovered.kind, "Before it 2 in a row failed" in recovered.text) == ("recovered", True)
    assert notice.of_success(taken, [earlier], [failed(START - DAY)]) is None


def suspects(*suspect: str | None) -> list[Backup]:
    """Nightly backups, newest first."""
    nights = len(suspect)
    return [
        made_backup(made_manifest(START + (nights - place) * DAY, suspect=why)) for place, why in enumerate(suspect)
    ]


def test_a_suspect_backup_is_told_when_it_begins_and_then_ever_less_often() -> None:
    nights = [f"rows fell by {night}" for night in range(9)]

    said = [notice.of_doubt([*suspects(*nights[:night]), *suspects(None)], None) for night in range(10)]

    assert [night for night, found in enumerate(said) if found] == [1, 2, 3, 5, 9]
    assert said[1] is not None
    assert "The newest backup looks wrong: rows fell by 0" in said[1].text


def test_a_freeze_is_told_once_it_begins() -> None:
    policy = Policy(last=3)
    old, new = (made_backup(made_manifest(START + days * DAY, identity=f"{days}")) for days in (0, 1))

    found = notice.of_doubt([new, old], policy)

    assert found is not None
    assert "Retention is frozen: backups of different clusters" in found.text
    assert notice.of_doubt([old], policy) is None
    assert notice.of_doubt([], policy) is None


def test_a_drill_is_told_with_its_seconds() -> None:
    note = made_note("drilled", START, level="identical")
    backup = made_backup(made_manifest(START), notes=[note])

    assert notice.of_drill(backup).text == f"Backup {backup.id} was restored: identical."


def test_a_message_names_what_is_urgent_first_and_counts_many() -> None:
    notices = [
        notice.Notice("recovered", "crm", "Again."),
        *(notice.Notice("failed", f"app{number}", "No.") for number in range(4)),
    ]

    title, body = notice.message("prod", notices)

    assert title == "backupd prod: 4 databases failed; crm recovered"
    assert body.startswith("app0 failed. No.\n\napp1")


def test_a_digest_says_how_every_database_fares_the_worst_first() -> None:
    note = made_note("drilled", START, level="identical")
    good = made_backup(made_manifest(START), notes=[note])
    wrong = made_backup(made_manifest(START, database="crm", suspect="rows fell"))
    reading = status.Reading("file:///backups", START)

    def digest(*backups: Backup) -> tuple[str, str]:
        return notice.digest(status.status(Listing(backups), status.Expected("prod"), reading, START + 3 * HOUR))

    title, body = digest(good, wrong)

    assert title == "backupd prod: of 2 databases 1 need a look"
    assert body.startswith("prod/crm: danger\n- all its backups are suspect. ")
    assert body.endswith(
        f"prod/app: safe\nnewest good backup {good.id}, 2 h 50 min old, 2 rows; 1 in all\n"
        f"Backup {good.id} was restored: identical."
    )
    assert digest(good)[0] == "backupd prod: every database is safe (1)"
    assert digest()[0] == "backupd prod: no database is known"


# --- the door


def test_a_message_reaches_a_webhook(receiver: Receiver) -> None:
    assert notify.send([receiver.settings["BACKUPD_NOTIFY__URLS"]], "title", "body <b> & *é*") == []
    assert receiver.messages == [("title", "body <b> & *é*")]


@pytest.mark.parametrize("status", [404, 500])
def test_a_receiver_that_refuses_is_named_by_its_scheme_and_its_answer(receiver: Receiver, status: int) -> None:
    receiver.status = status
    settings = receiver.settings

    (sent,) = notify.send([settings["BACKUPD_NOTIFY__URLS"]], "title", "body")
    pinged = notify.ping(settings["BACKUPD_NOTIFY__PING_URL"], "", "body")

    assert sent.startswith("json: ")
    assert str(status) in sent
    assert str(status) in (pinged or "")
    assert SECRET not in sent + (pinged or "")


@pytest.mark.parametrize(
    "url",
    [
        f"json://x:{SECRET}@127.0.0.1:1/{SECRET}",
        f"json://{SECRET}/{SECRET}",
        f"nonsense://{SECRET}",
        SECRET,
        "json://",
        f"slack://{SECRET}",
    ],
)
def test_what_cannot_be_sent_is_said_without_the_url_and_does_not_keep_the_others(url: str, receiver: Receiver) -> None:
    log.configure("debug", "json", (), logged := io.StringIO())

    found = notify.send([url, receiver.settings["BACKUPD_NOTIFY__URLS"]], "title", "body")

    assert len(found) == 1
    assert SECRET not in found[0] + logged.getvalue()
    assert receiver.messages == [("title", "body")]


def test_a_ping_goes_to_the_url_with_its_ending_before_the_query(receiver: Receiver) -> None:
    url = f"http://127.0.0.1:{receiver.port}/ping/uuid/?rid=1"

    assert [notify.ping(url, ending, f"body {ending}") for ending in ("/start", "", "/18")] == [None] * 3
    assert receiver.pings == [
        ("/ping/uuid/start?rid=1", "body /start"),
        ("/ping/uuid?rid=1", "body "),
        ("/ping/uuid/18?rid=1", "body /18"),
    ]


def test_a_dead_switch_is_said_without_its_url() -> None:
    problem = notify.ping(f"http://127.0.0.1:1/{SECRET}", "/start", "")

    assert problem is not None
    assert "refused" in problem
    assert SECRET not in problem


@pytest.mark.slow
def test_a_server_that_drips_for_ever_holds_a_ping_up_for_no_longer_than_its_time(receiver: Receiver) -> None:
    receiver.slow = True
    began = time.monotonic()

    assert notify.ping(receiver.settings["BACKUPD_NOTIFY__PING_URL"], "", "") == "no answer within 10 seconds"
    assert time.monotonic() - began < 2 * notify.PING_SECONDS


# --- runs


def test_a_run_that_fails_is_told_once_and_pings_at_its_beginning_and_its_end(
    here: Catalog, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in receiver.settings.items():
        monkeypatch.setenv(name, value)

    assert [cli.run(["backup", "app", "crm"]) for _ in range(2)] == [18, 18]

    ((title, body),) = receiver.messages
    assert title == "backupd prod: app, crm failed"
    assert "app failed. database (18): " in body
    path = f"/ping/{SECRET}"
    assert [ping for ping, _ in receiver.pings] == [f"{path}/start?rid=1", f"{path}/18?rid=1"] * 2
    assert receiver.pings[1][1].startswith("database: 127.0.0.1, database postgres: ")
    assert SECRET not in capsys.readouterr().err


def test_a_run_of_which_no_database_is_known_is_told_too(
    here: Catalog, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in receiver.settings.items():
        (tmp_path / name).write_text(f"{value}\n")
        monkeypatch.setenv(f"{name}_FILE", str(tmp_path / name))

    assert cli.run(["backup", "*"]) == 18

    ((title, body),) = receiver.messages
    assert len(receiver.pings) == 2
    assert title == "backupd prod: backup failed"
    assert "Connection refused" in body


@pytest.mark.slow
def test_each_run_tells_while_the_store_does_not_answer(
    site: Callable[..., Site], postgres17: PostgresServer, receiver: Receiver
) -> None:
    """As `serve` runs it, which knows nothing of its slot then; no record says that it was told before."""
    here = site(postgres17, **receiver.settings)
    here.store.rmdir()
    for _ in range(2):
        assert here.run("backup", "postgres", "--unless-since", "2026-11-26T02:30:00Z").code == 10

    assert [title for title, _ in receiver.messages] == ["backupd prod: postgres failed"] * 2
    assert all("store (10)" in body for _, body in receiver.messages)


def test_a_drill_that_fails_is_told(here: Catalog, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKUPD_NOTIFY__URLS", receiver.settings["BACKUPD_NOTIFY__URLS"])

    assert cli.run(["drill", "app@latest"]) == 2

    assert [title for title, _ in receiver.messages] == ["backupd prod: drill failed"]


def test_a_dead_notifier_and_a_dead_switch_change_no_exit_code_and_are_logged(
    here: Catalog, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BACKUPD_NOTIFY__URLS", f"json://x:{SECRET}@127.0.0.1:1/{SECRET} nonsense://{SECRET}")
    monkeypatch.setenv("BACKUPD_NOTIFY__PING_URL", f"http://127.0.0.1:1/{SECRET}")

    assert cli.run(["backup", "app"]) == 18

    text = capsys.readouterr().err
    events = [json.loads(line)["event"] for line in text.splitlines()]
    assert sorted(events) == ["notify.failed"] * 2 + ["ping.failed"] * 2 + ["run.failed", "run.finished"]
    assert events[-1] == "run.failed"
    assert SECRET not in text


def test_a_digest_is_printed_and_sent(
    here: Catalog, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["backup", "e\x1bvil"]) == 18
    monkeypatch.setenv("BACKUPD_NOTIFY__URLS", receiver.settings["BACKUPD_NOTIFY__URLS"])
    capsys.readouterr()

    assert cli.run(["digest"]) == 0

    ((title, body),) = receiver.messages
    printed = capsys.readouterr().out
    assert title == "backupd prod: of 1 databases 1 need a look"
    assert "prod/e%1Bvil: danger" in printed
    assert "\x1b" not in printed + body


@pytest.mark.parametrize("url", ["ftp://host/x", "file:///etc/passwd", "http://", "nonsense", "http://h/\n"])
def test_a_switch_must_be_a_web_address(url: str, here: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKUPD_NOTIFY__PING_URL", url)

    assert cli.run(["backup", "app"]) == 2


@pytest.mark.slow
def test_the_life_of_a_database_is_told(
    postgres17: PostgresServer,
    site: Callable[..., Site],
    database: DatabaseFactory,
    receiver: Receiver,
    tmp_path: Path,
) -> None:
    urls = tmp_path / "urls"
    urls.write_text(f"{receiver.settings['BACKUPD_NOTIFY__URLS']}\n")
    here, name = site(postgres17, BACKUPD_NOTIFY__URLS_FILE=str(urls)), database(postgres17)
    here.secrets.append(SECRET)
    here.settings["BACKUPD_NOTIFY__PING_URL"] = receiver.settings["BACKUPD_NOTIFY__PING_URL"]
    with postgres17.connect(name) as connection:
        connection.execute("CREATE TABLE t AS SELECT n FROM generate_series(1, 1000) n")

    assert here.run("backup", name).code == 0
    with locked_table(postgres17, name, "t"):
        for _ in range(2):
            assert here.run("backup", name, BACKUPD_DUMP__LOCK_WAIT="1s").code == 18
    with postgres17.connect(name) as connection:
        connection.execute("TRUNCATE t")
    ended = here.run("backup", name)
    assert ended.code == 0
    assert here.run("backup", name).code == 0

    assert [title for title, _ in receiver.messages] == [
        f"backupd prod: {name} succeeded for the first time",
        f"backupd prod: {name} failed",
        f"backupd prod: {name} needs a look; {name} recovered",
    ]
    assert [path.partition(SECRET)[2] for path, _ in receiver.pings[-4:]] == ["/start?rid=1", "?rid=1"] * 2
    assert receiver.pings[-1][1] == f"prod/{name}@{here.listed()[0]}"
    finished = ended.events[-1]
    assert (finished["event"], finished["verb"], finished["exit_code"]) == ("run.finished", "backup", 0)
    (taken,) = (each for each in finished["outcomes"] if each["step"] == "backup")
    assert (taken["database"], taken["outcome"], taken["archive_bytes"] > 0) == (name, "ok", True)
    here.assert_clean()
