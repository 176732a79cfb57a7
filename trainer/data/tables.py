"""Rows of one CSV, JSON Lines or Parquet file, each with its line, good or bad; columns are found by name."""

import csv
import gzip
import io
import json
import lzma
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple, TextIO

from server.errors import UserError
from trainer.data.parquet import open_parquet

AG_NEWS_CLASSES = ("World", "Sports", "Business", "Sci/Tech")
_TEXT_COLUMNS = (("title", "description"), ("text",), ("sentence",), ("content",), ("headline",), ("title",))
_LABEL_COLUMNS = ("label", "class", "class index", "category", "target", "topic")
_COMPRESSED: dict[str, Callable[..., IO[Any]]] = {".gz": gzip.open, ".xz": lzma.open}


class Row(NamedTuple):
    text: str
    label: str
    line: int


class BadRow(NamedTuple):
    reason: str
    detail: str
    line: int


class Columns(NamedTuple):
    """Columns that the user named; empty ones are found by the usual names."""

    text: tuple[str, ...] = ()
    label: str | None = None
    classes: tuple[str, ...] = ()
    numbered: tuple[str, ...] = AG_NEWS_CLASSES
    """Names of the classes 1, 2, … of rows without a header."""


Rows = Iterator[Row | BadRow]
_Fields = tuple[int, list[str] | BadRow]  # the line of a record, and its fields or the fault in its quotes


class Table:
    """Makes rows of records that have named columns.

    `class_names` holds the class names of columns that number them from 0; `classes` holds those of the class column.
    """

    def __init__(
        self, source: Path | str, columns: Columns, names: Sequence[str], *, class_names: Mapping[str, tuple[str, ...]]
    ) -> None:
        self._names, self.text = names, find_text_columns(source, columns, names)
        known = {name.lower(): name for name in reversed(names)}
        usual = (known[name] for name in _LABEL_COLUMNS if name in known and known[name] not in self.text)
        self.label = columns.label or next(usual, "")
        if not self.label:
            raise UserError(f"{source}: which column is the class? {_choose('label', names)}")
        for name in (*self.text, self.label):
            if names.count(name) > 1:
                raise UserError(f"{source}: {names.count(name)} columns are called {name!r}; rename all but one")
        self.classes = class_names.get(self.label, ())
        # Where the user's class names are themselves numbers, numbers in the rows are names.
        named = self.classes or ([] if any(name.isdecimal() for name in columns.classes) else columns.classes)
        self._numbered = {str(number): name for number, name in enumerate(named)}

    def row_of_fields(self, fields: Sequence[str], line: int) -> Row | BadRow:
        return self.row(dict(zip(self._names, fields, strict=True)), line)

    def row(self, record: Mapping[str, Any], line: int) -> Row | BadRow:
        for name in (*self.text, self.label):
            if name not in record:
                return BadRow("missing column", f"no {name!r}", line)
        for name in self.text:
            if not isinstance(record[name], str | None):
                return BadRow("text is no string", f"{name!r} is {record[name]!r:.60}", line)
        label = record[self.label]
        if not isinstance(label, str | int | float | None):
            return BadRow("class is no name", f"{self.label!r} is {label!r:.60}, not a name or a number", line)
        if isinstance(label, float):
            label = None if math.isnan(label) else int(label) if label.is_integer() else label
        name = "" if label is None else str(label).strip()
        return _make_row((record[name] or "" for name in self.text), self._numbered.get(name, name), line)


def find_text_columns(source: Path | str, columns: Columns, names: Sequence[str]) -> tuple[str, ...]:
    """Returns the user's or else the usual text columns; UserError when a column that the user named is missing."""
    for name in (*columns.text, *((columns.label,) if columns.label else ())):
        if name not in names:
            raise UserError(f"{source}: no column is called {name!r}; its columns are {_listed(names)}")
    known = {name.lower(): name for name in reversed(names)}
    usual = next((usual for usual in _TEXT_COLUMNS if set(usual) <= known.keys()), ())
    text = columns.text or tuple(known[name] for name in usual)
    if not text:
        raise UserError(f"{source}: which column is the text? {_choose('text', names)}")
    return text


def _choose(kind: str, names: Sequence[str]) -> str:
    return f"Name it with --{kind}-column; its columns are {_listed(names)}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(name.encode("utf-8", "backslashreplace").decode()[:40] for name in names[:20])


def join_text(parts: Iterable[str]) -> str:
    """Joins the texts of several columns to one."""
    return " ".join(stripped for part in parts if (stripped := part.strip()))


def _make_row(parts: Iterable[str], label: str, line: int) -> Row | BadRow:
    text = join_text(parts)
    try:
        f"{text} {label}".encode()
    except UnicodeEncodeError as error:
        shown = error.object[max(0, error.start - 30) : error.start + 30]
        return BadRow("broken encoding", f"not UTF-8 in {shown!r}", line)
    if not text:
        return BadRow("empty text", "no text in the text columns", line)
    if not label:
        return BadRow("no class", "the class is empty", line)
    return Row(text, label, line)


def read_table(path: Path, columns: Columns) -> Rows:
    """Streams the rows of a file; UserError when it cannot be read as its ending promises, or lacks a column.

    Lines count from 1, as in an editor; in Parquet they are numbers of rows.
    """
    reader = _READERS[table_format(path)]
    with decompressing(path):
        yield from reader(path, columns)


@contextmanager
def decompressing(path: Path) -> Iterator[None]:
    """Turns the errors of a damaged compressed file into a UserError."""
    try:
        yield
    except (gzip.BadGzipFile, lzma.LZMAError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: is damaged, it does not decompress to its end: {error}") from error


def table_format(path: Path) -> str:
    """Returns the ending that names the format of a file, without .gz or .xz."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in _COMPRESSED]
    if not suffixes or suffixes[-1] not in _READERS:
        raise UserError(f"{path}: unknown kind of file; known are {', '.join(_READERS)}, each also with .gz or .xz")
    return suffixes[-1]


def table_classes(path: Path, columns: Columns) -> tuple[str, ...]:
    """Returns the class names, in order, that the layout of a file defines; none where only its rows do."""
    kind = table_format(path)
    with decompressing(path):
        if kind == ".csv":
            with open_text(path) as file:
                _, first = next(csv_records(file), (1, None))
                return columns.numbered if isinstance(first, list) and is_ag_news(first, columns) else ()
        if kind == ".parquet":
            with open_parquet(path) as parquet:
                return Table(path, columns, parquet.names, class_names=parquet.class_names).classes
    return ()


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """Opens a text file, decompressed by its suffix."""
    opener: Callable[..., Any] = _COMPRESSED.get(path.suffix.lower(), open)
    with opener(path, "rb") as file, decoded(file, path) as text:
        yield text


def decoded(file: Any, source: Path | str) -> TextIO:  # noqa: ANN401 - the modules that decompress share no type with a peek
    """Decodes lines; a byte that is not UTF-8 becomes a surrogate, so that one bad row does not hide the others."""
    if b"\0" in file.peek(64)[:64]:
        raise UserError(f"{source}: is UTF-16 or no text at all; save it as UTF-8")
    return io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _read_csv(path: Path, columns: Columns) -> Rows:
    with open_text(path) as file:
        records = csv_records(file)
        empty = BadRow("empty file", "expected a header line, or rows of class, title, description", 1)
        line, fields = next(records, (1, empty))
        if isinstance(fields, BadRow):
            raise UserError(f"{path}, line {line}: {fields.reason}: {fields.detail}")
        make: Callable[[Sequence[str], int], Row | BadRow]
        if is_ag_news(fields, columns):  # class (a number from 1), title, description
            classes = enumerate(columns.classes or columns.numbered, start=1)
            make = partial(_ag_news_row, {str(number): name for number, name in classes})
            width, expected, records = 3, "class, title, description are 3", chain([(line, fields)], records)
        else:
            width, expected = len(fields), f"the header has {len(fields)}"
            make = Table(path, columns, [name.strip() for name in fields], class_names={}).row_of_fields
        for line, fields in records:
            if isinstance(fields, BadRow):
                yield fields
            elif len(fields) != width:
                yield BadRow("wrong number of fields", f"{len(fields)} fields where {expected}", line)
            else:
                yield make(fields, line)


def _ag_news_row(names: Mapping[str, str], fields: Sequence[str], line: int) -> Row | BadRow:
    if (number := fields[0].strip()) in names:
        return _make_row(fields[1:], names[number], line)
    right = f"a number from 1 to {len(names)}: {', '.join([*names.values()][:10])}"
    return BadRow("unknown class", f"{number[:60]!r} is not {right}", line)


def is_ag_news(first: Sequence[str], columns: Columns) -> bool:
    """Tests by its first record if a file has rows of class, title, description, and no header."""
    return first[0].strip().isdecimal() and not columns.text and not columns.label


def csv_records(file: Iterable[str]) -> Iterator[_Fields]:
    """Yields each record with the line on which it starts, without blank lines."""
    csv.field_size_limit(1 << 24)  # 16 MB a field: far above any text, below what a runaway quote would swallow
    reader = csv.reader(file, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            reason = "huge field" if "field limit" in str(error) else "broken quotes"
            lost = f"; lines {line} to {reader.line_num} were read as one row" if reader.line_num > line else ""
            yield line, BadRow(reason, f"{error}{lost}", line)
        else:
            if fields:
                yield line, fields


def _read_json_lines(path: Path, columns: Columns) -> Rows:
    table = None
    with open_text(path) as file:
        for line, source in enumerate(file, start=1):
            if not source.strip():
                continue
            record = json_record(source, line)
            if isinstance(record, BadRow):
                yield record
                continue
            table = table or Table(f"{path}, line {line}", columns, list(record), class_names={})
            yield table.row(record, line)
    if table is None:
        raise UserError(f"{path}: has no rows; expected one JSON object a line")


def json_record(source: str, line: int) -> dict[str, Any] | BadRow:
    """Reads one line of JSON Lines."""
    try:
        record = json.loads(source.rstrip())
    except (ValueError, RecursionError) as error:
        fault = str(error).replace(": line 1 column", " at character").partition(" (char")[0]
    else:
        if isinstance(record, dict):
            return record
        fault = f"{type(record).__name__} where an object is expected"
    return BadRow("not valid JSON", f"{fault}; one object a line", line)


def _read_parquet(path: Path, columns: Columns) -> Rows:
    with open_parquet(path) as file:
        table = Table(path, columns, file.names, class_names=file.class_names)
        for line, record in enumerate(file.records([*table.text, table.label]), start=1):
            yield table.row(record, line)


_READERS: dict[str, Callable[[Path, Columns], Rows]] = {
    ".csv": _read_csv, ".jsonl": _read_json_lines, ".json": _read_json_lines, ".parquet": _read_parquet
}  # fmt: skip
