"""Queues texts for the workers: a bounded queue whose batches hold texts of similar length and starve nobody."""

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, Protocol, TypeVar

from server.errors import QueueFullError

Dropped = Literal["deadline", "left"]

MAX_PASSED_OVER = 8
"""Batches that newer texts may join before a waiting text; then it leads the next batch itself."""

_STARTING_TOKENS_PER_SECOND = 5000.0  # until the first batches have been timed
_SMOOTHING = 0.1  # of a new measurement in the running mean


class Waiting(Protocol):
    """A request whose texts wait."""

    deadline: float
    """Deadline on the clock of `time.monotonic`; a text is not computed after it."""

    @property
    def is_over(self) -> bool:
        """True when its client has hung up, or has been answered."""


R = TypeVar("R", bound=Waiting)


@dataclass(eq=False, slots=True)
class QueueEntry(Generic[R]):
    """One text to compute."""

    token_ids: Sequence[int]
    request: R
    number: int = 0
    """Place of the text in its request."""
    from_batch: bool = False
    """True when its request has several texts: they give way to single ones."""
    arrived: float = field(default_factory=time.monotonic)
    passed_over: int = 0

    def __len__(self) -> int:
        return len(self.token_ids)


class BatchQueue(Generic[R]):
    """Admits at most so many texts and tokens, or one request, and forms the batches that workers take.

    A free worker takes a batch at once and never waits for more texts. A batch has a leader and those waiting texts whose
    lengths are nearest to it, as far as its padded tokens stay within the budget, and no more than a worker's share of the
    queue. The leader is the text that has waited longest; one of several in a request gives way to single texts, but only
    until it was passed over MAX_PASSED_OVER times.
    """

    def __init__(
        self,
        *,
        max_texts: int,
        max_tokens: int,
        token_budget: int,
        on_drop: Callable[[QueueEntry[R], Dropped], None],
        workers: int = 1,
    ) -> None:
        self._max_texts, self._max_tokens, self._token_budget = max_texts, max_tokens, token_budget
        self._on_drop, self._workers = on_drop, workers
        self._waiting: list[QueueEntry[R]] = []
        self._texts = self._tokens = 0  # reserved and not taken yet
        self._tokens_per_second = _STARTING_TOKENS_PER_SECOND
        self._full_since: float | None = None
        self._changed = threading.Condition()
        self._closed = False

    @property
    def size(self) -> tuple[int, int]:
        """Texts and tokens that wait."""
        return self._texts, self._tokens

    def full_seconds(self) -> float:
        """Returns the seconds since the first refusal after which no request was admitted and no text left the queue."""
        return 0.0 if self._full_since is None else time.monotonic() - self._full_since

    def reserve(self, *, texts: int, tokens: int) -> None:
        """Reserves room for a whole request; QueueFullError when there is none.

        An empty queue has room for any request: one that is refused then would be refused for ever.
        """
        with self._changed:
            if self._texts + texts > self._max_texts or self._tokens + tokens > self._max_tokens:
                self._drop_dead()  # a text that nobody waits for takes no place
            if self._texts and self._texts + texts > self._max_texts:
                self._refuse(f"{self._texts} texts wait and {self._max_texts} may")
            if self._texts and self._tokens + tokens > self._max_tokens:
                self._refuse(f"{self._tokens} tokens wait and {self._max_tokens} may")
            self._texts, self._tokens, self._full_since = self._texts + texts, self._tokens + tokens, None

    def release(self, *, texts: int, tokens: int) -> None:
        """Returns room that was reserved."""
        with self._changed:
            self._make_room(texts=texts, tokens=tokens)

    def append(self, entries: Sequence[QueueEntry[R]], *, reserved_tokens: int) -> None:
        """Queues texts for which there is room; their tokens take the place of those that were reserved."""
        with self._changed:
            self._tokens += sum(map(len, entries)) - reserved_tokens
            self._waiting.extend(entries)
            self._changed.notify(len(entries))

    def next_batch(self) -> list[QueueEntry[R]]:
        """Waits for a batch and takes it; empty when the queue is closed and nothing is left."""
        with self._changed:
            while True:
                self._drop_dead()
                if self._waiting:
                    return self._form_batch()
                if self._closed:
                    return []
                self._changed.wait()

    def record_speed(self, tokens: int, seconds: float) -> None:
        """Records how long all workers took for so many tokens; Retry-After follows from it."""
        with self._changed:
            self._tokens_per_second += _SMOOTHING * (tokens / max(seconds, 1e-6) - self._tokens_per_second)

    def close(self) -> None:
        """Lets the workers end once nothing is left."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _refuse(self, reason: str) -> None:
        if self._full_since is None:
            self._full_since = time.monotonic()
        raise QueueFullError(reason, max(1, math.ceil(self._tokens / self._tokens_per_second)))

    def _drop_dead(self) -> None:
        now = time.monotonic()
        dead = [entry for entry in self._waiting if entry.request.is_over or entry.request.deadline <= now]
        if dead:
            self._remove(dead)
            for entry in dead:
                self._on_drop(entry, "deadline" if entry.request.deadline <= now else "left")

    def _form_batch(self) -> list[QueueEntry[R]]:
        leader = self._leader()
        batch, longest = [leader], len(leader)
        share = math.ceil(len(self._waiting) / self._workers)  # more would wait here while another worker comes free
        if longest * 2 <= self._token_budget:
            for entry in sorted(self._waiting, key=lambda entry: abs(len(entry) - len(leader))):
                longest = max(longest, len(entry))
                if len(batch) == share or longest * (len(batch) + 1) > self._token_budget:
                    break
                if entry is not leader:
                    batch.append(entry)
        self._remove(batch)
        newest = max(entry.arrived for entry in batch)
        for entry in self._waiting:
            entry.passed_over += entry.arrived < newest
        return batch

    def _leader(self) -> QueueEntry[R]:
        first_single = None
        for entry in self._waiting:  # in the order of arrival
            if entry.passed_over >= MAX_PASSED_OVER:
                return entry
            if first_single is None and not entry.from_batch:
                first_single = entry
        return first_single or self._waiting[0]

    def _remove(self, entries: Sequence[QueueEntry[R]]) -> None:
        gone = set(map(id, entries))
        self._waiting = [entry for entry in self._waiting if id(entry) not in gone]
        self._make_room(texts=len(entries), tokens=sum(map(len, entries)))

    def _make_room(self, *, texts: int, tokens: int) -> None:
        self._texts, self._tokens, self._full_since = self._texts - texts, self._tokens - tokens, None
