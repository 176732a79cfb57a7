"""The monitor of a training run: its profile."""

import json
from pathlib import Path

import pytest

from trainer.config import TrainConfig
from trainer.data.dataset import Dataset
from trainer.distributed.process_group import Process
from trainer.monitoring.monitor import PHASES
from trainer.train import train


@pytest.mark.slow
def test_a_profiled_run_has_a_trace_of_its_phases_and_a_summary(
    dataset: Dataset, tmp_path: Path, process: Process, capsys: pytest.CaptureFixture[str]
) -> None:
    config = TrainConfig(epochs=1, batch_size=32, precision="fp32", accumulation_steps=2, profile_steps=2)
    train(config, dataset, tmp_path, process)
    (trace,) = (tmp_path / "logs" / "profile").glob("rank0.*.pt.trace.json")
    events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    spans = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    assert {name: spans.count(name) for name in PHASES} == {
        "load": 4, "forward": 4, "backward": 4, "optimizer": 2, "log": 2, "save": 2,
    }  # fmt: skip
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("train: 2 steps of ")]
    assert all(f"{name} " in line for name in PHASES)


def test_without_profile_steps_no_profile_is_written(dataset: Dataset, tmp_path: Path, process: Process) -> None:
    train(TrainConfig(epochs=1, batch_size=32, precision="fp32"), dataset, tmp_path, process)
    assert not (tmp_path / "logs" / "profile").exists()
