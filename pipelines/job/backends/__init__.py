"""The kinds of training jobs behind one interface, and the manifest of a run made through it."""

import hashlib
import json
import re
from dataclasses import dataclass, field
from importlib import import_module
from typing import Literal, Protocol

from pipelines.job.pod import RUN_LABEL, PodOverrides, TaskOverrides, pod_overrides
from pipelines.job.settings import JobConfig, Object, StepPod
from server.errors import UserError
from trainer.config import TrainConfig

MANAGED_BY_LABEL = ("app.kubernetes.io/managed-by", "distrinews")
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
FOLDER_ANNOTATION = "distrinews.io/folder"
"""Annotation with the claim and the name of the run's folder on it."""
LAUNCHER_ANNOTATION = "distrinews.io/step-pod"
"""Annotation with the name and uid of the pod whose launcher created the job."""
_SLUG = 32


@dataclass(frozen=True)
class State:
    """The phase of a job, read from its conditions."""

    phase: Literal["waiting", "running", "succeeded", "failed"]
    reason: str = ""
    message: str = ""
    suspended: bool = False

    @property
    def is_final(self) -> bool:
        return self.phase in ("succeeded", "failed")


@dataclass(frozen=True)
class Pods:
    """The number of pods that a job has, and of those without which it does not train."""

    expected: int
    needed: int


@dataclass(frozen=True)
class Meta:
    """Name, namespace, labels and annotations of a job, and the pod that owns it."""

    name: str
    namespace: str | None
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    owner: StepPod | None = None


class Backend(Protocol):
    """A kind of job: its names, its manifest, and the state of its objects."""

    group: str
    version: str
    plural: str
    kind: str
    container: str
    max_name: int
    install: str

    def manifest(self, pod: PodOverrides, job: JobConfig, meta: Meta, *, min_nodes: int) -> Object: ...
    def template(self, job: Object) -> Object: ...
    def state(self, job: Object) -> State: ...
    def finished_at(self, job: Object) -> str | None: ...
    def pods(self, job: Object) -> Pods: ...
    def selector(self, name: str) -> str: ...
    def rank(self, pod: Object) -> str: ...
    def owns(self, name: str, *, job: str) -> bool: ...


def backend(name: str) -> Backend:
    """Returns a kind of job by its name in the settings."""
    if name != "pytorchjob":
        raise UserError(f"backend {name!r} runs no jobs on a cluster; the one that does is pytorchjob")
    found: Backend = import_module(f"pipelines.job.backends.{name}").BACKEND
    return found


def manifest_of_run(
    kind: Backend, job: JobConfig, train: TrainConfig, *, run: str, step: str = "train", namespace: str | None = None,
    task: TaskOverrides | None = None, owner: StepPod | None = None,
) -> Object:  # fmt: skip
    """Returns the manifest of the job that trains a run, whose folder is <mount_path>/<run>."""
    task = task or TaskOverrides()
    label = {RUN_LABEL: slug(run, 63)}
    labels = dict([MANAGED_BY_LABEL]) | label | ({QUEUE_LABEL: job.queue} if job.queue else {})
    pod = pod_overrides(job, train, run=run, task=task, labels=label)
    annotations = {LAUNCHER_ANNOTATION: f"{owner.pod_name}/{owner.pod_uid}"} if owner and owner.pod_uid else {}
    name = _job_name(run, step, job, train, task, max_name=kind.max_name)
    meta = Meta(name, namespace, labels, annotations, owner if annotations else None)
    # A job with fewer pods would refuse the checkpoint unless a changed world is allowed.
    manifest = kind.manifest(pod, job, meta, min_nodes=1 if train.allow_changed_world else job.nodes)
    (claim, *_) = claims(kind, manifest) or [""]
    manifest["metadata"]["annotations"] = {**annotations, FOLDER_ANNOTATION: f"{claim}/{run}"}
    return manifest


def claims(kind: Backend, manifest: Object) -> list[str]:
    """Returns the claims of a job's pods, that of the runs first."""
    volumes = kind.template(manifest)["spec"].get("volumes") or []
    names = [(volume.get("persistentVolumeClaim") or {}).get("claimName") for volume in volumes]
    return list(dict.fromkeys(name for name in names if name))


def slug(text: str, longest: int) -> str:
    """Returns a text as a value that labels and names may have."""
    return re.sub("[^a-z0-9]+", "-", text.lower())[:longest].strip("-")


def _job_name(run: str, step: str, job: JobConfig, train: TrainConfig, task: TaskOverrides, *, max_name: int) -> str:
    """Returns the same name for the same run, step and settings, and another for any other."""
    spec = job.model_dump(mode="json", exclude={"keep_failed"})  # it does not reach the cluster
    identity = [run, step, spec, train.model_dump(mode="json"), task.model_dump(mode="json")]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    return f"{slug(f'{step}-{run}', min(max_name - len(digest) - 1, _SLUG))}-{digest}"
