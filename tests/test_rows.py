"""Gradients of an embedding, exchanged by the rows that were used: what DDP itself gives."""

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from tests.ranks import in_ranks
from trainer.distributed import process_group
from trainer.rows import exchange_used_rows

VOCABULARY = 500


def compare_with_ddp(tolerance: float) -> None:
    with process_group(timeout_minutes=1) as process:
        torch.manual_seed(0)
        sizes = DistilBertConfig(
            vocab_size=VOCABULARY, dim=32, hidden_dim=64, n_layers=2, n_heads=2,
            dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0,
        )  # fmt: skip
        plain = DistilBertForSequenceClassification(sizes)
        ours = copy.deepcopy(plain)
        replicas = [DistributedDataParallel(model, gradient_as_bucket_view=True) for model in (plain, ours)]
        assert exchange_used_rows(replicas[1], ours.get_input_embeddings())
        sent = count_sent(dist)
        for step in range(4):  # after the first DDP has rearranged its buckets
            torch.manual_seed(100 * step + process.rank)
            two = [torch.randint(VOCABULARY, (2, 8)) for _ in range(2)]
            with torch.no_grad():
                ours(input_ids=torch.randint(VOCABULARY, (64, 8)))  # as in a validation: uses no row
            sent.clear()
            for replica in replicas:
                with replica.no_sync():
                    replica(input_ids=two[0]).logits.square().sum().backward()
                replica(input_ids=two[1]).logits.square().sum().backward()
            assert sum(sent) < sum(parameter.numel() for parameter in ours.parameters()) - VOCABULARY * 32 // 2
            for theirs, mine in zip(plain.parameters(), ours.parameters(), strict=True):
                assert theirs.grad is not None
                assert mine.grad is not None
                torch.testing.assert_close(mine.grad, theirs.grad, rtol=0, atol=tolerance)
            for model in (plain, ours):
                model.zero_grad(set_to_none=True)


def count_sent(module: object) -> list[int]:
    """Numbers of elements that are given to all_reduce in Python: DDP's own exchange does not go this way."""
    sent, real = list[int](), dist.all_reduce

    def counted(tensor: torch.Tensor, **how: Any) -> object:  # noqa: ANN401 - whatever it takes
        sent.append(tensor.numel())
        return real(tensor, **how)

    setattr(module, "all_reduce", counted)  # noqa: B010 - for the type checker a module's function cannot change
    return sent


@pytest.mark.parametrize(("ranks", "tolerance"), [(2, 0.0), (3, 1e-5)])
def test_the_mean_gradients_are_those_of_ddp_and_unused_rows_are_not_sent(ranks: int, tolerance: float) -> None:
    in_ranks(compare_with_ddp, tolerance, world_size=ranks)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.out = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.out(self.embedding(ids))
        return found


def refuse_what_has_other_gradients() -> None:
    with process_group(timeout_minutes=1):
        tied, frozen = Tied(), nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 2))
        frozen[0].requires_grad_(requires_grad=False)
        assert not exchange_used_rows(DistributedDataParallel(tied), tied.embedding)
        assert not exchange_used_rows(DistributedDataParallel(frozen), frozen[0])


def test_a_weight_that_is_used_otherwise_or_not_trained_is_left_to_ddp() -> None:
    in_ranks(refuse_what_has_other_gradients, world_size=2)
