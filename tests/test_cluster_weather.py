"""On a real cluster: many databases at once, an S3 store, a standby, an application that triggers, and bad weather.

Whatever breaks around a run, its Job says enough to act on, and nothing half-made is listed afterwards.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyrage
import pytest
from fix_cluster import (
    CHART,
    IMAGE,
    PASSWORD,
    POSTGRES_IMAGE,
    RESTRICTED,
    ROWS,
    SOURCE,
    Cluster,
    Object,
    config_map,
    pod_security,
    secret,
    service,
    stateful_set,
)
from fix_tools import wait_until
from made_keys import key_texts

pytestmark = pytest.mark.cluster

KEY, SECRET_KEY = "AKIATESTTESTTESTTEST", "a-secret-that-no-log-may-hold"
FOUR = ["app", "billing", "crm", "wiki"]

NEVER = "0 0 1 1 *"
"""A schedule that starts nothing while the tests run: they start Jobs themselves."""

BASE: Object = {
    "source": {
        **SOURCE,
        "configMapKeys": {"host": "POSTGRES_PRIMARY_FQDN", "user": "POSTGRES_USER"},
        "databases": FOUR,
    },
    "schedule": NEVER,
    "retention": {"keepLast": 50},
    "dump": {"lockWait": "10min"},
    "backup": {"backoffLimit": 1, "podDeadlineSeconds": 600, "jobDeadlineSeconds": 1200},
    "scratch": {"size": "1Gi"},
}


def values(**changes: object) -> Object:
    """Values of a release; each of `changes` is merged into its section."""
    merged = json.loads(json.dumps(BASE))
    for section, change in changes.items():
        old = merged.get(section)
        merged[section] = {**old, **change} if isinstance(old, dict) and isinstance(change, dict) else change
    return merged  # type: ignore[no-any-return]


# --- an S3 server on this machine, as the pods see it


@pytest.fixture(scope="module")
def bucket(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Object]:
    """Values of a store on `rclone serve s3`, whose credentials are in a Secret, and the folder behind it."""
    program = shutil.which("rclone", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.fail("rclone is not installed: it comes with the test extra")
    folder = tmp_path_factory.mktemp("rclone")
    (folder / "backups").mkdir()
    address = os.environ.get("TEST_HOST") or node_address(cluster)
    with socket.socket() as probe:
        probe.bind((address, 0))
        port = probe.getsockname()[1]
    argv = [program, "serve", "s3", "--config", os.devnull, "--auth-key", f"{KEY},{SECRET_KEY}"]
    argv += ["--addr", f"{address}:{port}", str(folder)]
    credentials = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    cluster.apply(secret("bucket", credentials))
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        s3 = {"existingSecret": "bucket", "endpointUrl": f"http://{address}:{port}", "region": "us-east-1"}
        yield {"url": "s3://backups/cluster", "s3": s3}
        server.terminate()


def node_address(cluster: Cluster) -> str:
    """This machine as the pods see it, where it is the node."""
    path = '{.items[0].status.addresses[?(@.type=="InternalIP")].address}'
    address = cluster.kubectl("get", "nodes", f"-ojsonpath={path}")
    with socket.socket() as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            pytest.skip(f"the node {address} is another machine: set TEST_HOST to this one's address")
    return address


@pytest.fixture(scope="module")
def fleet(cluster: Cluster, bucket: Object) -> Cluster:
    """A release that backs up several databases into the bucket, made by Helm 4 where there is one."""
    for name in FOUR[1:]:
        cluster.sql(f"CREATE DATABASE {name} TEMPLATE app")
    helm = "helm4" if shutil.which("helm4") else "helm"
    cluster.install("fleet", values(store=bucket), program=helm)
    return cluster


def listed(cluster: Cluster, release: str, server: str = "") -> list[str]:
    """The names of a release's backups, or of another server's in its store; none may be broken."""
    name = f"list-{secrets.token_hex(3)}"
    code, message, log = cluster.run(name, f"{release}-backupd-restore", "BACKUPD_COMMAND=list")
    assert code == 0, message
    assert "backup.broken" not in log
    return [
        line.split()[0] + "@" + line.split()[1] for line in log.splitlines() if line.startswith(f"{server or release}/")
    ]


def test_one_pod_a_database_two_at_a_time_and_one_broken_costs_no_other_its_backup(
    fleet: Cluster, bucket: Object
) -> None:
    fan_out = {"enabled": True, "parallelism": 2, "backoffLimitPerIndex": 0}
    source = {**BASE["source"], "databases": ["app", "billing", "no_such_database", "crm", "wiki"]}
    fleet.install("fan", values(store=bucket, fanOut=fan_out, source=source))
    most = 0
    job = fleet.job("fan-1", "fan-backupd")
    while not (conditions := fleet.get("job", job)["status"].get("conditions", [])) and most < 9:
        most = max(most, fleet.get("job", job)["status"].get("active", 0))
        time.sleep(0.3)
    assert fleet.ended(job) == "Failed"
    status = fleet.get("job", job)["status"]

    assert (status["completedIndexes"], status["failedIndexes"]) == ("0,1,3,4", "2"), conditions
    assert most == 2
    assert {name.partition("@")[0] for name in listed(fleet, "fan")} == {f"fan/{name}" for name in FOUR}
    messages = [
        pod["status"]["containerStatuses"][0]["state"]["terminated"].get("message", "") for pod in fleet.pods_of(job)
    ]
    assert any("no_such_database" in message for message in messages)


def test_credentials_of_the_bucket_are_only_in_the_secret(fleet: Cluster) -> None:
    code, message, log = fleet.run("with-secret", "fleet-backupd")
    assert code == 0, message + log
    pod = json.dumps(fleet.pods_of("with-secret"))

    for text in (log, message, pod, fleet.describe("with-secret")):
        assert SECRET_KEY not in text
        assert PASSWORD not in text


def test_one_pod_a_server_each_filed_under_its_name(fleet: Cluster, bucket: Object) -> None:
    passwords = PASSWORD.replace("\\", "\\\\").replace(":", "\\:")
    fleet.apply(secret("servers", {"pgpass": f"*:*:*:*:{passwords}\n"}))
    services = [{"name": name, "host": "postgres", "port": 5432, "user": "postgres"} for name in ("prod", "staging")]
    given = values(store=bucket, fanOut={"enabled": True})
    given["source"] = {
        "services": services,
        "databases": ["bi*"],
        "existingSecret": "servers",
        "secretKeys": {"pgpass": "pgpass"},
    }
    fleet.install("servers", given)
    assert fleet.ended(fleet.job("servers-1", "servers-backupd")) == "Complete"

    for server in ("prod", "staging"):
        assert len(listed(fleet, "servers", server)) == 1


# --- drills, examples, and the life of a release


def test_a_drill_restores_into_a_server_beside_it_which_ends_with_it(fleet: Cluster, bucket: Object) -> None:
    code, message, log = fleet.run("before-the-drill", "fleet-backupd", "BACKUPD_BACKUP_DATABASES=app")
    assert code == 0, message + log
    drill = {"enabled": True, "schedule": NEVER, "image": POSTGRES_IMAGE, "backup": "fleet/app@latest", "size": "1Gi"}
    fleet.install("drilled", values(store=bucket, drill=drill))
    code, message, log = fleet.run("drill-1", "drilled-backupd-drill")

    assert code == 0, message + log
    assert ": identical: restored in " in log
    fleet.until(lambda: fleet.pods_of("drill-1")[0]["status"]["phase"] == "Succeeded", "the sidecar runs on")


STAGING = "SELECT count(*), min(text), max(text) FROM items"
OPEN = (
    "SELECT datallowconn, datconnlimit, has_database_privilege('public', oid, 'CONNECT')"
    " FROM pg_database WHERE datname = 'staging'"
)
OID = "SELECT oid FROM pg_database WHERE datname = 'staging'"
BESIDE = "SELECT datname FROM pg_database WHERE datname LIKE 'staging\\_%'"
CONTENT = "SELECT count(*), md5(string_agg(text, ',' ORDER BY n)) FROM items"


def test_a_refresh_puts_a_masked_backup_in_stagings_place_and_one_old_copy_stays(
    fleet: Cluster, bucket: Object
) -> None:
    code, message, log = fleet.run("before-the-refresh", "fleet-backupd", "BACKUPD_BACKUP_DATABASES=app")
    assert code == 0, message + log
    target = {"host": "postgres", "user": "postgres", "existingSecret": "postgres-secret"}
    refresh = {"enabled": True, "schedule": NEVER, "backup": "fleet/app@latest", "database": "staging"}
    refresh |= {"target": target, "sql": {"existingConfigMap": "masking", "key": "mask.sql"}}
    fleet.install("refreshed", values(store=bucket, refresh=refresh))
    before = fleet.sql(CONTENT)
    template = "refreshed-backupd-refresh"
    code, message, log = fleet.run("refresh-unmasked", template)
    assert (code, "could not read /etc/backupd/sql/mask.sql" in message) == (2, True), message + log
    fleet.apply(config_map("masking", {"mask.sql": "UPDATE items SET text = 'masked'"}))
    code, message, log = fleet.run("refresh-nothing", template)
    assert (code, "there is no database staging to replace" in message) == (2, True), message + log
    assert fleet.sql(BESIDE) == ""

    fleet.sql("CREATE DATABASE staging")
    oids = [fleet.sql(OID)]
    for number in (1, 2):
        code, message, log = fleet.run(f"refresh-{number}", template)
        assert code == 0, message + log
        assert fleet.sql(STAGING, "staging") == f"{ROWS}|masked|masked"
        assert fleet.sql(OPEN) == "t|-1|t"
        assert fleet.sql(BESIDE).startswith("staging_before_")
        assert len(fleet.sql(BESIDE).splitlines()) == 1
        oids.append(fleet.sql(OID))
    assert len(set(oids)) == 3
    assert fleet.sql(STAGING, fleet.sql(BESIDE)) == f"{ROWS}|masked|masked"

    code, message, log = undone(fleet, template)
    assert code == 0, message + log
    assert fleet.sql(OID) == oids[1]
    assert fleet.sql(CONTENT) == before


def undone(cluster: Cluster, template: str) -> tuple[int, str, str]:
    """How a Job ends that swaps staging back, as the chart's README makes it: without the container that forgets."""
    made = cluster.kubectl("create", "job", "undo-1", f"--from=cronjob/{template}", "--dry-run=client", "-oyaml")
    removed = json.dumps([{"op": "remove", "path": "/spec/template/spec/initContainers"}])
    made = cluster.kubectl("patch", "--local", "-f", "-", "--type=json", "-p", removed, "-oyaml", given=made)
    variables = ("BACKUPD_COMMAND=undo", "BACKUPD_UNDO_DATABASE=staging")
    made = cluster.kubectl("set", "env", "--local", "-f", "-", *variables, "-oyaml", given=made)
    cluster.kubectl("create", "-f", "-", given=made)
    cluster.ended("undo-1")
    return (*cluster.termination("undo-1"), cluster.log("undo-1"))


@pytest.mark.parametrize("path", sorted((CHART / "examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_api_server_accepts_every_example(path: Path, cluster: Cluster) -> None:
    version = json.loads(cluster.kubectl("version", "-ojson"))["serverVersion"]["gitVersion"]
    rendered = cluster.helm(
        "template", "example", str(CHART), "-f", str(path), "--skip-tests", "--kube-version", version
    )
    said = cluster.kubectl("apply", "--dry-run=server", "-f", "-", given=rendered)
    assert "cronjob.batch/example-backupd created (server dry run)" in said


def test_the_api_server_accepts_everything_that_can_be_switched_on(cluster: Cluster) -> None:
    """NetworkPolicies among it, which this cluster does not enforce."""
    version = json.loads(cluster.kubectl("version", "-ojson"))["serverVersion"]["gitVersion"]
    switched = ["networkPolicy.enabled=true", "trigger.rbac.enabled=true", "trigger.rbac.serviceAccountName=app"]
    switched += ["scratch.storageClass=standard", "priorityClassName=system-cluster-critical", "timeZone=Europe/Berlin"]
    settings = [word for each in switched for word in ("--set", each)]
    example = str(CHART / "examples" / "drill.yaml")
    command = [
        "template",
        "everything",
        str(CHART),
        "-f",
        example,
        "--skip-tests",
        "--kube-version",
        version,
        *settings,
    ]
    said = cluster.kubectl("apply", "--dry-run=server", "-f", "-", given=cluster.helm(*command))
    kinds = ("networkpolicy.networking.k8s.io", "validatingadmissionpolicy.admissionregistration.k8s.io", "role.rbac")
    assert all(f"{kind}" in said for kind in kinds), said


@pytest.mark.parametrize("program", ["helm", "helm4"])
def test_a_release_is_installed_tested_upgraded_rolled_back_and_removed(program: str, cluster: Cluster) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    release, claim = f"life-{program}", f"life-{program}-backupd"
    given = values(source={"databases": ["app"]}, store={"pvc": {"enabled": True, "size": "1Gi"}})
    deadline = "-ojsonpath={.spec.jobTemplate.spec.template.spec.activeDeadlineSeconds}"
    cluster.install(release, given, program=program)
    assert "Succeeded" in cluster.helm("test", release, "--timeout", "120s", program=program)
    code, message, log = cluster.run(f"{release}-1", claim)
    assert code == 0, message + log
    before = listed(cluster, release)

    longer = values(**{**given, "backup": {**BASE["backup"], "podDeadlineSeconds": 700}})
    cluster.install(release, longer, program=program, verb="upgrade")
    assert cluster.kubectl("get", "cronjob", claim, deadline) == "700"
    cluster.helm("rollback", release, program=program)
    assert cluster.kubectl("get", "cronjob", claim, deadline) == "600"

    cluster.helm("uninstall", release, "--wait", program=program)
    assert cluster.get("pvc", claim)["status"]["phase"] == "Bound"
    cluster.install(release, given, program=program)
    assert listed(cluster, release) == before


# --- a standby


def test_dumps_come_from_a_standby_and_restores_go_to_the_primary(cluster: Cluster, bucket: Object) -> None:
    cluster.kubectl("exec", "postgres-0", "-c", "postgres", "--", "sh", "-c", HBA)
    cluster.sql("SELECT pg_reload_conf()")
    clone = "[ -s /pg/data/PG_VERSION ] || pg_basebackup -h postgres -U postgres -D /pg/data -R -X stream -c fast"
    cluster.apply(service("standby"), stateful_set("standby", [{"name": "clone", "command": ["sh", "-c", clone]}]))
    cluster.kubectl("rollout", "status", "statefulset/standby", "--timeout=120s")
    assert cluster.sql("SELECT pg_is_in_recovery()", pod="standby-0") == "t"

    source = {"host": "standby", "user": "postgres", "databases": ["app"], "existingSecret": "postgres-secret"}
    target = {"host": "postgres", "user": "postgres", "existingSecret": "postgres-secret"}
    given = values(store=bucket, restore={"target": target})
    given["source"] = source
    cluster.install("standby", given)
    code, message, log = cluster.run("from-standby", "standby-backupd")
    assert code == 0, message + log
    parameters = ("BACKUPD_RESTORE_BACKUP=standby/app@latest", "BACKUPD_RESTORE_AS=from_standby")
    code, message, log = cluster.run("to-primary", "standby-backupd-restore", *parameters)
    assert code == 0, message + log
    assert cluster.sql("SELECT count(*) FROM items", "from_standby") == str(ROWS)


HBA = "echo 'host replication all all scram-sha-256' >>/pg/data/pg_hba.conf"


# --- keys, and the page


def test_a_sealed_backup_is_restored_by_who_has_the_key_alone_and_the_page_shows_it(
    cluster: Cluster, bucket: Object
) -> None:
    """Encrypted and signed: the pod that backs up can read nothing of it, and the page trusts what is signed."""
    identity = pyrage.x25519.Identity.generate()
    signing_key, public_key = key_texts()
    keys = {"identities": str(identity)}, {"backupd.key": signing_key}
    cluster.apply(*(secret(name, data) for name, data in zip(("identities", "signer"), keys, strict=True)))
    given = values(
        store=bucket,
        encryption={"recipients": [str(identity.to_public())], "existingSecret": "identities"},
        signing={"publicKeys": [public_key], "existingSecret": "signer"},
        status={"enabled": True, "refresh": "10s"},
        toolbox={"replicas": 1},
    )
    given["source"]["databases"] = ["app"]
    cluster.install("sealed", given)
    code, message, log = cluster.run("sealed-backup", "sealed-backupd")
    assert code == 0, message + log
    assert "IDENTITIES" not in json.dumps(cluster.pods_of("sealed-backup")[0]["spec"])
    parameters = ("BACKUPD_RESTORE_BACKUP=sealed/app@latest", "BACKUPD_RESTORE_AS=unsealed")
    code, message, log = cluster.run("unseal", "sealed-backupd-restore", *parameters)
    assert code == 0, message + log
    assert cluster.sql("SELECT count(*) FROM items", "unsealed") == str(ROWS)

    cluster.kubectl("rollout", "status", "deployment/sealed-backupd-status", "--timeout=120s")
    url = "http://sealed-backupd-status:8080"
    ask = f"import sys, urllib.request as u; print(u.urlopen('{url}' + sys.argv[1]).read().decode())"
    cluster.kubectl("rollout", "status", "deployment/sealed-backupd-toolbox", "--timeout=120s")

    def answer(path: str) -> str:
        toolbox = ("exec", "deploy/sealed-backupd-toolbox", "--", "/opt/backupd/bin/python", "-c", ask, path)
        return cluster.kubectl(*toolbox, check=False)

    def shown() -> list[Object]:
        said = answer("/api/v1/backups.json")
        everything = json.loads(said)["backups"] if said.startswith("{") else []
        return [each for each in everything if each["source"]["server"] == "sealed"]

    (backup,) = cluster.until(shown, "the page does not show the backup", 90)
    assert not backup["suspect"]
    assert "sealed" in answer("/")
    assert 'server="sealed"' in answer("/metrics")


# --- an application that starts a backup


def test_an_application_starts_a_backup_through_the_api_and_nothing_else(cluster: Cluster, bucket: Object) -> None:
    rbac = {"rbac": {"enabled": True, "serviceAccountName": "application"}}
    cluster.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "application"}})
    cluster.install("triggered", values(store=bucket, trigger=rbac))
    cluster.apply(
        config_map("trigger", {"trigger.py": (CHART / "examples" / "trigger.py").read_text(encoding="utf-8")})
    )
    application = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "application"},
        "spec": {
            "restartPolicy": "Never",
            "serviceAccountName": "application",
            "securityContext": pod_security(10001),
            "containers": [
                {
                    "name": "application",
                    "image": IMAGE,
                    "command": ["python3", "/trigger/trigger.py", "triggered-backupd"],
                    "securityContext": RESTRICTED,
                    "volumeMounts": [{"name": "trigger", "mountPath": "/trigger"}],
                }
            ],
            "volumes": [{"name": "trigger", "configMap": {"name": "trigger"}}],
        },
    }
    cluster.apply(application)
    cluster.until(
        lambda: cluster.get("pod", "application")["status"]["phase"] in ("Succeeded", "Failed"), "no end", 120
    )
    log = cluster.kubectl("logs", "application")
    assert cluster.get("pod", "application")["status"]["phase"] == "Succeeded", log
    assert [job["status"].get("succeeded") for job in cluster.jobs(release="triggered")] == [1]

    made = json.loads(
        cluster.kubectl("create", "job", "mine", "--from=cronjob/triggered-backupd", "--dry-run=client", "-ojson")
    )
    for change in HOSTILE:
        hostile = json.loads(json.dumps(made))
        change(hostile["spec"]["template"]["spec"])
        account = f"--as=system:serviceaccount:{cluster.namespace}:application"
        said = cluster.kubectl("create", account, "-f", "-", given=json.dumps(hostile), check=False)
        assert "ValidatingAdmissionPolicy" in said, said
    assert "mine" not in [job["metadata"]["name"] for job in cluster.jobs(release="triggered")]


def _other_image(pod: Object) -> None:
    pod["containers"][0]["image"] = "registry.example.org/other:1"


def _other_command(pod: Object) -> None:
    pod["containers"][0]["command"] = ["sh", "-c", "env"]


def _other_secret(pod: Object) -> None:
    pod["volumes"].append({"name": "more", "secret": {"secretName": "postgres-secret"}})


def _secret_as_variable(pod: Object) -> None:
    reference = {"secretKeyRef": {"name": "postgres-secret", "key": "POSTGRES_PASSWORD"}}
    pod["containers"][0]["env"].append({"name": "BACKUPD_BACKUP_DATABASES", "valueFrom": reference})


def _other_account(pod: Object) -> None:
    pod["serviceAccountName"] = "default"


HOSTILE: list[Callable[[Object], None]] = [
    _other_image,
    _other_command,
    _other_secret,
    _secret_as_variable,
    _other_account,
]


# --- pods that die in the middle


@pytest.fixture(scope="module")
def volume(cluster: Cluster) -> Cluster:
    """A release with one database and a claim, whose failed runs are tried again."""
    source = {**BASE["source"], "databases": ["app"]}
    cluster.install("volume", values(source=source, store={"pvc": {"enabled": True, "size": "1Gi"}}))
    return cluster


def running(cluster: Cluster, job: str) -> Object:
    """The pod of a Job that is dumping; its status lags behind."""
    cluster.until(cluster.dumping, "no pg_dump waits", 60)

    def found() -> list[Object]:
        return [pod for pod in cluster.pods_of(job) if pod["status"]["phase"] == "Running"]

    pods: list[Object] = cluster.until(found, f"no pod of {job} runs")
    assert len(pods) == 1
    return pods[0]


def deleted(cluster: Cluster, pod: Object) -> None:
    cluster.kubectl("delete", "pod", pod["metadata"]["name"], "--wait=false")


def evicted(cluster: Cluster, pod: Object) -> None:
    name = pod["metadata"]["name"]
    eviction = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": name, "namespace": cluster.namespace},
    }
    path = f"/api/v1/namespaces/{cluster.namespace}/pods/{name}/eviction"
    cluster.kubectl("create", "--raw", path, "-f", "-", given=json.dumps(eviction))


def killed_behind_the_kubelet(cluster: Cluster, pod: Object) -> None:
    """The kubelet stands still while the container dies, as when a node loses its agent."""
    kubelet = next(iter(processes("kubelet", "--kubeconfig")), None)
    victims = [pid for pid in processes("backupd", "backup") if pod["metadata"]["uid"] in cgroup(pid)]
    if kubelet is None or not victims:
        pytest.skip("the node is another machine, or its kubelet is not to be found")
    os.kill(kubelet, signal.SIGSTOP)
    try:
        os.kill(victims[0], signal.SIGKILL)
        time.sleep(5)
    finally:
        os.kill(kubelet, signal.SIGCONT)


def processes(*words: str) -> Iterator[int]:
    """Processes of this machine whose command line has these words as arguments."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            arguments = (folder / "cmdline").read_bytes().split(b"\0")
            if all(any(argument.endswith(word.encode()) for argument in arguments) for word in words):
                yield int(folder.name)


def cgroup(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cgroup").read_text().replace("_", "-")
    return ""


@pytest.mark.parametrize("end", [deleted, evicted, killed_behind_the_kubelet])
def test_a_pod_that_ends_in_the_middle_is_tried_again_and_nothing_half_made_is_listed(
    end: Callable[[Cluster, Object], None], volume: Cluster
) -> None:
    before = listed(volume, "volume")
    job = volume.job(f"run-{secrets.token_hex(3)}", "volume-backupd")
    with volume.holding("held"):
        first = running(volume, job)
        end(volume, first)
        volume.until(lambda: any(is_other(pod, first) for pod in volume.pods_of(job)), "no second try", 120)
        assert listed(volume, "volume") == before
    assert volume.ended(job) == "Complete"

    after = listed(volume, "volume")
    assert set(before) < set(after)
    assert len(after) == len(before) + 1
    code, message, log = volume.run(f"{job}-orphans", "volume-backupd-restore", "BACKUPD_COMMAND=doctor")
    assert code == 0, message + log


def is_other(pod: Object, first: Object) -> bool:
    """Whether that is another pod than the first, and runs."""
    return bool(pod["status"]["phase"] == "Running" and pod["metadata"]["uid"] != first["metadata"]["uid"])


def test_a_deadline_is_a_clean_end_whose_log_and_message_stay(cluster: Cluster, volume: Cluster) -> None:
    before = listed(volume, "volume")
    source = {**BASE["source"], "databases": ["app"]}
    limited = {**BASE["backup"], "podDeadlineSeconds": 15, "backoffLimit": 0}
    given = values(source=source, store={"pvc": {"enabled": True, "existingClaim": "volume-backupd"}}, backup=limited)
    cluster.install("hurried", given)
    with cluster.holding("held"):
        assert cluster.ended(cluster.job("too-long", "hurried-backupd")) == "Failed"

    pod = cluster.pods_of("too-long")[0]
    code, message = cluster.termination("too-long")
    assert pod["status"]["reason"] == "DeadlineExceeded"
    assert code == 143
    assert message.startswith("interrupted (143)")
    assert '"event": "run.failed"' in cluster.log("too-long")
    assert listed(volume, "volume") == before


# --- what is wrong is said where people look


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"existingSecret": "wrong-password"}, 12, ["access_refused (12)", "password authentication failed"]),
        ({"existingSecret": "no-such-secret"}, 2, ["usage (2)", "BACKUPD_SOURCE__PASSWORD_FILE"]),
        ({"secretKeys": {"password": "NO_SUCH_KEY"}}, 2, ["usage (2)", "BACKUPD_SOURCE__PASSWORD_FILE"]),
        ({"configMapKeys": {}, "host": "no-such-host", "user": "postgres"}, 18, ["database (18)", "no-such-host"]),
    ],
    ids=["wrong password", "missing secret", "missing key", "unreachable host"],
)
def test_a_wrong_source_is_named_by_the_job_its_message_and_its_last_line(
    changes: Object, code: int, words: list[str], cluster: Cluster, bucket: Object
) -> None:
    cluster.apply(secret("wrong-password", {"POSTGRES_PASSWORD": "wrong"}))
    release = f"wrong-{secrets.token_hex(3)}"
    given = values(source=changes, store=bucket, backup={**BASE["backup"], "backoffLimit": 0})
    cluster.install(release, given)
    found, message, log = cluster.run(f"{release}-1", f"{release}-backupd")

    assert found == code, log
    last = json.loads(log.splitlines()[-1])
    assert last["exit_code"] == code
    for word in words:
        assert word in message
        assert word.partition(" (")[0] in log.splitlines()[-1]
    assert last["hint"], last
    assert message.splitlines()[0] in cluster.describe(f"{release}-1")


def test_a_claim_that_does_not_exist_is_named_by_the_pod(cluster: Cluster) -> None:
    store = {"pvc": {"enabled": True, "existingClaim": "no-such-claim"}}
    cluster.install("no-claim", values(store=store))
    job = cluster.job("no-claim-1", "no-claim-backupd")
    cluster.until(lambda: 'persistentvolumeclaim "no-such-claim" not found' in cluster.describe(job), "not said", 60)


def test_a_time_zone_that_does_not_exist_is_refused_by_the_api_server(cluster: Cluster, bucket: Object) -> None:
    said = cluster.install("on-mars", values(store=bucket, timeZone="Mars/Olympus"), check=False)
    assert 'Invalid value: "Mars/Olympus": unknown time zone' in said


def test_a_full_volume_is_no_room_and_the_earlier_backups_stay(cluster: Cluster, tmp_path: Path) -> None:
    with small_volume(cluster, tmp_path, megabytes=1) as claim:
        source = {**BASE["source"], "databases": ["app"]}
        store = {"pvc": {"enabled": True, "existingClaim": claim}}
        cluster.install("full", values(source=source, store=store, backup={**BASE["backup"], "backoffLimit": 0}))
        codes = []
        for number in range(4):
            code, message, log = cluster.run(f"full-{number}", "full-backupd")
            codes.append(code)
            if code:
                break
        assert codes[0] == 0
        assert codes[-1] == 17, log
        assert message.startswith("no_room (17)")
        assert len(listed(cluster, "full")) == len(codes) - 1
        cluster.helm("uninstall", "full", "--wait")
        cluster.kubectl("delete", "jobs", "--all", "--wait")


@contextlib.contextmanager
def small_volume(cluster: Cluster, folder: Path, megabytes: int) -> Iterator[str]:
    """A claim on a file system of that size; only where this machine is the node, and we are root."""
    node_address(cluster)
    if os.geteuid() != 0:
        pytest.skip("only root mounts file systems")
    for parent in (folder, *folder.parents):
        if parent.stat().st_uid == 0 and "pytest" in str(parent):
            parent.chmod(0o755)
    name = f"small-{secrets.token_hex(3)}"
    mount = folder / "volume"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0777", "none", mount], check=True)
    terms = [{"matchExpressions": [{"key": "kubernetes.io/os", "operator": "In", "values": ["linux"]}]}]
    spec: dict[str, Any] = {
        "capacity": {"storage": "1Gi"},
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": name,
        "persistentVolumeReclaimPolicy": "Retain",
        "local": {"path": str(mount)},
        "nodeAffinity": {"required": {"nodeSelectorTerms": terms}},
    }
    claim = {"accessModes": ["ReadWriteOnce"], "storageClassName": name, "resources": {"requests": {"storage": "1Gi"}}}
    try:
        cluster.apply(
            {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec},
            {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": claim},
        )
        yield name
    finally:
        cluster.kubectl("delete", "pvc", name, "--wait=false")
        cluster.kubectl("delete", "pv", name, "--wait=false")
        wait_until(lambda: subprocess.run(["umount", "--lazy", mount], check=False).returncode == 0, "umount")
