"""deploy on this machine: start the server with the new model, ask it, and note it as the model now served."""

import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.record import Run
from trainer.dataset import Dataset
from trainer.errors import UserError
from trainer.flags import write_json
from trainer.progress import say

_TEXTS = 50
_AGREEMENT = 0.9  # of the labels: int8 may take a close one for another
_SECONDS = 60


def deploy_here(run: Run) -> dict[str, Any]:
    """Serve the model of a run for a moment and compare its answers with evaluate's; then it counts as the model now served."""
    dataset = Dataset(run.dataset)
    predictions = np.load(run.folder / "predictions.npy")[:_TEXTS]
    texts = [dataset.test.text(row) for row in range(len(predictions))]
    expected = [dataset.classes[number] for number in predictions.argmax(axis=1)]
    with serving(run.model) as address:
        labels = [str(ask(address, text)["label"]) for text in texts]
    agreement = sum(found == wanted for found, wanted in zip(labels, expected, strict=True)) / len(texts)
    if agreement < _AGREEMENT:
        raise UserError(
            f"the server gives {agreement:.0%} of {len(texts)} test texts the label that evaluate gave, fewer than {_AGREEMENT:.0%}; "
            "the model served before stays"
        )
    metrics = json.loads((run.folder / "metrics.json").read_text(encoding="utf-8"))
    served = {
        "run": run.name,
        "model": str(run.model.resolve()),
        "accuracy": metrics["accuracy"],
        "labels": dataset.classes,
        "test_digest": dataset.info["test_digest"],
    }
    write_json(run.workspace / "served.json", served)
    say(
        f"deploy: the server agrees with evaluate on {agreement:.0%} of {len(texts)} texts; {run.name} is the model now served"
    )
    return {"agreement": agreement, "texts": len(texts)}


@contextmanager
def serving(model: Path) -> Iterator[str]:
    """A server of this model on a free port, while the block runs; gives its address."""
    command = [sys.executable, "-m", "server.main", str(model), "--port", "0", "--drain-seconds", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        said = []
        try:
            for line in process.stdout:
                said.append(line)
                if address := re.search(r"http://[\w.]+:\d+", line):
                    yield address.group()
                    return
            raise UserError("the server did not start: " + " ".join(said[-1:]).strip())
        finally:
            process.terminate()
            process.wait(timeout=_SECONDS)


def ask(address: str, text: str) -> dict[str, Any]:
    """The answer of a server to one text."""
    request = urllib.request.Request(  # noqa: S310 - the address is that of our own server
        f"{address}/predict", data=json.dumps({"text": text}).encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=_SECONDS) as response:  # noqa: S310
        answer: dict[str, Any] = json.load(response)
    return answer
