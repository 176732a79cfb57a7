"""How a Deployment gets to its new pods: told while it goes on, and what the pods said when it does not."""

import time
from datetime import UTC, datetime
from typing import Self

from pipelines.cluster.client import Cluster, Object
from pipelines.cluster.logs import Console
from pipelines.cluster.pods import faults, is_ready, last_lines
from pipelines.cluster.watch import Change, Changes
from server.errors import UserError

_SHOWN_PODS, _SHOWN_EVENTS = 3, 5


class Rollout:
    """What is known of the Deployment and its pods; a context, which ends its threads."""

    def __init__(self, cluster: Cluster, name: str, *, release: str, console: Console) -> None:
        self.name, self._cluster, self._console = name, cluster, console
        self._deployment: Object = {}
        self._pods: dict[str, Object] = {}
        self._told: set[str] = set()
        self._stood = ""
        self._changes = Changes(
            cluster,
            "deployment",
            name,
            path=cluster.path("apps/v1", "deployments"),
            pods=f"app.kubernetes.io/instance={release},app.kubernetes.io/component=server",
            owns=lambda about: about == name or about.startswith(f"{name}-"),
            since=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            on_event=lambda line: console.print("event", line),
        )

    def __enter__(self) -> Self:
        self._changes.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._changes.stop()

    def look(self) -> None:
        """Take the next change, or none within a tick, and tell what is new."""
        change = self._changes.next_change()
        if change is None:
            return
        if change.what == "pod":
            self._take_pod(change)
        else:
            self._deployment = {} if change.gone else change.item
            self._tell_how_it_stands()

    def until_complete(self, seconds: float) -> None:
        """As `kubectl rollout status` sees it: every pod is new and available, and the old ones are gone."""
        end = time.monotonic() + seconds
        self._deployment = self._cluster.request("GET", self._cluster.path("apps/v1", "deployments", self.name))
        while why := self._incomplete():
            if time.monotonic() > end:
                raise UserError(f"deployment {self.name} is not rolled out after {seconds:.0f} s: {why}")
            self.look()

    def story(self) -> str:
        """Why pods are not ready, the warnings, and the last lines of the containers; empty where all is well."""
        waiting = [pod for pod in self._pods.values() if not is_ready(pod)]
        lines = [f"pod {pod['metadata']['name']}: {fault}" for pod in waiting for fault in faults(pod)]
        lines += [f"event: {line}" for line in list(self._changes.warnings)[-_SHOWN_EVENTS:]]
        for pod in waiting[:_SHOWN_PODS]:
            lines += last_lines(self._cluster, pod)
        return "\n".join(f"  {line}" for line in lines)

    def _take_pod(self, change: Change) -> None:
        name = change.item["metadata"]["name"]
        if change.gone:
            self._pods.pop(name, None)
            return
        self._pods[name] = change.item
        for fault in faults(change.item):
            line = f"{name}: {fault}"
            if line not in self._told:
                self._told.add(line)
                self._console.print("pod", line)

    def _tell_how_it_stands(self) -> None:
        status = self._deployment.get("status") or {}
        wanted, updated, ready = (status.get(name) or 0 for name in ("replicas", "updatedReplicas", "readyReplicas"))
        stands = f"deployment {self.name}: {wanted} pods, {updated} of them new; {ready} ready"
        if stands != self._stood:
            self._stood = stands
            self._console.print("deploy", stands)

    def _incomplete(self) -> str:
        """What is missing for a rollout to be complete; empty when it is."""
        status = self._deployment.get("status") or {}
        wanted = (self._deployment.get("spec") or {}).get("replicas", 1)
        there, updated, available = (status.get(name) or 0 for name in ("replicas", "updatedReplicas", "availableReplicas"))  # fmt: skip
        if not self._deployment:
            return "it is not there"
        if (status.get("observedGeneration") or 0) < (self._deployment["metadata"].get("generation") or 0):
            return "its controller has not seen the new model yet"
        if updated < wanted:
            return f"{updated} of {wanted} pods have the new model"
        if there > updated:
            return f"{there - updated} pods with the earlier model are still there"
        return f"{available} of {updated} pods are available" if available < updated else ""
