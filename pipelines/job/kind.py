"""All that knows the kind of job, a PyTorchJob of training operator 1.9: its names, fields, labels, and what its status means."""

from typing import Any

GROUP, VERSION, PLURAL, KIND = "kubeflow.org", "v1", "pytorchjobs", "PyTorchJob"
API_VERSION = f"{GROUP}/{VERSION}"

CONTAINER = "pytorch"
REPLICAS = ("Master", "Worker")
MAX_NAME = 52
"""Characters: the services of the pods are called <job>-worker-N and may have 63."""
GENERATED = 5
"""Characters that the API server adds to a generateName."""

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
ISTIO = "sidecar.istio.io/inject"
JOB_LABEL = "training.kubeflow.org/job-name"
REPLICA_LABELS = ("training.kubeflow.org/replica-type", "training.kubeflow.org/replica-index")

OPERATOR_ENVIRONMENT = (
    "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK",
    "PET_MASTER_", "PET_NNODES", "PET_NODE_RANK", "PET_NPROC_PER_NODE", "PET_RDZV_", "PET_MAX_RESTARTS",
)  # fmt: skip
"""Variables, or beginnings of their names, that the operator sets in every container."""


def gpus_of(resources: Any) -> int:  # noqa: ANN401 - whatever a manifest holds
    """GPUs that a container's limits ask for, of any vendor."""
    limits = resources.get("limits") if isinstance(resources, dict) else None
    if not isinstance(limits, dict):
        return 0
    counts = [str(count) for name, count in limits.items() if "gpu" in name.rpartition("/")[2]]
    return sum(int(count) for count in counts if count.isdigit())
