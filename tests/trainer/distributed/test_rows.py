"""Exchange of gradients by rows, over sockets: what DDP itself gives."""

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from tests.support.ranks import in_ranks
from trainer.distributed.process_group import process_group
from trainer.distributed.rows import embedding_by_rows, exchange_by_rows

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
        exchange_by_rows(replicas[1], embedding_by_rows(ours, ours.get_input_embeddings()))
        sent = count_elements(dist, "all_reduce")
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
            gradients = sum(parameter.numel() for parameter in ours.parameters())
            assert sum(sent) < gradients - VOCABULARY * 32 // 2
            for theirs, mine in zip(plain.parameters(), ours.parameters(), strict=True):
                assert theirs.grad is not None
                assert mine.grad is not None
                torch.testing.assert_close(mine.grad, theirs.grad, rtol=0, atol=tolerance)
            for model in (plain, ours):
                model.zero_grad(set_to_none=True)


def count_elements(owner: object, name: str) -> list[int]:
    """Numbers of elements of the tensors that a function is given; DDP's own exchange does not go through all_reduce in Python."""
    given, real = list[int](), getattr(owner, name)

    def counted(*args: Any, **how: Any) -> object:  # noqa: ANN401 - whatever it takes
        given.append(next(one for one in args if isinstance(one, torch.Tensor)).numel())
        return real(*args, **how)

    setattr(owner, name, counted)
    return given


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


class Frozen(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Embedding(10, 4), nn.Linear(4, 10))
        self.embedding.requires_grad_(requires_grad=False)

    @property
    def embedding(self) -> nn.Module:
        return self[0]


def send_all_of_what_has_other_gradients() -> None:
    with process_group(timeout_minutes=1) as process:
        for model in (Tied(), Frozen()):
            ids = torch.tensor([process.rank, 5])
            model(ids).square().sum().backward()
            alone = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
            expected = {name: gradient.clone() for name, gradient in alone.items()}
            for gradient in expected.values():
                dist.all_reduce(gradient)
            model.zero_grad()
            replica = DistributedDataParallel(model)
            exchange_by_rows(replica, embedding_by_rows(model, model.embedding))
            replica(ids).square().sum().backward()
            found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
            torch.testing.assert_close(found, {name: gradient / 2 for name, gradient in expected.items()})


def test_of_a_weight_that_is_used_otherwise_or_not_trained_all_rows_are_sent() -> None:
    in_ranks(send_all_of_what_has_other_gradients, world_size=2)
