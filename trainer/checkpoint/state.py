"""How far training is: what a checkpoint holds besides tensors."""

from dataclasses import dataclass, field

from trainer.evaluation.predict import Score


@dataclass
class TrainState:
    epoch: int = 0
    """Epochs finished."""
    step: int = 0
    """Optimizer steps finished."""
    samples: int = 0
    """Rows seen, over all processes."""
    parts: list[list[int]] = field(default_factory=list)
    """The unfinished epoch: [rows a step, steps done], one for each number of rows a step that it was trained with."""
    skipped: int = 0
    """Steps whose loss or gradient was not finite."""
    meter: list[list[float]] = field(default_factory=list)
    """What each process's meter had counted since the last line of the log."""
    best_epoch: int = 0
    stopped_early: bool = False
    validation: list[dict[str, float]] = field(default_factory=list)
    """Accuracy and loss on the validation rows after each epoch."""

    @property
    def epoch_steps(self) -> int:
        """Steps done of the unfinished epoch."""
        return sum(steps for _, steps in self.parts)

    def over(self, epochs: int) -> bool:
        """Whether no step is left, of so many epochs."""
        return self.epoch >= epochs or self.stopped_early

    def begin(self, step_rows: int) -> None:
        """From here on a step sees this many rows."""
        if not self.parts or self.parts[-1][0] != step_rows:
            self.parts.append([step_rows, 0])

    def count(self, rows: int) -> None:
        """One more step, which saw these rows."""
        self.step += 1
        self.samples += rows
        self.parts[-1][1] += 1

    def end_epoch(self, found: Score, *, patience: int | None) -> None:
        """One more epoch; the best has the highest accuracy and, of equals, the lowest loss."""
        self.epoch += 1
        self.parts = []
        self.validation.append({"epoch": self.epoch, "loss": found.loss, "accuracy": found.accuracy})
        self.best_epoch = self.best_epochs(1)[0]
        self.stopped_early = patience is not None and self.epoch - self.best_epoch >= patience

    def best_epochs(self, count: int) -> list[int]:
        """The best epochs so far, the best first."""
        ranked = sorted(self.validation, key=lambda found: (-found["accuracy"], found["loss"]))
        return [int(found["epoch"]) for found in ranked[:count]]

    def conclusion(self) -> str:
        ended = (
            f"stopped after epoch {self.epoch}, no better since"
            if self.stopped_early
            else f"{self.epoch} epochs done, the best is"
        )
        accuracy = self.validation[self.best_epoch - 1]["accuracy"]
        return f"{ended} epoch {self.best_epoch} with validation accuracy {accuracy:.4f}"
