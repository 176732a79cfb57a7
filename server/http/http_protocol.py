"""HTTP on the socket: uvicorn's protocol, with bounds on what a client may send and how long it may take."""

import asyncio
from functools import partial
from http import HTTPStatus
from typing import Any, cast

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from server.http.connections import Connections
from server.http.problems import problem

_OVERHEAD_BYTES = 64 * 1024  # request line, headers, chunk sizes, trailers: whatever is not body
_RECEIVE_SECONDS = 30.0  # for a whole request; a body has some megabytes at most
_READ_SECONDS = 30.0  # in which a client has to read something of an answer that waits for it


def bounded(max_connections: int) -> type[asyncio.Protocol]:
    """What uvicorn calls for each connection of a server that has at most so many."""
    return cast("type[asyncio.Protocol]", partial(BoundedProtocol, Connections(max_connections)))


class BoundedProtocol(HttpToolsProtocol):
    """Without these, headers that never end fill the memory, and connections of which nothing comes use up the file descriptors."""

    def __init__(self, connections: Connections, **kwargs: Any) -> None:  # noqa: ANN401 - as uvicorn calls it
        super().__init__(**kwargs)
        self._all = connections
        self._overhead = 0
        self._whole = False  # whether the newest request has come to its end
        self._too_late: asyncio.TimerHandle | None = None
        self._not_read: asyncio.TimerHandle | None = None
        self._unanswered: list[RequestResponseCycle] = []

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_a_request()
        if not self._all.add(self):
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "There are too many connections; try again later")

    def connection_lost(self, exc: Exception | None) -> None:
        self._all.discard(self)
        self._stop_expecting()
        self.resume_writing()
        self._abandon()
        super().connection_lost(exc)

    @property
    def busy(self) -> bool:
        """Whether a request is whole and its answer is not, and not because the client does not read it."""
        return not self.flow.write_paused and any(
            not cycle.more_body and not cycle.response_complete for cycle in self._unanswered
        )

    def drop(self) -> None:
        self._abandon()
        self.transport.abort()  # to close it would be to wait until the client has read what was written

    def pause_writing(self) -> None:
        super().pause_writing()
        self._not_read = self.loop.call_later(_READ_SECONDS, self.drop)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._not_read is not None:
            self._not_read.cancel()
            self._not_read = None

    def data_received(self, data: bytes) -> None:
        self._overhead += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._overhead > _OVERHEAD_BYTES:
            self._refuse(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"Headers should have at most {_OVERHEAD_BYTES} bytes"
            )
        elif self._too_late is None and (not self._whole or self.cycle.response_complete):
            self._expect_a_request()

    def on_message_begin(self) -> None:
        self._overhead, self._whole = 0, False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._unanswered = [cycle for cycle in self._unanswered if not cycle.response_complete] + [self.cycle]

    def on_body(self, body: bytes) -> None:
        self._overhead = max(0, self._overhead - 2 * len(body))  # twice: small chunks have sizes of their own length
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._whole = True
        self._all.had_a_request(self)
        self._stop_expecting()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(HTTPStatus.BAD_REQUEST, msg)

    def _refuse(self, status: HTTPStatus, detail: str) -> None:
        if self.cycle is None or self.cycle.response_complete:  # or this would stand inside of an answer
            answer = problem(status, detail, headers={"connection": "close"})
            head = b"".join(b"%b: %b\r\n" % pair for pair in answer.raw_headers)
            self.transport.write(
                b"HTTP/1.1 %d %b\r\n%b\r\n%b" % (status, status.phrase.encode(), head, bytes(answer.body))
            )
        self._hang_up()

    def _hang_up(self) -> None:
        self._abandon()
        self.transport.close()

    def _abandon(self) -> None:
        # uvicorn tells only the newest of pipelined requests that the client is gone; another would write to what is closed.
        for cycle in self._unanswered:
            cycle.disconnected = True
            cycle.message_event.set()

    def _expect_a_request(self) -> None:
        self._too_late = self.loop.call_later(_RECEIVE_SECONDS, self._hang_up)

    def _stop_expecting(self) -> None:
        if self._too_late is not None:
            self._too_late.cancel()
            self._too_late = None


def answer_head(app: ASGIApp) -> ASGIApp:
    """HEAD is answered as GET; the protocol leaves the body out."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await app(scope, receive, send)

    return wrapped
