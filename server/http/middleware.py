"""What is done for every request: its id, and the note that is taken when it is over."""

import random
import re
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from http import HTTPStatus

from fastapi.routing import iter_route_contexts
from starlette.routing import BaseRoute, compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.http.problems import problem
from server.observability.metrics import Metrics
from server.observability.record import CURRENT, UNMATCHED, Record, Rejection
from server.routes.open_inference import tell_errors_as_v2

_SANE_ID = re.compile(rb"[\w.:/+=@-]{1,128}", re.ASCII)  # what every log and every header can hold
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
_REASONS: Mapping[int, Rejection] = {
    **dict.fromkeys((400, 404, 405, 413, 415, 422), "invalid"),
    **dict.fromkeys((401, 403), "unauthorized"),
    429: "rate_limited",
    499: "client_left",
    504: "deadline",
}
_CLIENT_LEFT = 499  # or the server was forced to stop: nobody got an answer


class Watched:
    """The outermost layer of the application: even what an inner layer refuses, or fails at, has an id and is counted."""

    def __init__(
        self, app: ASGIApp, *, routes: Sequence[BaseRoute], metrics: Metrics, tell: Iterable[Callable[[Record], None]]
    ) -> None:
        self._app, self._metrics, self._tell = app, metrics, tuple(tell)
        paths = [route.path for route in iter_route_contexts(routes) if route.path]
        self._plain = frozenset(path for path in paths if "{" not in path)
        self._templates = [(compile_path(path)[0], path) for path in paths if "{" in path]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = _begin(scope)
        CURRENT.set(record)
        answer_id = (b"x-request-id", record.request_id.encode())

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message["headers"], answer_id]
            await send(message)

        self._metrics.in_flight += 1
        try:
            await self._app(scope, receive, marked)
        except Exception:
            if not record.status:
                answer = problem(HTTPStatus.INTERNAL_SERVER_ERROR, "The server failed; its log says why")
                await tell_errors_as_v2(answer)(scope, receive, marked)
            raise
        finally:
            self._metrics.in_flight -= 1
            self._end(scope, record)

    def _end(self, scope: Scope, record: Record) -> None:
        record.seconds = time.monotonic() - record.started
        record.status = record.status or _CLIENT_LEFT
        record.route = self._route(scope["path"])
        if record.route != UNMATCHED:
            record.rejected = record.rejected or _REASONS.get(record.status)
        record.caller = scope.get("state", {}).get("caller")
        self._metrics.answered(record)
        for tell in self._tell:
            tell(record)

    def _route(self, path: str) -> str:
        """Also of what was refused before it came to its route."""
        if path in self._plain:
            return path
        return next((template for pattern, template in self._templates if pattern.match(path)), UNMATCHED)


def _begin(scope: Scope) -> Record:
    headers: dict[bytes, bytes] = dict(scope["headers"])
    given, trace = headers.get(b"x-request-id", b""), _TRACEPARENT.fullmatch(headers.get(b"traceparent", b""))
    return Record(
        request_id=given.decode()
        if _SANE_ID.fullmatch(given)
        else str(uuid.UUID(int=random.getrandbits(128), version=4)),
        method=scope["method"],
        traceparent=trace[0].decode() if trace else None,
        trace_id=trace[1].decode() if trace else None,
    )
