"""The folder of a run: made once, started again for the same run, read with care, with the commit of our own repository."""

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipelines import run_folder
from pipelines.run import Run
from pipelines.run_folder import STEPS, RunSettings, make_folder, start_run
from server.cli import build
from server.errors import UserError
from server.files import write_json
from trainer.config import PreprocessConfig
from trainer.preprocess import preprocess


def test_a_start_tried_again_for_the_same_run_succeeds_and_another_run_is_refused(tmp_path: Path) -> None:
    run = start_run(RunSettings(), tmp_path / "first", run_id="3f0c")
    run.update_step("preprocess", status="succeeded")
    again = start_run(RunSettings(), tmp_path / "first", run_id="3f0c")
    assert again.facts["steps"] == {"preprocess": {"status": "succeeded"}}
    for other in ("0000", ""):
        with pytest.raises(UserError, match="is there already; give another name"):
            start_run(RunSettings(), tmp_path / "first", run_id=other)


def test_the_commit_is_that_of_our_own_repository_and_of_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "--message", "first")
    for place, commit in (("pipelines", git("rev-parse", "HEAD")), (".venv/lib/site-packages/pipelines", None)):
        monkeypatch.setattr(run_folder, "__file__", str(tmp_path / place / "run_folder.py"))
        assert start_run(RunSettings(), tmp_path / ("ours" if commit else "installed")).facts["git_commit"] == commit


def test_runs_without_a_name_that_begin_in_one_second_have_a_folder_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.strftime", lambda _: "20260101-120000")
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: make_folder(tmp_path / "runs", "").name, range(8)))
    assert sorted(made) == ["20260101-120000", *(f"20260101-120000-{number}" for number in range(2, 9))]


@pytest.mark.parametrize("name", ["", "a"])
def test_a_folder_of_runs_that_cannot_be_written_is_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--runs-dir .*file/runs: cannot be written: Not a directory"):
        make_folder(tmp_path / "file" / "runs", name)
    (tmp_path / "a").touch()
    with pytest.raises(UserError, match=r"cannot be written: .*/a is a file"):
        make_folder(tmp_path, "a")
    assert make_folder(tmp_path, "b") == make_folder(tmp_path, "b"), "start_run refuses a run that is there"


def test_torn_state_of_a_run_is_named_and_that_of_another_run_is_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = start_run(RunSettings(), tmp_path / "a")
    (run.folder / "run.json").write_text('{"name": "ne', encoding="utf-8")
    with pytest.raises(UserError, match=r"a/run.json: is damaged, .*: bring it back from a copy, or start a new run"):
        _ = run.settings
    (tmp_path / "old" / "dataset").mkdir(parents=True)
    (tmp_path / "old" / "dataset" / "dataset.json").touch()
    preprocess(PreprocessConfig(data="sample:200"), tmp_path / "new", earlier=(tmp_path / "old" / "dataset",))
    assert "warning: " in (printed := capsys.readouterr().out)
    assert "old/dataset/dataset.json: is damaged" in printed


def test_new_settings_are_judged_together_with_those_of_the_run_that_is_resumed(tmp_path: Path) -> None:
    start_run(RunSettings(data="rows.csv", strategy="hsdp"), tmp_path / "a")
    given = {"name": "a", "runs_dir": tmp_path, "text_column": ["t"], "shard_ranks": 1, "from": "train"}
    resumed = build(Run, given)
    assert (resumed.data, resumed.text_column, resumed.strategy, resumed.shard_ranks) == ("rows.csv", ("t",), "hsdp", 1)
    with pytest.raises(UserError, match="text_column has no meaning with data = 'sample'"):
        build(Run, given | {"data": "sample"})


def test_a_run_whose_check_took_fewer_rows_is_resumed_with_the_fewest_of_now(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = start_run(RunSettings(), tmp_path / "a")
    for step in STEPS:
        run.update_step(step, status="succeeded")
    facts = run.facts
    facts["settings"]["check_rows"] = 200
    write_json(run.folder / "run.json", facts)
    resumed = build(Run, {"name": "a", "runs_dir": tmp_path, "from": "export"})
    assert resumed.check_rows == 500
    run = start_run(RunSettings(check_rows=resumed.check_rows), tmp_path / "a", from_step="deploy")
    assert run.settings.check_rows == 500
    assert capsys.readouterr().out == "start: check_rows was 200, now it is 500: the least is 500\n"


def test_the_model_now_served_is_found_where_the_runs_were_moved(tmp_path: Path) -> None:
    run = start_run(RunSettings(), tmp_path / "moved" / "a")
    write_json(run.workspace / "served.json", {"run": "b", "model": "/runs/b/model"})
    assert run.served["model"] == "/runs/b/model"
    (run.workspace / "b" / "model").mkdir(parents=True)
    assert run.served == {"run": "b", "model": str(tmp_path / "moved" / "b" / "model")}


@pytest.mark.parametrize(
    ("old", "new"), [("job_nodes", "job.nodes"), ("launch", "backend"), ("train_epochs", "epochs")]
)
def test_a_setting_of_an_earlier_version_is_refused_with_its_present_name(old: str, new: str) -> None:
    with pytest.raises(UserError, match=f"^{old} is now {new}$"):
        build(Run, {old: 2})


def test_resuming_needs_every_earlier_step_to_have_succeeded(tmp_path: Path) -> None:
    start_run(RunSettings(), tmp_path / "a")
    with pytest.raises(UserError, match="step preprocess of a has not succeeded; resume with --from preprocess"):
        start_run(RunSettings(), tmp_path / "a", from_step="train")
    start_run(RunSettings(), tmp_path / "a", from_step="preprocess")


def test_a_served_model_is_never_written_over_by_resuming_its_run(tmp_path: Path) -> None:
    run = start_run(RunSettings(), tmp_path / "a")
    for step in STEPS:
        run.update_step(step, status="succeeded")
    served = tmp_path / "served.json"
    served.write_text(json.dumps({"run": "a", "model": "/as/mounted/elsewhere/a/model"}), encoding="utf-8")
    for step in STEPS[:-1]:
        with pytest.raises(UserError, match=f"--from {step}: .*/a/model is the model now served, .* start a new run"):
            start_run(RunSettings(), tmp_path / "a", from_step=step)
    start_run(RunSettings(), tmp_path / "a", from_step="deploy")
    served.write_text("", encoding="utf-8")
    with pytest.raises(UserError, match=r"served.json: is damaged, .* delete it"):
        start_run(RunSettings(), tmp_path / "a", from_step="train")
