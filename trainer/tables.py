"""Rows out of one CSV, JSON Lines or Parquet file, each with its line, good or bad."""

import csv
import gzip
import json
import lzma
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple, TextIO, cast

from trainer.errors import UserError

AG_NEWS_CLASSES = ("World", "Sports", "Business", "Sci/Tech")
_TEXT_COLUMNS = (("title", "description"), ("text",), ("sentence",), ("content",), ("headline",), ("title",))
_LABEL_COLUMNS = ("label", "class", "category", "target", "topic")
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
    suffixes = [suffix for suffix in path.suffixes if suffix not in _COMPRESSED]
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
        _, first = next(_csv_records(file), (1, ""))
    return _ag_news_classes(path) if isinstance(first, list) and _is_ag_news(first, columns) else ()


def _parquet_classes(path: Path, columns: Columns) -> tuple[str, ...]:
    with _parquet_file(path) as file:
        label = find_columns(path, columns, file.schema_arrow.names)[1]
        return _hub_classes(file.schema_arrow.metadata, label)


def _checked(row: Row) -> Row | BadRow:
    try:
        (row.text + row.label).encode()
    except UnicodeEncodeError:
        shown = row.text.encode("utf-8", "backslashreplace").decode()[:60]
        return BadRow("broken encoding", f"not UTF-8 in {shown!r}", row.line)
    if not row.text:
        return BadRow("empty text", "no text in the text columns", row.line)
    if not row.label:
        return BadRow("no class", "the class is empty", row.line)
    return row


@contextmanager
def _open_text(path: Path) -> Iterator[TextIO]:
    """Decoded lines; a byte that is not UTF-8 becomes a surrogate, so that one bad row does not hide the others."""
    opener = _COMPRESSED.get(path.suffix, open)
    with opener(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        yield cast("TextIO", file)


def _csv(path: Path, columns: Columns) -> Iterator[Row | BadRow]:
    csv.field_size_limit(1 << 24)  # 16 MB a field: far above any text, below what a runaway quote would swallow
    with _open_text(path) as file:
        records = _csv_records(file)
        first = next(records, None)
        if first is None:
            raise UserError(f"{path}: is empty; expected a header line, or rows of class, title, description")
        _, fields = first
        if isinstance(fields, str):
            raise UserError(f"{path}, line 1: {fields}")
        if _is_ag_news(fields, columns):
            yield from _ag_news(path, columns, chain([first], records))
        else:
            yield from _csv_with_header(path, columns, fields, records)


def _csv_records(file: TextIO) -> Iterator[tuple[int, list[str] | str]]:
    """Each record with the line on which it starts: its fields, or what is wrong with its quotes. Blank lines are no records."""
    reader = csv.reader(file, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, str(error)
        else:
            if fields:
                yield line, fields


def _ag_news(path: Path, columns: Columns, records: Iterable[tuple[int, list[str] | str]]) -> Iterator[Row | BadRow]:
    """Rows of class (a number from 1), title, description, without a header."""
    names = columns.classes or _ag_news_classes(path)
    for line, fields in records:
        if isinstance(fields, str):
            yield BadRow("broken quotes", fields, line)
        elif len(fields) != 3:
            yield BadRow("wrong number of fields", f"{len(fields)} fields where class, title, description are 3", line)
        elif not (number := fields[0].strip()).isdecimal() or not 1 <= int(number) <= len(names):
            yield BadRow("unknown class", f"{number!r} is not a class from 1 to {len(names)}", line)
        else:
            yield Row(_joined(fields[1:]), names[int(number) - 1], line)


def _is_ag_news(first: Sequence[str], columns: Columns) -> bool:
    return first[0].strip().isdecimal() and not columns.text and not columns.label


def _ag_news_classes(path: Path) -> tuple[str, ...]:
    """The names in a classes.txt beside the file, one a line, or those of AG News."""
    listed = path.parent / "classes.txt"
    if not listed.is_file():
        return AG_NEWS_CLASSES
    return tuple(name.strip() for name in listed.read_text(encoding="utf-8").splitlines() if name.strip())


def _csv_with_header(
    path: Path, columns: Columns, header: Sequence[str], records: Iterable[tuple[int, list[str] | str]]
) -> Iterator[Row | BadRow]:
    names = [name.strip() for name in header]
    text, label = find_columns(path, columns, names)
    places, label_place = [names.index(name) for name in text], names.index(label)
    for line, fields in records:
        if isinstance(fields, str):
            yield BadRow("broken quotes", fields, line)
        elif len(fields) != len(names):
            yield BadRow("wrong number of fields", f"{len(fields)} fields where the header has {len(names)}", line)
        else:
            yield Row(
                _joined(fields[place] for place in places), _class_name(fields[label_place], columns.classes), line
            )


def _json_lines(path: Path, columns: Columns) -> Iterator[Row | BadRow]:
    found: tuple[tuple[str, ...], str] | None = None
    with _open_text(path) as file:
        for line, source in enumerate(file, start=1):
            if not source.strip():
                continue
            try:
                record = json.loads(source)
            except (json.JSONDecodeError, RecursionError) as error:
                yield BadRow("not valid JSON", str(error), line)
                continue
            if not isinstance(record, dict):
                yield BadRow(
                    "not valid JSON", f"a {type(record).__name__} where an object with columns is expected", line
                )
                continue
            found = found or find_columns(path, columns, list(record))
            yield _record(record, *found, classes=columns.classes, line=line)
    if found is None:
        raise UserError(f"{path}: has no rows; expected one JSON object a line")


def _parquet(path: Path, columns: Columns) -> Iterator[Row | BadRow]:
    with _parquet_file(path) as file:
        names = file.schema_arrow.names
        text, label = find_columns(path, columns, names)
        classes = columns.classes or _hub_classes(file.schema_arrow.metadata, label)
        batches = file.iter_batches(batch_size=_PARQUET_BATCH, columns=[*text, label])
        records = (record for batch in batches for record in batch.to_pylist())
        yield from read_records(path, records, names, columns._replace(classes=classes))


@contextmanager
def _parquet_file(path: Path) -> Iterator[Any]:
    import pyarrow as pa
    from pyarrow import parquet

    with tempfile.TemporaryDirectory() as folder:
        plain = path
        if path.suffix in _COMPRESSED:  # Parquet is read from its end: it has to be a plain file
            plain = Path(folder, "rows.parquet")
            with _COMPRESSED[path.suffix](path, "rb") as packed, plain.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked)
        try:
            file = parquet.ParquetFile(plain)
        except pa.ArrowInvalid as error:
            raise UserError(f"{path}: is not a Parquet file: {error}") from error
        with file:
            yield file


def read_records(
    source: Path | str, records: Iterable[Mapping[str, Any]], names: Sequence[str], columns: Columns
) -> Iterator[Row | BadRow]:
    """Rows of records that all have the columns `names`."""
    text, label = find_columns(source, columns, names)
    for line, record in enumerate(records, start=1):
        yield _record(record, text, label, classes=columns.classes, line=line)


def _hub_classes(metadata: Mapping[bytes, bytes] | None, label: str) -> tuple[str, ...]:
    """Class names that the `datasets` library wrote into a Parquet file."""
    info = json.loads((metadata or {}).get(b"huggingface", b"{}"))
    feature = info.get("info", {}).get("features", {}).get(label, {})
    return tuple(feature.get("names", ()))


def _record(
    record: Mapping[str, Any], text: Sequence[str], label: str, *, classes: Sequence[str], line: int
) -> Row | BadRow:
    missing = [name for name in (*text, label) if name not in record]
    if missing:
        return BadRow("missing column", f"no {missing[0]!r}", line)
    for name in text:
        if not isinstance(record[name], str | None):
            return BadRow("text is no string", f"{name!r} is {record[name]!r:.60}", line)
    return Row(_joined(record[name] or "" for name in text), _class_name(record[label], classes), line)


def _class_name(value: object, classes: Sequence[str]) -> str:
    """A class as text; a number becomes the name that it counts, from 0 as the hub does, when there are names."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    name = "" if value is None else str(value).strip()
    if classes and name not in classes and name.isdecimal() and int(name) < len(classes):
        return classes[int(name)]
    return name


def find_columns(source: Path | str, columns: Columns, names: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """The text columns and the class column, as the user said or by the usual names."""
    listed = ", ".join(name.encode("utf-8", "backslashreplace").decode()[:40] for name in names[:20])
    for name in (*columns.text, *((columns.label,) if columns.label else ())):
        if name not in names:
            raise UserError(f"{source}: no column is called {name!r}; its columns are {listed}")
    text = columns.text or next((usual for usual in _TEXT_COLUMNS if set(usual) <= set(names)), ())
    label = columns.label or next((usual for usual in _LABEL_COLUMNS if usual in names), None)
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
