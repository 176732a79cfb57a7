"""ASGI middleware around every route, from the record of a request to the limit on its body."""

import random
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus

from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.http.lifecycle import Lifecycle
from server.http.problems import CLIENT_LEFT, problem
from server.observability.logs import CURRENT, UNMATCHED, Rejection, RequestRecord

_SANE_ID = re.compile(rb"[\w.:/+=@-]{1,128}", re.ASCII)  # safe in every log and every header
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
_REASONS: Mapping[int, Rejection] = {
    **dict.fromkeys((400, 404, 405, 413, 415, 422), "invalid"),
    **dict.fromkeys((401, 403), "unauthorized"),
    429: "rate_limited",
    CLIENT_LEFT: "client_left",
    504: "deadline",
}


class RequestContext:
    """Gives each request an id and a record, and passes the record on when the request has ended.

    It is the outermost middleware: a request that an inner one refuses has an id and is counted too.
    """

    def __init__(
        self, app: ASGIApp, *, on_start: Callable[[], None], on_end: Sequence[Callable[[RequestRecord], None]]
    ) -> None:
        self._app, self._on_start, self._on_end = app, on_start, on_end
        self._routes: _Routes | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = _new_record(scope)
        CURRENT.set(record)
        request_id = (b"x-request-id", record.request_id.encode())

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message["headers"], request_id]
            await send(message)

        self._on_start()
        try:
            await self._app(scope, receive, send_with_id)
        finally:
            self._routes = self._routes or _Routes(scope["app"].routes)
            record.seconds = time.monotonic() - record.started
            record.status = record.status or CLIENT_LEFT  # or the server was forced to stop
            record.route = self._routes.find(scope["path"])
            if record.route != UNMATCHED:
                record.rejected = record.rejected or _REASONS.get(record.status)
            for listener in self._on_end:
                listener(record)


class _Routes:
    """Finds the template of a path's route, also if the request was refused before it reached the route."""

    def __init__(self, routes: Sequence[BaseRoute]) -> None:
        paths = [route.path for route in iter_route_contexts(routes) if route.path]
        self._plain = frozenset(path for path in paths if "{" not in path)
        self._templates = [(compile_path(path)[0], path) for path in paths if "{" in path]

    def find(self, path: str) -> str:
        if path in self._plain:
            return path
        return next((template for pattern, template in self._templates if pattern.match(path)), UNMATCHED)


def _new_record(scope: Scope) -> RequestRecord:
    headers: dict[bytes, bytes] = dict(scope["headers"])
    sent, trace = headers.get(b"x-request-id", b""), _TRACEPARENT.fullmatch(headers.get(b"traceparent", b""))
    return RequestRecord(
        request_id=sent.decode() if _SANE_ID.fullmatch(sent) else _new_id(),
        method=scope["method"],
        traceparent=trace[0].decode() if trace else None,
        trace_id=trace[1].decode() if trace else None,
    )


def _new_id() -> str:
    return str(uuid.UUID(int=random.getrandbits(128), version=4))  # uuid4() makes a system call


class ServerFailure:
    """Answers a request that fails with status 500 and its id; the log gets the error."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except Exception:
            if scope["type"] == "http" and not CURRENT.get().status:
                answer = problem(HTTPStatus.INTERNAL_SERVER_ERROR, "The server failed; its log has the error")
                await answer(scope, receive, send)
            raise


class HeadAsGet:
    """Routes HEAD like GET; the HTTP protocol leaves the body out."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await self._app(scope, receive, send)


class CloseWhenDraining:
    """Closes each connection after its answer while the server drains, so that clients connect to another."""

    def __init__(self, app: ASGIApp, *, lifecycle: Lifecycle) -> None:
        self._app, self._lifecycle = app, lifecycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_and_close(message: Message) -> None:
            if self._lifecycle.draining and message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        await self._app(scope, receive, send_and_close)


class LimitBody:
    """Refuses a body that no valid request can have, before it fills the memory."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        declared = next((value for name, value in scope.get("headers", ()) if name == b"content-length"), b"")
        received = int(declared) if declared.isdigit() and int(declared) > self._max_bytes else 0

        async def receive_counted() -> Message:
            nonlocal received
            message: Message = {} if received > self._max_bytes else await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                detail = f"The body should have at most {self._max_bytes} bytes"
                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail)
            return message

        await self._app(scope, receive_counted, send)
