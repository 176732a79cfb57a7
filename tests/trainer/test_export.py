"""Exported models: the same answers, or not shipped."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from server.errors import UserError
from server.inference.backends import load_backend
from server.inference.backends.onnx import OnnxBackend
from server.inference.encoder import Encoder
from server.model_folder import read_model_folder
from trainer import export as export_module
from trainer.config import ExportConfig
from trainer.data.dataset import Dataset, read_info
from trainer.evaluation.predict import Probabilities, predict_texts
from trainer.export import _fault, check, export
from trainer.model import exporters


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A trained and evaluated run that is not exported yet."""
    shutil.copytree(finished_run / "model", tmp_path / "model", ignore=shutil.ignore_patterns("onnx"))
    for name in ("predictions.npy", "metrics.json"):
        shutil.copy(finished_run / name, tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def run_dataset(finished_run: Path) -> Dataset:
    return Dataset(finished_run / "dataset")


def predicted(model: Path, variant: str, texts: list[str], *, batch_size: int) -> Probabilities:
    """Probabilities by the server's encoder, without the temperature."""
    folder = replace(read_model_folder(model, (variant,)), temperature=1.0)
    return predict_texts(Encoder(folder, load_backend(folder, workers=2)), texts, batch_size=batch_size, what="test")


def test_all_variants_are_shipped_with_the_compared_measures(finished_run: Path) -> None:
    facts = json.loads((finished_run / "model" / "onnx" / "model.json").read_text(encoding="utf-8"))
    assert facts["default"] == "int8"
    assert facts["labels"] == ["World", "Sports", "Business", "Sci/Tech"]
    assert facts["text_columns"] == (read_info(finished_run / "dataset")["columns"]["text"] or [])
    assert facts["variants"]["fp32"]["probability_difference"] < 1e-3
    assert facts["variants"]["int8"]["accuracy_drop"] <= 0.005
    assert facts["variants"]["int8"]["bytes"] < 0.5 * facts["variants"]["fp32"]["bytes"]
    openvino = facts["variants"]["openvino"]
    assert openvino["accuracy_drop"] <= 0.005
    assert openvino["same_label_batched"] == 1
    assert openvino["bytes"] < 0.5 * facts["variants"]["fp32"]["bytes"], "its weights are int8"
    names = {path.name for path in (finished_run / "model" / "onnx").iterdir()}
    assert names == {
        "manifest.json", "model.json", "tokenizer.json", "model.onnx", "model_int8.onnx", openvino["file"], openvino["weights"]
    }  # fmt: skip
    output = (finished_run / "output.txt").read_text(encoding="utf-8")
    assert "export: shipped fp32, int8, openvino" in output
    assert not re.search(r"nncf|INFO|Statistics|━", output, re.IGNORECASE), "the libraries are kept quiet"


def test_the_manifest_of_a_run_has_every_file_that_a_server_reads(finished_run: Path) -> None:
    model = finished_run / "model"
    files = json.loads((model / "onnx" / "manifest.json").read_text(encoding="utf-8"))["files"]
    beside = {f"onnx/{path.name}" for path in (model / "onnx").iterdir() if path.name != "manifest.json"}
    assert set(files) == beside | {"config.json", "model.safetensors"}
    for name, entry in files.items():
        digest = subprocess.run(["sha256sum", model / name], capture_output=True, text=True, check=True).stdout
        assert digest.split()[0] == entry["sha256"]
        assert (model / name).stat().st_size == entry["bytes"]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_fp32_gives_the_probabilities_of_the_trained_model_in_any_batch(
    finished_run: Path, run_dataset: Dataset, batch_size: int
) -> None:
    texts = [run_dataset.test.text(row) for row in range(70)]
    found = predicted(finished_run / "model", "fp32", texts, batch_size=batch_size)
    np.testing.assert_allclose(found, np.load(finished_run / "predictions.npy")[:70], atol=1e-4)


def test_a_variant_that_predicts_otherwise_is_not_shipped_and_the_reason_is_printed(
    run: Path, run_dataset: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write_damaged(source: Path, target: Path) -> None:
        model = onnx.load(str(source))
        for weights in model.graph.initializer:
            if len(weights.dims) == 2:
                weights.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(weights), weights.name))
        onnx.save(model, str(target))

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no such\n operation")

    monkeypatch.setattr(exporters, "write_int8", write_damaged)
    monkeypatch.setattr(exporters, "write_openvino", broken)
    facts = export(ExportConfig(), run_dataset, run)
    assert list(facts["variants"]) == ["fp32"]
    assert facts["default"] == "fp32"
    assert not (run / "model" / "onnx" / "model_int8.onnx").exists()
    output = capsys.readouterr().out
    assert re.search(
        r"int8 is not shipped: it gives the same label on \d+\.\d\d% of the texts, fewer than 95.0%", output
    )
    assert "openvino is not shipped: it cannot be written (no such operation)" in output


def test_nothing_is_quantised_or_shipped_from_an_fp32_that_predicts_otherwise(
    run: Path, run_dataset: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(export_module, "find_spec", lambda name: None if name == "nncf" else find_spec(name))
    np.save(run / "predictions.npy", np.roll(np.load(run / "predictions.npy"), 1, axis=1))
    with pytest.raises(UserError, match=r"does not predict as the trained model does: it gives the same label on"):
        export(ExportConfig(), run_dataset, run)
    output = capsys.readouterr().out
    assert "openvino is left out; to have it: pip install nncf\n" in output
    assert "writing int8" not in output
    assert not list((run / "model").glob("*onnx*")), "no half-written folder is left"


def test_the_check_runs_the_backend_of_the_server(
    finished_run: Path, run_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_answers(*_: object) -> np.ndarray[Any, Any]:
        return np.tile(np.array([[9, 0, 0, 0]], dtype=np.float32), (len(_[1]), 1))  # type: ignore[arg-type]

    monkeypatch.setattr(OnnxBackend, "run", other_answers)
    trained = np.load(finished_run / "predictions.npy")
    found, fault = check("fp32", finished_run / "model", run_dataset, trained, rows=50)
    assert found["same_label"] < 0.9
    assert fault.startswith("it gives the same label on")


@pytest.mark.parametrize("name", ["metrics.json", "predictions.npy"])
def test_export_before_evaluate_is_one_line_that_names_the_step(run: Path, run_dataset: Dataset, name: str) -> None:
    (run / name).unlink()
    with pytest.raises(UserError, match=rf"{name} is missing: run the evaluate step first"):
        export(ExportConfig(), run_dataset, run)


@pytest.mark.parametrize(
    ("name", "changed", "expected"),
    [
        ("openvino", {}, ""),
        ("int8", {"same_label": 0.949}, "it gives the same label on 94.90% of the texts, fewer than 95.0%"),
        ("int8", {"probability_difference": 0.9, "same_label": 0.95, "mean_difference": 0.05}, ""),
        ("openvino", {"mean_difference": 0.06}, "its probabilities differ by 0.060 on average, more than 0.05"),
        ("openvino", {"accuracy_drop": 0.0051}, "its accuracy is 0.51 points lower, more than 0.5"),
        ("openvino", {"same_label_batched": 0.999}, "it gives 0.10% of the texts another label in a batch than alone"),
        ("int8", {"same_label_batched": 0.999}, ""),
        ("fp32", {"same_label": 0.99}, "it gives the same label on 99.00% of the texts, fewer than 99.5%"),
        ("fp32", {"probability_difference": 0.01}, "a probability differs by 1.0e-02, more than 1e-03"),
    ],
)
def test_a_variant_that_exceeds_a_limit_is_refused_with_the_reason(
    name: str, changed: dict[str, float], expected: str
) -> None:
    found = dict.fromkeys(("probability_difference", "mean_difference", "accuracy_drop"), 0.0)
    found |= {"same_label": 1.0, "same_label_batched": 1.0}
    assert _fault(name, found | changed) == expected


@pytest.mark.parametrize("batch_size", [1, 32])
def test_the_openvino_variant_gives_about_the_probabilities_of_the_trained_model(
    finished_run: Path, run_dataset: Dataset, batch_size: int
) -> None:
    texts = [run_dataset.test.text(row) for row in range(64)]
    found = predicted(finished_run / "model", "openvino", texts, batch_size=batch_size)
    expected = np.load(finished_run / "predictions.npy")[:64]
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.95
    assert float(np.abs(found - expected).mean()) < 0.03
