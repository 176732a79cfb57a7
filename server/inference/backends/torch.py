"""Runs the trained model by PyTorch: bf16 on a CUDA device, fp32 on a CPU. No other module of the server imports it."""

import threading
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import logging as transformers_logging

from server.errors import ModelFolderError

transformers_logging.set_verbosity_error()  # its warnings on loading are errors here
transformers_logging.disable_progress_bar()


def no_cuda_reason() -> str:
    """Returns the reason for which PyTorch cannot use the CUDA device that the driver knows; empty when it can."""
    if torch.cuda.is_available():
        return ""
    if torch.version.cuda is None:
        return f"PyTorch {torch.__version__} is built without CUDA"
    return f"PyTorch {torch.__version__} cannot use it: the driver may be too old for CUDA {torch.version.cuda}"


class TorchBackend:
    """Gives each thread that calls a CUDA stream of its own, so that it waits for its own batch and for no other."""

    batches = True

    def __init__(self, file: Path) -> None:
        self.gpu = torch.cuda.is_available()
        self.length_step = (
            8 if self.gpu else 1
        )  # tensor cores compute eights, and few shapes keep the pool of memory small
        bf16 = self.gpu and torch.cuda.is_bf16_supported(including_emulation=False)
        self._device = torch.device("cuda" if self.gpu else "cpu")
        self._own = threading.local()
        torch.set_num_threads(1)  # the workers are the parallelism
        self._model = _load(file, device=self._device, dtype=torch.bfloat16 if bf16 else torch.float32)
        if self.gpu:
            torch.cuda.synchronize()  # the weights are there before another stream reads them
        place = torch.cuda.get_device_name() if self.gpu else "cpu"
        self.name = f"torch {torch.__version__.partition('+')[0]}, {'bf16' if bf16 else 'f32'} on {place}"

    @torch.inference_mode()
    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        inputs = np.stack((input_ids, attention_mask))
        if not self.gpu:
            return self._logits(torch.from_numpy(inputs)).numpy()
        with torch.cuda.stream(self._stream()):
            # Memory that cannot be paged out is copied without waiting. The copy back waits, without the GIL, for this
            # stream alone; what the batch has allocated belongs to the stream too, so nothing else writes over it.
            on_device = torch.from_numpy(inputs).pin_memory().to(self._device, non_blocking=True)
            return self._logits(on_device).cpu().numpy()

    def _logits(self, inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self._model(input_ids=inputs[0], attention_mask=inputs[1]).logits
        return logits.float()

    def _stream(self) -> torch.cuda.Stream:
        if not hasattr(self._own, "stream"):
            self._own.stream = torch.cuda.Stream(self._device)
        return cast("torch.cuda.Stream", self._own.stream)


def _load(file: Path, *, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """Loads model.safetensors and the config.json beside it, with scaled-dot-product attention where the model has it."""
    loading: dict[str, Any]
    try:
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            file.parent,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=dtype,
            output_loading_info=True,
        )
        placed = cast("PreTrainedModel", model.eval().to(device))
    except Exception as error:  # its exceptions share no narrower base
        reason = " ".join(str(error).split())[:300]
        raise ModelFolderError(
            f"{file} cannot be loaded ({reason}): run the export step again, or choose another --engine"
        ) from error
    missing = sorted(loading["missing_keys"])
    if missing:  # transformers would put random numbers in their place
        raise ModelFolderError(
            f"{file} does not belong to the config.json beside it: it lacks {', '.join(missing[:3])}; run the export step again"
        )
    return placed
