"""Decides whether the server is ready and alive, and drains it before it stops."""

import asyncio
import logging
from collections.abc import Callable

from server.inference.classifier import Classifier

_FULL_SECONDS = 5.0  # a moment's burst is no reason to send all clients elsewhere
_STUCK_SECONDS = 60.0  # at one batch: far above the longest
_log = logging.getLogger(__name__)


class Lifecycle:
    """Knows the state of the server. While it drains, after the first signal, it is not ready but still answers."""

    def __init__(self, classifier: Classifier, *, drain_seconds: float) -> None:
        self._classifier, self._drain_seconds = classifier, drain_seconds
        self.draining = False

    def begin_drain(self, loop: asyncio.AbstractEventLoop, then: Callable[[], None]) -> None:
        """Makes the server not ready, and calls `then` once load balancers have had time to notice; for signal handlers."""

        def begin() -> None:
            _log.info(
                "stops listening in %g s: not ready from now on, so that clients go to other servers",
                self._drain_seconds,
            )
            loop.call_later(self._drain_seconds, then)

        self.draining = True
        loop.call_soon_threadsafe(begin)

    def not_ready_reason(self) -> str | None:
        if self.draining:
            return "the server is stopping"
        if self._classifier.queue.full_seconds() > _FULL_SECONDS:
            return f"the queue has been full for more than {_FULL_SECONDS:.0f} s"
        return self.not_alive_reason()

    def not_alive_reason(self) -> str | None:
        """Checks the threads; that the event loop works shows in that this is called."""
        try:
            stuck = self._classifier.stuck_seconds()
        except RuntimeError as error:
            return str(error)
        return f"a worker has been at one batch for {stuck:.0f} s" if stuck > _STUCK_SECONDS else None
