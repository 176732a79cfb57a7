"""What is said of the measurements of training."""

import pytest

from tests.benchmarks.train_report import report, utilization

ROUNDS = [{"seconds": 2.0, "rows": 30_000.0, "tokens": 1_560_000.0, "computed": 1_600_000.0, "loss": 1.0}]


def found(device: str) -> dict[str, object]:
    return {"speed": {"load": "quiet", "groups": {"one GPU": {"device": device, "rounds": {"ours": ROUNDS}}}}}


def test_fifteen_thousand_rows_of_52_tokens_a_second_use_a_fifth_of_an_h100() -> None:
    of_row = 13.4e9  # operations to train DistilBERT on a row of 52 tokens
    assert utilization(ROUNDS, "NVIDIA H100 80GB HBM3") == pytest.approx(15_000 * of_row / 989e12, rel=0.01)
    assert "| 20.3% |" in report(found("NVIDIA H100 80GB HBM3"))[1]


def test_utilization_is_left_out_where_the_peak_is_not_known() -> None:
    assert utilization(ROUNDS, "CPU") is None
    assert "MFU" not in report(found("CPU"))[1]
