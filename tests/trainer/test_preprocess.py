"""preprocess: datasets reported in full, used again, and made anew when anything changed."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.data import labelled, write_csv, write_json_lines
from tests.support.datasets import contents, make
from trainer.config import PreprocessConfig
from trainer.data.dataset import Dataset
from trainer.data.tokenizer import train_tokenizer
from trainer.preprocess import preprocess

pytestmark = pytest.mark.slow  # the module takes seconds


def test_the_report_counts_the_rows_that_are_there(
    sample: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    info = sample.info["splits"]
    for split in (sample.train, sample.validation, sample.test):
        found = info[split.name]
        assert found["rows"] == len(split)
        assert found["tokens"] == split.lengths.sum()
        assert found["truncated"] <= (split.lengths == 48).sum()
        assert found["classes"] == {
            name: int((split.labels == number).sum()) for number, name in enumerate(sample.classes)
        }
        assert found["length_percentiles"] == {
            str(percent): np.percentile(split.lengths, percent, method="inverted_cdf") for percent in (5, 50, 95, 99)
        }
    make("sample:5000", tmp_path / "dataset", max_length=48)
    output = capsys.readouterr().out
    rows = info["test"]["rows"]
    counts = ", ".join(f"{name} {count} ({count / rows:.1%})" for name, count in info["test"]["classes"].items())
    assert f"preprocess: test: {rows} rows: {counts}\n" in output
    percentiles = "/".join(str(length) for length in info["test"]["length_percentiles"].values())
    assert f"{info['test']['tokens'] / rows:.1f} tokens a row, percentiles 5/50/95/99 {percentiles}; " in output
    assert f"{info['test']['truncated']} rows ({info['test']['truncated'] / rows:.1%}) truncated at 48" in output


@pytest.mark.parametrize("count", [77, 100, 1000])
def test_lines_about_many_classes_stay_short(count: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"class {number:04} {'x' * 60}" for number in range(count)]
    came_in = labelled(3 * count, names) + [(f"{text} again", label) for text, label in labelled(40, names[5:7])]
    dataset = make(write_csv(tmp_path / "rows.csv", came_in), tmp_path / "dataset")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) < 800
    train = dataset.info["splits"]["train"]
    assert list(train["classes"]) == names
    assert min(train["classes"].values()) >= 1
    largest = sorted((f"{name[:40]} {rows} (" for name, rows in train["classes"].items() if rows > 3), reverse=True)
    (line,) = [
        line for line in lines if line.startswith("preprocess: train: ") and "rows" in line and "classes" in line
    ]
    assert f": {train['rows']:,} rows of {count:,} classes; the largest: class 000" in line
    assert all(shown in line for shown in largest)
    assert line.count("class ") == 8


def test_unused_validation_files_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_csv(tmp_path / "news" / "train.csv", labelled(60))
    write_csv(tmp_path / "news" / "dev.csv", labelled(9))
    make(tmp_path / "news", tmp_path / "dataset")
    assert "preprocess: dev.csv is not used: " in capsys.readouterr().out


def test_the_same_settings_use_the_same_folder_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, output = PreprocessConfig(data="sample:200"), tmp_path / "dataset"
    first = preprocess(config, output)
    stamps = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    capsys.readouterr()
    assert preprocess(config, output) == first
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == stamps
    assert f"were preprocessed before: used again from {output}\n" in capsys.readouterr().out


def test_an_earlier_folder_with_the_same_settings_is_linked(tmp_path: Path) -> None:
    config, earlier, output = PreprocessConfig(data="sample:200"), tmp_path / "earlier", tmp_path / "run" / "dataset"
    other = tmp_path / "other"
    preprocess(config.model_copy(update={"seed": 7}), other)
    (tmp_path / "old").mkdir()
    write_json_lines(tmp_path / "old" / "dataset.json", [{"of": "a version without a fingerprint"}])
    made = preprocess(config, earlier)
    assert preprocess(config, output, earlier=(tmp_path / "old", other, earlier)) == made
    assert contents(output) == contents(earlier)
    assert all(path.stat().st_nlink == 2 for path in output.rglob("*") if path.is_file())
    shutil.rmtree(earlier)
    assert len(Dataset(output).train) == made["splits"]["train"]["rows"]


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1}, {"max_length": 64}, {"validation_fraction": 0.1}, {"test_fraction": 0.2}, {"max_train_rows": 50},
        {"bad_rows": "skip"},
    ],
)  # fmt: skip
def test_a_changed_setting_makes_a_new_dataset(tmp_path: Path, change: dict[str, Any]) -> None:
    path, output = write_csv(tmp_path / "rows.csv", labelled(100)), tmp_path / "dataset"
    config = PreprocessConfig(data=str(path))
    first = preprocess(config, output)
    second = preprocess(config.model_copy(update=change), output, earlier=(output,))
    assert second["fingerprint"] != first["fingerprint"]
    assert Dataset(output).fingerprint == second["fingerprint"]


def test_changed_rows_or_columns_make_a_new_dataset(tmp_path: Path) -> None:
    def fingerprint(**settings: Any) -> str:  # noqa: ANN401 - as PreprocessConfig takes it
        return make(path, tmp_path / "dataset", **settings).fingerprint

    path = write_csv(
        tmp_path / "rows.csv", [(text, label, "more") for text, label in labelled(60)], ("text", "label", "by")
    )
    prints = [fingerprint(), fingerprint(text_column=("text", "by")), fingerprint(class_names=("good", "bad"))]
    write_csv(path, [(text, label, "less") for text, label in labelled(60)], ("text", "label", "by"))
    prints.append(fingerprint())
    assert len(set(prints)) == 4


def test_another_tokenizer_makes_a_new_dataset_and_another_name_does_not(tmp_path: Path, encoder: Path) -> None:
    def fingerprint(model: Path | str) -> str:
        return make("sample:200", tmp_path / "dataset", model=str(model)).fingerprint

    copy = shutil.copytree(encoder, tmp_path / "copy")
    assert fingerprint(copy) == fingerprint(encoder)
    train_tokenizer(iter(["other words"]), max_length=512).save_pretrained(copy)
    assert len({fingerprint(copy), fingerprint(encoder), fingerprint("tiny")}) == 3
