"""preprocess: rows of any source to a dataset folder of tokens, once.

python -m trainer.preprocess --data my.csv --output runs/x/dataset
"""

import hashlib
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerFast

from server.cli import Command, run_command
from server.errors import UserError
from server.files import atomic_directory, link_folder, write_json
from trainer.config import PreprocessConfig, part
from trainer.data.dataset import FORMAT, SPLITS, UNUSED, read_info, read_texts
from trainer.data.ingest import BadRows, Ingested, ingest, token_dtype, tokenise
from trainer.data.sources import Data, find_data
from trainer.data.splits import (
    MOST_LISTED,
    count_repeats,
    leave_out,
    limit_rows,
    read_keys,
    split_rows,
    test_digest,
)
from trainer.data.tokenizer import check_model, load_tokenizer, padding_of, tokenizer_digest, train_tokenizer
from trainer.model.pretrained import check_encoder
from trainer.monitoring.console import print0

_TINY_TRAINING_TEXTS = 100_000


class PreprocessArguments(Command, PreprocessConfig):
    """Turn labelled texts into a dataset folder of tokens."""

    output: Path
    """Dataset folder to write."""

    def run(self) -> None:
        preprocess(part(self, PreprocessConfig), self.output)


def preprocess(config: PreprocessConfig, output: Path, *, earlier: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Writes the dataset folder of these settings, or links one of `earlier` that has the same fingerprint.

    Returns the content of its dataset.json. UserError for settings or rows that cannot be used.
    """
    check_model(config.model)
    data = find_data(config)
    for remark in (*([data.layout.described()] if data.layout else []), *data.remarks):
        print0(f"preprocess: {remark}")
    tokenizer = None if config.model == "tiny" else load_tokenizer(config.model)
    if tokenizer:
        check_encoder(config.model, tokenizer, max_length=config.max_length)
    fingerprint = _fingerprint(config, data, tokenizer)
    for folder in (output, *earlier):
        if _fingerprint_of(folder) == fingerprint:
            if folder != output:
                link_folder(folder, output)
            print0(
                f"preprocess: the same data, tokenizer and settings were preprocessed before: used again from {folder}"
            )
            return read_info(output)
    with atomic_directory(output) as folder:
        info = {"format": FORMAT, "fingerprint": fingerprint, **_write(config, data, tokenizer, folder)}
        write_json(folder / "dataset.json", info)
    _describe(info)
    return info


def _fingerprint_of(folder: Path) -> str | None:
    """Reads the fingerprint of a dataset folder that may be of another run; a damaged one is passed over with a line."""
    try:
        return read_info(folder).get("fingerprint") if (folder / "dataset.json").is_file() else None
    except UserError as error:
        print0(f"preprocess: warning: {error}; it is passed over")
        return None


def _fingerprint(config: PreprocessConfig, data: Data, tokenizer: PreTrainedTokenizerFast | None) -> str:
    made_by = tokenizer_digest(tokenizer) if tokenizer else "tiny"
    settings = config.model_dump(mode="json", exclude={"data", "test_data", "model"})
    facts = {"format": FORMAT, "title": data.title, "data": data.digest, "tokenizer": made_by, "settings": settings}
    if tokenizer:
        facts["padding"] = padding_of(tokenizer).model_dump()
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _write(
    config: PreprocessConfig, data: Data, tokenizer: PreTrainedTokenizerFast | None, folder: Path
) -> dict[str, Any]:
    bad_path = folder / "bad_rows.jsonl"
    with bad_path.open("w", encoding="utf-8") as file:
        bad = BadRows(config.bad_rows, file)
        rows = ingest(data, folder, bad)
    bad.report()
    if not bad.counts:
        bad_path.unlink()
    splits, repeats = _split(config, data, rows, folder)
    splits.tofile(folder / "splits.bin")
    if tokenizer is None:
        texts = islice(_training_texts(folder, splits), _TINY_TRAINING_TEXTS)
        tokenizer = train_tokenizer(texts, max_length=config.max_length)
    tokenizer.save_pretrained(folder / "tokenizer")
    return {
        "title": data.title,
        "columns": data.layout.named if data.layout else {"text": None, "label": None},
        "classes": list(rows.classes),
        "max_length": config.max_length,
        "padding": padding_of(tokenizer).model_dump(),
        "vocabulary_size": len(tokenizer),
        "tokenizer": tokenizer_digest(tokenizer),
        "token_dtype": str(token_dtype(tokenizer)),
        "bad_rows": dict(bad.counts),
        "unused_rows": int((splits == UNUSED).sum()) - repeats["train_rows_left_out"],
        "repeats": repeats,
        "test_digest": test_digest(folder, splits, rows.labels, rows.classes),
        "splits": tokenise(folder, tokenizer, rows, splits, max_length=config.max_length),
    }


def _split(
    config: PreprocessConfig, data: Data, rows: Ingested, folder: Path
) -> tuple[npt.NDArray[np.uint8], dict[str, int]]:
    """Returns the split of each row and the counts of repeats, which it reports."""
    keys, labels = read_keys(folder), rows.labels
    repeats = {**count_repeats(folder, keys, labels), "train_rows_left_out": 0}
    splits = np.full(len(keys), SPLITS.index("test"), dtype=np.uint8)
    own = np.arange(rows.train_rows)
    if data.test:
        shared = leave_out(keys[own], keys[rows.train_rows :], labels[own], rows.classes)
        repeats["train_rows_left_out"] = int(shared.sum())
        splits[own[shared]] = UNUSED
        own = own[~shared]
    _report_repeats(repeats)
    fractions = {"test": 0.0 if data.test else config.test_fraction, "validation": config.validation_fraction}
    splits[own] = split_rows(keys[own], labels[own], rows.classes, fractions=fractions, seed=config.seed)
    train, limit = np.flatnonzero(splits == SPLITS.index("train")), config.max_train_rows
    if limit and limit < len(train):
        splits[train] = UNUSED
        splits[train[limit_rows(keys[train], labels[train], limit, seed=config.seed)]] = SPLITS.index("train")
        print0(
            f"preprocess: max_train_rows keeps {limit:,} of {len(train):,} training rows: "
            "of each class its share, and at least one"
        )
    return splits, repeats


def _report_repeats(repeats: dict[str, int]) -> None:
    if more := repeats["exact"] + repeats["near"]:
        print0(
            f"preprocess: {more:,} rows repeat the text of another, {repeats['exact']:,} exactly and {repeats['near']:,} but for case, "
            "accents, punctuation and white space: rows of one text are in one split"
        )
    if texts := repeats["texts_of_two_classes"]:
        print0(f"preprocess: {texts:,} of the repeated texts have two classes or more")
    if rows := repeats["train_rows_left_out"]:
        print0(f"preprocess: {rows:,} training rows are left out: their texts are among the test rows")


def _training_texts(folder: Path, splits: npt.NDArray[np.uint8]) -> Iterator[str]:
    for place, texts in read_texts(folder):
        yield from (text for text, split in zip(texts, splits[place], strict=True) if split == SPLITS.index("train"))


def _describe(info: dict[str, Any]) -> None:
    for name, split in info["splits"].items():
        rows = split["rows"]
        lengths = "/".join(str(value) for value in split["length_percentiles"].values())
        print0(f"preprocess: {name}: {rows:,} rows{_balance(split['classes'], rows)}")
        print0(
            f"preprocess: {name}: {split['tokens'] / rows:.1f} tokens a row, percentiles 5/50/95/99 {lengths}; "
            f"{split['truncated']:,} rows ({split['truncated'] / rows:.1%}) truncated at {info['max_length']}"
        )


def _balance(classes: dict[str, int], rows: int) -> str:
    """Lists the rows of each class; of many, those of the largest and smallest."""
    shown = [f"{name[:40]} {count:,} ({count / rows:.1%})" for name, count in classes.items()]
    if len(shown) <= MOST_LISTED:
        return f": {', '.join(shown)}"
    order = sorted(range(len(shown)), key=lambda place: -list(classes.values())[place])
    half, empty = MOST_LISTED // 2, sum(not count for count in classes.values())
    largest, smallest = (", ".join(shown[place] for place in some) for some in (order[:half], order[-half:]))
    return (
        f" of {len(shown):,} classes{f' ({empty:,} without rows)' if empty else ''}; "
        f"the largest: {largest}; the smallest: {smallest}; dataset.json has all"
    )


if __name__ == "__main__":
    run_command(PreprocessArguments, prog="python -m trainer.preprocess")
