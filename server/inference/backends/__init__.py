"""Chooses, loads and checks what runs the model. Each backend is a module of its own, which alone imports its library."""

import time
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from server.errors import ModelFolderError
from server.inference.hardware import cuda_devices
from server.model_folder import ModelFolder, read_model_folder
from server.settings import EngineName

_NEWS_LENGTH = 64  # tokens: a text with its title
_TRIAL_LENGTH = 32  # ranks the sizes as well, in half of the time
_TRIAL_ROWS = (1, 4)  # more together gave hardly more texts a second, and made each of them wait longer
_TRIAL_ROWS_GPU = (1, 8, 32, 64)
_TRIAL_RUNS = 2  # the quicker counts: another process may disturb one
_WORTHWHILE = 1.1  # times the speed of single texts, or a batch only makes each of them wait for the others


class Backend(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def batches(self) -> bool:
        """True when texts of similar length are faster together than alone, with the same answers."""

    @property
    def length_step(self) -> int:
        """Multiple to which lengths are rounded up; 1 leaves them as they are."""

    @property
    def gpu(self) -> bool:
        """True when it computes on a GPU: large batches pay, and two callers keep it busy."""

    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """Computes logits [batch, classes] of token ids [batch, length] and their mask; several threads may call at once."""


@dataclass(frozen=True)
class Choice:
    """A model folder with the backend that runs it."""

    folder: ModelFolder
    backend: Backend
    token_budget: int = 0
    """Padded tokens of a batch at most; with 0 each text runs alone."""
    reason: str = ""
    """The reason for this backend, as the end of a sentence."""


def choose(folder: Path, engine: EngineName, *, workers: int) -> Choice:
    """Reads a model folder, loads the best backend that the setting and this machine allow, and measures its batches."""
    read = read_model_folder(folder, candidates(engine))
    backend = load_backend(read, workers=workers)
    budget = measure_token_budget(backend, max_length=read.max_length)
    return Choice(read, backend, budget, reason(engine, read.variant))


def candidates(engine: EngineName) -> tuple[str, ...]:
    """Lists the variants of a model folder that serve a setting, best first."""
    if engine == "auto":
        on_gpu = ("torch",) if gpu().usable else ()
        return (*on_gpu, *(("openvino",) if openvino_installed() else ()), "int8", "fp32")
    return {"torch": ("torch",), "openvino": ("openvino",), "onnx": ("int8", "fp32"), "onnx-fp32": ("fp32",)}[engine]


def openvino_installed() -> bool:
    return find_spec("openvino") is not None


class Gpu(NamedTuple):
    usable: bool
    reason: str = ""
    """The reason for which PyTorch cannot use the device; empty where there is no device at all."""


@cache
def gpu() -> Gpu:
    """Checks that PyTorch can compute on a GPU; imports PyTorch, which takes seconds, only where a driver counts a device."""
    if not cuda_devices():
        return Gpu(usable=False)
    missing = [package for package in ("torch", "transformers") if find_spec(package) is None]
    if missing:
        return Gpu(
            usable=False, reason=f"{' and '.join(missing)} not installed (pip install 'distrinews[server-torch]')"
        )
    from server.inference.backends.torch import no_cuda_reason

    return Gpu(usable=not no_cuda_reason(), reason=no_cuda_reason())


def load_backend(folder: ModelFolder, *, workers: int) -> Backend:
    """Loads the folder's variant for as many callers at once as there are workers, and checks it with one run."""
    backend = _load(folder, workers=workers)
    _check(folder, backend)
    return backend


def _load(folder: ModelFolder, *, workers: int) -> Backend:
    if folder.variant == "openvino":
        try:
            from server.inference.backends.openvino import OpenVinoBackend
        except ImportError as error:
            raise ModelFolderError(
                f"{folder.file} needs OpenVINO, which cannot be imported ({error}): pip install openvino, or choose --engine onnx"
            ) from error
        return OpenVinoBackend(folder.file, workers=workers)
    if folder.variant == "torch":
        try:
            from server.inference.backends.torch import TorchBackend
        except ImportError as error:
            raise ModelFolderError(
                f"{folder.file} needs PyTorch, which cannot be imported ({error}): pip install 'distrinews[server-torch]', or choose --engine onnx"
            ) from error
        return TorchBackend(folder.file)
    from server.inference.backends.onnx import OnnxBackend

    return OnnxBackend(folder.file)


def _check(folder: ModelFolder, backend: Backend) -> None:
    """Runs the longest text of the last token: a model, a tokenizer and labels that do not belong together fail now."""
    last = max(folder.tokenizer.get_vocab().values())
    together = f"{folder.file} does not belong to the files beside it"
    try:
        logits = backend.run(*_rows(1, folder.max_length, token=last))[0]
    except Exception as error:  # the backends' exceptions share no narrower base
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelFolderError(
            f"{together}: it fails on {folder.max_length} tokens with ids up to {last} ({first_line}); run the export step again"
        ) from error
    if logits.shape != (len(folder.labels),) or not np.isfinite(logits).all():
        raise ModelFolderError(
            f"{together}: model.json has {len(folder.labels)} labels, the model answers {logits.tolist()}; run the export step again"
        )


def reason(engine: EngineName, variant: str) -> str:
    """Gives the reason for which a setting led to a variant, as the end of a sentence."""
    if engine != "auto":
        return f"as --engine {engine} says"
    if variant == "torch":
        return "as a CUDA device is there"
    if gpu().usable:
        return "as the model folder has no model.safetensors for the CUDA device that is there"
    unused = f"; a CUDA device is there, but {gpu().reason}" if gpu().reason else ""
    if variant == "openvino":
        return f"the fastest in batches, which change no answer{unused}"
    if not openvino_installed():
        return f"as OpenVINO is not installed (pip install openvino){unused}"
    return f"as the model folder has no variant for OpenVINO (the export step writes it){unused}"


def measure_token_budget(backend: Backend, *, max_length: int) -> int:
    """Measures how many padded tokens a batch should have at most: on a CPU a batch does not always pay.

    0, which is each text alone, for a backend whose answers or speed suffer from batches.
    """
    if not backend.batches:
        return 0
    length = min(max_length, _TRIAL_LENGTH)
    trials = _TRIAL_ROWS_GPU if backend.gpu else _TRIAL_ROWS
    speeds = {rows: _tokens_per_second(backend, rows=rows, length=length) for rows in trials}
    best = max(speeds, key=speeds.__getitem__)
    return best * min(max_length, _NEWS_LENGTH) if speeds[best] > _WORTHWHILE * speeds[1] else 0


def _tokens_per_second(backend: Backend, *, rows: int, length: int) -> float:
    inputs = _rows(rows, length, token=5)
    backend.run(*inputs)  # the first of a shape also allocates
    seconds = []
    for _ in range(_TRIAL_RUNS):
        started = time.perf_counter()
        backend.run(*inputs)
        seconds.append(time.perf_counter() - started)
    return rows * length / min(seconds)


def _rows(rows: int, length: int, *, token: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return np.full((rows, length), token, dtype=np.int64), np.ones((rows, length), dtype=np.int64)
