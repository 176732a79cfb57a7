"""Reads tables of any kind in tests."""

from pathlib import Path
from typing import Any

import pytest

from server.errors import UserError
from tests.support.data import write_csv, write_json_lines, write_parquet
from trainer.data.columns import BadRow, Columns, Row
from trainer.data.tables import find_columns, read_table

ENDINGS = ["", ".gz", ".xz"]
FORMATS = [f".{kind}{ending}" for kind in ("csv", "jsonl", "json", "parquet") for ending in ENDINGS]


def read(path: Path, **columns: Any) -> list[Row | BadRow]:  # noqa: ANN401 - as Columns takes it
    return list(read_table(path, find_columns([path], Columns(**columns))))


def found(path: Path, **columns: Any) -> list[tuple[str, str]]:  # noqa: ANN401 - as Columns takes it
    """Returns (text, class) of rows that must all be good."""
    rows = read(path, **columns)
    assert all(isinstance(row, Row) for row in rows), rows
    return [(row.text, row.label) for row in rows if isinstance(row, Row)]


def bad(path: Path, **columns: Any) -> list[BadRow]:  # noqa: ANN401 - as Columns takes it
    return [row for row in read(path, **columns) if isinstance(row, BadRow)]


def the_bad_row(path: Path, **columns: Any) -> BadRow:  # noqa: ANN401 - as Columns takes it
    (row,) = bad(path, **columns)
    return row


def refusal(path: Path, **columns: Any) -> str:  # noqa: ANN401 - as Columns takes it
    """Returns the error that refuses the whole file."""
    with pytest.raises(UserError) as refused:
        read(path, **columns)
    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)
    return str(refused.value).removeprefix(str(path))


def write_table(path: Path, columns: dict[str, list[Any]]) -> Path:
    """Writes the same table as a file of any kind."""
    if ".parquet" in path.name:
        return write_parquet(path, columns)
    rows = list(zip(*columns.values(), strict=True))
    if ".json" in path.name:
        return write_json_lines(path, [dict(zip(columns, row, strict=True)) for row in rows])
    return write_csv(path, rows, header=list(columns))
