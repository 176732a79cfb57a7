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
    parts, put_back = _parts(bucket, used)
    begun = [dist.all_reduce(part.div_(dist.get_world_size()), async_op=True) for part in parts]
    futures = [work.get_future() for work in begun if work is not None]
    done: _Future = torch.futures.collect_all(futures).then(lambda _: put_back())
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
            parts, put_back = _parts(one, state.used)
            for part in parts:
                state.neighbours.mean(part)
            done.set_result(put_back())
    return future


def _parts(bucket: GradBucket, used: UsedRows | None) -> tuple[list[torch.Tensor], Callable[[], torch.Tensor]]:
    """Flat tensors that have to be averaged of a bucket, in place, and what then completes it; a collective call."""
    buffer: torch.Tensor = bucket.buffer()
    place = next((number for number, one in enumerate(bucket.parameters()) if used and one is used.weight), None)
    if used is None or place is None:
        return [buffer], lambda: buffer
    embedding: torch.Tensor = bucket.gradients()[place]  # a part of the buffer
    start = embedding.storage_offset() - buffer.storage_offset()
    rows = used.of_all_processes()
    sent = embedding[rows]

    def put_back() -> torch.Tensor:
        embedding[rows] = sent
        return buffer

    others = [buffer[:start], buffer[start + embedding.numel() :]]
    return [sent.flatten(), *(part for part in others if len(part))], put_back
