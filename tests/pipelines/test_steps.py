"""The steps besides the work of the trainer: retries and signals."""

from pathlib import Path

import pytest

from pipelines import steps
from pipelines.run_folder import RunFolder, RunSettings, start_run


def started(folder: Path, *, from_step: str = "") -> RunFolder:
    settings = RunSettings.model_validate({"backend": "local", "resume": "never"})
    return start_run(settings, folder, from_step=from_step)


def test_resume_never_puts_checkpoints_aside_once_and_a_retry_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = started(tmp_path / "a")
    run.update_step("preprocess", status="succeeded")
    started(tmp_path / "a", from_step="train")
    flags: list[list[str]] = []

    def fail_in_training(run: RunFolder, _: str, given: list[str], **__: object) -> int:
        flags.append(given)
        (run.folder / "checkpoints" / "epoch-0001").mkdir(parents=True, exist_ok=True)
        raise ConnectionError("a process was killed")

    monkeypatch.setattr(steps, "_launch", fail_in_training)
    (run.folder / "checkpoints").mkdir()
    (run.folder / "checkpoints" / "of-an-earlier-start").touch()
    for _ in range(2):
        with pytest.raises(ConnectionError):
            steps.run_step("train", str(run.folder))
        assert (run.folder / "checkpoints" / "epoch-0001").is_dir(), "a retry resumes from what the first try saved"
    [aside] = run.folder.glob("before-*")
    assert [path.name for path in (aside / "checkpoints").iterdir()] == ["of-an-earlier-start"]
    assert flags == [[], []], "no flag makes the processes start over again"
    started(tmp_path / "a", from_step="train")
    with pytest.raises(ConnectionError):
        steps.run_step("train", str(run.folder))
    assert len(list(run.folder.glob("before-*/checkpoints/epoch-0001"))) == 1, "a new start starts over"


def test_a_step_that_sigterm_ends_is_recorded_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os
    import signal

    run = started(tmp_path / "a")

    def terminate(_: RunFolder) -> dict[str, object]:
        os.kill(os.getpid(), signal.SIGTERM)
        return {}

    monkeypatch.setitem(steps._WORK, "gate", terminate)
    with pytest.raises(SystemExit) as ended:
        steps.run_step("gate", str(run.folder))
    assert ended.value.code == 143
    assert run.facts["steps"]["gate"]["error"] == "it was terminated by SIGTERM"
