"""Exchange of gradients by rows and through shared memory: what DDP itself gives, and nothing left when a process ends."""

import copy
import os
import resource
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from tests.ranks import Group, in_ranks
from trainer import neighbours
from trainer.distributed import process_group
from trainer.neighbours import Neighbours
from trainer.rows import exchange_by_rows

VOCABULARY = 500


def compare_with_ddp(tolerance: float, shared_memory: bool) -> None:
    with process_group(timeout_minutes=1) as process:
        torch.manual_seed(0)
        sizes = DistilBertConfig(
            vocab_size=VOCABULARY, dim=32, hidden_dim=64, n_layers=2, n_heads=2,
            dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0,
        )  # fmt: skip
        plain = DistilBertForSequenceClassification(sizes)
        ours = copy.deepcopy(plain)
        replicas = [DistributedDataParallel(model, gradient_as_bucket_view=True) for model in (plain, ours)]
        together = Neighbours.of(process, timeout_minutes=1) if shared_memory else None
        assert (together is not None) == shared_memory
        exchange_by_rows(replicas[1], ours.get_input_embeddings(), together)
        by_sockets, by_memory = count_elements(dist, "all_reduce"), count_elements(Neighbours, "mean")
        for step in range(4):  # after the first DDP has rearranged its buckets
            torch.manual_seed(100 * step + process.rank)
            two = [torch.randint(VOCABULARY, (2, 8)) for _ in range(2)]
            with torch.no_grad():
                ours(input_ids=torch.randint(VOCABULARY, (64, 8)))  # as in a validation: uses no row
            by_sockets.clear()
            by_memory.clear()
            for replica in replicas:
                with replica.no_sync():
                    replica(input_ids=two[0]).logits.square().sum().backward()
                replica(input_ids=two[1]).logits.square().sum().backward()
            gradients = sum(parameter.numel() for parameter in ours.parameters())
            assert sum(by_sockets) + sum(by_memory) < gradients - VOCABULARY * 32 // 2
            assert sum(by_sockets) == VOCABULARY or not shared_memory  # which rows were used
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


@pytest.mark.parametrize("shared_memory", [True, False])
@pytest.mark.parametrize(("ranks", "tolerance"), [(2, 0.0), (3, 1e-5)])
def test_the_mean_gradients_are_those_of_ddp_and_unused_rows_are_not_sent(
    ranks: int, tolerance: float, shared_memory: bool
) -> None:
    in_ranks(compare_with_ddp, tolerance, shared_memory, world_size=ranks)


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


def send_all_of_what_has_other_gradients(shared_memory: bool) -> None:
    with process_group(timeout_minutes=1) as process:
        together = Neighbours.of(process, timeout_minutes=1) if shared_memory else None
        for model in (Tied(), Frozen()):
            ids = torch.tensor([process.rank, 5])
            model(ids).square().sum().backward()
            alone = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
            expected = {name: gradient.clone() for name, gradient in alone.items()}
            for gradient in expected.values():
                dist.all_reduce(gradient)
            model.zero_grad()
            replica = DistributedDataParallel(model)
            exchange_by_rows(replica, model.embedding, together)
            replica(ids).square().sum().backward()
            found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
            torch.testing.assert_close(found, {name: gradient / 2 for name, gradient in expected.items()})


@pytest.mark.parametrize("shared_memory", [True, False])
def test_of_a_weight_that_is_used_otherwise_or_not_trained_all_rows_are_sent(shared_memory: bool) -> None:
    in_ranks(send_all_of_what_has_other_gradients, shared_memory, world_size=2)


def average_more_than_a_slot_holds(folder: Path) -> None:
    neighbours._SHARED_MEMORY = folder
    neighbours._PART_BYTES = 64
    with process_group(timeout_minutes=1) as process:
        together = Neighbours.of(process, timeout_minutes=1)
        assert together is not None
        for count in (1, 15, 16, 17, 1000):
            for dtype in (torch.float32, torch.float64):
                found = torch.arange(count, dtype=dtype) + 10 * process.rank
                together.mean(found)
                torch.testing.assert_close(found, torch.arange(count, dtype=dtype) + 10)


def test_tensors_of_any_size_and_type_are_averaged_and_no_file_is_left(tmp_path: Path) -> None:
    in_ranks(average_more_than_a_slot_holds, tmp_path, world_size=3)
    assert list(tmp_path.iterdir()) == []


def wait_for_one_that_ends(said: Path) -> None:
    with process_group(timeout_minutes=1) as process:
        together = Neighbours.of(process, timeout_minutes=1)
        assert together is not None
        together.mean(torch.ones(10))
        if process.rank == 1:
            os._exit(9)
        started = time.monotonic()
        with pytest.raises(RuntimeError) as caught:
            together.mean(torch.ones(10))
        said.write_text(f"{time.monotonic() - started:.1f} {caught.value}", encoding="utf-8")
        os._exit(0)


def test_a_process_that_ends_is_noticed_at_once_and_named(tmp_path: Path) -> None:
    with Group(wait_for_one_that_ends, tmp_path / "said", world_size=2) as group:
        assert group.wait(30) == [0, 9]
    seconds, said = (tmp_path / "said").read_text(encoding="utf-8").split(" ", 1)
    assert float(seconds) < 5
    assert said == "process 1 has ended, so that process 0 cannot go on"


def wait_for_one_that_hangs() -> None:
    with process_group(timeout_minutes=1) as process:
        together = Neighbours.of(process, timeout_minutes=0.01)
        assert together is not None
        if process.rank == 0:
            with pytest.raises(RuntimeError, match=r"process 1 sent nothing for 0\.01 minutes"):
                together.mean(torch.ones(10))
        dist.barrier()


def test_a_process_that_hangs_is_named_after_the_time_that_is_set() -> None:
    in_ranks(wait_for_one_that_hangs, world_size=2)


def find_no_room(said: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
    neighbours.say = lambda line: said.write_text(line, encoding="utf-8")  # type: ignore[attr-defined, assignment]
    with process_group(timeout_minutes=1) as process:
        assert Neighbours.of(process, timeout_minutes=1) is None


def test_without_room_for_shared_memory_a_line_says_what_is_done_instead(tmp_path: Path) -> None:
    in_ranks(find_no_room, tmp_path / "said", world_size=2)
    said = (tmp_path / "said").read_text(encoding="utf-8")
    assert said.startswith("train: gradients go through sockets, which is slower: no shared memory: ")
    assert "File too large" in said
