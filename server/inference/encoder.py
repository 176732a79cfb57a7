"""Turns texts into class probabilities: tokens, padding, a backend, temperature and softmax."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from server.inference.backends import Backend
from server.model_folder import ModelFolder, Padding


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
        """Computes probabilities [rows, classes] of the token ids of texts, padded to the longest of them.

        Lengths are rounded up to what the backend computes best, but never past the model's limit. A text without tokens, as
        a tokenizer that adds none may give, is computed as one of padding.
        """
        padding, step = self.folder.padding, self.backend.length_step
        filled = [row or [padding.token_id] for row in rows]
        longest = max(map(len, filled))
        length = max(longest, min(-(-longest // step) * step, self.folder.max_length))
        return softmax(self.backend.run(*pad(filled, length, padding)), temperature=self.folder.temperature)

    def classify(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Computes probabilities [texts, classes] of texts, all in one batch."""
        return self.probabilities([encoding.ids for encoding in self.tokenize(texts)])


def pad(
    rows: Sequence[Sequence[int] | NDArray[Any]], length: int, padding: Padding
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pads token ids to a length on the side that the tokenizer pads; returns them with their mask, both [rows, length]."""
    input_ids = np.full((len(rows), length), padding.token_id, dtype=np.int64)
    mask = np.zeros_like(input_ids)
    for number, row in enumerate(rows):
        place = slice(len(row)) if padding.side == "right" else slice(length - len(row), length)
        input_ids[number, place], mask[number, place] = row, 1
    return input_ids, mask


def softmax(logits: NDArray[np.floating[Any]], *, temperature: float = 1.0) -> NDArray[np.float64]:
    """Turns logits [rows, classes] into probabilities; a temperature above 1 makes them less certain."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))  # the largest is 1: no overflow
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))
