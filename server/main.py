"""The command `distrinews serve`."""

import asyncio
import difflib
import re
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import NoReturn

import uvicorn
from pydantic import ValidationError
from pydantic_settings import CliApp, CliPositionalArg, SettingsConfigDict, SettingsError

from server.api import create_app
from server.classifier import Classifier
from server.engine import load_engine, wanted_variants, why
from server.http_protocol import BoundedProtocol
from server.lifecycle import Lifecycle
from server.logs import first_line, start_logs
from server.metrics import Exporter, Metrics
from server.model_folder import ModelFolderError, read_model_folder
from server.settings import PREFIX, Settings

_PROGRAM = "distrinews serve"
_ANSWER_SECONDS = 20  # for what is in flight: with the pause before, within the 30 s after which Kubernetes kills


class Serve(Settings):
    """Serve a model folder over HTTP. Each flag is also a variable, such as DISTRINEWS_PORT for --port; the flag wins."""

    model_config = SettingsConfigDict(
        cli_prog_name=_PROGRAM, cli_kebab_case=True, cli_avoid_json=True, cli_exit_on_error=False
    )

    model_folder: CliPositionalArg[Path]
    """Folder with the model, as distrinews run writes it: onnx/model.json and what that names."""


def main(args: list[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT; ends with status 0 then, 1 when it cannot serve, 2 when a setting is wrong."""
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    settings = _read_settings(args)
    start_logs(settings)
    try:
        folder = read_model_folder(settings.model_folder, wanted_variants(settings.engine))
        engine = load_engine(folder, workers=settings.workers)
        classifier = Classifier(folder, engine, settings)
    except (ModelFolderError, OSError) as error:  # OSError: a file that may not be read, which it names
        _fail(str(error), status=1)
    try:
        _serve(classifier, settings)
    finally:
        classifier.close()


def _serve(classifier: Classifier, settings: Serve) -> None:
    lifecycle = Lifecycle(classifier, drain_seconds=settings.drain_seconds)
    app = create_app(classifier, lifecycle, settings)
    config = uvicorn.Config(
        app,
        http=BoundedProtocol,
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
        announce = _ready_line(listener.getsockname()[1], metrics_port, settings, classifier)
        _Server(config, lifecycle, announce=first_line(announce, settings)).run(sockets=[listener])


@contextmanager
def _exported(settings: Serve, metrics: Metrics) -> Iterator[int | None]:
    if settings.metrics_port == "off":
        yield None
        return
    try:
        exporter = Exporter(metrics, host=settings.host, port=settings.metrics_port)
    except OSError as error:
        place = f"{settings.host} port {settings.metrics_port}"
        _fail(
            f"cannot listen for Prometheus on {place}: {error.strerror}; choose another with --metrics-port", status=1
        )
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
        print(self._announce, flush=True)


def _ready_line(port: int, metrics_port: int | None, settings: Serve, classifier: Classifier) -> str:
    url = _url(settings.host, port)
    example = f"""curl {url}/predict -H 'Content-Type: application/json' -d '{{"text": "Late goal wins the cup"}}'"""
    variant = classifier.folder.variant
    chosen = f"{variant} on {classifier.engine.name}, {why(settings.engine, variant)}"
    metrics = f"; metrics at {_url(settings.host, metrics_port)}/metrics" if metrics_port else ""
    served = f"{settings.model_folder} at {url}; {chosen}; model {classifier.folder.sha256[:12]}{metrics}"
    return f"distrinews {version('distrinews')} serves {served}; try {example}"


def _url(host: str, port: int) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _listen(settings: Serve) -> socket.socket:
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((settings.host, settings.port), family=family)
    except OSError as error:
        place = f"{settings.host} port {settings.port}"
        _fail(f"cannot listen on {place}: {error.strerror}; choose others with --host and --port", status=1)


def _read_settings(args: list[str] | None) -> Serve:
    try:
        return CliApp.run(Serve, cli_args=args)
    except SettingsError as error:
        _fail(_explain_flags(str(error)), status=2)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:
            _fail(message, status=2)
        _fail(_explain_value(str(first["loc"][0]), first["input"], message), status=2)


def _explain_value(name: str, value: object, reason: str) -> str:
    variable = PREFIX + name.upper()
    if link := re.fullmatch(r"DISTRINEWS_(?:(\w+)_)?PORT=\w+://.*", f"{variable}={value}"):
        service = "-".join(filter(None, ("distrinews", (link[1] or "").lower().replace("_", "-"))))
        return (
            f"{variable}, {value!r}: is how Kubernetes tells pods of the Service {service}, not a port: "
            f"put enableServiceLinks: false into the pod's spec, or set {variable} there"
        )
    return f"--{name.replace('_', '-')} or {variable}{' or PORT' if name == 'port' else ''}, {value!r}: {reason}"


def _explain_flags(message: str) -> str:
    flags = [f"--{name.replace('_', '-')}" for name in Settings.model_fields]
    for word in message.split():
        near = difflib.get_close_matches(word.partition("=")[0], flags, n=1) if word.startswith("--") else []
        if near and near[0] not in message:
            message += f"; did you mean {near[0]}?"
    return f"{message.removeprefix('error parsing CLI: ')} (--help lists all)"


def _stop(*_: object) -> NoReturn:
    raise SystemExit(0)


def _fail(message: str, *, status: int) -> NoReturn:
    print(f"{_PROGRAM}: error: {message}", file=sys.stderr, flush=True)
    raise SystemExit(status)


if __name__ == "__main__":
    main()
