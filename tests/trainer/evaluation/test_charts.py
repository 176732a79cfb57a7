from itertools import pairwise

import pytest

from trainer.evaluation.charts import thin, ticks


def test_a_thinned_curve_keeps_its_course() -> None:
    points = [(float(step), 2.0 * step) for step in range(123_456)]
    thinned = thin(points)
    assert 300 < len(thinned) <= 400
    assert all(y == pytest.approx(2 * x) for x, y in thinned)
    assert thin(points[:400]) == points[:400]


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.39), (0.9312, 0.9318), (0, 1e6), (0.93, 0.93), (1, 1), (0, 0), (3, 1e9)]
)
def test_ticks_are_few_even_and_enclose_the_values(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 8
    assert found[0] <= low <= high <= found[-1]
    assert [b - a for a, b in pairwise(found)] == pytest.approx([found[1] - found[0]] * (len(found) - 1))
