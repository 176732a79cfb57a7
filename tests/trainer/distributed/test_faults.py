"""Each fault of a training ends as it should, and the log names the fault."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch.nn import functional

from server.errors import UserError
from tests.support.faults import hang, infinite_loss, other_batch_size
from tests.support.kills import losses, same_weights
from tests.support.ranks import Ranks, steps_done, wait_for
from tests.support.training import stopped_at
from trainer.checkpoint.store import find_damage
from trainer.config import TrainConfig
from trainer.data.dataset import Dataset
from trainer.distributed.launch import launch
from trainer.distributed.preemption import PREEMPTED
from trainer.distributed.process_group import Process
from trainer.monitoring.training_log import read_log
from trainer.train import optimizer_step, train

pytestmark = pytest.mark.slow  # the module takes seconds

LONG = ["--epochs", "60", "--batch-size", "16", "--precision", "fp32", "--log-steps", "1"]
QUICK = TrainConfig(epochs=1, batch_size=32, precision="fp32", log_steps=1)


def flags(dataset: Dataset, run: Path, *more: str) -> list[str]:
    return ["--dataset", str(dataset.folder), "--output", str(run), *LONG, *more]


def kinds(run: Path) -> list[str]:
    return [line["kind"] for line in read_log(run / "logs") if line["kind"] not in ("train", "validation")]


_LEAVING = """
import os, signal
from trainer.distributed.preemption import Preempted, Preemption
try:
    with Preemption():
        {how}
finally:
    os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.parametrize(("how", "status"), [("raise Preempted", PREEMPTED), ("pass", -signal.SIGTERM)])
def test_a_process_that_leaves_keeps_its_status_when_torchrun_then_sends_it_sigterm(how: str, status: int) -> None:
    assert subprocess.run([sys.executable, "-c", _LEAVING.format(how=how)], check=False).returncode == status


def test_sigterm_to_one_process_has_all_save_the_same_step_and_leave_with_status_75(
    dataset: Dataset, tmp_path: Path
) -> None:
    with Ranks(tmp_path, flags(dataset, tmp_path)) as ranks:
        wait_for(lambda: steps_done(tmp_path) >= 3, ranks)
        os.kill(ranks.processes[1].pid or 0, signal.SIGTERM)
        assert ranks.wait(20) == [PREEMPTED, PREEMPTED] == [75, 75], ranks.log
    step = steps_done(tmp_path)
    latest = (tmp_path / "checkpoints" / "latest").read_text(encoding="utf-8")
    assert latest.endswith(f"-step-{step:08}")
    assert find_damage(tmp_path / "checkpoints" / latest) == ""
    assert f"train: SIGTERM: step {step:,} is saved; start again to resume" in ranks.log
    assert kinds(tmp_path)[-2:] == ["checkpoint", "preemption"]


def slow_validation(_rank: int) -> None:
    """Batches of a row, each as slow as a step."""
    import trainer.evaluation.predict
    import trainer.train

    vars(trainer.evaluation.predict)["_BATCH_ROWS"] = 1
    for module, name in ((trainer.evaluation.predict, "collate"), (trainer.train, "seed_step")):
        work = vars(module)[name]

        def slowly(*args: Any, work: Any = work, **given: Any) -> Any:  # noqa: ANN401 - of either
            time.sleep(0.15)
            return work(*args, **given)

        vars(module)[name] = slowly


def test_sigterm_in_validation_saves_the_epoch_s_last_step_and_a_restart_validates(
    dataset: Dataset, tmp_path: Path
) -> None:
    given = ["--epochs", "2", "--checkpoint-steps", "11"]
    run, whole = tmp_path / "run", tmp_path / "whole"
    with Ranks(run, flags(dataset, run, *given), hook=slow_validation) as ranks:
        wait_for(lambda: steps_done(run) == 11, ranks)
        time.sleep(0.3)  # now in the first of 20 batches
        os.kill(ranks.processes[1].pid or 0, signal.SIGTERM)
        assert ranks.wait(20) == [PREEMPTED, PREEMPTED], ranks.log
    assert steps_done(run) == 11
    assert not [line for line in read_log(run / "logs") if line["kind"] == "validation"]
    for folder in (run, whole):
        with Ranks(folder, flags(dataset, folder, *given)) as ranks:
            assert ranks.wait(60) == [0, 0], ranks.log
    assert losses(run) == losses(whole)
    assert same_weights(run, whole)


def test_one_process_killed_ends_the_other_at_once(dataset: Dataset, tmp_path: Path) -> None:
    with Ranks(tmp_path, flags(dataset, tmp_path)) as ranks:
        wait_for(lambda: steps_done(tmp_path) >= 3, ranks)
        ranks.processes[1].kill()
        codes = ranks.wait(30)
    assert codes == [1, -signal.SIGKILL], ranks.log


def test_a_process_that_hangs_ends_all_with_the_stacks_of_each_in_the_log(dataset: Dataset, tmp_path: Path) -> None:
    with Ranks(tmp_path, flags(dataset, tmp_path, "--hang-minutes", "0.1"), hook=hang) as ranks:
        assert ranks.wait(60) == [1, 1], ranks.log
    assert ranks.log.count("Timeout (0:00:06)!") >= 1
    assert "in asleep" in ranks.log
    assert "in forward_backward" in ranks.log


def test_processes_that_differ_are_found_before_the_first_step(dataset: Dataset, tmp_path: Path) -> None:
    with Ranks(tmp_path, flags(dataset, tmp_path), hook=other_batch_size) as ranks:
        assert ranks.wait(30) == [1, 1], ranks.log
    assert "processes of this training differ: batch_size is 16 on rank 0, 8 on rank 1" in ranks.log
    assert steps_done(tmp_path) == 0


def test_a_loss_that_is_not_finite_on_one_process_is_skipped_by_all_and_counted(
    dataset: Dataset, tmp_path: Path
) -> None:
    given = flags(dataset, tmp_path, "--epochs", "1")
    with Ranks(tmp_path, given, hook=infinite_loss) as ranks:
        assert ranks.wait(60) == [0, 0], ranks.log
    skipped = [line for line in read_log(tmp_path / "logs") if line["kind"] == "skipped"]
    assert [(line["step"], line["consecutive"], len(line["rows"])) for line in skipped] == [(4, 1, 32)]
    assert "train: warning: step 4 is skipped: its gradient norm is nan; 1 skipped so far" in ranks.log
    losses = [line["loss"] for line in read_log(tmp_path / "logs") if line["kind"] == "train"]
    assert all(loss < 10 for loss in losses), "weights are as they were"


def test_a_skipped_step_leaves_weights_and_optimizer_as_they_were() -> None:
    layer = torch.nn.Linear(3, 1, bias=False)
    weight, optimizer = layer.weight, torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)
    for value in (1.0, torch.nan, 1.0):
        weight.grad = torch.full((1, 3), value)
        before = weight.detach().clone()
        optimizer_step(layer, optimizer, 0.1, max_grad_norm=1.0)
        assert torch.equal(weight.detach(), before) == (value != 1.0)
    assert optimizer.state[weight]["step"] == 2
    assert torch.isfinite(weight).all()


def test_many_skipped_steps_in_a_row_stop_training_with_the_rows_of_the_last_batch(
    dataset: Dataset, tmp_path: Path, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = functional.cross_entropy
    monkeypatch.setattr(functional, "cross_entropy", lambda *args, **given: work(*args, **given) * torch.nan)
    with pytest.raises(
        UserError, match=r"3 consecutive steps, the last of them 3, .* not finite.* rows \d+, \d+.* lines "
    ):
        train(QUICK.model_copy(update={"max_skipped_steps": 3}), dataset, tmp_path, process)
    assert kinds(tmp_path) == ["start", "skipped", "skipped", "skipped"]


def test_a_loss_far_above_those_before_it_is_reported(
    dataset: Dataset, tmp_path: Path, process: Process, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    calls, work = iter(range(10_000)), functional.cross_entropy
    monkeypatch.setattr(
        functional, "cross_entropy", lambda *args, **given: work(*args, **given) * (9 if next(calls) == 14 else 1)
    )  # two calls are of the warm-up
    train(QUICK.model_copy(update={"batch_size": 16}), dataset, tmp_path, process)
    (spike,) = [line for line in read_log(tmp_path / "logs") if line["kind"] == "spike"]
    assert (spike["step"], spike["loss"] > 3 * spike["median"]) == (13, True)
    assert "warning: step 13: the loss is" in capsys.readouterr().out


def test_a_process_killed_under_launch_restarts_all_from_the_last_checkpoint(dataset: Dataset, tmp_path: Path) -> None:
    reasons: list[str] = []

    def kill() -> None:
        while steps_done(tmp_path) < 3:
            time.sleep(0.02)
        workers = [child for child in psutil.Process().children() if "trainer.train" in child.cmdline()]
        workers[-1].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    given = flags(dataset, tmp_path, "--epochs", "3", "--checkpoint-steps", "1")
    launch("trainer.train", given, ranks=2, max_restarts=1, restarting=reasons.append)
    killer.join()
    assert len(reasons) == 1
    assert "was ended by SIGKILL" in reasons[0]
    assert reasons[0].endswith("starting all processes again, 1 of 1 times")
    starts = [line["step"] for line in read_log(tmp_path / "logs") if line["kind"] == "start"]
    assert len(starts) == 2
    assert starts[1] >= 2
    assert (tmp_path / "model" / "config.json").is_file()


def test_a_line_torn_by_a_kill_is_no_line_of_the_log(dataset: Dataset, tmp_path: Path, process: Process) -> None:
    config = QUICK.model_copy(update={"checkpoint_steps": 2})
    stopped_at(5, config, dataset, tmp_path, process)
    with (tmp_path / "logs" / "train.jsonl").open("a", encoding="utf-8") as log:
        log.write('{"kind": "tra')
    train(config, dataset, tmp_path, process)
    assert [line["step"] for line in read_log(tmp_path / "logs") if line["kind"] == "train"] == list(range(1, 12))
