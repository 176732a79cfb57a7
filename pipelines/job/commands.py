"""The command `distrinews job`."""

import argparse

from trainer.errors import UserError

_PROGRAM = "distrinews job"


def main(args: list[str] | None = None) -> None:
    """Do one of the commands; ends with status 1 when it finds or meets a fault, 2 when it is called wrongly."""
    parser = argparse.ArgumentParser(prog=_PROGRAM, description="One training job on a cluster.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_lint(commands)
    given = parser.parse_args(args)
    try:
        raise SystemExit(given.work(given))
    except UserError as error:
        parser.exit(1, f"{_PROGRAM} {given.command}: error: {error}\n")


def _add_lint(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    lint = commands.add_parser("lint", help="check PyTorchJob manifests strictly; status 1 with findings")
    lint.add_argument("files", nargs="+", metavar="FILE", help="a YAML or JSON file, or - for standard input")
    lint.add_argument("--json", action="store_true", default=False, help="print the findings as JSON")
    lint.set_defaults(work=_lint)


def _lint(given: argparse.Namespace) -> int:
    from pipelines.job.lint import lint_files

    return lint_files(given.files, as_json=given.json)
