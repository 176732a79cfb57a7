"""Follows the log of a pod: complete lines, each once, across lost connections and restarts of its container."""

import re
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from urllib3.exceptions import HTTPError

from pipelines.cluster.client import NOT_FOUND, ApiError, Cluster, Object
from server.errors import UserError

_MAX_LINE = 16_384  # bytes of a line that are shown
_CHUNK = 65_536
_STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d) ")
_NOT_YET = 400

Stamp = tuple[int, int]


class Console:
    """Prints complete lines with the name of their source; lines of several threads never mix."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def print(self, source: str, text: str) -> None:
        line = f"{source} | {text}\n"
        with self._lock:
            sys.stdout.write(line)
            sys.stdout.flush()


class PodLog(threading.Thread):
    """Reads the log of a pod's container to its end and passes each line on; it holds no more than one line in memory."""

    def __init__(self, cluster: Cluster, pod: Object, on_line: Callable[[str], None], *, container: str) -> None:
        self.pod_name: str = pod["metadata"]["name"]
        super().__init__(name=f"log of {self.pod_name}", daemon=True)
        self._cluster, self._on_line, self._container = cluster, on_line, container
        self._changed, self._stopped = threading.Condition(), threading.Event()
        self._status: Object = {}
        self._pod_over = False
        self._last: Stamp = (0, 0)
        self._same = 0  # lines that had the last stamp
        self.update(pod)

    def update(self, pod: Object, *, gone: bool = False) -> None:
        """Takes the pod's new status."""
        statuses = (pod.get("status") or {}).get("containerStatuses") or []
        with self._changed:
            self._status = next((status for status in statuses if status["name"] == self._container), self._status)
            self._pod_over = gone or (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
            self._changed.notify_all()

    def stop(self) -> None:
        self._stopped.set()
        with self._changed:
            self._changed.notify_all()

    def read_available(self) -> None:
        """Passes on the log so far, in this thread."""
        if self._has_begun():
            self._read()

    def run(self) -> None:
        restarts_read = 0
        while self._wait_for_log():
            with self._changed:
                restarts, over = int(self._status.get("restartCount", 0)), self._pod_over
                running = "running" in (self._status.get("state") or {})
            try:
                if restarts > restarts_read:
                    self._read(previous=True)
                    restarts_read = restarts
                self._read(follow=running and not over)
            except ApiError as error:
                if over or error.status == NOT_FOUND:
                    return
            except (UserError, HTTPError):  # a lost connection, or a silent container: resumed at the last stamp
                self._stopped.wait(self._cluster.polling.interval_seconds)
                continue
            if over:
                return
            self._pause(running=running)

    def _wait_for_log(self) -> bool:
        """Waits until there is something to read; returns False when there never will be."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped.is_set() or self._pod_over or self._has_begun())
            return not self._stopped.is_set() and (self._has_begun() or not self._pod_over)

    def _has_begun(self) -> bool:
        state = {**(self._status.get("lastState") or {}), **(self._status.get("state") or {})}
        return "running" in state or "terminated" in state

    def _pause(self, *, running: bool) -> None:
        """Waits for the pod's next status after the end of a log, or an interval if the pod still runs."""
        polling, before = self._cluster.polling, self._status
        self._stopped.wait(polling.interval_seconds)
        if not running:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._stopped.is_set() or self._pod_over or self._status is not before,
                    polling.max_interval_seconds,
                )

    def _read(self, *, follow: bool = False, previous: bool = False) -> None:
        query = [("container", self._container), ("timestamps", "true"), ("follow", str(follow).lower())]
        query += [("previous", "true")] if previous else []
        if self._last > (0, 0):
            query.append(("sinceTime", datetime.fromtimestamp(self._last[0], tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")))
        skip, again = self._same, self._last
        try:
            with self._cluster.log(self.pod_name, query=query) as response:
                for line in _short_lines(response):
                    if self._stopped.is_set():
                        return
                    stamp, text = _split(line)
                    if stamp is not None and (stamp < again or (stamp == again and skip > 0)):
                        skip -= stamp == again
                        continue
                    self._note(stamp)
                    self._on_line(text)
        except ApiError as error:
            if previous and error.status in (_NOT_YET, NOT_FOUND):
                self._on_line("(the last lines before its restart are gone)")
            elif error.status != _NOT_YET:
                raise

    def _note(self, stamp: Stamp | None) -> None:
        if stamp is not None:
            self._same = self._same + 1 if stamp == self._last else 1
            self._last = stamp


def _split(line: str) -> tuple[Stamp | None, str]:
    """Returns the stamp of a line, to the nanosecond, and its text after the last carriage return, as a terminal shows it."""
    found = _STAMP.match(line)
    text = (line[found.end() :] if found else line).rstrip("\r").rpartition("\r")[2]
    if not found:
        return None, text
    seconds = datetime.fromisoformat(found[1] + found[3].replace("Z", "+00:00")).timestamp()
    return (int(seconds), int((found[2] or "").ljust(9, "0"))), text


def _short_lines(response: Any) -> Iterator[str]:  # noqa: ANN401 - urllib3's response
    """Yields complete lines, cut where they are too long; a lost connection raises before an incomplete line is yielded."""
    rest, cut = b"", False
    for chunk in response.stream(_CHUNK, decode_content=False):
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            if not cut:
                yield line[:_MAX_LINE].decode(errors="replace") + (" …" if len(line) > _MAX_LINE else "")
            cut = False
        if len(rest) > _MAX_LINE:
            if not cut:
                yield rest[:_MAX_LINE].decode(errors="replace") + " …"
            rest, cut = b"", True
    if rest and not cut:
        yield rest.decode(errors="replace")
