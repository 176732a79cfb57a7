"""The parameters of the pipeline, as its form in the Kubeflow UI has them, to the settings of a run and back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic_settings import BaseSettings, SettingsConfigDict

from pipelines.run_folder import RunFolder, RunSettings, start_run
from server.cli import build, fail
from server.errors import UserError
from server.files import read_file

WORKSPACE = "/workspace"
"""Mount path of the shared volume in the pods of the steps."""

_DEFAULTS = RunSettings()
_PATHS = {name: name for name in (
    "data", "text_column", "label_column", "model", "epochs", "batch_size", "learning_rate", "min_accuracy", "backend",
)} | {"nodes": "job.nodes", "gpus": "job.gpus", "release": "deploy.release"}  # fmt: skip
"""Parameters with a field of their own in the form, and the settings that they are; all others are in `settings`."""


class Environment(BaseSettings):
    """The environment of a step."""

    model_config = SettingsConfigDict(frozen=True, env_prefix="DISTRINEWS_", extra="ignore")

    workspace: Path = Path(WORKSPACE)
    """Folder with the runs; `distrinews run` sets it, on a cluster it is where the volume is mounted."""


def to_parameters(settings: RunSettings) -> dict[str, Any]:
    """Returns the parameters that give a run what is set here; all else is as in the form, or as in the run that is resumed.

    A field of the form with its default counts as left out, so that a setting with this value goes into `settings`.
    """
    dump = settings.model_dump(mode="json", exclude_unset=True, include=set(RunSettings.model_fields))
    given = {name: value for name, value in dump.items() if value is not None}  # kfp.local takes no null
    parameters: dict[str, Any] = {}
    for name, path in _PATHS.items():
        group, _, field = path.rpartition(".")
        section = given.get(group, {}) if group else given
        value = section.get(field)
        if value not in (None, [], _default(path)):
            parameters[name] = ",".join(value) if isinstance(value, list) else value
            del section[field]
    return parameters | {"settings": given}


def from_parameters(given: Mapping[str, Any], *, earlier: Mapping[str, Any] | None = None) -> RunSettings:
    """Returns the settings of a run: those of the run that is resumed, then `settings`, then the fields that were changed.

    `config` in `settings` is a file with more of them, for what is too long for a command.
    """
    wanted = dict(given["settings"])
    if file := wanted.pop("config", None):
        wanted = _merged(read_file(Path(file)), wanted)
    for name, path in _PATHS.items():
        default = _default(path)
        if given[name] == default or (default in (None, ()) and not given[name]):
            continue  # the field was left out
        group, _, field = path.rpartition(".")
        wanted = _merged(wanted, {group: {field: given[name]}} if group else {field: given[name]})
    values = _merged(earlier or _DEFAULTS.model_dump(mode="json"), wanted)
    volume = {"claim": given["claim"], "mount_path": str(Environment().workspace)}
    if values["backend"] != "local":
        values = _merged(values, {"job": volume | {"image": given["trainer_image"]}})
    if values["deploy"]["backend"] != "local":
        values = _merged(values, {"deploy": volume})
    return build(RunSettings, _merged(values, wanted))


def start_from_parameters(given: Mapping[str, Any]) -> str:
    """Checks the parameters of a run and makes its folder, or resumes it; returns the folder."""
    folder = run_folder(given["run_name"], given["run_id"])
    try:
        resumed = given["from_step"] and (folder / "run.json").is_file()
        settings = from_parameters(given, earlier=RunFolder(folder).facts["settings"] if resumed else None)
        return str(start_run(settings, folder, from_step=given["from_step"], run_id=given["run_id"]).folder)
    except UserError as error:
        fail("start", error)


def run_folder(name: str, run_id: str) -> Path:
    return Environment().workspace.absolute() / (name or run_id)


def _default(path: str) -> object:
    group, _, field = path.rpartition(".")
    return getattr(getattr(_DEFAULTS, group) if group else _DEFAULTS, field)


def _merged(values: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `values` with those in `over` put over them, in the groups of settings too."""
    merged = {**values, **over}
    for group in {"job", "deadlines", "deploy"} & values.keys() & over.keys():
        if not isinstance(over[group], Mapping):
            raise UserError(f"{group} = {over[group]!r}: is a group of settings, such as {{{group}: {{name: value}}}}")
        merged[group] = {**values[group], **over[group]}
    return merged
