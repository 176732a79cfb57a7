"""export: a model folder to onnx/ in it: fp32 and int8, each compared with the trained model before it is shipped."""

import logging
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import nn
from transformers import PreTrainedModel

from trainer.cls_only import read_first_position_only
from trainer.config import ExportConfig
from trainer.dataset import Dataset
from trainer.errors import UserError
from trainer.flags import write_json
from trainer.folders import whole_folder
from trainer.model import load_model
from trainer.onnx_model import OnnxModel
from trainer.predict import Probabilities
from trainer.progress import say

FILES = {"fp32": "model.onnx", "int8": "model_int8.onnx"}
_SAME_LABELS = 0.995  # share of texts that an fp32 variant has to give the label that the trained model gives
_PROBABILITY = 1e-3  # by which a probability of an fp32 variant may differ
_ACCURACY_DROP = 0.005  # by which an int8 variant may be less accurate
_BATCH = 32  # as many texts together as a server may batch


def export(config: ExportConfig, dataset: Dataset, output: Path) -> dict[str, Any]:
    """Write <output>/model/onnx; returns what stands in its model.json. Needs what evaluate wrote.

    A variant that predicts otherwise than the trained model is left out, with the reason; UserError when none is left.
    """
    model_folder = output / "model"
    with whole_folder(model_folder / "onnx") as folder:
        shutil.copy2(model_folder / "tokenizer.json", folder)
        say("export: writing ONNX, fp32 and int8")
        write_fp32(load_model(model_folder), folder / FILES["fp32"])
        write_int8(folder / FILES["fp32"], folder / FILES["int8"])
        facts: dict[str, Any] = {"labels": dataset.classes, "max_length": dataset.max_length}
        facts["variants"] = {
            name: {"file": file, "bytes": (folder / file).stat().st_size} for name, file in FILES.items()
        }
        facts["default"] = "fp32"
        staged = folder / "staged"  # laid out as a model folder, for the checks to load as a server would
        staged.mkdir()
        (staged / "onnx").symlink_to(folder)
        write_json(folder / "model.json", facts)
        for name, file in FILES.items():
            checked = check(name, staged, dataset, np.load(output / "predictions.npy"), rows=config.check_rows)
            facts["variants"][name] |= checked
            if checked["refused"]:
                say(f"export: {name} is not shipped: {checked['refused']}")
                (folder / file).unlink()
        facts["variants"] = {name: entry for name, entry in facts["variants"].items() if not entry.pop("refused")}
        if not facts["variants"]:
            raise UserError(
                "no exported variant predicts as the trained model does; the lines above say how each differs"
            )
        facts["default"] = "int8" if "int8" in facts["variants"] else "fp32"
        shutil.rmtree(staged)
        write_json(folder / "model.json", facts)
    say(
        f"export: {' and '.join(facts['variants'])} shipped, {facts['default']} is served; they are in {model_folder / 'onnx'}"
    )
    return facts


class _Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


def write_fp32(model: PreTrainedModel, path: Path) -> None:
    """The model as ONNX with any number of texts of any length; changes the model into what is exported."""
    model.set_attn_implementation("eager")  # its graph is simpler, and runs 1.2 to 1.3 times as fast
    if not read_first_position_only(model):
        say(f"export: {model.config.model_type}: the whole last layer is exported, it may read more than [CLS]")
    rows, length = torch.export.Dim.DYNAMIC, torch.export.Dim.DYNAMIC
    example = torch.full((2, 16), 5)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it tells of packages that this model does not need
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's exporter warns of its own internals
        torch.onnx.export(
            _Logits(model).eval(), (example, torch.ones_like(example)), str(path), dynamo=True, external_data=False, verbose=False,
            input_names=["input_ids", "attention_mask"], output_names=["logits"], optimize=True,
            dynamic_shapes={"input_ids": {0: rows, 1: length}, "attention_mask": {0: rows, 1: length}},
        )  # fmt: skip
    exported = onnx.load(str(path))
    exported.graph.ClearField(
        "value_info"
    )  # the exporter's shapes of transposed weights are wrong, and quantising reads them
    onnx.save(exported, str(path))


def write_int8(source: Path, target: Path) -> None:
    """Weights as int8, activations quantised as they come; measured in tests/benchmarks/results/int8.md."""
    logging.getLogger().setLevel(logging.ERROR)  # it advises a preparation that PyTorch's exporter has done
    quantize_dynamic(str(source), str(target), weight_type=QuantType.QInt8, per_channel=True)


def check(name: str, folder: Path, dataset: Dataset, trained: Probabilities, *, rows: int) -> dict[str, Any]:
    """How a variant differs from the trained model's predictions on test rows, alone and batched; `refused` says why not to ship it."""
    model = OnnxModel(folder, name)
    chosen = np.random.default_rng(0).permutation(len(dataset.test))[:rows]
    texts, labels, expected = (
        [dataset.test.text(int(row)) for row in chosen],
        dataset.test.labels[chosen],
        trained[chosen],
    )
    worst: dict[str, Any] = {
        "checked_rows": len(chosen),
        "same_label": 1.0,
        "probability_difference": 0.0,
        "accuracy_drop": -1.0,
    }
    for batch_size in (1, _BATCH):
        found = model.predict(texts, batch_size=batch_size, what=f"export: checking {name} in batches of {batch_size}")
        same = float((found.argmax(axis=1) == expected.argmax(axis=1)).mean())
        drop = float((expected.argmax(axis=1) == labels).mean() - (found.argmax(axis=1) == labels).mean())
        worst["same_label"] = min(worst["same_label"], same)
        worst["probability_difference"] = max(worst["probability_difference"], float(np.abs(found - expected).max()))
        worst["accuracy_drop"] = max(worst["accuracy_drop"], drop)
    say(
        f"export: {name}: same label on {worst['same_label']:.2%} of {len(chosen):,} texts, probabilities within "
        f"{worst['probability_difference']:.1e}, accuracy lower by {worst['accuracy_drop'] * 100:.2f} points"
    )
    return worst | {"refused": _fault(name, worst)}


def _fault(name: str, worst: dict[str, Any]) -> str:
    if name == "int8":
        drop = worst["accuracy_drop"]
        return (
            f"its accuracy is {drop * 100:.2f} points lower, more than {_ACCURACY_DROP * 100}"
            if drop > _ACCURACY_DROP
            else ""
        )
    if worst["same_label"] < _SAME_LABELS:
        return f"it gives the same label on {worst['same_label']:.2%} of the texts, fewer than {_SAME_LABELS:.1%}"
    if worst["probability_difference"] > _PROBABILITY:
        return f"a probability differs by {worst['probability_difference']:.1e}, more than {_PROBABILITY:.0e}"
    return ""
