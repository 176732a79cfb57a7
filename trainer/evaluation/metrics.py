"""Measures predictions, and fits the temperature that makes their confidences true (Guo et al. 2017)."""

from dataclasses import dataclass
from math import exp, log
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from sklearn.metrics import auc, confusion_matrix, precision_recall_fscore_support, roc_curve

from server.inference.encoder import softmax
from trainer.evaluation.predict import Logits, Probabilities, score

_CALIBRATION_BINS = 10
_ROC_POINTS = 100
LOWEST, HIGHEST = 0.05, 20.0
_LEAST_ROWS = 50  # fewer would move the confidences by chance


@dataclass(frozen=True)
class Temperature:
    value: float
    """Divides the logits: above 1 where the model is overconfident. No value changes a label."""
    rows: int
    """Validation rows it was fitted on."""
    not_fitted: str = ""
    """The reason for which it is 1 instead."""


def measure(probabilities: Probabilities, labels: npt.NDArray[np.int32], classes: list[str]) -> dict[str, Any]:
    """Computes all metrics of predictions [rows, classes]; macro F1 is the mean over the classes that have rows."""
    predicted, numbers = probabilities.argmax(axis=1), np.arange(len(classes))
    precision, recall, f1, rows = precision_recall_fscore_support(labels, predicted, labels=numbers, zero_division=0)
    found = score(probabilities, labels)
    per_class = zip(classes, precision, recall, f1, rows, strict=True)
    return {
        "rows": found.rows,
        "accuracy": found.accuracy,
        "accuracy_interval": wilson_interval(found.accuracy, found.rows),
        "macro_f1": float(f1[rows > 0].mean()),
        "classes": classes,
        "per_class": {
            name: {"precision": float(p), "recall": float(r), "f1": float(f), "rows": int(n)}
            for name, p, r, f, n in per_class
        },
        "confusion_matrix": confusion_matrix(labels, predicted, labels=numbers).tolist(),
        "roc": roc(probabilities, labels),
        **measure_confidence(probabilities, labels),
    }


def roc(probabilities: Probabilities, labels: npt.NDArray[np.int32]) -> dict[str, Any]:
    """Computes the receiver operating characteristic of all classes together; each probability is a score for its class."""
    is_class = np.eye(probabilities.shape[1], dtype=bool)[labels]
    false, true, thresholds = roc_curve(is_class.ravel(), probabilities.ravel())
    # As many points of the true rate as of the false one: a good classifier's curve is nearly all of the former.
    wanted = np.linspace(0, 1, _ROC_POINTS // 2)
    places = np.unique([0, len(false) - 1, *np.searchsorted(false, wanted), *np.searchsorted(true, wanted)])
    places = places[places < len(false)]
    return {
        "area": float(auc(false, true)),
        "false_positive_rate": false[places].tolist(),
        "true_positive_rate": true[places].tolist(),
        "threshold": np.minimum(thresholds[places], 1.0).tolist(),  # that of the first point is infinite
    }


def measure_confidence(probabilities: Probabilities, labels: npt.NDArray[np.int32]) -> dict[str, Any]:
    """Computes the metrics that a temperature changes."""
    bins = calibration(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels)
    return {
        "loss": score(probabilities, labels).loss,
        "expected_calibration_error": sum(b["rows"] / len(labels) * abs(b["confidence"] - b["accuracy"]) for b in bins),
        "calibration": bins,
    }


def calibration(confidence: Probabilities, correct: npt.NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Counts rows by confidence, in bins of equal width; empty bins are left out."""
    number = np.minimum((confidence * _CALIBRATION_BINS).astype(int), _CALIBRATION_BINS - 1)
    return [
        {
            "from": place / _CALIBRATION_BINS,
            "to": (place + 1) / _CALIBRATION_BINS,
            "rows": int(inside.sum()),
            "confidence": float(confidence[inside].mean()),
            "accuracy": float(correct[inside].mean()),
        }
        for place in range(_CALIBRATION_BINS)
        if (inside := number == place).any()
    ]


def wilson_interval(share: float, rows: int, *, z: float = 1.96) -> list[float]:
    """Computes the 95 % interval of a share measured on so many rows (Wilson 1927)."""
    centre = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z / (1 + z * z / rows) * (share * (1 - share) / rows + z * z / (4 * rows * rows)) ** 0.5
    return [centre - half, centre + half]


def fit_temperature(logits: Logits, labels: npt.NDArray[np.int32]) -> Temperature:
    """Finds the temperature with the least cross-entropy on rows [rows, classes] that the model was not trained on."""
    rows = len(labels)
    if rows < _LEAST_ROWS:
        return Temperature(1.0, rows, f"{rows} validation rows are too few, it takes {_LEAST_ROWS}")
    if (logits.argmax(axis=1) == labels).all():
        return Temperature(1.0, rows, f"all {rows:,} validation rows are right: no temperature is too low")

    def loss(exponent: float) -> float:
        return score(softmax(logits, temperature=exp(exponent)), labels).loss

    # One minimum: the cross-entropy is convex in the inverse of the temperature.
    found = round(exp(minimize_scalar(loss, bounds=(log(LOWEST), log(HIGHEST)), method="bounded").x), 4)
    if not LOWEST * 1.01 < found < HIGHEST / 1.01:
        return Temperature(
            1.0, rows, f"the best is at an end of {LOWEST} to {HIGHEST}: the confidences carry no information"
        )
    return Temperature(found, rows)
