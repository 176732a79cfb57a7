"""The pipeline around the trainer and the server; here, the names of its images and the folders of data that it ships."""

import sysconfig
from importlib.metadata import version
from pathlib import Path

TRAINER = f"distrinews-trainer:{version('distrinews')}"
"""Image with PyTorch, the trainer, and the part of Kubeflow that a step needs."""

PIPELINES = f"distrinews-pipelines:{version('distrinews')}"
"""Image with the Kubernetes client, Helm, our charts and manifests."""

_DATA = Path("share", "distrinews")


def data_folder(name: str) -> Path:
    """Finds a folder that comes with the package but is no code, such as manifests/ or helm/serving.

    It lies beside our packages, as in a checkout and in an image, or among the data of an installed package
    (pip --target puts that there too).
    """
    root = Path(__file__).parents[1]
    places = [root / name, root / _DATA / name, Path(sysconfig.get_path("data")) / _DATA / name]
    return next((place for place in places if place.is_dir()), places[-1])
