"""The command `distrinews serve`."""

import difflib
import re
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from pydantic import ValidationError
from pydantic_settings import CliApp, CliPositionalArg, SettingsConfigDict, SettingsError

from server.errors import UserError
from server.observability.logs import RequestRecord, start_logs
from server.settings import PREFIX, Settings

if TYPE_CHECKING:
    from server.http.auth import Auth
    from server.inference.classifier import Classifier

_PROGRAM = "distrinews serve"


class Serve(Settings):
    """Serve a model folder over HTTP. Each flag is also a variable, such as DISTRINEWS_PORT for --port; the flag wins."""

    model_config = SettingsConfigDict(
        cli_prog_name=_PROGRAM, cli_kebab_case=True, cli_avoid_json=True, cli_exit_on_error=False
    )

    model_folder: CliPositionalArg[Path]
    """Folder with the model, as distrinews run writes it: onnx/model.json and what that names."""


def main(args: list[str] | None = None) -> None:
    """Serves until SIGTERM or SIGINT; ends with status 0 then, 1 if it cannot serve, 2 if a setting is wrong."""
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    settings = _read_settings(args)
    start_logs(settings)
    with ThreadPoolExecutor(1) as threads:
        loading = threads.submit(_load, settings)
        # The libraries take half a second to import, and the model as long to compile: side by side.
        from server.http.api_keys import ApiKeysError
        from server.http.auth import Auth

        try:
            auth = Auth.from_settings(settings)
            classifier = loading.result()
        except ApiKeysError as error:
            _fail(str(error), status=2)
        except (UserError, OSError) as error:  # OSError: a file that may not be read, which it names
            _fail(str(error), status=1)
    try:
        with _traces(settings) as on_request_end:
            _serve(classifier, auth, settings, on_request_end)
    except UserError as error:
        _fail(str(error), status=1)
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
    from server.http.server import run
    from server.lifecycle import Lifecycle

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
            _fail(f"--traces cannot be set up as the OTEL_ variables say: {error}", status=2)
        yield [make_spans]


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
