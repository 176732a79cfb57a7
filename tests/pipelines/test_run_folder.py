"""The folder of a run: started again for the same run, and with the commit of our own repository."""

import subprocess
from pathlib import Path

import pytest

from pipelines import run_folder
from pipelines.run_folder import RunSettings, start_run
from server.errors import UserError


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
