"""The commands of `distrinews bench`; each imports what it measures with when it runs, so that `--help` answers at once."""

from server.cli import Command
from trainer.bench.settings import CollectivesConfig, ProjectConfig, ScalingConfig


class Scaling(ScalingConfig, Command):
    """Measure speed-up and efficiency of training with 1 to N processes."""

    def run(self) -> None:
        from trainer.bench.scaling import bench_scaling

        bench_scaling(self)


class Collectives(CollectivesConfig, Command):
    """Measure latency and bandwidth of the collective operations that processes exchange data with."""

    def run(self) -> None:
        from trainer.bench.collectives import bench_collectives

        bench_collectives(self)


class Project(ProjectConfig, Command):
    """Project step time and efficiency to more processes than there are here."""

    def run(self) -> None:
        from trainer.bench.project import bench_project

        bench_project(self)
