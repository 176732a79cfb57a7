"""What runs the model: the interface, and which engine is taken. Each engine is a file of its own, imported only where it runs."""

import time
from importlib.util import find_spec
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from server.errors import ModelFolderError
from server.inference.gpu import gpu
from server.model_folder import ModelFolder
from server.settings import EngineName

_NEWS_LENGTH = 64  # tokens: a text with its title
_CALIBRATION_LENGTH = 32  # as telling, in half of the time
_CALIBRATION_ROWS = (1, 4)  # more together gave hardly more texts a second, and made each of them wait longer
_CALIBRATION_RUNS = 2  # of which the quicker counts: something else may disturb one
_CALIBRATION_ROWS_GPU = (1, 8, 32, 64)
_WORTHWHILE = 1.1  # times the speed of single texts, or a batch only makes each of them wait for the others


class Backend(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def batches(self) -> bool:
        """Whether texts of like length together are faster than alone, with the same answers."""

    @property
    def gpu(self) -> bool:
        """Whether it computes on a GPU: large batches pay, and two callers keep it busy."""

    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """Logits [batch, classes] of token ids [batch, length] and their mask; several threads may call at once."""


def candidates(engine: EngineName) -> tuple[str, ...]:
    """The variants of a model folder that serve a setting, best first."""
    if engine == "auto":
        on_gpu = ("torch",) if gpu().usable else ()
        return (*on_gpu, *(("openvino",) if openvino_installed() else ()), "int8", "fp32")
    return {"torch": ("torch",), "openvino": ("openvino",), "onnx": ("int8", "fp32"), "onnx-fp32": ("fp32",)}[engine]


def openvino_installed() -> bool:
    return find_spec("openvino") is not None


def load_backend(folder: ModelFolder, *, workers: int) -> Backend:
    """The engine of the folder's chosen variant, for as many callers at once as there are workers."""
    if folder.variant == "openvino":
        try:
            from server.inference.backends.openvino import OpenVinoBackend
        except ImportError as error:
            raise ModelFolderError(
                f"{folder.file} needs OpenVINO, which cannot be imported ({error}): pip install openvino, or choose --engine onnx"
            ) from error
        return OpenVinoBackend(folder.file, max_length=folder.max_length, workers=workers)
    if folder.variant == "torch":
        try:
            from server.inference.backends.torch import TorchBackend
        except ImportError as error:
            raise ModelFolderError(
                f"{folder.file} needs PyTorch, which cannot be imported ({error}): pip install 'distrinews[server-torch]', or choose --engine onnx"
            ) from error
        return TorchBackend(folder.file, max_length=folder.max_length)
    from server.inference.backends.onnx import OnnxBackend

    return OnnxBackend(folder.file)


def why(engine: EngineName, variant: str) -> str:
    """The reason for which a setting came to a variant, as the end of a sentence."""
    if engine != "auto":
        return f"as --engine {engine} says"
    if variant == "torch":
        return "as a CUDA device is there"
    if gpu().usable:
        return "as the model folder has no model.safetensors for the CUDA device that is there"
    unused = f"; a CUDA device is there, but {gpu().why_not}" if gpu().why_not else ""
    return _why_on_cpu(variant) + unused


def _why_on_cpu(variant: str) -> str:
    if variant == "openvino":
        return "the fastest in batches, which change no answer"
    if not openvino_installed():
        return "as OpenVINO is not installed (pip install openvino)"
    return "as the model folder has no variant for OpenVINO (the export step writes it)"


def best_token_budget(engine: Backend, *, max_length: int) -> int:
    """Padded tokens of a batch at most, by a quick measurement: on a CPU a batch does not always pay.

    0, which is every text alone, for an engine that says that batches are not for it.
    """
    if not engine.batches:
        return 0
    length = min(max_length, _CALIBRATION_LENGTH)
    trials = _CALIBRATION_ROWS_GPU if engine.gpu else _CALIBRATION_ROWS
    speeds = {rows: _tokens_per_second(engine, rows=rows, length=length) for rows in trials}
    best = max(speeds, key=speeds.__getitem__)
    return best * min(max_length, _NEWS_LENGTH) if speeds[best] > _WORTHWHILE * speeds[1] else 0


def _tokens_per_second(engine: Backend, *, rows: int, length: int) -> float:
    input_ids, mask = np.full((rows, length), 5, dtype=np.int64), np.ones((rows, length), dtype=np.int64)
    engine.run(input_ids, mask)  # the first of a shape also allocates
    return rows * length / min(_seconds(engine, input_ids, mask) for _ in range(_CALIBRATION_RUNS))


def _seconds(engine: Backend, input_ids: NDArray[np.int64], mask: NDArray[np.int64]) -> float:
    started = time.perf_counter()
    engine.run(input_ids, mask)
    return time.perf_counter() - started
