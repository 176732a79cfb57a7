"""Serves /metrics to Prometheus on a port and threads of its own, so that the event loop is not disturbed."""

import socket
import sys
from contextlib import suppress
from socketserver import ThreadingMixIn
from threading import Lock, Thread
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

_MAX_CONNECTIONS = 8  # a few scrapers and someone with curl
_TIMEOUT_SECONDS = 10  # for a client to send or read something


class MetricsServer:
    def __init__(self, registry: CollectorRegistry, *, host: str, port: int) -> None:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        self._server = _BoundedServer(family, (str(address[0]), port))
        self._server.set_app(make_wsgi_app(registry))
        self.port = self._server.server_port
        self._thread = Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(WSGIRequestHandler):
    timeout = _TIMEOUT_SECONDS

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as the library calls it
        """Scrapes are not logged."""


class _BoundedServer(ThreadingMixIn, WSGIServer):
    """Answers each connection on a thread of its own; one too many closes the oldest."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, family: int, address: tuple[str, int]) -> None:
        self.address_family = family
        self._open: dict[socket.socket, None] = {}
        self._lock = Lock()
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6 and socket.has_dualstack_ipv6():
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def process_request(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override]
        with self._lock:
            oldest = next(iter(self._open)) if len(self._open) >= _MAX_CONNECTIONS else None
            if oldest:
                del self._open[oldest]  # now, not when its thread ends: the next one too many closes another
            self._open[request] = None
        if oldest:
            with suppress(OSError):  # it has ended in the meantime
                oldest.shutdown(socket.SHUT_RDWR)  # ends its thread
        super().process_request(request, client_address)

    def shutdown_request(self, request: socket.socket) -> None:  # type: ignore[override]
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # a client that is slow or gone is no error of ours
            super().handle_error(request, client_address)  # type: ignore[arg-type]
