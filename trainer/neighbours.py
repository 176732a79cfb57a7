"""The mean of tensors over the processes of one machine, through memory that they share: Gloo's sockets take five times as long."""

import os
import select
import shutil
import tempfile
from pathlib import Path
from typing import Self

import torch
import torch.distributed as dist

from trainer.distributed import Process
from trainer.progress import say

_PART_BYTES = 2**21  # of a process: what all processes add up at once stays in the processor's caches
_SLOTS = 2  # a part is written while slower processes still read the one before it
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - the folder made in it is for this user alone


class Neighbours:
    """All processes of a group, where all are on one machine: two slots of shared memory each, and a pipe from each to each.

    The files of both are gone as soon as all have opened them, so that nothing is left over however the processes end.
    """

    def __init__(self, folder: Path, process: Process, *, timeout_minutes: float) -> None:
        self._rank, self._world_size, self._seconds = process.rank, process.world_size, 60 * timeout_minutes
        others = [rank for rank in range(process.world_size) if rank != process.rank]
        size = _SLOTS * process.world_size * _PART_BYTES
        self._slots = torch.from_file(str(folder / "memory"), shared=True, size=size, dtype=torch.uint8).view(
            _SLOTS, process.world_size, _PART_BYTES
        )
        for other in others:
            os.mkfifo(folder / f"{other}-to-{process.rank}", 0o600)
        self._from = {
            rank: os.open(folder / f"{rank}-to-{process.rank}", os.O_RDONLY | os.O_NONBLOCK) for rank in others
        }
        dist.barrier()  # a pipe is opened for writing when somebody reads from it
        self._to = {rank: os.open(folder / f"{process.rank}-to-{rank}", os.O_WRONLY) for rank in others}
        dist.barrier()
        self._parts = 0

    @classmethod
    def of(cls, process: Process, *, timeout_minutes: float) -> Self | None:
        """None, and a line that says why, where they cannot share memory; a collective call."""
        made: list[str | OSError | None] = [None]
        if process.is_main:
            try:
                made = [_make_folder(_SLOTS * process.world_size * _PART_BYTES)]
            except OSError as error:
                made = [error]
        dist.broadcast_object_list(made, src=0)
        if isinstance(made[0], OSError):
            if process.is_main:
                say(f"train: gradients go through sockets, which is slower: no shared memory: {made[0]}")
            return None
        folder = Path(str(made[0]))
        try:
            return cls(folder, process, timeout_minutes=timeout_minutes)
        finally:
            if process.is_main:
                shutil.rmtree(folder)

    def mean(self, flat: torch.Tensor) -> None:
        """Put the mean over all processes in place of a tensor [any], which has the same size and type in each of them.

        All add in the order of their ranks, so all get the same, bit for bit. RuntimeError when another process has ended.
        """
        for part in torch.split(flat, _PART_BYTES // flat.element_size()):
            slot = self._slots[self._parts % _SLOTS].view(flat.dtype)[:, : len(part)]
            self._parts += 1
            torch.div(part, self._world_size, out=slot[self._rank])
            self._wait_for_all()
            torch.add(slot[0], slot[1], out=part)
            for rank in range(2, self._world_size):
                part.add_(slot[rank])

    def _wait_for_all(self) -> None:
        for rank, end in self._to.items():
            try:
                os.write(end, b".")
            except BrokenPipeError:
                raise self._ended(rank) from None
        for rank, end in self._from.items():
            if not self._read(rank, end):
                raise self._ended(rank)

    def _ended(self, rank: int) -> RuntimeError:
        return RuntimeError(f"process {rank} has ended, so that process {self._rank} cannot go on")

    def _read(self, rank: int, end: int) -> bytes:
        while True:
            try:
                return os.read(end, 1)
            except BlockingIOError:
                if not select.select([end], [], [], self._seconds)[0]:
                    raise RuntimeError(f"process {rank} sent nothing for {self._seconds / 60:g} minutes") from None


def _make_folder(size: int) -> str:
    folder = tempfile.mkdtemp(prefix="distrinews-", dir=_SHARED_MEMORY if _SHARED_MEMORY.is_dir() else None)
    try:
        (Path(folder) / "memory").write_bytes(bytes(size))  # a sparse file would fail when it is used, by a signal
    except OSError:
        shutil.rmtree(folder)
        raise
    return folder
