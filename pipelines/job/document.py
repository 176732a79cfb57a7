"""YAML with the line of everything in it, and what YAML itself lets pass: duplicate keys."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

Path = tuple[str | int, ...]
"""Where something stands in a document: ("spec", "runPolicy", "backoffLimit")."""
Problem = tuple[Path, str, str, str]
"""What a rule finds: where, the rule's name, what is wrong, how to mend it."""

_DEPTH = 64
_NODES = 200_000


@dataclass(frozen=True, order=True)
class Finding:
    """Something wrong with a manifest, and how to mend it."""

    line: int
    rule: str
    message: str
    mend: str


@dataclass
class Document:
    """One YAML document as Python values, with the line of each key and item."""

    value: Any
    line: int
    lines: dict[Path, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def line_of(self, path: Path) -> int:
        """The line of what stands there or, where nothing does, of the nearest thing around it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, self.line)

    def get(self, *path: str | int) -> Any:  # noqa: ANN401 - whatever YAML holds
        """What stands there, or None where nothing does or what is around it has another shape."""
        return dig(self.value, *path)


def dig(value: Any, *path: str | int) -> Any:  # noqa: ANN401 - whatever YAML holds
    """What stands at a path in nested values; None where nothing does or what is around it has another shape."""
    for key in path:
        if isinstance(value, dict):
            value = value.get(key)
        elif isinstance(value, list) and isinstance(key, int) and key < len(value):
            value = value[key]
        else:
            return None
    return value


def read_documents(text: str) -> Iterator[Document]:
    """The documents of a file; one that is not YAML is a document with that finding."""
    loader = yaml.SafeLoader(text)
    try:
        while loader.check_node():
            node = loader.get_node()
            if node is not None:
                yield _Reader(loader, node).document
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        yield Document(
            None, line, findings=[Finding(line, "yaml", f"this is not YAML: {error.problem}", "mend the syntax")]
        )
    except yaml.YAMLError as error:
        yield Document(None, 1, findings=[Finding(1, "yaml", f"this is not YAML: {error}", "mend the syntax")])
    finally:
        loader.dispose()


class _Reader:
    def __init__(self, loader: yaml.SafeLoader, node: yaml.Node) -> None:
        self._loader, self._count = loader, 0
        self.document = Document(None, node.start_mark.line + 1)
        self.document.value = self._read(node, ())

    def _read(self, node: yaml.Node, path: Path) -> Any:  # noqa: ANN401
        self._count += 1
        if len(path) > _DEPTH or self._count > _NODES:  # an anchor inside itself, or many inside each other
            raise yaml.MarkedYAMLError(problem="anchors make it too deep or too large", problem_mark=node.start_mark)
        self.document.lines.setdefault(path, node.start_mark.line + 1)
        if not node.tag.startswith("tag:yaml.org,2002:"):
            raise yaml.MarkedYAMLError(problem=f"Kubernetes knows no tag {node.tag}", problem_mark=node.start_mark)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self._read(item, (*path, number)) for number, item in enumerate(node.value)]
        try:
            return self._loader.construct_object(node)
        except ValueError as error:  # such as a date with a month 13
            raise yaml.MarkedYAMLError(problem=str(error), problem_mark=node.start_mark) from error

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.tag != "tag:yaml.org,2002:merge" and str(key.value) in seen:
                self.document.findings.append(
                    Finding(
                        line,
                        "duplicate-key",
                        f"{key.value} stands here and in line {seen[key.value]}: only one of them counts",
                        "remove one",
                    )
                )
            seen[str(key.value)] = line
        self._loader.flatten_mapping(node)
        values: dict[str, Any] = {}
        for key, value in node.value:
            name = str(key.value)
            self.document.lines[(*path, name)] = key.start_mark.line + 1
            values[name] = self._read(value, (*path, name))
        return values
