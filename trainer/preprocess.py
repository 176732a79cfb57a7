"""preprocess: rows of any source to a dataset folder of tokens, once.

python -m trainer.preprocess --data my.csv --output runs/x/dataset
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerFast

from server.cli import fail, parse
from server.errors import UserError
from server.files import atomic_directory, link_folder, write_json
from trainer.config import PreprocessConfig
from trainer.data.dataset import SPLITS, RowWriter, read_info, read_staged
from trainer.data.ingest import CHUNK, BadRows, Staged, check_classes, stage
from trainer.data.sources import Data, find_data
from trainer.data.splits import UNUSED, count_duplicates, split_rows, test_digest
from trainer.data.tokenizer import check_model, load_tokenizer, tokenizer_digest, train_tokenizer, use_all_cores
from trainer.monitoring.console import Progress, say

FORMAT = 1  # raise it when the same settings would write another dataset
_TINY_TRAINING_TEXTS = 100_000


class PreprocessArguments(PreprocessConfig):
    """Turn labelled texts into a dataset folder of tokens."""

    output: Path
    """Dataset folder to write."""


def preprocess(config: PreprocessConfig, output: Path, *, earlier: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Write the dataset folder of these settings, or link one of `earlier` that has the same fingerprint.

    Returns what stands in its dataset.json. UserError for settings or rows that cannot be used.
    """
    check_model(config.model)
    data = find_data(config)
    for remark in data.remarks:
        say(f"preprocess: {remark}")
    tokenizer = None if config.model == "tiny" else load_tokenizer(config.model)
    fingerprint = _fingerprint(config, data, tokenizer)
    for folder in (output, *earlier):
        if (folder / "dataset.json").is_file() and read_info(folder).get("fingerprint") == fingerprint:
            if folder != output:
                link_folder(folder, output)
            say(f"preprocess: the same data, tokenizer and settings were preprocessed before: used again from {folder}")
            return read_info(output)
    with atomic_directory(output) as folder:
        info = _make(config, data, tokenizer, folder) | {"fingerprint": fingerprint}
        write_json(folder / "dataset.json", info)
    return info


def _fingerprint(config: PreprocessConfig, data: Data, tokenizer: PreTrainedTokenizerFast | None) -> str:
    made_by = tokenizer_digest(tokenizer) if tokenizer else "tiny"
    settings = config.model_dump(mode="json", exclude={"data", "test_data", "model"})
    facts = {"format": FORMAT, "title": data.title, "data": data.digest, "tokenizer": made_by, "settings": settings}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _make(
    config: PreprocessConfig, data: Data, tokenizer: PreTrainedTokenizerFast | None, folder: Path
) -> dict[str, Any]:
    bad_path = folder / "bad_rows.jsonl"
    with bad_path.open("w", encoding="utf-8") as bad_file:
        bad = BadRows(config.bad_rows, bad_file)
        train = stage(data.train, folder / "rows-train", bad, known=data.classes)
        check_classes(data.train, train)
        test = stage(data.test, folder / "rows-test", bad, known=train.classes) if data.test else None
    if not bad.report():
        bad_path.unlink()
    fractions = {"test": 0.0 if test else config.test_fraction, "validation": config.validation_fraction}
    assigned = split_rows(train.labels, fractions=fractions, max_train_rows=config.max_train_rows, seed=config.seed)
    if tokenizer is None:
        tokenizer = train_tokenizer(_some_training_texts(train, assigned), max_length=config.max_length)
    tokenizer.save_pretrained(folder / "tokenizer")
    parts = [(train, assigned)]
    if test:
        parts.append((test, np.full(len(test.labels), SPLITS.index("test"), dtype=np.uint8)))
    splits = _tokenise(parts, tokenizer, folder, max_length=config.max_length, classes=train.classes)
    for staged, _ in parts:
        shutil.rmtree(staged.folder)
    info = {
        "title": data.title,
        "classes": list(train.classes),
        "max_length": config.max_length,
        "pad_token_id": tokenizer.pad_token_id,
        "vocabulary_size": len(tokenizer),
        "tokenizer": tokenizer_digest(tokenizer),
        "token_dtype": str(_token_dtype(tokenizer)),
        "bad_rows": dict(bad.counts),
        "unused_rows": int((assigned == UNUSED).sum()),
        "test_texts_also_in_train": count_duplicates(folder),
        "test_digest": test_digest(folder),
        "splits": splits,
    }
    _describe(info)
    return info


def _some_training_texts(staged: Staged, assigned: npt.NDArray[np.uint8]) -> Iterator[str]:
    wanted = _TINY_TRAINING_TEXTS
    for rows, texts, _ in read_staged(staged.folder, CHUNK):
        yield from (text for text, split in zip(texts, assigned[rows], strict=True) if split == SPLITS.index("train"))
        wanted -= len(texts)
        if wanted <= 0:
            return


def _tokenise(
    parts: list[tuple[Staged, npt.NDArray[np.uint8]]],
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    *,
    max_length: int,
    classes: tuple[str, ...],
) -> dict[str, Any]:
    """Write the rows of each split with their tokens; returns what is counted of each."""
    use_all_cores()
    fast = tokenizer.backend_tokenizer
    fast.no_padding()
    fast.enable_truncation(max_length)
    counts = [_Counts(max_length, len(classes)) for _ in SPLITS]
    with (
        ExitStack() as stack,
        Progress("preprocess: tokenising", sum(len(staged.labels) for staged, _ in parts), "rows") as progress,
    ):
        writers = [
            stack.enter_context(RowWriter(folder / name, token_dtype=_token_dtype(tokenizer))) for name in SPLITS
        ]
        for staged, assigned in parts:
            for rows, texts, lines in read_staged(staged.folder, CHUNK):
                splits, labels = assigned[rows], staged.labels[rows]
                encodings = fast.encode_batch_fast(texts)
                for number, writer in enumerate(writers):
                    chosen = np.flatnonzero(splits == number)
                    writer.append([texts[row].encode() for row in chosen], labels[chosen], lines[chosen])
                    writer.append_tokens([encodings[row].ids for row in chosen])
                    counts[number].add([len(encodings[row].ids) for row in chosen], labels[chosen])
                    counts[number].truncated += sum(bool(encodings[row].overflowing) for row in chosen)
                progress.advance(len(texts))
    return {name: count.summary(classes) for name, count in zip(SPLITS, counts, strict=True)}


class _Counts:
    """Rows by length and by class, in memory that does not grow with the rows."""

    def __init__(self, max_length: int, classes: int) -> None:
        self._lengths = np.zeros(max_length + 1, dtype=np.int64)
        self._labels = np.zeros(classes, dtype=np.int64)
        self.truncated = 0

    def add(self, lengths: list[int], labels: npt.NDArray[np.int32]) -> None:
        self._lengths += np.bincount(lengths, minlength=len(self._lengths)).astype(np.int64)
        self._labels += np.bincount(labels, minlength=len(self._labels))

    def summary(self, classes: tuple[str, ...]) -> dict[str, Any]:
        rows = int(self._lengths.sum())
        tokens = int((self._lengths * np.arange(len(self._lengths))).sum())
        below = np.cumsum(self._lengths)
        percentiles = {str(percent): int(np.searchsorted(below, rows * percent / 100)) for percent in (5, 50, 95, 99)}
        return {
            "rows": rows,
            "tokens": tokens,
            "length_percentiles": percentiles,
            "truncated": self.truncated,
            "classes": dict(zip(classes, self._labels.tolist(), strict=True)),
        }


def _describe(info: dict[str, Any]) -> None:
    for name, split in info["splits"].items():
        rows = split["rows"]
        balance = ", ".join(
            f"{label} {count:,} ({count / rows:.1%})" for label, count in list(split["classes"].items())[:12]
        )
        lengths = "/".join(str(value) for value in split["length_percentiles"].values())
        say(f"preprocess: {name}: {rows:,} rows: {balance}")
        say(
            f"preprocess: {name}: {split['tokens'] / rows:.1f} tokens a row, percentiles 5/50/95/99 {lengths}; "
            f"{split['truncated']:,} rows ({split['truncated'] / rows:.1%}) truncated at {info['max_length']}"
        )
    if info["unused_rows"]:
        say(f"preprocess: {info['unused_rows']:,} training rows are left out by max_train_rows")
    say(f"preprocess: {info['test_texts_also_in_train']:,} of the test texts stand in train too")


def _token_dtype(tokenizer: PreTrainedTokenizerFast) -> np.dtype[Any]:
    return np.dtype(np.uint16 if len(tokenizer) <= np.iinfo(np.uint16).max else np.int32)


def main() -> None:
    arguments = parse(PreprocessArguments, prog="python -m trainer.preprocess")
    try:
        preprocess(
            PreprocessConfig(**arguments.model_dump(include=set(PreprocessConfig.model_fields))), arguments.output
        )
    except UserError as error:
        fail("preprocess", error)


if __name__ == "__main__":
    main()
