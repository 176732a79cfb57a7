"""Faults for a rank of a training: each function is called in a rank, with its number, before it trains."""

import sys
import time
from collections.abc import Callable

import torch
from torch.nn import functional

import trainer.train
from trainer.distributed.process_group import seed_step

STEP = 3
"""The steps that are done when a fault comes in the middle of training."""


def hang(rank: int) -> None:
    def asleep() -> None:
        time.sleep(600)

    if rank == 1:
        _in_a_step(asleep)


def _in_a_step(fault: Callable[[], object]) -> None:
    def seed_or_fault(seed: int, *, step: int, rank: int) -> None:
        if step == STEP:
            print(f"injected at {time.time():.3f}", flush=True)
            fault()
        seed_step(seed, step=step, rank=rank)

    vars(trainer.train)["seed_step"] = seed_or_fault


def infinite_loss(rank: int) -> None:
    """Makes the loss of one step infinite."""
    if rank == 1:
        _with_loss(lambda loss, step: loss * torch.inf if step == STEP else loss)


def _with_loss(change: Callable[[torch.Tensor, int], torch.Tensor]) -> None:
    calls, work = iter(range(-2, 10_000)), functional.cross_entropy  # the first two are the warm-up's

    def changed(logits: torch.Tensor, labels: torch.Tensor, *, reduction: str) -> torch.Tensor:
        return change(work(logits, labels, reduction=reduction), next(calls))

    functional.cross_entropy = changed  # type: ignore[assignment]


def other_batch_size(rank: int) -> None:
    if rank == 1:
        sys.argv += ["--batch-size", "8"]
