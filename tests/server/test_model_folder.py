"""A model folder is served as it was exported, or not at all."""

import io
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from server.errors import ModelFolderError
from server.inference.backends import candidates
from server.model_folder import ModelFolder, is_pickle, read_model_folder, write_manifest
from tests.support.model_folder import LABELS, change, write_model_folder
from tests.support.servers import serving


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model_folder(tmp_path / "model")


def read(folder: Path) -> ModelFolder:
    return read_model_folder(folder, candidates("onnx"))


def saved_by_torch(*, zipped: bool) -> bytes:
    file = io.BytesIO()
    torch.save({"weight": torch.zeros(2)}, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


PICKLES = {
    "pickle": pickle.dumps({"weight": [0.0, 1.0]}),
    "torch": saved_by_torch(zipped=True),
    "torch before 1.6": saved_by_torch(zipped=False),
}


def test_the_digest_of_a_model_is_shown_and_changes_with_any_file_of_it(folder: Path) -> None:
    before = read(folder).sha256
    with serving(folder) as (_, client):
        assert client.get("/health").json()["sha256"] == before
    write_manifest(folder)
    assert read(folder).sha256 == before, "the same files, the same digest"
    change(folder, labels=LABELS[::-1])
    assert read(folder).sha256 != before


@pytest.mark.slow
def test_the_first_line_of_output_names_the_model(folder: Path) -> None:
    command = [sys.executable, "-m", "server.main", str(folder), "--port", "0", "--drain-seconds", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        line = process.stdout.readline()
        process.terminate()
    assert f"; model {read(folder).sha256[:12]};" in line


@pytest.mark.parametrize("name", ["model.json", "tokenizer.json", "model_int8.onnx"])
def test_a_file_with_one_changed_bit_is_refused_by_name(folder: Path, name: str) -> None:
    file = folder / "onnx" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ModelFolderError, match=f"onnx/{name} is not the file that was exported: its sha256 is "):
        read(folder)


def test_a_file_that_was_not_copied_to_its_end_is_refused_with_both_lengths(folder: Path) -> None:
    file = folder / "onnx" / "model_int8.onnx"
    whole = file.stat().st_size
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ModelFolderError, match=rf"model_int8\.onnx has 100 bytes, onnx/manifest\.json lists {whole:,}"):
        read(folder)


def test_only_files_that_are_loaded_are_compared(folder: Path) -> None:
    """A server reads hundreds of megabytes fewer, and a smaller image may leave the others out."""
    (folder / "onnx" / "model.onnx").unlink()
    assert read(folder).variant == "int8"


def test_a_file_that_the_manifest_does_not_name_is_refused(folder: Path) -> None:
    shutil.copy(folder / "onnx" / "model_int8.onnx", folder / "onnx" / "other.onnx")
    facts = json.loads((folder / "onnx" / "model.json").read_text())
    change(folder, variants={"int8": {"file": "other.onnx"}})
    assert read(folder).file.name == "other.onnx"
    manifest = folder / "onnx" / "manifest.json"
    listed = json.loads(manifest.read_text())
    del listed["files"]["onnx/other.onnx"]
    manifest.write_text(json.dumps(listed))
    with pytest.raises(ModelFolderError, match=r"other\.onnx is not in onnx/manifest\.json"):
        read(folder)
    assert facts["default"] == "int8"


def test_a_folder_of_an_older_export_is_refused_with_the_command_to_export(folder: Path) -> None:
    (folder / "onnx" / "manifest.json").unlink()
    with pytest.raises(
        ModelFolderError, match=r"onnx/manifest\.json is missing: run distrinews run, or the export step"
    ):
        read(folder)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "Invalid JSON"),
        ("{}", "files: Field required"),
        ('{"files": {"a": {"bytes": 1, "sha256": "x"}}}', r"files\.a\.sha256"),
    ],
)
def test_a_manifest_that_is_none_is_refused(folder: Path, text: str, expected: str) -> None:
    (folder / "onnx" / "manifest.json").write_text(text)
    with pytest.raises(ModelFolderError, match=rf"onnx/manifest\.json: {expected}"):
        read(folder)


@pytest.mark.parametrize("content", PICKLES.values(), ids=PICKLES)
@pytest.mark.parametrize("name", ["onnx/model_int8.onnx", "pytorch_model.bin", "onnx/openvino.bin"])
def test_a_pickle_is_refused_whatever_it_is_called(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    write_manifest(folder)
    with pytest.raises(ModelFolderError, match=f"{name} is a pickle, which may run any program when it is loaded"):
        read(folder)


@pytest.mark.parametrize("suffix", [".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib"])
def test_a_file_called_like_a_pickle_is_refused_even_if_nothing_loads_it(folder: Path, suffix: str) -> None:
    (folder / f"extra{suffix}").write_text("whatever")
    with pytest.raises(ModelFolderError, match=rf"extra\{suffix} is a pickle"):
        read(folder)


def test_a_pickle_that_model_json_names_is_refused_by_name(folder: Path) -> None:
    change(folder, variants={"int8": {"file": "model.pt"}})
    with pytest.raises(
        ModelFolderError, match=r"variants\.int8\.file: 'model\.pt' should be .* a pickle is never loaded"
    ):
        read(folder)


def test_an_npz_archive_is_refused_and_safetensors_named_instead(folder: Path) -> None:
    np.savez(folder / "onnx" / "linear.npz", weights=np.zeros(3))
    write_manifest(folder)
    with pytest.raises(ModelFolderError, match=r"linear\.npz may hold pickles and is not allowed: .* as \.safetensors"):
        read(folder)


def test_raw_weights_that_begin_like_a_pickle_are_none(tmp_path: Path) -> None:
    (tmp_path / "openvino.bin").write_bytes(b"\x80\x04" + bytes(100))
    assert not is_pickle(tmp_path / "openvino.bin")
    (tmp_path / "empty.bin").touch()
    assert not is_pickle(tmp_path / "empty.bin")


def test_a_folder_mounted_as_kubernetes_mounts_a_config_map_is_served(folder: Path, tmp_path: Path) -> None:
    """Each file is a link into ..data, which is a link to a folder of the moment."""
    mounted = tmp_path / "mounted" / "onnx"
    shutil.copytree(folder / "onnx", mounted / "..2026_11_21")
    (mounted / "..data").symlink_to("..2026_11_21")
    for file in (folder / "onnx").iterdir():
        (mounted / file.name).symlink_to(Path("..data") / file.name)
    assert read(mounted.parent).sha256 == read(folder).sha256


@pytest.mark.parametrize("side", ["left", "right"])
def test_texts_are_truncated_on_the_side_that_model_json_names(folder: Path, side: str) -> None:
    change(folder, padding={"token_id": 1, "side": side, "truncation_side": side})
    found = read(folder)
    assert (found.padding.token_id, found.padding.side) == (1, side)
    text = "bank " + "market " * 30 + "goal"
    words = found.tokenizer.encode(text).tokens
    assert ("bank" in words, "goal" in words) == (side == "right", side == "left")
