"""Training that stops at any step resumes bit for bit, from the last complete checkpoint."""

import hashlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from server.errors import UserError
from tests.support.kills import kill_and_compare, losses, same_weights
from tests.support.ranks import Ranks
from tests.support.training import LENGTHS, QUICK, sampler, stopped_at
from trainer.checkpoint import lock
from trainer.checkpoint.state import TrainState
from trainer.checkpoint.store import Snapshot, find_damage, names, write
from trainer.data.dataset import Dataset
from trainer.distributed.process_group import Process, process_group
from trainer.model.classifier import build_model
from trainer.monitoring.training_log import read_log
from trainer.train import save_best, train

pytestmark = pytest.mark.slow  # the module takes seconds


def test_a_run_killed_six_times_at_random_steps_learns_the_same_bit_for_bit(dataset: Dataset, tmp_path: Path) -> None:
    flags = ["--epochs", "2", "--batch-size", "16", "--precision", "fp32"]
    kills = int(os.environ.get("KILLS", "6"))
    found = kill_and_compare(dataset.folder, tmp_path, kills=kills, seed=0, flags=flags)
    assert len(found.at) == kills
    assert found.losses_equal
    assert found.weights_equal
    starts = [line["step"] for line in read_log(tmp_path / "killed" / "logs") if line["kind"] == "start"]
    assert len(starts) == kills + 1
    assert max(starts) > 10, "they resumed from checkpoints, not from the beginning"


def test_three_processes_whose_sums_depend_on_order_resume_the_same_when_killed(
    dataset: Dataset, tmp_path: Path
) -> None:
    flags = ["--epochs", "1", "--batch-size", "16", "--precision", "fp32"]
    found = kill_and_compare(dataset.folder, tmp_path, kills=2, seed=1, flags=flags, world_size=3)
    assert found.losses_equal
    assert found.weights_equal


def test_stopped_again_and_again_every_later_step_is_the_same(
    dataset: Dataset, tmp_path: Path, process: Process
) -> None:
    train(QUICK, dataset, tmp_path / "whole", process)
    for step in (5, 6, 9):  # counted from where it resumes
        stopped_at(step, QUICK, dataset, tmp_path / "stopped", process)
    train(QUICK, dataset, tmp_path / "stopped", process)
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    assert same_weights(tmp_path / "stopped", tmp_path / "whole")


def test_a_checkpoint_does_not_change_while_training_continues(
    dataset: Dataset, tmp_path: Path, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint that shares the live tensors would hold values of later steps (pytorch#144657)."""

    def slowly(folder: Path, snapshot: Snapshot, *, keep_last: int) -> None:
        time.sleep(0.3)  # several steps go by
        write(folder, snapshot, keep_last=keep_last)

    train(QUICK, dataset, tmp_path / "whole", process)
    with monkeypatch.context() as patched:
        patched.setattr("trainer.checkpoint.checkpointer.store.write", slowly)
        stopped_at(7, QUICK, dataset, tmp_path / "slow", process)
    assert names(tmp_path / "slow" / "checkpoints") == ["epoch-0000-step-00000004"]
    train(QUICK, dataset, tmp_path / "slow", process)
    assert losses(tmp_path / "slow") == losses(tmp_path / "whole")


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(
    dataset: Dataset, stopped: Path, tmp_path: Path, process: Process, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    newest, before = names(run / "checkpoints")[:2]
    (run / "checkpoints" / newest / "state.json").unlink()
    stopped_at(0, QUICK, dataset, run, process)
    output = capsys.readouterr().out
    assert f"warning: {run}/checkpoints/{newest} is damaged: FileNotFoundError: " in output
    assert f"resuming from {run}/checkpoints/{before}" in output


def test_a_run_that_trains_refuses_a_second_training(dataset: Dataset, tmp_path: Path, process: Process) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        facts = lock._this_process() | {"pid": other.pid, "started": lock._started(other.pid)}
        (tmp_path / lock.NAME).write_text(json.dumps(facts), encoding="utf-8")
        with pytest.raises(UserError, match=f"is being trained by process {other.pid} on "):
            train(QUICK, dataset, tmp_path, process)
        other.kill()
    assert not (tmp_path / "checkpoints").exists()
    stopped_at(2, QUICK, dataset, tmp_path, process)
    assert not (tmp_path / lock.NAME).exists()


@pytest.fixture(scope="module")
def stopped(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two checkpoints, stopped in mid-epoch."""
    run = tmp_path_factory.mktemp("stopped")
    with process_group(timeout_minutes=1) as alone:
        stopped_at(9, QUICK, dataset, run, alone)
    return run


def test_where_all_checkpoints_are_damaged_training_does_not_start_over_unasked(
    dataset: Dataset, stopped: Path, tmp_path: Path, process: Process
) -> None:
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    for file in run.glob("checkpoints/*/model.safetensors"):
        file.write_bytes(b"")
    with pytest.raises(UserError, match=r"all of 2 checkpoints are damaged.*--resume never"):
        train(QUICK, dataset, run, process)


def test_a_full_disk_ends_training_with_an_error_and_keeps_earlier_checkpoints_whole(
    dataset: Dataset, tmp_path: Path, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter([None] * 3)  # files that fit
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if next(left, path) is not None:  # from here on the system refuses, as it does where the disk is full
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
        save_file(tensors, path)

    with monkeypatch.context() as patched:
        patched.setattr("trainer.checkpoint.store.save_file", fill)
        try:
            with pytest.raises(UserError, match=r"checkpoints: a checkpoint cannot be written: .*too large.*; earlier"):
                train(QUICK, dataset, tmp_path, process)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    (left_over,) = (tmp_path / "checkpoints").glob("*epoch-*")
    assert left_over.name == "epoch-0000-step-00000004"
    assert find_damage(left_over) == ""
    assert (tmp_path / "checkpoints" / "latest").read_text(encoding="utf-8") == left_over.name
    assert not (tmp_path / "model").exists()


def test_another_batch_size_continues_with_the_rows_that_are_left_only_when_allowed(
    dataset: Dataset, tmp_path: Path, process: Process
) -> None:
    stopped_at(6, QUICK, dataset, tmp_path, process)
    smaller = QUICK.model_copy(update={"batch_size": 16})
    with pytest.raises(UserError, match=r"made with batch_size = 32, now it is 16.*--allow-changed-world"):
        train(smaller, dataset, tmp_path, process)
    state = train(smaller.model_copy(update={"allow_changed_world": True}), dataset, tmp_path, process)
    assert state.samples == 2 * len(dataset.train)
    first_epoch = next(line["step"] for line in read_log(tmp_path / "logs") if line["kind"] == "validation")
    assert first_epoch == 4 + -(-(len(dataset.train) - 4 * 32) // 16)
    assert [line["step"] for line in read_log(tmp_path / "logs") if line["kind"] == "start"] == [0, 4]


def test_worlds_that_follow_each_other_in_an_epoch_see_every_row_once() -> None:
    chance, seen, segments = random.Random(0), list[int](), list[list[int]]()
    for batch_size, world_size in ((32, 2), (8, 1), (16, 3), (32, 2)):
        segments.append([batch_size * world_size, 0])
        ranks = [
            sampler(batch_size=batch_size, rank=rank, world_size=world_size).epoch(5, segments)
            for rank in range(world_size)
        ]
        done = chance.randint(2, 5) if len(segments) < 4 else len(ranks[0])
        seen += [int(row) for steps in ranks for step in steps[:done] for micro in step.micro_batches for row in micro]
        segments[-1][1] = done
    assert sorted(seen) == list(range(len(LENGTHS)))


def test_the_rest_of_an_epoch_is_its_steps_without_those_done() -> None:
    whole, rest = sampler(batch_size=32).epoch(1), sampler(batch_size=32).epoch(1, [[32, 7]])
    assert all(np.array_equal(one.rows, other.rows) for one, other in zip(whole[7:], rest, strict=True))


def test_resume_never_starts_over_once_and_not_at_every_restart(
    dataset: Dataset, tmp_path: Path, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    never = QUICK.model_copy(update={"resume": "never"})
    stopped_at(6, QUICK, dataset, tmp_path, process)
    stopped_at(6, never, dataset, tmp_path, process)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")  # as torchrun sets it
    train(never, dataset, tmp_path, process)
    assert len(list(tmp_path.glob("before-*"))) == 1
    assert [line["step"] for line in read_log(tmp_path / "logs") if line["kind"] == "start"] == [0, 4]


def edit_state(checkpoint: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes state.json and its line in the manifest, as an older version would have written both."""
    state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    change(state)
    (checkpoint / "state.json").write_text(json.dumps(state), encoding="utf-8")
    manifest = json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8"))
    content = (checkpoint / "state.json").read_bytes()
    manifest["files"]["state.json"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def test_a_setting_that_was_not_saved_had_its_default_and_another_number_of_threads_is_a_warning(
    dataset: Dataset, stopped: Path, tmp_path: Path, process: Process, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    newest = run / "checkpoints" / names(run / "checkpoints")[0]
    edit_state(newest, lambda state: state["provenance"].pop("gradient_compression"))
    edit_state(newest, lambda state: state["provenance"].update(threads=99))
    fp16 = QUICK.model_copy(update={"gradient_compression": "fp16"})
    with pytest.raises(UserError, match=r"gradient_compression = none, now it is fp16: give none again"):
        train(fp16, dataset, run, process)
    with pytest.raises(UserError, match=r"early_stopping_patience = None, now it is 1: leave it out to resume"):
        train(QUICK.model_copy(update={"early_stopping_patience": 1}), dataset, run, process)
    assert train(QUICK, dataset, run, process).epoch == 2
    assert "threads = 99, now it is" in capsys.readouterr().out


def test_without_the_checkpoint_of_the_best_epoch_no_step_is_trained_and_no_model_written(
    dataset: Dataset, stopped: Path, tmp_path: Path, process: Process
) -> None:
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    newest = run / "checkpoints" / names(run / "checkpoints")[0]
    edit_state(newest, lambda state: state["state"].update(best_epoch=1))
    with pytest.raises(
        UserError, match=r"epoch-0001: the model is made of .* it is missing; bring it back from a copy"
    ):
        train(QUICK, dataset, run, process)
    model = build_model("tiny", dataset, seed=0, device=process.device)
    with pytest.raises(UserError, match=r"epoch-0001: the model is made of .* it is missing"):
        save_best(model, dataset, run, TrainState(best_epoch=1), {})
    assert not (run / "model").exists()


def test_a_checkpoint_of_an_older_format_is_refused_in_one_line(
    dataset: Dataset, stopped: Path, tmp_path: Path, process: Process
) -> None:
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    newest = run / "checkpoints" / names(run / "checkpoints")[0]
    edit_state(newest, lambda state: state.pop("format"))
    with pytest.raises(UserError, match=r"has format 1, and this version resumes format 3: finish .*--resume never"):
        train(QUICK, dataset, run, process)


def test_waiting_for_a_slow_disk_is_no_hang(dataset: Dataset, tmp_path: Path) -> None:
    flags = ["--dataset", str(dataset.folder), "--output", str(tmp_path), "--epochs", "1", "--precision", "fp32"]
    with Ranks(tmp_path, [*flags, "--hang-minutes", "0.05"], world_size=1, hook=slow_disk) as ranks:
        assert ranks.wait(90) == [0], ranks.log
    assert "Timeout" not in ranks.log


def slow_disk(_rank: int) -> None:
    """Makes the writing of a checkpoint take longer than a hang may."""
    import trainer.checkpoint.store

    write = trainer.checkpoint.store.write

    def slowly(*args: Any, **given: Any) -> None:  # noqa: ANN401 - those of write
        time.sleep(4.5)
        write(*args, **given)

    vars(trainer.checkpoint.store)["write"] = slowly
