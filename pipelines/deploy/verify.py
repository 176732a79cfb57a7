"""The check of a new server: its labels for test texts against those of evaluate; and the record of what is served."""

from typing import Any, NamedTuple

import numpy as np

from pipelines.run_folder import RunFolder
from server.errors import UserError
from server.files import read_json, write_json
from server.http.client import Client
from trainer.data.dataset import Dataset


class Expected(NamedTuple):
    """Test texts, and the labels that evaluate gave them."""

    texts: list[str]
    labels: list[str]


def expected_labels(run: RunFolder, count: int) -> Expected:
    """Reads the first test texts of a run with the labels that evaluate gave them."""
    dataset = Dataset(run.dataset)
    predictions = np.load(run.folder / "predictions.npy")[:count]
    texts = [dataset.test.text(row) for row in range(len(predictions))]
    return Expected(texts, [dataset.classes[number] for number in predictions.argmax(axis=1)])


def verify(client: Client, expected: Expected, *, min_agreement: float) -> dict[str, Any]:
    """Compares a server's labels with evaluate's; UserError when they agree too rarely.

    Texts above its max_text_characters are left out or, where all are, cut; so are others that it refuses.
    """
    longest = client.health.max_text_characters
    asked = [pair for pair in zip(*expected, strict=True) if len(pair[0]) <= longest]
    asked = asked or [(text[:longest], label) for text, label in zip(*expected, strict=True)]
    answers = list(zip(client.classify([text for text, _ in asked]), [label for _, label in asked], strict=True))
    labels = [(answer.label, label) for answer, label in answers if not isinstance(answer, str)]
    if not labels:
        raise UserError(f"the server refuses all {len(answers)} test texts; the first: {answers[0][0]}")
    agreement = sum(found == label for found, label in labels) / len(labels)
    if agreement < min_agreement:
        raise UserError(f"the server gives {agreement:.0%} of {len(labels)} test texts the label that evaluate gave, fewer than {min_agreement:.0%}")  # fmt: skip
    return {"agreement": agreement, "texts": len(labels)}


def record_served(run: RunFolder, **deployment: Any) -> None:  # noqa: ANN401 - whatever JSON takes
    """Records the model of a run as the one now served, with which the gate compares the next one."""
    dataset = Dataset(run.dataset)
    metrics = read_json(run.folder / "metrics.json", fix="resume with --from evaluate")
    served = {
        "run": run.name,
        "model": str(run.model.resolve()),
        "accuracy": metrics["accuracy"],
        "labels": dataset.classes,
        "test_digest": dataset.info["test_digest"],
        **deployment,
    }
    write_json(run.workspace / "served.json", served)
