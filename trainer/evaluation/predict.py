"""Computes logits of a split by all processes together, and probabilities of texts by the server's encoder."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from server.errors import UserError
from server.inference.encoder import Encoder, softmax
from server.inference.hardware import available_cpus
from server.model_folder import Padding
from trainer.data.batches import collate, evaluation_shares
from trainer.data.dataset import Dataset, Split
from trainer.distributed.process_group import Process
from trainer.monitoring.console import Progress

Logits = npt.NDArray[np.float32]
Probabilities = npt.NDArray[np.floating[Any]]
_BATCH_ROWS = 64


@dataclass(frozen=True)
class Score:
    rows: int
    loss: float
    accuracy: float


@torch.inference_mode()
def predict(
    model: PreTrainedModel,
    split: Split,
    process: Process,
    *,
    padding: Padding,
    what: str,
    after_batch: Sequence[Callable[[], object]] = (),
) -> Logits:
    """Computes logits [rows, classes] in fp32, the same on every process, in the order of the split.

    Each row is computed by exactly one process, whatever their number, which is asserted: a sampler that evens
    out the shares would count some rows twice (pytorch#25162).
    """
    shares = evaluation_shares(split.lengths, batch_size=_BATCH_ROWS, rank=process.rank, world_size=process.world_size)
    was_training = model.training
    model.eval()
    found = torch.zeros(
        len(split), len(model.config.id2label or ()) + 1, device=process.device
    )  # the last column counts
    with Progress(what, len(split), "rows", shown=process.is_main) as progress:
        for rows in shares:
            batch = collate(split, rows, padding=padding).to(process.device)
            logits = model(**batch.inputs).logits
            found[torch.from_numpy(rows).to(process.device), :-1] = logits.float()
            found[torch.from_numpy(rows).to(process.device), -1] = 1
            progress.advance(len(rows) * process.world_size)
            for call in after_batch:
                call()
    model.train(was_training)
    dist.all_reduce(found)
    assert bool((found[:, -1] == 1).all()), "a row was computed by no process, or by two"  # noqa: S101 - ours to get right
    return found[:, :-1].cpu().numpy()


def predict_texts(encoder: Encoder, texts: Sequence[str], *, batch_size: int, what: str) -> Probabilities:
    """Computes probabilities [texts, classes] as the server does, from one thread a CPU: a call of the encoder uses one."""
    batches = [texts[start : start + batch_size] for start in range(0, len(texts), batch_size)]
    found = []
    with Progress(what, len(texts), "texts") as progress, ThreadPoolExecutor(available_cpus()) as callers:
        for probabilities in callers.map(encoder.classify, batches):
            found.append(probabilities)
            progress.advance(len(probabilities))
    return np.concatenate(found)


def read_predictions(file: Path, dataset: Dataset) -> Probabilities:
    """Reads the probabilities [test rows, classes] that evaluate wrote; UserError when they are not those of this dataset."""
    if not file.is_file():
        raise UserError(f"{file} is missing: run the evaluate step first")
    found: Probabilities = np.load(file)
    if found.shape != (len(dataset.test), len(dataset.classes)):
        raise UserError(
            f"{file} has {len(found):,} rows, the test split of {dataset.folder} has {len(dataset.test):,}: run the evaluate step again"
        )
    return found


def validate(model: PreTrainedModel, dataset: Dataset, process: Process, *after_batch: Callable[[], object]) -> Score:
    """Computes loss and accuracy on the validation rows, by all processes together."""
    logits = predict(
        model, dataset.validation, process, padding=dataset.padding, what="train: validation", after_batch=after_batch
    )  # fmt: skip
    return score(softmax(logits), dataset.validation.labels)


def score(probabilities: Probabilities, labels: npt.NDArray[np.int32]) -> Score:
    """Computes cross-entropy and accuracy over exactly these rows."""
    of_label = probabilities[np.arange(len(labels)), labels]
    loss = float(-np.log(np.maximum(of_label, np.finfo(np.float32).tiny)).mean())
    correct = int((probabilities.argmax(axis=1) == labels).sum())
    return Score(len(labels), loss, correct / len(labels))
