"""Temperature scaling (Guo et al. 2017): one number that divides the logits, so that a confidence says how often it is right."""

from dataclasses import dataclass
from math import exp, log

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from trainer.evaluation.predict import Probabilities

LOWEST, HIGHEST = 0.05, 20.0
_LEAST_ROWS = 50  # fewer would move the confidences by chance


@dataclass(frozen=True)
class Temperature:
    value: float
    """Above 1 where the model is surer than it is right. No value changes a label."""
    rows: int
    """Validation rows it was fitted on."""
    not_fitted: str = ""
    """Why it is 1 instead."""


def fit_temperature(probabilities: Probabilities, labels: npt.NDArray[np.int32]) -> Temperature:
    """The temperature with the least cross-entropy on rows that the model was not trained on [rows, classes]."""
    rows = len(labels)
    if rows < _LEAST_ROWS:
        return Temperature(1.0, rows, f"{rows} validation rows are too few, it takes {_LEAST_ROWS}")
    if (probabilities.argmax(axis=1) == labels).all():
        return Temperature(1.0, rows, f"all {rows:,} validation rows are right: the surer, the better")
    logits = _logits(probabilities)

    def loss(exponent: float) -> float:
        scaled = log_softmax(logits / exp(exponent), axis=1)
        return -float(scaled[np.arange(rows), labels].mean())

    # One minimum: the cross-entropy is convex in the inverse of the temperature.
    found = round(exp(minimize_scalar(loss, bounds=(log(LOWEST), log(HIGHEST)), method="bounded").x), 4)
    if not LOWEST * 1.01 < found < HIGHEST / 1.01:
        return Temperature(1.0, rows, f"the best is at an end of {LOWEST} to {HIGHEST}: the confidences say nothing")
    return Temperature(found, rows)


def at_temperature(probabilities: Probabilities, temperature: float) -> Probabilities:
    """The probabilities [rows, classes] that the same logits give at a temperature."""
    return np.asarray(softmax(_logits(probabilities) / temperature, axis=1), dtype=np.float32)


def _logits(probabilities: Probabilities) -> npt.NDArray[np.float64]:
    """Logits but for a number that is the same for all classes of a row, which softmax takes away again."""
    return np.log(np.maximum(probabilities, np.finfo(np.float32).tiny).astype(np.float64))
