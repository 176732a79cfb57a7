"""One model for all processes of a machine without GPUs: weights and moments are there once, and each process updates a part.

With copies of its own each process would read and write all of them at each step, and memory is what the cores of one machine
wait for. It is stage 2 of ZeRO (Rajbhandari et al. 2020) with nothing to send.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import nn
from torch.optim import AdamW

from trainer.distributed.neighbours import Neighbours
from trainer.distributed.process_group import Process

_ALIGNED = 16  # numbers, a cache line of them
_IN_CACHE = 2**19  # numbers that are added up at a time, and are still in the cache when they are read again
_ONCE = 3  # weights and both moments are there once, gradients once for each process


class SharedReplica(nn.Module):
    """A model with one set of weights for all processes; gradients each has of its own, where the others read them."""

    def __init__(
        self, model: nn.Module, embedding: nn.Embedding | None, process: Process, neighbours: Neighbours
    ) -> None:
        """Of `embedding` the gradient is kept by the rows that were used, of a vocabulary a twentieth."""
        super().__init__()
        self.module, self._process, self._neighbours = model, process, neighbours
        self.places, size = _places(model, process.world_size)
        numbers = neighbours.memory.view(torch.float32)
        self._norms = numbers[: process.world_size]
        planes = numbers[-(_ONCE + process.world_size) * size :].view(-1, size)
        self.weights, self.exp_avg, self.exp_avg_sq = planes[:_ONCE]
        self._gradients = planes[_ONCE:]
        self.gradients = self._gradients[process.rank]
        self.part = slice(size // process.world_size * process.rank, size // process.world_size * (process.rank + 1))
        """Of all numbers, those that this process updates."""
        self.norm = torch.zeros(())
        """Of the mean gradients."""
        self._embedding, self._used_rows, self._averages = embedding, list[torch.Tensor](), True
        for parameter in self.places:
            kept = self.whole(self.weights, parameter)
            if process.is_main:
                kept.copy_(parameter.data)
            parameter.data = kept
            parameter.register_post_accumulate_grad_hook(self._keep)  # type: ignore[no-untyped-call]  # torch's
        if embedding is not None:
            embedding.sparse = True
        neighbours.wait_for_all()

    @classmethod
    def of(
        cls, model: nn.Module, embedding: nn.Embedding | None, process: Process, *, timeout_minutes: float
    ) -> Self | None:
        """None, and a line that says why, where processes cannot share memory; a collective call."""
        _, size = _places(model, process.world_size)
        numbers = _ALIGNED * process.world_size + (_ONCE + process.world_size) * size
        neighbours = Neighbours.of(process, size=4 * numbers, timeout_minutes=timeout_minutes)
        return cls(model, embedding, process, neighbours) if neighbours else None

    @property
    def shared_bytes(self) -> int:
        """Of all processes together: weights, moments, and the gradients of each."""
        return self._neighbours.memory.nbytes

    def forward(self, *args: Any, **named: Any) -> Any:  # noqa: ANN401 - the model's
        return self.module(*args, **named)

    def whole(self, plane: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
        """Its numbers in a plane, which is `weights`, `gradients`, or one of the moments."""
        return plane[self.places[parameter]].view(parameter.shape)

    def own(self, plane: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
        """Those that this process updates, in a row; there may be none."""
        place = self.places[parameter]
        return plane[max(place.start, self.part.start) : min(place.stop, self.part.stop)]

    def _keep(self, parameter: torch.Tensor) -> None:
        """Have a gradient that was computed just now where the others read it, and further ones of this step added to it."""
        kept, gradient = self.whole(self.gradients, parameter), parameter.grad
        assert gradient is not None  # noqa: S101 - torch calls this when it is there
        if gradient.is_sparse:
            rows = gradient._indices()[0]  # noqa: SLF001 - the public name wants each row once, which takes sorting them
            kept.index_add_(0, rows, gradient._values())  # noqa: SLF001 - the same
            self._used_rows.append(rows)
            parameter.grad = None
        elif gradient.data_ptr() != kept.data_ptr():
            parameter.grad = kept.copy_(gradient)

    def average_gradients(self) -> None:
        """Have the mean over processes of this process's part in `gradients`, and the norm of all parts in `norm`; a collective call.

        RuntimeError where a parameter has no gradient: what is kept of it is that of an earlier step.
        """
        if not self._averages:
            return
        by_rows = {self._embedding.weight} if self._embedding is not None else set()
        without = [parameter for parameter in self.places if parameter.grad is None and parameter not in by_rows]
        if without:
            names = [name for name, one in self.module.named_parameters() if any(one is other for other in without)]
            raise RuntimeError(f"the loss does not depend on {', '.join(names)}: freeze what is not trained")
        self._neighbours.wait_for_all()
        others = [gradients for rank, gradients in enumerate(self._gradients) if rank != self._process.rank]
        norms = []
        for start in range(self.part.start, self.part.stop, _IN_CACHE):
            some = slice(start, min(start + _IN_CACHE, self.part.stop))
            mine = self.gradients[some]
            for theirs in others:
                mine.add_(theirs[some])
            if others:
                mine.div_(self._process.world_size)
            norms.append(torch.linalg.vector_norm(mine))
        self._norms[self._process.rank] = torch.linalg.vector_norm(torch.stack(norms))
        self._neighbours.wait_for_all()
        self.norm = torch.linalg.vector_norm(self._norms)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Gradients stay each process's own: to measure a step without their exchange."""
        self._averages = False
        try:
            yield
        finally:
            self._averages = True

    def zero_grad(self, set_to_none: bool = True) -> None:  # torch's signature
        """Forget gradients; those of the embedding are zeros again where they were not."""
        super().zero_grad(set_to_none=set_to_none)
        if self._embedding is None:
            return
        for rows in self._used_rows:
            self.whole(self.gradients, self._embedding.weight)[rows] = 0
        self._used_rows.clear()
        if self._process.world_size > 1:  # and what others used
            self.own(self.gradients, self._embedding.weight).zero_()

    def wait_for_all(self) -> None:
        """Return when all processes are here: before weights are read that others may be changing."""
        self._neighbours.wait_for_all()


class SharedAdamW(AdamW):
    """AdamW of a SharedReplica, of which each process steps a part.

    Its state is that of the whole, so that a checkpoint is the same whatever the number of processes.
    """

    def __init__(self, groups: list[dict[str, Any]], replica: SharedReplica, *, lr: float) -> None:
        super().__init__(groups, lr=lr, fused=True)
        self._replica, self._steps = replica, torch.zeros(())
        moments = {"exp_avg": replica.exp_avg, "exp_avg_sq": replica.exp_avg_sq}
        pieces: dict[torch.Tensor, nn.Parameter] = {}
        for parameter in replica.places:
            whole = {name: replica.whole(plane, parameter) for name, plane in moments.items()}
            self.state[parameter] = {"step": self._steps, **whole}
            pieces[parameter] = piece = nn.Parameter(replica.own(replica.weights, parameter), requires_grad=False)
            piece.grad = replica.own(replica.gradients, parameter)
        groups = [
            {**group, "params": [pieces[parameter] for parameter in group["params"]]} for group in self.param_groups
        ]
        self._part = AdamW(groups, fused=True)
        for parameter, piece in pieces.items():
            own = {name: replica.own(plane, parameter) for name, plane in moments.items()}
            self._part.state[piece] = {"step": torch.zeros(()), **own}

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ANN401, ARG002 - torch's signature
        """Step this process's part, unless `found_inf`, and return when all processes have; a collective call."""
        for group, of_part in zip(self.param_groups, self._part.param_groups, strict=True):
            of_part["lr"] = group["lr"]
        for state in self._part.state.values():
            state["step"].copy_(self._steps)
        scaling = {name: getattr(self, name) for name in ("grad_scale", "found_inf") if hasattr(self, name)}
        vars(self._part).update(scaling)
        self._part.step()
        self._steps += 1 - scaling.get("found_inf", 0)
        self._replica.wait_for_all()


def _places(model: nn.Module, world_size: int) -> tuple[dict[torch.Tensor, slice], int]:
    """Where each parameter that is trained stands in a row of all, and how long that is: all processes have a part of the same size."""
    places, end = dict[torch.Tensor, slice](), 0
    for parameter in model.parameters():
        if parameter.requires_grad:
            places[parameter] = slice(end, end + parameter.numel())
            end += _up(parameter.numel(), _ALIGNED)
    return places, _up(end, _ALIGNED * world_size)


def _up(number: int, step: int) -> int:
    return -(-number // step) * step
