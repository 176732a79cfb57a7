"""The group of processes that train together; a group of one runs the same code."""

import os
import platform
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]  # public, but not in __all__
from torch.distributed.rendezvous import rendezvous

from server.errors import UserError
from trainer.config import TrainConfig
from trainer.data.dataset import Dataset

_KERNELS = "32"
"""Kernels in each cache of oneDNN and ideep, one for each shape of each product: 32 suffice for a step, at the speed of 128. Their
default, 1,024, fills with lengths that hardly recur, and grew by 240 MB in 50 steps of the smallest model in bf16, each of a new shape."""

_kept: list[dist.ProcessGroup | None] = []
"""The last group. A model that is freed after its group was left would else be the last to hold it, and end Gloo's threads while it
holds the interpreter's lock, for which one of them may wait: a deadlock."""

_LIBRARIES = ("distrinews", "torch", "transformers", "tokenizers", "safetensors", "numpy")
_POLL_SECONDS = 0.01  # between two looks at the store of a rendezvous

T = TypeVar("T")


@dataclass(frozen=True)
class Process:
    rank: int
    world_size: int
    device: torch.device
    local_world_size: int = 1
    """Processes of the group on this machine."""

    @property
    def is_main(self) -> bool:
        """True in the process that prints and writes for all."""
        return self.rank == 0


@contextmanager
def process_group(*, timeout_minutes: float) -> Iterator[Process]:
    """Joins the group that torchrun's environment describes, or makes a group of one; leaves it at the end."""
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


def meet(store: Store, *, rank: int, world_size: int, timeout: timedelta) -> Store:
    """Returns a prefix of the store for this start alone, once all its processes have joined.

    torchrun keeps one store through its restarts, with the addresses of processes that have ended: the first to come back
    would connect to those. Its count of restarts does not identify a start, as machines count apart (pytorch issue 135712).
    """
    own = uuid.uuid4().hex
    if rank:
        store.set(f"distrinews/rank-{rank}", own)
        start = store.get(f"distrinews/{own}").decode()  # set by rank 0, for processes that wait alone
        store.add(f"distrinews/{start}", 1)
        return PrefixStore(start, store)
    deadline = time.monotonic() + timeout.total_seconds()
    while (met := store.add(f"distrinews/{own}", 0)) < world_size - 1:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{met + 1} of {world_size} processes met within {timeout}")
        for other in range(1, world_size):
            waiting = store.get(f"distrinews/rank-{other}").decode()
            store.set(f"distrinews/{waiting}", own)
        time.sleep(_POLL_SECONDS)
    return PrefixStore(own, store)


def on_main(process: Process, work: Callable[[], T]) -> T:
    """Returns in all processes what the main one computes; an error that a user can fix ends all of them. A collective call.

    Where the main process left alone, the others would wait for it until their timeout.
    """
    found: list[Any] = [None, None]  # the result, and why there is none
    if process.is_main:
        try:
            found[0] = work()
        except UserError as error:
            found[1] = str(error)
        except OSError as error:
            found[1] = f"{error.filename or 'the disk'}: {error.strerror or error}"
    dist.broadcast_object_list(found, src=0, device=process.device)
    if found[1] is not None:
        raise UserError(found[1])
    result: T = found[0]
    return result


def versions() -> dict[str, str]:
    """Returns the versions that the result depends on."""
    return {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}}


def check_ranks_agree(config: TrainConfig, dataset: Dataset) -> None:
    """Raises a UserError that lists the ranks and their values where versions, settings or data differ; a collective call."""
    own = {**versions(), **config.model_dump(mode="json"), "dataset": dataset.fingerprint}
    found: list[dict[str, Any]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(found, own)
    if differences := [_ranks_by_value(name, found) for name in own if any(rank[name] != own[name] for rank in found)]:
        raise UserError(f"the processes of this training differ: {'; '.join(differences)}")


def _ranks_by_value(name: str, found: list[dict[str, Any]]) -> str:
    ranks: dict[str, list[int]] = {}
    for rank, values in enumerate(found):
        ranks.setdefault(str(values[name]), []).append(rank)
    return f"{name} is " + ", ".join(f"{value} on rank {', '.join(map(str, who))}" for value, who in ranks.items())


def seed_step(seed: int, *, step: int, rank: int) -> None:
    """Makes everything random in a step a pure function of (seed, step, rank), so that a resume restores no random state."""
    mixed = (seed * 0x9E3779B1 + step * 0x85EBCA77 + rank * 0xC2B2AE3D) % 2**63
    torch.manual_seed(mixed)
