"""Runs a model by OpenVINO: static int8, so that an answer does not depend on the other texts of its batch."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.errors import ModelFolderError
from server.inference.hardware import lower_priority

# On import it sends usage data to its makers. Without this package, OpenVINO works and sends nothing.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
import openvino  # noqa: E402


class OpenVinoBackend:
    """Has a stream of one thread for each worker, and a request for each thread that calls.

    What is not int8 computes in f32, not bf16: on processors with AMX OpenVINO 2026's bf16 gives single texts of 17 to 32 tokens wrong
    logits (probabilities were off by 0.77), and it is no faster, since nearly all of the time goes to int8 products.
    """

    batches = True
    gpu = False
    length_step = (
        16  # it keeps a primitive for each shape: with texts of all lengths that would be more than a gigabyte
    )

    def __init__(self, file: Path, *, workers: int) -> None:
        core = openvino.Core()
        config = {
            "NUM_STREAMS": workers,
            "INFERENCE_NUM_THREADS": workers,
            "INFERENCE_PRECISION_HINT": "f32",
            "ENABLE_CPU_PINNING": False,  # another server on this machine would pin its threads to the same cores
        }
        try:
            with ThreadPoolExecutor(1, initializer=lower_priority) as thread:  # streams inherit it
                self._model = thread.submit(core.compile_model, core.read_model(file), "CPU", config).result()
        except RuntimeError as error:
            reason = " ".join(str(error).split())[-200:]
            raise ModelFolderError(f"{file} cannot be loaded ({reason}): run the export step again") from error
        self.name = f"openvino {openvino.__version__.partition('-')[0]}, f32"
        self._own = threading.local()

    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        request = self._request()
        inputs = np.stack((input_ids, attention_mask))
        for name, array in zip(("input_ids", "attention_mask"), inputs, strict=True):
            request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
        self._own.inputs = inputs  # the request reads this memory until it is given other
        request.infer()  # waits without the GIL
        return np.array(request.get_output_tensor(0).data)  # a copy: the next call of this thread writes over it

    def _request(self) -> Any:  # noqa: ANN401 - the library publishes no types
        if not hasattr(self._own, "request"):
            self._own.request = self._model.create_infer_request()
        return self._own.request
