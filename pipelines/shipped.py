"""Folders that come with the package but are no code: manifests/ and the chart of the server."""

import sysconfig
from pathlib import Path

_DATA = Path("share", "distrinews")


def shipped(folder: str) -> Path:
    """Beside our packages, as in a checkout and in an image, or among the data of an installed package (pip --target puts that there too)."""
    root = Path(__file__).parents[1]
    places = [root / folder, root / _DATA / folder, Path(sysconfig.get_path("data")) / _DATA / folder]
    return next((place for place in places if place.is_dir()), places[-1])
