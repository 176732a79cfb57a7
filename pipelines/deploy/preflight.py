"""The check of a deployment before anything changes: permissions, program, claim, values and API key."""

import base64
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from pydantic import SecretStr

from pipelines.cluster.client import ApiError, Cluster, Object
from pipelines.cluster.permissions import Need, claim_faults, denied, readable, require
from pipelines.deploy.helm import DryRun, Helm
from pipelines.deploy.settings import DeployConfig
from server.errors import UserError
from server.http.client import read_api_key

_READ = ("get", "list", "watch")
BASE_NEEDS = (
    Need("", "secrets", ("get", "list", "create", "update", "delete")),  # where Helm keeps its releases
    Need("", "pods", _READ),
    Need("", "pods/log", ("get",)),
    Need("apps", "replicasets", _READ),
    Need("", "events", ("list", "watch")),
    Need("", "persistentvolumeclaims", ("get",)),
)
_CREATE = (*_READ, "create", "patch", "delete")
_PLURALS = {"NetworkPolicy": "networkpolicies", "Ingress": "ingresses"}
_DEFAULT_KINDS = (
    ("apps", "Deployment"),
    ("", "Service"),
    ("", "ServiceAccount"),
    ("autoscaling", "HorizontalPodAutoscaler"),
    ("networking.k8s.io", "NetworkPolicy"),
    ("policy", "PodDisruptionBudget"),
)


def preflight(cluster: Cluster, config: DeployConfig, helm: Helm, dry_run: Callable[[], DryRun]) -> DryRun:
    """Returns the result of the dry run; UserError with everything that is missing and, where it is permissions, the Role to apply."""
    missing, done = [], DryRun({}, [])
    refused = denied(cluster, BASE_NEEDS)
    if shutil.which(config.helm) is None:
        missing.append(f"the program {config.helm}: use the image distrinews-pipelines, or install Helm 4.1 or newer")
    elif readable(refused, "secrets"):
        try:
            helm.version()
            done = dry_run()
        except UserError as error:
            missing.append(f"a release that Helm can make: {error}")
    needs = [*BASE_NEEDS, *needs_of(done.objects)]
    refused += denied(cluster, needs[len(BASE_NEEDS) :])
    if readable(refused, "persistentvolumeclaims"):
        missing += claim_faults(cluster, config.claim, nodes=1)
    require(cluster, missing, refused, needs, role="distrinews-deploy", user=f"release {config.release}")
    return done


def needs_of(objects: Iterable[Object]) -> list[Need]:
    """Returns the permissions to create these objects without hooks and tests or, without any, those of the chart's defaults."""
    kinds = {
        (item["apiVersion"].rpartition("/")[0], item["kind"])
        for item in objects
        if "helm.sh/hook" not in (item["metadata"].get("annotations") or {})
    }
    return [Need(group, _PLURALS.get(kind, f"{kind.lower()}s"), _CREATE) for group, kind in sorted(kinds or _DEFAULT_KINDS)]  # fmt: skip


def find_api_key(config: DeployConfig, values: Object, cluster: Cluster) -> SecretStr | None:
    """Finds the key in the file, the environment, or the Secret of the chart's own test; None where the server wants none."""
    if key := read_api_key(Path(config.api_key_file) if config.api_key_file else None):
        return key
    tests = values.get("tests") or {}
    if secret := tests.get("apiKeySecret"):
        return _key_of_secret(cluster, secret, tests.get("apiKeySecretKey") or "api-key")
    if secret := (values.get("apiKeys") or {}).get("existingSecret"):
        raise UserError(
            f"the server wants an API key (apiKeys.existingSecret is {secret}) and there is none to verify it with: "
            "set api_key_file, DISTRINEWS_API_KEY, or the chart's tests.apiKeySecret"
        )
    return None


def _key_of_secret(cluster: Cluster, name: str, entry: str) -> SecretStr:
    where = f"Secret {name} in namespace {cluster.namespace}, which tests.apiKeySecret names"
    try:
        data = cluster.request("GET", cluster.path("v1", "secrets", name)).get("data") or {}
    except ApiError as error:
        raise UserError(f"{where}: {error.message}") from error
    if entry not in data:
        raise UserError(f"{where}: has no entry {entry}, only {', '.join(data) or 'none'}")
    return SecretStr(base64.b64decode(data[entry]).decode().strip())
