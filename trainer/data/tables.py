"""Rows of one CSV, JSON Lines or Parquet file, each with its line, good or bad, and the columns that they are made of."""

import csv
import gzip
import io
import json
import lzma
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import IO, Any

from server.errors import UserError
from trainer.data.columns import BadRow, Columns, Layout, Row, Table, find_layout, find_layout_without_header, is_number
from trainer.data.parquet import open_parquet
from trainer.monitoring.console import Progress

_COMPRESSED: dict[str, Callable[..., IO[Any]]] = {".gz": gzip.open, ".xz": lzma.open}
SEPARATORS = (",", ";", "\t", "|")
_ROWS_TO_JUDGE_BY = 10_000
_CSV_ENDINGS, JSON_ENDINGS = (".csv", ".tsv"), (".jsonl", ".json")

Rows = Iterator[Row | BadRow]
_Fields = tuple[int, list[str] | BadRow]  # the line of a record, and its fields or the fault in its quotes


def read_table(path: Path, layout: Layout) -> Rows:
    """Streams the rows of a file; UserError when it cannot be read as its ending promises, or lacks a column.

    Lines count from 1, as in an editor; in Parquet they are numbers of rows.
    """
    reader = _READERS[table_format(path)]
    with decompressing(path):
        yield from reader(path, layout)


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


def find_columns(paths: Sequence[Path], columns: Columns, *, class_first: bool = False) -> Layout:
    """Returns the columns of these training files: those that the user named, or the usual ones.

    A file without a header is read by what it holds, or as class and texts with `class_first`. UserError when it is not clear.
    """
    path, kind = paths[0], table_format(paths[0])
    with decompressing(path):
        if kind == ".parquet":
            with open_parquet(path) as parquet:
                layout = find_layout(path, columns, parquet.names)
                return layout._replace(classes=parquet.class_names.get(layout.label, ()))
        if kind in _CSV_ENDINGS:
            return _csv_layout(path, columns, class_first=class_first)
    return find_layout(path, columns, _json_names(paths))


def column_names(path: Path, layout: Layout) -> Sequence[str]:
    """Returns the names of the columns of a file that has the columns of this layout; none without a header."""
    kind = table_format(path)
    with decompressing(path):
        if kind == ".parquet":
            with open_parquet(path) as parquet:
                return parquet.names
        if kind in _CSV_ENDINGS:
            with open_text(path) as file:
                return [] if layout.width else _header(path, csv_records(file, _separator(path, layout.fits)))
    return list(_json_names([path]))


@contextmanager
def open_text(path: Path) -> Iterator[io.TextIOWrapper]:
    """Opens a text file, decompressed by its suffix."""
    opener: Callable[..., Any] = _COMPRESSED.get(path.suffix.lower(), open)
    with opener(path, "rb") as file, decoded(file, path) as text:
        yield text


def decoded(file: Any, source: Path | str) -> io.TextIOWrapper:  # noqa: ANN401 - the modules that decompress share no type with a peek
    """Decodes lines; a byte that is not UTF-8 becomes a surrogate, so that one bad row does not hide the others."""
    if b"\0" in file.peek(64)[:64]:
        raise UserError(f"{source}: is UTF-16 or no text at all; save it as UTF-8")
    return io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _csv_layout(path: Path, columns: Columns, *, class_first: bool) -> Layout:
    named = [*columns.text, *([columns.label] if columns.label else [])]

    def has_header(names: Sequence[str]) -> bool:
        try:
            find_layout(path, columns, names)
        except UserError:
            return False
        return True

    def is_row(fields: Sequence[str]) -> bool:
        return len(fields) > 1 and (all(map(str.isdecimal, named)) if named else any(map(is_number, fields)))

    separator = _separator(path, lambda fields: has_header(fields) or is_row(fields))
    with open_text(path) as file:
        records = csv_records(file, separator)
        first = _header(path, records)
        if has_header(first) or not is_row(first):
            try:
                return find_layout(path, columns, first)
            except UserError as error:
                numbers = (
                    ""
                    if named
                    else ". If this is a row and no header, give numbers, such as --label-column 1 --text-column 2"
                )
                raise UserError(f"{error}{numbers}") from error
        others = (fields for _, fields in islice(records, _ROWS_TO_JUDGE_BY) if not isinstance(fields, BadRow))
        rows = [first, *(fields for fields in others if len(fields) == len(first))]
    if class_first and not named:
        columns = Columns(tuple(str(number) for number in range(2, len(first) + 1)), "1")
    return find_layout_without_header(path, columns, rows)._replace(separator=separator)


def _separator(path: Path, fits: Callable[[list[str]], bool]) -> str:
    """Returns the first separator by which the first line that is not blank fits, or else the first that is in it."""
    if table_format(path) == ".tsv":
        return "\t"
    with open_text(path) as file:
        line = next((line for line in file if line.strip()), "")
    records = {separator: next(csv_records([line], separator), (1, []))[1] for separator in SEPARATORS}
    lists = {separator: fields for separator, fields in records.items() if not isinstance(fields, BadRow)}
    fitting = (separator for separator, fields in lists.items() if fits([field.strip() for field in fields]))
    return next(fitting, next((separator for separator, fields in lists.items() if len(fields) > 1), ","))


def _header(path: Path, records: Iterator[_Fields]) -> list[str]:
    """Takes the first record, without the space around its fields."""
    empty = BadRow("empty file", "expected a header line, or rows of class and text", 1)
    line, fields = next(records, (1, empty))
    if isinstance(fields, BadRow):
        raise UserError(f"{path}, line {line}: {fields.reason}: {fields.detail}")
    return [name.strip() for name in fields]


def _read_csv(path: Path, layout: Layout) -> Rows:
    with open_text(path) as file:
        records = csv_records(file, layout.separator if layout.width else _separator(path, layout.fits))
        if layout.width:
            names, expected = layout.numbers, f"the first row has {layout.width}"
        else:
            names = _header(path, records)
            expected = f"the header has {len(names)}"
        table = Table(path, layout, names)
        for line, fields in records:
            if isinstance(fields, BadRow):
                yield fields
            elif len(fields) != len(names):
                yield BadRow("wrong number of fields", f"{len(fields)} fields where {expected}", line)
            else:
                yield table.row_of_fields(fields, line)


def csv_records(file: Iterable[str], separator: str = ",") -> Iterator[_Fields]:
    """Yields each record with the line on which it starts, without blank lines."""
    csv.field_size_limit(1 << 24)  # 16 MB a field: far above any text, below what a runaway quote would swallow
    reader = csv.reader(file, delimiter=separator, strict=True)
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


def _read_json_lines(path: Path, layout: Layout) -> Rows:
    table = Table(path, layout, [*layout.text, layout.label])
    with open_text(path) as file:
        for line, source in enumerate(file, start=1):
            if source.strip():
                record = json_record(source, line)
                yield record if isinstance(record, BadRow) else table.row(record, line)


def _json_names(paths: Iterable[Path]) -> Counter[str]:
    """Counts the records that have each key; UserError when no file has a record."""
    names: Counter[str] = Counter()
    for path in paths:
        names.update(_json_keys(path, path.stat().st_mtime_ns, path.stat().st_size))
    if not names:
        raise UserError(f"{path}: has no rows; expected one JSON object a line")
    return names


@lru_cache(maxsize=1024)
def _json_keys(path: Path, _changed_ns: int, _size: int) -> Counter[str]:
    """Counts the records of a file that have each key; reads a file again only when it has changed."""
    names: Counter[str] = Counter()
    with (
        decompressing(path),
        open_text(path) as file,
        Progress(f"preprocess: reading the keys of {path}", None, "rows") as progress,
    ):
        for line, source in enumerate(file, start=1):
            progress.advance()
            if source.strip() and isinstance(record := json_record(source, line), dict):
                names.update(record.keys())
    return names


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


def _read_parquet(path: Path, layout: Layout) -> Rows:
    with open_parquet(path) as file:
        table = Table(path, layout, file.names, class_names=file.class_names)
        for line, record in enumerate(file.records([*table.text, table.label]), start=1):
            yield table.row(record, line)


_READERS: dict[str, Callable[[Path, Layout], Rows]] = {
    **dict.fromkeys(_CSV_ENDINGS, _read_csv),
    **dict.fromkeys(JSON_ENDINGS, _read_json_lines),
    ".parquet": _read_parquet,
}
