"""The two models of predict: a folder, which this process runs, and a server."""

import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeAlias

from anyio.from_thread import start_blocking_portal
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from server.errors import UserError
from server.http import client

if TYPE_CHECKING:
    from server.inference.classifier import Prediction

Answer: TypeAlias = "client.Prediction | Prediction | str"
"""A prediction, or the reason why a text has none."""
_FOLDER_SECONDS = 3600.0  # for a few hundred texts


class Model(Protocol):
    labels: Sequence[str]
    text_columns: Sequence[str]
    """Columns that the model was trained on, or their numbers; none where they are unknown."""
    identity: dict[str, Any]
    title: str
    texts_at_once: int
    requests_at_once: int

    def submit(self, texts: Sequence[str]) -> "Future[list[Answer]]": ...

    def close(self) -> None: ...


class FolderModel:
    """Runs a model folder with the server's own backend and queue.

    A request has more texts than a batch, so that the queue finds texts of similar length among them.
    """

    texts_at_once = 256
    requests_at_once = 4

    def __init__(self, folder: Path, **chosen: Any) -> None:  # noqa: ANN401 - those settings that the command line gave
        from server.inference.backends import choose
        from server.inference.classifier import Classifier, visible_text
        from server.settings import Settings

        room = self.texts_at_once * self.requests_at_once
        try:
            settings = Settings(max_queued_texts=room, max_queued_tokens=100_000_000, **chosen)
            chosen_model = choose(folder, settings.engine, workers=settings.workers)
        except OSError as error:
            raise UserError(str(error)) from error
        except ValidationError as error:
            raise UserError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
        self._classifier, read = Classifier(chosen_model, settings), chosen_model.folder
        limits = Field(min_length=1, max_length=settings.max_text_characters)
        self._text: TypeAdapter[str] = TypeAdapter(Annotated[str, limits, AfterValidator(visible_text)])
        self.labels: Sequence[str] = read.labels
        self.identity: dict[str, Any] = {"sha256": read.sha256, "variant": read.variant}
        self.text_columns: Sequence[str] = read.text_columns
        self.title = f"{folder} ({read.variant} on {self._classifier.backend.name})"
        self._portal = start_blocking_portal()
        self._loop = self._portal.__enter__()

    def submit(self, texts: Sequence[str]) -> "Future[list[Answer]]":
        return self._loop.start_task_soon(self._classify, texts)

    async def _classify(self, texts: Sequence[str]) -> list[Answer]:
        faults = [self._fault(text) for text in texts]
        good = [text for text, fault in zip(texts, faults, strict=True) if not fault]
        answer = await self._classifier.classify(good, timeout_seconds=_FOLDER_SECONDS) if good else None
        predictions = iter(answer.predictions if answer else ())
        return [fault or next(predictions) for fault in faults]

    def _fault(self, text: str) -> str:
        """Returns the reason for which the server would refuse a text; empty where it would not."""
        try:
            self._text.validate_python(text)
        except ValidationError as error:
            return error.errors()[0]["msg"]
        return ""

    def close(self) -> None:
        """Cancels what is not answered yet, and waits for the threads."""
        try:
            self._loop.call(self._loop.stop, True)
            self._portal.__exit__(None, None, None)
        finally:
            self._classifier.close()


class ServerModel:
    """Sends batches as large as the server takes them, a few at the same time.

    Its threads are daemons: a server that does not answer keeps no command from ending.
    """

    def __init__(self, asking: client.Client, *, requests_at_once: int) -> None:
        with ExitStack() as on_error:
            on_error.callback(asking.close)
            health = asking.health
            on_error.pop_all()
        self._client, self.requests_at_once, self.texts_at_once = asking, requests_at_once, health.max_batch_texts
        self.labels: Sequence[str] = health.labels
        self.text_columns: Sequence[str] = health.text_columns
        limits = {"max_batch_texts", "max_text_characters"}
        self.identity: dict[str, Any] = health.model_dump(exclude={*limits, "text_columns"})
        self.title = f"{asking.url} ({health.variant} on {health.engine})"
        self._requests: queue.SimpleQueue[tuple[Sequence[str], Future[list[Answer]]] | None] = queue.SimpleQueue()
        for _ in range(requests_at_once):
            threading.Thread(target=self._work, daemon=True).start()

    def submit(self, texts: Sequence[str]) -> "Future[list[Answer]]":
        future: Future[list[Answer]] = Future()
        self._requests.put((texts, future))
        return future

    def _work(self) -> None:
        while request := self._requests.get():
            texts, future = request
            try:
                future.set_result(list(self._client.classify(texts)))
            except BaseException as error:  # noqa: BLE001 - whoever waits for the future gets it
                future.set_exception(error)

    def close(self) -> None:
        self._client.close()
        for _ in range(self.requests_at_once):
            self._requests.put(None)
