"""export: a model folder to onnx/ in it: fp32, int8 and OpenVINO, each compared with the trained model before it is shipped.

python -m trainer.export --dataset runs/x/dataset --output runs/x
"""

import json
import shutil
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import nn
from transformers import PreTrainedModel

from server.cli import fail, parse
from server.errors import UserError
from server.files import atomic_directory, write_json
from server.model_folder import TORCH_FILES, write_manifest
from trainer.config import ExportConfig
from trainer.data.dataset import Dataset
from trainer.evaluation.predict import Probabilities
from trainer.model.classifier import load_model
from trainer.model.cls_only import enable_cls_only
from trainer.monitoring.console import print0, quiet_logs
from trainer.onnx_model import OnnxModel

FILES = {
    "fp32": {"file": "model.onnx"},
    "int8": {"file": "model_int8.onnx"},
    "openvino": {"file": "openvino.xml", "weights": "openvino.bin"},
}
_SAME_LABELS = 0.995  # share of texts that an fp32 variant has to give the label that the trained model gives
_PROBABILITY = 1e-3  # by which a probability of an fp32 variant may differ
_ACCURACY_DROP = 0.005  # by which a quantised variant may be less accurate
_BATCH = 32  # as many texts together as a server may batch


class ExportArguments(ExportConfig):
    """Write a trained model in the formats that the server reads."""

    dataset: Path
    """Folder that preprocess wrote."""

    output: Path
    """Folder of the run, with the model and what evaluate wrote; model/onnx is written in it."""


def export(config: ExportConfig, dataset: Dataset, output: Path) -> dict[str, Any]:
    """Write <output>/model/onnx; returns what stands in its model.json. Needs what evaluate wrote.

    A variant that predicts otherwise than the trained model is left out, with the reason; UserError when none is left.
    """
    model_folder, temperature = output / "model", _temperature(output / "metrics.json")
    with atomic_directory(model_folder / "onnx") as folder:
        shutil.copy2(model_folder / "tokenizer.json", folder)
        _write_variants(load_model(model_folder), dataset, folder)
        facts: dict[str, Any] = {
            "labels": dataset.classes,
            "max_length": dataset.max_length,
            "temperature": temperature,
        }
        facts["variants"] = {
            name: files | {"bytes": sum((folder / file).stat().st_size for file in files.values())}
            for name, files in FILES.items()
            if (folder / files["file"]).is_file()
        }
        facts["default"] = "fp32"
        staged = folder / "staged"  # laid out as a model folder, for the checks to load as a server would
        staged.mkdir()
        (staged / "onnx").symlink_to(folder.absolute())
        for name in TORCH_FILES:
            (staged / name).symlink_to((model_folder / name).absolute())
        write_json(folder / "model.json", facts)
        for name, entry in facts["variants"].items():
            checked = check(name, staged, dataset, np.load(output / "predictions.npy"), rows=config.check_rows)
            entry.update(checked)
            if checked["refused"]:
                print0(f"export: {name} is not shipped: {checked['refused']}")
                for file in FILES[name].values():
                    (folder / file).unlink()
        facts["variants"] = {name: entry for name, entry in facts["variants"].items() if not entry.pop("refused")}
        if not facts["variants"]:
            raise UserError(
                "no exported variant predicts as the trained model does; the lines above say how each differs"
            )
        facts["default"] = next(name for name in ("int8", "fp32", "openvino") if name in facts["variants"])
        write_json(folder / "model.json", facts)
        write_manifest(staged)
        shutil.rmtree(staged)
    print0(f"export: shipped {', '.join(facts['variants'])}; they are in {model_folder / 'onnx'}")
    return facts


def _temperature(metrics: Path) -> float:
    measured = json.loads(metrics.read_text(encoding="utf-8"))
    if "calibrated" not in measured:
        raise UserError(f"{metrics} has no temperature: run the evaluate step again, which fits one")
    return float(measured["calibrated"]["temperature"])


def _write_variants(model: PreTrainedModel, dataset: Dataset, folder: Path) -> None:
    print0("export: writing ONNX, fp32 and int8")
    write_fp32(model, folder / FILES["fp32"]["file"])
    write_int8(folder / FILES["fp32"]["file"], folder / FILES["int8"]["file"])
    missing = [package for package in ("openvino", "nncf") if find_spec(package) is None]
    if missing:
        print0(f"export: openvino is left out; to have it: pip install {' '.join(missing)}")
        return
    from trainer.exporters import write_openvino

    print0("export: writing OpenVINO, int8 with scales from training texts")
    try:
        write_openvino(folder / FILES["fp32"]["file"], folder / FILES["openvino"]["file"], texts=dataset.train)
    except Exception as error:  # noqa: BLE001 - its exceptions share no base, and the others can be shipped without it
        print0(f"export: openvino is not shipped: it cannot be made ({' '.join(str(error).split())[:300]})")
        for file in FILES["openvino"].values():
            (folder / file).unlink(missing_ok=True)


class _Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


def write_fp32(model: PreTrainedModel, path: Path) -> None:
    """The model as ONNX with any number of texts of any length; changes the model into what is exported."""
    model.set_attn_implementation("eager")  # its graph is simpler: see write_int8
    if not enable_cls_only(model):
        print0(f"export: {model.config.model_type}: the whole last layer is exported, it may read more than [CLS]")
    rows, length = torch.export.Dim.DYNAMIC, torch.export.Dim.DYNAMIC
    example = torch.full((2, 16), 5)
    with quiet_logs("torch.onnx"), warnings.catch_warnings():  # it tells of packages that this model does not need
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
    """Weights as int8, activations quantised as they come.

    Of eager attention, for its graph is 5 % faster than that of fused kernels, and per channel, which costs 1 % and is
    0.2 points more accurate than per tensor: tests/benchmarks/results/int8.md.
    """
    with quiet_logs():  # it advises a preparation that PyTorch's exporter has done
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
    alone, batched = (
        model.predict(texts, batch_size=size, what=f"export: checking {name} in batches of {size}")
        for size in (1, _BATCH)
    )
    right = (expected.argmax(axis=1) == labels).mean()
    worst: dict[str, Any] = {
        "checked_rows": len(chosen),
        "same_label": min(_same_label(found, expected) for found in (alone, batched)),
        "same_label_batched": _same_label(batched, alone),
        "probability_difference": max(float(np.abs(found - expected).max()) for found in (alone, batched)),
        "accuracy_drop": max(float(right - (found.argmax(axis=1) == labels).mean()) for found in (alone, batched)),
    }
    print0(
        f"export: {name}: same label on {worst['same_label']:.2%} of {len(chosen):,} texts, probabilities within "
        f"{worst['probability_difference']:.1e}, accuracy lower by {worst['accuracy_drop'] * 100:.2f} points; "
        f"alone and batched the same label on {worst['same_label_batched']:.2%}"
    )
    return worst | {"refused": _fault(name, worst)}


def _same_label(found: Probabilities, expected: Probabilities) -> float:
    return float((found.argmax(axis=1) == expected.argmax(axis=1)).mean())


def _fault(name: str, worst: dict[str, Any]) -> str:
    if name != "fp32":
        if worst["accuracy_drop"] > _ACCURACY_DROP:
            return f"its accuracy is {worst['accuracy_drop'] * 100:.2f} points lower, more than {_ACCURACY_DROP * 100}"
        if (
            name == "openvino" and worst["same_label_batched"] < 1
        ):  # dynamic int8 does not hold this, and is not batched
            return f"it gives {1 - worst['same_label_batched']:.2%} of the texts another label in a batch than alone"
        return ""
    if worst["same_label"] < _SAME_LABELS:
        return f"it gives the same label on {worst['same_label']:.2%} of the texts, fewer than {_SAME_LABELS:.1%}"
    if worst["probability_difference"] > _PROBABILITY:
        return f"a probability differs by {worst['probability_difference']:.1e}, more than {_PROBABILITY:.0e}"
    return ""


def main() -> None:
    arguments = parse(ExportArguments, prog="python -m trainer.export")
    try:
        export(ExportConfig(check_rows=arguments.check_rows), Dataset(arguments.dataset), arguments.output)
    except UserError as error:
        fail("export", error)


if __name__ == "__main__":
    main()
