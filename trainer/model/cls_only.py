"""The last layer for [CLS] alone, in training and in what is exported: the classifier reads no other position."""

from functools import partial
from typing import Any

import torch
from transformers import BertForSequenceClassification, DistilBertForSequenceClassification, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from trainer.data.batches import PackedSequences


def enable_cls_only(model: PreTrainedModel) -> bool:
    """Lets the last layer compute the first position of each text alone, with the same logits and gradients.

    Keys and values are still those of all positions, parameters keep their names, and dropout its place. Returns False, and
    changes nothing, unless the architecture is exactly one of these two: their relatives classify by other positions, count
    positions or compute attention otherwise.
    """
    if type(model) is DistilBertForSequenceClassification:
        layer = model.distilbert.transformer.layer[-1]
        layer.forward = partial(_distilbert_forward, layer)
    elif type(model) is BertForSequenceClassification:
        layer = model.bert.encoder.layer[-1]
        layer.forward = partial(_bert_forward, layer)
    else:
        return False
    return True


def _distilbert_forward(
    layer: Any,  # noqa: ANN401 - the library publishes no types of its layers
    hidden: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    sequences: PackedSequences | None = None,
    **_: object,
) -> torch.Tensor:
    first, attention = _first_positions(hidden, sequences), layer.attention
    query, key, value = attention.q_lin(first), attention.k_lin(hidden), attention.v_lin(hidden)
    context = _attend(attention, query, key, value, attention_mask, sequences)
    attended = layer.sa_layer_norm(attention.out_lin(context) + first)
    return _one_row_a_text(layer.output_layer_norm(layer.ffn(attended) + attended), sequences)


def _bert_forward(
    layer: Any,  # noqa: ANN401 - the library publishes no types of its layers
    hidden: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *_: object,
    sequences: PackedSequences | None = None,
    **__: object,
) -> torch.Tensor:
    first, attention = _first_positions(hidden, sequences), layer.attention.self
    query, key, value = attention.query(first), attention.key(hidden), attention.value(hidden)
    context = _attend(attention, query, key, value, attention_mask, sequences)
    return _one_row_a_text(layer.feed_forward_chunk(layer.attention.output(context, first)), sequences)


def _first_positions(hidden: torch.Tensor, sequences: PackedSequences | None) -> torch.Tensor:
    """Returns the first position of each text: [texts, 1, size] of padded ones, [1, texts, size] of packed ones."""
    return hidden[:, :1] if sequences is None else hidden.index_select(1, sequences.starts)


def _one_row_a_text(hidden: torch.Tensor, sequences: PackedSequences | None) -> torch.Tensor:
    """Returns [texts, 1, size], of which the classifier reads position 0."""
    return hidden if sequences is None else hidden.transpose(0, 1)


def _attend(
    attention: Any,  # noqa: ANN401 - the library publishes no types of its layers
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    sequences: PackedSequences | None,
) -> torch.Tensor:
    """Computes attention of the first positions to all, as the model's other layers do; by SDPA where those are eager."""
    heads = [
        part.view(*part.shape[:2], -1, attention.attention_head_size).transpose(1, 2) for part in (query, key, value)
    ]
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, sdpa_attention_forward)  # noqa: SLF001 - has no public name
    dropout = attention.dropout.p if attention.training else 0.0
    of_first = None if mask is None else mask[:, :, :1]
    context: torch.Tensor = attend(attention, *heads, of_first, dropout=dropout, sequences=sequences)[0]
    return context.flatten(-2)
