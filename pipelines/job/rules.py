"""Rules for PyTorchJobs: what the schema and the API server accept, but the operator or the training does not."""

import difflib
import re
from collections.abc import Iterator
from typing import Any

from kubernetes.utils import parse_quantity

from pipelines.job.backends import QUEUE_LABEL
from pipelines.job.backends.pytorchjob import BACKEND, REPLICAS
from pipelines.job.pod import gpus_of
from pipelines.job.pod_security import violations

Path = tuple[str | int, ...]
"""The place of a field: ("spec", "runPolicy", "backoffLimit")."""
Problem = tuple[Path, str, str, str]
"""A place, a rule's name, the fault, the fix."""
Job = dict[str, Any]

_SPECS: Path = ("spec", "pytorchReplicaSpecs")
_RUN_POLICY: Path = ("spec", "runPolicy")
_ELASTIC: Path = ("spec", "elasticPolicy")
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_GENERATED = 5  # characters that the API server adds to a generateName
_RESTART_POLICIES = ("OnFailure", "Never", "ExitCode", "Always")
_CLEAN_POLICIES = ("Running", "All", "None")
_ISTIO = "sidecar.istio.io/inject"
_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - a place in the pod
_CHANGED_WORLD = {"--allow-changed-world", "--allow-changed-world=true", "--allow-changed-world=True"}
_OPERATOR_ENVIRONMENT = re.compile(
    r"MASTER_ADDR|MASTER_PORT|WORLD_SIZE|RANK|PET_(MASTER_|RDZV_).*|PET_(NNODES|NODE_RANK|NPROC_PER_NODE|MAX_RESTARTS)"
)


def dig(value: Any, *path: str | int) -> Any:  # noqa: ANN401 - whatever YAML holds
    """Returns what is at a path in nested values; None where nothing is or the path leads through another type."""
    for key in path:
        if isinstance(value, dict):
            value = value.get(key)
        elif isinstance(value, list) and isinstance(key, int) and key < len(value):
            value = value[key]
        else:
            return None
    return value


def check_job(job: Job) -> Iterator[Problem]:
    """Yields the faults of one job, whose values have the types of the schema."""
    for rule in (_names, _queue, _replicas, _policies, _processes, _elastic):
        yield from rule(job)
    for name in _replica_names(job):
        place = (*_SPECS, name)
        yield from _restart_policy(job, place)
        for of_template in (_istio, _containers, _shared_memory, _security):
            yield from of_template(job, (*place, "template"))
        for number, container in enumerate(_items(job, (*place, "template", "spec", "containers"))):
            spot = (*place, "template", "spec", "containers", number)
            for of_container in (_environment, _resources, _image, _command):
                yield from of_container(job, spot, container)


def _replica_names(job: Job) -> list[str]:
    replicas = dig(job, *_SPECS)
    return list(replicas) if isinstance(replicas, dict) else []


def _items(job: Job, place: Path) -> list[dict[str, Any]]:
    items = dig(job, *place)
    return [item if isinstance(item, dict) else {} for item in items] if isinstance(items, list) else []


def _near(value: object, known: tuple[str, ...], otherwise: str) -> str:
    near = difflib.get_close_matches(str(value), known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else otherwise


def _names(job: Job) -> Iterator[Problem]:
    api_version = f"{BACKEND.group}/{BACKEND.version}"
    if (found := dig(job, "apiVersion")) != api_version:
        yield ("apiVersion",), "api-version", f"apiVersion is {found!r}", f"that of a {BACKEND.kind} is {api_version}"
    key = "name" if dig(job, "metadata", "name") else "generateName"
    name, place = dig(job, "metadata", key), ("metadata", key)
    if not isinstance(name, str):
        yield ("metadata",), "name", "the job has no name", "add metadata.name"
        return
    longest = BACKEND.max_name - (_GENERATED if key == "generateName" else 0)
    if len(name) > longest:
        why = f"{key} has {len(name)} characters; the services of its pods, <name>-worker-N, may have 63"
        yield place, "name-length", why, f"use {longest} at most"
    if not _NAME.fullmatch(name.rstrip("-") if key == "generateName" else name):
        fix = "use small letters, digits and dashes, with a letter first"
        yield place, "name", f"{name!r} cannot name the services of the pods", fix


def _queue(job: Job) -> Iterator[Problem]:
    labels = dig(job, "metadata", "labels")
    for label in labels if isinstance(labels, dict) else ():
        if label != QUEUE_LABEL and difflib.get_close_matches(label, [QUEUE_LABEL], cutoff=0.8):
            yield ("metadata", "labels", label), "queue-label", f"Kueue knows no label {label}", f"write {QUEUE_LABEL}"
    places: list[Path] = [("metadata", "annotations")]
    for name in _replica_names(job):
        places += [(*_SPECS, name, "template", "metadata", part) for part in ("labels", "annotations")]
    for place in places:
        if dig(job, *place, QUEUE_LABEL) is not None:
            why = f"Kueue does not read {QUEUE_LABEL} in {'.'.join(map(str, place))}"
            yield (*place, QUEUE_LABEL), "queue-label", why, "move it to metadata.labels of the job"
    if dig(job, *_RUN_POLICY, "suspend") is True and dig(job, "metadata", "labels", QUEUE_LABEL) is None:
        why = "the job is suspended, and there is no queue that would start it"
        yield (*_RUN_POLICY, "suspend"), "suspend", why, f"remove suspend, or add the label {QUEUE_LABEL}"


def _replicas(job: Job) -> Iterator[Problem]:
    names = _replica_names(job)
    if not names:
        yield _SPECS, "replicas", "the job has no replicas", "add pytorchReplicaSpecs.Master"
    for name in names:
        if name not in REPLICAS:
            why = f"{name!r} is no type of replica; there are {' and '.join(REPLICAS)}"
            yield (*_SPECS, name), "replica-type", why, _near(name, REPLICAS, "rename it")
    if "Master" in names and (count := dig(job, *_SPECS, "Master", "replicas")) != 1:
        why = f"Master.replicas is {'left out' if count is None else count}"
        yield (*_SPECS, "Master", "replicas"), "master-replicas", why, "write 1, and count the others as Worker"
    if names == ["Worker"] and not dig(job, *_ELASTIC):
        why = "Workers alone get no MASTER_ADDR and wait forever"
        yield (*_SPECS, "Worker"), "no-master", why, "add a Master, or spec.elasticPolicy"


def _policies(job: Job) -> Iterator[Problem]:
    policy, place = dig(job, *_RUN_POLICY, "cleanPodPolicy"), (*_RUN_POLICY, "cleanPodPolicy")
    if policy in (None, "None"):
        why = "without cleanPodPolicy, a replica that fails leaves the others running"
        yield place, "clean-pod-policy", why, "write cleanPodPolicy: Running"
    elif policy not in _CLEAN_POLICIES:
        why = f"cleanPodPolicy {policy!r} is none of {', '.join(_CLEAN_POLICIES)}"
        yield place, "clean-pod-policy", why, _near(policy, _CLEAN_POLICIES, "write Running")
    if dig(job, *_RUN_POLICY, "backoffLimit") is None:
        why = "without backoffLimit, a job that fails starts again forever"
        yield _RUN_POLICY, "backoff-limit", why, "add backoffLimit: 3"
    if dig(job, *_RUN_POLICY, "ttlSecondsAfterFinished") is None:
        why = "without ttlSecondsAfterFinished, the job and its pods stay when it has ended"
        yield _RUN_POLICY, "ttl", why, "add ttlSecondsAfterFinished: 86400"
    for name in ("backoffLimit", "ttlSecondsAfterFinished", "activeDeadlineSeconds"):
        if isinstance(value := dig(job, *_RUN_POLICY, name), int) and value < 0:
            yield (*_RUN_POLICY, name), "negative", f"{name} is {value}", "give 0 or more"


def _processes(job: Job) -> Iterator[Problem]:
    wanted, place = dig(job, "spec", "nprocPerNode"), ("spec", "nprocPerNode")
    containers = [(*_SPECS, name, "template", "spec", "containers", 0) for name in _replica_names(job)]
    gpus = {gpus_of(dig(job, *container, "resources")) for container in containers} or {0}
    if wanted in (None, "auto", "cpu") and gpus == {0}:
        value = "left out, which means auto" if wanted is None else repr(wanted)
        why = f"nprocPerNode is {value}: without a GPU that is one process for each CPU of the node"
        yield place, "nproc-auto", why, 'write a number, such as nprocPerNode: "1"'
    elif wanted == "gpu" and 0 in gpus:
        yield place, "nproc", "nprocPerNode is 'gpu', but a replica has none", "add nvidia.com/gpu to its limits"
    elif isinstance(wanted, str) and wanted not in ("auto", "cpu", "gpu"):
        if not re.fullmatch("[1-9][0-9]*", wanted):
            why = f"nprocPerNode is {wanted!r}, neither a number nor auto, cpu or gpu"
            yield place, "nproc", why, 'write a number, such as "1"'
        elif gpus != {0} and gpus != {int(wanted)}:
            why = f"{wanted} processes in a pod with {' or '.join(map(str, sorted(gpus)))} GPUs: each process needs its own"
            yield place, "nproc", why, "make them equal"


def _elastic(job: Job) -> Iterator[Problem]:
    policy = dig(job, *_ELASTIC)
    if not isinstance(policy, dict):
        return
    least, most = policy.get("minReplicas"), policy.get("maxReplicas")
    workers = dig(job, *_SPECS, "Worker", "replicas")
    if isinstance(least, int) and isinstance(most, int) and least > most:
        why = f"minReplicas {least} is more than maxReplicas {most}"
        yield (*_ELASTIC, "minReplicas"), "elastic", why, "make it smaller"
    elif isinstance(workers, int) and not (least or 1) <= workers <= (most or workers):
        why = f"Worker.replicas {workers} is not between minReplicas {least} and maxReplicas {most}"
        yield (*_SPECS, "Worker", "replicas"), "elastic", why, "choose a number between them"
    if "nProcPerNode" in policy:
        why = "elasticPolicy.nProcPerNode is deprecated"
        yield (*_ELASTIC, "nProcPerNode"), "elastic", why, "write spec.nprocPerNode instead"
    if (backend := policy.get("rdzvBackend")) not in (None, "c10d", "etcd", "etcd-v2"):
        yield (*_ELASTIC, "rdzvBackend"), "elastic", f"torchrun knows no rdzvBackend {backend!r}", "write c10d"
    if "Master" in _replica_names(job):
        why = "the pods of an elastic job meet at worker-0, so a Master has nothing to do"
        yield (*_SPECS, "Master"), "elastic", why, "make all of them Workers"


def _restart_policy(job: Job, place: Path) -> Iterator[Problem]:
    policy, spot = dig(job, *place, "restartPolicy"), (*place, "restartPolicy")
    if policy is not None and policy not in _RESTART_POLICIES:
        why = f"restartPolicy {policy!r} is none of {', '.join(_RESTART_POLICIES)}"
        yield spot, "restart-policy", why, _near(policy, _RESTART_POLICIES, "write OnFailure")
    if policy == "Always":
        yield spot, "restart-policy", "Always starts training again when it has succeeded", "write OnFailure"
    if policy == "ExitCode":
        limit = dig(job, *_RUN_POLICY, "backoffLimit")
        besides = f"; backoffLimit {limit} does not end that" if limit is not None else ""
        why = f"ExitCode restarts a pod that exits with 128 or more, as one out of memory does, forever{besides}"
        yield spot, "exit-code", why, "write OnFailure"
    inside: Path = (*place, "template", "spec", "restartPolicy")
    if dig(job, *inside) is not None:
        why = "the operator overwrites the restartPolicy of a pod template"
        yield inside, "restart-policy", why, "set it beside template instead"


def _istio(job: Job, template: Path) -> Iterator[Problem]:
    for part in ("labels", "annotations"):
        place: Path = (*template, "metadata", part)
        if dig(job, *place, _ISTIO) != "false":
            why = f"Istio's sidecar keeps the job from ending: {part} do not switch it off"
            yield place, "istio", why, f'add {_ISTIO}: "false" to metadata.{part} of the template'


def _containers(job: Job, template: Path) -> Iterator[Problem]:
    place = (*template, "spec", "containers")
    names = [container.get("name") for container in _items(job, place)]
    if BACKEND.container not in names:
        spot = (*place, 0, "name") if names else place
        why = f"no container is called {BACKEND.container}, but {', '.join(map(repr, names)) or 'there is none'}"
        fix = f"call the one that trains {BACKEND.container}: the operator sets it up by its name"
        yield spot, "container-name", why, fix


def _shared_memory(job: Job, template: Path) -> Iterator[Problem]:
    volumes = _items(job, (*template, "spec", "volumes"))
    memory = {volume.get("name") for volume in volumes if dig(volume, "emptyDir", "medium") == "Memory"}
    names = [container.get("name") for container in _items(job, (*template, "spec", "containers"))]
    if not names:
        return
    spot = (*template, "spec", "containers", names.index(BACKEND.container) if BACKEND.container in names else 0)
    mounts = _items(job, (*spot, "volumeMounts"))
    if not any(mount.get("mountPath") == _SHARED_MEMORY and mount.get("name") in memory for mount in mounts):
        why = f"{_SHARED_MEMORY} has 64 MiB: NCCL and data loaders end with a bus error"
        yield spot, "shared-memory", why, f"mount an emptyDir with medium: Memory at {_SHARED_MEMORY}"


def _security(job: Job, template: Path) -> Iterator[Problem]:
    spec = dig(job, *template, "spec") or {}
    for path, rule, why, fix in violations(spec):
        yield (*template, "spec", *path), rule, why, fix
    for number, container in enumerate(_items(job, (*template, "spec", "containers"))):
        users = (dig(part, "securityContext", "runAsUser") for part in (container, spec))
        if all(user is None for user in users):
            why = "without runAsUser, no node runs an image whose USER is a name, such as that of the operator's init container"
            fix = "set securityContext.runAsUser: 10001, unless the cluster sets one, as OpenShift does"
            yield (*template, "spec", "containers", number), "numeric-user", why, fix


def _environment(job: Job, place: Path, container: dict[str, Any]) -> Iterator[Problem]:
    if container.get("name") != BACKEND.container:
        return
    for number, variable in enumerate(_items(job, (*place, "env"))):
        if _OPERATOR_ENVIRONMENT.fullmatch(name := str(variable.get("name"))):
            why = f"{name} is set by hand; the operator sets it for each pod"
            yield (*place, "env", number), "environment", why, "remove it"


def _resources(_job: Job, place: Path, container: dict[str, Any]) -> Iterator[Problem]:
    requests, limits = (dig(container, "resources", part) or {} for part in ("requests", "limits"))
    missing = [name for name in ("cpu", "memory") if name not in requests and name not in limits]
    if missing:
        why = f"it requests no {' and no '.join(missing)}: it is the first to be evicted, and may land on a full node"
        yield place, "resources", why, f"add resources.requests with {' and '.join(missing)}"
    for name, count in requests.items():
        spot = (*place, "resources", "requests", name)
        if "/" in name and str(limits.get(name)) != str(count):
            why = f"{name} is requested, but its limit is {limits.get(name, 'left out')}"
            yield spot, "resources", why, f"write {name}: {count} in limits"
        elif name in limits and _amount(count) > _amount(limits[name]):
            yield spot, "resources", f"{name} requests {count}, above its limit {limits[name]}", "raise the limit"


def _amount(quantity: object) -> float:
    try:
        return float(parse_quantity(quantity))
    except (ValueError, TypeError):  # a finding of the schema
        return 0


def _image(_job: Job, place: Path, container: dict[str, Any]) -> Iterator[Problem]:
    image = str(container.get("image", ""))
    if "@sha256:" not in image and image.rpartition("/")[2].partition(":")[2] in ("", "latest"):
        why = f"image {image!r} has no version, so ranks may run different ones"
        yield (*place, "image"), "image", why, "add a tag or a digest"


def _command(job: Job, place: Path, container: dict[str, Any]) -> Iterator[Problem]:
    words = [str(word) for word in (*(container.get("command") or ()), *(container.get("args") or ()))]
    processes = dig(job, "spec", "nprocPerNode")
    launcher = any("torchrun" in word or "torch.distributed" in word for word in words)
    if container.get("name") == BACKEND.container and words and not launcher and processes not in (None, "1"):
        why = f"{words[0]} starts one process, but nprocPerNode is {processes}"
        yield (*place, "command"), "command", why, "start with torchrun, which reads what the operator sets"
    policy = dig(job, *_ELASTIC)
    fixed = dig(policy, "minReplicas") == dig(policy, "maxReplicas")
    if policy and not fixed and "trainer.train" in words and not _CHANGED_WORLD & set(words):
        why = "the number of Workers may change, but the trainer refuses a checkpoint of another number"
        yield (*place, "args"), "elastic", why, "add --allow-changed-world, or make minReplicas and maxReplicas equal"
