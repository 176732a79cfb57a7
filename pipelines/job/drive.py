"""Submits, shows, follows, deletes and reaps jobs from a laptop."""

import time
from datetime import datetime
from functools import partial

from pipelines.cluster.client import Object
from pipelines.cluster.logs import Console, PodLog
from pipelines.cluster.pods import PodStatus
from pipelines.job.backends import LAUNCHER_ANNOTATION
from pipelines.job.follow import Follower
from pipelines.job.reconcile import Jobs, check_ours, preflight, reconcile
from pipelines.job.settings import Deadlines
from server.errors import UserError
from trainer.monitoring.console import counted

_NO_DEADLINES = Deadlines(schedule_minutes=None, run_minutes=None, progress_minutes=None)


def submit(jobs: Jobs, manifest: Object, *, follow: bool) -> None:
    """Creates the job, or attaches to the one there is; it runs on when we leave."""
    console, name = Console(), manifest["metadata"]["name"]
    preflight(jobs, manifest)
    job, how = reconcile(jobs, manifest, console, result_is_whole=lambda: True)
    print(f"job {name} {how} in namespace {jobs.cluster.namespace}", flush=True)
    if follow and how != "reused":
        _follow(jobs, job, console)
    else:
        print(
            f"  watch   distrinews job status {name}\n  logs    distrinews job logs --follow {name}\n  delete  distrinews job delete {name}"
        )


def status(jobs: Jobs, name: str | None) -> None:
    """Prints a line for each job or, with a name, for that job and each of its pods."""
    if name is None:
        found = jobs.ours()
        for job in sorted(found, key=lambda job: str(job["metadata"]["creationTimestamp"])):
            print(_line(jobs, job))
        if not found:
            print(f"no jobs in namespace {jobs.cluster.namespace}")
        return
    print(_line(jobs, _existing(jobs, name)))
    for pod in _pods(jobs, name):
        rank = PodStatus(jobs.kind.rank(pod))
        ends = [news for news in rank.update(pod) if news.startswith("ended")]
        state = "running" if rank.running else "succeeded" if rank.succeeded else rank.waiting_reason
        node = pod["spec"].get("nodeName", "no node")
        print(
            f"  {rank.name:12} {state}, on {node}, {counted(rank.restarts, 'restart')}"
            + "".join(f"; {end}" for end in ends[-1:])
        )


def logs(jobs: Jobs, name: str, *, follow: bool) -> None:
    """Prints the logs so far, or until the job ends."""
    job, console = _existing(jobs, name), Console()
    if follow and not jobs.kind.state(job).is_final:
        _follow(jobs, job, console)
        return
    for pod in _pods(jobs, name):
        on_line = partial(console.print, jobs.kind.rank(pod))
        log = PodLog(jobs.cluster, pod, on_line, container=jobs.kind.container)
        log.read_available()


def delete(jobs: Jobs, name: str, *, dry_run: bool) -> None:
    job = _existing(jobs, name)
    check_ours(job)
    if not dry_run:
        jobs.delete(job)
    print(f"job {name} {'would be' if dry_run else 'is'} deleted; the folder of its run stays")


def reap(jobs: Jobs, *, finished_hours: float, dry_run: bool) -> list[str]:
    """Deletes jobs that finished a while ago or lost their launcher; returns a line for each. Jobs of laptops that run stay."""
    lines = []
    for job in jobs.ours():
        why = _reason_to_reap(jobs, job, finished_hours=finished_hours)
        if why and not job["metadata"].get("deletionTimestamp"):
            if not dry_run:
                jobs.delete(job)
            lines.append(f"{'would delete' if dry_run else 'deleted'} {job['metadata']['name']}: {why}")
    return lines


def _reason_to_reap(jobs: Jobs, job: Object, *, finished_hours: float) -> str:
    """Returns why a job is to be deleted; empty when it stays."""
    state, ended = jobs.kind.state(job), jobs.kind.finished_at(job)
    if state.is_final:
        hours = (time.time() - datetime.fromisoformat(ended).timestamp()) / 3600 if ended else finished_hours
        return f"it {state.phase} {hours:.1f} h ago" if hours >= finished_hours else ""
    launcher = (job["metadata"].get("annotations") or {}).get(LAUNCHER_ANNOTATION)
    if not launcher:
        return ""
    name, _, uid = launcher.partition("/")
    pod = jobs.cluster.find(jobs.cluster.path("v1", "pods", name))
    if pod is None or pod["metadata"]["uid"] != uid:
        return f"its launcher {name} is gone"
    ended_phases = ("Succeeded", "Failed")
    return f"its launcher {name} has ended" if (pod.get("status") or {}).get("phase") in ended_phases else ""


def _follow(jobs: Jobs, job: Object, console: Console) -> None:
    with Follower(jobs, job, _NO_DEADLINES, console) as follower:
        follower.until_succeeded()
    console.print("launch", f"job {follower.name} succeeded")


def _existing(jobs: Jobs, name: str) -> Object:
    job = jobs.find(name)
    if job is None:
        raise UserError(
            f"there is no job {name} in namespace {jobs.cluster.namespace}; distrinews job status lists them"
        )
    return job


def _pods(jobs: Jobs, name: str) -> list[Object]:
    query = [("labelSelector", jobs.kind.selector(name))]
    pods: list[Object] = jobs.cluster.request("GET", jobs.cluster.path("v1", "pods"), query=query)["items"]
    return sorted(pods, key=jobs.kind.rank)


def _line(jobs: Jobs, job: Object) -> str:
    state = jobs.kind.state(job)
    why = f" ({state.reason})" if state.reason else " (suspended)" if state.suspended else ""
    made = job["metadata"].get("creationTimestamp", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    return (
        f"{job['metadata']['name']}: {state.phase}{why}, {counted(jobs.kind.pods(job).expected, 'pod')}, created {made}"
    )
