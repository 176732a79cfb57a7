"""From texts to labels with probabilities."""

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from server.engine import Engine
from server.model_folder import ModelFolder, ModelFolderError

# The workers are the parallelism: a pool of the library's own threads would compete with them. It reads this when it
# is first used.
os.environ["TOKENIZERS_PARALLELISM"] = "false"


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


class Classifier:
    """Classifies texts in worker threads, each one text at a time.

    One at a time, because dynamic int8 scales activations over the whole batch: an answer would depend on its
    neighbours, and batches are no faster on ONNX Runtime.
    """

    def __init__(self, folder: ModelFolder, engine: Engine, *, workers: int) -> None:
        self.folder = folder
        self.engine = engine
        self.workers = workers
        self._check()
        self._executor = ThreadPoolExecutor(workers, thread_name_prefix="classify")

    async def predict(self, text: str) -> Prediction:
        """Classify one text without blocking the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._classify, text)

    async def predict_batch(self, texts: Sequence[str]) -> list[Prediction]:
        """Classify texts; the answers are those of `predict`, in the same order."""
        return await asyncio.gather(*map(self.predict, texts))

    def close(self) -> None:
        """Drop what no worker has begun."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _classify(self, text: str) -> Prediction:
        # encode_batch even for one text: encode holds the GIL.
        encoding = self.folder.tokenizer.encode_batch([text])[0]
        probabilities = _softmax(self._logits(encoding.ids)).tolist()
        best = int(np.argmax(probabilities))
        return Prediction(
            label=self.folder.labels[best],
            confidence=probabilities[best],
            probabilities=dict(zip(self.folder.labels, probabilities, strict=True)),
            truncated=bool(encoding.overflowing),
        )

    def _logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        input_ids = np.array([token_ids], dtype=np.int64)
        logits: NDArray[np.float32] = self.engine.run(input_ids, np.ones_like(input_ids))[0]
        return logits

    def _check(self) -> None:
        """One run on the longest text of the last token: whatever model, tokenizer and labels disagree on fails now."""
        last = max(self.folder.tokenizer.get_vocab().values())
        together = f"{self.folder.file} does not belong to the files beside it"
        try:
            logits = self._logits([last] * self.folder.max_length)
        except Exception as error:  # the engine's exceptions share no narrower base
            reason = str(error).splitlines()[0]
            raise ModelFolderError(
                f"{together}: it fails on {self.folder.max_length} tokens with ids up to {last} ({reason}); run the export step again"
            ) from error
        if logits.shape != (len(self.folder.labels),) or not np.isfinite(logits).all():
            raise ModelFolderError(
                f"{together}: model.json has {len(self.folder.labels)} labels, the model answers {logits.tolist()}; run the export step again"
            )


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    exponentials = np.exp(logits.astype(np.float64) - logits.max())  # the largest is 1: no overflow
    return np.asarray(exponentials / exponentials.sum())
