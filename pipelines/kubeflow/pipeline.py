"""The Kubeflow pipeline and its components: the same object is compiled for a cluster and run on a laptop."""

from functools import partial
from typing import Any

from kfp import dsl, kubernetes

from pipelines import PIPELINES, TRAINER
from pipelines.kubeflow.parameters import WORKSPACE
from pipelines.run_folder import STEPS

_SUMMARY = "From labelled texts to a served classifier: preprocess, train, evaluate, gate, export, deploy."
_RETRIES = {"preprocess": 2, "train": 2, "evaluate": 2, "export": 2, "deploy": 1, "finish": 2}
"""Retries of a step that failed: it runs again, or resumes. The others fail again with the same input."""

_MLFLOW = ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "MLFLOW_EXPERIMENT_NAME")  # fmt: skip
"""Keys of the Secret, and variables of the same names."""

_TASK = dsl.TaskConfigField
_PASSED_TO_THE_JOB = [
    _TASK.RESOURCES, _TASK.KUBERNETES_TOLERATIONS, _TASK.KUBERNETES_NODE_SELECTOR, _TASK.KUBERNETES_AFFINITY,
    dsl.TaskConfigPassthrough(field=_TASK.ENV, apply_to_task=True),
    dsl.TaskConfigPassthrough(field=_TASK.KUBERNETES_VOLUMES, apply_to_task=True),
]  # fmt: skip

_on_trainer = dsl.component(base_image=TRAINER, install_kfp_package=False)


@_on_trainer
def start(
    data: str, text_column: str, label_column: str, model: str, epochs: int, batch_size: int, learning_rate: float,
    min_accuracy: float, backend: str, nodes: int, gpus: int, release: str, settings: dict, run_name: str, from_step: str,  # type: ignore[type-arg]  # kfp knows the bare dict alone
    claim: str, trainer_image: str, pipelines_image: str, step_cpu: str, step_memory: str, run_id: str,
) -> str:  # fmt: skip
    given = dict(locals())
    from pipelines.kubeflow.parameters import start_from_parameters

    return start_from_parameters(given)


@_on_trainer
def work(run_folder: str, name: str) -> str:
    from pipelines.steps import run_step

    return run_step(name, run_folder)


@dsl.component(base_image=PIPELINES, install_kfp_package=False, task_config_passthroughs=_PASSED_TO_THE_JOB)
def train(run_folder: str, task_config: dsl.TaskConfig) -> str:
    from pipelines.steps import run_step

    return run_step("train", run_folder, task_config=task_config)


@_on_trainer
def evaluate(
    run_folder: str,
    metrics: dsl.Output[dsl.Metrics],
    confusion_matrix: dsl.Output[dsl.ClassificationMetrics],
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
) -> str:
    from pipelines.kubeflow.summary import log_artifacts
    from pipelines.steps import run_step

    run_step("evaluate", run_folder)
    log_artifacts(run_folder, metrics, confusion_matrix, report, summary)
    return run_folder


@_on_trainer
def finish(run_name: str, run_id: str, status: dsl.PipelineTaskFinalStatus, summary: dsl.Output[dsl.Markdown]) -> None:
    from pathlib import Path

    from pipelines.kubeflow.parameters import run_folder
    from pipelines.kubeflow.summary import write_summary

    folder = run_folder(run_name, run_id)
    write_summary(folder, run_id=run_id, state=status.state, message=status.error_message, shown=Path(summary.path))


def _pod(task: dsl.PipelineTask, given: dict[str, Any], name: str) -> dsl.PipelineTask:
    """Sets the image, the resources, the volume and the retries of a step's pod; kfp.local, where steps are processes, ignores them."""
    task.set_display_name(name)
    task.set_container_image(given["pipelines_image" if name in ("train", "deploy") else "trainer_image"])
    if name != "train":  # the resources of its task go to the pods of the job
        task.set_cpu_request(given["step_cpu"])
        task.set_memory_request(given["step_memory"]).set_memory_limit(given["step_memory"])
    # The run folder, which Kubeflow's cache does not know, holds the results: preprocess has a cache of its own.
    task.set_caching_options(enable_caching=False)
    if name in _RETRIES:
        task.set_retry(_RETRIES[name], backoff_duration="30s", backoff_factor=2, backoff_max_duration="300s")
    kubernetes.mount_pvc(task, pvc_name=given["claim"], mount_path=WORKSPACE)
    kubernetes.set_security_context(task, run_as_non_root=True)
    kubernetes.add_pod_label(task, "sidecar.istio.io/inject", "false")
    if name == "evaluate":  # the job of train has it from manifests/
        kubernetes.use_secret_as_env(task, "distrinews-mlflow", dict(zip(_MLFLOW, _MLFLOW, strict=True)), optional=True)
    return task


@dsl.pipeline(name="distrinews", description=_SUMMARY)
def distrinews(
    data: str = "sample", text_column: str = "", label_column: str = "", model: str = "tiny", epochs: int = 0,
    batch_size: int = 32, learning_rate: float = 0.0, min_accuracy: float = 0.8, backend: str = "pytorchjob", nodes: int = 1,
    gpus: int = 0, release: str = "distrinews", settings: dict = {}, run_name: str = "", from_step: str = "",  # type: ignore[type-arg]  # noqa: B006 - kfp copies it
    claim: str = "distrinews-workspace", trainer_image: str = TRAINER, pipelines_image: str = PIPELINES,
    step_cpu: str = "1", step_memory: str = "4Gi",
) -> None:  # fmt: skip
    given, run_id = dict(locals()), dsl.PIPELINE_JOB_ID_PLACEHOLDER
    with dsl.ExitHandler(_pod(finish(run_name=run_name, run_id=run_id), given, "finish"), name="steps"):
        task = _pod(start(**given, run_id=run_id), given, "start")
        for name in STEPS:
            component = {"train": train, "evaluate": evaluate}.get(name, partial(work, name=name))
            task = _pod(component(run_folder=task.outputs["Output"]), given, name)
