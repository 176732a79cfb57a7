"""Small BERT and DistilBERT classifiers with weights that show every mistake, and padded batches for them."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedModel,
)

Build = Callable[[], PreTrainedModel]
SIZE: dict[str, Any] = {"vocab_size": 60, "max_position_embeddings": 48, "num_labels": 4}


def bert() -> PreTrainedModel:
    return BertForSequenceClassification(
        BertConfig(**SIZE, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4)
    )


def distilbert() -> PreTrainedModel:
    return DistilBertForSequenceClassification(DistilBertConfig(**SIZE, dim=32, hidden_dim=64, n_layers=2, n_heads=4))


def with_large_weights(build: Build) -> PreTrainedModel:
    """A model with weights so large that a wrong position, scale or mask shows in the logits."""
    torch.manual_seed(3)
    model = build()
    model.train(mode=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if "norm" not in name.lower() else 0.1))
    return model


def padded_batch(lengths: tuple[int, ...]) -> dict[str, torch.Tensor]:
    mask = torch.stack([torch.arange(max(lengths)) < length for length in lengths]).long()
    random = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 60, (len(lengths), max(lengths)), generator=random)
    return {"input_ids": ids * mask, "attention_mask": mask}
