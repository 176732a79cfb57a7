"""The pod of a training process, of no kind of job: settings of the run and of the Kubeflow task, merged into a pod template."""

import copy
import json
import re
from collections.abc import Sequence

from kubernetes.utils import parse_quantity
from pydantic import Field

from pipelines.job.settings import JobConfig, Object
from server.cli import Settings, as_flags
from server.errors import UserError
from trainer.config import TrainConfig

RUN_LABEL = "distrinews.io/run"
_CLAIM_VOLUME = "workspace"
_GPU = re.compile(r"[^/]+/v?gpu(-number|\.shared)?|nvidia\.com/mig-[^/]+|gpu\.intel\.com/(i915|xe)")


class TaskOverrides(Settings):
    """Fragments of a pod's spec that a user has set on the Kubeflow task."""

    resources: Object | None = None
    tolerations: tuple[Object, ...] = ()
    node_selector: dict[str, str] = Field(default_factory=dict)
    affinity: Object | None = None
    env: tuple[Object, ...] = ()
    volumes: tuple[Object, ...] = ()
    volume_mounts: tuple[Object, ...] = ()


class PodOverrides(Settings):
    """Everything that a run sets on a pod template."""

    image: str
    args: tuple[str, ...]
    processes: int
    gpus: int = 0
    requests: dict[str, str] = Field(default_factory=dict)
    limits: dict[str, str] = Field(default_factory=dict)
    env: tuple[Object, ...] = ()
    claim: str | None = None
    mount_path: str = "/workspace"
    volumes: tuple[Object, ...] = ()
    volume_mounts: tuple[Object, ...] = ()
    tolerations: tuple[Object, ...] = ()
    node_selector: dict[str, str] = Field(default_factory=dict)
    affinity: Object | None = None
    service_account: str | None = None
    priority_class: str | None = None
    image_pull_secrets: tuple[str, ...] = ()
    labels: dict[str, str] = Field(default_factory=dict)


def passed_through(task_config: object | None) -> TaskOverrides:
    """Reads a `kfp.dsl.TaskConfig`; under kfp.local, where there is none, nothing is overridden."""
    values = {name: getattr(task_config, name, None) for name in TaskOverrides.model_fields}
    return TaskOverrides(**{name: value for name, value in values.items() if value})


def pod_overrides(
    job: JobConfig, train: TrainConfig, *, run: str, task: TaskOverrides, labels: dict[str, str]
) -> PodOverrides:
    """Combines the settings of the job and of the task; the task's count where both set one."""
    if train.resume == "never":
        raise UserError(
            f"--resume never: a job's pods would start over at each restart; move {run}/checkpoints aside and leave the flag out"
        )
    gpus, gpu_resource = _gpus(job, task)
    of_task = {part: _as_text((task.resources or {}).get(part)) for part in ("requests", "limits")}
    of_job = {name: amount for name, amount in (("cpu", job.cpu), ("memory", job.memory)) if amount}
    folder = f"{job.mount_path}/{run}"
    task_env = {variable["name"] for variable in task.env}
    job_env = [{"name": name, "value": value} for name, value in job.env.items() if name not in task_env]
    return PodOverrides(
        image=job.image,
        args=("--module", "trainer.train", f"--dataset={folder}/dataset", f"--output={folder}", *as_flags(train)),
        processes=gpus or job.processes, gpus=gpus,
        requests=of_job | of_task["requests"],
        limits=of_job | ({gpu_resource: str(gpus)} if gpus else {}) | of_task["limits"],
        env=(*job_env, *task.env), claim=job.claim, mount_path=job.mount_path,
        volumes=task.volumes, volume_mounts=task.volume_mounts, tolerations=(*job.tolerations, *task.tolerations),
        node_selector=job.node_selector | task.node_selector, affinity=task.affinity, service_account=job.service_account,
        priority_class=job.priority_class, image_pull_secrets=job.image_pull_secrets, labels=labels,
    )  # fmt: skip


def merged(template: Object, pod: PodOverrides, *, container: str) -> Object:
    """Returns a copy of a pod template with the overrides; UserError where the two contradict each other."""
    template = copy.deepcopy(template)
    template["metadata"]["labels"] |= pod.labels
    spec = template["spec"]
    trainer = next(entry for entry in spec["containers"] if entry["name"] == container)
    trainer |= {"image": pod.image, "args": list(pod.args), "resources": _resources(trainer["resources"], pod)}
    names = {variable["name"] for variable in pod.env}
    trainer["env"] = [entry for entry in trainer.get("env", []) if entry["name"] not in names] + list(pod.env)
    _merge_volumes(spec, trainer, pod)
    added = {
        "serviceAccountName": pod.service_account or spec.get("serviceAccountName"),
        "priorityClassName": pod.priority_class,
        "nodeSelector": {**spec.get("nodeSelector", {}), **pod.node_selector},
        "tolerations": [*spec.get("tolerations", []), *pod.tolerations],
        "imagePullSecrets": [*spec.get("imagePullSecrets", []), *({"name": name} for name in pod.image_pull_secrets)],
        "affinity": pod.affinity,
    }
    return template | {"spec": spec | {name: value for name, value in added.items() if value}}


def gpus_of(resources: object, *, named: str = "") -> int:
    """Returns the GPUs in the limits of a container: those of any vendor, and those of a name that a cluster gave."""
    limits = resources.get("limits") if isinstance(resources, dict) else None
    counts = (
        [str(count) for name, count in limits.items() if name == named or _is_gpu(name)]
        if isinstance(limits, dict)
        else []
    )
    return sum(int(count) for count in counts if count.isdigit())


def _is_gpu(resource: str) -> bool:
    """Returns True for whole GPUs, shares that the scheduler counts, and slices; not for their memory or cores."""
    return _GPU.fullmatch(resource) is not None


def _gpus(job: JobConfig, task: TaskOverrides) -> tuple[int, str]:
    """Returns the number and the resource of GPUs: those of the task count as if they were settings of the job."""
    limits = (task.resources or {}).get("limits") or {}
    names = [
        name for name, count in limits.items() if (name == job.gpu_resource or _is_gpu(name)) and str(count) != "0"
    ]
    if not names:
        return job.gpus, job.gpu_resource
    gpus = gpus_of(task.resources, named=job.gpu_resource)
    if len(names) > 1 or job.gpus not in (0, gpus):
        asked = ", ".join(f"{limits[name]} {name}" for name in names)
        raise UserError(f"the task asks for {asked}, but gpus is {job.gpus}: set one of the two")
    return gpus, names[0]


def _as_text(amounts: Object | None) -> dict[str, str]:
    return {name: str(amount) for name, amount in (amounts or {}).items()}


def _resources(base: Object, pod: PodOverrides) -> Object:
    requests = _as_text(base["requests"]) | pod.requests
    kept = {name: amount for name, amount in _as_text(base["limits"]).items() if not _is_gpu(name)}
    limits = kept | pod.limits
    for name in requests.keys() & limits.keys():
        if _quantity(name, requests[name]) > _quantity(name, limits[name]):
            if name in pod.requests:
                raise UserError(f"{name}: the request {requests[name]} is above the limit {limits[name]}: set both")
            requests[name] = limits[name]  # as Kubernetes does where only a limit is set
    return {"requests": requests, "limits": limits}


def _quantity(name: str, text: str) -> float:
    try:
        return float(parse_quantity(text))
    except ValueError as error:
        raise UserError(f"{name}: {text!r} is no quantity: write it as 500m, 2 or 16Gi") from error


def _merge_volumes(spec: Object, trainer: Object, pod: PodOverrides) -> None:
    """Adds the task's volumes and mounts; one at a path of the template, such as /dev/shm, takes its place."""
    claims = {volume["name"]: volume["persistentVolumeClaim"] for volume in spec["volumes"] if "persistentVolumeClaim" in volume}  # fmt: skip
    if pod.claim:
        claims[_CLAIM_VOLUME]["claimName"] = pod.claim
    for mount in trainer["volumeMounts"]:
        if mount["name"] == _CLAIM_VOLUME:
            mount["mountPath"] = pod.mount_path
    given = {volume["name"]: volume for volume in pod.volumes}
    mounts = [mount for mount in pod.volume_mounts if not _is_workspace(mount, given, claims, pod)]
    paths = {mount["mountPath"] for mount in mounts}
    replaced = [mount["name"] for mount in trainer["volumeMounts"] if mount["mountPath"] in paths]
    trainer["volumeMounts"] = [mount for mount in trainer["volumeMounts"] if mount["mountPath"] not in paths] + mounts
    spec["volumes"] = [volume for volume in spec["volumes"] if volume["name"] not in replaced]
    skipped = {mount["name"] for mount in pod.volume_mounts} - {mount["name"] for mount in mounts}
    added = [volume for volume in pod.volumes if volume["name"] not in skipped]
    names = {volume["name"] for volume in spec["volumes"]}
    if taken := [volume["name"] for volume in added if volume["name"] in names]:
        raise UserError(f"volume {taken[0]} of the task: the job's pods have a volume of this name; rename the task's")
    spec["volumes"] += added


def _is_workspace(mount: Object, given: dict[str, Object], claims: dict[str, Object], pod: PodOverrides) -> bool:
    """Returns whether a mount is the step's own mount of the runs, which the template has; UserError if it is another volume."""
    if mount["mountPath"] != pod.mount_path:
        return False
    claim = given.get(mount["name"], {}).get("persistentVolumeClaim", {}).get("claimName")
    if claim != claims[_CLAIM_VOLUME]["claimName"]:
        raise UserError(
            f"the task mounts {json.dumps(given.get(mount['name'], mount['name']))[:200]} at {pod.mount_path}, but the pods of the job "
            f"have the runs there, on claim {claims[_CLAIM_VOLUME]['claimName']}: set claim"
        )
    return True


def lost_fields(given: object, kept: object, path: str = "") -> list[str]:
    """Returns the paths of fields that are in one nested value and not in the other."""
    if isinstance(given, dict):
        kept = kept if isinstance(kept, dict) else {}
        inner = [(f"{path}.{name}".lstrip("."), value, kept.get(name)) for name, value in given.items()]
        missing = [f"{path}.{name}".lstrip(".") for name in given if name not in kept]
        return missing or [found for name, one, other in inner for found in lost_fields(one, other, name)]
    if isinstance(given, Sequence) and not isinstance(given, str):
        others = kept if isinstance(kept, list) else []
        pairs = enumerate(zip(given, others, strict=False))
        return [found for number, (one, other) in pairs for found in lost_fields(one, other, f"{path}[{number}]")]
    return []
