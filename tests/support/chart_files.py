"""What is generated in helm/: the tables of the READMEs, and the schema of the server's settings: `make charts`."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from server.settings import Settings

HELM = Path(__file__).parents[2] / "helm"
CHARTS = ("serving", "training")
CHART_OWNED = {"port", "metrics_port", "api_keys", "api_keys_file"}
"""Settings for which the chart has values of its own."""
_TABLE = re.compile(r"(<!-- values: make charts -->\n).*(<!-- end -->\n)", re.DOTALL)
_KEY = re.compile(r"(?P<indent> *)(?P<key>[\w-]+):")


def main() -> None:
    for chart in CHARTS:
        readme = HELM / chart / "README.md"
        readme.write_text(readme_with_table(chart), encoding="utf-8")
    (HELM / "serving" / "values.schema.json").write_text(schema_with_settings(), encoding="utf-8")


def readme_with_table(chart: str) -> str:
    rows = ["| value | meaning | default |", "| --- | --- | --- |"]
    for path, meaning, default in described_values(chart):
        shown = json.dumps(default, ensure_ascii=False)
        rows.append(
            f"| `{path}` | {meaning.replace('|', '&#124;')} | {f'`{shown}`' if len(shown) < 60 else 'see values.yaml'} |"
        )
    table = "\n".join(rows) + "\n"
    text = (HELM / chart / "README.md").read_text(encoding="utf-8")
    return _TABLE.sub(lambda match: match[1] + table + match[2], text)


def described_values(chart: str) -> list[tuple[str, str, Any]]:
    """Path, comment and default of each value that has a comment."""
    source = (HELM / chart / "values.yaml").read_text(encoding="utf-8")
    values = yaml.safe_load(source)
    found, comment, parents = [], "", list[str]()
    for line in source.splitlines():
        if line.lstrip().startswith("# "):
            comment += line.lstrip()[1:]
            continue
        if match := _KEY.match(line):
            parents = [*parents[: len(match["indent"]) // 2], match["key"]]
            if comment:
                found.append((".".join(parents), comment.strip(), _at(values, parents)))
        comment = ""
    return found


def uncommented_values(chart: str) -> set[str]:
    """Paths of values with a comment neither above them nor above what they are part of."""
    described = {path for path, _, _ in described_values(chart)}

    def walk(value: Any, path: str) -> set[str]:  # noqa: ANN401 - whatever stands in values.yaml
        if path in described:
            return set()
        if isinstance(value, dict) and value:
            return set().union(*(walk(child, f"{path}.{key}".lstrip(".")) for key, child in value.items()))
        return {path}

    return walk(yaml.safe_load((HELM / chart / "values.yaml").read_text(encoding="utf-8")), "")


def schema_with_settings() -> str:
    """The schema of serving, in which `settings` is what the server's own settings say."""
    schema = json.loads((HELM / "serving" / "values.schema.json").read_text(encoding="utf-8"))
    properties = Settings.model_json_schema()["properties"]
    schema["properties"]["settings"] = {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            name: {key: value for key, value in entry.items() if key not in {"title", "default", "format"}}
            for name, entry in sorted(properties.items())
            if name not in CHART_OWNED
        },
    }
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _at(values: Any, path: list[str]) -> Any:  # noqa: ANN401 - the same
    for key in path:
        values = values[key]
    return values


if __name__ == "__main__":
    main()
