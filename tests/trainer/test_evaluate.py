"""Evaluation measures exactly the rows there are, and writes its files."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from server.errors import UserError
from server.inference.encoder import softmax
from tests.support.ranks import in_ranks
from trainer.config import EvaluateConfig
from trainer.data.dataset import Dataset
from trainer.distributed.process_group import Process
from trainer.evaluate import evaluate, find_undertraining, learning_curves, main, worst_mistakes
from trainer.evaluation.predict import predict, score
from trainer.evaluation.report import Curves
from trainer.model.classifier import build_model, save_model
from trainer.monitoring.training_log import TrainingLog


def test_the_worst_mistakes_come_first_and_right_answers_never(dataset: Dataset) -> None:
    rows = len(dataset.test)
    probabilities = np.full((rows, 4), 0.1, dtype=np.float32)
    probabilities[np.arange(rows), dataset.test.labels] = 0.7
    for row, confidence in ((3, 0.8), (5, 0.99)):
        probabilities[row] = 0.0
        probabilities[row, (dataset.test.labels[row] + 1) % 4] = confidence
    found = worst_mistakes(probabilities, dataset.test, dataset.classes, count=20)
    assert [mistake["text"] for mistake in found] == [dataset.test.text(5), dataset.test.text(3)]
    assert found[0]["label"] == dataset.classes[dataset.test.labels[5]]
    assert found[0]["confidence"] == pytest.approx(0.99)


def evaluate_with(*flags: str) -> None:
    sys.argv = ["trainer.evaluate", *flags]
    main()


@pytest.mark.slow
def test_one_and_three_processes_measure_the_same_on_every_row(
    dataset: Dataset, tmp_path: Path, process: Process
) -> None:
    model = build_model("tiny", dataset, seed=0, device=torch.device("cpu"))
    save_model(model, dataset, tmp_path / "model")
    trained = {"settings": {"model": "tiny"}, "best_epoch": 1, "epochs": []}
    (tmp_path / "model" / "train_config.json").write_text(json.dumps(trained), encoding="utf-8")
    assert len(dataset.test) % 3, "the rows must not divide evenly, which would hide rows counted twice"
    in_ranks(evaluate_with, "--dataset", str(dataset.folder), "--output", str(tmp_path), world_size=3)
    three = np.load(tmp_path / "predictions.npy")
    one = predict(model, dataset.test, process, padding=dataset.padding, what="test")
    np.testing.assert_allclose(three, softmax(one), atol=1e-6)
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["rows"] == len(dataset.test)
    assert metrics["repeats"] == dataset.info["repeats"]
    assert metrics["accuracy"] == pytest.approx(score(softmax(one), dataset.test.labels).accuracy)
    assert "<svg" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_model_with_other_classes_or_order_is_refused_with_both_fingerprints(
    dataset: Dataset, tmp_path: Path, process: Process, capsys: pytest.CaptureFixture[str]
) -> None:
    model = build_model("tiny", dataset, seed=0, device=torch.device("cpu"))
    save_model(model, dataset, tmp_path / "model")
    trained = {"settings": {"model": "tiny", "dataset": "abc"}, "best_epoch": 1, "epochs": []}
    (tmp_path / "model" / "train_config.json").write_text(json.dumps(trained), encoding="utf-8")
    evaluate(EvaluateConfig(), dataset, tmp_path, process)
    assert f"fingerprint abc, and {dataset.folder} has {dataset.fingerprint}" in capsys.readouterr().out
    other = Dataset(dataset.folder)
    other.classes = other.classes[::-1]
    with pytest.raises(
        UserError,
        match=rf"the classes of the model are World, .*, those of .* are Sci/Tech, .* abc, .* {dataset.fingerprint}",
    ):
        evaluate(EvaluateConfig(), other, tmp_path, process)


def test_evaluate_before_train_is_one_line_that_names_the_step(
    dataset: Dataset, tmp_path: Path, process: Process
) -> None:
    save_model(build_model("tiny", dataset, seed=0, device=torch.device("cpu")), dataset, tmp_path / "model")
    with pytest.raises(UserError, match=r"train_config\.json is missing: run the train step first"):
        evaluate(EvaluateConfig(), dataset, tmp_path, process)


def test_prediction_keeps_the_order_of_the_rows_and_the_mode_of_the_model(dataset: Dataset, process: Process) -> None:
    model = build_model("tiny", dataset, seed=0, device=torch.device("cpu")).train()
    found = predict(model, dataset.test, process, padding=dataset.padding, what="test")
    assert model.training
    tokens = torch.from_numpy(dataset.test.tokens(7).astype(np.int64))[None]
    with torch.inference_mode():
        alone = model.eval()(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[0]
    np.testing.assert_allclose(found[7], alone.numpy(), atol=1e-5)


def test_a_step_logged_twice_counts_once_in_the_curves(tmp_path: Path) -> None:
    with TrainingLog(tmp_path, enabled=True) as log:
        log.write("train", step=10, loss=2.0, learning_rate=0.1)
        log.write("train", step=20, loss=9.0, learning_rate=0.1)
    with TrainingLog(tmp_path, enabled=True, step=10) as log:
        log.write("train", step=20, loss=1.0, learning_rate=0.1)
        log.write("validation", step=20, epoch=1, loss=1.5, accuracy=0.5)
    curves = learning_curves(tmp_path, best_epoch=1)
    assert [(point["step"], point["loss"]) for point in curves["train"]] == [(10, 2.0), (20, 1.0)]
    assert curves["validation"] == [{"epoch": 1, "step": 20, "loss": 1.5, "accuracy": 0.5}]


@pytest.mark.parametrize(
    ("losses", "validation", "temperature", "expected"),
    [
        ([3.9, 3.2, 2.8], 1.0, 0.9, "still fell by 0.40"), ([3.9, 3.2, 2.8], 1.1, 1.2, ""), ([0.8, 0.11, 0.05], 1.0, 1.0, ""),
        ([0.8, 0.7, 0.69], 1.0, 0.24, "temperature is 0.24"), ([2.0], 1.0, 1.3, ""),
    ],
)  # fmt: skip
def test_a_run_whose_loss_still_fell_fast_or_whose_temperature_is_low_is_undertrained(
    losses: list[float], validation: float, temperature: float, expected: str
) -> None:
    curves = Curves(
        train=[{"step": number, "loss": loss, "learning_rate": 1e-4} for number, loss in enumerate(losses, start=1)],
        validation=[{"epoch": number, "step": number, "loss": validation**number, "accuracy": 0.5} for number in range(1, len(losses) + 1)],
        best_epoch=1,
    )  # fmt: skip
    found = find_undertraining(curves, temperature)
    assert expected in found
    assert bool(found) == bool(expected)
