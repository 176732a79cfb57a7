"""One process of the group that trains together; a group of one is the same code."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from trainer.distributed.rendezvous import meet

_KERNELS = "32"
"""That oneDNN and ideep keep, each in a cache of its own, one for each shape of each product: 32 do for a step, at the speed of 128. Their
own 1,024 are of lengths that hardly come again, and grew by 240 MB in 50 steps of the smallest model in bf16, each of a new shape."""

_kept: list[dist.ProcessGroup | None] = []
"""The last group. A model that is freed after its group was left would else be the last to hold it, and end Gloo's threads while it
holds the interpreter's lock, for which one of them may wait: neither would ever go on."""


@dataclass(frozen=True)
class Process:
    rank: int
    world_size: int
    device: torch.device
    local_world_size: int = 1
    """Processes of the group on this machine."""

    @property
    def is_main(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.rank == 0


@contextmanager
def process_group(*, timeout_minutes: float) -> Iterator[Process]:
    """Join the group that torchrun's environment describes, or be a group of one; leave it at the end."""
    for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(cache, _KERNELS)  # read when the first is made
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    backend, timeout = "nccl" if on_gpu else "gloo", timedelta(minutes=timeout_minutes)
    if "RANK" in os.environ:
        store, rank, world_size = next(rendezvous("env://", timeout=timeout))
        store.set_timeout(timeout)
        store = meet(store, rank=rank, world_size=world_size, timeout=timeout)
        dist.init_process_group(backend, timeout=timeout, store=store, rank=rank, world_size=world_size)
    else:
        alone = dist.HashStore()  # type: ignore[attr-defined]  # public, but not in __all__
        dist.init_process_group(backend, timeout=timeout, store=alone, rank=0, world_size=1)
    try:
        local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        yield Process(dist.get_rank(), dist.get_world_size(), device, local_world_size)
    finally:
        _kept[:] = [dist.group.WORLD]
        dist.destroy_process_group()


def seed_step(seed: int, *, step: int, rank: int) -> None:
    """Make everything random in a step a pure function of (seed, step, rank), so that resuming has no random state to restore."""
    mixed = (seed * 0x9E3779B1 + step * 0x85EBCA77 + rank * 0xC2B2AE3D) % 2**63
    torch.manual_seed(mixed)
