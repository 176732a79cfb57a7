"""The strict schemas of Kubernetes' own objects, in every version that we support."""

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from jsonschema import Draft202012Validator
from kubernetes_validate.utils import all_versions, major_minor
from referencing import Registry, Resource

_OLDEST = 31
VERSIONS = tuple(dict.fromkeys(name for name in all_versions() if int(major_minor(name).split(".")[1]) >= _OLDEST))


def is_kubernetes_own(entry: Mapping[str, Any]) -> bool:
    """Returns whether the API server knows the kind without a custom resource definition."""
    group = entry["apiVersion"].rpartition("/")[0]
    return "." not in group or (group.endswith(".k8s.io") and not group.startswith("gateway.networking."))


def faults(entry: Mapping[str, Any], version: str) -> list[str]:
    """Returns each deviation from the version's schema with its path; unknown fields are deviations."""
    found = _validator(version, entry["kind"], entry["apiVersion"]).iter_errors(entry)
    return [f"{'.'.join(map(str, error.path))}: {error.message}" for error in found]


@cache
def _validator(version: str, kind: str, api_version: str) -> Draft202012Validator:
    # kubernetes_validate.validate reads the megabyte of definitions again for each object.
    group, _, number = api_version.rpartition("/")
    short = "-".join(part for part in (kind.lower(), group.split(".")[0], number) if part)
    schema = json.loads((_folder(version) / f"{short}.json").read_text(encoding="utf-8"))
    return Draft202012Validator(schema, registry=_definitions(version))


@cache
def _definitions(version: str) -> Registry[Any]:
    text = (_folder(version) / "_definitions.json").read_text(encoding="utf-8")
    return Resource.from_contents(json.loads(text)) @ Registry()


def _folder(version: str) -> Any:  # noqa: ANN401 - importlib's Traversable, which has no name in 3.11's typing
    return files("kubernetes_validate") / "kubernetes-json-schema" / f"v{version}-local-strict"
