"""The values of the chart with which a run's model is served."""

import hashlib
from pathlib import Path
from typing import Any

import yaml

from pipelines.deploy.settings import DeployConfig
from pipelines.job.settings import Object
from pipelines.run_folder import RunFolder
from server.errors import UserError


def model_values(run: RunFolder, config: DeployConfig) -> Object:
    """The model of a run on its claim, as the chart takes it, and the image where one is set."""
    try:
        folder = run.model.relative_to(config.mount_path)
    except ValueError as error:
        raise UserError(
            f"{run.model} is not in {config.mount_path}, where the claim {config.claim} is mounted: set mount_path"
        ) from error
    manifest = run.model / "onnx" / "manifest.json"
    if not manifest.is_file():
        raise UserError(f"{manifest} is missing: there is nothing to serve before the export step")
    model = {
        "uri": f"pvc://{config.claim}/{folder.as_posix()}",
        "sha256": hashlib.sha256(manifest.read_bytes()).hexdigest(),
        "version": run.name.rstrip("._-"),  # a label of the pods, which ends in a letter or a digit
        "imagePath": "",
    }
    return {"model": model, **({"image": _image(config.server_image)} if config.server_image else {})}


def own_values(config: DeployConfig) -> Object:
    """What the settings say: the file, and over it the text."""
    values: Object = {}
    if config.values_file:
        try:
            text = Path(config.values_file).read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"values_file {config.values_file}: cannot be read: {error.strerror}") from error
        values = _read(text, f"values_file {config.values_file}")
    return merged(values, _read(config.values, "values"))


def merged(*layers: Object) -> Object:
    """Values over values, as Helm merges them: maps key by key, anything else replaced."""
    result: Object = {}
    for layer in layers:
        for name, value in layer.items():
            both = isinstance(value, dict) and isinstance(result.get(name), dict)
            result[name] = merged(result[name], value) if both else value
    return result


def at(values: Object, path: str) -> Any:  # noqa: ANN401 - whatever a value is
    """The value at a path such as model.sha256; None where there is none."""
    found: Any = values
    for name in path.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _read(text: str, where: str) -> Object:
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{where}: is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{where}: holds a {type(values).__name__}, not values by name, such as replicas: 3")
    return values


def _image(reference: str) -> Object:
    name, _, digest = reference.partition("@")
    folder, slash, last = name.rpartition("/")
    last, _, tag = last.partition(":")
    if not (tag or digest):
        raise UserError(f"server_image {reference!r} names no version: add a tag or a digest")
    return {"repository": f"{folder}{slash}{last}", "tag": tag, "digest": digest}
