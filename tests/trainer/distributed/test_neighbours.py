"""Processes of one machine: the memory that they share, and how they wait for each other."""

import os
import resource
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.support.ranks import Group, in_ranks
from trainer.distributed import neighbours
from trainer.distributed.neighbours import Neighbours
from trainer.distributed.process_group import Process, process_group


def together(process: Process, *, timeout_minutes: float = 1) -> Neighbours:
    found = Neighbours.of(process, size=1000, timeout_minutes=timeout_minutes)
    assert found is not None
    return found


def write_and_read() -> None:
    with process_group(timeout_minutes=1) as process:
        before = set(Path("/proc/self/fd").iterdir())
        group = together(process)
        assert group.memory.tolist() == [0] * 1000
        group.wait_for_all()
        group.memory[process.rank] = 7 + process.rank
        for _ in range(1000):
            group.wait_for_all()
        assert group.memory[: process.world_size].tolist() == [7 + rank for rank in range(process.world_size)]
        opened = set(Path("/proc/self/fd").iterdir()) - before
        assert len(opened) <= 2 * (process.world_size - 1) + 1  # the ends of pipes, and that of the list itself


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_what_one_writes_all_read_once_they_have_waited(world_size: int) -> None:
    in_ranks(write_and_read, world_size=world_size)


def wait_for_one_that_ends(said: Path) -> None:
    with process_group(timeout_minutes=1) as process:
        group = together(process)
        group.wait_for_all()
        if process.rank == 1:
            os._exit(9)
        started = time.monotonic()
        with pytest.raises(RuntimeError) as caught:
            group.wait_for_all()
        said.write_text(f"{time.monotonic() - started:.1f} {caught.value}", encoding="utf-8")
        os._exit(0)


def test_a_process_that_ends_is_noticed_at_once_and_named(tmp_path: Path) -> None:
    with Group(wait_for_one_that_ends, tmp_path / "said", world_size=2) as group:
        assert group.wait(30) == [0, 9]
    seconds, said = (tmp_path / "said").read_text(encoding="utf-8").split(" ", 1)
    assert float(seconds) < 5
    assert said == "process 1 has ended, so that process 0 cannot go on"


def wait_for_one_that_hangs() -> None:
    with process_group(timeout_minutes=1) as process:
        group = together(process, timeout_minutes=0.01)
        if process.rank == 0:
            with pytest.raises(RuntimeError, match=r"process 1 sent nothing for 0\.01 minutes"):
                group.wait_for_all()
        dist.barrier()


def test_a_process_that_hangs_is_named_after_the_time_that_is_set() -> None:
    in_ranks(wait_for_one_that_hangs, world_size=2)


def find_no_room(said: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
    neighbours.say = lambda line: said.write_text(line, encoding="utf-8")  # type: ignore[attr-defined, assignment]
    with process_group(timeout_minutes=1) as process:
        assert Neighbours.of(process, size=2**21, timeout_minutes=1) is None


def test_without_room_for_shared_memory_a_line_says_what_is_done_instead(tmp_path: Path) -> None:
    in_ranks(find_no_room, tmp_path / "said", world_size=2)
    said = (tmp_path / "said").read_text(encoding="utf-8")
    assert said.startswith("train: gradients go through sockets, which is slower: no shared memory: ")
    assert "File too large" in said


def find_no_proc(said: Path) -> None:
    neighbours.say = lambda line: said.write_text(line, encoding="utf-8")  # type: ignore[attr-defined, assignment]
    with process_group(timeout_minutes=1) as process:
        if process.rank == 1:

            def refuse(path: str, _: int) -> int:
                raise PermissionError(13, "Permission denied", path)

            neighbours.os.open = refuse  # type: ignore[attr-defined]
        assert Neighbours.of(process, size=1000, timeout_minutes=1) is None


def test_where_one_process_cannot_open_what_another_lends_none_shares_memory(tmp_path: Path) -> None:
    in_ranks(find_no_proc, tmp_path / "said", world_size=3)
    said = (tmp_path / "said").read_text(encoding="utf-8")
    assert said.startswith(
        "train: gradients go through sockets, which is slower: no shared memory: [Errno 13] Permission denied: '/proc/"
    )
