"""The settings of the deploy step, and the chart's values for a run's model."""

import hashlib
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, model_validator

from pipelines.cluster import go_yaml
from server.cli import Settings
from server.errors import UserError

_NAME = r"[a-z0-9]([a-z0-9-]*[a-z0-9])?"
_RENAMED = {"agreement": "min_agreement", "texts": "verify_texts"}


class DeployConfig(Settings):
    backend: Literal["local", "helm"] = "helm"
    """Server that the deploy step brings to the new model: one in the step itself, for a moment (local), or that of a Helm release (helm)."""

    release: str = Field(default="distrinews", pattern=f"^{_NAME}$", max_length=50)
    """Name of the Helm release of the server."""

    namespace: str = Field(default="", pattern=f"^({_NAME})?$", max_length=63)
    """Namespace of the release, in which the claim has to be too. By default that of the step's own pod."""

    claim: str = Field(default="distrinews-workspace", min_length=1)
    """Claim of the volume with the runs, from which the server's pods mount the model."""

    mount_path: str = Field(default="/workspace", pattern="^/.+")
    """Folder where the step has that volume."""

    server_image: str = ""
    """Image of the server, with a tag or a digest. By default the one that the release has, or else the chart's."""

    values: str = ""
    """Values of the chart, as YAML; they win over those in values_file."""

    values_file: str = ""
    """YAML file with values of the chart, on the volume or in the image."""

    existing_values: Literal["keep", "drop"] = "keep"
    """Treatment of values that the release has and that are not set here, such as an Ingress or allowed callers."""

    timeout_minutes: float = Field(default=10, gt=0, le=24 * 60)
    """Minutes in which the new pods have to be ready and the old ones gone."""

    verify_texts: int = Field(default=50, ge=1, le=1000)
    """Test texts at most whose labels the new server is asked for."""

    min_agreement: float = Field(default=0.9, ge=0, le=1)
    """Share of them, from 0 to 1, that has to get the label that evaluate gave; int8 may take a close one for another. Below it, the release is rolled back."""

    url: str = Field(default="", pattern="^(https?://.+)?$")
    """Address at which the server is verified. By default its Service's name inside the cluster."""

    api_key_file: str = ""
    """File with an API key of the server. By default the variable DISTRINEWS_API_KEY, or the Secret that the chart's `helm test` uses."""

    chart: str = ""
    """Folder of the chart. By default the one that came with this package."""

    helm: str = "helm"
    """The program Helm, 4.1 or newer."""

    @model_validator(mode="before")
    @classmethod
    def _reject_old_names(cls, values: object) -> object:
        for old in values if isinstance(values, dict) else ():
            if old in _RENAMED:
                raise ValueError(f"{old} is now {_RENAMED[old]}")
        return values


def model_values(model: Path, *, version: str, config: DeployConfig) -> dict[str, Any]:
    """Returns the chart's values for a model folder on the claim, and for the image where one is set."""
    try:
        folder = model.relative_to(config.mount_path)
    except ValueError as error:
        raise UserError(
            f"{model} is not in {config.mount_path}, where the claim {config.claim} is mounted: set mount_path"
        ) from error
    manifest = model / "onnx" / "manifest.json"
    if not manifest.is_file():
        raise UserError(f"{manifest} is missing: there is nothing to serve before the export step")
    values = {
        "uri": f"pvc://{config.claim}/{folder.as_posix()}",
        "sha256": hashlib.sha256(manifest.read_bytes()).hexdigest(),
        "version": version.rstrip("._-"),  # a label of the pods, which ends in a letter or a digit
        "imagePath": "",
    }
    return {"model": values, **({"image": _image(config.server_image)} if config.server_image else {})}


def values_files(config: DeployConfig, model: dict[str, Any], folder: Path) -> list[Path]:
    """Returns the files that Helm merges, the last one winning; writes into a folder what is no file yet."""
    try:
        values = yaml.load(config.values, Loader=go_yaml.Loader) or {}  # noqa: S506 - it is a SafeLoader
    except yaml.YAMLError as error:
        raise UserError(f"values: is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"values: holds a {type(values).__name__}, not values by name, such as replicas: 3")
    if config.values_file and not Path(config.values_file).is_file():
        raise UserError(f"values_file {config.values_file}: no such file")
    files = [Path(config.values_file)] if config.values_file else []
    for name, content in (("values", config.values), ("model", go_yaml.dump(model))):
        files.append(folder / f"{name}.yaml")
        files[-1].write_text(content, encoding="utf-8")
    return files


def _image(reference: str) -> dict[str, str]:
    name, _, digest = reference.partition("@")
    folder, slash, last = name.rpartition("/")
    last, _, tag = last.partition(":")
    if not (tag or digest):
        raise UserError(f"server_image {reference!r} names no version: add a tag or a digest")
    return {"repository": f"{folder}{slash}{last}", "tag": tag, "digest": digest}
