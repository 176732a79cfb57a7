"""Latency and bandwidth, from how long messages of different sizes took."""

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel
from scipy.optimize import least_squares

from server.errors import UserError

_TYPICAL_ERROR = 0.05  # beyond it a point counts less and less: outliers do not bend the line


class Fit(BaseModel):
    """t = α + size/β."""

    latency_seconds: float
    """α."""

    bytes_per_second: float
    """β."""

    median_error: float
    """Half of the points are nearer to the line than this share of their time."""

    worst_error: float


def fit(sizes: Sequence[int], seconds: Sequence[float]) -> Fit:
    """α and β of t = α + size/β, both ≥ 0, which minimise Σ L(((α + size/β - t) / t / 0.05)²) with L(z) = 2(√(1+z) - 1).

    Errors are relative (weights 1/t²): 4 KB and 256 MB differ by 10⁴ in time, and without weights the largest alone
    would decide. L is the soft L1 loss of scipy.optimize.least_squares: near the line squares, far from it absolute values.
    """
    size, time = np.asarray(sizes, dtype=float), np.asarray(seconds, dtype=float)
    guess = np.array(
        [time.min(), time.max() / size.max()]
    )  # α, 1/β; they differ by 10⁴, so both are counted in guesses
    columns = np.stack([guess[0] / time, guess[1] * size / time], axis=1)
    found = least_squares(
        lambda factors: columns @ factors - 1, x0=[0.5, 0.5], bounds=(0, np.inf), loss="soft_l1", f_scale=_TYPICAL_ERROR,
        xtol=1e-12, ftol=1e-12, gtol=1e-12,
    )  # fmt: skip
    latency, seconds_per_byte = guess * found.x
    if seconds_per_byte * (size.max() - size.min()) < 0.01 * time.max():
        raise UserError(
            f"the times do not grow with the size, from {size.min():,.0f} to {size.max():,.0f} bytes: "
            "no bandwidth can be told; measure larger messages with --max-bytes"
        )
    errors = np.abs(columns @ found.x - 1)
    return Fit(
        latency_seconds=float(latency), bytes_per_second=float(1 / seconds_per_byte),
        median_error=float(np.median(errors)), worst_error=float(errors.max()),
    )  # fmt: skip
