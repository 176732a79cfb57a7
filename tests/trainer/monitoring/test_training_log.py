"""The training log as TensorBoard's own reader shows it."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]  # it ships no types
from tensorboard.summary.writer import event_file_writer  # type: ignore[import-untyped]  # it ships no types

from trainer.monitoring.training_log import TrainingLog

pytestmark = pytest.mark.slow  # TensorBoard's writer takes seconds to import


@pytest.mark.parametrize("starts", [[(0, 14), (14, 28)], [(0, 9), (0, 20)]])
def test_a_training_that_is_started_again_has_each_step_and_the_validation_before_it_once(
    starts: list[tuple[int, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Files are read in the order of their names: second, host, process, and this number, which sorts as text (10 before 9).
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    for first, last in starts:
        with TrainingLog(tmp_path, enabled=True, step=first) as log:
            for step in range(first + 1, last + 1):
                log.write("train", step=step, loss=1.0)
            log.write("validation", step=last, accuracy=0.5)
    read = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0})
    read.Reload()
    last_of_all = starts[-1][1]
    assert [point.step for point in read.Scalars("train/loss")] == list(range(1, last_of_all + 1))
    validated = [last for _, last in starts if last <= starts[-1][0]] + [last_of_all]
    assert [point.step for point in read.Scalars("validation/accuracy")] == validated
