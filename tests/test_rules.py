"""The alerts: each fires on a series that promtool plays, and on another one it does not; what they name exists."""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from backupd.metrics import METRICS

yaml: Any = pytest.importorskip("yaml")

CHART = Path(__file__).parent.parent / "chart"
RULES: dict[str, Any] = {
    path.stem: yaml.safe_load(path.read_text()) for path in sorted((CHART / "rules").glob("*.yaml"))
}
RUNBOOKS = {path.name for path in (CHART / "runbooks").glob("*.md")}
DASHBOARD: dict[str, Any] = json.loads((CHART / "dashboard.json").read_text(encoding="utf-8"))
NAMES = {f"{metric.name}{'_total' if metric.kind == 'counter' else ''}" for metric in METRICS}

APP = '{server="prod",database="app"}'
OTHER = '{server="prod",database="other"}'
HOUR, LONG_HOUR = 60, 2  # samples; in what takes days they are half an hour apart


@dataclass(frozen=True)
class Played:
    """Series by name and labels, in promtool's notation, and which databases (or what else) the alert is about then."""

    series: dict[str, str]
    at: str
    fires: tuple[dict[str, str], ...]

    @property
    def interval(self) -> str:
        """How far samples are apart."""
        return "30m" if int(self.at.removesuffix("h").removesuffix("m")) > 20 and self.at.endswith("h") else "1m"


def app(**labels: str) -> dict[str, str]:
    return {"server": "prod", "database": "app", **labels}


def both(name: str, bad: str, good: str, labels: str = "") -> dict[str, str]:
    """A metric of two databases, of which the first is in trouble."""
    return {name + APP[:-1] + labels + "}": bad, name + OTHER[:-1] + labels + "}": good}


SUCCESS, FAILURE = "backupd_backup_last_success_timestamp_seconds", "backupd_backup_last_failure_timestamp_seconds"
EXPECTED = both("backupd_expected_interval_seconds", "93600x3000", "93600x3000")
DRILLED, UNDRILLED = (f"backupd_drill_last_{word}_timestamp_seconds" for word in ("success", "failure"))

PLAYED: dict[str, Played] = {
    # A backup ended at 0, and one of the other database each day: 26 hours and 15 minutes later the first is too old.
    "BackupdBackupStale": Played(
        {**both(SUCCESS, "1x3000", f"1x{24 * LONG_HOUR} 86400x3000"), **EXPECTED}, "27h", (app(),)
    ),
    "BackupdNeverSucceeded": Played(both(SUCCESS, "0x3000", "1x3000"), "27h", (app(),)),
    "BackupdRunFailed": Played(
        {
            **both(SUCCESS, "100x3000", "300x3000"),
            **both(FAILURE, "200x3000", "200x3000", ',step="backup",reason="database"'),
        },
        "6m",
        (app(step="backup", reason="database"),),
    ),
    "BackupdVerificationFailed": Played(
        both("backupd_backups", "1x9", "0x9", ',state="damaged"'), "1m", (app(state="damaged"),)
    ),
    # Of `app` no drill ever succeeded.
    "BackupdDrillFailed": Played({**both(UNDRILLED, "200x9", "200x9"), DRILLED + OTHER: "300x9"}, "1m", (app(),)),
    # Of `app` there was no drill since the oldest backup; of `other` one, two days later.
    "BackupdDrillOverdue": Played(
        {
            **both("backupd_drill_expected_interval_seconds", f"{7 * 86400}x20000", f"{7 * 86400}x20000"),
            **both("backupd_backup_oldest_timestamp_seconds", "1x20000", "1x20000"),
            DRILLED + OTHER: f"{2 * 86400}x20000",
        },
        "170h",
        (app(),),
    ),
    "BackupdRetentionFrozen": Played(both("backupd_retention_frozen", "1x99", "0x99"), "61m", (app(),)),
    "BackupdBackupSuspect": Played(both("backupd_backup_last_suspect", "1x99", "0x99"), "16m", (app(),)),
    "BackupdStoreGrowing": Played(
        {
            'backupd_store_bytes{server="prod",database="app"}': f"1000000000x{160 * LONG_HOUR} 2000000000x2000",
            'backupd_store_bytes{server="test",database="app"}': f"1000000000x{160 * LONG_HOUR} 1400000000x2000",
            'backupd_store_bytes{server="small",database="app"}': f"1000x{160 * LONG_HOUR} 9000x2000",
        },
        "170h",
        ({"server": "prod"},),
    ),
    # One cannot be read; one has not been for an hour; one is well.
    "BackupdCatalogUnreadable": Played(
        {
            'backupd_catalog_readable{instance="a"}': "0x100",
            'backupd_catalog_readable{instance="b"}': "1x100",
            'backupd_catalog_last_refresh_timestamp_seconds{instance="b"}': "0x100",
            'backupd_catalog_readable{instance="c"}': "1x100",
            'backupd_catalog_last_refresh_timestamp_seconds{instance="c"}': "0+60x100",
        },
        "1h",
        ({"instance": "a"}, {"instance": "b"}),
    ),
    "BackupdMetricsAbsent": Played({SUCCESS + APP: "1x10 stale"}, "50m", ({},)),
}
"""A series in which each alert fires; the second one of it is well."""

QUIET: dict[str, Played] = {
    "BackupdNeverSucceeded": Played({SUCCESS + APP: f"0x{20 * LONG_HOUR} 72000x600"}, "27h", ()),
    "BackupdRunFailed": Played(
        {SUCCESS + APP: "100x5 300x99", FAILURE + APP[:-1] + ',step="copy",reason="store"}': "200x99"}, "20m", ()
    ),
    "BackupdDrillOverdue": Played({"backupd_backup_oldest_timestamp_seconds" + APP: "1x20000"}, "200h", ()),
    "BackupdMetricsAbsent": Played({SUCCESS + APP: "0x99"}, "90m", ()),
}
"""Series in which an alert does not fire, where that is not said by the other database in PLAYED."""


@pytest.fixture(scope="module")
def promtool() -> str:
    """The program that evaluates rules as Prometheus does."""
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("no promtool on PATH")
    return found


def run(promtool: str, *arguments: str) -> None:
    done = subprocess.run([promtool, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def case(name: str, played: Played) -> dict[str, Any]:
    """A test of one alert, in promtool's form."""
    fires = [{"exp_labels": {**RULES[name]["labels"], **labels}} for labels in played.fires]
    return {
        "interval": played.interval,
        "input_series": [{"series": series, "values": values} for series, values in played.series.items()],
        "alert_rule_test": [{"eval_time": played.at, "alertname": name, "exp_alerts": fires}],
    }


def test_each_alert_fires_when_it_should_and_else_does_not(promtool: str, tmp_path: Path) -> None:
    bare = [{**rule, "annotations": {}} for rule in RULES.values()]  # promtool compares them, with their values
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "backupd", "rules": bare}]}))
    played = [(name, each) for table in (PLAYED, QUIET) for name, each in table.items()]
    for interval in ("1m", "30m"):
        cases = [case(name, each) for name, each in played if each.interval == interval]
        document = {"rule_files": ["rules.yaml"], "evaluation_interval": interval, "tests": cases}
        (tmp_path / "test.yaml").write_text(yaml.safe_dump(document))

        assert cases
        run(promtool, "test", "rules", str(tmp_path / "test.yaml"))


def test_promtool_takes_the_rules_with_their_annotations(promtool: str, tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "backupd", "rules": list(RULES.values())}]}))

    run(promtool, "check", "rules", str(path))


def test_every_alert_is_played() -> None:
    assert set(PLAYED) == set(RULES)
    assert all(played.fires for played in PLAYED.values())


@pytest.mark.parametrize("name", RULES)
def test_an_alert_says_how_bad_it_is_what_it_is_and_what_to_do(name: str) -> None:
    rule = RULES[name]

    assert rule["alert"] == name
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    assert rule["annotations"]["runbook_url"] in RUNBOOKS


def named(expression: str) -> set[str]:
    return set(re.findall(r"\bbackupd_\w+", expression))


def queries() -> list[str]:
    """Every query of the dashboard."""
    panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    return panels + [each["query"] for each in DASHBOARD["templating"]["list"] if each["type"] == "query"]


def test_alerts_and_the_dashboard_name_metrics_that_exist() -> None:
    for expression in [rule["expr"] for rule in RULES.values()] + queries():
        assert named(expression), expression
        assert named(expression) <= NAMES, expression


def test_labels_that_alerts_and_the_dashboard_group_by_exist() -> None:
    labels = {label for metric in METRICS for label in metric.labels}
    for expression in [rule["expr"] for rule in RULES.values()] + queries():
        for group in re.findall(r"(?:by|on) \(([^)]*)\)", expression):
            assert {each.strip() for each in group.split(",")} <= labels, expression


def test_prometheus_takes_every_query_of_the_dashboard(promtool: str, tmp_path: Path) -> None:
    rules = [
        {"record": f"query:{number}", "expr": expression.replace("$server", ".*")}
        for number, expression in enumerate(queries())
        if not expression.startswith("label_values")
    ]
    path = tmp_path / "queries.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))

    run(promtool, "check", "rules", str(path))


def test_the_panels_of_the_dashboard_do_not_overlap_and_have_units() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        assert panel["fieldConfig"]["defaults"]["unit"]
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_the_readme_has_every_alert() -> None:
    readme = (CHART / "README.md").read_text(encoding="utf-8")

    assert set(re.findall(r"^\| `(Backupd\w+)` \|", readme, re.MULTILINE)) == set(RULES)
