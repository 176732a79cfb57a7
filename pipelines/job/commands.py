"""The commands below `distrinews job`; each imports what needs the cluster when it runs."""

from typing import TYPE_CHECKING, Self

from pydantic import AliasChoices, Field, model_validator
from pydantic_settings import CliPositionalArg

from pipelines.job.settings import JobConfig
from pipelines.run_folder import check_name
from server.cli import Command, Words
from trainer.config import TrainConfig

if TYPE_CHECKING:
    from pipelines.job.reconcile import Jobs
    from pipelines.job.settings import Object

_ANSWER_SECONDS = 30  # patience of a person who waits for an answer


class _Place(Command):
    """Names the cluster and the namespace of the job."""

    namespace: str | None = None
    """Namespace of the job. By default that of kubeconfig's context."""

    context: str | None = None
    """Context of kubeconfig. By default its current one."""

    def jobs(self, *, follow: bool = False) -> "Jobs":
        from pipelines.cluster.client import connect
        from pipelines.job.backends import backend
        from pipelines.job.reconcile import Jobs

        cluster = connect(self.namespace, context=self.context)
        return Jobs(cluster if follow else cluster.within(_ANSWER_SECONDS), backend("pytorchjob"))


class Render(TrainConfig, JobConfig, Command):
    """Write the PyTorchJob of a run as YAML, for kubectl apply."""

    run_name: str = Field(alias="run")
    """Name of the run: its folder on the volume, with the dataset."""

    @model_validator(mode="after")
    def _names_a_run(self) -> Self:
        check_name(self.run_name, flag="--run")
        return self

    def run(self) -> None:
        from pipelines.cluster import go_yaml

        print(go_yaml.dump(self.manifest(None)), end="")

    def manifest(self, namespace: str | None) -> "Object":
        from pipelines.job.backends import backend, manifest_of_run

        job = JobConfig(**{name: getattr(self, name) for name in JobConfig.model_fields})
        train = TrainConfig(**{name: getattr(self, name) for name in TrainConfig.model_fields})
        return manifest_of_run(backend("pytorchjob"), job, train, run=self.run_name, namespace=namespace)


class Submit(Render, _Place):
    """Create the job of a run on the cluster, or attach to the one there is; it runs on when this command ends."""

    follow: bool = Field(default=False, validation_alias=AliasChoices("follow", "f"))
    """Print logs and events until the job ends."""

    dry_run: bool = False
    """Print the job, and ask no cluster."""

    def run(self) -> None:
        from pipelines.cluster import go_yaml

        manifest = self.manifest(self.namespace)
        if self.dry_run:
            print(go_yaml.dump(manifest), end="")
            return
        from pipelines.job.drive import submit

        submit(self.jobs(follow=True), manifest, follow=self.follow)


class Status(_Place):
    """Show the state of all jobs, or of one and its pods."""

    job: CliPositionalArg[str | None] = None
    """Name of a job. By default all jobs that distrinews created."""

    def run(self) -> None:
        from pipelines.job.drive import status

        status(self.jobs(), self.job)


class Logs(_Place):
    """Print the logs of all ranks of a job, and its events."""

    job: CliPositionalArg[str]
    """Name of the job."""

    follow: bool = Field(default=False, validation_alias=AliasChoices("follow", "f"))
    """Print until the job ends."""

    def run(self) -> None:
        from pipelines.job.drive import logs

        logs(self.jobs(follow=self.follow), self.job, follow=self.follow)


class Delete(_Place):
    """Delete a job and its pods; the run's folder stays."""

    job: CliPositionalArg[str]
    """Name of the job."""

    dry_run: bool = False
    """Print what would be deleted."""

    def run(self) -> None:
        from pipelines.job.drive import delete

        delete(self.jobs(), self.job, dry_run=self.dry_run)


class Reap(_Place):
    """Delete jobs that runs left: finished, or without a launcher."""

    finished_hours: float = Field(default=1, ge=0)
    """Hours that a finished job may stay."""

    dry_run: bool = False
    """Print what would be deleted."""

    def run(self) -> None:
        from pipelines.job.drive import reap

        lines = reap(self.jobs(), finished_hours=self.finished_hours, dry_run=self.dry_run)
        print("\n".join(lines) or "nothing to delete")


class Lint(Command):
    """Check PyTorchJob manifests strictly; ends with status 1 when there are findings."""

    files: CliPositionalArg[Words]
    """YAML or JSON files, or - for standard input."""

    as_json: bool = Field(default=False, alias="json")
    """Print the findings as JSON."""

    def run(self) -> int:
        from pipelines.job.lint import lint_files

        return lint_files(self.files, as_json=self.as_json)
