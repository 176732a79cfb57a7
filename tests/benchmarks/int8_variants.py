"""The int8 models that tests.benchmarks.int8 compares: each way to export, times each way to quantise."""

import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxruntime.transformers.optimizer import optimize_model
from transformers import PreTrainedModel

from trainer.export import _Logits
from trainer.monitoring.console import print0

_NAMES: dict[str, Any] = {"input_names": ["input_ids", "attention_mask"], "output_names": ["logits"]}
_TYPES = {"int8": QuantType.QInt8, "uint8": QuantType.QUInt8}
EAGER = "eager attention"
BLOCKS = "int8 in blocks of 128"


def quieten() -> None:
    logging.getLogger().setLevel(logging.ERROR)  # the quantiser advises a preparation that changes nothing here
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    logging.getLogger("onnxruntime").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")  # both exporters warn of their own internals


def write_variants(build: Callable[[], PreTrainedModel], folder: Path) -> Iterator[tuple[str, str, Path]]:
    folder.mkdir()
    for number, (name, export) in enumerate(GRAPHS.items()):
        source = folder / f"{number}.onnx"
        print0(f"int8: writing {folder.name}, {name}")
        export(build(), source)
        yield name, "fp32", source
        for weights in ("int8", "uint8") if name == EAGER else ("int8",):
            for scale in ("per tensor", "per channel"):
                path = folder / f"{number}-{weights}-{scale.split()[-1]}.onnx"
                quantize_dynamic(
                    str(source), str(path), weight_type=_TYPES[weights], per_channel=scale == "per channel",
                    extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},  # of what fused nodes give, which it cannot infer
                )  # fmt: skip
                yield name, f"{weights} {scale}", path
    name, source = EAGER, folder / f"{list(GRAPHS).index(EAGER)}.onnx"
    blocks = MatMulNBitsQuantizer(onnx.load(str(source)), bits=8, block_size=128, is_symmetric=True, accuracy_level=4)
    blocks.process()
    blocks.model.save_model_to_file(str(folder / "blocks.onnx"))
    yield name, BLOCKS, folder / "blocks.onnx"


def _export_dynamo(model: PreTrainedModel, path: Path, attention: str) -> None:
    model.set_attn_implementation(attention)
    dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    torch.onnx.export(
        _Logits(model).eval(), _example(), str(path), dynamo=True, external_data=False, verbose=False,
        dynamic_shapes={"input_ids": dynamic, "attention_mask": dynamic}, **_NAMES,
    )  # fmt: skip
    exported = onnx.load(str(path))
    exported.graph.ClearField("value_info")  # as trainer.export does, with the reason
    onnx.save(exported, str(path))


def _export_fused(model: PreTrainedModel, path: Path) -> None:
    """The TorchScript exporter with eager attention writes the one graph whose attention the optimizer knows."""
    model.set_attn_implementation("eager")
    dynamic = {0: "rows", 1: "length"}
    torch.onnx.export(
        _Logits(model).eval(), _example(), str(path), dynamo=False, opset_version=17,
        dynamic_axes={"input_ids": dynamic, "attention_mask": dynamic, "logits": {0: "rows"}}, **_NAMES,
    )  # fmt: skip
    config = model.config
    fused = optimize_model(
        str(path), "bert", num_heads=config.num_attention_heads, hidden_size=config.hidden_size, opt_level=0
    )
    assert fused.get_fused_operator_statistics()["Attention"] == config.num_hidden_layers, "attention was not fused"
    fused.save_model_to_file(str(path))


def _example() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.full((2, 16), 5)
    return ids, torch.ones_like(ids)


GRAPHS: dict[str, Callable[[PreTrainedModel, Path], None]] = {
    "sdpa attention": lambda model, path: _export_dynamo(model, path, "sdpa"),
    EAGER: lambda model, path: _export_dynamo(model, path, "eager"),
    "fused": _export_fused,
}
