"""The form that the pipeline has in the Kubeflow UI: every setting of a run, grouped by the first word of its name."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

from pydantic.fields import FieldInfo

from pipelines import PIPELINES, TRAINER
from pipelines.cluster_config import GROUPS as CLUSTER_GROUPS
from pipelines.cluster_config import ClusterConfig
from pipelines.deploy.settings import DeployConfig
from pipelines.job.settings import Deadlines, JobConfig
from pipelines.run_folder import STEPS, start_run
from server.cli import Settings, build, choices, describe, fail
from server.errors import UserError
from trainer.config import GROUPS, RunConfig, S, own_fields

WORKSPACE = "/workspace"
"""Where the steps' pods have the shared volume."""

_OF_THE_RUN = {
    "run_workspace": (
        WORKSPACE,
        f"Folder in which each run has a folder of its own; on a cluster {WORKSPACE}, where the shared volume is mounted.",
    ),
    "run_name": ("", "Name of the run's folder; empty for the id that Kubeflow gives it."),
    "run_from_step": (
        "",
        f"Step to go on from in an earlier run of this name: {', '.join(STEPS)}; empty for a new run.",
    ),
    "run_claim": (
        "distrinews-workspace",
        "Claim of the shared volume, which many nodes can write to; the chart helm/training makes it.",
    ),
    "run_trainer_image": (TRAINER, "Image of the steps that read data or run the model, and of the training job."),
    "run_pipelines_image": (PIPELINES, "Image of the steps that speak with the cluster."),
    "run_launch": ("job", f"{describe(ClusterConfig.model_fields['launch'])} One of: here, job."),
    "run_deploy": ("helm", f"{describe(ClusterConfig.model_fields['deploy'])} One of: here, helm."),
}


class Entry(NamedTuple):
    """A field of the form: `default` is of its type; an empty text or 0 stands for a setting that is left out."""

    name: str
    field: str
    default: str | int | float | bool
    help: str


def entries() -> list[Entry]:
    """One field for each setting of a run, in their groups."""
    return [_entry(RunConfig, group, name) for group in GROUPS for name in own_fields(group)]


def cluster_entries(group: str) -> list[Entry]:
    """One field for each setting of one kind that only a cluster has."""
    settings, names = CLUSTER_GROUPS[group]
    return [_entry(settings, group, name) for name in names]


def _all_entries() -> list[Entry]:
    return [*entries(), *(entry for group in CLUSTER_GROUPS for entry in cluster_entries(group))]


def signature() -> inspect.Signature:
    """The pipeline's parameters, typed, with their defaults."""
    fields = {
        **{name: default for name, (default, _) in _OF_THE_RUN.items()},
        **{entry.name: entry.default for entry in _all_entries()},
    }
    return inspect.Signature(
        [
            inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=type(default))
            for name, default in fields.items()
        ]
    )


def docstring(summary: str) -> str:
    """What Kubeflow reads the descriptions of the parameters from."""
    described = {
        **{name: text for name, (_, text) in _OF_THE_RUN.items()},
        **{entry.name: entry.help for entry in _all_entries()},
    }
    return "\n".join([summary, "", "Args:", *(f"    {name}: {text}" for name, text in described.items())])


def fill(config: RunConfig) -> dict[str, str | int | float]:
    """The form filled in with these settings."""
    filled: dict[str, str | int | float] = {}
    for entry in entries():
        value = getattr(config, entry.field)
        value = ",".join(value) if isinstance(value, tuple) else value
        filled[entry.name] = _left_out(entry) if value is None else type(entry.default)(value)
    return filled


def read(form: Mapping[str, Any]) -> RunConfig:
    """The settings that a filled form holds; UserError of one line when they are wrong."""
    return _build(RunConfig, entries(), form)


def read_cluster(form: Mapping[str, Any]) -> ClusterConfig:
    """What a filled form says of the cluster; UserError of one line when it is wrong."""
    volume = {"claim": form["run_claim"], "mount_path": form["run_workspace"]}
    found: dict[str, Any] = {"launch": form["run_launch"], "deploy": form["run_deploy"]}
    if found["launch"] == "job":
        pods = volume | {"image": form["run_trainer_image"]}
        found["job"] = _build(JobConfig, cluster_entries("job"), form, pods)
        found["deadlines"] = _build(Deadlines, cluster_entries("deadline"), form)
    if found["deploy"] == "helm":
        found["release"] = _build(DeployConfig, cluster_entries("deploy"), form, volume)
    return build(ClusterConfig, found)


def _build(
    settings: type[S], fields: Sequence[Entry], form: Mapping[str, Any], given: Mapping[str, Any] | None = None
) -> S:
    """Settings of the fields that are filled in; empty or 0 is none, where a setting may be none."""
    filled = {entry.field: form[entry.name] for entry in fields}
    empty = {name for name, value in filled.items() if value in ("", 0) and _may_be_none(settings.model_fields[name])}
    return build(settings, filled | dict.fromkeys(empty) | dict(given or {}))


def start_from_form(form: Mapping[str, Any]) -> str:
    """Check a filled form and make the folder of its run; returns the folder."""
    try:
        folder = run_folder(form["run_workspace"], form["run_name"], form["run_id"])
        config, cluster = read(form), read_cluster(form)
        run = start_run(config, folder, from_step=form["run_from_step"], cluster=cluster, run_id=form["run_id"])
        return str(run.folder)
    except UserError as error:
        fail("settings", error)


def run_folder(workspace: str, name: str, run_id: str) -> Path:
    return Path(workspace).absolute() / (name or run_id)


def _entry(settings: type[Settings], group: str, name: str) -> Entry:
    field = settings.model_fields[name]
    kind = next((kind for kind in (bool, int, float) if kind in (field.annotation, *get_args(field.annotation))), str)
    default = field.get_default(call_default_factory=True)
    text = describe(field) + (f" One of: {', '.join(choices(field))}." if choices(field) else "")
    empty = "Empty" if kind is str else "0"
    if default is None:
        text += f" {empty} for the default."
    elif _may_be_none(field):
        text += f" {empty} for none."
    given = ",".join(default) if isinstance(default, tuple) else default
    return Entry(name if name.startswith(group) else f"{group}_{name}", name, kind(given) if given else kind(), text)


def _may_be_none(field: FieldInfo) -> bool:
    return type(None) in get_args(field.annotation)


def _left_out(entry: Entry) -> str | int | float:
    return type(entry.default)()
