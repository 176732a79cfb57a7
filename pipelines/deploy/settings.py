"""Every setting of the deploy step on a cluster: its meaning, unit and range."""

from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from server.cli import Settings

_NAME = r"[a-z0-9]([a-z0-9-]*[a-z0-9])?"


class DeployConfig(Settings):
    release: str = Field(default="distrinews", pattern=f"^{_NAME}$", max_length=50)
    """Name of the Helm release of the server."""

    namespace: str = Field(default="", pattern=f"^({_NAME})?$", max_length=63)
    """Namespace of the release, in which the claim has to be too. By default that of the step's own pod."""

    claim: str = Field(default="distrinews-workspace", min_length=1)
    """Claim of the volume with the runs, from which the server's pods mount the model."""

    mount_path: str = Field(default="/workspace", pattern="^/.+")
    """Where the step has that volume."""

    server_image: str = ""
    """Image of the server, with a tag or a digest. By default that which the release has, or else the chart's."""

    values: str = ""
    """Values of the chart, as YAML; they win over those in values_file."""

    values_file: str = ""
    """YAML file with values of the chart, on the volume or in the image."""

    existing_values: Literal["keep", "drop"] = "keep"
    """Whether values that the release has now stay where nothing is said here: those that others set, such as an Ingress or who may call."""

    timeout_minutes: float = Field(default=10, gt=0, le=24 * 60)
    """Minutes in which the new pods have to be ready and the old ones gone."""

    texts: int = Field(default=50, ge=1, le=1000)
    """Test texts at most that the new server is asked."""

    agreement: float = Field(default=0.9, ge=0, le=1)
    """Share of these, from 0 to 1, that has to get the label that evaluate gave; else the release goes back."""

    url: str = Field(default="", pattern="^(https?://.+)?$")
    """Where the server is asked. By default its Service's name inside the cluster."""

    api_key_file: str = ""
    """File with an API key of the server. By default the variable DISTRINEWS_API_KEY, or the Secret that the chart's `helm test` uses."""

    chart: str = ""
    """Folder of the chart. By default the one that came with this package."""

    helm: str = "helm"
    """The program Helm, 3.13 or newer."""


class Credentials(BaseSettings):
    """What reaches the step by its environment alone."""

    model_config = SettingsConfigDict(frozen=True, env_prefix="DISTRINEWS_", extra="ignore")

    api_key: SecretStr | None = None
