"""Every setting of the server: its meaning, unit and range. Variables, flags and `--help` derive from here."""

import difflib
import os
import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from server.cpus import available_cpus

EngineName = Literal["auto", "openvino", "onnx", "onnx-fp32"]
PREFIX = "DISTRINEWS_"
_NOT_OURS = {"DISTRINEWS_TERMINAL", "DISTRINEWS_API_KEY"}  # read by the command line, which may start the server
_SERVICE_LINK = re.compile(
    r"DISTRINEWS_(\w+_)?(SERVICE_HOST=.*|SERVICE_PORT(_\w+)?=.*|PORT=\w+://.*|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?=.*)"
)


def _metrics_port(data: dict[str, Any]) -> int:
    port: int = data["port"]
    return port and (port + 1000 if port <= 64_535 else port - 1000)


class Settings(BaseSettings):
    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_prefix=PREFIX, use_attribute_docstrings=True)

    host: str = Field(default="127.0.0.1", min_length=1)
    """Address to listen on; 0.0.0.0 is every one of this machine."""

    port: int = Field(default=8080, ge=0, le=65535)
    """Port to listen on, up to 65535; 0 takes a free one, which the first line of output names. Without this setting, that of the variable PORT, which hosts such as Hugging Face Spaces set."""

    metrics_port: Annotated[int, Field(ge=0, le=65535)] | Literal["off"] = Field(default_factory=_metrics_port)
    """Port at which Prometheus finds /metrics: by default 1,000 above --port (9080), 0 for a free one, which the first line of output names, or off."""

    engine: EngineName = "auto"
    """What runs the model: openvino (int8, the fastest in batches), onnx (int8, the smallest), or the same in fp32; auto takes the first of them that is installed and in the folder."""

    workers: int = Field(default_factory=available_cpus, ge=1, le=256)
    """Batches computed at the same time, one thread each, 1 to 256. By default the CPUs that this process may use."""

    max_text_characters: int = Field(default=10_000, ge=1, le=1_000_000)
    """Characters of a text at most, 1 to 1,000,000; a longer one is refused. The model reads only its first tokens."""

    max_batch_texts: int = Field(default=64, ge=1, le=1024)
    """Texts of one request at most, 1 to 1024; a request with more is refused."""

    max_queued_texts: int = Field(default=512, ge=1, le=1_000_000)
    """Texts that may wait, up to 1,000,000; a request for which there is no room is refused with 429."""

    max_queued_tokens: int = Field(default=32_768, ge=64, le=100_000_000)
    """Tokens of waiting texts, 64 to 100,000,000; a request for which there is no room is refused with 429."""

    timeout_seconds: float = Field(default=10.0, gt=0, le=3600)
    """Seconds that a request may take, up to 3600, where its header X-Request-Timeout-Ms says nothing else."""

    model_name: str = Field(default="distrinews", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    """Name of the model under /v2/models, as clients of KServe and Triton ask for it: letters, digits, dots, _ and -."""

    model_version: str = Field(default="1", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    """Version of the model under /v2/models, of the same characters."""

    drain_seconds: float = Field(default=5.0, ge=0, le=600)
    """Seconds, up to 600, for which a server that is told to stop still answers, while others learn that it is not ready."""

    log_level: Literal["debug", "info", "warning", "error"] = "warning"
    """The least severe messages that are written; info adds a line for each request."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - as the library calls it
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - as the library calls it
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, _PortOfTheHost(settings_cls)

    @model_validator(mode="after")
    def _every_variable_names_a_setting(self) -> Self:
        known = [PREFIX + name.upper() for name in Settings.model_fields]
        for variable, value in os.environ.items():
            if not variable.upper().startswith(PREFIX) or variable.upper() in {*known, *_NOT_OURS}:
                continue
            # A Service whose name begins with distrinews makes variables in every pod of its namespace.
            if not _SERVICE_LINK.fullmatch(f"{variable}={value}"):
                near = difflib.get_close_matches(variable.upper(), known, n=1, cutoff=0)
                raise ValueError(f"the environment variable {variable} names no setting; the nearest is {near[0]}")
        return self


class _PortOfTheHost(PydanticBaseSettingsSource):
    """The variable PORT, by which many hosts tell a container where to listen."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        raise NotImplementedError  # only asked by the sources that look for every field

    def __call__(self) -> dict[str, Any]:
        return {"port": port} if (port := os.environ.get("PORT")) else {}
