"""What runs the model."""

import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from server.model_folder import ModelFolderError

_CALIBRATION_LENGTH = 64  # tokens: a news text with its description
_CALIBRATION_ROWS = (1, 4, 8)
_WORTHWHILE = 1.1  # times the speed of single texts, or a batch only makes each of them wait for the others


class Engine(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def batch_invariant(self) -> bool:
        """Whether a text gets the same answer alone and in any batch; if not, it is computed alone."""

    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """Logits [batch, classes] of token ids [batch, length] and their mask; several threads may call at once."""


class OnnxEngine:
    """ONNX Runtime with one thread a call: several calls at once fill the CPUs better than one call on all of them."""

    name = f"onnxruntime {onnxruntime.__version__}"

    def __init__(self, file: Path, *, batch_invariant: bool) -> None:
        self.batch_invariant = batch_invariant
        try:
            self._session = onnxruntime.InferenceSession(file, _options(), providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions share no narrower base
            reason = str(error).splitlines()[0]
            raise ModelFolderError(f"{file} cannot be loaded ({reason}): run the export step again") from error

    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        # Run releases the GIL, and a session may be shared by threads.
        outputs: list[NDArray[np.float32]] = self._session.run(
            ["logits"], {"input_ids": input_ids, "attention_mask": attention_mask}
        )
        return outputs[0]


def _options() -> Any:  # noqa: ANN401 - the library publishes no types
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # It keeps a plan for every length ever seen, and texts have many lengths. The arena stays: without it more is held.
    options.enable_mem_pattern = False
    options.log_severity_level = 3  # errors: its warnings are about the graph, which nobody here can mend
    return options


def best_token_budget(engine: Engine, *, max_length: int) -> int:
    """Padded tokens of a batch at most, by a quick measurement: on a CPU a batch does not always pay.

    0, which is every text alone, for an engine whose answers depend on what a text is batched with.
    """
    if not engine.batch_invariant:
        return 0
    length = min(max_length, _CALIBRATION_LENGTH)
    speeds = {rows: _tokens_per_second(engine, rows=rows, length=length) for rows in _CALIBRATION_ROWS}
    best = max(speeds, key=speeds.__getitem__)
    return best * length if speeds[best] > _WORTHWHILE * speeds[1] else 0


def _tokens_per_second(engine: Engine, *, rows: int, length: int) -> float:
    input_ids, mask = np.full((rows, length), 5, dtype=np.int64), np.ones((rows, length), dtype=np.int64)
    engine.run(input_ids, mask)  # the first of a shape also allocates
    started = time.perf_counter()
    engine.run(input_ids, mask)
    return rows * length / (time.perf_counter() - started)
