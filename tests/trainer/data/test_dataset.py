"""The dataset folder: its files, memory maps and format."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.errors import UserError
from tests.support.data import labelled, write_csv
from tests.support.datasets import all_rows, make
from trainer.config import PreprocessConfig
from trainer.data.dataset import Dataset
from trainer.preprocess import preprocess


def test_every_row_that_comes_in_is_in_one_split(tmp_path: Path) -> None:
    came_in = labelled(301, classes=("a", "b", "c"))
    dataset = make(write_csv(tmp_path / "rows.csv", came_in), tmp_path / "dataset")
    assert sorted(all_rows(dataset)) == sorted(came_in)
    assert dataset.info["bad_rows"] == {}
    assert dataset.info["unused_rows"] == 0
    assert sorted(path.name for path in dataset.folder.iterdir()) == [
        "dataset.json", "labels.bin", "lines.bin", "splits.bin", "texts.bin", "texts.ends", "tokenizer", "tokens.bin", "tokens.ends",
    ]  # fmt: skip


def test_tokens_and_texts_are_read_through_memory_maps(sample: Dataset) -> None:
    def is_mapped(array: Any) -> bool:  # noqa: ANN401 - numpy's base may be anything
        return isinstance(array, np.memmap) or (array is not None and is_mapped(getattr(array, "base", None)))

    assert is_mapped(sample.train.tokens(17))
    assert is_mapped(sample.train._texts[17])
    assert is_mapped(sample.train._lines)
    with pytest.raises(ValueError, match="read-only"):
        sample.train.tokens(17)[0] = 0


def test_a_dataset_of_an_older_format_is_refused_and_made_anew(tmp_path: Path) -> None:
    config, output = PreprocessConfig(data="sample:200"), tmp_path / "dataset"
    made = preprocess(config, output)
    older = json.loads((output / "dataset.json").read_text("utf-8")) | {"fingerprint": "of another format"}
    del older["format"]
    (output / "dataset.json").write_text(json.dumps(older), "utf-8")
    with pytest.raises(
        UserError, match=r"has dataset format 1, this .* reads format 3; run the preprocess .* add --resume never"
    ):
        Dataset(output)
    assert preprocess(config, output) == made
    assert len(Dataset(output).train) == made["splits"]["train"]["rows"]


def test_a_folder_without_a_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"is no dataset folder, it has no dataset\.json; write one with the preprocess"
    ):
        Dataset(tmp_path)
