"""PyTorch in the server: the trained model itself, on a CPU here; tests that need a CUDA device run where there is one."""

import json
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from scipy.special import softmax

from server.errors import ModelFolderError
from server.inference import backends
from server.inference.backends import Choice, Gpu, candidates, load_backend, measure_token_budget, reason
from server.inference.backends.torch import TorchBackend
from server.inference.classifier import Classifier
from server.model_folder import read_model_folder, write_manifest
from server.settings import Settings
from tests.support.model_folder import write_model_folder
from tests.support.servers import predict, serving
from trainer.data.dataset import Dataset

Logits = NDArray[np.float32]
SAME = 1e-2 if torch.cuda.is_available() else 1e-4  # bf16 computes there
NO_OPENVINO = ("int8", "fp32")


@pytest.fixture(scope="module")
def backend(finished_run: Path) -> TorchBackend:
    loaded = load_backend(read_model_folder(finished_run / "model", candidates("torch")), workers=2)
    assert isinstance(loaded, TorchBackend)
    return loaded


@pytest.fixture(scope="module")
def texts(finished_run: Path) -> list[list[int]]:
    """Token ids of test texts, of different lengths."""
    test = Dataset(finished_run / "dataset").test
    return [test.tokens(row).tolist() for row in range(48)]


@pytest.fixture
def own_model(finished_run: Path, tmp_path: Path) -> Path:
    """Model folder that a test may spoil."""
    return Path(shutil.copytree(finished_run / "model", tmp_path / "model"))


@pytest.fixture
def fresh_gpu() -> Iterator[None]:
    backends.gpu.cache_clear()
    yield
    backends.gpu.cache_clear()


def run(backend: TorchBackend, texts: Sequence[Sequence[int]]) -> Logits:
    length = max(map(len, texts))
    mask = np.array([[1] * len(ids) + [0] * (length - len(ids)) for ids in texts])
    return backend.run(np.array([[*ids, *[0] * (length - len(ids))] for ids in texts]), mask)


def test_it_answers_as_the_trained_model_alone_and_in_any_batch(
    backend: TorchBackend, texts: list[list[int]], finished_run: Path
) -> None:
    trained = np.load(finished_run / "predictions.npy")[: len(texts)]
    alone = np.concatenate([run(backend, [ids]) for ids in texts])
    np.testing.assert_allclose(softmax(alone, axis=1), trained, atol=SAME)
    for size in (3, 48):
        batched = np.concatenate([run(backend, texts[start : start + size]) for start in range(0, len(texts), size)])
        np.testing.assert_allclose(softmax(batched, axis=1), softmax(alone, axis=1), atol=SAME)
        assert (batched.argmax(axis=1) == alone.argmax(axis=1)).all()


def test_threads_that_call_at_once_get_their_own_answers(backend: TorchBackend, texts: list[list[int]]) -> None:
    alone = [run(backend, [ids]) for ids in texts]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda ids: run(backend, [ids]), texts))
    np.testing.assert_allclose(np.concatenate(together), np.concatenate(alone), atol=1e-5)


def test_the_server_runs_it_when_it_is_asked_to(finished_run: Path) -> None:
    with serving(finished_run / "model", "--engine", "torch") as (_, client):
        health = client.get("/health").json()
        assert (health["variant"], health["engine"].split()[0]) == ("torch", "torch")
        answer = predict(client, "The team won the final match")
    with serving(finished_run / "model", "--engine", "onnx-fp32") as (_, client):
        other = predict(client, "The team won the final match")
    assert answer["label"] == other["label"]
    assert answer["confidence"] == pytest.approx(other["confidence"], abs=SAME)


def test_weights_that_changed_or_are_missing_are_refused_by_name(own_model: Path) -> None:
    weights = own_model / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ModelFolderError, match=r"model\.safetensors is not the file that was exported"):
        read_model_folder(own_model, ("torch",))
    (own_model / "config.json").write_text("{}")
    weights.unlink()
    with pytest.raises(ModelFolderError, match=r"model\.safetensors is missing"):
        read_model_folder(own_model, ("torch",))


def test_a_changed_configuration_is_refused_by_name(own_model: Path) -> None:
    (own_model / "config.json").write_text("{}")
    with pytest.raises(ModelFolderError, match=r"config\.json has 2 bytes"):
        read_model_folder(own_model, ("torch",))


def test_weights_that_lack_a_layer_are_refused_instead_of_made_up(own_model: Path) -> None:
    weights = load_file(own_model / "model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, own_model / "model.safetensors", metadata={"format": "pt"})
    write_manifest(own_model)
    with pytest.raises(ModelFolderError, match=r"it lacks classifier\.weight; run the export step again"):
        load_backend(read_model_folder(own_model, ("torch",)), workers=1)


def test_a_model_with_another_number_of_classes_is_refused(own_model: Path) -> None:
    described = own_model / "onnx" / "model.json"
    facts = json.loads(described.read_text(encoding="utf-8"))
    described.write_text(json.dumps(facts | {"labels": ["one", "two"]}), encoding="utf-8")
    write_manifest(own_model)
    folder = read_model_folder(own_model, ("torch",))
    with pytest.raises(ModelFolderError, match=r"model\.json has 2 labels"):
        load_backend(folder, workers=1)


def test_code_that_a_configuration_names_is_never_run(own_model: Path) -> None:
    file = own_model / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | {"model_type": "ours"}
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Model"}
    file.write_text(json.dumps(config), encoding="utf-8")
    (own_model / "evil.py").write_text("raise SystemExit('it ran')")
    write_manifest(own_model)
    with pytest.raises(ModelFolderError, match=r"model\.safetensors cannot be loaded"):
        load_backend(read_model_folder(own_model, ("torch",)), workers=1)


def test_auto_takes_it_on_a_cuda_device_and_gives_the_reason(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "gpu", lambda: Gpu(usable=True))
    assert candidates("auto")[0] == "torch"
    assert read_model_folder(finished_run / "model", candidates("auto")).variant == "torch"
    assert reason("auto", "torch") == "as a CUDA device is there"


def test_auto_takes_the_next_where_the_weights_were_left_out_with_the_reason(
    own_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "gpu", lambda: Gpu(usable=True))
    (own_model / "model.safetensors").unlink()
    variant = read_model_folder(own_model, candidates("auto")).variant
    assert variant == "openvino"
    assert "no model.safetensors for the CUDA device" in reason("auto", variant)


@pytest.mark.usefixtures("fresh_gpu")
def test_a_device_that_pytorch_cannot_use_is_reported_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "cuda_devices", lambda: 1)
    monkeypatch.setattr(backends, "find_spec", lambda name: None if name == "torch" else find_spec(name))
    assert "torch" not in candidates("auto")
    expected = "; a CUDA device is there, but torch not installed (pip install 'distrinews[server-torch]')"
    assert reason("auto", "openvino").endswith(expected)
    backends.gpu.cache_clear()
    monkeypatch.setattr(backends, "find_spec", find_spec)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert "the driver may be too old for CUDA 12.8" in reason("auto", "int8")
    backends.gpu.cache_clear()
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "is built without CUDA" in reason("auto", "int8")


class OnGpu:
    """A backend that behaves like a GPU: a batch of any size takes as long as a text."""

    name = "on a gpu"
    batches = True
    gpu = True
    length_step = 8

    def __init__(self) -> None:
        self.rows: set[int] = set()

    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> Logits:
        assert input_ids.shape == attention_mask.shape
        self.rows.add(len(input_ids))
        return np.zeros((len(input_ids), 3), dtype=np.float32)


def test_on_a_gpu_batches_of_up_to_64_texts_are_tried_and_two_workers_are_enough(tmp_path: Path) -> None:
    backend = OnGpu()
    assert measure_token_budget(backend, max_length=128) > 8 * 64
    assert backend.rows == {1, 8, 32, 64}
    folder = read_model_folder(write_model_folder(tmp_path / "model"), NO_OPENVINO)
    classifier = Classifier(Choice(folder, backend), Settings(workers=16))
    assert classifier.workers == 2
    classifier.close()
