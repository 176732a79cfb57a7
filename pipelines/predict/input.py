"""The input of predict: rows from a file, standard input or the command line, with all their columns."""

import io
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from server.errors import UserError
from trainer.data.columns import BadRow, Columns, find_text_columns, join_text
from trainer.data.tables import csv_records, decoded, decompressing, is_ag_news, json_record, open_text

Kind = Literal["csv", "jsonl", "lines"]
_ENDINGS: dict[str, Kind] = {".csv": "csv", ".jsonl": "jsonl", ".json": "jsonl", ".txt": "lines"}


@dataclass(frozen=True)
class Item:
    line: int
    text: str
    columns: Mapping[str, Any]
    """The row of the input, in its order."""
    json: str = ""
    """The row as JSON Lines has it, which is written as it was read: numbers may have more digits than a double."""
    fault: str = ""
    """The reason why there is nothing to classify."""


@dataclass
class Input:
    """A file or standard input; `names` are its columns, known once a row has been read."""

    name: str
    kind: Kind
    text_columns: tuple[str, ...]
    path: Path | None = None
    """None is standard input."""
    names: Sequence[str] = field(default_factory=tuple)

    def rows(self) -> Iterator[Item]:
        """Yields all rows; UserError when the input cannot be read or lacks a text column."""
        try:
            if self.path is None:
                yield from self._read(decoded(sys.stdin.buffer, self.name))
            else:
                with decompressing(self.path), open_text(self.path) as file:
                    yield from self._read(file)
        except OSError as error:
            raise UserError(f"{f'--input {self.path}' if self.path else self.name}: cannot be read: {error.strerror or error}") from error

    def count(self) -> int | None:
        """Counts the rows of a file; None for a pipe, which can be read once only."""
        return sum(1 for _ in self.rows()) if self.path and self.path.is_file() else None

    def _read(self, file: io.TextIOWrapper) -> Iterator[Item]:
        return {"csv": self._csv, "jsonl": self._json_lines, "lines": self._lines}[self.kind](file)

    def _lines(self, file: io.TextIOWrapper) -> Iterator[Item]:
        self.names = ("text",)
        file.reconfigure(newline="\n")  # a lone carriage return ends no line, as other programs count them
        for line, text in enumerate(file, start=1):
            yield _item({"text": text.rstrip("\r\n")}, self.names, line)

    def _csv(self, file: Iterable[str]) -> Iterator[Item]:
        records = csv_records(file)
        line, first = next(records, (1, None))
        if first is None:
            raise UserError(f"{self.name}: is empty; expected a header line, or rows of class, title, description")
        if isinstance(first, BadRow):
            raise UserError(f"{self.name}, line {line}: {first.reason}: {first.detail}")
        columns = Columns(self.text_columns)
        if is_ag_news(first, columns):
            self.names, records = ("class", "title", "description"), chain([(line, first)], records)
        else:
            self.names = [name.strip() for name in first]
        twice = [name for name in self.names if list(self.names).count(name) > 1]
        if twice:
            raise UserError(f"{self.name}: two columns are called {twice[0]!r}; rename all but one")
        texts = find_text_columns(self.name, columns, self.names)
        for line, fields in records:
            if isinstance(fields, BadRow):
                yield Item(line, "", {}, fault=f"{fields.reason}: {fields.detail}")
            elif len(fields) != len(self.names):
                fault = f"wrong number of fields: {len(fields)} fields where {len(self.names)} are expected"
                yield Item(line, "", {}, fault=fault)
            else:
                yield _item(dict(zip(self.names, fields, strict=True)), texts, line)

    def _json_lines(self, file: Iterable[str]) -> Iterator[Item]:
        texts: tuple[str, ...] = ()
        for line, source in enumerate(file, start=1):
            if not source.strip():
                continue
            record = _json_record(source, line)
            if isinstance(record, BadRow):
                yield Item(line, "", {}, fault=f"{record.reason}: {record.detail}")
                continue
            if not texts:
                self.names = list(record)
                texts = find_text_columns(f"{self.name}, line {line}", Columns(self.text_columns), self.names)
            yield replace(_item(record, texts, line), json=source.strip()[1:-1].strip())


@dataclass
class TextInput:
    """Texts of the command line, as rows."""

    texts: Sequence[str]
    name: str = "the command line"
    kind: Kind = "lines"
    path: Path | None = None
    names: Sequence[str] = ("text",)

    def rows(self) -> Iterator[Item]:
        return (_item({"text": text}, self.names, number) for number, text in enumerate(self.texts, start=1))

    def count(self) -> int:
        return len(self.texts)


def find_input(source: str, kind: Kind | Literal["auto"], text_columns: tuple[str, ...]) -> Input:
    """Finds the file that --input names, and its format; UserError when there is none."""
    if source == "-":
        return Input("standard input", "lines" if kind == "auto" else kind, text_columns)
    path = Path(source)
    if path.is_dir():
        raise UserError(f"--input {source}: is a folder; name one of its files")
    if kind == "auto":
        suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in (".gz", ".xz")]
        if not suffixes or suffixes[-1] not in _ENDINGS:
            known = ", ".join(_ENDINGS)
            raise UserError(
                f"--input {source}: name its --input-format; known endings are {known}, also with .gz or .xz, "
                "and other formats have to be converted"
            )
        kind = _ENDINGS[suffixes[-1]]
    if text_columns and kind == "lines":
        raise UserError("--text-column has no meaning for plain lines, each of which is a text")
    if not path.exists():
        raise UserError(f"--input {source}: no such file")
    return Input(source, kind, text_columns, path)


def _json_record(source: str, line: int) -> dict[str, Any] | BadRow:
    """Reads a row of JSON Lines; NaN and Infinity, which Python's library takes, are no JSON."""
    record = json_record(source, line)
    if isinstance(record, dict) and ("NaN" in source or "Infinity" in source):
        constants = list[str]()
        json.loads(source, parse_constant=constants.append)
        if constants:
            return BadRow("not valid JSON", f"{constants[0]} is no value of JSON; write null", line)
    return record


def _item(record: Mapping[str, Any], texts: Sequence[str], line: int) -> Item:
    for name in texts:
        if name not in record:
            return Item(line, "", record, fault=f"missing column: no {name!r}")
        if not isinstance(record[name], str | None):
            return Item(line, "", record, fault=f"text is no string: {name!r} is {record[name]!r:.60}")
    text = join_text(record[name] or "" for name in texts)
    whole = "".join(value for value in (*record, *record.values()) if isinstance(value, str))
    try:
        whole.encode()
    except UnicodeEncodeError as error:
        shown = whole[max(0, error.start - 30) : error.start + 30]
        return Item(line, "", record, fault=f"broken encoding: not UTF-8 in {shown!r}")
    return Item(line, text, record, fault="" if text else "empty text: no text in the text columns")
