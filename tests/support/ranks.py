"""Processes of one group, started in a moment, as forks are: to train in, and to be killed often."""

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Self

import torch

from trainer.monitoring.training_log import read_log

_FORKSERVER = multiprocessing.get_context("forkserver")  # it imports torch once, and forks
_FORKSERVER.set_forkserver_preload(["trainer.train", "tests.support.ranks"])
_TIMEOUT_SECONDS = 100
Hook = Callable[[int], None]


def in_ranks(function: Callable[..., None], *args: object, world_size: int) -> None:
    """Calls a function in that many processes of one group; raises AssertionError when one fails."""
    with Group(function, *args, world_size=world_size) as group:
        codes = group.wait(_TIMEOUT_SECONDS)
    assert codes == [0] * world_size, codes


class Group:
    """`world_size` processes of one group, one thread each, that call a function while the block runs."""

    def __init__(self, function: Callable[..., None], *args: object, world_size: int) -> None:
        with closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.processes = [
            _FORKSERVER.Process(target=_rank, args=(rank, world_size, port, function, args))
            for rank in range(world_size)
        ]

    def __enter__(self) -> Self:
        for process in self.processes:
            process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        for process in self.processes:
            if process.is_alive():
                process.kill()
        self.wait(10)

    def wait(self, seconds: float) -> list[int | None]:
        """Returns the exit codes; None for a process that did not end in time."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        return [process.exitcode for process in self.processes]


class Ranks(Group):
    """Processes that run `trainer.train` with these flags; `hook` is called in each before, with its rank."""

    def __init__(self, output: Path, flags: list[str], *, world_size: int = 2, hook: Hook | None = None) -> None:
        output.mkdir(parents=True, exist_ok=True)
        self.log_file = output / "log.txt"
        super().__init__(_train, flags, self.log_file, hook, world_size=world_size)

    @property
    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8")


def _rank(rank: int, world_size: int, port: int, function: Callable[..., None], args: tuple[object, ...]) -> None:
    where = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size,
    }  # fmt: skip
    os.environ |= {name: str(value) for name, value in where.items()}
    torch.set_num_threads(1)
    function(*args)
    sys.stdout.flush()
    os._exit(0)  # while an interpreter ends, Gloo's threads may wait for a peer that has ended


def _train(flags: list[str], log_file: Path, hook: Hook | None) -> None:
    from trainer import train
    from trainer.distributed.launch import worker

    output = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    sys.argv = ["trainer.train", *flags]
    if hook is not None:
        hook(int(os.environ["RANK"]))
    worker(train.main)


def steps_done(output: Path) -> int:
    """Steps that the log of a run, all of its starts together, has lines of."""
    lines = read_log(output / "logs")
    return max((line["step"] for line in lines if line["kind"] == "train"), default=0)


def wait_for(true: Callable[[], bool], ranks: Ranks, *, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, ranks.log
        assert any(process.is_alive() for process in ranks.processes), ranks.log
        time.sleep(0.002)
