"""The command `distrinews serve`."""

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from pydantic_settings import CliPositionalArg

from server.cli import Command, fail, run_command
from server.errors import UserError
from server.observability.logs import RequestRecord, start_logs
from server.settings import Settings

if TYPE_CHECKING:
    from server.http.auth import Auth
    from server.inference.classifier import Classifier

PROGRAM = "distrinews serve"


class Serve(Command, Settings):
    """Serve a model folder over HTTP. Each flag is also a variable, such as DISTRINEWS_PORT for --port; the flag wins."""

    model_folder: CliPositionalArg[Path]
    """Folder with the model, as distrinews run writes it: onnx/model.json and the files that it names."""

    def run(self) -> None:
        """Serves until SIGTERM or SIGINT; ends with status 0 then, 1 if it cannot serve, 2 if a setting is wrong."""
        signal.signal(signal.SIGTERM, _stop)
        signal.signal(signal.SIGINT, _stop)
        start_logs(self)
        with ThreadPoolExecutor(1) as threads:
            loading = threads.submit(_load, self)
            # The libraries take half a second to import, and the model as long to compile: side by side.
            from server.http.api_keys import ApiKeysError
            from server.http.auth import Auth

            try:
                auth = Auth.from_settings(self)
                classifier = loading.result()
            except ApiKeysError as error:
                fail(PROGRAM, error, status=2)
            except OSError as error:  # a file that may not be read, which it names
                raise UserError(str(error)) from error
        try:
            with _traces(self) as on_request_end:
                _serve(classifier, auth, self, on_request_end)
        finally:
            classifier.close()


def _load(settings: Serve) -> "Classifier":
    from server.inference.backends import choose
    from server.inference.classifier import Classifier

    return Classifier(choose(settings.model_folder, settings.engine, workers=settings.workers), settings)


def _serve(
    classifier: "Classifier", auth: "Auth", settings: Serve, on_request_end: list[Callable[[RequestRecord], None]]
) -> None:
    from server.app import create_app
    from server.http.lifecycle import Lifecycle
    from server.http.server import run

    lifecycle = Lifecycle(classifier, drain_seconds=settings.drain_seconds)
    app = create_app(classifier, lifecycle, settings, auth, on_request_end=on_request_end)
    folder = classifier.folder
    model = f"{folder.variant} on {classifier.backend.name}, {classifier.choice.reason}; model {folder.sha256[:12]}"
    run(app, lifecycle, settings, folder=str(settings.model_folder), model=model)


@contextmanager
def _traces(settings: Serve) -> Iterator[list[Callable[[RequestRecord], None]]]:
    if not settings.traces:
        yield []
        return
    from server.observability.tracing import traced  # an extra

    with ExitStack() as stack:
        try:
            make_spans = stack.enter_context(traced())
        except ValueError as error:
            fail(PROGRAM, UserError(f"--traces cannot be set up as the OTEL_ variables require: {error}"), status=2)
        yield [make_spans]


def _stop(*_: object) -> NoReturn:
    raise SystemExit(0)


if __name__ == "__main__":
    run_command(Serve, prog=PROGRAM)
