"""The command `distrinews predict`: classifies many texts by a model folder or a server."""

import os
import re
import stat
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import CliPositionalArg

from pipelines.predict.input import Input, Item, TextInput, find_input
from pipelines.predict.models import Answer, FolderModel, Model, ServerModel
from pipelines.predict.output import Output, OutputFormat, create, provenance_file, resume
from server.cli import Command, Names, Words, fail
from server.errors import UserError
from server.http.client import Client, read_api_key
from server.settings import EngineName
from trainer.monitoring.console import Progress, print0

if TYPE_CHECKING:
    from concurrent.futures import Future

_PROGRAM = "distrinews predict"
Scored = tuple[Item, Answer]


class Predict(Command):
    """Classify texts by a model folder, in this process, or by a server, whose API key the variable DISTRINEWS_API_KEY holds."""

    model: CliPositionalArg[str]
    """Model folder, or the address of a server, such as http://127.0.0.1:8080."""

    texts: CliPositionalArg[Words] = ()
    """Texts, instead of --input."""

    input: str | None = None
    """File with the texts: CSV, JSON Lines or plain lines, one text each (.csv, .jsonl, .txt, also .gz, .xz), or - for standard input."""

    input_format: Literal["auto", "csv", "jsonl", "lines"] = "auto"
    """Format of the input: auto goes by the file's ending, and reads standard input as plain lines."""

    text_column: Names = ()
    """Columns that make the text, joined by a space; with commas between names. By default found by the usual names."""

    output: Path | None = None
    """File to write, .csv or .jsonl, or standard output where none is given. It has the input's columns, then the answer; where both have a name, that of the answer begins with predicted_."""

    output_format: Literal["auto", "csv", "jsonl"] = "auto"
    """Format of the output: auto goes by the file's ending, else CSV where the input is CSV, else JSON Lines."""

    resume: bool = False
    """Continue after the last complete row of --output, if it was begun with the same input and model."""

    bad_rows: Literal["stop", "skip"] = "stop"
    """Treatment of a row that cannot be classified: stop with its line and reason, or write it without an answer, with the reason in a column error."""

    in_flight: int = Field(default=4, ge=1, le=64)
    """Requests to a server at the same time, each with as many texts as it takes."""

    api_key_file: Path | None = None
    """File with the server's API key. By default the variable DISTRINEWS_API_KEY."""

    engine: EngineName = "auto"
    """Library that runs a model folder, as for distrinews serve."""

    workers: int | None = Field(default=None, ge=1, le=256)
    """Threads that run a model folder; by default one a CPU."""

    @model_validator(mode="after")
    def _settings_agree(self) -> Self:
        given, address = self.model_fields_set, _is_address(self.model)
        if self.texts and self.input:
            raise ValueError(f"--input {self.input}: leave it out, or the texts beside it")
        if self.resume and self.output is None:
            raise ValueError("--resume: name the file with --output")
        if self.output and self.output_format == "auto" and self.output.suffix not in (".csv", ".jsonl"):
            raise ValueError(f"--output {self.output}: end its name in .csv or .jsonl, or set --output-format")
        if address and given & {"engine", "workers"}:
            raise ValueError("--engine and --workers have no meaning for a server: they are for a model folder")
        if not address and given & {"in_flight", "api_key_file"}:
            raise ValueError("--in-flight and --api-key-file have no meaning for a model folder: they are for a server")
        return self

    def run(self) -> int | None:
        """Classifies; returns status 1 where that fails, 2 for an input that cannot be read, 130 for the keyboard."""
        try:
            source = _source(self)
        except UserError as error:
            fail(_PROGRAM, error, status=2)
        try:
            predict(source, self)
        except KeyboardInterrupt:
            print(f"{_PROGRAM}: stopped by the keyboard{_how_to_resume(self)}", file=sys.stderr)
            return 130
        return None


def predict(source: Input | TextInput, settings: Predict) -> None:
    """Classifies every row of a source and writes it, in order."""
    _refuse_own_input(source, settings.output)
    with closing(_open_model(settings)) as opened, closing(source.rows()) as all_rows:
        if isinstance(source, Input):
            source.text_columns = replace(source.text_columns, trained=tuple(opened.text_columns))
        rows, kind = _with_names(source, all_rows), _output_kind(settings, source)
        output_format = OutputFormat(kind, source.names, opened.labels, errors=settings.bad_rows == "skip")
        provenance = {**opened.identity, "text columns": list(settings.text_column), "--bad-rows": settings.bad_rows}
        file, done = _open_output(settings, output_format, provenance, rows)
        quiet = isinstance(source, TextInput) or (
            settings.output is None and (sys.stdout.isatty() or not sys.stderr.isatty())
        )
        if settings.output and source.kind != "lines" and source.texts:
            print0(f"predict: text from {' and '.join(map(repr, source.texts))}")
        started, counts = time.monotonic(), Counter[str]()
        try:
            with (
                Output(settings.output, file, output_format) as output,
                Progress("predict", None if quiet else source.count(), "rows", start=done, shown=not quiet) as progress,
            ):
                for scored in ordered_answers(rows, opened):
                    output.write(_checked(scored, source.name, counts, skip=settings.bad_rows == "skip"))
                    progress.advance(len(scored))
        except UserError as error:
            raise UserError(f"{error}{_how_to_resume(settings)}") from None
    if settings.output is not None:
        provenance_file(settings.output).unlink(missing_ok=True)
        _print_summary(settings.output, opened.title, counts, done, time.monotonic() - started)


def ordered_answers(rows: Iterator[Item], model: Model) -> Iterator[list[Scored]]:
    """Yields rows with their answers, in the order of the rows, while later ones are computed; holds only a few of them."""
    waiting: deque[tuple[list[Item], Future[list[Answer]]]] = deque()
    while chunk := list(islice(rows, model.texts_at_once)):
        waiting.append((chunk, model.submit([item.text for item in chunk if not item.fault])))
        while len(waiting) >= model.requests_at_once or (waiting and waiting[0][1].done()):
            yield _answered(*waiting.popleft())
    while waiting:
        yield _answered(*waiting.popleft())


def _answered(chunk: Sequence[Item], future: "Future[list[Answer]]") -> list[Scored]:
    answers = iter(future.result())
    return [(item, item.fault or next(answers)) for item in chunk]


def _checked(scored: Sequence[Scored], source: str, counts: Counter[str], *, skip: bool) -> Iterator[Scored]:
    """Yields the same rows, counted; stops with UserError at a bad one, unless such are skipped."""
    for item, answer in scored:
        if isinstance(answer, str) and not skip:
            raise UserError(f"{source}, line {item.line}: {answer}. Fix the row, or start again with --bad-rows skip, which leaves such rows without an answer")  # fmt: skip
        counts["bad" if isinstance(answer, str) else answer.label] += 1
        yield item, answer


def _with_names(source: Input | TextInput, rows: Iterator[Item]) -> Iterator[Item]:
    """Yields the rows of a source; reads the first ones now, so that its columns are known."""
    first = []
    for row in rows:
        first.append(row)
        if source.names:
            break
    return chain(first, rows)


def _refuse_own_input(source: Input | TextInput, output: Path | None) -> None:
    """Refuses an output that is the input, too: it would be lost, or grow for ever."""
    if isinstance(source, TextInput) or not (output.exists() if output else sys.stdout):
        return
    read = source.path.stat() if source.path else os.fstat(0)
    written = output.stat() if output else os.fstat(1)
    if stat.S_ISREG(read.st_mode) and os.path.samestat(read, written):
        raise UserError(
            f"{f'--output {output}' if output else 'standard output'}: is the input, too; write to another file"
        )


def _open_model(settings: Predict) -> Model:
    if not _is_address(settings.model):
        chosen = settings.model_dump(include={"engine", "workers"}, exclude_unset=True)
        return FolderModel(Path(settings.model), **chosen)
    client = Client(
        settings.model,
        api_key=read_api_key(settings.api_key_file),
        on_retry=lambda line: print(line, file=sys.stderr),
    )
    return ServerModel(client, requests_at_once=settings.in_flight)


def _open_output(
    settings: Predict, output_format: OutputFormat, provenance: Mapping[str, Any], rows: Iterator[Item]
) -> tuple[IO[bytes], int]:
    """Opens the output; returns how many rows it has already, which it takes from `rows`."""
    if settings.output is None:
        if sys.stdout is None:
            raise UserError("standard output is closed: name a file with --output")
        file = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
        file.write(output_format.header())
        return file, 0
    if settings.resume and settings.output.is_file():
        return resume(settings.output, output_format, provenance, rows)
    return create(settings.output, output_format, provenance), 0


def _source(settings: Predict) -> Input | TextInput:
    if settings.texts:
        return TextInput(settings.texts)
    if settings.input in (None, "-") and (sys.stdin is None or (settings.input is None and sys.stdin.isatty())):
        raise UserError("nothing to classify: give texts, or --input FILE, or pipe them in")
    return find_input(settings.input or "-", settings.input_format, settings.text_column)


def _is_address(model: str) -> bool:
    return re.match(r"https?://", model) is not None


def _output_kind(settings: Predict, source: Input | TextInput) -> Literal["csv", "jsonl"]:
    if settings.output_format != "auto":
        return settings.output_format
    like = settings.output.suffix if settings.output else f".{source.kind}"
    return "csv" if like == ".csv" else "jsonl"


def _how_to_resume(settings: Predict) -> str:
    begun = settings.output is not None and provenance_file(settings.output).is_file()
    return f"; the rows so far are in {settings.output}: continue with --resume" if begun else ""


def _print_summary(output: Path, model: str, counts: Counter[str], done: int, seconds: float) -> None:
    rows = counts.total()
    listed = ", ".join(f"{name} {count:,}" for name, count in counts.most_common(20))
    after = f" after the {done:,} that were there" if done else ""
    print0(
        f"predict: {rows:,} rows{after} in {seconds:.1f} s ({rows / max(seconds, 1e-9):,.0f} rows/s) by {model}{': ' if listed else ''}{listed}"
    )
    print0(f"predict: {output}")
