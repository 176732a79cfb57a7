"""Train one run as a job on a cluster: what the train step of the pipeline does there, and `distrinews job submit --follow`."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipelines.cluster.client import Cluster, connect
from pipelines.cluster.logs import Console
from pipelines.job.ensure import How, delete, ensure, find, is_ours
from pipelines.job.follow import Follower, JobFailedError
from pipelines.job.model_check import what_is_wrong
from pipelines.job.pod import STEP_POD, render, task_extras
from pipelines.job.preflight import preflight
from pipelines.job.settings import Deadlines, JobConfig, Object, StepPod
from pipelines.signals import exit_on_sigterm
from server.errors import UserError
from trainer.config import TrainConfig

_CLEANING_SECONDS = 20  # of the 30 that a pod has after SIGTERM
_LOOKS = 12  # at the model folder: a minute


@dataclass(frozen=True)
class Result:
    """What came of a job."""

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
) -> Result:
    """Train the run of this folder on the cluster, and return when its model is there, whole; UserError with the reason otherwise.

    A lightweight Kubeflow component calls it, in a pod that mounts the volume of the runs at `job.mount_path`:

        @dsl.component(base_image=PIPELINES, install_kfp_package=False, task_config_passthroughs=[
            dsl.TaskConfigField.RESOURCES, dsl.TaskConfigField.KUBERNETES_TOLERATIONS, dsl.TaskConfigField.KUBERNETES_NODE_SELECTOR,
            dsl.TaskConfigField.KUBERNETES_AFFINITY, dsl.TaskConfigPassthrough(field=dsl.TaskConfigField.ENV, apply_to_task=True),
            dsl.TaskConfigPassthrough(field=dsl.TaskConfigField.KUBERNETES_VOLUMES, apply_to_task=True)])
        def train(run_folder: str, job: dict, task_config: dsl.TaskConfig) -> str:
            result = launch(part(run.config, TrainConfig), JobConfig(**job), run_folder=Path(run_folder), task_config=task_config)

    `run_folder` is <mount_path>/<run>, with the dataset that preprocess wrote. Called again with the same settings, it goes on with
    the job that is there, takes its result, or replaces it where it failed; training resumes from the last checkpoint. Whatever ends
    it without success, SIGTERM included, the job is deleted; where it is killed, the job goes with the step's pod, or by its TTL.
    """
    if run_folder.parent != Path(job.mount_path):
        raise UserError(
            f"{run_folder} is not in {job.mount_path}, where the pods of the job have the runs: set mount_path to {run_folder.parent}"
        )
    cluster, owner = cluster or connect(), StepPod()
    manifest = render(
        job,
        train,
        run=run_folder.name,
        step=step,
        namespace=cluster.namespace,
        extras=task_extras(task_config),
        owner=owner,
    )
    return run_job(
        cluster, manifest, deadlines=deadlines or Deadlines(), keep_failed=job.keep_failed,
        fault_of_result=lambda: what_is_wrong(run_folder / "model", train), model=run_folder / "model",
    )  # fmt: skip


def run_job(
    cluster: Cluster,
    manifest: Object,
    *,
    deadlines: Deadlines,
    fault_of_result: Callable[[], str],
    model: Path | None,
    keep_failed: bool = False,
    console: Console | None = None,
) -> Result:
    """Run a job to its end; it is gone afterwards unless it succeeded."""
    console, started = console or Console(), time.monotonic()
    name = manifest["metadata"]["name"]
    with exit_on_sigterm():
        preflight(cluster, manifest)
        console.print("launch", f"job {name} in namespace {cluster.namespace}; deadlines: {deadlines}")
        try:
            found, how = ensure(cluster, manifest, console, result_is_whole=lambda: not fault_of_result())
            console.print("launch", _SAID[how].format(name=name))
            with Follower(cluster, found, deadlines, console) as follower:
                if how != "taken":
                    follower.until_succeeded()
                pods, restarts = len(follower.ranks.by_name), follower.ranks.restarts
            _check_result(cluster, name, fault_of_result)
        except BaseException as error:
            if not (keep_failed and isinstance(error, JobFailedError)):
                _clean(cluster, manifest, console)
            raise
    console.print("launch", f"job {name} succeeded" + (f"; the model is in {model}" if model else ""))
    return Result(name, how, model, time.monotonic() - started, pods, restarts)


def _check_result(cluster: Cluster, name: str, fault_of_result: Callable[[], str]) -> None:
    """A shared file system may show what another node wrote only after a while."""
    for _ in range(_LOOKS):
        if not (fault := fault_of_result()):
            return
        time.sleep(cluster.polling.interval_seconds)
    raise JobFailedError(f"job {name} succeeded, but left no whole model: {fault}")


_SAID = {
    "started": "job {name} is made",
    "attached": "job {name} runs already: going on with it",
    "taken": "job {name} has succeeded before: taking its result",
}


def _clean(cluster: Cluster, manifest: Object, console: Console) -> None:
    """Delete our job, if it is still ours: a later try of the step may have gone on with it."""
    name = manifest["metadata"]["name"]
    cluster = cluster.within(_CLEANING_SECONDS)
    try:
        there = find(cluster, name)
        if there is None or not is_ours(there):
            return
        annotations = [(item["metadata"].get("annotations") or {}).get(STEP_POD) for item in (there, manifest)]
        if annotations[0] != annotations[1]:
            console.print("launch", f"job {name} now belongs to {annotations[0]}: left alone")
        elif delete(cluster, there):
            console.print("launch", f"job {name} is deleted")
    except UserError as error:
        console.print("launch", f"job {name} could not be deleted: {error}; distrinews job delete {name} does it")
