"""Trains one run as a job on a cluster: the train step of the pipeline there, and `distrinews job submit --follow`."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipelines.cluster.client import Cluster, Object, connect
from pipelines.cluster.logs import Console
from pipelines.job.backends import LAUNCHER_ANNOTATION, backend, manifest_of_run
from pipelines.job.follow import Follower, JobFailedError
from pipelines.job.pod import passed_through
from pipelines.job.reconcile import How, Jobs, is_ours, preflight, reconcile
from pipelines.job.settings import Deadlines, JobConfig, StepPod
from pipelines.signals import exit_on_sigterm
from server.errors import UserError
from trainer.checkpoint.saved_model import check_saved_model
from trainer.config import TrainConfig

_CLEANING_SECONDS = 20  # of the 30 that a pod has after SIGTERM
_CHECKS = 12  # of the model folder: a minute


@dataclass(frozen=True)
class Result:
    """The outcome of a job."""

    job: str
    how: How
    model: Path | None
    """The folder with the model; None where the volume is not mounted here."""
    seconds: float
    pods: int
    restarts: int


def launch(
    train: TrainConfig,
    job: JobConfig,
    *,
    run_folder: Path,
    task_config: object | None = None,
    deadlines: Deadlines | None = None,
    step: str = "train",
    cluster: Cluster | None = None,
    kind: str = "pytorchjob",
) -> Result:
    """Trains the run of this folder on the cluster, and returns when its model is complete; UserError with the reason otherwise.

    `run_folder` is <mount_path>/<run> in a pod that mounts the volume of the runs, with the dataset that preprocess wrote. Called
    again with the same settings, it attaches to the job, reuses its result, or replaces it where it failed; training resumes from the
    last checkpoint. Whatever ends it without success, SIGTERM included, the job is deleted; where it is killed, the job goes with the
    step's pod, or by its TTL.
    """
    if run_folder.parent != Path(job.mount_path):
        raise UserError(
            f"{run_folder} is not in {job.mount_path}, where the pods of the job have the runs: set mount_path to {run_folder.parent}"
        )
    jobs = Jobs(cluster or connect(), backend(kind))
    manifest = manifest_of_run(
        jobs.kind, job, train, run=run_folder.name, step=step, namespace=jobs.cluster.namespace,
        task=passed_through(task_config), owner=StepPod(),
    )  # fmt: skip
    return run_job(
        jobs, manifest, deadlines=deadlines or Deadlines(), keep_failed=job.keep_failed,
        fault_of_result=lambda: check_saved_model(run_folder / "model", train), model=run_folder / "model",
    )  # fmt: skip


def run_job(
    jobs: Jobs, manifest: Object, *, deadlines: Deadlines, fault_of_result: Callable[[], str], model: Path | None, keep_failed: bool = False,
) -> Result:  # fmt: skip
    """Runs a job to its end; it is gone afterwards unless it succeeded."""
    console, started = Console(), time.monotonic()
    name = manifest["metadata"]["name"]
    with exit_on_sigterm():
        preflight(jobs, manifest)
        console.print("launch", f"job {name} in namespace {jobs.cluster.namespace}; deadlines: {deadlines}")
        try:
            found, how = reconcile(jobs, manifest, console, result_is_whole=lambda: not fault_of_result())
            console.print("launch", _HOW[how].format(name=name))
            with Follower(jobs, found, deadlines, console) as follower:
                if how != "reused":
                    follower.until_succeeded()
                pods, restarts = len(follower.pods.by_name), follower.pods.restarts
            _check_result(jobs.cluster, name, fault_of_result)
        except BaseException as error:
            if not (keep_failed and isinstance(error, JobFailedError)):
                _clean(jobs, manifest, console)
            raise
    console.print("launch", f"job {name} succeeded" + (f"; the model is in {model}" if model else ""))
    return Result(name, how, model, time.monotonic() - started, pods, restarts)


_HOW = {
    "started": "job {name} is created",
    "attached": "job {name} runs already: attaching to it",
    "reused": "job {name} has succeeded before: reusing its result",
}


def _check_result(cluster: Cluster, name: str, fault_of_result: Callable[[], str]) -> None:
    """Checks the model for a while: a shared file system may show late what another node wrote."""
    for _ in range(_CHECKS):
        if not (fault := fault_of_result()):
            return
        time.sleep(cluster.polling.interval_seconds)
    raise JobFailedError(f"job {name} succeeded, but left no complete model: {fault}")


def _clean(jobs: Jobs, manifest: Object, console: Console) -> None:
    """Deletes our job if it is still ours: a later try of the step may have attached to it."""
    name = manifest["metadata"]["name"]
    jobs = Jobs(jobs.cluster.within(_CLEANING_SECONDS), jobs.kind)
    try:
        there = jobs.find(name)
        if there is None or not is_ours(there):
            return
        launchers = [(item["metadata"].get("annotations") or {}).get(LAUNCHER_ANNOTATION) for item in (there, manifest)]
        if launchers[0] != launchers[1]:
            console.print("launch", f"job {name} now belongs to {launchers[0]}: left alone")
        elif jobs.delete(there):
            console.print("launch", f"job {name} is deleted")
    except UserError as error:
        console.print("launch", f"job {name} could not be deleted: {error}; distrinews job delete {name} does it")
