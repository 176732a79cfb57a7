"""A model folder that classifies in this process, with the server's own engine and queue."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from server.errors import ModelFolderError, UserError
from server.http.problems import readable
from server.inference.backends import candidates, load_backend
from server.inference.classifier import Classifier, Prediction
from server.model_folder import read_model_folder
from server.settings import Settings

_SECONDS = 3600.0  # for a few hundred texts


class FolderModel:
    """Asked for more texts at once than a batch has, so that the queue finds texts of like length among them."""

    texts_at_once = 256
    requests_at_once = 4

    def __init__(self, folder: Path, **chosen: Any) -> None:  # noqa: ANN401 - those settings that the command line gave
        room = self.texts_at_once * self.requests_at_once
        try:
            settings = Settings(max_queued_texts=room, max_queued_tokens=100_000_000, **chosen)
            read = read_model_folder(folder, candidates(settings.engine))
            self._classifier = Classifier(read, load_backend(read, workers=settings.workers), settings)
        except (ModelFolderError, OSError) as error:
            raise UserError(str(error)) from error
        except ValidationError as error:
            raise UserError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
        self.labels = read.labels
        self.identity: dict[str, Any] = {"sha256": read.sha256, "variant": read.variant}
        self.title = f"{folder} ({read.variant} on {self._classifier.backend.name})"

    async def classify(self, texts: Sequence[str]) -> list[Prediction | str]:
        """The prediction for each text, or why there is none."""
        faults = [_fault(text) for text in texts]
        good = [text for text, fault in zip(texts, faults, strict=True) if not fault]
        answered = await self._classifier.classify(good, timeout_seconds=_SECONDS) if good else None
        predictions = iter(answered.predictions if answered else ())
        return [fault or next(predictions) for fault in faults]

    async def close(self) -> None:
        self._classifier.close()


def _fault(text: str) -> str:
    try:
        readable(text)
    except PydanticCustomError as error:
        return error.message()
    return ""
