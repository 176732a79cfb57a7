"""One job of a name, whatever was there before: made, gone on with, its result taken, or replaced where it had failed."""

import time
from collections.abc import Callable
from typing import Literal

from pipelines.cluster.client import ApiError, Cluster
from pipelines.cluster.logs import Console
from pipelines.job.backends import pytorchjob as kind
from pipelines.job.pod import MANAGED_BY, STEP_POD
from pipelines.job.settings import Object
from server.errors import UserError

How = Literal["started", "attached", "taken"]
_CONFLICT, _NOT_FOUND = 409, 404
_TRIES = 10


def ensure(
    cluster: Cluster, manifest: Object, console: Console, *, result_is_whole: Callable[[], bool]
) -> tuple[Object, How]:
    """The job on the cluster, and what was done for it."""
    name = manifest["metadata"]["name"]
    for _ in range(_TRIES):
        there = find(cluster, name)
        if there is None:
            try:
                return create(cluster, manifest), "started"
            except ApiError as error:
                if error.reason != "AlreadyExists":
                    raise UserError(f"job {name} is refused: {error.message}") from error
            continue  # another was quicker
        check_ours(there)
        phase = kind.state(there).phase
        if there["metadata"].get("deletionTimestamp"):
            console.print("launch", f"job {name} is being deleted: waiting until it is gone")
            wait_until_gone(cluster, there)
        elif phase == "succeeded" and result_is_whole():
            return there, "taken"
        elif phase in ("failed", "succeeded"):
            why = "failed" if phase == "failed" else "succeeded, but its model is not whole"
            console.print(
                "launch", f"an earlier job {name} {why}: deleting it; training goes on from its last checkpoint"
            )
            delete(cluster, there, wait=True)
        elif (adopted := _adopt(cluster, there, manifest)) is not None:
            return adopted, "attached"
    raise UserError(f"job {name} keeps changing: something else makes and deletes it too")


def find(cluster: Cluster, name: str) -> Object | None:
    return cluster.find(cluster.path(kind.API_VERSION, kind.PLURAL, name))


def create(cluster: Cluster, manifest: Object) -> Object:
    return cluster.request("POST", cluster.path(kind.API_VERSION, kind.PLURAL), body=manifest)


def delete(cluster: Cluster, job: Object, *, wait: bool = False) -> bool:
    """Delete this very job, not another of its name; whether it was there."""
    how = {
        "apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Foreground" if wait else "Background",
        "preconditions": {"uid": job["metadata"]["uid"]},
    }  # fmt: skip
    path = cluster.path(kind.API_VERSION, kind.PLURAL, job["metadata"]["name"])
    try:
        cluster.request("DELETE", path, body=how)
    except ApiError as error:
        if error.status in (_NOT_FOUND, _CONFLICT):
            return False
        raise
    if wait:
        wait_until_gone(cluster, job)
    return True


def wait_until_gone(cluster: Cluster, job: Object) -> None:
    """Until the job, and with it all its pods, whose names the next one needs, are gone."""
    name, uid = job["metadata"]["name"], job["metadata"]["uid"]
    deadline = time.monotonic() + cluster.polling.timeout_seconds
    while (there := find(cluster, name)) and there["metadata"]["uid"] == uid:
        if time.monotonic() > deadline:
            held = ", ".join(there["metadata"].get("finalizers") or ["its pods"])
            raise UserError(
                f"job {name} is still being deleted after {cluster.polling.timeout_seconds:.0f} s, held by {held}"
            )
        time.sleep(cluster.polling.interval_seconds)


def is_ours(job: Object) -> bool:
    label, ours = MANAGED_BY
    return bool((job["metadata"].get("labels") or {}).get(label) == ours)


def check_ours(job: Object) -> None:
    if not is_ours(job):
        raise UserError(
            f"job {job['metadata']['name']} is not one that distrinews made (it has no label {'='.join(MANAGED_BY)}): it is left alone"
        )


def _adopt(cluster: Cluster, job: Object, manifest: Object) -> Object | None:
    """Make the job go when our pod goes, no longer when that of an earlier try does; None when it changed meanwhile."""
    owners = manifest["metadata"].get("ownerReferences")
    if not owners or job["metadata"].get("ownerReferences") == owners:
        return job
    metadata = {
        "resourceVersion": job["metadata"]["resourceVersion"],
        "ownerReferences": owners,
        "annotations": {STEP_POD: manifest["metadata"]["annotations"][STEP_POD]},
    }
    path = cluster.path(kind.API_VERSION, kind.PLURAL, job["metadata"]["name"])
    try:
        return cluster.request("PATCH", path, body={"metadata": metadata})
    except ApiError as error:
        if error.status not in (_CONFLICT, _NOT_FOUND):
            raise
        time.sleep(cluster.polling.interval_seconds)
        return None
