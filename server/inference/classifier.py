"""Classifies texts: admits them, and tokenizes and computes them outside the event loop."""

import asyncio
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from server.errors import DeadlineExceededError
from server.inference.backends import Choice
from server.inference.encoder import Encoder
from server.inference.hardware import lower_priority
from server.inference.queue import BatchQueue, Dropped, QueueEntry
from server.settings import Settings

VISIBLE = r"^[^\u0000]*[\p{L}\p{M}\p{N}\p{P}\p{S}][^\u0000]*$"
"""The texts that `visible_text` accepts, as a pattern of JSON Schema."""

_CHARACTERS_PER_TOKEN = 4  # of English: what room to reserve for a text before its tokens are known
_GPU_WORKERS = 2  # one batch is computed while the next is prepared; more would only cut the queue into smaller batches


def visible_text(text: str) -> str:
    """Refuses a text that holds nothing to classify; a validator for pydantic."""
    if "\0" in text:
        raise PydanticCustomError("text_nul", "Text should have no NUL character (\\u0000)")
    if not any(character.isprintable() and not character.isspace() for character in text):
        raise PydanticCustomError("text_blank", "Text should have a visible character")
    return text


class Prediction(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    label: str = Field(examples=["Sports"])
    """The most probable class."""

    confidence: float = Field(ge=0, le=1, examples=[0.97])
    """Its probability."""

    probabilities: dict[str, float] = Field(examples=[{"World": 0.02, "Sports": 0.97, "Business": 0.01}])
    """The probability of every class; they add up to 1."""

    truncated: bool
    """True when the text was longer than the model reads, so that its end was ignored."""


@dataclass(frozen=True)
class Answer:
    """Predictions in the order of the texts, with the time that each stage took."""

    predictions: list[Prediction]
    queue_seconds: float
    """The wait of the text that waited longest for a worker."""
    tokenize_seconds: float
    infer_seconds: float
    """The time of the batch that took longest."""
    tokens: int
    """Tokens of all texts that the model reads."""
    stages: dict[str, tuple[float, float]]
    """Start and end of each stage, by the clock of `time.monotonic`."""

    def server_timing(self) -> str:
        """Formats the header Server-Timing, in milliseconds."""
        parts = {"queue": self.queue_seconds, "tokenize": self.tokenize_seconds, "infer": self.infer_seconds}
        return ", ".join(f"{name};dur={seconds * 1000:.1f}" for name, seconds in parts.items())


@dataclass(eq=False)
class Request:
    """Texts that are admitted, refused and answered together."""

    texts: Sequence[str]
    deadline: float
    reserved_tokens: int
    future: "asyncio.Future[Answer]"
    tokens: int = 0
    truncated: list[bool] = field(default_factory=list)
    predictions: dict[int, Prediction] = field(default_factory=dict)
    tokenize_started: float = 0.0
    tokenized: float = 0.0
    queue_seconds: float = 0.0
    infer_seconds: float = 0.0
    first_taken: float = math.inf
    last_taken: float = 0.0
    computed: float = 0.0

    @property
    def is_over(self) -> bool:
        return self.future.done()

    def add(self, number: int, prediction: Prediction, *, arrived: float, started: float, seconds: float) -> None:
        """Adds the prediction of one text; the last one answers the request."""
        self.predictions[number] = prediction
        self.queue_seconds = max(self.queue_seconds, started - arrived)
        self.infer_seconds = max(self.infer_seconds, seconds)
        self.first_taken, self.last_taken = min(self.first_taken, started), max(self.last_taken, started)
        self.computed = max(self.computed, started + seconds)
        if len(self.predictions) == len(self.texts) and not self.is_over:
            self.future.set_result(self._answer())

    def _answer(self) -> Answer:
        return Answer(
            [self.predictions[number] for number in range(len(self.texts))],
            queue_seconds=self.queue_seconds,
            tokenize_seconds=self.tokenized - self.tokenize_started,
            infer_seconds=self.infer_seconds,
            tokens=self.tokens,
            stages={
                "tokenize": (self.tokenize_started, self.tokenized),
                "queue": (self.tokenized, self.last_taken),
                "infer": (self.first_taken, self.computed),
            },
        )


class ClassifierEvents:
    """Receives what a classifier does, on whichever thread does it; this one ignores it."""

    def tokenized(self, seconds: float) -> None:
        """The texts of a request were tokenized."""

    def computed(self, batch: Sequence[QueueEntry[Request]], *, started: float, seconds: float) -> None:
        """A batch was computed, which a worker took at `started` by the clock of `time.monotonic`."""

    def predicted(self, prediction: Prediction) -> None:
        """A text was classified."""

    def dropped(self, reason: Dropped) -> None:
        """A text left the queue without having been computed."""


class Classifier:
    """Classifies texts with threads: one tokenizes requests in turn, and each worker computes one batch at a time."""

    def __init__(self, choice: Choice, settings: Settings) -> None:
        self.choice, self.folder, self.backend = choice, choice.folder, choice.backend
        self.encoder = Encoder(choice.folder, choice.backend)
        self.workers = min(settings.workers, _GPU_WORKERS) if choice.backend.gpu else settings.workers
        self.events = ClassifierEvents()
        self.queue: BatchQueue[Request] = BatchQueue(
            max_texts=settings.max_queued_texts,
            max_tokens=settings.max_queued_tokens,
            token_budget=choice.token_budget,
            on_drop=lambda _, reason: self.events.dropped(reason),
            workers=self.workers,
        )
        # The workers are the parallelism: threads of the tokenizer's own would compete with them.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        self._to_tokenize: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._busy_since: dict[int, float] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._threads = [threading.Thread(target=self._tokenize, name="tokenize", daemon=True)]
        self._threads += [
            threading.Thread(target=self._compute, args=(number,), name=f"compute-{number}", daemon=True)
            for number in range(self.workers)
        ]
        for thread in self._threads:
            thread.start()

    async def classify(self, texts: Sequence[str], *, timeout_seconds: float) -> Answer:
        """Classifies texts, all of them or none.

        Raises QueueFullError when there is no room for all of them, DeadlineExceededError when the answer is not ready in
        time; a caller that is cancelled takes its texts out of the queue.
        """
        self._loop = asyncio.get_running_loop()
        tokens = sum(min(self.folder.max_length, len(text) // _CHARACTERS_PER_TOKEN + 2) for text in texts)
        self.queue.reserve(texts=len(texts), tokens=tokens)
        request = Request(texts, time.monotonic() + timeout_seconds, tokens, self._loop.create_future())
        self._to_tokenize.put(request)
        try:
            async with asyncio.timeout(timeout_seconds):
                return await request.future
        except TimeoutError:
            raise DeadlineExceededError(f"no answer within {timeout_seconds * 1000:.0f} ms") from None

    def stuck_seconds(self) -> float:
        """Returns how long the slowest worker has computed its batch; 0 when all are idle. Raises when a thread has ended."""
        ended = [thread.name for thread in self._threads if not thread.is_alive()]
        if ended:
            raise RuntimeError(f"thread {ended[0]} has ended")
        return max((time.monotonic() - since for since in list(self._busy_since.values())), default=0.0)

    @property
    def busy_workers(self) -> int:
        return len(self._busy_since)

    def close(self) -> None:
        """Waits until everything admitted is computed and the threads have ended.

        A thread that is within an engine when the interpreter ends would abort the process.
        """
        self._to_tokenize.put(None)
        for thread in self._threads:
            thread.join()

    def _tokenize(self) -> None:
        while request := self._to_tokenize.get():
            try:
                self._append(request)
            except Exception as error:  # noqa: BLE001 - a text that the library fails on must not end the thread
                self.queue.release(texts=len(request.texts), tokens=request.reserved_tokens)
                self._on_loop(_fail, [request], error)
        self.queue.close()

    def _append(self, request: Request) -> None:
        request.tokenize_started = time.monotonic()
        encodings = self.encoder.tokenize(request.texts)
        request.tokenized = time.monotonic()
        self.events.tokenized(request.tokenized - request.tokenize_started)
        request.truncated = [bool(encoding.overflowing) for encoding in encodings]
        entries = [
            QueueEntry(encoding.ids, request, number, from_batch=len(encodings) > 1)
            for number, encoding in enumerate(encodings)
        ]
        request.tokens = sum(map(len, entries))
        self.queue.append(entries, reserved_tokens=request.reserved_tokens)

    def _compute(self, worker: int) -> None:
        if not self.backend.gpu:
            lower_priority()
        while batch := self.queue.next_batch():
            started = time.monotonic()
            try:
                with self._busy(worker, started):
                    probabilities = self.encoder.probabilities([entry.token_ids for entry in batch])
            except Exception as error:  # noqa: BLE001 - the backends' exceptions share no base
                self._on_loop(_fail, [entry.request for entry in batch], error)
            else:
                self._on_loop(self._answer, batch, probabilities, started, time.monotonic() - started)
            self.queue.record_speed(sum(map(len, batch)) * self.workers, time.monotonic() - started)

    @contextmanager
    def _busy(self, worker: int, started: float) -> Iterator[None]:
        self._busy_since[worker] = started
        try:
            yield
        finally:
            del self._busy_since[worker]

    def _answer(
        self, batch: Sequence[QueueEntry[Request]], found: NDArray[np.float64], started: float, seconds: float
    ) -> None:
        self.events.computed(batch, started=started, seconds=seconds)
        for entry, probabilities in zip(batch, found.tolist(), strict=True):
            best = max(range(len(probabilities)), key=probabilities.__getitem__)
            prediction = Prediction(
                label=self.folder.labels[best],
                confidence=probabilities[best],
                probabilities=dict(zip(self.folder.labels, probabilities, strict=True)),
                truncated=entry.request.truncated[entry.number],
            )
            self.events.predicted(prediction)
            entry.request.add(entry.number, prediction, arrived=entry.arrived, started=started, seconds=seconds)

    def _on_loop(self, call: Callable[..., None], *args: object) -> None:
        if self._loop is None:
            return
        try:
            self._loop.call_soon_threadsafe(call, *args)
        except RuntimeError:
            if not self._loop.is_closed():  # else nobody waits any more
                raise


def _fail(requests: Sequence[Request], error: Exception) -> None:
    for request in requests:
        if not request.is_over:
            request.future.set_exception(error)
