"""What a run on a cluster sets besides: how train starts its processes there, and what deploy does."""

from typing import Literal

from pipelines.deploy.settings import DeployConfig
from pipelines.job.settings import Deadlines, JobConfig
from server.cli import Settings


class ClusterConfig(Settings):
    launch: Literal["here", "job"] = "here"
    """How train starts its processes: here, on the machine of the step, or as a job of pods."""

    deploy: Literal["here", "helm"] = "here"
    """What deploy does: start the server here for a moment, or bring a Helm release on the cluster to the new model."""

    job: JobConfig = JobConfig()
    deadlines: Deadlines = Deadlines()
    release: DeployConfig = DeployConfig()


GROUPS: dict[str, tuple[type[Settings], tuple[str, ...]]] = {
    # The form asks for the trainer's image, the claim and its mount path once for all steps.
    "job": (JobConfig, tuple(name for name in JobConfig.model_fields if name not in {"image", "claim", "mount_path"})),
    "deadline": (Deadlines, tuple(Deadlines.model_fields)),
    "deploy": (
        DeployConfig,
        # What the step's image holds, and where it asks, is nothing to choose in a form.
        tuple(name for name in DeployConfig.model_fields if name not in {"claim", "mount_path", "chart", "helm"}),
    ),
}
"""The settings of job and release, by the first word of their names in the form."""
