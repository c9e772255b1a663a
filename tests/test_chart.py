"""The chart renders what its values say, and refuses what cannot work with a sentence; a schema and settings agree.

A render takes 50 ms, so each is made once. Everything is rendered by Helm 3 where there is one, and a few renders by
Helm 4 too. That Kubernetes takes what is rendered, and does what it says, is tested on a cluster.
"""

import functools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # its stubs are one more package
from pydantic import ValidationError

import backupd
from backupd.sections import (
    RUN_VARIABLES,
    SECTIONS,
    DumpSettings,
    RetentionSettings,
    S3Settings,
    SigningSettings,
    variables,
)

TOP = Path(__file__).parent.parent
CHART = TOP / "chart"
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
KUBERNETES = "1.34.0"
RELEASE, NAME = "shop", "shop-backupd"
JOBS = ("backup", "restore", "drill", "refresh", "digest")
COMPONENTS = (*JOBS, "toolbox", "status", "doctor")
OBJECTS = {
    "backup": f"CronJob/{NAME}",
    "restore": f"CronJob/{NAME}-restore",
    "drill": f"CronJob/{NAME}-drill",
    "refresh": f"CronJob/{NAME}-refresh",
    "digest": f"CronJob/{NAME}-digest",
    "toolbox": f"Deployment/{NAME}-toolbox",
    "status": f"Deployment/{NAME}-status",
    "service": f"Service/{NAME}-status",
    "monitor": f"ServiceMonitor/{NAME}-status",
    "entrance": f"NetworkPolicy/{NAME}-status",
    "alerts": f"PrometheusRule/{NAME}",
    "dashboard": f"ConfigMap/{NAME}-dashboard",
    "doctor": f"Pod/{NAME}-doctor",
    "claim": f"PersistentVolumeClaim/{NAME}",
    "account": f"ServiceAccount/{NAME}",
    "network": f"NetworkPolicy/{NAME}",
    "services": f"ConfigMap/{NAME}-services",
    "role": f"Role/{NAME}-trigger",
    "rolebinding": f"RoleBinding/{NAME}-trigger",
    "policy": f"ValidatingAdmissionPolicy/{NAME}-trigger.default",
    "policybinding": f"ValidatingAdmissionPolicyBinding/{NAME}-trigger.default",
    "extra": "ConfigMap/extra",
}

BASE: Mapping[str, Any] = {
    "source.host": "db",
    "source.user": "backup",
    "source.databases": ["app"],
    "store.pvc.enabled": True,
    "store.pvc.size": "5Gi",
    "schedule": "30 2 * * *",
    "retention.keepDaily": 7,
}
S3: Mapping[str, Any] = {"store.pvc.enabled": False, "store.url": "s3://bucket/prefix"}
DRILL: Mapping[str, Any] = {"drill.enabled": True, "drill.schedule": "0 5 * * 0", "drill.image": "postgres:17"}
REFRESH: Mapping[str, Any] = {
    "refresh.enabled": True,
    "refresh.schedule": "0 4 * * 1",
    "refresh.backup": "app@latest",
    "refresh.database": "staging",
    "refresh.target.host": "db.staging",
    "refresh.target.user": "postgres",
}
MASKED: Mapping[str, Any] = {
    **REFRESH,
    "refresh.target.existingSecret": "staging",
    "refresh.target.sslmode": "verify-full",
    "refresh.sql.existingConfigMap": "masking",
    "refresh.sql.key": "mask.sql",
}
FANOUT: Mapping[str, Any] = {"fanOut.enabled": True, "source.databases": ["app", "billing", "crm"]}
SERVICES: Mapping[str, Any] = {
    "fanOut.enabled": True,
    "source.host": "",
    "source.databases": ["*"],
    "source.services": [{"name": "prod", "host": "db.prod", "port": 5433}, {"name": "test", "host": "db.test"}],
}
TRIGGER: Mapping[str, Any] = {"trigger.rbac.enabled": True, "trigger.rbac.serviceAccountName": "app"}
STATUS: Mapping[str, Any] = {"status.enabled": True, "status.oneNode": True}
MONITOR: Mapping[str, Any] = {**STATUS, "status.serviceMonitor.enabled": True}
WATCHED: Mapping[str, Any] = {
    **MONITOR,
    "status.existingSecret": "token",
    "alerts.enabled": True,
    "dashboard.enabled": True,
}
NOTIFY: Mapping[str, Any] = {
    "notify.existingSecret": "notify",
    "notify.secretKeys.pingUrl": "ping",
    "notify.digestSchedule": "0 8 * * 1",
}
NETWORK: Mapping[str, Any] = {"networkPolicy.enabled": True}
SECRET: Mapping[str, Any] = {"source.existingSecret": "postgres"}
CONFIGMAP: Mapping[str, Any] = {"source.existingConfigMap": "postgres"}
PUBLIC_KEY = f"RWQ{'A' * 53}"
SIGNING: Mapping[str, Any] = {"signing.existingSecret": "signing", "signing.publicKeys": [PUBLIC_KEY]}
RECIPIENT = f"age1{'q' * 58}"
ENCRYPTION: Mapping[str, Any] = {"encryption.existingSecret": "identities", "encryption.recipients": [RECIPIENT]}
TLS: Mapping[str, Any] = {"source.tls.existingSecret": "tls", "source.sslmode": "verify-full"}
TARGET: Mapping[str, Any] = {
    "restore.target.host": "primary",
    "restore.target.user": "postgres",
    "restore.target.existingSecret": "primary",
}
WHOLE: Mapping[str, Mapping[str, Any]] = {
    "pvc": {
        **SIGNING,
        **ENCRYPTION,
        **SECRET,
        **TLS,
        **TARGET,
        **DRILL,
        **MASKED,
        **TRIGGER,
        **NETWORK,
        **WATCHED,
        **NOTIFY,
        "backup.wait": 1,
        "extraEnvFrom": [{}],
    },
    "s3": {
        **S3,
        **SECRET,
        **DRILL,
        **REFRESH,
        **NETWORK,
        **STATUS,
        "store.s3.existingSecret": "s3",
        "store.s3.region": "eu",
    },
    "fan-out": {**FANOUT, **DRILL, **MASKED, **TRIGGER, "scratch.storageClass": "fast", "source.secretKeys.pgpass": ""},
    "services": {**SERVICES, **SECRET, **DRILL, **REFRESH, **STATUS, "source.secretKeys.pgpass": "pgpass"},
}
"""Values that together bring out everything."""

Rendered = Mapping[str, Any]


def helm(program: str) -> str:
    """The path of `helm` or `helm4`; skips the test where there is none."""
    path = shutil.which(program) or (shutil.which("helm4") if program == "helm" else None)
    if path is None:
        pytest.skip(f"no {program} on PATH")
    return path


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted paths as Helm takes them."""
    root: dict[str, Any] = {}
    for path, value in values.items():
        *parents, name = path.split(".")
        functools.reduce(lambda here, parent: here.setdefault(parent, {}), parents, root)[name] = value
    return root


@functools.cache
def output(values: str, release: str, program: str, chart: Path) -> tuple[int, str, str]:
    """What `helm template` says of values in JSON: exit code, stdout, stderr."""
    line = [helm(program), "template", release, str(chart), "--kube-version", KUBERNETES, "-f", "-"]
    done = subprocess.run(line, input=values, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@functools.cache
def parsed(text: str) -> Rendered:
    """Rendered objects by kind and name."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    documents = [each for each in yaml.load_all(text, loader) if each]
    objects = {f"{each['kind']}/{each['metadata']['name']}": each for each in documents}
    assert len(objects) == len(documents), "two objects have one name"
    return objects


def render(
    values: Mapping[str, Any] | None = None, release: str = RELEASE, program: str = "helm", chart: Path = CHART
) -> Rendered:
    """The objects of the least values there can be, with these."""
    code, text, errors = output(json.dumps(nested({**BASE, **(values or {})})), release, program, chart)
    assert code == 0, errors
    return parsed(text)


def refusal(values: Mapping[str, Any]) -> str:
    """What helm says of values that it does not take."""
    code, _, errors = output(json.dumps(nested({**BASE, **values})), RELEASE, "helm", CHART)
    assert code != 0, "it was rendered"
    return errors


def pod(objects: Rendered, component: str) -> Any:
    """A component's pod spec."""
    found = objects[OBJECTS[component]]["spec"]
    if component in JOBS:
        return found["jobTemplate"]["spec"]["template"]["spec"]
    return found["template"]["spec"] if component in ("toolbox", "status") else found


def container(objects: Rendered, component: str) -> Any:
    """A component's own container."""
    [only] = pod(objects, component)["containers"]
    return only


def own(objects: Rendered, component: str) -> list[Any]:
    """All its containers but a drill's PostgreSQL."""
    spec = pod(objects, component)
    return [each for each in (*spec.get("initContainers", ()), *spec["containers"]) if each["name"] != "postgres"]


def env(objects: Rendered, component: str) -> dict[str, Any]:
    """Its variables, as text or where they come from."""
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in container(objects, component)["env"]}


def look(objects: Rendered, where: str) -> Any:
    """What is at a place such as `backup.env.NAME`, `backup.pod.volumes.tmp` or `claim.spec`; None where nothing is."""
    component, *segments = re.split(r"\.(?![^(]*\))", where)
    if OBJECTS[component] not in objects:
        return None
    here = objects[OBJECTS[component]]
    if segments and segments[0] == "env":
        here, segments = env(objects, component), segments[1:]
    elif segments and segments[0] in ("pod", "container"):
        here, segments = {"pod": pod, "container": container}[segments[0]](objects, component), segments[1:]
    elif segments and segments[0] == "job":
        here, segments = here["spec"]["jobTemplate"]["spec"], segments[1:]
    for segment in (each.strip("()") for each in segments):
        if isinstance(here, list):
            here = next((each for each in here if isinstance(each, dict) and each.get("name") == segment), None)
        elif isinstance(here, dict):
            here = here.get(segment)
        if here is None:
            return None
    return here


# --- each value, on and off


@dataclass(frozen=True)
class Case:
    """A value, where it shows, and as what; `beside` are values without which it means nothing."""

    value: Any
    where: str
    shown: Any
    beside: Mapping[str, Any] = field(default_factory=dict)


def reference(kind: str, name: str, key: str) -> dict[str, Any]:
    """A variable's source."""
    return {kind: {"name": name, "key": key, "optional": True}}


def secret(name: str, **keys: str) -> dict[str, Any]:
    """A volume of a Secret's keys, by the files that they become."""
    items = [{"key": key, "path": path} for path, key in keys.items()]
    return {"secretName": name, "optional": True, "defaultMode": 0o440, "items": items}


def section(setting: str, value: Any, shown: str, component: str = "backup") -> Case:
    """A value that becomes a setting."""
    return Case(value, f"{component}.env.BACKUPD_{setting}", shown, S3 if setting.startswith("STORE") else {})


KEEP = {"name": "x", "value": "y"}
ENDPOINT = {"port": "http", "path": "/metrics"}
TOLERATION = {"key": "backups", "operator": "Exists"}
DIGEST = f"sha256:{'0' * 64}"

CASES: Mapping[str, Case] = {
    "nameOverride": Case("keep", "backup.metadata.labels.(app.kubernetes.io/name)", "keep", {"fullnameOverride": NAME}),
    "image.registry": Case("registry.example.org", "backup.container.image", "registry.example.org/backupd:0.1.0"),
    "image.repository": Case("mine", "backup.container.image", f"mine:{backupd.__version__}"),
    "image.tag": Case("x", "backup.container.image", "backupd:x"),
    "image.digest": Case(DIGEST, "backup.container.image", f"backupd@{DIGEST}", {"image.tag": "x"}),
    "image.pullPolicy": Case("Always", "backup.container.imagePullPolicy", "Always"),
    "imagePullSecrets": Case([{"name": "r"}], "backup.pod.imagePullSecrets", [{"name": "r"}]),
    "source.host": section("SOURCE__HOST", "other", "other"),
    "source.port": section("SOURCE__PORT", 5433, "5433"),
    "source.user": section("SOURCE__USER", "dump", "dump"),
    "source.databases": section("SOURCE__DATABASES", ["app", "b*"], "app,b*"),
    "source.server": section("SOURCE__SERVER", "prod", "prod"),
    "source.sslmode": section("SOURCE__SSLMODE", "require", "require"),
    "source.existingConfigMap": Case(
        "postgres",
        "backup.env.BACKUPD_SOURCE__HOST",
        reference("configMapKeyRef", "postgres", "HOST"),
        {"source.host": "", "source.configMapKeys.host": "HOST"},
    ),
    **{
        f"source.configMapKeys.{name}": Case(
            "KEY",
            f"backup.env.BACKUPD_SOURCE__{name.upper()}",
            reference("configMapKeyRef", "postgres", "KEY"),
            {**CONFIGMAP, f"source.{name}": [] if name == "databases" else ""},
        )
        for name in ("host", "port", "user", "databases")
    },
    "source.existingSecret": Case("pg", "backup.pod.volumes.source.secret", secret("pg", password="POSTGRES_PASSWORD")),
    "source.secretKeys.password": Case(
        "pw", "backup.pod.volumes.source.secret", secret("postgres", password="pw"), SECRET
    ),
    "source.secretKeys.user": Case(
        "role",
        "backup.env.BACKUPD_SOURCE__USER",
        reference("secretKeyRef", "postgres", "role"),
        {**SECRET, "source.user": ""},
    ),
    "source.secretKeys.pgpass": Case(
        "all", "backup.pod.volumes.source.secret", secret("postgres", pgpass="all"), SECRET
    ),
    "source.tls.existingSecret": Case(
        "tls", "backup.env.BACKUPD_SOURCE__SSLROOTCERT", "/etc/backupd/tls/ca.crt", {"source.sslmode": "verify-ca"}
    ),
    "source.tls.caKey": Case("root", "backup.pod.volumes.tls.secret", secret("tls", **{"ca.crt": "root"}), TLS),
    "source.tls.certKey": Case(
        "cert", "backup.env.PGSSLCERT", "/etc/backupd/tls/tls.crt", {**TLS, "source.tls.keyKey": "key"}
    ),
    "source.tls.keyKey": Case(
        "key", "backup.env.PGSSLKEY", "/etc/backupd/tls/tls.key", {**TLS, "source.tls.certKey": "cert"}
    ),
    "source.services": Case(
        SERVICES["source.services"],
        "services.data",
        {"pg_service.conf": "[prod]\nhost=db.prod\nport=5433\n[test]\nhost=db.test\n"},
        {**SERVICES},
    ),
    "store.url": Case("s3://b/p", "backup.env.BACKUPD_STORE__URL", "s3://b/p", {"store.pvc.enabled": False}),
    "store.pvc.enabled": Case(True, "backup.env.BACKUPD_STORE__URL", "file:///backups"),
    "store.pvc.existingClaim": Case("mine", "backup.pod.volumes.store.persistentVolumeClaim", {"claimName": "mine"}),
    "store.pvc.size": Case("7Gi", "claim.spec.resources", {"requests": {"storage": "7Gi"}}),
    "store.pvc.storageClass": Case("fast", "claim.spec.storageClassName", "fast"),
    "store.pvc.accessModes": Case(["ReadWriteMany"], "claim.spec.accessModes", ["ReadWriteMany"]),
    "store.pvc.annotations": Case({"a": "b"}, "claim.metadata.annotations.a", "b"),
    "store.s3.existingSecret": Case(
        "keys", "backup.env.AWS_ACCESS_KEY_ID", reference("secretKeyRef", "keys", "AWS_ACCESS_KEY_ID"), S3
    ),
    **{
        f"store.s3.secretKeys.{name}": Case(
            "k",
            f"backup.env.{variable}",
            reference("secretKeyRef", "s3", "k"),
            {**S3, "store.s3.existingSecret": "s3"},
        )
        for name, variable in {
            "accessKeyId": "AWS_ACCESS_KEY_ID",
            "secretAccessKey": "AWS_SECRET_ACCESS_KEY",
            "sessionToken": "AWS_SESSION_TOKEN",
        }.items()
    },
    "store.s3.endpointUrl": section("STORE__S3__ENDPOINT_URL", "https://s3", "https://s3"),
    "store.s3.region": section("STORE__S3__REGION", "eu", "eu"),
    "store.s3.addressing": section("STORE__S3__ADDRESSING", "path", "path"),
    "store.s3.sse": section("STORE__S3__SSE", "aws:kms", "aws:kms"),
    "store.s3.kmsKeyId": section("STORE__S3__KMS_KEY_ID", "k", "k"),
    "store.s3.expectedBucketOwner": section("STORE__S3__EXPECTED_BUCKET_OWNER", "123456789012", "123456789012"),
    "store.s3.checksums": section("STORE__S3__CHECKSUMS", "when_required", "when_required"),
    "store.s3.partLimit": section("STORE__S3__PART_LIMIT", 1000, "1000"),
    "store.s3.partBytes": section("STORE__S3__PART_BYTES", 1 << 30, "1073741824"),
    "signing.publicKeys": Case(
        [PUBLIC_KEY] * 2,
        "restore.env.BACKUPD_SIGNING__PUBLIC_KEYS",
        f"{PUBLIC_KEY},{PUBLIC_KEY}",
        {"signing.existingSecret": "signing"},
    ),
    "signing.existingSecret": Case("keys", "backup.env.BACKUPD_SIGNING__KEY_FILE", "/etc/backupd/signing/key"),
    "signing.secretKeys.key": Case("k", "backup.pod.volumes.signing.secret", secret("signing", key="k"), SIGNING),
    "encryption.recipients": Case(
        [RECIPIENT, "ssh-ed25519 AAAA us"],
        "backup.env.BACKUPD_ENCRYPTION__RECIPIENTS",
        f"{RECIPIENT},ssh-ed25519 AAAA us",
    ),
    "encryption.existingSecret": Case(
        "keys", "restore.env.BACKUPD_ENCRYPTION__IDENTITIES_FILE", "/etc/backupd/encryption/identities"
    ),
    "encryption.secretKeys.identities": Case(
        "k", "restore.pod.volumes.encryption.secret", secret("identities", identities="k"), ENCRYPTION
    ),
    "store.s3.objectLock": section("STORE__S3__OBJECT_LOCK", "compliance", "compliance"),
    "store.s3.objectLockFor": section("STORE__S3__OBJECT_LOCK_FOR", "30d", "30d"),
    "schedule": Case("0 1 * * *", "backup.spec.schedule", "0 1 * * *"),
    "timeZone": Case("Europe/Berlin", "backup.spec.timeZone", "Europe/Berlin"),
    "backup.suspend": Case(True, "backup.spec.suspend", True),
    "backup.startingDeadlineSeconds": Case(60, "backup.spec.startingDeadlineSeconds", 60),
    "backup.successfulJobsHistoryLimit": Case(9, "backup.spec.successfulJobsHistoryLimit", 9),
    "backup.failedJobsHistoryLimit": Case(9, "backup.spec.failedJobsHistoryLimit", 9),
    "backup.ttlSecondsAfterFinished": Case(0, "backup.job.ttlSecondsAfterFinished", 0),
    "backup.backoffLimit": Case(2, "backup.job.backoffLimit", 2),
    "backup.podDeadlineSeconds": Case(5, "backup.pod.activeDeadlineSeconds", 5),
    "backup.jobDeadlineSeconds": Case(2_000_000, "backup.job.activeDeadlineSeconds", 2_000_000),
    "backup.terminationGracePeriodSeconds": Case(90, "backup.pod.terminationGracePeriodSeconds", 90),
    "backup.wait": Case(30, "backup.env.BACKUPD_BACKUP_WAIT", "30"),
    "fanOut.enabled": Case(True, "backup.job.completions", 3, FANOUT),
    "fanOut.parallelism": Case(3, "backup.job.parallelism", 3, FANOUT),
    "fanOut.backoffLimitPerIndex": Case(0, "backup.job.backoffLimitPerIndex", 0, FANOUT),
    "fanOut.maxFailedIndexes": Case(2, "backup.job.maxFailedIndexes", 2, FANOUT),
    "retention.keepEverything": Case(
        True, "backup.env.BACKUPD_RETENTION__KEEP_DAILY", None, {"retention.keepDaily": None}
    ),
    "retention.keepLast": section("RETENTION__KEEP_LAST", 1_000_000, "1000000"),
    "retention.keepHourly": section("RETENTION__KEEP_HOURLY", 5, "5"),
    "retention.keepDaily": section("RETENTION__KEEP_DAILY", 5, "5"),
    "retention.keepWeekly": section("RETENTION__KEEP_WEEKLY", 5, "5"),
    "retention.keepMonthly": section("RETENTION__KEEP_MONTHLY", 5, "5"),
    "retention.keepYearly": section("RETENTION__KEEP_YEARLY", 5, "5"),
    "retention.keepWithin": section("RETENTION__KEEP_WITHIN", "7d", "7d"),
    "retention.floor": section("RETENTION__FLOOR", 3, "3"),
    "retention.timezone": section("RETENTION__TIMEZONE", "Europe/Berlin", "Europe/Berlin"),
    "retention.expectWithin": section("RETENTION__EXPECT_WITHIN", "36h", "36h"),
    "dump.jobs": section("DUMP__JOBS", 4, "4", "restore"),
    "dump.compression": section("DUMP__COMPRESSION", "gzip:1", "gzip:1"),
    "dump.include": section("DUMP__INCLUDE", ["a.b", "c.*"], "a.b,c.*"),
    "dump.exclude": section("DUMP__EXCLUDE", ["a.b$1"], "a.b$$1"),
    "dump.lockWait": section("DUMP__LOCK_WAIT", "2min", "2min"),
    "scratch.size": Case("20Gi", "backup.pod.volumes.scratch.emptyDir.sizeLimit", "20Gi"),
    "scratch.medium": Case("Memory", "backup.pod.volumes.scratch.emptyDir.medium", "Memory"),
    "scratch.storageClass": Case(
        "fast", "backup.pod.volumes.scratch.ephemeral.volumeClaimTemplate.spec.storageClassName", "fast"
    ),
    "dump.maxSeconds": section("DUMP__MAX_SECONDS", 7200, "7200"),
    "dump.vacuumAge": section("DUMP__VACUUM_AGE", 5000000, "5000000"),
    "dump.nice": section("DUMP__NICE", 10, "10"),
    "store.limitRate": Case("10M", "backup.env.BACKUPD_STORE__LIMIT_RATE", "10M"),
    "notify.existingSecret": Case("n", "backup.env.BACKUPD_NOTIFY__URLS", reference("secretKeyRef", "n", "urls")),
    "notify.secretKeys.urls": Case(
        "to", "backup.env.BACKUPD_NOTIFY__URLS", reference("secretKeyRef", "notify", "to"), NOTIFY
    ),
    "notify.secretKeys.pingUrl": Case(
        "switch",
        "backup.env.BACKUPD_NOTIFY__PING_URL",
        reference("secretKeyRef", "notify", "switch"),
        {"notify.existingSecret": "notify"},
    ),
    "notify.digestSchedule": Case(
        "0 9 * * 5", "digest.spec.schedule", "0 9 * * 5", {"notify.existingSecret": "notify"}
    ),
    "log.level": section("LOG__LEVEL", "debug", "debug"),
    "log.format": section("LOG__FORMAT", "console", "console"),
    "restore.enabled": Case(False, "restore", None),
    "restore.target.host": Case("other", "restore.env.BACKUPD_TARGET__HOST", "other", TARGET),
    "restore.target.port": section("TARGET__PORT", 5433, "5433", "restore"),
    "restore.target.user": Case("dba", "restore.env.BACKUPD_TARGET__USER", "dba", TARGET),
    "restore.target.sslmode": section("TARGET__SSLMODE", "require", "require", "restore"),
    "restore.target.database": section("TARGET__DATABASE", "other", "other", "restore"),
    "restore.target.existingSecret": Case(
        "pg", "restore.env.BACKUPD_TARGET__PASSWORD_FILE", "/etc/backupd/target/password"
    ),
    "restore.target.secretKeys.password": Case(
        "pw", "restore.pod.volumes.target.secret", secret("primary", password="pw"), TARGET
    ),
    "restore.failedJobsHistoryLimit": Case(11, "restore.spec.failedJobsHistoryLimit", 11),
    "restore.successfulJobsHistoryLimit": Case(11, "restore.spec.successfulJobsHistoryLimit", 11),
    "restore.ttlSecondsAfterFinished": Case(60, "restore.job.ttlSecondsAfterFinished", 60),
    "restore.podDeadlineSeconds": Case(600, "restore.pod.activeDeadlineSeconds", 600),
    "drill.enabled": Case(True, "drill.spec.suspend", False, DRILL),
    "drill.schedule": Case("0 6 * * 0", "drill.spec.schedule", "0 6 * * 0", DRILL),
    "drill.backup": Case("app@latest", "drill.env.BACKUPD_DRILL_BACKUP", "app@latest", DRILL),
    "drill.image": Case("postgis:17", "drill.pod.initContainers.postgres.image", "postgis:17", DRILL),
    "drill.runAsUser": Case(70, "drill.pod.initContainers.postgres.securityContext.runAsUser", 70, DRILL),
    "drill.size": Case("9Gi", "drill.pod.volumes.pg.emptyDir", {"sizeLimit": "9Gi"}, DRILL),
    "drill.resources": Case(
        {"limits": {"cpu": "2"}}, "drill.pod.initContainers.postgres.resources", {"limits": {"cpu": "2"}}, DRILL
    ),
    "drill.podDeadlineSeconds": Case(60, "drill.pod.activeDeadlineSeconds", 60, DRILL),
    "drill.existingSecret": Case(
        "reader",
        "drill.env.AWS_SECRET_ACCESS_KEY",
        reference("secretKeyRef", "reader", "AWS_SECRET_ACCESS_KEY"),
        {**DRILL, **S3, "store.s3.existingSecret": "writer"},
    ),
    "refresh.enabled": Case(True, "refresh.spec.suspend", False, REFRESH),
    "refresh.schedule": Case("0 6 * * 0", "refresh.spec.schedule", "0 6 * * 0", REFRESH),
    "refresh.backup": Case("app@ab12", "refresh.env.BACKUPD_RESTORE_BACKUP", "app@ab12", REFRESH),
    "refresh.database": Case("st$ging", "refresh.env.BACKUPD_RESTORE_REPLACE", "st$$ging", REFRESH),
    "refresh.target.host": Case("other", "refresh.env.BACKUPD_TARGET__HOST", "other", REFRESH),
    "refresh.target.port": Case(5433, "refresh.env.BACKUPD_TARGET__PORT", "5433", REFRESH),
    "refresh.target.user": Case("dba", "refresh.env.BACKUPD_TARGET__USER", "dba", REFRESH),
    "refresh.target.sslmode": Case("require", "refresh.env.BACKUPD_TARGET__SSLMODE", "require", REFRESH),
    "refresh.target.database": Case("other", "refresh.env.BACKUPD_TARGET__DATABASE", "other", REFRESH),
    "refresh.target.existingSecret": Case(
        "pg", "refresh.env.BACKUPD_TARGET__PASSWORD_FILE", "/etc/backupd/target/password", REFRESH
    ),
    "refresh.target.secretKeys.password": Case(
        "pw", "refresh.pod.volumes.target.secret", secret("staging", password="pw"), MASKED
    ),
    "refresh.sql.existingConfigMap": Case(
        "mine",
        "refresh.pod.volumes.sql.configMap",
        {"name": "mine", "optional": True, "items": [{"key": "mask.sql", "path": "mask.sql"}]},
        MASKED,
    ),
    "refresh.sql.key": Case("a.sql", "refresh.env.BACKUPD_RESTORE_SQL", "/etc/backupd/sql/a.sql", MASKED),
    "refresh.podDeadlineSeconds": Case(60, "refresh.pod.activeDeadlineSeconds", 60, REFRESH),
    "toolbox.enabled": Case(False, "toolbox", None),
    "toolbox.replicas": Case(1, "toolbox.spec.replicas", 1),
    "expect.backupWithin": section("EXPECT__BACKUP_WITHIN", "8d", "8d"),
    "expect.verifyWithin": section("EXPECT__VERIFY_WITHIN", "8d", "8d"),
    "expect.drillWithin": Case("8d", "status.env.BACKUPD_EXPECT__DRILL_WITHIN", "8d", STATUS),
    "status.enabled": Case(True, "status.spec.replicas", 1, {"status.oneNode": True}),
    "status.host": Case("::", "status.container.args", ["serve", "--host", "::", "--port", "8080"], STATUS),
    "status.port": Case(80, "service.spec.ports.http", {"name": "http", "port": 80, "targetPort": "http"}, STATUS),
    "status.command": Case("mine", "status.env.BACKUPD_SERVE__COMMAND", "mine", STATUS),
    "status.runbooksUrl": Case("https://x/y", "status.env.BACKUPD_SERVE__RUNBOOKS_URL", "https://x/y", STATUS),
    "status.refresh": Case("5min", "status.env.BACKUPD_SERVE__REFRESH", "5min", STATUS),
    "status.existingSecret": Case("t", "status.env.BACKUPD_SERVE__TOKEN_FILE", "/etc/backupd/token/token", STATUS),
    "status.secretKeys.token": Case("t", "status.pod.volumes.token.secret", secret("token", token="t"), WATCHED),
    "status.serviceAnnotations": Case({"a": "b"}, "service.metadata.annotations", {"a": "b"}, STATUS),
    "status.oneNode": Case(True, "status.spec.replicas", 1, {"status.enabled": True}),
    "status.serviceMonitor.enabled": Case(True, "monitor.kind", "ServiceMonitor", STATUS),
    "status.serviceMonitor.labels": Case({"a": "b"}, "monitor.metadata.labels.a", "b", MONITOR),
    "status.serviceMonitor.interval": Case("60s", "monitor.spec.endpoints", [{**ENDPOINT, "interval": "60s"}], MONITOR),
    "metrics.pushgatewayUrl": section("METRICS__PUSHGATEWAY_URL", "http://push:9091", "http://push:9091"),
    "metrics.textfile": section("METRICS__TEXTFILE", "/t/b.prom", "/t/b.prom"),
    "alerts.enabled": Case(True, "alerts.kind", "PrometheusRule"),
    "alerts.labels": Case({"a": "b"}, "alerts.metadata.labels.a", "b", {"alerts.enabled": True}),
    "dashboard.enabled": Case(True, "dashboard.metadata.labels.grafana_dashboard", "1"),
    "dashboard.labels": Case({"a": "b"}, "dashboard.metadata.labels.a", "b", {"dashboard.enabled": True}),
    "serviceAccount.create": Case(False, "backup.pod.serviceAccountName", "default"),
    "serviceAccount.name": Case("mine", "backup.pod.serviceAccountName", "mine"),
    "serviceAccount.annotations": Case({"a": "b"}, "account.metadata.annotations", {"a": "b"}),
    "trigger.rbac.enabled": Case(True, "role.kind", "Role", TRIGGER),
    "trigger.rbac.serviceAccountName": Case(
        "web", "rolebinding.subjects.web", {"kind": "ServiceAccount", "name": "web", "namespace": "default"}, TRIGGER
    ),
    "trigger.rbac.serviceAccountNamespace": Case(
        "web", "rolebinding.subjects.app", {"kind": "ServiceAccount", "name": "app", "namespace": "web"}, TRIGGER
    ),
    "networkPolicy.enabled": Case(True, "network.spec.policyTypes", ["Ingress", "Egress"]),
    "resources": Case({"requests": {"cpu": "1"}}, "backup.container.resources", {"requests": {"cpu": "1"}}),
    "nodeSelector": Case({"a": "b"}, "backup.pod.nodeSelector", {"a": "b"}),
    "tolerations": Case([TOLERATION], "backup.pod.tolerations", [TOLERATION]),
    "affinity": Case({"nodeAffinity": {}}, "backup.pod.affinity", {"nodeAffinity": {}}),
    "topologySpreadConstraints": Case([{"maxSkew": 1}], "backup.pod.topologySpreadConstraints", [{"maxSkew": 1}]),
    "priorityClassName": Case("high", "backup.pod.priorityClassName", "high"),
    "podAnnotations": Case({"a": "b"}, "toolbox.spec.template.metadata.annotations", {"a": "b"}),
    "podLabels": Case({"a": "b"}, "toolbox.spec.template.metadata.labels.a", "b"),
    "annotations": Case({"a": "b"}, "backup.metadata.annotations", {"a": "b"}),
    "podSecurityContext": Case({"runAsUser": 5}, "backup.pod.securityContext.runAsUser", 5),
    "securityContext": Case({"privileged": False}, "backup.container.securityContext.privileged", False),
    "extraEnv": Case([KEEP], "backup.env.x", "y"),
    "extraEnvFrom": Case([{"prefix": "a"}], "backup.container.envFrom", [{"prefix": "a"}]),
    "extraVolumes": Case([{"name": "x"}], "backup.pod.volumes.x", {"name": "x"}),
    "extraVolumeMounts": Case([{"name": "x"}], "backup.container.volumeMounts.x", {"name": "x"}),
    "extraObjects": Case(
        ["apiVersion: v1\nkind: ConfigMap\nmetadata: {name: extra}\ndata: {a: '{{ .Release.Name }}'}"],
        "extra.data",
        {"a": RELEASE},
    ),
}

TESTED_BELOW = {
    "alerts.exclude",
    "alerts.runbookUrl",
    "fullnameOverride",
    "networkPolicy.postgresPorts",
    "networkPolicy.storePorts",
    "networkPolicy.extraEgress",
}
"""Values that no line of CASES can say; they have a test of their own."""

MUST_BE_SET = {
    *BASE,
    "source.configMapKeys.databases",
    "source.configMapKeys.host",
    "source.configMapKeys.user",
    "source.existingConfigMap",
    "source.secretKeys.user",
    "source.services",
    "source.tls.certKey",
    "source.tls.keyKey",
    "store.url",
    "retention.keepEverything",
    "restore.target.user",
    "drill.image",
    "drill.schedule",
    "refresh.backup",
    "refresh.database",
    "refresh.schedule",
    "refresh.sql.existingConfigMap",
    "refresh.sql.key",
    "refresh.target.host",
    "refresh.target.user",
    "status.oneNode",
    "trigger.rbac.serviceAccountName",
}
"""Values without which, and with what stands beside them in CASES, nothing is rendered."""

DEFAULTS: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))


def leaves(schema: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """The path of every value."""
    for name, child in schema["properties"].items():
        if "properties" in child:
            yield from leaves(child, f"{path}{name}.")
        elif path + name != "global":
            yield path + name


def test_every_value_is_tested_on_and_off() -> None:
    assert set(leaves(SCHEMA)) == set(CASES) | TESTED_BELOW


@pytest.mark.parametrize("path", CASES)
def test_a_value_shows_where_it_should_and_its_default_does_not(path: str) -> None:
    case = CASES[path]
    off = dict(case.beside)
    if path in {**BASE, **case.beside}:
        off[path] = functools.reduce(lambda here, name: here[name], path.split("."), DEFAULTS)

    assert look(render({**case.beside, path: case.value}), case.where) == case.shown
    if path in MUST_BE_SET:
        assert refusal(off)
    else:
        assert look(render(off), case.where) != case.shown


def test_nothing_that_is_off_is_rendered() -> None:
    made = {OBJECTS[name] for name in ("backup", "restore", "toolbox", "doctor", "claim", "account")}

    assert set(render()) == made
    assert set(render(S3)) == made - {OBJECTS["claim"]}
    assert OBJECTS["claim"] not in render({"store.pvc.existingClaim": "mine"})
    assert OBJECTS["account"] not in render({"serviceAccount.create": False})


def test_a_release_and_its_objects_have_the_version_of_the_program() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))

    assert chart["appVersion"] == backupd.__version__


# --- refusals


REFUSALS: Sequence[tuple[Mapping[str, Any], str]] = (
    ({"source.host": ""}, "no source: set source.host, or source.existingConfigMap and source.configMapKeys.host"),
    ({"source.databases": []}, "no databases: set source.databases"),
    ({"source.user": ""}, "no role: set source.user"),
    ({"source.configMapKeys.port": "PORT"}, "configMapKeys.port is set, but source.existingConfigMap is not"),
    ({**CONFIGMAP, "source.configMapKeys.host": "H"}, "source.host and source.configMapKeys.host are both set"),
    ({**CONFIGMAP, "source.configMapKeys.databases": "D"}, "source.databases and source.configMapKeys.databases are"),
    ({**SECRET, "source.secretKeys.user": "U"}, "source.secretKeys.user and source.user or"),
    ({"source.secretKeys.pgpass": "P"}, "source.secretKeys.pgpass is set, but source.existingSecret is not"),
    ({**SERVICES, "source.host": "db"}, "source.services is set: leave source.host"),
    ({**SERVICES, "source.server": "prod"}, "source.services is set: leave source.host"),
    ({**SERVICES, "fanOut.enabled": False}, "source.services needs fanOut.enabled"),
    ({**SERVICES, "source.user": ""}, "no role for test: set its user in source.services, or source.user for all"),
    ({**SERVICES, "source.services": [{"name": "a", "host": "b"}] * 2}, "source.services has a twice"),
    ({"source.tls.certKey": "c"}, "source.tls.certKey and source.tls.keyKey go together"),
    ({**TLS, "source.sslmode": ""}, "source.tls has a certificate authority, which nothing but sslmode verify-full"),
    ({**TLS, **SERVICES, "source.sslmode": "require"}, "verify-ca asks: set it for test"),
    ({"store.pvc.enabled": False}, "no store: set store.pvc.enabled and store.pvc.size, or store.url"),
    ({"store.url": "s3://b/p"}, "store.pvc.enabled and store.url are both set: choose one"),
    ({**S3, "store.url": "file:///backups"}, "store.url must be s3://bucket/prefix; a directory is store.pvc"),
    ({"store.pvc.size": ""}, "the claim has no size: set store.pvc.size, such as 50Gi, or store.pvc.existingClaim"),
    ({"signing.publicKeys": [PUBLIC_KEY]}, "signing.publicKeys is set, but signing.existingSecret is not"),
    ({**SIGNING, "signing.secretKeys.key": ""}, "signing.existingSecret is set, but signing.secretKeys.key is not"),
    (
        {**ENCRYPTION, "encryption.secretKeys.identities": ""},
        "encryption.existingSecret is set, but encryption.secretKeys.identities is not",
    ),
    (
        {**DRILL, "encryption.recipients": [RECIPIENT]},
        "encryption.recipients and drill.enabled are set, but encryption.existingSecret is not",
    ),
    (
        {**REFRESH, "encryption.recipients": [RECIPIENT]},
        "encryption.recipients and refresh.enabled are set, but encryption.existingSecret is not",
    ),
    ({"status.enabled": True}, "status would hold a volume that only one node may mount"),
    ({"status.serviceMonitor.enabled": True}, "status.serviceMonitor is enabled, but status is not"),
    (
        {"alerts.exclude": ["Backup"]},
        "alerts.exclude names Backup, and there is no such alert: there are BackupdBackup",
    ),
    ({"schedule": ""}, 'no schedule: set schedule, such as "30 2 * * *"'),
    ({"backup.jobDeadlineSeconds": 21600}, "backup.jobDeadlineSeconds must be longer than backup.podDeadlineSeconds"),
    ({**FANOUT, "source.databases": ["app", "b*"]}, 'fanOut needs the names of databases, and "b*" is a pattern'),
    (
        {**FANOUT, **CONFIGMAP, "source.databases": [], "source.configMapKeys.databases": "D"},
        "fanOut needs source.databases or source.services",
    ),
    ({"retention.keepDaily": 0}, "no retention: set a rule, such as retention.keepDaily, or retention.keepEverything"),
    ({"retention.keepEverything": True}, "retention.keepEverything and retention.keepDaily are both set"),
    ({"scratch.medium": "Memory", "scratch.storageClass": "fast"}, "scratch.medium and scratch.storageClass are both"),
    ({"restore.target.host": "primary"}, "restore.target.host is set, but restore.target.user is not"),
    ({**DRILL, "drill.schedule": ""}, 'no schedule of drills: set drill.schedule, such as "0 5 * * 0"'),
    ({**DRILL, "drill.image": ""}, "no image for drills: set drill.image"),
    ({**REFRESH, "refresh.schedule": ""}, 'no schedule of refreshes: set refresh.schedule, such as "0 4 * * 1"'),
    ({**REFRESH, "refresh.backup": ""}, "no backup for refreshes: set refresh.backup, such as app@latest"),
    ({**REFRESH, "refresh.database": ""}, "no database for refreshes: set refresh.database to the one that is"),
    ({**REFRESH, "refresh.target.host": ""}, "refresh.target.user; the source's would lose live data"),
    ({**REFRESH, "refresh.target.user": ""}, "no server for refreshes: set refresh.target.host and refresh.target"),
    ({**MASKED, "refresh.sql.key": ""}, "refresh.sql.existingConfigMap and refresh.sql.key go together"),
    ({**REFRESH, "refresh.sql.key": "a"}, "refresh.sql.existingConfigMap and refresh.sql.key go together"),
    ({**TRIGGER, "trigger.rbac.serviceAccountName": ""}, "set trigger.rbac.serviceAccountName to who may start"),
    ({"extraEnv": [KEEP, KEEP]}, "extraEnv has x twice"),
)


@pytest.mark.parametrize(("values", "sentence"), REFUSALS, ids=[sentence[:50] for _, sentence in REFUSALS])
def test_what_cannot_work_is_refused_with_a_sentence(values: Mapping[str, Any], sentence: str) -> None:
    assert sentence in refusal(values)


def test_all_that_is_missing_is_said_at_once() -> None:
    code, _, errors = output("{}", RELEASE, "helm", CHART)

    assert code != 0
    for missing in ("source", "databases", "role", "store", "schedule", "retention"):
        assert f"- no {missing}: " in errors


BAD_VALUES: Sequence[tuple[str, Any, str]] = (
    ("source.prot", 5432, "additional properties 'prot' not allowed"),
    ("source.databases", "*", "at '/source/databases': got string, want array"),
    ("source.databases", ["a,b"], "at '/source/databases/0'"),
    ("source.port", 70000, "at '/source/port': maximum"),
    ("source.sslmode", "verify", "at '/source/sslmode': value must be one of"),
    ("source.services", [{"name": "prod"}], "missing property 'host'"),
    ("source.services", [{"name": "a]b", "host": "h"}], "at '/source/services/0/name'"),
    ("source.services", [{"name": "a", "host": "h\nhost=x"}], "at '/source/services/0/host'"),
    ("image.pullPolicy", "Sometimes", "at '/image/pullPolicy': value must be one of"),
    ("image.digest", "sha256:1", "at '/image/digest'"),
    ("store.s3.addressing", "dns", "at '/store/s3/addressing': value must be one of"),
    ("store.s3.sse", "none", "at '/store/s3/sse': value must be one of"),
    ("store.s3.checksums", "always", "at '/store/s3/checksums': value must be one of"),
    ("store.s3.partBytes", 1024, "at '/store/s3/partBytes': minimum: got 1,024"),
    ("store.s3.expectedBucketOwner", "12", "at '/store/s3/expectedBucketOwner'"),
    ("store.pvc.size", "much", "at '/store/pvc/size'"),
    ("retention.keepDaily", "7", "at '/retention/keepDaily': got string, want null or integer"),
    ("retention.keepDaily", -1, "at '/retention/keepDaily': minimum"),
    ("retention.floor", 0, "at '/retention/floor': minimum: got 0, want 1"),
    ("retention.keepWithin", "a week", "at '/retention/keepWithin'"),
    ("dump.compression", "lz4", "at '/dump/compression'"),
    ("dump.include", ["orders"], "at '/dump/include/0'"),
    ("scratch.medium", "Disk", "at '/scratch/medium': value must be one of '', 'Memory'"),
    ("scratch.size", 1.5, "at '/scratch/size'"),
    ("log.level", "loud", "at '/log/level': value must be one of"),
    ("log.format", "text", "at '/log/format': value must be one of"),
    ("backup.failedJobsHistoryLimit", 1, "at '/backup/failedJobsHistoryLimit': minimum: got 1, want 3"),
    ("restore.failedJobsHistoryLimit", 3, "at '/restore/failedJobsHistoryLimit': minimum: got 3, want 10"),
    ("backup.suspend", "yes", "at '/backup/suspend': got string, want boolean"),
    ("drill.runAsUser", 0, "at '/drill/runAsUser': minimum"),
    ("extraEnv", [{"value": "x"}], "missing property 'name'"),
)


@pytest.mark.parametrize(("path", "value", "message"), BAD_VALUES, ids=[f"{path}={v}" for path, v, _ in BAD_VALUES])
def test_the_schema_refuses_a_wrong_value_by_its_place(path: str, value: Any, message: str) -> None:
    assert message in refusal({path: value})


# --- the schema, the README and the settings


def test_the_schema_and_the_readmes_table_are_those_of_the_values() -> None:
    line = [sys.executable, str(TOP / "scripts" / "chart-docs"), "--check"]

    assert subprocess.run(line, capture_output=True, text=True, check=False).stderr == ""


def property_of(path: str) -> dict[str, Any]:
    """What the schema says of a value."""
    here = SCHEMA
    for name in path.split("."):
        here = here["properties"][name]
    return here


def camel(name: str) -> str:
    """A setting's field as a value's name."""
    return re.sub("_(.)", lambda match: match[1].upper(), name)


ELSEWHERE = {
    "SOURCE": {"password", "sslrootcert"},  # secretKeys and tls
    "TARGET": {"password", "sslrootcert"},
    "DRILL": {"url", "password"},  # the sidecar
    "SIGNING": {"key"},  # secretKeys
    "ENCRYPTION": {"identities_file"},  # a Secret
    "DUMP": {"clients"},  # the image's own
    "SCRATCH": {"directory", "limit"},  # a volume, and its size
    "STORE__S3": {"profile"},  # by extraEnv, like all of a second store: its credentials are a file
    **{name: set(SECTIONS[name].model_fields) for name in SECTIONS if name.startswith("COPY")},
    "SCHEDULE": set(SECTIONS["SCHEDULE"].model_fields),  # the CronJobs', in which nothing of ours keeps time
    "SERVE": {"token"},  # a Secret
    "NOTIFY": {"urls", "ping_url"},  # secretKeys
    "HOOK": set(SECTIONS["HOOK"].model_fields),  # by extraEnv
}
PLACES = {
    "SOURCE": "source",
    "TARGET": "restore.target",
    "DRILL": "drill",
    "STORE": "store",
    "STORE__S3": "store.s3",
    "RETENTION": "retention",
    "SIGNING": "signing",
    "ENCRYPTION": "encryption",
    "EXPECT": "expect",
    "METRICS": "metrics",
    "SERVE": "status",
    "DUMP": "dump",
    "SCRATCH": "scratch",
    "LOG": "log",
}


@pytest.mark.parametrize("name", SECTIONS)
def test_every_setting_is_a_value_with_the_same_name_and_limits(name: str) -> None:
    fields = SECTIONS[name].model_json_schema()["properties"]
    for field_name in set(fields) - ELSEWHERE.get(name, set()):
        wanted = {**fields[field_name], **next(iter(fields[field_name].get("anyOf", ())), {})}
        value = property_of(f"{PLACES[name]}.{camel(field_name)}")
        if "enum" in wanted:
            assert value["enum"] == ["", *wanted["enum"]]
        for limit in ("minimum", "maximum"):
            if limit in wanted:
                assert value[limit] == wanted[limit], field_name


def accepted(path: str, text: str) -> bool:
    """Whether the schema's pattern takes a text."""
    rule = property_of(path)
    return re.search(rule.get("items", rule)["pattern"], text) is not None


@pytest.mark.parametrize(
    ("path", "model", "name", "texts"),
    [
        ("retention.keepWithin", RetentionSettings, "keep_within", "7d 1d12h 90min 36h 7 d 7days -1d 1.5h"),
        ("retention.expectWithin", RetentionSettings, "expect_within", "36h 2w h36"),
        ("dump.lockWait", DumpSettings, "lock_wait", "60s 1min 60"),
        ("signing.publicKeys", SigningSettings, "public_keys", f"{PUBLIC_KEY} {PUBLIC_KEY}= RWQ RWA{'A' * 53}"),
        ("dump.compression", DumpSettings, "compression", "zstd:1 zstd:19 zstd:20 gzip:9 gzip:0 none lz4:1"),
        ("dump.include", DumpSettings, "include", "a.b a.* *.* orders"),
        ("store.s3.endpointUrl", S3Settings, "endpoint_url", "http://s3 https://s3:9000/x s3 ftp://s3 https://u@s3"),
        ("store.s3.expectedBucketOwner", S3Settings, "expected_bucket_owner", "123456789012 12345678901x 1"),
    ],
)
def test_the_schema_takes_the_texts_that_the_setting_takes(path: str, model: Any, name: str, texts: str) -> None:
    for text in texts.split():
        try:
            model.model_validate({name: text})
        except ValidationError:
            assert not accepted(path, text), text
        else:
            assert accepted(path, text), text


# --- what holds for everything that is rendered


@pytest.fixture(params=WHOLE)
def whole(request: pytest.FixtureRequest) -> Rendered:
    """Everything there is, in one of its forms."""
    return render(WHOLE[request.param])


def components(objects: Rendered) -> Iterator[str]:
    """The components that are there."""
    return (component for component in COMPONENTS if OBJECTS[component] in objects)


def test_the_forms_have_every_object() -> None:
    missing = {name for name, key in OBJECTS.items() if not any(key in render(WHOLE[form]) for form in WHOLE)}

    assert missing == {"extra"}


def test_no_variable_is_empty_or_comes_twice(whole: Rendered) -> None:
    for one in (one for component in components(whole) for one in own(whole, component)):
        every = one["env"]
        assert len({each["name"] for each in every}) == len(every)
        for each in every:
            assert each.get("valueFrom") or (isinstance(each["value"], str) and each["value"].strip()), each


def test_every_variable_of_backupd_is_one_of_its_settings(whole: Rendered) -> None:
    known = {name for one in variables() for name in (one.name, one.file_name)} | set(RUN_VARIABLES)
    for component in components(whole):
        for one in own(whole, component):
            assert {each["name"] for each in one["env"] if each["name"].startswith("BACKUPD_")} <= known


def test_every_reference_to_a_secret_is_optional_so_that_none_hangs_a_pod(whole: Rendered) -> None:
    for component in components(whole):
        spec = pod(whole, component)
        for volume in spec["volumes"]:
            assert volume.get("secret", {"optional": True})["optional"] is True
        for source in env(whole, component).values():
            for each in source.values() if isinstance(source, dict) else ():
                assert each["optional"] is True


def test_no_pod_has_a_token(whole: Rendered) -> None:
    for component in components(whole):
        spec = pod(whole, component)
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        assert not [volume for volume in spec["volumes"] if "projected" in volume]
    assert look(whole, "account.automountServiceAccountToken") is False


def test_every_pod_keeps_to_pod_security_restricted(whole: Rendered) -> None:
    volumes = {"configMap", "emptyDir", "ephemeral", "persistentVolumeClaim", "secret"}
    for component in components(whole):
        spec = pod(whole, component)
        assert not {"hostNetwork", "hostPID", "hostIPC", "hostUsers"} & set(spec)
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert all(set(volume) - {"name"} <= volumes for volume in spec["volumes"])
        for each in (*spec["containers"], *spec.get("initContainers", ())):
            context = each["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert context.get("runAsUser", spec["securityContext"]["runAsUser"]) > 0
            assert not [port for port in each.get("ports", ()) if port.get("hostPort")]


def test_every_mount_has_its_volume_and_every_volume_a_mount(whole: Rendered) -> None:
    for component in components(whole):
        spec = pod(whole, component)
        containers = (*spec["containers"], *spec.get("initContainers", ()))
        mounted = [mount["name"] for each in containers for mount in each["volumeMounts"]]
        assert set(mounted) == {volume["name"] for volume in spec["volumes"]}
        for each in containers:
            assert len({mount["mountPath"] for mount in each["volumeMounts"]}) == len(each["volumeMounts"])


def test_every_file_that_a_variable_names_is_mounted(whole: Rendered) -> None:
    for component in components(whole):
        files = set()
        for volume in pod(whole, component)["volumes"]:
            items = volume.get("secret", {}).get("items", [])
            files |= {f"/etc/backupd/{volume['name']}/{item['path']}" for item in items}
            files |= {"/etc/backupd/services/pg_service.conf"} if volume["name"] == "services" else set()
            files |= {"/etc/backupd/sql/mask.sql"} if volume["name"] == "sql" else set()
        named = {value for value in env(whole, component).values() if str(value).startswith("/etc/backupd/")}
        assert named == files


def test_every_job_has_two_deadlines_and_the_pods_comes_first(whole: Rendered) -> None:
    for component in set(JOBS) & set(components(whole)):
        job = look(whole, f"{component}.job")
        assert 0 < pod(whole, component)["activeDeadlineSeconds"] < job["activeDeadlineSeconds"]
    assert pod(whole, "doctor")["activeDeadlineSeconds"] > 0


def test_every_job_ends_at_once_where_another_try_cannot_help(whole: Rendered) -> None:
    for component in set(JOBS) & set(components(whole)):
        job = look(whole, f"{component}.job")
        disrupted, hopeless = job["podFailurePolicy"]["rules"]
        assert disrupted == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
        assert hopeless["action"] == ("FailIndex" if "completionMode" in job else "FailJob")
        codes = {"containerName": "backupd", "operator": "In", "values": [2, 3, 12, 13, 14, 15, 17]}
        assert hopeless["onExitCodes"] == codes
        assert job["podReplacementPolicy"] == "Failed"
        assert pod(whole, component)["restartPolicy"] == "Never"
        assert container(whole, component)["terminationMessagePolicy"] == "FallbackToLogsOnError"


def test_every_cronjob_says_whether_it_is_suspended_and_forbids_a_second_run(whole: Rendered) -> None:
    for component in set(JOBS) & set(components(whole)):
        spec = whole[OBJECTS[component]]["spec"]
        assert spec["suspend"] is (component == "restore")
        assert spec["concurrencyPolicy"] == "Forbid"


def test_every_object_has_the_same_labels_and_the_namespace(whole: Rendered) -> None:
    for key, each in whole.items():
        labels = each["metadata"]["labels"]
        assert labels["app.kubernetes.io/instance"] == RELEASE
        assert labels["app.kubernetes.io/version"] == backupd.__version__
        assert labels["app.kubernetes.io/component"]
        cluster = key.startswith("ValidatingAdmission")
        assert each["metadata"].get("namespace") == (None if cluster else "default")


@pytest.mark.parametrize("form", WHOLE)
def test_helm_4_renders_what_helm_3_renders(form: str) -> None:
    helm("helm"), helm("helm4")

    assert render(WHOLE[form], program="helm4") == render(WHOLE[form])


def test_helm_4_refuses_with_the_same_sentence() -> None:
    code, _, errors = output("{}", RELEASE, "helm4", CHART)

    assert code != 0
    assert "- no source: set source.host" in errors


@pytest.mark.parametrize("release", ["a", "backupd", "my-backupd", "x" * 53, f"{'x' * 43}-{'y' * 9}"])
def test_names_of_cronjobs_fit_into_52_characters(release: str) -> None:
    objects = render({**WHOLE["pvc"], **{"fullnameOverride": ""}}, release)
    names = [key.partition("/")[2] for key in objects if key.startswith("CronJob/")]

    assert len(names) == 5
    for name in names:
        assert len(name) <= 52
        assert re.fullmatch("[a-z0-9]([-a-z0-9]*[a-z0-9])?", name)


def test_an_override_of_the_name_is_that_of_all_objects() -> None:
    kept = {key.replace(NAME, "keep") for key in render(WHOLE["pvc"])}

    assert set(render({**WHOLE["pvc"], "fullnameOverride": "keep"})) == kept


def test_a_long_override_fits_too() -> None:
    objects = render({"fullnameOverride": "n" * 80, "nameOverride": "m" * 80})

    assert {len(key.partition("/")[2]) for key in objects if key.startswith("CronJob/")} == {44, 52}


def test_a_selector_names_neither_version_nor_chart() -> None:
    selector = look(render(), "toolbox.spec.selector.matchLabels")

    assert set(selector) == {f"app.kubernetes.io/{name}" for name in ("name", "instance", "component")}


@pytest.mark.parametrize("example", sorted((CHART / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_is_rendered(example: Path) -> None:
    loaded = yaml.safe_load(example.read_text(encoding="utf-8"))
    code, text, errors = output(json.dumps(loaded), RELEASE, "helm", CHART)

    assert code == 0, errors
    assert OBJECTS["backup"] in parsed(text)


# --- the parts


@pytest.mark.parametrize(
    ("size", "size_bytes"),
    [
        ("500Mi", 500 << 20),
        ("10Gi", 10 << 30),
        ("1G", 10**9),
        ("2Mi", 2 << 20),
        ("2000k", 2_000_000),
        ("3000Ki", 3000 << 10),
        ("1T", 10**12),
        ("2Ti", 2 << 40),
        ("7Ei", 7 << 60),
        ("9E", 9 * 10**18),
        ("10000000", 10_000_000),
        (1_000_000_000, 10**9),
        (1_073_741_824_000, 1_073_741_824_000),
        ("9223372036854775807", (1 << 63) - 1),
    ],
)
def test_backupd_is_told_nine_tenths_of_scratch_in_bytes(size: str | int, size_bytes: int) -> None:
    objects = render({"scratch.size": size})

    assert env(objects, "backup")["BACKUPD_SCRATCH__LIMIT"] == str(size_bytes // 10 * 9)
    assert look(objects, "backup.pod.volumes.scratch.emptyDir.sizeLimit") in (size, int(size_bytes))


@pytest.mark.parametrize(
    "size",
    ["", "0", "1.5Gi", "10 Gi", "010Gi", "-1Gi", "10GB", "1Mi", "8Ei", "17Ei", "20E", "9223372036854775808", "9" * 30],
)
def test_a_size_of_scratch_that_cannot_be_told_is_refused(size: str) -> None:
    assert "scratch.size must be a whole number of bytes, or one with a unit" in refusal({"scratch.size": size})


def test_scratch_of_a_storage_class_is_a_volume_of_its_own_and_so_is_a_drills_database() -> None:
    objects = render({**DRILL, "scratch.storageClass": "fast"})
    claim = {"accessModes": ["ReadWriteOnce"], "storageClassName": "fast", "resources": {"requests": {}}}
    for volume in ("scratch", "pg"):
        spec = look(objects, f"drill.pod.volumes.{volume}.ephemeral.volumeClaimTemplate.spec")
        assert spec == {**claim, "resources": {"requests": {"storage": "10Gi"}}}


def test_a_variable_of_the_user_replaces_the_charts_and_is_there_once() -> None:
    mine = {"name": "BACKUPD_SOURCE__HOST", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}}
    every = container(render({"extraEnv": [mine]}), "backup")["env"]

    assert [each for each in every if each["name"] == mine["name"]] == [mine]


def test_a_restore_has_no_arguments_so_that_its_environment_names_the_verb() -> None:
    objects = render()

    assert not {"args", "command"} & set(container(objects, "restore"))
    assert env(objects, "restore")["BACKUPD_COMMAND"] == "restore"
    assert not [name for name in env(objects, "restore") if name.startswith("BACKUPD_RESTORE")]
    assert container(objects, "backup")["args"] == ["backup"]
    assert container(objects, "doctor")["args"] == ["doctor"]
    assert look(objects, "restore.job.backoffLimit") == 0


def test_a_restore_is_not_stopped_by_a_retention_that_is_wrong() -> None:
    objects = render({**DRILL, **REFRESH, **STATUS, **NOTIFY})
    with_retention = {c for c in COMPONENTS if "BACKUPD_RETENTION__KEEP_DAILY" in env(objects, c)}

    assert with_retention == {"backup", "toolbox", "status", "doctor", "digest"}


def test_a_person_reads_what_the_toolbox_says() -> None:
    objects = render({"log.level": "debug"})

    assert env(objects, "toolbox")["BACKUPD_LOG__FORMAT"] == "console"
    assert env(objects, "toolbox")["BACKUPD_LOG__LEVEL"] == "debug"
    assert env(objects, "backup")["BACKUPD_LOG__FORMAT"] == "json"


def test_backups_are_filed_under_the_releases_name() -> None:
    assert env(render(), "backup")["BACKUPD_SOURCE__SERVER"] == RELEASE


def test_only_who_restores_has_the_target_and_its_password() -> None:
    objects = render({**TARGET, **DRILL, **REFRESH, **STATUS, **NOTIFY})
    having = {c for c in COMPONENTS if "BACKUPD_TARGET__PASSWORD_FILE" in env(objects, c)}

    assert having == {"restore", "toolbox", "doctor"}
    assert look(objects, "backup.pod.volumes.target") is None
    assert not [name for name in env(objects, "drill") if name.startswith("BACKUPD_TARGET")]


def test_only_who_vouches_for_backups_has_the_signing_key_and_everybody_checks_it() -> None:
    objects = render({**SIGNING, **DRILL, **REFRESH, **STATUS, **NOTIFY})

    assert {c for c in COMPONENTS if "BACKUPD_SIGNING__PUBLIC_KEYS" in env(objects, c)} == set(COMPONENTS)
    for signing in (
        {c for c in COMPONENTS if "BACKUPD_SIGNING__KEY_FILE" in env(objects, c)},
        {c for c in COMPONENTS if look(objects, f"{c}.pod.volumes.signing")},
    ):
        assert signing == {"backup", "drill", "toolbox", "doctor"}


def test_who_backs_up_has_no_private_key_and_everybody_has_the_public_ones() -> None:
    objects = render({**ENCRYPTION, **DRILL, **REFRESH, **STATUS, **NOTIFY})

    assert {c for c in COMPONENTS if "BACKUPD_ENCRYPTION__RECIPIENTS" in env(objects, c)} == set(COMPONENTS)
    for opening in (
        {c for c in COMPONENTS if "BACKUPD_ENCRYPTION__IDENTITIES_FILE" in env(objects, c)},
        {c for c in COMPONENTS if look(objects, f"{c}.pod.volumes.encryption")},
    ):
        assert opening == {"restore", "drill", "refresh"}


def test_the_authority_is_for_the_target_where_that_asks_it() -> None:
    asked = render({**TLS, **TARGET, "restore.target.sslmode": "verify-full"})

    assert env(asked, "restore")["BACKUPD_TARGET__SSLROOTCERT"] == "/etc/backupd/tls/ca.crt"
    assert "BACKUPD_TARGET__SSLROOTCERT" not in env(render({**TLS, **TARGET}), "restore")


def test_a_drill_has_no_secret_of_the_source_and_writes_its_note_to_the_store() -> None:
    objects = render({**DRILL, **SECRET, **TLS, **TARGET})
    named = {name for name in env(objects, "drill") if name.startswith(("BACKUPD_SOURCE", "PG"))}

    assert named == {"BACKUPD_SOURCE__SERVER"}  # whose backups are meant
    assert not [volume for volume in pod(objects, "drill")["volumes"] if "secret" in volume]
    assert look(objects, "drill.container.volumeMounts.store.readOnly") is None


def test_a_drill_restores_into_the_sidecar_and_nowhere_else() -> None:
    objects = render(DRILL)

    assert container(objects, "drill")["args"] == ["drill"]
    assert env(objects, "drill")["BACKUPD_DRILL__URL"] == "postgresql://postgres@127.0.0.1/postgres?sslmode=disable"


def test_drills_take_turns_where_no_backup_is_named() -> None:
    by_turns, one = env(render(DRILL), "drill"), env(render({**DRILL, "drill.backup": "app@latest"}), "drill")

    assert by_turns["BACKUPD_DRILL_NEWEST_UNDRILLED"] == "true"
    assert "BACKUPD_DRILL_BACKUP" not in by_turns
    assert "BACKUPD_DRILL_NEWEST_UNDRILLED" not in one


def test_drills_of_many_servers_are_of_any_of_them() -> None:
    assert "BACKUPD_SOURCE__SERVER" not in env(render({**SERVICES, **DRILL}), "drill")


def test_a_drills_server_is_a_sidecar_that_nobody_else_reaches() -> None:
    [server] = pod(render(DRILL), "drill")["initContainers"]

    assert server["restartPolicy"] == "Always"
    assert server["args"] == ["postgres", "-c", "listen_addresses=127.0.0.1"]
    assert server["startupProbe"]["exec"]["command"][0] == "pg_isready"
    assert not server.get("ports")


def test_a_refresh_replaces_on_its_own_server_and_has_nothing_of_the_source() -> None:
    objects = render({**MASKED, **SECRET, **TARGET, **TLS, "source.tls.certKey": "crt", "source.tls.keyKey": "key"})
    variables_ = env(objects, "refresh")

    assert not {"args", "command"} & set(container(objects, "refresh"))
    assert {name: value for name, value in variables_.items() if "RESTORE" in name or name == "BACKUPD_COMMAND"} == {
        "BACKUPD_COMMAND": "restore",
        "BACKUPD_RESTORE_BACKUP": "app@latest",
        "BACKUPD_RESTORE_REPLACE": "staging",
        "BACKUPD_RESTORE_YES_REPLACE": "staging",
        "BACKUPD_RESTORE_SQL": "/etc/backupd/sql/mask.sql",
    }
    assert {name for name in variables_ if name.startswith(("BACKUPD_SOURCE", "PG"))} == {"BACKUPD_SOURCE__SERVER"}
    assert (variables_["BACKUPD_TARGET__HOST"], variables_["BACKUPD_TARGET__USER"]) == ("db.staging", "postgres")
    volumes = {each["name"]: each["secret"] for each in pod(objects, "refresh")["volumes"] if "secret" in each}
    assert volumes == {
        "tls": secret("tls", **{"ca.crt": "ca.crt"}),
        "target": secret("staging", password="POSTGRES_PASSWORD"),
    }
    assert look(objects, "refresh.job.backoffLimit") == 0


def test_a_refresh_first_drops_what_the_last_one_kept_in_a_container_that_differs_by_that_alone() -> None:
    objects = render({**MASKED, "refresh.database": "st$(ging)"})
    [forget] = pod(objects, "refresh")["initContainers"]

    assert forget == {
        **container(objects, "refresh"),
        "name": "forget",
        "args": ["undo", "st$$(ging)", "--drop", "--yes"],
    }


def test_the_target_of_refreshes_is_described_as_that_of_restores() -> None:
    def rules(path: str) -> dict[str, Any]:
        every = property_of(path)["properties"]
        return {name: {key: rule for key, rule in every[name].items() if key != "description"} for name in every}

    assert {**rules("refresh.target"), "secretKeys": 0} == {**rules("restore.target"), "secretKeys": 0}


def test_only_who_runs_tells_and_only_backups_ping() -> None:
    objects = render({**NOTIFY, **DRILL, **REFRESH, **STATUS})

    telling = {c for c in COMPONENTS if "BACKUPD_NOTIFY__URLS" in env(objects, c)}
    assert telling == {"backup", "drill", "digest", "toolbox", "doctor"}
    assert {c for c in COMPONENTS if "BACKUPD_NOTIFY__PING_URL" in env(objects, c)} == {"backup"}


def test_a_digest_that_nobody_gets_is_refused() -> None:
    assert "notify.digestSchedule is set, but notify.existingSecret is not" in refusal(
        {"notify.digestSchedule": "0 8 * * 1"}
    )


def test_no_aws_variable_is_rendered_without_a_secret() -> None:
    for component in COMPONENTS:
        assert not [
            name
            for name in env(render({**S3, **DRILL, **REFRESH, **STATUS, **NOTIFY}), component)
            if name.startswith("AWS_")
        ]
    assert "AWS_SESSION_TOKEN" not in env(render({**S3, "store.s3.existingSecret": "s3"}), "backup")


def test_a_store_in_a_claim_has_no_settings_of_s3() -> None:
    objects = render({"store.s3.region": "eu", "store.s3.existingSecret": "s3"})

    assert not [name for name in env(objects, "backup") if "S3" in name or name.startswith("AWS_")]
    assert look(objects, "claim.metadata.annotations.(helm.sh/resource-policy)") == "keep"


def test_a_fan_out_is_an_indexed_job_with_a_limit_for_each_index() -> None:
    job = look(render(FANOUT), "backup.job")

    assert (job["completionMode"], job["completions"], job["parallelism"]) == ("Indexed", 3, 2)
    assert job["backoffLimitPerIndex"] == 1
    assert not {"backoffLimit", "maxFailedIndexes"} & set(job)
    assert look(render(), "backup.job.completionMode") is None


def test_services_are_indexes_with_their_names_and_one_password_file() -> None:
    objects = render(WHOLE["services"])
    variables_ = env(objects, "backup")

    assert look(objects, "backup.job.completions") == 2
    assert variables_["BACKUPD_SOURCE__SERVICES"] == "prod,test"
    assert variables_["PGSERVICEFILE"] == "/etc/backupd/services/pg_service.conf"
    assert variables_["PGPASSFILE"] == "/etc/backupd/source/pgpass"
    assert not {"BACKUPD_SOURCE__SERVER", "BACKUPD_SOURCE__HOST", "BACKUPD_SOURCE__PASSWORD_FILE"} & set(variables_)
    assert env(objects, "doctor")["PGSERVICE"] == "prod"


def test_an_extra_object_may_be_text_or_yaml() -> None:
    extra = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "extra"}, "data": {"a": "{{ .Chart.Name }}"}}

    assert look(render({"extraObjects": [extra]}), "extra.data.a") == "backupd"


def ports(objects: Rendered) -> list[list[Any]]:
    """The ports of each egress rule."""
    return [[port["port"] for port in rule["ports"]] for rule in look(objects, "network.spec.egress")]


def test_the_network_policy_lets_out_what_is_needed_and_nothing_in() -> None:
    closed = look(render(NETWORK), "network.spec")

    assert closed["podSelector"]["matchLabels"] == {
        "app.kubernetes.io/name": "backupd",
        "app.kubernetes.io/instance": RELEASE,
    }
    assert "ingress" not in closed
    assert ports(render(NETWORK)) == [[53, 53], [5432]]
    assert ports(render({**NETWORK, **S3})) == [[53, 53], [5432, 443]]
    assert ports(render({**NETWORK, "networkPolicy.postgresPorts": [5433, 6432]})) == [[53, 53], [5433, 6432]]
    assert ports(render({**NETWORK, **S3, "networkPolicy.storePorts": [9000]})) == [[53, 53], [5432, 9000]]


def test_the_network_policy_has_further_rules() -> None:
    rule = {"to": [{"ipBlock": {"cidr": "169.254.170.23/32"}}], "ports": [{"port": 80}]}

    assert look(render({**NETWORK, "networkPolicy.extraEgress": [rule]}), "network.spec.egress")[-1] == rule


def test_the_trigger_may_read_one_cronjob_and_make_jobs() -> None:
    assert look(render(TRIGGER), "role.rules") == [
        {"apiGroups": ["batch"], "resources": ["cronjobs"], "resourceNames": [NAME], "verbs": ["get"]},
        {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["create"]},
        {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["get"]},
    ]


def test_the_policy_measures_the_triggers_jobs_by_the_cronjob_in_its_namespace() -> None:
    objects = render({**TRIGGER, "trigger.rbac.serviceAccountNamespace": "web"})
    policy, binding = look(objects, "policy.spec"), look(objects, "policybinding.spec")

    assert policy["failurePolicy"] == "Fail"
    assert policy["paramKind"] == {"apiVersion": "batch/v1", "kind": "CronJob"}
    [condition] = policy["matchConditions"]
    assert condition["expression"] == "request.userInfo.username == 'system:serviceaccount:web:app'"
    assert binding["paramRef"] == {"name": NAME, "namespace": "default", "parameterNotFoundAction": "Deny"}
    assert binding["policyName"] == f"{NAME}-trigger.default"
    assert binding["validationActions"] == ["Deny"]
    assert binding["matchResources"]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "default"}


def notes(tmp_path: Path, values: Mapping[str, Any]) -> str:
    """What `helm install` prints, which `helm template` does not: so it is rendered as an object of a copy."""
    copy = tmp_path / "chart"
    shutil.copytree(CHART, copy)
    shutil.move(copy / "templates" / "NOTES.txt", copy / "notes.txt")
    text = '{kind: ConfigMap, metadata: {name: notes}, data: {text: {{ tpl (.Files.Get "notes.txt") . | toJson }}}}'
    (copy / "templates" / "notes.yaml").write_text(text, encoding="utf-8")
    said: str = render(values, chart=copy)["ConfigMap/notes"]["data"]["text"]
    return said


def test_the_notes_have_three_commands_and_a_red_line(tmp_path: Path) -> None:
    text = notes(tmp_path, {})

    assert f"kubectl -n default create job {NAME}-now --from=cronjob/{NAME}" in text
    assert f"kubectl -n default exec deployment/{NAME}-toolbox -- backupd list" in text
    assert f"kubectl -n default create job {NAME}-restore-1 --from=cronjob/{NAME}-restore" in text
    assert text.rstrip().endswith("\x1b[0m")
    assert "\x1b[31mNo alert watches these backups." in text


def test_the_notes_have_no_command_for_what_is_not_there(tmp_path: Path) -> None:
    text = notes(tmp_path, {"toolbox.enabled": False, "backup.suspend": True})

    assert "toolbox" not in text
    assert "BACKUPD_COMMAND=list" in text
    assert "Backups are suspended" in text


def test_the_test_of_a_release_is_the_doctor_and_its_log_stays() -> None:
    annotations = look(render(), "doctor.metadata.annotations")

    assert annotations == {"helm.sh/hook": "test", "helm.sh/hook-delete-policy": "before-hook-creation"}


# --- the status page, alerts and the dashboard


def test_the_page_has_no_schedule_writes_nothing_and_is_reached_while_it_lives() -> None:
    objects = render({**WATCHED, **NETWORK})
    shown = container(objects, "status")

    assert shown["args"] == ["serve", "--host", "0.0.0.0", "--port", "8080"]
    assert not [name for name in env(objects, "status") if "SCHEDULE" in name]
    assert look(objects, "status.container.volumeMounts.store.readOnly") is True
    assert (
        shown["readinessProbe"]["httpGet"] == shown["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "http"}
    )
    assert look(objects, "service.spec.selector") == look(objects, "status.spec.selector.matchLabels")
    assert (
        look(objects, "monitor.spec.selector.matchLabels").items() <= look(objects, "service.metadata.labels").items()
    )
    assert look(objects, "entrance.spec.ingress") == [{"ports": [{"port": "http", "protocol": "TCP"}]}]
    [endpoint] = look(objects, "monitor.spec.endpoints")
    assert endpoint["authorization"] == {"credentials": {"name": "token", "key": "token"}}


def test_a_page_shows_commands_for_the_toolbox_where_there_is_one() -> None:
    toolbox = f"kubectl -n default exec deployment/{NAME}-toolbox -c backupd -- backupd"

    assert env(render(STATUS), "status")["BACKUPD_SERVE__COMMAND"] == toolbox
    assert "BACKUPD_SERVE__COMMAND" not in env(render({**STATUS, "toolbox.enabled": False}), "status")


def test_a_page_of_many_servers_has_no_source_of_its_own() -> None:
    variables_ = env(render({**SERVICES, **SECRET, **STATUS, "source.secretKeys.pgpass": "pgpass"}), "status")

    assert not [name for name in variables_ if name.startswith(("BACKUPD_SOURCE", "PG"))]


def test_a_page_may_hold_a_volume_that_many_nodes_mount() -> None:
    objects = render({"status.enabled": True, "store.pvc.accessModes": ["ReadWriteMany"]})

    assert OBJECTS["status"] in objects
    assert OBJECTS["status"] in render({"status.enabled": True, **S3})


def rules(values: Mapping[str, Any]) -> Any:
    """The alerts of a PrometheusRule."""
    [group] = look(render({"alerts.enabled": True, **values}), "alerts.spec.groups")
    return group["rules"]


def test_every_alert_is_in_a_file_of_its_name_and_can_be_left_out() -> None:
    files = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in (CHART / "rules").glob("*.yaml")}

    assert {rule["alert"]: rule for rule in rules({})} == files
    for name in files:
        assert {rule["alert"] for rule in rules({"alerts.exclude": [name]})} == set(files) - {name}


def test_a_runbooks_place_is_put_before_its_name() -> None:
    for url in ("https://example.org/runbooks", "https://example.org/runbooks/"):
        places = {rule["annotations"]["runbook_url"] for rule in rules({"alerts.runbookUrl": url})}
        assert {place.rpartition("/")[0] for place in places} == {"https://example.org/runbooks"}


def test_the_dashboard_is_the_file() -> None:
    shown = look(render({"dashboard.enabled": True}), "dashboard.data.(backupd.json)")

    assert json.loads(shown) == json.loads((CHART / "dashboard.json").read_text(encoding="utf-8"))
