"""The OpenVINO variant: static int8 by NNCF, whose scales come from training texts, and how to run it.

Imported only where it is used: OpenVINO and NNCF may be missing.
"""

import io
import logging
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import numpy.typing as npt

# It sends what is done to its makers, on the import of either package. Without it both do their work and send nothing.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
import openvino  # noqa: E402

from trainer.data.dataset import Split  # noqa: E402

Int64s = npt.NDArray[np.int64]
_CALIBRATION_TEXTS = 300
_LENGTH_STEP = 16  # as in the server: a primitive is kept for each length, which with all lengths costs a gigabyte


def write_openvino(source: Path, target: Path, *, texts: Split) -> None:
    """Quantise the fp32 ONNX file `source` to <target>.xml and <target>.bin, with scales from texts drawn of the split."""
    with redirect_stdout(io.StringIO()):  # NNCF logs there, and shows bars that are not ours
        import nncf

        nncf.set_log_level(logging.ERROR)
        quantized = nncf.quantize(
            openvino.Core().read_model(source),
            nncf.Dataset(list(_drawn(texts))),
            subset_size=_CALIBRATION_TEXTS,
            model_type=nncf.ModelType.TRANSFORMER,
        )
    openvino.save_model(quantized, target, compress_to_fp16=False)  # what is not int8 stays as it is: biases and norms


def _drawn(texts: Split) -> Iterator[dict[str, Int64s]]:
    for row in np.random.default_rng(0).permutation(len(texts))[:_CALIBRATION_TEXTS]:
        input_ids = texts.tokens(int(row)).astype(np.int64)[None]
        yield {"input_ids": input_ids, "attention_mask": np.ones_like(input_ids)}


class OpenVinoSession:
    """A model file of OpenVINO, compiled as the server compiles it, but for one caller."""

    def __init__(self, file: Path, *, max_length: int) -> None:
        core = openvino.Core()
        config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        self._request = core.compile_model(core.read_model(file), "CPU", config).create_infer_request()
        self._max_length = max_length

    def logits(self, inputs: dict[str, Int64s]) -> npt.NDArray[np.float32]:
        length = inputs["input_ids"].shape[1]
        padding = min(-length % _LENGTH_STEP, self._max_length - length)
        padded = {name: np.pad(values, ((0, 0), (0, padding))) for name, values in inputs.items()}
        self._request.infer(padded)
        return np.array(self._request.get_output_tensor(0).data, dtype=np.float32)
