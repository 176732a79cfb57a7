"""Everything that a job needs on the cluster, checked before it is made; all that is missing in one message."""

from collections.abc import Iterator

from pipelines.cluster.client import Cluster, Refused
from pipelines.cluster.permissions import Need, as_list, denied_of, role
from pipelines.job.backends import pytorchjob as kind
from pipelines.job.settings import Object
from server.errors import UserError

_NOT_FOUND = 404
_KUEUE = "kueue.x-k8s.io"


_FOLLOW = (
    Need("", "pods", ("get", "list", "watch")),
    Need("", "pods/log", ("get",)),
    Need("", "events", ("list", "watch")),
)
_MAKE = (Need(kind.GROUP, kind.PLURAL, ("get", "list", "watch", "create", "patch", "delete")), *_FOLLOW, Need("", "persistentvolumeclaims", ("get",)))  # fmt: skip


def preflight(cluster: Cluster, manifest: Object) -> None:
    """UserError with everything that is missing and, where it is permissions, the Role to apply."""
    queue = (manifest["metadata"].get("labels") or {}).get(kind.QUEUE_LABEL)
    needs = [*_MAKE, *([Need(_KUEUE, "localqueues", ("get",))] if queue else [])]
    denied = denied_of(cluster, needs)
    unreadable = {need.resource for need in denied if "get" in need.verbs}
    missing = [str(need) for need in denied]
    missing += _kind(cluster)
    if "persistentvolumeclaims" not in unreadable:
        for claim in _claims(manifest):
            missing += claim_faults(cluster, claim, nodes=kind.pod_count(kind.read(manifest)))
    if queue and "localqueues" not in unreadable:
        missing += _queue(cluster, queue)
    if missing:
        to_apply = role(cluster, needs, name="distrinews-launcher") if denied else ""
        raise UserError(f"namespace {cluster.namespace} lacks what the job needs:\n{as_list(missing)}{to_apply}")


def _kind(cluster: Cluster) -> Iterator[str]:
    """Discovery is open to everyone, unlike the resource definition itself."""
    try:
        served = cluster.request("GET", f"/apis/{kind.API_VERSION}")["resources"]
    except Refused as error:
        if error.status != _NOT_FOUND:
            raise
        served = []
    if kind.PLURAL not in {resource["name"] for resource in served}:
        yield f"the kind {kind.KIND} ({kind.API_VERSION}): install the Kubeflow training operator 1.9"


def _claims(manifest: Object) -> list[str]:
    names = {
        volume.persistent_volume_claim.claim_name
        for template in kind.pod_templates(kind.read(manifest))
        for volume in template.spec.volumes or []
        if volume.persistent_volume_claim
    }
    return sorted(names)


def claim_faults(cluster: Cluster, name: str, *, nodes: int) -> Iterator[str]:
    """What keeps the pods of so many nodes from using this claim."""
    try:
        claim = cluster.request("GET", cluster.path("v1", "persistentvolumeclaims", name))
    except Refused as error:
        if error.status != _NOT_FOUND:
            raise
        yield f"claim {name}: create it, as helm/training does, or name another with --claim"
        return
    modes = claim["spec"].get("accessModes") or []
    if claim["metadata"].get("deletionTimestamp") or (claim.get("status") or {}).get("phase") == "Lost":
        yield f"claim {name} that can be used: it is being deleted, or its volume is lost"
    if "ReadWriteMany" not in modes and (nodes > 1 or "ReadWriteOnce" not in modes):
        yield f"claim {name} with access mode ReadWriteMany for {nodes} pods: it has {', '.join(modes)}"


def _queue(cluster: Cluster, name: str) -> Iterator[str]:
    try:
        version = cluster.request("GET", f"/apis/{_KUEUE}")["preferredVersion"]["groupVersion"]
        queue = cluster.request("GET", cluster.path(version, "localqueues", name))
    except Refused as error:
        if error.status != _NOT_FOUND:
            raise
        yield f"queue {name}: create a LocalQueue of Kueue, as helm/training does, or leave --queue out"
        return
    for condition in (queue.get("status") or {}).get("conditions") or []:
        if condition["type"] == "Active" and condition["status"] == "False":
            yield f"queue {name} that is active: {condition.get('message', condition.get('reason', ''))}"
