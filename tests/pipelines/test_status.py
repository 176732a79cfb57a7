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
    every_third = QUICK.model_copy(update={"log_steps": 3})
    stopped_at(10, every_third, dataset, tmp_path, process)
    now = read_log(tmp_path / "logs")[-1]["time"]
    running = read_status(tmp_path, now=now)
    assert (running["state"], running["step"], running["samples"]) == ("running", 9, 9 * 32)
    assert running["eta_seconds"] == pytest.approx((648 - 288) / running["samples_per_second"])
    assert read_status(tmp_path, now=now + 600)["state"] == "silent"
    append_event(tmp_path / "logs", "restart", why="process 1 was ended by SIGKILL")
    train(every_third, dataset, tmp_path, process)
    ended = read_status(tmp_path, now=now)
    assert (ended["state"], ended["samples"], ended["epoch"], ended["starts"]) == ("ended", 648, 2, 2)
    output = "\n".join(format_status(ended, now=now))
    for words in (
        "648 of 648 rows (100%), 2 of 2 epochs done",
        "samples/s",
        "checkpoint  epoch-0002",
        "torch 2.",
        "2 starts, 0 steps",
    ):
        assert words in output
    assert "step 9: restart (why process 1 was ended by SIGKILL)" in output
    done = distrinews("status", str(tmp_path), "--json")
    assert json.loads(done.stdout)["samples"] == 648


def test_a_folder_where_training_has_not_begun_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"training has not begun there"):
        read_status(tmp_path, now=0)
