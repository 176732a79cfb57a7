"""How processes on CPUs of several machines exchange gradients: of an embedding only the rows that a step used.

Of a vocabulary a step uses a twentieth; the gradients of all other rows are zero.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import GradBucket  # as torch.distributed has it, which mypy does not see
from torch.nn.parallel import DistributedDataParallel

_Future = torch.futures.Future[torch.Tensor]


def embedding_by_rows(model: nn.Module, embedding: nn.Module) -> nn.Embedding | None:
    """The embedding, if of its weight only the rows that are looked up have a gradient: it is trained, and used for nothing else."""
    if not isinstance(embedding, nn.Embedding) or embedding.scale_grad_by_freq:
        return None
    owners = [module for module in model.modules() if getattr(module, "weight", None) is embedding.weight]
    return embedding if owners == [embedding] and embedding.weight.requires_grad else None


def exchange_by_rows(replica: DistributedDataParallel, embedding: nn.Embedding | None) -> None:
    """Have a replica exchange gradients so. The means are those of DDP, bit for bit for two processes."""
    if embedding:
        replica.register_comm_hook(UsedRows(embedding), mean_over_sockets)


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


def _parts(bucket: GradBucket, used: UsedRows) -> tuple[list[torch.Tensor], Callable[[], torch.Tensor]]:
    """Flat tensors that have to be averaged of a bucket, in place, and what then completes it; a collective call."""
    buffer: torch.Tensor = bucket.buffer()
    place = next((number for number, one in enumerate(bucket.parameters()) if one is used.weight), None)
    if place is None:
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
