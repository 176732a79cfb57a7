"""What the launcher says, line by line from many threads, and what it reads from the trainer's own lines of progress."""

import re
import sys
import threading
import time
from dataclasses import dataclass

_STEPS = re.compile(r"train: epoch (\d+)/(\d+): ([\d,]+)/([\d,]+) steps .*?([\d.,]+) steps/s")
_OURS = re.compile(r"(train|preprocess|evaluate|export)(:| )")


class Console:
    """Whole lines with the name of who says them; lines of several threads never mix."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def say(self, who: str, text: str) -> None:
        line = f"{who} | {text}\n"
        with self._lock:
            sys.stdout.write(line)
            sys.stdout.flush()


@dataclass(frozen=True)
class Training:
    """How far training is, by its own line."""

    epoch: int
    epochs: int
    step: int
    steps: int
    steps_per_second: float

    @property
    def share(self) -> float:
        """Of all steps, from 0 to 1."""
        return (self.epoch - 1 + self.step / self.steps) / self.epochs

    @property
    def seconds_left(self) -> float:
        return (1 - self.share) * self.epochs * self.steps / max(self.steps_per_second, 1e-9)

    def __str__(self) -> str:
        left = round(self.seconds_left)
        return f"epoch {self.epoch} of {self.epochs}, {self.share:.0%} of training, ETA {left // 3600}:{left // 60 % 60:02}:{left % 60:02}"


class Progress:
    """When something last moved, and how far training is."""

    def __init__(self) -> None:
        self.training: Training | None = None
        self.moved = time.monotonic()
        self._last = ""

    def hear(self, line: str) -> None:
        """Take note of a line of a rank; one that says nothing new, or is not the trainer's, is no progress."""
        if not _OURS.match(line) or line == self._last:
            return
        self._last, self.moved = line, time.monotonic()
        if found := _STEPS.match(line):
            epoch, epochs, step, steps = (int(number.replace(",", "")) for number in found.groups()[:4])
            self.training = Training(epoch, epochs, step, max(steps, 1), float(found[5].replace(",", "")))

    def restart(self) -> None:
        self.moved = time.monotonic()
