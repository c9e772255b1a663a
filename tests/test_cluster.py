"""On a real cluster: one installation with a volume, from `helm install` to `helm uninstall`.

The tests are one story and run in their order. What takes part is real: the CronJob controller, the claim, the Service,
the ConfigMap and the Secret of PostgreSQL's own installation, Pod Security `restricted`.
"""

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from fix_cluster import ROWS, SOURCE, Cluster, Object
from test_runbooks import RUNBOOKS, blocks

pytestmark = pytest.mark.cluster

RELEASE = "backupd"
VALUES: Object = {
    "source": SOURCE,
    "store": {"pvc": {"enabled": True, "size": "1Gi"}},
    "schedule": "* * * * *",
    "retention": {"keepLast": 20},
    "dump": {"lockWait": "10min"},
    "backup": {"successfulJobsHistoryLimit": 3, "backoffLimit": 0},
    "scratch": {"size": "1Gi"},
    "toolbox": {"replicas": 1},
}


@pytest.fixture(scope="module")
def release(cluster: Cluster) -> Cluster:
    """The release, installed once."""
    cluster.install(RELEASE, {**VALUES, "backup": {**VALUES["backup"], "successfulJobsHistoryLimit": 1}})
    cluster.kubectl("rollout", "status", f"deployment/{RELEASE}-toolbox", "--timeout=120s")
    cluster.until(lambda: listed(cluster), "no backup was listed", 150)
    return cluster


def listed(cluster: Cluster) -> list[dict[str, Any]]:
    """What `backupd list` shows in the toolbox."""
    found: list[dict[str, Any]] = json.loads(toolbox(cluster, "list", "--json"))
    return found


def toolbox(cluster: Cluster, *arguments: str) -> str:
    """`backupd ARGUMENTS` in the toolbox."""
    return cluster.kubectl("exec", f"deploy/{RELEASE}-toolbox", "--", "backupd", *arguments)


def upgraded(cluster: Cluster, **backup: object) -> None:
    """The release with other values of `backup`."""
    cluster.install(RELEASE, {**VALUES, "backup": {**VALUES["backup"], **backup}}, verb="upgrade")


def active(cluster: Cluster) -> list[str]:
    """Jobs of the schedule that run."""
    return [name_of(job) for job in scheduled(cluster) if job["status"].get("active")]


def scheduled(cluster: Cluster) -> list[Object]:
    """Jobs that the schedule started; manual ones have an annotation."""
    jobs = cluster.jobs()
    return [job for job in jobs if "cronjob.kubernetes.io/instantiate" not in job["metadata"].get("annotations", {})]


def succeeded(cluster: Cluster) -> list[Object]:
    """Jobs of the schedule that ended well."""
    return [job for job in scheduled(cluster) if job["status"].get("succeeded")]


def name_of(job: Object) -> str:
    name: str = job["metadata"]["name"]
    return name


def test_scheduled_backups_appear_twice_by_themselves_and_finished_jobs_are_limited(release: Cluster) -> None:
    release.until(lambda: len(listed(release)) >= 2, "the second backup did not come", 90)
    names = [backup["name"] for backup in listed(release)]

    assert all(name.startswith(f"{RELEASE}/app@") for name in names)
    assert all(backup["totals"]["rows"] == ROWS for backup in listed(release))
    release.until(lambda: len(succeeded(release)) == 1, "more than one finished Job is kept", 90)
    upgraded(release)  # else a Job of a person's, begun before the schedule's, would be gone as soon as it ended


def test_helm_test_examines_the_installation(release: Cluster) -> None:
    said = release.helm("test", RELEASE, "--timeout", "120s", "--logs")

    assert "Phase:          Succeeded" in said
    assert "PostgreSQL" in said, said


def test_a_run_longer_than_its_interval_has_never_a_second_beside_it(release: Cluster) -> None:
    before = len(listed(release))
    with release.holding("held"):
        release.until(release.dumping, "no scheduled run came", 90)
        running = active(release)

        def skipped() -> bool:
            return "JobAlreadyActive" in release.kubectl("get", "events", "--field-selector=reason=JobAlreadyActive")

        release.until(skipped, "the next run was not skipped", 90)
        assert active(release) == running
        assert len(running) == 1

        code, message, log = release.run("beside", RELEASE)  # outside of Forbid, so the lock has to stop it
        assert code == 11, log
        assert message.startswith("locked (11)")
        assert "backupd backup" in message
    assert release.ended(running[0]) == "Complete"
    release.until(lambda: len(listed(release)) > before, "the held run was not listed")


def test_suspend_stops_new_jobs_keeps_the_old_ones_and_resumes(release: Cluster) -> None:
    upgraded(release, suspend=True, ttlSecondsAfterFinished=3)
    release.until(lambda: not active(release), "a run did not end")
    before = [name_of(job) for job in scheduled(release)]
    time.sleep(65)
    assert [name_of(job) for job in scheduled(release)] == before

    release.job("short-lived", RELEASE)  # its time to live is in the template since the upgrade
    release.until(lambda: "short-lived" not in [name_of(job) for job in release.jobs()], "the finished Job stayed", 60)

    upgraded(release)
    release.until(lambda: set(map(name_of, scheduled(release))) - set(before), "no run after the resume", 90)


def test_a_restore_job_without_parameters_touches_nothing_and_ends_with_2(release: Cluster) -> None:
    databases = release.sql("SELECT datname FROM pg_database ORDER BY 1")
    code, message, log = release.run("restore-nothing", f"{RELEASE}-restore")

    assert code == 2, log
    assert message.startswith("usage (2)")
    assert "BACKUPD_RESTORE_BACKUP" in message
    assert release.sql("SELECT datname FROM pg_database ORDER BY 1") == databases


def test_a_restore_job_makes_a_database_with_equal_rows(release: Cluster) -> None:
    parameters = ("BACKUPD_RESTORE_BACKUP=app@latest", "BACKUPD_RESTORE_AS=app_restored")
    code, _, log = release.run("restore-1", f"{RELEASE}-restore", *parameters)

    assert code == 0, log
    query = "SELECT count(*), sum(hashtext(items::text)) FROM items"
    assert release.sql(query, "app_restored") == release.sql(query)

    again, message, _ = release.run("restore-2", f"{RELEASE}-restore", *parameters)
    assert again == 15, message
    assert message.startswith("target_refused (15)")
    release.sql("DROP DATABASE app_restored", "postgres")


READERS: dict[str, dict[str, str]] = {
    "restore-one-table": {"TABLE": "items"},
    "restore-into-a-new-cluster": {"NEW": "app_elsewhere"},
    "tool-is-gone": {"SECRET": "postgres-secret"},
}
"""What a reader of a runbook sets in its first lines, where this installation's names are not the usual ones."""


@pytest.mark.parametrize("path", RUNBOOKS, ids=lambda path: path.stem)
def test_the_commands_of_a_runbook_work(path: Path, release: Cluster, tmp_path: Path) -> None:
    kubeconfig = tmp_path / "config"
    kubeconfig.write_text(release.kubectl("config", "view", "--raw", "--flatten"))
    environment = {**os.environ, "KUBECONFIG": str(kubeconfig), "RELEASE": RELEASE, **READERS.get(path.stem, {})}
    context = ["kubectl", "config", "set-context", "--current", f"--namespace={release.namespace}"]
    subprocess.run(context, env=environment, check=True, capture_output=True)
    script = "".join(blocks(path))
    finished = subprocess.run(
        ["sh", "-eux", "-c", script], env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=600
    )

    assert finished.returncode == 0, finished.stdout + finished.stderr
    for name in release.sql("SELECT datname FROM pg_database WHERE datname ~ '^app_'", "postgres").split():
        release.sql(f"DROP DATABASE {name} WITH (FORCE)", "postgres")
    release.kubectl("scale", f"deploy/{RELEASE}-toolbox", "--replicas=1")
    release.kubectl("rollout", "status", f"deploy/{RELEASE}-toolbox", "--timeout=120s")


def test_upgrade_and_rollback_leave_the_backups_alone(release: Cluster) -> None:
    before = {backup["id"] for backup in listed(release)}
    upgraded(release, podDeadlineSeconds=7200)
    deadline = "{.spec.jobTemplate.spec.template.spec.activeDeadlineSeconds}"
    assert release.kubectl("get", "cronjob", RELEASE, f"-ojsonpath={deadline}") == "7200"
    release.helm("rollback", RELEASE)
    assert release.kubectl("get", "cronjob", RELEASE, f"-ojsonpath={deadline}") == "21600"
    release.kubectl("rollout", "status", f"deployment/{RELEASE}-toolbox", "--timeout=120s")
    assert before <= {backup["id"] for backup in listed(release)}


def test_uninstall_keeps_the_claim_and_the_next_installation_finds_the_backups(release: Cluster) -> None:
    before = {backup["id"] for backup in listed(release)}
    release.helm("uninstall", RELEASE, "--wait")
    assert release.get("pvc", RELEASE)["status"]["phase"] == "Bound"
    assert release.get("cronjobs") == []

    release.install(RELEASE, {**VALUES, "backup": {**VALUES["backup"], "suspend": True}})
    release.kubectl("rollout", "status", f"deployment/{RELEASE}-toolbox", "--timeout=120s")
    assert before <= {backup["id"] for backup in listed(release)}
