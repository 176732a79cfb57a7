"""Rows out of Parquet files, and class names that the `datasets` library wrote into them."""

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.support.data import write_parquet
from tests.support.sources import find
from tests.support.tables import bad, found, read, refusal, the_bad_row
from trainer.data.columns import BadRow, Columns, Row
from trainer.data.tables import find_columns


def hub_parquet(path: Path, names: list[str], labels: list[int | None]) -> Path:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    rows = {"text": [f"text {number}" for number in range(len(labels))], "label": labels}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    return path


def test_a_parquet_file_of_the_hub_brings_its_class_names(tmp_path: Path) -> None:
    path = hub_parquet(tmp_path / "train.parquet", ["neg", "pos"], [1, 0])
    assert found(path) == [("text 0", "pos"), ("text 1", "neg")]
    assert find_columns([path], Columns()).classes == ("neg", "pos")


def test_the_numbers_of_a_hub_dataset_are_never_taken_for_its_names(tmp_path: Path) -> None:
    path = hub_parquet(tmp_path / "train.parquet", ["1", "2", "3"], [0, 1, 2])
    assert [label for _, label in found(path)] == ["1", "2", "3"]
    assert find(path, class_names=("3", "2", "1")).numbers == {"3": 0, "2": 1, "1": 2}


def test_a_row_without_a_class_in_a_hub_dataset_is_none_of_its_classes(tmp_path: Path) -> None:
    path = hub_parquet(tmp_path / "test.parquet", ["neg", "pos"], [-1, None])
    assert read(path) == [Row("text 0", "-1", 1), BadRow("no class", "the class is empty", 2)]


@pytest.mark.parametrize(
    ("columns", "reason", "detail"),
    [
        ({"text": [None], "label": ["x"]}, "empty text", "no text"),
        ({"text": ["a"], "label": pa.array([None], pa.int64())}, "no class", "the class is empty"),
        ({"text": ["a"], "label": [float("nan")]}, "no class", "the class is empty"),
        ({"text": [7], "label": ["x"]}, "text is no string", "'text' is 7"),
        ({"text": ["a"], "label": [["x"]]}, "class is no name", "'label' is ['x']"),
        ({"text": ["a"], "label": [b"x"]}, "class is no name", "'label' is b'x'"),
        (
            {"text": pa.array([b"caf\xe9"]).cast(pa.string(), safe=False), "label": ["x"]},
            "broken encoding",
            r"not UTF-8 in 'caf\udce9 x'",
        ),
        (
            {"text": pa.array([b"caf\xe9"]).cast(pa.large_string(), safe=False), "label": [1]},
            "broken encoding",
            r"not UTF-8 in 'caf\udce9 1'",
        ),
    ],
)
def test_a_bad_row_of_a_parquet_file_has_its_number_and_reason(
    tmp_path: Path, columns: dict[str, Any], reason: str, detail: str
) -> None:
    row = the_bad_row(write_parquet(tmp_path / "rows.parquet", columns))
    assert (row.reason, row.line) == (reason, 1)
    assert detail in row.detail


@pytest.mark.parametrize("packed", [False, True])
def test_one_broken_text_in_a_parquet_file_does_not_hide_the_others(tmp_path: Path, *, packed: bool) -> None:
    texts = pa.array([b"one", b"\xff", None, "zwölf".encode()]).cast(pa.string(), safe=False)
    texts = texts.dictionary_encode() if packed else texts
    path = write_parquet(tmp_path / "rows.parquet", {"text": texts, "label": [1, 2, 3, 4]})
    assert [row.line for row in bad(path)] == [2, 3]
    assert [row for row in read(path) if isinstance(row, Row)] == [Row("one", "1", 1), Row("zwölf", "4", 4)]


def test_rows_of_a_parquet_file_are_numbered_across_its_batches(tmp_path: Path) -> None:
    texts = ["a"] * 5000
    texts[4500] = ""
    path = write_parquet(tmp_path / "rows.parquet", {"text": texts, "label": ["x"] * 5000})
    assert the_bad_row(path).line == 4501


def test_damage_inside_a_parquet_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    table = pa.table({"text": [f"text {number**5}" for number in range(20_000)], "label": ["x", "y"] * 10_000})
    parquet.write_table(table, path, row_group_size=5000)
    packed = bytearray(path.read_bytes())
    packed[len(packed) // 2 : len(packed) // 2 + 500] = bytes(500)
    path.write_bytes(packed)
    assert refusal(path).startswith(": is no Parquet file, or a damaged one: ")


def test_names_that_the_hub_wrote_of_other_columns_are_no_classes(tmp_path: Path) -> None:
    info = {"info": {"features": {"label": [{"names": ["a", "b"], "_type": "ClassLabel"}]}}}
    table = pa.table({"text": ["a"], "label": ["x"]}).replace_schema_metadata({"huggingface": json.dumps(info)})
    parquet.write_table(table, tmp_path / "rows.parquet")
    assert find_columns([tmp_path / "rows.parquet"], Columns()).classes == ()
    assert found(tmp_path / "rows.parquet") == [("a", "x")]
