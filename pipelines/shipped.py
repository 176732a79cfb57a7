"""Folders that come with the package but are no code: manifests/ and the chart of the server."""

import sysconfig
from pathlib import Path


def shipped(folder: str) -> Path:
    """It stands beside our packages, as in a checkout and in an image, or among the data of an installed package."""
    beside = Path(__file__).parents[1] / folder
    return beside if beside.is_dir() else Path(sysconfig.get_path("data"), "share", "distrinews", folder)
