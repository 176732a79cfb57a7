"""Plays the training operator, the kubelets and Kueue on the store of the API server of the tests."""

import json
from datetime import UTC, datetime, timedelta

from tests.support.store import Log, Object, Store

_START = datetime(2026, 11, 21, 12, tzinfo=UTC)


class Operator:
    def __init__(self, store: Store) -> None:
        self.store, self._lines, self._ids = store, 0, 0

    @property
    def job(self) -> Object:
        return self.store.job()

    def pods(self) -> list[str]:
        """Creates the pods of the job, not yet on a node; returns their names, rank 0 first."""
        made = []
        for kind, spec in self.job["spec"]["pytorchReplicaSpecs"].items():
            for index in range(spec["replicas"]):
                name = f"{self.job['metadata']['name']}-{kind.lower()}-{index}"
                labels = {
                    "job-name": self.job["metadata"]["name"],
                    "replica-type": kind.lower(),
                    "replica-index": str(index),
                }
                metadata = {
                    "name": name,
                    "labels": {f"training.kubeflow.org/{label}": value for label, value in labels.items()},
                    "ownerReferences": [{"uid": self.job["metadata"]["uid"], "kind": "PyTorchJob", "controller": True}],
                }
                self.store.put("pods", {"metadata": metadata, "spec": {}, "status": {"phase": "Pending"}})
                made.append(name)
        return made

    def run(self, *pods: str, restarts: int = 0, last: Object | None = None) -> None:
        """Starts a container in each of these pods."""
        for pod in pods:
            self.store.logs[pod].append(Log())
            container = {"name": "pytorch", "restartCount": restarts, "state": {"running": {}}, "lastState": last or {}}
            self._set(pod, {"phase": "Running", "containerStatuses": [container]}, node="node-1")

    def log(self, pod: str, *texts: str) -> None:
        """Writes lines to the log of a pod, each with a later stamp."""
        with self.store.changed:
            for text in texts:
                self._lines += 1
                stamp = _START + timedelta(milliseconds=150 * self._lines)
                self.store.logs[pod][-1].lines.append((stamp.strftime("%Y-%m-%dT%H:%M:%S.%f123Z"), text))
            self.store.changed.notify_all()

    def end(self, pod: str, code: int, reason: str = "Error", *, restart: bool = False) -> None:
        """Ends the container of a pod and may restart it, as the kubelet does with OnFailure."""
        with self.store.changed:
            self.store.logs[pod][-1].ended = True
            self.store.changed.notify_all()
            self._ids += 1
            ended = {"terminated": {"exitCode": code, "reason": reason, "containerID": f"containerd://{self._ids}"}}
            restarts = self.store.objects["pods"][pod]["status"]["containerStatuses"][0]["restartCount"]
            if restart:
                self.run(pod, restarts=restarts + 1, last=ended)
            else:
                container = {"name": "pytorch", "restartCount": restarts, "state": ended, "lastState": {}}
                self._set(pod, {"phase": "Failed" if code else "Succeeded", "containerStatuses": [container]})

    def wait(self, pod: str, reason: str, message: str = "") -> None:
        """Keeps a container from starting."""
        container = {
            "name": "pytorch",
            "restartCount": 0,
            "state": {"waiting": {"reason": reason, "message": message}},
            "lastState": {},
        }
        self._set(pod, {"phase": "Pending", "containerStatuses": [container]})

    def suspend(self, *, suspended: bool) -> None:
        """Suspends the job or admits it, as Kueue does."""
        job = json.loads(json.dumps(self.job))
        job["spec"]["runPolicy"]["suspend"] = suspended
        self.store.put("pytorchjobs", job)

    def condition(self, kind: str, reason: str = "", message: str = "", **status: str) -> None:
        job = dict(self.job)
        entry = {
            "type": kind,
            "status": "True",
            "reason": reason,
            "message": message,
            "lastTransitionTime": "2026-11-21T12:00:00Z",
        }
        job["status"] = {"conditions": [entry], **status}
        self.store.put("pytorchjobs", job)

    def succeed(self) -> None:
        """Ends all pods with success, and the job with them."""
        for pod in [name for name in self.store.objects["pods"] if name.startswith(self.job["metadata"]["name"])]:
            self.end(pod, 0, "Completed")
        self.condition("Succeeded", "PyTorchJobSucceeded", completionTime="2026-11-21T12:00:00Z")

    def event(
        self, name: str, about: str, reason: str, message: str, *, kind: str = "Pod", count: int = 1, **values: str
    ) -> None:
        """Stores an event about an object; one of the same name takes its place, as Kubernetes counts repeated events."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.store.put("events", {
            "metadata": {"name": name}, "involvedObject": {"kind": kind, "name": about}, "reason": reason, "message": message,
            "type": "Warning", "count": count, "lastTimestamp": now, **values,
        })  # fmt: skip

    def _set(self, pod: str, status: Object, *, node: str = "") -> None:
        item = dict(self.store.objects["pods"][pod])
        item["status"], item["spec"] = status, {"nodeName": node} if node else item["spec"]
        self.store.put("pods", item)
