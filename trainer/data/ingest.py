"""Read every row of a source once: check it, find its class, and put it on disk for the steps that follow."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from server.errors import UserError
from trainer.data.dataset import RowWriter
from trainer.data.sources import Source
from trainer.data.tables import Row
from trainer.monitoring.console import Progress, say

CHUNK = 2048  # rows read, tokenised and written at a time: a few megabytes


@dataclass
class BadRows:
    policy: str
    file: IO[str]
    counts: Counter[str] = field(default_factory=Counter)

    def found(self, source: str, line: int, reason: str, detail: str) -> None:
        if self.policy == "stop":
            raise UserError(
                f"{source}, line {line}: {reason}: {detail}. Mend the row, or pass --bad-rows skip to leave such rows out"
            )
        self.counts[reason] += 1
        json.dump({"file": source, "line": line, "reason": reason, "detail": detail}, self.file, ensure_ascii=False)
        self.file.write("\n")

    def report(self) -> int:
        """Say how many rows were skipped and why; returns how many."""
        if self.counts:
            listed = ", ".join(f"{reason} {count:,}" for reason, count in self.counts.most_common())
            say(
                f"preprocess: skipped {self.counts.total():,} bad rows ({listed}); bad_rows.jsonl in the dataset folder lists them"
            )
        return self.counts.total()


@dataclass(frozen=True)
class Staged:
    """Rows read and checked, on disk; their classes, and the class of each by number."""

    folder: Path
    classes: tuple[str, ...]
    labels: npt.NDArray[np.int32]


def stage(source: Source, folder: Path, bad: BadRows, *, known: tuple[str, ...]) -> Staged:
    """Read every row once, and write the good ones to a folder; the classes are `known` or those that the rows have."""
    numbers = {name: number for number, name in enumerate(known)}
    with RowWriter(folder) as writer, Progress(f"preprocess: reading {source.name}", None, "rows") as progress:
        for chunk in _chunks(_classified(source, bad, numbers, fixed=bool(known))):
            writer.append(*zip(*chunk, strict=True))
            progress.advance(len(chunk))
    labels = np.fromfile(folder / "labels.bin", dtype=np.int32)
    if not len(labels):
        raise UserError(f"{source.name}: holds no row that can be used")
    if known:
        return Staged(folder, known, labels)
    classes = tuple(sorted(numbers, key=_class_order(numbers)))
    places = {name: place for place, name in enumerate(classes)}
    renumbered = np.array([places[name] for name in numbers], dtype=np.int32)
    return Staged(folder, classes, renumbered[labels])


def check_classes(source: Source, staged: Staged) -> None:
    """UserError when the classes of these training rows are none to learn."""
    rows, found = len(staged.labels), np.unique(staged.labels)
    names = ", ".join(staged.classes[number][:40] for number in found[:5])
    if len(found) < 2:
        raise UserError(f"{source.name}: all {rows:,} rows are of one class, {names}; a classifier needs two or more")
    if len(found) > max(2, rows // 2):
        raise UserError(
            f"{source.name}: its {rows:,} rows have {len(found):,} classes ({names}, …); is --label-column right?"
        )


def _classified(
    source: Source, bad: BadRows, numbers: dict[str, int], *, fixed: bool
) -> Iterator[tuple[bytes, int, int]]:
    """(text as UTF-8, class number, line) of each good row; a new class gets the next number unless they are fixed."""
    for file, row in source.read():
        if not isinstance(row, Row):
            bad.found(file, row.line, row.reason, row.detail)
        elif row.label not in numbers and fixed:
            listed = ", ".join(list(numbers)[:10])
            bad.found(file, row.line, "unknown class", f"{row.label[:60]!r} is none of {listed}")
        else:
            yield row.text.encode(), numbers.setdefault(row.label, len(numbers)), row.line


def _class_order(names: Iterable[str]) -> Callable[[str], float | str]:
    return float if all(re.fullmatch(r"-?\d+(\.\d+)?", name) for name in names) else str


def _chunks(rows: Iterator[tuple[bytes, int, int]]) -> Iterator[list[tuple[bytes, int, int]]]:
    chunk = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
