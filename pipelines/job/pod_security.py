"""The Pod Security standard `restricted`: what the admission of a namespace refuses."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip
_SECCOMP = ("RuntimeDefault", "Localhost")
_KINDS = ("initContainers", "containers", "ephemeralContainers")

Spec = Mapping[str, Any]


class Violation(NamedTuple):
    """A field that the standard refuses, its path in the pod's spec, and how to fix it."""

    path: tuple[str | int, ...]
    rule: str
    message: str
    fix: str


def violations(spec: Spec) -> Iterator[Violation]:
    """Yields everything that keeps a pod from running under `restricted`."""
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(name):
            yield Violation((name,), "host", f"{name} is set", "remove it")
    for number, volume in enumerate(spec.get("volumes") or []):
        for kind in volume.keys() - {"name"} - _VOLUMES:
            yield Violation(("volumes", number), "volume", f"a volume is of the kind {kind}", "mount a claim or an emptyDir")  # fmt: skip
    if (spec.get("securityContext") or {}).get("sysctls"):
        yield Violation(("securityContext", "sysctls"), "sysctls", "sysctls are set", "remove them")
    for kind in _KINDS:
        for number, container in enumerate(spec.get(kind) or []):
            for rule, message, fix in _of_container(container, spec):
                yield Violation((kind, number), rule, f"container {container.get('name')} {message}", fix)


def _of_container(container: Spec, spec: Spec) -> Iterator[tuple[str, str, str]]:
    own = container.get("securityContext") or {}
    both = (spec.get("securityContext") or {}) | own
    if both.get("runAsNonRoot") is not True or both.get("runAsUser") == 0:
        yield "root", "may run as root", "set securityContext.runAsNonRoot: true and a runAsUser that is not 0"
    if (both.get("seccompProfile") or {}).get("type") not in _SECCOMP:
        yield "seccomp", "has no seccomp profile", "set securityContext.seccompProfile.type: RuntimeDefault"
    if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
        yield (
            "privileges",
            "may gain privileges",
            "set securityContext.allowPrivilegeEscalation: false, and not privileged",
        )
    capabilities = own.get("capabilities") or {}
    if "ALL" not in (capabilities.get("drop") or []) or set(capabilities.get("add") or []) - {"NET_BIND_SERVICE"}:
        yield "capabilities", "keeps capabilities of root", "set securityContext.capabilities.drop: [ALL], and add none"
    if own.get("procMount", "Default") != "Default":
        yield "proc-mount", "has another /proc", "remove securityContext.procMount"
    if any(port.get("hostPort") for port in container.get("ports") or []):
        yield "host-port", "takes a port of the node", "remove hostPort"
