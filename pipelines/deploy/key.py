"""The API key with which the new server is asked."""

import base64
from pathlib import Path

from pydantic import SecretStr

from pipelines.cluster.client import ApiError, Cluster, Object
from pipelines.deploy.settings import Credentials, DeployConfig
from pipelines.deploy.values import at
from server.errors import UserError


def api_key(config: DeployConfig, values: Object, cluster: Cluster) -> SecretStr | None:
    """From the file, the environment, or the Secret of the chart's own test; None where there is none."""
    if config.api_key_file:
        try:
            return SecretStr(Path(config.api_key_file).read_text(encoding="utf-8").strip())
        except OSError as error:
            raise UserError(f"api_key_file {config.api_key_file}: cannot be read: {error.strerror}") from error
    if key := Credentials().api_key:
        return key
    if secret := at(values, "tests.apiKeySecret"):
        return _of_secret(cluster, secret, at(values, "tests.apiKeySecretKey") or "api-key")
    if secret := at(values, "apiKeys.existingSecret"):
        raise UserError(
            f"the server wants an API key (apiKeys.existingSecret is {secret}) and there is none to ask it with: "
            "set api_key_file, DISTRINEWS_API_KEY, or the chart's tests.apiKeySecret"
        )
    return None


def _of_secret(cluster: Cluster, name: str, entry: str) -> SecretStr:
    where = f"Secret {name} in namespace {cluster.namespace}, which tests.apiKeySecret names"
    try:
        data = cluster.request("GET", cluster.path("v1", "secrets", name)).get("data") or {}
    except ApiError as error:
        raise UserError(f"{where}: {error.message}") from error
    if entry not in data:
        raise UserError(f"{where}: has no entry {entry}, only {', '.join(data) or 'none'}")
    return SecretStr(base64.b64decode(data[entry]).decode().strip())
