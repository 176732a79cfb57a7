"""Connections of the load generator to the server: one for each request in flight, kept open between requests."""

import asyncio
from typing import cast

import httptools

HOST = "127.0.0.1"

TIMEOUT, REFUSED, HUNG_UP, MALFORMED = "timeout", "no connection", "hung up", "malformed"
"""Outcomes of requests that end without a status."""


class Connections:
    """Keeps as many connections as there are requests in flight; an idle one is used again."""

    def __init__(self, port: int, *, limit_seconds: float) -> None:
        self._port, self._limit_seconds = port, limit_seconds
        self._idle: list[_Connection] = []
        self._in_flight = self.most_in_flight = self.resent = 0

    async def send(self, request: bytes) -> str:
        """Returns the status of the answer, or the outcome of a request without one."""
        self._in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            async with asyncio.timeout(self._limit_seconds):
                return await self._send(request)
        except TimeoutError:
            return TIMEOUT
        except OSError:
            return REFUSED
        finally:
            self._in_flight -= 1

    async def _send(self, request: bytes) -> str:
        while (connection := self._take_idle()) is not None:
            if (status := await connection.send(request, idle=self._idle)) != HUNG_UP:
                return status
            self.resent += 1  # as every client does: the server may close an idle connection at any moment
        _, fresh = await asyncio.get_running_loop().create_connection(_Connection, HOST, self._port)
        return await fresh.send(request, idle=self._idle)

    def _take_idle(self) -> "_Connection | None":
        while self._idle:
            if not (connection := self._idle.pop()).is_closed:
                return connection
        return None

    async def close(self) -> None:
        for connection in self._idle:
            connection.close()
        await asyncio.sleep(0)  # transports close in the next turn of the loop


class _Connection(asyncio.Protocol):
    """Carries one request at a time; httptools calls `on_message_complete`."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._answer: asyncio.Future[str] | None = None
        self._transport: asyncio.Transport
        self.is_closed = False

    async def send(self, request: bytes, *, idle: "list[_Connection]") -> str:
        """Sends a request, waits for the answer, and returns the connection to the idle ones if it can be used again."""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            status = await self._answer
        except asyncio.CancelledError:  # the time is up, and the answer would be taken for that of the next request
            self._transport.abort()
            raise
        if not self.is_closed:
            idle.append(self)
        return status

    def close(self) -> None:
        self.is_closed = True
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's has its methods, but is none

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()
            self._resolve(MALFORMED)

    def on_message_complete(self) -> None:
        if not self._parser.should_keep_alive():
            self.close()
        self._resolve(str(self._parser.get_status_code()))

    def connection_lost(self, _: Exception | None) -> None:
        self.is_closed = True
        self._resolve(HUNG_UP)

    def _resolve(self, status: str) -> None:
        if self._answer and not self._answer.done():
            self._answer.set_result(status)
