"""The trainer to beat, as most tutorials write it: every text padded to 128, default AdamW, eager fp32, the loss read at each step."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from transformers import DistilBertConfig, DistilBertForSequenceClassification, PreTrainedModel

from trainer.config import PreprocessConfig
from trainer.data.dataset import Dataset as DatasetFolder
from trainer.data.dataset import Split
from trainer.preprocess import preprocess

MAX_LENGTH = 128
_ROWS = 24_000


class PaddedTexts(Dataset[dict[str, torch.Tensor]]):
    """Returns the rows of a split as `tokenizer(texts, padding="max_length")` gives them."""

    def __init__(self, split: Split, rows: Iterable[int], *, pad_token_id: int) -> None:
        self.rows = list(rows)
        self.ids = np.full((len(self.rows), MAX_LENGTH), pad_token_id, dtype=np.int64)
        for place, row in enumerate(self.rows):
            self.ids[place, : split.lengths[row]] = split.tokens(row)
        self.masks = np.arange(MAX_LENGTH) < split.lengths[self.rows][:, None]
        self.labels = split.labels[self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {
            "input_ids": torch.tensor(self.ids[index]),
            "attention_mask": torch.tensor(self.masks[index], dtype=torch.long),
            "labels": torch.tensor(self.labels[index], dtype=torch.long),
        }


@dataclass(frozen=True)
class Trained:
    rows: int
    loss: float
    seconds: float
    """Duration of this step."""


def train_reference(
    model: PreTrainedModel, data: PaddedTexts, *, batch_size: int, learning_rate: float
) -> Iterator[Trained]:
    """Yields one result after each step."""
    sampler = DistributedSampler(data, num_replicas=1, rank=0, shuffle=True)  # type: ignore[var-annotated]
    loader = DataLoader(data, batch_size=batch_size, sampler=sampler)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / len(loader))
    model.train()
    rows, started = 0, time.perf_counter()
    for batch in loader:
        on_device = {name: tensor.to(model.device) for name, tensor in batch.items()}
        optimizer.zero_grad()
        loss = model(**on_device).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay.step()
        rows += len(batch["labels"])
        value = loss.item()
        now = time.perf_counter()
        yield Trained(rows, value, now - started)
        started = now


def write_inputs(folder: Path, *, data: str, tokenizer: str) -> None:
    """Writes a dataset, and beside it a model of DistilBERT size that reads it."""
    preprocess(PreprocessConfig(data=data, model=tokenizer, max_train_rows=_ROWS), folder / "dataset")
    write_model(folder / "model", DatasetFolder(folder / "dataset"))


def write_model(folder: Path, dataset: DatasetFolder) -> None:
    """Writes random weights of DistilBERT size, and the dataset's tokenizer."""
    torch.manual_seed(0)
    DistilBertForSequenceClassification(DistilBertConfig()).save_pretrained(folder)
    for file in dataset.tokenizer_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
