"""Everything that a job needs on the cluster, checked before it is made; all that is missing in one message."""

from collections.abc import Iterator

from pipelines.cluster.client import Cluster
from pipelines.cluster.permissions import READ_QUEUE, Need, claim_faults, denied, queue_faults, readable, require
from pipelines.job.backends import pytorchjob as kind
from pipelines.job.settings import Object

_FOLLOW = (
    Need("", "pods", ("get", "list", "watch")),
    Need("", "pods/log", ("get",)),
    Need("", "events", ("list", "watch")),
)
_MAKE = (Need(kind.GROUP, kind.PLURAL, ("get", "list", "watch", "create", "patch", "delete")), *_FOLLOW, Need("", "persistentvolumeclaims", ("get",)))  # fmt: skip


def preflight(cluster: Cluster, manifest: Object) -> None:
    """UserError with everything that is missing and, where it is permissions, the Role to apply."""
    queue = (manifest["metadata"].get("labels") or {}).get(kind.QUEUE_LABEL)
    needs = [*_MAKE, *([READ_QUEUE] if queue else [])]
    refused = denied(cluster, needs)
    missing = list(_kind(cluster))
    if readable(refused, "persistentvolumeclaims"):
        for claim in _claims(manifest):
            missing += claim_faults(cluster, claim, nodes=kind.pod_count(kind.read(manifest)))
    if queue and readable(refused, "localqueues"):
        missing += queue_faults(cluster, queue)
    require(cluster, missing, refused, needs, role="distrinews-launcher", user="the job")


def _kind(cluster: Cluster) -> Iterator[str]:
    """Discovery is open to everyone, unlike the resource definition itself."""
    group = cluster.find(f"/apis/{kind.API_VERSION}") or {}
    served = group.get("resources") or []
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
