from typing import Any

import pytest

from pipelines.kubeflow.summary import describe_metrics, most_confused


@pytest.mark.parametrize("count", [3, 1000])
def test_the_weakest_classes_are_described_and_the_others_counted(count: int) -> None:
    numbers = {"precision": 0.9, "recall": 0.9, "f1": 0.9, "rows": 100}
    metrics: dict[str, Any] = {
        "title": "tiny on sample", "rows": 100, "accuracy": 0.9, "accuracy_interval": [0.8, 0.95], "macro_f1": 0.9,
        "roc": {"area": 0.99}, "expected_calibration_error": 0.02,
        "calibrated": {"temperature": 1.1, "expected_calibration_error": 0.01},
        "per_class": {f"class {place}": numbers for place in range(count)} | {"class 2": numbers | {"f1": 0.1}},
    }  # fmt: skip
    lines = describe_metrics(metrics).splitlines()
    classes = [line for line in lines if line.startswith("| class ")]
    assert (len(classes), "| class 2 | 0.9000 | 0.9000 | 0.1000 | 100 |" in classes) == (min(count, 25), True)
    assert (f"metrics.json has the other {count - 25:,}." in lines[-1]) == (count > 25)


def test_a_confusion_matrix_of_many_classes_keeps_the_most_confused_and_every_row() -> None:
    classes = [f"class {place}" for place in range(1000)]
    matrix = [[95 if row == column else 0 for column in range(1000)] for row in range(1000)]
    matrix[4][7] = 5
    shown, reduced = most_confused(classes, matrix)
    assert (shown[0], shown[-1], len(shown)) == ("class 0", "976 other classes", 25)
    assert reduced[shown.index("class 4")][shown.index("class 7")] == 5
    assert sum(map(sum, reduced)) == 95 * 1000 + 5
    assert most_confused(classes[:3], [row[:3] for row in matrix[:3]])[0] == classes[:3]
