"""The HTTP server around the application: its ports, its first line, and how it stops."""

import asyncio
import gc
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import FrameType

import uvicorn

from server.app import create_app
from server.http.http_protocol import bounded
from server.inference.classifier import Classifier
from server.lifecycle import Lifecycle
from server.observability.logs import first_line
from server.observability.metrics import Exporter, Metrics
from server.observability.record import Record
from server.settings import Settings

_ANSWER_SECONDS = 20  # for what is in flight: with the pause before, within the 30 s after which Kubernetes kills
_FULL_COLLECTION = 1_000  # of how many: it looks through all requests in flight, and takes some 0.1 ms for each


class CannotListenError(Exception):
    """A port that is not to be had: which, and what to do."""


def listen(
    classifier: Classifier, settings: Settings, *, model_folder: Path, tell: Iterable[Callable[[Record], None]]
) -> None:
    """Serve the classifier until a signal says to stop; CannotListenError when a port is not to be had."""
    lifecycle = Lifecycle(classifier, drain_seconds=settings.drain_seconds)
    app = create_app(classifier, lifecycle, settings, tell=tell)
    config = uvicorn.Config(
        app,
        http=bounded(settings.max_connections),
        ws="none",
        log_config=None,  # the logs are set up already, for its records and ours
        access_log=False,
        proxy_headers=bool(settings.forwarded_allow_ips),
        forwarded_allow_ips=list(settings.forwarded_allow_ips),
        headers=[("X-Content-Type-Options", "nosniff")],
        timeout_graceful_shutdown=_ANSWER_SECONDS,
    )
    listener = _listen(settings)
    with _exported(settings, app.state.metrics) as metrics_port:
        announce = _ready_line(listener.getsockname()[1], metrics_port, settings, classifier, model_folder)
        _Server(config, lifecycle, announce=first_line(announce, settings)).run(sockets=[listener])


@contextmanager
def _exported(settings: Settings, metrics: Metrics) -> Iterator[int | None]:
    if settings.metrics_port == "off":
        yield None
        return
    try:
        exporter = Exporter(metrics, host=settings.host, port=settings.metrics_port)
    except OSError as error:
        place = f"{settings.host} port {settings.metrics_port}"
        raise CannotListenError(
            f"cannot listen for Prometheus on {place}: {error.strerror}; choose another with --metrics-port"
        ) from error
    try:
        yield exporter.port
    finally:
        exporter.close()


class _Server(uvicorn.Server):
    """Stops in three steps: not ready but answering for a pause, then no new connections, then the end of what is in flight."""

    def __init__(self, config: uvicorn.Config, lifecycle: Lifecycle, *, announce: str) -> None:
        super().__init__(config)
        self._lifecycle, self._announce = lifecycle, announce

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - as uvicorn calls it
        """The first signal begins the pause, the second cuts it short, the third ends everything."""
        if self.should_exit:
            self.force_exit = True
        elif self._lifecycle.draining:
            self.should_exit = True
        else:
            self._lifecycle.begin_drain(asyncio.get_running_loop(), self._stop_listening)

    def _stop_listening(self) -> None:
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        gc.collect()
        gc.set_threshold(*gc.get_threshold()[:2], _FULL_COLLECTION)
        gc.freeze()  # what was made by now stays: to look through it again and again would hold up all requests
        print(self._announce, flush=True)


def _ready_line(
    port: int, metrics_port: int | None, settings: Settings, classifier: Classifier, model_folder: Path
) -> str:
    url = _url(settings.host, port)
    example = f"""curl {url}/predict -H 'Content-Type: application/json' -d '{{"text": "Late goal wins the cup"}}'"""
    chosen = f"{classifier.folder.variant} on {classifier.backend.name}, {classifier.choice.reason}"
    metrics = f"; metrics at {_url(settings.host, metrics_port)}/metrics" if metrics_port else ""
    served = f"{model_folder} at {url}; {chosen}; model {classifier.folder.sha256[:12]}{metrics}"
    return f"distrinews {version('distrinews')} serves {served}; try {example}"


def _url(host: str, port: int) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _listen(settings: Settings) -> socket.socket:
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((settings.host, settings.port), family=family)
    except OSError as error:
        place = f"{settings.host} port {settings.port}"
        message = f"cannot listen on {place}: {error.strerror}; choose others with --host and --port"
        raise CannotListenError(message) from error
