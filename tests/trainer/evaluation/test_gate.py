"""The gate refuses models that are not good enough to be exported and served."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.errors import UserError
from server.inference.backends import choose
from server.inference.encoder import Encoder
from tests.support.model_folder import LABELS, WORDS, write_model_folder
from trainer.config import GateConfig, PreprocessConfig
from trainer.data.dataset import Dataset
from trainer.evaluation.gate import gate
from trainer.evaluation.predict import Probabilities, score
from trainer.preprocess import preprocess


def right_on(dataset: Dataset, share: float) -> Probabilities:
    """Probabilities of a model that is right on this share of the test rows, the last ones."""
    labels = dataset.test.labels
    wrong = np.arange(len(labels)) < round(len(labels) * (1 - share))
    return np.eye(len(dataset.classes))[np.where(wrong, (labels + 1) % len(dataset.classes), labels)]


def record(dataset: Dataset, **changes: Any) -> dict[str, Any]:  # noqa: ANN401 - whatever JSON takes
    facts = {"model": "runs/x/model", "accuracy": 0.9, "labels": dataset.classes}
    return facts | {"test_digest": dataset.info["test_digest"]} | changes


def test_a_model_below_min_accuracy_does_not_pass_and_the_difference_is_given(dataset: Dataset) -> None:
    found = right_on(dataset, 0.5)
    accuracy = score(found, dataset.test.labels).accuracy
    words = rf"accuracy {accuracy:.4f} is {90 - accuracy * 100:.2f} points below min_accuracy 0.9; the model is kept"
    with pytest.raises(UserError, match=words):
        gate(GateConfig(min_accuracy=0.9), found, dataset, served={})
    assert gate(GateConfig(min_accuracy=accuracy), found, dataset, served={})["accuracy"] == accuracy


def test_a_model_worse_than_the_served_one_by_more_than_the_tolerance_is_refused(dataset: Dataset) -> None:
    now, found = record(dataset), right_on(dataset, 0.75)
    passed = gate(GateConfig(min_accuracy=0.5, max_accuracy_drop=0.16), found, dataset, served=now)
    assert passed["served_accuracy"] == 0.9
    with pytest.raises(UserError, match=r"points below that of the model now served \(0.9000\), more than max_acc"):
        gate(GateConfig(min_accuracy=0.5, max_accuracy_drop=0.13), found, dataset, served=now)


def test_a_served_model_that_is_worse_than_chance_raises_the_question_of_exchanged_names(
    dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    gate(GateConfig(min_accuracy=0), right_on(dataset, 1), dataset, served=record(dataset, accuracy=0.1))
    assert "were names of classes exchanged?" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"labels": ["a", "b"]}, "it has other classes"),
        ({"test_digest": "other", "model": "nowhere/gone"}, "gone is gone"),
    ],
)
def test_a_served_model_that_cannot_be_compared_is_named_with_the_reason(
    dataset: Dataset, changes: dict[str, Any], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = gate(GateConfig(min_accuracy=0.5), right_on(dataset, 0.6), dataset, served=record(dataset, **changes))
    assert "served_accuracy" not in found
    assert reason in capsys.readouterr().out


def test_rows_that_the_served_model_was_trained_on_are_left_out_for_both_models(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [f"{WORDS[4 + number % 10]} number {number},{LABELS[number % 3]}\n" for number in range(300)]
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(rows), encoding="utf-8")
    for name, seed in (("new", 1), ("served", 2)):
        config = PreprocessConfig(data=str(tmp_path / "rows.csv"), max_length=16, test_fraction=0.3, seed=seed)
        preprocess(config, tmp_path / name / "dataset")
    dataset, served = Dataset(tmp_path / "new" / "dataset"), Dataset(tmp_path / "served" / "dataset")
    seen = {part.text(row) for part in (served.train, served.validation) for row in range(len(part))}
    left = [row for row in range(len(dataset.test)) if dataset.test.text(row) not in seen]
    model = write_model_folder(tmp_path / "served" / "model")
    now = record(dataset, model=str(model), test_digest="other", accuracy=0.123)
    gates, found = GateConfig(min_accuracy=0, max_accuracy_drop=1), right_on(dataset, 0.5)

    assert "served_accuracy" not in gate(gates, found, dataset, served=now)
    out = capsys.readouterr().out
    assert f"{len(dataset.test) - len(left)} of {len(dataset.test)} test rows are left out" in out
    assert f"{len(left)} are too few" in out

    monkeypatch.setattr("trainer.evaluation.gate._FEWEST_ROWS", 1)
    compared = gate(gates, found, dataset, served=now)
    assert compared["compared_rows"] == len(left)
    labels = dataset.test.labels[left]
    assert compared["compared_accuracy"] == (found[left].argmax(axis=1) == labels).mean()
    choice = choose(model, "auto", workers=1)
    encoder = Encoder(choice.folder, choice.backend)
    answers = [choice.folder.labels[int(encoder.classify([dataset.test.text(row)])[0].argmax())] for row in left]
    assert compared["served_accuracy"] == np.mean(
        [dataset.classes[label] == answer for label, answer in zip(labels, answers, strict=True)]
    )
    assert f"the model now served ({choice.folder.variant} on " in capsys.readouterr().out, (
        "the variant that the server takes"
    )


def test_exchanged_class_names_make_other_test_rows(tmp_path: Path) -> None:
    digests = []
    for names in (("odd", "even"), ("even", "odd")):
        rows = [f"text {number},{names[number % 2]}\n" for number in range(100)]
        (tmp_path / "rows.csv").write_text("text,label\n" + "".join(rows), encoding="utf-8")
        info = preprocess(PreprocessConfig(data=str(tmp_path / "rows.csv"), max_length=16), tmp_path / "dataset")
        digests.append(info["test_digest"])
    assert digests[0] != digests[1]
