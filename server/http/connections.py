"""How many connections there may be at once, and which of them goes when one more comes."""

import logging
import sys
import time
from collections import OrderedDict
from typing import Protocol

_SPARE = 100  # files and connections of our own: the model, the log, Prometheus, an issuer of tokens
_MOST = 2000  # some times as many as there are texts in a full queue
_SILENT_SECONDS = 60.0  # between two warnings

_log = logging.getLogger(__name__)


def most_connections() -> int:
    """What this process has open files for, up to a number that is enough."""
    return max(1, min(_MOST, _open_files() - _SPARE))


def with_open_files(connections: int) -> int:
    """The number, where this process may have as many files open; ValueError otherwise."""
    room = max(1, _open_files() - _SPARE)
    if connections > room:
        raise ValueError(f"this process has open files for {room:,} connections: choose fewer, or raise ulimit -n")
    return connections


def _open_files() -> int:
    if sys.platform == "win32":
        return _MOST + _SPARE  # it counts no sockets
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


class Connection(Protocol):
    @property
    def busy(self) -> bool:
        """Whether a request of it is being answered."""

    def drop(self) -> None:
        """Close it without a word."""


class Connections:
    """At most so many, in the order in which they began to wait for a request.

    One more is let in, as a probe may be behind it: the one that has waited longest goes, which under an attack of silent
    or slow clients is one of theirs. None goes whose request is being answered; those are as many as the queue has room for.
    """

    def __init__(self, at_most: int) -> None:
        self._at_most = at_most
        self._waiting: OrderedDict[Connection, None] = OrderedDict()
        self._warned = -_SILENT_SECONDS

    def add(self, connection: Connection) -> bool:
        """False when there is no room, as all are busy."""
        if len(self._waiting) >= self._at_most:
            self._warn()
            longest = next((other for other in self._waiting if not other.busy), None)
            if longest is None:
                return False
            self.discard(longest)
            longest.drop()
        self._waiting[connection] = None
        return True

    def had_a_request(self, connection: Connection) -> None:
        if connection in self._waiting:
            self._waiting.move_to_end(connection)

    def discard(self, connection: Connection) -> None:
        self._waiting.pop(connection, None)

    def _warn(self) -> None:
        now = time.monotonic()
        if now - self._warned >= _SILENT_SECONDS:
            self._warned = now
            _log.warning(
                "all %d connections of --max-connections are taken: for each new one, the one that has waited longest without a request is closed",
                self._at_most,
            )
