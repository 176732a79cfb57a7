"""One object, its pods and the events of both as one stream of changes, across lost connections and restarts of the API server."""

import json
import queue
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from urllib3.exceptions import HTTPError

from pipelines.cluster.client import GONE, ApiError, Cluster, Object, Query
from server.errors import UserError

_CHUNK = 65_536
_QUEUE = 1_000
_TICK_SECONDS = 0.5  # no request is made at a tick
_KEPT_EVENTS, _KNOWN_EVENTS = 20, 5_000


@dataclass(frozen=True)
class Change:
    """An object that was added or modified, or is gone; or the error that ended the watch."""

    what: str
    item: Object
    gone: bool = False
    error: UserError | None = None


class Watch(threading.Thread):
    """Puts each change of the objects at a path into a queue: lists, watches, and lists again after 410 Gone."""

    def __init__(
        self, cluster: Cluster, what: str, path: str, query: Query, changes: "queue.Queue[Change]", *, known: Object | None = None
    ) -> None:  # fmt: skip
        super().__init__(name=f"watch {what}", daemon=True)
        self._cluster, self._what, self._path, self._query, self._changes = cluster, what, path, list(query), changes
        self._stopped = threading.Event()
        self._known = {known["metadata"]["uid"]: known} if known else dict[str, Object]()
        self._version = ""
        self._refused_since: float | None = None

    def stop(self) -> None:
        self._stopped.set()

    def run(self) -> None:
        polling = self._cluster.polling
        while not self._stopped.is_set():
            started = time.monotonic()
            try:
                if not self._version:
                    self._list()
                self._follow()
            except ApiError as error:
                self._version = ""
                if error.status != GONE and not self._may_pass(error):
                    return
            except UserError as error:
                self._put(Change(self._what, {}, error=error))
                return
            self._stopped.wait(max(0, polling.interval_seconds - (time.monotonic() - started)))

    def _may_pass(self, error: ApiError) -> bool:
        """Returns True if a refused request is to be retried: a server that starts knows no roles or kinds yet."""
        now = time.monotonic()
        self._refused_since = self._refused_since or now
        if now - self._refused_since < self._cluster.polling.timeout_seconds:
            return True
        self._put(Change(self._what, {}, error=error))
        return False

    def _list(self) -> None:
        listed = self._cluster.request("GET", self._path, query=self._query)
        items: list[Object] = listed["items"]
        uids = {item["metadata"]["uid"] for item in items}
        for uid in [uid for uid in self._known if uid not in uids]:
            self._put(Change(self._what, self._known.pop(uid), gone=True))
        for item in items:
            before = self._known.get(item["metadata"]["uid"])
            if before is None or before["metadata"]["resourceVersion"] != item["metadata"]["resourceVersion"]:
                self._changed(item)
        self._version = listed["metadata"]["resourceVersion"]

    def _follow(self) -> None:
        """Reads changes until the server ends the watch, as it does from time to time."""
        seconds = max(1, int(self._cluster.polling.read_timeout_seconds * 0.8))
        query = [*self._query, ("watch", "true"), ("allowWatchBookmarks", "true"), ("resourceVersion", self._version), ("timeoutSeconds", str(seconds))]  # fmt: skip
        # A connection that is lost within an answer ends the watch too: the next one resumes where it was.
        with self._cluster.stream(self._path, query=query) as response, suppress(HTTPError, json.JSONDecodeError):
            self._refused_since = None
            for line in _lines(response):
                if self._stopped.is_set():
                    return
                self._take(json.loads(line))

    def _take(self, event: dict[str, Any]) -> None:
        item = event["object"]
        if event["type"] == "ERROR":
            raise ApiError(int(item.get("code", 500)), str(item.get("message", "")))
        self._version = item["metadata"]["resourceVersion"]
        if event["type"] == "DELETED":
            self._known.pop(item["metadata"]["uid"], None)
            self._put(Change(self._what, item, gone=True))
        elif event["type"] != "BOOKMARK":
            self._changed(item)

    def _changed(self, item: Object) -> None:
        metadata = item["metadata"]
        self._known[metadata["uid"]] = {"metadata": {name: metadata.get(name) for name in ("uid", "name", "resourceVersion", "labels")}}  # fmt: skip
        self._put(Change(self._what, item))

    def _put(self, change: Change) -> None:
        while not self._stopped.is_set():
            try:
                self._changes.put(change, timeout=1)
            except queue.Full:
                continue
            return


class Changes:
    """The changes of one object, called `what`, and of the pods with a label; events go to a callback."""

    def __init__(
        self, cluster: Cluster, what: str, name: str, *, path: str, pods: str, owns: Callable[[str], bool], since: str,
        on_event: Callable[[str], None], known: Object | None = None,
    ) -> None:  # fmt: skip
        """Takes events of objects whose names `owns` accepts, no older than a time as Kubernetes writes it.

        An object that is `known` already is gone when the first list does not hold it.
        """
        self._owns, self._since, self._on_event = owns, since, on_event
        self._tick_seconds = min(_TICK_SECONDS, cluster.polling.interval_seconds)
        self._queue: queue.Queue[Change] = queue.Queue(_QUEUE)
        self._watches = [
            Watch(cluster, what, path, [("fieldSelector", f"metadata.name={name}")], self._queue, known=known),
            Watch(cluster, "pod", cluster.path("v1", "pods"), [("labelSelector", pods)], self._queue),
            Watch(cluster, "event", cluster.path("v1", "events"), [], self._queue),
        ]
        self._seen: OrderedDict[tuple[str, str, str], None] = OrderedDict()
        self.events: deque[str] = deque(maxlen=_KEPT_EVENTS)
        """The last events; `warnings` holds the last of type Warning."""
        self.warnings: deque[str] = deque(maxlen=_KEPT_EVENTS)

    def start(self) -> None:
        for watch in self._watches:
            watch.start()

    def stop(self) -> None:
        for watch in self._watches:
            watch.stop()

    def next_change(self) -> Change | None:
        """Returns the next change of the object or a pod; None when a tick brings none, or an event."""
        try:
            change = self._queue.get(timeout=self._tick_seconds)
        except queue.Empty:
            return None
        if change.error:
            raise change.error
        if change.what != "event":
            return change
        if not change.gone and (line := self._describe(change.item)):
            self.events.append(line)
            if change.item.get("type") == "Warning":
                self.warnings.append(line)
            self._on_event(line)
        return None

    def _describe(self, event: Object) -> str | None:
        """Returns one line on an event; None for a repeated one, an older one, or one of other objects."""
        involved = event.get("involvedObject") or {}
        name, reason = str(involved.get("name", "")), str(event.get("reason", ""))
        message = " ".join(str(event.get("message", "")).split())
        key = (name, reason, message)  # Kubernetes counts an event that happens again, and sends it each time
        if not self._owns(name) or _event_time(event) < self._since or key in self._seen:
            return None
        self._seen[key] = None
        if len(self._seen) > _KNOWN_EVENTS:
            self._seen.popitem(last=False)
        warning = "warning: " if event.get("type") == "Warning" else ""
        return f"{warning}{involved.get('kind', '')} {name}: {reason}: {message}"


def _event_time(event: Object) -> str:
    """Returns when it last happened; times of Kubernetes are UTC and sort as text to the second."""
    series = event.get("series") or {}
    times = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"), event["metadata"].get("creationTimestamp"))  # fmt: skip
    return next((str(time)[:19] + "Z" for time in times if time), "9999")


def _lines(response: Any) -> Iterator[bytes]:  # noqa: ANN401 - urllib3's response
    """Yields the complete lines of a stream; a last line without its end is left out."""
    rest = b""
    for chunk in response.stream(_CHUNK, decode_content=False):
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole
