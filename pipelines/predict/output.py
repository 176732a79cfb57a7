"""The rows that predict writes: what the input had, then the answer; and where an earlier, unfinished output goes on."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from pipelines.predict.input import Item
from server.errors import UserError
from server.files import write_json
from server.inference.classifier import Prediction

Kind = Literal["csv", "jsonl"]
_DIGITS = 6  # of a probability


@dataclass(frozen=True)
class Layout:
    kind: Kind
    names: Sequence[str]
    """Columns of the input."""
    labels: Sequence[str]
    errors: bool
    """Whether each row says why it has no answer, if it has none."""

    def header(self) -> bytes:
        """The first line of a CSV file; JSON Lines have none."""
        return _bytes(f"{_csv([*self.names, *self._answer_names()])}\n") if self.kind == "csv" else b""

    def input_part(self, item: Item) -> bytes:
        """A row up to its answer: in an earlier output, it tells whether the input is still the same."""
        self._check(item)
        if self.kind == "csv":
            return _bytes(_csv([_cell(item.columns.get(name)) for name in self.names]) + ",")
        inner = json.dumps(dict(item.columns), ensure_ascii=False)[1:-1]
        return _bytes("{" + inner + ", " * bool(inner))

    def answer_part(self, answer: Prediction | str) -> bytes:
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

    def _values(self, answer: Prediction | str) -> list[Any]:
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
    """A file that grows by whole rows, or standard output."""

    def __init__(self, file: IO[bytes], layout: Layout) -> None:
        self._file, self._layout = file, layout

    def write(self, rows: Iterable[tuple[Item, Prediction | str]]) -> None:
        for item, answer in rows:
            self._file.write(self._layout.input_part(item) + self._layout.answer_part(answer))
        self._file.flush()


def begin(path: Path, layout: Layout, made_with: Mapping[str, Any]) -> IO[bytes]:
    """A new output, and beside it a note of what it is made with; UserError when there is one already."""
    if path.is_file():
        raise UserError(f"--output {path}: exists; --resume goes on with it, or remove it to start anew")
    try:
        if not path.exists():  # or it is a pipe or a device
            write_json(note_of(path), made_with)
        file = path.open("wb")
    except OSError as error:
        raise UserError(f"--output {path}: cannot be written: {error.strerror}") from error
    file.write(layout.header())
    return file


def go_on(path: Path, layout: Layout, made_with: Mapping[str, Any], items: Iterator[Item]) -> tuple[IO[bytes], int]:
    """The output after its last whole row, and how many rows it has; `items` has been moved on by as many.

    UserError when the input, the columns or the model are not those that it was begun with.
    """
    _check_note(path, made_with)
    rows = end = 0
    finished = not note_of(path).is_file()
    with path.open("rb") as file:
        records = _whole_records(file, layout.kind)
        if layout.header():
            end = len(header := next(records, b""))
            if header not in (layout.header(), b""):
                raise UserError(f"--resume: {path} has other columns than this command would write: {_shown(header)}")
        for record in records:
            item = next(items, None)
            if item is None:
                raise UserError(f"--resume: {path} has more rows than the input: the input has changed")
            if not record.startswith(layout.input_part(item)):
                raise UserError(
                    f"--resume: row {rows + 1:,} of {path} is not line {item.line:,} of the input, which has changed: {_shown(record)}"
                )
            rows, end = rows + 1, end + len(record)
    if finished and (more := next(items, None)):
        raise UserError(
            f"--resume: {path} is finished, yet the input goes on at line {more.line:,}: it has changed; remove {path} to start anew"
        )
    whole = path.open("r+b")
    whole.truncate(end)
    whole.seek(end)
    if not end:
        whole.write(layout.header())
    return whole, rows


def note_of(path: Path) -> Path:
    """The file beside an unfinished output that says what it is made with."""
    return path.with_name(f"{path.name}.resume.json")


def _check_note(path: Path, made_with: Mapping[str, Any]) -> None:
    try:
        note = json.loads(note_of(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return  # it was finished: main refuses to add to it
    except ValueError as error:
        raise UserError(
            f"--resume: {note_of(path)} is damaged ({error}); remove it and {path} to start anew"
        ) from error
    for name, value in made_with.items():
        if note.get(name) != value:
            raise UserError(f"--resume: {path} was begun with {name} {note.get(name)}, which is now {value}")


def _whole_records(file: IO[bytes], kind: Kind) -> Iterator[bytes]:
    """Records that are there to their end; in CSV, a line within quotes is none."""
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


def _shown(record: bytes) -> str:
    return repr(record[:60].decode(errors="replace"))
