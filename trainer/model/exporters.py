"""Writes the model files of a model folder: ONNX in fp32 and int8, and OpenVINO in static int8."""

import copy
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel

from server.errors import UserError
from trainer.data.dataset import Split
from trainer.model.cls_only import enable_cls_only
from trainer.monitoring.console import print0, quiet_logs

_CALIBRATION_TEXTS = 300
_TRIAL_LAYERS, _TRIAL_TOKENS = 2, 64


class _Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


def write_fp32(model: PreTrainedModel, path: Path) -> None:
    """Writes the model as ONNX for any number of texts of any length; changes the model into what is exported."""
    model.set_attn_implementation("eager")  # its graph is simpler: see write_int8
    if not enable_cls_only(model):
        print0(f"export: {model.config.model_type}: the whole last layer is exported, it may read more than [CLS]")
    rows, length = torch.export.Dim.DYNAMIC, torch.export.Dim.DYNAMIC
    example = torch.full((2, 16), 5)
    # It logs packages that this model does not need, warns of its own internals, and prints a graph that it fails on.
    with quiet_logs("torch"), warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                _Logits(model).eval(), (example, torch.ones_like(example)), str(path), dynamo=True, external_data=False,
                verbose=False, input_names=["input_ids", "attention_mask"], output_names=["logits"], optimize=True,
                dynamic_shapes={"input_ids": {0: rows, 1: length}, "attention_mask": {0: rows, 1: length}},
            )  # fmt: skip
        except torch.onnx.OnnxExporterError as error:
            reason = next(iter(str(error.__cause__ or error).strip().splitlines()), "")[:200]
            raise UserError(f"{model.config.model_type}: cannot be exported as ONNX ({reason})") from error
    exported = onnx.load(str(path))
    exported.graph.ClearField("value_info")  # its shapes of transposed weights are wrong, and quantising reads them
    onnx.save(exported, str(path))


def check_export(name: str, config: PreTrainedConfig) -> None:
    """Raises UserError when a model of this configuration cannot be exported; tries one with few layers and tokens.

    Training takes hours, and a model that cannot be exported is of no use afterwards.
    """
    print0("train: trying whether this architecture can be exported")
    model = AutoModelForSequenceClassification.from_config(_small(config))  # type: ignore[no-untyped-call]
    with TemporaryDirectory() as folder:
        try:
            write_fp32(model, Path(folder) / "model.onnx")
        except UserError as error:
            raise UserError(f"--model {name}: {error}; choose another encoder") from error


def _small(config: PreTrainedConfig) -> PreTrainedConfig:
    """Returns a configuration of the same architecture with two layers and a small vocabulary."""
    small, layers = copy.deepcopy(config), config.num_hidden_layers
    for name, value in config.to_dict().items():
        if isinstance(value, list) and len(value) == layers:
            setattr(small, name, value[:_TRIAL_LAYERS])
        if name.endswith("token_id") and isinstance(value, int):
            setattr(small, name, min(value, _TRIAL_TOKENS - 1))
    small.num_hidden_layers, small.vocab_size = min(layers, _TRIAL_LAYERS), _TRIAL_TOKENS
    return small


def write_int8(source: Path, target: Path) -> None:
    """Writes the fp32 ONNX file `source` with int8 weights; activations are quantised as they come.

    Measured in docs/benchmarks/int8.md, one text at a time on a processor with VNNI:
    eager attention: 5 to 7 % faster than scaled-dot-product attention, which is 6 % faster than fused kernels.
    Per channel: 1 to 2 % slower than per tensor, but the trained model's label on 99.6 % of the texts instead of 98.6 %.
    Signed weights: unsigned ones cost more than a third of the speed. In blocks of 128: almost fp32's answers, 36 to 40 % slower.
    Without VNNI (AVX2) products of signed weights saturate, so the answers differ: the export step checks where it runs.
    """
    with quiet_logs():  # it advises a preparation that PyTorch's exporter has done
        quantize_dynamic(str(source), str(target), weight_type=QuantType.QInt8, per_channel=True)


def write_openvino(source: Path, target: Path, *, texts: Split) -> None:
    """Quantises the fp32 ONNX file `source` to <target>.xml and <target>.bin, with scales from texts drawn of the split."""
    with redirect_stdout(io.StringIO()):  # NNCF logs there, and shows progress bars that are not ours
        import server.inference.backends.openvino  # noqa: F401 - first: it switches the telemetry of both packages off

        import nncf  # isort: skip
        import openvino  # isort: skip

        nncf.set_log_level(logging.ERROR)
        quantized = nncf.quantize(
            openvino.Core().read_model(source),
            nncf.Dataset(list(_drawn(texts))),
            subset_size=_CALIBRATION_TEXTS,
            model_type=nncf.ModelType.TRANSFORMER,
        )
    openvino.save_model(quantized, target, compress_to_fp16=False)  # biases and norms stay fp32


def _drawn(texts: Split) -> Iterator[dict[str, npt.NDArray[np.int64]]]:
    for row in np.random.default_rng(0).permutation(len(texts))[:_CALIBRATION_TEXTS]:
        input_ids = texts.tokens(int(row)).astype(np.int64)[None]
        yield {"input_ids": input_ids, "attention_mask": np.ones_like(input_ids)}
