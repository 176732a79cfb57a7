"""An object on the cluster, its pods and the events of both, as they change."""

import queue
from collections import deque
from collections.abc import Callable

from pipelines.cluster.client import Cluster
from pipelines.cluster.console import Console
from pipelines.cluster.events import Events
from pipelines.cluster.watch import Change, Watch

_QUEUE = 1_000
_TICK_SECONDS = 0.5  # of our own clock; nothing is asked then
_REMEMBERED = 20


class Changes:
    """Of one object of a kind, called `what` in what comes, and of the pods with a label."""

    def __init__(
        self, cluster: Cluster, what: str, name: str, *, path: str, pods: str, about: Callable[[str], bool], since: str, console: Console
    ) -> None:  # fmt: skip
        """Events are those of objects with such names, and not from before a time as Kubernetes writes it."""
        self._console, self._events = console, Events(about, since=since)
        self._tick_seconds = min(_TICK_SECONDS, cluster.pace.interval_seconds)
        self._queue: queue.Queue[Change] = queue.Queue(_QUEUE)
        self._watches = [
            Watch(cluster, what, path, [("fieldSelector", f"metadata.name={name}")], self._queue),
            Watch(cluster, "pod", cluster.path("v1", "pods"), [("labelSelector", pods)], self._queue),
            Watch(cluster, "event", cluster.path("v1", "events"), [], self._queue),
        ]
        self.told: deque[str] = deque(maxlen=_REMEMBERED)
        """The last events; `warnings` has the last of those that warn."""
        self.warnings: deque[str] = deque(maxlen=_REMEMBERED)

    def start(self) -> None:
        for watch in self._watches:
            watch.start()

    def stop(self) -> None:
        for watch in self._watches:
            watch.stop()

    def take(self) -> Change | None:
        """The next change of the object or a pod; None where a tick brings none, or an event, which is told here."""
        try:
            change = self._queue.get(timeout=self._tick_seconds)
        except queue.Empty:
            return None
        if change.error:
            raise change.error
        if change.what != "event":
            return change
        if not change.gone and (line := self._events.line(change.item)):
            self._console.say("event", line)
            self.told.append(line)
            if change.item.get("type") == "Warning":
                self.warnings.append(line)
        return None
