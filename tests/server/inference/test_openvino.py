"""OpenVINO in the server: the exported model of a real run, alone, in batches, and from many threads."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from server.errors import ModelFolderError
from server.inference import backends
from server.inference.backends import candidates, load_backend, reason
from server.inference.backends.onnx import OnnxBackend
from server.inference.backends.openvino import OpenVinoBackend
from server.model_folder import read_model_folder
from tests.support.model_folder import change, write_into, write_model_folder
from tests.support.servers import predict, serving
from trainer.data.dataset import Dataset

pytestmark = pytest.mark.slow  # the module takes seconds

Logits = NDArray[np.float32]
WORKERS = 2


@pytest.fixture(scope="module")
def model(finished_run: Path) -> Path:
    return finished_run / "model"


@pytest.fixture(scope="module")
def backend(model: Path) -> OpenVinoBackend:
    loaded = load_backend(read_model_folder(model, candidates("openvino")), workers=WORKERS)
    assert isinstance(loaded, OpenVinoBackend)
    return loaded


@pytest.fixture(scope="module")
def texts(finished_run: Path) -> list[list[int]]:
    """Token ids of test texts, of different lengths."""
    test = Dataset(finished_run / "dataset").test
    found = [test.tokens(row).tolist() for row in range(48)]
    assert len({len(ids) for ids in found}) > 5
    return found


def run(backend: OpenVinoBackend | OnnxBackend, texts: Sequence[Sequence[int]]) -> Logits:
    length = max(map(len, texts))
    mask = np.array([[1] * len(ids) + [0] * (length - len(ids)) for ids in texts])
    ids = np.array([[*ids, *[0] * (length - len(ids))] for ids in texts])
    return backend.run(ids, mask)


def test_it_gives_the_labels_of_the_trained_model(
    backend: OpenVinoBackend, texts: list[list[int]], finished_run: Path
) -> None:
    trained = np.load(finished_run / "predictions.npy")[: len(texts)]
    found = np.concatenate([run(backend, [ids]) for ids in texts])
    assert (found.argmax(axis=1) == trained.argmax(axis=1)).mean() > 0.95


def test_an_answer_is_the_same_alone_and_in_any_batch(backend: OpenVinoBackend, texts: list[list[int]]) -> None:
    alone = np.concatenate([run(backend, [ids]) for ids in texts])
    assert backend.batches
    for size in (2, 8, 48):
        batched = np.concatenate([run(backend, texts[start : start + size]) for start in range(0, len(texts), size)])
        np.testing.assert_allclose(batched, alone, atol=1e-2)
        np.testing.assert_array_equal(batched.argmax(axis=1), alone.argmax(axis=1))


def test_callers_at_once_get_the_answers_that_one_gets(backend: OpenVinoBackend, texts: list[list[int]]) -> None:
    alone = [run(backend, [ids]) for ids in texts]
    with ThreadPoolExecutor(4) as callers:
        together = list(callers.map(lambda ids: run(backend, [ids]), texts * 20))
    np.testing.assert_array_equal(together, alone * 20)


def test_it_has_a_stream_of_one_thread_for_each_worker_and_pins_none(backend: OpenVinoBackend) -> None:
    found = {name: backend._model.get_property(name) for name in ("NUM_STREAMS", "INFERENCE_NUM_THREADS")}
    assert set(found.values()) == {WORKERS}
    assert not backend._model.get_property("ENABLE_CPU_PINNING")
    assert backend._model.get_property("INFERENCE_PRECISION_HINT").get_type_name() in backend.name


def test_a_server_that_may_choose_takes_it_and_gives_the_reason(model: Path) -> None:
    with serving(model) as (_, client):
        health = client.get("/health").json()
        assert (health["variant"], health["engine"].split()[0]) == ("openvino", "openvino")
        fast = predict(client, "The team won the final match")
    with serving(model, "--engine", "onnx") as (_, client):
        assert client.get("/health").json()["variant"] == "int8"
        assert predict(client, "The team won the final match")["label"] == fast["label"]


@pytest.mark.parametrize(
    ("setting", "installed", "variants", "expected"),
    [
        ("auto", True, ("openvino", "int8", "fp32"), "the fastest"),
        ("auto", False, ("int8", "fp32"), "not installed (pip install openvino)"),
        ("openvino", False, ("openvino",), "--engine openvino"),
        ("onnx", True, ("int8", "fp32"), "--engine onnx"),
        ("onnx-fp32", True, ("fp32",), "--engine onnx-fp32"),
    ],
)
def test_a_setting_names_variants_in_order_with_the_reason(
    setting: Any,  # noqa: ANN401 - one of a few strings
    installed: bool,
    variants: tuple[str, ...],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backends, "openvino_installed", lambda: installed)
    assert candidates(setting) == variants
    assert expected in reason(setting, variants[0])


def test_a_folder_without_openvino_is_served_by_onnx_unless_openvino_is_required(
    tmp_path: Path,
) -> None:
    folder = write_model_folder(tmp_path / "model")
    command = [sys.executable, "-m", "server.main", str(folder), "--port", "0", "--drain-seconds", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        line = process.stdout.readline()
        process.terminate()
    assert "int8 on onnxruntime" in line
    assert "the model folder has no variant for OpenVINO" in line
    with pytest.raises(ModelFolderError, match=r"no variant openvino, only fp32, int8: choose with --engine"):
        read_model_folder(folder, candidates("openvino"))


def test_an_openvino_file_that_cannot_be_read_is_named(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model / "onnx", tmp_path / "onnx")
    write_into(tmp_path, "openvino.xml", "version https://git-lfs")
    with pytest.raises(ModelFolderError, match=r"openvino\.xml cannot be loaded"):
        load_backend(read_model_folder(tmp_path, candidates("openvino")), workers=1)


def test_openvino_files_of_another_model_are_refused(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "model")
    change(tmp_path / "model", labels=["one", "two"])
    folder = read_model_folder(tmp_path / "model", candidates("openvino"))
    with pytest.raises(ModelFolderError, match="2 labels"):
        load_backend(folder, workers=1)


@pytest.mark.parametrize("module", ["server.inference.backends.openvino", "server.inference.backends.openvino, nncf"])
def test_the_libraries_send_nothing_and_leave_no_file_behind(module: str, tmp_path: Path) -> None:
    """Both send an event when they are imported, and keep an identity in the home folder for it."""
    code = (
        f"import sys, {module}; print(sorted(name for name in sys.modules if name.startswith('openvino_telemetry.')))"
    )
    environment = os.environ | {"HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.splitlines()[-1] == "[]"
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has priorities of threads")
def test_its_threads_have_a_lower_priority_than_those_that_answer(
    backend: OpenVinoBackend, texts: list[list[int]]
) -> None:
    run(backend, texts[:1])
    nice = {
        task.name: os.getpriority(os.PRIO_PROCESS, int(task.name))
        for task in Path(f"/proc/{os.getpid()}/task").iterdir()
    }
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert nice[str(os.getpid())] == own, "the thread that called keeps its priority"
    if own < 10:  # a process at the lowest priority has no thread below it
        assert sum(of == own + 10 for of in nice.values()) >= WORKERS
