"""Builds the parser of commands that are not classes yet."""

import argparse
from collections.abc import Mapping, Sequence
from typing import NoReturn

from pydantic import BaseModel

from server.cli import choices, describe, explain_flags, flag_of


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        flags = [flag for action in self._actions for flag in action.option_strings]
        self.exit(2, f"{self.prog}: error: {explain_flags(message, flags)}\n")


def parser(
    prog: str, description: str, groups: Mapping[str, tuple[type[BaseModel], Sequence[str]]]
) -> argparse.ArgumentParser:
    """A parser with one flag a setting; what it parses are strings, which the settings' own types then read."""
    made = _Parser(prog=prog, description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for heading, (settings, names) in groups.items():
        section = made.add_argument_group(heading)
        for name in names:
            field = settings.model_fields[name]
            metavar = "{" + ",".join(choices(field)) + "}" if choices(field) else name.rsplit("_", 1)[-1].upper()
            added = section.add_argument(flag_of(name), metavar=metavar, help=describe(field).replace("%", "%%"))
            if field.annotation is bool:
                added.nargs, added.const = "?", "true"  # the flag alone says yes
    return made
