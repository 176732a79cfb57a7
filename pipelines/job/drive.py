"""What a person does with a job from a laptop: submit, look, read its logs, delete."""

import time

from pipelines.cluster.client import Cluster
from pipelines.cluster.logs import Console, PodLog
from pipelines.cluster.pods import PodStatus
from pipelines.job.backends import pytorchjob as kind
from pipelines.job.ensure import check_ours, delete, ensure, find
from pipelines.job.follow import Follower
from pipelines.job.pod import MANAGED_BY
from pipelines.job.preflight import preflight
from pipelines.job.settings import Deadlines, Object
from server.errors import UserError

_FOR_EVER = Deadlines(schedule_minutes=None, run_minutes=None, progress_minutes=None)


def submit(cluster: Cluster, manifest: Object, *, follow: bool) -> None:
    """Make the job, or go on with the one there is; it runs on when we leave."""
    console, name = Console(), manifest["metadata"]["name"]
    preflight(cluster, manifest)
    job, how = ensure(cluster, manifest, console, result_is_whole=lambda: True)
    print(f"job {name} {how} in namespace {cluster.namespace}", flush=True)
    if follow and how != "taken":
        _follow(cluster, job, console)
    else:
        print(
            f"  watch   distrinews job status {name}\n  logs    distrinews job logs --follow {name}\n  delete  distrinews job delete {name}"
        )


def status(cluster: Cluster, name: str | None) -> None:
    """A line for each job or, of one job, also one for each of its pods."""
    if name is None:
        query = [("labelSelector", "=".join(MANAGED_BY))]
        jobs = cluster.request("GET", cluster.path(kind.API_VERSION, kind.PLURAL), query=query)["items"]
        for job in sorted(jobs, key=lambda job: str(job["metadata"]["creationTimestamp"])):
            print(_line(job))
        if not jobs:
            print(f"no jobs in namespace {cluster.namespace}")
        return
    print(_line(_existing(cluster, name)))
    for pod in _pods(cluster, name):
        rank = PodStatus(kind.rank_name(pod))
        ends = [news for news in rank.update(pod) if news.startswith("ended")]
        how = "running" if rank.running else "succeeded" if rank.succeeded else rank.waiting_reason
        node = pod["spec"].get("nodeName", "no node")
        print(f"  {rank.name:12} {how}, on {node}, {rank.restarts} restarts" + "".join(f"; {end}" for end in ends[-1:]))


def logs(cluster: Cluster, name: str, *, follow: bool) -> None:
    """Print the logs as they are, or until the job ends."""
    job, console = _existing(cluster, name), Console()
    if follow and not kind.state(job).is_final:
        _follow(cluster, job, console)
        return
    for pod in _pods(cluster, name):
        who = kind.rank_name(pod)
        over = PodLog(cluster, pod, lambda line, who=who: console.print(who, line), container=kind.CONTAINER)  # type: ignore[misc]  # of mypy: a default of a lambda
        over.read_available()


def remove(cluster: Cluster, name: str, *, dry_run: bool) -> None:
    job = _existing(cluster, name)
    check_ours(job)
    if not dry_run:
        delete(cluster, job)
    print(f"job {name} {'would be' if dry_run else 'is'} deleted; the folder of its run stays")


def _follow(cluster: Cluster, job: Object, console: Console) -> None:
    with Follower(cluster, job, _FOR_EVER, console) as follower:
        follower.until_succeeded()
    console.print("launch", f"job {follower.name} succeeded")


def _existing(cluster: Cluster, name: str) -> Object:
    job = find(cluster, name)
    if job is None:
        raise UserError(f"there is no job {name} in namespace {cluster.namespace}; distrinews job status lists them")
    return job


def _pods(cluster: Cluster, name: str) -> list[Object]:
    query = [("labelSelector", f"{kind.JOB_LABEL}={name}")]
    pods: list[Object] = cluster.request("GET", cluster.path("v1", "pods"), query=query)["items"]
    return sorted(pods, key=kind.rank_name)


def _line(job: Object) -> str:
    state = kind.state(job)
    why = f" ({state.reason})" if state.reason else " (suspended)" if state.suspended else ""
    made = job["metadata"].get("creationTimestamp", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    return f"{job['metadata']['name']}: {state.phase}{why}, {kind.pod_count(kind.read(job))} pods, made {made}"
