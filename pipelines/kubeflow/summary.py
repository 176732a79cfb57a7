"""What became of a run, in Markdown: for the Kubeflow UI, and for the run folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.run_folder import STEPS, RunFolder
from trainer.config import RunConfig

_MARK = {"succeeded": "✓", "failed": "✗", "running": "stopped"}
_LONGEST_VALUE = 200


def finish(folder: Path, *, run_id: str, state: str, message: str | None, shown: Path) -> None:
    """Write the summary of a run, whatever happened to it, to `shown` and into its folder; `state` is Kubeflow's word.

    A start that was refused leaves the folder of an earlier run of its name as it was.
    """
    run = RunFolder(folder)
    if not (folder / "run.json").is_file() or run.facts.get("run_id") != run_id:
        text = f"# {folder.name}: {state.lower()}\n\nThe run did not start; the log of the step settings says why.\n"
        shown.write_text(text, encoding="utf-8")
        return
    text = describe_run(run, state=state, message=message)
    shown.write_text(text, encoding="utf-8")
    (folder / "summary.md").write_text(text, encoding="utf-8")


def describe_run(run: RunFolder, *, state: str, message: str | None = None) -> str:
    facts = run.facts
    steps: dict[str, dict[str, Any]] = facts["steps"]
    failed = [step for step in STEPS if steps.get(step, {}).get("status") == "failed"]
    parts = [f"# {run.name}: {state.lower()}", f"Started {facts['started']}."]
    parts += [f"**{step} failed**: {_short(steps[step].get('error', ''))}" for step in failed]
    if message and not failed:
        parts.append(_short(message))
    if any(steps.get(step, {}).get("status") != "succeeded" for step in STEPS):
        parts.append(f"To go on where it stopped, start it again with run_name `{run.name}` and run_from_step set.")
    parts.append(_steps_table(steps))
    if steps.get("evaluate", {}).get("status") == "succeeded":
        parts.append(describe_metrics(json.loads((run.folder / "metrics.json").read_text(encoding="utf-8"))))
    changed = {name: value for name, value in facts["settings"].items() if value != _DEFAULTS[name]}
    parts.append(
        "## Settings\n\n" + (_table(("Setting", "Value"), changed) if changed else "All as they are by default.")
    )
    versions = {name: value for name, value in facts["versions"].items() if value}
    parts.append("## Versions\n\n" + _table(("Package", "Version"), versions))
    return "\n\n".join(parts) + "\n"


def describe_metrics(metrics: Mapping[str, Any]) -> str:
    """The numbers of metrics.json that people ask for first."""
    low, high = metrics["accuracy_interval"]
    calibrated = metrics["calibrated"]
    numbers = {
        "Accuracy": f"{metrics['accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f})",
        "Macro F1": f"{metrics['macro_f1']:.4f}",
        "Area under the ROC curve": f"{metrics['roc']['area']:.4f}",
        "Calibration error": f"{metrics['expected_calibration_error']:.4f}, {calibrated['expected_calibration_error']:.4f} "
        f"as served, with temperature {calibrated['temperature']:.3f}",
        "Test rows": f"{metrics['rows']:,}",
    }
    classes = [
        f"| {_cell(name)} | {one['precision']:.4f} | {one['recall']:.4f} | {one['f1']:.4f} | {one['rows']:,} |"
        for name, one in metrics["per_class"].items()
    ]
    head = ["| Class | Precision | Recall | F1 | Rows |", "| --- | ---: | ---: | ---: | ---: |"]
    return "\n\n".join(
        [f"## {_cell(metrics['title'])}", _table(("Measure", "Value"), numbers), "\n".join([*head, *classes])]
    )


_DEFAULTS = RunConfig().model_dump(mode="json")


def _steps_table(steps: Mapping[str, Mapping[str, Any]]) -> str:
    rows = ["| Step | | Seconds |", "| --- | --- | ---: |"]
    for step in STEPS:
        told = steps.get(step, {})
        rows.append(f"| {step} | {_MARK.get(told.get('status', ''), 'not run')} | {told.get('seconds', '')} |")
    return "\n".join(rows)


def _table(head: tuple[str, str], values: Mapping[str, object]) -> str:
    rows = [f"| {_cell(name)} | {_cell(value)} |" for name, value in values.items()]
    return "\n".join([f"| {head[0]} | {head[1]} |", "| --- | --- |", *rows])


def _cell(value: object) -> str:
    return _short(str(value)).replace("|", "\\|")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_VALUE else f"{line[:_LONGEST_VALUE]}…"
