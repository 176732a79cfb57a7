"""Datasets that tests make with preprocess, and their rows."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from server.errors import UserError
from trainer.config import PreprocessConfig
from trainer.data.dataset import Dataset, Split
from trainer.preprocess import preprocess


def make(data: Path | str, output: Path, **settings: Any) -> Dataset:  # noqa: ANN401 - as PreprocessConfig takes it
    preprocess(PreprocessConfig(data=str(data), **settings), output)
    return Dataset(output)


def refusal(data: Path | str, output: Path, **settings: Any) -> str:  # noqa: ANN401 - as PreprocessConfig takes it
    """Returns the error for rows that cannot be used; nothing of them is left where the dataset would be."""
    beside = sorted(output.parent.iterdir())
    with pytest.raises(UserError) as refused:
        make(data, output, **settings)
    assert sorted(output.parent.iterdir()) == beside
    assert "\n" not in str(refused.value)
    return str(refused.value)


def rows(split: Split, classes: list[str]) -> list[tuple[str, str]]:
    return [(split.text(row), classes[split.labels[row]]) for row in range(len(split))]


def all_rows(dataset: Dataset) -> list[tuple[str, str]]:
    return [
        pair for split in (dataset.train, dataset.validation, dataset.test) for pair in rows(split, dataset.classes)
    ]


def of_each_class(split: Split, dataset: Dataset) -> dict[str, int]:
    return dict(Counter(label for _, label in rows(split, dataset.classes)))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
