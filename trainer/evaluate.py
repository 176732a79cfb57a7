"""evaluate: measures a model on the test rows; writes metrics.json, predictions.npy and report.html.

torchrun --nproc-per-node 2 -m trainer.evaluate --dataset runs/x/dataset --output runs/x
"""

from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
from transformers import PreTrainedModel

from server.cli import parse
from server.errors import UserError
from server.files import read_json, write_json
from server.inference.encoder import softmax
from trainer.config import EvaluateConfig
from trainer.data.dataset import Dataset, Split
from trainer.distributed.launch import worker
from trainer.distributed.process_group import Process, process_group, versions
from trainer.evaluation.metrics import Temperature, fit_temperature, measure, measure_confidence
from trainer.evaluation.predict import Probabilities, predict
from trainer.evaluation.report import Curves, Mistake, TrainingPoint, ValidationPoint, describe_classes, write_report
from trainer.model.classifier import load_model
from trainer.monitoring.console import print0
from trainer.monitoring.mlflow import MlflowTracker, read_provenance
from trainer.monitoring.training_log import read_log

_TIMEOUT_MINUTES = 10
_FALL = 0.1  # of the mean training loss in one epoch; with a settled model it is below 0.07
_LOW_TEMPERATURE = 0.5


class EvaluateArguments(EvaluateConfig):
    """Measure a model on the test rows of its dataset; torchrun starts it, with one process or many."""

    dataset: Path
    """Folder that preprocess wrote."""

    output: Path
    """Folder of the run, with model and logs; metrics.json, predictions.npy and report.html are written in it."""


def worst_mistakes(probabilities: Probabilities, split: Split, classes: list[str], *, count: int) -> list[Mistake]:
    """Lists the rows that were most confidently taken for another class, with their texts."""
    predicted = probabilities.argmax(axis=1)
    confidence = np.where(predicted == split.labels, -1.0, probabilities.max(axis=1))
    chosen = [int(row) for row in np.argsort(-confidence, kind="stable")[:count] if confidence[row] >= 0]
    return [
        Mistake(
            text=split.text(row),
            label=classes[split.labels[row]],
            predicted=classes[predicted[row]],
            confidence=float(confidence[row]),
        )
        for row in chosen
    ]


def learning_curves(logs: Path, best_epoch: int) -> Curves:
    lines = read_log(logs)

    def points(kind: str, names: list[str]) -> list[dict[str, Any]]:
        of_kind = [{name: line[name] for name in names} for line in lines if line["kind"] == kind]
        return [point for point in of_kind if None not in point.values()]  # a loss that was not finite

    return Curves(
        train=cast("list[TrainingPoint]", points("train", ["step", "loss", "learning_rate"])),
        validation=cast("list[ValidationPoint]", points("validation", ["epoch", "step", "loss", "accuracy"])),
        best_epoch=best_epoch,
    )


def find_undertraining(curves: Curves, temperature: float) -> str:
    """Returns why more epochs would help; empty where the loss has settled, on either rows, and confidence is as it should be."""
    ends = [0, *(point["step"] for point in curves["validation"])]
    means = [
        np.mean([point["loss"] for point in curves["train"] if start < point["step"] <= end] or [np.nan])
        for start, end in pairwise(ends)
    ]
    losses = [point["loss"] for point in curves["validation"]]
    if len(means) > 1 and losses[-1] <= losses[-2] and (fall := means[-2] - means[-1]) > _FALL:
        return f"undertrained: more epochs would help: the training loss still fell by {fall:.2f} in the last epoch"
    if temperature < _LOW_TEMPERATURE:
        return f"undertrained: more epochs would help: the fitted temperature is {temperature:.2f}, far below 1"
    return ""


def evaluate(config: EvaluateConfig, dataset: Dataset, output: Path, process: Process) -> dict[str, Any]:
    """Measures <output>/model on the test rows, with a temperature fitted on the validation rows.

    Writes metrics.json, predictions.npy (probabilities [rows, classes], without the temperature) and report.html there.
    """
    model = load_model(output / "model", device=process.device)
    trained = _trained(output / "model" / "train_config.json")
    _check_classes(model, trained["settings"].get("dataset"), dataset)
    logits = predict(model, dataset.test, process, padding=dataset.padding, what="evaluate: test rows")
    probabilities = softmax(logits).astype(np.float32)
    title = f"{Path(trained['settings']['model']).name} on {dataset.info['title']}"
    metrics = {"title": title, **measure(probabilities, dataset.test.labels, dataset.classes)}
    validation = predict(model, dataset.validation, process, padding=dataset.padding, what="evaluate: validation rows")
    temperature = fit_temperature(validation, dataset.validation.labels)
    calibrated = softmax(logits, temperature=temperature.value)
    metrics["calibrated"] = {
        "temperature": temperature.value,
        "validation_rows": temperature.rows,
        "not_fitted": temperature.not_fitted,
        **measure_confidence(calibrated, dataset.test.labels),
    }
    metrics["repeats"] = dataset.info["repeats"]
    if process.is_main:
        curves = learning_curves(output / "logs", trained["best_epoch"])
        metrics["undertrained"] = find_undertraining(curves, temperature.value)
        np.save(output / "predictions.npy", probabilities)
        write_json(output / "metrics.json", metrics)
        write_report(
            output / "report.html",
            metrics=metrics,
            curves=curves,
            mistakes=worst_mistakes(calibrated, dataset.test, dataset.classes, count=config.mistakes_shown),
            facts={
                "Settings": trained["settings"],
                "Dataset": {name: value for name, value in dataset.info.items() if name not in ("splits", "classes")},
                "Versions": versions(),
            },
        )
        low, high = metrics["accuracy_interval"]
        print0(
            f"evaluate: accuracy {metrics['accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f}) on {metrics['rows']:,} test rows, "
            f"macro F1 {metrics['macro_f1']:.4f} (mean over {describe_classes(metrics)}), calibration error {metrics['expected_calibration_error']:.4f}; "
            f"see {output / 'report.html'}"
        )
        print0(f"evaluate: {_effect(temperature, metrics)}")
        if metrics["undertrained"]:
            print0(f"evaluate: warning: {metrics['undertrained']}")
    return metrics


def _trained(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise UserError(f"{file} is missing: run the train step first")
    return read_json(file, fix="run the train step again")


def _check_classes(model: PreTrainedModel, trained_on: str | None, dataset: Dataset) -> None:
    """Refuses a model whose classes are others than the dataset's, or in another order; reports another dataset."""
    classes = [
        name for _, name in sorted((int(number), name) for number, name in (model.config.id2label or {}).items())
    ]
    prints = (
        f"it was trained on the dataset with fingerprint {trained_on}, and {dataset.folder} has {dataset.fingerprint}"
    )
    if classes != list(dataset.classes):
        raise UserError(
            f"the classes of the model are {', '.join(classes)}, those of {dataset.folder} are {', '.join(dataset.classes)}; "
            f"{prints}: evaluate the model with the dataset that it was trained on"
        )
    if trained_on and trained_on != dataset.fingerprint:
        print0(f"evaluate: the model is measured on another dataset than its own: {prints}")


def _effect(temperature: Temperature, metrics: dict[str, Any]) -> str:
    if temperature.not_fitted:
        return f"the temperature stays 1, as {temperature.not_fitted}"
    before, after = metrics, metrics["calibrated"]
    return (
        f"temperature {temperature.value:.3f}, fitted on {temperature.rows:,} validation rows, takes the calibration error "
        f"on the test rows from {before['expected_calibration_error']:.4f} to {after['expected_calibration_error']:.4f} "
        f"and the loss from {before['loss']:.4f} to {after['loss']:.4f}"
    )


def main() -> None:
    arguments = parse(EvaluateArguments, prog="python -m trainer.evaluate")
    with process_group(timeout_minutes=_TIMEOUT_MINUTES) as process:
        config = EvaluateConfig(**arguments.model_dump(include=set(EvaluateConfig.model_fields)))
        output = arguments.output
        with MlflowTracker(output, read_provenance(output), process, step="evaluate") as tracker:
            metrics = evaluate(config, Dataset(arguments.dataset), output, process)
            tracker.log_results(metrics, output / "metrics.json", output / "report.html")


if __name__ == "__main__":
    worker(main)
