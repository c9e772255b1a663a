"""What a monitor is told, read as Prometheus reads it."""

import http.server
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fix_postgres import DatabaseFactory, PostgresServer
from fix_restore import Stocked
from fix_tools import Site
from made_backups import made_backup, made_manifest, made_note
from prometheus_client.parser import text_string_to_metric_families

from backupd import __version__, metrics
from backupd.catalog import Listing
from backupd.errors import BackupdError, StoreError, VerificationFailed
from backupd.failure import Failure
from backupd.manifest import Backup, Note
from backupd.reader import Broken
from backupd.retention import Policy
from backupd.selector import Label, Name
from backupd.status import Expected, Reading, status

OPERATIONS = (Path(__file__).parent.parent / "OPERATIONS.md").read_text(encoding="utf-8")
NOW = datetime(2026, 11, 26, 9, 0, tzinfo=UTC)
EXPECTED = Expected("prod", max_age=timedelta(hours=30), policy=Policy(last=3))

Values = dict[tuple[str, ...], float]


def backup(age: timedelta, database: str = "app", **facts: object) -> Backup:
    """A good backup that ended that long ago, after ten minutes."""
    return made_backup(made_manifest(NOW - age - timedelta(minutes=10), database=database, **facts))  # type: ignore[arg-type]


def failure(age: timedelta, database: str = "app", reason: str = "database", count: int = 1) -> Failure:
    at = NOW - age
    return Failure(f"{at:%Y%m%dT%H%M%SZ}-00000000", "prod", database, "backup", at, at, count, 18, reason, "it failed")


def told(
    backups: Sequence[Backup] = (),
    *,
    failures: Sequence[Failure] = (),
    expected: Expected = EXPECTED,
    error: BackupdError | None = None,
    broken: Sequence[Broken] = (),
) -> bytes:
    """The text that is served of such a store."""
    listing = Listing(tuple(backups), tuple(broken), failures=tuple(failures))
    seen = status(listing, expected, Reading("file:///backups", NOW, error), NOW)
    return metrics.text(metrics.samples(seen, {("backup", "ok"): 3}))


def values(text: bytes) -> Values:
    """Every value by the sample's name and its labels' values, in the order that the metric says."""
    order = {metric.name: metric.labels for metric in metrics.METRICS}
    found = text_string_to_metric_families(text.decode())
    return {
        (each.name, *(each.labels[name] for name in order[family.name])): each.value
        for family in found
        for each in family.samples
    }


def everything() -> bytes:
    """A text in which every metric has a value."""
    note = Note("drilled", 1, NOW - timedelta(days=1), True, {"seconds": 9.4})
    drilled = made_backup(made_manifest(NOW - timedelta(days=2)), notes=[note])
    bad = made_backup(made_manifest(NOW - timedelta(days=3)), notes=[made_note("drilled", NOW, ok=False)])
    expected = Expected("prod", max_age=timedelta(hours=30), drilled_within=timedelta(days=8))
    return told([backup(timedelta(hours=1)), drilled, bad], failures=[failure(timedelta(hours=2))], expected=expected)


def test_every_metric_is_told_and_has_its_labels_and_help() -> None:
    families = {family.name: family for family in text_string_to_metric_families(everything().decode())}

    assert families.keys() == {metric.name for metric in metrics.METRICS}
    for metric in metrics.METRICS:
        family = families[metric.name]
        assert (family.documentation, family.type) == (metric.help, metric.kind)
        assert {frozenset(each.labels) for each in family.samples} == {frozenset(metric.labels)}


def test_promtool_finds_nothing_to_complain_of() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool on PATH")

    done = subprocess.run([promtool, "check", "metrics"], input=everything(), capture_output=True, check=False)

    assert (done.returncode, done.stderr.decode()) == (0, "")


def test_a_database_is_told_with_times_sizes_and_proofs() -> None:
    newest = backup(timedelta(hours=1))
    proved = made_backup(
        made_manifest(NOW - timedelta(days=1, minutes=10)), notes=[made_note("verified", NOW - timedelta(hours=3))]
    )
    found = values(told([newest, proved]))

    assert found["backupd_backup_last_success_timestamp_seconds", "prod", "app"] == (NOW.timestamp() - 3600)
    assert found["backupd_backup_last_verified_timestamp_seconds", "prod", "app"] == (NOW.timestamp() - 86400)
    assert found["backupd_backup_last_attempt_timestamp_seconds", "prod", "app"] == (NOW.timestamp() - 4200)
    assert found["backupd_backup_last_duration_seconds", "prod", "app"] == 600
    assert found["backupd_backup_last_size_bytes", "prod", "app"] == newest.manifest.archive_bytes
    assert found["backupd_backup_last_source_bytes", "prod", "app"] == 1000
    assert found["backupd_store_bytes", "prod", "app"] == 2 * newest.manifest.archive_bytes
    assert found["backupd_backups", "prod", "app", "good"] == 2
    assert found["backupd_expected_interval_seconds", "prod", "app"] == 30 * 3600
    assert found["backupd_backup_failures_in_a_row", "prod", "app"] == 0
    assert ("backupd_drill_last_success_timestamp_seconds", "prod", "app") not in found


def test_a_failure_is_told_beside_the_last_success() -> None:
    found = values(
        told(
            [backup(timedelta(days=1))],
            failures=[failure(timedelta(hours=1), count=2), failure(timedelta(hours=2), reason="no_room")],
        )
    )

    newest = ("backupd_backup_last_failure_timestamp_seconds", "prod", "app", "backup", "database")
    assert [key for key in found if key[0] == newest[0]] == [newest]
    assert found[newest] == found["backupd_backup_last_attempt_timestamp_seconds", "prod", "app"]
    assert found["backupd_backup_failures_in_a_row", "prod", "app"] == 2
    assert found["backupd_backup_last_success_timestamp_seconds", "prod", "app"] == NOW.timestamp() - 86400


def test_a_failure_before_the_last_success_is_none_in_a_row() -> None:
    found = values(told([backup(timedelta(hours=1))], failures=[failure(timedelta(hours=2), count=5)]))

    assert found["backupd_backup_failures_in_a_row", "prod", "app"] == 0


def test_an_expected_database_without_a_backup_succeeded_never() -> None:
    found = values(told(expected=Expected("prod", labels=(Label("prod", "app"),))))

    assert found["backupd_backup_last_success_timestamp_seconds", "prod", "app"] == 0
    assert ("backupd_backup_oldest_timestamp_seconds", "prod", "app") not in found


def test_a_suspect_newest_backup_freezes_and_is_no_success() -> None:
    found = values(told([backup(timedelta(hours=1), suspect="it is empty"), backup(timedelta(days=1))]))

    assert found["backupd_backup_last_suspect", "prod", "app"] == 1
    assert found["backupd_retention_frozen", "prod", "app"] == 1
    assert found["backupd_backups", "prod", "app", "suspect"] == 1
    assert found["backupd_backup_last_success_timestamp_seconds", "prod", "app"] == NOW.timestamp() - 86400


def test_a_backup_that_a_verify_found_bad_is_damaged() -> None:
    bad = made_backup(made_manifest(NOW - timedelta(days=1)), notes=[made_note("verified", NOW, ok=False)])

    assert values(told([bad]))["backupd_backups", "prod", "app", "damaged"] == 1


def test_of_a_retired_database_only_what_it_takes_is_told() -> None:
    gone = made_backup(made_manifest(NOW - timedelta(days=9)), notes=[made_note("retired", NOW - timedelta(days=1))])
    found = values(told([gone]))

    assert {key[0] for key in found if "app" in key} == {"backupd_store_bytes", "backupd_backups"}


def test_a_store_that_does_not_answer_and_a_broken_object_are_told() -> None:
    key = Broken("prod/app/x.json", Name(Label("prod", "app"), "x"), VerificationFailed("it is cut"))
    found = values(told([backup(timedelta(hours=1))], error=StoreError("no route"), broken=[key]))

    assert found["backupd_catalog_readable",] == 0
    assert found["backupd_catalog_broken_objects",] == 1
    assert found["backupd_catalog_last_refresh_timestamp_seconds",] == NOW.timestamp()


def test_hostile_names_stay_values_of_labels() -> None:
    name = 'a"} 1\n# HELP x\\ \u202e,b="'
    found = values(told([backup(timedelta(hours=1), database=name)]))

    assert found["backupd_backup_last_success_timestamp_seconds", "prod", name]
    assert {key[0] for key in found} <= {each.name for each in metrics.METRICS} | {"backupd_runs_total"}


def test_no_label_grows_with_the_number_of_backups() -> None:
    one, many = (values(told([backup(timedelta(hours=hours)) for hours in range(count)])) for count in (1, 50))

    assert one.keys() == many.keys()
    assert ("backupd_build_info", __version__) in one


def test_the_table_in_the_documents_is_that_of_the_code() -> None:
    table = OPERATIONS.partition("| metric | labels | meaning |\n|---|---|---|\n")[2].partition("\n\n")[0]
    rows = [
        f"| `{metric.name}{'_total' if metric.kind == 'counter' else ''}` |"
        f" {', '.join(f'`{label}`' for label in metric.labels)} | {metric.help} |"
        for metric in metrics.METRICS
    ]

    assert [re.sub(" +", " ", row) for row in table.splitlines()] == [re.sub(" +", " ", row) for row in rows]


# --- pushed and written


class Gateway(http.server.BaseHTTPRequestHandler):
    """A Pushgateway, as far as it is asked: POST replaces metrics of those names in a group, and keeps others."""

    groups: dict[str, Values]
    status = 200

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers["Content-Length"]))
        found = values(text)
        group = self.server.groups.setdefault(self.path, {})  # type: ignore[attr-defined]
        told = {key[0] for key in found}
        for key in [key for key in group if key[0] in told]:
            del group[key]
        group |= found
        self.send_response(self.server.status)  # type: ignore[attr-defined]
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Says nothing."""


@dataclass
class Pushed:
    """What a Pushgateway was given, by the path of the group."""

    url: str
    groups: dict[str, Values]
    server: Any


@pytest.fixture
def gateway() -> Iterator[Pushed]:
    """A Pushgateway."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Gateway) as server:
        server.groups, server.status = {}, 200  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield Pushed(f"http://127.0.0.1:{server.server_port}", server.groups, server)  # type: ignore[attr-defined]
        server.shutdown()
        thread.join()


def samples(backups: Sequence[Backup], *failures: Failure) -> list[metrics.Sample]:
    listing = Listing(tuple(backups), failures=failures)
    return list(metrics.samples(status(listing, EXPECTED, Reading("", NOW), NOW)))


FAILED = list(metrics.of_failure(Label("prod", "app"), "backup", "store", NOW))
SUCCEEDED = ("backupd_backup_last_success_timestamp_seconds", "prod", "app")


def test_each_database_is_pushed_into_a_group_of_its_own(gateway: Pushed) -> None:
    metrics.push(gateway.url, samples([backup(timedelta(hours=1)), backup(timedelta(hours=1), "a/b")]))

    plain, quoted = sorted(gateway.groups)
    assert plain == "/metrics/job/backupd/database/app/server/prod"
    assert quoted.startswith("/metrics/job/backupd/database@base64/")
    assert SUCCEEDED in gateway.groups[plain]
    assert {key[1:3] for key in gateway.groups[quoted]} == {("prod", "a/b")}


def test_a_failure_that_is_pushed_leaves_the_last_success(gateway: Pushed) -> None:
    metrics.push(gateway.url, samples([backup(timedelta(hours=1))]))
    metrics.push(gateway.url, FAILED)
    [group] = gateway.groups.values()

    assert group[SUCCEEDED] == NOW.timestamp() - 3600
    assert group["backupd_backup_last_failure_timestamp_seconds", "prod", "app", "backup", "store"] == NOW.timestamp()


def test_a_gateway_that_refuses_or_is_not_there_is_an_error_of_ours(gateway: Pushed) -> None:
    gateway.server.status = 400
    with socket.create_server(("127.0.0.1", 0)) as taken:
        dead = f"http://127.0.0.1:{taken.getsockname()[1]}"
    for url in (gateway.url, dead, "http://no.such.host.invalid:9091"):
        with pytest.raises(StoreError, match="could not push metrics to http://"):
            metrics.push(url, FAILED)


def test_a_file_is_written_whole_and_readable_by_others(tmp_path: Path) -> None:
    path = tmp_path / "backupd.prom"
    metrics.write_file(path, samples([backup(timedelta(hours=1))]), whole=True)

    assert values(path.read_bytes())[SUCCEEDED]
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_that_is_written_leaves_the_last_success_and_other_databases(tmp_path: Path) -> None:
    path = tmp_path / "backupd.prom"
    metrics.write_file(path, samples([backup(timedelta(hours=1)), backup(timedelta(hours=1), "crm")]), whole=True)
    before = values(path.read_bytes())
    metrics.write_file(path, FAILED, whole=False)
    after = values(path.read_bytes())

    assert {key: after[key] for key in before if "attempt" not in key[0]} == {
        key: value for key, value in before.items() if "attempt" not in key[0]
    }
    assert len(after) == len(before) + 1
    metrics.write_file(path, samples([backup(timedelta(hours=1))]), whole=True)
    assert not [key for key in values(path.read_bytes()) if "crm" in key]


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"# HELP", b"x{", b'backupd_store_bytes{a="b"} x\n', b"other 1\n"]
)
def test_a_file_that_is_not_ours_is_replaced(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "backupd.prom"
    path.write_bytes(content)
    metrics.write_file(path, FAILED, whole=False)

    assert len(values(path.read_bytes())) == 2


def test_a_folder_that_is_not_there_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="could not write metrics to"):
        metrics.write_file(tmp_path / "none" / "backupd.prom", FAILED, whole=True)


# --- by runs


@pytest.mark.slow
def test_a_run_tells_what_became_of_it_and_a_failure_leaves_the_last_success(
    site: Callable[..., Site], postgres17: PostgresServer, database: DatabaseFactory, gateway: Pushed, tmp_path: Path
) -> None:
    name, path = database(postgres17), tmp_path / "backupd.prom"
    here = site(postgres17, BACKUPD_METRICS__TEXTFILE=str(path), BACKUPD_METRICS__PUSHGATEWAY_URL=gateway.url)
    success = ("backupd_backup_last_success_timestamp_seconds", "prod", name)
    assert here.run("backup", name).code == 0
    first = values(path.read_bytes())[success]

    assert here.run("backup", name, BACKUPD_SOURCE__PORT="1").code == 18
    for told in (values(path.read_bytes()), *gateway.groups.values()):
        assert told[success] == first
        assert told["backupd_backup_failures_in_a_row", "prod", name] == 1
        assert told["backupd_backup_last_failure_timestamp_seconds", "prod", name, "backup", "database"] > first


@pytest.mark.slow
def test_a_monitor_that_cannot_be_told_fails_no_backup(
    site: Callable[..., Site], postgres17: PostgresServer, database: DatabaseFactory
) -> None:
    dead = {"PUSHGATEWAY_URL": "http://127.0.0.1:1", "TEXTFILE": "/no/such/folder/backupd.prom"}
    here = site(postgres17, **{f"BACKUPD_METRICS__{name}": value for name, value in dead.items()})
    ended = here.run("backup", database(postgres17))

    assert ended.code == 0
    assert [each["event"] for each in ended.events].count("metrics.failed") == 2
    assert len(here.listed()) == 1


SEVERAL = {f"BACKUPD_SOURCE__{name}": "" for name in ("HOST", "PORT", "USER", "PASSWORD", "SERVER")} | {
    "BACKUPD_SOURCE__SERVICES": "prod,billing"
}


@pytest.mark.slow
def test_a_run_that_no_one_of_several_servers_is_meant_by_ends_well_and_tells_of_all(
    site: Callable[..., Site], postgres17: PostgresServer, database: DatabaseFactory, tmp_path: Path
) -> None:
    name, path = database(postgres17), tmp_path / "backupd.prom"
    here = site(postgres17)
    here.take(name)
    target = {"HOST": "127.0.0.1", "PORT": str(postgres17.port), "USER": postgres17.user}
    here.settings |= SEVERAL | {f"BACKUPD_TARGET__{key}": value for key, value in target.items()}
    here.settings |= {"BACKUPD_TARGET__PASSWORD": postgres17.password, "BACKUPD_METRICS__TEXTFILE": str(path)}
    success = ("backupd_backup_last_success_timestamp_seconds", "prod", name)

    for arguments in (("restore", f"prod/{name}@latest", "--as", f"{name[:-2]}_2"), ("verify", "all")):
        ended = here.run(*arguments)
        assert ended.code == 0, ended.stderr
        assert success in values(path.read_bytes())
        path.unlink()


@pytest.mark.slow
def test_a_drill_tells_of_the_server_of_its_backup(
    stocked: Stocked, postgres17: PostgresServer, postgres18: PostgresServer, tmp_path: Path
) -> None:
    here, backup = stocked(postgres17)
    url = f"postgresql://{postgres18.user}@127.0.0.1:{postgres18.port}/postgres"
    here.settings |= SEVERAL | {"BACKUPD_DRILL__URL": url, "BACKUPD_DRILL__PASSWORD": postgres18.password}
    here.settings["BACKUPD_METRICS__TEXTFILE"] = str(tmp_path / "backupd.prom")
    ended = here.run("drill", "latest")

    assert ended.code == 0, ended.stderr
    told = values((tmp_path / "backupd.prom").read_bytes())
    assert told["backupd_drill_last_success_timestamp_seconds", "prod", backup.source.database] > 0
