"""Launching ranks on this machine: their number, and the threads of each."""

import os

import pytest
import torch

from trainer.distributed import launch as launching
from trainer.distributed.launch import default_ranks, launch


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """OMP_NUM_THREADS of the ranks, instead of starting them, on a machine of six CPUs."""
    found: list[str] = []
    monkeypatch.setattr(launching, "_start", lambda *_: found.append(os.environ["OMP_NUM_THREADS"]))
    monkeypatch.setattr(launching, "available_cpus", lambda: 6)
    return found


def test_the_cpus_are_shared_out_among_the_ranks(threads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for ranks in (1, 2, 12):
        launch("trainer.train", [], ranks=ranks)
    assert threads == ["6", "3", "1"]
    assert "OMP_NUM_THREADS" not in os.environ


def test_threads_that_the_user_has_set_are_kept(threads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    launch("trainer.train", [], ranks=2)
    assert threads == ["5"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="one for each GPU")
def test_a_machine_without_gpus_has_one_rank() -> None:
    assert default_ranks() == 1
