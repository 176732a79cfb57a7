"""Rules about the pods of a PyTorchJob, of each replica alike."""

from collections.abc import Iterator
from typing import Any

from pipelines.job.backends.pytorchjob import CONTAINER, ISTIO, OPERATOR_ENVIRONMENT
from pipelines.job.document import Document, Path, Problem, dig
from pipelines.job.rules import REPLICA_SPECS, RUN_POLICY, did_you_mean, replica_names

_RESTART_POLICIES = ("OnFailure", "Never", "ExitCode", "Always")
_CHANGED_WORLD = {"--allow-changed-world", "--allow-changed-world=true", "--allow-changed-world=True"}
_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - a place in the pod, not here


def check_pods(job: Document) -> Iterator[Problem]:
    for name in replica_names(job):
        place = (*REPLICA_SPECS, name)
        yield from _restart_policy(job, place)
        for rule in (_istio, _containers, _shared_memory, _mounts, _security):
            yield from rule(job, (*place, "template"))
        for number, container in enumerate(_items(job, (*place, "template", "spec", "containers"))):
            spot = (*place, "template", "spec", "containers", number)
            for check in (_environment, _resources, _image, _command, _world):
                yield from check(job, spot, container)


def _items(job: Document, place: Path) -> list[dict[str, Any]]:
    items = job.get(*place)
    return [item if isinstance(item, dict) else {} for item in items] if isinstance(items, list) else []


def _restart_policy(job: Document, place: Path) -> Iterator[Problem]:
    policy, spot = job.get(*place, "restartPolicy"), (*place, "restartPolicy")
    if policy is not None and policy not in _RESTART_POLICIES:
        why = f"restartPolicy {policy!r} is none of {', '.join(_RESTART_POLICIES)}"
        yield spot, "restart-policy", why, did_you_mean(policy, _RESTART_POLICIES, "write OnFailure")
    if policy == "Always":
        yield spot, "restart-policy", "Always starts training again when it has succeeded", "write OnFailure"
    if policy == "ExitCode":
        limit = job.get(*RUN_POLICY, "backoffLimit")
        besides = f"; backoffLimit {limit} does not end that" if limit is not None else ""
        why = f"ExitCode starts a pod that exits with 128 or more, as one out of memory does, again for ever{besides}"
        yield spot, "exit-code", why, "write OnFailure"
    inside: Path = (*place, "template", "spec", "restartPolicy")
    if job.get(*inside) is not None:
        why = "the operator overwrites the restartPolicy of a pod template"
        yield inside, "restart-policy", why, "set it beside template instead"


def _istio(job: Document, template: Path) -> Iterator[Problem]:
    for part in ("labels", "annotations"):
        place: Path = (*template, "metadata", part)
        if job.get(*place, ISTIO) != "false":
            why = f"where Istio is on, its sidecar keeps the job from ending: {part} do not switch it off"
            yield place, "istio", why, f'add {ISTIO}: "false" to metadata.{part} of the template'


def _containers(job: Document, template: Path) -> Iterator[Problem]:
    place = (*template, "spec", "containers")
    names = [container.get("name") for container in _items(job, place)]
    if CONTAINER not in names:
        spot = (*place, 0, "name") if names else place
        why = f"no container is called {CONTAINER}, but {', '.join(map(repr, names)) or 'there is none'}"
        yield spot, "container-name", why, f"call the one that trains {CONTAINER}: the operator sets it up by its name"


def _shared_memory(job: Document, template: Path) -> Iterator[Problem]:
    memory = {
        volume.get("name")
        for volume in _items(job, (*template, "spec", "volumes"))
        if dig(volume, "emptyDir", "medium") == "Memory"
    }
    names = [container.get("name") for container in _items(job, (*template, "spec", "containers"))]
    if names:
        number = names.index(CONTAINER) if CONTAINER in names else 0
        mounts = _items(job, (*template, "spec", "containers", number, "volumeMounts"))
        mounted = any(mount.get("mountPath") == _SHARED_MEMORY and mount.get("name") in memory for mount in mounts)
        if not mounted:
            why = f"{_SHARED_MEMORY} has 64 MiB: NCCL and data loaders end with a bus error"
            mend = f"mount an emptyDir with medium: Memory at {_SHARED_MEMORY}"
            yield (*template, "spec", "containers", number), "shared-memory", why, mend


def _mounts(job: Document, template: Path) -> Iterator[Problem]:
    volumes = {volume.get("name") for volume in _items(job, (*template, "spec", "volumes"))}
    for kind in ("containers", "initContainers"):
        for number, _ in enumerate(_items(job, (*template, "spec", kind))):
            place: Path = (*template, "spec", kind, number, "volumeMounts")
            for index, mount in enumerate(_items(job, place)):
                if mount.get("name") not in volumes:
                    why = f"there is no volume {mount.get('name')!r} to mount"
                    yield (*place, index), "mount", why, "add it to the pod's volumes"


def _security(job: Document, template: Path) -> Iterator[Problem]:
    pod = job.get(*template, "spec", "securityContext")
    place: Path = (*template, "spec")
    for number, container in enumerate(_items(job, (*place, "containers"))):
        spot = (*place, "containers", number)
        own = container.get("securityContext")

        def said(*path: str, own: object = own) -> Any:  # noqa: ANN401 - the container's own word counts before the pod's
            found = dig(own, *path)
            return dig(pod, *path) if found is None else found

        if said("runAsUser") == 0 or said("runAsNonRoot") is not True:
            mend = "set securityContext.runAsNonRoot: true and a runAsUser that is not 0"
            yield spot, "root", "the container may run as root", mend
        elif said("runAsUser") is None:
            why = "without runAsUser, no node runs an image whose USER is a name or left out, such as the operator's init container"
            yield (
                spot,
                "numeric-user",
                why,
                "set securityContext.runAsUser: 10001, unless the cluster sets one, as OpenShift does",
            )
        if said("seccompProfile", "type") not in ("RuntimeDefault", "Localhost"):
            mend = "set securityContext.seccompProfile.type: RuntimeDefault"
            yield spot, "seccomp", "no seccomp profile filters its system calls", mend
        if dig(own, "allowPrivilegeEscalation") is not False:
            mend = "set securityContext.allowPrivilegeEscalation: false"
            yield spot, "privileges", "a process in it may gain privileges", mend
        if "ALL" not in (dig(own, "capabilities", "drop") or ()):
            mend = "set securityContext.capabilities.drop: [ALL]"
            yield spot, "capabilities", "it keeps capabilities of root", mend


def _environment(job: Document, place: Path, container: dict[str, Any]) -> Iterator[Problem]:
    if container.get("name") != CONTAINER:
        return
    for number, variable in enumerate(_items(job, (*place, "env"))):
        name = str(variable.get("name"))
        if any(name == known or (known.endswith("_") and name.startswith(known)) for known in OPERATOR_ENVIRONMENT):
            why = f"{name} is set by hand; the operator sets it for each pod"
            yield (*place, "env", number), "environment", why, "remove it"


def _resources(_job: Document, place: Path, container: dict[str, Any]) -> Iterator[Problem]:
    requests = dig(container, "resources", "requests") or {}
    limits = dig(container, "resources", "limits") or {}
    if not isinstance(requests, dict) or not isinstance(limits, dict):
        return
    missing = [name for name in ("cpu", "memory") if name not in requests and name not in limits]
    if missing:
        why = f"it asks for no {' and no '.join(missing)}: it is the first to be evicted, and may land on a full node"
        yield place, "resources", why, f"add resources.requests with {' and '.join(missing)}"
    for name, count in requests.items():
        if "/" in name and str(limits.get(name)) != str(count):
            why = f"{name} is asked for in requests, but limits say {limits.get(name, 'nothing')}"
            yield (*place, "resources", "requests", name), "resources", why, f"write {name}: {count} in limits"


def _image(_job: Document, place: Path, container: dict[str, Any]) -> Iterator[Problem]:
    image = str(container.get("image", ""))
    tag = image.rpartition("/")[2].partition(":")[2]
    if "@sha256:" not in image and tag in ("", "latest"):
        why = f"image {image!r} names no version, so ranks may run different ones"
        yield (*place, "image"), "image", why, "add a tag or a digest"


def _command(job: Document, place: Path, container: dict[str, Any]) -> Iterator[Problem]:
    words = [*(container.get("command") or ()), *(container.get("args") or ())]
    processes = job.get("spec", "nprocPerNode")
    launcher = any("torchrun" in str(word) or "torch.distributed" in str(word) for word in words)
    if container.get("name") == CONTAINER and words and not launcher and processes not in (None, "1"):
        why = f"{words[0]} starts one process, but nprocPerNode is {processes}"
        yield (*place, "command"), "command", why, "start with torchrun, which reads what the operator sets"


def _world(job: Document, place: Path, container: dict[str, Any]) -> Iterator[Problem]:
    policy = job.get("spec", "elasticPolicy")
    words = [str(word) for word in (*(container.get("command") or ()), *(container.get("args") or ()))]
    fixed = dig(policy, "minReplicas") == dig(policy, "maxReplicas")
    if policy and not fixed and "trainer.train" in words and not _CHANGED_WORLD & set(words):
        why = "the number of Workers may change, but the trainer refuses a checkpoint of another number"
        yield (*place, "args"), "elastic", why, "add --allow-changed-world, or make minReplicas and maxReplicas equal"
