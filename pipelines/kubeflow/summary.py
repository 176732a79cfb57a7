"""The summary of a run in Markdown, for the Kubeflow UI and the run folder, and the artifacts of evaluate."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.run_folder import STEPS, RunFolder, RunSettings
from server.files import read_json

if TYPE_CHECKING:
    from kfp import dsl

_MARK = {"succeeded": "✓", "failed": "✗", "running": "stopped"}
_LONGEST_VALUE = 200
_MOST_CLASSES = 25  # in the matrix of the UI and in the table of classes, which are not readable with more


def log_artifacts(
    run_folder: str,
    metrics: "dsl.Metrics",
    confusion_matrix: "dsl.ClassificationMetrics",
    report: "dsl.HTML",
    summary: "dsl.Markdown",
) -> None:
    """Fills the artifacts with the results of evaluate; rows of the confusion matrix are the true classes."""
    folder = Path(run_folder)
    found = read_json(folder / "metrics.json", fix="resume with --from evaluate")
    for name in ("accuracy", "macro_f1", "loss", "expected_calibration_error", "rows"):
        metrics.log_metric(name, found[name])
    metrics.log_metric("temperature", found["calibrated"]["temperature"])
    for name in ("loss", "expected_calibration_error"):
        metrics.log_metric(f"calibrated_{name}", found["calibrated"][name])
    confusion_matrix.log_confusion_matrix(*most_confused(found["classes"], found["confusion_matrix"]))
    roc = found["roc"]
    confusion_matrix.log_roc_curve(roc["false_positive_rate"], roc["true_positive_rate"], roc["threshold"])
    metrics.log_metric("roc_area", roc["area"])
    Path(summary.path).write_text(describe_metrics(found), encoding="utf-8")
    shutil.copyfile(folder / "report.html", report.path)


def most_confused(classes: Sequence[str], matrix: Sequence[Sequence[int]]) -> tuple[list[str], list[list[int]]]:
    """Returns a confusion matrix of few classes: those with the most mistakes, and all others as one."""
    if len(classes) <= _MOST_CLASSES:
        return list(classes), [list(row) for row in matrix]
    predicted = [sum(column) for column in zip(*matrix, strict=True)]
    mistakes = [sum(row) + predicted[place] - 2 * row[place] for place, row in enumerate(matrix)]
    kept = sorted(sorted(range(len(classes)), key=lambda place: -mistakes[place])[: _MOST_CLASSES - 1])
    places = {old: new for new, old in enumerate(kept)}
    reduced = [[0] * _MOST_CLASSES for _ in range(_MOST_CLASSES)]
    for true, row in enumerate(matrix):
        for guess, rows in enumerate(row):
            reduced[places.get(true, -1)][places.get(guess, -1)] += rows
    return [*(classes[place] for place in kept), f"{len(classes) - len(kept):,} other classes"], reduced


def write_summary(folder: Path, *, run_id: str, state: str, message: str | None, shown: Path) -> None:
    """Writes the summary of a run, failed or not, to `shown` and into its folder; `state` is Kubeflow's word.

    A start that was refused does not change the folder of an earlier run of its name.
    """
    run = RunFolder(folder)
    if not (folder / "run.json").is_file() or run.facts.get("run_id") != run_id:
        text = f"# {folder.name}: {state.lower()}\n\nThe run did not start; the log of the step start has the reason.\n"
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
        parts.append(f"To resume it, start it again with run_name `{run.name}` and from_step set.")
    parts.append(_steps_table(steps))
    if steps.get("evaluate", {}).get("status") == "succeeded":
        parts.append(describe_metrics(read_json(run.folder / "metrics.json", fix="resume with --from evaluate")))
    changed = _changed(facts["settings"], RunSettings().model_dump(mode="json"))
    parts.append("## Settings\n\n" + (_table(("Setting", "Value"), changed) if changed else "All have their defaults."))
    versions = {name: value for name, value in facts["versions"].items() if value}
    parts.append("## Versions\n\n" + _table(("Package", "Version"), versions))
    return "\n\n".join(parts) + "\n"


def describe_metrics(metrics: Mapping[str, Any]) -> str:
    """Describes the main numbers of metrics.json in Markdown."""
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
    shown = list(metrics["per_class"].items())
    if len(shown) > _MOST_CLASSES:
        shown = sorted(shown, key=lambda item: (item[1]["rows"] == 0, item[1]["f1"]))[:_MOST_CLASSES]
    classes = [
        f"| {_cell(name)} | {one['precision']:.4f} | {one['recall']:.4f} | {one['f1']:.4f} | {one['rows']:,} |"
        for name, one in shown
    ]
    if more := len(metrics["per_class"]) - len(shown):
        classes.append(f"\nThese are the {len(shown)} weakest; metrics.json has the other {more:,}.")
    head = ["| Class | Precision | Recall | F1 | Rows |", "| --- | ---: | ---: | ---: | ---: |"]
    return "\n\n".join(
        [f"## {_cell(metrics['title'])}", _table(("Measure", "Value"), numbers), "\n".join([*head, *classes])]
    )


def _changed(values: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the settings that do not have their default, those in groups as job.nodes."""
    changed: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and name in ("job", "deadlines", "deploy"):
            changed |= _changed(value, defaults[name], f"{name}.")
        elif value != defaults.get(name):
            changed[f"{prefix}{name}"] = value
    return changed


def _steps_table(steps: Mapping[str, Mapping[str, Any]]) -> str:
    rows = ["| Step | | Seconds |", "| --- | --- | ---: |"]
    for step in STEPS:
        entry = steps.get(step, {})
        rows.append(f"| {step} | {_MARK.get(entry.get('status', ''), 'not run')} | {entry.get('seconds', '')} |")
    return "\n".join(rows)


def _table(head: tuple[str, str], values: Mapping[str, object]) -> str:
    rows = [f"| {_cell(name)} | {_cell(value)} |" for name, value in values.items()]
    return "\n".join([f"| {head[0]} | {head[1]} |", "| --- | --- |", *rows])


def _cell(value: object) -> str:
    return _short(str(value)).replace("|", "\\|")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_VALUE else f"{line[:_LONGEST_VALUE]}…"
