"""Rows of Hugging Face datasets, and names that are none."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest

from server.errors import UserError
from tests.support.sources import find, refusal, rows
from trainer.config import PreprocessConfig
from trainer.data.columns import BadRow, Row
from trainer.data.sources import hub_data


def hub(**splits: tuple[list[str], list[int]]) -> datasets.DatasetDict:
    features = datasets.Features(
        {"idx": datasets.Value("int32"), "sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    )  # fmt: skip
    return datasets.DatasetDict(
        {
            name: datasets.Dataset.from_dict(
                {"idx": list(range(len(texts))), "sentence": texts, "label": labels}, features=features
            )
            for name, (texts, labels) in splits.items()
        }
    )


def hub_settings(**settings: Any) -> PreprocessConfig:  # noqa: ANN401 - as PreprocessConfig takes it
    return PreprocessConfig(data="someone/reviews", **settings)


def test_a_dataset_of_the_hub_gives_its_train_and_test_splits() -> None:
    splits = hub(train=(["fine", "poor"], [1, 0]), test=(["well", "odd"], [1, -1]), validation=(["so"], [0]))
    data = hub_data(splits, hub_settings())
    assert (data.title, data.classes) == ("someone/reviews", ("neg", "pos"))
    assert list(data.train.read()) == [
        ("someone/reviews train", Row("fine", "pos", 1)),
        ("someone/reviews train", Row("poor", "neg", 2)),
    ]
    assert rows(data.test) == [("well", "pos"), ("odd", "-1")]  # -1 is none of the classes, so a bad row later
    assert data.remarks == ("the split validation is not used: validation rows are taken from the training rows",)


def test_rows_of_the_hub_are_checked_as_those_of_files_are() -> None:
    data = hub_data(hub(train=(["fine", " "], [1, 0])), hub_settings())
    assert [row for _, row in data.train.read()] == [
        Row("fine", "pos", 1),
        BadRow("empty text", "no text in the text columns", 2),
    ]


def test_columns_of_a_hub_dataset_may_be_named() -> None:
    splits = hub(train=(["fine", "poor"], [1, 0])).rename_columns({"sentence": "review", "label": "mood"})
    assert rows(hub_data(splits, hub_settings(text_column="review", label_column="mood")).train) == [
        ("fine", "pos"),
        ("poor", "neg"),
    ]
    with pytest.raises(UserError, match="someone/reviews train: which column is the text"):
        hub_data(splits, hub_settings())


def test_a_hub_dataset_without_class_names_has_those_of_its_rows() -> None:
    splits = datasets.DatasetDict(train=datasets.Dataset.from_dict({"text": ["a", "b"], "label": ["x", "y"]}))
    data = hub_data(splits, hub_settings())
    assert (data.classes, data.test) == ((), None)
    assert rows(data.train) == [("a", "x"), ("b", "y")]


def test_a_hub_dataset_needs_a_train_split() -> None:
    with pytest.raises(UserError, match="--data someone/reviews: has no train split; it has test, unsupervised"):
        hub_data(hub(test=(["a"], [0]), unsupervised=(["b"], [1])), hub_settings())


def test_the_digest_of_a_hub_dataset_changes_with_its_rows() -> None:
    def digest(*texts: str, test: str = "t") -> str:
        return hub_data(hub(train=(list(texts), [0] * len(texts)), test=([test], [1])), hub_settings()).digest

    assert digest("a", "b") == digest("a", "b")
    assert len({digest("a", "b"), digest("b", "a"), digest("a"), digest("a", "b", test="u")}) == 4


def test_test_data_has_no_meaning_with_a_hub_dataset() -> None:
    assert "leave it out" in refusal("someone/reviews", test_data="t.csv")


def test_a_folder_that_the_library_saved_is_a_dataset_of_the_hub(tmp_path: Path) -> None:
    splits = hub(train=(["fine", "poor"], [1, 0]), test=(["well"], [1]))
    splits.save_to_disk(tmp_path / "both")
    splits["train"].save_to_disk(tmp_path / "one")
    both, one = find(tmp_path / "both"), find(tmp_path / "one")
    assert (both.title, both.classes, one.test) == ("both", ("neg", "pos"), None)
    assert rows(both.train) == rows(one.train) == [("fine", "pos"), ("poor", "neg")]
    assert rows(both.test) == [("well", "pos")]
    assert "leave it out" in refusal(tmp_path / "both", test_data="t.csv")
    next((tmp_path / "one").glob("*.arrow")).write_bytes(b"")
    assert f"--data {tmp_path / 'one'}: cannot be read as a dataset saved by save_to_disk: " in refusal(
        tmp_path / "one"
    )


_FIND = """
import sys
from trainer.config import PreprocessConfig
from server.errors import UserError
from trainer.data.sources import find_data
try:
    find_data(PreprocessConfig(data=sys.argv[1]))
except UserError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_name_that_is_neither_a_file_nor_on_the_hub_gets_one_clear_line() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FIND, "someone/no-such-dataset"],
        capture_output=True, text=True, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1
    assert done.stdout.startswith(
        "--data someone/no-such-dataset: is no file or folder here, and cannot be loaded as a dataset from the Hugging Face hub: "
    )


@pytest.mark.parametrize(
    "data", ["no.csv", "folder/no.jsonl", "folder/no.tsv", "./folder", "/no/such/folder", "../news", "a/b/c", "csv", "text"]
)  # fmt: skip
def test_a_name_that_can_only_be_a_path_is_not_looked_up_on_the_hub(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: pytest.fail("it was looked up on the hub"))
    where = f"file or folder {Path(data).absolute()}; a dataset of the Hugging Face hub is named OWNER/NAME"
    assert refusal(data) == f"--data {data}: no such {where}"
