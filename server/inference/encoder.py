"""Turns texts into class probabilities: tokens, padding, a backend, temperature and softmax."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from server.inference.backends import Backend
from server.model_folder import ModelFolder


class Encoder:
    """Computes what the server answers; the export step, the gate and the server call the same one.

    Several threads may call at once. A call uses one thread of a CPU backend.
    """

    def __init__(self, folder: ModelFolder, backend: Backend) -> None:
        self.folder, self.backend = folder, backend

    def tokenize(self, texts: Sequence[str]) -> list[Encoding]:
        """Tokenizes texts; releases the GIL. What is longer than the model reads is truncated."""
        return self.folder.tokenizer.encode_batch(list(texts))

    def probabilities(self, rows: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        """Computes probabilities [rows, classes] of the token ids of texts, padded to the longest of them."""
        lengths = np.array([len(row) for row in rows])
        mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
        input_ids = np.zeros_like(mask)
        input_ids[mask.astype(bool)] = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])
        return softmax(self.backend.run(input_ids, mask), temperature=self.folder.temperature)

    def classify(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Computes probabilities [texts, classes] of texts, all in one batch."""
        return self.probabilities([encoding.ids for encoding in self.tokenize(texts)])


def softmax(logits: NDArray[np.floating[Any]], *, temperature: float = 1.0) -> NDArray[np.float64]:
    """Turns logits [rows, classes] into probabilities; a temperature above 1 makes them less certain."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))  # the largest is 1: no overflow
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))
