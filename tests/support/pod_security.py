"""The Pod Security standard `restricted`, as a function: what the admission of a namespace would refuse."""

from collections.abc import Iterator, Mapping
from typing import Any

_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
_SECCOMP = ("RuntimeDefault", "Localhost")
_KINDS = ("initContainers", "containers", "ephemeralContainers")


def violations(spec: Mapping[str, Any]) -> list[str]:
    """Each with the place in the pod's spec; none when it may run."""
    return [
        *_of_pod(spec),
        *(fault for place, container in _containers(spec) for fault in _of_container(place, container, spec)),
    ]


def _containers(spec: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for kind in _KINDS:
        for container in spec.get(kind) or []:
            yield f"{kind}[{container['name']}]", container


def _of_pod(spec: Mapping[str, Any]) -> Iterator[str]:
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(name):
            yield f"{name} is set"
    for volume in spec.get("volumes") or []:
        for kind in volume.keys() - {"name"} - _VOLUMES:
            yield f"volumes[{volume['name']}] is of the kind {kind}"
    if (spec.get("securityContext") or {}).get("sysctls"):
        yield "securityContext.sysctls are set"


def _of_container(place: str, container: Mapping[str, Any], spec: Mapping[str, Any]) -> Iterator[str]:
    own = container.get("securityContext") or {}
    both = (spec.get("securityContext") or {}) | own
    if both.get("runAsNonRoot") is not True:
        yield f"{place} may run as root"
    if both.get("runAsUser") == 0:
        yield f"{place} runs as user 0"
    if (both.get("seccompProfile") or {}).get("type") not in _SECCOMP:
        yield f"{place} has no seccomp profile"
    if own.get("allowPrivilegeEscalation") is not False:
        yield f"{place} may gain privileges"
    if own.get("privileged"):
        yield f"{place} is privileged"
    capabilities = own.get("capabilities") or {}
    if "ALL" not in (capabilities.get("drop") or []):
        yield f"{place} keeps capabilities"
    if set(capabilities.get("add") or []) - {"NET_BIND_SERVICE"}:
        yield f"{place} adds capabilities"
    if own.get("procMount", "Default") != "Default":
        yield f"{place} has another /proc"
    if any(port.get("hostPort") for port in container.get("ports") or []):
        yield f"{place} takes a port of the node"
