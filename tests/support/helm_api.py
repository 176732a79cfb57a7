"""The API server of the tests with discovery, updates and server-side apply, which Helm needs."""

import base64
from collections import defaultdict
from functools import partial

from tests.support import api_server
from tests.support.api_server import Failure, Handler
from tests.support.store import Object

_RESOURCES = {
    "v1": {
        "services": "Service",
        "serviceaccounts": "ServiceAccount",
        "secrets": "Secret",
        "pods": "Pod",
        "events": "Event",
    },
    "apps/v1": {"deployments": "Deployment", "replicasets": "ReplicaSet"},
    "autoscaling/v2": {"horizontalpodautoscalers": "HorizontalPodAutoscaler"},
    "networking.k8s.io/v1": {"networkpolicies": "NetworkPolicy", "ingresses": "Ingress"},
    "policy/v1": {"poddisruptionbudgets": "PodDisruptionBudget"},
}
_PROTOBUF = b"k8s\0"
_VERBS = ["create", "delete", "get", "list", "patch", "update", "watch"]


class _Handler(Handler):
    def handle_any(self) -> None:
        known = self._discovery(self.path.split("?")[0].rstrip("/"))
        if known is None:
            super().handle_any()
        else:
            self.answer(known)

    do_GET = do_POST = do_DELETE = do_PATCH = do_PUT = handle_any  # noqa: N815 - named by the base

    def body(self, data: bytes) -> Object:
        return _secret(data) if data.startswith(_PROTOBUF) else super().body(data)

    def _discovery(self, path: str) -> Object | None:
        groups = [version for version in _RESOURCES if "/" in version]
        version = path.removeprefix("/apis/").removeprefix("/api/")
        if path == "/version":
            return {"major": "1", "minor": "34", "gitVersion": "v1.34.0"}
        if path == "/api":
            return {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/apis":
            listed = [
                {"name": name.split("/")[0], "versions": [one], "preferredVersion": one}
                for name in groups
                for one in [{"groupVersion": name, "version": name.split("/")[1]}]
            ]
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed}
        if path.startswith("/openapi/v3"):
            return _openapi(path.removeprefix("/openapi/v3").strip("/"))
        if version not in _RESOURCES:
            return None
        resources = [
            {"name": plural, "singularName": "", "namespaced": True, "kind": kind, "verbs": _VERBS}
            for plural, kind in _RESOURCES[version].items()
        ]
        return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources}

    def kind_of(self, plural: str, suffix: str = "") -> Object:
        version, kinds = next((version, kinds) for version, kinds in _RESOURCES.items() if plural in kinds)
        return {"apiVersion": version, "kind": kinds[plural] + suffix}

    def watch(self, plural: str, query: dict[str, str]) -> None:
        if "sendInitialEvents" in query:
            raise Failure(422, "Invalid", "sendInitialEvents is forbidden")  # as of an older server: it lists instead
        super().watch(plural, query)

    def one(self, plural: str, name: str, body: Object) -> None:
        store = self.server.store
        if self.command not in ("PUT", "PATCH"):
            super().one(plural, name, body)
            return
        with store.changed:
            there = store.objects[plural].get(name, {"metadata": {}})
            item = {**body, "metadata": {**there["metadata"], **body["metadata"]}}
            if "status" in there:
                item["status"] = there["status"]
            if plural == "deployments":  # without a number of pods the autoscaler sets it
                item["spec"] = {"replicas": there.get("spec", {}).get("replicas", 1), **item["spec"]}
                changed = there.get("spec") != item["spec"]
                item["metadata"]["generation"] = there["metadata"].get("generation", 0) + changed
            self.answer(store.put(plural, item))


def _secret(data: bytes) -> Object:
    """Reads a Secret from the protobuf of Kubernetes, which Helm writes; any other object is empty."""
    envelope = _fields(data[len(_PROTOBUF) :])
    if _fields(envelope[1][0])[2] != [b"Secret"]:
        return {}
    secret = _fields(envelope[2][0])
    metadata = _fields(secret[1][0])
    labels = [_fields(pair) for pair in metadata.get(11, [])]
    content = [_fields(pair) for pair in secret.get(2, [])]
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": metadata[1][0].decode(),
            "labels": {pair[1][0].decode(): pair[2][0].decode() for pair in labels},
        },
        "data": {pair[1][0].decode(): base64.b64encode(pair[2][0]).decode() for pair in content},
        "type": secret[3][0].decode(),
    }


def _fields(message: bytes) -> dict[int, list[bytes]]:
    """Reads the fields of a protobuf message that have a length, by their numbers; we need no others."""
    found: dict[int, list[bytes]] = defaultdict(list)
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        value, at = _varint(message, at)
        if key % 8 == 2:
            found[key // 8].append(message[at : at + value])
            at += value
    return found


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (message[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if message[at - 1] < 0x80:
            return value, at


def _root(version: str) -> str:
    return f"apis/{version}" if "/" in version else f"api/{version}"


def _openapi(root: str) -> Object:
    """States that the server validates fields itself, which is all that Helm reads of it."""
    if not root:
        return {
            "paths": {_root(version): {"serverRelativeURL": f"/openapi/v3/{_root(version)}"} for version in _RESOURCES}
        }
    version = root.partition("/")[2]
    group, _, short = version.rpartition("/")
    checks = [{"name": "fieldValidation", "in": "query"}]
    paths = {
        f"/{root}/namespaces/{{namespace}}/{plural}/{{name}}": {
            "patch": {
                "x-kubernetes-group-version-kind": {"group": group, "version": short, "kind": kind},
                "parameters": checks,
                "responses": {},
            }
        }
        for plural, kind in _RESOURCES[version].items()
    }
    return {"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "1"}, "paths": paths}


serving = partial(api_server.serving, handler=_Handler)
"""Serves a store on a free port, which it yields."""
