"""The folder of a run and its run.json: settings, versions, what each step did and how long it took."""

import importlib.metadata
import platform
import re
import subprocess
import time
from itertools import count
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import model_validator

from pipelines.deploy.settings import DeployConfig
from pipelines.job.settings import Deadlines, JobConfig
from server.cli import Settings, build
from server.errors import UserError
from server.files import read_json, write_json
from trainer.checkpoint.lock import free_lock
from trainer.config import (
    FEWEST_CHECK_ROWS,
    EvaluateConfig,
    ExportConfig,
    GateConfig,
    PreprocessConfig,
    RunConfig,
    TrainConfig,
)
from trainer.monitoring.console import print0

Step = Literal["preprocess", "train", "evaluate", "gate", "export", "deploy"]
STEPS: tuple[Step, ...] = get_args(Step)
_SETTINGS_OF: dict[str, type[Settings]] = {
    "preprocess": PreprocessConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "gate": GateConfig,
    "export": ExportConfig,
}
_VERSIONS = ("distrinews", "kfp", "torch", "transformers", "tokenizers", "datasets", "onnxruntime")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class RunSettings(RunConfig):
    """All settings of a run: those of its steps, and those of the cluster that it uses."""

    backend: Literal["local", "pytorchjob"] = "pytorchjob"
    """Processes that train: on the machine of the step (local), or in the pods of a PyTorchJob (pytorchjob)."""

    job: JobConfig = JobConfig()
    """The training job."""

    deadlines: Deadlines = Deadlines()
    """Times after which a training job is given up."""

    deploy: DeployConfig = DeployConfig()
    """The deploy step."""

    @model_validator(mode="before")
    @classmethod
    def _reject_old_names(cls, values: object) -> object:
        if isinstance(values, dict):
            reject_old_names(cls, values)
        return values


def _of_this_version(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings of a run, those of an earlier version too, which took fewer rows for the check of an export."""
    too_few = settings.get("check_rows", FEWEST_CHECK_ROWS) < FEWEST_CHECK_ROWS
    return settings | ({"check_rows": FEWEST_CHECK_ROWS} if too_few else {})


def reject_old_names(settings: type[Settings], values: dict[str, Any]) -> None:
    """Raises ValueError for a name that a setting had in an earlier version."""
    for name in values:
        if name not in settings.model_fields and (new := _new_name(str(name))):
            raise ValueError(f"{name} is now {new}")


_OLD_NAMES = {"run_launch": "backend", "run_deploy": "deploy.backend", "launch": "backend", "release": "deploy.release"}
_OLD_GROUPS = {"job": "job", "deploy": "deploy", "deadline": "deadlines"}


def _new_name(old: str) -> str:
    """Returns the present name of a setting that the form had under a name with its group, such as train_epochs."""
    group, _, name = old.partition("_")
    if old in _OLD_NAMES or group in _OLD_GROUPS:
        return _OLD_NAMES.get(old) or f"{_OLD_GROUPS[group]}.{name}"
    if group in ("model", "input", "train", "evaluate", "gate", "export", "launch") and name in RunConfig.model_fields:
        return name
    return ""


class RunFolder:
    """A run's folder; each access reads run.json anew, for every step is a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.workspace, self.name = folder, folder.parent, folder.name
        self.dataset = folder / "dataset"
        self.model = folder / "model"

    @property
    def facts(self) -> dict[str, Any]:
        try:
            facts = read_json(self.folder / "run.json", fix="bring it back from a copy, or start a new run")
        except FileNotFoundError as error:
            raise UserError(
                f"{self.folder}: is no run, it has no run.json; the runs in {self.workspace} are {_runs(self.workspace)}"
            ) from error
        if "cluster" in facts:
            raise UserError(
                f"{self.folder}/run.json: was written by an earlier version, with the settings of the cluster apart; start a new run"
            )
        return facts

    @property
    def settings(self) -> RunSettings:
        return build(RunSettings, _of_this_version(self.facts["settings"]))

    @property
    def served(self) -> dict[str, Any]:
        """Reads the record of the model now served, of whichever run of this folder; empty where none is."""
        file = self.workspace / "served.json"
        try:
            served = read_json(
                file, fix="the model now served is not known; delete it to serve the next one without comparing"
            )
        except FileNotFoundError:
            return {}
        here = self.workspace / str(served.get("run")) / "model"  # its path is an earlier one where the runs were moved
        return served | ({"model": str(here)} if here.is_dir() else {})

    def is_kept(self, step: str) -> bool:
        """Returns True if a step is not run again, because the run resumes from a later one."""
        return step in _before(self.facts["from_step"])

    def update_step(self, step: str, **values: Any) -> None:  # noqa: ANN401 - whatever JSON takes
        """Adds these facts to a step's entry in run.json."""
        facts = self.facts
        facts["steps"].setdefault(step, {}).update(values)
        write_json(self.folder / "run.json", facts)


def check_name(name: str, *, flag: str = "--name") -> None:
    """Raises UserError when a run cannot have this name, such as one that leads out of the folder of runs."""
    if not _NAME.fullmatch(name):
        raise UserError(f"{flag} {name!r}: a run is named by 1 to 63 letters, digits, dots, dashes and underscores")


def make_folder(workspace: Path, name: str) -> Path:
    """Makes the folder of a new run; of runs that begin in one second without a name, each gets its own."""
    stem = name or time.strftime("%Y%m%d-%H%M%S")
    for number in count(1):
        folder = workspace / (stem if number == 1 else f"{stem}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if name and folder.is_dir():
                break  # start_run refuses one with a run in it
            if not folder.is_dir():
                raise UserError(f"--runs-dir {workspace}: cannot be written: {folder} is a file") from None
        except OSError as error:
            raise UserError(
                f"--runs-dir {workspace}: cannot be written: {error.strerror}; give a folder that can"
            ) from error
        else:
            break
    return folder


def start_run(settings: RunSettings, folder: Path, *, from_step: str = "", run_id: str = "") -> RunFolder:
    """Makes the folder of a new run, or resumes an earlier one; UserError when the steps before `from_step` do not fit."""
    check_name(folder.name)
    if from_step and from_step not in STEPS:
        raise UserError(f"--from {from_step}: is no step; the steps are {', '.join(STEPS)}")
    run = RunFolder(folder)
    steps: dict[str, Any] = {}
    if (folder / "run.json").is_file():
        if run_id and run.facts["run_id"] == run_id:
            return run  # this step was started again
        if not from_step:
            raise UserError(
                f"--name {folder.name}: {folder} is there already; give another name, or resume it with --from STEP"
            )
        steps = _kept_steps(run, settings, from_step)
        if from_step != "deploy" and run.served.get("run") == run.name:
            raise UserError(
                f"--from {from_step}: {run.model} is the model now served, and would be written over; start a new run "
                f"(its rows are not preprocessed again), or resume with --from deploy"
            )
        if settings.backend == "local":  # on a cluster the launcher attaches to the job that trains
            free_lock(folder)
    elif from_step:
        raise UserError(
            f"--from {from_step}: {folder} is no earlier run; the runs in {run.workspace} are {_runs(run.workspace)}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "name": folder.name,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "from_step": from_step,
        "run_id": run_id,
        "settings": settings.model_dump(mode="json"),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _VERSIONS}},
        "git_commit": _git_commit(),
        "steps": steps,
    }
    write_json(folder / "run.json", facts)
    return run


def _kept_steps(run: RunFolder, settings: RunSettings, from_step: str) -> dict[str, Any]:
    """Returns the entries of the steps before `from_step`, each of which has to have succeeded with the same settings."""
    kept, facts = _before(from_step), run.facts
    before, now = run.settings.model_dump(), settings.model_dump()
    if (rows := facts["settings"].get("check_rows", FEWEST_CHECK_ROWS)) < FEWEST_CHECK_ROWS:
        print0(f"start: check_rows was {rows}, now it is {now['check_rows']}: the least is {FEWEST_CHECK_ROWS}")
    for step in kept:
        if facts["steps"].get(step, {}).get("status") != "succeeded":
            raise UserError(
                f"--from {from_step}: step {step} of {run.name} has not succeeded; resume with --from {step}"
            )
        for name in _SETTINGS_OF[step].model_fields:
            if now[name] != before[name]:
                raise UserError(
                    f"--from {from_step}: {name} is now {now[name]!r}, but step {step} of {run.name} ran with {before[name]!r} "
                    f"and would not run again; resume with --from {step}, or leave {name} as it was"
                )
    return {step: facts["steps"][step] for step in kept}


def _before(from_step: str) -> tuple[str, ...]:
    return STEPS[: STEPS.index(from_step)] if from_step else ()


def _runs(workspace: Path) -> str:
    return ", ".join(sorted(path.parent.name for path in workspace.glob("*/run.json"))[-10:]) or "none"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None  # a step's image holds what the step needs


def _git_commit() -> str | None:
    """Returns the commit of our own repository, with + where it was changed since; None where we are a package, even inside another repository."""
    root = Path(__file__).parents[1]
    try:
        described = subprocess.run(
            ["git", f"--git-dir={root}/.git", f"--work-tree={root}", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"],  # noqa: S607 - git is found on PATH
            check=False, capture_output=True, text=True,
        )  # fmt: skip
    except FileNotFoundError:
        return None
    return described.stdout.strip() or None
