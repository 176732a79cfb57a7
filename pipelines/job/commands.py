"""The command `distrinews job`."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from pipelines.flags import parser
from server.cli import build
from server.errors import UserError
from trainer.config import TrainConfig

if TYPE_CHECKING:
    from pydantic import BaseModel

    from pipelines.job.reconcile import Jobs
    from pipelines.job.settings import Object

_PROGRAM = "distrinews job"
_COMMANDS: dict[str, tuple[str, Callable[[str, list[str]], int]]] = {}


def main(args: list[str] | None = None) -> None:
    """Do one of the commands; ends with status 1 when it finds or meets a fault, 2 when it is called wrongly."""
    listed = "\n".join(f"  {name:8}{text}" for name, (text, _) in _COMMANDS.items())
    first = argparse.ArgumentParser(
        prog=_PROGRAM, usage=f"{_PROGRAM} COMMAND [options]", allow_abbrev=False,
        description="One training job on a cluster.", formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"commands:\n{listed}\n\n{_PROGRAM} COMMAND --help tells the options of each.",
    )  # fmt: skip
    first.add_argument("command", choices=_COMMANDS, metavar="COMMAND")
    first.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    given = first.parse_args(args)
    program = f"{_PROGRAM} {given.command}"
    try:
        raise SystemExit(_COMMANDS[given.command][1](program, given.rest))
    except UserError as error:
        first.exit(1, f"{program}: error: {error}\n")
    except KeyboardInterrupt:
        first.exit(130, "\n")


def _command(name: str, text: str) -> Callable[[Callable[[str, list[str]], int]], Callable[[str, list[str]], int]]:
    def register(work: Callable[[str, list[str]], int]) -> Callable[[str, list[str]], int]:
        _COMMANDS[name] = (text, work)
        return work

    return register


def _describe(name: str) -> str:
    text = _COMMANDS[name.rsplit(" ", 1)[1]][0]
    return text[0].upper() + text[1:] + "."


def _add_place(command: argparse.ArgumentParser) -> None:
    command.add_argument("--namespace", default=None, help="namespace (default: that of the context)")
    command.add_argument("--context", default=None, help="context of kubeconfig (default: the current one)")


def _connect(given: argparse.Namespace) -> "Jobs":
    from pipelines.cluster.client import connect
    from pipelines.job.backends import backend
    from pipelines.job.reconcile import Jobs

    return Jobs(connect(given.namespace, context=given.context), backend("pytorchjob"))


@_command("render", "write the PyTorchJob of a run as YAML, for kubectl apply")
def _render(program: str, args: list[str]) -> int:
    import yaml

    print(yaml.safe_dump(_manifest(_settings_parser(program), args)[0], sort_keys=False), end="")
    return 0


@_command("submit", "make the job of a run on the cluster, or go on with the one there is")
def _submit(program: str, args: list[str]) -> int:
    import yaml

    from pipelines.job.drive import submit

    command = _settings_parser(program)
    _add_place(command)
    command.add_argument("--follow", action="store_true", default=False, help="stream logs and events until it ends")
    command.add_argument("--dry-run", action="store_true", default=False, help="print the job, ask no cluster")
    manifest, given = _manifest(command, args)
    if given.dry_run:
        print(yaml.safe_dump(manifest, sort_keys=False), end="")
        return 0
    submit(_connect(given), manifest, follow=given.follow)
    return 0


@_command("status", "how jobs stand, or one of them with its pods")
def _status(program: str, args: list[str]) -> int:
    from pipelines.job.drive import status

    command = argparse.ArgumentParser(prog=program, description=_describe(program), allow_abbrev=False)
    command.add_argument("job", nargs="?", default=None, help="name of a job (default: all of ours)")
    _add_place(command)
    given = command.parse_args(args)
    status(_connect(given), given.job)
    return 0


@_command("logs", "the logs of all ranks of a job, and its events")
def _logs(program: str, args: list[str]) -> int:
    from pipelines.job.drive import logs

    command = argparse.ArgumentParser(prog=program, description=_describe(program), allow_abbrev=False)
    command.add_argument("job", help="name of the job")
    command.add_argument("--follow", "-f", action="store_true", default=False, help="go on until the job ends")
    _add_place(command)
    given = command.parse_args(args)
    logs(_connect(given), given.job, follow=given.follow)
    return 0


@_command("delete", "delete a job and its pods; the run's folder stays")
def _delete(program: str, args: list[str]) -> int:
    from pipelines.job.drive import delete

    command = argparse.ArgumentParser(prog=program, description=_describe(program), allow_abbrev=False)
    command.add_argument("job", help="name of the job")
    command.add_argument("--dry-run", action="store_true", default=False, help="only tell")
    _add_place(command)
    given = command.parse_args(args)
    delete(_connect(given), given.job, dry_run=given.dry_run)
    return 0


@_command("reap", "delete jobs that runs left: finished, or without a launcher")
def _reap(program: str, args: list[str]) -> int:
    from pipelines.job.drive import reap

    command = argparse.ArgumentParser(prog=program, description=_describe(program), allow_abbrev=False)
    command.add_argument(
        "--finished-hours", type=float, default=1.0, help="hours that a finished job may stay (default 1)"
    )
    command.add_argument("--dry-run", action="store_true", default=False, help="only tell")
    _add_place(command)
    given = command.parse_args(args)
    told = reap(_connect(given), finished_hours=given.finished_hours, dry_run=given.dry_run)
    print("\n".join(told) or "nothing to delete")
    return 0


@_command("lint", "check PyTorchJob manifests strictly; status 1 with findings")
def _lint(program: str, args: list[str]) -> int:
    from pipelines.job.lint import lint_files

    command = argparse.ArgumentParser(prog=program, description=_describe(program), allow_abbrev=False)
    command.add_argument("files", nargs="+", metavar="FILE", help="a YAML or JSON file, or - for standard input")
    command.add_argument("--json", action="store_true", default=False, help="print the findings as JSON")
    given = command.parse_args(args)
    return lint_files(given.files, as_json=given.json)


def _settings_parser(program: str) -> argparse.ArgumentParser:
    from pipelines.job.settings import JobConfig

    groups: dict[str, tuple[type[BaseModel], list[str]]] = {
        "job": (JobConfig, list(JobConfig.model_fields)),
        "train": (TrainConfig, list(TrainConfig.model_fields)),
    }
    command = parser(program, _describe(program), groups)
    command.add_argument("--run", required=True, help="name of the run: its folder on the volume, with the dataset")
    return command


def _manifest(command: argparse.ArgumentParser, args: list[str]) -> "tuple[Object, argparse.Namespace]":
    """The job that a command line describes."""
    from pipelines.job.backends import backend, manifest_of_run
    from pipelines.job.settings import JobConfig

    given = command.parse_args(args)
    try:
        job, train = (
            build(kind, {name: value for name, value in vars(given).items() if name in kind.model_fields})
            for kind in (JobConfig, TrainConfig)
        )
    except UserError as error:
        command.exit(2, f"{command.prog}: error: {error}\n")
    assert isinstance(job, JobConfig)  # noqa: S101 - told to mypy
    assert isinstance(train, TrainConfig)  # noqa: S101
    namespace = getattr(given, "namespace", None)
    return manifest_of_run(backend("pytorchjob"), job, train, run=given.run, namespace=namespace), given
