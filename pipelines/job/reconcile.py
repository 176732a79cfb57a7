"""Brings a job onto the cluster whatever is there: creates it, attaches to it, reuses its result, or replaces it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pipelines.cluster.client import CONFLICT, NOT_FOUND, ApiError, Cluster, Object
from pipelines.cluster.logs import Console
from pipelines.cluster.permissions import READ_QUEUE, Need, claim_faults, denied, queue_faults, readable, require
from pipelines.job.backends import (
    FOLDER_ANNOTATION,
    LAUNCHER_ANNOTATION,
    MANAGED_BY_LABEL,
    QUEUE_LABEL,
    Backend,
    claims,
)
from pipelines.job.pod import RUN_LABEL
from server.errors import UserError

How = Literal["started", "attached", "reused"]
_TRIES = 10
_DRY_RUN = (("dryRun", "All"), ("fieldValidation", "Strict"))


def needs_of(kind: Backend) -> tuple[Need, ...]:
    """Returns the permissions that the launcher needs; the Role of helm/training grants these."""
    return (
        Need(kind.group, kind.plural, ("get", "list", "watch", "create", "patch", "delete")),
        Need("", "pods", ("get", "list", "watch")),
        Need("", "pods/log", ("get",)),
        Need("", "podtemplates", ("create",)),  # for the dry run alone
        Need("", "events", ("list", "watch")),
        Need("", "persistentvolumeclaims", ("get",)),
    )


@dataclass(frozen=True)
class Jobs:
    """The jobs of a kind in a namespace."""

    cluster: Cluster
    kind: Backend

    def path(self, name: str = "") -> str:
        return self.cluster.path(f"{self.kind.group}/{self.kind.version}", self.kind.plural, name)

    def find(self, name: str) -> Object | None:
        return self.cluster.find(self.path(name))

    def ours(self, **labels: str) -> list[Object]:
        """Returns the jobs that distrinews created, with these labels besides."""
        wanted = dict([MANAGED_BY_LABEL]) | labels
        selector = ",".join(f"{name}={value}" for name, value in wanted.items())
        items: list[Object] = self.cluster.request("GET", self.path(), query=[("labelSelector", selector)])["items"]
        return items

    def delete(self, job: Object, *, wait: bool = False) -> bool:
        """Deletes this very job, not another of its name; returns whether it was there."""
        options = {
            "apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Foreground" if wait else "Background",
            "preconditions": {"uid": job["metadata"]["uid"]},
        }  # fmt: skip
        try:
            self.cluster.request("DELETE", self.path(job["metadata"]["name"]), body=options)
        except ApiError as error:
            if error.status in (NOT_FOUND, CONFLICT):
                return False
            raise
        if wait:
            self.wait_until_gone(job)
        return True

    def wait_until_gone(self, job: Object) -> None:
        """Waits until the job and all its pods, whose names the next one needs, are gone."""
        name, uid, polling = job["metadata"]["name"], job["metadata"]["uid"], self.cluster.polling
        deadline = time.monotonic() + polling.timeout_seconds
        while (there := self.find(name)) and there["metadata"]["uid"] == uid:
            if time.monotonic() > deadline:
                held = ", ".join(there["metadata"].get("finalizers") or ["its pods"])
                raise UserError(f"job {name} is still being deleted after {polling.timeout_seconds:.0f} s, held by {held}")  # fmt: skip
            time.sleep(polling.interval_seconds)

    def dry_run(self, manifest: Object) -> None:
        """Has the API server and its webhooks validate the job and, as a core PodTemplate, its pods; ApiError with the fault."""
        name = manifest["metadata"]["name"]
        self.cluster.request("POST", self.path(), query=_DRY_RUN, body=manifest)
        template = {
            "apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": name}, "template": self.kind.template(manifest),
        }  # fmt: skip
        self.cluster.request("POST", self.cluster.path("v1", "podtemplates"), query=_DRY_RUN, body=template)


def is_ours(job: Object) -> bool:
    label, value = MANAGED_BY_LABEL
    return bool((job["metadata"].get("labels") or {}).get(label) == value)


def check_ours(job: Object) -> None:
    if not is_ours(job):
        label = "=".join(MANAGED_BY_LABEL)
        raise UserError(
            f"job {job['metadata']['name']} was not created by distrinews (it has no label {label}): it is left alone"
        )


def preflight(jobs: Jobs, manifest: Object) -> None:
    """Raises UserError with everything that is missing and, where permissions are, the Role to apply."""
    cluster, kind = jobs.cluster, jobs.kind
    queue = (manifest["metadata"].get("labels") or {}).get(QUEUE_LABEL)
    needs = [*needs_of(kind), *([READ_QUEUE] if queue else [])]
    refused, missing = denied(cluster, needs), list[str]()
    # Discovery is open to everyone, unlike the resource definition itself.
    served = (cluster.find(f"/apis/{kind.group}/{kind.version}") or {}).get("resources") or []
    if kind.plural not in {resource["name"] for resource in served}:
        missing.append(f"the kind {kind.kind} ({kind.group}/{kind.version}): {kind.install}")
    if readable(refused, "persistentvolumeclaims"):
        for claim in claims(kind, manifest):
            missing += claim_faults(cluster, claim, nodes=kind.pods(manifest).expected)
    if queue and readable(refused, "localqueues"):
        missing += queue_faults(cluster, queue)
    require(cluster, missing, refused, needs, role="distrinews-launcher", user="the job")


def reconcile(
    jobs: Jobs, manifest: Object, console: Console, *, result_is_whole: Callable[[], bool]
) -> tuple[Object, How]:
    """Returns the job on the cluster, and how it came there."""
    name = manifest["metadata"]["name"]
    for _ in range(_TRIES):
        there = jobs.find(name)
        if there is None:
            if created := _create(jobs, manifest, console):
                return created, "started"
            continue  # another launcher created it first
        check_ours(there)
        phase = jobs.kind.state(there).phase
        if there["metadata"].get("deletionTimestamp"):
            console.print("launch", f"job {name} is being deleted: waiting until it is gone")
            jobs.wait_until_gone(there)
        elif phase == "succeeded" and result_is_whole():
            return there, "reused"
        elif phase in ("failed", "succeeded"):
            why = "failed" if phase == "failed" else "succeeded, but its model is not whole"
            console.print(
                "launch", f"an earlier job {name} {why}: deleting it; training resumes from its last checkpoint"
            )
            jobs.delete(there, wait=True)
        elif (adopted := _adopt(jobs, there, manifest)) is not None:
            return adopted, "attached"
    raise UserError(f"job {name} keeps changing: something else creates and deletes it too")


def _create(jobs: Jobs, manifest: Object, console: Console) -> Object | None:
    """Creates the job; returns None when it exists by now, and raises UserError when it would be refused."""
    name = manifest["metadata"]["name"]
    _check_folder_is_free(jobs, manifest, console)
    try:
        jobs.dry_run(manifest)
        created = jobs.cluster.request("POST", jobs.path(), body=manifest)
    except ApiError as error:
        if error.reason == "AlreadyExists":
            return None
        raise UserError(f"job {name} is refused: {error.message}") from error
    try:
        _check_folder_is_free(jobs, created, console)
    except UserError:
        jobs.delete(created)
        raise
    return created


def _check_folder_is_free(jobs: Jobs, job: Object, console: Console) -> None:
    """Raises UserError when another live job trains into the same folder; of two created at once, the older stays."""
    name, folder = job["metadata"]["name"], job["metadata"]["annotations"][FOLDER_ANNOTATION]
    for other in jobs.ours(**{RUN_LABEL: job["metadata"]["labels"][RUN_LABEL]}):
        metadata = other["metadata"]
        same = (metadata.get("annotations") or {}).get(FOLDER_ANNOTATION, folder) == folder
        if metadata["name"] == name or not same or jobs.kind.state(other).is_final or _age(other) > _age(job):
            continue
        if metadata.get("deletionTimestamp"):
            console.print("launch", f"job {metadata['name']}, which trained into {folder}, is being deleted: waiting until it is gone")  # fmt: skip
            jobs.wait_until_gone(other)
            continue
        raise UserError(
            f"job {metadata['name']} with other settings trains into {folder} already: wait for it, or delete it with "
            f"distrinews job delete {metadata['name']}"
        )


def _age(job: Object) -> tuple[str, str]:
    """Returns a key that sorts jobs by age; one that is not created yet is the youngest."""
    metadata = job["metadata"]
    return metadata.get("creationTimestamp", "9999"), metadata["name"]


def _adopt(jobs: Jobs, job: Object, manifest: Object) -> Object | None:
    """Makes our pod the owner of the job instead of that of an earlier try; returns None when the job changed meanwhile."""
    owners = manifest["metadata"].get("ownerReferences")
    if not owners or job["metadata"].get("ownerReferences") == owners:
        return job
    metadata = {
        "resourceVersion": job["metadata"]["resourceVersion"],
        "ownerReferences": owners,
        "annotations": {LAUNCHER_ANNOTATION: manifest["metadata"]["annotations"][LAUNCHER_ANNOTATION]},
    }
    try:
        return jobs.cluster.request("PATCH", jobs.path(job["metadata"]["name"]), body={"metadata": metadata})
    except ApiError as error:
        if error.status not in (CONFLICT, NOT_FOUND):
            raise
        time.sleep(jobs.cluster.polling.interval_seconds)
        return None
