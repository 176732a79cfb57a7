"""The command `distrinews status`, which reads a run's files without PyTorch."""

import json
from pathlib import Path

import pytest

from pipelines.status import format_status, read_status
from server.errors import UserError
from tests.conftest import distrinews
from tests.support.training import QUICK, stopped_at
from trainer.data.dataset import Dataset
from trainer.distributed.process_group import Process
from trainer.monitoring.training_log import append_event, read_log
from trainer.train import train

pytestmark = pytest.mark.slow  # the module takes seconds


def test_status_shows_progress_eta_speed_checkpoint_and_events_of_a_run(
    dataset: Dataset, tmp_path: Path, process: Process
) -> None:
    total = 2 * len(dataset.train)
    every_third = QUICK.model_copy(update={"log_steps": 3})
    stopped_at(10, every_third, dataset, tmp_path, process)
    now = read_log(tmp_path / "logs")[-1]["time"]
    running = read_status(tmp_path, now=now)
    assert (running["state"], running["step"], running["samples"]) == ("running", 9, 9 * 32)
    assert running["eta_seconds"] == pytest.approx((total - 288) / running["samples_per_second"])
    assert read_status(tmp_path, now=now + 600)["state"] == "silent"
    append_event(tmp_path / "logs", "restart", why="process 1 was ended by SIGKILL")
    train(every_third, dataset, tmp_path, process)
    ended = read_status(tmp_path, now=now)
    assert (ended["state"], ended["samples"], ended["epoch"], ended["starts"]) == ("ended", total, 2, 2)
    output = "\n".join(format_status(ended, now=now))
    for words in (
        f"{total} of {total} rows (100%), 2 of 2 epochs done",
        "samples/s",
        "checkpoint  epoch-0002",
        "torch 2.",
        "2 starts, 0 steps",
    ):
        assert words in output
    assert "step 9: restart (why process 1 was ended by SIGKILL)" in output
    done = distrinews("status", str(tmp_path), "--json")
    assert json.loads(done.stdout)["samples"] == total


def test_status_counts_the_steps_up_to_the_checkpoint_before_any_is_logged(tmp_path: Path) -> None:
    start = {"epochs": 2, "world_size": 1, "total_samples": 640, "samples": 0, "environment": {}}
    saved = {"kind": "checkpoint", "step": 4, "samples": 128, "name": "a", "write_seconds": 1}
    (tmp_path / "logs").mkdir()
    lines = [{"kind": "start", "step": 0, **start}, saved]
    text = "".join(json.dumps(line | {"time": 1.0}) + "\n" for line in lines)
    (tmp_path / "logs" / "train.jsonl").write_text(text, encoding="utf-8")
    shown = "\n".join(format_status(read_status(tmp_path, now=2), now=2))
    assert "step 4, 128 of 640 rows (20%)" in shown
    assert "1 start, 0 steps skipped" in shown


def test_a_folder_where_training_has_not_begun_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"training has not begun there"):
        read_status(tmp_path, now=0)
