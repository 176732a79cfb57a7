"""The columns of a table that make the text and the class, and the rows that are made of them."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from server.errors import UserError
from trainer.data.classes import class_name

_TEXT_COLUMNS = (("title", "description"), ("text",), ("sentence",), ("content",), ("headline",), ("title",))
_LABEL_COLUMNS = (("label",), ("class",), ("class index",), ("category",), ("target",), ("topic",))


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


class Layout(NamedTuple):
    """Columns of the training rows, which all other rows of the data set have too."""

    text: tuple[str, ...]
    """Names of the columns that are joined to the text; their numbers from 1 where there is no header."""
    label: str
    width: int = 0
    """Fields of a row of a file without a header, 0 for a table whose columns have names."""
    separator: str = ","
    """The character between the fields of a file without a header."""
    classes: tuple[str, ...] = ()
    """Names of the classes that the class column numbers from 0, where the file defines them."""

    @property
    def named(self) -> dict[str, Any]:
        """The names of the columns, as dataset.json has them; their numbers from 1 where there is no header."""
        return {"text": list(self.text), "label": self.label}

    @property
    def numbers(self) -> list[str]:
        """Names that the columns have where there is no header: their numbers."""
        return [str(number) for number in range(1, self.width + 1)]

    def fits(self, fields: Sequence[str]) -> bool:
        """Returns True if the header of a file has these columns."""
        return {name.lower() for name in (*self.text, self.label)} <= {name.lower() for name in fields}

    def described(self) -> str:
        if self.width:
            return f"no header: text from {_numbered(self.text)}, class from {_numbered([self.label])}"
        return f"text from {_quoted(self.text)}, class from {_quoted([self.label])}"


def find_layout(source: Path | str, columns: Columns, names: Counter[str] | Sequence[str]) -> Layout:
    """Returns the columns that the user named, or else the usual ones of most records; UserError when none fits."""
    text = find_text_columns(source, columns, names)
    label = columns.label or "".join(_usual(_LABEL_COLUMNS, [name for name in names if name not in text], names))
    if not label:
        raise UserError(f"{source}: which column is the class? {_choose('label', names)}")
    return Layout(text, label)


def find_layout_without_header(source: Path | str, columns: Columns, rows: Sequence[Sequence[str]]) -> Layout:
    """Returns the columns that the user numbered; else the class is the one column of few values, the text those of words."""
    layout = Layout(columns.text, columns.label or "", width=len(rows[0]))
    for number in (*columns.text, *([columns.label] if columns.label else [])):
        if number not in layout.numbers:
            raise UserError(
                f"{source}: there is no column {number}; its rows have {layout.width} fields, without a header"
            )
    values = dict(zip(layout.numbers, zip(*rows, strict=True), strict=True))
    worded = [number for number in values if sum(" " in text.strip() for text in values[number]) * 2 >= len(rows)]
    few = [number for number in values if number not in columns.text and len({*values[number]}) <= len(rows) // 2]
    labels = [number for number in few if number not in worded] or few
    label = columns.label or (labels[0] if len(labels) == 1 else "")
    text = columns.text or tuple(number for number in worded if number != label)
    if not (text and label):
        raise UserError(
            f"{source}: has no header, and its rows do not show which column is the class and which the text; "
            "give their numbers, such as --label-column 1 --text-column 2,3"
        )
    return layout._replace(text=text, label=label)


def is_number(field: str) -> bool:
    return re.fullmatch(r"\s*-?\d+(\.\d+)?\s*", field) is not None


def find_text_columns(source: Path | str, columns: Columns, names: Counter[str] | Sequence[str]) -> tuple[str, ...]:
    """Returns the user's or else the usual text columns; UserError when a column that the user named is missing."""
    for name in (*columns.text, *((columns.label,) if columns.label else ())):
        if name not in names:
            raise UserError(f"{source}: no column is called {name!r}; its columns are {_listed(names)}")
    if not (text := columns.text or _usual(_TEXT_COLUMNS, names, names)):
        raise UserError(f"{source}: which column is the text? {_choose('text', names)}")
    return text


def _usual(
    choices: Iterable[tuple[str, ...]], names: Iterable[str], records: Counter[str] | Sequence[str]
) -> tuple[str, ...]:
    """Returns the first choice that is there; the one that most records have, where their columns differ."""
    known = {name.lower(): name for name in reversed(list(names))}
    found = [tuple(known[name] for name in choice) for choice in choices if set(choice) <= known.keys()]
    if isinstance(records, Counter):
        return max(found, key=lambda choice: max(records[name] for name in choice), default=())
    return found[0] if found else ()


class Table:
    """Makes rows of records that have named columns.

    `class_names` holds the class names of columns that number them from 0.
    """

    def __init__(
        self,
        source: Path | str,
        layout: Layout,
        names: Sequence[str],
        *,
        class_names: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        self._names = names
        self.text = tuple(_find(source, name, names) for name in layout.text)
        self.label = _find(source, layout.label, names)
        self._numbered = {
            str(number): class_name(name) for number, name in enumerate((class_names or {}).get(self.label, ()))
        }

    def row_of_fields(self, fields: Sequence[str], line: int) -> Row | BadRow:
        return self.row(dict(zip(self._names, fields, strict=True)), line)

    def row(self, record: Mapping[str, Any], line: int) -> Row | BadRow:
        """Makes a row of a record; a text column that it lacks is empty, as long as it has another."""
        missing = "" if any(name in record for name in self.text) else " and no ".join(map(repr, self.text))
        if missing or self.label not in record:
            return BadRow("missing column", f"no {missing or repr(self.label)}", line)
        for name in self.text:
            if not isinstance(record.get(name), str | None):
                return BadRow("text is no string", f"{name!r} is {record[name]!r:.60}", line)
        label = record[self.label]
        if not isinstance(label, str | int | float | None):
            return BadRow("class is no name", f"{self.label!r} is {label!r:.60}, not a name or a number", line)
        if isinstance(label, float):
            label = None if math.isnan(label) else int(label) if label.is_integer() else label
        name = "" if label is None else class_name(str(label))
        return _make_row((record.get(name) or "" for name in self.text), self._numbered.get(name, name), line)


def _find(source: Path | str, wanted: str, names: Sequence[str]) -> str:
    """Returns the column of this name, in capitals or not; UserError when there is none, or are two."""
    same = [name for name in names if name == wanted] or [name for name in names if name.lower() == wanted.lower()]
    if not same:
        raise UserError(f"{source}: no column is called {wanted!r}; its columns are {_listed(names)}")
    if len(same) > 1:
        raise UserError(f"{source}: {len(same)} columns are called {same[0]!r}; rename all but one")
    return same[0]


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


def _choose(kind: str, names: Iterable[str]) -> str:
    return f"Name it with --{kind}-column; its columns are {_listed(names)}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(name.encode("utf-8", "backslashreplace").decode()[:40] for name in list(names)[:20])


def _quoted(names: Sequence[str]) -> str:
    return " and ".join(repr(name) for name in names)


def _numbered(numbers: Sequence[str]) -> str:
    return f"column{'s' if len(numbers) > 1 else ''} {' and '.join(numbers)}"
