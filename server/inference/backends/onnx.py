"""Runs a model by ONNX Runtime: int8 in the least memory, and fp32."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from server.errors import ModelFolderError


class OnnxBackend:
    """Uses one thread a call: several calls at once fill the CPUs better than one call on all of them."""

    gpu = False
    length_step = 1
    name = f"onnxruntime {onnxruntime.__version__}"
    batches = False  # no faster, and dynamic int8 scales activations over the batch: answers would depend on neighbours

    def __init__(self, file: Path) -> None:
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
    options.log_severity_level = 3  # errors: its warnings are about the graph, which nobody here can fix
    return options
