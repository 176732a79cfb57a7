"""export: writes onnx/ in a model folder: fp32, int8 and OpenVINO, each compared with the trained model as the server runs it.

python -m trainer.export --dataset runs/x/dataset --output runs/x
"""

import json
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
from server.files import atomic_directory
from server.inference.backends import load_backend
from server.inference.encoder import Encoder
from server.inference.hardware import available_cpus
from server.model_folder import TORCH_FILES, ModelJson, Variant, read_model_folder, write_manifest
from trainer.config import ExportConfig, part
from trainer.data.dataset import Dataset
from trainer.evaluation.predict import Probabilities, predict_texts
from trainer.model import exporters
from trainer.model.classifier import load_model
from trainer.monitoring.console import print0

FILES = {
    "fp32": {"file": "model.onnx"},
    "int8": {"file": "model_int8.onnx"},
    "openvino": {"file": "openvino.xml", "weights": "openvino.bin"},
}
_SAME_LABELS = 0.995  # share of texts that an fp32 variant has to give the label that the trained model gives
_PROBABILITY = 1e-3  # by which a probability of an fp32 variant may differ
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

    A variant with other predictions than the trained model's is left out, with the reason; UserError when none is left.
    """
    model_folder = output / "model"
    temperature, trained = _temperature(output / "metrics.json"), _predictions(output / "predictions.npy", dataset)
    with atomic_directory(model_folder / "onnx") as folder, TemporaryDirectory() as name:
        staged = Path(name)  # laid out as a model folder, so that the checks load it like a server
        for link, target in {"onnx": folder, **{file: model_folder / file for file in TORCH_FILES}}.items():
            (staged / link).symlink_to(target.absolute())
        shutil.copy2(model_folder / "tokenizer.json", folder)
        model_json = ModelJson(
            labels=dataset.classes,
            max_length=dataset.max_length,
            temperature=temperature,
            text_columns=dataset.info["columns"]["text"] or [],
            variants=_write_variants(model_folder, dataset, folder),
        )
        _write(model_json, staged)
        for variant in list(model_json.variants):
            found, fault = check(variant, staged, dataset, trained, rows=config.check_rows)
            model_json.variants[variant] = model_json.variants[variant].model_copy(update=found)
            if fault:
                print0(f"export: {variant} is not shipped: {fault}")
                del model_json.variants[variant]
                _remove(variant, folder)
        if not model_json.variants:
            raise UserError(
                "no exported variant predicts as the trained model does; the lines above give the differences"
            )
        model_json.default = next(name for name in ("int8", "fp32", "openvino") if name in model_json.variants)
        _write(model_json, staged)
    print0(f"export: shipped {', '.join(model_json.variants)}; they are in {model_folder / 'onnx'}")
    return model_json.model_dump(exclude_none=True)


def _write(model_json: ModelJson, folder: Path) -> None:
    model_json.write(folder)
    write_manifest(folder)


def _temperature(metrics: Path) -> float:
    if not metrics.is_file():
        raise UserError(f"{metrics} is missing: run the evaluate step first")
    measured = json.loads(metrics.read_text(encoding="utf-8"))
    if "calibrated" not in measured:
        raise UserError(f"{metrics} has no temperature: run the evaluate step again, which fits one")
    return float(measured["calibrated"]["temperature"])


def _predictions(file: Path, dataset: Dataset) -> Probabilities:
    if not file.is_file():
        raise UserError(f"{file} is missing: run the evaluate step first")
    found: Probabilities = np.load(file)
    if found.shape != (len(dataset.test), len(dataset.classes)):
        raise UserError(
            f"{file} has {len(found):,} rows, the test split of {dataset.folder} has {len(dataset.test):,}: run the evaluate step again"
        )
    return found


def _write_variants(model_folder: Path, dataset: Dataset, folder: Path) -> dict[str, Variant]:
    fp32, openvino = folder / FILES["fp32"]["file"], folder / FILES["openvino"]["file"]
    print0("export: writing ONNX, fp32 and int8")
    exporters.write_fp32(load_model(model_folder), fp32)
    exporters.write_int8(fp32, folder / FILES["int8"]["file"])
    missing = [package for package in ("openvino", "nncf") if find_spec(package) is None]
    if missing:
        print0(f"export: openvino is left out; to have it: pip install {' '.join(missing)}")
    else:
        print0("export: writing OpenVINO, int8 with scales from training texts")
        _write_openvino(lambda: exporters.write_openvino(fp32, openvino, texts=dataset.train), folder)
    return {
        name: Variant(**files, bytes=sum((folder / file).stat().st_size for file in files.values()))
        for name, files in FILES.items()
        if (folder / files["file"]).is_file()
    }


def _write_openvino(write: Callable[[], None], folder: Path) -> None:
    try:
        write()
    except Exception as error:  # noqa: BLE001 - its exceptions share no base, and the others can be shipped without it
        print0(f"export: openvino is not shipped: it cannot be written ({' '.join(str(error).split())[:300]})")
        _remove("openvino", folder)


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
        f"{found['probability_difference']:.1e}, accuracy lower by {found['accuracy_drop'] * 100:.2f} points; "
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
        "accuracy_drop": max(float(right - (found.argmax(axis=1) == labels).mean()) for found in (alone, batched)),
    }


def _same_label(found: Probabilities, expected: Probabilities) -> float:
    return float((found.argmax(axis=1) == expected.argmax(axis=1)).mean())


def _fault(variant: str, found: dict[str, float]) -> str:
    """Returns the reason not to ship a variant; empty when there is none."""
    if variant != "fp32":
        if found["accuracy_drop"] > _ACCURACY_DROP:
            return f"its accuracy is {found['accuracy_drop'] * 100:.2f} points lower, more than {_ACCURACY_DROP * 100}"
        if variant == "openvino" and found["same_label_batched"] < 1:  # dynamic int8 may differ, and is not batched
            return f"it gives {1 - found['same_label_batched']:.2%} of the texts another label in a batch than alone"
        return ""
    if found["same_label"] < _SAME_LABELS:
        return f"it gives the same label on {found['same_label']:.2%} of the texts, fewer than {_SAME_LABELS:.1%}"
    if found["probability_difference"] > _PROBABILITY:
        return f"a probability differs by {found['probability_difference']:.1e}, more than {_PROBABILITY:.0e}"
    return ""


if __name__ == "__main__":
    run_command(ExportArguments, prog="python -m trainer.export")
