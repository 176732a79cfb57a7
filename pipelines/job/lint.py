"""Strict checks of PyTorchJob manifests: YAML with the line of every key, the schema of the resource, and our rules."""

import copy
import difflib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path as FilePath
from typing import Any

import yaml
from jsonschema import Draft202012Validator

from pipelines.cluster import go_yaml
from pipelines.job.backends.pytorchjob import BACKEND
from pipelines.job.rules import Path, Problem, check_job, dig
from server.errors import UserError
from trainer.monitoring.console import counted

_DEPTH, _NODES = 64, 200_000
_UNQUOTED = {"tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"}
"""Keys of these types become other text, such as "true" for y; a number stays as it is."""
_NEUTRAL: dict[str, Any] = {"object": {}, "array": [], "integer": 1, "boolean": False}


@dataclass(frozen=True, order=True)
class Finding:
    """A fault of a manifest, and how to fix it."""

    line: int
    rule: str
    message: str
    fix: str


@dataclass
class Document:
    """One YAML document as Python values, with the line of each key and item."""

    value: Any
    line: int
    lines: dict[Path, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def line_of(self, path: Path) -> int:
        """Returns the line of a field or, if there is none, of the nearest field around it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, self.line)


def lint(text: str) -> list[Finding]:
    """Returns the findings in a file by line; objects of other kinds are skipped, but the file has to hold a job."""
    findings: list[Finding] = []
    jobs = 0
    for document in _read_documents(text):
        findings += document.findings
        for job in _jobs(document):
            jobs += 1
            findings += check(job)
        jobs += document.value is None  # its syntax is a finding already
    if not jobs:
        kind = BACKEND.kind
        findings.append(Finding(1, "no-job", f"there is no {kind} here", f"give a file with one, with kind: {kind}"))
    return sorted(set(findings))


def check(job: Document) -> Iterator[Finding]:
    """Yields the findings in one job: those of the schema, then those of the rules, which rely on types."""
    errors = list(_validator().iter_errors(job.value))
    for error in errors:
        for path, rule, message, fix in _explain(error):
            yield Finding(job.line_of(path), rule, f"{_dotted(path)} {message}", fix)
    value = copy.deepcopy(job.value)
    for error in errors:
        if error.validator == "type":
            _replace(value, tuple(error.absolute_path), error.validator_value)
    for path, rule, message, fix in check_job(value):
        yield Finding(job.line_of(path), rule, message, fix)


def lint_files(names: Sequence[str], *, as_json: bool) -> int:
    """Prints the findings in files, or in standard input for -; returns the exit status: 1 with findings."""
    found = [(name, finding) for name in names for finding in lint(_read(name))]
    if as_json:
        print(json.dumps([{"file": name, **asdict(finding)} for name, finding in found], indent=2))
    else:
        for name, finding in found:
            print(f"{name}:{finding.line}: {finding.rule}: {finding.message}; {finding.fix}")
        count = counted(len(names), "file")
        print(f"{counted(len(found), 'finding')} in {count}" if found else f"{count}: no findings", file=sys.stderr)
    return 1 if found else 0


@cache
def _validator() -> Draft202012Validator:
    schema = json.loads(files("pipelines.job").joinpath("crds", "pytorchjob.json").read_text(encoding="utf-8"))
    return Draft202012Validator(schema)


def _explain(error: Any) -> Iterator[Problem]:  # noqa: ANN401 - jsonschema types its fields as unions
    """Yields our words for an error of jsonschema."""
    path, value, schema, wanted = tuple(error.absolute_path), error.instance, error.schema, error.validator_value
    if error.validator == "additionalProperties":
        known = schema["properties"]
        for name in value.keys() - known.keys():
            near = difflib.get_close_matches(name, known, n=1)
            fix = f"did you mean {near[0]}?" if near else "remove it"
            yield (*path, name), "unknown-field", f"is no field of a {BACKEND.kind}", fix
    elif error.validator == "required":
        for name in wanted:
            if name not in value:
                yield path, "missing-field", f"has no {name}", f"add {name}"
    elif error.validator == "pattern":
        yield path, "quantity", f"is {value!r}, which is no quantity", "write it as 500m, 2 or 16Gi"
    elif value is None:
        yield path, "empty", "is empty", "give it a value or remove it"
    else:
        wanted = wanted if isinstance(wanted, str) else "integer or string"
        fix = "write it in quotes" if wanted == "string" else f"give a value of type {wanted}"
        yield path, "wrong-type", f"is {json.dumps(value, default=str)[:40]}, not of type {wanted}", fix


def _replace(value: Any, path: Path, wanted: str | list[str]) -> None:  # noqa: ANN401 - whatever YAML holds
    """Puts a value of the right type in the place of one of a wrong type."""
    *around, last = path
    for key in around:
        value = value[key]
    value[last] = _NEUTRAL[wanted] if wanted in _NEUTRAL else str(value[last] or "")


def _dotted(path: Path) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).lstrip(".") or "the document"


def _jobs(document: Document) -> Iterator[Document]:
    kind = str(dig(document.value, "kind"))
    if kind == BACKEND.kind:
        yield document
    elif kind.endswith("List"):
        items = dig(document.value, "items")
        for number, item in enumerate(items if isinstance(items, list) else []):
            lines = {path[2:]: line for path, line in document.lines.items() if path[:2] == ("items", number)}
            yield from _jobs(Document(item, lines.get((), document.line), lines))


def _read(name: str) -> str:
    try:
        return sys.stdin.read() if name == "-" else FilePath(name).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise UserError(f"{name}: cannot be read: {reason}") from error


def _read_documents(text: str) -> Iterator[Document]:
    """Yields the documents of a file; one that is not YAML is a document with that finding."""
    loader = go_yaml.Loader(text)
    try:
        while loader.check_node():
            node = loader.get_node()
            if node is not None:
                yield _Reader(loader, node).document
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        line, reason = mark.line + 1 if mark else 1, getattr(error, "problem", error)
        finding = Finding(line, "yaml", f"this is not YAML: {reason}", "correct the syntax")
        yield Document(None, line, findings=[finding])
    finally:
        loader.dispose()


class _Reader:
    """Reads one document from PyYAML's nodes, which know their lines."""

    def __init__(self, loader: go_yaml.Loader, node: yaml.Node) -> None:
        self._loader, self._count = loader, 0
        self.document = Document(None, node.start_mark.line + 1)
        self.document.value = self._value(node, ())

    def _value(self, node: yaml.Node, path: Path) -> Any:  # noqa: ANN401 - whatever YAML holds
        self._count += 1
        if len(path) > _DEPTH or self._count > _NODES:  # an anchor inside itself, or many inside each other
            raise yaml.MarkedYAMLError(problem="anchors make it too deep or too large", problem_mark=node.start_mark)
        self.document.lines.setdefault(path, node.start_mark.line + 1)
        if not node.tag.startswith("tag:yaml.org,2002:"):
            raise yaml.MarkedYAMLError(problem=f"Kubernetes knows no tag {node.tag}", problem_mark=node.start_mark)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(item, (*path, number)) for number, item in enumerate(node.value)]
        try:
            return self._loader.construct_object(node)
        except (ValueError, LookupError) as error:  # a value that its own tag, such as !!int, does not fit
            raise yaml.MarkedYAMLError(
                problem=f"{node.value!r} is no {node.tag.rpartition(':')[2]}", problem_mark=node.start_mark
            ) from error

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            line, name = key.start_mark.line + 1, str(key.value)
            if key.tag != "tag:yaml.org,2002:merge" and name in seen:
                message = f"{name} is here and in line {seen[name]}: only one of them counts"
                self.document.findings.append(Finding(line, "duplicate-key", message, "remove one"))
            seen[name] = line
            if isinstance(key, yaml.ScalarNode) and key.tag in _UNQUOTED:
                kind = key.tag.rpartition(":")[2]
                message = f"the name {name} is a {kind} to Kubernetes"
                self.document.findings.append(Finding(line, "wrong-type", message, "write it in quotes"))
        self._loader.flatten_mapping(node)
        values: dict[str, Any] = {}
        for key, value in node.value:
            name = str(key.value)
            self.document.lines[(*path, name)] = key.start_mark.line + 1
            values[name] = self._value(value, (*path, name))
        return values
