"""Settings of a training job on a cluster, with meaning, unit and range."""

import re
from functools import partial
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from pipelines import TRAINER
from server.cli import Environment, Names, Settings

Object = dict[str, Any]


def _pairs(value: object, *, separator: str = ",") -> object:
    if isinstance(value, str):
        pairs = [pair.rstrip(", ").partition("=") for pair in re.split(separator, value) if pair.strip(", ")]
        if bad := [name for name, sign, _ in pairs if not (name.strip() and sign)]:
            raise ValueError(f"{bad[0]!r} is no name=value; write name=value,other=value")
        return {name.strip(): text.strip() for name, _, text in pairs}
    return value


def _tolerations(value: object) -> object:
    if isinstance(value, str):
        return tuple(_toleration(part.strip()) for part in value.split(",") if part.strip())
    return value


def _toleration(text: str) -> Object:
    taint, _, effect = text.partition(":")
    key, sign, value = taint.partition("=")
    toleration = {"key": key, "operator": "Equal", "value": value} if sign else {"key": key, "operator": "Exists"}
    return toleration | ({"effect": effect} if effect else {})


Pairs = Annotated[dict[str, str], NoDecode, BeforeValidator(_pairs)]
Variables = Annotated[dict[str, str], NoDecode, BeforeValidator(partial(_pairs, separator=r",(?=[^,=]*=)"))]
"""Pairs whose values may have commas: only one with NAME= after it begins a new pair."""
Tolerations = Annotated[tuple[Object, ...], NoDecode, BeforeValidator(_tolerations)]


class JobConfig(Settings):
    """Settings of the job."""

    image: str = Field(default=TRAINER, min_length=1)
    """Image of the pods, with a tag or a digest."""

    nodes: int = Field(default=1, ge=1, le=1000)
    """Pods that train together: a Master and Workers, or Workers alone where the job is elastic."""

    gpus: int = Field(default=0, ge=0, le=16)
    """GPUs of each pod, with a process for each; 0 trains on CPUs."""

    gpu_resource: str = "nvidia.com/gpu"
    """Name of the resource that is a GPU on the cluster."""

    processes: int = Field(default=1, ge=1, le=64)
    """Processes of each pod without GPUs."""

    elastic: bool = False
    """Run Workers alone, which rendezvous again when some are lost, and with allow_changed_world train without those; needed under Pod Security `restricted`, and on spot nodes."""

    cpu: str | None = None
    """Cores of each pod, such as 4 or 500m. By default as in manifests/."""

    memory: str | None = None
    """Memory of each pod, such as 16Gi. By default as in manifests/."""

    claim: str | None = None
    """Claim of the volume with the runs. By default as in manifests/."""

    mount_path: str = Field(default="/workspace", pattern="^/.+")
    """Path at which that volume is mounted in the pods."""

    queue: str | None = None
    """Kueue's queue that starts the job. By default it starts at once."""

    priority_class: str | None = None
    """Priority class of the pods."""

    service_account: str | None = None
    """Service account of the pods. By default as in manifests/."""

    image_pull_secrets: Names = ()
    """Secrets that the image is pulled with, with commas between them."""

    node_selector: Pairs = Field(default_factory=dict)
    """Labels that a node needs, as name=value with commas between them."""

    tolerations: Tolerations = ()
    """Taints that a node may have, as key:effect or key=value:effect with commas between them."""

    env: Variables = Field(default_factory=dict)
    """Environment of the processes, as NAME=value with commas between them; a value may have commas too; no secrets, which anyone who sees the job could read."""

    backoff_limit: int | None = Field(default=None, ge=0)
    """Restarts of all containers together after which the job has failed. By default as in manifests/."""

    keep_failed: bool = False
    """Keep a job that failed on the cluster, for inspection."""

    @model_validator(mode="after")
    def _shape(self) -> Self:
        if self.gpus and self.processes != 1:
            raise ValueError(f"processes = {self.processes} contradicts gpus = {self.gpus}: there is one for each GPU")
        if ":" not in self.image.rpartition("/")[2] and "@" not in self.image:
            raise ValueError(f"image = {self.image!r} names no version: add a tag or a digest")
        return self


class Deadlines(Settings):
    """Deadlines of the launcher."""

    schedule_minutes: float | None = Field(default=60, gt=0)
    """Minutes that pods may wait for a node, a queue or their image. Empty for no limit."""

    run_minutes: float | None = Field(default=24 * 60, gt=0)
    """Minutes that the job may take from its creation to its end. Empty for no limit."""

    progress_minutes: float | None = Field(default=30, gt=0)
    """Minutes that pods may run without progress. Empty for no limit."""

    def __str__(self) -> str:
        parts = [(self.schedule_minutes, "to be scheduled"), (self.run_minutes, "in all"), (self.progress_minutes, "without progress")]  # fmt: skip
        return ", ".join(f"{minutes:g} min {what}" if minutes else f"no limit {what}" for minutes, what in parts)


class StepPod(Environment):
    """The pod that the launcher runs in, from the environment that Kubeflow sets; empty elsewhere."""

    model_config = SettingsConfigDict(env_prefix="KFP_")

    pod_name: str = ""
    pod_uid: str = ""
