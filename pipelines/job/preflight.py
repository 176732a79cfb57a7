"""Everything that a job needs on the cluster, checked before it is made; all that is missing in one message."""

from collections.abc import Iterator
from typing import NamedTuple

import yaml

from pipelines.job import kind
from pipelines.job.cluster import Cluster, Refused
from pipelines.job.settings import Object
from trainer.errors import UserError

_NOT_FOUND = 404
_KUEUE = "kueue.x-k8s.io"


class Need(NamedTuple):
    """Permission to use some verbs on a kind of objects."""

    group: str
    resource: str
    verbs: tuple[str, ...]


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
    denied = [Need(need.group, need.resource, verbs) for need in needs if (verbs := tuple(_denied(cluster, need)))]
    unreadable = {need.resource for need in denied if "get" in need.verbs}
    missing = [f"permission to {', '.join(need.verbs)} {need.resource}" for need in denied]
    missing += _kind(cluster)
    if "persistentvolumeclaims" not in unreadable:
        for claim in _claims(manifest):
            missing += _claim(cluster, claim, nodes=kind.pod_count(kind.read(manifest)))
    if queue and "localqueues" not in unreadable:
        missing += _queue(cluster, queue)
    if missing:
        role = f"\n\nA Role to apply, with kubectl apply -f:\n\n{_role(cluster, needs)}" if denied else ""
        listed = "\n".join(f"  - {line}" for line in missing)
        raise UserError(f"namespace {cluster.namespace} lacks what the job needs:\n{listed}{role}")


def _denied(cluster: Cluster, need: Need) -> Iterator[str]:
    resource, _, part = need.resource.partition("/")
    for verb in need.verbs:
        wish = {
            "namespace": cluster.namespace,
            "verb": verb,
            "group": need.group,
            "resource": resource,
            "subresource": part,
        }
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": wish},
        }
        answer = cluster.request("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body=review)
        if not answer["status"].get("allowed"):
            yield verb


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


def _claim(cluster: Cluster, name: str, *, nodes: int) -> Iterator[str]:
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


def _role(cluster: Cluster, needs: list[Need]) -> str:
    """A Role with all that is needed, bound to who asks."""
    name = "distrinews-launcher"
    rules = [{"apiGroups": [need.group], "resources": [need.resource], "verbs": list(need.verbs)} for need in needs]
    metadata = {"name": name, "namespace": cluster.namespace}
    api = "rbac.authorization.k8s.io"
    objects = [
        {"apiVersion": f"{api}/v1", "kind": "Role", "metadata": metadata, "rules": rules},
        {"apiVersion": f"{api}/v1", "kind": "RoleBinding", "metadata": metadata, "subjects": [_who(cluster)],
         "roleRef": {"apiGroup": api, "kind": "Role", "name": name}},
    ]  # fmt: skip
    return "---\n".join(yaml.safe_dump(item, sort_keys=False) for item in objects)


def _who(cluster: Cluster) -> Object:
    """The service account or user that we are."""
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    try:
        user = cluster.request("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", body=review)["status"][
            "userInfo"
        ]["username"]
    except Refused:  # before Kubernetes 1.28
        user = f"system:serviceaccount:{cluster.namespace}:pipeline-runner"
    if user.startswith("system:serviceaccount:"):
        _, _, namespace, name = user.split(":")
        return {"kind": "ServiceAccount", "namespace": namespace, "name": name}
    return {"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": user}
