"""A real cluster for tests: a namespace that enforces Pod Security `restricted`, PostgreSQL in it, releases.

Any KUBECONFIG will do (kind, k3d, minikube); the images named by TEST_IMAGE and TEST_POSTGRES_IMAGE must be
in its nodes already. Nothing here knows how the cluster was made.
"""

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

TOP = Path(__file__).resolve().parent.parent
CHART = TOP / "chart"
IMAGE = os.environ.get("TEST_IMAGE", "localhost/backupd:test")
POSTGRES_IMAGE = os.environ.get("TEST_POSTGRES_IMAGE", "docker.io/library/postgres:17")
PASSWORD = "a secret: with \\ and ' in it"
ROWS = 20_000

Object = dict[str, Any]

RESTRICTED: Object = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}


def pod_security(uid: int) -> Object:
    """What `restricted` asks of a pod, as that user."""
    return {
        "runAsNonRoot": True,
        "runAsUser": uid,
        "runAsGroup": uid,
        "fsGroup": uid,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


@dataclass(frozen=True)
class Cluster:
    """One namespace of the cluster, as kubectl and helm see it."""

    namespace: str

    def kubectl(self, *arguments: str, given: str | None = None, check: bool = True) -> str:
        """What kubectl prints; its errors are the test's unless `check` is false, then they are in the text."""
        return _run(["kubectl", "-n", self.namespace, *arguments], given, check)

    def helm(self, *arguments: str, program: str = "helm", check: bool = True) -> str:
        """What helm (or helm4) prints."""
        return _run([program, "-n", self.namespace, *arguments], None, check)

    def get(self, kind: str, name: str = "", labels: str = "") -> Any:
        """An object, or the list of them."""
        found = json.loads(
            self.kubectl("get", kind, *([name] if name else []), *(["-l", labels] * bool(labels)), "-ojson")
        )
        return found if name else found["items"]

    def apply(self, *objects: Object) -> None:
        """Creates or changes objects."""
        self.kubectl("apply", "-f", "-", given=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))

    def install(
        self, release: str, values: Object, *, program: str = "helm", verb: str = "install", check: bool = True
    ) -> str:
        """Installs the chart (or upgrades the release) with these values and the image under test."""
        repository, _, tag = IMAGE.rpartition(":")
        given = {"image": {"repository": repository, "tag": tag}, **values}
        path = TOP / ".pytest_cache" / f"values-{release}-{secrets.token_hex(4)}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(given))
        try:
            return self.helm(verb, release, str(CHART), "-f", str(path), program=program, check=check)
        finally:
            path.unlink()

    def sql(self, statement: str, database: str = "app", pod: str = "postgres-0") -> str:
        """What psql in the server's pod answers, unaligned."""
        command = ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", database, "-c", statement]
        return self.kubectl("exec", pod, "-c", "postgres", "--", *command).strip()

    @contextlib.contextmanager
    def holding(self, table: str, database: str = "app") -> Iterator[None]:
        """Keeps every pg_dump waiting for a table while the block runs."""
        statement = f"BEGIN; LOCK TABLE {table}; SELECT pg_sleep(600)"
        command = ["kubectl", "-n", self.namespace, "exec", "postgres-0", "-c", "postgres", "--"]
        command += ["env", "PGAPPNAME=holder", "psql", "-XAtq", "-U", "postgres", "-d", database, "-c", statement]
        holder = "FROM pg_stat_activity WHERE application_name = 'holder'"
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
            try:
                asleep = f"SELECT count(*) {holder} AND wait_event = 'PgSleep'"
                self.until(lambda: self.sql(asleep) != "0", f"{table} was not locked")
                yield
            finally:
                self.sql(f"SELECT pg_terminate_backend(pid) {holder}")

    def dumping(self) -> bool:
        """Whether a pg_dump waits for a table."""
        waiting = "application_name = 'backupd backup' AND wait_event_type = 'Lock'"
        return self.sql(f"SELECT count(*) FROM pg_stat_activity WHERE {waiting}") != "0"

    def until(self, condition: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
        """The condition's first true answer; the test fails, with the events, where there is none in time."""
        deadline = time.monotonic() + seconds
        while not (answer := condition()):
            if time.monotonic() > deadline:
                events = self.kubectl("get", "events", "--sort-by=.lastTimestamp", check=False)
                pods = self.kubectl("get", "pods,jobs", check=False)
                pytest.fail(f"waited {seconds:.0f} s in vain: {what}\n{pods}\n{events[-3000:]}", pytrace=False)
            time.sleep(0.5)
        return answer

    def job(self, name: str, template: str, *variables: str) -> str:
        """Starts a Job from a CronJob's template, with these variables set, as the runbooks do; returns its name."""
        made = self.kubectl("create", "job", name, f"--from=cronjob/{template}", "--dry-run=client", "-oyaml")
        if variables:
            made = self.kubectl("set", "env", "--local", "-f", "-", *variables, "-oyaml", given=made)
        self.kubectl("create", "-f", "-", given=made)
        return name

    def ended(self, job: str, seconds: float = 120.0) -> str:
        """How a Job ended, Complete or Failed; waits for it."""

        def end() -> str | None:
            conditions = self.get("job", job).get("status", {}).get("conditions", [])
            types = [each["type"] for each in conditions if each["status"] == "True"]
            return next((each for each in ("Complete", "Failed") if each in types), None)

        return str(self.until(end, f"job {job} did not end", seconds))

    def pods_of(self, job: str) -> list[Object]:
        """The pods of a Job."""
        found: list[Object] = self.get("pods", labels=f"batch.kubernetes.io/job-name={job}")
        return found

    def termination(self, job: str) -> tuple[int, str]:
        """Exit code and termination message of a Job's newest pod."""
        pod = max(self.pods_of(job), key=lambda each: each["metadata"]["creationTimestamp"])
        state = pod["status"]["containerStatuses"][0]["state"]["terminated"]
        return state["exitCode"], state.get("message", "")

    def log(self, job: str) -> str:
        """A Job's log."""
        return self.kubectl("logs", f"job/{job}", "-c", "backupd", check=False)

    def describe(self, job: str) -> str:
        """What a person sees of a Job and its pods."""
        pods = self.kubectl("describe", "pods", "-l", f"batch.kubernetes.io/job-name={job}", check=False)
        return self.kubectl("describe", "job", job, check=False) + pods

    def run(self, job: str, template: str, *variables: str, seconds: float = 120.0) -> tuple[int, str, str]:
        """Starts a Job, waits for its end, and returns exit code, termination message and log."""
        self.ended(self.job(job, template, *variables), seconds)
        return (*self.termination(job), self.log(job))

    def jobs(self, component: str = "backup", release: str = "backupd") -> list[Object]:
        """The Jobs of one component of a release, oldest first."""
        labels = f"app.kubernetes.io/instance={release},app.kubernetes.io/component={component}"
        found: list[Object] = self.get("jobs", labels=labels)
        return sorted(found, key=lambda each: each["metadata"]["creationTimestamp"])


def _run(command: list[str], given: str | None, check: bool) -> str:
    finished = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    if check and finished.returncode != 0:
        pytest.fail(f"{' '.join(command)}\nended with {finished.returncode}\n{finished.stdout}{finished.stderr}")
    return finished.stdout if check else finished.stdout + finished.stderr


def _require_cluster() -> None:
    missing = [name for name in ("kubectl", "helm") if shutil.which(name) is None]
    if os.environ.get("KUBECONFIG") and not missing:
        return
    pytest.skip(f"{' and '.join(missing)} not found" if missing else "no cluster: set KUBECONFIG")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A namespace of the test module's own, with a PostgreSQL whose database app has rows; deleted afterwards."""
    _require_cluster()
    made = Cluster(f"backupd-test-{secrets.token_hex(3)}")
    enforce = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
    made.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": made.namespace, "labels": enforce}})
    try:
        made.apply(*postgres_objects())
        made.kubectl("rollout", "status", "statefulset/postgres", "--timeout=120s")
        made.sql(f"CREATE TABLE items AS SELECT n, md5(n::text) AS text FROM generate_series(1, {ROWS}) n")
        made.sql("CREATE TABLE held (n int)")
        yield made
    finally:
        made.kubectl("delete", "namespace", made.namespace, "--wait=false")


def config_map(name: str, data: Mapping[str, str]) -> Object:
    """A ConfigMap."""
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": dict(data)}


def secret(name: str, data: Mapping[str, str]) -> Object:
    """A Secret."""
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": dict(data)}


def service(name: str) -> Object:
    """The Service of the pods that are labelled with its name."""
    spec = {"selector": {"app": name}, "ports": [{"port": 5432}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def postgres_objects() -> list[Object]:
    """PostgreSQL as its own chart would install it: a StatefulSet, a Service, a ConfigMap and a Secret."""
    names = {"POSTGRES_PRIMARY_FQDN": "postgres", "POSTGRES_USER": "postgres", "POSTGRES_DB": "app"}
    return [
        config_map("postgres-config", names),
        secret("postgres-secret", {"POSTGRES_PASSWORD": PASSWORD}),
        service("postgres"),
        stateful_set("postgres", []),
    ]


def stateful_set(name: str, init_containers: list[Object]) -> Object:
    """One PostgreSQL with its data in an emptyDir; replication is allowed to whoever knows the password."""
    password = {"secretKeyRef": {"name": "postgres-secret", "key": "POSTGRES_PASSWORD"}}
    environment: list[Object] = [
        {"name": "POSTGRES_PASSWORD", "valueFrom": password},
        {"name": "PGPASSWORD", "valueFrom": password},
        {"name": "POSTGRES_DB", "value": "app"},
        {"name": "PGDATA", "value": "/pg/data"},
    ]
    mounts = [{"name": "pg", "mountPath": "/pg"}]
    mounts += [{"name": "run", "mountPath": path} for path in ("/var/run/postgresql", "/tmp")]
    container = {
        "name": "postgres",
        "image": POSTGRES_IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "env": environment,
        "securityContext": RESTRICTED,
        "volumeMounts": mounts,
        "readinessProbe": {
            "exec": {"command": ["pg_isready", "-h", "127.0.0.1", "-U", "postgres", "-d", "app"]},
            "periodSeconds": 1,
            "failureThreshold": 60,
        },
    }
    shared = {key: container[key] for key in ("image", "imagePullPolicy", "env", "securityContext", "volumeMounts")}
    pod = {
        "securityContext": pod_security(999),
        "terminationGracePeriodSeconds": 5,
        "automountServiceAccountToken": False,
        "initContainers": [{**shared, **each} for each in init_containers],
        "containers": [container],
        "volumes": [{"name": "pg", "emptyDir": {}}, {"name": "run", "emptyDir": {}}],
    }
    spec = {
        "serviceName": name,
        "replicas": 1,
        "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}}, "spec": pod},
    }
    return {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": name}, "spec": spec}


SOURCE: Object = {
    "existingConfigMap": "postgres-config",
    "configMapKeys": {"host": "POSTGRES_PRIMARY_FQDN", "user": "POSTGRES_USER", "databases": "POSTGRES_DB"},
    "existingSecret": "postgres-secret",
}
"""A source from what the database's own chart made."""
