"""The output of predict: rows of the input with their answers, written anew or resumed after the last complete row."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, Self

from pipelines.predict.input import Item
from pipelines.predict.models import Answer
from server.errors import UserError
from server.files import write_json

Kind = Literal["csv", "jsonl"]
_DIGITS = 6  # of a probability


@dataclass(frozen=True)
class OutputFormat:
    kind: Kind
    names: Sequence[str]
    """Columns of the input."""
    labels: Sequence[str]
    errors: bool
    """Adds a column with the reason why a row has no answer."""

    def header(self) -> bytes:
        """Returns the first line of a CSV file; JSON Lines have none."""
        return _bytes(f"{_csv([*self.names, *self._answer_names()])}\n") if self.kind == "csv" else b""

    def input_part(self, item: Item) -> bytes:
        """Returns a row up to its answer, by which an earlier output shows that the input is still the same."""
        self._check(item)
        if self.kind == "csv":
            return _bytes(_csv([_cell(item.columns.get(name)) for name in self.names]) + ",")
        inner = item.json or json.dumps(dict(item.columns), ensure_ascii=False)[1:-1]
        return _bytes("{" + inner + ", " * bool(inner))

    def answer_part(self, answer: Answer) -> bytes:
        values = self._values(answer)
        if self.kind == "csv":
            return _bytes(_csv([_cell(value) for value in values]) + "\n")
        return _bytes(json.dumps(dict(zip(self._answer_names(), values, strict=True)), ensure_ascii=False)[1:] + "\n")

    def _answer_names(self) -> list[str]:
        each = [f"probability_{label}" for label in self.labels] if self.kind == "csv" else ["probabilities"]
        return [self._free(name) for name in ("label", "confidence", *each, "truncated", *(["error"] * self.errors))]

    def _free(self, name: str) -> str:
        while name in self.names:
            name = f"predicted_{name}"
        return name

    def _values(self, answer: Answer) -> list[Any]:
        error = [answer if isinstance(answer, str) else None] * self.errors
        if isinstance(answer, str):
            return [None, None, *([None] * (len(self.labels) if self.kind == "csv" else 1)), None, *error]
        found = {label: round(answer.probabilities[label], _DIGITS) for label in self.labels}
        each = list(found.values()) if self.kind == "csv" else [found]
        return [answer.label, round(answer.confidence, _DIGITS), *each, answer.truncated, *error]

    def _check(self, item: Item) -> None:
        taken = set(self._answer_names()) if self.kind == "jsonl" else None
        for name in item.columns:
            if name not in self.names and (taken is None or name in taken):
                raise UserError(
                    f"line {item.line} of the input has the column {name!r}, which its first row has not; "
                    + ("rename it" if taken else "write JSON Lines instead, with --output-format jsonl")
                )


class Output:
    """A file that grows by whole rows, or standard output where the path is None."""

    def __init__(self, path: Path | None, file: IO[bytes], output_format: OutputFormat) -> None:
        self._path, self._file, self._format = path, file, output_format

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with writing(self._path):
            self._file.close()

    def write(self, rows: Iterable[tuple[Item, Answer]]) -> None:
        for item, answer in rows:
            row = self._format.input_part(item) + self._format.answer_part(answer)
            with writing(self._path):
                self._file.write(row)
        with writing(self._path):
            self._file.flush()


@contextmanager
def writing(path: Path | None) -> Iterator[None]:
    """Turns the error of a full disk, or of a file that may not be written, into a UserError."""
    try:
        yield
    except OSError as error:
        if path is None and isinstance(error, BrokenPipeError):
            raise  # the reader has left
        place = f"--output {path}" if path else "standard output"
        raise UserError(f"{place}: cannot be written: {error.strerror}") from error


def create(path: Path, output_format: OutputFormat, provenance: Mapping[str, Any]) -> IO[bytes]:
    """Opens a new output, with its provenance in a file beside it; UserError when there is one already."""
    if path.is_file():
        raise UserError(f"--output {path}: exists; resume it with --resume, or remove it")
    with writing(path):
        if not path.exists():  # or it is a pipe or a device
            write_json(provenance_file(path), provenance)
        file = path.open("wb")
    file.write(output_format.header())
    return file


def resume(
    path: Path, output_format: OutputFormat, provenance: Mapping[str, Any], items: Iterator[Item]
) -> tuple[IO[bytes], int]:
    """Opens an output after its last complete row, and returns how many it has; takes as many from `items`.

    UserError when the input, the columns or the model are not those that it was begun with.
    """
    _check_provenance(path, provenance)
    rows = end = 0
    finished = not provenance_file(path).is_file()
    with path.open("rb") as file:
        records = _complete_records(file, output_format.kind)
        if output_format.header():
            end = len(header := next(records, b""))
            if header not in (output_format.header(), b""):
                raise UserError(f"--resume: {path} has other columns than this command would write: {_excerpt(header)}")
        for record in records:
            item = next(items, None)
            if item is None:
                raise UserError(f"--resume: {path} has more rows than the input: the input has changed")
            if not record.startswith(output_format.input_part(item)):
                raise UserError(
                    f"--resume: row {rows + 1:,} of {path} is not line {item.line:,} of the input, which has changed: {_excerpt(record)}"
                )
            rows, end = rows + 1, end + len(record)
    if finished and (more := next(items, None)):
        raise UserError(
            f"--resume: {path} is finished, but the input has a line {more.line:,}: it has changed; remove {path} to start again"
        )
    with writing(path):
        whole = path.open("r+b")
        whole.truncate(end)
        whole.seek(end)
    if not end:
        whole.write(output_format.header())
    return whole, rows


def provenance_file(path: Path) -> Path:
    """Returns the path of the file beside an unfinished output that holds its provenance."""
    return path.with_name(f"{path.name}.resume.json")


def _check_provenance(path: Path, provenance: Mapping[str, Any]) -> None:
    try:
        note = json.loads(provenance_file(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return  # it is finished; rows after it are refused above
    except ValueError as error:
        raise UserError(
            f"--resume: {provenance_file(path)} is damaged ({error}); remove it and {path} to start again"
        ) from error
    for name, value in provenance.items():
        if note.get(name, value) != value:
            raise UserError(f"--resume: {path} was begun with {name} {note[name]}, which is now {value}")


def _complete_records(file: IO[bytes], kind: Kind) -> Iterator[bytes]:
    """Yields the complete records; in CSV, one may have several lines within quotes."""
    lines = b""
    for line in file:
        lines += line
        if lines.endswith(b"\n") and (kind == "jsonl" or lines.count(b'"') % 2 == 0):
            yield lines
            lines = b""


def _cell(value: object) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False)


def _csv(fields: Sequence[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(fields)
    return line.getvalue()


def _bytes(text: str) -> bytes:
    return text.encode(errors="backslashreplace")  # what was not UTF-8; in JSON, it means the same


def _excerpt(record: bytes) -> str:
    return repr(record[:60].decode(errors="replace"))
