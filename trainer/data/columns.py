"""Rows of a table, good or bad, and the columns that make them."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from server.errors import UserError

AG_NEWS_CLASSES = ("World", "Sports", "Business", "Sci/Tech")
_TEXT_COLUMNS = (("title", "description"), ("text",), ("sentence",), ("content",), ("headline",), ("title",))
_LABEL_COLUMNS = ("label", "class", "class index", "category", "target", "topic")


class Row(NamedTuple):
    text: str
    label: str
    line: int


class BadRow(NamedTuple):
    reason: str
    detail: str
    line: int


Rows = Iterator[Row | BadRow]


class Columns(NamedTuple):
    """What the user said of the columns; what is empty is found by the usual names."""

    text: tuple[str, ...] = ()
    label: str | None = None
    classes: tuple[str, ...] = ()
    numbered: tuple[str, ...] = AG_NEWS_CLASSES
    """Names of the classes 1, 2, … of rows without a header."""


class Table:
    """Makes rows of records that have named columns.

    `class_names` holds, for a column that counts classes from 0, their names; `classes` those of the class column.
    """

    def __init__(
        self, source: Path | str, columns: Columns, names: Sequence[str], *, class_names: Mapping[str, tuple[str, ...]]
    ) -> None:
        self.text, self.label = find_columns(source, columns, names)
        self.classes = class_names.get(self.label, ())
        # Where a number is itself the name that the user gives a class, numbers stand for themselves.
        named = self.classes or ([] if any(name.isdecimal() for name in columns.classes) else columns.classes)
        self._numbered = {str(number): name for number, name in enumerate(named)}

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
        return make_row((record[name] or "" for name in self.text), self._numbered.get(name, name), line)


def join_text(parts: Iterable[str]) -> str:
    """The text that columns make."""
    return " ".join(stripped for part in parts if (stripped := part.strip()))


def make_row(parts: Iterable[str], label: str, line: int) -> Row | BadRow:
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


def find_columns(source: Path | str, columns: Columns, names: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """The text columns and the class column, as the user said or by the usual names."""
    text = find_text_columns(source, columns, names)
    known = {name.lower(): name for name in reversed(names)}
    label = columns.label or next(
        (known[name] for name in _LABEL_COLUMNS if name in known and known[name] not in text), None
    )
    if not label:
        raise UserError(f"{source}: which column is the class? Say --label-column; its columns are {_listed(names)}")
    return text, label


def find_text_columns(source: Path | str, columns: Columns, names: Sequence[str]) -> tuple[str, ...]:
    """The text columns, as the user said or by the usual names; every column that the user named is there."""
    for name in (*columns.text, *((columns.label,) if columns.label else ())):
        if name not in names:
            raise UserError(f"{source}: no column is called {name!r}; its columns are {_listed(names)}")
    known = {name.lower(): name for name in reversed(names)}
    usual_text = next((usual for usual in _TEXT_COLUMNS if set(usual) <= known.keys()), ())
    text = columns.text or tuple(known[usual] for usual in usual_text)
    if not text:
        raise UserError(f"{source}: which column is the text? Say --text-column; its columns are {_listed(names)}")
    return text


def _listed(names: Sequence[str]) -> str:
    return ", ".join(name.encode("utf-8", "backslashreplace").decode()[:40] for name in names[:20])
