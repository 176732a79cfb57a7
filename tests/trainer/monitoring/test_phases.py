"""The profile of a training run: a trace that viewers open, and where the time went."""

import json
import time
from pathlib import Path

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from tests.support.ranks import in_ranks
from trainer.config import TrainConfig
from trainer.data.dataset import Dataset
from trainer.distributed.process_group import Process, process_group
from trainer.monitoring.phases import Phases
from trainer.train import train


def test_a_run_profiled_has_a_trace_of_its_phases_and_a_summary(
    dataset: Dataset, tmp_path: Path, process: Process, capsys: pytest.CaptureFixture[str]
) -> None:
    config = TrainConfig(epochs=1, batch_size=32, precision="fp32", accumulation_steps=2, profile_steps=2)
    train(config, dataset, tmp_path, process)
    (trace,) = (tmp_path / "logs" / "profile").glob("rank0.*.pt.trace.json")
    events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    spans = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    assert {name: spans.count(name) for name in ("load", "forward", "backward", "optimizer")} == {
        "load": 4, "forward": 4, "backward": 4, "optimizer": 2,
    }  # fmt: skip
    summary = json.loads((tmp_path / "logs" / "profile" / "phases-rank0.json").read_text(encoding="utf-8"))
    assert sum(summary["phases"].values()) == pytest.approx(1)
    assert summary["steps"] == 2
    assert set(summary["phases"]) == {"load", "forward", "backward", "exchange", "optimizer", "log", "save", "rest"}
    computing = sum(summary["phases"][name] for name in ("forward", "backward", "optimizer"))
    assert summary["outside"] == pytest.approx(1 - computing)
    said = capsys.readouterr().out
    assert "train: 2 steps of" in said
    assert f"outside of forward, backward, optimizer {summary['outside']:.1%}" in said


def test_what_is_outside_the_computing_phases_is_told_apart(tmp_path: Path) -> None:
    phases = Phases(2, folder=tmp_path, trace=False)
    for _ in range(6):
        with phases("load"):
            time.sleep(0.01)
        with phases("forward"):
            time.sleep(0.02)
        time.sleep(0.01)
        phases.step()
    summary = json.loads((tmp_path / "phases-rank0.json").read_text(encoding="utf-8"))
    assert summary["step_ms"] == pytest.approx(40, rel=0.3)
    assert summary["outside"] == pytest.approx(0.5, abs=0.15)
    assert summary["phases"]["rest"] == pytest.approx(0.25, abs=0.15)


def with_one_slow(folder: Path) -> None:
    """Backward passes in which the second of two processes computes for longer before its gradient is there."""
    with process_group(timeout_minutes=1) as process:
        torch.manual_seed(0)
        layer = torch.nn.Linear(4, 1)
        model = DistributedDataParallel(layer)
        phases = Phases(4, layer, process, folder=folder, trace=False)
        for _ in range(8):
            with phases("forward"):
                loss = model(torch.ones(2, 4)).sum()
            loss.register_hook(lambda _: time.sleep(0.05 if process.rank == 1 else 0))
            with phases("backward"):
                loss.backward()
            phases.step()


def test_waiting_for_a_slower_process_is_exchange_and_no_computing(tmp_path: Path) -> None:
    in_ranks(with_one_slow, tmp_path, world_size=2)
    waiting, slow = (
        json.loads((tmp_path / f"phases-rank{rank}.json").read_text(encoding="utf-8"))["phases"] for rank in (0, 1)
    )
    assert waiting["exchange"] > 0.7
    assert slow["exchange"] < 0.3
    assert slow["backward"] > 0.6


def test_without_steps_to_profile_nothing_is_written(tmp_path: Path) -> None:
    phases = Phases(0, folder=tmp_path / "profile")
    for _ in range(6):
        with phases("forward"):
            pass
        phases.step()
    assert not (tmp_path / "profile").exists()
