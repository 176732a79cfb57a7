"""The folder of a run and its run.json: settings, versions, what each step did and how long it took."""

import importlib.metadata
import json
import platform
import re
import subprocess
import time
from pathlib import Path
from typing import Any

from pipelines.cluster_config import ClusterConfig
from server.cli import Settings, build
from server.errors import UserError
from server.files import write_json
from trainer.config import EvaluateConfig, ExportConfig, GateConfig, PreprocessConfig, RunConfig, TrainConfig

STEPS = ("preprocess", "train", "evaluate", "gate", "export", "deploy")
_SETTINGS_OF: dict[str, type[Settings]] = {
    "preprocess": PreprocessConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "gate": GateConfig,
    "export": ExportConfig,
}
_VERSIONS = ("distrinews", "kfp", "torch", "transformers", "tokenizers", "datasets", "onnxruntime")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class RunFolder:
    """A run folder; what it holds is read anew each time, for every step is a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.workspace, self.name = folder, folder.parent, folder.name
        self.dataset = folder / "dataset"
        self.model = folder / "model"

    @property
    def facts(self) -> dict[str, Any]:
        try:
            facts: dict[str, Any] = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise UserError(
                f"{self.folder}: is no run, it has no run.json; the runs in {self.workspace} are {_runs(self.workspace)}"
            ) from error
        return facts

    @property
    def config(self) -> RunConfig:
        return build(RunConfig, self.facts["settings"])

    @property
    def cluster(self) -> ClusterConfig:
        """What the run sets on a cluster; by default everything is done here."""
        return build(ClusterConfig, self.facts.get("cluster", {}))

    def is_kept(self, step: str) -> bool:
        """Whether what this step made earlier is used, because the run goes on from a later one."""
        return step in _before(self.facts["from_step"])

    def update_step(self, step: str, **values: Any) -> None:  # noqa: ANN401 - whatever JSON takes
        """Add what is known of a step."""
        facts = self.facts
        facts["steps"].setdefault(step, {}).update(values)
        write_json(self.folder / "run.json", facts)


def start_run(
    config: RunConfig, folder: Path, *, from_step: str = "", cluster: ClusterConfig | None = None, run_id: str = ""
) -> RunFolder:
    """Make the folder of a new run, or go on in that of an earlier one; UserError when the steps before `from_step` do not fit."""
    if not _NAME.fullmatch(folder.name):
        raise UserError(
            f"--name {folder.name!r}: a run is named by 1 to 63 letters, digits, dots, dashes and underscores"
        )
    if from_step and from_step not in STEPS:
        raise UserError(f"--from {from_step}: is no step; the steps are {', '.join(STEPS)}")
    run = RunFolder(folder)
    steps: dict[str, Any] = {}
    if (folder / "run.json").is_file():
        if not from_step:
            raise UserError(
                f"--name {folder.name}: {folder} is there already; give another name, or go on in it with --from STEP"
            )
        steps = _kept_steps(run, config, from_step)
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
        "settings": config.model_dump(mode="json"),
        "cluster": (cluster or ClusterConfig()).model_dump(mode="json"),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _VERSIONS}},
        "git_commit": _git_commit(),
        "steps": steps,
    }
    write_json(folder / "run.json", facts)
    return run


def _kept_steps(run: RunFolder, config: RunConfig, from_step: str) -> dict[str, Any]:
    """What the steps before `from_step` did; each has to have succeeded, and with the same settings."""
    kept = _before(from_step)
    before, now = run.config.model_dump(), config.model_dump()
    for step in kept:
        if run.facts["steps"].get(step, {}).get("status") != "succeeded":
            raise UserError(
                f"--from {from_step}: step {step} of {run.name} has not succeeded; go on with --from {step}"
            )
        for name in _SETTINGS_OF[step].model_fields:
            if now[name] != before[name]:
                raise UserError(
                    f"--from {from_step}: {name} is now {now[name]!r}, but step {step} of {run.name} ran with {before[name]!r} "
                    f"and would not run again; go on with --from {step}, or leave {name} as it was"
                )
    return {step: run.facts["steps"][step] for step in kept}


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
    """The commit of the project's own source tree, with + where it was changed since; None where it is installed from a package."""
    source = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "-C", str(source), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"],  # noqa: S607 - git is where PATH says
            check=False, capture_output=True, text=True,
        )  # fmt: skip
    except FileNotFoundError:
        return None
    return described.stdout.strip() or None
