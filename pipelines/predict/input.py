"""The input of predict: rows from a file, standard input or the command line, with all their columns."""

import io
import json
import sys
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from pipelines.predict.columns import TextColumns
from server.errors import UserError
from trainer.data.columns import BadRow, join_text
from trainer.data.tables import csv_records, decoded, decompressing, json_record, open_text

Kind = Literal["csv", "jsonl", "lines"]
_ENDINGS: dict[str, Kind] = {".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".json": "jsonl", ".txt": "lines"}


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
    text_columns: TextColumns
    path: Path | None = None
    """None is standard input."""
    names: Sequence[str] = ()
    texts: Sequence[str] = ()
    """Those of the columns that make the text."""

    def rows(self) -> Generator[Item, None, None]:
        """Yields all rows; UserError when the input cannot be read or lacks a text column."""
        try:
            if self.path is None:
                yield from self._read(decoded(sys.stdin.buffer, self.name))
            else:
                with decompressing(self.path), open_text(self.path) as file:
                    yield from self._read(file)
        except OSError as error:
            raise UserError(
                f"{f'--input {self.path}' if self.path else self.name}: cannot be read: {error.strerror or error}"
            ) from error

    def count(self) -> int | None:
        """Counts the rows of a file; None for a pipe, which can be read once only."""
        return sum(1 for _ in self.rows()) if self.path and self.path.is_file() else None

    def _read(self, file: io.TextIOWrapper) -> Iterator[Item]:
        return {"csv": self._csv, "jsonl": self._json_lines, "lines": self._lines}[self.kind](file)

    def _lines(self, file: io.TextIOWrapper) -> Iterator[Item]:
        self.names = self.texts = ("text",)
        file.reconfigure(newline="\n")  # a lone carriage return ends no line, as other programs count them
        for line, text in enumerate(file, start=1):
            yield _item({"text": text.rstrip("\r\n")}, self.names, line)

    def _csv(self, file: Iterable[str]) -> Iterator[Item]:
        blank, lines = "", iter(file)
        for head in lines:
            if head.strip():
                break
            blank += head
        else:
            raise UserError(f"{self.name}: is empty; expected a header line, or rows with the text")
        tabs = self.path is not None and ".tsv" in map(str.lower, self.path.suffixes)
        separator = "\t" if tabs else self.text_columns.separator([head])
        records = csv_records(chain(blank.splitlines(keepends=True), [head], lines), separator)
        start, first = next(records)
        if isinstance(first, BadRow):
            raise UserError(f"{self.name}, line {start}: {first.reason}: {first.detail}")
        self.names, self.texts, has_header = self.text_columns.names_of_csv(self.name, first)
        for line, fields in records if has_header else chain([(start, first)], records):
            if isinstance(fields, BadRow):
                yield Item(line, "", {}, fault=f"{fields.reason}: {fields.detail}")
            elif len(fields) != len(self.names):
                fault = f"wrong number of fields: {len(fields)} fields where {len(self.names)} are expected"
                yield Item(line, "", {}, fault=fault)
            else:
                yield _item(dict(zip(self.names, fields, strict=True)), self.texts, line)

    def _json_lines(self, file: Iterable[str]) -> Iterator[Item]:
        seen = set[str]()
        for line, source in enumerate(file, start=1):
            if not source.strip():
                continue
            record = _json_record(source, line)
            if isinstance(record, BadRow):
                yield Item(line, "", {}, fault=f"{record.reason}: {record.detail}")
                continue
            if not seen:
                self.names = list(record)
                self.texts = self.text_columns.find(f"{self.name}, line {line}", self.names, all_there=False)
            seen.update(record)
            yield replace(_item(record, self.texts, line), json=source.strip()[1:-1].strip())
        if seen and (missing := [name for name in self.texts if name not in seen]):
            raise UserError(
                f"{self.name}: no row has the column {missing[0]!r}; the text is {', '.join(self.texts)}: name other columns with --text-column"
            )


@dataclass
class TextInput:
    """Texts of the command line, as rows."""

    texts: Sequence[str]
    name: str = "the command line"
    kind: Kind = "lines"
    path: Path | None = None
    names: Sequence[str] = ("text",)

    def rows(self) -> Generator[Item, None, None]:
        return (_item({"text": text}, self.names, number) for number, text in enumerate(self.texts, start=1))

    def count(self) -> int:
        return len(self.texts)


def find_input(source: str, kind: Kind | Literal["auto"], columns: tuple[str, ...] = ()) -> Input:
    """Finds the file that --input names, and its format; UserError when there is none."""
    if source == "-":
        return Input("standard input", "lines" if kind == "auto" else kind, TextColumns(columns))
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
    if columns and kind == "lines":
        raise UserError("--text-column has no meaning for plain lines, each of which is a text")
    if not path.exists():
        raise UserError(f"--input {source}: no such file")
    return Input(source, kind, TextColumns(columns), path)


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
    """Makes the row of a record; a text column that it lacks is empty, as long as it has another."""
    if not any(name in record for name in texts):
        return Item(line, "", record, fault=f"missing column: no {' and no '.join(map(repr, texts))}")
    for name in texts:
        if not isinstance(record.get(name), str | None):
            return Item(line, "", record, fault=f"text is no string: {name!r} is {record[name]!r:.60}")
    text = join_text(record.get(name) or "" for name in texts)
    whole = "".join(value for value in (*record, *record.values()) if isinstance(value, str))
    try:
        whole.encode()
    except UnicodeEncodeError as error:
        shown = whole[max(0, error.start - 30) : error.start + 30]
        return Item(line, "", record, fault=f"broken encoding: not UTF-8 in {shown!r}")
    return Item(line, text, record, fault="" if text else "empty text: no text in the text columns")
