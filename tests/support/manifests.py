"""Our manifests, as `kubectl apply -k` sends them."""

import functools
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.support.tools import kubectl

MANIFESTS = Path(__file__).parents[2] / "manifests"


@functools.cache
def kustomized(folder: str) -> str:
    command = [str(kubectl("v35")), "kustomize", str(MANIFESTS / folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout


def render(folder: str) -> dict[str, Any]:
    """Returns the one object of a folder."""
    (document,) = yaml.safe_load_all(kustomized(folder))
    return dict(document)
