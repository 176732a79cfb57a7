"""From texts to labels with probabilities: admitted, tokenised and computed outside the event loop."""

import asyncio
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from server.errors import DeadlineExceededError, ModelFolderError
from server.hardware import lower_priority
from server.inference.backends import Backend, best_token_budget
from server.inference.observer import ClassifierEvents
from server.inference.queue import BatchQueue, Dropped, QueueEntry
from server.model_folder import ModelFolder
from server.settings import Settings

# The workers are the parallelism: a pool of the library's own threads would compete with them. It reads this when it
# is first used.
os.environ["TOKENIZERS_PARALLELISM"] = "false"

_CHARACTERS_PER_TOKEN = 4  # of English: what room to reserve for a text before its tokens are known
_GPU_WORKERS = (
    2  # one batch is computed while the next is made ready; more would only cut the queue into smaller batches
)
_TOKENISED_TOGETHER = 256  # texts: some milliseconds


class Prediction(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    label: str = Field(examples=["Sports"])
    """The most probable class."""

    confidence: float = Field(ge=0, le=1, examples=[0.97])
    """Its probability."""

    probabilities: dict[str, float] = Field(examples=[{"World": 0.02, "Sports": 0.97, "Business": 0.01}])
    """The probability of every class; they add up to 1."""

    truncated: bool
    """Whether the text was longer than the model reads, so that its end was ignored."""


VISIBLE = r"^[^\u0000]*[\p{L}\p{M}\p{N}\p{P}\p{S}][^\u0000]*$"
"""The texts that `visible_text` accepts, as a pattern of JSON Schema."""


def visible_text(text: str) -> str:
    """Returns the text; refuses one that holds nothing to classify."""
    if "\0" in text:
        raise PydanticCustomError("text_nul", "Text should have no NUL character (\\u0000)")
    if not any(character.isprintable() and not character.isspace() for character in text):
        raise PydanticCustomError("text_blank", "Text should have a visible character")
    return text


@dataclass(frozen=True)
class Answer:
    """Predictions in the order of the texts, and where the time went."""

    predictions: list[Prediction]
    queue_seconds: float
    """Of the text that waited longest for a worker."""
    tokenize_seconds: float
    infer_seconds: float
    """Of the text whose batch took longest."""
    tokens: int
    """Of all texts, as far as the model reads them."""
    stages: dict[str, tuple[float, float]]
    """From when to when each stage had texts of this request, by the clock of `time.monotonic`."""

    def server_timing(self) -> str:
        """As the header Server-Timing has it, in milliseconds."""
        parts = {"queue": self.queue_seconds, "tokenize": self.tokenize_seconds, "infer": self.infer_seconds}
        return ", ".join(f"{name};dur={seconds * 1000:.1f}" for name, seconds in parts.items())


@dataclass(eq=False)
class _Request:
    """Texts that are admitted, refused and answered together."""

    texts: Sequence[str]
    deadline: float
    reserved_tokens: int
    answered: "asyncio.Future[Answer]"
    entries: list[QueueEntry] = field(default_factory=list)
    truncated: list[bool] = field(default_factory=list)
    answers: dict[int, Prediction] = field(default_factory=dict)
    tokenize_started: float = 0.0
    tokenize_seconds: float = 0.0
    queue_seconds: float = 0.0
    infer_seconds: float = 0.0
    first_taken: float = math.inf
    last_taken: float = 0.0
    computed: float = 0.0

    def answer(self) -> Answer:
        tokenized = self.tokenize_started + self.tokenize_seconds
        return Answer(
            [self.answers[place] for place in range(len(self.texts))],
            queue_seconds=self.queue_seconds,
            tokenize_seconds=self.tokenize_seconds,
            infer_seconds=self.infer_seconds,
            tokens=sum(map(len, self.entries)),
            stages={
                "tokenize": (self.tokenize_started, tokenized),
                "queue": (tokenized, self.last_taken),
                "infer": (self.first_taken, self.computed),
            },
        )


class Classifier:
    """Classifies texts with `workers` threads, each one batch at a time.

    Requests are tokenised by a thread of their own, together with what came meanwhile; `encode_batch` releases the GIL.
    """

    def __init__(self, folder: ModelFolder, backend: Backend, settings: Settings) -> None:
        self.folder, self.backend = folder, backend
        self.workers = min(settings.workers, _GPU_WORKERS) if backend.gpu else settings.workers
        self.events = ClassifierEvents()
        self._check()
        self.queue = BatchQueue(
            max_texts=settings.max_queued_texts,
            max_tokens=settings.max_queued_tokens,
            token_budget=best_token_budget(backend, max_length=folder.max_length),
            on_drop=self._dropped,
            workers=self.workers,
        )
        self._texts: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
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
        """Classify texts, all of them or none.

        Raises QueueFullError when there is no room for all of them, DeadlineExceededError when they are not there in time;
        a caller that is cancelled takes its texts out of the queue.
        """
        self._loop = asyncio.get_running_loop()
        tokens = sum(min(self.folder.max_length, len(text) // _CHARACTERS_PER_TOKEN + 2) for text in texts)
        self.queue.reserve(texts=len(texts), tokens=tokens)
        request = _Request(texts, time.monotonic() + timeout_seconds, tokens, self._loop.create_future())
        self._texts.put(request)
        try:
            async with asyncio.timeout(timeout_seconds):
                return await request.answered
        except TimeoutError:
            raise DeadlineExceededError(f"no answer within {timeout_seconds * 1000:.0f} ms") from None
        finally:
            for entry in request.entries:
                entry.is_over = True  # whoever asked is gone, or has the answer: what still waits is not computed
            request.entries = []  # they know the request: without a cycle all is freed at once, and no collection holds others up

    def stuck_seconds(self) -> float:
        """Seconds that the slowest worker has been at its batch; 0 when all wait for work. Raises when a thread has ended."""
        ended = [thread.name for thread in self._threads if not thread.is_alive()]
        if ended:
            raise RuntimeError(f"thread {ended[0]} has ended")
        return max((time.monotonic() - since for since in list(self._busy_since.values())), default=0.0)

    @property
    def busy_workers(self) -> int:
        return len(self._busy_since)

    def close(self) -> None:
        """Let the threads end once everything admitted is computed."""
        self._texts.put(None)
        self.queue.close()

    def _tokenize(self) -> None:
        while (request := self._texts.get()) is not None:
            together, count = [request], len(request.texts)
            while count < _TOKENISED_TOGETHER and not self._texts.empty():
                if (more := self._texts.get()) is None:
                    self._texts.put(None)
                    break
                together.append(more)
                count += len(more.texts)
            try:
                self._tokenize_together(together)
            except Exception as error:  # noqa: BLE001 - a text that the library fails on must not end the thread
                for failed in together:
                    self.queue.release(texts=len(failed.texts), tokens=failed.reserved_tokens)
                    self._on_loop(_fail, failed, error)

    def _tokenize_together(self, requests: Sequence[_Request]) -> None:
        started = time.monotonic()
        encodings = iter(self.folder.tokenizer.encode_batch([text for request in requests for text in request.texts]))
        seconds = time.monotonic() - started
        self.events.tokenized(seconds)
        for request in requests:
            request.tokenize_started, request.tokenize_seconds = started, seconds
            from_batch, entries = len(request.texts) > 1, list[QueueEntry]()
            for number, encoding in zip(range(len(request.texts)), encodings, strict=False):
                entries.append(QueueEntry(encoding.ids, request.deadline, from_batch, request=(request, number)))
                request.truncated.append(bool(encoding.overflowing))
            request.entries = entries
            if request.answered.done():  # its time was up before its tokens were there
                for entry in entries:
                    entry.is_over = True
                request.entries = []
            self.queue.append(entries, reserved_tokens=request.reserved_tokens)

    def _compute(self, worker: int) -> None:
        if not self.backend.gpu:
            lower_priority()
        while batch := self.queue.next_batch():
            started = self._busy_since[worker] = time.monotonic()
            told: list[tuple[Callable[..., None], *tuple[object, ...]]]
            try:
                logits = self._logits([entry.token_ids for entry in batch])
                probabilities = _softmax(logits / self.folder.temperature)
            except Exception as error:  # noqa: BLE001 - the engine's exceptions share no narrower base
                told = [(_fail, entry.request[0], error) for entry in batch]
            else:
                told = [(self._answer, batch, probabilities.tolist(), started, time.monotonic() - started)]
            finally:
                del self._busy_since[worker]
            for call in told:
                self._on_loop(*call)
            self.queue.record_speed(sum(map(len, batch)) * self.workers, time.monotonic() - started)

    def _answer(
        self, batch: Sequence[QueueEntry], probabilities: list[list[float]], started: float, seconds: float
    ) -> None:
        self.events.computed(batch, started=started, seconds=seconds)
        for entry, found in zip(batch, probabilities, strict=True):
            request, number = entry.request
            best = max(range(len(found)), key=found.__getitem__)
            request.answers[number] = Prediction(
                label=self.folder.labels[best],
                confidence=found[best],
                probabilities=dict(zip(self.folder.labels, found, strict=True)),
                truncated=request.truncated[number],
            )
            request.queue_seconds = max(request.queue_seconds, started - entry.arrived)
            request.infer_seconds = max(request.infer_seconds, seconds)
            request.first_taken = min(request.first_taken, started)
            request.last_taken = max(request.last_taken, started)
            request.computed = max(request.computed, started + seconds)
            self.events.predicted(request.answers[number])
            if len(request.answers) == len(request.texts) and not request.answered.done():
                request.answered.set_result(request.answer())

    def _dropped(self, entry: QueueEntry, why: Dropped) -> None:
        self.events.dropped(why)
        request: _Request = entry.request[0]
        if why == "deadline":
            self._on_loop(_fail, request, DeadlineExceededError("its time was up before a worker was free"))

    def _on_loop(self, call: Callable[..., None], *args: object) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call, *args)

    def _logits(self, rows: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        lengths = np.array([len(row) for row in rows])
        mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
        input_ids = np.zeros_like(mask)
        input_ids[mask.astype(bool)] = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])
        return self.backend.run(input_ids, mask)

    def _check(self) -> None:
        """One run on the longest text of the last token: whatever model, tokenizer and labels disagree on fails now."""
        last = max(self.folder.tokenizer.get_vocab().values())
        together = f"{self.folder.file} does not belong to the files beside it"
        try:
            logits = self._logits([[last] * self.folder.max_length])[0]
        except Exception as error:  # the engine's exceptions share no narrower base
            reason = str(error).splitlines()[0]
            raise ModelFolderError(
                f"{together}: it fails on {self.folder.max_length} tokens with ids up to {last} ({reason}); run the export step again"
            ) from error
        if logits.shape != (len(self.folder.labels),) or not np.isfinite(logits).all():
            raise ModelFolderError(
                f"{together}: model.json has {len(self.folder.labels)} labels, the model answers {logits.tolist()}; run the export step again"
            )


def _fail(request: _Request, error: Exception) -> None:
    if not request.answered.done():
        request.answered.set_exception(error)


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    exponentials = np.exp(
        logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    )  # the largest is 1: no overflow
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))
