"""What a classifier tells of its work while it goes on."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from server.inference.queue import Dropped, QueueEntry

if TYPE_CHECKING:
    from server.inference.classifier import Prediction


class ClassifierEvents:
    """Hears what is done, on whichever thread does it; this one makes nothing of it."""

    def tokenized(self, seconds: float) -> None:
        """One run of the tokenizer."""

    def computed(self, batch: Sequence[QueueEntry], *, started: float, seconds: float) -> None:
        """One batch, taken at `started` by the clock of `time.monotonic`."""

    def predicted(self, prediction: "Prediction") -> None:
        """The answer to one text."""

    def dropped(self, why: Dropped) -> None:
        """A text left the queue without having been computed."""
