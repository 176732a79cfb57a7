"""YAML as Kubernetes and Helm read it: to their parser, Go's, 1e-5, 0o17 and y are numbers and booleans; to Python's they are text."""

import math
import re
from typing import Any

import yaml

_TAG = "tag:yaml.org,2002:"
_WORDS = {"y": True, "yes": True, "true": True, "on": True, "n": False, "no": False, "false": False, "off": False}
_RESOLVERS = [
    ("merge", "<<", "<"),
    ("null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", "|".join(f"{word}|{word.title()}|{word.upper()}" for word in _WORDS), list("yYtToOnNfF")),
    ("int", r"[-+]?(0|[1-9][0-9_]*|0[0-7_]+|0[xX][0-9a-fA-F_]+|0[oO][0-7_]+|0[bB][01_]+)", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9][0-9_]*|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+0123456789.")),
]  # fmt: skip


class Loader(yaml.SafeLoader):
    """Reads scalars as Go does; a date is text."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own type


class Dumper(yaml.SafeDumper):
    """Quotes the text that Go's parser, or Python's, would read as something else."""


for _tag, _pattern, _first in _RESOLVERS:
    for _class in (Loader, Dumper):
        _class.add_implicit_resolver(_TAG + _tag, re.compile(f"^(?:{_pattern})$"), list(_first))


def _int(loader: Loader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node).replace("_", "")
    octal = text.lstrip("+-").startswith("0") and text.lstrip("+-").isdigit()
    return int(text, 8 if octal else 0)


def _bool(loader: Loader, node: yaml.ScalarNode) -> bool:
    return _WORDS[loader.construct_scalar(node).lower()]


def _float(loader: Loader, node: yaml.ScalarNode) -> float | str:
    value: float = loader.construct_yaml_float(node)
    return node.value if math.isinf(value) and "inf" not in node.value.lower() else value  # 1e999 is text


Loader.add_constructor(f"{_TAG}int", _int)
Loader.add_constructor(f"{_TAG}float", _float)
Loader.add_constructor(f"{_TAG}bool", _bool)


def dump(value: object) -> str:
    text: str = yaml.dump(value, Dumper=Dumper, sort_keys=False)
    return text


def load_all(text: str) -> list[Any]:
    """Returns all documents of a text that hold something."""
    return [document for document in yaml.load_all(text, Loader=Loader) if document]
