"""Writes the evaluation report: one HTML file without network or script."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from trainer.evaluation.charts import (
    Bin,
    Cell,
    Point,
    Series,
    line_chart,
    matrix_chart,
    reliability_chart,
    smooth,
    thin,
)

MOST_NUMBERED_CLASSES = 12
"""Classes up to which the confusion matrix is a table of numbers; beyond, it is a picture."""
MOST_DRAWN_CLASSES = 100
"""Classes up to which there is a picture, and a line for each class in the table of classes."""


class TrainingPoint(TypedDict):
    step: int
    loss: float
    learning_rate: float


class ValidationPoint(TypedDict):
    epoch: int
    step: int
    loss: float
    accuracy: float


class Curves(TypedDict):
    train: list[TrainingPoint]
    validation: list[ValidationPoint]
    best_epoch: int


class Mistake(TypedDict):
    text: str
    label: str
    predicted: str
    confidence: float


def describe_classes(metrics: Mapping[str, Any]) -> str:
    """Describes the classes over which macro F1 is the mean."""
    classes = len(metrics["classes"])
    with_rows = sum(one["rows"] > 0 for one in metrics["per_class"].values())
    return (
        f"{classes:,} classes" if with_rows == classes else f"the {with_rows:,} of {classes:,} classes that have rows"
    )


def write_report(
    path: Path,
    *,
    metrics: Mapping[str, Any],
    curves: Curves,
    mistakes: Sequence[Mistake],
    facts: Mapping[str, Mapping[str, Any]],
) -> None:
    """Write the report of one evaluation; `metrics` is metrics.json, `facts` maps headings to names and values."""
    classes = metrics["classes"]
    matrix = _cells(metrics["confusion_matrix"], empty=len(classes) <= MOST_NUMBERED_CLASSES)
    cells = [cell for row in matrix for cell in row if cell.rows]
    weakest_first = sorted(metrics["per_class"].items(), key=lambda item: (item[1]["rows"] == 0, item[1]["f1"]))
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            metrics=metrics,
            classes_with_rows=describe_classes(metrics),
            mistakes=mistakes,
            facts=facts,
            loss_chart=_loss_chart(curves),
            accuracy_chart=_accuracy_chart(curves),
            per_class=weakest_first[:MOST_DRAWN_CLASSES],
            matrix=matrix,
            has_matrix=len(classes) <= MOST_DRAWN_CLASSES,
            matrix_chart=_matrix_chart(classes, cells),
            confusions=sorted((cell for cell in cells if cell.kind == "wrong"), key=lambda cell: -cell.rows),
            reliability_chart=_reliability_chart(metrics),
            mean_confidences=[_mean_confidence(metrics), _mean_confidence(metrics["calibrated"])],
        )
    )
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(page, encoding="utf-8", errors="replace")  # a text may hold half a surrogate pair
    unfinished.replace(path)


def _environment() -> Environment:
    pages = Environment(
        loader=PackageLoader("trainer.evaluation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters |= {"percent": "{:.1%}".format, "number": "{:,}".format, "score": "{:.3f}".format, "plain": _plain}
    return pages


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _finite(points: Sequence[Point]) -> list[Point]:
    return [point for point in points if math.isfinite(point[1])]  # a diverged loss has no place in a chart


def _best(curves: Curves) -> ValidationPoint | None:
    return next((point for point in curves["validation"] if point["epoch"] == curves["best_epoch"]), None)


def _loss_chart(curves: Curves) -> Markup | None:
    raw = thin(_finite([(point["step"], point["loss"]) for point in curves["train"]]))
    validation = _finite([(point["step"], point["loss"]) for point in curves["validation"]])
    lines = [Series("raw", raw), Series("train", smooth(raw, len(raw) // 40)), Series("validation", validation)]
    if not raw and not validation:
        return None
    best = _best(curves)
    return line_chart(
        [one for one in lines if one.points],
        label="Loss by step. " + _course("Training loss", raw) + _course("Validation loss", validation),
        x_name="step",
        best=(best["step"], f"best: epoch {best['epoch']}") if best else None,
    )


def _accuracy_chart(curves: Curves) -> Markup | None:
    points = _finite([(point["epoch"], point["accuracy"]) for point in curves["validation"]])
    if not points:
        return None
    best = _best(curves)
    return line_chart(
        [Series("validation", points)],
        label="Validation accuracy by epoch. " + _course("Accuracy", points),
        x_name="epoch",
        percent=True,
        best=(best["epoch"], f"best: epoch {best['epoch']}") if best else None,
    )


def _course(name: str, points: Sequence[Point]) -> str:
    """Describes a line for screen readers."""
    return f"{name} goes from {points[0][1]:.3g} to {points[-1][1]:.3g}. " if points else ""


def _cells(matrix: Sequence[Sequence[int]], *, empty: bool) -> list[list[Cell]]:
    """Returns the cells of each row, `empty` ones too."""
    return [
        [Cell(true, predicted, rows, rows / total) for predicted, rows in enumerate(row) if rows or empty]
        for true, row in enumerate(matrix)
        for total in [max(1, sum(row))]
    ]


def _matrix_chart(classes: Sequence[str], cells: Sequence[Cell]) -> Markup | None:
    if not MOST_NUMBERED_CLASSES < len(classes) <= MOST_DRAWN_CLASSES:
        return None
    label = f"Confusion matrix of {len(classes)} classes; the most frequent confusions are in the table that follows."
    return matrix_chart(classes, cells, label=label)


def _mean_confidence(measured: Mapping[str, Any]) -> float:
    bins = measured["calibration"]
    return float(sum(one["rows"] * one["confidence"] for one in bins) / max(1, sum(one["rows"] for one in bins)))


def _reliability_chart(metrics: Mapping[str, Any]) -> Markup:
    before, bins = _bins(metrics), _bins(metrics["calibrated"])
    label = "Reliability diagram: accuracy by confidence. " + " ".join(
        f"{one.low:.0%} to {one.high:.0%}: {one.accuracy:.1%} of {one.rows} rows." for one in bins
    )
    return reliability_chart(bins, before=() if metrics["calibrated"]["not_fitted"] else before, label=label)


def _bins(measured: Mapping[str, Any]) -> list[Bin]:
    return [
        Bin(one["from"], one["to"], one["rows"], one["confidence"], one["accuracy"]) for one in measured["calibration"]
    ]
