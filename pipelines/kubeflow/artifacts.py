"""What the Kubeflow UI shows of the evaluate step."""

import json
import shutil
from pathlib import Path

from kfp import dsl

from pipelines.kubeflow.summary import describe_metrics


def show(
    run_folder: str,
    metrics: dsl.Metrics,
    confusion_matrix: dsl.ClassificationMetrics,
    report: dsl.HTML,
    summary: dsl.Markdown,
) -> None:
    """Fill the artifacts from what evaluate wrote into the run folder; rows of the confusion matrix are the true classes."""
    folder = Path(run_folder)
    found = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    for name in ("accuracy", "macro_f1", "loss", "expected_calibration_error", "rows"):
        metrics.log_metric(name, found[name])
    metrics.log_metric("temperature", found["calibrated"]["temperature"])
    for name in ("loss", "expected_calibration_error"):
        metrics.log_metric(f"calibrated_{name}", found["calibrated"][name])
    confusion_matrix.log_confusion_matrix(found["classes"], found["confusion_matrix"])
    roc = found["roc"]
    confusion_matrix.log_roc_curve(roc["false_positive_rate"], roc["true_positive_rate"], roc["threshold"])
    metrics.log_metric("roc_area", roc["area"])
    Path(summary.path).write_text(describe_metrics(found), encoding="utf-8")
    shutil.copyfile(folder / "report.html", report.path)
