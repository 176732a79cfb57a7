"""Read every row of the sources once, check it, number its class and write it; then tokenise the rows that are used."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerFast

from server.errors import UserError
from trainer.data.classes import code_points, order_classes
from trainer.data.columns import Row
from trainer.data.dataset import CHUNK, SPLITS, UNUSED, RaggedWriter, read_texts
from trainer.data.sources import Data, Source
from trainer.data.tokenizer import use_all_cores
from trainer.monitoring.console import Progress, print0

Int32s = npt.NDArray[np.int32]
_Classified = tuple[bytes, int, int]  # text as UTF-8, class number, line


@dataclass
class BadRows:
    """Rows that cannot be used: the first one stops the step, or all are counted by reason and written to a file."""

    policy: str
    file: IO[str]
    counts: Counter[str] = field(default_factory=Counter)
    rows: str = "training rows"
    """The rows that are read now."""
    rows_of: Counter[str] = field(default_factory=Counter)

    def add(self, source: str, line: int, reason: str, detail: str) -> None:
        if self.policy == "stop":
            raise UserError(
                f"{source}, line {line}: {reason}: {detail}. Fix the row, or pass --bad-rows skip to leave such rows out"
            )
        self.counts[reason] += 1
        self.rows_of[self.rows] += 1
        json.dump({"file": source, "line": line, "reason": reason, "detail": detail}, self.file, ensure_ascii=False)
        self.file.write("\n")

    def report(self) -> None:
        if self.counts:
            listed = ", ".join(f"{reason} {count:,}" for reason, count in self.counts.most_common())
            split = " and ".join(f"{count:,} {rows}" for rows, count in self.rows_of.items())
            print0(f"preprocess: skipped {split} as bad ({listed}); bad_rows.jsonl in the dataset folder lists them")


@dataclass(frozen=True)
class Ingested:
    classes: tuple[str, ...]
    labels: Int32s
    """Class number of each row, first those of the training source, then those of the test source."""
    train_rows: int


def ingest(data: Data, folder: Path, bad: BadRows) -> Ingested:
    """Writes the good rows of both sources; classes are those that the data set names, or else those of its training rows."""
    found = dict(data.numbers)
    with RaggedWriter(folder, "texts", np.uint8) as texts, (folder / "lines.bin").open("wb") as lines:
        labels = _write(data.train, texts, lines, _classify(data.train, bad, found, fixed=bool(data.classes)))
        train_rows = len(labels)
        classes, known = data.classes, data.numbers
        if not classes:
            classes, known = order_classes(found, ag_news=data.ag_news)
            labels = np.array([known[name] for name in found], dtype=np.int32)[labels]
        _check_classes(data.train, classes, labels)
        if data.test:
            bad.rows = "test rows"
            test = _write(data.test, texts, lines, _classify(data.test, bad, dict(known), fixed=True))
            labels = np.concatenate([labels, test])
    labels.tofile(folder / "labels.bin")
    return Ingested(classes, labels, train_rows)


def _write(source: Source, texts: RaggedWriter, lines: IO[bytes], rows: Iterator[_Classified]) -> Int32s:
    """Writes rows as they come; returns their class numbers."""
    labels = [np.empty(0, dtype=np.int32)]
    with Progress(f"preprocess: reading {source.name}", None, "rows") as progress:
        while chunk := list(islice(rows, CHUNK)):
            texts.append([text for text, _, _ in chunk])
            lines.write(np.array([line for _, _, line in chunk], dtype=np.int64).tobytes())
            labels.append(np.array([label for _, label, _ in chunk], dtype=np.int32))
            progress.advance(len(chunk))
    if len(labels) == 1:
        raise UserError(f"{source.name}: holds no row that can be used")
    return np.concatenate(labels)


def _classify(source: Source, bad: BadRows, numbers: dict[str, int], *, fixed: bool) -> Iterator[_Classified]:
    """Yields the good rows; a new class gets the next number unless they are fixed."""
    for file, row in source.read():
        if not isinstance(row, Row):
            bad.add(file, row.line, row.reason, row.detail)
        elif row.label not in numbers and fixed:
            written = list(numbers)  # the names, then the numbers that may be written for them
            names, places = written[: (count := len(set(numbers.values())))], written[count:]
            listed = ", ".join(names[:10]) + (f", nor a number from {places[0]} to {places[-1]}" if places else "")
            bad.add(file, row.line, "unknown class", f"{code_points(row.label[:60])!r} is none of {listed}")
        else:
            yield row.text.encode(), numbers.setdefault(row.label, len(numbers)), row.line


def _check_classes(source: Source, classes: tuple[str, ...], labels: Int32s) -> None:
    rows, found = len(labels), np.unique(labels)
    names = ", ".join(classes[number][:40] for number in found[:5])
    if len(found) < 2:
        raise UserError(f"{source.name}: all {rows:,} rows are of one class, {names}; a classifier needs two or more")
    if len(found) > max(2, rows // 2):
        raise UserError(
            f"{source.name}: its {rows:,} rows have {len(found):,} classes ({names}, …); is --label-column right?"
        )


def tokenise(
    folder: Path, tokenizer: PreTrainedTokenizerFast, rows: Ingested, splits: npt.NDArray[np.uint8], *, max_length: int
) -> dict[str, Any]:
    """Writes the tokens of all rows that are used; returns the counts of each split."""
    use_all_cores()
    fast = tokenizer.backend_tokenizer
    fast.no_padding()
    fast.enable_truncation(max_length, direction=tokenizer.truncation_side)
    no_tokens = [tokenizer.pad_token_id]  # what the server computes for a text of which nothing is left
    counts = [_Counts(max_length, len(rows.classes)) for _ in SPLITS]
    with (
        Progress("preprocess: tokenising", len(splits), "rows") as progress,
        RaggedWriter(folder, "tokens", token_dtype(tokenizer)) as writer,
    ):
        for place, texts in read_texts(folder):
            used = np.flatnonzero(splits[place] != UNUSED)
            encodings = fast.encode_batch_fast([texts[row] for row in used])
            tokens: list[list[int]] = [[] for _ in texts]
            truncated = np.zeros(len(texts), dtype=bool)
            for row, encoding in zip(used, encodings, strict=True):
                tokens[row], truncated[row] = encoding.ids or no_tokens, bool(encoding.overflowing)
            writer.append(tokens)
            lengths = np.array([len(row) for row in tokens])
            for number, count in enumerate(counts):
                chosen = splits[place] == number
                count.add(lengths[chosen], rows.labels[place][chosen], truncated[chosen])
            progress.advance(len(texts))
    return {name: count.summary(rows.classes) for name, count in zip(SPLITS, counts, strict=True)}


def token_dtype(tokenizer: PreTrainedTokenizerFast) -> np.dtype[Any]:
    return np.dtype(np.uint16 if len(tokenizer) <= np.iinfo(np.uint16).max else np.int32)


class _Counts:
    """Counts rows by length and by class, in memory that does not grow with the rows."""

    def __init__(self, max_length: int, classes: int) -> None:
        self._lengths = np.zeros(max_length + 1, dtype=np.int64)
        self._labels = np.zeros(classes, dtype=np.int64)
        self._truncated = 0

    def add(self, lengths: npt.NDArray[Any], labels: Int32s, truncated: npt.NDArray[np.bool_]) -> None:
        self._lengths += np.bincount(lengths, minlength=len(self._lengths))
        self._labels += np.bincount(labels, minlength=len(self._labels))
        self._truncated += int(truncated.sum())

    def summary(self, classes: tuple[str, ...]) -> dict[str, Any]:
        rows = int(self._lengths.sum())
        below = np.cumsum(self._lengths)
        return {
            "rows": rows,
            "tokens": int((self._lengths * np.arange(len(self._lengths))).sum()),
            "length_percentiles": {
                str(percent): int(np.searchsorted(below, rows * percent / 100)) for percent in (5, 50, 95, 99)
            },
            "truncated": self._truncated,
            "classes": dict(zip(classes, self._labels.tolist(), strict=True)),
        }
