"""Rows out of one CSV, JSON Lines or Parquet file, each with its line, good or bad."""

import csv
import gzip
import io
import json
import lzma
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any, TextIO

from server.errors import UserError
from trainer.data.columns import BadRow, Columns, Rows, Table, make_row

_COMPRESSED: dict[str, Callable[..., IO[Any]]] = {".gz": gzip.open, ".xz": lzma.open}
_PARQUET_BATCH = 4096  # rows: a few megabytes of text


_Fields = tuple[int, list[str] | BadRow]  # the line and the fields of a record, or what is wrong with its quotes


def read_table(path: Path, columns: Columns) -> Rows:
    """The rows of a file, as a stream; UserError when it is no such file or lacks a column.

    A line counts from 1, as an editor counts; in Parquet it is the number of the row.
    """
    reader = _READERS[table_format(path)]
    with decompressing(path):
        yield from reader(path, columns)


@contextmanager
def decompressing(path: Path) -> Iterator[None]:
    try:
        yield
    except (gzip.BadGzipFile, lzma.LZMAError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: is damaged, it does not decompress to its end: {error}") from error


def table_format(path: Path) -> str:
    """The ending that says how a file is written, without .gz or .xz."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in _COMPRESSED]
    if not suffixes or suffixes[-1] not in _READERS:
        raise UserError(f"{path}: unknown kind of file; known are {', '.join(_READERS)}, each also with .gz or .xz")
    return suffixes[-1]


def table_classes(path: Path, columns: Columns) -> tuple[str, ...]:
    """The class names, in order, that a file brings besides its rows; none where only the rows tell."""
    kind = table_format(path)
    with decompressing(path):
        if kind == ".csv":
            with open_text(path) as file:
                _, first = next(csv_records(file), (1, None))
                return columns.numbered if isinstance(first, list) and is_ag_news(first, columns) else ()
        if kind == ".parquet":
            with _parquet_file(path, columns) as (_, table):
                return table.classes
    return ()


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    opener: Callable[..., Any] = _COMPRESSED.get(path.suffix.lower(), open)
    with opener(path, "rb") as file, decoded(file, path) as text:
        yield text


def decoded(file: Any, source: Path | str) -> TextIO:  # noqa: ANN401 - the modules that decompress share no type with a peek
    """Decoded lines; a byte that is not UTF-8 becomes a surrogate, so that one bad row does not hide the others."""
    if b"\0" in file.peek(64)[:64]:
        raise UserError(f"{source}: is UTF-16 or no text at all; save it as UTF-8")
    return io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _csv(path: Path, columns: Columns) -> Rows:
    with open_text(path) as file:
        records = csv_records(file)
        empty = BadRow("empty file", "expected a header line, or rows of class, title, description", 1)
        line, fields = next(records, (1, empty))
        if isinstance(fields, BadRow):
            raise UserError(f"{path}, line {line}: {fields.reason}: {fields.detail}")
        if is_ag_news(fields, columns):
            yield from _ag_news(columns, chain([(line, fields)], records))
        else:
            yield from _csv_with_header(path, columns, fields, records)


def csv_records(file: Iterable[str]) -> Iterator[_Fields]:
    """Each record with the line on which it starts. Blank lines are no records."""
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


def _ag_news(columns: Columns, records: Iterable[_Fields]) -> Rows:
    """Rows of class (a number from 1), title, description, without a header."""
    names = columns.classes or columns.numbered
    numbered = {str(number): name for number, name in enumerate(names, start=1)}
    right = f"a number from 1 to {len(names)}: {', '.join(names[:10])}"
    for line, fields in records:
        if isinstance(fields, BadRow):
            yield fields
        elif len(fields) != 3:
            yield BadRow("wrong number of fields", f"{len(fields)} fields where class, title, description are 3", line)
        elif (number := fields[0].strip()) not in numbered:
            yield BadRow("unknown class", f"{number[:60]!r} is not {right}", line)
        else:
            yield make_row(fields[1:], numbered[number], line)


def is_ag_news(first: Sequence[str], columns: Columns) -> bool:
    """Whether a file that begins with this record has rows of class, title, description, and no header."""
    return first[0].strip().isdecimal() and not columns.text and not columns.label


def _csv_with_header(path: Path, columns: Columns, header: Sequence[str], records: Iterable[_Fields]) -> Rows:
    names = [name.strip() for name in header]
    table = Table(path, columns, names, class_names={})
    for name in (*table.text, table.label):
        if names.count(name) > 1:
            raise UserError(f"{path}: {names.count(name)} columns are called {name!r}; rename all but one")
    for line, fields in records:
        if isinstance(fields, BadRow):
            yield fields
        elif len(fields) != len(names):
            yield BadRow("wrong number of fields", f"{len(fields)} fields where the header has {len(names)}", line)
        else:
            yield table.row(dict(zip(names, fields, strict=True)), line)


def _json_lines(path: Path, columns: Columns) -> Rows:
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
    try:
        record = json.loads(source.rstrip())
    except (ValueError, RecursionError) as error:
        fault = str(error).replace(": line 1 column", " at character").partition(" (char")[0]
    else:
        if isinstance(record, dict):
            return record
        fault = f"{type(record).__name__} where an object is expected"
    return BadRow("not valid JSON", f"{fault}; one object a line", line)


def _parquet(path: Path, columns: Columns) -> Rows:
    with _parquet_file(path, columns) as (file, table):
        batches = file.iter_batches(batch_size=_PARQUET_BATCH, columns=[*table.text, table.label])
        for line, record in enumerate(_records(batches), start=1):
            yield table.row(record, line)


def _records(batches: Iterable[Any]) -> Iterator[dict[str, Any]]:
    for batch in batches:
        for values in zip(*_values(batch.columns), strict=True):
            yield dict(zip(batch.schema.names, values, strict=True))


def _values(columns: Iterable[Any]) -> Iterator[list[Any]]:
    for column in columns:
        try:
            yield column.to_pylist()
        except UnicodeDecodeError:  # a text that is not UTF-8 does not hide the others
            yield [value and value.decode(errors="surrogateescape") for value in column.cast("binary").to_pylist()]


@contextmanager
def _parquet_file(path: Path, columns: Columns) -> "Iterator[tuple[Any, Table]]":
    """The file, opened, and its columns, with the class names that the `datasets` library wrote into it."""
    import pyarrow as pa
    from pyarrow import parquet

    with tempfile.TemporaryDirectory() as folder:
        plain = path
        if path.suffix.lower() in _COMPRESSED:  # Parquet is read from its end: it has to be a plain file
            plain = Path(folder, "rows.parquet")
            with _COMPRESSED[path.suffix.lower()](path, "rb") as packed, plain.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked)
        try:
            with parquet.ParquetFile(plain) as file:
                schema = file.schema_arrow
                info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
                features = info.get("info", {}).get("features", {})
                named = {name: tuple(feature["names"]) for name, feature in features.items() if "names" in feature}
                yield file, Table(path, columns, schema.names, class_names=named)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{path}: is no Parquet file, or a damaged one: {' '.join(str(error).split())}") from error


_READERS: dict[str, Callable[[Path, Columns], Rows]] = {
    ".csv": _csv, ".jsonl": _json_lines, ".json": _json_lines, ".parquet": _parquet
}  # fmt: skip
