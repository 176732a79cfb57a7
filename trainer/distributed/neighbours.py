"""Processes of one machine: memory that they share, and a pipe from each to each, by which they wait for each other.

Neither has a name in a file system, so that nothing is left over however the processes end: each opens those of the others
through /proc. So several processes need Linux; elsewhere, `Neighbours.of` says so.
"""

import errno
import mmap
import os
import select
from typing import Any, Self

import torch
import torch.distributed as dist

from trainer.distributed.process_group import Process
from trainer.monitoring.console import say


class Neighbours:
    """All processes of a group, where all are on one machine."""

    def __init__(
        self, process: Process, memory: torch.Tensor, *, ends: dict[int, tuple[int, int]], timeout_minutes: float
    ) -> None:
        """`ends` are for each other process the end of a pipe to read from, and that of another to write to."""
        self.memory = memory
        """Bytes, zeros at first, the same ones for all processes."""
        self._rank, self._ends, self._seconds = process.rank, ends, 60 * timeout_minutes

    @classmethod
    def of(cls, process: Process, *, size: int, timeout_minutes: float) -> Self | None:
        """With `size` bytes of memory. None, and a line that says why, where they cannot share it; a collective call."""
        if process.world_size == 1:
            return cls(process, torch.zeros(size, dtype=torch.uint8), ends={}, timeout_minutes=timeout_minutes)
        allocated: int | OSError | None = _allocate(size) if process.is_main else None
        pipes = {rank: os.pipe() for rank in range(process.world_size) if rank != process.rank}
        lent = {rank: write for rank, (_, write) in pipes.items()}
        theirs = _gather((f"/proc/{os.getpid()}/fd", lent, allocated))
        found = _open(theirs, process.rank, size)
        problems = [one for one in _gather(found if isinstance(found, OSError) else None) if one]
        for descriptor in [*lent.values(), *([allocated] if isinstance(allocated, int) else [])]:
            os.close(descriptor)  # all have opened it, and a pipe whose other end has no owner tells that
        if problems or isinstance(found, OSError):
            if process.is_main:
                say(f"train: gradients go through sockets, which is slower: no shared memory: {problems[0]}")
            return None
        memory, to = found
        ends = {rank: (read, to[rank]) for rank, (read, _) in pipes.items()}
        return cls(process, memory, ends=ends, timeout_minutes=timeout_minutes)

    def wait_for_all(self) -> None:
        """Return when all processes have called this as often; RuntimeError when another has ended."""
        for rank, (_, write) in self._ends.items():
            try:
                os.write(write, b".")
            except BrokenPipeError:
                raise self._ended(rank) from None
        for rank, (read, _) in self._ends.items():
            if not select.select([read], [], [], self._seconds)[0]:
                raise RuntimeError(f"process {rank} sent nothing for {self._seconds / 60:g} minutes")
            if not os.read(read, 1):
                raise self._ended(rank)

    def _ended(self, rank: int) -> RuntimeError:
        return RuntimeError(f"process {rank} has ended, so that process {self._rank} cannot go on")


def _allocate(size: int) -> int | OSError:
    """A descriptor of memory, or why there is none."""
    if not hasattr(os, "memfd_create"):
        return OSError(errno.ENOSYS, "this system has no memfd_create")
    descriptor = os.memfd_create("distrinews")
    try:
        os.posix_fallocate(descriptor, 0, size)  # what is not there now would end a process by a signal when it is used
    except OSError as error:
        os.close(descriptor)
        return error
    return descriptor


def _open(theirs: list[Any], own_rank: int, size: int) -> tuple[torch.Tensor, dict[int, int]] | OSError:
    """The memory, and ends of pipes to write to, of what each process lends: (folder of its descriptors, those of pipes, that of memory)."""
    folder, _, descriptor = theirs[0]
    if isinstance(descriptor, OSError):
        return descriptor
    try:
        opened = os.open(f"{folder}/{descriptor}", os.O_RDWR)
        memory = torch.frombuffer(mmap.mmap(opened, size), dtype=torch.uint8)
        os.close(opened)
        to = {
            rank: os.open(f"{folder}/{pipes[own_rank]}", os.O_WRONLY)
            for rank, (folder, pipes, _) in enumerate(theirs)
            if rank != own_rank
        }
    except OSError as error:
        return error
    return memory, to


def _gather(own: Any) -> list[Any]:  # noqa: ANN401 - of any type
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, own)
    return found
