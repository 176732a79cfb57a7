"""Everything that a deployment needs, checked before anything changes; all that is missing in one message."""

import shutil
from collections.abc import Callable, Iterable

from pipelines.cluster.client import Cluster, Object
from pipelines.cluster.permissions import Need, claim_faults, denied, readable, require
from pipelines.deploy.settings import DeployConfig
from server.errors import UserError

_READ = ("get", "list", "watch")
_BASE = (
    Need("", "secrets", ("get", "list", "create", "update", "delete")),  # where Helm keeps its releases
    Need("", "pods", _READ),
    Need("", "pods/log", ("get",)),
    Need("apps", "replicasets", _READ),
    Need("", "events", ("list", "watch")),
    Need("", "persistentvolumeclaims", ("get",)),
)
_MAKE = (*_READ, "create", "patch", "delete")
_PLURALS = {"NetworkPolicy": "networkpolicies", "Ingress": "ingresses"}
_ALWAYS = (
    ("apps", "Deployment"),
    ("", "Service"),
    ("", "ServiceAccount"),
    ("autoscaling", "HorizontalPodAutoscaler"),
    ("networking.k8s.io", "NetworkPolicy"),
    ("policy", "PodDisruptionBudget"),
)


def preflight(cluster: Cluster, config: DeployConfig, render: Callable[[], list[Object]]) -> list[Object]:
    """The objects that will be made; UserError with everything that is missing and, where it is permissions, the Role to apply."""
    missing, rendered = [], list[Object]()
    refused = denied(cluster, _BASE)
    if shutil.which(config.helm) is None:
        missing.append(f"the program {config.helm}: use the image distrinews-pipelines, or install Helm 3.13 or newer")
    elif readable(refused, "secrets"):
        try:
            rendered = render()
        except UserError as error:
            missing.append(f"values that the chart takes: {error}")
    needs = [*_BASE, *needs_of(rendered)]
    refused += denied(cluster, needs[len(_BASE) :])
    if readable(refused, "persistentvolumeclaims"):
        missing += claim_faults(cluster, config.claim, nodes=1)
    require(cluster, missing, refused, needs, role="distrinews-deploy", user=f"release {config.release}")
    return rendered


def needs_of(objects: Iterable[Object]) -> list[Need]:
    """To make these objects, hooks and tests left out; without any, those of the chart's defaults."""
    kinds = {
        (item["apiVersion"].rpartition("/")[0], item["kind"])
        for item in objects
        if "helm.sh/hook" not in (item["metadata"].get("annotations") or {})
    }
    return [Need(group, _PLURALS.get(kind, f"{kind.lower()}s"), _MAKE) for group, kind in sorted(kinds or _ALWAYS)]
