"""The PyTorchJob of training operator 1.9: everything that knows its names, fields and labels."""

import json
from types import SimpleNamespace
from typing import Any

import jsonpatch
import yaml
from kubeflow.training.api_client import ApiClient
from kubeflow.training.models import (
    KubeflowOrgV1ElasticPolicy,
    KubeflowOrgV1PyTorchJob,
    KubeflowOrgV1PyTorchJobSpec,
    KubeflowOrgV1ReplicaSpec,
    KubeflowOrgV1RunPolicy,
)
from kubernetes.client import V1ObjectMeta, V1OwnerReference

from pipelines import data_folder
from pipelines.job.backends import Backend, Meta, Pods, State
from pipelines.job.pod import PodOverrides, lost_fields, merged
from pipelines.job.settings import JobConfig, Object
from server.errors import UserError

REPLICAS = ("Master", "Worker")
_JOB_LABEL = "training.kubeflow.org/job-name"
_REPLICA_LABELS = ("training.kubeflow.org/replica-type", "training.kubeflow.org/replica-index")
_MODELS = ApiClient()  # converts JSON and models; it sends no request


class PyTorchJob:
    group, version, plural, kind = "kubeflow.org", "v1", "pytorchjobs", "PyTorchJob"
    container = "pytorch"
    max_name = 52  # the services of the pods are called <job>-worker-N and may have 63 characters
    install = "install the Kubeflow training operator 1.9"

    def manifest(self, pod: PodOverrides, job: JobConfig, meta: Meta, *, min_nodes: int) -> Object:
        """Fills manifests/ in, through the operator's own models."""
        base = _base(gpu=pod.gpus > 0, elastic=job.elastic)
        spec = base["spec"]
        replica = spec["pytorchReplicaSpecs"]["Worker"]  # a Master's pods are the same
        template = merged(replica["template"], pod, container=self.container)
        counts = {"Worker": job.nodes} if job.elastic else {"Master": 1, "Worker": job.nodes - 1}
        policy, elastic = spec["runPolicy"], spec.get("elasticPolicy")
        if job.backoff_limit is not None:
            policy["backoffLimit"] = job.backoff_limit
        model = KubeflowOrgV1PyTorchJob(
            api_version=f"{self.group}/{self.version}",
            kind=self.kind,
            metadata=V1ObjectMeta(
                name=meta.name, namespace=meta.namespace, labels=base["metadata"]["labels"] | meta.labels,
                annotations=meta.annotations or None, owner_references=[_reference(meta)] if meta.owner else None,
            ),
            spec=KubeflowOrgV1PyTorchJobSpec(
                nproc_per_node=str(pod.processes),
                run_policy=_typed(policy, KubeflowOrgV1RunPolicy),
                elastic_policy=_typed(elastic | {"minReplicas": min_nodes, "maxReplicas": job.nodes}, KubeflowOrgV1ElasticPolicy) if elastic else None,
                pytorch_replica_specs={
                    name: _typed({"replicas": count, "restartPolicy": replica["restartPolicy"], "template": template}, KubeflowOrgV1ReplicaSpec)
                    for name, count in counts.items()
                    if count
                },
            ),
        )  # fmt: skip
        manifest: Object = _MODELS.sanitize_for_serialization(model)
        if lost := lost_fields(template, self.template(manifest)):
            raise UserError(f"{lost[0]} of the pod template: Kubernetes has no such field")
        return manifest

    def template(self, job: Object) -> Object:
        """Returns the pod template of rank 0."""
        specs = job["spec"]["pytorchReplicaSpecs"]
        found: Object = next(specs[name] for name in REPLICAS if name in specs)["template"]
        return found

    def state(self, job: Object) -> State:
        """Reads the conditions; a suspension by Kueue or a user is a kind of waiting."""
        found = _conditions(job)
        if "Succeeded" in found:
            return State("succeeded", found["Succeeded"].get("reason", ""), found["Succeeded"].get("message", ""))
        if "Failed" in found:
            return State("failed", found["Failed"].get("reason", ""), found["Failed"].get("message", ""))
        suspended = "Suspended" in found or bool((job["spec"].get("runPolicy") or {}).get("suspend"))
        if "Running" in found and not suspended:
            return State("running")
        return State("waiting", suspended=suspended)

    def finished_at(self, job: Object) -> str | None:
        """Returns the completion time or, as some failures leave that unset, when the condition changed."""
        if completed := (job.get("status") or {}).get("completionTime"):
            return str(completed)
        found = _conditions(job)
        return next((found[name].get("lastTransitionTime") for name in ("Succeeded", "Failed") if name in found), None)

    def pods(self, job: Object) -> Pods:
        specs = (job["spec"].get("pytorchReplicaSpecs") or {}).values()
        expected = sum(1 if spec.get("replicas") is None else int(spec["replicas"]) for spec in specs)
        least = (job["spec"].get("elasticPolicy") or {}).get("minReplicas")
        return Pods(expected, expected if least is None else int(least))

    def selector(self, name: str) -> str:
        return f"{_JOB_LABEL}={name}"

    def rank(self, pod: Object) -> str:
        """Returns the name of a pod within its job, such as master-0."""
        labels = pod["metadata"].get("labels") or {}
        return "-".join(str(labels.get(label, "?")) for label in _REPLICA_LABELS)

    def owns(self, name: str, *, job: str) -> bool:
        """Returns whether an object of this name is the job, one of its pods or services, or its workload in Kueue."""
        prefixes = (*(f"{job}-{replica.lower()}-" for replica in REPLICAS), f"{self.kind.lower()}-{job}-")
        return name == job or name.startswith(prefixes)


BACKEND: Backend = PyTorchJob()


def _conditions(job: Object) -> dict[str, Object]:
    entries = (job.get("status") or {}).get("conditions") or []
    return {entry["type"]: entry for entry in entries if entry.get("status") == "True"}


def _reference(meta: Meta) -> V1OwnerReference:
    assert meta.owner  # noqa: S101 - for mypy
    return V1OwnerReference(api_version="v1", kind="Pod", name=meta.owner.pod_name, uid=meta.owner.pod_uid)


def _typed(value: object, model: type) -> Any:  # noqa: ANN401 - a model
    return _MODELS.deserialize(SimpleNamespace(data=json.dumps(value)), model)


def _base(*, gpu: bool, elastic: bool) -> Object:
    """Returns the base manifest with the overlays that apply; tolerations of several overlays are joined."""
    base: Object = json.loads(json.dumps(_load("base/pytorchjob.yaml")))  # an anchor makes Master and Worker one object
    for overlay in [name for name, wanted in (("gpu", gpu), ("elastic", elastic)) if wanted]:
        before = _pod_specs(base)[0].get("tolerations", [])
        base = jsonpatch.apply_patch(base, _load(f"overlays/{overlay}/patch.yaml"))
        for spec in _pod_specs(base):
            spec["tolerations"] = [*before, *(new for new in spec.get("tolerations", []) if new not in before)]
    return base


def _pod_specs(manifest: Object) -> list[Object]:
    return [replica["template"]["spec"] for replica in manifest["spec"]["pytorchReplicaSpecs"].values()]


def _load(name: str) -> Any:  # noqa: ANN401 - whatever the file holds
    file = data_folder("manifests") / name
    if not file.is_file():
        raise UserError(f"{file} is missing: the package was built without manifests/")
    return yaml.safe_load(file.read_text(encoding="utf-8"))
