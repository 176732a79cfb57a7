"""Checks before anything is created: permissions, with the Role to apply, and faults of a claim or a queue."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from pipelines.cluster import go_yaml
from pipelines.cluster.client import ApiError, Cluster, Object
from server.errors import UserError

_KUEUE = "kueue.x-k8s.io"
_RBAC = "rbac.authorization.k8s.io"


class Need(NamedTuple):
    """Permission to use some verbs on a kind of objects."""

    group: str
    resource: str
    verbs: tuple[str, ...]

    def __str__(self) -> str:
        return f"permission to {', '.join(self.verbs)} {self.resource}"


READ_QUEUE = Need(_KUEUE, "localqueues", ("get",))


def denied(cluster: Cluster, needs: Iterable[Need]) -> list[Need]:
    """Returns the needs that are not allowed, each with the verbs that are not."""
    return [need._replace(verbs=verbs) for need in needs if (verbs := tuple(_denied_verbs(cluster, need)))]


def readable(refused: Iterable[Need], resource: str) -> bool:
    return not any(need.resource == resource and "get" in need.verbs for need in refused)


def require(cluster: Cluster, missing: list[str], refused: list[Need], needs: Iterable[Need], *, role: str, user: str) -> None:  # fmt: skip
    """Raises UserError with all that is missing and, where permissions are, a Role with all needs for the account."""
    missing = [*(str(need) for need in refused), *missing]
    if missing:
        lines = "\n".join(f"  - {line}" for line in missing)
        to_apply = _role(cluster, needs, name=role) if refused else ""
        raise UserError(f"namespace {cluster.namespace} lacks what {user} needs:\n{lines}{to_apply}")


def claim_faults(cluster: Cluster, name: str, *, nodes: int) -> Iterator[str]:
    """Yields what keeps the pods of so many nodes from using a claim."""
    claim = cluster.find(cluster.path("v1", "persistentvolumeclaims", name))
    if claim is None:
        yield f"claim {name}: create it, as helm/training does, or name another with --claim"
        return
    modes = claim["spec"].get("accessModes") or []
    if claim["metadata"].get("deletionTimestamp") or (claim.get("status") or {}).get("phase") == "Lost":
        yield f"claim {name} that can be used: it is being deleted, or its volume is lost"
    if "ReadWriteMany" not in modes and (nodes > 1 or "ReadWriteOnce" not in modes):
        yield f"claim {name} with access mode ReadWriteMany for {nodes} pods: it has {', '.join(modes)}"


def queue_faults(cluster: Cluster, name: str) -> Iterator[str]:
    """Yields what keeps a queue of Kueue from admitting a job."""
    group = cluster.find(f"/apis/{_KUEUE}")
    version = group["preferredVersion"]["groupVersion"] if group else ""
    queue = cluster.find(cluster.path(version, "localqueues", name)) if version else None
    if queue is None:
        yield f"queue {name}: create a LocalQueue of Kueue, as helm/training does, or leave --queue out"
        return
    for condition in (queue.get("status") or {}).get("conditions") or []:
        if condition["type"] == "Active" and condition["status"] == "False":
            yield f"queue {name} that is active: {condition.get('message', condition.get('reason', ''))}"


def _denied_verbs(cluster: Cluster, need: Need) -> Iterator[str]:
    resource, _, part = need.resource.partition("/")
    for verb in need.verbs:
        attributes = {"namespace": cluster.namespace, "verb": verb, "group": need.group, "resource": resource, "subresource": part}  # fmt: skip
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }
        answer = cluster.request("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body=review)
        if not answer["status"].get("allowed"):
            yield verb


def _role(cluster: Cluster, needs: Iterable[Need], *, name: str) -> str:
    """Returns a Role with all needs, bound to the account of this client, as YAML to apply."""
    rules = [{"apiGroups": [need.group], "resources": [need.resource], "verbs": list(need.verbs)} for need in needs]
    metadata = {"name": name, "namespace": cluster.namespace}
    objects = [
        {"apiVersion": f"{_RBAC}/v1", "kind": "Role", "metadata": metadata, "rules": rules},
        {"apiVersion": f"{_RBAC}/v1", "kind": "RoleBinding", "metadata": metadata, "subjects": [_account(cluster)],
         "roleRef": {"apiGroup": _RBAC, "kind": "Role", "name": name}},
    ]  # fmt: skip
    text = "---\n".join(go_yaml.dump(item) for item in objects)
    return f"\n\nA Role to apply, with kubectl apply -f:\n\n{text}"


def _account(cluster: Cluster) -> Object:
    """Returns the service account or user of this client."""
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    try:
        answer = cluster.request("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", body=review)
        user: str = answer["status"]["userInfo"]["username"]
    except ApiError:  # before Kubernetes 1.28
        user = f"system:serviceaccount:{cluster.namespace}:pipeline-runner"
    if user.startswith("system:serviceaccount:"):
        _, _, namespace, name = user.split(":")
        return {"kind": "ServiceAccount", "namespace": namespace, "name": name}
    return {"kind": "User", "apiGroup": _RBAC, "name": user}
