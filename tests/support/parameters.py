"""The parameters of the pipeline, as Kubeflow gives them to the first step."""

import inspect
from typing import Any


def parameters(**given: object) -> dict[str, Any]:
    """Returns the defaults of the form with these values over them, and the id of the run."""
    from pipelines.kubeflow.pipeline import distrinews  # which kfp takes seconds to make

    form = inspect.signature(distrinews.pipeline_func).parameters
    return {name: parameter.default for name, parameter in form.items()} | {"run_id": "", **given}
