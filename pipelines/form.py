"""The form that the pipeline has in the Kubeflow UI: every setting of a run, grouped by the first word of its name."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

from pipelines.images import PIPELINES, TRAINER
from pipelines.record import STEPS, start_run
from trainer.config import GROUPS, RunConfig, own_fields
from trainer.errors import UserError
from trainer.flags import build, choices, describe, fail

WORKSPACE = "/workspace"
"""Where the steps' pods have the shared volume."""

_OF_THE_RUN = {
    "run_workspace": (
        WORKSPACE,
        f"Folder in which each run has a folder of its own; on a cluster {WORKSPACE}, where the shared volume is mounted, or a folder in it.",
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
    "run_trainer_image": (TRAINER, "Image of the steps that read data or run the model."),
    "run_pipelines_image": (PIPELINES, "Image of the steps that speak with the cluster."),
}


class Entry(NamedTuple):
    """A field of the form: `default` is of its type; an empty text or 0 stands for a setting that is left out."""

    name: str
    field: str
    default: str | int | float
    help: str


def entries() -> list[Entry]:
    """One field for each setting of a run, in their groups."""
    return [_entry(group, name) for group in GROUPS for name in own_fields(group)]


def signature() -> inspect.Signature:
    """The pipeline's parameters, typed, with their defaults."""
    fields = {
        **{name: default for name, (default, _) in _OF_THE_RUN.items()},
        **{entry.name: entry.default for entry in entries()},
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
        **{entry.name: entry.help for entry in entries()},
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
    values = {entry.field: form[entry.name] for entry in entries()}
    optional = {name for name, field in RunConfig.model_fields.items() if field.default is None}
    return build(
        RunConfig, {name: value for name, value in values.items() if name not in optional or value not in ("", 0)}
    )


def start_from_form(form: Mapping[str, Any]) -> str:
    """Check a filled form and make the folder of its run; returns the folder."""
    try:
        folder = run_folder(form["run_workspace"], form["run_name"], form["run_id"])
        return str(start_run(read(form), folder, from_step=form["run_from_step"]).folder)
    except UserError as error:
        fail("settings", error)


def run_folder(workspace: str, name: str, run_id: str) -> Path:
    return Path(workspace).absolute() / (name or run_id)


def _entry(group: str, name: str) -> Entry:
    field = RunConfig.model_fields[name]
    kind = next((kind for kind in (int, float) if kind in (field.annotation, *get_args(field.annotation))), str)
    default = ",".join(field.default) if isinstance(field.default, tuple) else field.default
    text = describe(field) + (f" One of: {', '.join(choices(field))}." if choices(field) else "")
    left_out = "" if field.default is not None else f" {'Empty' if kind is str else 0} for the default."
    return Entry(
        name if name.startswith(group) else f"{group}_{name}",
        name,
        kind() if default is None else kind(default),
        text + left_out,
    )


def _left_out(entry: Entry) -> str | int | float:
    return type(entry.default)()
