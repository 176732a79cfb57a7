'''Turns settings classes into commands: flags with meaning, range and default, and each error on one line.

    class Lint(Command):
        """Check manifests of training jobs."""                  # the head of --help

        files: CliPositionalArg[Words]                           # words without a flag (from pydantic_settings)
        """YAML or JSON files."""                                # its help, to which range and default are added
        max_nodes: int = Field(default=10, ge=1, le=100)         # --max-nodes NODES
        """Nodes at most."""
        as_json: bool = Field(default=False, alias="json")       # --json, --no-json: an alias is the flag's name
        """Print JSON."""
        job: JobConfig = JobConfig()                             # --job.nodes, --job.gpus, …
        config: Path | None = None                               # a class with this field reads that file; flags win
        """JSON or YAML file with settings."""

        def run(self) -> int | None:                             # UserError: one line and status 1; or returns a status
            from pipelines.job.lint import lint_files            # imports what is slow only here

COMMANDS in pipelines/cli.py names the class; `python -m` of a module needs `run_command(Lint, prog="python -m …")` at its end.
'''

import difflib
import os
import re
import select
import signal
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, NoReturn, TypeVar, Union, get_args, get_origin
from urllib.parse import quote, unquote

from pydantic import AfterValidator, AliasChoices, BaseModel, BeforeValidator, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import (
    CLI_SUPPRESS,
    BaseSettings,
    CliApp,
    CliPositionalArg,
    CliSettingsSource,
    NoDecode,
    SettingsConfigDict,
    SettingsError,
)  # fmt: skip
from pydantic_settings import PydanticBaseSettingsSource as Source

from server.errors import INTERRUPTED, UserError
from server.files import read_file

M = TypeVar("M", bound=BaseModel)
S = TypeVar("S", bound="Settings")
_POSITIONAL = get_args(CliPositionalArg[str])[1]
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


class Variables(Source):
    """Reads the variables with the prefix of a class, in capitals alone; the library's own source takes `epochs` too."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        raise NotImplementedError  # a source that reads all fields at once is not asked for one

    def __call__(self) -> dict[str, Any]:
        names = {name: f"{self.config['env_prefix']}{name}".upper() for name in self.settings_cls.model_fields}
        return {name: os.environ[variable] for name, variable in names.items() if variable in os.environ}


class Settings(BaseSettings):
    """The base of all settings: frozen, strict about names, and read from flags and a file alone, unless it has `sources`."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True,
        cli_kebab_case=True, cli_implicit_flags=True, cli_avoid_json=True, cli_exit_on_error=False,
        cli_parse_none_str="\0",  # no argument can hold it, so that a class or a run may be called None
    )  # fmt: skip
    sources: ClassVar[tuple[type[Source], ...]] = ()
    """Sources of what neither a flag nor a file gives."""

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: Source, *_: object, **__: object
    ) -> tuple[Source, ...]:
        return (init_settings, *(source(settings_cls) for source in cls.sources))

    @classmethod
    def origin(cls, name: str) -> str:
        """Names the place of a value that neither a flag nor a file gave, for an error."""
        return flag_of(name)


class Environment(Settings):
    """The base of settings that come from variables alone, such as secrets: flags can be read by others on the machine."""

    model_config = SettingsConfigDict(hide_input_in_errors=True)
    sources = (Variables,)


class Command(Settings):
    """The base of a command: its settings, and its work."""

    def run(self) -> int | None:
        """Does the work; returns the exit status where it is not 0."""
        raise NotImplementedError


def split(value: object) -> object:
    """Splits text at its commas; for a BeforeValidator."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _name(value: str) -> str:
    if "," in value or not value.strip():
        raise ValueError("a name must not be empty, or have a comma, which separates names")
    return value.strip()


_Name = Annotated[str, Field(coerce_numbers_to_str=True), AfterValidator(_name)]
Names = Annotated[tuple[_Name, ...], NoDecode, BeforeValidator(split)]
"""A list of names, separated by commas on a command line."""


def _unquote(value: object) -> object:
    return tuple(unquote(word) for word in value.split(",")) if isinstance(value, str) else value


Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_unquote)]
"""Several words without a flag, as CliPositionalArg[Words]: quoted, since the library splits at commas and strips quotes."""


def run_command(command: type[Command], words: Sequence[str] | None = None, *, prog: str) -> None:
    """Reads a command's settings and runs it: a wrong setting ends it with status 2, a UserError of its work with 1."""
    given = parse(command, words, prog=prog)
    try:
        status = given.run()
        print(end="", flush=True)  # here, where a reader that has left can be met
    except UserError as error:
        fail(prog, error)
    except BrokenPipeError:
        if not _stdout_is_closed():
            raise
        status = 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        status = INTERRUPTED
    if status:
        raise SystemExit(status)


def _stdout_is_closed() -> bool:
    """Returns True if nobody reads standard output any more, as after `| head`; then discards what is left of it."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    if not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def parse(settings: type[S], args: Sequence[str] | None = None, *, prog: str) -> S:
    """Reads settings from flags, over the file of --config, over what else their class reads; ends the program when one is wrong."""
    args, fields, flags = list(sys.argv[1:] if args is None else args), dict(_fields(settings)), list[str]()
    groups, file, flagged = dict[str, Any](), dict[str, Any](), dict[str, Any]()

    def add_argument(parser: Any, *names: str, **options: Any) -> None:  # noqa: ANN401 - a parser or a group of one
        flags.extend(names)
        name = options.get("dest", names[0])
        if name in fields and options["help"] != CLI_SUPPRESS:
            options["help"] = describe(fields[name]).replace("%", "%%")
            if "dest" in options and "metavar" in options:
                options["metavar"] = _placeholder(fields[name], name)
            if heading := _heading(settings, name):
                parser = groups[heading] = groups.get(heading) or parser.add_argument_group(heading)
            if "dest" not in options and options.get("nargs") in ("*", "+"):
                options["type"] = partial(quote, safe="")
        parser.add_argument(*names, **options)

    try:
        source = CliSettingsSource[Any](
            settings, cli_prog_name=prog, add_argument_method=add_argument,
            parse_args_method=ArgumentParser.parse_intermixed_args,  # words may follow a flag
        )  # fmt: skip
        flagged = source(args=args)()
        file = read_file(Path(flagged["config"])) if "config" in flagged else {}
        return CliApp.run(settings, args, source, **file)
    except SettingsError as error:
        fail(prog, UserError(explain_flags(str(error), flags)), status=2)
    except ValidationError as error:
        first = error.errors()[0]
        in_file = first["type"] == "extra_forbidden" or {*first["loc"][:1]} & (file.keys() - flagged.keys())
        place = f"--config {flagged['config']}: " if file and in_file else ""
        fail(prog, UserError(place + _explain(settings, error, file | flagged)), status=2)
    except UserError as error:
        fail(prog, error, status=2)


def _fields(settings: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yields the fields of settings and of the groups in them, by their flags without the dashes."""
    for name, field in settings.model_fields.items():
        alias = field.validation_alias
        flag = str(alias.choices[0]) if isinstance(alias, AliasChoices) else field.alias or name
        yield prefix + flag, field
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _fields(field.annotation, f"{prefix}{flag}.")


def _heading(settings: type[BaseModel], name: str) -> str:
    """Returns the heading of a field in --help: the docstring of the class that settings have it from."""
    owners = [kind for kind in settings.__mro__[1:] if name in vars(kind).get("__annotations__", {})]
    return (owners[-1].__doc__ or "").rstrip(".") if owners else ""


def _placeholder(field: FieldInfo, name: str) -> str:
    """Names the value of a flag in --help: the choices, PATH, or the last word of the flag."""
    if allowed := choices(field):
        return f"{{{','.join(allowed)}}}"
    return "PATH" if Path in (field.annotation, *get_args(field.annotation)) else re.split("[._]", name)[-1].upper()


def describe(field: FieldInfo) -> str:
    """Makes help text of the meaning of a setting, its range and its default."""
    bounds = [
        f"{sign} {getattr(limit, name):,}"
        for limit in field.metadata
        for name, sign in _BOUNDS.items()
        if getattr(limit, name, None) is not None
    ]
    facts = [" and ".join(bounds)] if bounds else []
    if not field.is_required() and not field.default_factory and field.default not in (None, (), ""):
        default = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        facts.append(f"default {default}")
    return f"{field.description}" + (f" ({'; '.join(facts)})" if facts else "")


def choices(field: FieldInfo) -> tuple[str, ...]:
    """Returns the values that a setting of the type Literal, or Literal or None, may have; none for another."""
    members = get_args(field.annotation) if get_origin(field.annotation) in (Union, UnionType) else (field.annotation,)
    kinds = [member for member in members if member is not NoneType]
    return get_args(kinds[0]) if len(kinds) == 1 and get_origin(kinds[0]) is Literal else ()


def build(settings: type[M], values: Mapping[str, Any]) -> M:
    """Makes settings of their values; the first fault in them is a UserError of one line."""
    try:
        return settings.model_validate(values)
    except ValidationError as error:
        raise UserError(_explain(settings, error, values)) from None


def _explain(settings: type[BaseModel], error: ValidationError, given: Mapping[str, Any]) -> str:
    """Explains the first fault: its flag or variable, its value, and what would be right."""
    first, fields = error.errors()[0], dict(_fields(settings))
    path = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(".".join(path), fields, n=1)
        return f"no setting is called {'.'.join(path)!r}" + (f"; did you mean {near[0]!r}?" if near else "")
    message = first["msg"].removeprefix("Value error, ")
    name = next((".".join(path[:end]) for end in range(len(path), 0, -1) if ".".join(path[:end]) in fields), "")
    if not name or (isinstance(first["input"], dict) and first["type"] == "value_error"):
        return message  # of settings that contradict each other
    if first["type"] == "missing":
        return f"{flag_of(name)} is missing: {fields[name].description}"
    origin = settings.origin(name) if issubclass(settings, Settings) and path[0] not in given else flag_of(name)
    if _POSITIONAL in fields[name].metadata:
        origin = name.upper().replace("_", "-")
    return f"{origin} {first['input']!r}: {message[0].lower()}{message[1:]}"


def explain_flags(message: str, flags: Sequence[str]) -> str:
    message = " ".join(message.removeprefix("error parsing CLI: ").split())
    unknown = [word for word in message.split()[2:] if word.startswith("--")]
    near = difflib.get_close_matches(unknown[0].split("=")[0], flags, n=1) if unknown else []
    if re.match(r"(.*ignored explicit argument|unrecognized arguments: (true|false|yes|no|on|off)\b)", message.lower()):
        message += "; a switch has no value: write --name or --no-name"
    return message + (f"; did you mean {near[0]}?" if near and near[0] != unknown[0] else "") + " (--help lists all)"


def as_flags(config: BaseModel, prefix: str = "") -> list[str]:
    """Writes settings as the flags that make them, without those that have their default."""
    flags, values = list[str](), config.model_dump(exclude_defaults=True, mode="json")
    for name, value in values.items():
        flag = flag_of(prefix + (type(config).model_fields[name].alias or name))
        if isinstance(group := getattr(config, name), BaseModel):
            flags += as_flags(group, f"{prefix}{name}.")
        elif isinstance(value, bool):
            flags.append(flag if value else f"--no-{flag[2:]}")
        else:  # with "=", so that a value may begin with a dash
            parts = [f"{key}={part}" for key, part in value.items()] if isinstance(value, dict) else value
            flags.append(f"{flag}={','.join(map(str, parts)) if isinstance(parts, list) else parts}")
    return flags


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")


def fail(prog: str, error: UserError, *, status: int = 1) -> NoReturn:
    """Ends the program with the line from which the user learns what to fix."""
    print(f"{prog}: error: {error}", file=sys.stderr, flush=True)
    raise SystemExit(status)
