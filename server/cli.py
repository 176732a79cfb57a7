"""Command-line flags made from settings, settings read from flags and files, and settings written back as flags."""

import argparse
import difflib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from server.errors import UserError

M = TypeVar("M", bound=BaseModel)
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def describe(field: FieldInfo) -> str:
    """The meaning of a setting with its range and default, as help text."""
    bounds = [
        f"{sign} {getattr(limit, name):,}"
        for limit in field.metadata
        for name, sign in _BOUNDS.items()
        if getattr(limit, name, None) is not None
    ]
    facts = [" and ".join(bounds)] if bounds else []
    if not field.is_required() and field.default not in (None, ()):
        facts.append(f"default {field.default}")
    return f"{field.description}" + (f" ({'; '.join(facts)})" if facts else "")


def choices(field: FieldInfo) -> tuple[str, ...]:
    """The values that a Literal setting may have; of another, none."""
    return get_args(field.annotation) if get_origin(field.annotation) is Literal else ()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        unknown = [word for word in message.split()[2:] if word.startswith("--")]
        if message.startswith("unrecognized arguments:") and unknown:
            known = [flag for action in self._actions for flag in action.option_strings]
            near = difflib.get_close_matches(unknown[0].split("=")[0], known, n=1)
            message += f"; did you mean {near[0]}?" if near else ""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())} (--help lists all)\n")


def parser(
    prog: str, description: str, groups: Mapping[str, tuple[type[BaseModel], Sequence[str]]]
) -> argparse.ArgumentParser:
    """A parser with one flag a setting; what it parses are strings, which the settings' own types then read.

    `groups` maps a heading to the settings class and the names of its fields that stand there.
    """
    made = _Parser(prog=prog, description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for heading, (settings, names) in groups.items():
        section = made.add_argument_group(heading)
        for name in names:
            field = settings.model_fields[name]
            metavar = "{" + ",".join(choices(field)) + "}" if choices(field) else name.rsplit("_", 1)[-1].upper()
            added = section.add_argument(_flag(name), metavar=metavar, help=describe(field).replace("%", "%%"))
            if field.annotation is bool:
                added.nargs, added.const = "?", "true"  # the flag alone says yes
    return made


def read_file(path: Path) -> dict[str, Any]:
    """Settings from a JSON or YAML file."""
    kind = "JSON" if path.suffix == ".json" else "YAML"
    try:
        text = path.read_text(encoding="utf-8-sig")
        values = json.loads(text) if kind == "JSON" else yaml.safe_load(text)
    except OSError as error:
        raise UserError(f"--config {path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"--config {path}: is not valid {kind}: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        found = "nothing" if values is None else f"a {type(values).__name__}"
        raise UserError(f"--config {path}: holds {found}, not settings by name, such as epochs: 3")
    return {str(key).replace("-", "_"): value for key, value in values.items()}


def build(settings: type[M], values: Mapping[str, Any]) -> M:
    """Settings from their values; the first fault in them is a UserError of one line."""
    try:
        return settings.model_validate(values)
    except ValidationError as error:
        raise UserError(_explain(settings, error)) from None


def _explain(settings: type[BaseModel], error: ValidationError) -> str:
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, settings.model_fields, n=1)
        return f"no setting is called {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")
    message = first["msg"].removeprefix("Value error, ")
    if not name:
        return message
    if first["type"] == "missing":
        return f"{_flag(name)} is missing: {settings.model_fields[name].description}"
    return f"{_flag(name)} {first['input']!r}: {message[0].lower()}{message[1:]}"


def as_flags(config: BaseModel) -> list[str]:
    """Settings as the flags that make them; what has its default is left out."""
    values = config.model_dump(exclude_defaults=True, mode="json")
    # With "=", so that a value may begin with a dash.
    return [
        f"{_flag(name)}={','.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in values.items()
    ]


def parse(settings: type[M], args: Sequence[str] | None = None, *, prog: str) -> M:
    """Settings of one kind from a command line alone; ends the program with status 2 and one line when they are wrong."""
    made = parser(prog, settings.__doc__ or "", {"settings": (settings, list(settings.model_fields))})
    try:
        return build(settings, vars(made.parse_args(args)))
    except UserError as error:
        made.error(str(error))


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def write_json(path: Path, value: object) -> None:
    """A JSON file that is whole or not there."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def fail(step: str, error: UserError) -> NoReturn:
    """End the program with the one line that tells the user what to mend."""
    print(f"{step}: error: {error}", file=sys.stderr, flush=True)
    raise SystemExit(1)
