"""Faults that a rank of a training brings upon itself: each function is called in a rank, with its number, before it trains.

torchrun --nproc-per-node 2 -m tests.support.faults FAULT --dataset … --output …
"""

import os
import sys
import time
from collections.abc import Callable

import torch
from torch.nn import functional

import trainer.distributed.alike
import trainer.train
from trainer.distributed.launch import worker
from trainer.distributed.process_group import seed_step

STEP = 3
"""The steps that are done when a fault comes in the middle of training."""


def main() -> None:
    FAULTS[sys.argv.pop(1)](int(os.environ["RANK"]))
    worker(trainer.train.main)


def hang(rank: int) -> None:
    def asleep() -> None:
        time.sleep(600)

    if rank == 1:
        _in_a_step(asleep)


def error(rank: int) -> None:
    def fail() -> None:
        raise ValueError("this rank has a bug")

    if rank == 1:
        _in_a_step(fail)


def out_of_memory(rank: int) -> None:
    def take() -> None:
        torch.empty(2**60)  # as an allocator says it that finds no more

    if rank == 1:
        _in_a_step(take)


def _in_a_step(fault: Callable[[], object]) -> None:
    def seed_or_fault(seed: int, *, step: int, rank: int) -> None:
        if step == STEP:
            print(f"injected at {time.time():.3f}", flush=True)
            fault()
        seed_step(seed, step=step, rank=rank)

    vars(trainer.train)["seed_step"] = seed_or_fault


def infinite_loss(rank: int) -> None:
    """A loss that is infinite, though its gradient is not, in one step."""
    if rank == 1:
        _with_loss(lambda loss, step: loss + torch.inf if step == STEP else loss)


def infinite_losses(rank: int) -> None:
    if rank == 1:
        _with_loss(lambda loss, step: loss + torch.inf if step >= STEP else loss)


def large_loss(rank: int) -> None:
    """On both ranks, in a step that has enough before it to be compared with."""
    assert rank >= 0
    _with_loss(lambda loss, step: loss * 9 if step == 12 else loss)


def _with_loss(change: Callable[[torch.Tensor, int], torch.Tensor]) -> None:
    calls, work = iter(range(-2, 10_000)), functional.cross_entropy  # the first two are the rehearsal's

    def changed(logits: torch.Tensor, labels: torch.Tensor, *, reduction: str) -> torch.Tensor:
        return change(work(logits, labels, reduction=reduction), next(calls))

    functional.cross_entropy = changed  # type: ignore[assignment]


def other_batch_size(rank: int) -> None:
    if rank == 1:
        sys.argv += ["--batch-size", "8"]


def other_library(rank: int) -> None:
    known = trainer.distributed.alike.environment()
    if rank == 1:
        vars(trainer.distributed.alike)["environment"] = lambda: known | {"safetensors": "0.4.0"}


def other_dataset(rank: int) -> None:
    """The folder of that name with -other behind it."""
    if rank == 1:
        sys.argv[sys.argv.index("--dataset") + 1] += "-other"


FAULTS = {
    fault.__name__: fault
    for fault in (
        hang, error, out_of_memory, infinite_loss, infinite_losses, large_loss, other_batch_size, other_library, other_dataset,
    )
}  # fmt: skip


if __name__ == "__main__":
    main()
