"""Reports readiness and liveness, and stops the server without losing a request."""

import asyncio
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.inference.classifier import Classifier

_FULL_SECONDS = 5.0  # of refusals: a short burst is no reason to send everybody elsewhere
_STUCK_SECONDS = 60.0  # at one batch: far above the longest


class Lifecycle:
    """Draining begins with the first signal: the server is not ready from then on, still answers, and stops after a pause."""

    def __init__(self, classifier: Classifier, *, drain_seconds: float) -> None:
        self._classifier, self._drain_seconds = classifier, drain_seconds
        self.draining = False

    def begin_drain(self, loop: asyncio.AbstractEventLoop, then: Callable[[], None]) -> None:
        """Reports not ready at once, and calls `then` when load balancers have had time to notice; for signal handlers."""
        self.draining = True
        loop.call_soon_threadsafe(loop.call_later, self._drain_seconds, then)

    def not_ready_reason(self) -> str | None:
        if self.draining:
            return "the server is stopping"
        if self._classifier.queue.full_seconds() > _FULL_SECONDS:
            return f"the queue has been full for more than {_FULL_SECONDS:.0f} s"
        return self.not_alive_reason()

    def not_alive_reason(self) -> str | None:
        """Checks the threads; a request for this proves that the event loop runs."""
        try:
            stuck = self._classifier.stuck_seconds()
        except RuntimeError as error:
            return str(error)
        return f"a worker has been at one batch for {stuck:.0f} s" if stuck > _STUCK_SECONDS else None


def close_connections_when_draining(app: ASGIApp, lifecycle: Lifecycle) -> ASGIApp:
    """Ask clients to connect anew, so that none of them sends a request into a connection that is just being closed."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        async def marked(message: Message) -> None:
            if lifecycle.draining and message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        await app(scope, receive, marked)

    return wrapped
