"""Runs the application under uvicorn: its sockets, bounds on what a client may hold, and the drain when it stops."""

import asyncio
import gc
import ipaddress
import logging
import socket
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from importlib.metadata import version
from types import FrameType
from typing import Any, cast

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.errors import UserError
from server.http.lifecycle import Lifecycle
from server.http.metrics_server import MetricsServer
from server.http.problems import problem
from server.observability.logs import announce
from server.settings import Settings

_REQUEST_SECONDS = 30.0  # for a whole request to arrive; a body has some megabytes at most
_READ_SECONDS = 30.0  # for a client to read something of an answer that waits for it
_ANSWER_SECONDS = 20  # for requests in flight: with the drain before, within the 30 s after which Kubernetes kills
_HEAD_BYTES = 64 * 1024  # of a request line and headers
_WARN_SECONDS = 60.0
_CLIENTS_TURN = (h11.IDLE, h11.SEND_BODY)  # the client has to send a request, or the rest of its body
_BUSY = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\nRetry-After: 1\r\n\r\n"

_log = logging.getLogger(__name__)


def run(app: FastAPI, lifecycle: Lifecycle, settings: Settings, *, folder: str, model: str) -> None:
    """Serves the application until a signal stops it; raises UserError if a port cannot be bound."""
    listener = _bind(settings)
    with _metrics_server(app, settings) as metrics_port:
        url = _url(settings.host, listener.getsockname()[1])
        metrics = f"; metrics at {_url(settings.host, metrics_port)}/metrics" if metrics_port else ""
        example = (
            f"""curl {url}/predict -H 'Content-Type: application/json' -d '{{"text": "Late goal wins the cup"}}'"""
        )
        gc.collect()
        gc.freeze()  # these objects stay: to look through them at each collection would hold up requests
        announce(
            f"distrinews {version('distrinews')} serves {folder} at {url}; {model}{metrics}; try {example}", settings
        )
        _Server(uvicorn_config(app, settings), lifecycle).run(sockets=[listener])


def uvicorn_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=cast("type[asyncio.Protocol]", partial(BoundedProtocol, Connections(settings.max_connections))),
        ws="none",
        log_config=None,  # the logs are configured already, for uvicorn's records too
        access_log=False,
        proxy_headers=bool(settings.forwarded_allow_ips),
        forwarded_allow_ips=[one for given in settings.forwarded_allow_ips for one in _both_forms(given)],
        headers=[("X-Content-Type-Options", "nosniff")],
        h11_max_incomplete_event_size=_HEAD_BYTES,
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=_ANSWER_SECONDS,
    )


def _both_forms(address: str) -> list[str]:
    """Adds the form in which a dual-stack proxy names an IPv4 address or network, ::ffff:a.b.c.d, or the plain one to that."""
    network = ipaddress.ip_network(address)
    if isinstance(network, ipaddress.IPv4Network):
        return [address, f"::ffff:{network.network_address}/{96 + network.prefixlen}"]
    mapped = network.network_address.ipv4_mapped
    return [address, f"{mapped}/{network.prefixlen - 96}"] if mapped and network.prefixlen >= 96 else [address]


class _Server(uvicorn.Server):
    """Stops in three steps: it answers but is not ready, then it takes no new connections, then it answers the last requests."""

    def __init__(self, config: uvicorn.Config, lifecycle: Lifecycle) -> None:
        super().__init__(config)
        self._lifecycle = lifecycle

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - as uvicorn calls it
        """The first signal begins the drain, the second ends it, the third ends everything."""
        if self.should_exit:
            self.force_exit = True
        elif self._lifecycle.draining:
            self.should_exit = True
        else:
            self._lifecycle.begin_drain(asyncio.get_running_loop(), self._stop_listening)

    def _stop_listening(self) -> None:
        self.should_exit = True


class Connections:
    """Keeps at most so many open connections, in the order in which they began to wait for a request.

    One more closes the one that has waited longest: under an attack by silent or slow clients, one of theirs.
    A connection whose request is being answered stays.
    """

    def __init__(self, at_most: int) -> None:
        self._at_most = at_most
        self._open: OrderedDict[BoundedProtocol, None] = OrderedDict()
        self._warned = -_WARN_SECONDS

    def add(self, connection: "BoundedProtocol") -> bool:
        """Makes room for a connection; False if all others are being answered."""
        if len(self._open) >= self._at_most:
            self._warn()
            longest = next((other for other in self._open if other.is_waiting), None)
            if longest is None:
                return False
            self.discard(longest)
            longest.transport.abort()  # close() would wait until the client has read what was written
        self._open[connection] = None
        return True

    def had_a_request(self, connection: "BoundedProtocol") -> None:
        if connection in self._open:
            self._open.move_to_end(connection)

    def discard(self, connection: "BoundedProtocol") -> None:
        self._open.pop(connection, None)

    def _warn(self) -> None:
        now = time.monotonic()
        if now - self._warned >= _WARN_SECONDS:
            self._warned = now
            _log.warning(
                "all %d connections of --max-connections are taken: each new one closes the one that has waited longest for a request",
                self._at_most,
            )


class BoundedProtocol(H11Protocol):
    """uvicorn's protocol, with bounds on the number of connections and on the time that a client may take."""

    def __init__(self, connections: Connections, **kwargs: Any) -> None:  # noqa: ANN401 - as uvicorn calls it
        super().__init__(**kwargs)
        self._all = connections
        self._request_timer, self._read_timer = _Timer(self), _Timer(self)

    @property
    def is_waiting(self) -> bool:
        """True if the client has to send or to read something."""
        return self.flow.write_paused or self.conn.their_state in _CLIENTS_TURN

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.client and self.client[0].startswith("::ffff:"):  # IPv4, on a socket for both
            self.client = (self.client[0].removeprefix("::ffff:"), self.client[1])
        self._request_timer.start(_REQUEST_SECONDS)
        if not self._all.add(self):
            transport.write(_BUSY)
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._all.discard(self)
        self._request_timer.stop()
        self._read_timer.stop()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        super().handle_events()
        if self.conn.their_state not in _CLIENTS_TURN:  # the request is whole
            self._all.had_a_request(self)
            self._request_timer.stop()
        elif not self.timeout_keep_alive_task:  # uvicorn's timer, between two requests
            self._request_timer.start(_REQUEST_SECONDS)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._read_timer.start(_READ_SECONDS)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._read_timer.stop()

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state is not h11.IDLE:  # a request is being answered: a second answer has no place
            self.transport.abort()
            return
        answer = problem(HTTPStatus.BAD_REQUEST, msg, headers={"connection": "close"})
        head = h11.Response(status_code=answer.status_code, headers=answer.raw_headers, reason=b"Bad Request")
        for event in (head, h11.Data(data=bytes(answer.body)), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class _Timer:
    """Aborts a connection unless it is stopped in time."""

    def __init__(self, protocol: H11Protocol) -> None:
        self._protocol = protocol
        self._handle: asyncio.TimerHandle | None = None

    def start(self, seconds: float) -> None:
        """Starts the timer unless it runs."""
        if not self._handle:
            self._handle = self._protocol.loop.call_later(seconds, self._protocol.transport.abort)

    def stop(self) -> None:
        if self._handle:
            self._handle.cancel()
            self._handle = None


@contextmanager
def _metrics_server(app: FastAPI, settings: Settings) -> Iterator[int | None]:
    if settings.metrics_port == "off":
        yield None
        return
    try:
        server = MetricsServer(app.state.metrics.registry, host=settings.host, port=settings.metrics_port)
    except OSError as error:
        place = f"{settings.host} port {settings.metrics_port}"
        raise UserError(
            f"cannot listen for Prometheus on {place}: {error.strerror}; choose another with --metrics-port"
        ) from error
    try:
        yield server.port
    finally:
        server.close()


def _bind(settings: Settings) -> socket.socket:
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][0]
        both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
        return socket.create_server((settings.host, settings.port), family=family, dualstack_ipv6=both)
    except OSError as error:
        place = f"{settings.host} port {settings.port}"
        message = f"cannot listen on {place}: {error.strerror}; choose others with --host and --port"
        raise UserError(message) from error


def _url(host: str, port: int) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
