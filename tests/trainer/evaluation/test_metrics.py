"""Metrics are exact; the temperature is found where it is known, shipped with the model, and applied to every answer."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from kfp import dsl
from scipy.special import softmax as scipy_softmax

from pipelines.kubeflow.summary import log_artifacts
from server.errors import ModelFolderError, UserError
from server.inference.backends import candidates
from server.inference.backends.onnx import OnnxBackend
from server.inference.encoder import softmax
from server.model_folder import read_model_folder
from tests.support.model_folder import TEXTS, change, write_model_folder
from tests.support.servers import predict, serving
from trainer.config import ExportConfig
from trainer.data.dataset import Dataset
from trainer.evaluation.metrics import (
    Temperature,
    calibration,
    fit_temperature,
    measure,
    measure_confidence,
    wilson_interval,
)
from trainer.evaluation.predict import Logits, score
from trainer.evaluation.report import describe_classes
from trainer.export import export

Labels = np.ndarray[tuple[int], np.dtype[np.int32]]
CLASSES = ["cat", "dog", "eel"]
LABELS = np.array([0, 0, 0, 1, 1, 2], dtype=np.int32)
PROBABILITIES = np.array(
    [[0.9, 0.1, 0.0], [0.6, 0.4, 0.0], [0.3, 0.7, 0.0], [0.2, 0.8, 0.0], [0.55, 0.45, 0.0], [0.1, 0.0, 0.9]],
    dtype=np.float32,
)


def test_metrics_are_those_that_a_person_counts_by_hand() -> None:
    found = measure(PROBABILITIES, LABELS, CLASSES)
    assert found["confusion_matrix"] == [[2, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["per_class"]["cat"] == pytest.approx({"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "rows": 3})
    assert found["per_class"]["dog"] == pytest.approx({"precision": 1 / 2, "recall": 1 / 2, "f1": 1 / 2, "rows": 2})
    assert found["macro_f1"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert found["loss"] == pytest.approx(float(np.mean(-np.log([0.9, 0.6, 0.3, 0.8, 0.45, 0.9]))), rel=1e-5)
    assert found["rows"] == 6
    json.dumps(found, allow_nan=False)


def test_a_class_without_rows_is_measured_as_nothing_and_left_out_of_macro_f1() -> None:
    found = measure(PROBABILITIES[:5], LABELS[:5], CLASSES)
    assert found["macro_f1"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert describe_classes(found) == "the 2 of 3 classes that have rows"
    assert found["per_class"]["eel"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "rows": 0}


def test_calibration_error_is_the_distance_between_confidence_and_accuracy() -> None:
    confidence = np.array([0.95, 0.95, 0.65, 0.65], dtype=np.float32)
    bins = calibration(confidence, np.array([True, True, True, False]))
    assert [(b["from"], b["rows"], b["accuracy"]) for b in bins] == [(0.6, 2, 0.5), (0.9, 2, 1.0)]
    probabilities = np.array([[0.95, 0.05], [0.05, 0.95], [0.65, 0.35], [0.65, 0.35]], dtype=np.float32)
    found = measure(probabilities, np.array([0, 1, 0, 1], dtype=np.int32), ["a", "b"])
    assert found["expected_calibration_error"] == pytest.approx(0.5 * 0.05 + 0.5 * 0.15, abs=1e-6)


def test_a_confidence_of_one_falls_into_the_last_bin() -> None:
    assert [b["to"] for b in calibration(np.array([1.0], dtype=np.float32), np.array([True]))] == [1.0]


def test_the_interval_of_an_accuracy_is_that_of_wilson() -> None:
    assert wilson_interval(0.94, 7600) == pytest.approx([0.93443, 0.94512], abs=1e-4)
    low, high = wilson_interval(1.0, 20)
    assert low < 1.0
    assert high == pytest.approx(1.0)


def known(temperature: float, *, rows: int = 4000, seed: int = 0) -> tuple[Logits, Labels]:
    """Logits of a model that would be calibrated at this temperature, and labels."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(rows, 4)) * 2
    labels = np.array([random.choice(4, p=row) for row in softmax(logits)], dtype=np.int32)
    return (logits * temperature).astype(np.float32), labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_a_model_needs_is_found_and_makes_other_rows_calibrated(temperature: float) -> None:
    found = fit_temperature(*known(temperature))
    assert found == Temperature(pytest.approx(temperature, rel=0.05), 4000)  # type: ignore[arg-type]
    logits, labels = known(temperature, seed=1)
    after = measure_confidence(softmax(logits, temperature=found.value), labels)
    assert after["expected_calibration_error"] < 0.02
    if temperature != 1:
        before = measure_confidence(softmax(logits), labels)
        assert after["expected_calibration_error"] < before["expected_calibration_error"] / 3
        assert after["loss"] < before["loss"]


def test_no_other_temperature_has_a_lower_loss_and_the_same_rows_give_the_same() -> None:
    logits, labels = known(1.7, rows=300)
    found = fit_temperature(logits, labels).value
    assert fit_temperature(logits.copy(), labels).value == found
    least = score(softmax(logits, temperature=found), labels).loss
    for other in (found * 0.97, found * 1.03, 1.0):
        assert score(softmax(logits, temperature=other), labels).loss > least


def test_a_temperature_divides_the_logits_and_changes_no_label() -> None:
    logits = np.random.default_rng(0).normal(size=(50, 5)) * 4
    np.testing.assert_allclose(softmax(logits), scipy_softmax(logits, axis=1), atol=1e-12)
    np.testing.assert_allclose(softmax(logits, temperature=3), scipy_softmax(logits / 3, axis=1), atol=1e-12)
    assert (softmax(logits, temperature=20).argmax(axis=1) == logits.argmax(axis=1)).all()


def test_a_probability_of_zero_is_no_trouble() -> None:
    logits = np.array([[1000, 0], [1000, 0], [0, 1000]] * 40, dtype=np.float32)
    labels = np.array([0, 1, 1] * 40, dtype=np.int32)
    assert np.isfinite(softmax(logits, temperature=0.05)).all()
    assert fit_temperature(logits, labels).value >= 1


def test_a_temperature_that_cannot_be_fitted_is_1_with_the_reason() -> None:
    logits, labels = known(2.0, rows=200)
    assert fit_temperature(logits[:49], labels[:49]) == Temperature(
        1.0, 49, "49 validation rows are too few, it takes 50"
    )
    right = logits.argmax(axis=1).astype(np.int32)
    assert "all 200 validation rows are right" in fit_temperature(logits, right).not_fitted
    wrong = fit_temperature(logits, (right + 1) % 4)
    assert wrong.value == 1
    assert "the best is at an end of 0.05 to 20.0" in wrong.not_fitted


def test_a_run_fits_a_temperature_prints_its_effect_and_ships_it(finished_run: Path) -> None:
    metrics = json.loads((finished_run / "metrics.json").read_text(encoding="utf-8"))
    calibrated = metrics["calibrated"]
    labels = Dataset(finished_run / "dataset").test.labels
    again = softmax(np.log(np.load(finished_run / "predictions.npy")), temperature=calibrated["temperature"])
    assert calibrated["loss"] == pytest.approx(score(again, labels).loss)
    assert calibrated["validation_rows"] == len(Dataset(finished_run / "dataset").validation)
    output = (finished_run / "output.txt").read_text(encoding="utf-8")
    if calibrated["not_fitted"]:
        assert f"the temperature stays 1, as {calibrated['not_fitted']}" in output
    else:
        assert f"evaluate: temperature {calibrated['temperature']:.3f}, fitted on" in output
        assert f"to {calibrated['expected_calibration_error']:.4f} and the loss from" in output
    shipped = json.loads((finished_run / "model" / "onnx" / "model.json").read_text(encoding="utf-8"))
    assert shipped["temperature"] == calibrated["temperature"]


def test_the_kubeflow_ui_shows_the_temperature_and_its_effect(finished_run: Path, tmp_path: Path) -> None:
    metrics = dsl.Metrics(uri=str(tmp_path / "metrics"))
    report = dsl.HTML(uri=str(tmp_path / "report"))
    matrix, summary = (
        dsl.ClassificationMetrics(uri=str(tmp_path / "matrix")),
        dsl.Markdown(uri=str(tmp_path / "summary")),
    )
    log_artifacts(str(finished_run), metrics, matrix, report, summary)
    calibrated = json.loads((finished_run / "metrics.json").read_text(encoding="utf-8"))["calibrated"]
    assert metrics.metadata["temperature"] == calibrated["temperature"]
    assert metrics.metadata["calibrated_loss"] == calibrated["loss"]


def test_metrics_of_an_older_run_are_refused_by_the_export(finished_run: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_run / "model", tmp_path / "model", ignore=shutil.ignore_patterns("onnx"))
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(UserError, match=r"metrics\.json has no temperature: run the evaluate step again"):
        export(ExportConfig(), Dataset(finished_run / "dataset"), tmp_path)


def test_the_server_divides_its_logits_by_the_temperature(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "model")
    assert read_model_folder(folder, candidates("onnx")).temperature == 1
    change(folder, temperature=2.5)
    model = read_model_folder(folder, candidates("onnx"))
    with serving(folder, "--engine", "onnx") as (_, client):
        answers = [predict(client, text) for text in TEXTS]
    for text, answer in zip(TEXTS, answers, strict=True):
        ids = np.array([model.tokenizer.encode(text).ids])
        logits = OnnxBackend(model.file).run(ids, np.ones_like(ids))[0]
        np.testing.assert_allclose(list(answer["probabilities"].values()), scipy_softmax(logits / 2.5), atol=1e-6)
        assert answer["label"] == model.labels[int(logits.argmax())]


@pytest.mark.parametrize("wrong", [0, -1, 21, "hot"])
def test_a_temperature_that_is_none_is_refused(tmp_path: Path, wrong: object) -> None:
    folder = write_model_folder(tmp_path / "model")
    change(folder, temperature=wrong)
    with pytest.raises(ModelFolderError, match=r"model\.json: temperature: Input should be"):
        read_model_folder(folder, candidates("onnx"))
