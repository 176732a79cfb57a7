"""What the schema of a PyTorchJob lets pass but the operator, or the training, does not: rules about the job as a whole."""

import difflib
import re
from collections.abc import Iterator

from pipelines.job.backends.pytorchjob import API_VERSION, GENERATED, KIND, MAX_NAME, QUEUE_LABEL, REPLICAS, gpus_of
from pipelines.job.document import Document, Path, Problem

REPLICA_SPECS: Path = ("spec", "pytorchReplicaSpecs")
RUN_POLICY: Path = ("spec", "runPolicy")
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


def check_job(job: Document) -> Iterator[Problem]:
    for rule in (_kind, _name, _queue_labels, _suspend, _replicas, _clean_pod_policy, _limits, _processes, _elastic):
        yield from rule(job)


def replica_names(job: Document) -> list[str]:
    replicas = job.get(*REPLICA_SPECS)
    return list(replicas) if isinstance(replicas, dict) else []


def did_you_mean(value: object, known: tuple[str, ...], otherwise: str) -> str:
    near = difflib.get_close_matches(str(value), known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else otherwise


def _kind(job: Document) -> Iterator[Problem]:
    if (said := job.get("apiVersion")) != API_VERSION:
        yield ("apiVersion",), "api-version", f"apiVersion is {said!r}", f"that of a {KIND} is {API_VERSION}"


def _name(job: Document) -> Iterator[Problem]:
    key = "name" if job.get("metadata", "name") else "generateName"
    name, place = job.get("metadata", key), ("metadata", key)
    if not isinstance(name, str):
        yield ("metadata",), "name", "the job has no name", "add metadata.name"
        return
    longest = MAX_NAME - (GENERATED if key == "generateName" else 0)
    if len(name) > longest:
        why = f"{key} has {len(name)} characters; the services of its pods, <name>-worker-N, may have 63"
        yield place, "name-length", why, f"use {longest} at most"
    if not _NAME.fullmatch(name.rstrip("-") if key == "generateName" else name):
        why = f"{name!r} cannot name the services of the pods"
        yield place, "name", why, "use small letters, digits and dashes, with a letter first"


def _queue_labels(job: Document) -> Iterator[Problem]:
    labels = job.get("metadata", "labels")
    for label in labels if isinstance(labels, dict) else ():
        if label != QUEUE_LABEL and difflib.get_close_matches(label, [QUEUE_LABEL], cutoff=0.8):
            yield ("metadata", "labels", label), "queue-label", f"Kueue knows no label {label}", f"write {QUEUE_LABEL}"
    places: list[Path] = [("metadata", "annotations")]
    for name in replica_names(job):
        metadata: Path = (*REPLICA_SPECS, name, "template", "metadata")
        places += [(*metadata, "labels"), (*metadata, "annotations")]
    for place in places:
        if job.get(*place, QUEUE_LABEL) is not None:
            why = f"{QUEUE_LABEL} stands in {'.'.join(map(str, place))}, where Kueue does not look"
            yield (*place, QUEUE_LABEL), "queue-label", why, "move it to metadata.labels of the job"


def _suspend(job: Document) -> Iterator[Problem]:
    if job.get(*RUN_POLICY, "suspend") is True and job.get("metadata", "labels", QUEUE_LABEL) is None:
        why = "the job is suspended, and there is no queue that would start it"
        yield (*RUN_POLICY, "suspend"), "suspend", why, f"remove suspend, or add the label {QUEUE_LABEL}"


def _replicas(job: Document) -> Iterator[Problem]:
    names = replica_names(job)
    if not names:
        yield REPLICA_SPECS, "replicas", "the job has no replicas", "add pytorchReplicaSpecs.Master"
    for name in names:
        if name not in REPLICAS:
            why = f"{name!r} is no type of replica; there are {' and '.join(REPLICAS)}"
            yield (*REPLICA_SPECS, name), "replica-type", why, did_you_mean(name, REPLICAS, "rename it")
    if "Master" in names and (count := job.get(*REPLICA_SPECS, "Master", "replicas")) != 1:
        why = f"Master.replicas is {'left out' if count is None else count}"
        yield (*REPLICA_SPECS, "Master", "replicas"), "master-replicas", why, "write 1, and count the others as Worker"
    if names == ["Worker"] and not job.get("spec", "elasticPolicy"):
        why = "Workers alone get no MASTER_ADDR and wait for ever"
        yield (*REPLICA_SPECS, "Worker"), "no-master", why, "add a Master, or spec.elasticPolicy"


def _clean_pod_policy(job: Document) -> Iterator[Problem]:
    policy, place = job.get(*RUN_POLICY, "cleanPodPolicy"), (*RUN_POLICY, "cleanPodPolicy")
    known = ("Running", "All", "None")
    if policy in (None, "None"):
        why = "without cleanPodPolicy, a replica that fails leaves the others running"
        yield place, "clean-pod-policy", why, "write cleanPodPolicy: Running"
    elif policy not in known:
        why = f"cleanPodPolicy {policy!r} is none of {', '.join(known)}"
        yield place, "clean-pod-policy", why, did_you_mean(policy, known, "write Running")


def _limits(job: Document) -> Iterator[Problem]:
    limit = job.get(*RUN_POLICY, "backoffLimit")
    if limit is None:
        why = "without backoffLimit, a job that fails starts again for ever"
        yield RUN_POLICY, "backoff-limit", why, "add backoffLimit: 3"
    for name in ("backoffLimit", "ttlSecondsAfterFinished", "activeDeadlineSeconds"):
        value = job.get(*RUN_POLICY, name)
        if isinstance(value, int) and value < 0:
            yield (*RUN_POLICY, name), "negative", f"{name} is {value}", "give 0 or more"
    if job.get(*RUN_POLICY, "ttlSecondsAfterFinished") is None:
        why = "without ttlSecondsAfterFinished, the job and its pods stay when it is done"
        yield RUN_POLICY, "ttl", why, "add ttlSecondsAfterFinished: 86400"


def _processes(job: Document) -> Iterator[Problem]:
    wanted, place = job.get("spec", "nprocPerNode"), ("spec", "nprocPerNode")
    containers = [(*REPLICA_SPECS, name, "template", "spec", "containers", 0) for name in replica_names(job)]
    gpus = {gpus_of(job.get(*container, "resources")) for container in containers} or {0}
    if wanted in (None, "auto", "cpu") and gpus == {0}:
        how = "left out, which means auto" if wanted is None else repr(wanted)
        why = f"nprocPerNode is {how}: without a GPU that is one process for each CPU of the node"
        yield place, "nproc-auto", why, 'write a number, such as nprocPerNode: "1"'
    elif wanted == "gpu" and 0 in gpus:
        yield place, "nproc", "nprocPerNode is 'gpu', but a replica has none", "add nvidia.com/gpu to its limits"
    elif isinstance(wanted, str) and wanted not in ("auto", "cpu", "gpu"):
        if not re.fullmatch("[1-9][0-9]*", wanted):
            why = f"nprocPerNode is {wanted!r}, neither a number nor auto, cpu or gpu"
            yield place, "nproc", why, 'write a number, such as "1"'
        elif gpus != {0} and gpus != {int(wanted)}:
            there = " or ".join(map(str, sorted(gpus)))
            why = f"{wanted} processes in a pod with {there} GPUs: each process needs one for itself"
            yield place, "nproc", why, "make them equal"


def _elastic(job: Document) -> Iterator[Problem]:
    policy, place = job.get("spec", "elasticPolicy"), ("spec", "elasticPolicy")
    if not isinstance(policy, dict):
        return
    least, most = policy.get("minReplicas"), policy.get("maxReplicas")
    workers = job.get(*REPLICA_SPECS, "Worker", "replicas")
    if isinstance(least, int) and isinstance(most, int) and least > most:
        why = f"minReplicas {least} is more than maxReplicas {most}"
        yield (*place, "minReplicas"), "elastic", why, "make it smaller"
    elif isinstance(workers, int) and not (least or 1) <= workers <= (most or workers):
        why = f"Worker.replicas {workers} is not between minReplicas {least} and maxReplicas {most}"
        yield (*REPLICA_SPECS, "Worker", "replicas"), "elastic", why, "choose a number between them"
    if "nProcPerNode" in policy:
        why = "elasticPolicy.nProcPerNode is deprecated"
        yield (*place, "nProcPerNode"), "elastic", why, "write spec.nprocPerNode instead"
    if (backend := policy.get("rdzvBackend")) not in (None, "c10d", "etcd", "etcd-v2"):
        yield (*place, "rdzvBackend"), "elastic", f"torchrun knows no rdzvBackend {backend!r}", "write c10d"
    if "Master" in replica_names(job):
        why = "the pods of an elastic job meet at worker-0, so a Master has nothing to do"
        yield (*REPLICA_SPECS, "Master"), "elastic", why, "make all of them Workers"
