"""All that knows the kind of job, a PyTorchJob of training operator 1.9: its names, fields, labels, and what its status means."""

import json
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal, TypeAlias

from kubeflow.training.api_client import ApiClient
from kubeflow.training.models import KubeflowOrgV1PyTorchJob
from kubernetes.client import V1PodTemplateSpec

Object = dict[str, Any]

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

BASE = "base/pytorchjob.yaml"
"""The manifest that a run's job is made of, in manifests/."""

Job: TypeAlias = KubeflowOrgV1PyTorchJob
_MODELS = ApiClient()  # turns JSON into models and back; it asks no server

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


def read(manifest: Object) -> Job:
    """A manifest, or what the API server answers, as a typed model."""
    return typed(manifest, "KubeflowOrgV1PyTorchJob")


def typed(value: object, kind: str) -> Any:  # noqa: ANN401 - of the kind that is asked for
    """Plain values as a typed model of Kubernetes or Kubeflow, such as V1Toleration or list[V1Volume]."""
    return _MODELS.deserialize(SimpleNamespace(data=json.dumps(value)), kind)


def plain(model: object) -> Any:  # noqa: ANN401 - whatever the model holds
    """A typed model as the plain values of its JSON."""
    return _MODELS.sanitize_for_serialization(model)


def shape(job: Job, *, nodes: int, at_least: int, processes: int, elastic: bool, backoff_limit: int | None) -> None:
    """Make it a job of so many pods, of so many processes each, and of so many restarts; where it is elastic, fewer pods may do."""
    if backoff_limit is not None:
        job.spec.run_policy.backoff_limit = backoff_limit
    job.spec.nproc_per_node = str(processes)
    specs = job.spec.pytorch_replica_specs
    if elastic:
        specs["Worker"].replicas = nodes
        job.spec.elastic_policy.min_replicas, job.spec.elastic_policy.max_replicas = at_least, nodes
    elif nodes == 1:
        del specs["Worker"]
    else:
        specs["Worker"].replicas = nodes - 1


def pod_specs(manifest: Object) -> list[Object]:
    """The specs of the pods in a manifest, to change."""
    return [replica["template"]["spec"] for replica in manifest["spec"]["pytorchReplicaSpecs"].values()]


def pod_templates(job: Job) -> list[V1PodTemplateSpec]:
    return [spec.template for spec in job.spec.pytorch_replica_specs.values()]


def pod_count(job: Job) -> int:
    """Pods that the job has when all of them are there."""
    return sum(spec.replicas or 1 for spec in job.spec.pytorch_replica_specs.values())


def pods_needed(job: Job) -> int:
    """Pods without which it does not train."""
    policy = job.spec.elastic_policy
    return (policy and policy.min_replicas) or pod_count(job)


def rank_name(pod: Object) -> str:
    """What a pod is called among those of its job, such as master-0."""
    labels = pod["metadata"].get("labels") or {}
    return "-".join(str(labels.get(label, "?")) for label in REPLICA_LABELS)


def is_of_job(name: str, *, job: str) -> bool:
    """Whether an object of this name is the job, one of its pods and services, or its workload in Kueue's queue."""
    return name == job or name.startswith(
        (*(f"{job}-{replica.lower()}-" for replica in REPLICAS), f"{KIND.lower()}-{job}-")
    )


@dataclass(frozen=True)
class State:
    """How a job stands, from its conditions."""

    phase: Literal["waiting", "running", "succeeded", "failed"]
    reason: str = ""
    message: str = ""
    suspended: bool = False

    @property
    def is_final(self) -> bool:
        return self.phase in ("succeeded", "failed")


def state(job: Object) -> State:
    """How a job stands; Kueue's or a user's suspension is a kind of waiting."""
    found = {
        condition["type"]: condition
        for condition in (job.get("status") or {}).get("conditions") or []
        if condition.get("status") == "True"
    }
    for name, phase in (("Succeeded", "succeeded"), ("Failed", "failed")):
        if name in found:
            return State(phase, found[name].get("reason", ""), found[name].get("message", ""))  # type: ignore[arg-type]  # one of the two
    suspended = "Suspended" in found or bool(job["spec"].get("runPolicy", {}).get("suspend"))
    if "Running" in found and not suspended:
        return State("running")
    return State("waiting", suspended=suspended)


def finished_at(job: Object) -> str | None:
    """When the job ended: its completion or, as some failures leave that unset, when the condition changed."""
    status = job.get("status") or {}
    if status.get("completionTime"):
        return str(status["completionTime"])
    times = [
        condition.get("lastTransitionTime")
        for condition in status.get("conditions") or []
        if condition.get("type") in ("Succeeded", "Failed") and condition.get("status") == "True"
    ]
    return times[0] if times else None
