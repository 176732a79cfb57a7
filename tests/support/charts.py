"""Renders our charts with the real Helm, each rendering once for all tests."""

import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, get_args

import yaml

from tests.support.tools import Release, helm

HELM = Path(__file__).parents[2] / "helm"
CHARTS = ("serving", "training")
RELEASES = get_args(Release)
NEWEST: Release = "v37"
VALUE_SETS = tuple((chart, file.name) for chart in CHARTS for file in sorted((HELM / chart / "ci").glob("*.yaml")))


class HelmError(RuntimeError):
    """The output of a Helm that failed."""


@cache
def run_helm(release: Release, *args: str) -> str:
    done = subprocess.run([helm(release), *args], capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        raise HelmError(done.stdout + done.stderr)
    return done.stdout


def template(
    chart: str,
    values: str = "default-values.yaml",
    *sets: str,
    release: Release = NEWEST,
    folder: Path | None = None,
    name: str = "news",
) -> list[dict[str, Any]]:
    """Returns the objects of a release called `name` in the namespace prod."""
    folder = folder or HELM / chart
    flags = [flag for pair in sets for flag in ("--set-json", pair)]
    file = str(HELM / chart / "ci" / values)
    text = run_helm(release, "template", name, str(folder), "--namespace", "prod", "--values", file, *flags)
    return [document for document in yaml.safe_load_all(text) if document]


def only(objects: list[dict[str, Any]], kind: str, name: str = "news-distrinews-serving") -> dict[str, Any]:
    """Returns the one object of this kind and name."""
    (found,) = (entry for entry in objects if (entry["kind"], entry["metadata"]["name"]) == (kind, name))
    return found


def pods(objects: list[dict[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Yields each pod and each template of pods: metadata and spec."""
    for entry in objects:
        if entry["kind"] == "Pod":
            yield entry
        elif entry["kind"] == "Deployment":
            yield entry["spec"]["template"]


def rights(role: dict[str, Any]) -> dict[tuple[str, str], set[str]]:
    """Returns the verbs of a Role by group and resource."""
    found: dict[tuple[str, str], set[str]] = {}
    for rule in role["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                found.setdefault((group, resource), set()).update(rule["verbs"])
    return found
