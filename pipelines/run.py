"""The command `distrinews run`."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from pipelines.deploy.settings import DeployConfig
from pipelines.run_folder import STEPS, RunFolder, RunSettings, Step, check_name, make_folder, reject_old_names
from server.cli import Command
from server.errors import INTERRUPTED
from server.files import read_json
from trainer.checkpoint.lock import OF_RUN, Lock
from trainer.config import PreprocessConfig, RunConfig, part
from trainer.data.sources import find_data

_PROGRAM = "distrinews run"
_TERMINATED_SAFELY = os.EX_TEMPFAIL  # 75: nothing is wrong, the run can be resumed


class Run(RunConfig, Command):
    """Run the whole pipeline on this machine: preprocess, train, evaluate, gate, export, deploy."""

    config: Path | None = None
    """JSON or YAML file with settings; flags win."""

    name: str = ""
    """Name of the run's folder. By default the time."""

    runs_dir: Path = Path("runs")
    """Folder in which each run has its folder."""

    from_step: Step | None = Field(default=None, alias="from")
    """Step from which to resume the run that --name names: preprocess, train, evaluate, gate, export or deploy."""

    serve: bool = False
    """Serve the model when the pipeline is done."""

    @model_validator(mode="before")
    @classmethod
    def _keep_settings_of_the_run_to_resume(cls, values: dict[str, Any]) -> dict[str, Any]:
        reject_old_names(cls, values)
        if name := values.get("name"):
            check_name(str(name))
        if not (step := values.get("from")):
            return values
        if not name:
            raise ValueError(f"--from {step}: name the run with --name")
        run = RunFolder(Path(values.get("runs_dir", "runs")).absolute() / str(name))
        return run.settings.model_dump(mode="json", include=set(RunConfig.model_fields)) | values

    def run(self) -> int:
        folder = self.runs_dir.absolute() / self.name
        given = self.model_dump(exclude_unset=True, include=set(RunConfig.model_fields))
        settings = RunSettings(**given, backend="local", deploy=DeployConfig(backend="local"))
        if not self.from_step:
            find_data(part(settings, PreprocessConfig))  # before there is a folder of a run that cannot start
            folder = make_folder(self.runs_dir.absolute(), self.name)
        return run_here(settings, folder, from_step=self.from_step or "", serve=self.serve)


def run_here(settings: RunSettings, folder: Path, *, from_step: str = "", serve: bool = False) -> int:
    """Runs the pipeline in this folder and prints its result; returns the exit status."""
    print(f"{_PROGRAM}: {folder}", flush=True)
    from pipelines.kubeflow.local import run_pipeline  # half a second of kfp, which --help does without

    started, run_id = time.monotonic(), _run_id(folder)
    lock = Lock(folder, OF_RUN)
    lock.acquire()
    try:
        end = run_pipeline(settings, folder, from_step=from_step)
    finally:
        lock.release()
    if end.succeeded:
        _print_result(folder, time.monotonic() - started)
        if serve:
            from server.cli import run_command
            from server.main import PROGRAM, Serve

            run_command(Serve, [str(folder / "model")], prog=PROGRAM)
        return 0
    if _run_id(folder) == run_id:  # the run did not start, and run.json is of none or of another
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        print(f"{_PROGRAM}: error: {end.reason.removeprefix('start: error: ')}", file=sys.stderr)
    else:
        step, error = _failed_step(folder)
        # SIGTERM between two steps: the last line of output is of the step before.
        reason = f"it was terminated by {end.terminated.name}" if end.terminated else end.reason
        print(
            f"\n{_how_to_resume(folder)}  once the cause is gone (all output: {folder / 'pipeline.log'})",
            file=sys.stderr,
        )
        print(f"{_PROGRAM}: step {step} failed: {error or reason}", file=sys.stderr)
    if end.terminated is signal.SIGINT:
        return INTERRUPTED
    return _TERMINATED_SAFELY if end.terminated else 1


def _run_id(folder: Path) -> str | None:
    return str(RunFolder(folder).facts["run_id"]) if (folder / "run.json").is_file() else None


def _print_result(folder: Path, seconds: float) -> None:
    metrics = read_json(folder / "metrics.json", fix="resume with --from evaluate")
    low, high = metrics["accuracy_interval"]
    shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    print(f"""
done in {seconds:.0f} s: {folder.name}
  accuracy  {metrics["accuracy"]:.4f} on {metrics["rows"]:,} test rows (95 % interval {low:.4f} to {high:.4f})
  report    {shown / "report.html"}
  serve     distrinews serve {shown / "model"}
  ask       curl -s http://127.0.0.1:8080/predict -H 'Content-Type: application/json' -d '{{"text": "Late goal wins the cup"}}'""", flush=True)  # fmt: skip


def _failed_step(folder: Path) -> tuple[str, str]:
    """Returns the first step that has not succeeded, and its error."""
    steps: dict[str, dict[str, Any]] = RunFolder(folder).facts["steps"]
    failed = next((step for step in STEPS if steps.get(step, {}).get("status") != "succeeded"), STEPS[-1])
    return failed, steps.get(failed, {}).get("error", "")


def _how_to_resume(folder: Path) -> str:
    if not (folder / "run.json").is_file():
        return "nothing was started"
    where = "" if folder.parent == Path("runs").absolute() else f" --runs-dir {folder.parent}"
    return f"resume with: distrinews run{where} --name {folder.name} --from {_failed_step(folder)[0]}"
