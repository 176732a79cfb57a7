"""What we may do on the cluster, asked before it is done, and the Role that would allow it."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import yaml

from pipelines.cluster.client import Cluster, Refused
from pipelines.job.settings import Object


class Need(NamedTuple):
    """Permission to use some verbs on a kind of objects."""

    group: str
    resource: str
    verbs: tuple[str, ...]

    def __str__(self) -> str:
        return f"permission to {', '.join(self.verbs)} {self.resource}"


def denied_of(cluster: Cluster, needs: Iterable[Need]) -> list[Need]:
    """What we may not do, out of all this."""
    return [need._replace(verbs=verbs) for need in needs if (verbs := tuple(_denied(cluster, need)))]


def as_list(missing: Iterable[str]) -> str:
    return "\n".join(f"  - {line}" for line in missing)


def role(cluster: Cluster, needs: Iterable[Need], *, name: str) -> str:
    """A Role with all that is needed, bound to who asks, to end a message with."""
    rules = [{"apiGroups": [need.group], "resources": [need.resource], "verbs": list(need.verbs)} for need in needs]
    metadata = {"name": name, "namespace": cluster.namespace}
    api = "rbac.authorization.k8s.io"
    objects = [
        {"apiVersion": f"{api}/v1", "kind": "Role", "metadata": metadata, "rules": rules},
        {"apiVersion": f"{api}/v1", "kind": "RoleBinding", "metadata": metadata, "subjects": [_who(cluster)],
         "roleRef": {"apiGroup": api, "kind": "Role", "name": name}},
    ]  # fmt: skip
    text = "---\n".join(yaml.safe_dump(item, sort_keys=False) for item in objects)
    return f"\n\nA Role to apply, with kubectl apply -f:\n\n{text}"


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
