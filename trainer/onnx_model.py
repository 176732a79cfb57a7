"""An exported model, run as the server runs it."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
from tokenizers import Tokenizer

from server.errors import UserError
from trainer.evaluation.predict import Probabilities
from trainer.monitoring.console import Progress

_Run = Callable[[dict[str, npt.NDArray[np.int64]]], npt.NDArray[np.float32]]


class OnnxModel:
    """One variant of `<model folder>/onnx`; without a name, the one that is served."""

    def __init__(self, folder: Path, variant: str | None = None) -> None:
        described = folder / "onnx" / "model.json"
        if not described.is_file():
            raise UserError(f"{folder}: has no onnx/model.json; make it with the export step")
        facts = json.loads(described.read_text(encoding="utf-8"))
        self.labels: list[str] = facts["labels"]
        path = folder / "onnx" / facts["variants"][variant or facts["default"]]["file"]
        self._tokenizer = Tokenizer.from_file(str(folder / "onnx" / "tokenizer.json"))
        self._tokenizer.enable_truncation(facts["max_length"])
        self._logits = _load(path, max_length=facts["max_length"])

    def predict(self, texts: Sequence[str], *, batch_size: int, what: str) -> Probabilities:
        """Probabilities [texts, classes], in batches of texts as they come."""
        found = []
        with Progress(what, len(texts), "texts") as progress:
            for start in range(0, len(texts), batch_size):
                batch = list(texts[start : start + batch_size])
                found.append(self._probabilities(batch))
                progress.advance(len(batch))
        return np.concatenate(found)

    def _probabilities(self, texts: list[str]) -> Probabilities:
        self._tokenizer.enable_padding()
        encodings = self._tokenizer.encode_batch(texts)
        logits = self._logits(
            {
                "input_ids": np.array([encoding.ids for encoding in encodings], dtype=np.int64),
                "attention_mask": np.array([encoding.attention_mask for encoding in encodings], dtype=np.int64),
            }
        )
        exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities: Probabilities = exponents / exponents.sum(axis=1, keepdims=True)
        return probabilities


def _load(file: Path, *, max_length: int) -> _Run:
    if file.suffix == ".xml":
        from trainer.exporters import OpenVinoSession

        return OpenVinoSession(file, max_length=max_length).logits
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(["logits"], inputs)[0].astype(np.float32)
