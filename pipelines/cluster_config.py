"""What a run on a cluster sets besides: how train starts its processes there."""

from typing import Literal

from pipelines.job.settings import Deadlines, JobConfig
from trainer.config import Settings


class ClusterConfig(Settings):
    launch: Literal["here", "job"] = "here"
    """How train starts its processes: here, on the machine of the step, or as a job of pods."""

    job: JobConfig = JobConfig()
    deadlines: Deadlines = Deadlines()


GROUPS: dict[str, tuple[type[Settings], tuple[str, ...]]] = {
    # The form asks for image, claim and mount path once for all steps.
    "job": (JobConfig, tuple(name for name in JobConfig.model_fields if name not in {"image", "claim", "mount_path"})),
    "deadline": (Deadlines, tuple(Deadlines.model_fields)),
}
"""The settings of a job, by the first word of their names in the form."""
