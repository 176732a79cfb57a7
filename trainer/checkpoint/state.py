"""The progress of training: what a checkpoint holds besides tensors."""

import time
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class TrainState:
    epoch: int = 0
    """Epochs finished."""
    step: int = 0
    """Optimizer steps finished."""
    samples: int = 0
    """Rows seen, over all processes."""
    segments: list[list[int]] = field(default_factory=list)
    """The unfinished epoch: [rows a step, steps done], one for each number of rows a step that it was trained with."""
    skipped: int = 0
    """Steps whose gradient was not finite."""
    best_epoch: int = 0
    stopped_early: bool = False
    validation: list[dict[str, float]] = field(default_factory=list)
    """Accuracy and loss on the validation rows after each epoch."""

    @property
    def epoch_steps(self) -> int:
        """Steps done of the unfinished epoch."""
        return sum(steps for _, steps in self.segments)

    def finished(self, epochs: int) -> bool:
        """Returns True when no step is left of so many epochs."""
        return self.epoch >= epochs or self.stopped_early

    def start_segment(self, step_rows: int) -> None:
        """Begins an epoch, or resumes one with this many rows a step."""
        if not self.segments or self.segments[-1][0] != step_rows:
            self.segments.append([step_rows, 0])

    def advance(self, rows: int) -> None:
        """Counts a step of so many rows."""
        self.step += 1
        self.samples += rows
        self.segments[-1][1] += 1

    def end_epoch(self, loss: float, accuracy: float, *, patience: int | None) -> None:
        """Counts an epoch; the best one has the highest accuracy and, of equals, the lowest loss."""
        self.epoch += 1
        self.segments = []
        self.validation.append({"epoch": self.epoch, "loss": loss, "accuracy": accuracy})
        self.best_epoch = self.best_epochs(1)[0]
        self.stopped_early = patience is not None and self.epoch - self.best_epoch >= patience

    def best_epochs(self, count: int) -> list[int]:
        """Returns the best epochs so far, the best first."""
        ranked = sorted(self.validation, key=lambda found: (-found["accuracy"], found["loss"]))
        return [int(found["epoch"]) for found in ranked[:count]]

    def conclusion(self) -> str:
        """Describes in a sentence how training ended."""
        ended = f"stopped after epoch {self.epoch}" if self.stopped_early else f"{self.epoch} epochs done"
        accuracy = self.validation[self.best_epoch - 1]["accuracy"]
        return f"{ended}; the best is epoch {self.best_epoch} with validation accuracy {accuracy:.4f}"


def start_over(output: Path) -> Path | None:
    """Moves the checkpoints and logs of a run into a folder before-…, which it returns; None if there are none."""
    earlier = [output / name for name in ("checkpoints", "logs") if (output / name).exists()]
    if not earlier:
        return None
    aside = output / time.strftime("before-%Y%m%d-%H%M%S")
    while aside.exists():
        aside = aside.with_name(f"{aside.name}-again")
    aside.mkdir()
    for folder in earlier:
        folder.rename(aside / folder.name)
    return aside
