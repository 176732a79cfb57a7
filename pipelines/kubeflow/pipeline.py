"""The Kubeflow pipeline: the same object that is compiled for a cluster and run on a laptop."""

from typing import Any, NamedTuple

from kfp import dsl, kubernetes

from pipelines.kubeflow import components
from pipelines.kubeflow import parameters as form

_SUMMARY = "From labelled texts to a served classifier: preprocess, train, evaluate, gate, export, deploy."


class _Needs(NamedTuple):
    """What the pod of a step is given; kfp.local, where steps are processes, takes no notice."""

    cpu: str = ""
    memory: str = ""
    retries: int = 0
    """Of a step that failed: it does its work anew, or goes on with it."""
    image: str = "run_trainer_image"


_NEEDS = {
    "settings": _Needs("1", "1Gi"),
    "preprocess": _Needs("2", "4Gi", retries=2),
    # What is set on this task goes to the pods of the job.
    "train": _Needs(retries=2, image="run_pipelines_image"),
    "evaluate": _Needs("4", "8Gi", retries=2),
    "gate": _Needs("1", "2Gi"),
    "export": _Needs("4", "8Gi", retries=2),
    "deploy": _Needs("1", "1Gi", retries=1, image="run_pipelines_image"),
    "finish": _Needs("1", "1Gi", retries=2),
}

_MLFLOW = ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "MLFLOW_EXPERIMENT_NAME")  # fmt: skip
"""Keys of the Secret, and variables of the same names."""


def _wiring(*values: Any) -> None:  # noqa: ANN401 - as the form says
    parameters = dict(zip(form.signature().parameters, values, strict=True))
    place = {name: parameters[name] for name in ("run_workspace", "run_name")} | {
        "run_id": dsl.PIPELINE_JOB_ID_PLACEHOLDER
    }
    with dsl.ExitHandler(_placed(components.finish(**place), parameters), name="steps"):
        task = components.settings(**parameters, run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER)
        _placed(task, parameters)
        for component in (
            components.preprocess,
            components.train,
            components.evaluate,
            components.gate,
            components.export,
            components.deploy,
        ):
            task = _placed(component(run_folder=task.outputs["Output"]), parameters)
            if component is components.evaluate:  # the job of train has it from manifests/
                kubernetes.use_secret_as_env(
                    task, "distrinews-mlflow", dict(zip(_MLFLOW, _MLFLOW, strict=True)), optional=True
                )


def _placed(task: dsl.PipelineTask, parameters: dict[str, Any]) -> dsl.PipelineTask:
    """Give a step its image, its share of the machine, and the volume with the runs."""
    needs = _NEEDS[task.name]
    task.set_container_image(parameters[needs.image])
    if needs.cpu:
        task.set_cpu_request(needs.cpu).set_cpu_limit(needs.cpu)
        task.set_memory_request(needs.memory).set_memory_limit(needs.memory)
    # What a step makes is in the run folder, which Kubeflow's cache does not know: preprocess has a cache of its own.
    task.set_caching_options(enable_caching=False)
    if needs.retries:
        task.set_retry(needs.retries, backoff_duration="30s", backoff_factor=2, backoff_max_duration="300s")
    kubernetes.mount_pvc(task, pvc_name=parameters["run_claim"], mount_path=form.WORKSPACE)
    kubernetes.set_security_context(task, run_as_non_root=True)
    kubernetes.add_pod_label(task, "sidecar.istio.io/inject", "false")
    return task


_wiring.__signature__ = form.signature()  # type: ignore[attr-defined]
_wiring.__doc__ = form.docstring(_SUMMARY)
distrinews = dsl.pipeline(name="distrinews", description=_SUMMARY)(_wiring)
