"""What is known of each pod of a job: where it is, how its containers ended, its last lines. It outlives the pods."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pipelines.cluster.client import Cluster
from pipelines.cluster.console import Console
from pipelines.cluster.logs import PodLog
from pipelines.job.backends.pytorchjob import rank_name
from pipelines.job.settings import Object

_LAST_LINES = 20
_KEPT_ENDS = 50


@dataclass(frozen=True)
class End:
    """How a container, or a whole pod, ended."""

    reason: str
    exit_code: int | None = None
    message: str = ""

    @property
    def is_good(self) -> bool:
        return self.exit_code == 0

    def __str__(self) -> str:
        code = f"exit code {self.exit_code}" if self.exit_code is not None else ""
        words = ", ".join(
            word for word in (code, self.reason if self.reason not in ("Error", "Completed") else "") if word
        )
        return words + (f": {' '.join(self.message.split())[:300]}" if self.message else "")


class Rank:
    """One pod of a job, and those that took its place."""

    def __init__(self, name: str) -> None:
        self.name, self.uid = name, ""
        self.last_lines: deque[str] = deque(maxlen=_LAST_LINES)
        self.ends: deque[End] = deque(maxlen=_KEPT_ENDS)
        self.running, self.succeeded, self.waits_for = False, False, ""
        self.restarts = 0
        self._seen: deque[str] = deque(maxlen=_KEPT_ENDS)
        self._node = ""

    @property
    def failed(self) -> bool:
        return bool(self.ends) and not self.ends[-1].is_good

    def update(self, pod: Object) -> Iterator[str]:
        """Take note of how the pod stands; gives what is new and worth a line."""
        status, uid = pod.get("status") or {}, pod["metadata"]["uid"]
        if self.uid and uid != self.uid:
            yield "starts again as a new pod"
            self._node = ""
        self.uid = uid
        if (node := pod["spec"].get("nodeName", "")) and node != self._node:
            self._node = node
            yield f"is on node {node}"
        containers = status.get("containerStatuses") or []
        self.restarts = sum(int(container.get("restartCount", 0)) for container in containers)
        self.succeeded = status.get("phase") == "Succeeded"
        self.running = status.get("phase") == "Running" and all("running" in (c.get("state") or {}) for c in containers)
        self.waits_for = _waiting(status)
        for key, end in _ends(pod):
            if key not in self._seen:
                self._seen.append(key)
                self.ends.append(end)
                yield f"ended: {end}"

    def gone(self) -> None:
        self.running, self.waits_for = False, "its pod is gone"


def _waiting(status: Object) -> str:
    containers = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    for container in containers:
        if waiting := (container.get("state") or {}).get("waiting"):
            words = [waiting.get("reason", ""), " ".join(str(waiting.get("message", "")).split())[:200]]
            if words[0] != "PodInitializing":
                return ": ".join(word for word in words if word)
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return f"{condition.get('reason', '')}: {condition.get('message', '')}"
    return str(status.get("phase", "Pending"))


def _ends(pod: Object) -> Iterator[tuple[str, End]]:
    status, uid = pod.get("status") or {}, pod["metadata"]["uid"]
    for kind in ("initContainerStatuses", "containerStatuses"):
        for container in status.get(kind) or []:
            for state in ("lastState", "state"):
                if (ended := (container.get(state) or {}).get("terminated")) is None:
                    continue
                if kind == "initContainerStatuses" and ended.get("exitCode") == 0:
                    continue
                key = ended.get("containerID") or f"{container['name']} {ended.get('finishedAt')}"
                yield key, End(ended.get("reason", ""), ended.get("exitCode"), ended.get("message", ""))
    if status.get("phase") == "Failed" and status.get("reason"):
        yield f"{uid} {status['reason']}", End(status["reason"], None, status.get("message", ""))
    for condition in status.get("conditions") or []:
        if condition.get("type") == "DisruptionTarget" and condition.get("status") == "True":
            yield f"{uid} disrupted", End(condition.get("reason", "Disrupted"), None, condition.get("message", ""))


class Ranks:
    """All pods of a job, with a log stream each."""

    def __init__(self, cluster: Cluster, console: Console, heard: Callable[[str], None]) -> None:
        self._cluster, self._console, self._heard = cluster, console, heard
        self._logs: dict[str, PodLog] = {}
        self.by_name: dict[str, Rank] = {}

    def update(self, pod: Object, *, gone: bool) -> None:
        """A pod that is there, has changed, or is gone."""
        name, uid = rank_name(pod), pod["metadata"]["uid"]
        rank = self.by_name.setdefault(name, Rank(name))
        if gone:
            if rank.uid == uid:
                rank.gone()
            if uid in self._logs:
                self._logs[uid].update(pod, gone=True)
            return
        for news in rank.update(pod):
            self._console.say("launch", f"{name} {news}")
        if uid not in self._logs:
            self._logs = {key: log for key, log in self._logs.items() if log.is_alive()}
            self._logs[uid] = PodLog(self._cluster, pod, self._listener(rank))
            self._logs[uid].start()
        self._logs[uid].update(pod)

    @property
    def running(self) -> int:
        """Pods that run, or have done their part."""
        return sum(rank.running or rank.succeeded for rank in self.by_name.values())

    @property
    def restarts(self) -> int:
        return sum(rank.restarts for rank in self.by_name.values())

    @property
    def logs_end(self) -> bool:
        """Whether all logs have been read to their end."""
        return not any(log.is_alive() for log in self._logs.values())

    def waiting(self) -> str:
        """Which pods do not run, and why."""
        waits = [f"{rank.name}: {rank.waits_for}" for rank in self.by_name.values() if not rank.running and not rank.succeeded]  # fmt: skip
        return "; ".join(waits[:5]) + (f"; and {len(waits) - 5} more" if len(waits) > 5 else "")

    def stop(self) -> None:
        for log in self._logs.values():
            log.stop()

    def _listener(self, rank: Rank) -> Callable[[str], None]:
        def heard(line: str) -> None:
            rank.last_lines.append(line)
            self._heard(line)
            self._console.say(rank.name, line)

        return heard
