"""Exchange of an embedding's gradient by the rows that a step used: of a vocabulary that is a twentieth, all others are zero."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


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


def exchange_used_rows(replica: DistributedDataParallel, embedding: nn.Module) -> bool:
    """Have a replica send the rows alone that were used; false where the weight is also used otherwise, or not trained.

    It is computed last, so that no computing hides its exchange. The mean over processes is the same, bit for bit for two.
    """
    weight = getattr(embedding, "weight", None)
    owners = [module for module in replica.modules() if getattr(module, "weight", None) is weight]
    if not isinstance(embedding, nn.Embedding) or owners != [embedding] or not embedding.weight.requires_grad:
        return False
    replica.register_comm_hook(UsedRows(embedding), mean_over_processes)
    return True


def mean_over_processes(
    used: UsedRows,
    bucket: dist.GradBucket,  # type: ignore[name-defined]  # public, but not in __all__
) -> torch.futures.Future[torch.Tensor]:
    """A communication hook of DDP."""
    buffer: torch.Tensor = bucket.buffer()
    place = next((number for number, one in enumerate(bucket.parameters()) if one is used.weight), None)
    if place is None:
        return _mean(buffer).then(lambda _: buffer)
    others = bucket.gradients()
    embedding = others.pop(place)
    rows = used.of_all_processes()
    parts = [embedding[rows], *others]
    sent = torch.cat([part.flatten() for part in parts])

    def put_back(_: object) -> torch.Tensor:
        first, *rest = torch.split(sent, [part.numel() for part in parts])
        embedding[rows] = first.view_as(parts[0])
        for gradient, mean in zip(others, rest, strict=True):
            gradient.copy_(mean.view_as(gradient))
        return buffer

    return _mean(sent).then(put_back)


def _mean(tensor: torch.Tensor) -> torch.futures.Future[list[torch.Tensor]]:
    work = dist.all_reduce(tensor.div_(dist.get_world_size()), async_op=True)
    assert work is not None  # noqa: S101 - this process is in the group
    done: torch.futures.Future[list[torch.Tensor]] = work.get_future()
    return done
