"""Pods in words: why one waits, how its containers ended, and the pods of a job with their last lines, which outlive them."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from urllib3.exceptions import HTTPError

from pipelines.cluster.client import Cluster, Object
from pipelines.cluster.logs import Console, PodLog
from server.errors import UserError

_STARTING = {"ContainerCreating", "PodInitializing"}
_LAST_LINES, _KEPT_TERMINATIONS = 20, 50
_SHOWN_WAITING, _SHOWN_LINES, _SHOWN_BYTES = 5, 8, 65_536


@dataclass(frozen=True)
class Termination:
    """The end of a container or of a whole pod."""

    reason: str
    exit_code: int | None = None
    message: str = ""

    @property
    def succeeded(self) -> bool:
        return self.exit_code == 0

    def __str__(self) -> str:
        code = f"exit code {self.exit_code}" if self.exit_code is not None else ""
        reason = "" if self.reason in ("Error", "Completed") else self.reason
        text = f": {' '.join(self.message.split())[:300]}" if self.message else ""
        return ", ".join(part for part in (code, reason) if part) + text


def containers(pod: Object) -> list[Object]:
    """Returns the statuses of all containers, init containers first."""
    status = pod.get("status") or {}
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]


def is_ready(pod: Object) -> bool:
    return _condition(pod, "Ready", "True") is not None


def waiting_reason(pod: Object) -> str:
    """Returns why a pod does not start: its image, its volumes, or no node; empty when it reports none."""
    reasons = (_waiting(container) for container in containers(pod))
    return next(filter(None, reasons), "") or _unscheduled(pod)


def terminations(pod: Object) -> Iterator[tuple[str, Termination]]:
    """Yields each end of a container or the pod with a key that stays the same; good ends of init containers are left out."""
    status, uid = pod.get("status") or {}, pod["metadata"]["uid"]
    init = {container["name"] for container in status.get("initContainerStatuses") or []}
    for container in containers(pod):
        for key, end in _ends(container).items():
            if not (end.succeeded and container["name"] in init):
                yield key, end
    if status.get("phase") == "Failed" and status.get("reason"):
        yield f"{uid} {status['reason']}", Termination(status["reason"], None, status.get("message", ""))
    if disrupted := _condition(pod, "DisruptionTarget", "True"):
        reason = disrupted.get("reason", "Disrupted")
        yield f"{uid} disrupted", Termination(reason, None, disrupted.get("message", ""))


def faults(pod: Object) -> list[str]:
    """Returns why a pod is not ready: no node, a container that waits, and each end that was no success."""
    found = [_unscheduled(pod)]
    for container in containers(pod):
        waiting, name = _waiting(container), container["name"]
        found.append(f"container {name} waits: {waiting}" if waiting else "")
        found += [f"container {name} ended: {end}" for end in _ends(container).values() if not end.succeeded]
    return list(dict.fromkeys(filter(None, found)))


def last_lines(cluster: Cluster, pod: Object) -> list[str]:
    """Returns the last lines of each container that runs or has ended; of one that waits for a restart, of its last try."""
    name, lines = pod["metadata"]["name"], list[str]()
    for status in containers(pod):
        waits = "waiting" in (status.get("state") or {})
        if waits and not status.get("restartCount"):
            continue
        query = [("container", status["name"]), ("tailLines", str(_SHOWN_LINES)), ("limitBytes", str(_SHOWN_BYTES))]
        query += [("previous", "true")] if waits else []
        try:
            with cluster.log(name, query=query) as response:
                text = response.read().decode(errors="replace")
        except (UserError, HTTPError) as error:
            text = f"(its log cannot be read: {error})"
        shown = [line for line in text.splitlines() if line.strip()][-_SHOWN_LINES:]
        lines += [f"{name}/{status['name']} | {line}" for line in shown]
    return lines


def _waiting(container: Object) -> str:
    waiting = (container.get("state") or {}).get("waiting") or {}
    if waiting.get("reason") in _STARTING:
        return ""
    message = " ".join(str(waiting.get("message") or "").split())[:200]
    return ": ".join(part for part in (str(waiting.get("reason", "")), message) if part)


def _ends(container: Object) -> dict[str, Termination]:
    """Returns the last two ends of a container by their ids."""
    found = {}
    for state in ("lastState", "state"):
        if (ended := (container.get(state) or {}).get("terminated")) is not None:
            key = ended.get("containerID") or f"{container['name']} {ended.get('finishedAt')}"
            found[key] = Termination(ended.get("reason", ""), ended.get("exitCode"), ended.get("message", ""))
    return found


def _unscheduled(pod: Object) -> str:
    entry = _condition(pod, "PodScheduled", "False")
    return f"{entry.get('reason', 'not scheduled')}: {entry.get('message', '')}" if entry else ""


def _condition(pod: Object, kind: str, status: str) -> Object | None:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return next((entry for entry in conditions if (entry.get("type"), entry.get("status")) == (kind, status)), None)


class PodStatus:
    """The state of one rank of a job, across the pods that replace each other in it."""

    def __init__(self, name: str) -> None:
        self.name, self.uid = name, ""
        self.last_lines: deque[str] = deque(maxlen=_LAST_LINES)
        self.terminations: deque[Termination] = deque(maxlen=_KEPT_TERMINATIONS)
        self.running, self.succeeded, self.waiting_reason = False, False, ""
        self.restarts = 0
        self._seen: deque[str] = deque(maxlen=_KEPT_TERMINATIONS)
        self._node = ""

    @property
    def failed(self) -> bool:
        return bool(self.terminations) and not self.terminations[-1].succeeded

    def update(self, pod: Object) -> Iterator[str]:
        """Takes the pod's new status; yields what is new and worth a line."""
        status, uid = pod.get("status") or {}, pod["metadata"]["uid"]
        if self.uid and uid != self.uid:
            yield "starts again as a new pod"
            self._node = ""
        self.uid = uid
        if (node := pod["spec"].get("nodeName", "")) and node != self._node:
            self._node = node
            yield f"is on node {node}"
        main = status.get("containerStatuses") or []
        self.restarts = sum(int(container.get("restartCount", 0)) for container in main)
        self.succeeded = status.get("phase") == "Succeeded"
        self.running = status.get("phase") == "Running" and all("running" in (c.get("state") or {}) for c in main)
        self.waiting_reason = waiting_reason(pod) or str(status.get("phase", "Pending"))
        for key, end in terminations(pod):
            if key not in self._seen:
                self._seen.append(key)
                self.terminations.append(end)
                yield f"ended: {end}"

    def gone(self) -> None:
        self.running, self.waiting_reason = False, "its pod is gone"


class JobPods:
    """All pods of a job by the names of their ranks, with a log stream each."""

    def __init__(
        self, cluster: Cluster, console: Console, *, rank: Callable[[Object], str], container: str, on_line: Callable[[str], None]
    ) -> None:  # fmt: skip
        self._cluster, self._console, self._rank, self._container, self._on_line = (
            cluster,
            console,
            rank,
            container,
            on_line,
        )
        self._logs: dict[str, PodLog] = {}
        self.by_name: dict[str, PodStatus] = {}

    def update(self, pod: Object, *, gone: bool) -> None:
        """Takes a pod that was added, has changed, or is gone."""
        name, uid = self._rank(pod), pod["metadata"]["uid"]
        status = self.by_name.setdefault(name, PodStatus(name))
        if gone:
            if status.uid == uid:
                status.gone()
            if uid in self._logs:
                self._logs[uid].update(pod, gone=True)
            return
        for news in status.update(pod):
            self._console.print("launch", f"{name} {news}")
        if uid not in self._logs:
            self._logs = {key: log for key, log in self._logs.items() if log.is_alive()}
            self._logs[uid] = PodLog(self._cluster, pod, self._listener(status), container=self._container)
            self._logs[uid].start()
        self._logs[uid].update(pod)

    @property
    def running(self) -> int:
        """Counts the pods that run or have succeeded."""
        return sum(status.running or status.succeeded for status in self.by_name.values())

    @property
    def restarts(self) -> int:
        return sum(status.restarts for status in self.by_name.values())

    @property
    def logs_ended(self) -> bool:
        return not any(log.is_alive() for log in self._logs.values())

    def waiting(self) -> str:
        """Returns which pods do not run, and why."""
        idle = [status for status in self.by_name.values() if not status.running and not status.succeeded]
        waits = [f"{status.name}: {status.waiting_reason}" for status in idle]
        more = len(waits) - _SHOWN_WAITING
        return "; ".join(waits[:_SHOWN_WAITING]) + (f"; and {more} more" if more > 0 else "")

    def stop(self) -> None:
        for log in self._logs.values():
            log.stop()

    def _listener(self, status: PodStatus) -> Callable[[str], None]:
        def on_line(line: str) -> None:
            status.last_lines.append(line)
            self._on_line(line)
            self._console.print(status.name, line)

        return on_line
