"""deploy on this machine: start the server with the new model, ask it, and note it as the model now served."""

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipelines.run_folder import RunFolder
from server.errors import UserError
from server.files import write_json
from server.settings import PREFIX
from trainer.data.dataset import Dataset
from trainer.monitoring.console import print0

_TEXTS = 50
_AGREEMENT = 0.9  # of the labels: int8 may take a close one for another
_SECONDS = 60
_DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy reaches a server on this machine


class Questions(NamedTuple):
    """Texts, and the labels that evaluate gave them."""

    texts: list[str]
    labels: list[str]


def deploy_here(run: RunFolder) -> dict[str, Any]:
    """Serve the model of a run for a moment and compare its answers with evaluate's; then it counts as the model now served."""
    asked = questions(run, _TEXTS)
    with serving(run.model) as address:
        labels = [str(ask(address, text)["label"]) for text in asked.texts]
    agreement = agreement_of(labels, asked.labels, at_least=_AGREEMENT)
    note_served(run)
    print0(
        f"deploy: the server agrees with evaluate on {agreement:.0%} of {len(labels)} texts; {run.name} is the model now served"
    )
    return {"agreement": agreement, "texts": len(labels)}


def questions(run: RunFolder, count: int) -> Questions:
    """The first test texts of a run."""
    dataset = Dataset(run.dataset)
    predictions = np.load(run.folder / "predictions.npy")[:count]
    texts = [dataset.test.text(row) for row in range(len(predictions))]
    return Questions(texts, [dataset.classes[number] for number in predictions.argmax(axis=1)])


def agreement_of(found: Sequence[str], expected: Sequence[str], *, at_least: float) -> float:
    """The share of the labels that are the same; UserError when it is too small."""
    agreement = sum(one == other for one, other in zip(found, expected, strict=True)) / len(expected)
    if agreement < at_least:
        raise UserError(
            f"the server gives {agreement:.0%} of {len(expected)} test texts the label that evaluate gave, fewer than {at_least:.0%}"
        )
    return agreement


def note_served(run: RunFolder, **how: Any) -> None:  # noqa: ANN401 - whatever JSON takes
    """Let the model of a run count as the one now served, which the gate compares the next one with."""
    dataset = Dataset(run.dataset)
    metrics = json.loads((run.folder / "metrics.json").read_text(encoding="utf-8"))
    served = {
        "run": run.name,
        "model": str(run.model.resolve()),
        "accuracy": metrics["accuracy"],
        "labels": dataset.classes,
        "test_digest": dataset.info["test_digest"],
        **how,
    }
    write_json(run.workspace / "served.json", served)


def served_now(run: RunFolder) -> dict[str, Any]:
    """What was noted last; nothing where nothing is served yet."""
    file = run.workspace / "served.json"
    facts: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return facts


@contextmanager
def serving(model: Path) -> Iterator[str]:
    """A server of this model on a free port, while the block runs; gives its address."""
    command = [sys.executable, "-m", "server.main", str(model), "--port", "0", "--metrics-port", "off", "--drain-seconds", "0"]  # fmt: skip
    with subprocess.Popen(
        command, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
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


def _environment() -> dict[str, str]:
    """Of what the shell sets for servers, the engine alone counts: it gives the answers; keys, limits and ports are for callers of another."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.upper().startswith(PREFIX) or name.upper() == f"{PREFIX}ENGINE"
    }


def ask(address: str, text: str) -> dict[str, Any]:
    """The answer of a server to one text."""
    request = urllib.request.Request(  # noqa: S310 - the address is that of our own server
        f"{address}/predict", data=json.dumps({"text": text}).encode(), headers={"Content-Type": "application/json"}
    )
    with _DIRECTLY.open(request, timeout=_SECONDS) as response:
        answer: dict[str, Any] = json.load(response)
    return answer
