"""Objects of one kind as they are and change: listed, watched, and listed again when the watch has lost its place."""

import json
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from urllib3.exceptions import HTTPError

from pipelines.cluster.client import Cluster, Query, Refused, Tries, Unanswered
from pipelines.job.settings import Object
from server.errors import UserError

_GONE = 410
_CHUNK = 65_536


@dataclass(frozen=True)
class Change:
    """An object that is there now, or is there no more; or the error that ended the watch."""

    what: str
    item: Object
    gone: bool = False
    error: UserError | None = None


class Watch(threading.Thread):
    """Puts every change of the objects at a path into a queue, through disconnects, 410 Gone and restarts of the API server."""

    def __init__(self, cluster: Cluster, what: str, path: str, query: Query, changes: "queue.Queue[Change]") -> None:
        super().__init__(name=f"watch {what}", daemon=True)
        self._cluster, self._what, self._path, self._query, self._changes = cluster, what, path, list(query), changes
        self._stopped = threading.Event()
        self._known: dict[str, Object] = {}
        self._version = ""

    def stop(self) -> None:
        self._stopped.set()

    def run(self) -> None:
        tries = Tries(self._cluster, stop=self._stopped)
        while not self._stopped.is_set():
            started = time.monotonic()
            try:
                if not self._version:
                    self._list()
                self._follow(tries)
            except Refused as error:
                self._version = ""  # 410: what happened meanwhile is told by a new list
                if error.status != _GONE and not self._pause(tries, error):
                    return
            except (Unanswered, HTTPError, json.JSONDecodeError) as error:
                if not self._pause(tries, error):
                    return
            self._stopped.wait(max(0, self._cluster.pace.interval_seconds - (time.monotonic() - started)))

    def _pause(self, tries: Tries, error: Exception) -> bool:
        """Wait; False when there is no use in going on. A refusal may pass too: a server that starts knows no roles or kinds yet."""
        try:
            tries.pause(error)
        except UserError as final:
            self._put(Change(self._what, {}, error=final))
            return False
        return True

    def _list(self) -> None:
        with self._cluster.stream(self._path, query=self._query) as response:
            listed = json.loads(response.read())
        items: list[Object] = listed["items"]
        uids = {item["metadata"]["uid"] for item in items}
        for uid in [uid for uid in self._known if uid not in uids]:
            self._put(Change(self._what, self._known.pop(uid), gone=True))
        for item in items:
            before = self._known.get(item["metadata"]["uid"])
            if before is None or before["metadata"]["resourceVersion"] != item["metadata"]["resourceVersion"]:
                self._tell(item)
        self._version = listed["metadata"]["resourceVersion"]

    def _follow(self, tries: Tries) -> None:
        """Until the server ends the watch, as it does from time to time."""
        seconds = max(1, int(self._cluster.pace.silence_seconds * 0.8))
        query = [*self._query, ("watch", "true"), ("allowWatchBookmarks", "true"), ("resourceVersion", self._version), ("timeoutSeconds", str(seconds))]  # fmt: skip
        with self._cluster.stream(self._path, query=query) as response:
            tries.succeeded()
            for line in lines(response):
                if self._stopped.is_set():
                    return
                self._take(json.loads(line))

    def _take(self, event: dict[str, Any]) -> None:
        item = event["object"]
        if event["type"] == "ERROR":
            status = int(item.get("code", 500))
            message = str(item.get("message", ""))
            raise Refused(status, message) if status == _GONE else Unanswered(f"{status} {message}")
        self._version = item["metadata"]["resourceVersion"]
        if event["type"] == "DELETED":
            self._known.pop(item["metadata"]["uid"], None)
            self._put(Change(self._what, item, gone=True))
        elif event["type"] != "BOOKMARK":
            self._tell(item)

    def _tell(self, item: Object) -> None:
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


def lines(response: Any) -> Iterator[bytes]:  # noqa: ANN401 - urllib3's response
    """The whole lines of a stream; a last one without its end is left out, for it is not whole."""
    rest = b""
    for chunk in response.stream(_CHUNK, decode_content=False):
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole
