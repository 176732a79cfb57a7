"""How processes on CPUs exchange gradients: through shared memory on one machine, of an embedding only the rows that a step used.

Of a vocabulary a step uses a twentieth; the gradients of all other rows are zero.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import GradBucket  # as torch.distributed has it, which mypy does not see
from torch.nn.parallel import DistributedDataParallel

from trainer.neighbours import Neighbours

_Future = torch.futures.Future[torch.Tensor]


def exchange_by_rows(replica: DistributedDataParallel, embedding: nn.Module, neighbours: Neighbours | None) -> None:
    """Have a replica exchange gradients so. The means are those of DDP, bit for bit for two processes.

    All rows of the embedding are sent where its weight is also used otherwise, or is not trained.
    """
    weight = getattr(embedding, "weight", None)
    owners = [module for module in replica.modules() if getattr(module, "weight", None) is weight]
    alone = isinstance(embedding, nn.Embedding) and owners == [embedding] and embedding.weight.requires_grad
    used = UsedRows(embedding) if isinstance(embedding, nn.Embedding) and alone else None
    if neighbours:
        replica.register_comm_hook(Shared(used, neighbours), mean_in_shared_memory)
    elif used:
        replica.register_comm_hook(used, mean_over_sockets)


class UsedRows:
    """Notes which rows of an embedding the forward passes use, until the next exchange."""

    def __init__(self, embedding: nn.Embedding) -> None:
        self.weight = embedding.weight
        self._used = torch.zeros(len(embedding.weight), dtype=torch.uint8, device=embedding.weight.device)
        embedding.register_forward_pre_hook(self._note)

    def _note(self, _: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        if torch.is_grad_enabled():
            self._used[given[0].flatten()] = 1

    def of_all_processes(self) -> torch.Tensor:
        """Numbers of the rows that any process used; begins anew."""
        dist.all_reduce(self._used, op=dist.ReduceOp.MAX)
        rows = self._used.nonzero().flatten()
        self._used.zero_()
        return rows


def mean_over_sockets(used: UsedRows, bucket: GradBucket) -> _Future:
    """A communication hook of DDP: each bucket is sent while the gradients of the next are computed."""
    sent, put_back = _pack(bucket, used)
    work = dist.all_reduce(sent.div_(dist.get_world_size()), async_op=True)
    assert work is not None  # noqa: S101 - this process is in the group
    done: _Future = work.get_future().then(lambda _: put_back())
    return done


@dataclass
class Shared:
    """State of `mean_in_shared_memory`."""

    used: UsedRows | None
    neighbours: Neighbours
    waiting: list[tuple[GradBucket, _Future]] = field(default_factory=list)


def mean_in_shared_memory(state: Shared, bucket: GradBucket) -> _Future:
    """A communication hook of DDP: all buckets when the last is there, as adding them up takes the cores that compute."""
    future = _Future()
    state.waiting.append((bucket, future))
    if bucket.is_last():
        waiting, state.waiting = state.waiting, []
        for one, done in waiting:
            sent, put_back = _pack(one, state.used)
            state.neighbours.mean(sent)
            done.set_result(put_back())
    return future


def _pack(bucket: GradBucket, used: UsedRows | None) -> tuple[torch.Tensor, Callable[[], torch.Tensor]]:
    """What has to be sent of a bucket, one flat tensor, and what puts it back; a collective call."""
    buffer: torch.Tensor = bucket.buffer()
    place = next((number for number, one in enumerate(bucket.parameters()) if used and one is used.weight), None)
    if used is None or place is None:
        return buffer, lambda: buffer
    others: list[torch.Tensor] = bucket.gradients()
    embedding = others.pop(place)
    rows = used.of_all_processes()
    parts = [embedding[rows], *others]
    sent = torch.cat([part.flatten() for part in parts])

    def put_back() -> torch.Tensor:
        first, *rest = torch.split(sent, [part.numel() for part in parts])
        embedding[rows] = first.view_as(parts[0])
        for gradient, mean in zip(others, rest, strict=True):
            gradient.copy_(mean.view_as(gradient))
        return buffer

    return sent, put_back
