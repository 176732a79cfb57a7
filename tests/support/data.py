"""Small tables, written as users have them."""

import csv
import gzip
import io
import json
import lzma
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

AG_NEWS = Path(os.environ.get("AG_NEWS") or Path(__file__).parents[3] / "shared" / "data" / "ag_news")
"""The real data set, which is no part of the project: the variable AG_NEWS names its folder, and tests without it are skipped."""

needs_ag_news = pytest.mark.skipif(not AG_NEWS.is_dir(), reason=f"needs AG News; {AG_NEWS} is no folder: set AG_NEWS")

_SUBJECTS = ("The committee", "A young team", "The old mill", "Our neighbour", "One engineer", "The night train")
_ENDINGS = ("late in the evening", "without a word", "for the third time", "before the rain", "in front of everyone")


def labelled(count: int, classes: Sequence[str] = ("bad", "good")) -> list[tuple[str, str]]:
    """Makes (text, class) rows, all texts different, the classes in turn."""
    return [
        (
            f"{_SUBJECTS[number % 6]} was {classes[number % len(classes)]} {_ENDINGS[number % 5]}, number {number}.",
            classes[number % len(classes)],
        )
        for number in range(count)
    ]


def write(path: Path, content: str | bytes) -> Path:
    """Writes a file, compressed as its suffix requires."""
    packed = content.encode() if isinstance(content, str) else content
    if path.suffix == ".gz":
        packed = gzip.compress(packed)
    elif path.suffix == ".xz":
        packed = lzma.compress(packed)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(packed)
    return path


def write_csv(path: Path, rows: Iterable[Sequence[object]], header: Sequence[str] = ("text", "label")) -> Path:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([header, *rows] if header else rows)
    return write(path, file.getvalue())


def write_json_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> Path:
    return write(path, "".join(json.dumps(record) + "\n" for record in records))


def write_parquet(path: Path, columns: Mapping[str, Any]) -> Path:
    import pyarrow as pa
    from pyarrow import parquet

    file = io.BytesIO()
    parquet.write_table(pa.table(dict(columns)), file)
    return write(path, file.getvalue())
