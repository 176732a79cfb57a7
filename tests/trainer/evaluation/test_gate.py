"""The gate refuses models that are not good enough to be exported and served."""

import json
from pathlib import Path
from typing import Any

import pytest

from server.errors import UserError
from server.inference.backends import choose
from trainer.config import GateConfig
from trainer.data.dataset import Dataset
from trainer.evaluation.gate import gate


def served(folder: Path, dataset: Dataset, **changes: Any) -> Path:  # noqa: ANN401 - whatever JSON takes
    facts = {
        "model": str(folder),
        "accuracy": 0.9,
        "labels": dataset.classes,
        "test_digest": dataset.info["test_digest"],
    }
    path = folder / "served.json"
    path.write_text(json.dumps(facts | changes), encoding="utf-8")
    return path


def test_a_model_below_min_accuracy_does_not_pass_and_the_difference_is_given(dataset: Dataset) -> None:
    with pytest.raises(UserError, match=r"accuracy 0.7500 is 15.00 points below min_accuracy 0.9; the model is kept"):
        gate(GateConfig(min_accuracy=0.9), {"accuracy": 0.75}, dataset, served=None)


def test_a_model_as_good_as_asked_passes(dataset: Dataset, tmp_path: Path) -> None:
    assert gate(GateConfig(min_accuracy=0.9), {"accuracy": 0.9}, dataset, served=tmp_path / "none")["accuracy"] == 0.9


def test_a_model_worse_than_the_one_served_by_more_than_the_tolerance_does_not_pass(
    dataset: Dataset, tmp_path: Path
) -> None:
    config = GateConfig(min_accuracy=0.5, max_accuracy_drop=0.02)
    now = served(tmp_path, dataset)
    assert gate(config, {"accuracy": 0.885}, dataset, served=now)["served_accuracy"] == 0.9
    with pytest.raises(
        UserError, match=r"accuracy 0.8700 is 3.00 points below that of the model now served \(0.9000\)"
    ):
        gate(config, {"accuracy": 0.87}, dataset, served=now)


def test_a_served_model_with_other_classes_is_not_compared_and_that_is_reported(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = gate(
        GateConfig(min_accuracy=0.5), {"accuracy": 0.6}, dataset, served=served(tmp_path, dataset, labels=["a", "b"])
    )
    assert "served_accuracy" not in found
    assert "not compared with the model now served" in capsys.readouterr().out


def test_a_model_served_on_other_test_rows_is_measured_on_these_as_it_is_served(
    dataset: Dataset, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    now = finished_run.parent / "elsewhere.json"
    facts = json.loads((finished_run.parent / "served.json").read_text(encoding="utf-8"))
    now.write_text(json.dumps(facts | {"accuracy": 0.123}), encoding="utf-8")
    assert facts["test_digest"] != dataset.info["test_digest"]
    measured = gate(GateConfig(min_accuracy=0.1, max_accuracy_drop=1), {"accuracy": 0.6}, dataset, served=now)[
        "served_accuracy"
    ]
    assert measured > 0.5, "the served model is measured, not its record read"
    choice = choose(finished_run / "model", "auto", workers=1)
    assert f"the model now served ({choice.folder.variant} on " in capsys.readouterr().out, (
        "the variant that the server takes"
    )


def test_a_served_model_that_is_gone_is_not_compared_and_that_is_reported(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    now = served(tmp_path, dataset, test_digest="other", model=str(tmp_path / "gone"))
    gate(GateConfig(min_accuracy=0.5), {"accuracy": 0.6}, dataset, served=now)
    assert "gone is gone" in capsys.readouterr().out
