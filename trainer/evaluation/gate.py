"""gate: refuses a model that is not good enough to be exported and served."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from server.errors import UserError
from server.inference.backends import candidates, load_backend
from server.inference.encoder import Encoder
from server.inference.hardware import available_cpus
from server.model_folder import read_model_folder
from trainer.config import GateConfig
from trainer.data.dataset import Dataset
from trainer.data.splits import keys_of, text_keys
from trainer.evaluation.predict import Probabilities, predict_texts, score
from trainer.monitoring.console import print0

_FEWEST_ROWS = 100  # of test rows that are left: on fewer, a point of accuracy is less than one text


def gate(
    config: GateConfig, probabilities: Probabilities, dataset: Dataset, *, served: dict[str, Any]
) -> dict[str, float]:
    """Returns the accuracies that were compared; UserError with the difference when the model does not pass.

    `probabilities` [rows, classes] are those of the test rows; `served` is the record of the model now served, empty
    where none is, see `pipelines.deploy.verify`.
    """
    accuracy = score(probabilities, dataset.test.labels).accuracy
    if accuracy < config.min_accuracy:
        raise UserError(
            f"accuracy {accuracy:.4f} is {(config.min_accuracy - accuracy) * 100:.2f} points below min_accuracy {config.min_accuracy}; "
            "the model is kept, but neither exported nor served"
        )
    found = {"accuracy": accuracy, "min_accuracy": config.min_accuracy}
    passed = f"gate: passed: accuracy {accuracy:.4f}, at least {config.min_accuracy} is required"
    if not served:
        print0(f"{passed}; no model is served yet")
        return found
    compared, remark = _compare(served, probabilities, dataset)
    print0(f"gate: {remark}")
    if not compared:
        print0(passed)
        return found
    ours, theirs = compared["compared_accuracy"], compared["served_accuracy"]
    if ours < theirs - config.max_accuracy_drop:
        raise UserError(
            f"accuracy {ours:.4f} is {(theirs - ours) * 100:.2f} points below that of the model now served "
            f"({theirs:.4f}), more than max_accuracy_drop allows ({config.max_accuracy_drop * 100:.2f} points); "
            "the model is kept, but neither exported nor served"
        )
    print0(
        f"{passed}; on the {compared['compared_rows']:,} rows compared it has {ours:.4f}, the model now served {theirs:.4f}"
    )
    if theirs < 0.5 / len(dataset.classes):
        print0("gate: the model now served is worse than chance on these rows: were names of classes exchanged?")
    return found | compared


def _compare(facts: dict[str, Any], probabilities: Probabilities, dataset: Dataset) -> tuple[dict[str, float], str]:
    """Returns the accuracies of both models on the test rows that neither was trained on or chosen by, and a remark on them.

    No accuracies where the models cannot be compared; the remark gives the reason.
    """
    model_folder = Path(facts["model"])
    if sorted(facts["labels"]) != sorted(dataset.classes):
        return {}, f"not compared with the model now served ({model_folder}): it has other classes"
    if facts["test_digest"] == dataset.info["test_digest"]:
        of_new = score(probabilities, dataset.test.labels)
        return {
            "compared_accuracy": of_new.accuracy,
            "served_accuracy": float(facts["accuracy"]),
            "compared_rows": of_new.rows,
        }, "the model now served was measured on the same test rows"
    for needed in (model_folder, model_folder.parent / "dataset"):
        if not needed.is_dir():
            return (
                {},
                f"not compared with the model now served: {needed} is gone, and it was measured on other test rows",
            )
    kept = _unseen(dataset, model_folder.parent / "dataset")
    seen = len(dataset.test) - len(kept)
    remark = f"{seen:,} of {len(dataset.test):,} test rows are left out, as the served model was trained on them or chosen by them"
    if seen and len(kept) < _FEWEST_ROWS:
        return (
            {},
            f"not compared with the model now served: {remark}, and {len(kept):,} are too few (at least {_FEWEST_ROWS})",
        )
    labels = dataset.test.labels[kept]
    return {
        "compared_accuracy": score(probabilities[kept], labels).accuracy,
        "served_accuracy": score(_served_probabilities(model_folder, dataset, kept), labels).accuracy,
        "compared_rows": len(kept),
    }, remark


def _unseen(dataset: Dataset, earlier: Path) -> npt.NDArray[np.intp]:
    """Returns the test rows whose texts are not among those that the model of an earlier dataset was trained on or chosen by."""
    seen = text_keys(earlier, ("train", "validation"))
    return np.flatnonzero(~np.isin(keys_of(dataset.test.text(row) for row in range(len(dataset.test))), seen))


def _served_probabilities(model_folder: Path, dataset: Dataset, rows: npt.NDArray[np.intp]) -> Probabilities:
    model = read_model_folder(model_folder, candidates("auto"))  # the variant that a server here takes
    encoder = Encoder(model, load_backend(model, workers=available_cpus()))
    print0(
        f"gate: measuring the model now served ({model.variant} on {encoder.backend.name}) on {len(rows):,} test rows"
    )
    found = predict_texts(
        encoder, [dataset.test.text(int(row)) for row in rows], batch_size=1, what="gate: the model now served"
    )
    return found[:, [model.labels.index(name) for name in dataset.classes]]
