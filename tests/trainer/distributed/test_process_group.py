"""Processes that start together meet each other, whoever used the store before them, and part without waiting."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from server.errors import UserError
from tests.support.ranks import Ranks, in_ranks
from trainer.data.dataset import Dataset
from trainer.distributed.process_group import meet, on_main, process_group

SOON = timedelta(seconds=10)


def test_a_start_after_a_restart_meets_none_of_the_processes_before_it() -> None:
    store = dist.HashStore()  # type: ignore[attr-defined]  # public, but not in __all__
    with ThreadPoolExecutor(3) as threads:
        for start in range(3):
            ranks = [threads.submit(meet, store, rank=0, world_size=3, timeout=SOON)]
            for rank in (1, 2):
                time.sleep(0.05)
                assert not ranks[0].done(), "rank 0 continues, and not all are there"
                ranks.append(threads.submit(meet, store, rank=rank, world_size=3, timeout=SOON))
            own = ranks[0].result(10)
            assert not own.check(["address"])
            own.set("address", f"of {start}")
            assert [rank.result(10).get("address") for rank in ranks] == [f"of {start}".encode()] * 3


def test_a_process_that_does_not_come_is_missed_in_time() -> None:
    store = dist.HashStore()  # type: ignore[attr-defined]  # public, but not in __all__
    store.set("distrinews/rank-1", "of one that has ended")
    with pytest.raises(TimeoutError, match=r"1 of 2 processes met within 0:00:00\.1"):
        meet(store, rank=0, world_size=2, timeout=timedelta(seconds=0.1))


def fail_on_main(folder: Path) -> None:
    with process_group(timeout_minutes=0.2) as process:
        assert on_main(process, lambda: process.rank) == 0
        with pytest.raises(UserError, match=r"run: File exists"):
            on_main(process, (folder / "run").mkdir)
        dist.barrier()


@pytest.mark.slow
def test_an_error_of_the_main_process_alone_ends_all(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    in_ranks(fail_on_main, tmp_path, world_size=2)


def refused_in_an_exchange(rank: int) -> None:
    """Fails in resume while the other rank waits in an exchange."""
    from trainer.checkpoint.checkpointer import Checkpointer

    def resume(*_: object, **__: object) -> None:
        time.sleep(rank / 2)
        dist.all_reduce(torch.ones(1), async_op=rank == 0)
        raise UserError("refused")

    Checkpointer.resume = resume  # type: ignore[assignment]


@pytest.mark.slow
def test_a_process_that_is_refused_in_the_middle_of_an_exchange_ends(dataset: Dataset, tmp_path: Path) -> None:
    flags = ["--dataset", str(dataset.folder), "--output", str(tmp_path), "--precision", "fp32"]
    with Ranks(tmp_path, flags, hook=refused_in_an_exchange) as ranks:
        assert ranks.wait(20) == [1, 1], ranks.log
