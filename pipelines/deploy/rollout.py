"""The rollout of a Deployment: its progress until it ends, and a diagnosis from its pods when it fails."""

import time
from datetime import UTC, datetime
from typing import Self

from pipelines.cluster.client import Cluster, Object
from pipelines.cluster.logs import Console
from pipelines.cluster.pods import faults, is_ready, last_lines
from pipelines.cluster.watch import Change, Changes
from server.errors import UserError

_SHOWN_PODS, _SHOWN_EVENTS = 3, 5
_LAST_CHANGES = 10  # that are read before a diagnosis


class Rollout:
    """Watches a Deployment, its pods and their events; a context, which ends its threads."""

    def __init__(self, cluster: Cluster, name: str, *, release: str, console: Console) -> None:
        self._name, self._cluster, self._console = name, cluster, console
        self._pods: dict[str, Object] = {}
        self._printed: set[str] = set()
        self._changes = Changes(
            cluster, "deployment", name,
            path=cluster.path("apps/v1", "deployments"),
            pods=f"app.kubernetes.io/instance={release},app.kubernetes.io/component=server",
            owns=lambda other: other == name or other.startswith(f"{name}-"),
            since=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            on_event=lambda line: console.print("event", line),
        )  # fmt: skip

    def __enter__(self) -> Self:
        self._changes.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._changes.stop()

    def poll(self) -> None:
        """Takes the next change, or none within a tick, and prints the news."""
        change = self._changes.next_change()
        if change is None:
            return
        if change.what == "pod":
            self._pod_changed(change)
        elif not change.gone:
            status = change.item.get("status") or {}
            pods, updated, ready = (status.get(name) or 0 for name in ("replicas", "updatedReplicas", "readyReplicas"))
            self._print("deploy", f"deployment {self._name}: {pods} pods, {updated} of them new; {ready} ready")

    def wait_until_complete(self, seconds: float) -> None:
        """Waits until every pod is updated and available; UserError when one is not in time."""
        path, end = self._cluster.path("apps/v1", "deployments", self._name), time.monotonic() + seconds
        while missing := _missing(self._cluster.request("GET", path)):
            if time.monotonic() > end:
                raise UserError(f"deployment {self._name} is not rolled out after {seconds:.0f} s: {missing}")
            self.poll()

    def diagnosis(self) -> str:
        """Returns why pods are not ready, the warnings, and the containers' last lines; empty where all is well."""
        try:
            for _ in range(_LAST_CHANGES):
                self.poll()
            waiting = [pod for pod in self._pods.values() if not is_ready(pod)]
            lines = [f"pod {pod['metadata']['name']}: {fault}" for pod in waiting for fault in faults(pod)]
            lines += [f"event: {line}" for line in list(self._changes.warnings)[-_SHOWN_EVENTS:]]
            for pod in waiting[:_SHOWN_PODS]:
                lines += last_lines(self._cluster, pod)
        except UserError as error:
            lines = [f"(the pods cannot be read: {error})"]
        return "\n".join(f"  {line}" for line in lines)

    def _pod_changed(self, change: Change) -> None:
        name = change.item["metadata"]["name"]
        if change.gone:
            self._pods.pop(name, None)
            return
        self._pods[name] = change.item
        for fault in faults(change.item):
            self._print("pod", f"{name}: {fault}")

    def _print(self, source: str, line: str) -> None:
        """Prints a line that has not been printed yet."""
        if line not in self._printed:
            self._printed.add(line)
            self._console.print(source, line)


def _missing(deployment: Object) -> str:
    """Returns what a rollout lacks, as `kubectl rollout status` does; empty when it is complete."""
    status, wanted = deployment.get("status") or {}, deployment["spec"].get("replicas", 1)
    pods, updated, available = (status.get(name) or 0 for name in ("replicas", "updatedReplicas", "availableReplicas"))
    if (status.get("observedGeneration") or 0) < (deployment["metadata"].get("generation") or 0):
        return "its controller has not seen the change yet"
    if updated < wanted:
        return f"{updated} of {wanted} pods are updated"
    if pods > updated:
        return f"{pods - updated} old pods still run"
    return f"{available} of {updated} pods are available" if available < updated else ""
