"""export: writes onnx/ in a model folder: fp32, int8 and OpenVINO, each compared with the trained model as the server runs it.

python -m trainer.export --dataset runs/x/dataset --output runs/x
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from server.cli import Command, run_command
from server.errors import ModelFolderError, UserError
from server.files import atomic_directory, read_json
from server.inference.backends import load_backend
from server.inference.encoder import Encoder
from server.inference.hardware import available_cpus
from server.model_folder import TORCH_FILES, ModelJson, Variant, read_model_folder, write_manifest
from trainer.config import ExportConfig, part
from trainer.data.dataset import Dataset
from trainer.evaluation.predict import Probabilities, predict_texts, read_predictions
from trainer.model import exporters
from trainer.model.classifier import load_model
from trainer.monitoring.console import print0

FILES = {
    "fp32": {"file": "model.onnx"},
    "int8": {"file": "model_int8.onnx"},
    "openvino": {"file": "openvino.xml", "weights": "openvino.bin"},
}
_SAME_LABELS, _SAME_LABELS_QUANTISED = 0.995, 0.95  # share of texts that need the label that the trained model gives
_PROBABILITY = 1e-3  # by which a probability of fp32 may differ
_MEAN_DIFFERENCE = 0.05  # by which those of a quantised variant may differ: the mean of each text's largest difference
_ACCURACY_DROP = 0.005  # by which a quantised variant may be less accurate
_BATCH = 32  # as many texts together as a server may batch


class ExportArguments(Command, ExportConfig):
    """Write a trained model in the formats that the server reads."""

    dataset: Path
    """Folder that preprocess wrote."""

    output: Path
    """Folder of the run, with the model and what evaluate wrote; model/onnx is written in it."""

    def run(self) -> None:
        export(part(self, ExportConfig), Dataset(self.dataset), self.output)


def export(config: ExportConfig, dataset: Dataset, output: Path) -> dict[str, Any]:
    """Writes <output>/model/onnx and returns the content of its model.json. Needs what evaluate wrote.

    A quantised variant with other predictions than the trained model's is left out, with the reason. UserError when fp32
    has others: the quantised ones would be made from it.
    """
    model_folder = output / "model"
    temperature, trained = _temperature(output / "metrics.json"), read_predictions(output / "predictions.npy", dataset)
    with atomic_directory(model_folder / "onnx") as folder, TemporaryDirectory() as name:
        staged = Path(name)  # laid out as a model folder, so that the checks load it like a server
        for link, target in {"onnx": folder, **{file: model_folder / file for file in TORCH_FILES}}.items():
            (staged / link).symlink_to(target.absolute())
        shutil.copy2(model_folder / "tokenizer.json", folder)
        print0("export: writing ONNX, fp32")
        exporters.write_fp32(load_model(model_folder), folder / FILES["fp32"]["file"])
        model_json = ModelJson(
            labels=dataset.classes,
            max_length=dataset.max_length,
            padding=dataset.padding,
            temperature=temperature,
            text_columns=dataset.info["columns"]["text"] or [],
            variants={"fp32": _described("fp32", folder)},
            default="fp32",
        )
        for variant, write in {"fp32": None, **_quantisers(dataset, folder)}.items():
            fault = _written(variant, write, folder) if write else ""
            if not fault:
                model_json.variants[variant] = _described(variant, folder)
                _write(model_json, staged)
                found, fault = check(variant, staged, dataset, trained, rows=config.check_rows)
                model_json.variants[variant] = model_json.variants[variant].model_copy(update=found)
            if fault and variant == "fp32":
                raise UserError(f"the exported model does not predict as the trained model does: {fault}")
            if fault:
                print0(f"export: {variant} is not shipped: {fault}")
                model_json.variants.pop(variant, None)
                _remove(variant, folder)
        if "int8" in model_json.variants:
            model_json.default = "int8"
        _write(model_json, staged)
    print0(f"export: shipped {', '.join(model_json.variants)}; they are in {model_folder / 'onnx'}")
    return model_json.model_dump(exclude_none=True)


def _write(model_json: ModelJson, folder: Path) -> None:
    model_json.write(folder)
    write_manifest(folder)


def _temperature(metrics: Path) -> float:
    if not metrics.is_file():
        raise UserError(f"{metrics} is missing: run the evaluate step first")
    measured = read_json(metrics, fix="run the evaluate step again")
    if "calibrated" not in measured:
        raise UserError(f"{metrics} has no temperature: run the evaluate step again, which fits one")
    return float(measured["calibrated"]["temperature"])


def _described(variant: str, folder: Path) -> Variant:
    files = FILES[variant]
    return Variant(**files, bytes=sum((folder / file).stat().st_size for file in files.values()))


def _quantisers(dataset: Dataset, folder: Path) -> dict[str, Callable[[Path], None]]:
    """Returns what writes each quantised variant, from fp32, to a file."""
    fp32 = folder / FILES["fp32"]["file"]
    writers: dict[str, Callable[[Path], None]] = {"int8": lambda file: exporters.write_int8(fp32, file)}
    missing = [package for package in ("openvino", "nncf") if find_spec(package) is None]
    if missing:
        print0(f"export: openvino is left out; to have it: pip install {' '.join(missing)}")
    else:
        writers["openvino"] = lambda file: exporters.write_openvino(fp32, file, texts=dataset.train)
    return writers


def _written(variant: str, write: Callable[[Path], None], folder: Path) -> str:
    """Writes a quantised variant; returns why it cannot be written, or nothing."""
    print0(f"export: writing {variant}")
    try:
        write(folder / FILES[variant]["file"])
    except Exception as error:  # noqa: BLE001 - its exceptions share no base, and the others can be shipped without it
        return f"it cannot be written ({' '.join(str(error).split())[:300]})"
    return ""


def _remove(variant: str, folder: Path) -> None:
    for file in FILES[variant].values():
        (folder / file).unlink(missing_ok=True)


def check(
    variant: str, folder: Path, dataset: Dataset, trained: Probabilities, *, rows: int
) -> tuple[dict[str, float], str]:
    """Compares a variant, as the server runs it, with the trained model on test rows, alone and in batches.

    Returns the differences, and the reason not to ship it: empty when there is none.
    """
    try:
        read = read_model_folder(folder, (variant,))
        backend = load_backend(read, workers=available_cpus())
    except ModelFolderError as error:
        return {}, str(error)
    encoder = Encoder(replace(read, temperature=1.0), backend)  # what evaluate wrote has no temperature either
    chosen = np.random.default_rng(0).permutation(len(dataset.test))[:rows]
    texts, labels = [dataset.test.text(int(row)) for row in chosen], dataset.test.labels[chosen]
    alone, batched = (
        predict_texts(encoder, texts, batch_size=size, what=f"export: checking {variant} in batches of {size}")
        for size in (1, _BATCH)
    )
    found = compare(alone, batched, trained[chosen], labels)
    print0(
        f"export: {variant}: same label on {found['same_label']:.2%} of {len(chosen):,} texts, probabilities within "
        f"{found['probability_difference']:.1e} (on average {found['mean_difference']:.1e}), accuracy lower by {found['accuracy_drop'] * 100:.2f} points; "
        f"alone and batched the same label on {found['same_label_batched']:.2%}"
    )
    return found, _fault(variant, found)


def compare(
    alone: Probabilities, batched: Probabilities, expected: Probabilities, labels: np.ndarray[Any, Any]
) -> dict[str, float]:
    """Computes how far a variant's predictions are from the expected ones, in the worse of the two ways to run it."""
    right = (expected.argmax(axis=1) == labels).mean()
    return {
        "checked_rows": len(labels),
        "same_label": min(_same_label(found, expected) for found in (alone, batched)),
        "same_label_batched": _same_label(batched, alone),
        "probability_difference": max(float(np.abs(found - expected).max()) for found in (alone, batched)),
        "mean_difference": max(float(np.abs(found - expected).max(axis=1).mean()) for found in (alone, batched)),
        "accuracy_drop": max(float(right - (found.argmax(axis=1) == labels).mean()) for found in (alone, batched)),
    }


def _same_label(found: Probabilities, expected: Probabilities) -> float:
    return float((found.argmax(axis=1) == expected.argmax(axis=1)).mean())


def _fault(variant: str, found: dict[str, float]) -> str:
    """Returns the reason not to ship a variant; empty when there is none."""
    quantised = variant != "fp32"
    lowest = _SAME_LABELS_QUANTISED if quantised else _SAME_LABELS
    if found["same_label"] < lowest:
        return f"it gives the same label on {found['same_label']:.2%} of the texts, fewer than {lowest:.1%}"
    if not quantised and found["probability_difference"] > _PROBABILITY:
        return f"a probability differs by {found['probability_difference']:.1e}, more than {_PROBABILITY:.0e}"
    if quantised and found["mean_difference"] > _MEAN_DIFFERENCE:
        return f"its probabilities differ by {found['mean_difference']:.3f} on average, more than {_MEAN_DIFFERENCE}"
    if quantised and found["accuracy_drop"] > _ACCURACY_DROP:
        return f"its accuracy is {found['accuracy_drop'] * 100:.2f} points lower, more than {_ACCURACY_DROP * 100}"
    if variant == "openvino" and found["same_label_batched"] < 1:  # dynamic int8 may differ, and is not batched
        return f"it gives {1 - found['same_label_batched']:.2%} of the texts another label in a batch than alone"
    return ""


if __name__ == "__main__":
    run_command(ExportArguments, prog="python -m trainer.export")
