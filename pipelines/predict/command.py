"""The command `distrinews predict`: many texts, by a model folder or a server."""

import os
import re
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, Protocol

from anyio.from_thread import BlockingPortal, start_blocking_portal
from pydantic import Field

from pipelines.predict.input import Given, Input, Item, find_input
from pipelines.predict.output import Layout, Output, begin, go_on, note_of
from server.cli import build, parser
from server.errors import UserError
from server.inference.classifier import Prediction
from server.settings import EngineName
from trainer.config import Names, Settings
from trainer.monitoring.console import Progress, say

if TYPE_CHECKING:
    from concurrent.futures import Future

_PROGRAM = "distrinews predict"


class PredictSettings(Settings):
    input: str | None = None
    """File with the texts: CSV, JSON Lines or plain lines, one text each (.csv, .jsonl, .txt, also .gz, .xz), or - for standard input."""

    input_format: Literal["auto", "csv", "jsonl", "lines"] = "auto"
    """How the input is written: auto goes by the file's ending, and takes standard input as plain lines."""

    text_column: Names = ()
    """Columns that make the text, joined by a space; with commas between names. By default found by the usual names."""

    output: Path | None = None
    """File to write, .csv or .jsonl, or standard output where none is given. It has the input's columns, then the answer; where both have a name, that of the answer begins with predicted_."""

    output_format: Literal["auto", "csv", "jsonl"] = "auto"
    """How the output is written: auto goes by the file's ending, else CSV where the input is CSV, else JSON Lines."""

    bad_rows: Literal["stop", "skip"] = "stop"
    """What to do with a row that cannot be classified: stop with its line and reason, or write it without an answer, with the reason in a column error."""

    in_flight: int = Field(default=4, ge=1, le=64)
    """Requests that a server is asked at a time, each with as many texts as it takes."""

    engine: EngineName = "auto"
    """What runs a model folder; as of distrinews serve."""

    workers: int | None = Field(default=None, ge=1, le=256)
    """Threads that run a model folder; by default one a CPU."""


class Model(Protocol):
    labels: tuple[str, ...]
    identity: dict[str, Any]
    title: str
    texts_at_once: int
    requests_at_once: int

    async def classify(self, texts: Sequence[str]) -> list[Prediction | str]: ...

    async def close(self) -> None: ...


def main(args: list[str] | None = None) -> None:
    """Classify; ends with status 1 when that fails, 2 when a setting is wrong, 130 when stopped by the keyboard."""
    names = list(PredictSettings.model_fields)
    command = parser(
        _PROGRAM,
        "Classify texts by a model folder, in this process, or by a server, whose API key the variable DISTRINEWS_API_KEY holds.",
        {"settings": (PredictSettings, names)},
    )
    command.add_argument(
        "model", metavar="MODEL", help="model folder, or the address of a server, such as http://127.0.0.1:8080"
    )
    command.add_argument("texts", metavar="TEXT", nargs="*", help="texts, instead of --input", default=[])
    command.add_argument("--resume", action="store_true", default=False,
                         help="go on after the last whole row of --output, if it was begun with the same input and model")  # fmt: skip
    flags = vars(command.parse_args(args))
    model, texts, resume = flags.pop("model"), flags.pop("texts"), flags.pop("resume")
    try:
        settings = build(PredictSettings, flags)
        source = _source(settings, texts)
        _check_output(settings, resume=resume)
        _check_model(model, settings)
    except UserError as error:
        command.error(str(error))
    try:
        predict(model, source, settings, resume=resume)
    except UserError as error:
        hint = "" if str(error).startswith("--") else _how_to_go_on(settings)  # it did not even begin
        print(f"{_PROGRAM}: error: {error}{hint}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print(f"{_PROGRAM}: stopped by the keyboard{_how_to_go_on(settings)}", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


def predict(model: str, source: Input | Given, settings: PredictSettings, *, resume: bool) -> None:
    """Classify every row of a source and write it, in order."""
    rows, kind = _with_names(source), _output_kind(settings, source)
    with start_blocking_portal() as portal, _opened(model, settings, portal) as opened:
        layout = Layout(kind, source.names, opened.labels, errors=settings.bad_rows == "skip")
        made_with = {**opened.identity, "text columns": list(settings.text_column)}
        file, done = _output_file(settings.output, layout, made_with, rows, resume=resume)
        quiet = isinstance(source, Given) or (
            settings.output is None and (sys.stdout.isatty() or not sys.stderr.isatty())
        )
        total = None if quiet or source.path is None else sum(1 for _ in source.rows())
        started, tally = time.monotonic(), Counter[str]()
        with file, Progress("predict", total, "rows", start=done, shown=not quiet) as progress:
            output = Output(file, layout)
            for scored in _in_order(rows, opened, portal):
                output.write(_good(scored, source.name, tally, skip=settings.bad_rows == "skip"))
                progress.advance(len(scored))
    if settings.output is not None:
        note_of(settings.output).unlink(missing_ok=True)
        _tell(settings.output, opened.title, tally, done, time.monotonic() - started)


def _with_names(source: Input | Given) -> Iterator[Item]:
    """The rows of a source, of which the first have been read, so that its columns are known."""
    rows, first = source.rows(), []
    for row in rows:
        first.append(row)
        if source.names:
            break
    return chain(first, rows)


@contextmanager
def _opened(model: str, settings: PredictSettings, portal: BlockingPortal) -> Iterator[Model]:
    opened: Model
    if _is_address(model):
        from pipelines.predict.predict_url import UrlModel

        opened = server = UrlModel(model, requests_at_once=settings.in_flight)
        portal.call(server.open)
    else:
        from pipelines.predict.models import FolderModel

        opened = FolderModel(Path(model), **settings.model_dump(include={"engine", "workers"}, exclude_unset=True))
    try:
        yield opened
    finally:
        portal.call(opened.close)


def _output_file(
    path: Path | None, layout: Layout, made_with: Mapping[str, Any], rows: Iterator[Item], *, resume: bool
) -> tuple[IO[bytes], int]:
    if path is None:
        file = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
        file.write(layout.header())
        return file, 0
    if resume and path.is_file():
        return go_on(path, layout, made_with, rows)
    return begin(path, layout, made_with), 0


def _in_order(
    rows: Iterator[Item], model: Model, portal: BlockingPortal
) -> Iterator[list[tuple[Item, Prediction | str]]]:
    """Rows with their answers, in the order of the rows, while later ones are being computed; never many of them."""
    waiting: deque[tuple[list[Item], Future[list[Prediction | str]]]] = deque()
    while chunk := list(islice(rows, model.texts_at_once)):
        texts = [item.text for item in chunk if not item.fault]
        waiting.append((chunk, portal.start_task_soon(model.classify, texts)))
        while len(waiting) >= model.requests_at_once or (waiting and waiting[0][1].done()):
            yield _answered(*waiting.popleft())
    while waiting:
        yield _answered(*waiting.popleft())


def _answered(chunk: Sequence[Item], future: "Future[list[Prediction | str]]") -> list[tuple[Item, Prediction | str]]:
    answers = iter(future.result())
    return [(item, item.fault or next(answers)) for item in chunk]


def _good(
    scored: Sequence[tuple[Item, Prediction | str]], source: str, tally: Counter[str], *, skip: bool
) -> Iterator[tuple[Item, Prediction | str]]:
    """The same rows, counted; with a bad one ends what is written, unless such are skipped."""
    for item, answer in scored:
        if isinstance(answer, str) and not skip:
            raise UserError(
                f"{source}, line {item.line}: {answer}. Mend the row, or pass --bad-rows skip to go on without it"
            )
        tally["bad" if isinstance(answer, str) else answer.label] += 1
        yield item, answer


def _source(settings: PredictSettings, texts: Sequence[str]) -> Input | Given:
    if texts and settings.input:
        raise UserError(f"--input {settings.input}: leave it out, or the texts beside it")
    if texts:
        return Given(texts)
    if settings.input is None and sys.stdin.isatty():
        raise UserError("what to classify? Give texts, or --input FILE, or pipe them in")
    return find_input(settings.input or "-", settings.input_format, settings.text_column)


def _check_model(model: str, settings: PredictSettings) -> None:
    if _is_address(model) and settings.model_fields_set & {"engine", "workers"}:
        raise UserError("--engine and --workers have no meaning for a server: they are for a model folder")


def _is_address(model: str) -> bool:
    return re.match(r"https?://", model) is not None


def _check_output(settings: PredictSettings, *, resume: bool) -> None:
    if settings.output is None:
        if resume:
            raise UserError("--resume: say with --output in which file")
    elif settings.output_format == "auto" and settings.output.suffix not in (".csv", ".jsonl"):
        raise UserError(
            f"--output {settings.output}: its name ends in .csv or .jsonl, or --output-format says how it is written"
        )


def _output_kind(settings: PredictSettings, source: Input | Given) -> Literal["csv", "jsonl"]:
    if settings.output_format != "auto":
        return settings.output_format
    like = settings.output.suffix if settings.output else f".{source.kind}"
    return "csv" if like == ".csv" else "jsonl"


def _how_to_go_on(settings: PredictSettings) -> str:
    there = settings.output is not None and note_of(settings.output).is_file()
    return f"; what is finished stands in {settings.output}, go on with --resume" if there else ""


def _tell(output: Path, model: str, tally: Counter[str], done: int, seconds: float) -> None:
    rows = tally.total()
    listed = ", ".join(f"{name} {count:,}" for name, count in tally.most_common(20))
    after = f" after the {done:,} that were there" if done else ""
    say(
        f"predict: {rows:,} rows{after} in {seconds:.1f} s ({rows / max(seconds, 1e-9):,.0f} rows/s) by {model}{': ' if listed else ''}{listed}"
    )
    say(f"predict: {output}")
