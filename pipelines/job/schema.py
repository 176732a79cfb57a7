"""The schema of the PyTorchJob resource, checked strictly: a field that it does not have is an error, as a typing slip would be.

`pytorchjob.json` is made from the resource definition of training operator v1.9 (github.com/kubeflow/trainer, release-1.9,
manifests/base/crds/kubeflow.org_pytorchjobs.yaml) without descriptions and with what repeats said once. To make it anew:

    python -m pipelines.job.schema kubeflow.org_pytorchjobs.yaml
"""

import difflib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path as FilePath
from typing import Any

import yaml

from pipelines.job.document import Document, Finding, Path, Problem

Schema = dict[str, Any]
_KEPT = ("type", "properties", "required", "items", "additionalProperties", "pattern", "x-kubernetes-int-or-string")
_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,), "array": (list,), "string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,),
}  # fmt: skip
_SHARED_LENGTH = 150  # characters from which something that repeats is said once
_METADATA = (
    "name", "generateName", "namespace", "labels", "annotations", "finalizers", "ownerReferences",
    "uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "managedFields", "selfLink",
)  # fmt: skip


@cache
def schema() -> Schema:
    loaded: Schema = json.loads(files("pipelines.job").joinpath("pytorchjob.json").read_text(encoding="utf-8"))
    return loaded


def check_schema(document: Document) -> Iterator[Finding]:
    """What of a PyTorchJob its schema does not allow."""
    for path, rule, message, mend in _check(document.value, schema()["root"], ()):
        yield Finding(document.line_of(path), rule, f"{_dotted(path)} {message}", mend)


def with_right_types(value: Any, part: Schema | None = None) -> Any:  # noqa: ANN401 - whatever YAML holds
    """A copy in which each value has the type of its field, as near to what was meant as may be, so that rules can rely on types."""
    part = _resolve(schema()["root"] if part is None else part)
    kind = part.get("type")
    if value is None or (kind is None and "x-kubernetes-int-or-string" not in part):
        return value
    if kind == "object":
        properties, others = part.get("properties", {}), part.get("additionalProperties", {})
        items = value.items() if isinstance(value, dict) else ()
        return {name: with_right_types(item, properties.get(name, others)) for name, item in items}
    if kind == "array":
        return [with_right_types(item, part["items"]) for item in value] if isinstance(value, list) else []
    if kind == "integer":
        return value if type(value) is int else 1
    if kind == "boolean":
        return bool(value)
    return value if isinstance(value, str) or (kind is None and isinstance(value, int)) else str(value)


def _resolve(part: Schema) -> Schema:
    shared: Schema = schema()["shared"][part["$ref"]] if "$ref" in part else part
    return shared


def _check(value: Any, part: Schema, path: Path) -> Iterator[Problem]:  # noqa: ANN401 - whatever YAML holds
    part = _resolve(part)
    kind = part.get("type", "")
    if value is None:
        yield path, "empty", "is empty", "give it a value or remove it"
    elif part.get("x-kubernetes-int-or-string"):
        if isinstance(value, bool) or not isinstance(value, int | str):
            yield path, "wrong-type", f"is {_said(value)}, not a number or a string", "give a number or a string"
        elif isinstance(value, str) and not re.search(part.get("pattern", ""), value):
            yield path, "quantity", f"is {value!r}, which is no quantity", "write it as 500m, 2 or 16Gi"
    elif kind and (not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "boolean")):
        quoted = f"write it in quotes: {json.dumps(str(value))}" if kind == "string" else f"give a value of type {kind}"
        yield path, "wrong-type", f"is {_said(value)}, not of type {kind}", quoted
    elif kind == "object":
        yield from _check_object(value, part, path)
    elif kind == "array":
        for number, item in enumerate(value):
            yield from _check(item, part["items"], (*path, number))


def _check_object(value: dict[str, Any], part: Schema, path: Path) -> Iterator[Problem]:
    properties, others = part.get("properties"), part.get("additionalProperties")
    for name in part.get("required", ()):
        if name not in value:
            yield path, "missing-field", f"has no {name}", f"add {name}"
    for name, item in value.items():
        if properties and name in properties:
            yield from _check(item, properties[name], (*path, name))
        elif isinstance(others, dict):
            yield from _check(item, others, (*path, name))
        elif properties:
            near = difflib.get_close_matches(name, properties, n=1)
            yield (
                (*path, name),
                "unknown-field",
                "is no field of a PyTorchJob",
                f"did you mean {near[0]}?" if near else "remove it",
            )


def _said(value: object) -> str:
    kind = {
        dict: "an object",
        list: "a list",
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a string",
    }
    return f"{json.dumps(value, default=str)[:40]} ({kind.get(type(value), type(value).__name__)})"


def _dotted(path: Path) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).lstrip(".") or "the document"


def strip(definition: Schema) -> Schema:
    """Of a custom resource definition what `check_schema` needs: {"root": …, "shared": [what repeats, …]}."""
    root = _strip(definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
    root["properties"]["status"] = {"type": "object"}  # the operator writes it
    root["properties"]["metadata"]["properties"] = {name: {} for name in _METADATA} | {
        name: {"type": "object", "additionalProperties": {"type": "string"}} for name in ("labels", "annotations")
    }
    root["required"] = ["apiVersion", "kind", "metadata", "spec"]
    counts: Counter[str] = Counter()
    _count(root, counts)
    places = {text: n for n, text in enumerate(text for text, count in counts.items() if count > 1)}
    shared = [_refer(json.loads(text), places, top=True) for text in places]
    return {"root": _refer(root, places), "shared": shared}


def _strip(part: Schema) -> Schema:
    kept = {name: part[name] for name in _KEPT if name in part}
    for name in ("items", "additionalProperties"):
        if isinstance(kept.get(name), dict):
            kept[name] = _strip(kept[name])
    if "properties" in kept:
        kept["properties"] = {name: _strip(value) for name, value in kept["properties"].items()}
    return kept


def _parts(part: Schema) -> Iterator[Schema]:
    yield from part.get("properties", {}).values()
    yield from (part[name] for name in ("items", "additionalProperties") if isinstance(part.get(name), dict))


def _count(part: Schema, counts: Counter[str]) -> None:
    text = json.dumps(part)
    if len(text) >= _SHARED_LENGTH:
        counts[text] += 1
    for inner in _parts(part):
        _count(inner, counts)


def _refer(part: Schema, places: dict[str, int], *, top: bool = False) -> Schema:
    if not top and (place := places.get(json.dumps(part))) is not None:
        return {"$ref": place}
    part = dict(part)
    for name in ("items", "additionalProperties"):
        if isinstance(part.get(name), dict):
            part[name] = _refer(part[name], places)
    if "properties" in part:
        part["properties"] = {name: _refer(value, places) for name, value in part["properties"].items()}
    return part


def main() -> None:
    definition = yaml.load(FilePath(sys.argv[1]).read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    target = FilePath(__file__).with_name("pytorchjob.json")
    target.write_text(json.dumps(strip(definition), separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"wrote {target}: {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
