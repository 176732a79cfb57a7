"""gate: refuses a model that is not good enough to be exported and served."""

import json
from pathlib import Path
from typing import Any

from server.errors import UserError
from server.inference.backends import candidates, load_backend
from server.inference.encoder import Encoder
from server.inference.hardware import available_cpus
from server.model_folder import read_model_folder
from trainer.config import GateConfig
from trainer.data.dataset import Dataset
from trainer.evaluation.predict import predict_texts, score
from trainer.monitoring.console import print0


def gate(config: GateConfig, metrics: dict[str, Any], dataset: Dataset, *, served: Path | None) -> dict[str, float]:
    """Returns the accuracies that were compared; UserError with the difference when the model does not pass.

    `served` is the file that names the model now served, see `pipelines.deploy.local`.
    """
    accuracy = metrics["accuracy"]
    if accuracy < config.min_accuracy:
        raise UserError(
            f"accuracy {accuracy:.4f} is {(config.min_accuracy - accuracy) * 100:.2f} points below min_accuracy {config.min_accuracy}; "
            "the model is kept, but neither exported nor served"
        )
    compared = {"accuracy": accuracy, "min_accuracy": config.min_accuracy}
    served_accuracy = _served_accuracy(served, dataset) if served else None
    if served_accuracy is not None:
        lowest = served_accuracy - config.max_accuracy_drop
        if accuracy < lowest:
            raise UserError(
                f"accuracy {accuracy:.4f} is {(served_accuracy - accuracy) * 100:.2f} points below that of the model now served "
                f"({served_accuracy:.4f}), more than max_accuracy_drop allows ({config.max_accuracy_drop * 100:.2f} points); "
                "the model is kept, but neither exported nor served"
            )
        compared["served_accuracy"] = served_accuracy
    against = "no model is served yet" if served_accuracy is None else f"the model now served has {served_accuracy:.4f}"
    print0(f"gate: passed: accuracy {accuracy:.4f}, at least {config.min_accuracy} is required; {against}")
    return compared


def _served_accuracy(served: Path, dataset: Dataset) -> float | None:
    """Returns the accuracy of the served model on the test rows of this dataset; None where it cannot be compared, with the reason printed."""
    if not served.is_file():
        return None
    facts = json.loads(served.read_text(encoding="utf-8"))
    if sorted(facts["labels"]) != sorted(dataset.classes):
        print0(f"gate: not compared with the model now served ({facts['model']}): it has other classes")
        return None
    if facts["test_digest"] == dataset.info["test_digest"]:
        return float(facts["accuracy"])
    if not Path(facts["model"]).is_dir():
        print0(
            f"gate: not compared with the model now served: {facts['model']} is gone, and it was measured on other test rows"
        )
        return None
    model = read_model_folder(Path(facts["model"]), candidates("auto"))  # the variant that a server here takes
    encoder = Encoder(model, load_backend(model, workers=available_cpus()))
    print0(f"gate: measuring the model now served ({model.variant} on {encoder.backend.name}) on these test rows")
    texts = [dataset.test.text(row) for row in range(len(dataset.test))]
    found = predict_texts(encoder, texts, batch_size=1, what="gate: the model now served")
    in_our_order = found[:, [model.labels.index(name) for name in dataset.classes]]
    return score(in_our_order, dataset.test.labels).accuracy
