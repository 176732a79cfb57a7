"""The command `distrinews bench`."""

import argparse
from collections.abc import Callable
from typing import Any

from server.cli import build, describe, parser
from server.errors import UserError
from trainer.bench.settings import BenchSettings, CollectivesConfig, ProjectConfig, ScalingConfig

_PROGRAM = "distrinews bench"


def main(args: list[str] | None = None) -> None:
    """Measure; ends with status 1 when that fails, 2 when it is called wrongly."""
    listed = "\n".join(f"  {name:13}{text}" for name, (text, _, _) in _COMMANDS.items())
    first = argparse.ArgumentParser(
        prog=_PROGRAM, usage=f"{_PROGRAM} COMMAND [options]", allow_abbrev=False,
        description="How training scales, and why.", formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"commands:\n{listed}\n\n{_PROGRAM} COMMAND --help tells the options of each.",
    )  # fmt: skip
    first.add_argument("command", choices=_COMMANDS, metavar="COMMAND")
    first.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    given = first.parse_args(args)
    text, settings, work = _COMMANDS[given.command]
    command = _parser(f"{_PROGRAM} {given.command}", f"{text[0].upper()}{text[1:]}.", settings)
    try:
        config = build(settings, vars(command.parse_args(given.rest)))
    except UserError as error:
        command.error(str(error))
    try:
        work(config)
    except UserError as error:
        command.exit(1, f"{command.prog}: error: {error}\n")
    except KeyboardInterrupt:
        command.exit(130, "\n")


def _parser(program: str, description: str, settings: type[BenchSettings]) -> argparse.ArgumentParser:
    names = [name for name in settings.model_fields if name != "measured"]
    command = parser(program, description, {"settings": (settings, names)})
    if settings is ProjectConfig:  # a field cannot be called "from"
        meaning = describe(settings.model_fields["measured"])
        command.add_argument("--from", dest="measured", metavar="FILE", help=meaning)
    return command


def _scaling(config: ScalingConfig) -> None:
    from trainer.bench.scaling import bench_scaling

    bench_scaling(config)


def _collectives(config: CollectivesConfig) -> None:
    from trainer.bench.collectives import bench_collectives

    bench_collectives(config)


def _project(config: ProjectConfig) -> None:
    from trainer.bench.project import bench_project

    bench_project(config)


_COMMANDS: dict[str, tuple[str, type[BenchSettings], Callable[[Any], None]]] = {
    "scaling": ("speed-up and efficiency of training with 1 … N processes", ScalingConfig, _scaling),
    "collectives": ("latency and bandwidth of what processes exchange", CollectivesConfig, _collectives),
    "project": ("step time and efficiency with more processes than there are here", ProjectConfig, _project),
}
