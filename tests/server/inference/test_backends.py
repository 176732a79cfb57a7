"""A model folder that cannot be served is refused, with the file and the fix."""

from pathlib import Path

import pytest

from server.errors import ModelFolderError
from server.inference.backends import candidates, load_backend
from server.model_folder import read_model_folder
from tests.support.model_folder import LABELS, MAX_LENGTH, change, write_into


@pytest.mark.parametrize("name", ["model.json", "tokenizer.json", "model_int8.onnx"])
def test_a_missing_file_is_named(own_folder: Path, name: str) -> None:
    (own_folder / "onnx" / name).unlink()
    with pytest.raises(ModelFolderError, match=f"onnx/{name} is missing: run distrinews run, or the export step"):
        read_model_folder(own_folder, candidates("auto"))


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("model.json", "{", r"model\.json: Invalid JSON"),
        ("model.json", '{"labels": ["a", "b"]}', r"model\.json: max_length: Field required"),
        ("tokenizer.json", "{}", r"tokenizer\.json holds no tokenizer"),
        ("model_int8.onnx", "version https://git-lfs", r"model_int8\.onnx cannot be loaded"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(own_folder: Path, name: str, text: str, expected: str) -> None:
    write_into(own_folder, name, text)
    with pytest.raises(ModelFolderError, match=expected):
        load(own_folder)


def load(folder: Path) -> None:
    load_backend(read_model_folder(folder, candidates("auto")), workers=1)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"labels": [*LABELS, "Sci/Tech"]}, "4 labels"),
        ({"labels": ["World", "Sports", "World"]}, "twice"),
        ({"max_length": MAX_LENGTH + 1}, f"fails on {MAX_LENGTH + 1} tokens"),
        ({"variants": {"int4": {"file": "model.onnx"}}}, "no variant openvino or int8 or fp32, only int4"),
        ({"variants": {"int8": {"file": "../../model.onnx"}}}, r"variants\.int8\.file"),
        ({"variants": {"openvino": {"file": "a.xml"}}}, r"a\.xml is missing"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(
    own_folder: Path, facts: dict[str, object], expected: str
) -> None:
    load(own_folder)
    change(own_folder, **facts)
    with pytest.raises(ModelFolderError, match=expected):
        load(own_folder)


def test_a_folder_beside_the_model_folder_is_answered_with_the_right_one(own_folder: Path) -> None:
    for near in (own_folder.parent, own_folder / "onnx"):
        with pytest.raises(ModelFolderError, match=f"did you mean {own_folder}\\?"):
            read_model_folder(near, candidates("auto"))
