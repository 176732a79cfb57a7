"""Texts in one sequence, one after the other: no padding is computed, and of the last layer only the first position of each text.

Each text attends to itself alone, so logits and gradients are those of a padded batch. Source: Krell et al. 2021, Efficient
Sequence Packing without Cross-contamination.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Self

import torch
from torch.nn import functional
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    BertForSequenceClassification,
    DistilBertForSequenceClassification,
    PreTrainedModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

_NAME = "packed"  # of this attention, as transformers knows it
_MULTIPLE = 8  # of which padded lengths are, as fused kernels want them


@dataclass(frozen=True)
class Texts:
    """Where the texts of a packed sequence are."""

    lengths: list[int]
    """Of each, in tokens."""
    positions: torch.Tensor
    """[1, tokens], int64: of each token in its text."""
    firsts: torch.Tensor
    """[texts], int64: where each text begins."""

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Self:
        each = torch.tensor(lengths)
        firsts = each.cumsum(0) - each
        return cls(list(lengths), (torch.arange(int(each.sum())) - firsts.repeat_interleave(each))[None], firsts)

    @cached_property
    def padding(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Where each token is among `texts` × `longest` padded ones, [tokens], and whether there is one, [texts, longest]."""
        longest = -(-max(self.lengths) // _MULTIPLE) * _MULTIPLE
        ends = torch.cat([self.firsts[1:], self.firsts.new_full((1,), self.positions.shape[1])])
        lengths = ends - self.firsts
        texts = torch.arange(len(self.lengths), device=lengths.device)
        of_text = texts.repeat_interleave(lengths, output_size=self.positions.shape[1])
        return of_text * longest + self.positions[0], torch.arange(longest, device=lengths.device) < lengths[:, None]

    def moved(self, move: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        return replace(self, positions=move(self.positions), firsts=move(self.firsts))


def enable_packing(model: PreTrainedModel) -> bool:
    """Let a model in training read packed batches too: `input_ids` [1, tokens], `position_ids` and `texts`.

    Parameters keep their names and dropout its place. The architecture has to be exactly one of these two: relatives classify
    by other positions, count positions or compute attention otherwise. False, and no change, for all others.
    """
    if type(model) is DistilBertForSequenceClassification:
        last = model.distilbert.transformer.layer[-1]
        last.forward = partial(_distilbert_forward, last)
    elif type(model) is BertForSequenceClassification:
        last = model.bert.encoder.layer[-1]
        last.forward = partial(_bert_forward, last)
    else:
        return False
    model.set_attn_implementation(_NAME)
    return True


def is_packed(model: PreTrainedModel) -> bool:
    """Whether `enable_packing` has changed it."""
    return bool(model.config._attn_implementation == _NAME)  # noqa: SLF001 - has no public name


def _distilbert_forward(
    layer: Any,  # noqa: ANN401 - the library publishes no types of its layers
    hidden: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    texts: Texts | None = None,
    **_: object,
) -> torch.Tensor:
    first, attention = _firsts(hidden, texts), layer.attention
    context = _attend_from_firsts(
        attention.q_lin(first), attention.k_lin(hidden), attention.v_lin(hidden), attention_mask, texts, attention
    )
    attended = layer.sa_layer_norm(attention.out_lin(context) + first)
    output: torch.Tensor = layer.output_layer_norm(layer.ffn(attended) + attended)
    return output


def _bert_forward(
    layer: Any,  # noqa: ANN401 - the library publishes no types of its layers
    hidden: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *_: object,
    texts: Texts | None = None,
    **__: object,
) -> torch.Tensor:
    first, attention = _firsts(hidden, texts), layer.attention.self
    context = _attend_from_firsts(
        attention.query(first), attention.key(hidden), attention.value(hidden), attention_mask, texts, attention
    )
    output: torch.Tensor = layer.feed_forward_chunk(layer.attention.output(context, first))
    return output


def _firsts(hidden: torch.Tensor, texts: Texts | None) -> torch.Tensor:
    """[texts, 1, size]: the first position of each."""
    return hidden[:, :1] if texts is None else hidden[0].index_select(0, texts.firsts)[:, None]


def _attend_from_firsts(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    texts: Texts | None,
    attention: Any,  # noqa: ANN401 - the library publishes no types of its layers
) -> torch.Tensor:
    """Context [texts, 1, size] of each text's first position, from its query [texts, 1, size] and keys and values of all."""
    query = query if texts is None else query.transpose(0, 1)
    query, key, value = (
        part.view(*part.shape[:2], -1, attention.attention_head_size).transpose(1, 2) for part in (query, key, value)
    )
    dropout = attention.dropout.p if attention.training else 0.0
    if texts is not None:
        return _attend(query, key, value, texts, dropout).flatten(-2).transpose(0, 1)
    first_row = None if mask is None else mask[:, :, :1]
    context = functional.scaled_dot_product_attention(query, key, value, attn_mask=first_row, dropout_p=dropout)
    return context.transpose(1, 2).flatten(-2)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    texts: Texts | None = None,
    **others: Any,  # noqa: ANN401 - the library's
) -> tuple[torch.Tensor, None]:
    """What transformers calls in the other layers; of padded batches, its own."""
    if texts is not None:
        return _attend(query, key, value, texts, dropout), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, **others)


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, texts: Texts, dropout: float) -> torch.Tensor:
    """[1, positions, heads, size] of queries [1, heads, positions, size], all of each text or one, and keys and values of all.

    Computed in fp32, as PyTorch does on CPUs where attention is dropped, and with a fraction of the calls.
    """
    if query.is_cuda:
        return attend_padded(query, key, value, texts, dropout)
    asked = texts.lengths if query.shape[2] == key.shape[2] else [1] * len(texts.lengths)
    with torch.autocast(query.device.type, enabled=False):
        scaled = query[0].float() * query.shape[-1] ** -0.5
        queries = torch.split(scaled, asked, dim=1)
        keys, values = (torch.split(part[0].float(), texts.lengths, dim=1) for part in (key, value))
        sizes = [query.shape[1] * count * length for count, length in zip(asked, texts.lengths, strict=True)]
        kept: tuple[torch.Tensor, ...] = ()
        if dropout:
            kept = torch.split(scaled.new_empty(sum(sizes)).bernoulli_(1 - dropout).div_(1 - dropout), sizes)
        contexts = []
        for number, text_keys in enumerate(keys):
            weights = torch.bmm(queries[number], text_keys.transpose(1, 2)).softmax(dim=-1)
            if kept:
                weights = weights * kept[number].view_as(weights)
            contexts.append(torch.bmm(weights, values[number]).transpose(0, 1))
    return torch.cat(contexts)[None].to(query.dtype)


def attend_padded(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, texts: Texts, dropout: float
) -> torch.Tensor:
    """The same in one call for all texts, padded for it alone: a GPU would wait for the host to launch as many as there are texts."""
    places, is_token = texts.padding
    count, longest = is_token.shape

    def padded(packed: torch.Tensor) -> torch.Tensor:
        tokens = packed[0].transpose(0, 1)
        room = tokens.new_zeros(count * longest, *tokens.shape[1:])
        return room.index_copy(0, places, tokens).view(count, longest, *tokens.shape[1:]).transpose(1, 2)

    whole = query.shape[2] == key.shape[2]
    asked = padded(query) if whole else query.transpose(0, 2)
    context = functional.scaled_dot_product_attention(
        asked, padded(key), padded(value), attn_mask=is_token[:, None, None], dropout_p=dropout
    )
    found = context.transpose(1, 2).flatten(0, 1)
    return (found.index_select(0, places) if whole else found)[None]


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, sdpa_mask)
