"""Names of the images that the components run in."""

from importlib.metadata import version

TRAINER = f"distrinews-trainer:{version('distrinews')}"
"""PyTorch, the trainer, and what a step needs of Kubeflow."""

PIPELINES = f"distrinews-pipelines:{version('distrinews')}"
"""The Kubernetes client, Helm, our charts and manifests."""
