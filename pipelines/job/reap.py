"""Jobs that runs left behind: finished a while ago, or with a launcher that is no more."""

import time
from datetime import datetime

from pipelines.cluster.client import ApiError, Cluster
from pipelines.job.backends import pytorchjob as kind
from pipelines.job.ensure import delete
from pipelines.job.pod import MANAGED_BY, STEP_POD
from pipelines.job.settings import Object

_NOT_FOUND = 404
_OVER = ("Succeeded", "Failed")


def reap(cluster: Cluster, *, finished_hours: float, dry_run: bool) -> list[str]:
    """Delete them, or with `dry_run` only tell; gives a line for each. Jobs that still run for a launcher, or for nobody, stay."""
    label = "=".join(MANAGED_BY)
    jobs = cluster.request("GET", cluster.path(kind.API_VERSION, kind.PLURAL), query=[("labelSelector", label)])[
        "items"
    ]
    told = []
    for job in jobs:
        why = _why(cluster, job, finished_hours=finished_hours)
        if why and not job["metadata"].get("deletionTimestamp"):
            if not dry_run:
                delete(cluster, job)
            told.append(f"{'would delete' if dry_run else 'deleted'} {job['metadata']['name']}: {why}")
    return told


def _why(cluster: Cluster, job: Object, *, finished_hours: float) -> str:
    """Why a job should go; empty when it should stay."""
    state, ended = kind.state(job), kind.finished_at(job)
    if state.is_final:
        hours = (time.time() - datetime.fromisoformat(ended).timestamp()) / 3600 if ended else finished_hours
        return f"it {state.phase} {hours:.1f} h ago" if hours >= finished_hours else ""
    follower = (job["metadata"].get("annotations") or {}).get(STEP_POD)
    if not follower:
        return ""
    name, _, uid = follower.partition("/")
    try:
        pod = cluster.request("GET", cluster.path("v1", "pods", name))
    except ApiError as error:
        if error.status != _NOT_FOUND:
            raise
        return f"its launcher {name} is gone"
    if pod["metadata"]["uid"] != uid:
        return f"its launcher {name} is gone"
    return f"its launcher {name} has ended" if (pod.get("status") or {}).get("phase") in _OVER else ""
