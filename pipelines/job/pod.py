"""The PyTorchJob of a run: the manifest that `kubectl apply` takes, with what a run sets filled in."""

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any

import yaml
from kubernetes.client import V1Container, V1EnvVar, V1LocalObjectReference, V1OwnerReference, V1PodSpec

from pipelines import data_folder
from pipelines.job.backends import pytorchjob as kind
from pipelines.job.document import Document
from pipelines.job.patches import apply_patch
from pipelines.job.schema import check_schema
from pipelines.job.settings import JobConfig, Object, PodExtras, StepPod
from server.cli import as_flags
from server.errors import UserError
from trainer.config import TrainConfig

MANAGED_BY = ("app.kubernetes.io/managed-by", "distrinews")
RUN_LABEL = "distrinews.io/run"
STEP_POD = "distrinews.io/step-pod"
"""Annotation with the name and uid of the pod whose launcher made the job."""

_CLAIM_VOLUME = "workspace"
_SLUG = 32


def render(
    job: JobConfig,
    train: TrainConfig,
    *,
    run: str,
    step: str = "train",
    namespace: str | None = None,
    extras: PodExtras | None = None,
    owner: StepPod | None = None,
) -> Object:
    """The manifest of the job that trains this run, whose folder is <mount_path>/<run>."""
    extras = extras or PodExtras()
    name = job_name(run, step, job, train, extras)
    job = _with_gpus(job, extras)
    model = kind.read(_base(job))
    model.metadata.name = name
    model.metadata.namespace = namespace
    model.metadata.labels |= dict([MANAGED_BY]) | {RUN_LABEL: _slug(run, 63)}
    if job.queue:
        model.metadata.labels[kind.QUEUE_LABEL] = job.queue
    if owner and owner.pod_uid:
        own(model, owner)
    kind.shape(
        model,
        nodes=job.nodes,
        at_least=1 if train.allow_changed_world else job.nodes,  # others would refuse the checkpoint
        processes=job.gpus or job.processes,
        elastic=job.elastic,
        backoff_limit=job.backoff_limit,
    )
    folder = f"{job.mount_path}/{run}"
    args = ["--module", "trainer.train", f"--dataset={folder}/dataset", f"--output={folder}", *as_flags(train)]
    for template in kind.pod_templates(model):
        template.metadata.labels |= {RUN_LABEL: _slug(run, 63)}
        _fill(template.spec, job, args)
        _add(template.spec, extras)
    manifest: Object = kind.plain(model)
    _check(manifest)
    return manifest


def job_name(run: str, step: str, job: JobConfig, train: TrainConfig, extras: PodExtras) -> str:
    """The same for the same run, step and settings, another for any other; a name that services may bear."""
    spec = job.model_dump(mode="json", exclude={"keep_failed"})  # what does not reach the cluster makes no other job
    how = [run, step, spec, train.model_dump(mode="json"), extras.model_dump(mode="json")]
    digest = hashlib.sha256(json.dumps(how, sort_keys=True).encode()).hexdigest()[:8]
    room = kind.MAX_NAME - len(digest) - 1
    return f"{_slug(f'{step}-{run}', min(room, _SLUG))}-{digest}"


def own(model: kind.Job, owner: StepPod) -> None:
    """Let the job go when the step's pod goes, and note who follows it."""
    model.metadata.owner_references = [
        V1OwnerReference(api_version="v1", kind="Pod", name=owner.pod_name, uid=owner.pod_uid)
    ]
    model.metadata.annotations = {**(model.metadata.annotations or {}), STEP_POD: f"{owner.pod_name}/{owner.pod_uid}"}


def task_extras(task_config: object | None) -> PodExtras:
    """What a `kfp.dsl.TaskConfig` passes through from the task; under kfp.local, where there is none, nothing."""
    if task_config is None:
        return PodExtras()
    values = {name: getattr(task_config, name, None) for name in PodExtras.model_fields}
    return PodExtras(**{name: value for name, value in values.items() if value})


def _with_gpus(job: JobConfig, extras: PodExtras) -> JobConfig:
    """GPUs that are set on the Kubeflow task count as if they were set here: there is a process for each."""
    limits = (extras.resources or {}).get("limits") or {}
    names = [name for name, count in limits.items() if kind.gpus_of({"limits": {name: count}})]
    if not names:
        return job
    gpus = kind.gpus_of(extras.resources)
    if len(names) > 1 or job.gpus not in (0, gpus):
        raise UserError(
            f"the task asks for {', '.join(f'{limits[name]} {name}' for name in names)}, but gpus is {job.gpus}: set one of the two"
        )
    return job.model_copy(update={"gpus": gpus, "gpu_resource": names[0], "processes": 1})


def _base(job: JobConfig) -> Object:
    """The base manifest with the overlays that fit; Master and Worker, which an anchor makes one, are two from here on."""
    base: Object = json.loads(json.dumps(_load(kind.BASE)))
    for overlay in [name for name, wanted in (("gpu", job.gpus), ("elastic", job.elastic)) if wanted]:
        before = list(kind.pod_specs(base)[0].get("tolerations", []))
        apply_patch(base, json.loads(json.dumps(_load(f"overlays/{overlay}/patch.yaml"))))
        for pod in kind.pod_specs(base):
            pod["tolerations"] = [*before, *(new for new in pod.get("tolerations", []) if new not in before)]
    return base


def _load(name: str) -> Any:  # noqa: ANN401 - whatever the file holds
    file = data_folder("manifests") / name
    if not file.is_file():
        raise UserError(f"{file} is missing: the package was built without manifests/")
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def _fill(pod: V1PodSpec, job: JobConfig, args: Sequence[str]) -> None:
    container = _trainer(pod)
    container.image, container.args = job.image, list(args)
    _set_resources(container, job)
    container.env = [variable for variable in container.env or [] if variable.name not in job.env]
    container.env += [V1EnvVar(name=name, value=value) for name, value in job.env.items()]
    for volume in pod.volumes:
        if volume.name == _CLAIM_VOLUME and job.claim:
            volume.persistent_volume_claim.claim_name = job.claim
    for mount in container.volume_mounts:
        if mount.name == _CLAIM_VOLUME:
            mount.mount_path = job.mount_path
    pod.service_account_name = job.service_account or pod.service_account_name
    pod.priority_class_name = job.priority_class
    pod.node_selector = {**(pod.node_selector or {}), **job.node_selector} or None
    pod.tolerations = [*(pod.tolerations or []), *kind.typed(list(job.tolerations), "list[V1Toleration]")] or None
    secrets = [V1LocalObjectReference(name=name) for name in job.image_pull_secrets]
    pod.image_pull_secrets = [*(pod.image_pull_secrets or []), *secrets] or None


def _set_resources(container: V1Container, job: JobConfig) -> None:
    requests, limits = container.resources.requests, container.resources.limits
    for name, wanted in (("cpu", job.cpu), ("memory", job.memory)):
        if wanted:
            requests[name] = limits[name] = wanted
    for name in [name for name in limits if kind.gpus_of({"limits": {name: "1"}})]:
        del limits[name]
    if job.gpus:
        limits[job.gpu_resource] = str(job.gpus)


def _add(pod: V1PodSpec, extras: PodExtras) -> None:
    container = _trainer(pod)
    for name, values in (
        (n, v) for part in ("requests", "limits") for n, v in [(part, (extras.resources or {}).get(part))] if v
    ):
        getattr(container.resources, name).update({key: str(value) for key, value in values.items()})
    names = {variable["name"] for variable in extras.env}
    container.env = [variable for variable in container.env if variable.name not in names]
    container.env += _typed(extras.env, "V1EnvVar")
    # The step's pod has the runs at the same place: that mount is passed through too, but is here already.
    there = {mount.mount_path for mount in container.volume_mounts}
    mounts = [mount for mount in extras.volume_mounts if mount["mountPath"] not in there]
    container.volume_mounts += _typed(mounts, "V1VolumeMount")
    used = {mount["name"] for mount in mounts}
    unused = {mount["name"] for mount in extras.volume_mounts} - used
    pod.volumes += _typed([volume for volume in extras.volumes if volume["name"] not in unused], "V1Volume")
    pod.tolerations = [*(pod.tolerations or []), *_typed(extras.tolerations, "V1Toleration")] or None
    pod.node_selector = {**(pod.node_selector or {}), **extras.node_selector} or None
    if extras.affinity:
        pod.affinity = _typed([extras.affinity], "V1Affinity")[0]


def _typed(values: Sequence[Object], model: str) -> list[Any]:
    """Typed models of what is passed through; what the client's models do not know is refused, not lost."""
    models: list[Any] = kind.typed(list(values), f"list[{model}]")
    for value, read in zip(values, models, strict=True):
        if kind.plain(read) != value:
            raise UserError(f"{json.dumps(value)[:200]}: has a field that no {model} of the Kubernetes client has")
    return models


def _trainer(pod: V1PodSpec) -> V1Container:
    return next(container for container in pod.containers if container.name == kind.CONTAINER)


def _check(manifest: Object) -> None:
    finding = next(check_schema(Document(manifest, 1)), None)
    if finding:
        raise UserError(f"the job would be refused: {finding.message}; {finding.mend}")


def _slug(text: str, longest: int) -> str:
    return re.sub("[^a-z0-9]+", "-", text.lower())[:longest].strip("-")
