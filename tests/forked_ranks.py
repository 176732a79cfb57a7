"""A function in several processes that train together, started as quickly as forks are."""

import multiprocessing
import os
import socket
from collections.abc import Callable

import torch

_TIMEOUT_SECONDS = 100


def in_ranks(function: Callable[..., None], *args: object, world_size: int) -> None:
    """Run it in that many processes of one group, one thread each; AssertionError when one fails."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trainer.train", "tests.ranks"])  # imported once, for all; as tests/ranks.py has it
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [
        context.Process(target=_rank, args=(function, args, rank, world_size, port)) for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(_TIMEOUT_SECONDS)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0] * world_size, codes


def _rank(function: Callable[..., None], args: tuple[object, ...], rank: int, world_size: int, port: int) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="localhost", MASTER_PORT=str(port),
    )  # fmt: skip
    torch.set_num_threads(1)
    function(*args)
    os._exit(0)  # what Gloo's threads do while an interpreter ends may wait for a peer that has ended
