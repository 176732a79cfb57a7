"""Rows out of one CSV, JSON Lines or Parquet file, each with its line, good or bad."""

import codecs
import csv
import gzip
import io
import json
import lzma
import math
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TextIO

from trainer.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

AG_NEWS_CLASSES = ("World", "Sports", "Business", "Sci/Tech")
_TEXT_COLUMNS = (("title", "description"), ("text",), ("sentence",), ("content",), ("headline",), ("title",))
_LABEL_COLUMNS = ("label", "class", "class index", "category", "target", "topic")
_COMPRESSED: dict[str, Callable[..., IO[Any]]] = {".gz": gzip.open, ".xz": lzma.open}
_PARQUET_BATCH = 4096  # rows: a few megabytes of text


class Row(NamedTuple):
    text: str
    label: str
    line: int


class BadRow(NamedTuple):
    reason: str
    detail: str
    line: int


class Columns(NamedTuple):
    """What the user said of the columns; what is empty is found by the usual names."""

    text: tuple[str, ...] = ()
    label: str | None = None
    classes: tuple[str, ...] = ()
    numbered: tuple[str, ...] = ()
    """Classes 1, 2, … of rows without a header, where the training rows tell."""


def read_table(path: Path, columns: Columns) -> Iterator[Row | BadRow]:
    """The rows of a file, as a stream; UserError when it is no such file or lacks a column.

    A line counts from 1, as an editor counts; in Parquet it is the number of the row.
    """
    reader = _READERS[table_format(path)]
    with _decompressing(path):
        for row in reader(path, columns):
            yield _checked(row) if isinstance(row, Row) else row


@contextmanager
def _decompressing(path: Path) -> Iterator[None]:
    try:
        yield
    except (gzip.BadGzipFile, lzma.LZMAError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: is damaged, it does not decompress to its end: {error}") from error


def table_format(path: Path) -> str:
    """The ending that says how a file is written, without .gz or .xz."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in _COMPRESSED]
    if not suffixes or suffixes[-1] not in _READERS:
        raise UserError(
            f"{path}: not a known kind of file; it should end in {', '.join(_READERS)}, each also with .gz or .xz"
        )
    return suffixes[-1]


def table_classes(path: Path, columns: Columns) -> tuple[str, ...]:
    """The class names, in order, that a file brings besides its rows; none where only the rows tell."""
    reader = _CLASSES.get(table_format(path))
    with _decompressing(path):
        return reader(path, columns) if reader else ()


def _csv_classes(path: Path, columns: Columns) -> tuple[str, ...]:
    with _open_text(path) as file:
        _, first = next(_csv_records(file), (1, None))
    return _ag_news_classes(path) if isinstance(first, list) and _is_ag_news(first, columns) else ()


def _parquet_classes(path: Path, columns: Columns) -> tuple[str, ...]:
    with _parquet_file(path) as file:
        label = find_columns(path, columns, file.schema_arrow.names)[1]
        return _hub_classes(file.schema_arrow.metadata, label)


def _checked(row: Row) -> Row | BadRow:
    try:
        f"{row.text} {row.label}".encode()
    except UnicodeEncodeError as error:
        shown = error.object[max(0, error.start - 30) : error.start + 30]
        return BadRow("broken encoding", f"not UTF-8 in {shown!r}", row.line)
    if not row.text:
        return BadRow("empty text", "no text in the text columns", row.line)
    if not row.label:
        return BadRow("no class", "the class is empty", row.line)
    return row


@contextmanager
def _open_text(path: Path) -> Iterator[TextIO]:
    """Decoded lines; a byte that is not UTF-8 becomes a surrogate, so that one bad row does not hide the others."""
    opener: Callable[..., Any] = _COMPRESSED.get(path.suffix.lower(), open)
    with opener(path, "rb") as file:
        head = file.peek(64)[:64]
        if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in head:
            raise UserError(f"{path}: is UTF-16 or no text at all; save it as UTF-8")
        with io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
            yield text


def _csv(path: Path, columns: Columns) -> Iterator[Row | BadRow]:
    csv.field_size_limit(1 << 24)  # 16 MB a field: far above any text, below what a runaway quote would swallow
    with _open_text(path) as file:
        records = _csv_records(file)
        first = next(records, None)
        if first is None:
            raise UserError(f"{path}: is empty; expected a header line, or rows of class, title, description")
        line, fields = first
        if isinstance(fields, BadRow):
            raise UserError(f"{path}, line {line}: {fields.reason}: {fields.detail}")
        if _is_ag_news(fields, columns):
            yield from _ag_news(path, columns, chain([first], records))
        else:
            yield from _csv_with_header(path, columns, fields, records)


def _csv_records(file: TextIO) -> Iterator[tuple[int, list[str] | BadRow]]:
    """Each record with the line on which it starts: its fields, or what is wrong with its quotes. Blank lines are no records."""
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


def _ag_news(path: Path, columns: Columns, records: Iterable[tuple[int, list[str] | BadRow]]) -> Iterator[Row | BadRow]:
    """Rows of class (a number from 1), title, description, without a header."""
    names = columns.classes or columns.numbered or _ag_news_classes(path)
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
            yield Row(_joined(fields[1:]), numbered[number], line)


def _is_ag_news(first: Sequence[str], columns: Columns) -> bool:
    return first[0].strip().isdecimal() and not columns.text and not columns.label


def _ag_news_classes(path: Path) -> tuple[str, ...]:
    """The names in a classes.txt beside the file, one a line, or those of AG News."""
    listed = path.parent / "classes.txt"
    if not listed.is_file():
        return AG_NEWS_CLASSES
    try:
        names = tuple(name.strip() for name in listed.read_text(encoding="utf-8-sig").splitlines() if name.strip())
    except UnicodeDecodeError as error:
        raise UserError(f"{listed}: is not UTF-8: {error}") from error
    if len(names) < 2 or len(set(names)) < len(names):
        raise UserError(f"{listed}: holds {', '.join(names) or 'nothing'}; expected two names or more, each once")
    return names


def _csv_with_header(
    path: Path, columns: Columns, header: Sequence[str], records: Iterable[tuple[int, list[str] | BadRow]]
) -> Iterator[Row | BadRow]:
    names = [name.strip() for name in header]
    text, label = find_columns(path, columns, names)
    for name in (*text, label):
        if names.count(name) > 1:
            raise UserError(f"{path}: {names.count(name)} columns are called {name!r}; rename all but one")
    places, label_place, numbered = [names.index(name) for name in text], names.index(label), _numbers(columns.classes)
    for line, fields in records:
        if isinstance(fields, BadRow):
            yield fields
        elif len(fields) != len(names):
            yield BadRow("wrong number of fields", f"{len(fields)} fields where the header has {len(names)}", line)
        else:
            yield Row(_joined(fields[place] for place in places), _class_name(fields[label_place], numbered), line)


def _json_lines(path: Path, columns: Columns) -> Iterator[Row | BadRow]:
    found: tuple[tuple[str, ...], str] | None = None
    numbered = _numbers(columns.classes)
    with _open_text(path) as file:
        for line, source in enumerate(file, start=1):
            if not source.strip():
                continue
            try:
                record = json.loads(source.rstrip())
            except json.JSONDecodeError as error:
                yield BadRow("not valid JSON", f"{error.msg} at character {error.pos + 1}; one object a line", line)
                continue
            except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
                yield BadRow("not valid JSON", str(error), line)
                continue
            if not isinstance(record, dict):
                yield BadRow(
                    "not valid JSON", f"{type(record).__name__} where an object with columns is expected", line
                )
                continue
            found = found or find_columns(f"{path}, line {line}", columns, list(record))
            yield _record(record, *found, numbered=numbered, line=line)
    if found is None:
        raise UserError(f"{path}: has no rows; expected one JSON object a line")


def _parquet(path: Path, columns: Columns) -> Iterator[Row | BadRow]:
    with _parquet_file(path) as file:
        names = file.schema_arrow.names
        text, label = find_columns(path, columns, names)
        batches = file.iter_batches(batch_size=_PARQUET_BATCH, columns=[*text, label])
        records = (record for batch in batches for record in _batch_records(batch))
        class_label = _hub_classes(file.schema_arrow.metadata, label)
        yield from read_records(path, records, names, columns, class_label=class_label)


def _batch_records(batch: "pa.RecordBatch") -> Iterator[dict[str, Any]]:
    import pyarrow as pa

    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:  # a text that is not UTF-8 does not hide the others
        columns = [
            [value and value.decode(errors="surrogateescape") for value in column.cast(pa.binary()).to_pylist()]
            if pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
            else column.to_pylist()
            for column in batch.columns
        ]
        for values in zip(*columns, strict=True):
            yield dict(zip(batch.schema.names, values, strict=True))


@contextmanager
def _parquet_file(path: Path) -> Iterator[Any]:
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
                yield file
        except (pa.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{path}: is no Parquet file, or a damaged one: {reason}") from error


def read_records(
    source: Path | str,
    records: Iterable[Mapping[str, Any]],
    names: Sequence[str],
    columns: Columns,
    *,
    class_label: Sequence[str],
) -> Iterator[Row | BadRow]:
    """Rows of records that all have the columns `names`; `class_label` names the classes that the records count from 0."""
    text, label = find_columns(source, columns, names)
    numbered = {str(number): name for number, name in enumerate(class_label)} or _numbers(columns.classes)
    for line, record in enumerate(records, start=1):
        yield _record(record, text, label, numbered=numbered, line=line)


def _hub_classes(metadata: Mapping[bytes, bytes] | None, label: str) -> tuple[str, ...]:
    """Class names that the `datasets` library wrote into a Parquet file."""
    info = json.loads((metadata or {}).get(b"huggingface", b"{}"))
    feature = info.get("info", {}).get("features", {}).get(label)
    return tuple(feature.get("names") or ()) if isinstance(feature, dict) else ()


def _record(
    record: Mapping[str, Any], text: Sequence[str], label: str, *, numbered: Mapping[str, str], line: int
) -> Row | BadRow:
    missing = [name for name in (*text, label) if name not in record]
    if missing:
        return BadRow("missing column", f"no {missing[0]!r}", line)
    for name in text:
        if not isinstance(record[name], str | None):
            return BadRow("text is no string", f"{name!r} is {record[name]!r:.60}", line)
    if not isinstance(record[label], str | int | float | None):
        return BadRow("class is no name", f"{label!r} is {record[label]!r:.60}, not a name or a number", line)
    return Row(_joined(record[name] or "" for name in text), _class_name(record[label], numbered), line)


def _class_name(value: str | float | None, numbered: Mapping[str, str]) -> str:
    """A class as text; a number becomes the name that it stands for, where it stands for one."""
    if isinstance(value, float):
        value = None if math.isnan(value) else int(value) if value.is_integer() else value
    name = "" if value is None else str(value).strip()
    return numbered.get(name, name)


def _numbers(classes: Sequence[str]) -> dict[str, str]:
    """The classes by number, from 0 as the hub counts; none where a number is itself the name of a class."""
    if any(name.isdecimal() for name in classes):
        return {}
    return {str(number): name for number, name in enumerate(classes)}


def find_columns(source: Path | str, columns: Columns, names: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """The text columns and the class column, as the user said or by the usual names."""
    listed = ", ".join(name.encode("utf-8", "backslashreplace").decode()[:40] for name in names[:20])
    for name in (*columns.text, *((columns.label,) if columns.label else ())):
        if name not in names:
            raise UserError(f"{source}: no column is called {name!r}; its columns are {listed}")
    known = {name.lower(): name for name in reversed(names)}
    usual_text = next((usual for usual in _TEXT_COLUMNS if set(usual) <= known.keys()), ())
    text = columns.text or tuple(known[usual] for usual in usual_text)
    label = columns.label or next((known[usual] for usual in _LABEL_COLUMNS if usual in known), None)
    if not text:
        raise UserError(f"{source}: which column is the text? Say --text-column; its columns are {listed}")
    if not label:
        raise UserError(f"{source}: which column is the class? Say --label-column; its columns are {listed}")
    return text, label


def _joined(parts: Iterable[str]) -> str:
    return " ".join(stripped for part in parts if (stripped := part.strip()))


_READERS: dict[str, Callable[[Path, Columns], Iterator[Row | BadRow]]] = {
    ".csv": _csv,
    ".jsonl": _json_lines,
    ".json": _json_lines,
    ".parquet": _parquet,
}
_CLASSES: dict[str, Callable[[Path, Columns], tuple[str, ...]]] = {".csv": _csv_classes, ".parquet": _parquet_classes}
