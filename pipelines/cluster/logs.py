"""The log of a pod as it is written: whole lines, each once, across lost connections and restarts of its container."""

import math
import re
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from urllib3.exceptions import HTTPError

from pipelines.cluster.client import Cluster, Refused, Tries, Unanswered
from pipelines.job.backends.pytorchjob import CONTAINER
from pipelines.job.settings import Object

_LONGEST = 16_384  # bytes of a line that are shown
_CHUNK = 65_536
_STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d) ")
_NOT_YET, _GONE = 400, 404

Stamp = tuple[int, int]


class PodLog(threading.Thread):
    """Reads one pod's log to its end and hands over each line; in memory is never more than one line."""

    def __init__(
        self, cluster: Cluster, pod: Object, heard: Callable[[str], None], *, container: str = CONTAINER
    ) -> None:
        self.pod_name: str = pod["metadata"]["name"]
        super().__init__(name=f"log of {self.pod_name}", daemon=True)
        self._cluster, self._heard, self._container = cluster, heard, container
        self._path = cluster.path("v1", "pods", self.pod_name, "log")
        self._changed, self._stopped = threading.Condition(), threading.Event()
        self._status: Object = {}
        self._pod_over = False
        self._last: Stamp = (0, 0)
        self._same = 0  # lines that had the last stamp
        self.update(pod)

    def update(self, pod: Object, *, gone: bool = False) -> None:
        """How the pod stands now."""
        statuses = (pod.get("status") or {}).get("containerStatuses") or []
        with self._changed:
            self._status = next((status for status in statuses if status["name"] == self._container), self._status)
            self._pod_over = gone or (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
            self._changed.notify_all()

    def stop(self) -> None:
        self._stopped.set()
        with self._changed:
            self._changed.notify_all()

    def finish(self, seconds: float) -> None:
        """Wait for the rest of the log, but not for ever."""
        self.join(seconds)
        self.stop()

    def read_what_is_there(self) -> None:
        """Hand over the log so far, in this thread."""
        if self._has_begun():
            self._read(Tries(self._cluster))

    def run(self) -> None:
        tries, restarts_read = Tries(self._cluster, stop=self._stopped, patience_seconds=math.inf), 0
        while self._wait_for_log():
            with self._changed:
                restarts, over = int(self._status.get("restartCount", 0)), self._pod_over
                running = "running" in (self._status.get("state") or {})
            try:
                if restarts > restarts_read:
                    self._read(tries, previous=True)
                    restarts_read = restarts
                self._read(tries, follow=running and not over)
            except Refused as error:
                if over or error.status == _GONE:
                    return
            except (Unanswered, HTTPError) as error:
                tries.pause(error)
                continue
            if over:
                return
            self._pause_for_change(running=running)

    def _wait_for_log(self) -> bool:
        """Whether there is something to read; False when there never will be."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped.is_set() or self._pod_over or self._has_begun())
            return not self._stopped.is_set() and (self._has_begun() or not self._pod_over)

    def _has_begun(self) -> bool:
        state = {**(self._status.get("lastState") or {}), **(self._status.get("state") or {})}
        return "running" in state or "terminated" in state

    def _pause_for_change(self, *, running: bool) -> None:
        """After the end of a log: wait until the pod has another status or, if it is said to run still, a little."""
        pace = self._cluster.pace
        before = self._status
        self._stopped.wait(pace.interval_seconds)
        if not running:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._stopped.is_set() or self._pod_over or self._status is not before, pace.longest_seconds
                )

    def _read(self, tries: Tries, *, follow: bool = False, previous: bool = False) -> None:
        query = [("container", self._container), ("timestamps", "true"), ("follow", str(follow).lower())]
        query += [("previous", "true")] if previous else []
        if self._last > (0, 0):
            query.append(("sinceTime", datetime.fromtimestamp(self._last[0], tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")))
        skip, again = self._same, self._last
        try:
            with self._cluster.stream(self._path, query=query) as response:
                tries.succeeded()
                for line in _short_lines(response):
                    if self._stopped.is_set():
                        return
                    stamp, text = _split(line)
                    if stamp is not None and (stamp < again or (stamp == again and skip > 0)):
                        skip -= stamp == again
                        continue
                    self._note(stamp)
                    self._heard(text)
        except Refused as error:
            if previous and error.status in (_NOT_YET, _GONE):
                self._heard("(the last lines before its restart are gone)")
            elif error.status != _NOT_YET:
                raise

    def _note(self, stamp: Stamp | None) -> None:
        if stamp is not None:
            self._same = self._same + 1 if stamp == self._last else 1
            self._last = stamp


def _split(line: str) -> tuple[Stamp | None, str]:
    """The stamp of a line, to the nanosecond, and its text, of which a carriage return leaves what one would see."""
    found = _STAMP.match(line)
    text = (line[found.end() :] if found else line).rstrip("\r").rpartition("\r")[2]
    if not found:
        return None, text
    seconds = datetime.fromisoformat(found[1] + found[3].replace("Z", "+00:00")).timestamp()
    return (int(seconds), int((found[2] or "").ljust(9, "0"))), text


def _short_lines(response: Any) -> Iterator[str]:  # noqa: ANN401 - urllib3's response
    """Whole lines, cut where they are too long to keep; a lost connection raises before its half of a line is told."""
    rest, cut = b"", False
    for chunk in response.stream(_CHUNK, decode_content=False):
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            if not cut:
                yield line[:_LONGEST].decode(errors="replace") + (" …" if len(line) > _LONGEST else "")
            cut = False
        if len(rest) > _LONGEST:
            if not cut:
                yield rest[:_LONGEST].decode(errors="replace") + " …"
            rest, cut = b"", True
    if rest and not cut:
        yield rest.decode(errors="replace")
