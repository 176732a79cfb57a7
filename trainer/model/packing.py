"""Packed texts, one after the other in one sequence: no padding is computed, and each text attends to itself alone.

Logits and gradients are those of a padded batch. Source: Krell et al. 2021, Efficient Sequence Packing without
Cross-contamination.
"""

from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from trainer.data.batches import PackedSequences
from trainer.model.cls_only import enable_cls_only

_NAME = "packed"  # of this attention, as transformers knows it


def enable_packing(model: PreTrainedModel) -> bool:
    """Lets a model compute packed batches too: `input_ids` [1, tokens], `position_ids` and `sequences`.

    Its last layer computes [CLS] alone. Returns False, and changes nothing, where `enable_cls_only` does.
    """
    if not enable_cls_only(model):
        return False
    model.set_attn_implementation(_NAME)
    return True


def is_packed(model: PreTrainedModel) -> bool:
    """Returns True after `enable_packing` has changed the model."""
    return bool(model.config._attn_implementation == _NAME)  # noqa: SLF001 - has no public name


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    sequences: PackedSequences | None = None,
    **others: Any,  # noqa: ANN401 - the library's
) -> tuple[torch.Tensor, None]:
    """Computes a layer's attention for transformers: that of packed texts, or its own for padded ones."""
    if sequences is not None:
        return _attend(query, key, value, sequences, dropout), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, **others)


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sequences: PackedSequences, dropout: float
) -> torch.Tensor:
    """Computes [1, positions, heads, size] from keys, values and queries [1, heads, positions, size], all of each text or one.

    Computed in fp32, as PyTorch does on CPUs where attention is dropped, and with a fraction of the calls.
    """
    if query.is_cuda:
        return attend_padded(query, key, value, sequences, dropout)
    lengths = sequences.lengths
    query_lengths = lengths if query.shape[2] == key.shape[2] else [1] * len(lengths)
    with torch.autocast(query.device.type, enabled=False):
        scaled = query[0].float() * query.shape[-1] ** -0.5
        queries = torch.split(scaled, query_lengths, dim=1)
        keys, values = (torch.split(part[0].float(), lengths, dim=1) for part in (key, value))
        sizes = [query.shape[1] * count * length for count, length in zip(query_lengths, lengths, strict=True)]
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
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sequences: PackedSequences, dropout: float
) -> torch.Tensor:
    """Computes the same in one call for all texts, padded: a GPU would wait for the host to launch as many as there are texts."""
    places, is_token = sequences.padding
    count, longest = is_token.shape

    def padded(packed: torch.Tensor) -> torch.Tensor:
        tokens = packed[0].transpose(0, 1)
        room = tokens.new_zeros(count * longest, *tokens.shape[1:])
        return room.index_copy(0, places, tokens).view(count, longest, *tokens.shape[1:]).transpose(1, 2)

    all_positions = query.shape[2] == key.shape[2]
    queries = padded(query) if all_positions else query.transpose(0, 2)
    context = functional.scaled_dot_product_attention(
        queries, padded(key), padded(value), attn_mask=is_token[:, None, None], dropout_p=dropout
    )
    found = context.transpose(1, 2).flatten(0, 1)
    return (found.index_select(0, places) if all_positions else found)[None]


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, sdpa_mask)
