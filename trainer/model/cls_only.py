"""The exact short cut of classifiers that read the first position alone: the last layer computes no other."""

from typing import Any

import torch
from torch import nn
from transformers import BertForSequenceClassification, DistilBertForSequenceClassification, PreTrainedModel


def read_first_position_only(model: PreTrainedModel) -> bool:
    """Let the model's last layer compute its first position only, with the same logits; False, and no change, where it may read others.

    Keys and values are still those of all positions. The architecture has to be exactly one of these two: their relatives
    classify by other positions, or compute attention otherwise. Attention becomes eager, as its mask is the one to add.
    """
    if type(model) is DistilBertForSequenceClassification:
        layers = model.distilbert.transformer.layer
        layers[-1] = _DistilBertLayer(layers[-1])
    elif type(model) is BertForSequenceClassification:
        layers = model.bert.encoder.layer
        layers[-1] = _BertLayer(layers[-1])
    else:
        return False
    model.set_attn_implementation("eager")
    return True


class _DistilBertLayer(nn.Module):
    def __init__(self, layer: Any) -> None:  # noqa: ANN401 - the library publishes no types of its layers
        super().__init__()
        self.layer = layer

    def forward(self, hidden: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: object) -> torch.Tensor:
        first, attention = hidden[:, :1], self.layer.attention
        context = _attend(
            attention.q_lin(first), attention.k_lin(hidden), attention.v_lin(hidden), attention_mask, heads=attention.n_heads
        )  # fmt: skip
        attended = self.layer.sa_layer_norm(attention.out_lin(context) + first)
        output: torch.Tensor = self.layer.output_layer_norm(self.layer.ffn(attended) + attended)
        return output


class _BertLayer(nn.Module):
    def __init__(self, layer: Any) -> None:  # noqa: ANN401 - the library publishes no types of its layers
        super().__init__()
        self.layer = layer

    def forward(
        self, hidden: torch.Tensor, attention_mask: torch.Tensor | None = None, *_: object, **__: object
    ) -> torch.Tensor:
        first, attention = hidden[:, :1], self.layer.attention.self
        context = _attend(
            attention.query(first), attention.key(hidden), attention.value(hidden), attention_mask,
            heads=attention.num_attention_heads,
        )  # fmt: skip
        attended = self.layer.attention.output(context, first)
        output: torch.Tensor = self.layer.feed_forward_chunk(attended)
        return output


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, *, heads: int
) -> torch.Tensor:
    """Attention of one query [batch, 1, size] to all positions [batch, length, size], under the model's additive mask."""
    query, key, value = (part.view(*part.shape[:2], heads, -1).transpose(1, 2) for part in (query, key, value))
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if mask is not None:
        scores = scores + mask[:, :, :1]
    context: torch.Tensor = scores.softmax(dim=-1) @ value
    return context.transpose(1, 2).flatten(-2)
