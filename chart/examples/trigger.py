"""Starts a backup from a pod, through the Kubernetes API, and waits for its end: `python3 trigger.py backupd`.

For an application that wants a backup before something bold, such as a migration. Needs Python 3.10, and that its
service account may `get` the CronJob, and `create` and `get` Jobs, as the chart's trigger.rbac lets it:
    helm install backupd ./chart -f mine.yaml --set trigger.rbac.enabled=true,trigger.rbac.serviceAccountName=app
Exit codes: 0 the backup is complete, 1 it failed or could not be started (the log says why), 3 it still runs.
"""

import argparse
import json
import logging
import ssl
import time
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any


class Api:
    """The API server, spoken to as the pod's service account."""

    account = Path("/var/run/secrets/kubernetes.io/serviceaccount")

    def connect(self) -> HTTPConnection:
        """A connection that trusts the cluster's own authority and no other."""
        context = ssl.create_default_context(cafile=str(self.account / "ca.crt"))
        return HTTPSConnection("kubernetes.default.svc", context=context, timeout=30)

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The answer. Raises RuntimeError where it is a refusal."""
        token = (self.account / "token").read_text()  # read each time: it changes every hour
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        connection = self.connect()
        connection.request(method, path, json.dumps(body) if body else None, headers)
        response = connection.getresponse()
        answer: dict[str, Any] = json.loads(response.read())
        connection.close()
        if response.status >= 300:
            raise RuntimeError(f"{method} {path}: {response.status} {answer.get('message')}")
        return answer


def job_of(cronjob: dict[str, Any]) -> dict[str, Any]:
    """A Job made from the CronJob's template, as `kubectl create job --from` makes it."""
    template, name, uid = cronjob["spec"]["jobTemplate"], cronjob["metadata"]["name"], cronjob["metadata"]["uid"]
    metadata = template.get("metadata", {})
    annotations = {**metadata.get("annotations", {}), "cronjob.kubernetes.io/instantiate": "manual"}
    owner = {"apiVersion": "batch/v1", "kind": "CronJob", "name": name, "uid": uid, "controller": True}
    made = {"generateName": f"{name}-manual-", "labels": metadata.get("labels", {}), "annotations": annotations}
    made["ownerReferences"] = [owner]  # the CronJob's history limits remove it
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": made, "spec": template["spec"]}


def run(api: Api, namespace: str, cronjob: str, timeout_seconds: float, pause_seconds: float = 2.0) -> int:
    """Starts a Job, waits for its end, and returns the exit code."""
    batch = f"/apis/batch/v1/namespaces/{namespace}"
    job = api.call("POST", f"{batch}/jobs", job_of(api.call("GET", f"{batch}/cronjobs/{cronjob}")))["metadata"]["name"]
    logging.info("started job %s", job)
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        time.sleep(pause_seconds)
        for condition in api.call("GET", f"{batch}/jobs/{job}").get("status", {}).get("conditions", []):
            if condition["type"] in ("Complete", "Failed"):
                logging.info("job %s: %s %s", job, condition["type"], condition.get("message", ""))
                return 0 if condition["type"] == "Complete" else 1
    logging.error("job %s still runs after %g s", job, timeout_seconds)
    return 3


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description="Starts a backup and waits for its end.")
    parser.add_argument("cronjob", help="the CronJob's name: the release's, or RELEASE-backupd")
    parser.add_argument("--timeout", type=float, default=3600, help="how many seconds to wait for the end")
    options = parser.parse_args()
    try:
        raise SystemExit(run(Api(), (Api.account / "namespace").read_text(), options.cronjob, options.timeout))
    except (OSError, HTTPException, ValueError, RuntimeError) as exc:
        raise SystemExit(f"no backup was started, or its end is unknown: {exc}") from exc
