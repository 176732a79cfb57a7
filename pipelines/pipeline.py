"""The Kubeflow pipeline: the same object that is compiled for a cluster and run on a laptop."""

from typing import Any

from kfp import dsl

from pipelines import components, form

_SUMMARY = "From labelled texts to a served classifier: preprocess, train, evaluate, gate, export, deploy."


def _wiring(*values: Any) -> None:  # noqa: ANN401 - as the form says
    parameters = dict(zip(form.signature().parameters, values, strict=True))
    task = components.settings(**parameters, run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER)
    task.set_caching_options(enable_caching=False)
    for component in (
        components.preprocess,
        components.train,
        components.evaluate,
        components.gate,
        components.export,
        components.deploy,
    ):
        # What a step makes is in the run folder, which Kubeflow's cache does not know: preprocess has a cache of its own.
        task = component(run_folder=task.outputs["Output"])
        task.set_caching_options(enable_caching=False)


_wiring.__signature__ = form.signature()  # type: ignore[attr-defined]
_wiring.__doc__ = form.docstring(_SUMMARY)
distrinews = dsl.pipeline(name="distrinews", description=_SUMMARY)(_wiring)
