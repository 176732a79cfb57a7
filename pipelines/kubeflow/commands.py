"""The commands `distrinews submit` and `distrinews compile`."""

import json
import sys
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator
from pydantic_settings import CliPositionalArg

from pipelines.kubeflow.parameters import to_parameters
from pipelines.run_folder import RunSettings, Step
from server.cli import Command
from server.errors import INTERRUPTED, UserError

_NOT_FOLLOWED = 3
_MOST_BYTES = 100_000  # of one argument the kernel takes 131,072, with the quotes of JSON in JSON


class Compile(Command):
    """Write the pipeline as a file for the Kubeflow UI, or for GitOps."""

    output: CliPositionalArg[Path]
    """File to write, such as distrinews.yaml; its folder is made."""

    manifests: str | None = None
    """Namespace for which to write the resources Pipeline and PipelineVersion instead, for kubectl apply and GitOps."""

    @model_validator(mode="after")
    def _is_yaml(self) -> Self:
        if self.output.suffix not in (".yaml", ".yml"):
            raise ValueError(f"{self.output}: the file is YAML, so its name ends in .yaml")
        return self

    def run(self) -> None:
        from pipelines.kubeflow.client import write_pipeline

        write_pipeline(self.output, namespace=self.manifests)
        next_step = (
            f"kubectl apply -f {self.output}"
            if self.manifests
            else "upload it in the Kubeflow UI, under Pipelines, Upload pipeline"
        )
        print(f"wrote {self.output}: {next_step}")


class Submit(RunSettings, Command):
    """Run the whole pipeline on a cluster, through Kubeflow Pipelines.

    The environment names the endpoint: KFP_HOST, and KFP_TOKEN or KFP_COOKIES where it asks for credentials, KFP_CA_FILE where
    an authority of your own signed its certificate. The status is 0 when the run has succeeded, 1 when not, and 3 when it continues but
    cannot be followed to its end, as with a token that has expired.
    """

    config: Path | None = None
    """JSON or YAML file with settings; flags win."""

    name: str = ""
    """Name of the run. By default the id that Kubeflow gives it."""

    from_step: Step | None = Field(default=None, alias="from")
    """Step from which to resume the run that --name names: preprocess, train, evaluate, gate, export or deploy."""

    claim: str = ""
    """Claim of the volume with the runs. By default distrinews-workspace."""

    trainer_image: str = ""
    """Image of the steps that read data or run the model, and of the training job."""

    pipelines_image: str = ""
    """Image of the steps that call the API of the cluster."""

    step_cpu: str = ""
    """CPUs that the pod of each step but train requests, such as 500m or 4. By default 1."""

    step_memory: str = ""
    """Memory that the pod of each step but train requests, and its limit. By default 4Gi."""

    namespace: str | None = None
    """Namespace of the profile, where Kubeflow has several users."""

    experiment: str = "distrinews"
    """Experiment that the run is shown in."""

    schedule: str | None = None
    """Times of runs, instead of one now: six cron fields, seconds first, such as '0 0 3 * * *'."""

    follow: bool = True
    """Print the progress of the run until it ends."""

    @model_validator(mode="after")
    def _run_settings_agree(self) -> Self:
        if self.from_step and not self.name:
            raise ValueError(f"--from {self.from_step}: name the run with --name")
        if self.schedule and self.name:
            raise ValueError(f"--name {self.name} contradicts --schedule: each run needs a folder of its own")
        if self.schedule and len(self.schedule.split()) != 6:
            raise ValueError(f"--schedule {self.schedule!r}: has not six fields, seconds first, such as '0 0 3 * * *'")
        return self

    def run(self) -> int:
        from pipelines.kubeflow.client import Access, PipelinesClient

        placed = {
            "run_name": self.name, "from_step": self.from_step, "claim": self.claim, "trainer_image": self.trainer_image,
            "pipelines_image": self.pipelines_image, "step_cpu": self.step_cpu, "step_memory": self.step_memory,
        }  # fmt: skip
        parameters = to_parameters(self) | {name: value for name, value in placed.items() if value}
        if (size := len(json.dumps(parameters))) > _MOST_BYTES:
            raise UserError(
                f"the settings are {size:,} bytes long, and a pod's command takes {_MOST_BYTES:,}: copy the file of --config to the volume, and "
                'start the run in the Kubeflow UI with settings {"config": "/workspace/FILE"}'
            )
        client = PipelinesClient(Access(), namespace=self.namespace)
        ids = client.upload()
        name = self.name or f"distrinews on {Path(self.data).name}"
        if self.schedule:
            recurring = client.schedule(ids, name, parameters, experiment=self.experiment, cron=self.schedule)
            print(f"distrinews submit: scheduled as {recurring}", flush=True)
            return 0
        run_id = client.run(ids, name, parameters, experiment=self.experiment)
        continues = f"run {run_id} continues: follow it by the link above, or with kfp run get {run_id}"
        try:
            return 0 if not self.follow or client.follow(run_id) == "SUCCEEDED" else 1
        except UserError as error:
            print(f"distrinews submit: {error}; {continues}", file=sys.stderr, flush=True)
            return _NOT_FOLLOWED
        except KeyboardInterrupt:
            print(f"distrinews submit: {continues}", file=sys.stderr, flush=True)
            return INTERRUPTED
