"""How a Deployment gets to its new pods: told while it goes on, and what the pods said when it does not."""

import time
from datetime import UTC, datetime
from typing import Any, Self

from urllib3.exceptions import HTTPError

from pipelines.cluster.changes import Changes
from pipelines.cluster.client import Cluster, Refused, Unanswered
from pipelines.cluster.console import Console
from pipelines.cluster.watch import Change
from pipelines.job.settings import Object
from server.errors import UserError

_STARTING = {"ContainerCreating", "PodInitializing"}
_SHOWN_PODS, _SHOWN_LINES, _SHOWN_EVENTS = 3, 8, 5
_LONGEST_LOG = 65_536


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
            about=lambda about: about == name or about.startswith(f"{name}-"),
            since=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            console=console,
        )

    def __enter__(self) -> Self:
        self._changes.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._changes.stop()

    def look(self) -> None:
        """Take the next change, or none within a tick, and tell what is new."""
        change = self._changes.take()
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
        waiting = [pod for pod in self._pods.values() if not _is_ready(pod)]
        lines = [f"pod {pod['metadata']['name']}: {fault}" for pod in waiting for fault in _faults(pod)]
        lines += [f"event: {line}" for line in list(self._changes.warnings)[-_SHOWN_EVENTS:]]
        for pod in waiting[:_SHOWN_PODS]:
            lines += self._last_lines(pod)
        return "\n".join(f"  {line}" for line in lines)

    def _take_pod(self, change: Change) -> None:
        name = change.item["metadata"]["name"]
        if change.gone:
            self._pods.pop(name, None)
            return
        self._pods[name] = change.item
        for fault in _faults(change.item):
            line = f"{name}: {fault}"
            if line not in self._told:
                self._told.add(line)
                self._console.say("pod", line)

    def _tell_how_it_stands(self) -> None:
        status = self._deployment.get("status") or {}
        wanted, updated, ready = (status.get(name) or 0 for name in ("replicas", "updatedReplicas", "readyReplicas"))
        stands = f"deployment {self.name}: {wanted} pods, {updated} of them new; {ready} ready"
        if stands != self._stood:
            self._stood = stands
            self._console.say("deploy", stands)

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

    def _last_lines(self, pod: Object) -> list[str]:
        """Of the containers that run or have ended; of one that waits to be started again, its last try."""
        name, told = pod["metadata"]["name"], list[str]()
        for status in _containers(pod):
            waits, restarts = "waiting" in (status.get("state") or {}), status.get("restartCount", 0)
            if restarts or not waits:
                lines = self._log(name, status["name"], previous=waits)
                told += [f"{name}/{status['name']} | {line}" for line in lines]
        return told

    def _log(self, pod: str, container: str, *, previous: bool) -> list[str]:
        query = [("container", container), ("tailLines", str(_SHOWN_LINES)), ("limitBytes", str(_LONGEST_LOG))]
        query += [("previous", "true")] if previous else []
        try:
            with self._cluster.stream(self._cluster.path("v1", "pods", pod, "log"), query=query) as response:
                text = response.read().decode(errors="replace")
        except (Refused, Unanswered, HTTPError) as error:
            return [f"(its log cannot be read: {error})"]
        return [line for line in text.splitlines() if line.strip()][-_SHOWN_LINES:]


def _containers(pod: Object) -> list[Object]:
    status = pod.get("status") or {}
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]


def _is_ready(pod: Object) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def _faults(pod: Object) -> list[str]:
    """Why a pod does not get on, as its conditions and containers say."""
    conditions = (pod.get("status") or {}).get("conditions") or []
    faults = [
        f"{condition.get('reason', 'not scheduled')}: {condition.get('message', '')}"
        for condition in conditions
        if condition["type"] == "PodScheduled" and condition["status"] == "False"
    ]
    for status in _containers(pod):
        states = (status.get(name) or {} for name in ("state", "lastState"))
        faults += [f"container {status['name']} {fault}" for state in states if (fault := _fault(state))]
    return faults


def _fault(state: dict[str, Any]) -> str:
    waiting, ended = state.get("waiting") or {}, state.get("terminated") or {}
    if waiting and waiting.get("reason") not in _STARTING:
        return f"waits: {waiting.get('reason', '')}: {waiting.get('message', '')}".rstrip(": ")
    if ended and ended.get("exitCode"):
        return f"ended with exit code {ended['exitCode']} ({ended.get('reason', 'Error')})"
    return ""
